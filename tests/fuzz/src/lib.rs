//! What the fuzz targets share: [`Input`] turns the fuzzer's bytes into actions and their values; [`disk`] gives them to
//! disks, [`processor`] is one with its memory.

pub mod disk;
pub mod processor;

/// The fuzzer's bytes, taken from the front. Every value exists: past the end all bytes are zero.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of `data`.
    #[must_use]
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// True when nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `count` bytes.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.u64_of(1) as u8
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self) -> u16 {
        self.u64_of(2) as u16
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> u32 {
        self.u64_of(4) as u32
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self) -> u64 {
        self.u64_of(8)
    }

    /// The width of an access: 1, 2, 4 or 8 bytes.
    pub fn width(&mut self) -> u8 {
        1 << (self.u8() & 3)
    }

    /// The width of a port access: 1, 2 or 4 bytes.
    pub fn port_width(&mut self) -> u8 {
        1 << (self.u8() % 3)
    }

    fn u64_of(&mut self, count: usize) -> u64 {
        let mut value = [0; 8];
        let taken = self.bytes(count);
        value[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(value)
    }
}
