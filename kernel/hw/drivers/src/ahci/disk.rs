//! A disk on an AHCI port.
//!
//! The main type is [`AhciDisk`], a [`Disk`]: it puts transfers into the port's slots, hands them over in an order that
//! keeps queued and other commands apart, and takes what is done. What it does when something went wrong is in
//! [`super::recovery`].

use super::Controller;
use super::port::{Events, Port};
use super::recovery::{Cause, Phase};
use super::slots::{Place, SLOTS_MAX, Slots};
use crate::ata::command::{Command, Manner, manner, trim_ranges};
use crate::ata::identify::Identity;
use crate::mmio::Words;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::{Disk, Geometry, Health, HostRun, IoError, Op, Outcome, SubmitError, Transfer};
use virtio_drivers::Hal;

/// How long the device may take for a command. A disk that reads a bad sector over and over takes seconds.
const COMMAND_NS: u64 = 15_000_000_000;
/// How often it is looked whether a command takes too long.
const WATCH_NS: u64 = 1_000_000_000;

/// A transfer in a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    id: u64,
    queued: bool,
    /// Whether it is given to the device with no other: one of several failed, and it is not known which.
    pub alone: bool,
    /// How often it was interrupted by others' or the link's failure.
    pub interruptions: u8,
    /// When it was first seen with the device.
    since_ns: Option<u64>,
}

/// A disk, ready.
pub(super) struct AhciDisk<H: Hal, W> {
    pub(super) controller: Arc<Controller>,
    pub(super) port: Port<W>,
    pub(super) slots: Slots<H>,
    pub(super) identity: Identity,
    geometry: Geometry,
    manner: Manner,
    has_interrupt: bool,
    /// By slot.
    requests: [Option<Request>; SLOTS_MAX as usize],
    /// Slots that are filled and not handed over, oldest first.
    waiting: VecDeque<u8>,
    /// Slots that the device has; all are of one kind.
    pub(super) in_flight: u32,
    pub(super) in_flight_queued: bool,
    ended: VecDeque<(u64, Outcome)>,
    /// Whether everything was taken that the port had reported when it was last looked at.
    is_drained: bool,
    pub(super) phase: Phase,
    /// Resets since the last command that succeeded.
    pub(super) resets: u8,
    /// Commands that the device has failed.
    pub(super) errors: u32,
    ranges: Vec<u8>,
    /// The slot whose data goes through the page for copies, and where it is copied to when it was read.
    copied: Option<(u8, Vec<HostRun>)>,
}

impl<H: Hal, W: Words> AhciDisk<H, W> {
    /// The disk that has told `identity`, on a port that was started. `queues`: the controller does NCQ.
    pub(super) fn new(
        controller: Arc<Controller>,
        port: Port<W>,
        slots: Slots<H>,
        identity: Identity,
        queues: bool,
    ) -> Self {
        let manner = manner(&identity, queues);
        // A queued command's slot is its tag.
        let depth = if manner == Manner::Queued { slots.count().min(identity.queue_depth) } else { slots.count() };
        let place = alloc::format!("{} port {}", controller.name, port.number());
        let geometry = identity.geometry(&place, super::slots::RUNS_MAX, super::slots::RUN_BYTES_MAX, depth.into());
        Self {
            controller,
            port,
            slots,
            identity,
            geometry,
            manner,
            has_interrupt: false,
            requests: [None; SLOTS_MAX as usize],
            waiting: VecDeque::with_capacity(SLOTS_MAX.into()),
            in_flight: 0,
            in_flight_queued: false,
            ended: VecDeque::with_capacity(SLOTS_MAX.into()),
            is_drained: false,
            phase: Phase::Running,
            resets: 0,
            errors: 0,
            ranges: Vec::with_capacity(crate::ata::PAGE_BYTES),
            copied: None,
        }
    }

    /// Says that the controller's interrupts arrive.
    pub(super) fn use_interrupts(&mut self) {
        self.has_interrupt = true;
        self.port.set_interrupts(true);
    }

