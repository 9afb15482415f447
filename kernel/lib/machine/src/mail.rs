//! What others leave for a vCPU while it runs or sleeps: interrupt messages and work, for its next look.

use alloc::vec::Vec;
use chipset::Message;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::Mutex;

/// Something for a vCPU's local APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mail {
    /// An interrupt message; the local APIC knows whether it is addressed.
    Message(Message),
    /// The 8259 pair's output changed to this level.
    PicLine(bool),
    /// The board has work that an input left to whoever has an outbox.
    Board,
}

/// How many messages wait at most: a multiple of the vectors there are. Only a guest whose processors invent ever new
/// destinations while this vCPU does not run gets there; it loses interrupts.
const MAIL_MAX: usize = 1024;

/// The mail of one vCPU.
#[derive(Default)]
pub struct Mailbox {
    waiting: AtomicBool,
    mail: Mutex<Vec<Mail>>,
}

impl Mailbox {
    /// Leaves something. What waits there already is not doubled: a local APIC holds each vector once, too.
    pub fn post(&self, item: Mail) {
        let mut mail = self.mail.lock();
        match item {
            Mail::PicLine(_) => mail.retain(|other| !matches!(other, Mail::PicLine(_))),
            Mail::Message(_) | Mail::Board if mail.contains(&item) => return,
            Mail::Message(_) if mail.len() >= MAIL_MAX => return,
            Mail::Message(_) | Mail::Board => {}
        }
        mail.push(item);
        // One order for all: the poster's note, then its wake-up; the sleeper's note, then its question.
        self.waiting.store(true, Ordering::SeqCst);
    }

    /// Whether anything waits.
    pub fn has_mail(&self) -> bool {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Takes everything out, in order, into `into`, which is empty.
    pub fn take(&self, into: &mut Vec<Mail>) {
        if self.has_mail() {
            let mut mail = self.mail.lock();
            self.waiting.store(false, Ordering::Relaxed);
            core::mem::swap(&mut *mail, into);
        }
    }
}
