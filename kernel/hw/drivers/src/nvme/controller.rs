//! The controller: start, reset, its namespaces' lanes, and what to do when it does not answer (NVM Express Base
//! Specification 2.0, sections 3.1.3 and 3.5 to 3.7).
//!
//! The main type is [`Controller`]. It never waits: [`Controller::tick`] takes the next step of a start or a reset when
//! the time has come; only [`super::start`] waits, by calling it. [`super::Namespace`] is a disk by it.

use super::command::{Command, Completion};
use super::identify::Capabilities;
use super::lane::{Ended, Format, Lane};
use super::pair::{Broken, DOORBELLS_AT, Pair};
use super::{Fault, Port};
use alloc::string::String;
use alloc::vec::Vec;
use block::{Health, Outcome, SubmitError, Transfer};
use core::ops::Range;
use virtio_drivers::Hal;

/// Registers (section 3.1.3).
const CAPABILITIES: usize = 0x00;
const CONFIGURATION: usize = 0x14;
const STATUS: usize = 0x1c;
const ADMIN_ATTRIBUTES: usize = 0x24;
const ADMIN_SUBMISSION: usize = 0x28;
const ADMIN_COMPLETION: usize = 0x30;

/// Enabled; NVM command set, pages of 4 KiB, round robin; entries of 2^6 and 2^4 bytes.
const ENABLED: u32 = 1 | 6 << 16 | 4 << 20;
const READY: u32 = 1 << 0;
const FATAL: u32 = 1 << 1;
/// What a device that is gone reads as.
const GONE: u32 = u32::MAX;

/// Entries of the admin queues.
const ADMIN_ENTRIES: u16 = 16;
/// Pairs of queues for each namespace at most: one lock is in front of them all, so that more would gain nothing.
const LANES_MAX: u16 = 4;
/// Pairs of queues that it is asked for.
const QUEUES_MAX: u16 = 64;
/// How long an admin command may take.
const ADMIN_NS: u64 = 10_000_000_000;
/// How long a transfer may take before it is aborted, as Linux has it, and then before the controller is reset.
pub(super) const TRANSFER_NS: u64 = 30_000_000_000;
pub(super) const ABORT_NS: u64 = 5_000_000_000;
/// Resets with no transfer done in between before the controller is given up.
const RESETS_MAX: u32 = 3;
/// How often it is looked after while it works, and while it is being reset.
const LOOK_NS: u64 = 1_000_000_000;
const RESET_LOOK_NS: u64 = 10_000_000;

/// What the controller is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// It was told to stop.
    Stopping { until_ns: u64 },
    /// It was enabled.
    Starting { until_ns: u64 },
    /// It is given its queues; this many commands of that are done.
    Queueing { done: usize },
    /// It works.
    Running,
    /// It was given up and does no more DMA.
    Failed,
}

/// An NVMe controller and the transfers of all its namespaces.
pub(super) struct Controller<H: Hal, P: Port> {
    port: P,
    name: String,
    capabilities: Capabilities,
    interrupts: bool,
    admin: Pair<H>,
    /// The identifier of the admin command under way, and when it is late.
    pending: Option<(u16, u64)>,
    next_identifier: u16,
    /// How many pairs of queues it grants.
    granted: u16,
    lanes: Vec<Lane<H>>,
    /// The lanes of each namespace, and what ended of it.
    namespaces: Vec<(Range<usize>, Ended)>,
    phase: Phase,
    now_ns: u64,
    resets: u32,
}

impl<H: Hal, P: Port> Controller<H, P> {
    /// A controller that was told to stop, to begin with.
    pub(super) fn new(port: P, name: String, interrupts: bool, now_ns: u64) -> Result<Self, Fault> {
        if port.bytes() < DOORBELLS_AT {
            return Err(Fault::Unusable("its registers are missing"));
        }
        let register = u64::from(port.read(CAPABILITIES + 4)) << 32 | u64::from(port.read(CAPABILITIES));
        let capabilities = Capabilities::parse(register)?;
        let entries = ADMIN_ENTRIES.min(capabilities.queue_entries);
        let mut controller = Self {
            admin: Pair::new(0, entries, capabilities.doorbell_stride)?,
            port,
            name,
            capabilities,
            interrupts,
            pending: None,
            next_identifier: 0,
            granted: 0,
            lanes: Vec::new(),
            namespaces: Vec::new(),
            phase: Phase::Failed,
            now_ns,
            resets: 0,
        };
        if controller.doorbells() == 0 {
            return Err(Fault::Unusable("its doorbells are outside its registers"));
        }
        controller.stop();
        Ok(controller)
    }

