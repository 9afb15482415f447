//! A namespace as a disk.
//!
//! The main type is [`Namespace`]; all of a controller share one [`Controller`].

use super::controller::Controller;
use super::data::{PRP_ENTRIES, SGL_DESCRIPTORS};
use super::identify::{ControllerFacts, NamespaceFacts, PAGE_BYTES, Sgl};
use super::lane::Format;
use super::{Fault, Port};
use alloc::string::String;
use alloc::sync::Arc;
use block::{Disk, Geometry, Health, Outcome, SECTOR_BYTES, SubmitError, Transfer};
use spin::Mutex;
use virtio_drivers::Hal;

/// What one page of a list describes, whatever the runs.
const TRANSFER_BYTES_MAX: u32 = PRP_ENTRIES as u32 * PAGE_BYTES;
/// 2 GiB: a controller takes its time over a larger deallocation.
const DISCARD_SECTORS_MAX: u32 = 1 << 22;
/// What the field for blocks holds.
const BLOCKS_MAX: u32 = 1 << 16;

/// A namespace of an NVMe controller, ready.
pub struct Namespace<H: Hal, P: Port> {
    controller: Arc<Mutex<Controller<H, P>>>,
    index: usize,
    geometry: Geometry,
    has_interrupt: bool,
}

/// A namespace that has its lanes; the controller is not shared yet.
pub(super) struct Draft {
    index: usize,
    geometry: Geometry,
    has_interrupt: bool,
}

impl Draft {
    pub(super) fn new<H: Hal, P: Port>(
        controller: &mut Controller<H, P>,
        facts: &ControllerFacts,
        namespace: &NamespaceFacts,
        number: u32,
        lanes: u16,
        name: String,
        has_interrupt: bool,
    ) -> Result<Self, Fault> {
        let geometry = geometry(facts, namespace, controller.depth(), name);
        let format = Format { namespace: number, sectors_per_block: geometry.sectors_per_block(), sgl: facts.sgl };
        Ok(Self { index: controller.add(format, lanes)?, geometry, has_interrupt })
    }

    pub(super) fn of<H: Hal, P: Port>(self, controller: Arc<Mutex<Controller<H, P>>>) -> Namespace<H, P> {
        Namespace { controller, index: self.index, geometry: self.geometry, has_interrupt: self.has_interrupt }
    }
}

impl<H: Hal, P: Port> Disk for Namespace<H, P> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, transfer: &Transfer<'_>) -> Result<(), SubmitError> {
        if !self.geometry.allows(transfer) {
            return Err(SubmitError::Refused);
        }
        self.controller.lock().submit(self.index, transfer)
    }

    fn kick(&mut self) {
        self.controller.lock().kick(self.index);
    }

    fn completed(&mut self) -> Option<(u64, Outcome)> {
        self.controller.lock().completed(self.index)
    }

    /// Messages need no acknowledgement, and the pin is off.
    fn acknowledge_interrupt(&mut self) {}

    fn has_interrupt(&self) -> bool {
        self.has_interrupt
    }

    fn aim_interrupt(&mut self, address: u64) {
        self.controller.lock().aim_interrupt(address);
    }

    fn tick(&mut self, now_ns: u64) -> Option<u64> {
        self.controller.lock().tick(now_ns)
    }

    fn health(&self) -> Health {
        self.controller.lock().health()
    }
}

fn geometry(facts: &ControllerFacts, namespace: &NamespaceFacts, depth: u16, name: String) -> Geometry {
    let sectors_per_block = namespace.block_bytes / SECTOR_BYTES;
    let max_transfer_bytes = facts.max_transfer_bytes.unwrap_or(u32::MAX).min(TRANSFER_BYTES_MAX);
    // The limit of Write Zeroes is that of data unless the controller says otherwise, and then it is higher.
    let max_zeroes_bytes = facts.max_transfer_bytes.unwrap_or(u32::MAX).min(BLOCKS_MAX * namespace.block_bytes);
    let (run_alignment_bytes, run_boundary_bytes, max_runs) = match facts.sgl {
        Sgl::None => (4, PAGE_BYTES, PRP_ENTRIES),
        Sgl::Bytes => (1, 1, SGL_DESCRIPTORS),
        Sgl::Words => (4, 1, SGL_DESCRIPTORS),
    };
    Geometry {
        // The size in bytes fits into 64 bits, so this does.
        sectors: namespace.blocks * u64::from(sectors_per_block),
        logical_block_bytes: namespace.block_bytes,
        physical_block_bytes: namespace.physical_block_bytes,
        read_only: namespace.write_protected,
        flush: facts.write_cache,
        write_through: facts.write_cache,
        discard: facts.deallocate,
        write_zeroes: facts.write_zeroes,
        max_discard_sectors: DISCARD_SECTORS_MAX,
        max_write_zeroes_sectors: max_zeroes_bytes / SECTOR_BYTES,
        run_alignment_bytes,
        run_boundary_bytes,
        // At most 512.
        max_runs: max_runs as u16,
        max_run_bytes: u32::MAX,
        max_transfer_bytes,
        queue_depth: depth,
        serial: facts.serial.clone(),
        name,
    }
}

#[cfg(test)]
impl<H: Hal, P: Port> Namespace<H, P> {
    /// Runs `look` on the controller.
    pub(super) fn with_controller<R>(&self, look: impl FnOnce(&mut Controller<H, P>) -> R) -> R {
        look(&mut self.controller.lock())
    }
}
