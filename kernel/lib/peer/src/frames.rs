//! Where one frame ends and the next begins: a length of two bytes, big-endian, then as many.

use alloc::vec::Vec;
use core::ops::Range;

/// The longest frame: what two bytes count, and what Noise allows (revision 34, section 3).
pub const FRAME_BYTES_MAX: usize = 65_535;

/// Bytes that arrived and make no whole frame yet.
#[derive(Default)]
pub struct Incoming {
    bytes: Vec<u8>,
    start: usize,
}

impl Incoming {
    /// Adds what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        } else if self.start > FRAME_BYTES_MAX {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The first `count` bytes, taken out.
    pub fn take(&mut self, count: usize) -> Option<&[u8]> {
        let range = self.start..self.start + count;
        let bytes = self.bytes.get(range.clone())?;
        self.start = range.end;
        Some(bytes)
    }

    /// The next whole frame, taken out.
    pub fn frame(&mut self) -> Option<&[u8]> {
        let range = self.next()?;
        self.start = range.end;
        Some(&self.bytes[range])
    }

    /// Whether a whole frame waits.
    pub fn has_frame(&self) -> bool {
        self.next().is_some()
    }

    /// Where the next whole frame is.
    fn next(&self) -> Option<Range<usize>> {
        let (header, _) = self.bytes.get(self.start..)?.split_first_chunk()?;
        let start = self.start + 2;
        let end = start + usize::from(u16::from_be_bytes(*header));
        (end <= self.bytes.len()).then_some(start..end)
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.bytes.len() - self.start
    }
}

/// Puts a frame's length into the two bytes at `at`, which were left free in front of it.
pub fn close(out: &mut [u8], at: usize) {
    let length = out.len() - at - 2;
    assert!(length <= FRAME_BYTES_MAX, "a frame's length fits");
    out[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_however_they_arrive() {
        let mut wire = Vec::new();
        for length in [0, 1, 300, 65_535] {
            let at = wire.len();
            wire.extend([0, 0]);
            wire.extend(core::iter::repeat_n(length as u8, length));
            close(&mut wire, at);
        }
        for step in [1, 7, 4096, wire.len()] {
            let mut incoming = Incoming::default();
            let mut lengths = Vec::new();
            for part in wire.chunks(step) {
                incoming.push(part);
                while incoming.has_frame() {
                    let frame = incoming.frame().unwrap();
                    assert!(frame.iter().all(|&byte| byte == frame.len() as u8));
                    lengths.push(frame.len());
                }
            }
            assert_eq!(lengths, [0, 1, 300, 65_535]);
            assert!(incoming.waiting() == 0 && incoming.frame().is_none());
        }
    }
}
