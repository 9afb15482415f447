//! The host's disks, and whose transfers are under way on them.

use crate::vm::Running;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use block::{Catalog, Completion, Datastore, Health, IoError, SubmitError, Transfer, VirtualDisk};
use iommu::Source;
use machine::OutTransfer;
use virtio::blk::Outcome;

/// The host's disks.
#[derive(Default)]
pub struct Storage {
    datastores: Vec<Datastore>,
    /// The device behind each.
    sources: Vec<Source>,
    catalog: Catalog,
    /// Who has each partition: by datastore and position.
    owners: Vec<Vec<Option<Owner>>>,
    /// Interrupt vectors of the disks.
    vectors: Vec<u8>,
}

struct Owner {
    running: Weak<Running>,
    /// Which of the VM's disks it is.
    disk: usize,
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
    pub disk: usize,
    pub id: u64,
    pub outcome: Outcome,
}

impl Storage {
    /// Adds a disk, behind the device at `source`, that raises `vector`.
    pub fn add(&mut self, datastore: Datastore, source: Source, vector: Option<u8>) {
        self.catalog.add(&datastore);
        self.owners.push((0..datastore.partitions().count()).map(|_| None).collect());
        self.datastores.push(datastore);
        self.sources.push(source);
        self.vectors.extend(vector);
    }

    /// The disks.
    pub fn datastores(&self) -> &[Datastore] {
        &self.datastores
    }

    /// Names of virtual disks.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Lends the partition called `name`, or says in one line why not and what to do.
    pub fn claim(&mut self, name: &str) -> Result<Lent, (String, &'static str)> {
        let place = self.catalog.find(name).map_err(|error| match error {
            block::FindError::Missing => (alloc::format!("there is no disk {name}"), "see \"disk list\""),
            block::FindError::Ambiguous(names) => {
                (alloc::format!("several disks are called {name}: {}", names.join(", ")), "name one of them in full")
            }
        })?;
        let disk = self.datastores[place.datastore].claim(place.partition);
        let disk = disk.map_err(|_| (alloc::format!("disk {name} is in use by another VM"), "see \"disk list\""))?;
        Ok(Lent { datastore: place.datastore, disk })
    }

    /// Notes who has a partition.
    pub fn set_owner(&mut self, lent: Lent, running: &Arc<Running>, disk: usize) {
        let owner = Owner { running: Arc::downgrade(running), disk };
        self.owners[lent.datastore][lent.disk.partition()] = Some(owner);
    }

    /// Who has a partition.
    pub fn owner(&self, datastore: usize, partition: usize) -> Option<Arc<Running>> {
        self.owners[datastore][partition].as_ref()?.running.upgrade()
    }

    /// The size and abilities of a virtual disk.
    pub fn geometry(&self, lent: Lent) -> block::Geometry {
        self.datastores[lent.datastore].virtual_geometry(lent.disk).expect("the claim is held")
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

    /// The next transfer that ended, of any VM that still lives.
    pub fn next_ended(&mut self) -> Option<Ended> {
        for (index, datastore) in self.datastores.iter_mut().enumerate() {
            while let Some(Completion { disk, id, outcome }) = datastore.completed() {
                let Some(owner) = &self.owners[index][disk.partition()] else { continue };
                let Some(running) = owner.running.upgrade() else { continue };
                let outcome = match outcome {
                    Ok(()) => Outcome::Ok,
                    Err(IoError::Unsupported) => Outcome::Unsupported,
                    Err(_) => Outcome::IoError,
                };
                return Some(Ended { running, disk: owner.disk, id, outcome });
            }
        }
        None
    }

    /// Withdraws what a VM has under way as far as possible; says whether nothing is left.
    pub fn drain(&mut self, lent: Lent) -> bool {
        let datastore = &mut self.datastores[lent.datastore];
        datastore.cancel(lent.disk);
        datastore.outstanding(lent.disk) == 0
    }

    /// Takes a partition back, of which nothing is outstanding.
    pub fn release(&mut self, lent: Lent) {
        self.owners[lent.datastore][lent.disk.partition()] = None;
        self.datastores[lent.datastore].release(lent.disk).expect("a drained claim is released once");
    }

    /// The disks' interrupt vectors.
    pub fn vectors(&self) -> &[u8] {
        &self.vectors
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
