//! What a channel does when something went wrong: both devices are reset (ATA/ATAPI-7 volume 2, section 9.2), and the
//! command that was under way is given again.
//!
//! The main type is [`Phase`]. No step waits: [`Channel::tick`] takes those whose time has come. A disk whose commands
//! cause reset after reset, or that does not come back from one, is given up for good.

use super::channel::{Channel, Current};
use super::interface::Signature;
use super::ports::Ports;
use super::slots::SLOTS;
use block::IoError;
use virtio_drivers::Hal;

/// How long a device may take for a command. A disk that reads a bad sector over and over takes seconds.
const COMMAND_NS: u64 = 15_000_000_000;
/// How often it is looked whether a command takes too long, or ended with an interrupt that was lost.
const WATCH_NS: u64 = 1_000_000_000;
/// How long a reset is held, and when after it a device's status means something.
const HOLD_NS: u64 = 1_000_000;
const SETTLE_NS: u64 = 2_000_000;
/// How long devices may take to get ready: they spin up.
const READY_NS: u64 = 31_000_000_000;
/// How often a step is looked at.
const STEP_NS: u64 = 5_000_000;

/// How often a transfer is given to the device again.
const INTERRUPTIONS_MAX: u8 = 2;
/// Resets for a disk without a command that ends in between.
const RESETS_MAX: u8 = 4;

/// What a channel is at. A moment is `None` until the clock was seen in that phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Transfers run.
    Running,
    /// The reset is held.
    Resetting { since_ns: Option<u64> },
    /// The devices get ready.
    Settling { since_ns: u64 },
    /// Nothing runs any more, for good.
    Failed,
}

impl<H: Hal, P: Ports> Channel<H, P> {
    /// Begins a reset because of the command under way.
    pub(super) fn begin_reset(&mut self, why: &str) {
        if !self.interface.stop() {
            self.controller.cut_off("its bus master does not stop");
            return self.fail("its controller has failed");
        }
        self.interface.hold_reset();
        self.phase = Phase::Resetting { since_ns: None };
        let Some(Current { unit: number, slot, .. }) = self.current.take() else { return };
        let unit = self.unit(number);
        log::warn!("{}: {why}: its channel is reset", unit.name);
        unit.resets = unit.resets.saturating_add(1);
        if unit.resets > RESETS_MAX {
            return self.fail_unit(number, "it stays broken");
        }
        let Some(request) = &mut unit.requests[usize::from(slot)] else { return };
        request.interruptions += 1;
        if request.interruptions > INTERRUPTIONS_MAX {
            unit.finish(slot, Err(IoError::Device));
        } else {
            self.waiting.push_front((number, slot));
        }
    }

    /// Looks after the channel; returns when it wants that next.
    pub(super) fn tick(&mut self, now_ns: u64) -> Option<u64> {
        match self.phase {
            Phase::Failed => return None,
            Phase::Running => self.watch(now_ns),
            Phase::Resetting { since_ns } => {
                let since_ns = since_ns.unwrap_or(now_ns);
                self.phase = Phase::Resetting { since_ns: Some(since_ns) };
                if now_ns.saturating_sub(since_ns) >= HOLD_NS {
                    self.interface.release_reset();
                    self.phase = Phase::Settling { since_ns: now_ns };
                }
            }
            Phase::Settling { since_ns } => self.settle(now_ns.saturating_sub(since_ns)),
        }
        match self.phase {
            Phase::Failed => None,
            Phase::Running => Some(now_ns + WATCH_NS),
            _ => Some(now_ns + STEP_NS),
        }
    }

    fn watch(&mut self, now_ns: u64) {
        let Some(current) = &mut self.current else { return };
        let since_ns = *current.since_ns.get_or_insert(now_ns);
        let watched = *current;
        self.look(watched.unit);
        let is_the_same = self.current == Some(watched);
        if is_the_same && now_ns.saturating_sub(since_ns) > COMMAND_NS {
            self.begin_reset("a command takes too long");
        }
    }

    /// Goes on once the devices are ready.
    fn settle(&mut self, passed_ns: u64) {
        if passed_ns < SETTLE_NS {
            return;
        }
        let mut all_ready = true;
        for number in 0..self.units.len() {
            if self.units[number].as_ref().is_none_or(|unit| unit.has_failed) {
                continue;
            }
            self.interface.select(number);
            let (is_ready, status) = (self.interface.is_ready(), self.interface.status());
            if is_ready && (status == 0 || self.interface.signature() != Signature::Disk) {
                self.fail_unit(number, "it did not come back from a reset");
            } else if !is_ready && passed_ns > READY_NS {
                self.fail_unit(number, "it does not get ready");
            }
            all_ready &= is_ready || passed_ns > READY_NS;
        }
        if !all_ready {
            return;
        }
        self.phase = Phase::Running;
        if self.units.iter().flatten().all(|unit| unit.has_failed) {
            self.phase = Phase::Failed;
        }
        self.issue();
    }

    /// Gives a disk up: all its transfers end. The bus master does not run.
    fn fail_unit(&mut self, number: usize, why: &str) {
        self.waiting.retain(|(unit, _)| *unit != number);
        let unit = self.unit(number);
        if !core::mem::replace(&mut unit.has_failed, true) {
            log::error!("{}: {why}: the disk has failed", unit.name);
        }
        (0..SLOTS).for_each(|slot| unit.finish(slot, Err(IoError::Device)));
    }

    /// Gives all disks of the channel up.
    pub(super) fn fail(&mut self, why: &str) {
        if !self.interface.stop() {
            self.controller.cut_off("its bus master does not stop");
        }
        (self.phase, self.current) = (Phase::Failed, None);
        let there: [bool; 2] = core::array::from_fn(|number| self.units[number].is_some());
        (0..there.len()).filter(|number| there[*number]).for_each(|number| self.fail_unit(number, why));
    }
}
