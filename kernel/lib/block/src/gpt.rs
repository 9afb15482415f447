//! Reads a GUID partition table (UEFI Specification 2.10, section 5), which may be damaged or hostile.
//!
//! The main type is [`Scan`]: it says which sectors it wants to see and ends with the list of [`Partition`]s. It checks
//! the protective MBR and the primary table, and takes the backup table at the end of the disk where the primary is
//! damaged. Whoever owns a [`crate::Disk`] does the reading.

mod table;

use crate::SECTOR_BYTES;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use table::Header;

/// The most sectors that one [`Step::Read`] asks for.
pub const READ_SECTORS_MAX: u32 = 64;

/// A GUID in its on-disk byte order: the first three fields are little-endian (UEFI 2.10, appendix A).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Guid(pub [u8; 16]);

impl fmt::Display for Guid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f, g, h, rest @ ..] = self.0;
        write!(out, "{d:02x}{c:02x}{b:02x}{a:02x}-{f:02x}{e:02x}-{h:02x}{g:02x}-{:02x}{:02x}-", rest[0], rest[1])?;
        rest[2..].iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

/// A partition, within its disk and apart from all others of its table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Partition {
    /// Its position in the table, from 1.
    pub number: u32,
    /// Its name, or "part" and its number where it has none. Control characters, which could talk to the operator's
    /// terminal, are replaced.
    pub name: String,
    /// Its first sector, in 512 bytes.
    pub first_sector: u64,
    /// Its length, in 512 bytes; at least one logical block.
    pub sectors: u64,
    /// What it is for.
    pub type_guid: Guid,
    /// Which one it is.
    pub unique_guid: Guid,
    /// Attribute 60, which basic-data and Linux partitions use for "read-only".
    pub read_only: bool,
}

impl Partition {
    /// The first sector past it, or `None` where that is not representable.
    pub fn end_sector(&self) -> Option<u64> {
        self.first_sector.checked_add(self.sectors)
    }

    /// The serial number of a virtual disk that it is: the first 20 hexadecimal digits of its GUID.
    pub fn serial(&self) -> String {
        format!("{}", self.unique_guid).chars().filter(|digit| *digit != '-').take(20).collect()
    }
}

/// Why a disk's partitions are not usable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The disk could not be read, or is too small for a table.
    Unreadable,
    /// There is no protective MBR: the disk is empty or has no GPT.
    NotGpt,
    /// Neither the primary nor the backup table is intact.
    Damaged,
    /// The table is larger than any in use (128 KiB of entries).
    TooLarge,
    /// The entry with this number lies outside the usable blocks or ends before it starts.
    OutOfRange(u32),
    /// The entries with these numbers share blocks.
    Overlap(u32, u32),
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => write!(out, "the partition table cannot be read"),
            Self::NotGpt => write!(out, "no GUID partition table"),
            Self::Damaged => write!(out, "both copies of the partition table are damaged"),
            Self::TooLarge => write!(out, "the partition table is too large"),
            Self::OutOfRange(number) => write!(out, "partition {number} lies outside the disk's usable blocks"),
            Self::Overlap(one, other) => write!(out, "partitions {one} and {other} overlap"),
        }
    }
}

/// What a [`Scan`] wants next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Read `sectors` sectors (at most [`READ_SECTORS_MAX`]) from `sector` and give them to [`Scan::supply`].
    Read {
        /// The first, in 512 bytes.
        sector: u64,
        /// How many.
        sectors: u32,
    },
    /// The answer. It stays the same.
    Done(Result<Vec<Partition>, Error>),
}

/// Which of the two tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Primary,
    Backup,
}

enum Stage {
    /// Logical blocks 0 (the protective MBR) and 1 (the primary header) are wanted.
    PrimaryHeader,
    /// The last logical block is wanted.
    BackupHeader,
    /// The entries that `header` tells of are wanted; some may be there already.
    Entries {
        place: Place,
        header: Header,
    },
    Done(Result<Vec<Partition>, Error>),
}

/// Reads a disk's partition table, a step at a time.
pub struct Scan {
    /// Logical blocks of the disk.
    blocks: u64,
    block_bytes: u32,
    stage: Stage,
    entries: Vec<u8>,
}

