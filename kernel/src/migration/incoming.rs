//! A VM on its way in: does what [`migrate::Target`] says, with this host's memory, machine and network.

use super::SOON_NS;
use super::link::Link;
use super::offer::Offer;
use crate::cpu_loop::InputHost;
use crate::host::Host;
use crate::management::Management;
use crate::network::{Forwarder, Frame};
use crate::vm::{Running, arrival};
use addr::{Gpa, PAGE_BYTES};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use migrate::pages::{PAGE, Record, Records, is_zero, unpack};
use migrate::target::{Breach, Effect, Phase, Word};
use migrate::wire::{Message, VERSION};
use migrate::{Id, Target};
use peer::{Event, PublicKey};
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
    announced: u32,
    announce_at_ns: Option<u64>,
    started_ns: u64,
    ended_ns: Option<u64>,
    reason: Option<String>,
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
            received: Received { running: None, bytes: 0, asked_ns: None, ahead_ns: 0, page: Box::new([0; PAGE]) },
            link: Some(link),
            announced: 0,
            announce_at_ns: None,
            started_ns: host.clock.now_ns(),
            ended_ns: None,
            reason: None,
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
        let (spec, macs, plan) = Offer::parse(description).and_then(|offer| offer.spec(host)).map_err(line)?;
        self.vm = spec.name.to_string();
        let running = arrival::prepare(host, spec, macs, &plan).map_err(line)?;
        let Ok(pages) = running.machine.memory().all_pages() else {
            arrival::discard(host, &running);
            return Err("there is no memory to keep track of its pages".to_string());
        };
        log::info!("{} arrives from {}", self.vm, self.peer);
        self.received.running = Some(running);
        self.target.prepared(pages);
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

    /// Gives it up here; says whether that can still be.
    pub fn cancel(&mut self) -> bool {
        self.target.cancel("the operator of the other host cancelled it")
    }

    /// The source is back on another session, with `message`.
    pub fn relink(&mut self, link: Link, message: &[u8]) {
        if let Some(mut old) = self.link.replace(link) {
            old.close("there is another session");
            self.target.unlinked("there is another session");
        }
        self.hear_or_close(message);
    }

    fn hear_or_close(&mut self, message: &[u8]) {
        if let Err(what) = self.received.hear(&mut self.target, message)
            && let Some(link) = &mut self.link
        {
            link.close(&what);
        }
    }

    /// Goes on; says when it wants to be called again.
    pub fn poll(&mut self, host: &'static Host, management: &mut Management, forwarder: &mut Forwarder) -> Option<u64> {
        self.receive(host, management);
        while let Some(effect) = self.target.take_effect() {
            self.carry_out(host, effect);
        }
        self.announce(host, forwarder);
        if let Some(link) = &mut self.link {
            link.flush(management);
            if self.target.phase() == Phase::Gone && link.is_flushed() {
                link.close("it is over");
            }
            if link.is_closed() && link.shut(management) {
                self.link = None;
            }
        }
        let soon_ns = self.link.as_ref().is_some_and(Link::is_closed).then(|| host.clock.now_ns() + 50 * SOON_NS);
        soon_ns.into_iter().chain(self.announce_at_ns).min()
    }

    fn receive(&mut self, host: &Host, management: &mut Management) {
        let Self { link: Some(link), target, received, .. } = self else { return };
        let mut breach = None;
        let event = link.receive(management, |message| {
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
            if let Some(link) = &mut self.link {
                link.close(&what);
            }
            return;
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
                    Some(running) => running.restore(host, self.target.state(), self.received.ahead_ns),
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
                self.ended_ns = Some(host.clock.now_ns());
                self.announce_at_ns = self.ended_ns;
                running.machine.announce(&mut InputHost::new(host, 0, running));
                log::info!("{} runs here now, and no more on {}", self.vm, self.peer);
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

    fn say(&mut self, word: &Word) {
        let Some(link) = &mut self.link else { return };
        let id = self.target.id();
        let message = match word {
            Word::Accept => Message::Accept,
            Word::Refuse(reason) => Message::Refuse { reason },
            Word::Ready => Message::Ready { id },
            Word::Running => Message::Running { id },
            Word::Abort(reason) => Message::Abort { id, reason },
        };
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        link.send(&bytes);
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
        if self.announce_at_ns.is_none() {
            // The machine is the VM's alone from here on: its life can end.
            self.received.running = None;
        }
    }

    /// How far it is.
    pub fn info(&self, now_ns: u64) -> MoveInfo {
        let phase = match self.target.phase() {
            Phase::Preparing | Phase::Receiving => "arriving",
            Phase::Restoring => "restoring",
            Phase::Ready => "waiting for the word",
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
            bytes: self.received.bytes,
            bytes_per_s: 0,
            dirty_pages_per_s: 0,
            running_percent: 100,
            expected_downtime_ns: 0,
            downtime_ns: None,
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
            Message::Pages { records } => {
                self.bytes += records.len() as u64;
                let running = self.running.as_deref().ok_or("it sends memory out of turn")?;
                store(target, running, &mut self.page, records).map_err(breach)
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
            Message::Finish { id, ahead_ns } if id == own => {
                self.ahead_ns = ahead_ns;
                target.finished().map_err(breach)
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
            | Message::Unknown { .. } => Err("it says what a source does not say".to_string()),
        }
    }
}

/// Stores a batch of pages.
fn store(target: &mut Target, running: &Running, page: &mut [u8; PAGE], records: &[u8]) -> Result<(), Breach> {
    const OUTSIDE: Breach = Breach("it sends memory that the VM does not have");
    const BAD: Breach = Breach("it sends pages that are none");
    let memory = running.machine.memory();
    let at = |number: u64| Gpa::new(number * PAGE_BYTES);
    for record in Records::new(records) {
        match record.map_err(|_| BAD)? {
            Record::Zero(first, count) => {
                target.arrived(first, count)?;
                for number in first..first.saturating_add(count) {
                    // Most of it is what it should be already, and looking costs less than writing.
                    memory.read(at(number), page).map_err(|_| OUTSIDE)?;
                    if !is_zero(page) {
                        memory.zero(at(number), PAGE_BYTES).map_err(|_| OUTSIDE)?;
                    }
                }
            }
            Record::Raw(number, bytes) => {
                target.arrived(number, 1)?;
                memory.write(at(number), bytes).map_err(|_| OUTSIDE)?;
            }
            Record::Lz4(number, packed) => {
                target.arrived(number, 1)?;
                unpack(packed, page).map_err(|_| BAD)?;
                memory.write(at(number), page).map_err(|_| OUTSIDE)?;
            }
        }
    }
    Ok(())
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
