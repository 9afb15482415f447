//! Bus 0's configuration space through ports 0xCF8 and 0xCFC, and BARs given out where no firmware did.

use crate::cpu;
use core::sync::atomic::{AtomicU32, Ordering};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const COMMAND: u8 = 0x04;
const BAR_0: u8 = 0x10;
const CAPABILITIES: u8 = 0x34;

/// Where the next BAR goes: the middle of the board's window.
static NEXT_BAR: AtomicU32 = AtomicU32::new(0xd000_0000);

/// Function 0 of a device of bus 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device(pub u8);

impl Device {
    /// The first with this vendor and one of these device ids.
    pub fn find(vendor: u16, devices: &[u16]) -> Option<Self> {
        (0..32).map(Self).find(|device| {
            let id = device.read(0);
            id as u16 == vendor && devices.contains(&((id >> 16) as u16))
        })
    }

    fn select(self, offset: u8) {
        cpu::out32(ADDRESS, 1 << 31 | u32::from(self.0) << 11 | u32::from(offset & !3));
    }

    /// Reads four bytes of configuration space.
    pub fn read(self, offset: u8) -> u32 {
        self.select(offset);
        cpu::in32(DATA)
    }

    /// Writes four bytes of configuration space.
    pub fn write(self, offset: u8, value: u32) {
        self.select(offset);
        cpu::out32(DATA, value);
    }

    fn byte(self, offset: u8) -> u8 {
        (self.read(offset) >> (offset % 4 * 8)) as u8
    }

    /// Turns on memory decoding and bus mastering, and INTx off.
    pub fn enable(self) {
        const MEMORY: u32 = 1 << 1;
        const MASTER: u32 = 1 << 2;
        const NO_INTX: u32 = 1 << 10;
        self.write(COMMAND, self.read(COMMAND) & 0xffff | MEMORY | MASTER | NO_INTX);
    }

    /// Turns decoding and bus mastering off.
    pub fn disable(self) {
        self.write(COMMAND, self.read(COMMAND) & 0xffff & !0b111);
    }

    /// The offsets of the capabilities with this id. A list that never ends is cut.
    pub fn capabilities(self, id: u8) -> impl Iterator<Item = u8> {
        const HAS_LIST: u32 = 1 << 4;
        const MOST: usize = 48;
        // The status register is the upper half of the command register's four bytes.
        let listed = self.read(COMMAND) >> 16 & HAS_LIST != 0;
        let first = if listed { self.byte(CAPABILITIES) & !3 } else { 0 };
        core::iter::successors(Some(first), move |at| Some(self.byte(at + 1) & !3))
            .take_while(|at| *at != 0)
            .take(MOST)
            .filter(move |at| self.byte(*at) == id)
    }

    /// The address of a memory BAR, given out here if it has none; `None` for ports and above 4 GiB.
    pub fn bar(self, index: u8) -> Option<u64> {
        let offset = BAR_0 + 4 * index;
        let low = self.read(offset);
        if low & 1 != 0 {
            return None;
        }
        let is_wide = low & 0b110 == 0b100;
        if is_wide && self.read(offset + 4) != 0 {
            return None;
        }
        if low & !0xf != 0 {
            return Some(u64::from(low & !0xf));
        }
        self.write(offset, u32::MAX);
        let size = (!(self.read(offset) & !0xf)).wrapping_add(1);
        if size == 0 {
            return None;
        }
        let at = NEXT_BAR.load(Ordering::Relaxed).next_multiple_of(size);
        NEXT_BAR.store(at + size, Ordering::Relaxed);
        self.write(offset, at);
        Some(u64::from(at))
    }
}
