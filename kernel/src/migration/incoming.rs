//! A VM on its way in: does what [`migrate::Target`] says, with this host's memory, machine and network.

use super::SOON_NS;
use super::link::Link;
use super::offer::Offer;
use crate::cpu_loop::InputHost;
use crate::host::Host;
use crate::management::Management;
use crate::network::{Forwarder, Frame};
use crate::vm::{Order, Running, absent, arrival};
use addr::{Gpa, PAGE_BYTES};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use guestmem::Outside;
use migrate::pages::{PAGE, RUN_BYTES, Record, Records, Runs, unpack};
use migrate::target::{Breach, Effect, Phase, Word};
use migrate::wire::{Message, RUNS_MAX, VERSION};
use migrate::{Id, Target, pages, talk};
use nested::Retired;
use peer::{Event, FrameCounts, PublicKey};
use shell::MoveInfo;
use switch::Offload;

/// How often the guest's addresses are announced, and how long after the time before.
const ANNOUNCEMENTS: u32 = 5;
const ANNOUNCE_NS: u64 = 100_000_000;

/// A VM that arrives.
pub struct Incoming {
    target: Target,
    /// Who sends it: nobody else has a say.
    key: PublicKey,
    peer: String,
    vm: String,
    received: Received,
    link: Option<Link>,
    /// Of its session.
    frames: FrameCounts,
    announced: u32,
    announce_at_ns: Option<u64>,
    started_ns: u64,
    ended_ns: Option<u64>,
    reason: Option<String>,
    /// Tables that no vCPU walks any more, soon.
    retired: Option<Retired>,
    /// It says which pages are missing, and has come to this one.
    telling: Option<u64>,
}

/// What has arrived, as far as it is not the target's to keep.
struct Received {
    /// The machine that is being made of it.
    running: Option<Arc<Running>>,
    bytes: u64,
    /// The source asked for the time then, by its clock.
    asked_ns: Option<u64>,
    /// How far this host's clock on the wall is ahead of the source's.
    ahead_ns: i64,
    /// Pages came that something waits for.
    is_awaited: bool,
    page: Box<[u8; PAGE]>,
}

impl Incoming {
    /// A VM that was offered over `link`.
    pub fn new(
        host: &'static Host,
        link: Link,
        key: PublicKey,
        peer: &str,
        id: Id,
        version: u16,
        description: &[u8],
    ) -> Self {
        let mut this = Self {
            target: Target::new(id),
            key,
            peer: peer.to_string(),
            vm: String::new(),
            received: Received {
                running: None,
                bytes: 0,
                asked_ns: None,
                ahead_ns: 0,
                is_awaited: false,
                page: Box::new([0; PAGE]),
            },
            link: Some(link),
            frames: FrameCounts::default(),
            announced: 0,
            announce_at_ns: None,
            started_ns: host.clock.now_ns(),
            ended_ns: None,
            reason: None,
            retired: None,
            telling: None,
        };
        if let Err(reason) = this.prepare(host, version, description) {
            this.target.refuse(&reason);
        }
        this
    }

    fn prepare(&mut self, host: &'static Host, version: u16, description: &[u8]) -> Result<(), String> {
        if version != VERSION {
            return Err(format!("it speaks version {version} of the protocol, this host version {VERSION}"));
        }
        let line = |(message, remedy)| format!("{message}; {remedy}");
        let offer = Offer::parse(description).map_err(line)?;
        let variables = offer.variables();
        let (spec, macs, plan) = offer.spec(host).map_err(line)?;
        self.vm = spec.name.to_string();
        let running = arrival::prepare(host, spec, macs, &plan, variables.as_ref()).map_err(line)?;
        let Ok(pages) = running.machine.memory().all_pages() else {
            arrival::discard(host, &running);
            return Err("there is no memory to keep track of its pages".to_string());
        };
        if self.target.prepared(pages).is_err() {
            arrival::discard(host, &running);
            return Err("there is no memory to keep track of its pages".to_string());
        }
        log::info!("{} arrives from {}", self.vm, self.peer);
        self.received.running = Some(running);
        Ok(())
    }

