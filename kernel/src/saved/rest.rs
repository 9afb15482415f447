//! The rest of the memory of a VM that runs already: read from where it was saved, in the background and first where the
//! guest waits for it. The partition is the job's until all of it is here.
//!
//! The main type is [`Rest`], which follows a [`super::restore::Restore`]. What cannot be read stops the VM, not the job: it
//! is tried again when the VM is let go on.

use super::Next;
use super::reading::{Damaged, Reading};
use crate::cpu_loop::InputHost;
use crate::host::Host;
use crate::slot::{Full, Slot};
use crate::vm::{Order, absent};
use alloc::format;
use alloc::string::String;
use nested::Retired;

/// The services run on this CPU.
const SERVICE_CPU: usize = 0;
/// How soon a disk without room is asked again, and how soon it is looked whether tables are free.
const LOOK_NS: u64 = 100_000;
/// How soon it is looked whether a VM that stands was let go on.
const STUCK_LOOK_NS: u64 = 20_000_000;

/// The job.
pub struct Rest {
    slot: Slot,
    reading: Reading,
    /// The VM stands until somebody lets it go on.
    is_stuck: bool,
    /// All is here; tables that no vCPU walks any more, soon.
    retired: Option<Retired>,
}

impl Rest {
    /// Goes on with reading for a VM that was let run just now.
    pub fn new(slot: Slot, reading: Reading) -> Self {
        reading.running().set_reading(true);
        Self { slot, reading, is_stuck: false, retired: None }
    }

    /// Goes on.
    pub fn poll(&mut self, host: &'static Host) -> Next {
        let now_ns = host.clock.now_ns();
        let running = self.reading.running().clone();
        if running.is_over() && self.retired.is_none() {
            return self.give_up(host);
        }
        if self.retired.is_some() {
            return self.settle(now_ns);
        }
        // One at a time: to compare a frame takes as long as a guest's slice.
        if let Some(index) = self.slot.ended(host) {
            self.ended(host, index as usize);
            return Next::At(now_ns);
        }
        if self.is_stuck {
            // What is under way may fail too, and stop it again: an order to go on counts after that.
            return if self.slot.is_idle() { self.look(host, now_ns) } else { Next::Transfer };
        }
        self.reading.hear_wanted();
        self.tell(host);
        if self.slot.is_busy() {
            return Next::Transfer;
        }
        match self.reading.begin(host, &mut self.slot) {
            Ok(_) if self.slot.take_failure() => {
                self.stand(host, &format!("disk {} failed", self.slot.name()));
                Next::At(now_ns + STUCK_LOOK_NS)
            }
            Ok(true) => {
                self.tell(host);
                Next::At(now_ns)
            }
            Ok(false) if self.slot.is_idle() => self.finish(host, now_ns),
            Err(Full) if self.slot.is_idle() => Next::At(now_ns + LOOK_NS),
            Ok(false) | Err(Full) => Next::Transfer,
        }
    }

    fn ended(&mut self, host: &'static Host, index: usize) {
        let failure: Option<String> = match self.slot.take_failure() {
            true => Some(format!("disk {} failed", self.slot.name())),
            false => self.reading.ended(index).err().map(|Damaged { gpa }| {
                format!("its memory at {gpa:#x} on disk {} does not match its checksum", self.slot.name())
            }),
        };
        match failure {
            None => self.tell(host),
            Some(what) => {
                self.reading.again(index);
                self.stand(host, &what);
            }
        }
    }

    /// Tells who waits for what came.
    fn tell(&mut self, host: &'static Host) {
        if self.reading.take_wanted() {
            let running = self.reading.running();
            running.machine.memory_arrived(&mut InputHost::new(host, SERVICE_CPU, running));
        }
    }

    /// Memory cannot be read: nobody runs on without it.
    fn stand(&mut self, host: &'static Host, what: &str) {
        if core::mem::replace(&mut self.is_stuck, true) {
            return;
        }
        let running = self.reading.running();
        running.command(host, SERVICE_CPU, Order::Pause);
        let (vm, mib) = (running.vm.name(), self.reading.left_bytes().div_ceil(1 << 20));
        log::warn!(
            "{vm} waits: {what}, where {mib} MiB of its memory are; \"vm resume {vm}\" tries again, \"vm kill {vm}\" gives it up"
        );
    }

    /// Tries again once somebody has let the VM go on.
    fn look(&mut self, host: &'static Host, now_ns: u64) -> Next {
        let running = self.reading.running();
        if running.order() != Order::Run {
            return Next::At(now_ns + STUCK_LOOK_NS);
        }
        self.is_stuck = false;
        running.machine.memory().ask_again();
        running.machine.memory_arrived(&mut InputHost::new(host, SERVICE_CPU, running));
        Next::At(now_ns)
    }

    /// All is here.
    fn finish(&mut self, host: &'static Host, now_ns: u64) -> Next {
        let running = self.reading.running();
        self.slot.release(host);
        self.retired = Some(absent::stop(host, running));
        running.set_reading(false);
        running.let_go(host);
        // Also who could not say what it waits for.
        running.machine.memory_arrived(&mut InputHost::new(host, SERVICE_CPU, running));
        log::info!("all of {}'s memory is here", running.vm.name());
        Next::At(now_ns + LOOK_NS)
    }

    /// Waits until the tables are free that are needed no more.
    fn settle(&mut self, now_ns: u64) -> Next {
        let running = self.reading.running();
        if !running.machine.invalidated() {
            return Next::At(now_ns + LOOK_NS);
        }
        if let Some(retired) = self.retired.take() {
            running.second_stage().give_back(retired);
        }
        Next::Over
    }

    /// The life ended: nobody needs the rest.
    fn give_up(&mut self, host: &'static Host) -> Next {
        while self.slot.ended(host).is_some() {}
        if !self.slot.is_idle() {
            // The disk may still write to its memory.
            return Next::Transfer;
        }
        self.slot.release(host);
        Next::Over
    }
}
