//! Interrupts that others leave for a vCPU, laid out as a processor takes them that can do so without an exit.
//!
//! [`Posted`] is shared by those who send and the one that receives; `machine`'s mailbox is made of it. SDM volume 3, 30.6:
//! a processor that runs the vCPU and is interrupted by the vector made for this clears [`Posted::NOTIFIED`] and moves the
//! requests into the local APIC's page.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// The posted-interrupt descriptor. The manual wants it to lie on 64 bytes; Bochs, on a page.
#[repr(C, align(4096))]
#[derive(Debug, Default)]
pub struct Posted {
    /// Vectors: bit `n` of word `m` is vector `64 * m + n`. They are set before `word` says so.
    pub requests: [AtomicU64; 4],
    /// [`NOTIFIED`](Posted::NOTIFIED); the other bits are their users', and the processor leaves them alone.
    pub word: AtomicU32,
}

impl Posted {
    /// Somebody tells the receiver of requests, so that nobody else need.
    pub const NOTIFIED: u32 = 1 << 0;
}

#[cfg(test)]
mod tests {
    use super::Posted;
    use core::mem::{align_of, offset_of};

    #[test]
    fn it_is_as_the_processor_has_it() {
        assert_eq!((offset_of!(Posted, requests), offset_of!(Posted, word)), (0, 32));
        assert_eq!(align_of::<Posted>() % 64, 0);
    }
}