    /// Whether this is the migration, and its source.
    pub fn is(&self, id: Id, key: PublicKey) -> bool {
        self.target.id() == id && self.key == key
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        &self.vm
    }

    /// Whether the VM neither runs here nor was given up.
    pub fn is_open(&self) -> bool {
        !matches!(self.target.phase(), Phase::Running | Phase::Gone)
    }

    /// Whether the source is still needed: to give it away, or for memory.
    pub fn needs_source(&self) -> bool {
        self.is_open() || self.target.missing() > 0 && self.target.phase() == Phase::Running
    }

    /// Gives it up here; says whether that can still be.
    pub fn cancel(&mut self) -> bool {
        self.target.cancel("the operator cancelled it at its target")
    }

    /// The source is back on another session, with `message`. Gives the session before, whose end is to be seen to.
    #[must_use]
    pub fn relink(&mut self, link: Link, message: &[u8]) -> Option<Link> {
        let old = self.link.replace(link).map(|mut old| {
            old.close("there is another session");
            self.target.unlinked("there is another session");
            old
        });
        self.telling = None;
        if let Err(what) = self.received.hear(&mut self.target, message) {
            self.hang_up(&what);
        }
        old
    }

    /// The source broke the protocol: its session ends, and where the VM runs here it waits for another.
    fn hang_up(&mut self, what: &str) {
        self.target.unlinked(what);
        if let Some(link) = &mut self.link {
            link.close(what);
        }
    }

    /// Goes on; says when it wants to be called again.
    pub fn poll(&mut self, host: &'static Host, management: &mut Management, forwarder: &mut Forwarder) -> Option<u64> {
        self.receive(host, management);
        while let Some(effect) = self.target.take_effect() {
            self.carry_out(host, effect);
        }
        self.announce(host, forwarder);
        self.follow_up(host);
        // What that led to is only said.
        while let Some(effect) = self.target.take_effect() {
            self.carry_out(host, effect);
        }
        if let Some(link) = &mut self.link {
            link.flush(management);
            self.frames = link.frames();
            if self.target.phase() == Phase::Gone && link.is_flushed() {
                link.close("it is over");
            }
            if link.is_closed() && link.shut(management) {
                self.link = None;
            }
        }
        // What ends a session comes as a frame, or by the stream's own clock.
        let follows = self.retired.is_some() || self.target.phase() == Phase::Running && self.target.missing() > 0;
        let asks_ns = follows.then(|| host.clock.now_ns() + 50 * SOON_NS);
        self.announce_at_ns.into_iter().chain(asks_ns).min()
    }

    /// Sees to memory that follows the guest: wakes who waited for what came, and asks for what is wanted next.
    fn follow_up(&mut self, host: &'static Host) {
        let Some(running) = self.received.running.clone() else { return };
        if running.machine.invalidated()
            && let Some(retired) = self.retired.take()
        {
            running.second_stage().give_back(retired);
        }
        if core::mem::take(&mut self.received.is_awaited) {
            running.machine.memory_arrived(&mut InputHost::new(host, 0, &running));
        }
        if self.target.phase() != Phase::Running {
            return;
        }
        if !self.needs_machine() {
            if self.announce_at_ns.is_none() {
                // The machine is the VM's alone from here on: its life can end.
                self.received.running = None;
            }
            return;
        }
        if self.target.missing() == 0 {
            return;
        }
        if running.is_over() {
            self.target.ended();
            self.received.running = None;
            return;
        }
        // Of a page that it was not told of the source would not know that it is wanted.
        let is_told = self.tell();
        let Some(link) = self.link.as_mut().filter(|link| is_told && link.is_open()) else { return };
        let mut runs = Vec::new();
        let memory = running.machine.memory();
        memory.take_wanted(|page| match memory.is_awaited(page) {
            true => runs.extend_from_slice(&pages::run(page, 1)),
            // It came between the look and the note.
            false => self.received.is_awaited = true,
        });
        for part in runs.chunks(RUNS_MAX * RUN_BYTES) {
            if let Some(runs) = Runs::new(part) {
                let mut bytes = Vec::new();
                Message::Want { runs }.encode(&mut bytes);
                link.send(&bytes);
            }
        }
    }

