//! One end of a session: handshake, trust, messages, end.
//!
//! A session begins with eight bytes each way, in the clear: what this is, which version of it the host speaks, and which
//! ciphers it has. The handshake binds both, so that nobody can talk two hosts down to less unnoticed. A host that ends a
//! session says why in its last frame, where it still can.

use crate::cipher::{MakeSealer, TAG_BYTES};
use crate::frames::{FRAME_BYTES_MAX, Incoming, close};
use crate::key::{KeyPair, PublicKey};
use crate::noise::{Entropy, handshake, remote_key};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::ControlFlow;
use snow::{HandshakeState, TransportState};

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
/// The longest farewell.
const REASON_BYTES_MAX: usize = 200;

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
    Judging(Box<TransportState>),
    Open(Box<TransportState>),
    Over,
}

/// One end of a session.
pub struct Session {
    role: Role,
    keys: KeyPair,
    ephemeral: [u8; 32],
    aes: Option<MakeSealer>,
    stage: Stage,
    remote: Option<PublicKey>,
    incoming: Incoming,
    outgoing: Vec<u8>,
    /// Plain bytes of the frame at hand.
    plain: Vec<u8>,
    sent_frames: u64,
    received_frames: u64,
}

impl Session {
    /// A session over a stream that was just opened. With `aes`, this host has that cipher, and prefers it.
    pub fn new(role: Role, keys: &KeyPair, aes: Option<MakeSealer>, entropy: &mut dyn Entropy) -> Self {
        let mut ephemeral = [0; 32];
        entropy.fill(&mut ephemeral);
        Self {
            role,
            keys: keys.clone(),
            ephemeral,
            aes,
            stage: Stage::Greeting,
            remote: None,
            incoming: Incoming::default(),
            outgoing: greeting(aes.is_some()).to_vec(),
            plain: alloc::vec![0; FRAME_BYTES_MAX],
            sent_frames: 0,
            received_frames: 0,
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
        self.incoming.waiting()
    }

    /// Whether [`Session::poll`] has more to do without anything that arrives.
    pub fn has_more(&self) -> bool {
        self.is_open() && self.incoming.has_frame()
    }

    /// Bytes to send. What was sent is taken out of the front.
    pub fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.outgoing
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
        let Stage::Judging(transport) = core::mem::replace(&mut self.stage, Stage::Over) else { return None };
        self.stage = Stage::Open(transport);
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
        let Stage::Open(transport) = &mut self.stage else { return false };
        let at = self.outgoing.len();
        self.plain[0] = stream;
        let mut end = 1;
        for part in parts {
            self.plain[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
        self.outgoing.resize(at + 2 + bytes + TAG_BYTES, 0);
        if seal(transport, &self.plain[..end], &mut self.outgoing[at + 2..]).is_err() {
            self.outgoing.truncate(at);
            self.stage = Stage::Over;
            return false;
        }
        close(&mut self.outgoing, at);
        self.sent_frames += 1;
        if self.sent_frames.is_multiple_of(REKEY_FRAMES) {
            transport.rekey_outgoing();
        }
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
        state.read_message(frame, &mut self.plain).map_err(|_| End::Forged)?;
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
        let transport = Box::new(state.into_transport_mode().map_err(|_| End::Forged)?);
        let remote = self.remote.ok_or(End::Forged)?;
        Ok(Some(Progress::Event(match self.role {
            Role::Initiator(_) => {
                self.stage = Stage::Open(transport);
                Event::Open
            }
            Role::Responder => {
                self.stage = Stage::Judging(transport);
                Event::Identified(remote)
            }
        })))
    }

    fn write_handshake(&mut self) -> Result<(), End> {
        let Stage::Handshake(state) = &mut self.stage else { return Ok(()) };
        let mut message = [0; 256];
        let length = state.write_message(&[], &mut message).map_err(|_| End::Forged)?;
        let at = self.outgoing.len();
        self.outgoing.extend([0, 0]);
        self.outgoing.extend_from_slice(&message[..length]);
        close(&mut self.outgoing, at);
        Ok(())
    }

    fn open_frame(&mut self, message: &mut impl FnMut(u8, &[u8]) -> ControlFlow<()>) -> Result<Option<Progress>, End> {
        let Stage::Open(transport) = &mut self.stage else { return Ok(None) };
        let Some(frame) = self.incoming.frame() else { return Ok(None) };
        let length = unseal(transport, frame, &mut self.plain).map_err(|_| End::Forged)?;
        self.received_frames += 1;
        if self.received_frames.is_multiple_of(REKEY_FRAMES) {
            transport.rekey_incoming();
        }
        let (&stream, bytes) = self.plain[..length].split_first().ok_or(End::Forged)?;
        if stream == CONTROL {
            let reason = core::str::from_utf8(bytes).ok().filter(|text| !text.chars().any(char::is_control));
            return Err(End::Farewell(reason.unwrap_or("it gives no reason").into()));
        }
        Ok(Some(if message(stream, bytes).is_continue() { Progress::Frame } else { Progress::Enough }))
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

fn seal(transport: &mut TransportState, plain: &[u8], out: &mut [u8]) -> Result<usize, snow::Error> {
    if cfg!(feature = "plain") {
        out[..plain.len()].copy_from_slice(plain);
        return Ok(plain.len());
    }
    transport.write_message(plain, out)
}

fn unseal(transport: &mut TransportState, frame: &[u8], plain: &mut [u8]) -> Result<usize, snow::Error> {
    if cfg!(feature = "plain") {
        let length = frame.len().saturating_sub(TAG_BYTES);
        plain[..length].copy_from_slice(&frame[..length]);
        return Ok(length);
    }
    transport.read_message(frame, plain)
}

#[cfg(test)]
mod tests;
