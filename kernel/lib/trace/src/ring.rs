//! The ring of entries.
//!
//! [`Ring`] holds the last `N` entries of one CPU, its storage inside it, so that its owner says where that is. One
//! CPU writes; others read after it has stopped or under the owner's lock.

use crate::{Entry, Event};

/// The last `N` entries that one CPU pushed, `N` a power of two.
///
/// A push that a panic interrupts loses at most that entry and the oldest one, never the others: the count goes up
/// after the entry is whole.
pub struct Ring<const N: usize> {
    entries: [Entry; N],
    /// How many entries were ever pushed.
    pushed: u64,
}

impl<const N: usize> Ring<N> {
    const MASK: usize = {
        assert!(N.is_power_of_two(), "a ring's size is a power of two");
        N - 1
    };

    /// A ring without entries.
    pub const fn new() -> Self {
        // Of the first kind and all zeroes: a static ring takes no room in the image.
        const NOTHING: Event = Event::Exit { vm: 0, vcpu: 0, kind: 0, rip: 0, detail: 0 };
        Self { entries: [Entry { time_tsc: 0, event: NOTHING }; N], pushed: 0 }
    }

    /// Appends an entry over the oldest.
    #[inline]
    pub fn push(&mut self, time_tsc: u64, event: Event) {
        self.entries[self.pushed as usize & Self::MASK] = Entry { time_tsc, event };
        self.pushed = self.pushed.wrapping_add(1);
    }

    /// How many entries are held.
    pub fn len(&self) -> usize {
        usize::try_from(self.pushed).map_or(N, |pushed| pushed.min(N))
    }

    /// Whether nothing was pushed yet.
    pub fn is_empty(&self) -> bool {
        self.pushed == 0
    }

    /// How many entries were pushed and have been overwritten since.
    pub fn overwritten(&self) -> u64 {
        self.pushed.saturating_sub(N as u64)
    }

    /// The entries, oldest first. From the other end (`rev`) the newest come first, for the last few.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Entry> + ExactSizeIterator {
        let len = self.len();
        let first = (self.pushed as usize).wrapping_sub(len);
        (0..len).map(move |offset| &self.entries[first.wrapping_add(offset) & Self::MASK])
    }
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times<const N: usize>(ring: &Ring<N>) -> Vec<u64> {
        ring.iter().map(|entry| entry.time_tsc).collect()
    }

    #[test]
    fn holds_the_last_entries_in_order() {
        let mut ring = Ring::<4>::new();
        assert!(ring.is_empty());
        assert_eq!(times(&ring), []);
        for time in 1..=3 {
            ring.push(time, Event::Irq { vector: 0x20 });
        }
        assert_eq!(times(&ring), [1, 2, 3]);
        assert_eq!(ring.overwritten(), 0);
        for time in 4..=9 {
            ring.push(time, Event::Irq { vector: 0x20 });
        }
        assert_eq!(times(&ring), [6, 7, 8, 9]);
        assert_eq!((ring.len(), ring.overwritten()), (4, 5));
        let newest: Vec<u64> = ring.iter().rev().take(2).map(|entry| entry.time_tsc).collect();
        assert_eq!(newest, [9, 8]);
    }

    #[test]
    fn a_ring_of_one_entry_works() {
        let mut ring = Ring::<1>::new();
        ring.push(1, Event::Note { code: 1, value: 1 });
        ring.push(2, Event::Note { code: 1, value: 2 });
        assert_eq!(times(&ring), [2]);
    }

    #[test]
    fn can_be_a_static() {
        static RING: Ring<8> = Ring::new();
        assert_eq!(RING.len(), 0);
    }
}
