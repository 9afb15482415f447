//! What the host itself wrote into a guest's memory: a bit a page, set by any CPU, harvested by one.
//!
//! [`DirtyLog`] is behind every write of [`crate::GuestMemory`] while tracking is on. What the guest writes the
//! processor notes in the second-stage tables (`nested`); whoever sends memory asks both.

use crate::pages::{PageSet, each_word};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use spin::Once;

/// Memory for the bits ran out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom;

/// The log of one guest's memory. It takes no room before it is first started.
#[derive(Default)]
pub(crate) struct DirtyLog {
    is_on: AtomicBool,
    bits: Once<Bits>,
}

struct Bits {
    words: Vec<AtomicU64>,
    end: u64,
}

impl DirtyLog {
    /// Starts with a clean log for pages below `end`.
    pub fn start(&self, end: u64) -> Result<(), NoRoom> {
        let bits = self.bits.try_call_once(|| Bits::new(end))?;
        assert!(bits.end >= end, "memory is not added while its log is kept");
        bits.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        self.is_on.store(true, Ordering::SeqCst);
        Ok(())
    }

    pub fn stop(&self) {
        self.is_on.store(false, Ordering::Relaxed);
    }

    /// Notes pages that were written: after the bytes, so that whoever takes the bit sees them.
    pub fn mark(&self, first: u64, count: u64) {
        if self.is_on.load(Ordering::Relaxed)
            && let Some(bits) = self.bits.get()
        {
            each_word(first, count, bits.end, |word, mask| {
                bits.words[word].fetch_or(mask, Ordering::Release);
            });
        }
    }

    /// Moves the marked pages into `set`.
    pub fn harvest(&self, set: &mut PageSet) {
        let Some(bits) = self.bits.get() else { return };
        for (index, word) in bits.words.iter().enumerate() {
            if word.load(Ordering::Relaxed) != 0 {
                set.merge_word(index, word.swap(0, Ordering::AcqRel));
            }
        }
    }
}

impl Bits {
    fn new(end: u64) -> Result<Self, NoRoom> {
        let count = usize::try_from(end.div_ceil(64)).map_err(|_| NoRoom)?;
        let mut words = Vec::new();
        words.try_reserve_exact(count).map_err(|_| NoRoom)?;
        words.resize_with(count, AtomicU64::default);
        Ok(Self { words, end })
    }
}
