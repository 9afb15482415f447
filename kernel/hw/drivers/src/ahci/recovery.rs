//! What an AHCI disk does when something went wrong (AHCI 1.3.1, section 6.2.2).
//!
//! The main type is [`Phase`]: the port is stopped, reset where the device does not come to rest by itself, asked what
//! failed, and started again. Commands that were interrupted are given again, the one to blame ends with an error. No
//! step waits: [`AhciDisk::recover`] takes those that can be taken.

use super::disk::{AhciDisk, bits};
use super::port::{Events, Signature};
use crate::ata::command::{Command, failed_tag};
use crate::ata::identify::Identity;
use crate::ata::{STATUS_BUSY, STATUS_DATA_REQUEST};
use crate::mmio::Words;
use block::IoError;
use virtio_drivers::Hal;

/// How long a port may take to stop (section 10.3.2).
const STOP_NS: u64 = 500_000_000;
/// How long a reset is held: a millisecond at least (section 10.4.2).
const RESET_NS: u64 = 2_000_000;
/// How long a device may take to answer on the link. It is gone if it does not.
const LINK_NS: u64 = 3_000_000_000;
/// How long a device may take until it is ready: it spins up.
const READY_NS: u64 = 15_000_000_000;
/// How long a command of the driver's own may take.
const ANSWER_NS: u64 = 5_000_000_000;
/// How often a step is looked at.
const STEP_NS: u64 = 1_000_000;
/// How often registers are read at once for what takes microseconds.
const QUICK_READS: u32 = 1000;
/// As often a port is looked at that has to stop now.
const STOP_READS: u32 = 100_000;

/// How often a transfer is given to the device again because of others' failures or the link's.
const INTERRUPTIONS_MAX: u8 = 3;
/// Resets without a command that succeeds in between.
const RESETS_MAX: u8 = 5;

/// What a disk is at. A moment is `None` until the clock was seen in that phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Transfers run.
    Running,
    /// The port stops to process commands.
    Stopping { cause: Cause, since_ns: Option<u64> },
    /// The reset is held.
    Resetting { since_ns: Option<u64> },
    /// The link comes up, and the device gets ready.
    Linking { since_ns: Option<u64> },
    /// The device answers a question.
    Asking { question: Question, since_ns: Option<u64> },
    /// Nothing runs any more, for good.
    Failed,
}

/// Why a port is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// A command failed: the one in this slot, where none was queued.
    Command,
    /// One of the queued commands failed.
    Queued,
    /// The link, the host's bus or the device failed: the device is reset.
    Reset,
}

/// What the device is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Question {
    /// Which queued command failed.
    ErrorLog,
    /// What it is: it may be another one since the link was down.
    Identity,
}

impl Cause {
    /// What follows from what happened.
    pub(super) fn of(events: Events, queued: bool) -> Option<Self> {
        match events {
            Events { link: true, .. } | Events { fatal: true, .. } => Some(Self::Reset),
            Events { task_file_error: true, .. } if queued => Some(Self::Queued),
            Events { task_file_error: true, .. } => Some(Self::Command),
            _ => None,
        }
    }
}

impl<H: Hal, W: Words> AhciDisk<H, W> {
    /// Stops the port because of `cause`, and goes on from there.
    pub(super) fn begin_recovery(&mut self, cause: Cause) {
        let failed = match cause {
            Cause::Command => Some(self.port.current_slot()),
            // With one there is no doubt.
            Cause::Queued => bits(self.in_flight).next().filter(|_| self.in_flight.is_power_of_two()),
            Cause::Reset => None,
        };
        if cause != Cause::Reset {
            self.count_error();
        }
        if let Some(slot) = failed.filter(|slot| self.in_flight & 1 << slot != 0) {
            self.finish(slot, Err(IoError::Device));
            // It answers.
            self.resets = 0;
        }
        self.port.stop();
        self.phase = Phase::Stopping { cause, since_ns: None };
        for _ in 0..QUICK_READS {
            self.recover(None);
            if !matches!(self.phase, Phase::Stopping { .. }) {
                break;
            }
        }
    }

    /// Reports an error of a command, the more rarely the more there are: a guest reads what it likes.
    fn count_error(&mut self) {
        self.errors = self.errors.saturating_add(1);
        if self.errors.is_power_of_two() {
            let (status, error, count) = (self.port.status(), self.port.error(), self.errors);
            let name = self.name();
            log::warn!("{name}: {count} commands failed; of the last, status {status:02x}h, error {error:02x}h");
        }
    }

    /// Takes the steps that can be taken; returns when to look again. `now_ns` is known only where the clock is.
    pub(super) fn recover(&mut self, now_ns: Option<u64>) -> Option<u64> {
        // A phase may lead to the next at once, but they do not go round without the clock.
        loop {
            let before = self.phase;
            match before {
                Phase::Running | Phase::Failed => return None,
                Phase::Stopping { cause, since_ns } => self.stopping(cause, since_ns, now_ns),
                Phase::Resetting { since_ns } => self.resetting(since_ns, now_ns),
                Phase::Linking { since_ns } => self.linking(since_ns, now_ns),
                Phase::Asking { question, since_ns } => self.asking(question, since_ns, now_ns),
            }
            if core::mem::discriminant(&self.phase) == core::mem::discriminant(&before) {
                return now_ns.map(|now_ns| now_ns + STEP_NS);
            }
        }
    }

