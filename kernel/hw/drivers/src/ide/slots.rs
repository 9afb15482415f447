//! A disk's memory: a table for each of its transfers (Bus Master IDE 1.0, section 1.2), and room for copies.
//!
//! The main type is [`Slots`]. Data goes straight to and from the runs of a transfer, unless an entry cannot describe
//! them: what lies above 4 GiB, or starts or ends at an odd byte, goes through the room for copies.
#![expect(unsafe_code, reason = "copies what no entry can describe")]

use crate::ata::PAGE_BYTES;
use crate::dma::DmaMemory;
use block::HostRun;
use virtio_drivers::Hal;

/// Transfers that a disk takes. The channel does one at a time; the others are ready when it ends.
pub(super) const SLOTS: u8 = 8;
/// Runs of a transfer.
pub(super) const RUNS_MAX: u16 = 128;
/// The most that a transfer moves, and so the room for copies: enough that a command itself costs little.
pub(super) const TRANSFER_BYTES_MAX: u32 = 256 << 10;

/// A table is a page, so that it does not cross 64 KiB: entries, then a discard's ranges.
const TABLE_BYTES: usize = 4096;
const ENTRY_BYTES: usize = 8;
const RANGES_AT: usize = TABLE_BYTES - PAGE_BYTES;
const ENTRIES_MAX: usize = RANGES_AT / ENTRY_BYTES;
/// No entry crosses a multiple of this, and a length of this is written as 0.
const BOUNDARY_BYTES: u64 = 64 << 10;
/// In an entry: it is the last.
const END_OF_TABLE: u32 = 1 << 31;
/// Addresses have 32 bits.
const REACH_END: u64 = 1 << 32;

// A run has two entries more than it has whole stretches between boundaries, at most.
const _: () = assert!((TRANSFER_BYTES_MAX as u64 / BOUNDARY_BYTES) as usize + 2 * RUNS_MAX as usize <= ENTRIES_MAX);

/// Where a transfer's data is.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// It has none.
    Nowhere,
    /// In its runs.
    Runs(&'a [HostRun]),
    /// In its slot: these ranges, a discard's.
    Ranges(&'a [u8]),
    /// In the room for copies: so many bytes.
    Copy { bytes: u32 },
}

/// The memory of a disk.
pub(super) struct Slots<H: Hal> {
    memory: DmaMemory<H>,
}

impl<H: Hal> Slots<H> {
    /// Memory in reach; `None` where there is none.
    pub(super) fn new() -> Option<Self> {
        let bytes = usize::from(SLOTS) * TABLE_BYTES + TRANSFER_BYTES_MAX as usize;
        let memory = DmaMemory::new(bytes)?;
        (memory.physical(bytes) <= REACH_END).then_some(Self { memory })
    }

    /// The bus master's address of a slot's table.
    pub(super) fn table(&self, slot: u8) -> u32 {
        // In reach, as `new` saw.
        self.memory.physical(usize::from(slot) * TABLE_BYTES) as u32
    }

    /// Writes the table of a slot that the bus master does not have.
    pub(super) fn fill(&mut self, slot: u8, place: Place<'_>) {
        let table = usize::from(slot) * TABLE_BYTES;
        match place {
            Place::Nowhere => {}
            Place::Runs(runs) => {
                self.write_entries(table, runs.iter().map(|run| (run.start.as_u64(), run.bytes.into())));
            }
            Place::Ranges(ranges) => {
                self.memory.copy_from(table + RANGES_AT, &ranges[..PAGE_BYTES]);
                self.write_entries(table, [(self.memory.physical(table + RANGES_AT), PAGE_BYTES as u64)].into_iter());
            }
            Place::Copy { bytes } => {
                self.write_entries(table, [(self.memory.physical(COPIES_AT), bytes.into())].into_iter());
            }
        }
    }

    /// Copies data into the room for copies.
    pub(super) fn copy_in(&mut self, runs: &[HostRun]) {
        // SAFETY: the runs are a transfer's, whose memory stays and is readable until it ends. Their sum is at most that
        // of a transfer, which the geometry checked and the room holds.
        unsafe { self.memory.copy_from_runs(COPIES_AT, runs) };
    }

    /// Copies data out of it.
    pub(super) fn copy_back(&self, runs: &[HostRun]) {
        // SAFETY: the runs are those of a read that has not been reported as ended, so its memory is still its own.
        unsafe { self.memory.copy_to_runs(COPIES_AT, runs) };
    }

    /// Writes entries for stretches of memory (address and length), all in reach.
    fn write_entries(&mut self, table: usize, stretches: impl Iterator<Item = (u64, u64)>) {
        let mut entries = 0;
        for (mut start, mut bytes) in stretches {
            while bytes > 0 {
                let taken = bytes.min(BOUNDARY_BYTES - start % BOUNDARY_BYTES);
                assert!(entries < ENTRIES_MAX, "the geometry says how much a transfer has");
                let at = table + entries * ENTRY_BYTES;
                self.memory.store(at, start as u32);
                self.memory.store(at + 4, taken as u32 & 0xffff);
                (start, bytes, entries) = (start + taken, bytes - taken, entries + 1);
            }
        }
        let last = table + (entries - 1) * ENTRY_BYTES + 4;
        let bytes: u32 = self.memory.load(last);
        self.memory.store(last, bytes | END_OF_TABLE);
    }
}

/// Where the room for copies is: behind the tables.
const COPIES_AT: usize = SLOTS as usize * TABLE_BYTES;

/// Whether the bus master reaches all of the runs.
pub(super) fn reaches(runs: &[HostRun]) -> bool {
    let mut ends = runs.iter().map(|run| run.start.as_u64().checked_add(run.bytes.into()));
    ends.all(|end| end.is_some_and(|end| end <= REACH_END))
}
