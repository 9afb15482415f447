//! Frames to a card.
//!
//! The main type is [`Transmitter`]: a ring of descriptors beside a ring of bytes, into which frames are copied one
//! behind the other. Both are taken back in the order in which they were given.

use super::descriptor::{DESCRIPTOR_BYTES, PIECE_BYTES_MAX, Piece, TransmitFormat};
use super::offload::{Context, Work};
use super::registers::{Bus, TDT};
use crate::dma::DmaMemory;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};
use switch::{FRAME_BYTES_MAX, Full, GSO_FRAME_BYTES_MAX, Gso, Headers, Offload, Segments, complete_checksum};
use virtio_drivers::Hal;

/// Descriptors of the ring.
pub(super) const RING_SIZE: u16 = 256;
/// Bytes of frames that wait: eight of the longest, or 4 ms of a Gbit/s.
const ARENA_BYTES: usize = 512 << 10;
/// Frames start at multiples of a cache line.
const ALIGN_BYTES: usize = 64;
/// What a frame of the usual size takes of it, at most.
const USUAL_BYTES: usize = FRAME_BYTES_MAX.next_multiple_of(ALIGN_BYTES);
/// How many frames of the usual size there is room for when all are sent.
pub(super) const ROOM_MAX: usize = room(RING_SIZE - 1, 0);

/// The transmit ring.
pub(super) struct Transmitter<H: Hal> {
    descriptors: DmaMemory<H>,
    arena: DmaMemory<H>,
    format: TransmitFormat,
    /// The next descriptor to fill, and how many are free. One stays empty, so that a full ring differs from an empty.
    next: u16,
    free: u16,
    /// Where the next frame goes in the arena, and how many of its bytes are taken.
    next_byte: usize,
    taken_bytes: usize,
    /// What the card has not finished, oldest first.
    waiting: VecDeque<Sent>,
    /// How many the card finished so far.
    finished: u64,
    /// Descriptors were filled that the card was not told of.
    kick_due: bool,
    /// What the card was last told of headers: it remembers.
    context: Option<Context>,
    /// A frame being finished in software; kept for its memory.
    scratch: Vec<u8>,
}

/// A frame with the card.
struct Sent {
    /// Its last descriptor, which the card marks.
    last: u16,
    descriptors: u16,
    /// Its bytes of the arena, with what was left over before it.
    bytes: usize,
}

impl<H: Hal> Transmitter<H> {
    /// An empty ring; `None` where there is no memory.
    pub(super) fn new(format: TransmitFormat) -> Option<Self> {
        Some(Self {
            descriptors: DmaMemory::new(usize::from(RING_SIZE) * DESCRIPTOR_BYTES)?,
            arena: DmaMemory::new(ARENA_BYTES)?,
            format,
            next: 0,
            free: RING_SIZE - 1,
            next_byte: 0,
            taken_bytes: 0,
            waiting: VecDeque::with_capacity(RING_SIZE.into()),
            finished: 0,
            kick_due: false,
            context: None,
            scratch: Vec::with_capacity(FRAME_BYTES_MAX),
        })
    }

    /// Where the card finds the ring.
    pub(super) fn physical(&self) -> u64 {
        self.descriptors.physical(0)
    }

    /// Forgets every frame: the card was reset.
    pub(super) fn reset(&mut self) {
        (self.next, self.free, self.next_byte, self.taken_bytes) = (0, RING_SIZE - 1, 0, 0);
        self.waiting.clear();
        self.kick_due = false;
        self.context = None;
    }

    /// How many frames the card finished so far, if it still has some: it is expected to grow.
    pub(super) fn progress(&mut self) -> Option<u64> {
        self.take_back();
        (!self.waiting.is_empty()).then_some(self.finished)
    }

    /// Tells the card of what was transmitted.
    pub(super) fn kick(&mut self, bus: &mut impl Bus) {
        if core::mem::take(&mut self.kick_due) {
            fence(Ordering::Release);
            bus.write(TDT, self.next.into());
        }
    }

    /// Copies a frame into the ring. What the card cannot do on it is done here; one that nobody could send is dropped.
    pub(super) fn transmit(&mut self, bus: &mut impl Bus, offload: &Offload, frame: &[u8]) -> Result<(), Full> {
        if frame.is_empty() || offload.check(frame).is_err() {
            return Ok(());
        }
        match Work::plan(frame, offload) {
            Some(work) => self.push(bus, &work, offload, frame),
            None => self.transmit_finished(bus, offload, frame),
        }
    }

    /// Finishes a frame in software.
    fn transmit_finished(&mut self, bus: &mut impl Bus, offload: &Offload, frame: &[u8]) -> Result<(), Full> {
        let plain = Offload::default();
        let mut finished = core::mem::take(&mut self.scratch);
        let mut sent = Ok(());
        if offload.gso == Gso::None {
            finished.clear();
            finished.extend_from_slice(frame);
            complete_checksum(&mut finished, offload);
            sent = self.push(bus, &Work::None, &plain, &finished);
        } else if let Ok(mut segments) = Segments::new(frame, offload) {
            while sent.is_ok() && segments.next_into(&mut finished) {
                sent = self.push(bus, &Work::None, &plain, &finished);
            }
        }
        self.scratch = finished;
        sent
    }

