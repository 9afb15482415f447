//! A split virtqueue, from the driver's side (Virtual I/O Device specification 1.2, section 2.7).
//!
//! The main type is [`Ring`]. It takes physical addresses, so that a disk's buffers may be guest memory, to which no
//! reference may exist; that is why it stands in for virtio-drivers' queue, which takes slices. What the device writes
//! is checked: a device that breaks the rules makes the ring [`Ring::is_broken`], and nothing worse.

use crate::dma::DmaMemory;
use alloc::boxed::Box;
use alloc::vec;
use core::sync::atomic::{Ordering, fence};
use virtio_drivers::Hal;

/// Descriptor flags (section 2.7.5).
const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
const DESC_BYTES: usize = 16;

/// Asks the device not to interrupt, where event indexes were not agreed on (section 2.7.6).
const AVAIL_NO_INTERRUPT: u16 = 1;
/// The device asks not to be notified (section 2.7.8).
const USED_NO_NOTIFY: u16 = 1;

/// A buffer for the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Buffer {
    /// Where, as the device counts.
    pub address: u64,
    /// How long; not 0.
    pub bytes: u32,
    /// Whether the device writes it; else it reads.
    pub device_writes: bool,
}

/// Which buffer of which chain is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Position {
    /// The chain, by its first descriptor: its name until it is popped.
    pub head: u16,
    /// The buffer, counted from 0 along the chain.
    pub index: usize,
    /// The descriptor that will hold it: `head` for every buffer of an indirect chain.
    pub descriptor: u16,
}

/// A chain that the device has finished.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Used {
    /// Its name.
    pub head: u16,
    /// How many bytes the device says it wrote. Not to be trusted.
    pub bytes: u32,
}

/// The device's addresses of the three areas.
pub(crate) struct Areas {
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

/// A queue of buffers to and from a device.
pub(crate) struct Ring<H: Hal> {
    memory: DmaMemory<H>,
    size: u16,
    /// Descriptors in each indirect table, one table a descriptor; 0 for none.
    table_entries: u16,
    event_index: bool,
    /// What follows each descriptor in its chain, or in the list of free ones.
    next: Box<[u16]>,
    /// How many descriptors the chain with this head has; 0 where no chain with this head is with the device.
    chain_length: Box<[u16]>,
    free_head: u16,
    free: u16,
    /// The available index, and what it was when a kick was last decided on.
    available: u16,
    kicked: u16,
    /// The next used entry to look at.
    next_used: u16,
    /// The used index at the last look.
    seen_used: u16,
    broken: bool,
}

impl<H: Hal> Ring<H> {
    /// A ring of `size` descriptors, a power of two; `None` where there is no memory.
    pub(crate) fn new(size: u16, table_entries: u16, event_index: bool) -> Option<Self> {
        assert!(size.is_power_of_two(), "a queue's size is a power of two");
        let entries = usize::from(size);
        let memory = DmaMemory::new(tables_at(entries) + entries * usize::from(table_entries) * DESC_BYTES)?;
        Some(Self {
            memory,
            size,
            table_entries,
            event_index,
            next: (1..=size).collect(),
            chain_length: vec![0; entries].into_boxed_slice(),
            free_head: 0,
            free: size,
            available: 0,
            kicked: 0,
            next_used: 0,
            seen_used: 0,
            broken: false,
        })
    }

    /// Where the device finds the ring.
    pub(crate) fn areas(&self) -> Areas {
        let entries = usize::from(self.size);
        Areas {
            descriptors: self.memory.physical(0),
            available: self.memory.physical(available_at(entries)),
            used: self.memory.physical(used_at(entries)),
        }
    }

    /// How many descriptors it has.
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// How many are free.
    pub(crate) fn free(&self) -> u16 {
        self.free
    }

    /// Whether the device has broken the rules. Nothing comes out any more, and what is in stays in.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Puts in a chain of `length` buffers (at least one), each of which `buffer` names; gives its head, or `None` where
    /// there is no room now. Device-read buffers come first.
    pub(crate) fn push(&mut self, length: usize, mut buffer: impl FnMut(Position) -> Buffer) -> Option<u16> {
        assert!(length > 0, "an empty chain");
        let indirect = length > 1 && length <= usize::from(self.table_entries);
        let needed = if indirect { 1 } else { u16::try_from(length).ok()? };
        if self.broken || needed > self.free {
            return None;
        }
        let head = self.free_head;
        let tail = if indirect {
            self.write_table(head, length, &mut buffer);
            head
        } else {
            self.write_chain(head, length, &mut buffer)
        };
        self.free_head = self.next[usize::from(tail)];
        self.free -= needed;
        self.chain_length[usize::from(head)] = needed;
        self.publish(head);
        Some(head)
    }

    /// Writes buffers into the free descriptors from `head` on; gives the last.
    fn write_chain(&mut self, head: u16, length: usize, buffer: &mut impl FnMut(Position) -> Buffer) -> u16 {
        let mut descriptor = head;
        for index in 0..length {
            let next = self.next[usize::from(descriptor)];
            let more = (index + 1 < length).then_some(next);
            self.describe(usize::from(descriptor) * DESC_BYTES, buffer(Position { head, index, descriptor }), more);
            if more.is_some() {
                descriptor = next;
            }
        }
        descriptor
    }

