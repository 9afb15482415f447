//! The seam to the processor: what a virtual CPU is, without a vendor's name.
//!
//! [`Vcpu`] is what `hw/svm` and `hw/vmx` implement and `machine` drives: run until an [`Exit`], inject an [`Event`],
//! read and change [`VcpuState`]. Nothing here touches silicon, and nothing outside `kernel/src/backend.rs` knows
//! which vendor's code is behind it.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod apic;
mod check;
pub mod cr4;
mod debug;
mod event;
mod exit;
mod posted;
mod speculation;
mod state;
mod tsc;

use addr::Gpa;
use alloc::sync::Arc;
use alloc::vec::Vec;

pub use apic::{ApicPage, Vectors};
pub use check::is_canonical;
pub use debug::{Breakpoints, dr6_after_trap};
pub use event::{Event, Exception, ReadyFor, Window, makes_double_fault};
pub use exit::{Access, Exit, PortAccess, PortDirection, TaskSwitchSource};
pub use posted::Posted;
pub use speculation::Speculation;
pub use state::{Blocking, Gpr, Segment, SegmentName, Table, VcpuState, Xfd, cr0, efer, rflags};
pub use tsc::TscRatio;

/// One virtual CPU, on whichever hardware.
///
/// The order of use: [`run`](Vcpu::run) until an exit, look at it, change registers, [`inject`](Vcpu::inject), run
/// again. Between `run` and [`park`](Vcpu::park) host interrupts stay pending and parts of the guest's state stay in
/// the processor: only short work may be done there.
pub trait Vcpu: Send {
    /// Enters the guest and returns when something ends the run.
    fn run(&mut self) -> Exit;

    /// Brings back the host's own state after `run` and lets host interrupts in. Cheap when there is nothing to do.
    fn park(&mut self);

    /// Takes the guest's floating-point state off this physical CPU, so that another vCPU can use it.
    fn unload(&mut self);

    /// The sixteen general registers in [`Gpr`] order, as of the last exit.
    fn gprs(&self) -> &[u64; 16];

    /// The same, to change.
    fn gprs_mut(&mut self) -> &mut [u64; 16];

    /// The address of the instruction that exited, or that runs next.
    fn rip(&self) -> u64;

    /// RFLAGS as of the last exit.
    fn rflags(&self) -> u64;

    /// Replaces RFLAGS.
    fn set_rflags(&mut self, value: u64);

    /// Where the instruction that exited ends, when the processor said so.
    fn next_rip(&self) -> Option<u64>;

    /// Completes the instruction that exited: goes on at `next_rip`, ends the shadow of STI and MOV SS, clears RF, and
    /// leaves a debug trap pending where RFLAGS.TF asks for one or the instruction met breakpoints, the bits of `met`.
    fn retire(&mut self, next_rip: u64, met: u64);

    /// The breakpoints that are armed, if any is.
    fn breakpoints(&self) -> Option<Breakpoints>;

    /// One segment register.
    fn segment(&self, name: SegmentName) -> Segment;

    /// CR0, CR3, CR4 and EFER, what a walk of the guest's page tables needs.
    fn paging(&self) -> Paging;

    /// Delivers `event` at the next entry.
    ///
    /// # Panics
    /// When another event is waiting there: ask [`ready_for`](Vcpu::ready_for) first.
    fn inject(&mut self, event: Event);

    /// What can be delivered at the next entry.
    fn ready_for(&self) -> ReadyFor;

    /// Whether the guest is in an NMI's handler, so that the next one must wait.
    fn nmi_blocked(&self) -> bool;

    /// Asks for [`Exit::InterruptWindow`], in place of what was asked for before.
    fn want_interrupt_window(&mut self, window: Window);

    /// The task-priority class in CR8, 0 to 15, which the guest reads and writes without exits.
    fn tpr(&self) -> u8;

    /// Sets it: the local APIC's task priority was changed by another way.
    fn set_tpr(&mut self, class: u8);

    /// Shows it the page of its local APIC; again when that is another. Says whether this processor delivers by itself
    /// the interrupts that wait there: then nobody [`inject`](Vcpu::inject)s them, and CR8 is the page's.
    fn share_apic(&mut self, page: &Arc<ApicPage>) -> bool;

    /// Shows it what others leave for it. Says whether this processor takes interrupts from there into the page by itself,
    /// while it runs the vCPU and is interrupted by the vector for that.
    fn share_posted(&mut self, posted: &Arc<Posted>) -> bool;

    /// Lets the guest use the page by x2APIC's registers without exits, where the processor can, or not: they are there in
    /// that mode alone.
    fn open_apic(&mut self, is_open: bool);

    /// Everything that a saved vCPU consists of, but its extended state and its TSC.
    fn state(&mut self) -> VcpuState;

    /// Replaces all of it.
    fn set_state(&mut self, state: &VcpuState);

    /// The x87, vector and other state that XSAVE knows, as an area in the standard layout (SDM volume 1, 13.4).
    fn extended_state(&mut self) -> Vec<u8>;

    /// Replaces it by an area that [`extended_state`](Vcpu::extended_state) may have given, here or elsewhere.
    ///
    /// # Errors
    /// Where this processor would refuse to load it.
    fn set_extended_state(&mut self, area: &[u8]) -> Result<(), Unloadable>;

    /// Says which bits of CR4 the guest was offered, before it runs: its write of another one raises #GP(0). Where that costs
    /// an exit, it does so only while the processor has a bit that was not offered.
    fn offer_cr4(&mut self, bits: u64);

    /// Carries out a MOV to CR4 but for RIP; false where it raises #GP(0), and nothing changed.
    fn write_cr4(&mut self, value: u64) -> bool;

    /// Says what the guest was offered to control speculation with, before it runs. The commands then need no exit; nor may
    /// IA32_SPEC_CTRL, where the processor has no bit of it that was not offered.
    fn offer_speculation(&mut self, offered: Speculation);

    /// The guest's IA32_SPEC_CTRL.
    fn spec_ctrl(&self) -> u64;

    /// Sets it, already checked against what the guest was offered. It is in force while the guest runs, and no longer.
    fn set_spec_ctrl(&mut self, value: u64);

    /// PKRU: what the guest's protection keys deny.
    fn pkru(&self) -> u32;

    /// Sets XCR0, already checked against what the guest was offered.
    fn set_xcr0(&mut self, value: u64);

    /// The guest's IA32_XFD and IA32_XFD_ERR.
    fn xfd(&self) -> Xfd;

    /// Sets them, already checked against what the guest was offered.
    fn set_xfd(&mut self, xfd: Xfd);

    /// Says how fast the guest's TSC runs, before it runs: at the host's rate, where the processor knows no other.
    fn scale_tsc(&mut self, ratio: TscRatio);

    /// Sets how far the guest's TSC is ahead of the host's, as scaled (wrapping).
    fn set_tsc_offset(&mut self, offset: u64);

    /// How far the guest's TSC is ahead of the host's, as scaled (wrapping).
    fn tsc_offset(&self) -> u64;

    /// Forgets cached second-stage translations: the nested page tables lost or narrowed an entry.
    fn invalidate(&mut self);

    /// Takes what the processor logged of the guest's writes: pages of 4 KiB in whose writing it set a dirty mark of the
    /// nested page tables. Nothing where it keeps no log.
    fn take_written(&mut self, report: &mut dyn FnMut(Gpa));
}

/// An XSAVE area that the processor cannot load: components that it lacks, or reserved bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unloadable;

/// The registers that select how the guest translates addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// The current privilege level, 0 to 3.
    pub cpl: u8,
}
