//! Frames to a network card.
//!
//! The main type is [`Transmitter`]: a queue whose every descriptor has a buffer of its own, into which frames are copied.

use super::BUFFER_BYTES;
use super::header::{self, HEADER_BYTES};
use crate::dma::DmaMemory;
use crate::virtio::Queue;
use crate::virtio::ring::Buffer;
use switch::{FRAME_BYTES_MAX, Full, GSO_FRAME_BYTES_MAX, Gso, Offload, Offloads};
use virtio_drivers::Hal;

/// The transmit queue.
pub(super) struct Transmitter<H: Hal> {
    queue: Queue<H>,
    buffers: DmaMemory<H>,
    offloads: Offloads,
}

impl<H: Hal> Transmitter<H> {
    /// A transmitter on an empty queue; `None` where there is no memory.
    pub(super) fn new(mut queue: Queue<H>, offloads: Offloads) -> Option<Self> {
        let buffers = DmaMemory::new(usize::from(queue.ring.size()) * BUFFER_BYTES)?;
        // Sent frames are looked for when room is needed.
        queue.ring.disarm();
        Some(Self { queue, buffers, offloads })
    }

    /// Whether the device has broken the rules.
    pub(super) fn is_broken(&self) -> bool {
        self.queue.ring.is_broken()
    }

    /// Tells the device of what was transmitted.
    pub(super) fn kick(&mut self) {
        self.queue.kick();
    }

    /// How many frames of one buffer there is room for.
    pub(super) fn room(&mut self) -> usize {
        self.take_back();
        self.queue.ring.free().into()
    }

    /// How many there is room for when all are sent.
    pub(super) fn room_max(&self) -> usize {
        self.queue.ring.size().into()
    }

    /// Copies a frame into the queue; drops one that the device could not send. `Full` also arms an interrupt for the
    /// next frame sent.
    pub(super) fn transmit(&mut self, offload: &Offload, frame: &[u8]) -> Result<(), Full> {
        let length = (HEADER_BYTES + frame.len()).div_ceil(BUFFER_BYTES);
        if !self.can_send(offload, frame) || length > usize::from(self.queue.ring.size()) {
            return Ok(());
        }
        self.make_room(length)?;
        let header = header::to_bytes(offload);
        let buffers = &mut self.buffers;
        let pushed = self.queue.ring.push(length, |position| {
            let at = usize::from(position.descriptor) * BUFFER_BYTES;
            let bytes = fill(buffers, at, position.index, &header, frame);
            Buffer { address: buffers.physical(at), bytes: bytes as u32, device_writes: false }
        });
        pushed.map(|_| ()).ok_or(Full)
    }

    fn can_send(&self, offload: &Offload, frame: &[u8]) -> bool {
        let segments = match offload.gso {
            Gso::None => true,
            Gso::Tcp4 => self.offloads.transmit_tso4,
            Gso::Tcp6 => self.offloads.transmit_tso6,
        };
        let bytes_max = if offload.gso == Gso::None { FRAME_BYTES_MAX } else { GSO_FRAME_BYTES_MAX };
        segments
            && (!offload.needs_checksum || self.offloads.transmit_checksum)
            && (!offload.ecn || offload.gso == Gso::None || self.offloads.transmit_ecn)
            && !frame.is_empty()
            && frame.len() <= bytes_max
    }

    /// Takes back the buffers of sent frames until `length` are free.
    fn make_room(&mut self, length: usize) -> Result<(), Full> {
        if length <= usize::from(self.queue.ring.free()) {
            return Ok(());
        }
        self.take_back();
        if length <= usize::from(self.queue.ring.free()) {
            return Ok(());
        }
        // Frames not announced would never leave.
        self.kick();
        if self.queue.ring.arm() {
            self.take_back();
        }
        if length > usize::from(self.queue.ring.free()) {
            return Err(Full);
        }
        self.queue.ring.disarm();
        Ok(())
    }

    fn take_back(&mut self) {
        while self.queue.ring.pop().is_some() {}
    }
}

/// Writes the part of header and frame that is the buffer with this index; returns its bytes.
fn fill<H: Hal>(buffers: &mut DmaMemory<H>, at: usize, index: usize, header: &[u8], frame: &[u8]) -> usize {
    if index == 0 {
        let bytes = frame.len().min(BUFFER_BYTES - HEADER_BYTES);
        buffers.copy_from(at, header);
        buffers.copy_from(at + HEADER_BYTES, &frame[..bytes]);
        return HEADER_BYTES + bytes;
    }
    let start = index * BUFFER_BYTES - HEADER_BYTES;
    let end = frame.len().min(start + BUFFER_BYTES);
    buffers.copy_from(at, &frame[start..end]);
    end - start
}