    /// Takes the next step, if it is time for one; returns when to call again.
    pub(super) fn tick(&mut self, now_ns: u64) -> Option<u64> {
        self.now_ns = now_ns;
        if self.phase != Phase::Failed && !self.port.is_present() {
            self.fail("it is gone");
        }
        // As many steps as the controller is ready for: each leads on, and a start has an end.
        let mut before = None;
        while self.phase != Phase::Failed && before != Some(self.phase) {
            before = Some(self.phase);
            match self.port.read(STATUS) {
                GONE => self.fail("it is gone"),
                status => self.step(status),
            }
            if self.phase == Phase::Running {
                break;
            }
        }
        match self.phase {
            Phase::Failed => None,
            Phase::Running => Some(now_ns + LOOK_NS),
            Phase::Stopping { .. } | Phase::Starting { .. } | Phase::Queueing { .. } => Some(now_ns + RESET_LOOK_NS),
        }
    }

    /// As [`Controller::tick`] while it starts, but leaves the answer to an admin command to the caller.
    pub(super) fn watch(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        if self.phase != Phase::Failed && self.port.read(STATUS) == GONE {
            self.fail("it is gone");
        }
    }

    pub(super) fn health(&self) -> Health {
        match self.phase {
            Phase::Running => Health::Ready,
            Phase::Failed => Health::Failed,
            Phase::Stopping { .. } | Phase::Starting { .. } | Phase::Queueing { .. } => Health::Recovering,
        }
    }

    /// How many lanes each of so many namespaces gets; where there are too few for all, some get one.
    pub(super) fn lanes_each(&self, namespaces: u16) -> u16 {
        (self.lanes_left() / namespaces.max(1)).clamp(1, LANES_MAX)
    }

    /// How many more lanes there can be.
    pub(super) fn lanes_left(&self) -> u16 {
        // As many lanes as queues at most, so it fits.
        self.granted.min(self.doorbells() - 1) - self.lanes.len() as u16
    }

    /// Adds a namespace with so many lanes; the controller gets their queues by [`Controller::give_queues`].
    pub(super) fn add(&mut self, format: Format, lanes: u16) -> Result<usize, Fault> {
        let first = self.lanes.len();
        for _ in 0..lanes {
            // Queue 0 is the admin's, and `lanes_each` keeps the numbers below the doorbells.
            let id = self.lanes.len() as u16 + 1;
            let pair = Pair::new(id, self.capabilities.queue_entries, self.capabilities.doorbell_stride)?;
            self.lanes.push(Lane::new(pair, format)?);
        }
        self.namespaces.push((first..self.lanes.len(), Ended::new()));
        Ok(self.namespaces.len() - 1)
    }

    /// Entries of each queue that one transfer at a time may be in.
    pub(super) fn depth(&self) -> u16 {
        self.capabilities.queue_entries - 1
    }

    /// Has the controller make the queues of all lanes.
    pub(super) fn give_queues(&mut self) {
        self.begin_queueing();
    }

    /// Takes a transfer, which the namespace can do. While the controller is being reset it waits.
    pub(super) fn submit(&mut self, namespace: usize, transfer: &Transfer<'_>) -> Result<(), SubmitError> {
        if self.phase == Phase::Failed {
            return Err(SubmitError::Refused);
        }
        let lanes = self.namespaces[namespace].0.clone();
        let lane = lanes.start + self.port.cpu() % lanes.len();
        self.lanes[lane].submit(transfer, self.phase == Phase::Running)
    }

    /// Tells the controller of what a namespace was given.
    pub(super) fn kick(&mut self, namespace: usize) {
        if self.phase == Phase::Running {
            self.lanes[self.namespaces[namespace].0.clone()].iter_mut().for_each(|lane| lane.pair.ring(&mut self.port));
        }
    }

    /// Has the interrupts of all namespaces go to another processor.
    pub(super) fn aim_interrupt(&mut self, address: u64) {
        if self.phase != Phase::Failed {
            self.port.aim_interrupt(address);
        }
    }

