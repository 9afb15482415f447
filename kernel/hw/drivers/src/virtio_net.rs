//! A virtio network card (Virtual I/O Device specification 1.2, section 5.1).
//!
//! The main type is [`VirtioNet`], a [`switch::Nic`]. [`receive::Receiver`] and [`transmit::Transmitter`] hold the two
//! queues with the driver's own buffers, [`header`] is the header in front of each frame.

mod header;
mod receive;
mod transmit;

use crate::pci::Function;
use crate::pci::interrupt::Message;
use crate::virtio::{Device, F_INDIRECT_DESC, Fault};
use alloc::vec::Vec;
use receive::Receiver;
use switch::{Full, Link, Mac, Nic, Offload, Offloads};
use transmit::Transmitter;
use virtio_drivers::Hal;

/// Features (section 5.1.3).
const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_GUEST_ECN: u64 = 1 << 9;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_HOST_ECN: u64 = 1 << 13;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const GUEST_TSO: u64 = F_GUEST_TSO4 | F_GUEST_TSO6;
const HOST_TSO: u64 = F_HOST_TSO4 | F_HOST_TSO6;
const WANTED: u64 =
    F_CSUM | F_GUEST_CSUM | F_MAC | GUEST_TSO | F_GUEST_ECN | HOST_TSO | F_HOST_ECN | F_MRG_RXBUF | F_STATUS;

/// Offsets in the configuration (section 5.1.4).
const CONFIG_MAC: usize = 0;
const CONFIG_STATUS: usize = 6;
const STATUS_LINK_UP: u16 = 1;

/// Queue numbers (section 5.1.2).
const RECEIVE_QUEUE: u16 = 0;
const TRANSMIT_QUEUE: u16 = 1;

/// Descriptors of each queue, and as many buffers: half a MiB a queue.
const QUEUE_SIZE_MAX: u16 = 256;
/// Bytes in a buffer: a frame of the usual size takes one, and 64 KiB take 33, of which seven are under way at a time.
/// Without merging a buffer must hold 1526 bytes (section 5.1.6.3.1).
const BUFFER_BYTES: usize = 2048;

/// A virtio network card, ready.
pub(crate) struct VirtioNet<H: Hal> {
    device: Device,
    receiver: Receiver<H>,
    transmitter: Transmitter<H>,
    mac: Mac,
    offloads: Offloads,
    has_interrupt: bool,
    /// Set once the device has broken the rules and was stopped.
    failed: bool,
}

impl<H: Hal> VirtioNet<H> {
    /// Starts the card's driver, with the receive queue full of buffers.
    pub(crate) fn start(function: Function, message: impl FnOnce() -> Option<Message>) -> Result<Self, Fault> {
        let mut device = Device::open::<H>(function, WANTED, agreed)?;
        let receive = device.queue::<H>(RECEIVE_QUEUE, QUEUE_SIZE_MAX, 0)?;
        let transmit = device.queue::<H>(TRANSMIT_QUEUE, QUEUE_SIZE_MAX, 0)?;
        let mut receiver = Receiver::new(receive, device.has(F_MRG_RXBUF)).ok_or(Fault::Memory)?;
        let offloads = Offloads {
            transmit_checksum: device.has(F_CSUM),
            transmit_tso4: device.has(F_HOST_TSO4),
            transmit_tso6: device.has(F_HOST_TSO6),
            transmit_ecn: device.has(F_HOST_ECN),
        };
        let transmitter = Transmitter::new(transmit, offloads).ok_or(Fault::Memory)?;
        let has_interrupt = device.signal::<H>(&[RECEIVE_QUEUE, TRANSMIT_QUEUE], message);
        let mac = read_mac(&device);
        device.start();
        receiver.kick();
        Ok(Self { device, receiver, transmitter, mac, offloads, has_interrupt, failed: false })
    }

    /// Stops a device that has broken the rules. Its link is down from then on.
    fn check(&mut self) {
        if !self.failed && (self.receiver.is_broken() || self.transmitter.is_broken()) {
            self.device.stop();
            self.failed = true;
            log::error!("virtio-net at {}: the device broke the rules and was stopped", self.device.function());
        }
    }
}

impl<H: Hal> Nic for VirtioNet<H> {
    fn mac(&self) -> Mac {
        self.mac
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn name(&self) -> &str {
        "virtio-net"
    }

    fn link(&mut self) -> Link {
        // Without the feature the link is always up.
        let is_up = !self.device.has(F_STATUS) || self.device.config_u16(CONFIG_STATUS) & STATUS_LINK_UP != 0;
        match (self.failed, is_up) {
            (true, _) => Link::Failed,
            (false, true) => Link::Up(None),
            (false, false) => Link::Down,
        }
    }

    fn room(&mut self) -> usize {
        if self.failed { usize::MAX } else { self.transmitter.room() }
    }

    fn room_max(&self) -> usize {
        self.transmitter.room_max()
    }

    fn transmit(&mut self, offload: &Offload, frame: &[u8]) -> Result<(), Full> {
        let sent = self.transmitter.transmit(offload, frame);
        self.check();
        // A dead device takes everything, as a cut wire does.
        if self.failed { Ok(()) } else { sent }
    }

    fn kick(&mut self) {
        self.transmitter.kick();
    }

    fn receive(&mut self, into: &mut Vec<u8>) -> Option<Offload> {
        let received = loop {
            let received = self.receiver.receive(into);
            if received.is_some() || !self.has_interrupt || !self.receiver.arm() {
                break received;
            }
        };
        self.check();
        received
    }

    fn has_received(&mut self) -> bool {
        self.receiver.has_received()
    }

    fn acknowledge_interrupt(&mut self) -> bool {
        self.device.acknowledge_interrupt();
        false
    }

    fn has_interrupt(&self) -> bool {
        self.has_interrupt
    }
}

/// The features to agree on of those offered: each with what it needs (section 5.1.3.1).
///
/// Indirect descriptors are left out: the driver's buffers belong to its descriptors, and nearly every frame is one.
fn agreed(offered: u64) -> u64 {
    let mut features = offered & !F_INDIRECT_DESC;
    if features & F_CSUM == 0 {
        features &= !(HOST_TSO | F_HOST_ECN);
    }
    // Without merging, each receive buffer would have to hold 64 KiB.
    if features & F_GUEST_CSUM == 0 || features & F_MRG_RXBUF == 0 {
        features &= !(GUEST_TSO | F_GUEST_ECN);
    }
    if features & HOST_TSO == 0 {
        features &= !F_HOST_ECN;
    }
    if features & GUEST_TSO == 0 {
        features &= !F_GUEST_ECN;
    }
    features
}

/// The card's address, or, where it has none, a locally administered one that is the same at each start.
fn read_mac(device: &Device) -> Mac {
    if device.has(F_MAC) {
        return core::array::from_fn(|index| device.config_u8(CONFIG_MAC + index));
    }
    let address = device.function().address();
    [0x02, 0, 0, address.bus(), address.device(), address.function()]
}

#[cfg(test)]
mod tests;