    /// Writes buffers into the table of `head`, and the table into the descriptor.
    fn write_table(&mut self, head: u16, length: usize, buffer: &mut impl FnMut(Position) -> Buffer) {
        let table_bytes = usize::from(self.table_entries) * DESC_BYTES;
        let at = tables_at(usize::from(self.size)) + usize::from(head) * table_bytes;
        for index in 0..length {
            // A table has at most 65535 entries, so this fits.
            let more = (index + 1 < length).then_some((index + 1) as u16);
            self.describe(at + index * DESC_BYTES, buffer(Position { head, index, descriptor: head }), more);
        }
        let descriptor = usize::from(head) * DESC_BYTES;
        self.memory.store(descriptor, self.memory.physical(at));
        self.memory.store(descriptor + 8, (length * DESC_BYTES) as u32);
        self.memory.store(descriptor + 12, DESC_INDIRECT);
    }

    fn describe(&mut self, at: usize, buffer: Buffer, next: Option<u16>) {
        let mut flags = if buffer.device_writes { DESC_WRITE } else { 0 };
        if next.is_some() {
            flags |= DESC_NEXT;
        }
        self.memory.store(at, buffer.address);
        self.memory.store(at + 8, buffer.bytes);
        self.memory.store(at + 12, flags);
        self.memory.store(at + 14, next.unwrap_or(0));
    }

    /// Makes a chain available (section 2.7.13).
    fn publish(&mut self, head: u16) {
        let ring = available_at(usize::from(self.size)) + 4;
        self.memory.store(ring + 2 * usize::from(self.available % self.size), head);
        self.available = self.available.wrapping_add(1);
        // The device must see the chain before the index that counts it.
        fence(Ordering::Release);
        self.memory.store(available_at(usize::from(self.size)) + 2, self.available);
    }

    /// Whether the device wants to be told of what was put in since the last call (section 2.7.10).
    pub(crate) fn needs_kick(&mut self) -> bool {
        let old = core::mem::replace(&mut self.kicked, self.available);
        if old == self.available || self.broken {
            return false;
        }
        // The index must be out before the device's wish is read, or both sides could wait for the other.
        fence(Ordering::SeqCst);
        let used = used_at(usize::from(self.size));
        if self.event_index {
            let event: u16 = self.memory.load(used + 4 + 8 * usize::from(self.size));
            is_past(event, old, self.available)
        } else {
            self.memory.load::<u16>(used) & USED_NO_NOTIFY == 0
        }
    }

    /// How many finished chains are waiting. A device that claims more than there can be breaks the ring.
    pub(crate) fn finished(&mut self) -> u16 {
        if self.broken {
            return 0;
        }
        self.seen_used = self.used_index();
        let count = self.seen_used.wrapping_sub(self.next_used);
        // No entry may be read before the index that counts it.
        fence(Ordering::Acquire);
        self.broken = count > self.size;
        if self.broken { 0 } else { count }
    }

    /// The finished chain after `skip` others, left where it is.
    pub(crate) fn peek(&mut self, skip: u16) -> Option<Used> {
        if skip >= self.finished() {
            return None;
        }
        let slot = usize::from(self.next_used.wrapping_add(skip) % self.size);
        let at = used_at(usize::from(self.size)) + 4 + 8 * slot;
        let (id, bytes) = (self.memory.load::<u32>(at), self.memory.load(at + 4));
        let head = u16::try_from(id).ok().filter(|head| self.is_with_device(*head));
        self.broken = head.is_none();
        head.map(|head| Used { head, bytes })
    }

    /// Takes out the next finished chain.
    pub(crate) fn pop(&mut self) -> Option<Used> {
        let used = self.peek(0)?;
        self.next_used = self.next_used.wrapping_add(1);
        self.recycle(used.head);
        Some(used)
    }

    fn is_with_device(&self, head: u16) -> bool {
        self.chain_length.get(usize::from(head)).is_some_and(|length| *length > 0)
    }

    /// Puts a chain's descriptors in front of the free ones.
    fn recycle(&mut self, head: u16) {
        let length = core::mem::take(&mut self.chain_length[usize::from(head)]);
        let tail = (1..length).fold(head, |descriptor, _| self.next[usize::from(descriptor)]);
        self.next[usize::from(tail)] = self.free_head;
        self.free_head = head;
        self.free += length;
    }

    /// Asks for an interrupt when a chain is finished after the last look; returns whether one is already, in which case
    /// there may be no interrupt for it.
    pub(crate) fn arm(&mut self) -> bool {
        let available = available_at(usize::from(self.size));
        if self.event_index {
            self.memory.store(available + 4 + 2 * usize::from(self.size), self.seen_used);
        } else {
            self.memory.store(available, 0_u16);
        }
        // The wish must be out before the index is read again.
        fence(Ordering::SeqCst);
        self.used_index() != self.seen_used
    }

    /// Asks for no interrupts, as far as possible: an event index wraps round after 65536 chains.
    pub(crate) fn disarm(&mut self) {
        let available = available_at(usize::from(self.size));
        if self.event_index {
            self.memory.store(available + 4 + 2 * usize::from(self.size), self.next_used.wrapping_sub(1));
        } else {
            self.memory.store(available, AVAIL_NO_INTERRUPT);
        }
    }

    fn used_index(&self) -> u16 {
        self.memory.load(used_at(usize::from(self.size)) + 2)
    }
}

/// Whether an index that went from `old` to `new` has passed `event` (section 2.7.7.2).
fn is_past(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The offset of the available ring: flags, index, entries of 2 bytes, used event.
fn available_at(entries: usize) -> usize {
    entries * DESC_BYTES
}

/// The offset of the used ring: flags, index, entries of 8 bytes, available event. On a cache line of its own, as the
/// device writes it.
fn used_at(entries: usize) -> usize {
    (available_at(entries) + 6 + 2 * entries).next_multiple_of(64)
}

/// The offset of the indirect tables.
fn tables_at(entries: usize) -> usize {
    (used_at(entries) + 6 + 8 * entries).next_multiple_of(64)
}

#[cfg(test)]
mod tests;