    /// The next transfer of a namespace that ended.
    pub(super) fn completed(&mut self, namespace: usize) -> Option<(u64, Outcome)> {
        if self.namespaces[namespace].1.is_empty() && self.phase == Phase::Running {
            self.drain(namespace);
        }
        self.namespaces[namespace].1.pop_front()
    }

    /// Gives an admin command, if none is under way.
    pub(super) fn give(&mut self, command: Command) -> bool {
        if self.pending.is_some() {
            return false;
        }
        let identifier = self.next_identifier;
        self.next_identifier = identifier.wrapping_add(1);
        self.pending = Some((identifier, self.now_ns.saturating_add(ADMIN_NS)));
        self.admin.push(&command.named(identifier));
        self.admin.ring(&mut self.port);
        true
    }

    /// The answer to the admin command under way; an error where it will not come.
    pub(super) fn answer(&mut self) -> Result<Option<Completion>, Broken> {
        let answer = self.admin.pop()?;
        self.admin.acknowledge(&mut self.port);
        match (answer, self.pending) {
            (Some(answer), Some((identifier, _))) if answer.identifier == identifier => {
                self.pending = None;
                Ok(Some(answer))
            }
            (Some(_), _) => Err(Broken("it completed an admin command that it does not have")),
            (None, Some((_, until_ns))) if self.now_ns > until_ns => Err(Broken("it does not answer an admin command")),
            (None, _) => Ok(None),
        }
    }

    /// Whether the controller is set up as far as it was told.
    pub(super) fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    /// Gives the controller up: it does no more DMA, and everything that it had fails.
    pub(super) fn fail(&mut self, why: &str) {
        log::error!("{}: the disk has failed: {why}", self.name);
        self.port.write(CONFIGURATION, 0);
        self.port.stop_dma();
        self.phase = Phase::Failed;
        self.pending = None;
        for (lanes, ended) in &mut self.namespaces {
            self.lanes[lanes.clone()].iter_mut().for_each(|lane| lane.abandon(ended));
        }
    }

    /// How many pairs of queues have their doorbells inside the registers.
    fn doorbells(&self) -> u16 {
        let count = (self.port.bytes() - DOORBELLS_AT) / (2 * self.capabilities.doorbell_stride);
        u16::try_from(count).unwrap_or(u16::MAX)
    }

    fn step(&mut self, status: u32) {
        match self.phase {
            Phase::Stopping { .. } if status & READY == 0 => self.enable(),
            Phase::Stopping { until_ns } if self.now_ns > until_ns => self.fail("it does not stop"),
            Phase::Starting { .. } | Phase::Queueing { .. } if status & FATAL != 0 => {
                self.fail("it reports a fatal error as it starts");
            }
            Phase::Starting { .. } if status & READY != 0 => self.begin_queueing(),
            Phase::Starting { until_ns } if self.now_ns > until_ns => self.fail("it does not become ready"),
            Phase::Queueing { done } => self.go_on_queueing(done),
            Phase::Running if status & FATAL != 0 => self.recover("it reports a fatal error"),
            Phase::Running => self.look_after_transfers(),
            Phase::Stopping { .. } | Phase::Starting { .. } | Phase::Failed => {}
        }
    }

    /// Section 3.7.2: clearing EN resets the controller.
    fn stop(&mut self) {
        self.port.write(CONFIGURATION, 0);
        self.pending = None;
        self.phase = Phase::Stopping { until_ns: self.deadline_ns() };
    }

    /// Section 3.5.1. From here on, nothing of before is with the controller.
    fn enable(&mut self) {
        self.admin.clear();
        for (lanes, ended) in &mut self.namespaces {
            self.lanes[lanes.clone()].iter_mut().for_each(|lane| lane.restart(ended));
        }
        let (submissions, completions) = self.admin.addresses();
        let entries = u32::from(self.admin.entries - 1);
        self.port.write(ADMIN_ATTRIBUTES, entries << 16 | entries);
        for (register, address) in [(ADMIN_SUBMISSION, submissions), (ADMIN_COMPLETION, completions)] {
            self.port.write(register, address as u32);
            self.port.write(register + 4, (address >> 32) as u32);
        }
        self.port.write(CONFIGURATION, ENABLED);
        self.phase = Phase::Starting { until_ns: self.deadline_ns() };
    }

    fn deadline_ns(&self) -> u64 {
        self.now_ns.saturating_add(self.capabilities.timeout_ns)
    }

    fn begin_queueing(&mut self) {
        self.phase = Phase::Queueing { done: 0 };
        self.give(self.queueing(0).unwrap_or(Command::set_queues(1)));
    }

