//! What a job that fails does about the header of its image, which it may have written already: an image that was good is
//! good again, and one that must not be is void. Each step begins when the transfer of the one before has ended.
//!
//! The main type is [`Undo`], which [`super::save`] and [`super::restore`] go through before they give up.

use super::Next;
use crate::host::Host;
use crate::slot::{Full, Slot, Staging};
use crate::vm::Refusal;
use block::Op;
use state::image::HEADER_BYTES;

/// How soon a disk without room is asked again.
const LOOK_NS: u64 = 100_000;

/// A header on its way to what it was.
pub struct Undo {
    /// Why the job failed.
    refusal: Refusal,
    step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Write,
    Flush,
    End,
}

/// How it went.
pub enum Undone {
    /// It is not over.
    Waits(Next),
    /// The header is as it was, or nobody knows how it is. And why the job failed.
    Over { is_undone: bool, refusal: Refusal },
}

impl Undo {
    /// Has the header be that of before. Nothing is under way at the slot, and its failure is forgotten.
    pub fn new(slot: &mut Slot, staging: &Staging, header: &[u8; HEADER_BYTES], refusal: Refusal) -> Self {
        slot.take_failure();
        staging.fill(header);
        Self { refusal, step: Step::Write }
    }

    /// Goes on.
    pub fn poll(&mut self, host: &'static Host, slot: &mut Slot, staging: &Staging) -> Undone {
        if !slot.is_idle() {
            return Undone::Waits(Next::Transfer);
        }
        let has_failed = slot.take_failure();
        if has_failed || self.step == Step::End {
            return Undone::Over { is_undone: !has_failed, refusal: self.refusal.clone() };
        }
        let taken = match self.step {
            Step::Write => slot.submit(host, 0, Op::Write, 0, &staging.runs(HEADER_BYTES as u64)).map(|()| Step::Flush),
            Step::Flush | Step::End => slot.flush(host).map(|()| Step::End),
        };
        let now_ns = host.clock.now_ns();
        Undone::Waits(match taken {
            Ok(step) => {
                self.step = step;
                Next::At(now_ns)
            }
            Err(Full) => Next::At(now_ns + LOOK_NS),
        })
    }
}
