//! A VM that was taken back and runs here, while the target, which was ready to run it, is told so: again and again, until
//! it answers.
//!
//! The main type is [`Withdrawal`], what is left of an [`super::outgoing::Outgoing`]. Nothing of the VM's is held by it: the
//! VM may be ended, saved, or moved elsewhere meanwhile, since the word that gives it away is never said.

use super::link::Link;
use super::{CALL_AGAIN_NS, PORT};
use crate::host::Host;
use crate::management::Management;
use alloc::vec::Vec;
use config::{Name, PeerSpec};
use migrate::source::{Effect, Phase, Word};
use migrate::wire::Message;
use migrate::{Source, talk};
use peer::{Event, KeyPair, PublicKey, Role};
use shell::MoveInfo;

/// A target that is still to be told.
pub struct Withdrawal {
    source: Source,
    peer: PeerSpec,
    link: Option<Link>,
    /// When the other host is called again.
    call_at_ns: Option<u64>,
    /// The move as it ended.
    info: MoveInfo,
}

impl Withdrawal {
    /// What is left of a move that ended like this.
    pub fn new(source: Source, peer: PeerSpec, link: Option<Link>, call_at_ns: Option<u64>, info: MoveInfo) -> Self {
        assert!(source.phase() == Phase::Withdrawing, "else nobody is to be told");
        Self { source, peer, link, call_at_ns, info }
    }

    /// Whether it is about this VM, and this target.
    pub fn is(&self, vm: &str, peer: &Name) -> bool {
        self.info.vm == vm && self.peer.name == *peer
    }

    /// The move, as it is known.
    pub fn info(&self) -> &MoveInfo {
        &self.info
    }

    /// The target is trusted no more, and so not called: it keeps what it has until its operator gives that up.
    pub fn give_up(&mut self, peer: &Name) {
        if self.peer.name == *peer && self.source.phase() == Phase::Withdrawing {
            log::warn!("{peer} was not told that {} stays here: say \"migrate cancel {0}\" there", self.info.vm);
            self.source.unknown();
            self.call_at_ns = None;
        }
    }

    /// Whether nothing is left to do.
    pub fn is_over(&self) -> bool {
        self.source.phase() == Phase::Done && self.link.is_none()
    }

    /// Goes on; says when it wants to be called again.
    pub fn poll(&mut self, host: &Host, management: &mut Management, keys: &KeyPair) -> Option<u64> {
        let now_ns = host.clock.now_ns();
        self.call(management, keys, now_ns);
        self.receive(host, management, now_ns);
        while let Some(effect) = self.source.take_effect() {
            match effect {
                Effect::Say(Word::Abort(reason)) => self.say(&reason),
                Effect::Connect => {
                    self.call_at_ns.get_or_insert(now_ns + CALL_AGAIN_NS);
                }
                other => unreachable!("what was taken back is not to {other:?}"),
            }
        }
        self.hang_up(management);
        super::next_call_ns(self.call_at_ns, self.link.is_some(), now_ns)
    }

    /// Calls the other host, where that is due.
    fn call(&mut self, management: &mut Management, keys: &KeyPair, now_ns: u64) {
        if self.call_at_ns.is_none_or(|at_ns| at_ns > now_ns) || self.link.is_some() {
            return;
        }
        let handle = management.connect(self.peer.address, PORT);
        let role = || Role::Initiator(PublicKey(*self.peer.key.bytes()));
        self.link = handle.map(|handle| Link::new(handle, role(), keys));
        self.call_at_ns = self.link.is_none().then_some(now_ns + CALL_AGAIN_NS);
    }

    fn receive(&mut self, host: &Host, management: &mut Management, now_ns: u64) {
        let Self { link: Some(link), source, .. } = self else { return };
        let mut breach = None;
        let event = link.receive(management, &host.clock, |bytes| {
            breach = talk::hear(source, bytes, &mut |_, _| {}).err().or(breach.take());
        });
        match event {
            Some(Event::Open) => source.linked(),
            Some(Event::Ended(_)) => self.lost(now_ns),
            Some(Event::Identified(_)) | None => {}
        }
        if let (Some(what), Some(link)) = (breach, &mut self.link) {
            link.close(&what);
            self.lost(now_ns);
        }
    }

    fn lost(&mut self, now_ns: u64) {
        self.source.unlinked("");
        self.call_at_ns = Some(now_ns + CALL_AGAIN_NS);
    }

    fn say(&mut self, reason: &str) {
        if let Some(link) = &mut self.link {
            let mut bytes = Vec::new();
            Message::Abort { id: self.source.id(), reason }.encode(&mut bytes);
            link.send(&bytes);
        }
    }

    /// Lets go of a session that ended, or that nothing more is to be said on.
    fn hang_up(&mut self, management: &mut Management) {
        let is_done = self.source.phase() == Phase::Done;
        let Some(link) = &mut self.link else { return };
        link.flush(management);
        if is_done && link.is_flushed() {
            link.close("it is done");
        }
        if link.is_closed() && link.shut(management) {
            self.link = None;
        }
    }
}