    /// Goes on with saying which pages are missing, as far as there is room; says whether all is said.
    fn tell(&mut self) -> bool {
        let Self { link: Some(link), target, telling, .. } = self else { return false };
        while let Some(from) = *telling {
            if !link.has_room() {
                return false;
            }
            *telling = pages::next_runs(target.missing_pages(), from, RUNS_MAX, |runs| {
                let mut bytes = Vec::new();
                Message::Missing { runs }.encode(&mut bytes);
                link.send(&bytes);
            });
        }
        true
    }

    fn receive(&mut self, host: &Host, management: &mut Management) {
        let Self { link: Some(link), target, received, .. } = self else { return };
        let mut breach = None;
        let event = link.receive(management, &host.clock, |message| {
            if breach.is_none() {
                breach = received.hear(target, message).err();
            }
        });
        if let Some(asked_ns) = received.asked_ns.take() {
            let utc_ns = host.clock.wall_unix_ns() + host.clock.now_ns();
            let mut bytes = Vec::new();
            Message::Time { asked_ns, utc_ns }.encode(&mut bytes);
            link.send(&bytes);
        }
        if let Some(what) = breach {
            target.cancel(&what);
            return self.hang_up(&what);
        }
        if let Some(Event::Ended(end)) = event {
            target.unlinked(&end.to_string());
        }
    }

    fn carry_out(&mut self, host: &'static Host, effect: Effect) {
        match effect {
            Effect::Say(word) => self.say(&word),
            Effect::Restore => {
                let restored = match &self.received.running {
                    Some(running) => absent_first(&self.target, running)
                        .and_then(|()| put_together(host, running, self.target.state(), self.received.ahead_ns)),
                    None => Err("there is no machine".to_string()),
                };
                match &restored {
                    Ok(()) => self.target.restored(Ok(())),
                    Err(reason) => self.target.restored(Err(reason)),
                }
            }
            Effect::Run => {
                let Some(running) = &self.received.running else { return };
                arrival::admit(host, running);
                if self.target.is_postcopy() {
                    // Until all of it is here, nobody moves or saves it.
                    running.hold();
                    let mib = (self.target.missing() * PAGE_BYTES) >> 20;
                    log::warn!(
                        "{} goes on with {mib} MiB of its memory on {}: it is lost if a host fails before they are here",
                        self.vm,
                        self.peer
                    );
                }
                self.ended_ns = Some(host.clock.now_ns());
                self.announce_at_ns = self.ended_ns;
                running.machine.announce(&mut InputHost::new(host, 0, running));
                log::info!("{} runs here now, and no more on {}", self.vm, self.peer);
            }
            Effect::Pause => self.pause(host),
            Effect::GoOn => {
                let Some(running) = &self.received.running else { return };
                running.machine.memory().ask_again();
                self.received.is_awaited = true;
                running.command(host, 0, Order::Run);
                log::info!("{} goes on: {} is back, and has the rest of its memory", self.vm, self.peer);
            }
            Effect::Whole => {
                let Some(running) = &self.received.running else { return };
                self.retired = Some(absent::stop(host, running));
                running.let_go(host);
                // Also who could not say what it waits for.
                self.received.is_awaited = true;
                self.ended_ns = Some(host.clock.now_ns());
                log::info!("all of {}'s memory is here", self.vm);
            }
            Effect::Discard(reason) => {
                if let Some(running) = self.received.running.take() {
                    arrival::discard(host, &running);
                }
                self.ended_ns = Some(host.clock.now_ns());
                log::warn!("{} does not come from {}: {reason}", self.vm, self.peer);
                self.reason = Some(reason);
            }
        }
    }

    /// The source cannot be reached, which has memory that the guest needs.
    fn pause(&mut self, host: &'static Host) {
        let Some(running) = &self.received.running else { return };
        running.command(host, 0, Order::Pause);
        let mib = (self.target.missing() * PAGE_BYTES).div_ceil(1 << 20);
        log::warn!(
            "{} waits: {mib} MiB of its memory are still on {}, which cannot be reached; it goes on when that is back, and is \
             lost if it never is (then: vm kill {})",
            self.vm,
            self.peer,
            self.vm
        );
    }