    /// Its name in messages.
    pub(super) fn name(&self) -> &str {
        &self.geometry.name
    }

    fn free_slot(&self) -> Option<u8> {
        // Below 32, so it fits.
        (0..self.geometry.queue_depth as u8).find(|slot| self.requests[usize::from(*slot)].is_none())
    }

    /// Hands over what waits, as far as it may be under way together: commands that are queued and commands that are
    /// not exclude each other (section 1.6.9), and those first in line go first.
    pub(super) fn issue(&mut self) {
        if self.phase != Phase::Running {
            return;
        }
        let mut batch = 0;
        while let Some(&slot) = self.waiting.front() {
            let Some(request) = self.requests[usize::from(slot)] else { break };
            let joins = self.in_flight_queued == request.queued && !request.alone && !self.has_loner();
            if self.in_flight != 0 && !joins {
                break;
            }
            self.waiting.pop_front();
            self.in_flight |= 1 << slot;
            self.in_flight_queued = request.queued;
            batch |= 1 << slot;
        }
        if batch != 0 {
            self.port.issue(batch, self.in_flight_queued);
        }
    }

    fn has_loner(&self) -> bool {
        bits(self.in_flight).any(|slot| self.requests[usize::from(slot)].is_some_and(|request| request.alone))
    }

    /// Looks at the port; returns whether transfers have ended.
    fn look(&mut self) -> bool {
        if self.controller.has_failed() {
            self.fail("its controller has failed");
        }
        match self.phase {
            Phase::Running => {
                let events = self.port.take_events();
                self.take_done(events);
            }
            Phase::Failed => {}
            _ => {
                self.recover(None);
            }
        }
        !self.ended.is_empty()
    }

    /// Books what the device has done, and begins to recover where something went wrong.
    fn take_done(&mut self, events: Events) {
        if events.gone {
            self.controller.cut_off("its registers are gone");
            return self.fail("its controller is gone");
        }
        let cause = Cause::of(events, self.in_flight_queued);
        // The command that failed may have left the list as one that is done does.
        let failed = if cause == Some(Cause::Command) { 1 << self.port.current_slot() } else { 0 };
        let may_be_done = if events.done && self.in_flight != 0 { self.in_flight & !failed } else { 0 };
        let done = if may_be_done != 0 { may_be_done & !self.port.active(self.in_flight_queued) } else { 0 };
        bits(done).for_each(|slot| self.finish(slot, Ok(())));
        if let Some(cause) = cause {
            return self.begin_recovery(cause);
        }
        if done != 0 {
            self.resets = 0;
            self.issue();
        }
    }

    /// Ends the transfer in a slot.
    pub(super) fn finish(&mut self, slot: u8, outcome: Outcome) {
        self.in_flight &= !(1 << slot);
        if let Some((_, runs)) = self.copied.take_if(|(of, _)| *of == slot)
            && outcome.is_ok()
        {
            self.slots.copy_back(&runs);
        }
        if let Some(request) = self.requests[usize::from(slot)].take() {
            self.ended.push_back((request.id, outcome));
        }
    }

