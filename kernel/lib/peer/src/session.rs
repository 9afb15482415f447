//! One end of a session: handshake, trust, messages, end.
//!
//! A session begins with eight bytes each way, in the clear: what this is, which version of it the host speaks, and which
//! ciphers it has. The handshake binds both, so that nobody can talk two hosts down to less unnoticed. A host that ends a
//! session says why in its last frame, where it still can.

use crate::cipher::{MakeSealer, TAG_BYTES};
use crate::frames::{FRAME_BYTES_MAX, Incoming, close};
use crate::key::{KeyPair, PublicKey};
use crate::noise::{Entropy, handshake, remote_key};
use crate::work::{Crew, Done, Keys, Way, Work, sealed_bytes};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::ControlFlow;
use snow::HandshakeState;
use spin::RwLock;

/// The first bytes of a session.
const MAGIC: [u8; 6] = *b"POLLUX";
/// The version of what follows.
const VERSION: u8 = 2;
const GREETING_BYTES: usize = 8;
/// In the greeting's last byte: the host has AES-256-GCM.
const HAS_AES: u8 = 1;
/// The longest message of one stream.
pub const MESSAGE_BYTES_MAX: usize = FRAME_BYTES_MAX - TAG_BYTES - 1;
/// After so many frames one way the key of that way changes (Noise revision 34, 11.3): at most 1 GiB under one key.
const REKEY_FRAMES: u64 = 1 << 14;
/// The stream of the session itself.
const CONTROL: u8 = 0;
/// The longest message of the handshake, and more.
const HANDSHAKE_BYTES_MAX: usize = 256;
/// The longest farewell.
const REASON_BYTES_MAX: usize = 200;
/// Shorter frames are not worth another processor's while.
const OFFERED_BYTES_MIN: usize = 8 << 10;
/// Frames that are being opened at most, and buffers that are kept for others.
const OPENING_MAX: usize = 8;
const SPARE_MAX: usize = 4;

/// Which end it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It opened the stream, to the host with this key.
    Initiator(PublicKey),
    /// It was called, by whomever it is.
    Responder,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The other end has shown that it holds this key. A responder that trusts it calls [`Session::trust`].
    Identified(PublicKey),
    /// Messages can be sent.
    Open,
    /// The session is over.
    Ended(End),
}

/// Why a session ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// What came first is not how a Pollux host begins.
    NotPollux,
    /// The other host speaks this version only.
    Version(u8),
    /// The other host has this key, which is not the one it should have.
    WrongKey(PublicKey),
    /// What came was changed, cut, reordered or made up on the way.
    Forged,
    /// The other end says why.
    Farewell(String),
    /// This end ended it.
    Closed,
    /// The stream under it ended.
    Lost,
}

impl fmt::Display for End {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPollux => out.write_str("what answers there is no Pollux host"),
            Self::Version(theirs) => {
                write!(out, "the other host speaks version {theirs} of the protocol, this one version {VERSION}")
            }
            Self::WrongKey(key) => write!(out, "the other host has the key {key}, which is not trusted"),
            Self::Forged => out.write_str("what arrived is not what the other host sent"),
            Self::Farewell(reason) => write!(out, "the other host ended it: {reason}"),
            Self::Closed => out.write_str("it was closed"),
            Self::Lost => out.write_str("the connection is lost"),
        }
    }
}

enum Stage {
    /// The other's greeting has not come.
    Greeting,
    Handshake(Box<HandshakeState>),
    /// The handshake is over, and the owner has not said whether it trusts the key.
    Judging(Keys),
    Open(Keys),
    Over,
}

/// How many frames went through the cipher, and how many of them on other processors than their session's.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FrameCounts {
    /// All.
    pub all: u64,
    /// Those that a crew did.
    pub helped: u64,
}

/// One end of a session.
pub struct Session {
    role: Role,
    keys: KeyPair,
    ephemeral: [u8; 32],
    aes: Option<MakeSealer>,
    crew: Option<&'static dyn Crew>,
    stage: Stage,
    remote: Option<PublicKey>,
    incoming: Incoming,
    /// Frames that are being opened, in their order, and their bytes.
    opening: VecDeque<Arc<Work>>,
    opening_bytes: usize,
    /// Bytes to send, and how many of them were.
    ready: Vec<u8>,
    sent: usize,
    /// Frames that follow them, and their bytes.
    sealing: VecDeque<Arc<Work>>,
    sealing_bytes: usize,
    /// The last frame was taken by the crew.
    is_helped: bool,
    spare: Vec<Vec<u8>>,
    sent_frames: u64,
    received_frames: u64,
    /// The next frame that comes with another key.
    rekey_at: u64,
    counts: FrameCounts,
}

