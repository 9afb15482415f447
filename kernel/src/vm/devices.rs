//! The disks and network cards that a VM has, which come and go while it lives.
//!
//! The type is [`Devices`]: the VM's definition as it is now. Disks and cards are in the order in which they came, as they
//! are in a life's machine; a life that begins takes over all but what was on its way out of the one before.

use alloc::vec::Vec;
use config::{DiskSpec, Mac, VmSpec};
use machine::Plan;

/// What a VM has.
#[derive(Clone)]
pub struct Devices {
    pub disks: Vec<Disk>,
    pub nics: Vec<Nic>,
}

/// A disk.
#[derive(Clone)]
pub struct Disk {
    pub spec: DiskSpec,
    /// It is on its way out.
    pub leaves: bool,
}

/// A network card.
#[derive(Clone)]
pub struct Nic {
    pub mac: Mac,
    /// Nobody asked for this very address.
    pub is_chosen: bool,
    /// It is on its way out.
    pub leaves: bool,
}

impl Devices {
    /// As the definition says, with these addresses for the cards.
    pub fn new(spec: &VmSpec, macs: Vec<Mac>) -> Self {
        let disk = |spec: &DiskSpec| Disk { spec: spec.clone(), leaves: false };
        let nic = |(mac, spec): (Mac, &config::NicSpec)| Nic { mac, is_chosen: spec.mac.is_none(), leaves: false };
        Self { disks: spec.disks.iter().map(disk).collect(), nics: macs.into_iter().zip(&spec.nics).map(nic).collect() }
    }

    /// Forgets what was on its way out of a life that is over.
    pub fn settle(&mut self) {
        self.disks.retain(|disk| !disk.leaves);
        self.nics.retain(|nic| !nic.leaves);
    }

    /// Puts them in the order in which a saved machine has them, whose disks and cards came and went since it was defined.
    /// Disks are told by their serial numbers. Cards without an address of their own get the one that their guest knows.
    /// What the saved machine does not have stays behind.
    pub fn adopt(&mut self, plan: &Plan, serial: impl Fn(&DiskSpec) -> [u8; 20]) {
        let place = |disk: &Disk| {
            let own = serial(&disk.spec);
            plan.disk_serials().position(|saved| saved == own).unwrap_or(usize::MAX)
        };
        self.disks.sort_by_cached_key(place);
        let mut left = core::mem::take(&mut self.nics);
        for mac in plan.macs().filter_map(Mac::new) {
            let own = left.iter().position(|nic| nic.mac == mac && !nic.is_chosen);
            if let Some(index) = own.or_else(|| left.iter().position(|nic| nic.is_chosen)) {
                self.nics.push(Nic { mac, ..left.remove(index) });
            }
        }
        self.nics.append(&mut left);
    }

    /// Its disks.
    pub fn disk_specs(&self) -> Vec<DiskSpec> {
        self.disks.iter().map(|disk| disk.spec.clone()).collect()
    }

    /// The addresses of the cards.
    pub fn macs(&self) -> Vec<Mac> {
        self.nics.iter().map(|nic| nic.mac).collect()
    }
}