    /// Prepares the page for copies for a block in runs that no entry can describe.
    fn copy(&mut self, slot: u8, transfer: &Transfer<'_>) -> Result<Place<'static>, SubmitError> {
        if self.copied.is_some() {
            return Err(SubmitError::Full);
        }
        let is_read = transfer.op == Op::Read;
        if !is_read {
            self.slots.copy_in(transfer.runs);
        }
        self.copied = Some((slot, if is_read { transfer.runs.to_vec() } else { Vec::new() }));
        Ok(Place::Copy { bytes: self.geometry.logical_block_bytes })
    }

    /// Puts what the device had back into the line, at its front; `alone` where one of them is to blame.
    pub(super) fn requeue(&mut self, alone: bool) {
        for slot in bits(core::mem::take(&mut self.in_flight)).rev() {
            if let Some(request) = &mut self.requests[usize::from(slot)] {
                request.alone = alone;
                request.interruptions += 1;
                request.since_ns = None;
            }
            self.slots.refill(slot);
            self.waiting.push_front(slot);
        }
    }

    /// The transfer in a slot.
    pub(super) fn request(&self, slot: u8) -> Option<&Request> {
        self.requests[usize::from(slot)].as_ref()
    }

    /// Ends all transfers: the device touches no memory any more.
    pub(super) fn abandon(&mut self) {
        self.waiting.clear();
        (0..SLOTS_MAX).for_each(|slot| self.finish(slot, Err(IoError::Device)));
    }

    /// Watches how long commands take; returns whether one takes too long.
    fn is_overdue(&mut self, now_ns: u64) -> bool {
        let requests = &mut self.requests;
        bits(self.in_flight).any(|slot| {
            let since_ns = requests[usize::from(slot)].as_mut().map(|request| *request.since_ns.get_or_insert(now_ns));
            since_ns.is_some_and(|since_ns| now_ns.saturating_sub(since_ns) > COMMAND_NS)
        })
    }
}

/// The numbers of the bits that are set, in order.
pub(super) fn bits(mask: u32) -> impl DoubleEndedIterator<Item = u8> {
    (0..32).filter(move |bit| mask & 1 << bit != 0)
}

impl<H: Hal, W: Words> Disk for AhciDisk<H, W> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, transfer: &Transfer<'_>) -> Result<(), SubmitError> {
        if self.phase == Phase::Failed || !self.geometry.allows(transfer) || !self.controller.reaches(transfer.runs) {
            return Err(SubmitError::Refused);
        }
        let slot = self.free_slot().ok_or(SubmitError::Full)?;
        let block_sectors = self.geometry.sectors_per_block();
        let command = Command::of(transfer, self.manner, block_sectors, slot);
        let place = match transfer.op {
            Op::Read | Op::Write | Op::WriteThrough if !self.geometry.admits_runs(transfer.runs) => {
                self.copy(slot, transfer)?
            }
            Op::Read | Op::Write | Op::WriteThrough => Place::Runs(transfer.runs),
            Op::Flush => Place::Nowhere,
            Op::Discard | Op::WriteZeroes => {
                trim_ranges(transfer, block_sectors, &mut self.ranges);
                Place::Ranges(&self.ranges)
            }
        };
        self.slots.fill(slot, &command, place);
        let request =
            Request { id: transfer.id, queued: command.queued, alone: false, interruptions: 0, since_ns: None };
        self.requests[usize::from(slot)] = Some(request);
        self.waiting.push_back(slot);
        Ok(())
    }

    fn kick(&mut self) {
        self.issue();
    }

    fn completed(&mut self) -> Option<(u64, Outcome)> {
        if let Some(ended) = self.ended.pop_front() {
            return Some(ended);
        }
        // What comes after the look that gave these interrupts again.
        if core::mem::take(&mut self.is_drained) && self.has_interrupt {
            return None;
        }
        self.is_drained = self.look();
        self.ended.pop_front()
    }

    fn acknowledge_interrupt(&mut self) {}

    fn has_interrupt(&self) -> bool {
        self.has_interrupt
    }

    fn aim_interrupt(&mut self, address: u64) {
        self.controller.aim_interrupt(address);
    }

    fn health(&self) -> Health {
        match self.phase {
            Phase::Running => Health::Ready,
            Phase::Failed => Health::Failed,
            _ => Health::Recovering,
        }
    }

    fn tick(&mut self, now_ns: u64) -> Option<u64> {
        if self.phase == Phase::Running && self.is_overdue(now_ns) {
            log::warn!("{}: a command takes too long: the link is reset", self.name());
            self.begin_recovery(Cause::Reset);
        } else if self.phase == Phase::Running && !self.port.runs() {
            log::warn!("{}: the link is down", self.name());
            self.begin_recovery(Cause::Reset);
        }
        let step_ns = self.recover(Some(now_ns));
        let watch_ns = (self.phase == Phase::Running).then_some(now_ns + WATCH_NS);
        step_ns.or(watch_ns)
    }
}
