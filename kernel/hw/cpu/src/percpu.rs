//! Which processor this is: a block of its own behind GS.base.
//!
//! Valid wherever host interrupts can be taken. While a guest's segment state is loaded (between a vCPU's `run` and
//! `park`) GS.base is the guest's; nothing there asks.

use crate::msr;
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

/// How many processors are used at most.
pub const CPUS_MAX: usize = 64;

/// Vectors in an interrupt table.
const VECTORS: usize = 256;

/// What one processor keeps for itself, and others may leave there for it.
pub struct PerCpu {
    index: usize,
    /// Interrupts that arrived since they were last taken, a bit each.
    arrived: [AtomicU64; VECTORS / 64],
}

/// Gives this processor its number. Called once on each, before its interrupts are opened.
pub fn install(index: usize) {
    assert!(index < CPUS_MAX);
    let block = Box::leak(Box::new(PerCpu { index, arrived: Default::default() }));
    // SAFETY: GS is used for nothing else in the host, and the block lives for ever.
    unsafe { msr::write(msr::GS_BASE, &raw const *block as u64) };
}

/// This processor's block.
pub fn current() -> &'static PerCpu {
    // SAFETY: every processor's GS.base was set by `install` before it could come here, to a block that is never freed.
    unsafe { &*(msr::read(msr::GS_BASE) as *const PerCpu) }
}

impl PerCpu {
    /// The processor's number: 0 for the one that booted.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Notes that an interrupt arrived. Called by the interrupt handler.
    pub fn arrive(&self, vector: u8) {
        self.arrived[usize::from(vector) / 64].fetch_or(1 << (vector % 64), Ordering::Release);
    }

    /// Whether any interrupt waits to be taken.
    pub fn any_arrived(&self) -> bool {
        self.arrived.iter().any(|word| word.load(Ordering::Relaxed) != 0)
    }

    /// Takes this interrupt if it is the only one that waits; says whether it is.
    pub fn take_only(&self, vector: u8) -> bool {
        let bit = |index| if index == usize::from(vector) / 64 { 1 << (vector % 64) } else { 0 };
        let mut words = self.arrived.iter().enumerate();
        let is_only = words.all(|(index, word)| word.load(Ordering::Acquire) == bit(index));
        if is_only {
            self.arrived[usize::from(vector) / 64].fetch_and(!(1 << (vector % 64)), Ordering::Acquire);
        }
        is_only
    }

    /// Takes the interrupts that arrived, and calls `each` with their vectors.
    pub fn take_arrived(&self, mut each: impl FnMut(u8)) {
        for (index, word) in self.arrived.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::Acquire);
            while bits != 0 {
                each((index * 64) as u8 + bits.trailing_zeros() as u8);
                bits &= bits - 1;
            }
        }
    }
}
