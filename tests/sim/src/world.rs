//! Three hosts, the streams between them, time, and what goes wrong. The main function is [`run`].

use crate::guest::Truth;
use crate::host::{Host, Net, Vm};
use crate::incoming::Incoming;
use crate::outgoing::Outgoing;
use crate::random::Random;
use migrate::source::{Outcome, Phase};
use migrate::target;
use migrate::{Id, Settings, Strategy};
use std::sync::{Arc, Mutex};

const HOSTS: usize = 3;
/// Moves in which things go wrong, then moves in which nothing does.
const BAD_MOVES: u32 = 4;
const GOOD_MOVES: u32 = 3;
/// A turn of everybody.
const TICK_NS: u64 = 500_000;
/// Turns that one move takes at most, whatever happens.
const TICKS_MAX: u32 = 20_000;
/// Turns until a host that died is on again.
const OFF_TICKS: u64 = 40;

/// What a run came to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Moves that succeeded.
    pub moved: u32,
    /// Moves after which the guest was where it had been.
    pub stayed: u32,
    /// It died with its host, or nobody can say who has it: 1.
    pub lost: u32,
    /// Moves that ended with the guest's memory following it, and guests that stood for want of theirs.
    pub split: u32,
    /// See there.
    pub stood: u32,
    /// Moves whose target was given up, and had all of the guest.
    pub whole: u32,
    /// Moves that ended before the target knew, which had all of the guest.
    pub withdrawn: u32,
    /// Links cut.
    pub cuts: u32,
    /// Hosts that died.
    pub deaths: u32,
    /// Bytes changed.
    pub corruptions: u32,
    /// Steps that the guest made.
    pub steps: u64,
}

struct World {
    hosts: Vec<Host>,
    net: Net,
    truth: Arc<Mutex<Truth>>,
    random: Random,
    now_ns: u64,
    /// When hosts that are off are on again.
    off_until_ns: [Option<u64>; HOSTS],
    tally: Tally,
    /// The guest's host died with it.
    is_dead: bool,
}