impl Scan {
    /// A scan of a disk of `sectors` sectors of 512 bytes with logical blocks of `logical_block_bytes`.
    pub fn new(sectors: u64, logical_block_bytes: u32) -> Self {
        // Up to the largest block whose pair still fits into one read.
        let plausible = logical_block_bytes.is_power_of_two()
            && (SECTOR_BYTES..=READ_SECTORS_MAX / 2 * SECTOR_BYTES).contains(&logical_block_bytes);
        let block_bytes = if plausible { logical_block_bytes } else { SECTOR_BYTES };
        let blocks = sectors / u64::from(block_bytes / SECTOR_BYTES);
        let stage = if plausible && blocks >= 6 { Stage::PrimaryHeader } else { Stage::Done(Err(Error::Unreadable)) };
        Self { blocks, block_bytes, stage, entries: Vec::new() }
    }

    /// What to do next.
    pub fn next(&self) -> Step {
        match &self.stage {
            Stage::PrimaryHeader => self.read(0, u64::from(self.block_bytes) * 2),
            Stage::BackupHeader => self.read((self.blocks - 1) * self.block_sectors(), self.block_bytes.into()),
            Stage::Entries { header, .. } => {
                let done_sectors = self.entries.len() as u64 / u64::from(SECTOR_BYTES);
                let first = header.entries_block() * self.block_sectors();
                self.read(first + done_sectors, header.entries_bytes() - self.entries.len() as u64)
            }
            Stage::Done(result) => Step::Done(result.clone()),
        }
    }

    /// Takes the sectors of the last [`Step::Read`]. Fewer than asked for count as unreadable.
    pub fn supply(&mut self, bytes: &[u8]) {
        let Step::Read { sectors, .. } = self.next() else { return };
        let Some(bytes) = bytes.get(..sectors as usize * SECTOR_BYTES as usize) else { return self.fail() };
        let stage = core::mem::replace(&mut self.stage, Stage::Done(Err(Error::Unreadable)));
        self.stage = match stage {
            Stage::PrimaryHeader => self.primary_header(bytes),
            Stage::BackupHeader => self.header(Place::Backup, bytes),
            Stage::Entries { place, header } => self.entries(place, header, bytes),
            Stage::Done(result) => Stage::Done(result),
        };
    }

    /// Says that the last [`Step::Read`] failed.
    pub fn fail(&mut self) {
        self.stage = match &self.stage {
            Stage::PrimaryHeader => Stage::BackupHeader,
            Stage::Entries { place, .. } => {
                let place = *place;
                self.damaged(place)
            }
            Stage::BackupHeader => Stage::Done(Err(Error::Unreadable)),
            Stage::Done(_) => return,
        };
    }

    fn block_sectors(&self) -> u64 {
        u64::from(self.block_bytes / SECTOR_BYTES)
    }

    fn read(&self, sector: u64, bytes: u64) -> Step {
        let sectors = bytes.div_ceil(u64::from(SECTOR_BYTES)).min(READ_SECTORS_MAX.into());
        // At most `READ_SECTORS_MAX`, so it fits.
        Step::Read { sector, sectors: sectors as u32 }
    }

    fn primary_header(&mut self, bytes: &[u8]) -> Stage {
        let (mbr, header) = bytes.split_at(self.block_bytes as usize);
        // Without it the disk was repartitioned by something that knows no GPT, and a table found would be a stale one.
        if !table::is_protective_mbr(mbr) {
            return Stage::Done(Err(Error::NotGpt));
        }
        self.header(Place::Primary, header)
    }

    fn header(&mut self, place: Place, bytes: &[u8]) -> Stage {
        let block = match place {
            Place::Primary => 1,
            Place::Backup => self.blocks - 1,
        };
        match Header::parse(bytes, block, self.blocks) {
            Ok(header) => Stage::Entries { place, header },
            Err(Error::Damaged) => self.damaged(place),
            Err(error) => Stage::Done(Err(error)),
        }
    }

    /// Where a damaged copy leads.
    fn damaged(&mut self, place: Place) -> Stage {
        self.entries.clear();
        match place {
            Place::Primary => Stage::BackupHeader,
            Place::Backup => Stage::Done(Err(Error::Damaged)),
        }
    }

    fn entries(&mut self, place: Place, header: Header, bytes: &[u8]) -> Stage {
        self.entries.extend_from_slice(bytes);
        if (self.entries.len() as u64) < header.entries_bytes() {
            return Stage::Entries { place, header };
        }
        let mut entries = core::mem::take(&mut self.entries);
        entries.truncate(header.entries_bytes() as usize);
        if !header.entries_are_intact(&entries) {
            return self.damaged(place);
        }
        Stage::Done(header.partitions(&entries, self.block_sectors()))
    }
}

#[cfg(test)]
mod tests;
