//! Frames for guests' nested page tables.

use crate::{FRAMES, take_zeroed};
use addr::Hpa;
use core::sync::atomic::{AtomicU64, Ordering};
use nested::TableMemory;

/// Tables in the host's free memory.
pub struct TableFrames;

impl TableMemory for TableFrames {
    fn take(&mut self) -> Option<Hpa> {
        take_zeroed(1)
    }

    fn give(&mut self, table: Hpa) {
        FRAMES.lock().free_small(table, 1);
    }

    fn read(&self, table: Hpa, index: usize) -> u64 {
        entry(table, index).load(Ordering::Relaxed)
    }

    fn write(&mut self, table: Hpa, index: usize, value: u64) {
        entry(table, index).store(value, Ordering::Release);
    }

    fn clear(&mut self, table: Hpa, index: usize, bits: u64) {
        entry(table, index).fetch_and(!bits, Ordering::AcqRel);
    }
}

fn entry(table: Hpa, index: usize) -> &'static AtomicU64 {
    assert!(index < 512);
    // SAFETY: `nested` passes tables that `take` gave and that were not given back; processors read and set bits of
    // the entries at any time, which an atomic allows.
    unsafe { &*((table.as_u64() + index as u64 * 8) as *const AtomicU64) }
}
