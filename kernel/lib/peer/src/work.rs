//! Frames on their way through the cipher, each by whichever processor comes first.
//!
//! A [`Work`] is one frame with all that it takes, its number among it, which is its nonce: so frames can be sealed and
//! opened anywhere and in any order. Their session keeps them in theirs. A [`Crew`] is who else may do them.

use crate::cipher::TAG_BYTES;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use snow::StatelessTransportState;
use spin::{Mutex, RwLock};

/// Bytes of a frame's length, in front of it.
const HEADER_BYTES: usize = 2;

/// Processors that may help.
pub trait Crew: Sync {
    /// Shows them a frame; says whether one of them may come to it before its owner.
    fn offer(&self, work: &Arc<Work>) -> bool;
}

/// The keys of a session, both ways.
pub(crate) type Keys = Arc<RwLock<StatelessTransportState>>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// To the frame with its length in front.
    Seal,
    /// From the frame without it.
    Open,
}

/// A frame to be sealed or opened.
pub struct Work {
    keys: Keys,
    way: Way,
    number: u64,
    body: Mutex<Body>,
    is_helped: AtomicBool,
}

/// A frame's bytes, before and after.
struct Body {
    from: Vec<u8>,
    to: Vec<u8>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Waiting,
    Done,
    Failed,
}

/// What came of a frame.
pub(crate) struct Done {
    /// Its bytes, unless they are forged.
    pub bytes: Option<Vec<u8>>,
    /// Room for others.
    pub spare: Vec<u8>,
    /// Somebody else did it.
    pub is_helped: bool,
}

impl Work {
    /// Of frame `number` of its way: `from` is to become what is put into `to`.
    pub(crate) fn new(keys: &Keys, way: Way, number: u64, from: Vec<u8>, to: Vec<u8>) -> Arc<Self> {
        let body = Mutex::new(Body { from, to, stage: Stage::Waiting });
        Arc::new(Self { keys: keys.clone(), way, number, body, is_helped: AtomicBool::new(false) })
    }

    /// Does it for its owner, unless it is done or in another's hands; says whether it did.
    pub fn help(&self) -> bool {
        let helped = self.advance();
        self.is_helped.fetch_or(helped, Ordering::Relaxed);
        helped
    }

    /// The same by its owner.
    pub(crate) fn advance(&self) -> bool {
        let Some(mut body) = self.body.try_lock().filter(|body| body.stage == Stage::Waiting) else { return false };
        self.carry_out(&mut body);
        true
    }

    /// The same, and waits for another that does it.
    pub(crate) fn finish(&self) {
        let mut body = self.body.lock();
        if body.stage == Stage::Waiting {
            self.carry_out(&mut body);
        }
    }

    /// Takes what came of it, once it is done.
    pub(crate) fn take(&self) -> Option<Done> {
        let mut body = self.body.try_lock().filter(|body| body.stage != Stage::Waiting)?;
        let (from, to) = (core::mem::take(&mut body.from), core::mem::take(&mut body.to));
        let bytes = (body.stage == Stage::Done).then_some(to);
        Some(Done { bytes, spare: from, is_helped: self.is_helped.load(Ordering::Relaxed) })
    }

    fn carry_out(&self, body: &mut Body) {
        let keys = self.keys.read();
        let Body { from, to, .. } = &mut *body;
        let is_done = match self.way {
            Way::Seal => seal(&keys, self.number, from, to),
            Way::Open => open(&keys, self.number, from, to),
        };
        body.stage = if is_done.is_ok() { Stage::Done } else { Stage::Failed };
    }
}

/// How long a frame is on the wire.
pub(crate) fn sealed_bytes(plain_bytes: usize) -> usize {
    HEADER_BYTES + plain_bytes + TAG_BYTES
}

fn seal(keys: &StatelessTransportState, number: u64, plain: &[u8], out: &mut Vec<u8>) -> Result<(), snow::Error> {
    out.resize(sealed_bytes(plain.len()), 0);
    let (header, frame) = out.split_at_mut(HEADER_BYTES);
    header.copy_from_slice(&(frame.len() as u16).to_be_bytes());
    if cfg!(feature = "plain") {
        frame[..plain.len()].copy_from_slice(plain);
        return Ok(());
    }
    keys.write_message(number, plain, frame).map(drop)
}

fn open(keys: &StatelessTransportState, number: u64, frame: &[u8], out: &mut Vec<u8>) -> Result<(), snow::Error> {
    out.resize(frame.len().saturating_sub(TAG_BYTES), 0);
    if cfg!(feature = "plain") {
        let length = out.len();
        out.copy_from_slice(&frame[..length]);
        return Ok(());
    }
    keys.read_message(number, frame, out).map(drop)
}
