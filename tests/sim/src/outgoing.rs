//! A VM on its way out of a simulated host: does what [`migrate::Source`] says. Its mirror is [`crate::incoming`].

use crate::host::{Net, Vm};
use crate::stream::News;
use guestmem::PageSet;
use machine::Moment;
use migrate::clock::Comparison;
use migrate::pace::Pace;
use migrate::pages::next_runs;
use migrate::source::{Effect, Outcome, Phase, Word};
use migrate::wire::Message;
use migrate::{Id, Settings, Source, talk};

/// How long until a host is called again.
const CALL_AGAIN_NS: u64 = 3_000_000;
/// State bytes in one message: few, so that there are several.
const STATE_BYTES: usize = 3000;
/// The same for runs of pages.
const RUNS_MAX: usize = 5;

/// A VM that leaves a host.
pub struct Outgoing {
    /// The protocol.
    pub source: Source,
    /// How it ended.
    pub outcome: Option<Outcome>,
    from: usize,
    to: usize,
    link: Option<usize>,
    is_open: bool,
    call_at_ns: Option<u64>,
    pace: Pace,
    clocks: Comparison,
    /// What the last look found, until every vCPU has forgotten its translations.
    look: Option<PageSet>,
    is_stopping: bool,
    /// It says which pages follow, and has come to this one: what else is to be done waits.
    telling: Option<u64>,
    /// The operator gives the other host up as soon as it cannot be reached.
    pub gives_up: bool,
}

impl Outgoing {
    /// Begins to move `vm` from one host to another.
    pub fn new(vm: &Vm, id: Id, settings: Settings, (from, to): (usize, usize), now_ns: u64) -> Self {
        let memory = vm.machine.memory();
        let all = memory.all_pages().expect("there is memory");
        vm.machine.start_tracking().expect("there is memory");
        *vm.dirty.lock().expect("nobody panicked") = PageSet::new(memory.pages_end()).expect("there is memory");
        Self {
            source: Source::new(id, settings, all, now_ns).expect("there is memory"),
            outcome: None,
            from,
            to,
            link: None,
            is_open: false,
            call_at_ns: Some(now_ns),
            pace: Pace::new(),
            clocks: Comparison::default(),
            look: None,
            is_stopping: false,
            telling: None,
            gives_up: false,
        }
    }

    /// Whether this is its stream.
    pub fn is_on(&self, id: usize) -> bool {
        self.link == Some(id)
    }

    /// The stream that it is on.
    pub fn link(&self) -> Option<usize> {
        self.link
    }

    /// Takes what came on its stream.
    pub fn hear(&mut self, news: News, now_ns: u64, utc_ns: u64) {
        match news {
            News::Open => {
                self.is_open = true;
                if self.source.phase() != Phase::Offering {
                    self.source.linked();
                }
            }
            News::Ended(reason) => self.lost(&reason, now_ns),
            News::Message(bytes) => self.answer(&bytes, now_ns, utc_ns),
            News::Identified => {}
        }
    }

    fn answer(&mut self, bytes: &[u8], now_ns: u64, utc_ns: u64) {
        let clocks = &mut self.clocks;
        let mut compare = |asked_ns, other_ns| clocks.answered(asked_ns, other_ns, now_ns, utc_ns);
        talk::hear(&mut self.source, bytes, &mut compare).expect("what a target says");
    }

    fn lost(&mut self, reason: &str, now_ns: u64) {
        (self.link, self.is_open) = (None, false);
        self.source.unlinked(reason);
        let again = matches!(self.source.phase(), Phase::Committed | Phase::Serving | Phase::Withdrawing);
        self.call_at_ns = again.then_some(now_ns + CALL_AGAIN_NS);
    }

    /// Goes on.
    pub fn poll(&mut self, vm: &mut Option<Vm>, net: &mut Net, now: Moment, now_ns: u64) {
        if self.outcome.is_some() {
            return;
        }
        if self.gives_up && self.link.is_none() {
            self.source.torn();
        }
        self.call(net, now_ns);
        self.source.tick(now_ns);
        if let Some(vm) = vm {
            self.watch(vm, net, now_ns);
        }
        self.carry_out_all(vm, net, now, now_ns);
        if let Some(vm) = vm {
            self.send_pages(vm, net, now_ns);
        }
        self.carry_out_all(vm, net, now, now_ns);
    }

    /// The VM stays, whatever becomes of it: tells the other host, until that has heard it.
    pub fn withdraw(&mut self, net: &mut Net, now_ns: u64) {
        self.call(net, now_ns);
        while let Some(effect) = self.source.take_effect() {
            match effect {
                Effect::Say(word) => self.say(&word, net),
                Effect::Connect => {
                    self.call_at_ns.get_or_insert(now_ns + CALL_AGAIN_NS);
                }
                other => panic!("what stays was to {other:?}"),
            }
        }
        if self.source.phase() == Phase::Done
            && let Some(link) = self.link.take()
        {
            net.close(link, 0, "it is done", now_ns);
        }
    }

    fn call(&mut self, net: &mut Net, now_ns: u64) {
        if self.link.is_none() && self.call_at_ns.is_some_and(|at_ns| at_ns <= now_ns) {
            self.call_at_ns = None;
            match net.connect(self.from, self.to) {
                Some(link) => self.link = Some(link),
                None => self.lost("it does not answer", now_ns),
            }
        }
    }

