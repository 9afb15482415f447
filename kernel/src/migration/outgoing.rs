//! A VM on its way out: does what [`migrate::Source`] says, with this host's machine, tables and network.

mod report;

use super::link::Link;
use super::offer::Offer;
use super::withdrawal::Withdrawal;
use super::{CALL_AGAIN_NS, PORT, SOON_NS};
use crate::host::Host;
use crate::management::Management;
use crate::services;
use crate::storage::Lent;
use crate::vm::tracking;
use crate::vm::{Away, Ending, Order, Refusal, Running};
use addr::PAGE_BYTES;
use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use config::PeerSpec;
use guestmem::PageSet;
use machine::End;
use migrate::clock::Comparison;
use migrate::pace::Pace;
use migrate::pages::next_runs;
use migrate::source::{Effect, Outcome, Phase, Word};
use migrate::wire::{MESSAGE_BYTES_MAX, Message, RUNS_MAX, STATE_BYTES_MAX};
use migrate::{Id, Settings, Source, talk};
use nested::Retired;
use peer::{Event, FrameCounts, KeyPair, PublicKey, Role};
use shell::Cursor;

/// The CPU that serves.
const CPU: usize = 0;

/// What the guest stands still for besides its last pages, before that was ever measured: saving, restoring, two
/// answers.
const REST_NS: u64 = 10_000_000;

/// How long its devices may take to come to rest.
const REST_NS_MAX: u64 = 5_000_000_000;

/// A VM that leaves this host.
pub struct Outgoing {
    source: Source,
    pace: Pace,
    clocks: Comparison,
    /// What of the console's text was sent.
    console: Cursor,
    running: Arc<Running>,
    peer: PeerSpec,
    link: Option<Link>,
    /// Of its session.
    frames: FrameCounts,
    /// When the other host is called again.
    call_at_ns: Option<u64>,
    /// Every vCPU has passed by since tracking began.
    is_tracked: bool,
    /// What the last look found; it counts once every vCPU has forgotten its translations.
    look: Option<PageSet>,
    /// When that was collected last, and how fast the guest writes by that.
    looked_ns: u64,
    dirty_pages_per_s: u64,
    /// What all looks cost and found.
    looks: Looks,
    is_stopping: bool,
    /// The disks whose writes are being made stable; none before the guest stands still.
    flushing: Option<Vec<Lent>>,
    started_ns: u64,
    stopped_ns: Option<u64>,
    /// When the other host was heard to run it, which lacks memory of it.
    runs_there_ns: Option<u64>,
    ended_ns: Option<u64>,
    outcome: Option<Outcome>,
    /// Where the VM was last said to be.
    away: Option<Away>,
    /// The bandwidth that was asked for has room for more from this moment on.
    room_at_ns: u64,
    /// Tables that no vCPU walks any more, soon.
    retired: Option<Retired>,
    message: Vec<u8>,
    /// It says which pages follow, and has come to this one: what else is to be done waits.
    telling: Option<u64>,
}

/// The looks at what the guest wrote, together.
#[derive(Default)]
struct Looks {
    count: u64,
    pages: u64,
    ns: u64,
    /// When the last one began.
    began_ns: u64,
}

impl Outgoing {
    /// Begins to move `running` to `peer`, or says in one line why that cannot be.
    pub fn new(
        host: &'static Host,
        running: Arc<Running>,
        peer: PeerSpec,
        settings: Settings,
    ) -> Result<Self, Refusal> {
        if !running.hold() {
            return Err((format!("{} is being saved", running.vm.name()), "wait for that".to_string()));
        }
        let now_ns = host.clock.now_ns();
        Self::track(host, &running, settings, now_ns).inspect_err(|_| running.let_go(host)).map(|source| {
            let console = running.vm.console.lock().replay();
            log::info!("{} leaves for {}", running.vm.name(), peer.name);
            Self {
                source,
                pace: Pace::new(),
                clocks: Comparison::default(),
                console,
                running,
                peer,
                link: None,
                frames: FrameCounts::default(),
                call_at_ns: Some(now_ns),
                is_tracked: false,
                look: None,
                looked_ns: now_ns,
                dirty_pages_per_s: 0,
                looks: Looks::default(),
                is_stopping: false,
                flushing: None,
                started_ns: now_ns,
                stopped_ns: None,
                runs_there_ns: None,
                ended_ns: None,
                outcome: None,
                away: None,
                room_at_ns: 0,
                retired: None,
                message: Vec::new(),
                telling: None,
            }
        })
    }

