//! The target's side: what has arrived, whether it is whole, and who owns the guest.
//!
//! [`Target`] is told what happened (methods named after events) and says what to do next ([`Effect`]). It is kept after
//! its end, for a source that asks again. Its mirror is [`crate::source`].

use crate::Id;
use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use guestmem::{NoRoom, PageSet};

/// How far it has got.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Phase {
    /// The offer is being looked at.
    Preparing,
    /// Memory and state arrive.
    Receiving,
    /// They are put together.
    Restoring,
    /// They are, and the source was told. Nothing but its word, or the operator's, ends this.
    Ready,
    /// The VM is here.
    Running,
    /// It never ran here and never will.
    Gone,
}

/// What the target says.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Word {
    /// [`crate::wire::Message::Accept`].
    Accept,
    /// [`crate::wire::Message::Refuse`].
    Refuse(String),
    /// [`crate::wire::Message::Ready`].
    Ready,
    /// [`crate::wire::Message::Running`].
    Running,
    /// [`crate::wire::Message::Missing`], of [`Target::missing_pages`].
    Missing,
    /// [`crate::wire::Message::Complete`].
    Complete,
    /// [`crate::wire::Message::Abort`].
    Abort(String),
}

/// What is to be done, in order.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Send it.
    Say(Word),
    /// Make the machine out of the state, up to the point where it only has to be let run, and call
    /// [`Target::restored`].
    Restore,
    /// Let it run, and announce it to the network. Pages that are missing, it waits for.
    Run,
    /// Let it stand: memory that it lacks cannot come.
    Pause,
    /// Let it run on, and ask again for what it waits for.
    GoOn,
    /// All of its memory is here.
    Whole,
    /// Forget the machine, and why.
    Discard(String),
}

/// The most state that a machine has, in bytes.
pub const STATE_BYTES_MAX: u32 = 16 << 20;

/// A source that does not keep to the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Breach(
    /// What it did, in one line.
    pub &'static str,
);

/// One migration, at the target.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    id: Id,
    phase: Phase,
    /// All that there are.
    pages: PageSet,
    /// Pages that have not arrived, or not as they are now.
    missing: PageSet,
    /// Some of them follow the guest.
    is_postcopy: bool,
    /// It stands until there is a session again.
    is_paused: bool,
    state: Vec<u8>,
    state_total: Option<u32>,
    reason: String,
    effects: VecDeque<Effect>,
}

impl Target {
    /// A migration that was offered.
    pub fn new(id: Id) -> Self {
        Self {
            id,
            phase: Phase::Preparing,
            pages: PageSet::default(),
            missing: PageSet::default(),
            is_postcopy: false,
            is_paused: false,
            state: Vec::new(),
            state_total: None,
            reason: String::new(),
            effects: VecDeque::new(),
        }
    }

