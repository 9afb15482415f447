//! The network device (5.1): frames out of the guest and into it, with checksum and segmentation left to whoever
//! is last.
//!
//! [`Net`] holds what was negotiated and set; frames go through [`Function::transmit`] and [`Function::receive`], the
//! driver's commands through `control`. Segments with ECN (HOST_ECN, GUEST_ECN) are not offered: cutting them needs
//! care for CWR that no receiver here takes, and Linux then cuts them itself.

mod control;
mod filter;
mod header;
mod saved;
#[cfg(test)]
mod tests;

pub use filter::Mac;
pub use header::{FLAG_DATA_VALID, FLAG_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_TCPV6, HEADER_BYTES, NetHeader, Offloads};
pub use saved::Saved;

use crate::chain::{after, gather, scatter, total_bytes};
use crate::{Device, Function, Signal};
use alloc::vec::Vec;
use filter::Filter;
use guestmem::GuestMemory;

/// The queue with the driver's buffers for frames: a kick on it means that there is room again.
pub const QUEUE_RECEIVE: u16 = 0;
/// The queue with the driver's frames.
pub const QUEUE_TRANSMIT: u16 = 1;
/// The queue with the driver's commands.
pub const QUEUE_CONTROL: u16 = 2;

const QUEUE_SIZE: u16 = 256;
const CONTROL_QUEUE_SIZE: u16 = 64;

/// The longest frame either way: 64 KiB of IP packet and its link headers.
pub const FRAME_BYTES_MAX: usize = (64 << 10) + 64;
/// The shortest frame: an Ethernet header.
const FRAME_BYTES_MIN: usize = 14;
/// Buffers that one received frame may be spread over: 64 KiB over buffers of 1.5 KiB needs 43.
const MERGED_MAX: usize = 64;

/// Feature bits (5.1.3).
const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_CTRL_VQ: u64 = 1 << 17;
const F_CTRL_RX: u64 = 1 << 18;
const F_GUEST_ANNOUNCE: u64 = 1 << 21;
const F_CTRL_MAC_ADDR: u64 = 1 << 23;

/// What CTRL_GUEST_OFFLOADS can switch, in the same bits as the features.
const GUEST_OFFLOADS: u64 = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6;

/// Feature, and one it cannot be without (5.1.3.1).
const REQUIRES: [(u64, u64); 8] = [
    (F_GUEST_TSO4, F_GUEST_CSUM),
    (F_GUEST_TSO6, F_GUEST_CSUM),
    (F_HOST_TSO4, F_CSUM),
    (F_HOST_TSO6, F_CSUM),
    (F_CTRL_RX, F_CTRL_VQ),
    (F_GUEST_ANNOUNCE, F_CTRL_VQ),
    (F_CTRL_MAC_ADDR, F_CTRL_VQ),
    (F_CTRL_GUEST_OFFLOADS, F_CTRL_VQ),
];

/// Link status bits (5.1.4).
const STATUS_LINK_UP: u16 = 1;
const STATUS_ANNOUNCE: u16 = 2;

/// What a network card is.
#[derive(Clone, Copy, Debug)]
pub struct NetConfig {
    /// Its address.
    pub mac: Mac,
    /// The largest packet of the network behind it, in bytes without the link header.
    pub mtu: u16,
    /// Whether checksums and segmentation may be left to the host side, and to the guest.
    pub offloads: bool,
}

/// What a card did and lost.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct NetCounters {
    /// Frames that left the guest.
    pub transmitted: u64,
    /// Frames that the guest sent and that made no sense.
    pub transmit_malformed: u64,
    /// Frames written into guest buffers.
    pub received: u64,
    /// Frames that the guest's receive filter does not let pass.
    pub receive_filtered: u64,
    /// Frames that fit no buffer or need what the guest did not negotiate.
    pub receive_dropped: u64,
}

/// The network device.
#[derive(Clone, Debug)]
pub struct Net {
    config: NetConfig,
    features: u64,
    mac: Mac,
    status: u16,
    filter: Filter,
    /// What the guest wants at this moment, of [`GUEST_OFFLOADS`].
    guest_offloads: u64,
    counters: NetCounters,
    /// The buffers of the frame being received: head and bytes. Empty between calls, kept for its room.
    merged: Vec<(u16, u64)>,
}

/// A frame from the guest. Reused from one to the next.
#[derive(Clone, Debug)]
pub struct TxFrame {
    /// What is left to do to it, checked against it.
    pub header: NetHeader,
    /// The frame, from the destination address on; at most [`FRAME_BYTES_MAX`].
    pub bytes: Vec<u8>,
}

impl TxFrame {
    /// An empty one with room for any frame.
    pub fn new() -> Self {
        Self { header: NetHeader::default(), bytes: Vec::with_capacity(FRAME_BYTES_MAX) }
    }
}

impl Default for TxFrame {
    fn default() -> Self {
        Self::new()
    }
}

/// The guest has no buffer for a frame now. A kick on [`QUEUE_RECEIVE`] will say when it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoBuffer;

