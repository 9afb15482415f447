//! What others leave for a vCPU while it runs or sleeps: interrupts and work, for its next look.
//!
//! The type is [`Mailbox`]: bits that senders set and the vCPU takes, so that nothing waits twice, nothing overflows and
//! nobody locks. A local APIC holds each vector once, too. Where a processor takes posted interrupts by itself, edges are
//! where it finds them.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use vcpu::Posted;

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
    /// Edges that a processor may take, and this with them.
    pub const POSTED: u32 = vcpu::Posted::NOTIFIED;
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
    pub const EDGES: u32 = 1 << 11;
    pub const LEVELS: u32 = 1 << 12;
    pub const PAGE_SHIFT: u32 = 24;
    /// What INIT takes back.
    pub const BEFORE_INIT: u32 = NMI | EXT_INT | STARTUP | UNHALT | 0xff << PAGE_SHIFT;
}

/// Whom the sender of mail tells of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tell {
    /// Nobody: who left something before tells the vCPU, or it looks anyway.
    Nobody,
    /// The vCPU, which must look into its mailbox.
    Vcpu,
    /// The processor that runs it, which takes this by itself.
    Processor,
}

/// The vectors below are an error to send, and to receive.
const FIRST_LEGAL_VECTOR: u8 = 16;

/// Where a vCPU is, for those who leave it something.
mod place {
    /// Not in [`Machine::run`](crate::Machine::run).
    pub const AWAY: u8 = 0;
    /// There: it may be in the guest.
    pub const RUNNING: u8 = 1;
    /// There, on a processor that takes posted interrupts.
    pub const POSTABLE: u8 = 2;
    /// There, out of the guest, looking for mail again and again.
    pub const LOOKING: u8 = 3;
}

/// The mail of one vCPU.
#[derive(Default)]
pub struct Mailbox {
    /// What waits, zero when nothing does, and the edges. Of the word's changes, the sleeper's notes and the vCPU's place
    /// there is one order for all.
    posted: Arc<Posted>,
    /// Edges and levels that no processor may take.
    edges: [AtomicU64; 4],
    levels: [AtomicU64; 4],
    /// Which vectors were ever levels.
    ever_levels: [AtomicU64; 4],
    place: AtomicU8,
}

/// What was taken out of a mailbox.
pub struct Taken<'a> {
    word: u32,
    mailbox: &'a Mailbox,
}

impl Mailbox {
    /// What of this is for a processor to take.
    pub fn posted(&self) -> &Arc<Posted> {
        &self.posted
    }

    /// Leaves something, and says who must be told of it.
    #[must_use]
    pub fn post(&self, mail: Mail) -> Tell {
        let before = match mail {
            Mail::Vector { vector, level_triggered } => return self.post_vector(vector, level_triggered),
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
        self.whom(before)
    }

    fn post_vector(&self, vector: u8, level_triggered: bool) -> Tell {
        if level_triggered {
            insert(&self.ever_levels, vector);
            insert(&self.levels, vector);
            return self.whom(self.set(bit::LEVELS));
        }
        // A processor does not look at a vector, and leaves what is known of its trigger mode.
        if vector < FIRST_LEGAL_VECTOR || contains(&self.ever_levels, vector) {
            insert(&self.edges, vector);
            return self.whom(self.set(bit::EDGES));
        }
        let before = self.leave(vector);
        self.whom_of_posted(before)
    }

    /// Leaves an edge for whoever is there to take it; gives what waited before.
    pub(crate) fn leave(&self, vector: u8) -> u32 {
        insert(&self.posted.requests, vector);
        self.set(bit::POSTED)
    }

    /// Who is told of an edge, after this waited. The vCPU that is seen on its processor here either takes it there or
    /// looks for mail after it left.
    pub(crate) fn whom_of_posted(&self, before: u32) -> Tell {
        match (before, self.place()) {
            (0, place::POSTABLE) => Tell::Processor,
            (0, place::LOOKING) => Tell::Nobody,
            (0, _) => Tell::Vcpu,
            _ => Tell::Nobody,
        }
    }

    /// Who is told of what is for the vCPU itself, after this waited: a processor that was told of interrupts takes them and
    /// nothing else.
    fn whom(&self, before: u32) -> Tell {
        match (before, self.place()) {
            (0, place::LOOKING) => Tell::Nobody,
            (0, _) | (bit::POSTED, place::POSTABLE) => Tell::Vcpu,
            _ => Tell::Nobody,
        }
    }

    fn place(&self) -> u8 {
        self.place.load(Ordering::SeqCst)
    }

    /// Notes which vectors were levels in a life before this one.
    pub fn note_levels(&self, vectors: [u64; 4]) {
        for (word, more) in self.ever_levels.iter().zip(vectors) {
            word.fetch_or(more, Ordering::Relaxed);
        }
    }

    /// Whether anything waits.
    pub fn has_mail(&self) -> bool {
        self.posted.word.load(Ordering::SeqCst) != 0
    }

    /// Takes everything out.
    pub fn take(&self) -> Option<Taken<'_>> {
        if !self.has_mail() {
            return None;
        }
        Some(Taken { word: self.posted.word.swap(0, Ordering::SeqCst), mailbox: self })
    }

