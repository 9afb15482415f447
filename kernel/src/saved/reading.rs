//! A saved VM's memory on its way from a partition, a frame at a time: zeroed where that is all, read and compared with its
//! checksum where there is more, and then shown to the guest. Frames that somebody waits for go first.
//!
//! The main type is [`Reading`]. It says what to transfer next and is told what ended; whose job that is decides what a
//! failure means: [`super::restore`] before the VM runs, [`super::rest`] afterwards. The disk writes into the guest's frames
//! while nobody else reaches them (`vm::absent`).

use crate::host::Host;
use crate::slot::{Full, Slot, push_runs};
use crate::vm::{Running, absent};
use addr::{Gpa, Hpa};
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::Op;
use state::image::{Contents, FRAME_PAGES, Frame, PAGE_BYTES, PAGES_AT_BYTES, Pages};

/// The memory.
pub struct Reading {
    running: Arc<Running>,
    pieces: Vec<Piece>,
    /// Those that go first.
    urgent: VecDeque<usize>,
    /// Those before it have all been begun, once.
    next: usize,
    /// How many pages on the partition are not here.
    left_pages: u64,
    is_wanted: bool,
    /// A frame that the disk had no room for: it is zeroed.
    zeroed: Option<usize>,
}

struct Piece {
    frame: Frame,
    /// Where it goes.
    hpa: Hpa,
    /// Where its pages are on the partition.
    at_bytes: u64,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Away,
    OnItsWay,
    Here,
}

/// What was read is not what was saved.
pub struct Damaged {
    /// Where in the guest's memory.
    pub gpa: u64,
}

impl Reading {
    /// Memory of a life that has not run, none of which is here. What must come first is next.
    pub fn start(running: Arc<Running>, contents: &mut Contents) -> Result<Self, String> {
        absent::start_all(&running)?;
        let frames = core::mem::take(&mut contents.frames);
        let hpas = running.machine.memory().frames().map(|(_, hpa)| hpa);
        let mut at_bytes = PAGES_AT_BYTES;
        let pieces = frames.into_iter().zip(hpas).map(|(frame, hpa)| {
            let at = at_bytes;
            at_bytes += u64::from(frame.pages()) * PAGE_BYTES;
            Piece { frame, hpa, at_bytes: at, phase: Phase::Away }
        });
        let pieces: Vec<_> = pieces.collect();
        let left_pages = pieces.iter().map(|piece| u64::from(piece.frame.pages())).sum();
        let urgent = VecDeque::new();
        let mut this = Self { running, pieces, urgent, next: 0, left_pages, is_wanted: false, zeroed: None };
        this.urgent = contents.first.iter().filter_map(|&gpa| this.number(gpa)).collect();
        Ok(this)
    }

    /// Whose memory it is.
    pub fn running(&self) -> &Arc<Running> {
        &self.running
    }

    /// How much on the partition is not here.
    pub fn left_bytes(&self) -> u64 {
        self.left_pages * PAGE_BYTES
    }

    /// Whether what goes first has all been begun.
    pub fn has_begun_first(&self) -> bool {
        self.urgent.is_empty()
    }

    /// Whether something came since the last call that somebody waits for.
    pub fn take_wanted(&mut self) -> bool {
        core::mem::take(&mut self.is_wanted)
    }

    /// Has what the guest waits for come next.
    pub fn hear_wanted(&mut self) {
        let Self { running, urgent, pieces, is_wanted, .. } = self;
        running.machine.memory().take_wanted(|page| {
            let Some(index) = number(pieces, page * PAGE_BYTES) else { return };
            match pieces[index].phase {
                Phase::Away => urgent.push_back(index),
                Phase::OnItsWay => {}
                // It came between the look and the note.
                Phase::Here => *is_wanted = true,
            }
        });
    }

    /// Begins with the next frame; says whether there was one. One without content is here at once.
    pub fn begin(&mut self, host: &Host, slot: &mut Slot) -> Result<bool, Full> {
        let Some(index) = self.choose() else { return Ok(false) };
        let Piece { frame, hpa, at_bytes, .. } = &self.pieces[index];
        let (pages, at_bytes) = (frame.pages() as usize, *at_bytes);
        if pages < FRAME_PAGES && self.zeroed.take() != Some(index) {
            self.running.zero_frame(index);
        }
        if pages == 0 {
            self.show(index);
            return Ok(true);
        }
        let mut runs = Vec::new();
        for (first, count) in frame.runs() {
            push_runs(&mut runs, hpa.wrapping_add(first as u64 * PAGE_BYTES), count as u64 * PAGE_BYTES);
        }
        match slot.submit(host, index as u64, Op::Read, at_bytes, &runs) {
            // It is refused at once where the disk is gone.
            Ok(()) if slot.has_failed() => self.urgent.push_front(index),
            Ok(()) => self.pieces[index].phase = Phase::OnItsWay,
            Err(full) => {
                self.urgent.push_front(index);
                self.zeroed = Some(index);
                return Err(full);
            }
        }
        Ok(true)
    }

    /// A frame was read: compares it with what was saved, and shows it.
    pub fn ended(&mut self, index: usize) -> Result<(), Damaged> {
        let frame = &self.pieces[index].frame;
        let mut sum = Pages::new();
        let mut page = [0; PAGE_BYTES as usize];
        for (first, count) in frame.runs() {
            for number in first..first + count {
                let number = frame.gpa / PAGE_BYTES + number as u64;
                self.running.machine.memory().read_frame(number, &mut page).expect("its frames are memory");
                sum.add(&page);
            }
        }
        if sum.finish() != frame.checksum {
            return Err(Damaged { gpa: frame.gpa });
        }
        self.show(index);
        Ok(())
    }

    /// A frame could not be read: it comes next when that is tried again.
    pub fn again(&mut self, index: usize) {
        self.pieces[index].phase = Phase::Away;
        self.urgent.push_front(index);
    }

    fn show(&mut self, index: usize) {
        let Piece { frame, hpa, phase, .. } = &mut self.pieces[index];
        *phase = Phase::Here;
        self.left_pages -= u64::from(frame.pages());
        self.is_wanted |= absent::show(&self.running, Gpa::new(frame.gpa), *hpa);
    }

    fn choose(&mut self) -> Option<usize> {
        let Self { urgent, pieces, next, .. } = self;
        let is_away = |&index: &usize| pieces[index].phase == Phase::Away;
        let urgent = core::iter::from_fn(|| urgent.pop_front()).find(is_away);
        urgent.or_else(|| {
            let found = (*next..pieces.len()).find(is_away);
            *next = found.map_or(pieces.len(), |index| index + 1);
            found
        })
    }

    fn number(&self, gpa: u64) -> Option<usize> {
        number(&self.pieces, gpa)
    }
}

/// The frame around an address.
fn number(pieces: &[Piece], gpa: u64) -> Option<usize> {
    let frame = gpa & !(FRAME_PAGES as u64 * PAGE_BYTES - 1);
    pieces.binary_search_by_key(&frame, |piece| piece.frame.gpa).ok()
}