    /// Begins to note which pages change of all that there are.
    fn track(host: &'static Host, running: &Arc<Running>, settings: Settings, now_ns: u64) -> Result<Source, Refusal> {
        let mut id = Id::default();
        crate::cpu_loop::random(&mut id.0);
        let pages = running.machine.memory().all_pages();
        let source = pages.and_then(|pages| Source::new(id, settings, pages, now_ns));
        let source = source.map_err(|_| tracking::no_room())?;
        tracking::start(host, running)?;
        running.set_moving(true);
        Ok(source)
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        self.running.vm.name()
    }

    /// Lets it stay; says whether it still can.
    pub fn cancel(&mut self) -> bool {
        if self.source.phase() == Phase::Serving && !self.link.as_ref().is_some_and(Link::is_open) {
            // The other host is gone for good, as far as the operator knows.
            self.source.torn();
            return true;
        }
        self.source.cancel("the operator cancelled it")
    }

    /// Whether it is decided.
    pub fn has_ended(&self) -> bool {
        self.outcome.is_some()
    }

    /// Whether nothing is left to do, but to tell the target that the VM stays.
    pub fn is_over(&self) -> bool {
        let is_said = self.link.is_none() || self.source.phase() == Phase::Withdrawing;
        self.outcome.is_some() && self.retired.is_none() && is_said
    }

    /// What is left to do of a move that is over, without the VM.
    pub fn into_withdrawal(self, now_ns: u64) -> Option<Withdrawal> {
        let info = self.info(now_ns);
        let Self { source, peer, link, call_at_ns, .. } = self;
        (source.phase() == Phase::Withdrawing).then(|| Withdrawal::new(source, peer, link, call_at_ns, info))
    }

    /// Goes on, until about `until_ns`; says when it wants to be called again.
    pub fn poll(
        &mut self,
        host: &'static Host,
        management: &mut Management,
        keys: &KeyPair,
        until_ns: u64,
    ) -> Option<u64> {
        let now_ns = host.clock.now_ns();
        self.call(management, keys, now_ns);
        self.receive(host, management);
        self.compare_clocks(now_ns);
        self.source.tick(now_ns);
        if self.source.phase() == Phase::Serving {
            self.serve(now_ns);
        }
        if self.running.is_over() && self.source.phase() < Phase::Committed {
            self.source.fail("the guest ended");
        }
        self.watch(host);
        self.carry_out_all(host);
        let more = self.send_pages(host, management, until_ns);
        self.carry_out_all(host);
        if let Some(link) = &mut self.link {
            link.flush(management);
            self.frames = link.frames();
        }
        self.hang_up(management);
        self.note_place();
        let waits = self.look.is_some() || self.is_stopping || self.retired.is_some() || !self.is_tracked;
        let soon_ns = (waits || more).then(|| host.clock.now_ns() + if more { 0 } else { SOON_NS });
        let room_ns = (self.source.wants_pages() && self.source.bandwidth_max().is_some()).then_some(self.room_at_ns);
        let call_ns = super::next_call_ns(self.call_at_ns, self.link.is_some(), now_ns);
        soon_ns.into_iter().chain(call_ns).chain(room_ns).min()
    }

    /// Says where the VM is, as far as this host knows.
    fn note_place(&mut self) {
        let away = match self.source.phase() {
            Phase::Committed => Some(Away::Given),
            Phase::Serving => Some(Away::Serving),
            _ => None,
        };
        if self.away != away {
            self.away = away;
            self.running.set_away(away.map(|away| (away, self.peer.name.clone())));
        }
    }

    /// It runs at the other host, which lacks memory of it.
    fn serve(&mut self, now_ns: u64) {
        if self.runs_there_ns.is_none() {
            self.runs_there_ns = Some(now_ns);
            let mib = (self.source.remaining() * PAGE_BYTES) >> 20;
            let (vm, peer) = (self.running.vm.name(), &self.peer.name);
            log::warn!(
                "{vm} runs on {peer}; {mib} MiB of its memory follow: it is lost if a host fails before they are there"
            );
        }
        if self.running.is_over() {
            self.source.torn();
        }
    }

