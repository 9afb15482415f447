//! Blocks on their way to and from a host disk: requests, completions, partitions and their queueing.
//!
//! The main types are [`Disk`], the seam a disk driver implements, and [`Datastore`], which turns a disk with a GUID
//! partition table into virtual disks for VMs. `machine` and the kernel submit [`Transfer`]s here; drivers sit below.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod catalog;
mod datastore;
pub mod gpt;
mod load;
mod pieces;

pub use catalog::{Catalog, FindError, Place};
pub use datastore::{ClaimError, Completion, Datastore, ReleaseError, VirtualDisk};
pub use load::{Load, Order, Pattern, Rate, Read};

use addr::Hpa;
use alloc::string::String;

/// Bytes in the unit in which [`Transfer::sector`] and all sector counts here are given, whatever the disk's blocks.
pub const SECTOR_BYTES: u32 = 512;

/// What a transfer does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
    /// Memory to disk, durable when it completes.
    WriteThrough,
    /// Makes every write that completed before it durable. No sectors, no runs.
    Flush,
    /// The sectors' contents are no longer needed. No runs.
    Discard,
    /// The sectors read as zeroes from now on. No runs.
    WriteZeroes,
}

/// A run of host-physical bytes that a device may reach by DMA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostRun {
    /// Its first byte.
    pub start: Hpa,
    /// Its length; never 0 in a transfer that a [`Disk`] sees.
    pub bytes: u32,
}

/// One request to a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer<'a> {
    /// The submitter's name for it, given back on completion.
    pub id: u64,
    /// What to do.
    pub op: Op,
    /// The first sector, in [`SECTOR_BYTES`]; 0 for a flush.
    pub sector: u64,
    /// How many sectors; 0 for a flush.
    pub sectors: u32,
    /// The memory of a read or write, in order: exactly `sectors` sectors long. It must stay in place, and the device
    /// may touch it, until the completion. Empty for the other operations.
    pub runs: &'a [HostRun],
}

/// Why a transfer was not taken. Nothing was started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubmitError {
    /// No room now: try again after a completion.
    Full,
    /// It can never be done: outside the disk, of the wrong shape, a write to a read-only disk, an operation that the
    /// disk lacks, or a disk that has failed for good.
    Refused,
}

/// Why a transfer that was taken did not succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoError {
    /// The device reported an error, or has failed as a whole.
    Device,
    /// The device does not do this operation.
    Unsupported,
    /// The device does not have these sectors.
    OutOfRange,
    /// It was withdrawn by [`Datastore::cancel`] before all of it had reached the disk.
    Cancelled,
}

/// How a transfer ended.
pub type Outcome = Result<(), IoError>;

/// A disk's size, limits and abilities.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Size in [`SECTOR_BYTES`].
    pub sectors: u64,
    /// The unit of addressing, in bytes: transfers start and end on a multiple of it. A power of two, at least 512.
    pub logical_block_bytes: u32,
    /// The unit that the medium writes at once, in bytes: smaller writes are slower.
    pub physical_block_bytes: u32,
    /// Whether writes, discards and zeroing are refused.
    pub read_only: bool,
    /// Whether it has a volatile write cache and so does [`Op::Flush`]. Without, every completed write is durable.
    pub flush: bool,
    /// Whether it has a cache and does [`Op::WriteThrough`].
    pub write_through: bool,
    /// Whether it does [`Op::Discard`].
    pub discard: bool,
    /// Whether it does [`Op::WriteZeroes`].
    pub write_zeroes: bool,
    /// The most sectors in one discard.
    pub max_discard_sectors: u32,
    /// The most sectors in one zeroing.
    pub max_write_zeroes_sectors: u32,
    /// What the addresses and lengths of runs are multiples of; a power of two, 1 where any will do. A disk that has
    /// this rule or the next also takes a transfer of one logical block that breaks them, in any number of runs.
    pub run_alignment_bytes: u32,
    /// What all runs but the first start on, and all but the last end on, a multiple of; a power of two, 1 where any will
    /// do.
    pub run_boundary_bytes: u32,
    /// The most runs in one transfer.
    pub max_runs: u16,
    /// The most bytes in one run.
    pub max_run_bytes: u32,
    /// The most bytes in one transfer.
    pub max_transfer_bytes: u32,
    /// About how many transfers it takes before it answers [`SubmitError::Full`].
    pub queue_depth: u16,
    /// The device's serial number; empty where it has none.
    pub serial: String,
    /// What and where the device is, for people: "virtio-blk at 00:04.0".
    pub name: String,
}

