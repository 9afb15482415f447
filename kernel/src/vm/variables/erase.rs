//! What the operator erases: both copies of a VM's variables, so that its firmware begins with its own.

use crate::host::Host;
use crate::slot::{Full, Slot, Staging, io_error};
use crate::vm::{Refusal, Start, Vm};
use alloc::format;
use alloc::sync::Arc;
use block::Op;
use shell::VmState;
use state::variables::{BLOCK_BYTES, COPY_BYTES, STORE_BYTES};

/// The order on its way.
pub struct Erase {
    vm: Arc<Vm>,
    outcome: Arc<Start>,
    slot: Slot,
    staging: Staging,
    step: Step,
}

/// What comes next. Each step begins when the transfer of the one before has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Copy(usize),
    Flush,
    End,
}

impl Erase {
    /// Takes the partition of a VM that does not run.
    pub fn begin(host: &'static Host, vm: &Arc<Vm>) -> Result<Self, Refusal> {
        let name = vm.name();
        if vm.spec.kernel.is_some() {
            return Err((format!("{name} has a kernel, and so no UEFI variables"), "see \"vm show\"".into()));
        }
        if vm.running().is_some() {
            return Err((format!("{name} is running"), format!("stop it first: vm stop {name}")));
        }
        if vm.state() == VmState::Saved {
            let remedy = format!("let it go on by \"vm restore\", or give that up: vm delete {name}");
            return Err((format!("{name} is saved, and its UEFI variables with it"), remedy));
        }
        if let Some(to) = vm.moved_to() {
            return Err((format!("{name} was given to {to}, and its UEFI variables with it"), "look there".into()));
        }
        let Some(place) = vm.place(host) else {
            return Err((format!("{name}'s UEFI variables are kept nowhere"), vm.no_place()));
        };
        let slot = Slot::claim(host, &place)?;
        let staging = if slot.bytes() < STORE_BYTES as u64 {
            Err((format!("disk {place} is too small to hold UEFI variables"), "see \"disk list\"".into()))
        } else {
            Staging::new(&slot, BLOCK_BYTES as u64)
        };
        let staging = staging.inspect_err(|_| slot.release(host))?;
        // At once: a life that begins meanwhile has none, and what it writes is newer than the order.
        *vm.variables.lock() = None;
        Ok(Self { vm: vm.clone(), outcome: Arc::default(), slot, staging, step: Step::Copy(0) })
    }

    /// How it went, once that is known.
    pub fn outcome(&self) -> Arc<Start> {
        self.outcome.clone()
    }

    /// Goes on; says whether it is over.
    pub fn poll(&mut self, host: &'static Host) -> bool {
        while self.slot.ended(host).is_some() {}
        while self.slot.is_idle() {
            if self.slot.has_failed() {
                return self.end(host, Err(io_error(self.slot.name())));
            }
            let taken = match self.step {
                Step::Copy(copy) => {
                    let runs = self.staging.runs(BLOCK_BYTES as u64);
                    let next = if copy == 0 { Step::Copy(1) } else { Step::Flush };
                    self.slot.submit(host, 0, Op::Write, (copy * COPY_BYTES) as u64, &runs).map(|()| next)
                }
                Step::Flush => self.slot.flush(host).map(|()| Step::End),
                Step::End => {
                    log::info!("{}'s UEFI variables on {} are erased", self.vm.name(), self.slot.name());
                    return self.end(host, Ok(()));
                }
            };
            match taken {
                Ok(step) => self.step = step,
                Err(Full) => return false,
            }
        }
        false
    }

    fn end(&self, host: &Host, outcome: Result<(), Refusal>) -> bool {
        self.slot.release(host);
        self.outcome.settle(outcome);
        true
    }
}