    /// Calls the other host, where that is due.
    fn call(&mut self, management: &mut Management, keys: &KeyPair, now_ns: u64) {
        if self.call_at_ns.is_none_or(|at_ns| at_ns > now_ns) || self.link.is_some() {
            return;
        }
        self.call_at_ns = None;
        match management.connect(self.peer.address, PORT) {
            Some(handle) => {
                let role = Role::Initiator(PublicKey(*self.peer.key.bytes()));
                self.link = Some(Link::new(handle, role, keys));
            }
            None => self.lost("this host has no way to it", now_ns),
        }
    }

    fn receive(&mut self, host: &Host, management: &mut Management) {
        let Self { link: Some(link), source, clocks, outcome, .. } = self else { return };
        if outcome.is_some() {
            return;
        }
        let now_ns = host.clock.now_ns();
        let mut breach = None;
        let event = link.receive(management, &host.clock, |bytes| {
            let now_ns = host.clock.now_ns();
            let mut compare = |asked_ns, other_utc_ns| {
                clocks.answered(asked_ns, other_utc_ns, now_ns, host.clock.wall_unix_ns() + now_ns);
            };
            if let Err(what) = talk::hear(source, bytes, &mut compare) {
                breach = Some(what);
            }
        });
        if let Some(what) = breach {
            link.close(&what);
            return self.lost(&what, now_ns);
        }
        match event {
            Some(Event::Open) if source.phase() != Phase::Offering => source.linked(),
            Some(Event::Ended(end)) => {
                let reason = end.to_string();
                self.lost(&reason, now_ns);
            }
            Some(Event::Open | Event::Identified(_)) | None => {}
        }
    }

    /// Asks the other host for the time, before memory is in the way.
    fn compare_clocks(&mut self, now_ns: u64) {
        if (Phase::Copying..Phase::Finished).contains(&self.source.phase())
            && let Some(link) = &mut self.link
            && let Some(asked_ns) = self.clocks.ask(now_ns)
        {
            self.message.clear();
            Message::Clock { asked_ns }.encode(&mut self.message);
            link.send(&self.message);
        }
    }

    /// The session, or the call for one, ended.
    fn lost(&mut self, reason: &str, now_ns: u64) {
        let reason = format!("{} ({}): {reason}", self.peer.name, self.peer.address);
        let again = matches!(self.source.phase(), Phase::Committed | Phase::Serving | Phase::Withdrawing);
        if self.source.phase() == Phase::Serving && self.call_at_ns.is_none() {
            log::warn!("{} waits for memory that is here: {reason}", self.running.vm.name());
        }
        self.source.unlinked(&reason);
        if again {
            // The effect `Connect` follows: a stream that just failed is not tried again at once.
            self.call_at_ns = Some(now_ns + CALL_AGAIN_NS);
        }
    }

    /// Looks after what others were asked to do.
    fn watch(&mut self, host: &'static Host) {
        let running = self.running.clone();
        let machine = &running.machine;
        self.is_tracked |= machine.invalidated();
        if self.is_stopping && self.running.is_quiescent() {
            machine.close();
            if machine.busy().is_none() && self.has_flushed(host) && running.keep_last(host) {
                self.is_stopping = false;
                self.stand();
            }
        }
        if self.is_stopping && self.stopped_ns.is_some_and(|ns| host.clock.now_ns() > ns + REST_NS_MAX) {
            self.source.fail("its devices do not come to rest");
        }
        if self.look.is_some()
            && machine.invalidated()
            && let Some(written) = self.look.take()
        {
            let now_ns = host.clock.now_ns();
            let since_ns = now_ns.saturating_sub(self.looked_ns).max(1);
            self.dirty_pages_per_s = written.count().saturating_mul(1_000_000_000) / since_ns;
            self.looked_ns = now_ns;
            self.looks.count += 1;
            self.looks.pages += written.count();
            self.looks.ns += now_ns.saturating_sub(self.looks.began_ns);
            self.pace.looked(&self.source, &written);
            self.source.looked(&written, self.pace.page_ns(), REST_NS, now_ns);
        }
        if machine.invalidated()
            && let Some(retired) = self.retired.take()
        {
            self.running.second_stage().give_back(retired);
        }
    }

