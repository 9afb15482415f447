//! Frames from a network card.
//!
//! The main type is [`Receiver`]: a queue whose every descriptor has a buffer of its own, which goes back to the device
//! as soon as its frame is copied out.

use super::BUFFER_BYTES;
use super::header::{self, HEADER_BYTES};
use crate::dma::DmaMemory;
use crate::virtio::Queue;
use crate::virtio::ring::Buffer;
use alloc::vec::Vec;
use switch::{GSO_FRAME_BYTES_MAX, Offload};
use virtio_drivers::Hal;

/// Buffers given back before the device is told: few enough that it does not run dry.
const REFILLS_PER_KICK: u16 = 32;

/// The receive queue.
pub(super) struct Receiver<H: Hal> {
    queue: Queue<H>,
    buffers: DmaMemory<H>,
    /// Whether a frame may be spread over several buffers.
    merges: bool,
    refills: u16,
    /// A header being read; kept for its memory.
    header: Vec<u8>,
}

impl<H: Hal> Receiver<H> {
    /// A receiver on an empty queue, which it fills. `None` where there is no memory.
    pub(super) fn new(queue: Queue<H>, merges: bool) -> Option<Self> {
        let buffers = DmaMemory::new(usize::from(queue.ring.size()) * BUFFER_BYTES)?;
        let mut receiver = Self { queue, buffers, merges, refills: 0, header: Vec::new() };
        receiver.refill();
        Some(receiver)
    }

    /// Whether the device has broken the rules.
    pub(super) fn is_broken(&self) -> bool {
        self.queue.ring.is_broken()
    }

    /// Tells the device of its new buffers.
    pub(super) fn kick(&mut self) {
        self.refills = 0;
        self.queue.kick();
    }

    /// Asks for an interrupt at the next frame; returns whether there may be one already.
    pub(super) fn arm(&mut self) -> bool {
        self.queue.ring.arm()
    }

    /// Whether a buffer waits to be looked at.
    pub(super) fn has_received(&mut self) -> bool {
        self.queue.ring.finished() > 0
    }

    /// Copies the next frame into `into`. Frames that make no sense are dropped on the way.
    pub(super) fn receive(&mut self, into: &mut Vec<u8>) -> Option<Offload> {
        // Each turn takes at least one buffer, and no more are looked at than one round of the ring.
        for _ in 0..self.queue.ring.size() {
            let Some((offload, count)) = self.look() else {
                self.kick();
                return None;
            };
            into.clear();
            let complete = self.gather(count, into);
            self.refill();
            if let Some(offload) = offload
                && complete
            {
                return Some(offload);
            }
        }
        None
    }

    /// What the next frame's header says of it and how many buffers it has, once all of them are there.
    fn look(&mut self) -> Option<(Option<Offload>, u16)> {
        let first = self.queue.ring.peek(0)?;
        self.header.clear();
        self.buffers.append_to(usize::from(first.head) * BUFFER_BYTES, HEADER_BYTES, &mut self.header);
        let Some(header) = self.header.first_chunk() else { return Some((None, 1)) };
        let Some((offload, count)) = header::parse(header) else { return Some((None, 1)) };
        let is_sane =
            usize::from(count) * BUFFER_BYTES <= (GSO_FRAME_BYTES_MAX + HEADER_BYTES).next_multiple_of(BUFFER_BYTES);
        match count {
            _ if !self.merges => Some((Some(offload), 1)),
            // Its other buffers, if any, are then taken for frames; what is dropped is still bounded.
            0 => Some((None, 1)),
            _ if !is_sane => Some((None, 1)),
            _ => (count <= self.queue.ring.finished()).then_some((Some(offload), count)),
        }
    }

    /// Takes `count` buffers out of the ring and appends what they hold; returns whether it is a frame.
    fn gather(&mut self, count: u16, into: &mut Vec<u8>) -> bool {
        let mut skip_bytes = HEADER_BYTES;
        let mut is_whole = true;
        for _ in 0..count {
            let Some(used) = self.queue.ring.pop() else { return false };
            let written_bytes = (used.bytes as usize).min(BUFFER_BYTES);
            is_whole &= written_bytes >= skip_bytes;
            if is_whole {
                let at = usize::from(used.head) * BUFFER_BYTES + skip_bytes;
                self.buffers.append_to(at, written_bytes - skip_bytes, into);
            }
            skip_bytes = 0;
        }
        is_whole && !into.is_empty() && into.len() <= GSO_FRAME_BYTES_MAX
    }

    /// Gives every free buffer to the device.
    fn refill(&mut self) {
        let buffers = &self.buffers;
        while self
            .queue
            .ring
            .push(1, |position| Buffer {
                address: buffers.physical(usize::from(position.descriptor) * BUFFER_BYTES),
                bytes: BUFFER_BYTES as u32,
                device_writes: true,
            })
            .is_some()
        {
            self.refills += 1;
        }
        if self.refills >= REFILLS_PER_KICK {
            self.kick();
        }
    }
}