impl Net {
    /// The device for a card with its link up.
    ///
    /// # Panics
    /// Where the MTU is below the 68 bytes of RFC 791 (5.1.4.1).
    pub fn new(config: NetConfig) -> Self {
        assert!(config.mtu >= 68);
        Self {
            features: 0,
            mac: config.mac,
            status: STATUS_LINK_UP,
            filter: Filter::default(),
            guest_offloads: 0,
            counters: NetCounters::default(),
            merged: Vec::with_capacity(MERGED_MAX),
            config,
        }
    }

    /// The card.
    pub fn config(&self) -> &NetConfig {
        &self.config
    }

    /// Its address, which the driver may have changed.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// What it did and lost since power-on.
    pub fn counters(&self) -> NetCounters {
        self.counters
    }

    /// What frames to the guest may leave undone.
    pub fn guest_offloads(&self) -> Offloads {
        let has = |bit| self.guest_offloads & bit != 0;
        Offloads { csum: has(F_GUEST_CSUM), tso4: has(F_GUEST_TSO4), tso6: has(F_GUEST_TSO6) }
    }

    /// What frames from the guest may leave undone.
    pub fn host_offloads(&self) -> Offloads {
        Offloads { csum: self.has(F_CSUM), tso4: self.has(F_HOST_TSO4), tso6: self.has(F_HOST_TSO6) }
    }

    /// Whether the guest's receive filter lets a frame pass.
    pub fn accepts_frame(&self, frame: &[u8]) -> bool {
        frame.first_chunk().is_some_and(|destination| self.filter.passes(destination, &self.mac))
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn link_up(&self) -> bool {
        self.status & STATUS_LINK_UP != 0
    }
}

impl Device for Net {
    const TYPE: u16 = 1;
    /// Network controller, Ethernet.
    const CLASS: u32 = 0x02_0000;
    /// Address, status, queue pairs, MTU (5.1.4).
    const CONFIG_BYTES: u32 = 12;

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE, CONTROL_QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let offloads = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | GUEST_OFFLOADS | F_CTRL_GUEST_OFFLOADS;
        let control = F_CTRL_VQ | F_CTRL_RX | F_CTRL_MAC_ADDR | F_GUEST_ANNOUNCE;
        let offloads = if self.config.offloads { offloads } else { 0 };
        F_MAC | F_MTU | F_MRG_RXBUF | F_STATUS | control | offloads
    }

    fn accepts(&self, features: u64) -> bool {
        REQUIRES.iter().all(|&(feature, required)| features & feature == 0 || features & required != 0)
    }

    fn set_driver_features(&mut self, features: u64) {
        self.features = features;
        self.guest_offloads = features & GUEST_OFFLOADS;
    }

    fn config_read(&self, offset: u32, into: &mut [u8]) {
        let mut image = [0; Self::CONFIG_BYTES as usize];
        image[..6].copy_from_slice(&self.mac);
        image[6..8].copy_from_slice(&self.status.to_le_bytes());
        image[8..10].copy_from_slice(&1u16.to_le_bytes());
        image[10..12].copy_from_slice(&self.config.mtu.to_le_bytes());
        crate::copy_from_image(&image, offset, into);
    }

    fn reset(&mut self) {
        self.features = 0;
        self.mac = self.config.mac;
        self.status &= STATUS_LINK_UP;
        self.filter = Filter::default();
        self.guest_offloads = 0;
    }
}

impl Function<Net> {
    /// Copies the guest's next frame out and gives its buffer back. False where there is none for now: a kick will
    /// tell, or the notify that ends the batch. Frames that make no sense are counted and skipped.
    pub fn transmit(&mut self, memory: &GuestMemory, frame: &mut TxFrame) -> bool {
        let queue = usize::from(QUEUE_TRANSMIT);
        for _ in 0..QUEUE_SIZE {
            let Some(head) = self.transport.pop(memory, queue) else { return false };
            let well_formed = self.chain.read(memory, self.transport.table(queue), head).is_ok();
            let taken = well_formed && self.copy_frame(memory, frame).is_some();
            self.transport.push_used(memory, queue, head, 0);
            if taken {
                self.device.counters.transmitted += 1;
                return true;
            }
            self.device.counters.transmit_malformed += 1;
        }
        self.transport.leave_unfinished(queue);
        false
    }

    /// Ends a batch of [`Function::transmit`] calls.
    pub fn notify_transmit(&mut self, memory: &GuestMemory, signals: &mut Vec<Signal>) {
        self.transport.notify(memory, usize::from(QUEUE_TRANSMIT), signals);
    }

