//! A virtio device behind PCI, from the driver's side (Virtual I/O Device specification 1.2, sections 3.1 and 4.1).
//!
//! The main type is [`Device`]: it negotiates through virtio-drivers' `PciTransport`, and adds the two things that one
//! lacks, MSI-X vectors and doorbells that cost one write. [`ring::Ring`] is the queue itself; the disk and network
//! drivers are built on both.
#![expect(unsafe_code, reason = "takes over a device's registers")]

pub(crate) mod ring;

use crate::mmio::Registers;
use crate::pci::Function;
use crate::pci::interrupt::{Message, MsiX};
use core::fmt;
use ring::Ring;
use virtio_drivers::Hal;
use virtio_drivers::transport::pci::bus::PciRoot;
use virtio_drivers::transport::pci::{
    PciTransport, VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_PCI_CAP_DEVICE_CFG, VIRTIO_PCI_CAP_ISR_CFG,
    VIRTIO_PCI_CAP_NOTIFY_CFG, VirtioPciError,
};
use virtio_drivers::transport::{DeviceStatus, Transport};

/// The PCI vendor of all virtio devices (section 4.1.2).
pub(crate) const VIRTIO_VENDOR: u16 = 0x1af4;

/// Features of every device (section 6).
pub(crate) const F_INDIRECT_DESC: u64 = 1 << 28;
pub(crate) const F_EVENT_IDX: u64 = 1 << 29;
const F_VERSION_1: u64 = 1 << 32;
/// Addresses go through the platform's IOMMU if there is one; Pollux leaves it off, so they are physical either way.
const F_ACCESS_PLATFORM: u64 = 1 << 33;

/// PCI capability id of vendor-specific ones.
const CAPABILITY_VENDOR: u8 = 0x09;
/// Offsets in `virtio_pci_common_cfg` (section 4.1.4.3), and its length.
const COMMON_QUEUE_SELECT: usize = 0x16;
const COMMON_QUEUE_MSIX_VECTOR: usize = 0x1a;
const COMMON_QUEUE_NOTIFY_OFF: usize = 0x1e;
const COMMON_BYTES: usize = 0x38;

/// How often a device's status is read before it counts as stuck.
const STATUS_READS_MAX: u32 = 1_000_000;

/// Why a device could not be started.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Its configuration structures are missing, malformed or outside its BARs: a legacy-only device, or a broken one.
    NotModern,
    /// virtio-drivers could not make a transport of it.
    Transport(VirtioPciError),
    /// It does not reset.
    Stuck,
    /// It did not accept the features.
    Features,
    /// It lacks a queue, or the queue's doorbell lies outside its window.
    Queue(u16),
    /// There is no memory for its queues.
    Memory,
    /// Its configuration makes no sense.
    Configuration,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotModern => write!(out, "no virtio 1.x interface (is it legacy only?)"),
            Self::Transport(error) => write!(out, "{error}"),
            Self::Stuck => write!(out, "does not reset"),
            Self::Features => write!(out, "refuses the features"),
            Self::Queue(index) => write!(out, "queue {index} is not usable"),
            Self::Memory => write!(out, "no memory for its queues"),
            Self::Configuration => write!(out, "its configuration makes no sense"),
        }
    }
}

/// A virtio device that this driver owns.
pub(crate) struct Device {
    function: Function,
    transport: PciTransport,
    common: Registers,
    notify: Registers,
    notify_multiplier: u32,
    features: u64,
    msix: Option<MsiX>,
}

impl Device {
    /// Resets the device and agrees on features: those of `wanted` that it has, as far as `agreed` keeps them.
    pub(crate) fn open<H: Hal>(
        mut function: Function,
        wanted: u64,
        agreed: impl FnOnce(u64) -> u64,
    ) -> Result<Self, Fault> {
        let structures = Structures::find(&function).ok_or(Fault::NotModern)?;
        function.enable();
        let mut root = PciRoot::new(function.access());
        let transport = PciTransport::new::<H, _>(&mut root, function.as_virtio()).map_err(Fault::Transport)?;
        // SAFETY: `find` checked that the windows lie in memory BARs of this function, which is enabled and ours. The
        // transport knows the same registers; both are in this value, which uses one at a time.
        let (common, notify) = unsafe { (structures.common.map::<H>(), structures.notify.map::<H>()) };
        let notify_multiplier = structures.notify_multiplier;
        let mut device = Self { function, transport, common, notify, notify_multiplier, features: 0, msix: None };
        device.negotiate(wanted, agreed)?;
        Ok(device)
    }

