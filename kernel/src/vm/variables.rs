//! What a VM's firmware keeps, kept: on the partition `DISK-vars` beside the VM's first disk `DISK`.
//!
//! Each life has a [`Keeping`]. Its [`Keeper`] reads the partition before the guest's first instruction, writes back what
//! the firmware wrote soon after, and the last of it before the life is taken down; all of it in steps on CPU 0, which
//! [`Keepers`] takes. [`Erase`] is what the operator orders. What is where on the disk is [`state::variables`]' affair.

mod erase;
mod keeper;

use super::{Refusal, Running, Vm};
use crate::host::Host;
use crate::storage::Identity;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
pub use erase::Erase;
use keeper::{Keeper, Task};
use spin::Mutex;

/// How the partition is called: as the disk, and this.
const SUFFIX: &str = "-vars";

/// What a life has for what its firmware keeps.
#[derive(Default)]
pub struct Keeping {
    /// None where nothing is kept: the VM has no firmware of its own, or no place.
    keeper: Mutex<Option<Keeper>>,
    /// The guest has to wait for what is read.
    is_loading: AtomicBool,
    /// Why it cannot start.
    refusal: Mutex<Option<Refusal>>,
}

/// The lives whose keepers have something to do.
#[derive(Default)]
pub struct Keepers(Vec<Weak<Running>>);

impl Keepers {
    /// Goes on with all of them, with all of `host`'s VMs where that was noted; returns when to look again where no transfer says so.
    pub fn poll(&mut self, host: &'static Host, was_noted: bool) -> Option<u64> {
        if was_noted {
            let vms = host.vms.lock().clone();
            self.0 = vms.iter().filter_map(|vm| vm.running()).map(|running| Arc::downgrade(&running)).collect();
        }
        let mut due_ns: Option<u64> = None;
        self.0.retain(|life| {
            let Some(running) = life.upgrade() else { return false };
            let next = running.keep_variables(host);
            if let Next::At(ns) = next {
                due_ns = Some(due_ns.map_or(ns, |other| other.min(ns)));
            }
            !matches!(next, Next::Nothing)
        });
        due_ns
    }
}

/// What a keeper waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// To be called again, by this moment at the latest.
    At(u64),
    /// A transfer.
    Transfer,
    /// A note that there is something.
    Nothing,
}

impl Running {
    /// Takes the place for what its firmware keeps, or says why there is none. It was not let run yet.
    pub(super) fn begin_keeping(&self, host: &Host) {
        let Some(bytes) = self.machine.with_variables(|flash| flash.bytes()) else { return };
        let has_state = self.is_held() || self.is_arriving();
        let keeper = match self.vm.place(host) {
            Some(name) => Keeper::new(host, &name, bytes, has_state),
            None => Err(self.vm.no_place()),
        };
        match keeper {
            Ok(keeper) => {
                self.vm.tell_place(keeper.place(), None);
                self.keeping.is_loading.store(!has_state, Ordering::Release);
                *self.keeping.keeper.lock() = Some(keeper);
            }
            Err(why) => self.vm.tell_place("nowhere", Some(&why)),
        }
    }

    /// Whether what its firmware keeps is where the firmware reads it, or why that cannot be.
    pub(super) fn has_variables(&self) -> Result<bool, Refusal> {
        match self.keeping.refusal.lock().clone() {
            Some(refusal) => Err(refusal),
            None => Ok(!self.keeping.is_loading.load(Ordering::Acquire)),
        }
    }

    /// Goes on with keeping what its firmware wrote.
    fn keep_variables(&self, host: &'static Host) -> Next {
        self.keeping.keeper.lock().as_mut().map_or(Next::Nothing, |keeper| keeper.poll(host, self, Task::Follow))
    }

    /// Writes the last of what its firmware wrote while its guest stands still; says whether that is done. From then on
    /// its place has all of it and nothing is under way there, until the guest runs on.
    pub fn keep_last(&self, host: &'static Host) -> bool {
        self.keeping.keeper.lock().as_mut().is_none_or(|keeper| keeper.poll(host, self, Task::Finish) == Next::Nothing)
    }

    /// The partition on which what its firmware writes is kept.
    pub fn variables_identity(&self, host: &Host) -> Option<Identity> {
        self.keeping.keeper.lock().as_ref().and_then(|keeper| keeper.identity(host))
    }

    /// Writes the last of what its firmware wrote, and gives the place back; says whether that is done. The life has ended.
    pub(super) fn finish_keeping(&self, host: &'static Host) -> bool {
        let mut keeper = self.keeping.keeper.lock();
        // What another host has, or has not given away, is that host's to keep.
        let is_others = self.is_arriving() || self.vm.moved_to().is_some();
        let is_done = keeper.as_mut().is_none_or(|keeper| match is_others {
            true => keeper.is_idle(host),
            false => keeper.poll(host, self, Task::End) == Next::Nothing,
        });
        if is_done && let Some(keeper) = keeper.take() {
            keeper.release(host);
        }
        is_done
    }
}

impl Vm {
    /// Notes where its variables are kept, and says so where that is news; `why`: why nowhere.
    fn tell_place(&self, place: &str, why: Option<&str>) {
        let text = why.map_or_else(|| format!("kept on {place}"), |why| format!("not kept: {why}"));
        let before = self.variables_place.lock().replace(text.clone());
        if why.is_some() && before.as_ref() != Some(&text) {
            log::warn!("{}'s UEFI variables are {text}; they last as long as the VM is known", self.name());
        }
    }

    /// Where its variables are kept, in words; `None` before it ran and without a firmware of its own.
    pub fn variables_place(&self) -> Option<String> {
        self.variables_place.lock().clone()
    }

    /// The partition for its variables, where there is one.
    fn place(&self, host: &Host) -> Option<String> {
        let disk = self.own_disk()?;
        let storage = host.storage.lock();
        let place = storage.catalog().find(&disk).ok()?;
        storage.beside(place, SUFFIX)
    }

    /// The first disk that is its alone.
    fn own_disk(&self) -> Option<String> {
        self.disks().into_iter().find(|disk| !disk.is_cdrom).map(|disk| disk.name)
    }

    fn no_place(&self) -> String {
        match self.own_disk() {
            Some(disk) => format!("make a partition {}{SUFFIX} of 2 MiB beside {disk}", base_of(&disk)),
            None => "it has no disk of its own".to_string(),
        }
    }
}

/// The partition's own name, of a disk that may be named in full.
fn base_of(disk: &str) -> &str {
    disk.split_once('@').map_or(disk, |(name, _)| name)
}
