//! What the host does on partitions of its own by order, in steps that block nobody: VMs on their way there and back
//! (`vm save` and `vm restore`), and variables that are erased.
//!
//! The main type is [`Jobs`], which the services poll; [`save`] and [`restore`] begin a job. A job owns its partition
//! ([`crate::slot`]) and holds its VM: what would disturb it is refused until it is over, but a kill, which ends it. A VM that
//! was restored runs while the rest of its memory is read ([`rest`]).

mod reading;
mod rest;
mod restore;
mod save;
mod undo;

use crate::host::Host;
use crate::services;
use crate::vm::variables::Erase;
use crate::vm::{Refusal, Running, Start, Vm};
use alloc::format;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use rest::Rest;
use restore::Restore;
use save::Save;
use spin::Mutex;

/// How often it is looked how far an erasure is.
const ERASE_LOOK_NS: u64 = 1_000_000;

/// Jobs that were begun and that the services have not seen yet.
static BEGUN: Mutex<Vec<Job>> = Mutex::new(Vec::new());

/// The jobs under way.
#[derive(Default)]
pub struct Jobs(Vec<Job>);

/// What goes on.
enum Job {
    Save(Save),
    Restore(Restore),
    Rest(Rest),
    Erase(Erase),
}

/// What a job waits for.
enum Next {
    /// To be called again, by this moment at the latest.
    At(u64),
    /// A transfer of its partition's.
    Transfer,
    /// Nothing more but the rest: the VM that was restored runs.
    Runs,
    /// Nothing more: it is over.
    Over,
}

/// A job that was begun: how it goes, and the life that it ends, or that ends if it fails.
pub struct Begun {
    pub outcome: Arc<Start>,
    pub life: Weak<Running>,
}

/// Begins to save a running or paused VM to a partition.
pub fn save(host: &'static Host, vm: &Arc<Vm>, partition: &str) -> Result<Begun, Refusal> {
    let save = Save::begin(host, vm, partition)?;
    let begun = Begun { outcome: save.outcome(), life: save.life() };
    begin(Job::Save(save));
    Ok(begun)
}

/// Begins to restore a VM from a partition.
pub fn restore(host: &'static Host, vm: &Arc<Vm>, partition: &str) -> Result<Begun, Refusal> {
    if vm.running().is_some() {
        return Err((format!("{} is running already", vm.name()), "see \"vm list\"".into()));
    }
    if !vm.start_restoring() {
        return Err((format!("{} is being restored already", vm.name()), "see \"vm list\"".into()));
    }
    let restore = Restore::begin(host, vm, partition).inspect_err(|_| vm.end_restoring())?;
    let begun = Begun { outcome: restore.outcome(), life: Weak::new() };
    begin(Job::Restore(restore));
    Ok(begun)
}

/// Begins to erase what a VM's firmware keeps.
pub fn erase(host: &'static Host, vm: &Arc<Vm>) -> Result<Begun, Refusal> {
    let erase = Erase::begin(host, vm)?;
    let begun = Begun { outcome: erase.outcome(), life: Weak::new() };
    begin(Job::Erase(erase));
    Ok(begun)
}

fn begin(job: Job) {
    BEGUN.lock().push(job);
    services::note_begun();
}

impl Jobs {
    /// Goes on with every job; returns when to look again where no transfer says so.
    pub fn poll(&mut self, host: &'static Host) -> Option<u64> {
        self.0.append(&mut BEGUN.lock());
        let mut due_ns: Option<u64> = None;
        for mut job in core::mem::take(&mut self.0) {
            let next = match &mut job {
                Job::Save(save) => save.poll(host),
                Job::Restore(restore) => restore.poll(host),
                Job::Rest(rest) => rest.poll(host),
                Job::Erase(erase) => match erase.poll(host) {
                    true => Next::Over,
                    false => Next::At(host.clock.now_ns() + ERASE_LOOK_NS),
                },
            };
            match next {
                Next::At(ns) => due_ns = Some(due_ns.map_or(ns, |other| other.min(ns))),
                Next::Transfer => {}
                Next::Runs => {
                    due_ns = Some(host.clock.now_ns());
                    if let Job::Restore(restore) = job {
                        job = Job::Rest(restore.into_rest());
                    }
                }
                Next::Over => continue,
            }
            self.0.push(job);
        }
        due_ns
    }
}