    fn say(&mut self, word: &Word) {
        let Some(link) = &mut self.link else { return };
        match talk::answer(&self.target, word) {
            Some(message) => {
                let mut bytes = Vec::new();
                message.encode(&mut bytes);
                link.send(&bytes);
            }
            None => self.telling = Some(0),
        }
    }

    /// Tells switches where the guest is: a RARP request (RFC 903) from each of its addresses, which every switch on the
    /// way learns from. Repeated, since one can be lost.
    fn announce(&mut self, host: &'static Host, forwarder: &mut Forwarder) {
        let now_ns = host.clock.now_ns();
        if self.announce_at_ns.is_none_or(|at_ns| at_ns > now_ns) {
            return;
        }
        let Some(running) = &self.received.running else { return };
        let frames: Vec<_> = running.vm.macs().iter().map(|mac| rarp(mac.bytes())).collect();
        forwarder.forward(host, frames.len(), |index| Frame {
            from: running.port(index),
            offload: Offload::default(),
            bytes: &frames[index],
        });
        self.announced += 1;
        self.announce_at_ns = (self.announced < ANNOUNCEMENTS).then_some(now_ns + ANNOUNCE_NS);
    }

    /// Whether memory of it is still to be put in its place.
    fn needs_machine(&self) -> bool {
        self.target.missing() > 0 || self.retired.is_some()
    }

    /// How far it is.
    pub fn info(&self, now_ns: u64) -> MoveInfo {
        let phase = match self.target.phase() {
            Phase::Preparing | Phase::Receiving => "arriving",
            Phase::Restoring => "restoring",
            Phase::Ready => "waiting for the word",
            Phase::Running if self.target.missing() > 0 => "running, with memory to come",
            Phase::Running => "arrived",
            Phase::Gone => "gone",
        };
        MoveInfo {
            vm: self.vm.clone(),
            peer: self.peer.clone(),
            outgoing: false,
            phase: phase.to_string(),
            reason: self.reason.clone(),
            round: 0,
            pages: 0,
            remaining: self.target.missing(),
            zero_pages: 0,
            raw_pages: 0,
            lz4_pages: 0,
            delta_pages: 0,
            bytes: self.received.bytes,
            frames: self.frames.all,
            helped_frames: self.frames.helped,
            bytes_per_s: 0,
            dirty_pages_per_s: 0,
            looks: 0,
            looked_pages: 0,
            looking_ns: 0,
            page_ns: 0,
            running_percent: 100,
            expected_downtime_ns: 0,
            downtime_ns: None,
            started_ns: self.started_ns,
            total_ns: self.ended_ns.unwrap_or(now_ns).saturating_sub(self.started_ns),
        }
    }
}

