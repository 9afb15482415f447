//! Stacks with a guard page below: an overflow is a page fault, never a write into somebody else's memory.

use crate::{FRAMES, paging};
use addr::{Hpa, PAGE_BYTES};

/// Pages of a processor's stack, and of one for an exception that may not use the current one; the guard is one of them.
const PAGES: usize = 16;
const SPECIAL_PAGES: usize = 8;

/// A stack that lives for ever.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    base: Hpa,
    pages: usize,
}

impl Stack {
    /// A processor's stack, its lowest page unmapped.
    pub fn new() -> Option<Self> {
        Self::of(PAGES)
    }

    /// A stack for an exception: what runs on it writes an epitaph at most.
    pub fn special() -> Option<Self> {
        Self::of(SPECIAL_PAGES)
    }

    /// The first address above it.
    pub fn top(self) -> u64 {
        self.base.as_u64() + self.pages as u64 * PAGE_BYTES
    }

    fn of(pages: usize) -> Option<Self> {
        let base = FRAMES.lock().take_small(pages)?;
        paging::unmap_page(base);
        Some(Self { base, pages })
    }
}
