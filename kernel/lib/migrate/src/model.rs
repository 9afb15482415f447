//! Model checking of source and target: every order of steps, every break of the link, every death, for a guest of two
//! pages that writes while it moves.
//!
//! The state machines are the real ones; the model is what lies around them. A session delivers in order or breaks, and
//! with it everything under way is lost: that is what `peer` makes of loss, duplication, reordering and forgery. Across
//! sessions words are said again and answers come late.

use crate::source::{self, Outcome, Source};
use crate::target::{self, Target};
use crate::{Id, Settings, Strategy};
use guestmem::PageSet;
use stateright::{Checker, Model, Property};
use std::collections::VecDeque;

const PAGES: usize = 2;
/// What the guest writes at the target.
const WRITTEN: u8 = 99;

/// What may go wrong, and how often.
struct World {
    writes: u8,
    breaks: u8,
    deaths: u8,
    cancels: u8,
    strategy: Strategy,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum ToTarget {
    Word(source::Word),
    Page(usize, u8),
    Missing(PageSet),
    Finish(u64),
    State,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    source: Source,
    source_alive: bool,
    source_runs: bool,
    memory: [u8; PAGES],
    dirty: [bool; PAGES],
    outcome: Option<Outcome>,
    /// `None` where it knows of nothing.
    target: Option<Target>,
    target_alive: bool,
    target_runs: bool,
    image: [Option<u8>; PAGES],
    /// It wrote there itself.
    written: [bool; PAGES],
    /// It stands for want of a session, and is complete.
    target_stands: bool,
    target_whole: bool,
    /// A session stands; what is under way in it.
    link: bool,
    to_target: VecDeque<ToTarget>,
    to_source: VecDeque<Answer>,
    /// An end has not noticed yet that its session broke.
    source_unaware: bool,
    target_unaware: bool,
    wants_session: bool,
    writes: u8,
    breaks: u8,
    deaths: u8,
    cancels: u8,
    /// Pages that it waits for, and asked for on this session.
    asked: [bool; PAGES],
    /// What a look found, which is not reported yet.
    look: Option<PageSet>,
    /// The guest has stood at the target.
    stood: bool,
    /// The target lost its memory, or the operator gave up there.
    forgot: bool,
    /// The operator of the source gave up the target, which could not be reached.
    gave_up: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Answer {
    Word(target::Word),
    Missing(PageSet),
    Want(usize),
    Unknown,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Action {
    Write(usize),
    WriteAtTarget(usize),
    Want(usize),
    SourceEffect,
    Looked,
    SendPage,
    TargetEffect { succeeds: bool },
    Deliver { accept: bool },
    Answer,
    Break,
    SourceNotices,
    TargetNotices,
    Connect,
    SourceDies,
    TargetDies,
    SourceCancels,
    SourceGivesUp,
    SourceStarts,
    TargetCancels,
    TimeoutPasses,
}

fn all() -> PageSet {
    let mut pages = PageSet::new(PAGES as u64).unwrap();
    pages.insert(0, PAGES as u64);
    pages
}

impl State {
    fn source_effect(&mut self) {
        match self.source.take_effect().unwrap() {
            source::Effect::Say(source::Word::Missing) => {
                self.send(ToTarget::Missing(self.source.pages_to_send().clone()));
            }
            source::Effect::Say(source::Word::Finish) => self.send(ToTarget::Finish(self.source.remaining())),
            source::Effect::Say(word) => self.send(ToTarget::Word(word)),
            source::Effect::Look => {
                let mut written = PageSet::new(PAGES as u64).unwrap();
                for (page, dirty) in self.dirty.iter_mut().enumerate() {
                    written.insert(page as u64, u64::from(core::mem::take(dirty)));
                }
                assert!(self.look.replace(written).is_none(), "one look at a time");
            }
            source::Effect::Throttle(_) => {}
            source::Effect::Stop => {
                self.source_runs = false;
                let mut essential = PageSet::new(PAGES as u64).unwrap();
                essential.insert(1, 1);
                self.source.stopped(&essential);
            }
            source::Effect::SendState => {
                self.send(ToTarget::State);
                self.source.state_sent();
            }
            source::Effect::Resume => self.source_runs = true,
            source::Effect::Connect => self.wants_session = true,
            source::Effect::End(outcome) => self.outcome = Some(outcome),
        }
    }

    fn send(&mut self, message: ToTarget) {
        if self.link && !self.source_unaware {
            self.to_target.push_back(message);
        }
    }

    fn answer(&mut self, answer: Answer) {
        if self.link && !self.target_unaware {
            self.to_source.push_back(answer);
        }
    }

    fn target_effect(&mut self, succeeds: bool) {
        let target = self.target.as_mut().unwrap();
        match target.take_effect().unwrap() {
            target::Effect::Say(target::Word::Missing) => {
                let missing = target.missing_pages().clone();
                self.answer(Answer::Missing(missing));
            }
            target::Effect::Say(word) => self.answer(Answer::Word(word)),
            target::Effect::Restore => target.restored(if succeeds { Ok(()) } else { Err("it does not fit") }),
            target::Effect::Run => self.target_runs = true,
            target::Effect::Pause => (self.target_stands, self.stood) = (true, true),
            target::Effect::GoOn => (self.target_stands, self.asked) = (false, [false; PAGES]),
            target::Effect::Whole => self.target_whole = true,
            target::Effect::Discard(_) => self.image = [None; PAGES],
        }
    }

    fn deliver(&mut self, accept: bool) {
        let message = self.to_target.pop_front().unwrap();
        let Some(target) = &mut self.target else {
            match message {
                ToTarget::Word(source::Word::Offer) => {
                    let mut target = Target::new(Id::default());
                    if accept {
                        target.prepared(all()).unwrap()
                    } else {
                        target.refuse("no room")
                    }
                    self.target = Some(target);
                }
                _ => self.answer(Answer::Unknown),
            }
            return;
        };
        let result = match message {
            ToTarget::Word(source::Word::Offer) => unreachable!("an offer is made once"),
            ToTarget::Word(source::Word::Finish | source::Word::Missing) => unreachable!("they are sent with numbers"),
            ToTarget::Missing(pages) => pages.iter().try_for_each(|page| target.left_behind(page, 1)),
            ToTarget::Finish(left_behind) => target.finished(left_behind),
            ToTarget::Word(source::Word::Commit) => target.committed(),
            ToTarget::Word(source::Word::Abort(reason)) => target.aborted(&reason),
            ToTarget::Page(page, version) => {
                let result = target.arrived(page as u64);
                if result == Ok(true) {
                    self.image[page] = Some(version);
                }
                result.map(drop)
            }
            ToTarget::State => target.state_arrived(1, b"s"),
        };
        if result.is_err() {
            // What was under way when the target gave up is out of turn; nothing else ever is.
            assert!(self.target.as_ref().unwrap().phase() == target::Phase::Gone, "{result:?}");
        }
    }

    fn hear(&mut self) {
        match self.to_source.pop_front().unwrap() {
            Answer::Word(target::Word::Accept) => self.source.accepted(),
            Answer::Word(target::Word::Refuse(reason)) => self.source.refused(&reason),
            Answer::Word(target::Word::Ready) => self.source.ready(),
            Answer::Word(target::Word::Running) => self.source.running(),
            Answer::Word(target::Word::Abort(reason)) => self.source.aborted(&reason),
            Answer::Word(target::Word::Complete) => self.source.complete(),
            Answer::Word(target::Word::Missing) => unreachable!("it is sent with numbers"),
            Answer::Missing(pages) => pages.iter().for_each(|page| self.source.missing(page, 1)),
            Answer::Want(page) => self.source.wanted(page as u64),
            Answer::Unknown => self.source.unknown(),
        }
    }

    fn break_link(&mut self) {
        self.link = false;
        self.to_target.clear();
        self.to_source.clear();
        (self.source_unaware, self.target_unaware) = (self.source_alive, self.target_alive);
    }

    fn notice_at_target(&mut self) {
        self.target_unaware = false;
        if let Some(target) = &mut self.target {
            target.unlinked("the link is down");
        }
    }

    fn give_up(&mut self) {
        self.cancels -= 1;
        (self.gave_up, self.wants_session) = (true, false);
        self.source.torn();
    }

    fn connect(&mut self) {
        self.wants_session = false;
        if self.target_unaware {
            self.notice_at_target();
        }
        self.link = true;
        self.source.linked();
    }
}

impl State {
    /// What the guest should find in a page at the target.
    fn truth(&self, page: usize) -> Option<u8> {
        Some(if self.written[page] { WRITTEN } else { self.memory[page] })
    }

    /// One of the two halves was given up, or is gone.
    fn is_torn(&self) -> bool {
        self.forgot || self.gave_up
    }

    fn lacks(&self, page: usize) -> bool {
        self.target.as_ref().is_some_and(|target| target.missing_pages().contains(page as u64))
    }

    fn missing(&self) -> u64 {
        self.target.as_ref().map_or(0, Target::missing)
    }

    /// What the guest does with a page at the target: it waits for it, or writes there.
    fn touch(&self, page: usize) -> Option<Action> {
        match self.lacks(page) {
            true => (self.link && !self.target_unaware && !self.asked[page]).then_some(Action::Want(page)),
            false => (self.writes > 0 && !self.written[page]).then_some(Action::WriteAtTarget(page)),
        }
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let settings = Settings { timeout_ns: 1, strategy: self.strategy, ..Settings::default() };
        let source = Source::new(Id::default(), settings, all(), 0).unwrap();
        vec![State {
            source,
            source_alive: true,
            source_runs: true,
            memory: [0; PAGES],
            dirty: [false; PAGES],
            outcome: None,
            target: None,
            target_alive: true,
            target_runs: false,
            image: [None; PAGES],
            written: [false; PAGES],
            target_stands: false,
            target_whole: false,
            link: true,
            to_target: VecDeque::new(),
            to_source: VecDeque::new(),
            source_unaware: false,
            target_unaware: false,
            wants_session: false,
            writes: self.writes,
            breaks: self.breaks,
            deaths: self.deaths,
            cancels: self.cancels,
            asked: [false; PAGES],
            look: None,
            stood: false,
            forgot: false,
            gave_up: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let State { source, target, source_alive, target_alive, .. } = state;
        if *source_alive {
            if state.source_runs && state.writes > 0 {
                actions.extend((0..PAGES).map(Action::Write));
            }
            let has_effect = source.clone().take_effect().is_some();
            if has_effect {
                actions.push(Action::SourceEffect);
            } else if source.wants_pages() {
                actions.push(Action::SendPage);
            }
            if state.look.is_some() {
                actions.push(Action::Looked);
            }
            if state.source_unaware {
                actions.push(Action::SourceNotices);
            } else if state.wants_session && *target_alive {
                actions.push(Action::Connect);
            }
            if !state.to_source.is_empty() {
                actions.push(Action::Answer);
            }
            if state.cancels > 0 {
                actions.push(Action::SourceCancels);
                if source.phase() == source::Phase::Serving && !state.link && !state.source_unaware {
                    actions.push(Action::SourceGivesUp);
                }
            }
            if state.outcome.as_ref().is_some_and(|outcome| *outcome != Outcome::Lost && !outcome.is_gone()) {
                actions.push(Action::SourceStarts);
            }
            if source.phase() == source::Phase::Copying {
                actions.push(Action::TimeoutPasses);
            }
        }
        if *target_alive {
            match target.clone().and_then(|mut target| target.take_effect()) {
                Some(target::Effect::Restore) => {
                    actions.extend([true, false].map(|succeeds| Action::TargetEffect { succeeds }));
                }
                Some(_) => actions.push(Action::TargetEffect { succeeds: true }),
                None => {}
            }
            if !state.to_target.is_empty() {
                actions.push(Action::Deliver { accept: true });
                if target.is_none() {
                    actions.push(Action::Deliver { accept: false });
                }
            }
            if state.target_unaware {
                actions.push(Action::TargetNotices);
            }
            if state.cancels > 0 && target.is_some() {
                actions.push(Action::TargetCancels);
            }
            if state.target_runs && !state.target_stands {
                actions.extend((0..PAGES).filter_map(|page| state.touch(page)));
            }
        }
        if state.link && state.breaks > 0 {
            actions.push(Action::Break);
        }
        if state.deaths > 0 {
            actions.extend([Action::SourceDies, Action::TargetDies]);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Write(page) => {
                state.writes -= 1;
                state.memory[page] += 1;
                state.dirty[page] = true;
            }
            Action::WriteAtTarget(page) => {
                state.writes -= 1;
                (state.image[page], state.written[page]) = (Some(WRITTEN), true);
            }
            Action::Want(page) => {
                state.asked[page] = true;
                state.answer(Answer::Want(page));
            }
            Action::Looked => {
                // Anything that remains is too much for a running guest, so that there are further rounds.
                let written = state.look.take().unwrap();
                state.source.looked(&written, 1 << 40, 0, 0);
            }
            Action::SourceEffect => state.source_effect(),
            Action::SendPage => {
                let page = state.source.take_page().unwrap() as usize;
                state.send(ToTarget::Page(page, state.memory[page]));
                state.source.advance();
            }
            Action::TargetEffect { succeeds } => state.target_effect(succeeds),
            Action::Deliver { accept } => state.deliver(accept),
            Action::Answer => state.hear(),
            Action::Break => {
                state.breaks -= 1;
                state.break_link();
            }
            Action::SourceNotices => {
                state.source_unaware = false;
                state.source.unlinked("the link is down");
            }
            Action::TargetNotices => state.notice_at_target(),
            Action::Connect => state.connect(),
            Action::SourceDies => {
                state.deaths -= 1;
                (state.source_alive, state.source_runs) = (false, false);
                state.break_link();
            }
            Action::TargetDies => {
                state.deaths -= 1;
                state.break_link();
                (state.target, state.target_runs, state.target_unaware) = (None, false, false);
                (state.image, state.forgot) = ([None; PAGES], true);
                (state.written, state.asked) = ([false; PAGES], [false; PAGES]);
                (state.target_stands, state.target_whole) = (false, false);
            }
            Action::SourceCancels => {
                state.cancels -= 1;
                state.source.cancel("the operator said so");
            }
            Action::SourceGivesUp => state.give_up(),
            Action::SourceStarts => state.source_runs = true,
            Action::TargetCancels => {
                state.cancels -= 1;
                state.target.as_mut().unwrap().cancel("the operator said so");
            }
            Action::TimeoutPasses => state.source.tick(1),
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two owners", |_, state: &State| !(state.source_runs && state.target_runs)),
            // Whatever becomes of it there: it is saved, ended, or given to a third host.
            Property::always("what stays is given to nobody", |_, state: &State| {
                !matches!(state.outcome, Some(Outcome::Stayed(_))) || !state.target_runs
            }),
            Property::always("no page is lost", |_, state: &State| {
                !state.target_runs || (0..PAGES).all(|page| state.lacks(page) || state.image[page] == state.truth(page))
            }),
            Property::always("what is missing is kept", |_, state: &State| {
                let is_whole = (0..PAGES).all(|page| !state.lacks(page));
                let is_kept = state.outcome.is_none() || state.outcome == Some(Outcome::Torn);
                !state.target_runs || is_whole || is_kept || !state.source_alive
            }),
            Property::always("who stays runs, who moved does not", |world: &World, state: &State| {
                match &state.outcome {
                    None => true,
                    Some(Outcome::Stayed(_)) => state.source_runs || !state.source_alive,
                    Some(Outcome::Moved) => !state.source_runs && (state.target_runs || state.forgot),
                    Some(Outcome::Lost) => state.forgot && !state.source_runs,
                    Some(Outcome::Torn) => {
                        state.is_torn() && !state.source_runs && world.strategy == Strategy::Postcopy
                    }
                }
            }),
            Property::always("where all is quiet nobody waits", |world: &World, state: &State| {
                let mut actions = Vec::new();
                world.actions(state, &mut actions);
                let is_done = state.source.phase() == source::Phase::Done && !state.target_stands;
                let is_complete = !state.target_runs || state.missing() == 0;
                !actions.is_empty() || !state.source_alive || state.is_torn() || is_done && is_complete
            }),
            Property::sometimes("it is whole at a target that was given up", |world: &World, state: &State| {
                let may_be = world.strategy == Strategy::Postcopy && world.cancels > 0 && world.breaks > 0;
                !may_be || state.target_whole && state.outcome == Some(Outcome::Torn)
            }),
            Property::sometimes("it moves in two halves", |world: &World, state: &State| {
                world.strategy != Strategy::Postcopy || state.target_whole && state.outcome == Some(Outcome::Moved)
            }),
            Property::sometimes("it stands and goes on", |world: &World, state: &State| {
                let is_over = state.target_whole && state.outcome == Some(Outcome::Moved);
                world.strategy != Strategy::Postcopy || world.breaks == 0 || is_over && state.stood
            }),
            Property::always("where all is quiet there is an owner", |world: &World, state: &State| {
                let mut actions = Vec::new();
                world.actions(state, &mut actions);
                let is_owned = state.source_runs || state.target_runs;
                !actions.is_empty() || is_owned || !state.source_alive || state.forgot
            }),
            Property::sometimes("it moves", |_, state: &State| state.outcome == Some(Outcome::Moved)),
            Property::sometimes("it moves across a broken link", |world: &World, state: &State| {
                world.breaks == 0 || state.outcome == Some(Outcome::Moved) && state.breaks < world.breaks
            }),
            Property::sometimes("it stays before the target knows", |world: &World, state: &State| {
                let is_ready = state.target.as_ref().is_some_and(|target| target.phase() == target::Phase::Ready);
                let may_fail = world.breaks > 0 || world.cancels > 0;
                !may_fail || is_ready && matches!(state.outcome, Some(Outcome::Stayed(_)))
            }),
            Property::sometimes("it stays", |_, state: &State| matches!(state.outcome, Some(Outcome::Stayed(_)))),
        ]
    }
}

fn check(world: World) {
    let checker = world.checker().threads(2).spawn_dfs().join();
    checker.assert_properties();
    assert!(checker.unique_state_count() > 500, "{} states", checker.unique_state_count());
}

#[test]
fn links_break() {
    check(World { writes: 2, breaks: 2, deaths: 0, cancels: 0, strategy: Strategy::Stop });
}

#[test]
fn hosts_die() {
    check(World { writes: 1, breaks: 1, deaths: 1, cancels: 0, strategy: Strategy::Stop });
}

#[test]
fn operators_cancel_and_time_runs_out() {
    check(World { writes: 1, breaks: 1, deaths: 0, cancels: 1, strategy: Strategy::Cancel });
}

#[test]
fn links_break_in_post_copy() {
    check(World { writes: 1, breaks: 2, deaths: 0, cancels: 0, strategy: Strategy::Postcopy });
}

#[test]
fn operators_give_up_in_post_copy() {
    check(World { writes: 1, breaks: 1, deaths: 0, cancels: 1, strategy: Strategy::Postcopy });
}

#[test]
fn hosts_die_in_post_copy() {
    check(World { writes: 1, breaks: 1, deaths: 1, cancels: 0, strategy: Strategy::Postcopy });
}
