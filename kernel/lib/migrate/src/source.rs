//! The source's side: which pages are still to be sent, when the guest stops, and who owns it.
//!
//! [`Source`] is told what happened (methods named after events) and says what to do next ([`Effect`]); [`crate::pace`]
//! fills batches from its set of pages. Its mirror is [`crate::target`].

use crate::{Id, Settings, Strategy};
use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use guestmem::{NoRoom, PageSet};

/// How far it has got.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Phase {
    /// The target was asked.
    Offering,
    /// The guest runs, its memory is sent.
    Copying,
    /// The guest was told to stop.
    Stopping,
    /// It stands; what it wrote last is being looked up.
    LastLook,
    /// That is being sent.
    LastPages,
    /// Its state is being sent.
    Saving,
    /// Everything is sent, and the target has not said that it is ready.
    Finished,
    /// The VM is given away; no answer has come.
    Committed,
    /// It runs at the target, which still lacks memory of it.
    Serving,
    /// It was taken back, and runs here for good: the target, which may have all of it, was not told yet that it never
    /// will run it.
    Withdrawing,
    /// Over.
    Done,
}

/// How it ended.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// The VM runs on the target.
    Moved,
    /// It runs here, and why.
    Stayed(String),
    /// It was given away to a target that has forgotten it: perhaps it ran there. Only a person can say.
    Lost,
    /// It ran on the target when this host's half was lost, or the target was given up, before it was heard to be whole
    /// there. What was heard last need not be what happened last: perhaps it runs there, and never again here.
    Torn,
}

impl Outcome {
    /// Whether the VM is no more the source's, to be run or started: it runs on the target, or may.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Moved | Self::Torn)
    }
}

/// What the source says; the driver knows the offer's description.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Word {
    /// [`crate::wire::Message::Offer`].
    Offer,
    /// [`crate::wire::Message::Missing`], of [`Source::pages_to_send`].
    Missing,
    /// [`crate::wire::Message::Finish`].
    Finish,
    /// [`crate::wire::Message::Commit`].
    Commit,
    /// [`crate::wire::Message::Abort`].
    Abort(String),
}

/// What is to be done, in order.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Send it.
    Say(Word),
    /// Collect the pages written since the last look, let every vCPU forget its translations, and call
    /// [`Source::looked`].
    Look,
    /// Let the guest run for only so many percent of the time.
    Throttle(u8),
    /// Stop the guest and its devices, and call [`Source::stopped`].
    Stop,
    /// Send the machine's state and call [`Source::state_sent`].
    SendState,
    /// Let the guest run on, unthrottled.
    Resume,
    /// Make a new session and call [`Source::linked`].
    Connect,
    /// Note the outcome.
    End(Outcome),
}

/// A guest that is throttled gets half of its time at each step, and keeps this much at least. Smaller steps would spare
/// it little: each costs a round, and the guest is slow until the last.
const THROTTLE_KEPT_PERCENT: u8 = 5;

/// Rounds that bring little until the guest is throttled.
const STALLS_MAX: u32 = 2;

/// Pages that a target wants at once and that are remembered in their order; what is more comes in the usual order.
const URGENT_MAX: usize = 1024;

/// What the last pages may take without another round being worth it that leaves less.
const LAST_PAGES_NS: u64 = 5_000_000;

/// One migration, at the source.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Source {
    id: Id,
    settings: Settings,
    deadline_ns: u64,
    phase: Phase,
    /// All that there are.
    pages: PageSet,
    /// Pages that the target lacks, or has an old version of.
    to_send: PageSet,
    /// Those of them that go first: it waits for them, or cannot begin without them.
    urgent: VecDeque<u64>,
    /// They follow the guest.
    is_postcopy: bool,
    /// Where the next batch goes on.
    cursor: u64,
    total: u64,
    round: u32,
    /// Pages to send at the start of the round.
    round_pages: u64,
    /// Pages of the first round that are left when the guest's writes are looked up early, so that what it writes often
    /// is known page by page before it is sent.
    samples: [u64; 2],
    looking: bool,
    /// The guest ran during that look and stands now: there is another.
    looks_again: bool,
    is_sample: bool,
    stalls: u32,
    running_percent: u8,
    expected_ns: u64,
    has_link: bool,
    effects: VecDeque<Effect>,
}