    /// Its name.
    pub fn id(&self) -> Id {
        self.id
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How many pages have not arrived, or not as they are now.
    pub fn missing(&self) -> u64 {
        self.missing.count()
    }

    /// The same, each.
    pub fn missing_pages(&self) -> &PageSet {
        &self.missing
    }

    /// Whether memory followed the guest, and none does any more.
    pub fn is_complete(&self) -> bool {
        self.is_postcopy && self.phase == Phase::Running && self.missing.is_empty()
    }

    /// Whether memory follows the guest.
    pub fn is_postcopy(&self) -> bool {
        self.is_postcopy
    }

    /// The machine's state, once it is whole.
    pub fn state(&self) -> &[u8] {
        &self.state
    }

    /// What to do next.
    pub fn take_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The offer is good, and a machine with these pages waits for them. Without memory to keep track of them nothing has
    /// changed: the offer is to be refused.
    pub fn prepared(&mut self, pages: PageSet) -> Result<(), NoRoom> {
        if self.phase == Phase::Preparing {
            self.missing = pages.try_clone().ok_or(NoRoom)?;
            self.pages = pages;
            self.phase = Phase::Receiving;
            self.effects.push_back(Effect::Say(Word::Accept));
        }
        Ok(())
    }

    /// The offer is refused.
    pub fn refuse(&mut self, reason: &str) {
        if self.phase == Phase::Preparing {
            self.effects.push_back(Effect::Say(Word::Refuse(reason.to_string())));
            self.discard(reason);
        }
    }

    /// A page arrives: says whether it is to be stored. A guest that runs may have changed what it was given.
    pub fn arrived(&mut self, page: u64) -> Result<bool, Breach> {
        match self.phase {
            Phase::Receiving => {
                self.missing.remove(page);
                Ok(true)
            }
            Phase::Running if self.is_postcopy => {
                let is_new = self.missing.remove(page);
                if is_new && self.missing.is_empty() {
                    self.effects.extend([Effect::Say(Word::Complete), Effect::Whole]);
                }
                Ok(is_new)
            }
            _ => Err(Breach("it sends memory out of turn")),
        }
    }

    /// What changed of a page arrives: it is to be changed.
    pub fn changed(&self, page: u64) -> Result<(), Breach> {
        match self.phase {
            Phase::Receiving if !self.missing.contains(page) => Ok(()),
            Phase::Receiving => Err(Breach("it changes memory that it never sent")),
            _ => Err(Breach("it sends memory out of turn")),
        }
    }

    /// The source says that it will send the `count` pages from `first` on after the guest.
    pub fn left_behind(&mut self, first: u64, count: u64) -> Result<(), Breach> {
        if self.phase != Phase::Receiving {
            return Err(Breach("it leaves memory behind out of turn"));
        }
        let end = first.checked_add(count).filter(|&end| end <= self.pages.end());
        let end = end.ok_or(Breach("it leaves memory behind that the VM does not have"))?;
        if !self.pages.contains_run(first, end - first) {
            return Err(Breach("it leaves memory behind that the VM does not have"));
        }
        self.missing.insert(first, count);
        Ok(())
    }

    /// The next piece of the state arrived; all of it is `total` bytes.
    pub fn state_arrived(&mut self, total: u32, bytes: &[u8]) -> Result<(), Breach> {
        if self.phase != Phase::Receiving {
            return Err(Breach("it sends state out of turn"));
        }
        if total > STATE_BYTES_MAX || *self.state_total.get_or_insert(total) != total {
            return Err(Breach("the state's length is wrong"));
        }
        if bytes.is_empty() || self.state.len() + bytes.len() > total as usize {
            return Err(Breach("the state's pieces do not make its length"));
        }
        self.state.try_reserve(bytes.len()).map_err(|_| Breach("its state is larger than the memory left for it"))?;
        self.state.extend_from_slice(bytes);
        Ok(())
    }

    /// The source has sent everything, but for so many pages that follow.
    pub fn finished(&mut self, left_behind: u64) -> Result<(), Breach> {
        if self.phase != Phase::Receiving {
            return Err(Breach("it finishes out of turn"));
        }
        // What never arrived and what was said to follow is all that the source still has to send.
        if self.missing.count() != left_behind {
            return Err(Breach("pages are missing"));
        }
        self.is_postcopy = left_behind > 0;
        if self.state_total != Some(self.state.len() as u32) {
            return Err(Breach("the state is not whole"));
        }
        self.phase = Phase::Restoring;
        self.effects.push_back(Effect::Restore);
        Ok(())
    }

    /// The machine is put together, or why it cannot be.
    pub fn restored(&mut self, result: Result<(), &str>) {
        if self.phase != Phase::Restoring {
            return;
        }
        match result {
            Ok(()) => {
                self.phase = Phase::Ready;
                self.state = Vec::new();
                self.effects.push_back(Effect::Say(Word::Ready));
            }
            Err(reason) => self.give_up(reason),
        }
    }

    /// The source gave the VM away, perhaps not for the first time.
    pub fn committed(&mut self) -> Result<(), Breach> {
        match self.phase {
            Phase::Ready => {
                self.phase = Phase::Running;
                self.effects.extend([Effect::Run, Effect::Say(Word::Running)]);
            }
            Phase::Running => {
                self.effects.push_back(Effect::Say(Word::Running));
                self.say_what_is_missing();
            }
            Phase::Gone => self.effects.push_back(Effect::Say(Word::Abort(self.reason.clone()))),
            Phase::Preparing | Phase::Receiving | Phase::Restoring => {
                return Err(Breach("it gives away what is not ready"));
            }
        }
        Ok(())
    }

    /// The source took the VM back, perhaps not for the first time.
    pub fn aborted(&mut self, reason: &str) -> Result<(), Breach> {
        match self.phase {
            Phase::Running => return Err(Breach("it takes back what it gave away")),
            Phase::Gone => {}
            Phase::Preparing | Phase::Receiving | Phase::Restoring | Phase::Ready => self.discard(reason),
        }
        self.effects.push_back(Effect::Say(Word::Abort(self.reason.clone())));
        Ok(())
    }

    /// The session ended.
    pub fn unlinked(&mut self, reason: &str) {
        match self.phase {
            Phase::Preparing | Phase::Receiving | Phase::Restoring => self.discard(reason),
            Phase::Running if !self.missing.is_empty() => {
                if !core::mem::replace(&mut self.is_paused, true) {
                    self.effects.push_back(Effect::Pause);
                }
            }
            // The source may have given it away with its last breath, or not: it will say.
            Phase::Ready | Phase::Running | Phase::Gone => {}
        }
    }

    /// The guest ended here: it needs nothing more.
    pub fn ended(&mut self) {
        if self.phase == Phase::Running && !self.missing.is_empty() {
            self.missing.clear();
            self.effects.push_back(Effect::Say(Word::Complete));
        }
    }

    /// The operator gives it up here, or the source broke the protocol; false where the VM runs here already.
    pub fn cancel(&mut self, reason: &str) -> bool {
        let open = !matches!(self.phase, Phase::Running | Phase::Gone);
        if open {
            self.give_up(reason);
        }
        open
    }

    /// On another session: what was under way on the one before is lost, or is not.
    fn say_what_is_missing(&mut self) {
        if self.is_postcopy {
            let word = if self.missing.is_empty() { Word::Complete } else { Word::Missing };
            self.effects.push_back(Effect::Say(word));
        }
        if core::mem::take(&mut self.is_paused) {
            self.effects.push_back(Effect::GoOn);
        }
    }

    fn give_up(&mut self, reason: &str) {
        self.effects.push_back(Effect::Say(Word::Abort(reason.to_string())));
        self.discard(reason);
    }

    fn discard(&mut self, reason: &str) {
        self.phase = Phase::Gone;
        self.reason = reason.to_string();
        self.state = Vec::new();
        // What was due and not done is not done any more: there is nothing left to do it with.
        self.effects.retain(|effect| *effect != Effect::Restore);
        self.effects.push_back(Effect::Discard(reason.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiving() -> Target {
        let mut pages = PageSet::new(4).unwrap();
        pages.insert(0, 4);
        let mut target = Target::new(Id::default());
        target.prepared(pages).unwrap();
        assert_eq!(target.take_effect(), Some(Effect::Say(Word::Accept)));
        target
    }

    fn ready() -> Target {
        let mut target = receiving();
        (0..4).for_each(|page| assert!(target.arrived(page).unwrap()));
        target.state_arrived(4, b"st").unwrap();
        target.state_arrived(4, b"at").unwrap();
        target.finished(0).unwrap();
        assert_eq!(target.take_effect(), Some(Effect::Restore));
        assert_eq!(target.state(), b"stat");
        target.restored(Ok(()));
        assert_eq!(target.take_effect(), Some(Effect::Say(Word::Ready)));
        target
    }

    #[test]
    fn it_runs_on_the_word_and_says_so_again() {
        let mut target = ready();
        target.unlinked("gone");
        assert_eq!((target.phase(), target.take_effect()), (Phase::Ready, None));
        target.committed().unwrap();
        target.committed().unwrap();
        let effects: Vec<_> = core::iter::from_fn(|| target.take_effect()).collect();
        assert_eq!(effects, [Effect::Run, Effect::Say(Word::Running), Effect::Say(Word::Running)]);
        assert!(target.aborted("too late").is_err() && !target.cancel("too late"));
    }

    #[test]
    fn what_is_not_whole_does_not_become_ready() {
        let mut target = receiving();
        (0..3).for_each(|page| assert!(target.arrived(page).unwrap()));
        target.state_arrived(1, b"s").unwrap();
        assert_eq!(target.finished(0), Err(Breach("pages are missing")));
        target.arrived(3).unwrap();
        target.arrived(u64::MAX).unwrap();
        assert!(target.state_arrived(2, b"s").is_err() && target.state_arrived(1, b"t").is_err());
        assert!(target.committed().is_err());
        let mut target = receiving();
        (0..4).for_each(|page| assert!(target.arrived(page).unwrap()));
        assert_eq!(target.finished(0), Err(Breach("the state is not whole")));
        assert!(target.state_arrived(STATE_BYTES_MAX + 1, b"s").is_err());
    }

    #[test]
    fn a_lost_link_ends_what_is_not_ready() {
        let mut target = receiving();
        target.unlinked("gone");
        assert_eq!(target.take_effect(), Some(Effect::Discard("gone".to_string())));
        target.committed().unwrap();
        assert_eq!(target.take_effect(), Some(Effect::Say(Word::Abort("gone".to_string()))));
    }

    #[test]
    fn what_is_given_up_is_not_restored() {
        let mut target = receiving();
        (0..4).for_each(|page| assert!(target.arrived(page).unwrap()));
        target.state_arrived(1, b"s").unwrap();
        target.finished(0).unwrap();
        target.unlinked("gone");
        assert_eq!(target.take_effect(), Some(Effect::Discard("gone".to_string())));
        assert_eq!(target.take_effect(), None);
    }

    #[test]
    fn a_machine_that_cannot_be_restored_is_given_up() {
        let mut target = receiving();
        (0..4).for_each(|page| assert!(target.arrived(page).unwrap()));
        target.state_arrived(1, b"s").unwrap();
        target.finished(0).unwrap();
        assert_eq!(target.take_effect(), Some(Effect::Restore));
        target.restored(Err("an unknown unit"));
        let effects: Vec<_> = core::iter::from_fn(|| target.take_effect()).collect();
        let reason = || "an unknown unit".to_string();
        assert_eq!(effects, [Effect::Say(Word::Abort(reason())), Effect::Discard(reason())]);
    }

    /// A guest that runs, and lacks its last two pages.
    fn running_in_part() -> Target {
        let mut target = receiving();
        (0..3).for_each(|page| assert!(target.arrived(page).unwrap()));
        target.left_behind(2, 1).unwrap();
        target.state_arrived(1, b"s").unwrap();
        assert_eq!(target.finished(1), Err(Breach("pages are missing")));
        target.finished(2).unwrap();
        target.restored(Ok(()));
        target.committed().unwrap();
        let effects: Vec<_> = core::iter::from_fn(|| target.take_effect()).collect();
        let say = Effect::Say;
        assert_eq!(effects, [Effect::Restore, say(Word::Ready), Effect::Run, say(Word::Running)]);
        target
    }

    #[test]
    fn what_follows_is_stored_once() {
        let mut target = running_in_part();
        assert_eq!(target.arrived(0), Ok(false), "the guest may have changed it");
        assert_eq!(target.arrived(2), Ok(true));
        assert_eq!((target.arrived(2), target.take_effect()), (Ok(false), None));
        assert_eq!(target.arrived(3), Ok(true));
        let effects: Vec<_> = core::iter::from_fn(|| target.take_effect()).collect();
        assert_eq!(effects, [Effect::Say(Word::Complete), Effect::Whole]);
        target.unlinked("gone");
        assert_eq!(target.take_effect(), None, "it needs nobody");
    }

    #[test]
    fn without_a_link_it_stands_and_then_says_what_it_lacks() {
        let mut target = running_in_part();
        target.unlinked("gone");
        target.unlinked("gone");
        target.committed().unwrap();
        let effects: Vec<_> = core::iter::from_fn(|| target.take_effect()).collect();
        let (running, missing) = (Effect::Say(Word::Running), Effect::Say(Word::Missing));
        assert_eq!(effects, [Effect::Pause, running.clone(), missing, Effect::GoOn]);
        assert_eq!(target.missing_pages().iter().collect::<Vec<_>>(), [2, 3]);
        target.ended();
        target.committed().unwrap();
        let effects: Vec<_> = core::iter::from_fn(|| target.take_effect()).collect();
        let complete = Effect::Say(Word::Complete);
        assert_eq!(effects, [complete.clone(), running, complete]);
        assert!(target.is_complete() && !ready().is_complete(), "what was under way is nobody's fault");
    }

    #[test]
    fn memory_that_is_none_is_not_left_behind() {
        let mut target = receiving();
        assert!(target.left_behind(3, 2).is_err() && target.left_behind(u64::MAX, 1).is_err());
        assert!(ready().left_behind(0, 1).is_err() && ready().arrived(0).is_err());
    }
}
