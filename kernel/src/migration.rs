//! Live migration as a service of CPU 0: who is trusted, which VMs leave and arrive, over which sessions.
//!
//! [`Migrations`] joins `migrate` (the protocol), `peer` (the channel), the management address (the stream) and the VMs.
//! It listens on TCP port [`PORT`]; a caller is heard once its key is one of a peer's.

mod incoming;
mod link;
mod offer;
mod outgoing;
mod survey;
mod withdrawal;

use crate::host::Host;
use crate::management::Management;
use crate::measure::Outcome;
use crate::network::Forwarder;
use crate::profiles;
use crate::vm::{Order, Refusal, Vm};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use config::{Config, Name, PeerSpec};
use core::cmp::Reverse;
use incoming::Incoming;
use link::Link;
use migrate::survey::Word;
use migrate::wire::Message;
use migrate::{Settings, Strategy};
use outgoing::Outgoing;
use peer::{Event, KeyPair, PublicKey, Role};
use shell::{MigrateOptions, MigrateStrategy, MoveInfo, PeerInfo};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use survey::Survey;
use withdrawal::Withdrawal;

/// The port that Pollux hosts call each other on.
pub const PORT: u16 = 9640;

/// How long CPU 0 works on a migration, or on what another host sent, before others have their turn.
const TURN_NS: u64 = 2_000_000;
/// How soon it looks again at what takes microseconds.
const SOON_NS: u64 = 20_000;
/// How long until another host is called again that did not answer.
const CALL_AGAIN_NS: u64 = 500_000_000;
/// How long a caller may take to say what it wants.
const CALLER_NS: u64 = 10_000_000_000;
/// Callers that are listened to at most.
const CALLERS_MAX: usize = 8;
/// Moves that ended and are still known: to the operator, and to a source that asks again.
const ENDED_MAX: usize = 32;

/// The migrations of a host.
pub struct Migrations {
    keys: KeyPair,
    peers: Vec<PeerSpec>,
    listener: Option<SocketHandle>,
    callers: Vec<Caller>,
    outgoing: Vec<Outgoing>,
    withdrawals: Vec<Withdrawal>,
    incoming: Vec<Incoming>,
    surveys: Vec<Survey>,
    history: VecDeque<MoveInfo>,
}

/// A session that was not yet told what it is about.
struct Caller {
    link: Link,
    peer: Option<(String, PublicKey)>,
    message: Option<Vec<u8>>,
    until_ns: u64,
    is_over: bool,
}

impl Migrations {
    /// None, with the keys and peers of the configuration; a host without a key gets one for as long as it is on.
    pub fn new(config: &Config) -> Self {
        let private = config.host.key.map_or_else(
            || {
                let mut bytes = [0; 32];
                crate::cpu_loop::random(&mut bytes);
                bytes
            },
            |key| *key.bytes(),
        );
        if cfg!(feature = "plain") {
            log::error!("THIS BUILD SENDS VMS TO OTHER HOSTS UNENCRYPTED: it is for measuring and for nothing else");
        }
        let peers = match no_secrets() {
            Some((message, _)) if !config.peers.is_empty() => {
                log::error!("no peer is trusted: {message}");
                Vec::new()
            }
            _ => config.peers.clone(),
        };
        Self {
            keys: KeyPair::new(private),
            peers,
            listener: None,
            callers: Vec::new(),
            outgoing: Vec::new(),
            withdrawals: Vec::new(),
            incoming: Vec::new(),
            surveys: Vec::new(),
            history: VecDeque::new(),
        }
    }

    /// The key by which others know this host.
    pub fn key(&self) -> PublicKey {
        self.keys.public()
    }

    /// Who is trusted.
    pub fn peers(&self) -> Vec<PeerInfo> {
        let info = |peer: &PeerSpec| PeerInfo {
            name: peer.name.to_string(),
            address: peer.address.to_string(),
            key: PublicKey(*peer.key.bytes()).to_string(),
        };
        self.peers.iter().map(info).collect()
    }

