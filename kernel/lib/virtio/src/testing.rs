//! A driver for the tests: rings in guest memory, and a function brought up through its registers.
//!
//! [`Driver`] is one function with its memory and a [`Ring`] for each queue, event indices and MSI-X in use; it plays
//! by the rules where a test does not tell it otherwise.

use crate::queue::NO_VECTOR;
use crate::transport::{STATUS_DRIVER_OK, STATUS_FEATURES_OK};
use crate::{Device, F_EVENT_IDX, F_VERSION_1, Function, Signal};
use addr::{Gpa, LARGE_PAGE_BYTES};
use guestmem::GuestMemory;
use guestmem::heap::guest_memory;
use pci::Msi;

/// Where rings and buffers are; the first bytes stay free so that address zero means a mistake.
const RINGS: u64 = 0x1_0000;
const RING_BYTES: u64 = 0x1_0000;
/// Free for the tests' buffers.
pub const BUFFERS: u64 = 0x10_0000;
/// The first address that is no memory.
pub const END: u64 = 2 * LARGE_PAGE_BYTES;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const IO_BASE: u16 = 0xc000;
pub const MMIO_BASE: u32 = 0xfe00_0000;

/// The driver's half of a queue.
#[derive(Clone, Debug)]
pub struct Ring {
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub event_index: bool,
    next_descriptor: u16,
    available_index: u16,
    kicked_index: u16,
    seen_used: u16,
}

impl Ring {
    pub fn new(queue: usize, size: u16, event_index: bool) -> Self {
        let at = RINGS + RING_BYTES * queue as u64;
        Self {
            size,
            descriptors: at,
            available: at + 0x8000,
            used: at + 0xa000,
            event_index,
            next_descriptor: 0,
            available_index: 0,
            kicked_index: 0,
            seen_used: 0,
        }
    }

    /// Writes entry `index` of a table: address, bytes, flags, next.
    pub fn set_descriptor(&self, memory: &GuestMemory, table: u64, index: u16, entry: (u64, u32, u16, u16)) {
        let (at, bytes, flags, next) = entry;
        let raw = u128::from(at) | u128::from(bytes) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
        memory.write(Gpa::new(table + 16 * u64::from(index)), &raw.to_le_bytes()).unwrap();
    }

    /// Adds a chain of `(address, bytes, writable)` pieces; its descriptors follow each other modulo the size.
    pub fn add(&mut self, memory: &GuestMemory, pieces: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_descriptor;
        for (count, &(at, bytes, writable)) in pieces.iter().enumerate() {
            let (index, next) = (self.next_descriptor, (self.next_descriptor + 1) % self.size);
            let more = if count + 1 < pieces.len() { NEXT } else { 0 };
            let flags = if writable { WRITE } else { 0 } | more;
            self.set_descriptor(memory, self.descriptors, index, (at, bytes, flags, next));
            self.next_descriptor = next;
        }
        self.offer(memory, head);
        head
    }

    /// Adds the same by an indirect table at `table`.
    pub fn add_indirect(&mut self, memory: &GuestMemory, table: u64, pieces: &[(u64, u32, bool)]) -> u16 {
        let last = pieces.len() - 1;
        for (index, &(at, bytes, writable)) in pieces.iter().enumerate() {
            let flags = if writable { WRITE } else { 0 } | if index < last { NEXT } else { 0 };
            self.set_descriptor(memory, table, index as u16, (at, bytes, flags, index as u16 + 1));
        }
        let head = self.next_descriptor;
        self.set_descriptor(memory, self.descriptors, head, (table, 16 * pieces.len() as u32, INDIRECT, 0));
        self.next_descriptor = (head + 1) % self.size;
        self.offer(memory, head);
        head
    }

