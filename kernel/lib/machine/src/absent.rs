//! A machine that runs before all of its memory is here: what it cannot do without, and what waits.
//!
//! Whatever needs a page that is not here leaves everything as it was, and happens again once the page has come: a vCPU
//! at its instruction, a request on its queue. What a device or vCPU reaches at any moment ([`Machine::essential`]: the
//! rings, and what a guest registered) has come before the machine is put together. A queue gives a request away only
//! when all of it is here (`virtio`), so that no device model knows of any of this.

use crate::mail::Mail;
use crate::run::Thread;
use crate::{Host, Machine};
use addr::{GpaRange, PAGE_BYTES};
use guestmem::PageSet;

impl Machine {
    /// Adds the pages that a machine at rest reaches without being asked to `pages`.
    pub fn essential<'a>(&self, threads: impl Iterator<Item = &'a Thread>, pages: &mut PageSet) {
        let mut add = |range: GpaRange| {
            let first = range.start().as_u64() / PAGE_BYTES;
            let last = (range.start().as_u64() + range.bytes().saturating_sub(1)) / PAGE_BYTES;
            pages.insert(first, last - first + 1);
        };
        threads.for_each(|thread| thread.registered.each_range(&mut add));
        self.board.lock().each_ring(&mut add);
    }

    /// Pages came that something waited for: every vCPU and queue tries again.
    pub fn memory_arrived(&self, host: &mut dyn Host) {
        self.board.lock().kick_all();
        (0..self.vcpus()).for_each(|vcpu| self.post(vcpu, Mail::Board, host));
    }
}
