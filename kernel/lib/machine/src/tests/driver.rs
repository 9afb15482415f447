//! A guest's virtio driver: everything that it does goes through the machine's ports and addresses.

use super::bench::Bench;
use addr::Gpa;

/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;
/// Free for buffers.
pub const BUFFERS: u64 = 0x30_0000;
/// The interrupt vector of a device's first queue; the others follow.
const VECTORS: u32 = 0x50;
const RINGS: u64 = 0x10_0000;
const QUEUES_MAX: usize = 3;
const RING_BYTES: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;

/// A queue of a device.
struct Ring {
    base: u64,
    size: u16,
    next: u16,
    available: u16,
    used: u16,
}

/// A driver of the virtio function at a device number.
pub struct Driver {
    device: u32,
    rings: Vec<Ring>,
}

impl Driver {
    /// Brings the device up with these features and queues of these sizes, with MSI-X.
    pub fn new(bench: &mut Bench, device: u32, features: u64, sizes: &[u16]) -> Self {
        let mut driver = Self { device, rings: Vec::new() };
        driver.config_write(bench, 4, 7);
        driver.enable_msix(bench);
        driver.bring_up(bench, features, sizes);
        driver
    }

    /// The same without MSI-X: interrupts come by the pin.
    pub fn with_pin(bench: &mut Bench, device: u32, features: u64, sizes: &[u16]) -> Self {
        let mut driver = Self { device, rings: Vec::new() };
        driver.config_write(bench, 4, 7);
        driver.bring_up(bench, features, sizes);
        driver
    }

    pub fn config_read(&self, bench: &mut Bench, offset: u32) -> u32 {
        bench.out(0xcf8, 4, 1 << 31 | self.device << 11 | offset);
        bench.input(0xcfc, 4) as u32
    }

    pub fn config_write(&self, bench: &mut Bench, offset: u32, value: u32) {
        bench.out(0xcf8, 4, 1 << 31 | self.device << 11 | offset);
        bench.out(0xcfc, 4, value);
    }

    pub fn mmio(&self) -> u64 {
        0xfe00_0000 + 0x1_0000 * u64::from(self.device - 1)
    }

    /// The vector of a queue's interrupt.
    pub fn vector(&self, queue: u32) -> u8 {
        (VECTORS + 8 * self.device + queue) as u8
    }

    pub fn status(&self, bench: &mut Bench) -> u8 {
        bench.mmio_read(self.mmio() + 20, 1) as u8
    }

    pub fn set_status(&self, bench: &mut Bench, status: u32) {
        bench.mmio_write(self.mmio() + 20, 1, status);
    }

    /// Reset, features, queues, DRIVER_OK.
    pub fn bring_up(&mut self, bench: &mut Bench, features: u64, sizes: &[u16]) {
        let base = self.mmio();
        self.set_status(bench, 0);
        self.set_status(bench, 3);
        for half in 0..2 {
            bench.mmio_write(base + 8, 4, half);
            bench.mmio_write(base + 12, 4, (features >> (32 * half)) as u32);
        }
        self.set_status(bench, 11);
        assert_eq!(self.status(bench), 11, "the features are taken");
        self.rings.clear();
        for (queue, &size) in sizes.iter().enumerate() {
            let at = RINGS + RING_BYTES * (self.device as usize * QUEUES_MAX + queue) as u64;
            bench.machine.memory().zero(Gpa::new(at), RING_BYTES).unwrap();
            bench.mmio_write(base + 22, 2, queue as u32);
            bench.mmio_write(base + 24, 2, size.into());
            bench.mmio_write(base + 26, 2, queue as u32);
            for (offset, address) in [(32, at), (40, at + AVAILABLE), (48, at + USED)] {
                bench.mmio_write(base + offset, 4, address as u32);
            }
            bench.mmio_write(base + 28, 2, 1);
            self.rings.push(Ring { base: at, size, next: 0, available: 0, used: 0 });
        }
        self.set_status(bench, 15);
    }

    /// Offers a chain of `(address, bytes, writable)` pieces.
    pub fn add(&mut self, bench: &Bench, queue: usize, pieces: &[(u64, u32, bool)]) -> u16 {
        let ring = &mut self.rings[queue];
        let head = ring.next;
        for (count, &(at, bytes, writable)) in pieces.iter().enumerate() {
            let index = ring.next;
            ring.next = (ring.next + 1) % ring.size;
            let flags = u64::from(writable) << 1 | u64::from(count + 1 < pieces.len());
            let descriptor = ring.base + 16 * u64::from(index);
            bench.store(descriptor, 8, at);
            bench.store(descriptor + 8, 8, u64::from(bytes) | flags << 32 | u64::from(ring.next) << 48);
        }
        bench.store(ring.base + AVAILABLE + 4 + 2 * u64::from(ring.available % ring.size), 2, head.into());
        ring.available = ring.available.wrapping_add(1);
        bench.store(ring.base + AVAILABLE + 2, 2, ring.available.into());
        head
    }

    /// Claims that more is on a ring than there can be.
    pub fn break_ring(&self, bench: &Bench, queue: usize) {
        bench.store(self.rings[queue].base + AVAILABLE + 2, 2, 0x7fff);
    }

    pub fn kick(&self, bench: &mut Bench, queue: u32) {
        bench.out(0xc000 + 0x20 * (self.device as u16 - 1), 2, queue);
    }

    /// What the device gave back since the last call: head and bytes.
    pub fn used(&mut self, bench: &Bench, queue: usize) -> Vec<(u16, u32)> {
        let ring = &mut self.rings[queue];
        let mut entries = Vec::new();
        while u64::from(ring.used) != bench.load(ring.base + USED + 2, 2) {
            let at = ring.base + USED + 4 + 8 * u64::from(ring.used % ring.size);
            entries.push((bench.load(at, 4) as u16, bench.load(at + 4, 4) as u32));
            ring.used = ring.used.wrapping_add(1);
        }
        entries
    }

    fn enable_msix(&self, bench: &mut Bench) {
        for vector in 0..4 {
            let entry = self.mmio() + 0x3000 + 16 * u64::from(vector);
            bench.mmio_write(entry, 4, 0xfee0_0000);
            bench.mmio_write(entry + 8, 4, self.vector(vector).into());
            bench.mmio_write(entry + 12, 4, 0);
        }
        let mut at = self.config_read(bench, 0x34) & 0xff;
        loop {
            let header = self.config_read(bench, at);
            if header as u8 == 0x11 {
                return self.config_write(bench, at, header | 1 << 31);
            }
            at = header >> 8 & 0xff;
            assert_ne!(at, 0, "there is an MSI-X capability");
        }
    }
}
