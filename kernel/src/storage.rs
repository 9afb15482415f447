//! The host's disks, and whose transfers are under way on them.

use crate::confinement;
use crate::host::Cpus;
use crate::vm::Running;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use block::gpt::{Guid, Partition};
use block::{Catalog, ClaimError, Completion, Datastore, Health, IoError, Place, SubmitError, Transfer, VirtualDisk};
use iommu::Source;
use machine::OutTransfer;
use steering::Steering;
use virtio::blk::Outcome;

/// A flush of the host's own on a VM's disk; no machine's transfer has this number.
const HOST_FLUSH: u64 = u64::MAX;

/// The host's disks.
#[derive(Default)]
pub struct Storage {
    datastores: Vec<Datastore>,
    /// The device behind each.
    sources: Vec<Source>,
    catalog: Catalog,
    /// Who has each partition, or reads it: by datastore and position, and by claim.
    owners: Vec<Vec<Vec<(VirtualDisk, Owner)>>>,
    /// The vector that each raises, and where those go that are messages.
    vectors: Vec<Option<u8>>,
    steering: Vec<(u8, Steering)>,
    host_ended: Vec<HostEnded>,
}

/// How a device interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupt {
    pub vector: u8,
    /// It is a message of the device's own, which can be turned to another CPU.
    pub is_message: bool,
}

enum Owner {
    /// A VM; which of its disks it is.
    Guest { running: Weak<Running>, disk: usize },
    /// The host itself.
    Host,
}

/// A transfer of the host's own that ended.
struct HostEnded {
    lent: Lent,
    id: u64,
    is_done: bool,
}

/// Which partition it is, whatever each host that sees it calls it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its GUID.
    pub guid: Guid,
    /// The serial number of the disk that it is on; empty where that has none.
    pub disk_serial: String,
}

/// A partition that a VM has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lent {
    pub datastore: usize,
    pub disk: VirtualDisk,
}

/// A transfer of a VM that ended.
pub struct Ended {
    pub running: Arc<Running>,
    /// The host disk that did it.
    pub datastore: usize,
    pub disk: usize,
    pub id: u64,
    pub outcome: Outcome,
}

impl Storage {
    /// Adds a disk, behind the device at `source`, with its interrupt.
    pub fn add(&mut self, datastore: Datastore, source: Source, interrupt: Option<Interrupt>) {
        self.catalog.add(&datastore);
        // One more for the disk as a whole.
        self.owners.push((0..=datastore.partitions().count()).map(|_| Vec::new()).collect());
        self.datastores.push(datastore);
        self.sources.push(source);
        self.vectors.push(interrupt.map(|interrupt| interrupt.vector));
        let message = interrupt.filter(|interrupt| interrupt.is_message).map(|interrupt| interrupt.vector);
        if let Some(vector) = message.filter(|own| self.steering.iter().all(|(vector, _)| vector != own)) {
            self.steering.push((vector, Steering::default()));
        }
    }

    /// The disks.
    pub fn datastores(&self) -> &[Datastore] {
        &self.datastores
    }

    /// Names of virtual disks.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// What the partition beside another, on its datastore, is called that has the other's name and `suffix` behind it.
    pub fn beside(&self, place: Place, suffix: &str) -> Option<String> {
        let Place { datastore, partition } = place;
        let name = |(partition, _): (&Partition, bool)| partition.name.clone();
        let wanted = self.datastores[datastore].partitions().nth(partition).map(name)? + suffix;
        let found = self.datastores[datastore].partitions().position(|(partition, _)| partition.name == wanted)?;
        self.catalog.name_of(Place { datastore, partition: found })
    }

    /// Lends the partition called `name`, or says in one line why not and what to do.
    pub fn claim(&mut self, name: &str) -> Result<Lent, (String, &'static str)> {
        self.lend(name, Datastore::claim)
    }

    /// Lends it for reading, beside others who read it, or says why not.
    pub fn claim_shared(&mut self, name: &str) -> Result<Lent, (String, &'static str)> {
        self.lend(name, Datastore::claim_shared)
    }