    /// Trusts another host.
    pub fn add_peer(&mut self, peer: PeerSpec) -> Result<(), Refusal> {
        if let Some(refusal) = no_secrets() {
            return Err(refusal);
        }
        if PublicKey(*peer.key.bytes()) == self.key() {
            return Err(("that is this host's own key".into(), "give the key that the other's `host` shows".into()));
        }
        if self.peers.iter().any(|other| other.name == peer.name || other.key == peer.key) {
            let message = format!("there is a peer {} already, or one with that key", peer.name);
            return Err((message, "see \"peer list\"".into()));
        }
        self.peers.push(peer);
        Ok(())
    }

    /// Trusts a host no more.
    pub fn remove_peer(&mut self, name: &Name) -> Result<(), Refusal> {
        let before = self.peers.len();
        self.peers.retain(|peer| peer.name != *name);
        self.withdrawals.iter_mut().for_each(|withdrawal| withdrawal.give_up(name));
        let missing = || (format!("there is no peer {name}"), "see \"peer list\"".to_string());
        (self.peers.len() < before).then_some(()).ok_or_else(missing)
    }

    /// Begins to move a VM to the peer called `to`.
    pub fn start(&mut self, host: &'static Host, vm: &Vm, to: &Name, options: MigrateOptions) -> Result<(), Refusal> {
        let peer = self.peers.iter().find(|peer| peer.name == *to).cloned();
        let peer = peer.ok_or_else(|| (format!("there is no peer {to}"), "see \"peer list\"".to_string()))?;
        let running = vm.must_run()?;
        if running.is_moving() || running.is_arriving() {
            return Err((format!("{} is on its way already", vm.name()), "see \"migrate status\"".into()));
        }
        if running.machine.memory().is_waiting() {
            return Err((format!("{}'s memory is still on its way here", vm.name()), "wait for that".into()));
        }
        if running.order() != Order::Run || !running.has_started() {
            return Err((format!("{} does not run", vm.name()), "let it run first: vm resume".into()));
        }
        if self.withdrawals.iter().any(|withdrawal| withdrawal.is(vm.name(), to)) {
            let message = format!("{to} was not reached to be told that {} was taken back from it", vm.name());
            return Err((message, "wait until it answers (\"migrate status\"), or move it elsewhere".into()));
        }
        if self.listener.is_none() {
            return Err(("this host has no network card that is driven".into(), "see \"host\"".into()));
        }
        self.outgoing.push(Outgoing::new(host, running, peer, settings(options))?);
        Ok(())
    }

    /// Begins to ask peers what their processors have, for a CPU profile of this name without these features.
    pub fn survey(
        &mut self,
        host: &Host,
        name: Name,
        hosts: &[Name],
        without: Vec<String>,
    ) -> Result<Arc<Outcome>, Refusal> {
        profiles::check_features(host, &without)?;
        host.profiles.lock().check_new(&name)?;
        let missing = |host: &Name| (format!("there is no peer {host}"), "see \"peer list\"".to_string());
        let peer =
            |host: &Name| self.peers.iter().find(|peer| peer.name == *host).cloned().ok_or_else(|| missing(host));
        let peers = hosts.iter().map(peer).collect::<Result<Vec<_>, _>>()?;
        let (survey, outcome) = Survey::new(host, name, peers, without);
        self.surveys.push(survey);
        Ok(outcome)
    }

    /// Lets a VM stay where it is.
    pub fn cancel(&mut self, name: &Name) -> Result<(), Refusal> {
        let too_late = || (format!("{name} is given away already"), "see \"migrate status\"".to_string());
        if let Some(outgoing) =
            self.outgoing.iter_mut().find(|outgoing| outgoing.name() == &**name && !outgoing.has_ended())
        {
            return outgoing.cancel().then_some(()).ok_or_else(too_late);
        }
        if let Some(incoming) =
            self.incoming.iter_mut().find(|incoming| incoming.name() == &**name && incoming.is_open())
        {
            return incoming.cancel().then_some(()).ok_or_else(too_late);
        }
        Err((format!("{name} is not on its way"), "see \"migrate status\"".into()))
    }

