//! Frames from a card.
//!
//! The main type is [`Receiver`]: a ring of descriptors, each with a buffer of its own that holds any frame.

use super::descriptor::{DESCRIPTOR_BYTES, ReceiveFormat, Received};
use super::registers::{Bus, RDT};
use crate::dma::DmaMemory;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};
use switch::Offload;
use virtio_drivers::Hal;

/// Descriptors of the ring: half a MiB of buffers, or 3 ms of a Gbit/s.
pub(super) const RING_SIZE: u16 = 256;
/// Bytes in a buffer, as RCTL and SRRCTL are set.
pub(super) const BUFFER_BYTES: usize = 2048;
/// Buffers given back before the card is told: few enough that it does not run dry.
const REFILLS_PER_KICK: u16 = 32;

/// The receive ring.
pub(super) struct Receiver<H: Hal> {
    descriptors: DmaMemory<H>,
    buffers: DmaMemory<H>,
    format: ReceiveFormat,
    /// The next descriptor to look at.
    next: u16,
    /// Buffers given back of which the card was not told.
    refills: u16,
    /// The present frame is spread over buffers, which none may be: it is dropped up to its end.
    skips: bool,
}

impl<H: Hal> Receiver<H> {
    /// A ring full of buffers; `None` where there is no memory.
    pub(super) fn new(format: ReceiveFormat) -> Option<Self> {
        let descriptors = DmaMemory::new(usize::from(RING_SIZE) * DESCRIPTOR_BYTES)?;
        let buffers = DmaMemory::new(usize::from(RING_SIZE) * BUFFER_BYTES)?;
        let mut receiver = Self { descriptors, buffers, format, next: 0, refills: 0, skips: false };
        receiver.reset();
        Some(receiver)
    }

    /// Where the card finds the ring.
    pub(super) fn physical(&self) -> u64 {
        self.descriptors.physical(0)
    }

    /// Gives all buffers back: the card was reset.
    pub(super) fn reset(&mut self) {
        (self.next, self.refills, self.skips) = (0, 0, false);
        (0..RING_SIZE).for_each(|index| self.refill(index));
    }

    /// Tells a card that just started of its buffers: all but one, so that a full ring differs from an empty.
    pub(super) fn announce(&self, bus: &mut impl Bus) {
        fence(Ordering::Release);
        bus.write(RDT, u32::from(RING_SIZE - 1));
    }

    /// Whether a buffer waits to be looked at.
    pub(super) fn has_received(&self) -> bool {
        let at = usize::from(self.next) * DESCRIPTOR_BYTES;
        self.format.parse(self.descriptors.load(at + 8)).is_some()
    }

    /// Copies the next frame into `into`. What is no whole, undamaged frame is dropped on the way.
    pub(super) fn receive(&mut self, bus: &mut impl Bus, into: &mut Vec<u8>) -> Option<Offload> {
        // Each turn takes a buffer, and no more are looked at than one round of the ring.
        for _ in 0..RING_SIZE {
            let at = usize::from(self.next) * DESCRIPTOR_BYTES;
            let received = self.format.parse(self.descriptors.load(at + 8))?;
            fence(Ordering::Acquire);
            let is_taken = self.is_frame(received);
            into.clear();
            if is_taken {
                self.buffers.append_to(usize::from(self.next) * BUFFER_BYTES, received.bytes, into);
            }
            self.give_back(bus);
            if is_taken {
                return Some(Offload { checksum_valid: received.checksum_valid, ..Offload::default() });
            }
        }
        None
    }

    fn is_frame(&mut self, received: Received) -> bool {
        let is_start = !self.skips;
        self.skips = !received.is_end;
        is_start && received.is_end && !received.is_damaged && (1..=BUFFER_BYTES).contains(&received.bytes)
    }

    /// Gives the buffer just looked at back to the card.
    fn give_back(&mut self, bus: &mut impl Bus) {
        let index = self.next;
        self.refill(index);
        self.next = (index + 1) % RING_SIZE;
        self.refills += 1;
        if self.refills >= REFILLS_PER_KICK {
            self.refills = 0;
            fence(Ordering::Release);
            bus.write(RDT, index.into());
        }
    }

    fn refill(&mut self, index: u16) {
        let at = usize::from(index) * DESCRIPTOR_BYTES;
        self.descriptors.store(at, self.buffers.physical(usize::from(index) * BUFFER_BYTES));
        self.descriptors.store(at + 8, 0_u64);
    }
}