    /// The guest stands: what it cannot be put together without goes first, where memory follows it.
    fn stand(&mut self) {
        let machine = &self.running.machine;
        let Some(mut essential) = PageSet::new(machine.memory().pages_end()) else {
            return self.source.fail("there is no memory to keep track of its pages");
        };
        self.running.with_threads(|threads| machine.essential(threads.iter().map(|thread| &**thread), &mut essential));
        self.source.stopped(&essential);
    }

    /// Has the disks make stable what was written, so that whatever lies between them and another host has it too; says
    /// whether they have.
    fn has_flushed(&mut self, host: &Host) -> bool {
        let mut storage = host.storage.lock();
        let flushing = self.flushing.get_or_insert_with(|| {
            let disks = self.running.lents().into_iter();
            // What cannot be flushed can do nothing to what was written.
            disks.filter(|&lent| storage.flush_for_host(lent).is_ok()).collect()
        });
        let mut failed = false;
        flushing.retain(|&lent| match storage.take_ended_for_host(lent) {
            Some((_, is_done)) => {
                failed |= !is_done;
                false
            }
            None => true,
        });
        let is_over = flushing.is_empty();
        drop(storage);
        if failed {
            self.source.fail("a disk cannot make stable what was written");
        }
        is_over && !failed
    }

    fn carry_out_all(&mut self, host: &'static Host) {
        // The offer is what comes first, and it waits for its session.
        let is_called = self.source.phase() != Phase::Offering || self.link.as_ref().is_some_and(Link::is_open);
        while is_called
            && self.tell()
            && let Some(effect) = self.source.take_effect()
        {
            self.carry_out(host, effect);
        }
    }

    /// Goes on with saying which pages follow, as far as there is room; says whether all is said.
    fn tell(&mut self) -> bool {
        let Self { source, link: Some(link), message, telling, .. } = self else {
            self.telling = None;
            return true;
        };
        while let Some(from) = *telling
            && link.is_open()
        {
            if !link.has_room() {
                return false;
            }
            *telling = next_runs(source.pages_to_send(), from, RUNS_MAX, |runs| {
                message.clear();
                Message::Missing { runs }.encode(message);
                link.send(message);
            });
        }
        *telling = None;
        true
    }

    fn carry_out(&mut self, host: &'static Host, effect: Effect) {
        let running = self.running.clone();
        match effect {
            Effect::Say(word) => self.say(host, &word),
            Effect::Look => self.look(host),
            Effect::Throttle(percent) => running.set_running_percent(host, percent),
            Effect::Stop => {
                self.stopped_ns = Some(host.clock.now_ns());
                self.is_stopping = running.command(host, CPU, Order::Pause);
                if !self.is_stopping {
                    self.source.fail("the guest ended");
                }
            }
            Effect::SendState => self.send_state(host),
            Effect::Resume => {
                self.is_stopping = false;
                self.flushing = None;
                self.stopped_ns = None;
                running.set_running_percent(host, 100);
                running.machine.open();
                running.command(host, CPU, Order::Run);
                services::note_variables(host, CPU);
            }
            Effect::Connect => {
                self.call_at_ns.get_or_insert(host.clock.now_ns() + CALL_AGAIN_NS);
            }
            Effect::End(outcome) => self.end(host, outcome),
        }
    }

    fn say(&mut self, host: &Host, word: &Word) {
        let Some(link) = &mut self.link else { return };
        let description = if *word == Word::Offer { Offer::new(host, &self.running).encode() } else { Vec::new() };
        match talk::say(&self.source, word, &description, self.clocks.ahead_ns()) {
            Some(message) => {
                self.message.clear();
                message.encode(&mut self.message);
                if self.message.len() > MESSAGE_BYTES_MAX {
                    return self.source.fail("its description is too long for a message");
                }
                link.send(&self.message);
            }
            None => self.telling = Some(0),
        }
    }

    /// Collects what was written since the last look, on the vCPUs' and on the host's side.
    fn look(&mut self, host: &'static Host) {
        let Some(mut written) = PageSet::new(self.running.machine.memory().pages_end()) else {
            return self.source.fail("there is no memory to keep track of its pages");
        };
        self.looks.began_ns = host.clock.now_ns();
        tracking::look(host, &self.running, &mut written);
        self.look = Some(written);
        self.pace.interrupt();
        self.clocks.renew();
        self.send_console();
    }

