//! The memory balloon on the board: which of the guest's memory goes back to the host, and when.
//!
//! Memory goes back in large frames (2 MiB), so that the second-stage tables keep their large pages: a frame is ready once
//! every page of it is in the balloon, or the guest reported all of it free. [`Machine::release`] hands frames that are
//! ready to the host, which takes them away, has every vCPU forget them, and calls again; when nothing is left the guest
//! gets its buffers back. What it touches before is lost, what it touches afterwards finds zeroes. `guestmem` knows which
//! frames are there.

mod saved;

use crate::board::{Board, Slot};
use crate::output::Outbox;
use crate::storage::Disk;
use crate::{Host, Machine};
use addr::{Gpa, LARGE_PAGE_BYTES, PAGE_BYTES};
use alloc::vec::Vec;
use guestmem::{GuestMemory, PageSet};
use virtio::balloon::{Offer, Statistics};
use virtio::{Function, Signal};

/// Small pages in a large frame.
const PAGES: u16 = (LARGE_PAGE_BYTES / PAGE_BYTES) as u16;

/// The balloon as the operator sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BalloonState {
    /// Whether the guest drives it.
    pub has_driver: bool,
    /// What the guest is to do without, in bytes.
    pub target_bytes: u64,
    /// What it says it does without.
    pub given_up_bytes: u64,
    /// What it said of its memory last.
    pub statistics: Statistics,
}

/// The balloon on the board.
pub struct Balloon {
    pub function: Function<virtio::Balloon>,
    known: Option<Known>,
    /// The host works on frames that it was handed.
    is_releasing: bool,
}

/// What is known of the guest's memory; made when it first gives something up.
struct Known {
    /// The pages in the balloon.
    pages: PageSet,
    /// How many of them are in each large frame.
    counts: Vec<u16>,
    /// Large frames, by number, that are in the balloon as a whole and were not handed to the host.
    full: PageSet,
    /// The same of those that the guest reported free.
    free: PageSet,
}

impl Balloon {
    pub fn new() -> Self {
        Self { function: Function::new(virtio::Balloon::new()), known: None, is_releasing: false }
    }

    /// The driver reset the device: all memory is the guest's again, but for what the host works on now.
    pub fn reset(&mut self) {
        self.known = None;
        if self.is_releasing {
            self.function.hold_reset();
        }
    }

    fn pump(&mut self, memory: &GuestMemory, queue: u16, signals: &mut Vec<Signal>) {
        if self.known.is_none() {
            self.known = Known::new(memory);
        }
        let known = &mut self.known;
        self.function.take(memory, queue, signals, |offer| {
            // Where there is no room to know it, memory that is offered just stays.
            if let Some(known) = known {
                known.note(memory, offer);
            }
        });
    }

    fn finish(&mut self, memory: &GuestMemory, signals: &mut Vec<Signal>) {
        self.is_releasing = false;
        self.function.finish_reset();
        self.function.finish(memory, signals);
    }

    /// The next frame that is ready.
    fn next_ready(&mut self) -> Option<Gpa> {
        let known = self.known.as_mut()?;
        let frame = known.full.next_from(0).or_else(|| known.free.next_from(0))?;
        known.full.remove(frame);
        known.free.remove(frame);
        Some(Gpa::new(frame * LARGE_PAGE_BYTES))
    }
}

impl Known {
    /// Nothing known; `None` without room for it.
    fn new(memory: &GuestMemory) -> Option<Self> {
        let end = memory.pages_end();
        let frames = end.div_ceil(PAGES.into());
        let mut counts = Vec::new();
        counts.try_reserve_exact(usize::try_from(frames).ok()?).ok()?;
        counts.resize(frames as usize, 0);
        Some(Self { pages: PageSet::new(end)?, counts, full: PageSet::new(frames)?, free: PageSet::new(frames)? })
    }

    fn note(&mut self, memory: &GuestMemory, offer: Offer) {
        match offer {
            Offer::GivenUp(page) => self.give_up(memory, page),
            Offer::TakenBack(page) => self.take_back(page),
            Offer::Free(start, bytes) => self.report(memory, start, bytes.into()),
        }
    }

    /// A page that is no memory, or is in the balloon already, changes nothing.
    fn give_up(&mut self, memory: &GuestMemory, page: Gpa) {
        let number = page.as_u64() / PAGE_BYTES;
        if memory.check(page, PAGE_BYTES).is_err() || self.pages.contains(number) {
            return;
        }
        self.pages.insert(number, 1);
        let frame = number / u64::from(PAGES);
        let count = &mut self.counts[frame as usize];
        *count += 1;
        if *count == PAGES {
            self.full.insert(frame, 1);
        }
    }

