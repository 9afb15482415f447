//! One virtual machine, whole, minus silicon: its vCPUs' run loop, exits, devices, and the two doors.
//!
//! [`Machine`] is what all of a VM's threads share, [`Thread`] what one vCPU keeps for itself. The kernel calls
//! [`Machine::run`] for a vCPU and the methods of the input door for everything that arrives from outside; what leaves
//! comes through [`Host`] and the [`Outbox`]. No driver, clock or thread is known here, so that the same code runs in
//! the kernel, in tests and in a simulator.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod absent;
mod addresses;
mod balloon;
mod bays;
mod board;
mod console;
mod context;
mod cpuid;
mod epoch;
mod exits;
mod function;
mod guest_firmware;
mod hotplug;
mod hypercall;
mod input;
mod mail;
mod meter;
mod msr;
mod network;
mod output;
mod paravirt;
mod run;
mod saved;
mod sleep;
mod start;
mod storage;
mod vectors;

#[cfg(test)]
mod tests;

pub use addresses::{VCPUS_MAX, VcpuSet};
pub use balloon::BalloonState;
pub use chipset::DebugPorts;
pub use cpuid::{BASELINE_BYTES_MAX, Baseline, CpuProfile, Leaf, NoBaseline};
pub use guest_firmware::FirmwareConfig;
pub use hotplug::{BusFull, Part};
pub use input::{FrameLost, InputMode};
pub use loader::Module;
pub use meter::IoLimits;
pub use network::{NicConfig, offload_of};
pub use output::{OutFrame, OutTransfer, Outbox, OutputMode};
pub use run::{Pause, Thread};
pub use saved::{Busy, Plan, RestoreError, SavedVcpu, Unlike, plan_of};
pub use sleep::Sleep;
pub use start::{Kernel, StartError};
pub use storage::DiskConfig;

use addr::{Gpa, Hpa};
use addresses::Addresses;
use alloc::string::String;
use alloc::vec::Vec;
use board::Board;
use core::sync::atomic::{Ordering, fence};
use epoch::Epoch;
use guestmem::GuestMemory;
use mail::{Mail, Mailbox};
use spin::Mutex;
use trace::Counters;
use vcpu::Exit;

/// Exits by kind, with the time that they took.
pub type ExitCounters = Counters<{ Exit::KINDS }>;

/// The moment, as the host sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// Nanoseconds since the host started; never goes back.
    pub ns: u64,
    /// The host's TSC.
    pub tsc: u64,
}

/// What a running machine needs of its host.
pub trait Host {
    /// The moment.
    fn now(&self) -> Moment;
    /// Sees to it that this CPU is interrupted at `ns`, or before.
    fn arm(&mut self, ns: u64);
    /// Puts memory behind an address of the guest's that it touches after it had given it up, or that is not here yet; false
    /// where there is none now.
    fn back(&mut self, _gpa: Gpa) -> bool {
        false
    }
    /// Lets another vCPU of this machine look into its mailbox: it is running elsewhere, or asleep.
    fn kick(&mut self, vcpu: usize);
    /// Lets the processor that runs another vCPU of this machine take interrupts that were posted to it.
    fn notify(&mut self, vcpu: usize) {
        self.kick(vcpu);
    }

    /// The vCPU that runs halts, and `has_mail` says when it may have a reason not to. Says whether that was so before there
    /// was anything else for this CPU to do; false at once where the vCPU had better sleep.
    fn linger(&mut self, _has_mail: &dyn Fn() -> bool) -> bool {
        false
    }
    /// The host was called while the vCPU ran: lets it take what called, and says whether that was only word of mail, so that
    /// the vCPU may run on.
    fn may_run_on(&mut self) -> bool {
        false
    }
    /// The vCPU that runs waits for another of its machine, for this one or any: it should run where this one does.
    fn give_way(&mut self, to: Option<usize>);
    /// How long the vCPU that runs was ready and had no CPU, in all.
    fn steal_ns(&self) -> u64;
    /// Takes everything out of the outbox. The machine holds no lock during the call.
    fn flush(&mut self, outbox: &mut Outbox);
    /// Maps pages of the guest's flash, to be read and run, or takes them away, so that accesses exit. They were mapped when
    /// the machine was made. The machine sees to it that vCPUs forget their translations; a host without second-stage
    /// tables has nothing to do.
    fn show_pages(&mut self, pages: &mut dyn Iterator<Item = (Gpa, Hpa)>, readable: bool) {
        let _ = (pages, readable);
    }
    /// Fills bytes with randomness.
    fn random(&mut self, into: &mut [u8]);
    /// A typed note of what happens, for the trace ring.
    fn trace(&mut self, event: trace::Event);
}