    /// Fails for good: everything ends, and nothing is taken any more.
    pub(super) fn fail(&mut self, why: &str) {
        if self.phase == Phase::Failed {
            return;
        }
        log::error!("{}: the disk has failed: {why}", self.name());
        self.port.set_interrupts(false);
        self.port.stop();
        if !(0..STOP_READS).any(|_| self.port.is_stopped()) {
            self.controller.cut_off("a port does not stop");
        }
        self.phase = Phase::Failed;
        self.abandon();
    }

    fn stopping(&mut self, cause: Cause, since_ns: Option<u64>, now_ns: Option<u64>) {
        if !self.port.is_stopped() {
            let since_ns = since_ns.or(now_ns);
            self.phase = Phase::Stopping { cause, since_ns };
            if has_passed(since_ns, now_ns, STOP_NS) {
                self.fail("its port does not stop");
            }
            return;
        }
        let rests = self.port.status() & (STATUS_BUSY | STATUS_DATA_REQUEST) == 0 && self.port.is_linked();
        match cause {
            Cause::Command if rests => {
                self.port.start();
                self.resume(None, false);
            }
            Cause::Queued if rests => {
                self.port.start();
                self.ask(Question::ErrorLog);
            }
            Cause::Command | Cause::Queued | Cause::Reset => {
                self.requeue_interrupted(None, cause == Cause::Queued);
                self.reset();
            }
        }
    }

    fn reset(&mut self) {
        self.resets += 1;
        if self.resets > RESETS_MAX {
            return self.fail("resets do not help");
        }
        self.port.begin_reset();
        self.phase = Phase::Resetting { since_ns: None };
    }

    fn resetting(&mut self, since_ns: Option<u64>, now_ns: Option<u64>) {
        let since_ns = since_ns.or(now_ns);
        self.phase = Phase::Resetting { since_ns };
        if has_passed(since_ns, now_ns, RESET_NS) {
            self.port.end_reset();
            self.phase = Phase::Linking { since_ns: now_ns };
        }
    }

    fn linking(&mut self, since_ns: Option<u64>, now_ns: Option<u64>) {
        let since_ns = since_ns.or(now_ns);
        self.phase = Phase::Linking { since_ns };
        // What the link reports meanwhile is what is waited for.
        let events = self.port.take_events();
        if events.gone {
            self.controller.cut_off("its registers are gone");
            self.fail("its controller is gone");
        } else if self.port.is_ready() {
            match self.port.signature() {
                Signature::Disk => {
                    self.port.start();
                    self.ask(Question::Identity);
                }
                other => self.fail(&alloc::format!("it was replaced by another device ({other:?})")),
            }
        } else if !self.port.is_linked() && has_passed(since_ns, now_ns, LINK_NS) {
            self.fail("the link is down (was it unplugged?)");
        } else if has_passed(since_ns, now_ns, READY_NS) {
            self.fail("it does not get ready");
        }
    }

    fn ask(&mut self, question: Question) {
        let command = match question {
            Question::ErrorLog => Command::read_error_log(),
            Question::Identity => Command::identify(),
        };
        self.slots.fill_own(&command);
        self.port.issue(1, false);
        self.phase = Phase::Asking { question, since_ns: None };
    }

    fn asking(&mut self, question: Question, since_ns: Option<u64>, now_ns: Option<u64>) {
        let since_ns = since_ns.or(now_ns);
        self.phase = Phase::Asking { question, since_ns };
        let events = self.port.take_events();
        let has_failed = Cause::of(events, false).is_some() || has_passed(since_ns, now_ns, ANSWER_NS);
        if events.gone {
            self.controller.cut_off("its registers are gone");
            self.fail("its controller is gone");
        } else if has_failed {
            // No answer: whoever is to blame shows when each is given alone.
            self.slots.take_own();
            self.requeue_interrupted(None, question == Question::ErrorLog);
            self.port.stop();
            self.phase = Phase::Stopping { cause: Cause::Reset, since_ns: None };
        } else if events.done && self.port.active(false) & 1 == 0 {
            let page = self.slots.take_own();
            match question {
                Question::ErrorLog => self.blame(failed_tag(&page)),
                Question::Identity => self.recognise(Identity::parse(&page).ok().as_ref()),
            }
        }
    }

    fn blame(&mut self, tag: Option<u8>) {
        let slot = tag.filter(|slot| self.in_flight & 1 << slot != 0);
        self.resume(slot, slot.is_none());
    }

    fn recognise(&mut self, identity: Option<&Identity>) {
        if identity == Some(&self.identity) {
            self.resume(None, false);
        } else {
            self.fail("another disk is in its place");
        }
    }

    /// Runs again.
    fn resume(&mut self, failed: Option<u8>, alone: bool) {
        self.requeue_interrupted(failed, alone);
        self.phase = Phase::Running;
        self.issue();
    }

    /// Puts what the device had back into the line, but for what has failed or was interrupted too often.
    fn requeue_interrupted(&mut self, failed: Option<u8>, alone: bool) {
        for slot in bits(self.in_flight) {
            let interruptions = self.request(slot).map_or(0, |request| request.interruptions);
            let was_alone = self.request(slot).is_some_and(|request| request.alone);
            if failed == Some(slot) || interruptions >= INTERRUPTIONS_MAX || (alone && was_alone) {
                self.finish(slot, Err(IoError::Device));
            }
        }
        self.requeue(alone);
    }
}

fn has_passed(since_ns: Option<u64>, now_ns: Option<u64>, limit_ns: u64) -> bool {
    since_ns.zip(now_ns).is_some_and(|(since_ns, now_ns)| now_ns.saturating_sub(since_ns) > limit_ns)
}
