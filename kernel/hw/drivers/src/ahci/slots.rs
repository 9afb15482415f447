//! A port's memory: command list, command tables and received frames (AHCI 1.3.1, section 4).
//!
//! The main type is [`Slots`]. Each slot's table is a page of its own: the frame, the runs of memory, and the ranges of
//! a discard; so no command allocates, and data goes straight to and from the runs. Only a block in runs that no entry
//! can describe goes through the one page for copies.
#![expect(unsafe_code, reason = "copies blocks that no entry can describe")]

use crate::ata::PAGE_BYTES;
use crate::ata::command::{Command, Data};
use crate::dma::DmaMemory;
use alloc::vec::Vec;
use block::HostRun;
use virtio_drivers::Hal;

/// Slots of a port at most.
pub(super) const SLOTS_MAX: u8 = 32;
/// Runs of a command, so that a table is a page with the ranges.
pub(super) const RUNS_MAX: u16 = 216;
/// The most that one entry describes (section 4.2.3.3): an even number of bytes.
pub(super) const RUN_BYTES_MAX: u32 = 4 << 20;

/// The first page: 32 headers, the received frames (section 4.2.1), and the data of the driver's own commands.
const HEADER_BYTES: usize = 32;
const FRAMES_AT: usize = 0x400;
const OWN_DATA_AT: usize = 0x600;
/// The pages after it, one a slot and one for the driver's own commands: frame, entries from 80h, ranges. After those, a
/// page for copies.
const TABLE_BYTES: usize = 4096;
const ENTRIES_AT: usize = 0x80;
const ENTRY_BYTES: usize = 16;
const RANGES_AT: usize = TABLE_BYTES - PAGE_BYTES;

/// A frame of registers from host to device (Serial ATA 3.1, section 10.5.5): type, "this is a command", doublewords.
const FRAME_REGISTERS: u8 = 0x27;
const FRAME_IS_COMMAND: u8 = 1 << 7;
const FRAME_DOUBLEWORDS: u32 = 5;
/// In a header: the data goes to the device.
const HEADER_WRITE: u32 = 1 << 6;

