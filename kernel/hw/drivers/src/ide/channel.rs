//! A channel: up to two disks, of which one at a time does one command.
//!
//! The main type is [`Channel`]; both disks' drivers share it, and each takes its own disk's ends. What happens when
//! something went wrong is in [`super::recovery`].

use super::Controller;
use super::interface::{Interface, Progress};
use super::ports::Ports;
use super::recovery::Phase;
use super::slots::{Place, SLOTS, Slots, reaches};
use crate::ata::command::{Command, Manner, trim_ranges};
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::{Geometry, HostRun, IoError, Op, Outcome, SubmitError, Transfer};
use virtio_drivers::Hal;

/// Devices on a channel.
pub(super) const UNITS: usize = 2;

/// A transfer in a slot.
#[derive(Clone, Copy)]
pub(super) struct Request {
    id: u64,
    pub command: Command,
    /// How often it was interrupted.
    pub interruptions: u8,
}

/// What the channel has of a disk.
pub(super) struct Unit<H: Hal> {
    /// For messages.
    pub name: String,
    manner: Manner,
    slots: Slots<H>,
    /// By slot.
    pub requests: [Option<Request>; SLOTS as usize],
    ended: VecDeque<(u64, Outcome)>,
    /// The slot whose data goes through the room for copies, and where it is copied to when it was read.
    copied: Option<(u8, Vec<HostRun>)>,
    ranges: Vec<u8>,
    /// Resets for its commands since one succeeded.
    pub resets: u8,
    /// Commands that it has failed.
    errors: u32,
    pub has_failed: bool,
}

/// The command that is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Current {
    pub unit: usize,
    pub slot: u8,
    /// When the clock was first seen since.
    pub since_ns: Option<u64>,
}

/// A channel with its disks.
pub(super) struct Channel<H: Hal, P> {
    pub controller: Arc<Controller>,
    pub interface: Interface<P>,
    pub units: [Option<Unit<H>>; UNITS],
    /// Disks and their slots, oldest first.
    pub waiting: VecDeque<(usize, u8)>,
    pub current: Option<Current>,
    pub phase: Phase,
}

impl<H: Hal> Unit<H> {
    pub(super) fn new(name: String, manner: Manner, slots: Slots<H>) -> Self {
        Self {
            name,
            manner,
            slots,
            requests: [None; SLOTS as usize],
            ended: VecDeque::with_capacity(SLOTS.into()),
            copied: None,
            ranges: Vec::with_capacity(crate::ata::PAGE_BYTES),
            resets: 0,
            errors: 0,
            has_failed: false,
        }
    }

    /// Puts a transfer that the geometry allows into a slot, and gives that.
    fn take(&mut self, transfer: &Transfer<'_>, geometry: &Geometry) -> Result<u8, SubmitError> {
        let free = (0..SLOTS).find(|slot| self.requests[usize::from(*slot)].is_none());
        let slot = free.ok_or(SubmitError::Full)?;
        let block_sectors = geometry.sectors_per_block();
        let command = Command::of(transfer, self.manner, block_sectors, 0);
        let is_direct = geometry.admits_runs(transfer.runs) && reaches(transfer.runs);
        let place = match transfer.op {
            Op::Read | Op::Write | Op::WriteThrough if !is_direct => self.copy(slot, transfer)?,
            Op::Read | Op::Write | Op::WriteThrough => Place::Runs(transfer.runs),
            Op::Flush => Place::Nowhere,
            Op::Discard | Op::WriteZeroes => {
                trim_ranges(transfer, block_sectors, &mut self.ranges);
                Place::Ranges(&self.ranges)
            }
        };
        self.slots.fill(slot, place);
        self.requests[usize::from(slot)] = Some(Request { id: transfer.id, command, interruptions: 0 });
        Ok(slot)
    }