impl Source {
    /// A migration of a guest with these pages, which are tracked from now on.
    pub fn new(id: Id, settings: Settings, pages: PageSet, now_ns: u64) -> Result<Self, NoRoom> {
        let total = pages.count();
        Ok(Self {
            id,
            settings,
            deadline_ns: now_ns.saturating_add(settings.timeout_ns),
            phase: Phase::Offering,
            to_send: pages.try_clone().ok_or(NoRoom)?,
            pages,
            urgent: VecDeque::new(),
            is_postcopy: false,
            cursor: 0,
            total,
            round: 1,
            round_pages: total,
            samples: [total - total / 32, total - total / 4],
            looking: false,
            looks_again: false,
            is_sample: false,
            stalls: 0,
            running_percent: 100,
            expected_ns: 0,
            has_link: true,
            effects: VecDeque::from([Effect::Say(Word::Offer)]),
        })
    }

    /// Its name.
    pub fn id(&self) -> Id {
        self.id
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The round, from 1.
    pub fn round(&self) -> u32 {
        self.round
    }

    /// Pages that the guest has.
    pub fn pages(&self) -> u64 {
        self.total
    }

    /// Pages still to be sent in this round.
    pub fn remaining(&self) -> u64 {
        self.to_send.count()
    }

    /// The same, each.
    pub fn pages_to_send(&self) -> &PageSet {
        &self.to_send
    }

    /// Whether memory follows the guest.
    pub fn is_postcopy(&self) -> bool {
        self.is_postcopy
    }

    /// The downtime that was expected at the last look.
    pub fn expected_ns(&self) -> u64 {
        self.expected_ns
    }

    /// How much of its time the guest has.
    pub fn running_percent(&self) -> u8 {
        self.running_percent
    }

    /// Most bytes a second.
    pub fn bandwidth_max(&self) -> Option<u64> {
        // Once the guest stands, every moment counts.
        let runs = matches!(self.phase, Phase::Copying | Phase::Serving);
        if runs { self.settings.bandwidth_max } else { None }
    }

    /// What to do next.
    pub fn take_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Whether there are pages to send now.
    pub fn wants_pages(&self) -> bool {
        match self.phase {
            Phase::Copying | Phase::Serving => !self.to_send.is_empty(),
            Phase::LastPages if self.is_postcopy => !self.urgent.is_empty(),
            Phase::LastPages => !self.to_send.is_empty(),
            _ => false,
        }
    }

    /// The next page to send. It is the caller's from here on: it reads it now, not before.
    pub fn take_page(&mut self) -> Option<u64> {
        if !self.wants_pages() {
            return None;
        }
        let urgent = core::iter::from_fn(|| self.urgent.pop_front()).find(|&page| self.to_send.contains(page));
        // What follows a page that is wanted is likely to be wanted next.
        let page = urgent.or_else(|| self.to_send.next_from(self.cursor)).or_else(|| self.to_send.next_from(0))?;
        self.to_send.remove(page);
        self.cursor = page + 1;
        Some(page)
    }

    /// A batch was filled: looks whether a round is over.
    pub fn advance(&mut self) {
        match self.phase {
            Phase::Copying if !self.looking => {
                let left = self.to_send.count();
                let sample = self.round == 1 && self.samples.iter().any(|&at| left <= at) && left > 0;
                if sample {
                    self.samples.iter_mut().filter(|at| left <= **at).for_each(|at| *at = 0);
                }
                if sample || left == 0 {
                    self.look(sample);
                }
            }
            Phase::LastPages if !self.wants_pages() => {
                self.phase = Phase::Saving;
                // Where nothing is left to follow, it is a move like any other.
                self.is_postcopy &= !self.to_send.is_empty();
                if self.is_postcopy {
                    self.effects.push_back(Effect::Say(Word::Missing));
                }
                self.effects.push_back(Effect::SendState);
            }
            _ => {}
        }
    }

    /// Time passed.
    pub fn tick(&mut self, now_ns: u64) {
        if self.phase == Phase::Copying && now_ns >= self.deadline_ns {
            match self.settings.strategy {
                Strategy::Cancel => self.fail("the guest changes its memory too fast to move in time"),
                Strategy::Stop => self.stop(),
                Strategy::Postcopy => self.leave_behind(),
            }
        }
    }

    /// The target takes it.
    pub fn accepted(&mut self) {
        if self.phase == Phase::Offering {
            self.phase = Phase::Copying;
        }
    }

    /// The target does not take it.
    pub fn refused(&mut self, reason: &str) {
        if self.phase == Phase::Offering {
            self.end(Outcome::Stayed(reason.to_string()));
        }
    }

    /// The look is done: what was written since the last. `page_ns` is what a page takes to send, `rest_ns` what else
    /// the guest stands still for.
    pub fn looked(&mut self, written: &PageSet, page_ns: u64, rest_ns: u64, now_ns: u64) {
        if !core::mem::take(&mut self.looking) {
            return;
        }
        self.to_send.merge(written);
        match self.phase {
            Phase::Copying if !self.is_sample => self.decide(page_ns, rest_ns, now_ns),
            Phase::LastLook if core::mem::take(&mut self.looks_again) => self.look(false),
            Phase::LastLook => {
                self.phase = Phase::LastPages;
                self.urgent.retain(|&page| self.to_send.contains(page));
                self.advance();
            }
            _ => {}
        }
    }

    /// The guest and its devices stand. Without the `essential` pages its machine cannot be put together.
    pub fn stopped(&mut self, essential: &PageSet) {
        if self.phase == Phase::Stopping {
            self.phase = Phase::LastLook;
            if self.is_postcopy {
                self.urgent.extend(essential.iter());
            }
            // One at a time: what was found while it ran is not what it wrote last.
            self.looks_again = self.looking;
            if !self.looking {
                self.look(false);
            }
        }
    }

    /// The state is sent.
    pub fn state_sent(&mut self) {
        if self.phase == Phase::Saving {
            self.phase = Phase::Finished;
            self.effects.push_back(Effect::Say(Word::Finish));
        }
    }

    /// The target is ready. This is the commit point.
    pub fn ready(&mut self) {
        if self.phase == Phase::Finished {
            self.phase = Phase::Committed;
            self.effects.push_back(Effect::Say(Word::Commit));
        }
    }

    /// The target runs it.
    pub fn running(&mut self) {
        if self.phase == Phase::Committed {
            match self.is_postcopy {
                true => self.phase = Phase::Serving,
                false => self.end(Outcome::Moved),
            }
        }
    }

    /// The target runs it, on another session than before, and lacks the `count` pages from `first` on.
    pub fn missing(&mut self, first: u64, count: u64) {
        if self.phase == Phase::Serving {
            self.to_send.merge_run(&self.pages, first, count);
        }
    }

    /// The target waits for a page.
    pub fn wanted(&mut self, page: u64) {
        if self.phase == Phase::Serving && self.to_send.contains(page) && self.urgent.len() < URGENT_MAX {
            self.urgent.push_back(page);
        }
    }

    /// The target has all of it.
    pub fn complete(&mut self) {
        if self.phase == Phase::Serving {
            self.end(Outcome::Moved);
        }
    }

    /// Its memory here is lost, or its operator gives it up, while the target still lacks some of it.
    pub fn torn(&mut self) {
        if self.phase == Phase::Serving {
            self.end(Outcome::Torn);
        }
    }

    /// The target has given up, and never ran it.
    pub fn aborted(&mut self, reason: &str) {
        match self.phase {
            // A target that runs it cannot take that back.
            Phase::Done | Phase::Serving => {}
            Phase::Withdrawing => self.phase = Phase::Done,
            _ => {
                self.resume_if_stopped();
                self.end(Outcome::Stayed(reason.to_string()));
            }
        }
    }

    /// The target knows nothing of it.
    pub fn unknown(&mut self) {
        match self.phase {
            Phase::Withdrawing => self.phase = Phase::Done,
            Phase::Committed => self.end(Outcome::Lost),
            Phase::Serving => self.end(Outcome::Torn),
            _ => {}
        }
    }

    /// The session ended.
    pub fn unlinked(&mut self, reason: &str) {
        self.has_link = false;
        match self.phase {
            Phase::Done => {}
            Phase::Committed | Phase::Withdrawing => self.effects.push_back(Effect::Connect),
            Phase::Serving => {
                // What was under way is lost or is not: the target knows what it lacks.
                self.to_send.clear();
                self.urgent.clear();
                self.effects.push_back(Effect::Connect);
            }
            Phase::Offering
            | Phase::Copying
            | Phase::Stopping
            | Phase::LastLook
            | Phase::LastPages
            | Phase::Saving
            | Phase::Finished => self.fail(reason),
        }
    }

    /// There is a session again.
    pub fn linked(&mut self) {
        self.has_link = true;
        match self.phase {
            Phase::Committed | Phase::Serving => self.effects.push_back(Effect::Say(Word::Commit)),
            Phase::Withdrawing => self.effects.push_back(Effect::Say(Word::Abort("it was taken back".to_string()))),
            _ => {}
        }
    }

    /// Takes the VM back; false once it is given away.
    pub fn cancel(&mut self, reason: &str) -> bool {
        if matches!(self.phase, Phase::Committed | Phase::Serving | Phase::Withdrawing | Phase::Done) {
            return false;
        }
        self.fail(reason);
        true
    }

    /// Before the commit: the VM stays, and the target is told. That it stays is certain at once, since the word that
    /// gives it away was not said and never will be: only what the target keeps of it waits for an answer.
    /// Where it is decided already this changes nothing: whoever failed could not know yet.
    pub fn fail(&mut self, reason: &str) {
        if self.phase >= Phase::Committed {
            return;
        }
        self.resume_if_stopped();
        if self.has_link {
            self.effects.push_back(Effect::Say(Word::Abort(reason.to_string())));
        }
        if self.phase < Phase::Finished {
            // The target is not ready and never will be: with the session, or the word, it gives up.
            return self.end(Outcome::Stayed(reason.to_string()));
        }
        self.end(Outcome::Stayed(reason.to_string()));
        self.phase = Phase::Withdrawing;
        if !self.has_link {
            self.effects.push_back(Effect::Connect);
        }
    }

    fn look(&mut self, is_sample: bool) {
        self.looking = true;
        self.is_sample = is_sample;
        self.effects.push_back(Effect::Look);
    }

    fn stop(&mut self) {
        self.phase = Phase::Stopping;
        self.effects.push_back(Effect::Stop);
    }

    /// Hands it over without the rest.
    fn leave_behind(&mut self) {
        self.is_postcopy = true;
        self.stop();
    }

    /// After a round: the rest fits the downtime, or there is another round.
    fn decide(&mut self, page_ns: u64, rest_ns: u64, now_ns: u64) {
        let remaining = self.to_send.count();
        self.expected_ns = remaining.saturating_mul(page_ns).saturating_add(rest_ns);
        // A round that left at most half is followed by one that leaves less: it costs no more than it saves the guest,
        // and halving ends.
        let shrinks = remaining <= self.round_pages / 2 && remaining.saturating_mul(page_ns) > LAST_PAGES_NS;
        if remaining == 0 || self.expected_ns <= self.settings.downtime_ns && !shrinks {
            return self.stop();
        }
        self.tick(now_ns);
        if self.phase != Phase::Copying {
            return;
        }
        let stalls = remaining > self.round_pages - self.round_pages / 4;
        self.stalls = if stalls { self.stalls + 1 } else { 0 };
        if self.stalls >= STALLS_MAX && self.settings.strategy == Strategy::Postcopy {
            // To slow it down would cost it more.
            return self.leave_behind();
        }
        if self.stalls >= STALLS_MAX && self.running_percent > THROTTLE_KEPT_PERCENT {
            self.stalls = 0;
            self.running_percent = (self.running_percent / 2).max(THROTTLE_KEPT_PERCENT);
            self.effects.push_back(Effect::Throttle(self.running_percent));
        }
        self.round += 1;
        self.round_pages = remaining;
        self.cursor = 0;
    }

    fn resume_if_stopped(&mut self) {
        let stopped = self.phase >= Phase::Stopping && self.phase <= Phase::Committed;
        if stopped || self.running_percent < 100 {
            self.running_percent = 100;
            self.effects.push_back(Effect::Resume);
        }
    }

    fn end(&mut self, outcome: Outcome) {
        self.phase = Phase::Done;
        self.effects.push_back(Effect::End(outcome));
    }
}

#[cfg(test)]
mod tests;