    /// Command number `index` of those that give the controller its queues: first how many, then each pair, the
    /// completion queue first. `None` past the last.
    fn queueing(&self, index: usize) -> Option<Command> {
        let Some(index) = index.checked_sub(1) else {
            return Some(Command::set_queues(QUEUES_MAX.min(self.doorbells() - 1)));
        };
        let pair = &self.lanes.get(index / 2)?.pair;
        let (submissions, completions) = pair.addresses();
        Some(if index.is_multiple_of(2) {
            Command::create_completion_queue(pair.id, pair.entries, completions, self.interrupts)
        } else {
            Command::create_submission_queue(pair.id, pair.entries, submissions)
        })
    }

    fn go_on_queueing(&mut self, done: usize) {
        let answer = match self.answer() {
            Ok(Some(answer)) => answer,
            Ok(None) => return,
            Err(Broken(why)) => return self.fail(why),
        };
        if !answer.status.is_success() {
            return self.fail("it refuses its queues");
        }
        if done == 0 {
            // Both numbers count from 0 (section 5.27.1.5).
            let granted = (answer.result as u16).min((answer.result >> 16) as u16).saturating_add(1);
            if usize::from(granted) < self.lanes.len() {
                return self.fail("it grants fewer queues than before");
            }
            self.granted = granted;
        }
        match self.queueing(done + 1) {
            Some(command) => {
                self.phase = Phase::Queueing { done: done + 1 };
                self.give(command);
            }
            None => self.begin_running(),
        }
    }

    fn begin_running(&mut self) {
        self.phase = Phase::Running;
        for lane in &mut self.lanes {
            lane.resubmit();
            lane.pair.ring(&mut self.port);
        }
        if self.resets > 0 {
            log::warn!("{}: it works again", self.name);
        }
    }

    /// Resets the controller because of what it did; what it has is given again. A controller that gets nothing done in
    /// between is given up.
    fn recover(&mut self, why: &str) {
        if self.resets >= RESETS_MAX {
            return self.fail(why);
        }
        self.resets += 1;
        log::warn!("{}: {why}; it is being reset", self.name);
        self.stop();
    }

    /// Moves what a namespace's lanes have finished to where it is fetched from.
    fn drain(&mut self, namespace: usize) {
        let (lanes, ended) = &mut self.namespaces[namespace];
        let before = ended.len();
        let mut result = Ok(());
        for lane in &mut self.lanes[lanes.clone()] {
            result = result.and(lane.drain(&mut self.port, ended));
        }
        if ended.len() > before {
            self.resets = 0;
        }
        if let Err(Broken(why)) = result {
            self.recover(why);
        }
    }

    /// Time limits. A lost interrupt must not count as a lost transfer, so what ended is taken first.
    fn look_after_transfers(&mut self) {
        for namespace in 0..self.namespaces.len() {
            if self.phase == Phase::Running {
                self.drain(namespace);
            }
        }
        if self.phase != Phase::Running {
            return;
        }
        match self.answer() {
            // Whether it was aborted shows by the transfer itself.
            Ok(_) => {}
            Err(Broken(why)) => return self.recover(why),
        }
        if self.lanes.iter().any(|lane| lane.is_stuck(self.now_ns, ABORT_NS)) {
            return self.recover("a transfer does not end, nor can it be aborted");
        }
        if self.pending.is_none() {
            self.abort_one();
        }
    }

    /// Aborts one late transfer: the controller may take no more than one such command at a time (section 5.1).
    fn abort_one(&mut self) {
        let (now_ns, late) = (self.now_ns, |lane: &mut Lane<H>, now_ns| lane.late(now_ns, TRANSFER_NS));
        let found = self.lanes.iter_mut().find_map(|lane| Some((lane.pair.id, late(lane, now_ns)?)));
        if let Some((id, identifier)) = found {
            log::warn!("{}: a transfer is late; it is being aborted", self.name);
            self.give(Command::abort(id, identifier));
            self.lanes[usize::from(id) - 1].note_abort(identifier, now_ns);
        }
    }
}

#[cfg(test)]
impl<H: Hal, P: Port> Controller<H, P> {
    /// Whether no transfer is under way and nothing is lost.
    pub(super) fn is_idle(&self) -> bool {
        self.lanes.iter().all(Lane::is_idle)
    }
}
