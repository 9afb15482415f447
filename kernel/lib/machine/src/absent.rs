//! A machine that runs before all of its memory is here: what it cannot do without, and what waits.
//!
//! Whatever needs a page that is not here leaves everything as it was, and happens again once the page has come: a vCPU
//! at its instruction, a request on its queue. What a device or vCPU reaches at any moment ([`Machine::essential`]: the
//! rings, what a guest registered, where requests that wait for a flush are to be answered, and the pointers that a processor
//! loads with CR3 before the guest runs) has come before the machine is put together. A queue gives a request away only
//! when all of it is here (`virtio`), so that no device model knows of any of this.

use crate::mail::Mail;
use crate::run::Thread;
use crate::{Host, Machine};
use addr::{Gpa, GpaRange, PAGE_BYTES};
use guestmem::PageSet;
use vcpu::{Paging, cr0, cr4, efer};

impl Machine {
    /// Adds the pages that a machine at rest reaches without being asked to `pages`.
    pub fn essential<'a>(&self, threads: impl Iterator<Item = &'a Thread>, pages: &mut PageSet) {
        let mut add = |range: GpaRange| {
            let first = range.start().as_u64() / PAGE_BYTES;
            let last = (range.start().as_u64() + range.bytes().saturating_sub(1)) / PAGE_BYTES;
            pages.insert(first, last - first + 1);
        };
        threads.for_each(|thread| {
            thread.registered.each_range(&mut add);
            page_directory_pointers(thread.vcpu.paging()).into_iter().for_each(&mut add);
        });
        let mut board = self.board.lock();
        board.each_ring(&mut add);
        board
            .disks
            .iter()
            .flat_map(|disk| disk.function.device.statuses())
            .filter_map(|at| GpaRange::new(at, 1))
            .for_each(add);
    }

    /// Pages came that something waited for: every vCPU and queue tries again.
    pub fn memory_arrived(&self, host: &mut dyn Host) {
        self.board.lock().kick_all();
        (0..self.vcpus()).for_each(|vcpu| self.post(vcpu, Mail::Board, host));
    }
}

/// What a processor with PAE paging, but not in long mode, keeps of the tables: it loads the four entries with CR3 and at
/// an entry (Intel SDM volume 3, 4.4.1), when nobody can wait for them.
fn page_directory_pointers(paging: Paging) -> Option<GpaRange> {
    let is_pae = paging.cr0 & cr0::PG != 0 && paging.cr4 & cr4::PAE != 0 && paging.efer & efer::LMA == 0;
    is_pae.then(|| GpaRange::new(Gpa::new(paging.cr3 & 0xffff_ffe0), 32)).flatten()
}