impl Session {
    /// A session over a stream that was just opened. With `aes`, this host has that cipher, and prefers it; `crew` helps
    /// with it.
    pub fn new(
        role: Role,
        keys: &KeyPair,
        aes: Option<MakeSealer>,
        crew: Option<&'static dyn Crew>,
        entropy: &mut dyn Entropy,
    ) -> Self {
        let mut ephemeral = [0; 32];
        entropy.fill(&mut ephemeral);
        Self {
            role,
            keys: keys.clone(),
            ephemeral,
            aes,
            crew,
            stage: Stage::Greeting,
            remote: None,
            incoming: Incoming::default(),
            opening: VecDeque::new(),
            opening_bytes: 0,
            ready: greeting(aes.is_some()).to_vec(),
            sent: 0,
            sealing: VecDeque::new(),
            sealing_bytes: 0,
            is_helped: false,
            spare: Vec::new(),
            sent_frames: 0,
            received_frames: 0,
            rekey_at: REKEY_FRAMES,
            counts: FrameCounts::default(),
        }
    }

    /// The other end's key, once it has shown that it holds it.
    pub fn remote(&self) -> Option<PublicKey> {
        self.remote
    }

    /// Whether messages can be sent.
    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open(_))
    }

    /// Takes bytes that arrived.
    pub fn receive(&mut self, bytes: &[u8]) {
        if !matches!(self.stage, Stage::Over) {
            self.incoming.push(bytes);
        }
    }

    /// Bytes that arrived and were not looked at: whoever owns the stream takes no more than it must.
    pub fn waiting(&self) -> usize {
        self.incoming.waiting() + self.opening_bytes
    }

    /// Whether [`Session::poll`] has more to do without anything that arrives.
    pub fn has_more(&self) -> bool {
        self.is_open() && (!self.opening.is_empty() || self.incoming.has_frame())
    }

    /// Bytes to send next. None of those of a frame that is not sealed yet: see [`advance`](Self::advance).
    pub fn outgoing(&mut self) -> &[u8] {
        if self.sent == self.ready.len()
            && let Some(Done { bytes, spare, is_helped }) = self.sealing.front().and_then(|work| work.take())
        {
            self.sealing.pop_front();
            self.count(is_helped);
            self.keep(spare);
            match bytes {
                Some(bytes) => {
                    self.sealing_bytes -= bytes.len();
                    let old = core::mem::replace(&mut self.ready, bytes);
                    self.keep(old);
                    self.sent = 0;
                }
                None => {
                    (self.stage, self.sealing_bytes) = (Stage::Over, 0);
                    self.sealing.clear();
                }
            }
        }
        &self.ready[self.sent..]
    }

    /// Notes that so many bytes of [`outgoing`](Self::outgoing) were sent.
    pub fn note_sent(&mut self, count: usize) {
        self.sent += count;
    }

    /// Bytes that are to be sent, sealed or not.
    pub fn to_send(&self) -> usize {
        self.ready.len() - self.sent + self.sealing_bytes
    }

    /// All that is to be sent, for a stream that takes everything.
    pub fn drain(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.to_send() > 0 {
            self.advance();
            let part = self.outgoing();
            bytes.extend_from_slice(part);
            let count = part.len();
            self.note_sent(count);
        }
        bytes
    }

    /// Seals the first frame that nobody has begun with; says whether there was one.
    pub fn advance(&mut self) -> bool {
        self.sealing.iter().any(|work| work.advance())
    }

    /// Whether what is to be sent next is in another's hands.
    pub fn is_elsewhere(&mut self) -> bool {
        self.outgoing().is_empty() && !self.sealing.is_empty()
    }

    /// Whether others are likely to seal what was sent last, and come to it soon.
    pub fn is_helped(&self) -> bool {
        self.is_helped
    }

    /// The frames so far.
    pub fn counts(&self) -> FrameCounts {
        self.counts
    }

    /// Goes on with what arrived. A message is handed to `message` with its stream's number; where that breaks off, what
    /// is behind it waits for the next call: the other end, trusted or not, has no say in how long a call takes.
    pub fn poll(&mut self, mut message: impl FnMut(u8, &[u8]) -> ControlFlow<()>) -> Option<Event> {
        loop {
            let progress = match &self.stage {
                Stage::Greeting => self.greet(),
                Stage::Handshake(_) => self.shake(),
                Stage::Judging(_) | Stage::Over => return None,
                Stage::Open(_) => self.open_frame(&mut message),
            };
            match progress {
                Ok(Some(Progress::Event(event))) => return Some(event),
                Ok(Some(Progress::Frame)) => {}
                Ok(Some(Progress::Enough) | None) => return None,
                Err(end) => return Some(self.over(end)),
            }
        }
    }

    /// The owner's word on the key of [`Event::Identified`]: the session opens, or ends with a reason that the other host
    /// is told.
    pub fn trust(&mut self, verdict: Result<(), &str>) -> Option<Event> {
        let Stage::Judging(keys) = core::mem::replace(&mut self.stage, Stage::Over) else { return None };
        self.stage = Stage::Open(keys);
        match verdict {
            Ok(()) => Some(Event::Open),
            Err(reason) => {
                self.close(reason);
                self.remote.map(|key| Event::Ended(End::WrongKey(key)))
            }
        }
    }

    /// Appends a message on a stream from 1 on to what is to be sent: `parts`, joined. False where the session is not
    /// open.
    pub fn send(&mut self, stream: u8, parts: &[&[u8]]) -> bool {
        let bytes = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
        assert!(bytes <= MESSAGE_BYTES_MAX + 1, "a message fits a frame");
        let Stage::Open(keys) = &self.stage else { return false };
        let keys = keys.clone();
        let (mut plain, sealed) = (self.room(), self.room());
        plain.clear();
        plain.push(stream);
        parts.iter().for_each(|part| plain.extend_from_slice(part));
        if self.sent_frames > 0 && self.sent_frames.is_multiple_of(REKEY_FRAMES) {
            self.sealing.iter().for_each(|work| work.finish());
            keys.write().rekey_outgoing();
        }
        let work = Work::new(&keys, Way::Seal, self.sent_frames, plain, sealed);
        self.is_helped = self.offer(&work, bytes);
        self.sent_frames += 1;
        self.sealing_bytes += sealed_bytes(bytes);
        self.sealing.push_back(work);
        true
    }

    /// Ends the session; the other end is told why, if it can still be.
    pub fn close(&mut self, reason: &str) {
        let mut end = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        self.send(CONTROL, &[&reason.as_bytes()[..end]]);
        self.stage = Stage::Over;
    }

    fn over(&mut self, end: End) -> Event {
        if matches!(self.stage, Stage::Open(_)) && !matches!(end, End::Farewell(_)) {
            self.close("it received what was not sent");
        }
        self.stage = Stage::Over;
        Event::Ended(end)
    }

    fn greet(&mut self) -> Result<Option<Progress>, End> {
        let Some(theirs) = self.incoming.take(GREETING_BYTES) else { return Ok(None) };
        let own = greeting(self.aes.is_some());
        if theirs[..MAGIC.len()] != MAGIC {
            return Err(End::NotPollux);
        }
        if theirs[6] != own[6] {
            return Err(End::Version(theirs[6]));
        }
        let initiates = matches!(self.role, Role::Initiator(_));
        let prologue = if initiates { [&own, theirs].concat() } else { [theirs, &own].concat() };
        let aes = self.aes.filter(|_| theirs[7] & HAS_AES != 0);
        let ephemeral = core::mem::take(&mut self.ephemeral);
        let mut entropy = |into: &mut [u8]| into.copy_from_slice(&ephemeral);
        let state = handshake(&self.keys, &prologue, initiates, aes, &mut entropy);
        self.stage = Stage::Handshake(Box::new(state.map_err(|_| End::Forged)?));
        if initiates {
            self.write_handshake()?;
        }
        Ok(Some(Progress::Frame))
    }

    /// Reads one message of the handshake, and answers it.
    fn shake(&mut self) -> Result<Option<Progress>, End> {
        let Stage::Handshake(state) = &mut self.stage else { return Ok(None) };
        let Some(frame) = self.incoming.frame() else { return Ok(None) };
        state.read_message(frame, &mut [0; HANDSHAKE_BYTES_MAX]).map_err(|_| End::Forged)?;
        self.remote = remote_key(state.get_remote_static());
        if let (Role::Initiator(expected), Some(remote)) = (self.role, self.remote)
            && expected != remote
        {
            return Err(End::WrongKey(remote));
        }
        if state.is_my_turn() && !state.is_handshake_finished() {
            self.write_handshake()?;
        }
        let Stage::Handshake(state) = core::mem::replace(&mut self.stage, Stage::Over) else { return Ok(None) };
        if !state.is_handshake_finished() {
            self.stage = Stage::Handshake(state);
            return Ok(Some(Progress::Frame));
        }
        let keys = Arc::new(RwLock::new(state.into_stateless_transport_mode().map_err(|_| End::Forged)?));
        let remote = self.remote.ok_or(End::Forged)?;
        Ok(Some(Progress::Event(match self.role {
            Role::Initiator(_) => {
                self.stage = Stage::Open(keys);
                Event::Open
            }
            Role::Responder => {
                self.stage = Stage::Judging(keys);
                Event::Identified(remote)
            }
        })))
    }

    fn write_handshake(&mut self) -> Result<(), End> {
        let Stage::Handshake(state) = &mut self.stage else { return Ok(()) };
        let mut message = [0; HANDSHAKE_BYTES_MAX];
        let length = state.write_message(&[], &mut message).map_err(|_| End::Forged)?;
        let at = self.ready.len();
        self.ready.extend([0, 0]);
        self.ready.extend_from_slice(&message[..length]);
        close(&mut self.ready, at);
        Ok(())
    }

    /// Hands out the next message, where the frame that it is in is not in another's hands.
    fn open_frame(&mut self, message: &mut impl FnMut(u8, &[u8]) -> ControlFlow<()>) -> Result<Option<Progress>, End> {
        self.begin_frames();
        let Some(first) = self.opening.front() else { return Ok(None) };
        first.advance();
        let Some(Done { bytes, spare, is_helped }) = first.take() else {
            let did_another = self.opening.iter().any(|work| work.advance());
            return Ok(did_another.then_some(Progress::Frame));
        };
        self.opening.pop_front();
        self.opening_bytes -= spare.len();
        self.count(is_helped);
        self.keep(spare);
        let plain = bytes.ok_or(End::Forged)?;
        let (&stream, bytes) = plain.split_first().ok_or(End::Forged)?;
        if stream == CONTROL {
            let reason = core::str::from_utf8(bytes).ok().filter(|text| !text.chars().any(char::is_control));
            return Err(End::Farewell(reason.unwrap_or("it gives no reason").into()));
        }
        let goes_on = message(stream, bytes).is_continue();
        self.keep(plain);
        Ok(Some(if goes_on { Progress::Frame } else { Progress::Enough }))
    }

    /// Has whole frames opened: all but the first, which comes next, also by others.
    fn begin_frames(&mut self) {
        let Stage::Open(keys) = &self.stage else { return };
        let keys = keys.clone();
        while self.opening.len() < OPENING_MAX && self.incoming.has_frame() {
            if self.received_frames == self.rekey_at {
                if !self.opening.is_empty() {
                    // They are under the key before.
                    return;
                }
                keys.write().rekey_incoming();
                self.rekey_at += REKEY_FRAMES;
            }
            let (mut sealed, plain) = (self.room(), self.room());
            sealed.clear();
            sealed.extend_from_slice(self.incoming.frame().unwrap_or_default());
            let bytes = sealed.len();
            let work = Work::new(&keys, Way::Open, self.received_frames, sealed, plain);
            if !self.opening.is_empty() {
                self.offer(&work, bytes);
            }
            self.received_frames += 1;
            self.opening_bytes += bytes;
            self.opening.push_back(work);
        }
    }

    /// Shows a frame to the crew, if it is worth that.
    fn offer(&self, work: &Arc<Work>, bytes: usize) -> bool {
        !cfg!(feature = "plain") && bytes >= OFFERED_BYTES_MIN && self.crew.is_some_and(|crew| crew.offer(work))
    }

    fn count(&mut self, is_helped: bool) {
        self.counts.all += 1;
        self.counts.helped += u64::from(is_helped);
    }

    /// Room for a frame.
    fn room(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Keeps room for another frame.
    fn keep(&mut self, room: Vec<u8>) {
        if self.spare.len() < SPARE_MAX {
            self.spare.push(room);
        }
    }
}

/// What a step of a session led to.
enum Progress {
    Event(Event),
    Frame,
    /// The owner has had enough for now.
    Enough,
}

fn greeting(has_aes: bool) -> [u8; GREETING_BYTES] {
    let mut greeting = [0; GREETING_BYTES];
    greeting[..MAGIC.len()].copy_from_slice(&MAGIC);
    // A benchmark's build without cipher must never meet one with it.
    greeting[6] = if cfg!(feature = "plain") { 0x80 | VERSION } else { VERSION };
    greeting[7] = if has_aes { HAS_AES } else { 0 };
    greeting
}

#[cfg(test)]
mod tests;