    fn lend(
        &mut self,
        name: &str,
        claim: fn(&mut Datastore, usize) -> Result<VirtualDisk, ClaimError>,
    ) -> Result<Lent, (String, &'static str)> {
        let place = self.catalog.find(name).map_err(|error| match error {
            block::FindError::Missing => (alloc::format!("there is no disk {name}"), "see \"disk list\""),
            block::FindError::Ambiguous(names) => {
                (alloc::format!("several disks are called {name}: {}", names.join(", ")), "name one of them in full")
            }
        })?;
        let disk = claim(&mut self.datastores[place.datastore], place.partition);
        let disk = disk.map_err(|_| {
            let owners = self.owners(place.datastore, place.partition);
            let names: Vec<&str> = owners.iter().map(|running| running.vm.name()).collect();
            let by = if names.is_empty() { "the host itself".into() } else { shell::listed(&names) };
            (alloc::format!("disk {name} is in use by {by}"), "see \"disk list\"")
        })?;
        Ok(Lent { datastore: place.datastore, disk })
    }

    /// The serial number that a virtual disk called `name` has; none where there is none.
    pub fn serial(&self, name: &str) -> Option<String> {
        let Place { datastore, partition } = self.catalog.find(name).ok()?;
        self.datastores[datastore].partitions().nth(partition).map(|(partition, _)| partition.serial())
    }

    /// Which partition it is.
    pub fn identity(&self, lent: Lent) -> Identity {
        let datastore = &self.datastores[lent.datastore];
        let guid = datastore.partitions().nth(lent.disk.partition()).map(|(partition, _)| partition.unique_guid);
        Identity { guid: guid.unwrap_or_default(), disk_serial: datastore.geometry().serial.clone() }
    }

    /// What the partition that another host calls `name` is called here, or in one line why it cannot be told.
    pub fn name_of(&self, identity: &Identity, name: &str) -> Result<String, (String, &'static str)> {
        let (guid, serial) = (identity.guid, &identity.disk_serial);
        let mut places = Vec::new();
        for (datastore, disk) in self.datastores.iter().enumerate() {
            let own = &disk.geometry().serial;
            let may_be = own.is_empty() || serial.is_empty() || own == serial;
            let found =
                disk.partitions().enumerate().filter(|(_, (partition, _))| may_be && partition.unique_guid == guid);
            places.extend(found.map(|(partition, _)| Place { datastore, partition }));
        }
        match places.as_slice() {
            [place] => Ok(self.catalog.name_of(*place).unwrap_or_else(|| name.into())),
            [] => {
                let message = alloc::format!("this host does not see disk {name} (partition {guid})");
                Err((message, "give both hosts the same disk"))
            }
            _ => {
                let message = alloc::format!("several partitions of this host are {guid}, which is disk {name}");
                Err((message, "give copies GUIDs of their own: sgdisk -G"))
            }
        }
    }

    /// Has a disk make stable what its VM, which stands still, has written. The end is one of
    /// [`take_ended_for_host`](Self::take_ended_for_host).
    pub fn flush_for_host(&mut self, lent: Lent) -> Result<(), SubmitError> {
        // One of an earlier try may have ended when nobody waited any more.
        while self.take_ended_for_host(lent).is_some() {}
        let flush = Transfer { id: HOST_FLUSH, op: block::Op::Flush, sector: 0, sectors: 0, runs: &[] };
        self.datastores[lent.datastore].submit(lent.disk, &flush)?;
        self.datastores[lent.datastore].kick();
        Ok(())
    }

    /// Notes who has a partition.
    pub fn set_owner(&mut self, lent: Lent, running: &Arc<Running>, disk: usize) {
        self.note_owner(lent, Owner::Guest { running: Arc::downgrade(running), disk });
    }

    fn note_owner(&mut self, lent: Lent, owner: Owner) {
        let owners = &mut self.owners[lent.datastore][lent.disk.partition()];
        owners.retain(|(disk, _)| *disk != lent.disk);
        owners.push((lent.disk, owner));
    }

