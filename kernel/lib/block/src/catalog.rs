//! Names of virtual disks over all datastores.
//!
//! The main type is [`Catalog`], made once from the partition tables; the shell and `machine` look names up in it.

use crate::Datastore;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Where a virtual disk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The position of its [`Datastore`] in the order of [`Catalog::add`].
    pub datastore: usize,
    /// Its position in [`Datastore::partitions`].
    pub partition: usize,
}

/// Why a name names no virtual disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FindError {
    /// Nothing is called so.
    Missing,
    /// Several are; these full names tell them apart.
    Ambiguous(Vec<String>),
}

struct Entry {
    name: String,
    number: u32,
    datastore_name: String,
    place: Place,
}

/// Every virtual disk of the host by name.
///
/// `data` finds a partition with that name, `data@disk0` one on the datastore `disk0`, and `#3@disk0` the partition
/// with number 3 there, whatever its name.
#[derive(Default)]
pub struct Catalog {
    entries: Vec<Entry>,
    datastores: usize,
}

impl Catalog {
    /// An empty catalogue.
    pub const fn new() -> Self {
        Self { entries: Vec::new(), datastores: 0 }
    }

    /// Enters the next datastore's partitions.
    pub fn add(&mut self, datastore: &Datastore) {
        for (position, (partition, _)) in datastore.partitions().enumerate() {
            self.entries.push(Entry {
                name: partition.name.clone(),
                number: partition.number,
                datastore_name: datastore.name().into(),
                place: Place { datastore: self.datastores, partition: position },
            });
        }
        self.datastores += 1;
    }

    /// The virtual disk called `name`.
    pub fn find(&self, name: &str) -> Result<Place, FindError> {
        // A partition's own name may hold an `@`, so the whole comes first.
        let mut found: Vec<_> = self.entries.iter().filter(|entry| entry.name == name).collect();
        if found.is_empty()
            && let Some((name, datastore_name)) = name.rsplit_once('@')
        {
            let on_disk = |entry: &&Entry| entry.datastore_name == datastore_name;
            found = self.entries.iter().filter(on_disk).filter(|entry| entry.answers_to(name)).collect();
        }
        match found.as_slice() {
            [] => Err(FindError::Missing),
            [one] => Ok(one.place),
            several => Err(FindError::Ambiguous(several.iter().map(|entry| self.full_name(entry)).collect())),
        }
    }

    /// The shortest name of the virtual disk at a place.
    pub fn name_of(&self, place: Place) -> Option<String> {
        let entry = self.entries.iter().find(|entry| entry.place == place)?;
        let is_alone = self.find(&entry.name) == Ok(place);
        Some(if is_alone { entry.name.clone() } else { self.full_name(entry) })
    }

    /// The shortest name with the datastore's that finds only this entry.
    fn full_name(&self, entry: &Entry) -> String {
        let same = |other: &&Entry| other.name == entry.name && other.datastore_name == entry.datastore_name;
        if self.entries.iter().filter(same).count() > 1 {
            format!("#{}@{}", entry.number, entry.datastore_name)
        } else {
            format!("{}@{}", entry.name, entry.datastore_name)
        }
    }
}

impl Entry {
    fn answers_to(&self, name: &str) -> bool {
        self.name == name || name.strip_prefix('#').is_some_and(|number| number.parse() == Ok(self.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{MemoryDisk, partition};
    use alloc::boxed::Box;

    fn catalog() -> Catalog {
        let mut catalog = Catalog::new();
        for (disk, names) in [("disk0", ["root", "data", "twin", "twin"]), ("disk1", ["data", "x@y", "swap", "log"])] {
            let partitions =
                (1..).zip(names).map(|(number, name)| partition(number, name, u64::from(number) * 8, 8)).collect();
            catalog.add(&Datastore::new(disk.into(), Box::new(MemoryDisk::new(1024).0), partitions));
        }
        catalog
    }

    #[test]
    fn names_find_partitions() {
        let catalog = catalog();
        assert_eq!(catalog.find("root"), Ok(Place { datastore: 0, partition: 0 }));
        assert_eq!(catalog.find("swap@disk1"), Ok(Place { datastore: 1, partition: 2 }));
        assert_eq!(catalog.find("x@y"), Ok(Place { datastore: 1, partition: 1 }));
        assert_eq!(catalog.find("x@y@disk1"), Ok(Place { datastore: 1, partition: 1 }));
        assert_eq!(catalog.find("swap@disk0"), Err(FindError::Missing));
        assert_eq!(catalog.find(""), Err(FindError::Missing));
    }

    #[test]
    fn equal_names_are_told_apart() {
        let catalog = catalog();
        assert_eq!(catalog.find("data"), Err(FindError::Ambiguous(vec!["data@disk0".into(), "data@disk1".into()])));
        assert_eq!(catalog.find("data@disk1"), Ok(Place { datastore: 1, partition: 0 }));
        assert_eq!(catalog.find("twin"), Err(FindError::Ambiguous(vec!["#3@disk0".into(), "#4@disk0".into()])));
        assert_eq!(catalog.find("#4@disk0"), Ok(Place { datastore: 0, partition: 3 }));
    }
}
