//! What others leave for a vCPU while it runs or sleeps: interrupts and work, for its next look.
//!
//! The type is [`Mailbox`]: bits that senders set and the vCPU takes, so that nothing waits twice, nothing overflows and
//! nobody locks. A local APIC holds each vector once, too.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Something for a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mail {
    /// A vector, which the sender found it to be addressed by.
    Vector {
        /// Which.
        vector: u8,
        /// Whether its end must be reported.
        level_triggered: bool,
    },
    /// An NMI.
    Nmi,
    /// An interrupt whose vector comes from the 8259 pair.
    ExtInt,
    /// INIT. It takes back what came before it.
    Init,
    /// Start-up at this page. A second one before the first was seen is lost, as on hardware.
    Startup(u8),
    /// The 8259 pair's output changed to this level.
    PicLine(bool),
    /// The board has work that an input left to whoever has an outbox.
    Board,
    /// The board's timers have another deadline.
    BoardTimers,
    /// Another vCPU ended this one's paravirtual halt.
    Unhalt,
    /// The second-stage tables lost or narrowed an entry.
    Invalidate,
}

/// The bits of the word that says what waits; the page of a start-up message is in the highest byte.
mod bit {
    pub const VECTORS: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    pub const EXT_INT: u32 = 1 << 2;
    pub const INIT: u32 = 1 << 3;
    pub const STARTUP: u32 = 1 << 4;
    pub const PIC_LINE: u32 = 1 << 5;
    pub const PIC_LEVEL: u32 = 1 << 6;
    pub const BOARD: u32 = 1 << 7;
    pub const BOARD_TIMERS: u32 = 1 << 8;
    pub const UNHALT: u32 = 1 << 9;
    pub const INVALIDATE: u32 = 1 << 10;
    pub const PAGE_SHIFT: u32 = 24;
    /// What INIT takes back.
    pub const BEFORE_INIT: u32 = NMI | EXT_INT | STARTUP | UNHALT | 0xff << PAGE_SHIFT;
}

/// A set of vectors, which several set and one takes.
#[derive(Default)]
struct Vectors([AtomicU64; 4]);

/// The mail of one vCPU.
#[derive(Default)]
pub struct Mailbox {
    /// What waits; zero when nothing does. Of its changes and the sleeper's notes there is one order for all.
    word: AtomicU32,
    edges: Vectors,
    levels: Vectors,
    /// Somebody is in [`Machine::run`](crate::Machine::run) with this vCPU: it may be in the guest.
    is_running: AtomicBool,
}

/// What was taken out of a mailbox.
pub struct Taken<'a> {
    word: u32,
    mailbox: &'a Mailbox,
}

impl Mailbox {
    /// Leaves something; says whether the vCPU must be told. If not, whoever left something before tells it.
    #[must_use]
    pub fn post(&self, mail: Mail) -> bool {
        let before = match mail {
            Mail::Vector { vector, level_triggered } => {
                let set = if level_triggered { &self.levels } else { &self.edges };
                set.0[usize::from(vector >> 6)].fetch_or(1 << (vector & 63), Ordering::Relaxed);
                self.set(bit::VECTORS)
            }
            Mail::Nmi => self.set(bit::NMI),
            Mail::ExtInt => self.set(bit::EXT_INT),
            Mail::Init => self.change(|word| word & !bit::BEFORE_INIT | bit::INIT),
            Mail::Startup(page) => self.change(|word| match word & bit::STARTUP {
                0 => word | bit::STARTUP | u32::from(page) << bit::PAGE_SHIFT,
                _ => word,
            }),
            Mail::PicLine(asserted) => {
                let level = if asserted { bit::PIC_LEVEL } else { 0 };
                self.change(|word| word & !bit::PIC_LEVEL | bit::PIC_LINE | level)
            }
            Mail::Board => self.set(bit::BOARD),
            Mail::BoardTimers => self.set(bit::BOARD_TIMERS),
            Mail::Unhalt => self.set(bit::UNHALT),
            Mail::Invalidate => self.set(bit::INVALIDATE),
        };
        before == 0
    }

    /// Whether anything waits.
    pub fn has_mail(&self) -> bool {
        self.word.load(Ordering::SeqCst) != 0
    }

    /// Takes everything out.
    pub fn take(&self) -> Option<Taken<'_>> {
        if !self.has_mail() {
            return None;
        }
        Some(Taken { word: self.word.swap(0, Ordering::SeqCst), mailbox: self })
    }

    /// Notes that the vCPU may enter the guest from here on, once it has taken its mail.
    pub fn begin_running(&self) {
        self.is_running.store(true, Ordering::SeqCst);
    }

    /// Notes that it does not until further notice.
    pub fn end_running(&self) {
        self.is_running.store(false, Ordering::Release);
    }

    /// Whether the vCPU may be in the guest without having seen an invalidation that was posted.
    pub fn may_use_stale_translations(&self) -> bool {
        self.word.load(Ordering::SeqCst) & bit::INVALIDATE != 0 && self.is_running.load(Ordering::SeqCst)
    }

    fn set(&self, bits: u32) -> u32 {
        self.word.fetch_or(bits, Ordering::SeqCst)
    }

    fn change(&self, change: impl Fn(u32) -> u32) -> u32 {
        let mut before = self.word.load(Ordering::Relaxed);
        loop {
            match self.word.compare_exchange_weak(before, change(before), Ordering::SeqCst, Ordering::Relaxed) {
                Ok(before) => return before,
                Err(now) => before = now,
            }
        }
    }
}