    fn take_back(&mut self, page: Gpa) {
        let number = page.as_u64() / PAGE_BYTES;
        if self.pages.remove(number) {
            let frame = number / u64::from(PAGES);
            self.counts[frame as usize] -= 1;
            self.full.remove(frame);
        }
    }

    /// Notes the large frames that lie in the reported bytes as a whole.
    fn report(&mut self, memory: &GuestMemory, start: Gpa, bytes: u64) {
        let end = start.as_u64().saturating_add(bytes);
        for range in memory.ranges() {
            let first = start.max(range.start()).as_u64().div_ceil(LARGE_PAGE_BYTES);
            let last = end.min(range.end().as_u64()) / LARGE_PAGE_BYTES;
            self.free.insert(first, last.saturating_sub(first));
        }
    }
}

impl Board {
    /// Sees to a queue of the balloon; what may go back to the host leaves by the outbox as a note that it does.
    pub(crate) fn pump_balloon(&mut self, memory: &GuestMemory, queue: u16, outbox: &mut Outbox) {
        self.balloon.pump(memory, queue, &mut self.signals);
        self.settle(Slot::Balloon);
        if self.balloon.function.device.is_busy() {
            outbox.note_given_up();
        }
    }
}

impl Machine {
    /// Hands up to `frames_max` large frames that the guest gave up to the host, which takes each away
    /// ([`GuestMemory::take_frame`]) in `take`; returns how many they were. None: all that were handed over before are
    /// forgotten by every vCPU, and the guest learns that its pages are gone. Only one CPU calls this, with all that
    /// came of the last call done.
    pub fn release(&self, frames_max: usize, host: &mut dyn Host, take: &mut dyn FnMut(Gpa)) -> usize {
        let mut board = self.enter();
        let mut count = 0;
        while count < frames_max
            && let Some(frame) = board.balloon.next_ready()
        {
            // A device works in it, which only a guest at fault brings about: it stays.
            if !board.disks.iter().any(|disk| disk.works_in(frame, LARGE_PAGE_BYTES)) {
                take(frame);
                count += 1;
            }
        }
        board.balloon.is_releasing |= count > 0;
        if count == 0 {
            self.end_release(&mut board, host);
        }
        count
    }

    /// Lets the guest have its buffers back though its memory was not taken, as it is on its way to a disk or a host.
    pub fn release_nothing(&self, host: &mut dyn Host) {
        let mut board = self.enter();
        if let Some(known) = &mut board.balloon.known {
            known.free.clear();
        }
        self.end_release(&mut board, host);
    }

    fn end_release(&self, board: &mut Board, host: &mut dyn Host) {
        board.balloon.finish(&self.memory, &mut board.signals);
        board.settle(Slot::Balloon);
        self.leave(board, host);
    }

    /// Tells the guest how many bytes to do without.
    pub fn set_balloon(&self, bytes: u64, host: &mut dyn Host) {
        let mut board = self.enter();
        let board = &mut *board;
        let pages = u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX);
        board.balloon.function.set_target(pages, &mut board.signals);
        board.settle(Slot::Balloon);
        self.leave(board, host);
    }

    /// What is known of the balloon; asks the guest for newer statistics.
    pub fn balloon(&self, host: &mut dyn Host) -> BalloonState {
        let mut board = self.enter();
        let board = &mut *board;
        let device = &board.balloon.function.device;
        let state = BalloonState {
            has_driver: board.balloon.function.live(),
            target_bytes: u64::from(device.target_pages()) * PAGE_BYTES,
            given_up_bytes: u64::from(device.actual_pages()) * PAGE_BYTES,
            statistics: device.statistics(),
        };
        board.balloon.function.ask_statistics(&self.memory, &mut board.signals);
        board.settle(Slot::Balloon);
        self.leave(board, host);
        state
    }
}

impl Disk {
    /// Whether the host transfers to or from these bytes of guest memory.
    fn works_in(&self, start: Gpa, bytes: u64) -> bool {
        let end = start.as_u64() + bytes;
        self.pieces_under_way()
            .any(|(at, length)| at.as_u64() < end && at.as_u64().saturating_add(length.into()) > start.as_u64())
    }
}