    /// Puts a head on the available ring.
    pub fn offer(&mut self, memory: &GuestMemory, head: u16) {
        let slot = u64::from(self.available_index % self.size);
        memory.store(Gpa::new(self.available + 4 + 2 * slot), 2, head.into()).unwrap();
        self.available_index = self.available_index.wrapping_add(1);
        self.set_available_index(memory, self.available_index);
    }

    pub fn set_available_index(&self, memory: &GuestMemory, index: u16) {
        memory.store(Gpa::new(self.available + 2), 2, index.into()).unwrap();
    }

    /// Whether the device wants to hear of what was added since the last call (2.7.10, by its own words: the new index
    /// went past the event).
    pub fn kick_wanted(&mut self, memory: &GuestMemory) -> bool {
        let old = std::mem::replace(&mut self.kicked_index, self.available_index);
        if self.event_index {
            let event = memory.load(Gpa::new(self.used + 4 + 8 * u64::from(self.size)), 2).unwrap() as u16;
            let mut index = old;
            while index != self.available_index {
                if index == event {
                    return true;
                }
                index = index.wrapping_add(1);
            }
            false
        } else {
            old != self.available_index && memory.load(Gpa::new(self.used), 2).unwrap() & 1 == 0
        }
    }

    /// Asks for an interrupt when the used index passes `index`.
    pub fn set_used_event(&self, memory: &GuestMemory, index: u16) {
        memory.store(Gpa::new(self.available + 4 + 2 * u64::from(self.size)), 2, index.into()).unwrap();
    }

    /// What the device gave back since the last call: head and bytes.
    pub fn take_used(&mut self, memory: &GuestMemory) -> Vec<(u16, u32)> {
        let index = memory.load(Gpa::new(self.used + 2), 2).unwrap() as u16;
        let mut entries = Vec::new();
        while self.seen_used != index {
            let at = self.used + 4 + 8 * u64::from(self.seen_used % self.size);
            let head = memory.load(Gpa::new(at), 4).unwrap();
            entries.push((u16::try_from(head).unwrap(), memory.load(Gpa::new(at + 4), 4).unwrap() as u32));
            self.seen_used = self.seen_used.wrapping_add(1);
        }
        entries
    }
}

/// A function whose driver is up, with MSI-X on: vector `n` carries data `n`, queue `n` uses vector `n + 1`.
pub struct Driver<D> {
    pub function: Function<D>,
    pub memory: GuestMemory,
    pub rings: Vec<Ring>,
    pub signals: Vec<Signal>,
}

impl<D: Device> Driver<D> {
    /// Brings the device up with everything it offers.
    pub fn new(device: D) -> Self {
        Self::with_features(device, u64::MAX)
    }

    /// Brings the device up with what it offers of `features`.
    pub fn with_features(device: D, features: u64) -> Self {
        let sizes = device.queue_sizes().to_vec();
        let mut driver =
            Self { function: Function::new(device), memory: guest_memory(END), rings: Vec::new(), signals: Vec::new() };
        driver.function.place_bars(IO_BASE, MMIO_BASE);
        driver.config_write(4, 2, 0b111);
        driver.enable_msix();
        let features = (driver.offered() & features) | F_VERSION_1;
        for (queue, size) in sizes.into_iter().enumerate() {
            driver.rings.push(Ring::new(queue, size, features & F_EVENT_IDX != 0));
        }
        driver.bring_up(features);
        driver.signals.clear();
        driver
    }

    pub fn read(&mut self, offset: u32, size: u8) -> u64 {
        self.function.mmio_read(offset, size, &mut self.signals)
    }

    pub fn write(&mut self, offset: u32, size: u8, value: u64) {
        self.function.mmio_write(offset, size, value, &mut self.signals);
    }

    pub fn config_write(&mut self, offset: u16, size: u8, value: u32) {
        self.function.config_write(offset, size, value, &mut self.signals);
    }

    pub fn offered(&mut self) -> u64 {
        self.write(0, 4, 0);
        let low = self.read(4, 4);
        self.write(0, 4, 1);
        low | self.read(4, 4) << 32
    }