    /// Writes a frame into the guest's buffers; the driver sees it after [`Function::notify_receive`].
    ///
    /// A frame that the guest does not want or cannot take, or that finds no driver or no link, is counted and gone. On
    /// [`NoBuffer`] nothing happened, and the frame may be offered again.
    pub fn receive(&mut self, memory: &GuestMemory, header: &NetHeader, frame: &[u8]) -> Result<(), NoBuffer> {
        let (live, device) = (self.transport.live(), &mut self.device);
        if !device.accepts_frame(frame) {
            device.counters.receive_filtered += 1;
            return Ok(());
        }
        if !live || !device.link_up() || frame.len() > FRAME_BYTES_MAX || !header.within(device.guest_offloads()) {
            device.counters.receive_dropped += 1;
            return Ok(());
        }
        let written = match self.collect_buffers(memory, (HEADER_BYTES + frame.len()) as u64)? {
            true => self.write_frame(memory, header, frame),
            false => false,
        };
        let counters = &mut self.device.counters;
        *(if written { &mut counters.received } else { &mut counters.receive_dropped }) += 1;
        Ok(())
    }

    /// Ends a batch of [`Function::receive`] calls.
    pub fn notify_receive(&mut self, memory: &GuestMemory, signals: &mut Vec<Signal>) {
        self.transport.notify(memory, usize::from(QUEUE_RECEIVE), signals);
    }

    /// Whether the guest has a buffer. If not, a kick on [`QUEUE_RECEIVE`] will say when it has.
    pub fn has_receive_buffers(&mut self, memory: &GuestMemory) -> bool {
        self.transport.has_next(memory, usize::from(QUEUE_RECEIVE))
    }

    /// Asks the guest to tell the network where it is now (5.1.6.5.4): it moved to another host. A guest that did not
    /// negotiate this is not asked; the owner may announce it in its stead.
    pub fn announce(&mut self, signals: &mut Vec<Signal>) {
        if self.device.has(F_GUEST_ANNOUNCE) {
            self.device.status |= STATUS_ANNOUNCE;
            self.transport.change_config();
            self.transport.flush(signals);
        }
    }

    /// Plugs or unplugs the cable.
    pub fn set_link(&mut self, up: bool, signals: &mut Vec<Signal>) {
        if up != self.device.link_up() {
            self.device.status ^= STATUS_LINK_UP;
            self.transport.change_config();
            self.transport.flush(signals);
        }
    }

    /// Copies header and frame out of the chain; `None` where they are none.
    fn copy_frame(&self, memory: &GuestMemory, frame: &mut TxFrame) -> Option<()> {
        let chain = &self.chain;
        let bytes = total_bytes(&chain.readable).checked_sub(HEADER_BYTES as u64)? as usize;
        if !chain.writable.is_empty() || !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&bytes) {
            return None;
        }
        let mut header = [0; HEADER_BYTES];
        gather(memory, chain.readable.iter().copied(), &mut header).ok()?;
        // Without a clear: only what the last frame did not have is zeroed first.
        frame.bytes.resize(bytes, 0);
        gather(memory, after(&chain.readable, HEADER_BYTES as u64), &mut frame.bytes).ok()?;
        frame.header = NetHeader::decode(&header).checked(bytes, self.device.host_offloads())?;
        Some(())
    }

    /// Takes buffers for `bytes` bytes into the chain and `merged`. False where they can never be enough, in which
    /// case they were put back.
    fn collect_buffers(&mut self, memory: &GuestMemory, bytes: u64) -> Result<bool, NoBuffer> {
        let queue = usize::from(QUEUE_RECEIVE);
        let buffers_max = if self.device.has(F_MRG_RXBUF) { MERGED_MAX } else { 1 };
        self.chain.clear();
        self.device.merged.clear();
        let mut room = 0;
        while room < bytes {
            let taken = self.device.merged.len();
            if taken == buffers_max {
                self.transport.queues[queue].unpop(taken as u16);
                return Ok(false);
            }
            let Some(head) = self.transport.pop(memory, queue) else {
                self.transport.queues[queue].unpop(taken as u16);
                return Err(NoBuffer);
            };
            let well_formed = self.chain.append(memory, self.transport.table(queue), head).is_ok();
            let more = total_bytes(&self.chain.writable) - room;
            if !well_formed || more == 0 || !self.chain.readable.is_empty() {
                self.transport.fail();
                return Ok(false);
            }
            self.device.merged.push((head, more));
            room += more;
        }
        Ok(true)
    }

    /// Writes header and frame over the collected buffers and gives them back.
    fn write_frame(&mut self, memory: &GuestMemory, header: &NetHeader, frame: &[u8]) -> bool {
        let pieces = &self.chain.writable;
        // 5.1.6.4.1: without GUEST_CSUM no flag is set, not even the harmless one.
        let flags = if self.device.guest_offloads().csum { header.flags } else { 0 };
        let header = NetHeader { flags, ..*header }.encode(self.device.merged.len() as u16);
        let written = scatter(memory, pieces.iter().copied(), &header)
            .and_then(|_| scatter(memory, after(pieces, HEADER_BYTES as u64), frame));
        if written.is_err() {
            self.transport.fail();
            return false;
        }
        let mut left = (HEADER_BYTES + frame.len()) as u64;
        for &(head, room) in &self.device.merged {
            let share = room.min(left);
            self.transport.push_used(memory, usize::from(QUEUE_RECEIVE), head, share as u32);
            left -= share;
        }
        true
    }
}
