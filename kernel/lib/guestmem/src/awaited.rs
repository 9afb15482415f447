//! Pages of a guest that runs before all of its memory is here: a bit each until it arrives, and which are wanted first.
//!
//! [`Awaited`] is asked before every access of the host's to [`crate::GuestMemory`]; the guest's own accesses fault in the
//! second-stage tables (`nested`). Whoever meets such a page leaves everything as it was and tries again once the page is
//! here. The page is noted, so that it comes before others.

use crate::dirty::NoRoom;
use crate::pages::{PageSet, each_word};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use spin::{Mutex, Once};

/// Pages that are noted as wanted at a time; who wants another asks again.
const WANTED_MAX: usize = 64;

/// The pages of one guest that are awaited. It takes no room before it is first started.
#[derive(Default)]
pub(crate) struct Awaited {
    is_on: AtomicBool,
    bits: Once<Bits>,
    wanted: Mutex<Vec<u64>>,
}

struct Bits {
    /// Pages that are not here.
    absent: Vec<AtomicU64>,
    /// Those of them that were noted as wanted.
    asked: Vec<AtomicU64>,
    end: u64,
}

impl Awaited {
    /// Begins to wait for these pages. Nobody accesses the guest's memory meanwhile.
    pub fn start(&self, pages: &PageSet) -> Result<(), NoRoom> {
        let bits = self.bits.try_call_once(|| Bits::new(pages.end()))?;
        assert_eq!(bits.end, pages.end(), "pages of one guest");
        self.wanted.lock().try_reserve_exact(WANTED_MAX).map_err(|_| NoRoom)?;
        for page in pages.iter() {
            set(&bits.absent, page);
        }
        self.is_on.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Waits no more.
    pub fn stop(&self) {
        self.is_on.store(false, Ordering::SeqCst);
    }

    #[inline]
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// The first of these pages that is not here, noted as wanted.
    pub fn first_absent(&self, first: u64, count: u64) -> Option<u64> {
        let bits = self.bits.get()?;
        let mut found = None;
        each_word(first, count, bits.end, |word, mask| {
            let absent = bits.absent[word].load(Ordering::Acquire) & mask;
            if absent != 0 && found.is_none() {
                found = Some(word as u64 * 64 + u64::from(absent.trailing_zeros()));
            }
        });
        found.inspect(|&page| self.want(bits, page))
    }

    /// Whether a page is awaited, which it need not be.
    pub fn is_absent(&self, page: u64) -> bool {
        self.bits.get().is_some_and(|bits| page < bits.end && has(&bits.absent, page))
    }

    /// A page is here; says whether it was noted as wanted.
    pub fn arrived(&self, page: u64) -> bool {
        let Some(bits) = self.bits.get().filter(|bits| page < bits.end) else { return false };
        clear(&bits.absent, page);
        clear(&bits.asked, page)
    }

    /// Takes what is wanted and was not taken before.
    pub fn take_wanted(&self, mut each: impl FnMut(u64)) {
        self.wanted.lock().drain(..).for_each(&mut each);
    }

    /// What was taken is asked for again.
    pub fn ask_again(&self) {
        let Some(bits) = self.bits.get() else { return };
        self.wanted.lock().clear();
        bits.asked.iter().for_each(|word| word.store(0, Ordering::Release));
    }

    fn want(&self, bits: &Bits, page: u64) {
        let mut wanted = self.wanted.lock();
        if wanted.len() < WANTED_MAX && !set(&bits.asked, page) {
            wanted.push(page);
        }
    }
}

impl Bits {
    fn new(end: u64) -> Result<Self, NoRoom> {
        let count = usize::try_from(end.div_ceil(64)).map_err(|_| NoRoom)?;
        let words = || {
            let mut words = Vec::new();
            words.try_reserve_exact(count).map_err(|_| NoRoom)?;
            words.resize_with(count, AtomicU64::default);
            Ok(words)
        };
        Ok(Self { absent: words()?, asked: words()?, end })
    }
}

fn bit(page: u64) -> (usize, u64) {
    ((page / 64) as usize, 1 << (page % 64))
}

fn has(words: &[AtomicU64], page: u64) -> bool {
    let (word, mask) = bit(page);
    words[word].load(Ordering::Acquire) & mask != 0
}

/// Sets a bit; says whether it was set.
fn set(words: &[AtomicU64], page: u64) -> bool {
    let (word, mask) = bit(page);
    words[word].fetch_or(mask, Ordering::AcqRel) & mask != 0
}

/// Clears a bit; says whether it was set.
fn clear(words: &[AtomicU64], page: u64) -> bool {
    let (word, mask) = bit(page);
    words[word].fetch_and(!mask, Ordering::AcqRel) & mask != 0
}