    fn send_pages(&mut self, host: &Host, management: &mut Management, until_ns: u64) -> bool {
        if !self.clocks.is_known() {
            return false;
        }
        let Self { source, pace, running, link: Some(link), message, room_at_ns, is_tracked: true, .. } = self else {
            return false;
        };
        let now = || host.clock.now_ns();
        while source.wants_pages() {
            if !link.make_room(management) {
                return false;
            }
            if now() >= until_ns {
                return true;
            }
            if now() < *room_at_ns && source.bandwidth_max().is_some() {
                return false;
            }
            message.clear();
            if pace.fill(source, running.machine.memory(), &now, message).is_err() {
                match source.phase() {
                    Phase::Serving => source.torn(),
                    _ => source.fail("a page of its memory is not there"),
                }
                return true;
            }
            if let Some(bytes_per_s) = source.bandwidth_max() {
                *room_at_ns = now() + message.len() as u64 * 1_000_000_000 / bytes_per_s.max(1);
            }
            link.send(message);
        }
        false
    }

    /// Sends what the console printed since the last time.
    fn send_console(&mut self) {
        let Some(link) = &mut self.link else { return };
        let console = self.running.vm.console.lock();
        loop {
            let bytes = console.read(&mut self.console, STATE_BYTES_MAX);
            if bytes.is_empty() {
                return;
            }
            self.message.clear();
            Message::Console { bytes }.encode(&mut self.message);
            link.send(&self.message);
        }
    }

    fn send_state(&mut self, host: &Host) {
        self.send_console();
        let machine = &self.running.machine;
        let saved = self.running.with_threads(|threads| {
            let now = host.clock.now();
            let vcpus: Vec<_> = threads.iter_mut().map(|thread| machine.save_vcpu(thread, now)).collect();
            machine.save(&vcpus, now)
        });
        let Some(Ok(state)) = saved else { return self.source.fail("its state cannot be saved") };
        let Some(link) = &mut self.link else { return };
        for bytes in state.chunks(STATE_BYTES_MAX) {
            self.message.clear();
            Message::State { total: state.len() as u32, bytes }.encode(&mut self.message);
            link.send(&self.message);
        }
        self.source.state_sent();
    }

    fn end(&mut self, host: &'static Host, outcome: Outcome) {
        let now_ns = host.clock.now_ns();
        let running = &self.running;
        if outcome.is_gone() {
            running.vm.set_moved(&self.peer.name);
        }
        match &outcome {
            Outcome::Moved => running.finish(host, CPU, Ending::Moved),
            Outcome::Stayed(reason) => {
                self.retired = Some(release(host, running));
                log::warn!("{} stays here: {reason}", running.vm.name());
            }
            Outcome::Torn => {
                let peer = &self.peer.name;
                let why = format!("it ran on {peer} with memory that was here when one of them lost its half");
                log::error!(
                    "{} is lost, unless all of it had come: look on {peer} before you create it anew",
                    self.name()
                );
                running.finish(host, CPU, Ending::Ended(End::Crash(why)));
            }
            Outcome::Lost => {
                // It stands, and can go on here, if a person says so.
                running.set_running_percent(host, 100);
                running.machine.open();
                self.retired = Some(release(host, running));
                log::error!(
                    "{} was given to {}, which knows nothing of it: look there before you say \"vm resume\" here",
                    running.vm.name(),
                    self.peer.name
                );
            }
        }
        self.ended_ns = Some(now_ns);
        self.call_at_ns = None;
        self.note_place();
        self.outcome = Some(outcome);
        if self.outcome == Some(Outcome::Moved) {
            log::info!("{}", self.summary());
        }
    }

    /// Lets go of the session once nothing more is to be said.
    fn hang_up(&mut self, management: &mut Management) {
        let over = self.outcome.is_some() && self.source.phase() == Phase::Done;
        let Some(link) = &mut self.link else { return };
        if over && link.is_flushed() {
            link.close("it is done");
        }
        let lost = self.call_at_ns.is_some() || over;
        if lost && link.shut(management) {
            self.link = None;
        }
    }
}

/// The VM is this host's like any other again; gives tables that no vCPU walks any more, soon.
fn release(host: &'static Host, running: &Arc<Running>) -> Retired {
    let retired = tracking::stop(host, running);
    running.set_moving(false);
    running.let_go(host);
    retired
}