    /// Takes the partition called `name` for the host itself, or says in one line why not and what to do.
    pub fn claim_for_host(&mut self, name: &str) -> Result<Lent, (String, &'static str)> {
        let lent = self.claim(name)?;
        self.note_owner(lent, Owner::Host);
        Ok(lent)
    }

    /// Takes the whole host disk called `name` for the host itself to read, or says in one line why not and what to do.
    pub fn claim_disk_for_host(&mut self, name: &str) -> Result<Lent, (String, &'static str)> {
        let place = self.datastores.iter().position(|datastore| datastore.name() == name);
        let Some(index) = place else {
            return Err((alloc::format!("the host has no disk {name}"), "see \"host\""));
        };
        let datastore = &mut self.datastores[index];
        match datastore.health() {
            Health::Ready => {}
            Health::Recovering => return Err((alloc::format!("{name} is being reset"), "try again in a moment")),
            Health::Failed => return Err((alloc::format!("{name} has failed"), "see \"log\"")),
        }
        let disk = datastore.claim_whole();
        let disk = disk.map_err(|_| (alloc::format!("{name} is being measured already"), "wait for that"))?;
        let lent = Lent { datastore: index, disk };
        self.note_owner(lent, Owner::Host);
        Ok(lent)
    }

    /// Hands a transfer of the host's own to its disk.
    pub fn submit_for_host(&mut self, lent: Lent, transfer: &Transfer<'_>) -> Result<(), SubmitError> {
        self.datastores[lent.datastore].submit(lent.disk, transfer)
    }

    /// A transfer of the host's own that ended: its id, and whether it succeeded.
    pub fn take_ended_for_host(&mut self, lent: Lent) -> Option<(u64, bool)> {
        let place = self.host_ended.iter().position(|ended| ended.lent == lent)?;
        let HostEnded { id, is_done, .. } = self.host_ended.remove(place);
        Some((id, is_done))
    }

    /// Which VMs have a partition.
    pub fn owners(&self, datastore: usize, partition: usize) -> Vec<Arc<Running>> {
        let running = |(_, owner): &(VirtualDisk, Owner)| match owner {
            Owner::Guest { running, .. } => running.upgrade(),
            Owner::Host => None,
        };
        self.owners[datastore][partition].iter().filter_map(running).collect()
    }

    /// The size and abilities of a virtual disk.
    pub fn geometry(&self, lent: Lent) -> block::Geometry {
        self.datastores[lent.datastore].virtual_geometry(lent.disk).expect("the claim is held")
    }

    /// What and where the device behind a virtual disk is, for people.
    pub fn device_name(&self, lent: Lent) -> String {
        self.datastores[lent.datastore].geometry().name.clone()
    }

    /// The device that reaches a VM's memory for a virtual disk.
    pub fn source(&self, lent: Lent) -> Source {
        self.sources[lent.datastore]
    }

    /// Hands a transfer to its disk; what is refused fails at once.
    pub fn submit(&mut self, lent: Lent, out: &OutTransfer, runs: &[block::HostRun]) -> Result<(), Outcome> {
        let &OutTransfer { id, op, sector, sectors, .. } = out;
        let transfer = Transfer { id, op, sector, sectors, runs };
        self.datastores[lent.datastore].submit(lent.disk, &transfer).map_err(|error| match error {
            SubmitError::Refused if matches!(op, block::Op::Discard | block::Op::WriteZeroes) => Outcome::Unsupported,
            SubmitError::Refused | SubmitError::Full => Outcome::IoError,
        })
    }

    /// Tells the disks of everything submitted.
    pub fn kick(&mut self) {
        self.datastores.iter_mut().for_each(Datastore::kick);
    }

    /// Whether transfers ended that no disk announces.
    pub fn has_ended(&self) -> bool {
        self.datastores.iter().any(Datastore::has_ended)
    }

