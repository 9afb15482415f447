//! A virtio block device, driven so closely that every wrong thing can be done to it (virtio 1.2, 2.7, 4.1, 5.2).
//!
//! [`VirtioBlk`] writes what it is told to write and waits only where it is told to. Its rings lie in memory that the
//! program does not use, at fixed offsets from [`VirtioBlk::memory`].

use crate::{boot, cpu, mmio, pci};

const VENDOR: u16 = 0x1af4;
const DEVICES: [u16; 2] = [0x1042, 0x1001];
const VENDOR_CAPABILITY: u8 = 0x09;
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;

/// Offsets in the common configuration.
pub mod common {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
}

/// Bits of the device status.
pub mod status {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
}

/// Descriptor flags.
pub mod flag {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;
}

/// Offsets of the rings and buffers from [`VirtioBlk::memory`].
pub mod place {
    #![allow(missing_docs, reason = "what lies there is named")]
    pub const DESCRIPTORS: u64 = 0x0000;
    pub const AVAILABLE: u64 = 0x1000;
    pub const USED: u64 = 0x2000;
    pub const HEADER: u64 = 0x4000;
    pub const DATA: u64 = 0x5000;
    pub const STATUS: u64 = 0x6000;
    pub const INDIRECT: u64 = 0x7000;
    pub const END: u64 = 0x8000;
}

/// How many descriptors the queue is given.
pub const QUEUE_SIZE: u16 = 8;

/// Where a queue's parts are said to lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rings {
    /// The number of descriptors.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
}

/// The device and where it was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VirtioBlk {
    /// The common configuration's address.
    pub common: u64,
    /// The notification area's address.
    pub notify: u64,
    notify_multiplier: u32,
    /// The memory for rings and buffers.
    pub memory: u64,
}

impl VirtioBlk {
    /// The first one on bus 0, decoding turned on.
    pub fn find() -> Option<Self> {
        let device = pci::Device::find(VENDOR, &DEVICES)?;
        let part = |kind: u8| {
            let at = device.capabilities(VENDOR_CAPABILITY).find(|at| (device.read(*at) >> 24) as u8 == kind)?;
            let bar = device.bar(device.read(at + 4) as u8)?;
            Some((at, bar + u64::from(device.read(at + 8))))
        };
        let (_, common) = part(COMMON)?;
        let (at, notify) = part(NOTIFY)?;
        device.enable();
        let (memory, bytes) = boot::free_memory();
        (bytes >= place::END).then_some(Self { common, notify, notify_multiplier: device.read(at + 16), memory })
    }

    /// Reads from the common configuration.
    pub fn read(&self, offset: u64, size: usize) -> u64 {
        // SAFETY: the device's own registers.
        unsafe { mmio::read(self.common + offset, size) }
    }

    /// Writes to the common configuration.
    pub fn write(&self, offset: u64, size: usize, value: u64) {
        // SAFETY: the device reaches what its rings name: this driver's memory, or by intent of the hostile guest
        // addresses that are no memory.
        unsafe { mmio::write(self.common + offset, size, value) }
    }

    /// Writes to the rings' memory.
    pub fn store(&self, offset: u64, size: usize, value: u64) {
        // SAFETY: free memory, which no Rust object occupies.
        unsafe { mmio::write(self.memory + offset, size, value) }
    }

    /// Reads from the rings' memory.
    pub fn load(&self, offset: u64, size: usize) -> u64 {
        // SAFETY: as `store`.
        unsafe { mmio::read(self.memory + offset, size) }
    }

    /// Resets the device and returns whether it said so in time.
    pub fn reset(&self) -> bool {
        self.write(common::DEVICE_STATUS, 1, 0);
        cpu::wait_until(WAIT_CYCLES, || self.read(common::DEVICE_STATUS, 1) == 0)
    }

