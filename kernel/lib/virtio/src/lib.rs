//! Virtio devices as a guest sees them: split queues, the PCI transport, and the block, net, console, rng and balloon devices.
//!
//! [`Function`] is one virtio PCI function around a [`Device`]; accesses to its registers and the work of its device
//! go in, [`Signal`]s come out. `machine` decodes exits into its methods and joins the devices to disks and networks;
//! it never blocks, waits or reads a clock. Sections are those of the OASIS Virtio specification 1.2 unless said
//! otherwise; only the modern interface (VIRTIO_F_VERSION_1) and split queues exist.
//!
//! # The life of a batch
//! A kick gives [`Signal::Kicked`]. The owner then takes work until there is none (which asks the driver for the next
//! kick), completes it in any order and as late as it likes, and ends each batch with the device's notify method:
//! the driver sees nothing of the batch before that call, and gets at most one interrupt from it.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod balloon;
pub mod blk;
mod chain;
mod common_configuration;
pub mod console;
mod function;
pub mod net;
mod queue;
pub mod rng;
pub mod saved;
#[cfg(test)]
mod testing;
mod transport;

pub use balloon::Balloon;
pub use blk::Blk;
pub use chain::Piece;
pub use console::Console;
pub use function::{Function, IO_BAR_BYTES, MMIO_BAR_BYTES};
pub use net::Net;
pub use rng::Rng;

/// Descriptors may refer to tables of descriptors (2.7.5.3).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Both sides say at which index they want the next notification (2.7.10).
pub const F_EVENT_IDX: u64 = 1 << 29;
/// The modern interface (6.1). Never refused, always required.
pub const F_VERSION_1: u64 = 1 << 32;

/// What the owner of a function must do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// Deliver this message to the guest's interrupt controllers.
    Msi(pci::Msi),
    /// The function's interrupt pin is now asserted (true) or not.
    Line(bool),
    /// The driver put work on this queue: take it.
    Kicked(u16),
    /// The driver reset the device: forget what is in flight. If the host may still write to guest memory for it,
    /// call [`Function::hold_reset`] at once and [`Function::finish_reset`] when the last such access is over.
    Reset,
}

/// What the transport needs to know of a device.
pub trait Device {
    /// The virtio device identifier (chapter 5).
    const TYPE: u16;
    /// The PCI class code: base class, subclass, programming interface.
    const CLASS: u32;
    /// How many bytes of device configuration there are; 0 for none.
    const CONFIG_BYTES: u32;

    /// The largest size of each queue, powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// The device's own features; the transport adds those of chapter 6.
    fn features(&self) -> u64;
    /// Whether the device can work with this subset of what it offers: the dependencies between features hold.
    fn accepts(&self, _features: u64) -> bool {
        true
    }
    /// The driver settled on these features (chapter 6 ones included).
    fn set_driver_features(&mut self, features: u64);
    /// Reads configuration at `offset`; bytes past the end are left as they are (zero).
    fn config_read(&self, offset: u32, into: &mut [u8]);
    /// Writes configuration at `offset`. Most devices have none that is writable.
    fn config_write(&mut self, _offset: u32, _from: &[u8]) {}
    /// Back to the state before the driver came.
    fn reset(&mut self);
}

/// Copies what `image` has from `offset` on; the rest of `into` stays.
fn copy_from_image(image: &[u8], offset: u32, into: &mut [u8]) {
    let tail = image.get(offset as usize..).unwrap_or_default();
    let bytes = tail.len().min(into.len());
    into[..bytes].copy_from_slice(&tail[..bytes]);
}