    /// VMs on their way, and those that were moved lately; of those that leave or left, the last that began is first.
    pub fn status(&self, now_ns: u64) -> Vec<MoveInfo> {
        let outgoing = self.outgoing.iter().map(|outgoing| outgoing.info(now_ns));
        let withdrawals = self.withdrawals.iter().map(|withdrawal| withdrawal.info().clone());
        let mut moves: Vec<_> = outgoing.chain(withdrawals).chain(self.history.iter().cloned()).collect();
        moves.sort_by_key(|one| Reverse(one.started_ns));
        moves.extend(self.incoming.iter().rev().map(|incoming| incoming.info(now_ns)));
        moves
    }

    /// Goes on with everything; says when it wants to be called again.
    pub fn poll(&mut self, host: &'static Host, management: &mut Management, forwarder: &mut Forwarder) -> Option<u64> {
        let now_ns = host.clock.now_ns();
        self.answer(management, now_ns);
        self.hear_callers(host, management, now_ns);
        let mut due_ns = None;
        for outgoing in &mut self.outgoing {
            let wants_ns = outgoing.poll(host, management, &self.keys, now_ns + TURN_NS);
            due_ns = due_ns.into_iter().chain(wants_ns).min();
        }
        for withdrawal in &mut self.withdrawals {
            let wants_ns = withdrawal.poll(host, management, &self.keys);
            due_ns = due_ns.into_iter().chain(wants_ns).min();
        }
        for incoming in &mut self.incoming {
            let wants_ns = incoming.poll(host, management, forwarder);
            due_ns = due_ns.into_iter().chain(wants_ns).min();
        }
        self.surveys.retain_mut(|survey| {
            let is_over = survey.poll(host, management, &self.keys);
            due_ns = due_ns.into_iter().chain((!is_over).then(|| survey.until_ns().max(now_ns + CALL_AGAIN_NS))).min();
            !is_over
        });
        self.forget_ended(now_ns);
        let waits_ns = (!self.callers.is_empty()).then_some(now_ns + CALL_AGAIN_NS);
        due_ns.into_iter().chain(waits_ns).min()
    }

    /// Takes the next caller.
    fn answer(&mut self, management: &mut Management, now_ns: u64) {
        let listener = *self.listener.get_or_insert_with(|| management.listen(PORT));
        match management.stream(listener).state() {
            State::Listen | State::SynReceived => return,
            State::Closed => management.forget(listener),
            _ if self.callers.len() >= CALLERS_MAX => {
                management.stream(listener).abort();
                management.forget(listener);
            }
            _ => self.callers.push(Caller {
                link: Link::new(listener, Role::Responder, &self.keys),
                peer: None,
                message: None,
                until_ns: now_ns + CALLER_NS,
                is_over: false,
            }),
        }
        self.listener = Some(management.listen(PORT));
    }

    fn hear_callers(&mut self, host: &'static Host, management: &mut Management, now_ns: u64) {
        for mut caller in core::mem::take(&mut self.callers) {
            self.hear(&mut caller, host, management, now_ns);
            match (caller.message.take(), caller.peer.take()) {
                (Some(message), Some((name, key))) => self.direct(host, caller.link, &name, key, &message),
                (_, peer) => {
                    caller.peer = peer;
                    if !caller.is_over || !caller.link.shut(management) {
                        self.callers.push(caller);
                    }
                }
            }
        }
    }

    fn hear(&self, caller: &mut Caller, host: &Host, management: &mut Management, now_ns: u64) {
        let Caller { link, message, .. } = caller;
        let event = link.receive(management, &host.clock, |bytes| {
            message.get_or_insert_with(|| bytes.to_vec());
        });
        let event = match event {
            Some(Event::Identified(key)) => {
                let peer = self.peers.iter().find(|peer| peer.key.bytes() == &key.0);
                caller.peer = peer.map(|peer| (peer.name.to_string(), key));
                let unknown = format!("this host does not trust the key {key}: add it here with \"peer add\"");
                if caller.peer.is_none() {
                    log::warn!("a host called whose key {key} is not trusted");
                }
                link.trust(if caller.peer.is_some() { Ok(()) } else { Err(&unknown) })
            }
            other => other,
        };
        if let Some(Event::Ended(end)) = event {
            caller.is_over = true;
            if caller.peer.is_some() {
                log::warn!("a peer's call ended: {end}");
            }
        }
        if !caller.is_over && now_ns > caller.until_ns {
            link.close("it takes too long to say what it wants");
            caller.is_over = true;
        }
        link.flush(management);
    }