    /// The steps of section 3.1.1 up to FEATURES_OK.
    fn negotiate(&mut self, wanted: u64, agreed: impl FnOnce(u64) -> u64) -> Result<(), Fault> {
        if !self.reset() {
            return Err(Fault::Stuck);
        }
        let known = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        self.transport.set_status(DeviceStatus::ACKNOWLEDGE);
        self.transport.set_status(known);
        let common = F_VERSION_1 | F_ACCESS_PLATFORM | F_EVENT_IDX | F_INDIRECT_DESC;
        self.features = agreed(self.transport.read_device_features() & (wanted | common));
        if self.features & F_VERSION_1 == 0 {
            return Err(Fault::Features);
        }
        self.transport.write_driver_features(self.features);
        self.transport.set_status(known | DeviceStatus::FEATURES_OK);
        if !self.transport.get_status().contains(DeviceStatus::FEATURES_OK) {
            return Err(Fault::Features);
        }
        Ok(())
    }

    /// Whether all of these features were agreed on.
    pub(crate) fn has(&self, features: u64) -> bool {
        self.features & features == features
    }

    /// A byte of the device's configuration; 0 past its end.
    pub(crate) fn config_u8(&self, offset: usize) -> u8 {
        self.transport.read_config_space(offset).unwrap_or(0)
    }

    /// Two bytes of it.
    pub(crate) fn config_u16(&self, offset: usize) -> u16 {
        self.transport.read_config_space(offset).unwrap_or(0)
    }

    /// Four bytes of it.
    pub(crate) fn config_u32(&self, offset: usize) -> u32 {
        self.transport.read_config_space(offset).unwrap_or(0)
    }

    /// Sets up a queue of at most `size_max` descriptors, with tables for chains of up to `table_entries` where
    /// indirect descriptors were agreed on.
    pub(crate) fn queue<H: Hal>(&mut self, index: u16, size_max: u16, table_entries: u16) -> Result<Queue<H>, Fault> {
        let offered = u16::try_from(self.transport.max_queue_size(index)).unwrap_or(u16::MAX);
        let size = offered.min(size_max);
        // The largest power of two that the device allows (section 2.7).
        let size = size.checked_ilog2().map(|power| 1_u16 << power).ok_or(Fault::Queue(index))?;
        let doorbell = self.doorbell(index).ok_or(Fault::Queue(index))?;
        let table_entries = if self.has(F_INDIRECT_DESC) { table_entries } else { 0 };
        let ring = Ring::new(size, table_entries, self.has(F_EVENT_IDX)).ok_or(Fault::Memory)?;
        let areas = ring.areas();
        self.transport.queue_set(index, size.into(), areas.descriptors, areas.available, areas.used);
        Ok(Queue { ring, doorbell, index })
    }

    /// The register that announces a queue's new buffers (section 4.1.4.4).
    fn doorbell(&mut self, index: u16) -> Option<Registers> {
        self.common.write(COMMON_QUEUE_SELECT, index);
        let position: u16 = self.common.read(COMMON_QUEUE_NOTIFY_OFF);
        let offset = usize::from(position).checked_mul(self.notify_multiplier as usize)?;
        self.notify.part(offset, 2)
    }

    /// Makes the device raise the message for these queues; returns whether it will. The first table entry serves all,
    /// and configuration changes raise nothing.
    pub(crate) fn signal<H: Hal>(&mut self, queues: &[u16], message: impl FnOnce() -> Option<Message>) -> bool {
        // SAFETY: `open` enabled the function, and this runs once a device, before the table is kept below.
        let Some(mut msix) = (unsafe { MsiX::find::<H>(&self.function) }) else { return false };
        let Some(message) = message() else { return false };
        if !msix.program(0, message) {
            return false;
        }
        msix.enable(&mut self.function);
        self.msix = Some(msix);
        queues.iter().all(|queue| {
            self.common.write(COMMON_QUEUE_SELECT, *queue);
            self.common.write(COMMON_QUEUE_MSIX_VECTOR, 0_u16);
            // A device that cannot says so by reading back another (section 4.1.5.1.2.1).
            self.common.read::<u16>(COMMON_QUEUE_MSIX_VECTOR) == 0
        })
    }

