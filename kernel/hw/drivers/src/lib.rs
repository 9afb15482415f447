//! Drivers of the host's own devices: serial port, PCI, disks and network cards.
//!
//! The main entry is [`probe`], which turns a PCI [`pci::Function`] into a [`block::Disk`] or a [`switch::Nic`], or says
//! why it cannot. The kernel calls it at start-up, reads partition tables with [`read_partitions`], and from then on
//! sees the traits only. Memory and mappings come from the caller's `H: virtio_drivers::Hal`.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod ahci;
mod ata;
mod dma;
#[cfg(any(test, feature = "heap"))]
pub mod heap;
pub mod ide;
pub mod intel_nic;
mod mmio;
pub mod nvme;
mod partitions;
pub mod pci;
mod probe;
pub mod screen;
pub mod uart;
mod virtio;
mod virtio_blk;
mod virtio_net;

pub use partitions::read_partitions;
pub use probe::{Interrupts, Probed, probe};