    /// Accepts what the device offers, or only VERSION_1 and indirect descriptors where `all` is not set.
    pub fn negotiate(&self, all: bool) -> bool {
        const LOW: u32 = 1 << 28;
        const HIGH: u32 = 1 << 0;
        self.status(status::ACKNOWLEDGE | status::DRIVER);
        for (half, wanted) in [(0, LOW), (1, HIGH)] {
            self.write(common::DEVICE_FEATURE_SELECT, 4, half);
            let offered = self.read(common::DEVICE_FEATURE, 4);
            self.write(common::DRIVER_FEATURE_SELECT, 4, half);
            self.write(common::DRIVER_FEATURE, 4, if all { offered } else { offered & u64::from(wanted) });
        }
        self.status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        self.read(common::DEVICE_STATUS, 1) & u64::from(status::FEATURES_OK) != 0
    }

    /// Sets the device status.
    pub fn status(&self, status: u8) {
        self.write(common::DEVICE_STATUS, 1, u64::from(status));
    }

    /// Rings where this driver has memory for them, all zero.
    pub fn rings(&self) -> Rings {
        (0..place::END).step_by(8).for_each(|at| self.store(at, 8, 0));
        let at = |offset| self.memory + offset;
        Rings {
            size: QUEUE_SIZE,
            descriptors: at(place::DESCRIPTORS),
            available: at(place::AVAILABLE),
            used: at(place::USED),
        }
    }

    /// Enables queue 0 with these rings and starts the device.
    pub fn start(&self, rings: Rings) {
        self.write(common::QUEUE_SELECT, 2, 0);
        self.write(common::QUEUE_SIZE, 2, u64::from(rings.size));
        let addresses = [
            (common::QUEUE_DESC, rings.descriptors),
            (common::QUEUE_DRIVER, rings.available),
            (common::QUEUE_DEVICE, rings.used),
        ];
        for (register, address) in addresses {
            self.write(register, 4, address & 0xffff_ffff);
            self.write(register + 4, 4, address >> 32);
        }
        self.write(common::QUEUE_ENABLE, 2, 1);
        self.status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK);
    }

    /// Resets, negotiates and starts with good rings.
    pub fn restart(&self) -> bool {
        let is_ready = self.reset() && self.negotiate(false);
        self.start(self.rings());
        is_ready
    }

    /// Writes a descriptor at `index` of the table at `table`, an offset from the memory.
    pub fn describe(&self, table: u64, index: u16, (address, bytes): (u64, u32), flags: u16, next: u16) {
        let at = table + u64::from(index) * 16;
        self.store(at, 8, address);
        self.store(at + 8, 4, u64::from(bytes));
        self.store(at + 12, 2, u64::from(flags));
        self.store(at + 14, 2, u64::from(next));
    }

    /// Writes the descriptors of a one-sector read of sector 0 into `table` from index 0.
    pub fn describe_read(&self, table: u64) {
        self.store(place::STATUS, 1, 0xff);
        self.describe(table, 0, (self.memory + place::HEADER, 16), flag::NEXT, 1);
        self.describe(table, 1, (self.memory + place::DATA, 512), flag::NEXT | flag::WRITE, 2);
        self.describe(table, 2, (self.memory + place::STATUS, 1), flag::WRITE, 0);
    }

    /// Makes the chain at `head` available and says that the ring has advanced to `index`.
    pub fn offer(&self, head: u16, index: u16) {
        let slot = u64::from(index.wrapping_sub(1) % QUEUE_SIZE);
        self.store(place::AVAILABLE + 4 + 2 * slot, 2, u64::from(head));
        self.store(place::AVAILABLE + 2, 2, u64::from(index));
        self.notify();
    }

    /// Notifies queue 0.
    pub fn notify(&self) {
        let at = self.notify + self.read(common::QUEUE_NOTIFY_OFF, 2) * u64::from(self.notify_multiplier);
        // SAFETY: as `write`.
        unsafe { mmio::write(at, 2, 0) };
    }

    /// Waits until the used ring has advanced to `index`.
    pub fn is_used(&self, index: u16) -> bool {
        cpu::wait_until(WAIT_CYCLES, || self.load(place::USED + 2, 2) == u64::from(index))
    }

    /// Whether a good read of sector 0 succeeds after a reset.
    pub fn serves(&self) -> bool {
        let is_ready = self.restart();
        self.describe_read(place::DESCRIPTORS);
        self.offer(0, 1);
        is_ready && self.is_used(1) && self.load(place::STATUS, 1) == 0
    }
}

/// Some seconds, on any processor.
const WAIT_CYCLES: u64 = 10_000_000_000;
