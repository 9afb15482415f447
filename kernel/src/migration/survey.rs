//! Asking other hosts what their processors have, for a CPU profile: [`Survey`].
//!
//! Each is called, asked one question and left again, all at once. Whoever does not answer, in time and intelligibly, ends
//! the survey: a profile of fewer hosts than were named would be another one.

use super::link::Link;
use super::{CALLER_NS, PORT};
use crate::host::Host;
use crate::management::Management;
use crate::measure::Outcome;
use crate::profiles;
use crate::vm::Refusal;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use config::{Name, PeerSpec};
use machine::{BASELINE_BYTES_MAX, Baseline};
use migrate::survey::{VERSION, Word};
use peer::{Event, KeyPair, PublicKey, Role};
use shell::Reply;

/// A question to several hosts.
pub struct Survey {
    /// What the profile will be called.
    name: Name,
    /// The features that it shall not have.
    without: Vec<String>,
    calls: Vec<Call>,
    until_ns: u64,
    /// Who waits for it; taken once it is answered.
    outcome: Option<Arc<Outcome>>,
}

/// One host that is asked.
struct Call {
    peer: PeerSpec,
    link: Option<Link>,
    /// What it has, or why that is not known.
    answer: Option<Result<Baseline, String>>,
}

impl Survey {
    /// Asks these hosts.
    pub fn new(host: &Host, name: Name, peers: Vec<PeerSpec>, without: Vec<String>) -> (Self, Arc<Outcome>) {
        let outcome = Arc::<Outcome>::default();
        let calls = peers.into_iter().map(|peer| Call { peer, link: None, answer: None }).collect();
        let until_ns = host.clock.now_ns() + CALLER_NS;
        (Self { name, without, calls, until_ns, outcome: Some(outcome.clone()) }, outcome)
    }

    /// Goes on; says whether it is over.
    pub fn poll(&mut self, host: &Host, management: &mut Management, keys: &KeyPair) -> bool {
        let is_late = host.clock.now_ns() > self.until_ns;
        for call in &mut self.calls {
            call.poll(host, management, keys, is_late);
        }
        if self.calls.iter().all(|call| call.answer.is_some())
            && let Some(outcome) = self.outcome.take()
        {
            outcome.put(self.conclude(host));
        }
        self.calls.iter().all(|call| call.answer.is_some() && call.link.is_none())
    }

    /// When it wants to be called again at the latest.
    pub fn until_ns(&self) -> u64 {
        self.until_ns
    }

    fn conclude(&self, host: &Host) -> Result<Reply, Refusal> {
        let mut common = profiles::own(host);
        for Call { peer, answer, .. } in &self.calls {
            let asked = || format!("{} ({})", peer.name, peer.address);
            let theirs = match answer {
                Some(Ok(baseline)) => baseline,
                Some(Err(why)) => return Err((format!("{}: {why}", asked()), "see \"peer list\"".to_string())),
                None => return Err((format!("{} was not asked", asked()), "try again".to_string())),
            };
            common = common.meet(theirs).map_err(|_| {
                let message = format!("{} has {}, and this host {}", asked(), theirs.vendor(), common.vendor());
                (message, "no guest moves between them: derive a profile for each vendor".to_string())
            })?;
        }
        let hosts = self.calls.iter().map(|call| call.peer.name.to_string()).collect();
        profiles::keep(host, self.name.clone(), hosts, common, &self.without)
    }
}

impl Call {
    fn poll(&mut self, host: &Host, management: &mut Management, keys: &KeyPair, is_late: bool) {
        if self.link.is_none() && self.answer.is_none() {
            match management.connect(self.peer.address, PORT) {
                Some(handle) => {
                    let role = Role::Initiator(PublicKey(*self.peer.key.bytes()));
                    self.link = Some(Link::new(handle, role, keys));
                }
                None => self.answer = Some(Err("this host has no way to it".to_string())),
            }
        }
        let Self { link: Some(link), answer, .. } = self else { return };
        if answer.is_none() {
            let event = link.receive(management, &host.clock, |bytes| {
                answer.get_or_insert_with(|| read(bytes));
            });
            match event {
                Some(Event::Open) => link.send(&Word::Ask { version: VERSION }.encode()),
                Some(Event::Ended(end)) if answer.is_none() => *answer = Some(Err(end.to_string())),
                Some(Event::Ended(_) | Event::Identified(_)) | None => {}
            }
            if is_late && answer.is_none() {
                *answer = Some(Err("it does not answer".to_string()));
            }
        }
        link.flush(management);
        if answer.is_some() {
            link.close("it is answered");
            if link.shut(management) {
                self.link = None;
            }
        }
    }
}

/// What another host says.
fn read(bytes: &[u8]) -> Result<Baseline, String> {
    match Word::parse(bytes) {
        Some(Word::Tell { version: VERSION, processor }) if processor.len() <= BASELINE_BYTES_MAX => {
            Baseline::parse(processor).map_err(|_| "what it says of its processor cannot be".to_string())
        }
        Some(Word::Tell { version: VERSION, .. }) => Err("it says too much of its processor".to_string()),
        Some(Word::Tell { version, .. }) => {
            Err(format!("it describes processors in version {version}, this host in version {VERSION}"))
        }
        Some(Word::Ask { .. }) | None => Err("it answers what was not asked".to_string()),
    }
}

/// What this host says of its own.
pub fn tell(host: &Host) -> Vec<u8> {
    Word::Tell { version: VERSION, processor: &profiles::own(host).encode() }.encode()
}
