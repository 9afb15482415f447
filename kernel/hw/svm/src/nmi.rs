//! When the guest can take an NMI: the processor does not say, so [`Nmis`] follows its handler (15.13.3).
//!
//! A handler ends with the IRET that it runs last. That exits before it runs, and an NMI taken there would overwrite the
//! frame that it is to return by. So where one waits, the guest runs that IRET alone, by a single step that it does not
//! see; the instruction in the shadow of a MOV SS or STI too, which no NMI may precede (15.21.5).

use crate::entry::{Svm, event};
use crate::intercepts::Intercept;
use crate::vmcb::clean;
use core::cell::Cell;
use vcpu::rflags;

/// DR6.BS: a single step.
const DR6_SINGLE_STEP: u64 = 1 << 14;

/// What holds NMIs back.
#[derive(Default)]
pub struct Nmis {
    /// A handler runs.
    in_handler: bool,
    /// It stands at its IRET, here.
    iret_rip: Option<u64>,
    /// One was held back: the guest shall leave as soon as it could go in.
    waits: Cell<bool>,
    /// The step that is being made.
    step: Option<Step>,
}

/// A single step that the guest does not see. (It could see the step's TF: by a PUSHF in a shadow, or in what an IRET
/// pushes that faults.)
struct Step {
    rip: u64,
    /// It runs an IRET, which loads RFLAGS.
    at_iret: bool,
    /// What the guest's own RFLAGS.TF and DR6 were.
    trap: u64,
    dr6: u64,
}

impl Svm {
    /// Whether a handler runs.
    pub(crate) fn in_nmi(&self) -> bool {
        self.nmis.in_handler
    }

    /// Whether an NMI must wait, which is then seen to.
    pub(crate) fn holds_nmis(&self) -> bool {
        let blocked = self.nmis.in_handler || self.vmcb.control.interrupt_shadow & 1 != 0;
        self.nmis.waits.set(blocked);
        blocked
    }

    /// Notes whether a handler runs; its IRET then exits.
    pub(crate) fn block_nmis(&mut self, blocked: bool) {
        self.nmis = Nmis { in_handler: blocked, ..Nmis::default() };
        self.intercept(Intercept::Iret, blocked);
    }

    /// The handler stands at its IRET.
    pub(crate) fn end_of_nmi(&mut self) {
        self.nmis.iret_rip = Some(self.vmcb.save.rip);
        self.intercept(Intercept::Iret, false);
    }

    /// Before an entry: begins a step, if an NMI waits for the end of one instruction.
    pub(crate) fn begin_step(&mut self) {
        let at_iret = self.nmis.iret_rip.is_some();
        let is_next = at_iret || !self.nmis.in_handler;
        // An event that is delivered first would push the step's TF.
        let delivers = self.vmcb.control.event_injection & event::VALID != 0;
        if delivers || !is_next || !self.nmis.waits.take() {
            return;
        }
        let save = &mut self.vmcb.save;
        self.nmis.step = Some(Step { rip: save.rip, at_iret, trap: save.rflags & rflags::TF, dr6: save.dr6 });
        save.rflags |= rflags::TF;
    }

    /// After an exit: ends the step and the handler, if they are over. Whether the exit was the step's and nothing else.
    pub(crate) fn end_step(&mut self, is_debug_exception: bool) -> bool {
        let rip = self.vmcb.save.rip;
        if self.nmis.iret_rip.is_some_and(|iret| iret != rip) {
            self.nmis.iret_rip = None;
            self.nmis.in_handler = false;
        }
        let Some(step) = self.nmis.step.take() else { return false };
        let save = &mut self.vmcb.save;
        if save.rip == step.rip {
            // It has not run.
            save.rflags = save.rflags & !rflags::TF | step.trap;
            return false;
        }
        if step.trap == 0 && !step.at_iret {
            save.rflags &= !rflags::TF;
        }
        if !is_debug_exception || step.trap != 0 {
            return false;
        }
        // What breakpoints the instruction met is the guest's to see.
        let others = save.dr6 & 0xf;
        save.dr6 = if others == 0 { step.dr6 } else { save.dr6 & !DR6_SINGLE_STEP | step.dr6 & DR6_SINGLE_STEP };
        self.changed(clean::DEBUG);
        others == 0
    }
}