    /// Notes that the vCPU may enter the guest from here on, once it has taken its mail.
    pub fn begin_running(&self) {
        self.place.store(place::RUNNING, Ordering::SeqCst);
    }

    /// Notes whether the processor that runs the vCPU, if one does, takes what is posted by itself from here on.
    pub fn set_postable(&self, is_postable: bool) {
        if self.place.load(Ordering::Relaxed) == place::AWAY {
            return;
        }
        self.place.store(if is_postable { place::POSTABLE } else { place::RUNNING }, Ordering::SeqCst);
    }

    /// Notes that the vCPU, which runs, stays out of the guest and looks for mail: nobody need tell it. It looks once more
    /// after [`begin_running`](Self::begin_running) or [`end_running`](Self::end_running), which end this.
    pub fn begin_looking(&self) {
        self.place.store(place::LOOKING, Ordering::SeqCst);
    }

    /// Notes that it does not until further notice.
    pub fn end_running(&self) {
        self.place.store(place::AWAY, Ordering::SeqCst);
    }

    /// Whether the vCPU may be in the guest without having seen an invalidation that was posted.
    pub fn may_use_stale_translations(&self) -> bool {
        self.posted.word.load(Ordering::SeqCst) & bit::INVALIDATE != 0
            && self.place.load(Ordering::SeqCst) != place::AWAY
    }

    fn set(&self, bits: u32) -> u32 {
        self.posted.word.fetch_or(bits, Ordering::SeqCst)
    }

