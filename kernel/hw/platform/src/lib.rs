//! What the firmware's ACPI tables say about this machine, its reference timer, and turning it off.
//!
//! [`Platform::read`] walks the tables once at start-up through the `acpi` crate (ACPI 6.5, chapter 5). A table that is
//! missing or malformed costs what it would have told, with a note, never the start.
#![no_std]
#![expect(unsafe_code, reason = "maps firmware tables and touches the chipset's ports")]

extern crate alloc;

mod clock;
mod power;
mod wall;

pub use clock::tsc_khz;
pub use power::{power_off, reset};
pub use wall::wall_unix_s;

use acpi::fadt::Fadt;
use acpi::madt::{Madt, MadtEntry};
use acpi::{AcpiHandler, AcpiTables, PhysicalMapping};
use addr::Hpa;
use alloc::vec::Vec;
use core::pin::Pin;
use core::ptr::NonNull;
use interrupts::ioapic::IoApic;

/// This machine, as its firmware describes it.
#[derive(Default)]
pub struct Platform {
    /// APIC IDs of the processors that can be used.
    pub cpus: Vec<u32>,
    /// The I/O APICs.
    pub io_apics: Vec<IoApic>,
    /// Where ISA interrupts go when not to the input of their own number.
    pub overrides: Vec<Override>,
    /// The power management timer's port.
    pub pm_timer: Option<u16>,
    /// The port of the register that turns the machine off, with the value that does.
    pub power_off: Option<(u16, u16)>,
    /// The port and value that reset the machine.
    pub reset: Option<(u16, u8)>,
    /// What could not be read.
    pub notes: Vec<&'static str>,
}

/// Another place for an ISA interrupt.
#[derive(Clone, Copy, Debug)]
pub struct Override {
    /// The ISA interrupt.
    pub irq: u8,
    /// The global system interrupt.
    pub gsi: u32,
    /// Whether it is signalled by a level.
    pub level: bool,
    /// Whether the low level signals.
    pub active_low: bool,
}

/// Physical memory is mapped at its own addresses.
#[derive(Clone)]
struct IdentityMap;

impl AcpiHandler for IdentityMap {
    unsafe fn map_physical_region<T>(&self, physical_address: usize, size: usize) -> PhysicalMapping<Self, T> {
        let start = NonNull::new(physical_address as *mut T).unwrap_or(NonNull::dangling());
        // SAFETY: the caller names a table, and everything below 4 GiB and all RAM is mapped at its own address.
        unsafe { PhysicalMapping::new(physical_address, start, size, size, self.clone()) }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}

impl Platform {
    /// Reads the tables behind `rsdp`, or behind the root pointer in the BIOS's memory.
    pub fn read(rsdp: Option<u64>) -> Self {
        let mut platform = Self::default();
        // SAFETY: the boot loader passed the pointer; without one the machine was started by a BIOS.
        let tables = unsafe {
            match rsdp {
                Some(address) => AcpiTables::from_rsdp(IdentityMap, address as usize),
                None => AcpiTables::search_for_rsdp_bios(IdentityMap),
            }
        };
        let Ok(tables) = tables else {
            platform.notes.push("no ACPI tables: one processor, no power-off");
            return platform;
        };
        match tables.find_table::<Madt>() {
            Ok(madt) => platform.read_madt(madt.get()),
            Err(_) => platform.notes.push("no MADT: one processor, polled serial line"),
        }
        match tables.find_table::<Fadt>() {
            Ok(fadt) => platform.read_fadt(&fadt, &tables),
            Err(_) => platform.notes.push("no FADT: no power-off, clock from the PIT"),
        }
        platform
    }

    /// The input of an ISA interrupt: I/O APIC, global system interrupt, and how it is signalled.
    pub fn isa_input(&self, irq: u8) -> Option<(IoApic, Override)> {
        let own = Override { irq, gsi: irq.into(), level: false, active_low: false };
        let place = self.overrides.iter().find(|place| place.irq == irq).copied().unwrap_or(own);
        let takes = |apic: &&IoApic| apic.first_gsi <= place.gsi && place.gsi < apic.first_gsi + apic.inputs();
        Some((*self.io_apics.iter().find(takes)?, place))
    }

    fn read_madt(&mut self, madt: Pin<&Madt>) {
        const ENABLED: u32 = 1;
        for entry in madt.entries() {
            match entry {
                MadtEntry::LocalApic(entry) if entry.flags & ENABLED != 0 => self.cpus.push(entry.apic_id.into()),
                MadtEntry::LocalX2Apic(entry) if entry.flags & ENABLED != 0 => self.cpus.push(entry.x2apic_id),
                MadtEntry::IoApic(entry) => self.io_apics.push(IoApic {
                    base: Hpa::new(entry.io_apic_address.into()),
                    first_gsi: entry.global_system_interrupt_base,
                }),
                MadtEntry::InterruptSourceOverride(entry) => self.overrides.push(Override {
                    irq: entry.irq,
                    gsi: entry.global_system_interrupt,
                    level: entry.flags >> 2 & 3 == 3,
                    active_low: entry.flags & 3 == 3,
                }),
                _ => {}
            }
        }
    }

    fn read_fadt(&mut self, fadt: &Fadt, tables: &AcpiTables<IdentityMap>) {
        let port = |address: acpi::address::GenericAddress| {
            (address.address_space == acpi::address::AddressSpace::SystemIo).then_some(address.address as u16)
        };
        self.pm_timer = fadt.pm_timer_block().ok().flatten().and_then(port);
        let flags = fadt.flags;
        if flags.supports_system_reset_via_fadt() {
            self.reset = fadt.reset_register().ok().and_then(port).map(|port| (port, fadt.reset_value));
        }
        let control = fadt.pm1a_control_block().ok().and_then(port);
        let aml = tables.dsdt().ok().map(|table| {
            // SAFETY: the table was found and checked by the crate.
            unsafe { core::slice::from_raw_parts(table.address as *const u8, table.length as usize) }
        });
        self.power_off = control.zip(aml.and_then(power::sleep_type_off)).map(|(port, kind)| (port, power::off(kind)));
    }
}
