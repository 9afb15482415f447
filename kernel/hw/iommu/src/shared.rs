//! Memory that an IOMMU reads: its own structures, and the tables of domains.
//!
//! [`Shared`] is a piece of it; [`IoTables`] is where `nested` keeps a domain's tables. A unit that does not look into
//! the processor's caches gets every entry flushed out of them.

use addr::{Hpa, PAGE_BYTES};
use core::sync::atomic::{Ordering, fence};
use memory::TableFrames;
use nested::TableMemory;

/// Zeroed frames in a row, shared with a unit for ever.
pub struct Shared {
    start: Hpa,
    words: usize,
    flush: bool,
}

impl Shared {
    /// `frames` frames, aligned to their whole length; `flush` for a unit that is not coherent.
    pub fn new(frames: usize, flush: bool) -> Option<Self> {
        let start = memory::take_zeroed(frames)?;
        let shared = Self { start, words: frames * (PAGE_BYTES / 8) as usize, flush };
        if flush {
            (0..shared.words).step_by(8).for_each(|index| write_back(shared.word(index) as u64));
        }
        Some(shared)
    }

    /// Where it starts.
    pub fn start(&self) -> Hpa {
        self.start
    }

    /// The word of 64 bits at `index`.
    pub fn read(&self, index: usize) -> u64 {
        // SAFETY: `word` gives a word of these frames, which are mapped for ever; the unit may write it at any time.
        unsafe { self.word(index).read_volatile() }
    }

    /// Writes the word of 64 bits at `index`, as one access.
    pub fn write(&mut self, index: usize, value: u64) {
        fence(Ordering::Release);
        // SAFETY: as in `read`.
        unsafe { self.word(index).write_volatile(value) };
        if self.flush {
            write_back(self.word(index) as u64);
        }
    }

    fn word(&self, index: usize) -> *mut u64 {
        assert!(index < self.words, "outside the shared memory");
        (self.start.as_u64() + index as u64 * 8) as *mut u64
    }
}

/// Where a domain's tables live.
pub struct IoTables {
    /// For a unit that is not coherent.
    pub flush: bool,
}

impl TableMemory for IoTables {
    fn take(&mut self) -> Option<Hpa> {
        let table = TableFrames.take()?;
        if self.flush {
            (0..PAGE_BYTES).step_by(64).for_each(|offset| write_back(table.as_u64() + offset));
        }
        Some(table)
    }

    fn give(&mut self, table: Hpa) {
        TableFrames.give(table);
    }

    fn read(&self, table: Hpa, index: usize) -> u64 {
        TableFrames.read(table, index)
    }

    fn write(&mut self, table: Hpa, index: usize, entry: u64) {
        TableFrames.write(table, index, entry);
        if self.flush {
            write_back(table.as_u64() + index as u64 * 8);
        }
    }

    fn clear(&mut self, table: Hpa, index: usize, bits: u64) {
        TableFrames.clear(table, index, bits);
        if self.flush {
            write_back(table.as_u64() + index as u64 * 8);
        }
    }
}

/// Writes the cache line around an address back to memory, before anything that follows.
fn write_back(address: u64) {
    // SAFETY: frames are mapped at their own addresses, and every 64-bit processor has both instructions.
    unsafe {
        core::arch::x86_64::_mm_clflush(address as *const u8);
        core::arch::x86_64::_mm_mfence();
    }
}
