//! What the guest's firmware would have left in memory: the ACPI and SMBIOS tables that describe the board; and what the
//! host's own firmware says in tables that the host reads itself ([`spcr`]).
//!
//! [`write_acpi`] and [`write_smbios`] build the tables for a [`Board`] and copy them below 1 MiB, where [`layout`] says.
//! `machine` calls both before `loader` starts a guest and hands the RSDP's address on; a guest with a firmware of its own
//! gets the same tables by [`fw_cfg`], which [`describe`] fills. `chipset` and `pci` model the devices that the tables name. References: ACPI Specification 6.5, PCI Firmware Specification 3.3, DSP0134 3.7.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod acpi;
mod describe;
mod dsdt;
pub mod fw_cfg;
mod hotplug;
pub mod layout;
mod smbios;
pub mod spcr;
mod table_loader;
#[cfg(test)]
mod tests;

pub use acpi::write_acpi;
pub use describe::describe;
pub use smbios::write_smbios;

use addr::{Gpa, GpaRange};
use core::fmt;
use guestmem::Outside;

/// What the tables describe. The fixed hardware (ports, IOAPIC, interrupt numbers) is in [`layout`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Board {
    /// How many vCPUs there are; their APIC ids are 0 to `vcpus - 1`.
    pub vcpus: u32,
    /// Where bus 0's memory-mapped configuration space (1 MiB) lies, where there is one: [`layout::ECAM`].
    pub ecam: Option<Gpa>,
    /// The 32-bit window for BARs: [`layout::PCI_MEMORY`]. Where `ecam` lies inside, it is left out.
    pub pci_memory: GpaRange,
    /// The window for 64-bit BARs above all memory, where there is one.
    pub pci_memory64: Option<GpaRange>,
    /// Whether a keyboard sits behind the i8042: then it is named, and Linux probes ports 0x60 and 0x64 while it boots.
    /// Reset by port 0x64 works either way.
    pub keyboard: bool,
    /// The PCI device numbers, a bit each, whose devices come and go while the guest runs.
    pub hotplug: u32,
}

/// Why the tables could not be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The guest has no memory where the tables go.
    NoMemory(Outside),
    /// The tables of so many vCPUs do not fit, or there is none.
    Vcpus {
        /// The most that fit.
        max: u32,
    },
    /// A window or the ECAM is empty, misplaced, or wider than the tables can say; the text names it.
    Window(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory(Outside { at }) => {
                write!(out, "the guest has no memory at {at} for its firmware tables: give it at least 2 MiB")
            }
            Self::Vcpus { max } => write!(out, "a guest has 1 to {max} vCPUs: change their number"),
            Self::Window(which) => write!(out, "the board's {which} cannot be described: change its place or size"),
        }
    }
}

impl From<Outside> for Error {
    fn from(outside: Outside) -> Self {
        Self::NoMemory(outside)
    }
}
