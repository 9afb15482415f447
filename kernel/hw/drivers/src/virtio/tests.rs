//! Registers that are memory, and a device that tests play.

use super::ring::Areas;
use super::*;
pub(crate) use crate::heap::{HeapHal as TestHal, peek, poke};

/// The device's side of a ring, played by a test.
pub(crate) struct TestDevice {
    areas: Areas,
    size: u16,
    seen: u16,
    used: u16,
    /// What the doorbell was last written with; `u16::MAX` for nothing.
    doorbell: Box<u16>,
}

/// A buffer as the device reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TestBuffer {
    pub address: u64,
    pub bytes: u32,
    pub device_writes: bool,
}

/// A queue of 8 descriptors and the device at its other end.
pub(crate) fn queue(table_entries: u16, event_index: bool) -> (Queue<TestHal>, TestDevice) {
    let ring = Ring::new(8, table_entries, event_index).unwrap();
    let mut doorbell = Box::new(u16::MAX);
    // SAFETY: the box outlives the test's queue and nothing else writes it.
    let registers = unsafe { Registers::map::<TestHal>(&raw mut *doorbell as u64, 2) };
    let device = TestDevice { areas: ring.areas(), size: ring.size(), seen: 0, used: 0, doorbell };
    (Queue { ring, doorbell: registers, index: 3 }, device)
}

impl TestDevice {
    /// The next available chain: its head and its buffers.
    pub(crate) fn take(&mut self) -> Option<(u16, Vec<TestBuffer>)> {
        if peek::<u16>(self.areas.available + 2) == self.seen {
            return None;
        }
        let head: u16 = peek(self.areas.available + 4 + 2 * u64::from(self.seen % self.size));
        self.seen = self.seen.wrapping_add(1);
        let (mut table, mut index, mut buffers) = (self.areas.descriptors, head, Vec::new());
        loop {
            let at = table + 16 * u64::from(index);
            let (address, bytes, flags) = (peek(at), peek::<u32>(at + 8), peek::<u16>(at + 12));
            if flags & 4 != 0 {
                (table, index) = (address, 0);
                continue;
            }
            buffers.push(TestBuffer { address, bytes, device_writes: flags & 2 != 0 });
            if flags & 1 == 0 {
                return Some((head, buffers));
            }
            index = peek(at + 14);
        }
    }

    /// Finishes a chain.
    pub(crate) fn finish(&mut self, id: u32, bytes: u32) {
        let at = self.areas.used + 4 + 8 * u64::from(self.used % self.size);
        poke(at, id);
        poke(at + 4, bytes);
        self.used = self.used.wrapping_add(1);
        self.set_used(self.used);
    }

    pub(crate) fn set_used(&mut self, index: u16) {
        poke(self.areas.used + 2, index);
    }

    /// The used index at which the driver wants an interrupt.
    pub(crate) fn used_event(&self) -> u16 {
        peek(self.areas.available + 4 + 2 * u64::from(self.size))
    }

    pub(crate) fn available_flags(&self) -> u16 {
        peek(self.areas.available)
    }

    /// Says at which available index it wants to be told.
    pub(crate) fn set_available_event(&mut self, index: u16) {
        poke(self.areas.used + 4 + 8 * u64::from(self.size), index);
    }

    pub(crate) fn set_used_flags(&mut self, flags: u16) {
        poke(self.areas.used, flags);
    }

    /// Whether the doorbell was rung since the last call, with the queue's number.
    pub(crate) fn was_rung(&mut self) -> bool {
        let address = &raw mut *self.doorbell as u64;
        let rung = peek::<u16>(address);
        poke(address, u16::MAX);
        assert!(rung == u16::MAX || rung == 3);
        rung == 3
    }
}

#[test]
fn windows_lie_in_their_bar() {
    let bar = |number: u8| (number == 4).then_some((0xfe00_0000_u64, 0x4000_u64));
    assert_eq!(window([4, 0x1000, 0x1000], bar), Some(Window { physical: 0xfe00_1000, bytes: 0x1000 }));
    for words in [[4, 0x3000, 0x1001], [4, u32::MAX, 2], [4, 0, 0], [3, 0, 4], [0xff, 0, 4], [4, 0, u32::MAX]] {
        assert_eq!(window(words, bar), None);
    }
}