    /// Adds the transfers that ended to `ended`, of all VMs that still live: those of the disks that raise one of
    /// `vectors`, or of all disks. Says whether transfers of the host's own ended too.
    pub fn take_ended(&mut self, vectors: Option<&[u8]>, ended: &mut Vec<Ended>) -> bool {
        let mut for_host = false;
        for (index, datastore) in self.datastores.iter_mut().enumerate() {
            let called = |vectors: &[u8]| self.vectors[index].is_some_and(|vector| vectors.contains(&vector));
            if !vectors.is_none_or(called) {
                continue;
            }
            while let Some(Completion { disk, id, outcome }) = datastore.completed() {
                let owner = self.owners[index][disk.partition()].iter().find(|(claim, _)| *claim == disk);
                match owner.map(|(_, owner)| owner) {
                    Some(Owner::Guest { running, disk }) if id != HOST_FLUSH => {
                        let (running, disk, outcome) = (running.upgrade(), *disk, outcome_of(outcome));
                        ended.extend(running.map(|running| Ended { running, datastore: index, disk, id, outcome }));
                    }
                    Some(Owner::Host | Owner::Guest { .. }) => {
                        let lent = Lent { datastore: index, disk };
                        self.host_ended.push(HostEnded { lent, id, is_done: outcome.is_ok() });
                        for_host = true;
                    }
                    None => {}
                }
            }
        }
        for_host
    }

    /// Notes that what a disk had done was for a guest on CPU `cpu`: its interrupt goes where it is mostly for.
    pub fn note_for(&mut self, datastore: usize, cpu: usize, cpus: &Cpus, now_ns: u64) {
        let own = self.vectors[datastore];
        let Some((vector, steering)) = self.steering.iter_mut().find(|(vector, _)| own == Some(*vector)) else {
            return;
        };
        if let Some(cpu) = steering.note(cpu, now_ns)
            && let Some((address, _)) = confinement::message(self.sources[datastore], cpus.apic_id(cpu), *vector)
        {
            self.datastores[datastore].aim_interrupt(address);
        }
    }

    /// Withdraws what a VM has under way as far as possible; says whether nothing is left.
    pub fn drain(&mut self, lent: Lent) -> bool {
        let datastore = &mut self.datastores[lent.datastore];
        datastore.cancel(lent.disk);
        datastore.outstanding(lent.disk) == 0
    }

    /// Whether nothing of a VM is under way on a disk.
    pub fn is_idle(&self, lent: Lent) -> bool {
        self.datastores[lent.datastore].outstanding(lent.disk) == 0
    }

    /// Takes a partition back, of which nothing is outstanding.
    pub fn release(&mut self, lent: Lent) {
        self.owners[lent.datastore][lent.disk.partition()].retain(|(disk, _)| *disk != lent.disk);
        self.host_ended.retain(|ended| ended.lent != lent);
        self.datastores[lent.datastore].release(lent.disk).expect("a drained claim is released once");
    }

    /// The disks' interrupt vectors.
    pub fn vectors(&self) -> Vec<u8> {
        self.vectors.iter().flatten().copied().collect()
    }

    /// Lets the disks' drivers look after their devices; returns when they want that next.
    pub fn tick(&mut self, now_ns: u64) -> Option<u64> {
        self.datastores.iter_mut().filter_map(|datastore| datastore.tick(now_ns)).min()
    }

    /// Whether some disk is being reset.
    pub fn is_recovering(&self) -> bool {
        self.datastores.iter().any(|datastore| datastore.health() == Health::Recovering)
    }

    /// Whether some disk must be asked because it raises no interrupt.
    pub fn polls(&self) -> bool {
        self.datastores.iter().any(|datastore| !datastore.has_interrupt())
    }
}

fn outcome_of(outcome: block::Outcome) -> Outcome {
    match outcome {
        Ok(()) => Outcome::Ok,
        Err(IoError::Unsupported) => Outcome::Unsupported,
        Err(_) => Outcome::IoError,
    }
}