/// Plays a seed.
///
/// # Errors
/// What went wrong, in one line: a second owner, a lost page, an owner that is missing.
pub fn run(seed: u64) -> Result<Tally, String> {
    let mut world = World::new(seed);
    for _ in 0..BAD_MOVES {
        world.move_once(true)?;
        if world.is_dead {
            return world.end();
        }
    }
    world.settle()?;
    for _ in 0..GOOD_MOVES {
        let before = world.tally.moved;
        let last_restore_failed = || "a move on which nothing went wrong failed".to_string();
        // Restoring may fail at the target at any time; the next try is as good as the first.
        for _ in 0..20 {
            world.move_once(false)?;
            if world.tally.moved > before {
                break;
            }
        }
        (world.tally.moved > before).then_some(()).ok_or_else(last_restore_failed)?;
    }
    world.end()
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let net = Net::new(HOSTS, Random::new(random.next()));
        let truth = Arc::new(Mutex::new(Truth::new()));
        let mut hosts: Vec<Host> = (0..HOSTS).map(|index| Host::new(index, 0, &mut random)).collect();
        let mut vm = Vm::new(hosts[0].wall_unix_ns(), &truth);
        vm.boot(hosts[0].moment(0));
        hosts[0].vm = Some(vm);
        let (off_until_ns, tally) = ([None; HOSTS], Tally::default());
        Self { hosts, net, truth, random, now_ns: 0, off_until_ns, tally, is_dead: false }
    }

    /// Where the guest is, as far as one host has it.
    fn place(&self) -> Option<usize> {
        self.hosts.iter().position(|host| host.vm.as_ref().is_some_and(|vm| vm.runs))
    }

    /// Moves the guest to another host; things may go wrong.
    fn move_once(&mut self, goes_wrong: bool) -> Result<(), String> {
        let Some(from) = self.place() else { return Err("the guest runs nowhere".to_string()) };
        let to = (from + 1 + self.random.below(2) as usize * usize::from(goes_wrong)) % HOSTS;
        let mut id = Id::default();
        id.0.iter_mut().for_each(|byte| *byte = self.random.next() as u8);
        let settings = self.settings(goes_wrong);
        self.hosts[to].is_full = goes_wrong && self.random.one_in(20);
        let host = &mut self.hosts[from];
        let vm = host.vm.as_ref().ok_or("the guest is nowhere")?;
        host.outgoing = Some(Outgoing::new(vm, id, settings, (from, to), self.now_ns));
        let (mut faults, rate) = (if goes_wrong { self.random.below(4) } else { 0 }, 1 + self.random.below(120));
        for _ in 0..TICKS_MAX {
            // What happens while the guest changes hands is worth more.
            let rate = if self.changes_hands(from) { rate.min(6) } else { rate };
            if faults > 0 && self.random.one_in(rate) {
                faults -= 1;
                self.fault(from, to);
            }
            if goes_wrong && self.is_unheard(from) && self.random.one_in(10) {
                self.give_up(from);
            }
            self.tick()?;
            if self.is_dead || self.has_ended(from)? {
                return Ok(());
            }
        }
        Err(format!(
            "a move does not end: {:?}",
            self.hosts[from].outgoing.as_ref().map(|outgoing| outgoing.source.phase())
        ))
    }

    fn settings(&mut self, goes_wrong: bool) -> Settings {
        let usual = Settings {
            downtime_ns: 1_000_000 + self.random.below(10_000_000),
            timeout_ns: 20_000_000 + self.random.below(2_000_000_000),
            strategy: Strategy::Stop,
            bandwidth_max: None,
        };
        match self.random.below(6) {
            // Soon enough that much of its memory follows.
            0..3 => Settings {
                downtime_ns: 0,
                timeout_ns: 3_000_000 + self.random.below(40_000_000),
                strategy: Strategy::Postcopy,
                ..usual
            },
            3 | 4 if goes_wrong => Settings { strategy: Strategy::Cancel, ..usual },
            _ => usual,
        }
    }

    fn changes_hands(&self, from: usize) -> bool {
        let outgoing = self.hosts[from].outgoing.as_ref();
        outgoing.is_some_and(|outgoing| outgoing.source.phase() >= Phase::Saving)
    }

    /// Whether the move from a host is decided.
    fn has_ended(&mut self, from: usize) -> Result<bool, String> {
        let Some(outgoing) = &self.hosts[from].outgoing else {
            // Its host died: the guest runs elsewhere, or died with it.
            return self.orphaned();
        };
        let Some(outcome) = outgoing.outcome.clone() else { return Ok(false) };
        let arrived = self.arrived(outgoing.source.id());
        let has = |what: fn(&Incoming) -> bool| u32::from(arrived.is_some_and(what));
        let is_postcopy = has(|incoming| incoming.target.is_postcopy());
        let (is_whole, stood) = (has(|incoming| incoming.target.is_complete()), has(|incoming| incoming.stood));
        match &outcome {
            Outcome::Moved => {
                self.tally.moved += 1;
                self.tally.split += is_postcopy;
                self.tally.stood += stood;
            }
            // It was whole by then, or what it lacks is gone.
            Outcome::Torn if outgoing.gives_up && is_whole == 1 => self.tally.whole += 1,
            Outcome::Stayed(_) => self.tally.stayed += 1,
            Outcome::Lost | Outcome::Torn if self.tally.deaths > 0 || outgoing.gives_up => {
                self.is_dead = true;
                self.tally.lost = 1;
            }
            Outcome::Lost | Outcome::Torn => return Err("the guest is lost, and no host died".to_string()),
        }
        let host = &mut self.hosts[from];
        if outcome != Outcome::Lost && !outcome.is_gone() {
            // What is here the operator may start again.
            host.vm.iter_mut().for_each(|vm| vm.runs = true);
        }
        let withdrawn = host.outgoing.take().filter(|outgoing| outgoing.source.phase() == Phase::Withdrawing);
        self.tally.withdrawn += u32::from(withdrawn.is_some());
        host.withdrawn.extend(withdrawn);
        Ok(true)
    }

    /// A migration at its target.
    fn arrived(&self, id: Id) -> Option<&Incoming> {
        self.hosts.iter().flat_map(|host| &host.incoming).find(|incoming| incoming.target.id() == id)
    }

    /// The source died: whoever has the guest goes on; a target that waits for the word needs a person.
    fn orphaned(&mut self) -> Result<bool, String> {
        // Its last word may have arrived after its death, and memory cannot any more.
        let is_torn = self.hosts.iter().flat_map(|host| &host.incoming).any(Incoming::needs_source);
        if is_torn || self.place().is_none() {
            self.is_dead = true;
            self.tally.lost = 1;
        }
        Ok(true)
    }

    /// Something goes wrong between these hosts.
    fn fault(&mut self, from: usize, to: usize) {
        let outgoing = self.hosts[from].outgoing.as_ref();
        let link = outgoing.and_then(Outgoing::link);
        // While memory follows the guest, what can be survived is worth more.
        let is_split = outgoing.is_some_and(|outgoing| outgoing.source.phase() == Phase::Serving);
        let is_open = outgoing.is_some_and(|outgoing| outgoing.source.phase() > Phase::Offering);
        match self.random.below(if is_split { 5 } else { 8 }) {
            0..3 => {
                if let Some(stream) = link.and_then(|link| self.net.streams.get_mut(&link)) {
                    self.tally.cuts += 1;
                    stream.cut(self.now_ns, &mut self.random);
                }
            }
            // A handshake whose lengths grow waits for the caller's time to pass, which is not played here.
            3 if !is_open => {}
            3 => {
                let after = self.random.below(40_000);
                if let Some(stream) = link.and_then(|link| self.net.streams.get_mut(&link)) {
                    self.tally.corruptions += 1;
                    stream.corrupt(after);
                }
            }
            4 | 5 => self.kill(to),
            6 if self.random.one_in(2) => self.kill(from),
            6 => {
                if let Some(outgoing) = &mut self.hosts[from].outgoing {
                    outgoing.source.cancel("the operator cancelled it");
                }
            }
            _ => {
                if let Some(incoming) = self.hosts[to].incoming.last_mut() {
                    incoming.target.cancel("the operator cancelled it");
                }
            }
        }
    }

    /// Whether all of the guest is at the target, and its source has not heard that.
    fn is_unheard(&self, from: usize) -> bool {
        let source = self.hosts[from].outgoing.as_ref().map(|outgoing| &outgoing.source);
        source.is_some_and(|source| {
            let is_complete = self.arrived(source.id()).is_some_and(|incoming| incoming.target.is_complete());
            source.phase() == Phase::Serving && is_complete
        })
    }

    /// The link breaks, and a host's operator gives up the other, which may have all of the guest.
    fn give_up(&mut self, from: usize) {
        let Some(outgoing) = &mut self.hosts[from].outgoing else { return };
        outgoing.gives_up = true;
        if let Some(stream) = outgoing.link().and_then(|link| self.net.streams.get_mut(&link)) {
            stream.cut(self.now_ns, &mut self.random);
        }
    }

    /// A host loses everything that it knows.
    fn kill(&mut self, index: usize) {
        if self.off_until_ns[index].is_some() {
            return;
        }
        self.tally.deaths += 1;
        for stream in self.net.streams.values_mut().filter(|stream| stream.ends.iter().any(|end| end.host == index)) {
            stream.cut(self.now_ns, &mut self.random);
            stream.ends.iter_mut().filter(|end| end.host == index).for_each(|end| end.is_over = true);
        }
        let host = &self.hosts[index];
        let gave_away = host
            .outgoing
            .as_ref()
            .is_some_and(|outgoing| [Phase::Committed, Phase::Serving].contains(&outgoing.source.phase()));
        // Who runs it, or has memory that it still needs: also where the word that gives it away is under way.
        let is_torn =
            host.outgoing.is_some() && self.hosts.iter().flat_map(|host| &host.incoming).any(Incoming::needs_source);
        let takes_half = host
            .outgoing
            .as_ref()
            .is_some_and(|outgoing| outgoing.source.phase() == Phase::Committed && outgoing.source.is_postcopy());
        self.is_dead |= is_torn || takes_half || host.vm.is_some() && !gave_away;
        self.tally.lost = u32::from(self.is_dead);
        self.hosts[index] = Host::new(index, self.now_ns, &mut self.random);
        self.net.hosts[index].1 = false;
        self.off_until_ns[index] = Some(self.now_ns + OFF_TICKS * TICK_NS);
    }

    /// Lets time pass until every host is on, and nothing is under way.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..TICKS_MAX {
            self.tick()?;
            let waits =
                |incoming: &Incoming| !matches!(incoming.target.phase(), target::Phase::Running | target::Phase::Gone);
            let is_quiet = self.off_until_ns.iter().all(Option::is_none)
                && self.hosts.iter().all(|host| host.withdrawn.is_empty() && !host.incoming.iter().any(waits));
            if is_quiet {
                return Ok(());
            }
            // A target that is ready and whose source died waits for a person, who gives it up.
            self.hosts.iter_mut().flat_map(|host| &mut host.incoming).for_each(|incoming| {
                incoming.target.cancel("its source is no more");
            });
        }
        Err("hosts do not come to rest".to_string())
    }

    fn tick(&mut self) -> Result<(), String> {
        self.now_ns += TICK_NS;
        for index in 0..HOSTS {
            match self.off_until_ns[index] {
                Some(until_ns) if until_ns > self.now_ns => continue,
                Some(_) => {
                    self.off_until_ns[index] = None;
                    self.net.hosts[index].1 = true;
                }
                None => {}
            }
            let host = &mut self.hosts[index];
            host.poll(&mut self.net, self.now_ns, &self.truth);
            let moment = host.moment(self.now_ns);
            if let Some(vm) = &mut host.vm
                && self.random.below(100) < vm.percent.into()
            {
                vm.run(moment, &self.truth);
            }
        }
        for stream in self.net.streams.values_mut() {
            stream.send(self.now_ns, &mut self.net.random);
        }
        self.net.streams.retain(|_, stream| !stream.is_gone());
        let owners = self.hosts.iter().filter(|host| host.vm.as_ref().is_some_and(|vm| vm.runs)).count();
        if owners > 1 {
            return Err("two hosts run the guest".to_string());
        }
        match self.truth.lock().expect("nobody panicked").wrong.clone() {
            Some(wrong) => Err(wrong),
            None => Ok(()),
        }
    }

    fn end(mut self) -> Result<Tally, String> {
        let mut truth = self.truth.lock().expect("nobody panicked");
        self.tally.steps = truth.count();
        let runs = self.hosts.iter().find_map(|host| host.vm.as_ref().filter(|vm| vm.runs));
        if let Some(vm) = runs.filter(|_| !self.is_dead) {
            truth.check(vm.machine.memory());
        } else if !self.is_dead {
            return Err("the guest runs nowhere at the end".to_string());
        }
        truth.wrong.take().map_or(Ok(self.tally), Err)
    }
}