    /// The first message says what a session is about.
    fn direct(&mut self, host: &'static Host, mut link: Link, name: &str, key: PublicKey, message: &[u8]) {
        let known = |id| self.incoming.iter().position(|incoming| incoming.is(id, key));
        match Message::parse(message) {
            Ok(Message::Offer { id, version, description }) if known(id).is_none() => {
                self.incoming.push(Incoming::new(host, link, key, name, id, version, description));
            }
            Ok(Message::Commit { id } | Message::Abort { id, .. }) => match known(id) {
                Some(index) => {
                    if let Some(old) = self.incoming[index].relink(link, message) {
                        self.dismiss(old, host.clock.now_ns());
                    }
                }
                None => {
                    let mut bytes = Vec::new();
                    Message::Unknown { id }.encode(&mut bytes);
                    link.send(&bytes);
                    self.dismiss(link, host.clock.now_ns());
                }
            },
            _ if matches!(Word::parse(message), Some(Word::Ask { .. })) => {
                link.send(&survey::tell(host));
                self.dismiss(link, host.clock.now_ns());
            }
            _ => {
                link.close("it begins with what no source begins with");
                self.dismiss(link, host.clock.now_ns());
            }
        }
    }

    /// Keeps a session until its last word is sent.
    fn dismiss(&mut self, link: Link, now_ns: u64) {
        self.callers.push(Caller { link, peer: None, message: None, until_ns: now_ns + CALLER_NS, is_over: true });
    }

    fn forget_ended(&mut self, now_ns: u64) {
        for outgoing in self.outgoing.extract_if(.., |outgoing| outgoing.is_over()) {
            let info = outgoing.info(now_ns);
            match outgoing.into_withdrawal(now_ns) {
                Some(withdrawal) => self.withdrawals.push(withdrawal),
                None => self.history.push_front(info),
            }
        }
        for withdrawal in self.withdrawals.extract_if(.., |withdrawal| withdrawal.is_over()) {
            self.history.push_front(MoveInfo { phase: "stayed".to_string(), ..withdrawal.info().clone() });
        }
        self.history.truncate(ENDED_MAX);
        while self.incoming.len() > ENDED_MAX {
            let Some(oldest) = self.incoming.iter().position(|incoming| !incoming.needs_source()) else { break };
            self.incoming.remove(oldest);
        }
    }
}

fn settings(options: MigrateOptions) -> Settings {
    let usual = Settings::default();
    Settings {
        downtime_ns: options.downtime_ms.map_or(usual.downtime_ns, |ms| ms * 1_000_000),
        timeout_ns: options.timeout_s.map_or(usual.timeout_ns, |s| s * 1_000_000_000),
        strategy: match options.strategy {
            MigrateStrategy::Cancel => Strategy::Cancel,
            MigrateStrategy::Stop => Strategy::Stop,
            MigrateStrategy::Postcopy => Strategy::Postcopy,
        },
        bandwidth_max: options.bandwidth_mib_s.map(|mib| mib << 20),
    }
}

/// When to look again at a call that is due: where the session before it is not hung up yet, not at once.
fn next_call_ns(call_at_ns: Option<u64>, has_link: bool, now_ns: u64) -> Option<u64> {
    call_at_ns.map(|at_ns| if has_link { at_ns.max(now_ns + CALL_AGAIN_NS) } else { at_ns })
}

/// Why this host can keep no secret from others, if so: what its keys are made of could be guessed.
fn no_secrets() -> Option<Refusal> {
    let message = "this processor has no random number generator (RDRAND), so its keys could be guessed";
    cpu::random().is_none().then(|| (message.to_string(), "use a host that has one".to_string()))
}