    /// Prepares the room for copies, for one transfer at a time.
    fn copy(&mut self, slot: u8, transfer: &Transfer<'_>) -> Result<Place<'static>, SubmitError> {
        if self.copied.is_some() {
            return Err(SubmitError::Full);
        }
        let is_read = transfer.op == Op::Read;
        if !is_read {
            self.slots.copy_in(transfer.runs);
        }
        self.copied = Some((slot, if is_read { transfer.runs.to_vec() } else { Vec::new() }));
        Ok(Place::Copy { bytes: transfer.sectors * block::SECTOR_BYTES })
    }

    /// Ends the transfer in a slot.
    pub(super) fn finish(&mut self, slot: u8, outcome: Outcome) {
        if let Some((_, runs)) = self.copied.take_if(|(of, _)| *of == slot)
            && outcome.is_ok()
        {
            self.slots.copy_back(&runs);
        }
        if let Some(request) = self.requests[usize::from(slot)].take() {
            self.ended.push_back((request.id, outcome));
        }
    }
}

impl<H: Hal, P: Ports> Channel<H, P> {
    pub(super) fn new(controller: Arc<Controller>, interface: Interface<P>, units: [Option<Unit<H>>; UNITS]) -> Self {
        let waiting = VecDeque::with_capacity(UNITS * usize::from(SLOTS));
        Self { controller, interface, units, waiting, current: None, phase: Phase::Running }
    }

    /// A disk that the channel was made with.
    pub(super) fn unit(&mut self, unit: usize) -> &mut Unit<H> {
        self.units[unit].as_mut().expect("the channel was made with this disk")
    }

    /// Puts a disk's transfer into the line.
    pub(super) fn submit(
        &mut self,
        unit: usize,
        transfer: &Transfer<'_>,
        geometry: &Geometry,
    ) -> Result<(), SubmitError> {
        if self.unit(unit).has_failed || !geometry.allows(transfer) {
            return Err(SubmitError::Refused);
        }
        let slot = self.unit(unit).take(transfer, geometry)?;
        self.waiting.push_back((unit, slot));
        Ok(())
    }

    /// Starts the first in line, where nothing is under way.
    pub(super) fn issue(&mut self) {
        if self.phase != Phase::Running || self.current.is_some() {
            return;
        }
        let Some((number, slot)) = self.waiting.pop_front() else { return };
        let unit = self.units[number].as_mut().expect("only disks that are there wait");
        let Some(Request { command, .. }) = unit.requests[usize::from(slot)] else { return };
        self.current = Some(Current { unit: number, slot, since_ns: None });
        let (table, is_wide) = (unit.slots.table(slot), unit.manner != Manner::Dma28);
        self.interface.select(number);
        if !self.interface.is_ready() {
            return self.begin_reset("it does not take a command");
        }
        self.interface.prepare(table, command.data);
        self.interface.issue(number, &command, is_wide);
        if command.data != crate::ata::command::Data::None {
            self.interface.start(command.data);
        }
    }

    /// The next transfer of a disk that ended. The other disk's are left to it: its caller is not asked.
    pub(super) fn completed(&mut self, unit: usize) -> Option<(u64, Outcome)> {
        if self.unit(unit).ended.is_empty() {
            self.look(unit);
        }
        self.unit(unit).ended.pop_front()
    }

    /// Looks whether the disk's command has ended, and starts the next then.
    pub(super) fn look(&mut self, unit: usize) {
        if self.controller.has_failed() {
            return self.fail("its controller has failed");
        }
        let of_unit = self.current.filter(|current| current.unit == unit && self.phase == Phase::Running);
        let Some(Current { slot, .. }) = of_unit else { return };
        let Some(request) = self.unit(unit).requests[usize::from(slot)] else { return };
        match self.interface.progress(request.command.data) {
            Progress::UnderWay => return,
            Progress::Gone => return self.fail("its controller is gone"),
            Progress::Broken(why) => return self.begin_reset(why),
            Progress::Done => self.end_current(Ok(())),
            Progress::Failed(error) => {
                self.note_error(unit, request.command.opcode, error);
                self.end_current(Err(IoError::Device));
            }
        }
        self.issue();
    }

    fn end_current(&mut self, outcome: Outcome) {
        let Some(Current { unit, slot, .. }) = self.current.take() else { return };
        let unit = self.unit(unit);
        unit.resets = 0;
        unit.finish(slot, outcome);
    }

    /// Tells of the first failures, and of ever fewer after.
    fn note_error(&mut self, unit: usize, opcode: u8, error: u8) {
        let unit = self.unit(unit);
        unit.errors = unit.errors.saturating_add(1);
        if unit.errors.is_power_of_two() {
            let (name, errors) = (&unit.name, unit.errors);
            log::warn!("{name}: command {opcode:#04x} failed, error {error:#04x} ({errors} so far)");
        }
    }
}
