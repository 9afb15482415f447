//! The PCI a guest sees: configuration space of one function, MSI-X, and the two ways to address them.
//!
//! [`ConfigSpace`] is a type-0 function with its BARs and capabilities, [`MsiX`] its message table; [`ConfigPort`] and
//! [`ecam`] turn port and memory accesses into a [`Bdf`] and a register. `virtio` builds its functions on these,
//! `machine` owns the bus. Sections are those of the PCI Local Bus Specification 3.0 unless "PCIe" (PCI Express Base
//! Specification 4.0) is said.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod access;
mod config_space;
mod msix;
pub mod saved;

pub use access::{Bdf, ConfigPort, ecam};
pub use config_space::{BarKind, Change, ConfigSpace, DecodedBar, Identity, MsixControl};
pub use msix::{MSIX_ENTRY_BYTES, Msi, MsiX};

/// Capability identifier of a vendor-specific capability (appendix H).
pub const CAPABILITY_VENDOR: u8 = 0x09;
/// Capability identifier of MSI-X (appendix H).
pub const CAPABILITY_MSIX: u8 = 0x11;

/// The function at 00:00.0: an Intel 82G33 host bridge (8086:29c0) without BARs or capabilities.
///
/// Linux finds the bus by looking for a host bridge there (class 06 00 00); this identity belongs to a chipset with
/// memory-mapped configuration and has no Linux quirk attached.
pub fn host_bridge() -> ConfigSpace {
    ConfigSpace::new(&Identity {
        vendor: 0x8086,
        device: 0x29c0,
        revision: 2,
        class: 0x06_0000,
        subsystem_vendor: 0,
        subsystem: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_bridge_is_found_and_has_nothing_to_size() {
        let mut bridge = host_bridge();
        assert_eq!(bridge.read(0, 4), 0x29c0_8086);
        assert_eq!(bridge.read(8, 4), 0x0600_0002);
        for register in (0x10..0x28).step_by(4) {
            assert_eq!(bridge.write(register, 4, u32::MAX), Change::default());
            assert_eq!(bridge.read(register, 4), 0);
        }
        assert_eq!(bridge.read(0x34, 1), 0);
    }
}
