//! The 256 bytes of configuration space of one type-0 function (chapter 6).
//!
//! [`ConfigSpace`] is a register image with a mask of the bits a guest may write; BAR sizing, command bits and
//! capabilities all fall out of that mask. A function built on it asks [`ConfigSpace::decoded`] after a [`Change`].

mod saved;

pub use saved::Saved;

use crate::CAPABILITY_MSIX;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CACHE_LINE: usize = 0x0c;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
/// The first byte after the type-0 header.
const HEADER_BYTES: usize = 0x40;
const SPACE_BYTES: usize = 256;

const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_PARITY: u16 = 1 << 6;
const COMMAND_SERR: u16 = 1 << 8;
const COMMAND_INTX_OFF: u16 = 1 << 10;
const STATUS_INTERRUPT: u16 = 1 << 3;
const STATUS_CAPABILITIES: u16 = 1 << 4;

const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK: u16 = 1 << 14;

const BARS: usize = 6;

/// Who a function is (6.2.1).
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, subclass and programming interface, 8 bits each from high to low.
    pub class: u32,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
}

/// What a BAR asks for (6.2.5.1). Memory is not prefetchable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarKind {
    /// Ports, below 64 KiB.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes this BAR and the next.
    Memory64,
}

/// What one configuration write changed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Change {
    /// A BAR has another base.
    pub bars: bool,
    /// The command register differs.
    pub command: bool,
    /// MSI-X was enabled, disabled, masked or unmasked.
    pub msix: bool,
}

/// A range that a function answers to at this moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DecodedBar {
    /// Which BAR, 0..6.
    pub index: usize,
    /// Ports or memory.
    pub kind: BarKind,
    /// The first port or guest-physical address.
    pub base: u64,
    /// Its length, a power of two.
    pub bytes: u64,
}

/// The MSI-X message control bits that a guest sets (6.8.2.3).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct MsixControl {
    /// Messages instead of the interrupt pin.
    pub enabled: bool,
    /// All vectors are masked.
    pub masked: bool,
}

#[derive(Clone, Copy, Debug)]
struct Bar {
    kind: BarKind,
    bytes: u64,
}

/// Configuration space of one type-0 function.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    image: [u8; SPACE_BYTES],
    writable: [u8; SPACE_BYTES],
    bars: [Option<Bar>; BARS],
    /// Where the MSI-X capability is, 0 without one.
    msix: usize,
    /// The next-pointer that the next capability is hung on, and the first free byte.
    capability_tail: usize,
    capability_free: usize,
}

