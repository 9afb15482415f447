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

/// The same with the registers that firmware sets up: PCIEXBAR and the PAM registers (82G33 datasheet, 5.1.14, 5.1.17).
/// The latter are storage: what they would switch to RAM is RAM.
pub fn host_bridge_for_firmware() -> ConfigSpace {
    let mut bridge = host_bridge();
    bridge.add_registers(PCIEXBAR, 8);
    bridge.add_registers(PAM, 7);
    bridge
}

/// The function at 00:1f.0 that goes with it: an ICH9 LPC bridge, where firmware says at which ports power management is
/// (PMBASE, ACPI_CNTL), how interrupt pins are routed (PIRQ) and where chipset registers are (RCBA; ICH9 datasheet, 13.1).
/// All of it is storage: the board's ports are where [`PMBASE`] is set to from the start.
pub fn lpc_bridge(power_ports: u16) -> ConfigSpace {
    const ACPI_CNTL: u16 = 0x44;
    const ACPI_EN: u32 = 1 << 7;
    const PIRQ_A: u16 = 0x60;
    const PIRQ_E: u16 = 0x68;
    const RCBA: u16 = 0xf0;
    const IS_PORT: u32 = 1;
    let mut bridge = ConfigSpace::new(&Identity {
        vendor: 0x8086,
        device: 0x2918,
        revision: 2,
        class: 0x06_0100,
        subsystem_vendor: 0,
        subsystem: 0,
    });
    for (offset, bytes) in [(PMBASE, 4), (ACPI_CNTL, 1), (PIRQ_A, 4), (PIRQ_E, 4), (RCBA, 4)] {
        bridge.add_registers(offset, bytes);
    }
    bridge.write(PMBASE, 4, u32::from(power_ports) | IS_PORT);
    bridge.write(ACPI_CNTL, 1, ACPI_EN);
    bridge
}

/// The window of memory-mapped configuration space that a host bridge was told to have: first address and bytes.
pub fn configured_ecam(bridge: &ConfigSpace) -> Option<(u64, u64)> {
    const ENABLE: u32 = 1;
    const BASE: u64 = 0xf_fc00_0000;
    let low = bridge.read(PCIEXBAR, 4);
    let register = u64::from(bridge.read(PCIEXBAR + 4, 4)) << 32 | u64::from(low);
    // 256, 128 or 64 buses of a mebibyte each; the fourth length is reserved.
    let bytes = (256_u64 << 20).checked_shr(low >> 1 & 3).filter(|_| low >> 1 & 3 != 3)?;
    (low & ENABLE != 0).then_some((register & BASE & !(bytes - 1), bytes))
}

/// Where the host bridge has its memory-mapped configuration space.
const PCIEXBAR: u16 = 0x60;
/// Its programmable attribute map.
const PAM: u16 = 0x90;
/// Where the LPC bridge has the ports of power management.
const PMBASE: u16 = 0x40;

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

    #[test]
    fn firmware_places_the_window() {
        let mut bridge = host_bridge_for_firmware();
        assert_eq!(configured_ecam(&bridge), None);
        assert_eq!(configured_ecam(&host_bridge()), None);
        bridge.write(0x60, 4, 0xb000_0001);
        assert_eq!(configured_ecam(&bridge), Some((0xb000_0000, 256 << 20)));
        bridge.write(0x60, 4, 0xb400_0005);
        bridge.write(0x64, 4, 0xffff_fff1);
        assert_eq!(configured_ecam(&bridge), Some((0x1_b400_0000, 64 << 20)));
        bridge.write(0x60, 4, 0xb000_0007);
        assert_eq!(configured_ecam(&bridge), None);
        bridge.write(0x90, 4, 0x3333_3333);
        assert_eq!(bridge.read(0x90, 4), 0x3333_3333);
    }

    #[test]
    fn the_lpc_bridge_says_where_power_management_is() {
        let mut bridge = lpc_bridge(0x600);
        assert_eq!((bridge.read(0, 4), bridge.read(0x40, 4), bridge.read(0x44, 1)), (0x2918_8086, 0x601, 0x80));
        bridge.write(0x60, 4, 0x0b0a_0b0a);
        assert_eq!((bridge.read(0x60, 4), bridge.read(0x64, 4)), (0x0b0a_0b0a, 0));
    }
}