/// Where a command's data is.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// It has none.
    Nowhere,
    /// In the runs of a transfer.
    Runs(&'a [HostRun]),
    /// In the page of ranges of its slot: these, a discard's.
    Ranges(&'a [u8]),
    /// In the page for copies: so many bytes.
    Copy { bytes: u32 },
}

/// The memory of a port.
pub(super) struct Slots<H: Hal> {
    memory: DmaMemory<H>,
    slots: u8,
    /// The first doubleword of slot 0's header while one of the driver's own commands has that slot.
    kept: Option<u32>,
}

impl<H: Hal> Slots<H> {
    /// Memory for so many slots; `None` where there is none.
    pub(super) fn new(slots: u8) -> Option<Self> {
        Some(Self { memory: DmaMemory::new((3 + usize::from(slots)) * TABLE_BYTES)?, slots, kept: None })
    }

    /// How many slots there are.
    pub(super) fn count(&self) -> u8 {
        self.slots
    }

    /// The device's addresses of the command list and of the place for frames.
    pub(super) fn addresses(&self) -> (u64, u64) {
        (self.memory.physical(0), self.memory.physical(FRAMES_AT))
    }

    /// The end of the memory, for controllers that do not reach everywhere.
    pub(super) fn end(&self) -> u64 {
        self.memory.physical((3 + usize::from(self.slots)) * TABLE_BYTES)
    }

    /// Writes a command into a slot that the device does not have.
    pub(super) fn fill(&mut self, slot: u8, command: &Command, place: Place<'_>) {
        let table = (1 + usize::from(slot)) * TABLE_BYTES;
        self.memory.copy_from(table, &frame(command));
        let entries = match place {
            Place::Nowhere => 0,
            Place::Runs(runs) => {
                assert!(runs.len() <= usize::from(RUNS_MAX), "the geometry says how many runs a command takes");
                for (index, run) in runs.iter().enumerate() {
                    self.write_entry(table, index, run.start.as_u64(), run.bytes);
                }
                runs.len()
            }
            Place::Ranges(ranges) => {
                self.memory.copy_from(table + RANGES_AT, &ranges[..PAGE_BYTES]);
                self.write_entry(table, 0, self.memory.physical(table + RANGES_AT), PAGE_BYTES as u32);
                1
            }
            Place::Copy { bytes } => {
                self.write_entry(table, 0, self.memory.physical(self.copies_at()), bytes);
                1
            }
        };
        let first = first_of_header(command, entries as u32);
        match &mut self.kept {
            Some(kept) if slot == 0 => *kept = first,
            _ => self.write_header(slot, first, table),
        }
    }

    /// Copies a block's data into the page for copies.
    pub(super) fn copy_in(&mut self, runs: &[HostRun]) {
        // SAFETY: the runs are a transfer's, whose memory stays and is readable until it ends. Their sum is a block, which
        // the geometry checked and the page holds.
        unsafe { self.memory.copy_from_runs(self.copies_at(), runs) };
    }

    /// Copies a block's data out of it.
    pub(super) fn copy_back(&self, runs: &[HostRun]) {
        // SAFETY: the runs are those of a read that has not been reported as ended, so its memory is still its own.
        unsafe { self.memory.copy_to_runs(self.copies_at(), runs) };
    }

    fn copies_at(&self) -> usize {
        (2 + usize::from(self.slots)) * TABLE_BYTES
    }

    /// Makes a slot ready for the same command again.
    pub(super) fn refill(&mut self, slot: u8) {
        self.memory.store(usize::from(slot) * HEADER_BYTES + 4, 0_u32);
    }

    /// Puts one of the driver's own commands, which brings a page, into slot 0. What was there comes back by
    /// [`Slots::take_own`].
    pub(super) fn fill_own(&mut self, command: &Command) {
        let table = (1 + usize::from(self.slots)) * TABLE_BYTES;
        let own_data = self.memory.physical(OWN_DATA_AT);
        self.memory.copy_from(OWN_DATA_AT, &[0; PAGE_BYTES]);
        self.memory.copy_from(table, &frame(command));
        self.write_entry(table, 0, own_data, PAGE_BYTES as u32);
        self.kept.get_or_insert(self.memory.load(0));
        self.write_header(0, first_of_header(command, 1), table);
    }

    /// Takes the driver's own command out of slot 0, and gives the page that it brought.
    pub(super) fn take_own(&mut self) -> [u8; PAGE_BYTES] {
        if let Some(kept) = self.kept.take() {
            self.write_header(0, kept, TABLE_BYTES);
        }
        let mut bytes = Vec::with_capacity(PAGE_BYTES);
        self.memory.append_to(OWN_DATA_AT, PAGE_BYTES, &mut bytes);
        let mut page = [0; PAGE_BYTES];
        page.copy_from_slice(&bytes);
        page
    }

    /// A command header (section 4.2.2): flags, bytes moved so far, the table.
    fn write_header(&mut self, slot: u8, first: u32, table: usize) {
        let at = usize::from(slot) * HEADER_BYTES;
        let address = self.memory.physical(table);
        self.memory.store(at, first);
        self.memory.store(at + 4, 0_u32);
        self.memory.store(at + 8, address as u32);
        self.memory.store(at + 12, (address >> 32) as u32);
    }

    /// An entry of the table (section 4.2.3.3): address, and the number of bytes less one.
    fn write_entry(&mut self, table: usize, index: usize, address: u64, bytes: u32) {
        let at = table + ENTRIES_AT + index * ENTRY_BYTES;
        self.memory.store(at, address as u32);
        self.memory.store(at + 4, (address >> 32) as u32);
        self.memory.store(at + 12, bytes.wrapping_sub(1));
    }
}

fn first_of_header(command: &Command, entries: u32) -> u32 {
    let write = if command.data == Data::Out { HEADER_WRITE } else { 0 };
    entries << 16 | write | FRAME_DOUBLEWORDS
}

fn frame(command: &Command) -> [u8; 20] {
    let (lba, features, count) =
        (command.lba.to_le_bytes(), command.features.to_le_bytes(), command.count.to_le_bytes());
    let mut frame = [0; 20];
    frame[..4].copy_from_slice(&[FRAME_REGISTERS, FRAME_IS_COMMAND, command.opcode, features[0]]);
    frame[4..8].copy_from_slice(&[lba[0], lba[1], lba[2], command.device]);
    frame[8..12].copy_from_slice(&[lba[3], lba[4], lba[5], features[1]]);
    frame[12..14].copy_from_slice(&count);
    frame
}