/// What a machine consists of.
pub struct MachineConfig {
    /// Which machine it is in traces.
    pub id: u16,
    /// How many vCPUs, 1 to [`VCPUS_MAX`]. The first is the boot processor.
    pub vcpus: u32,
    /// Its memory, zeroed: one slot from 0 on, and what does not fit below [`firmware`]'s PCI window from 4 GiB on.
    pub memory: GuestMemory,
    /// What CPUID shows.
    pub profile: CpuProfile,
    /// Its disks.
    pub disks: Vec<DiskConfig>,
    /// Its network cards.
    pub nics: Vec<NicConfig>,
    /// Its debug ports.
    pub debug: DebugPorts,
    /// Its own firmware, where it has one; the firmware's code is read-only memory of `memory`.
    pub firmware: Option<FirmwareConfig>,
    /// UTC at the host's moment 0, in nanoseconds since 1970.
    pub wall_unix_ns: u64,
}

/// Why a machine ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// The guest turned itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest wrote this code to its debug exit.
    Exit(u32),
    /// A vCPU shut down, to which a PC's board answers with a reset; where that was.
    TripleFault(String),
    /// It cannot go on, and this is why.
    Crash(String),
}

/// A virtual machine.
pub struct Machine {
    id: u16,
    memory: GuestMemory,
    profile: CpuProfile,
    epoch: Epoch,
    board: Mutex<Board>,
    addresses: Addresses,
    mailboxes: Vec<Mailbox>,
    counters: Vec<Mutex<ExitCounters>>,
}

impl Machine {
    /// A machine that was not started.
    ///
    /// # Panics
    /// With no vCPU or too many, and with more disks and cards than one PCI bus takes besides console, random numbers,
    /// the balloon and the LPC bridge: 27.
    pub fn new(config: MachineConfig) -> Self {
        let MachineConfig { id, vcpus, memory, profile, disks, nics, debug, firmware, wall_unix_ns } = config;
        assert!((1..=VCPUS_MAX).contains(&(vcpus as usize)), "a machine of {vcpus} vCPUs");
        let mut board = Board::new(wall_unix_ns, &memory, disks, nics, debug);
        if let Some(firmware) = firmware {
            board.add_firmware(firmware, &memory, vcpus);
        } else {
            board.place_functions();
        }
        Self {
            id,
            memory,
            profile,
            epoch: Epoch::new(wall_unix_ns),
            board: Mutex::new(board),
            addresses: Addresses::new(vcpus as usize),
            mailboxes: (0..vcpus).map(|_| Mailbox::default()).collect(),
            counters: (0..vcpus).map(|_| Mutex::default()).collect(),
        }
    }

    /// Its memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// How many vCPUs it has.
    pub fn vcpus(&self) -> usize {
        self.mailboxes.len()
    }

    /// Every vCPU forgets cached second-stage translations before its next entry: the tables lost or narrowed an entry.
    /// Until [`invalidated`](Self::invalidated) says so, one that is in the guest may still use what it has.
    pub fn invalidate_all(&self, host: &mut dyn Host) {
        (0..self.vcpus()).for_each(|vcpu| self.post(vcpu, Mail::Invalidate, host));
    }

    /// Whether no vCPU can use translations any more from before the last [`invalidate_all`](Self::invalidate_all).
    pub fn invalidated(&self) -> bool {
        !self.mailboxes.iter().any(Mailbox::may_use_stale_translations)
    }

    /// Exits by kind of one vCPU, as of the last time that it let go of its CPU.
    pub fn counters(&self, vcpu: usize) -> ExitCounters {
        *self.counters[vcpu].lock()
    }

    /// Whether a vCPU that sleeps has a reason to run. Whoever puts it to sleep notes so first and asks then: with the
    /// fence, either this sees the mail or the poster's wake-up comes after the note.
    pub fn has_mail(&self, vcpu: usize) -> bool {
        fence(Ordering::SeqCst);
        self.mailboxes[vcpu].has_mail()
    }
}