impl Geometry {
    /// [`SECTOR_BYTES`] units in one logical block; at least 1.
    pub fn sectors_per_block(&self) -> u32 {
        (self.logical_block_bytes / SECTOR_BYTES).max(1)
    }

    /// Whether the disk can do this at all. A [`Datastore`] asks for nothing else; a driver looks once more before DMA.
    pub fn allows(&self, transfer: &Transfer<'_>) -> bool {
        let inside = transfer.sector.checked_add(transfer.sectors.into()).is_some_and(|end| end <= self.sectors);
        let block_sectors = self.sectors_per_block();
        let whole =
            transfer.sector.is_multiple_of(block_sectors.into()) && transfer.sectors.is_multiple_of(block_sectors);
        let bytes: u64 = transfer.runs.iter().map(|run| u64::from(run.bytes)).sum();
        let has_rules = self.run_alignment_bytes > 1 || self.run_boundary_bytes > 1;
        let described = bytes > 0
            && bytes == u64::from(transfer.sectors) * u64::from(SECTOR_BYTES)
            && bytes <= self.max_transfer_bytes.into()
            && transfer.runs.iter().all(|run| run.bytes > 0)
            && (self.admits_runs(transfer.runs) || has_rules && transfer.sectors == block_sectors);
        let dataless = |sectors_max: u32| {
            transfer.runs.is_empty() && inside && whole && (1..=sectors_max).contains(&transfer.sectors)
        };
        match transfer.op {
            Op::Read => inside && whole && described,
            Op::Write => inside && whole && described && !self.read_only,
            Op::WriteThrough => inside && whole && described && !self.read_only && self.write_through,
            Op::Flush => self.flush && transfer.runs.is_empty(),
            Op::Discard => self.discard && !self.read_only && dataless(self.max_discard_sectors),
            Op::WriteZeroes => self.write_zeroes && !self.read_only && dataless(self.max_write_zeroes_sectors),
        }
    }
}

/// Whether a disk can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// It can.
    Ready,
    /// The driver is resetting the device; what it has waits.
    Recovering,
    /// It is gone or stays broken: every transfer fails.
    Failed,
}

/// A host disk, as its driver shows it.
///
/// Transfers complete in any order. No method blocks.
pub trait Disk: Send {
    /// The disk's size and limits; constant.
    fn geometry(&self) -> &Geometry;

    /// Puts a transfer into the device's queue. The device may not look at it before [`Disk::kick`].
    fn submit(&mut self, transfer: &Transfer<'_>) -> Result<(), SubmitError>;

    /// Tells the device of everything submitted since the last call.
    fn kick(&mut self);

    /// The next completion: the transfer's id and how it ended. `None` also arms the completion interrupt, so a caller
    /// that has seen `None` may wait for it.
    fn completed(&mut self) -> Option<(u64, Outcome)>;

    /// Withdraws a level-triggered interrupt where the device needs it; nothing with MSI-X.
    fn acknowledge_interrupt(&mut self);

    /// Whether completions raise an interrupt. Otherwise the caller polls [`Disk::completed`].
    fn has_interrupt(&self) -> bool;

    /// Has the device's interrupt messages go to `address` from now on, which is that of another processor; what they say
    /// stays. A device that sends none does nothing.
    fn aim_interrupt(&mut self, address: u64) {
        let _ = address;
    }

    /// Lets the driver look after the device: time limits, recovery, and whether it is still there. Returns when it wants
    /// to be called next at the latest; `None` where it never does. Completions may have
    /// come of it that no interrupt announces.
    fn tick(&mut self, now_ns: u64) -> Option<u64> {
        let _ = now_ns;
        None
    }

    /// Whether the disk can be used.
    fn health(&self) -> Health {
        Health::Ready
    }
}

#[cfg(test)]
mod tests;