    /// ACKNOWLEDGE and DRIVER, the features, then FEATURES_OK. Says whether that stuck.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.write(20, 1, 3);
        for half in 0..2 {
            self.write(8, 4, half);
            self.write(12, 4, features >> (32 * half) & 0xffff_ffff);
        }
        self.write(20, 1, 3 | u64::from(STATUS_FEATURES_OK));
        self.read(20, 1) & u64::from(STATUS_FEATURES_OK) != 0
    }

    pub fn bring_up(&mut self, features: u64) {
        assert!(self.negotiate(features));
        self.write(16, 2, 0);
        for (queue, ring) in self.rings.clone().into_iter().enumerate() {
            self.write(22, 2, queue as u64);
            self.write(24, 2, ring.size.into());
            self.write(26, 2, queue as u64 + 1);
            self.write(32, 8, ring.descriptors);
            // By halves, as Linux does.
            self.write(40, 4, ring.available);
            self.write(44, 4, 0);
            self.write(48, 8, ring.used);
            self.write(28, 2, 1);
            assert_eq!((self.read(26, 2), self.read(28, 2)), (queue as u64 + 1, 1));
        }
        self.write(20, 1, 3 | u64::from(STATUS_FEATURES_OK | STATUS_DRIVER_OK));
    }

    /// Resets the device and forgets the rings' indices.
    pub fn reset(&mut self) {
        self.write(20, 1, 0);
        for (queue, ring) in self.rings.iter_mut().enumerate() {
            *ring = Ring::new(queue, ring.size, ring.event_index);
            self.memory.zero(Gpa::new(ring.descriptors), RING_BYTES).unwrap();
        }
    }

    pub fn enable_msix(&mut self) {
        for vector in 0..8 {
            self.write(0x3000 + 16 * vector, 8, 0xfee0_0000);
            self.write(0x3008 + 16 * vector, 8, vector.into());
        }
        let capability = self.capability(pci::CAPABILITY_MSIX, |_| true);
        self.config_write(capability + 2, 2, 0x8000);
    }

    /// The offset of the first capability with this identifier and body.
    pub fn capability(&mut self, id: u8, matches: impl Fn(u8) -> bool) -> u16 {
        let mut at = self.function.config_read(0x34, 1, &mut self.signals) as u16;
        while at != 0 {
            let header = self.function.config_read(at, 4, &mut self.signals);
            if header as u8 == id && matches((header >> 24) as u8) {
                return at;
            }
            at = u16::from((header >> 8) as u8);
        }
        panic!("no such capability");
    }

    /// Writes to the notification port if the device wants to hear of it, and says whether it did.
    pub fn kick(&mut self, queue: u16) -> bool {
        let wanted = self.rings[usize::from(queue)].kick_wanted(&self.memory);
        if wanted {
            let offset = self.function.port_hit(IO_BASE).unwrap();
            self.function.port_write(offset, 2, queue.into(), &mut self.signals);
        }
        wanted
    }

    /// Fills a buffer.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write(Gpa::new(at), bytes).unwrap();
    }

    /// Reads a buffer.
    pub fn get(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut into = vec![0; bytes];
        self.memory.read(Gpa::new(at), &mut into).unwrap();
        into
    }

    /// The signals since the last call.
    pub fn take_signals(&mut self) -> Vec<Signal> {
        std::mem::take(&mut self.signals)
    }
}

/// The message of the interrupt for `queue`, as [`Driver::new`] set it up.
pub fn queue_interrupt(queue: u32) -> Signal {
    Signal::Msi(Msi { address: 0xfee0_0000, data: queue + 1 })
}

/// The message of a configuration change.
pub fn config_interrupt() -> Signal {
    Signal::Msi(Msi { address: 0xfee0_0000, data: 0 })
}

/// What the vector registers read where there is none.
pub const VECTOR_NONE: u64 = NO_VECTOR as u64;
