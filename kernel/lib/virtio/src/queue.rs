//! One split virtqueue (2.7): which chain is next, what was used, and who wants to be told.
//!
//! [`Queue`] holds the driver's addresses and the device's indices. `transport` owns one for each queue of a
//! function; the descriptors behind a head are `chain`'s. Ring fields are loaded once, checked, and used.

mod saved;

pub use saved::Saved;

use crate::chain::{DESCRIPTOR_BYTES, Table};
use crate::{F_EVENT_IDX, F_INDIRECT_DESC};
use addr::{Gpa, GpaRange};
use core::sync::atomic::{Ordering, fence};
use guestmem::{GuestMemory, Outside};

/// No interrupt vector (4.1.5.1.2).
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// Both rings start with flags and an index (2.7.6, 2.7.8).
const RING_INDEX: u64 = 2;
const RING_ENTRIES: u64 = 4;
const AVAILABLE_ENTRY_BYTES: u64 = 2;
const USED_ENTRY_BYTES: u64 = 8;
const EVENT_BYTES: u64 = 2;

const USED_NO_NOTIFY: u64 = 1;
const AVAILABLE_NO_INTERRUPT: u64 = 1;

/// The driver broke the ring itself: nothing on it can be trusted any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Broken;

impl From<Outside> for Broken {
    fn from(_: Outside) -> Self {
        Self
    }
}

/// A queue, before and after the driver enabled it.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub size_max: u16,
    /// A power of two, at most `size_max`.
    pub size: u16,
    pub enabled: bool,
    pub vector: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    event_index: bool,
    indirect: bool,
    /// The index of the chain to take next.
    next_available: u16,
    /// How far the driver had got when last looked.
    seen_available: u16,
    /// The driver will kick when it adds a chain.
    armed: bool,
    /// The index of the used entry to write next.
    next_used: u16,
    /// How far the driver was told.
    published_used: u16,
}

impl Queue {
    /// A queue of at most `size_max` entries, as after a reset.
    pub fn new(size_max: u16) -> Self {
        assert!(size_max.is_power_of_two() && size_max <= 1 << 15, "2.7: a power of two up to 32768");
        Self {
            size_max,
            size: size_max,
            enabled: false,
            vector: NO_VECTOR,
            descriptors: 0,
            available: 0,
            used: 0,
            event_index: false,
            indirect: false,
            next_available: 0,
            seen_available: 0,
            // The driver kicks after the first chain: both rings start zeroed.
            armed: true,
            next_used: 0,
            published_used: 0,
        }
    }

    /// The driver asks for another size; one that no queue can have is ignored.
    pub fn set_size(&mut self, size: u16) {
        if size.is_power_of_two() && size <= self.size_max {
            self.size = size;
        }
    }

    /// Starts the queue, unless a ring is misaligned or wraps (2.7: 16, 2 and 4 bytes).
    pub fn enable(&mut self, features: u64) {
        let size = u64::from(self.size);
        let fits = |at, align, bytes| Gpa::new(at).is_aligned(align) && GpaRange::new(Gpa::new(at), bytes).is_some();
        self.enabled = fits(self.descriptors, 16, DESCRIPTOR_BYTES * size)
            && fits(self.available, 2, RING_ENTRIES + AVAILABLE_ENTRY_BYTES * size + EVENT_BYTES)
            && fits(self.used, 4, RING_ENTRIES + USED_ENTRY_BYTES * size + EVENT_BYTES);
        self.event_index = features & F_EVENT_IDX != 0;
        self.indirect = features & F_INDIRECT_DESC != 0;
    }

    /// Where the descriptors are.
    pub fn table(&self) -> Table {
        Table { at: Gpa::new(self.descriptors), size: self.size, indirect: self.indirect }
    }

