//! Stacks with a guard page below: an overflow is a page fault, never a write into somebody else's memory.

use crate::{FRAMES, paging};
use addr::{Hpa, PAGE_BYTES};

const STACK_PAGES: usize = 16;

/// Bytes of a stack, its guard page not counted.
pub const STACK_BYTES: u64 = (STACK_PAGES as u64 - 1) * PAGE_BYTES;

/// A stack that lives for ever.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    base: Hpa,
}

impl Stack {
    /// A new stack, its lowest page unmapped.
    pub fn new() -> Option<Self> {
        let base = FRAMES.lock().take_small(STACK_PAGES)?;
        paging::unmap_page(base);
        Some(Self { base })
    }

    /// The first address above it.
    pub fn top(self) -> u64 {
        self.base.as_u64() + STACK_PAGES as u64 * PAGE_BYTES
    }
}
