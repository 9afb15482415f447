//! A virtio disk (Virtual I/O Device specification 1.2, section 5.2).
//!
//! The main type is [`VirtioBlk`], a [`block::Disk`]; [`requests::Requests`] holds the requests in flight, and is the part
//! that tests reach. Data goes to and from the runs of a transfer by DMA: no byte is copied here.

mod requests;

use crate::pci::Function;
use crate::pci::interrupt::Message;
use crate::virtio::{Device, F_INDIRECT_DESC, Fault};
use alloc::format;
use alloc::string::String;
use block::{Disk, Geometry, Health, Outcome, SECTOR_BYTES, SubmitError, Transfer};
use requests::Requests;
use virtio_drivers::Hal;

/// Features (section 5.2.3).
const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;
const WANTED: u64 = F_SIZE_MAX | F_SEG_MAX | F_RO | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_DISCARD | F_WRITE_ZEROES;

/// Offsets in the configuration (section 5.2.4).
const CONFIG_CAPACITY: usize = 0;
const CONFIG_SIZE_MAX: usize = 8;
const CONFIG_SEG_MAX: usize = 12;
const CONFIG_BLK_SIZE: usize = 20;
const CONFIG_PHYSICAL_BLOCK_EXP: usize = 24;
const CONFIG_MAX_DISCARD_SECTORS: usize = 36;
const CONFIG_MAX_WRITE_ZEROES_SECTORS: usize = 48;

/// Descriptors of the queue, so requests in flight where each takes one indirect descriptor.
const QUEUE_SIZE_MAX: u16 = 256;
/// Runs of a request, so that its table with header and status is 2 KiB.
const RUNS_MAX: u16 = 126;
/// Long enough that the request itself costs nothing, short enough that others get a turn.
const TRANSFER_BYTES_MAX: u32 = 16 << 20;

/// A virtio disk, ready.
pub(crate) struct VirtioBlk<H: Hal> {
    device: Device,
    requests: Requests<H>,
    geometry: Geometry,
    has_interrupt: bool,
    /// Set once the device has broken the rules and was stopped.
    failed: bool,
}

impl<H: Hal> VirtioBlk<H> {
    /// Starts the disk's driver and reads what the disk is like.
    pub(crate) fn start(function: Function, message: impl FnOnce() -> Option<Message>) -> Result<Self, Fault> {
        let mut device = Device::open::<H>(function, WANTED, |offered| offered)?;
        let queue = device.queue::<H>(0, QUEUE_SIZE_MAX, RUNS_MAX + 2)?;
        // A chain holds a header and a status beside the runs.
        let runs_max = if device.has(F_INDIRECT_DESC) { RUNS_MAX } else { queue.ring.size().saturating_sub(2) };
        let geometry = read_geometry(&device, queue.ring.size(), runs_max.min(RUNS_MAX))?;
        let requests = Requests::new(queue).ok_or(Fault::Memory)?;
        let has_interrupt = device.signal::<H>(&[0], message);
        device.start();
        let mut disk = Self { device, requests, geometry, has_interrupt, failed: false };
        disk.geometry.serial = disk.requests.read_serial().unwrap_or_default();
        Ok(disk)
    }

    /// The next completion after the device was stopped: everything that was in flight has failed.
    fn abandoned(&mut self) -> Option<(u64, Outcome)> {
        if !self.failed {
            // Once stopped it touches no buffer, so their owners may have them back.
            self.device.stop();
            self.failed = true;
            log::error!("{}: the device broke the rules of its queue and was stopped", self.geometry.name);
        }
        self.requests.abandon()
    }
}

impl<H: Hal> Disk for VirtioBlk<H> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, transfer: &Transfer<'_>) -> Result<(), SubmitError> {
        if self.requests.is_broken() || !self.geometry.allows(transfer) {
            return Err(SubmitError::Refused);
        }
        self.requests.submit(transfer)
    }

    fn kick(&mut self) {
        self.requests.kick();
    }

    fn completed(&mut self) -> Option<(u64, Outcome)> {
        loop {
            if let Some(completion) = self.requests.completed() {
                return Some(completion);
            }
            if self.requests.is_broken() {
                return self.abandoned();
            }
            if !self.has_interrupt || !self.requests.arm() {
                return None;
            }
        }
    }

    fn acknowledge_interrupt(&mut self) {
        self.device.acknowledge_interrupt();
    }

    fn has_interrupt(&self) -> bool {
        self.has_interrupt
    }

    fn aim_interrupt(&mut self, address: u64) {
        self.device.aim_interrupt(address);
    }

    fn health(&self) -> Health {
        if self.requests.is_broken() { Health::Failed } else { Health::Ready }
    }
}

fn read_geometry(device: &Device, queue_size: u16, runs_max: u16) -> Result<Geometry, Fault> {
    let config = |feature: u64, offset: usize, default: u32| {
        if device.has(feature) { device.config_u32(offset) } else { default }
    };
    let capacity = u64::from(device.config_u32(CONFIG_CAPACITY + 4)) << 32;
    let sectors = capacity | u64::from(device.config_u32(CONFIG_CAPACITY));
    let logical_block_bytes = config(F_BLK_SIZE, CONFIG_BLK_SIZE, SECTOR_BYTES);
    if !logical_block_bytes.is_power_of_two() || logical_block_bytes < SECTOR_BYTES {
        return Err(Fault::Configuration);
    }
    let exponent = if device.has(F_TOPOLOGY) { device.config_u8(CONFIG_PHYSICAL_BLOCK_EXP) } else { 0 };
    let physical_block_bytes = u64::from(logical_block_bytes) << exponent.min(16);
    // Without the feature a request has one segment, as other drivers have it.
    let runs = config(F_SEG_MAX, CONFIG_SEG_MAX, 1).clamp(1, runs_max.max(1).into());
    Ok(Geometry {
        sectors,
        logical_block_bytes,
        physical_block_bytes: u32::try_from(physical_block_bytes).unwrap_or(logical_block_bytes),
        read_only: device.has(F_RO),
        flush: device.has(F_FLUSH),
        write_through: false,
        discard: device.has(F_DISCARD),
        write_zeroes: device.has(F_WRITE_ZEROES),
        max_discard_sectors: config(F_DISCARD, CONFIG_MAX_DISCARD_SECTORS, 0),
        max_write_zeroes_sectors: config(F_WRITE_ZEROES, CONFIG_MAX_WRITE_ZEROES_SECTORS, 0),
        run_alignment_bytes: 1,
        run_boundary_bytes: 1,
        // At most `runs_max`, so it fits.
        max_runs: runs as u16,
        max_run_bytes: config(F_SIZE_MAX, CONFIG_SIZE_MAX, u32::MAX).max(1),
        max_transfer_bytes: TRANSFER_BYTES_MAX.max(logical_block_bytes),
        queue_depth: queue_size,
        serial: String::new(),
        name: format!("virtio-blk at {}", device.function()),
    })
}

#[cfg(test)]
mod tests;