impl ConfigSpace {
    /// A function without BARs, capabilities or an interrupt pin, decoding nothing.
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            image: [0; SPACE_BYTES],
            writable: [0; SPACE_BYTES],
            bars: [None; BARS],
            msix: 0,
            capability_tail: CAPABILITIES,
            capability_free: HEADER_BYTES,
        };
        space.set16(0x00, identity.vendor);
        space.set16(0x02, identity.device);
        space.set32(0x08, identity.class << 8 | u32::from(identity.revision));
        space.set16(0x2c, identity.subsystem_vendor);
        space.set16(0x2e, identity.subsystem);
        let command = COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_OFF;
        space.writable[COMMAND..COMMAND + 2].copy_from_slice(&command.to_le_bytes());
        space.writable[CACHE_LINE] = 0xff;
        space.writable[INTERRUPT_LINE] = 0xff;
        space
    }

    /// Adds a BAR of `bytes` bytes, not yet placed.
    ///
    /// # Panics
    /// Where the BAR is taken, or `bytes` is no power of two of at least 4 (ports, at most 256 as 6.2.5.1 asks) or 16
    /// (memory): the function's author lays it out.
    pub fn add_bar(&mut self, index: usize, kind: BarKind, bytes: u64) {
        let smallest = if kind == BarKind::Io { 4 } else { 16 };
        let largest = match kind {
            BarKind::Io => 256,
            BarKind::Memory32 => 1 << 31,
            BarKind::Memory64 => 1 << 63,
        };
        assert!(bytes.is_power_of_two() && (smallest..=largest).contains(&bytes), "no BAR has this size");
        let fits = match kind {
            BarKind::Memory64 => index + 1 < BARS && self.bars[index + 1].is_none(),
            BarKind::Io | BarKind::Memory32 => index < BARS,
        };
        assert!(fits && self.bars[index].is_none() && !self.is_upper_half(index), "the BAR is taken");
        self.bars[index] = Some(Bar { kind, bytes });
        let at = BAR0 + 4 * index;
        let base_bits = !(bytes - 1);
        let (type_bits, low_bits) = match kind {
            // The upper 16 bits may be wired to zero where ports have 16 bits (6.2.5.1).
            BarKind::Io => (0b01, base_bits as u32 & 0xffff),
            BarKind::Memory32 => (0b000, base_bits as u32),
            BarKind::Memory64 => (0b100, base_bits as u32),
        };
        self.set32(at, type_bits);
        self.writable[at..at + 4].copy_from_slice(&low_bits.to_le_bytes());
        if kind == BarKind::Memory64 {
            self.writable[at + 4..at + 8].copy_from_slice(&((base_bits >> 32) as u32).to_le_bytes());
        }
    }

    /// Appends a capability whose bytes after identifier and next-pointer are `body`, all read-only, and returns its
    /// offset (a multiple of 4).
    ///
    /// # Panics
    /// Where the 192 bytes for capabilities are used up.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> u16 {
        let at = self.capability_free;
        let end = at + 2 + body.len();
        assert!(end <= SPACE_BYTES, "no room for another capability");
        self.image[at] = id;
        self.image[at + 2..end].copy_from_slice(body);
        self.image[self.capability_tail] = at as u8;
        self.capability_tail = at + 1;
        self.capability_free = end.next_multiple_of(4);
        self.set16(STATUS, self.get16(STATUS) | STATUS_CAPABILITIES);
        at as u16
    }

    /// Lets the guest write `bytes` bytes from `offset` on, inside a capability. They stay plain storage.
    ///
    /// # Panics
    /// Where the bytes are not all in the capability area.
    pub fn make_writable(&mut self, offset: u16, bytes: usize) {
        let at = usize::from(offset);
        assert!(at >= HEADER_BYTES && at + bytes <= self.capability_free, "not in a capability");
        self.writable[at..at + bytes].fill(0xff);
    }

    /// Adds registers of the function's own, `bytes` bytes from `offset` on behind the header: plain storage for the guest,
    /// zero after power-up.
    ///
    /// # Panics
    /// Where they are not all behind the header, or a capability is there.
    pub fn add_registers(&mut self, offset: u16, bytes: usize) {
        let at = usize::from(offset);
        assert!(at >= self.capability_free && at + bytes <= SPACE_BYTES, "no place for registers");
        self.writable[at..at + bytes].fill(0xff);
    }

    /// Adds the MSI-X capability (6.8.2): `vectors` (1..=2048) entries at `table` and pending bits at `pending`, both
    /// offsets (multiples of 8) into BAR `bar`. Returns its offset.
    pub fn add_msix(&mut self, vectors: u16, bar: u8, table: u32, pending: u32) -> u16 {
        assert!((1..=2048).contains(&vectors) && table & 7 == 0 && pending & 7 == 0);
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(vectors - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        let at = self.add_capability(CAPABILITY_MSIX, &body);
        self.msix = usize::from(at);
        let control = (MSIX_ENABLE | MSIX_MASK).to_le_bytes();
        self.writable[self.msix + 2..self.msix + 4].copy_from_slice(&control);
        at
    }

    /// Wires the function to pin `pin` (1 = INTA#) and notes the line that firmware routed it to.
    pub fn set_interrupt(&mut self, pin: u8, line: u8) {
        self.image[INTERRUPT_PIN] = pin;
        self.image[INTERRUPT_LINE] = line;
    }

    /// Places a BAR as firmware does; bits below its size are dropped. The command register is left alone.
    ///
    /// # Panics
    /// Where there is no such BAR.
    pub fn place_bar(&mut self, index: usize, base: u64) {
        let bar = self.bars[index].expect("the BAR was added");
        let at = (BAR0 + 4 * index) as u16;
        self.write(at, 4, base as u32);
        if bar.kind == BarKind::Memory64 {
            self.write(at + 4, 4, (base >> 32) as u32);
        }
    }

    /// Reads `size` (1, 2 or 4) bytes. Bytes past the 256 read as ones: the function has no extended space.
    pub fn read(&self, offset: u16, size: u8) -> u32 {
        let mut bytes = [0; 4];
        for (byte, at) in bytes.iter_mut().zip(usize::from(offset)..).take(usize::from(size)) {
            *byte = self.image.get(at).copied().unwrap_or(0xff);
        }
        u32::from_le_bytes(bytes)
    }

    /// Writes `size` (1, 2 or 4) bytes, as far as the bits are writable, and says what that changed.
    pub fn write(&mut self, offset: u16, size: u8, value: u32) -> Change {
        let before = self.watched();
        for (byte, at) in value.to_le_bytes().into_iter().zip(usize::from(offset)..).take(usize::from(size)) {
            if let Some(mask) = self.writable.get(at) {
                self.image[at] = self.image[at] & !mask | byte & mask;
            }
        }
        let after = self.watched();
        Change { bars: before.0 != after.0, command: before.1 != after.1, msix: before.2 != after.2 }
    }

    /// The ranges this function answers to: BARs that are placed and whose kind the command register enables.
    pub fn decoded(&self) -> impl Iterator<Item = DecodedBar> + '_ {
        let command = self.get16(COMMAND);
        self.bars.iter().enumerate().filter_map(move |(index, bar)| {
            let Bar { kind, bytes } = (*bar)?;
            let enable = if kind == BarKind::Io { COMMAND_IO } else { COMMAND_MEMORY };
            let base = self.bar_base(index)?;
            // A base of zero is a BAR that nobody placed.
            let placed = base != 0 && base.checked_add(bytes).is_some();
            (placed && command & enable != 0).then_some(DecodedBar { index, kind, base, bytes })
        })
    }

    /// The base in a BAR, decoded or not; `None` where there is no such BAR.
    pub fn bar_base(&self, index: usize) -> Option<u64> {
        let bar = (*self.bars.get(index)?)?;
        let at = BAR0 + 4 * index;
        let low = u64::from(self.get32(at));
        Some(match bar.kind {
            BarKind::Io => low & !0b11,
            BarKind::Memory32 => low & !0b1111,
            BarKind::Memory64 => u64::from(self.get32(at + 4)) << 32 | low & !0b1111,
        })
    }

    /// Whether the function may reach memory by itself: DMA and messages (6.2.2).
    pub fn bus_master(&self) -> bool {
        self.get16(COMMAND) & COMMAND_MASTER != 0
    }

    /// Sets or clears command bits as firmware does before it starts a system: `ports`, `memory`, bus `master`.
    pub fn enable(&mut self, ports: bool, memory: bool, master: bool) {
        let bit = |on, bit| if on { bit } else { 0 };
        let all = COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER;
        let on = bit(ports, COMMAND_IO) | bit(memory, COMMAND_MEMORY) | bit(master, COMMAND_MASTER);
        self.set16(COMMAND, self.get16(COMMAND) & !all | on);
    }

    /// Whether the guest forbids the interrupt pin (6.2.2, bit 10).
    pub fn intx_disabled(&self) -> bool {
        self.get16(COMMAND) & COMMAND_INTX_OFF != 0
    }

    /// Shows in the status register whether the function wants its pin asserted, forbidden or not (6.2.3, bit 3).
    pub fn set_interrupt_status(&mut self, wanted: bool) {
        let status = self.get16(STATUS) & !STATUS_INTERRUPT;
        self.set16(STATUS, if wanted { status | STATUS_INTERRUPT } else { status });
    }

    /// The MSI-X control bits; all clear without the capability.
    pub fn msix_control(&self) -> MsixControl {
        if self.msix == 0 {
            return MsixControl::default();
        }
        let control = self.get16(self.msix + 2);
        MsixControl { enabled: control & MSIX_ENABLE != 0, masked: control & MSIX_MASK != 0 }
    }

    /// What a [`Change`] is about: BARs, command, MSI-X control.
    fn watched(&self) -> ([u8; 4 * BARS], u16, MsixControl) {
        let mut bars = [0; 4 * BARS];
        bars.copy_from_slice(&self.image[BAR0..BAR0 + 4 * BARS]);
        (bars, self.get16(COMMAND), self.msix_control())
    }

    fn is_upper_half(&self, index: usize) -> bool {
        index > 0 && matches!(self.bars[index - 1], Some(Bar { kind: BarKind::Memory64, .. }))
    }

    fn get16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.image[at], self.image[at + 1]])
    }

    fn get32(&self, at: usize) -> u32 {
        u32::from(self.get16(at)) | u32::from(self.get16(at + 2)) << 16
    }

    fn set16(&mut self, at: usize, value: u16) {
        self.image[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn set32(&mut self, at: usize, value: u32) {
        self.image[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function() -> ConfigSpace {
        let mut space = ConfigSpace::new(&Identity {
            vendor: 0x1234,
            device: 0x5678,
            revision: 1,
            class: 0x01_0802,
            subsystem_vendor: 0x1111,
            subsystem: 0x2222,
        });
        space.add_bar(0, BarKind::Io, 32);
        space.add_bar(1, BarKind::Memory32, 0x4000);
        space.add_bar(2, BarKind::Memory64, 1 << 33);
        space
    }

    #[test]
    fn identity_is_read_only() {
        let mut space = function();
        assert_eq!(space.write(0, 4, 0), Change::default());
        assert_eq!(space.read(0, 4), 0x5678_1234);
        assert_eq!(space.read(8, 4), 0x0108_0201);
        assert_eq!(space.read(0x0a, 2), 0x0108);
        assert_eq!(space.read(0x2c, 4), 0x2222_1111);
    }

    #[test]
    fn bars_are_sized_by_all_ones() {
        let mut space = function();
        for register in (0x10..0x28).step_by(4) {
            space.write(register, 4, u32::MAX);
        }
        assert_eq!(space.read(0x10, 4), 0xffe1);
        assert_eq!(space.read(0x14, 4), 0xffff_c000);
        assert_eq!(space.read(0x18, 4), 0x0000_0004);
        assert_eq!(space.read(0x1c, 4), 0xffff_fffe);
        assert_eq!(space.read(0x20, 4), 0);
    }

    #[test]
    fn decoding_follows_the_command_register() {
        let mut space = function();
        space.place_bar(0, 0xc000);
        space.place_bar(1, 0xfe00_0000);
        space.place_bar(2, 0x40_0000_0000);
        assert_eq!(space.decoded().count(), 0);
        assert_eq!(space.write(4, 2, 1), Change { command: true, ..Change::default() });
        let ports = DecodedBar { index: 0, kind: BarKind::Io, base: 0xc000, bytes: 32 };
        assert_eq!(space.decoded().collect::<Vec<_>>(), [ports]);
        space.write(4, 2, 2);
        let bases: Vec<_> = space.decoded().map(|bar| bar.base).collect();
        assert_eq!(bases, [0xfe00_0000, 0x40_0000_0000]);
        assert!(!space.bus_master());
        space.enable(true, true, true);
        assert!(space.bus_master());
        assert_eq!(space.decoded().count(), 3);
    }

    #[test]
    fn unplaced_and_wrapping_bars_are_not_decoded() {
        let mut space = function();
        space.enable(true, true, false);
        assert_eq!(space.decoded().count(), 0);
        space.write(0x18, 4, u32::MAX);
        space.write(0x1c, 4, u32::MAX);
        assert_eq!(space.decoded().count(), 0);
    }

    #[test]
    fn capabilities_are_linked() {
        let mut space = function();
        assert_eq!(space.read(6, 2) & 0x10, 0);
        let first = space.add_capability(0x09, &[1, 2, 3]);
        let second = space.add_msix(3, 1, 0x3000, 0x3800);
        assert_eq!(space.read(6, 2) & 0x10, 0x10);
        assert_eq!(space.read(0x34, 1), u32::from(first));
        assert_eq!(space.read(first, 4), 0x0201_0009 | u32::from(second) << 8);
        assert_eq!(space.read(second, 4), 0x0002_0011);
        assert_eq!(space.read(second + 4, 4), 0x3001);
        assert_eq!(space.read(second + 8, 4), 0x3801);
    }

    #[test]
    fn msix_control_bits_are_writable() {
        let mut space = function();
        let at = space.add_msix(3, 1, 0x3000, 0x3800);
        let change = space.write(at, 4, 0xffff_0000);
        assert_eq!(change, Change { msix: true, ..Change::default() });
        assert_eq!(space.read(at + 2, 2), 0xc002);
        assert_eq!(space.msix_control(), MsixControl { enabled: true, masked: true });
        assert_eq!(space.write(at + 2, 2, 0xc000), Change::default());
    }

    #[test]
    fn only_what_is_made_writable_is() {
        let mut space = function();
        let at = space.add_capability(0x09, &[0; 6]);
        space.make_writable(at + 4, 2);
        space.write(at + 4, 4, 0x1234_5678);
        assert_eq!(space.read(at + 4, 4), 0x5678);
    }

    #[test]
    fn reads_past_the_end_are_ones() {
        let mut space = function();
        assert_eq!(space.read(0x100, 4), u32::MAX);
        assert_eq!(space.read(0xfffe, 4), u32::MAX);
        assert_eq!(space.read(0xfe, 4), 0xffff_0000);
        assert_eq!(space.write(0xffff, 4, 7), Change::default());
    }
}