    /// Lets the device work.
    pub(crate) fn start(&mut self) {
        let known = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK;
        self.transport.set_status(known | DeviceStatus::DRIVER_OK);
    }

    /// Stops the device for good: when this returns, it does no more DMA.
    pub(crate) fn stop(&mut self) {
        self.reset();
        self.function.stop_dma();
    }

    /// Where the device is.
    pub(crate) fn function(&self) -> &Function {
        &self.function
    }

    /// Reads, and so clears, the interrupt status, which deasserts a level-triggered interrupt.
    pub(crate) fn acknowledge_interrupt(&mut self) {
        if self.msix.is_none() {
            self.transport.ack_interrupt();
        }
    }

    /// Has the messages of all queues go to another processor.
    pub(crate) fn aim_interrupt(&mut self, address: u64) {
        if let Some(msix) = &mut self.msix {
            msix.aim(0, address);
        }
    }

    /// Resets the device; returns whether it did.
    fn reset(&mut self) -> bool {
        self.transport.set_status(DeviceStatus::empty());
        (0..STATUS_READS_MAX).any(|_| self.transport.get_status().is_empty())
    }
}

/// A queue with its doorbell.
pub(crate) struct Queue<H: Hal> {
    pub(crate) ring: Ring<H>,
    doorbell: Registers,
    index: u16,
}

impl<H: Hal> Queue<H> {
    /// Announces what was put into the ring, if the device wants to know.
    pub(crate) fn kick(&mut self) {
        if self.ring.needs_kick() {
            self.doorbell.write(0, self.index);
        }
    }
}

/// Where a structure is: a window of a memory BAR, checked to lie in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Window {
    physical: u64,
    bytes: usize,
}

impl Window {
    /// # Safety
    /// As [`Registers::map`].
    unsafe fn map<H: Hal>(self) -> Registers {
        // SAFETY: the caller's promise.
        unsafe { Registers::map::<H>(self.physical, self.bytes) }
    }
}

/// The structures that this driver uses itself, found by their capabilities (section 4.1.4).
struct Structures {
    common: Window,
    notify: Window,
    notify_multiplier: u32,
}

impl Structures {
    /// Finds them, and checks all that `PciTransport` will map: it adds up offsets without a look at overflow.
    fn find(function: &Function) -> Option<Self> {
        let (mut common, mut notify) = (None, None);
        for (id, offset) in function.capabilities() {
            let [_, _, _, kind] = function.read_config(offset).to_le_bytes();
            if id != CAPABILITY_VENDOR || !is_used(kind) {
                continue;
            }
            let words = [4, 8, 12].map(|at| function.read_config(offset + at));
            let window = window(words, |number| function.memory_bar(number).map(|(bar, bytes)| (bar.as_u64(), bytes)))?;
            match kind {
                VIRTIO_PCI_CAP_COMMON_CFG if common.is_none() => common = Some(window),
                VIRTIO_PCI_CAP_NOTIFY_CFG if notify.is_none() => {
                    notify = Some((window, function.read_config(offset + 16)));
                }
                _ => {}
            }
        }
        let common = common.filter(|window| window.bytes >= COMMON_BYTES && window.physical.is_multiple_of(4))?;
        let (notify, notify_multiplier) = notify?;
        let even = notify_multiplier.is_multiple_of(2) && notify.physical.is_multiple_of(2);
        even.then_some(Self { common, notify, notify_multiplier })
    }
}

fn is_used(kind: u8) -> bool {
    matches!(
        kind,
        VIRTIO_PCI_CAP_COMMON_CFG | VIRTIO_PCI_CAP_NOTIFY_CFG | VIRTIO_PCI_CAP_ISR_CFG | VIRTIO_PCI_CAP_DEVICE_CFG
    )
}

/// The window that a capability's words (BAR number, offset, length) describe, if it lies in that BAR.
fn window([bar, offset, bytes]: [u32; 3], memory_bar: impl Fn(u8) -> Option<(u64, u64)>) -> Option<Window> {
    let [number, ..] = bar.to_le_bytes();
    let (start, bar_bytes) = memory_bar(number)?;
    let end = offset.checked_add(bytes)?;
    let physical = start.checked_add(offset.into())?;
    (bytes > 0 && u64::from(end) <= bar_bytes).then_some(Window { physical, bytes: bytes as usize })
}

#[cfg(test)]
pub(crate) mod tests;