    /// What others were asked to do takes a while.
    fn watch(&mut self, vm: &mut Vm, net: &mut Net, now_ns: u64) {
        if self.is_stopping && net.random.one_in(2) {
            vm.machine.close();
            self.is_stopping = false;
            let mut essential = PageSet::new(vm.machine.memory().pages_end()).expect("there is memory");
            vm.machine.essential(vm.thread.iter(), &mut essential);
            // A simulated guest has registered nothing: some page of its own.
            essential.insert(net.random.below(512), 3);
            self.source.stopped(&essential);
        }
        if net.random.one_in(2)
            && let Some(written) = self.look.take()
        {
            self.pace.looked(&self.source, &written);
            self.source.looked(&written, 20_000, 1_000_000, now_ns);
        }
        if let Some(link) = self.link.filter(|_| (Phase::Copying..Phase::Finished).contains(&self.source.phase()))
            && let Some(asked_ns) = self.clocks.ask(now_ns)
        {
            net.say(link, 0, &Message::Clock { asked_ns });
        }
    }

    fn carry_out_all(&mut self, vm: &mut Option<Vm>, net: &mut Net, now: Moment, now_ns: u64) {
        let is_called = self.source.phase() != Phase::Offering || self.is_open;
        self.tell(net);
        while is_called
            && self.telling.is_none()
            && let Some(effect) = self.source.take_effect()
        {
            match vm {
                Some(present) => self.carry_out(effect, present, net, now, now_ns),
                None => panic!("a VM that is not there was to {effect:?}"),
            }
            if self.outcome.as_ref().is_some_and(Outcome::is_gone) {
                *vm = None;
            }
        }
    }

    /// Says more of which pages follow, few at a time.
    fn tell(&mut self, net: &mut Net) {
        let Some(link) = self.link else {
            self.telling = None;
            return;
        };
        if let Some(from) = self.telling {
            self.telling = next_runs(self.source.pages_to_send(), from, RUNS_MAX, |runs| {
                net.say(link, 0, &Message::Missing { runs });
            });
        }
    }

    fn carry_out(&mut self, effect: Effect, vm: &mut Vm, net: &mut Net, now: Moment, now_ns: u64) {
        match effect {
            Effect::Say(word) => self.say(&word, net),
            Effect::Look => self.look(vm),
            Effect::Throttle(percent) => vm.percent = percent,
            Effect::Stop => (vm.runs, self.is_stopping) = (false, true),
            Effect::SendState => self.send_state(vm, net, now),
            Effect::Resume => {
                self.is_stopping = false;
                vm.machine.open();
                (vm.runs, vm.percent) = (true, 100);
            }
            Effect::Connect => {
                self.call_at_ns.get_or_insert(now_ns + CALL_AGAIN_NS);
            }
            Effect::End(outcome) => {
                vm.machine.memory().stop_tracking();
                if self.source.phase() == Phase::Done
                    && let Some(link) = self.link.take()
                {
                    net.close(link, 0, "it is done", now_ns);
                }
                self.outcome = Some(outcome);
            }
        }
    }

    fn say(&mut self, word: &Word, net: &mut Net) {
        let Some(link) = self.link else { return };
        match talk::say(&self.source, word, &[], self.clocks.ahead_ns()) {
            Some(message) => net.say(link, 0, &message),
            None => self.telling = Some(0),
        }
    }

    fn look(&mut self, vm: &Vm) {
        let memory = vm.machine.memory();
        let empty = PageSet::new(memory.pages_end()).expect("there is memory");
        let mut written = core::mem::replace(&mut *vm.dirty.lock().expect("nobody panicked"), empty);
        memory.harvest(&mut written);
        // A look that was not reported yet is reported with this one.
        assert!(self.look.is_none(), "one look at a time");
        self.look = Some(written);
    }

    fn send_state(&mut self, vm: &mut Vm, net: &mut Net, now: Moment) {
        let Some(thread) = &mut vm.thread else { return self.source.fail("it has no vCPU") };
        let vcpu = vm.machine.save_vcpu(thread, now);
        let Ok(state) = vm.machine.save(&[vcpu], now) else { return self.source.fail("its state cannot be saved") };
        if let Some(link) = self.link {
            for bytes in state.chunks(STATE_BYTES) {
                net.say(link, 0, &Message::State { total: state.len() as u32, bytes });
            }
        }
        self.source.state_sent();
    }

    /// Sends a few pages: as the kernel does, or a few only, so that more can happen between them.
    fn send_pages(&mut self, vm: &Vm, net: &mut Net, now_ns: u64) {
        let Some(link) = self.link.filter(|_| self.clocks.is_known() && self.source.wants_pages()) else { return };
        let memory = vm.machine.memory();
        let mut message = Vec::new();
        // Memory that follows a guest takes its time, so that the guest waits and links break meanwhile.
        let follows = self.source.phase() == Phase::Serving;
        let all = !follows && net.random.one_in(3);
        let pages_max = if all { usize::MAX } else { 1 + net.random.below(if follows { 12 } else { 60 }) as usize };
        let filled = self.pace.fill_at_most(pages_max, &mut self.source, memory, &|| now_ns, &mut message);
        filled.expect("its memory is there");
        net.send(link, 0, &message);
    }
}