impl Taken<'_> {
    /// Calls `each` with what was taken, in an order in which it may have been sent: INIT first, vectors last.
    pub fn each(self, mut each: impl FnMut(Mail)) {
        let singles = [
            (bit::INVALIDATE, Mail::Invalidate),
            (bit::INIT, Mail::Init),
            (bit::STARTUP, Mail::Startup((self.word >> bit::PAGE_SHIFT) as u8)),
            (bit::PIC_LINE, Mail::PicLine(self.word & bit::PIC_LEVEL != 0)),
            (bit::NMI, Mail::Nmi),
            (bit::EXT_INT, Mail::ExtInt),
            (bit::UNHALT, Mail::Unhalt),
            (bit::BOARD, Mail::Board),
            (bit::BOARD_TIMERS, Mail::BoardTimers),
        ];
        if self.word != bit::VECTORS {
            singles.into_iter().filter(|(bit, _)| self.word & bit != 0).for_each(|(_, mail)| each(mail));
        }
        if self.word & bit::VECTORS != 0 {
            self.mailbox.edges.take(|vector| each(Mail::Vector { vector, level_triggered: false }));
            self.mailbox.levels.take(|vector| each(Mail::Vector { vector, level_triggered: true }));
        }
    }
}

impl Vectors {
    fn take(&self, mut each: impl FnMut(u8)) {
        for (index, word) in self.0.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::Relaxed);
            while bits != 0 {
                each((index * 64) as u8 + bits.trailing_zeros() as u8);
                bits &= bits - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn taken(mailbox: &Mailbox) -> Vec<Mail> {
        let mut mail = Vec::new();
        if let Some(taken) = mailbox.take() {
            taken.each(|item| mail.push(item));
        }
        mail
    }

    fn edge(vector: u8) -> Mail {
        Mail::Vector { vector, level_triggered: false }
    }

    #[test]
    fn nothing_is_lost_or_doubled_and_the_first_tells() {
        let mailbox = Mailbox::default();
        assert!(!mailbox.has_mail());
        assert!(mailbox.post(edge(0x31)), "the first in an empty box");
        for vector in 0..=255 {
            assert!(!mailbox.post(edge(vector)));
        }
        assert!(!mailbox.post(Mail::Vector { vector: 0x31, level_triggered: true }));
        assert!(mailbox.has_mail());
        let mail = taken(&mailbox);
        assert_eq!(mail.len(), 257);
        assert_eq!(mail.last(), Some(&Mail::Vector { vector: 0x31, level_triggered: true }));
        assert!(!mailbox.has_mail());
        assert_eq!(taken(&mailbox), []);
        assert!(mailbox.post(edge(0x31)), "empty again");
    }

    #[test]
    fn the_last_level_counts() {
        let mailbox = Mailbox::default();
        for asserted in [true, false, true] {
            let _ = mailbox.post(Mail::PicLine(asserted));
        }
        assert_eq!(taken(&mailbox), [Mail::PicLine(true)]);
        let _ = mailbox.post(Mail::PicLine(false));
        assert_eq!(taken(&mailbox), [Mail::PicLine(false)]);
    }

    #[test]
    fn init_takes_back_what_came_before_it() {
        let mailbox = Mailbox::default();
        for mail in [Mail::Nmi, Mail::Startup(0x10), Mail::Unhalt, Mail::Board, Mail::Init] {
            let _ = mailbox.post(mail);
        }
        assert_eq!(taken(&mailbox), [Mail::Init, Mail::Board]);
        for mail in [Mail::Init, Mail::Startup(0x9a), Mail::Startup(0x44), Mail::Nmi] {
            let _ = mailbox.post(mail);
        }
        assert_eq!(taken(&mailbox), [Mail::Init, Mail::Startup(0x9a), Mail::Nmi], "the first start-up counts");
    }

    #[test]
    fn translations_are_stale_while_a_runner_has_not_looked() {
        let mailbox = Mailbox::default();
        let _ = mailbox.post(Mail::Invalidate);
        assert!(!mailbox.may_use_stale_translations(), "it looks before it enters");
        mailbox.begin_running();
        assert!(mailbox.may_use_stale_translations());
        assert_eq!(taken(&mailbox), [Mail::Invalidate]);
        assert!(!mailbox.may_use_stale_translations());
        let _ = mailbox.post(Mail::Invalidate);
        mailbox.end_running();
        assert!(!mailbox.may_use_stale_translations());
    }
}