impl Received {
    /// Takes a message of the source's.
    fn hear(&mut self, target: &mut Target, message: &[u8]) -> Result<(), String> {
        let breach = |Breach(what)| what.to_string();
        let own = target.id();
        match Message::parse(message).map_err(|malformed| malformed.to_string())? {
            // Its machine ended meanwhile, or it was given up: that is said, and this was on its way before.
            Message::Pages { .. } if target.is_complete() => Ok(()),
            Message::Pages { .. }
            | Message::State { .. }
            | Message::Console { .. }
            | Message::Missing { .. }
            | Message::Finish { .. }
                if target.phase() == Phase::Gone =>
            {
                Ok(())
            }
            Message::Pages { records } => {
                self.bytes += records.len() as u64;
                let running = self.running.as_deref().ok_or("it sends memory out of turn")?;
                store(target, running, &mut self.page, records)
                    .map(|awaited| self.is_awaited |= awaited)
                    .map_err(breach)
            }
            Message::State { total, bytes } => target.state_arrived(total, bytes).map_err(breach),
            Message::Clock { asked_ns } => {
                self.asked_ns = Some(asked_ns);
                Ok(())
            }
            Message::Console { bytes } => match &self.running {
                Some(running) if target.phase() == Phase::Receiving => {
                    running.vm.console.lock().push(bytes);
                    Ok(())
                }
                _ => Err("it sends what a console printed out of turn".to_string()),
            },
            Message::Missing { runs } => {
                runs.iter().try_for_each(|(first, count)| target.left_behind(first, count)).map_err(breach)
            }
            Message::Finish { id, ahead_ns, left_behind } if id == own => {
                self.ahead_ns = ahead_ns;
                target.finished(left_behind).map_err(breach)
            }
            Message::Commit { id } if id == own => target.committed().map_err(breach),
            Message::Abort { id, reason } if id == own => target.aborted(reason).map_err(breach),
            Message::Finish { .. }
            | Message::Commit { .. }
            | Message::Abort { .. }
            | Message::Offer { .. }
            | Message::Accept
            | Message::Refuse { .. }
            | Message::Time { .. }
            | Message::Ready { .. }
            | Message::Running { .. }
            | Message::Want { .. }
            | Message::Complete { .. }
            | Message::Unknown { .. } => Err("it says what a source does not say".to_string()),
        }
    }
}

/// Takes away what follows the guest, before anything is put together that could reach it.
fn absent_first(target: &Target, running: &Running) -> Result<(), String> {
    if target.is_postcopy() { absent::start(running, target.missing_pages()) } else { Ok(()) }
}

/// Has it ready to run.
fn put_together(host: &Host, running: &Running, state: &[u8], ahead_ns: i64) -> Result<(), String> {
    running.begin(running.restore(host, state, ahead_ns).map_err(|error| error.to_string())?);
    Ok(())
}

const OUTSIDE: Breach = Breach("it sends memory that the VM does not have");
const BAD: Breach = Breach("it sends pages that are none");

/// Stores a batch of pages; says whether something waits for one of them.
fn store(target: &mut Target, running: &Running, page: &mut [u8; PAGE], records: &[u8]) -> Result<bool, Breach> {
    let mut is_awaited = false;
    let mut put = |target: &mut Target, number: u64, content: Option<&[u8; PAGE]>| {
        let follows = target.phase() == Phase::Running;
        if target.arrived(number)? {
            let stored = if follows { absent::store(running, number, content) } else { fill(running, number, content) };
            is_awaited |= stored.map_err(|_| OUTSIDE)?;
        }
        Ok(())
    };
    for record in Records::new(records) {
        match record.map_err(|_| BAD)? {
            Record::Zero(first, count) => {
                (first..first.saturating_add(count)).try_for_each(|number| put(target, number, None))?;
            }
            Record::Raw(number, bytes) => put(target, number, Some(bytes))?,
            Record::Lz4(number, packed) => {
                unpack(packed, page).map_err(|_| BAD)?;
                put(target, number, Some(page))?;
            }
            Record::Delta(number, delta) => {
                target.changed(number)?;
                let at = |offset: usize| Gpa::new(number * PAGE_BYTES + offset as u64);
                let memory = running.machine.memory();
                delta.runs().try_for_each(|(offset, bytes)| memory.write(at(offset), bytes)).map_err(|_| OUTSIDE)?;
            }
        }
    }
    Ok(is_awaited)
}

/// Fills a page of a guest that does not run; nobody waits for it.
fn fill(running: &Running, number: u64, content: Option<&[u8; PAGE]>) -> Result<bool, Outside> {
    let (memory, at) = (running.machine.memory(), Gpa::new(number * PAGE_BYTES));
    match content {
        Some(bytes) => memory.write(at, bytes)?,
        // Most of it is what it should be already, and looking costs less than writing.
        None if memory.is_zero_page(number)? => {}
        None => memory.zero(at, PAGE_BYTES)?,
    }
    Ok(false)
}

/// A broadcast that asks for the protocol address of `mac`, and thereby says where that is.
fn rarp(mac: [u8; 6]) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    // RARP over Ethernet for IPv4, request reverse.
    frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 0x08, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}