    /// Takes the head of the next chain. `None` where there is none; the driver will then kick for the next one, and
    /// until then it will not: one kick serves everything up to the next `None`. A chain of which something is in memory
    /// that is not here yet stays where it is: the owner looks again once that has come.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<u16>, Broken> {
        if !self.has_next(memory)? || memory.is_waiting() && !self.next_is_here(memory)? {
            return Ok(None);
        }
        self.disarm(memory)?;
        self.take(memory).map(Some)
    }

    /// Whether there is a chain to take. If not, the driver will kick when there is.
    pub fn has_next(&mut self, memory: &GuestMemory) -> Result<bool, Broken> {
        if !self.enabled || memory.is_waiting() && !self.is_here(memory) {
            return Ok(false);
        }
        if !self.has_seen() {
            self.look(memory)?;
        }
        if !self.has_seen() && !self.armed {
            self.arm(memory)?;
            // A chain added before the driver could see the request for a kick comes without one: look again.
            self.look(memory)?;
        }
        Ok(self.has_seen())
    }

    /// Puts the last `count` heads back, to be taken again.
    pub fn unpop(&mut self, count: u16) {
        self.next_available = self.next_available.wrapping_sub(count);
    }

    /// Gives the chain at `head` back, with `bytes` bytes written to it. The driver sees it after [`Queue::publish`].
    pub fn push_used(&mut self, memory: &GuestMemory, head: u16, bytes: u32) -> Result<(), Broken> {
        let entry = (u64::from(bytes) << 32 | u64::from(head)).to_le_bytes();
        let slot = u64::from(self.next_used & (self.size - 1));
        memory.write(self.used_at(RING_ENTRIES + USED_ENTRY_BYTES * slot), &entry)?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// Shows the driver what was given back since the last call; says whether it wants an interrupt for that (2.7.7).
    pub fn publish(&mut self, memory: &GuestMemory) -> Result<bool, Broken> {
        let (old, new) = (self.published_used, self.next_used);
        if old == new {
            return Ok(false);
        }
        // The entries, and the data they are about, before the index.
        fence(Ordering::Release);
        memory.store(self.used_at(RING_INDEX), 2, u64::from(new))?;
        self.published_used = new;
        // The index before the driver's wish: the driver stores its wish and then looks at the index.
        fence(Ordering::SeqCst);
        if self.event_index {
            let event = memory.load(self.available_at(self.used_event()), 2)? as u16;
            Ok(passes(event, old, new))
        } else {
            Ok(memory.load(self.available_at(0), 2)? & AVAILABLE_NO_INTERRUPT == 0)
        }
    }

    /// The guest memory that the rings and descriptors take up: what a device reaches besides its requests.
    pub fn rings(&self) -> impl Iterator<Item = GpaRange> {
        let size = if self.enabled { u64::from(self.size) } else { 0 };
        let rings = [
            (self.descriptors, DESCRIPTOR_BYTES * size),
            (self.available, RING_ENTRIES + AVAILABLE_ENTRY_BYTES * size + EVENT_BYTES),
            (self.used, RING_ENTRIES + USED_ENTRY_BYTES * size + EVENT_BYTES),
        ];
        let is_enabled = self.enabled;
        rings.into_iter().filter(move |_| is_enabled).filter_map(|(at, bytes)| GpaRange::new(Gpa::new(at), bytes))
    }

    fn is_here(&self, memory: &GuestMemory) -> bool {
        self.rings().all(|ring| memory.is_here(ring.start(), ring.bytes()))
    }

    /// Whether the next chain, which is known to be there, and all that it names is here. One that breaks a rule is: who
    /// takes it will see.
    fn next_is_here(&self, memory: &GuestMemory) -> Result<bool, Broken> {
        let head = self.next_head(memory)?;
        Ok(head >= self.size || self.table().is_here(memory, head))
    }

    fn has_seen(&self) -> bool {
        self.next_available != self.seen_available
    }

    /// Reads how far the driver has got.
    fn look(&mut self, memory: &GuestMemory) -> Result<(), Broken> {
        let index = memory.load(self.available_at(RING_INDEX), 2)? as u16;
        // The index before the entries it covers.
        fence(Ordering::Acquire);
        if index.wrapping_sub(self.next_available) > self.size {
            return Err(Broken);
        }
        self.seen_available = index;
        Ok(())
    }

    /// Reads the next entry, which is known to be there.
    fn take(&mut self, memory: &GuestMemory) -> Result<u16, Broken> {
        let head = self.next_head(memory)?;
        if head >= self.size {
            return Err(Broken);
        }
        self.next_available = self.next_available.wrapping_add(1);
        Ok(head)
    }

    fn next_head(&self, memory: &GuestMemory) -> Result<u16, Broken> {
        let slot = u64::from(self.next_available & (self.size - 1));
        Ok(memory.load(self.available_at(RING_ENTRIES + AVAILABLE_ENTRY_BYTES * slot), 2)? as u16)
    }

    /// Asks the driver for a kick at its next chain (2.7.10).
    fn arm(&mut self, memory: &GuestMemory) -> Result<(), Broken> {
        if self.event_index {
            memory.store(self.used_at(self.available_event()), 2, u64::from(self.next_available))?;
        } else {
            memory.store(self.used_at(0), 2, 0)?;
        }
        self.armed = true;
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Spares the driver kicks while its chains are being taken anyway. With event indices nothing is to be done:
    /// the driver has passed the index it was to kick at.
    fn disarm(&mut self, memory: &GuestMemory) -> Result<(), Broken> {
        if self.armed && !self.event_index {
            memory.store(self.used_at(0), 2, USED_NO_NOTIFY)?;
        }
        self.armed = false;
        Ok(())
    }

    fn available_at(&self, offset: u64) -> Gpa {
        Gpa::new(self.available).wrapping_add(offset)
    }

    fn used_at(&self, offset: u64) -> Gpa {
        Gpa::new(self.used).wrapping_add(offset)
    }

    /// In the available ring, behind its entries: the used index the driver wants an interrupt at.
    fn used_event(&self) -> u64 {
        RING_ENTRIES + AVAILABLE_ENTRY_BYTES * u64::from(self.size)
    }

    /// In the used ring, behind its entries: the available index the device wants a kick at.
    fn available_event(&self) -> u64 {
        RING_ENTRIES + USED_ENTRY_BYTES * u64::from(self.size)
    }
}

/// Whether an index that went from `old` to `new` went past `event` (2.7.7.2), all modulo 2^16.
fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests;