    fn change(&self, change: impl Fn(u32) -> u32) -> u32 {
        let word = &self.posted.word;
        let mut before = word.load(Ordering::Relaxed);
        loop {
            match word.compare_exchange_weak(before, change(before), Ordering::SeqCst, Ordering::Relaxed) {
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
        if self.word != bit::POSTED {
            singles.into_iter().filter(|(bit, _)| self.word & bit != 0).for_each(|(_, mail)| each(mail));
        }
        let Mailbox { posted, edges, levels, .. } = self.mailbox;
        for (bit, set, level_triggered) in
            [(bit::POSTED, &posted.requests, false), (bit::EDGES, edges, false), (bit::LEVELS, levels, true)]
        {
            if self.word & bit != 0 {
                take(set, |vector| each(Mail::Vector { vector, level_triggered }));
            }
        }
    }
}

fn insert(set: &[AtomicU64; 4], vector: u8) {
    set[usize::from(vector >> 6)].fetch_or(1 << (vector & 63), Ordering::Relaxed);
}

fn contains(set: &[AtomicU64; 4], vector: u8) -> bool {
    set[usize::from(vector >> 6)].load(Ordering::Relaxed) & 1 << (vector & 63) != 0
}

/// Takes every vector out of a set that several put them into.
fn take(set: &[AtomicU64; 4], mut each: impl FnMut(u8)) {
    for (index, word) in set.iter().enumerate() {
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

    fn level(vector: u8) -> Mail {
        Mail::Vector { vector, level_triggered: true }
    }

    #[test]
    fn nothing_is_lost_or_doubled_and_the_first_tells() {
        let mailbox = Mailbox::default();
        assert!(!mailbox.has_mail());
        assert_eq!(mailbox.post(edge(0x31)), Tell::Vcpu, "the first in an empty box");
        for vector in 0..=255 {
            assert_eq!(mailbox.post(edge(vector)), Tell::Nobody);
        }
        assert_eq!(mailbox.post(level(0x31)), Tell::Nobody);
        assert!(mailbox.has_mail());
        let mail = taken(&mailbox);
        assert_eq!(mail.len(), 257);
        assert_eq!(mail.last(), Some(&level(0x31)));
        assert!(!mailbox.has_mail());
        assert_eq!(taken(&mailbox), []);
        assert_eq!(mailbox.post(edge(0x31)), Tell::Vcpu, "empty again");
    }

    #[test]
    fn a_processor_that_takes_interrupts_is_told_of_nothing_else() {
        let mailbox = Mailbox::default();
        mailbox.begin_running();
        assert_eq!(mailbox.post(edge(0x31)), Tell::Vcpu, "this one takes none");
        assert_eq!(taken(&mailbox), [edge(0x31)]);
        mailbox.set_postable(true);
        assert_eq!(mailbox.post(edge(0x31)), Tell::Processor);
        assert_eq!(mailbox.post(edge(0x32)), Tell::Nobody, "it takes all");
        assert_eq!(mailbox.post(Mail::Nmi), Tell::Vcpu, "but this");
        assert_eq!(mailbox.post(Mail::Board), Tell::Nobody, "the vCPU looks anyway");
        assert_eq!(taken(&mailbox), [Mail::Nmi, Mail::Board, edge(0x31), edge(0x32)]);
        assert_eq!(mailbox.post(Mail::Board), Tell::Vcpu);
        assert_eq!(mailbox.post(edge(0x31)), Tell::Nobody, "it looks");
        mailbox.end_running();
        let _ = taken(&mailbox);
        assert_eq!(mailbox.post(edge(0x31)), Tell::Vcpu, "nobody runs it");
    }

    #[test]
    fn what_a_processor_would_take_wrongly_is_kept_from_it() {
        let mailbox = Mailbox::default();
        mailbox.set_postable(true);
        assert_eq!(mailbox.post(edge(0x61)), Tell::Vcpu, "nobody runs it");
        assert_eq!(taken(&mailbox), [edge(0x61)]);
        mailbox.begin_running();
        mailbox.set_postable(true);
        let posted = || mailbox.posted().requests.each_ref().map(|word| word.load(Ordering::Relaxed));
        assert_eq!(mailbox.post(edge(15)), Tell::Vcpu, "an error");
        assert_eq!(taken(&mailbox), [edge(15)]);
        assert_eq!(mailbox.post(level(0x51)), Tell::Vcpu);
        assert_eq!(mailbox.post(edge(0x51)), Tell::Nobody);
        assert_eq!(posted(), [0; 4]);
        assert_eq!(taken(&mailbox), [edge(0x51), level(0x51)]);
        assert_eq!(mailbox.post(edge(0x51)), Tell::Vcpu, "its trigger mode changes");
        assert_eq!(mailbox.post(edge(0x52)), Tell::Nobody);
        assert_eq!(posted(), [0, 1 << 0x12, 0, 0]);
        mailbox.note_levels([0, 1 << 0x13, 0, 0]);
        let _ = mailbox.post(edge(0x53));
        assert_eq!(posted(), [0, 1 << 0x12, 0, 0], "it was a level before the machine was saved");
    }

    #[test]
    fn who_looks_is_told_nothing() {
        let mailbox = Mailbox::default();
        mailbox.begin_running();
        mailbox.begin_looking();
        for mail in [edge(0x31), level(0x41), Mail::Nmi, Mail::Invalidate] {
            assert_eq!(mailbox.post(mail), Tell::Nobody, "{mail:?}");
            assert!(mailbox.has_mail());
            assert_eq!(taken(&mailbox), [mail]);
        }
        mailbox.begin_running();
        assert_eq!(mailbox.post(edge(0x31)), Tell::Vcpu);
        assert_eq!(taken(&mailbox), [edge(0x31)]);
        mailbox.begin_looking();
        mailbox.end_running();
        assert_eq!(mailbox.post(Mail::Nmi), Tell::Vcpu, "it is away");
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