    fn push(&mut self, bus: &mut impl Bus, work: &Work, offload: &Offload, frame: &[u8]) -> Result<(), Full> {
        assert!(frame.len() <= GSO_FRAME_BYTES_MAX, "a checked frame has a length");
        let context = work.context().filter(|context| self.context.as_ref() != Some(context));
        let pieces = frame.len().div_ceil(PIECE_BYTES_MAX);
        // At most 10, as a frame is shorter than 66 KiB.
        let descriptors = pieces as u16 + u16::from(context.is_some());
        let (start, bytes) = self.make_room(bus, descriptors, frame.len())?;
        if let Some(context) = context {
            let [first, second] = self.format.context(context);
            self.write(first, second);
            self.context = Some(*context);
        }
        self.copy(start, work, offload, frame);
        for piece in 0..pieces {
            let offset = piece * PIECE_BYTES_MAX;
            let bytes = (frame.len() - offset).min(PIECE_BYTES_MAX);
            let piece = Piece { bytes, frame_bytes: frame.len(), is_last: piece + 1 == pieces };
            self.write(self.arena.physical(start + offset), self.format.data(work, piece));
        }
        self.free -= descriptors;
        self.next_byte = start + frame.len().next_multiple_of(ALIGN_BYTES);
        self.taken_bytes += bytes;
        self.waiting.push_back(Sent { last: (self.next + RING_SIZE - 1) % RING_SIZE, descriptors, bytes });
        self.kick_due = true;
        Ok(())
    }

    /// Copies a frame into the arena, with the headers that the card wants.
    fn copy(&mut self, start: usize, work: &Work, offload: &Offload, frame: &[u8]) {
        self.arena.copy_from(start, frame);
        if let Work::Segment(_) = work
            && let Ok(headers) = Headers::parse(frame, offload)
        {
            self.scratch.clear();
            self.scratch.extend_from_slice(&frame[..headers.payload()]);
            headers.seed(&mut self.scratch);
            self.arena.copy_from(start, &self.scratch);
        }
    }

    /// Fills the next descriptor.
    fn write(&mut self, first: u64, second: u64) {
        let at = usize::from(self.next) * DESCRIPTOR_BYTES;
        self.descriptors.store(at, first);
        self.descriptors.store(at + 8, second);
        self.next = (self.next + 1) % RING_SIZE;
    }

    /// How many frames of the usual size there is room for.
    pub(super) fn room(&mut self) -> usize {
        self.take_back();
        room(self.free, self.taken_bytes)
    }

    /// Where in the arena a frame can go, and the bytes that it then takes; takes back finished frames for it.
    fn make_room(&mut self, bus: &mut impl Bus, descriptors: u16, bytes: usize) -> Result<(usize, usize), Full> {
        if let Some(place) = self.place(descriptors, bytes) {
            return Ok(place);
        }
        self.take_back();
        if let Some(place) = self.place(descriptors, bytes) {
            return Ok(place);
        }
        // Frames not announced would never leave.
        self.kick(bus);
        self.take_back();
        self.place(descriptors, bytes).ok_or(Full)
    }

    fn place(&self, descriptors: u16, bytes: usize) -> Option<(usize, usize)> {
        let bytes = bytes.next_multiple_of(ALIGN_BYTES);
        // A frame lies in one piece: where it does not fit before the end, that is left over.
        let wraps = self.next_byte + bytes > ARENA_BYTES;
        let (start, left_over) = if wraps { (0, ARENA_BYTES - self.next_byte) } else { (self.next_byte, 0) };
        let fits = descriptors <= self.free && self.taken_bytes + left_over + bytes <= ARENA_BYTES;
        fits.then_some((start, left_over + bytes))
    }

    /// Takes back what the card has finished.
    fn take_back(&mut self) {
        while let Some(sent) = self.waiting.front() {
            let word = self.descriptors.load(usize::from(sent.last) * DESCRIPTOR_BYTES + 8);
            if !self.format.is_done(word) {
                return;
            }
            self.free += sent.descriptors;
            self.taken_bytes -= sent.bytes;
            self.finished += 1;
            self.waiting.pop_front();
        }
    }
}

/// How many frames of the usual size fit so many descriptors and what is left of the arena.
const fn room(free: u16, taken_bytes: usize) -> usize {
    // One frame's bytes may be left over at the end.
    let fit = ((ARENA_BYTES - taken_bytes) / USUAL_BYTES).saturating_sub(1);
    // A descriptor each for a context that may have to be said first.
    let described = (free / 2) as usize;
    if described < fit { described } else { fit }
}
