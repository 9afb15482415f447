//! Memory that a guest gives up, on its way to the host, and frames for what it uses of that again.
//!
//! A vCPU's CPU notes that there is something ([`Running::note_given_up`]); CPU 0 takes the frames away, waits until no vCPU
//! can reach them, and frees them ([`Running::release`]). A guest that touches such memory afterwards, or memory that it never
//! used, gets a frame at its fault ([`Running::back`]), or waits while the host has none. What `machine` calls ready is `machine`'s to say.

use super::Running;
use crate::cpu_loop::InputHost;
use crate::host::Host;
use addr::{Gpa, LARGE_PAGE_BYTES};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};
use nested::PageSize;

/// Large frames taken away at a time: the guest's other memory stays within its reach, and the board's lock is short.
const FRAMES_MAX: usize = 64;

/// How far a life is with what its guest gave up.
#[derive(Default)]
pub struct Releasing {
    /// There is something.
    has_work: AtomicBool,
    /// Frames were taken away, and a vCPU may still use them.
    has_aside: AtomicBool,
    /// Its guest waits for memory.
    is_short: AtomicBool,
}

impl Running {
    /// Notes that its guest gave memory up.
    pub fn note_given_up(&self) {
        self.releasing.has_work.store(true, Ordering::Release);
    }

    /// Goes on with taking what its guest gave up; says whether there is more to do. Only CPU 0 calls this.
    pub fn release(self: &Arc<Self>, host: &'static Host, cpu: usize) -> bool {
        if !self.releasing.has_work.load(Ordering::Acquire) || self.is_over() {
            return false;
        }
        let mut input = InputHost::new(host, cpu, self);
        if self.releasing.has_aside.load(Ordering::Relaxed) {
            if !self.machine.invalidated() {
                return true;
            }
            self.frames.free_aside();
            self.releasing.has_aside.store(false, Ordering::Relaxed);
        }
        // Before it is looked: what comes meanwhile is noted anew.
        self.releasing.has_work.store(false, Ordering::Release);
        if self.is_held() || self.is_moving() || self.is_arriving() {
            self.machine.release_nothing(&mut input);
            return false;
        }
        if self.machine.release(FRAMES_MAX, &mut input, &mut |gpa| self.take_away(gpa)) == 0 {
            return false;
        }
        self.machine.invalidate_all(&mut input);
        self.releasing.has_aside.store(true, Ordering::Relaxed);
        self.note_given_up();
        true
    }

    /// How much of the host's memory its guest has.
    pub fn held_bytes(&self) -> u64 {
        self.frames.held_bytes()
    }

    /// Whether its guest waits for memory that the host has not got.
    pub fn is_short_of_memory(&self) -> bool {
        self.releasing.is_short.load(Ordering::Relaxed)
    }

    /// Puts a frame behind an address of memory that the guest touched, or lets it write what is looked for writes; false
    /// where the host has no frame now, or the page is still on its way here.
    pub fn back(&self, gpa: Gpa) -> bool {
        let memory = self.machine.memory();
        if memory.is_waiting() {
            return memory.is_here(gpa, 1);
        }
        let page = gpa.align_down(LARGE_PAGE_BYTES);
        // Zeroing a frame takes a while, in which other vCPUs' faults need not wait. It counts with the tables locked: it may
        // have been given up again meanwhile.
        memory.touch(page);
        let mut second_stage = self.second_stage();
        let is_backed = memory.touch(page).is_some_and(|frame| {
            // It was protected alone, or another vCPU was here first.
            second_stage.note_write(gpa)
                || second_stage.leads_somewhere(page)
                || second_stage.map(page, frame, PageSize::Large).is_ok()
        });
        drop(second_stage);
        if self.releasing.is_short.swap(!is_backed, Ordering::Relaxed) == is_backed {
            match is_backed {
                true => log::info!("{} goes on: there is memory again", self.vm.name()),
                false => log::warn!(
                    "{} waits: the host has no memory left; stop a VM, or \"vm balloon\" one",
                    self.vm.name()
                ),
            }
        }
        is_backed
    }

    /// Takes a large page from the guest's second-stage tables, and its frame aside. A page that is in small ones stays:
    /// so does one for whose tables there is no memory.
    fn take_away(&self, gpa: Gpa) {
        let mut second_stage = self.second_stage();
        if second_stage.unmap_large(gpa) {
            self.frames.set_aside(self.machine.memory(), gpa);
        }
    }
}
