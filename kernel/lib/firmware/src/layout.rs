//! Where the board has what: the one list of fixed addresses, ports and interrupt numbers that the tables state.
//!
//! `machine` places its device models by these constants, so that the tables cannot disagree with them. Memory is RAM
//! from 0 to 640 KiB and from 1 MiB on; between them lie the tables. RAM that does not fit below [`PCI_MEMORY`] goes
//! on at 4 GiB.

use addr::{Gpa, GpaRange};

const fn range(start: u64, bytes: u64) -> GpaRange {
    match GpaRange::new(Gpa::new(start), bytes) {
        Some(range) => range,
        None => panic!("a constant range does not wrap"),
    }
}

/// The ACPI tables; the RSDP is at the start, on a paragraph, where a guest's scan finds it (ACPI 6.5, 5.2.5.1).
pub const ACPI_TABLES: GpaRange = range(0xe_0000, 0x1_0000);
/// The SMBIOS entry point, at the start, and structures (DSP0134 3.7, 5.2.2).
pub const SMBIOS_TABLES: GpaRange = range(0xf_0000, 0x1_0000);

/// Where memory below 4 GiB ends at the latest.
pub const LOW_MEMORY_END: Gpa = Gpa::new(0xc000_0000);
/// The same for a guest with a firmware of its own: OVMF puts its memory-mapped configuration space (256 MiB) here, or
/// higher, without asking.
pub const LOW_MEMORY_END_FIRMWARE: Gpa = Gpa::new(0xb000_0000);
/// Where the firmware's flash ends: the reset vector is right below.
pub const FLASH_END: Gpa = Gpa::new(1 << 32);
/// The window for 32-bit BARs, 3 GiB up to the IOAPIC.
pub const PCI_MEMORY: GpaRange = range(0xc000_0000, 0x3ec0_0000);
/// Bus 0's memory-mapped configuration space, inside [`PCI_MEMORY`] and left out of it in the tables.
pub const ECAM: GpaRange = range(0xe000_0000, 0x10_0000);
/// The IOAPIC's registers.
pub const IOAPIC: Gpa = Gpa::new(0xfec0_0000);
/// The local APICs' registers.
pub const LOCAL_APIC: Gpa = Gpa::new(0xfee0_0000);

/// PM1a event block: status (2 bytes), enable (2 bytes).
pub const PM1_EVENT_PORT: u16 = 0x600;
/// PM1a control (2 bytes).
pub const PM1_CONTROL_PORT: u16 = 0x604;
/// The power-management timer (4 bytes, 24 bits count).
pub const PM_TIMER_PORT: u16 = 0x608;
/// The block of general-purpose events: status (2 bytes), enable (2 bytes).
pub const GPE0_PORT: u16 = 0x620;
/// Hotplug: devices that came, that are asked to leave, whether any vanished, and what the guest lets go of, 4 bytes each.
pub const HOTPLUG_PORT: u16 = 0x630;
/// The SLP_TYP that means soft off.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// The reset control register, and what resets when written there.
pub const RESET_PORT: u16 = 0xcf9;
/// The value that resets when written to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 6;
/// The system control interrupt's GSI, level-triggered and active high.
pub const SCI_GSI: u32 = 9;
/// The CMOS byte that holds the century.
pub const CENTURY_INDEX: u8 = 0x32;
/// The PIT's GSI: ISA interrupt 0 arrives at the IOAPIC's pin 2.
pub const PIT_GSI: u32 = 2;
/// COM1's first port (of 8) and its ISA interrupt.
pub const COM1_PORT: u16 = 0x3f8;
/// COM1's ISA interrupt and GSI.
pub const COM1_GSI: u32 = 4;

/// The GSI, level-triggered, of a PCI device's interrupt pin: `pin` is 0 for INTA to 3 for INTD.
pub const fn pci_gsi(device: u8, pin: u8) -> u32 {
    16 + (device as u32 + pin as u32) % 8
}
