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
use acpi::rsdp::Rsdp;
use acpi::sdt::{SdtHeader, Signature};
use acpi::spcr::Spcr;
use acpi::{AcpiHandler, AcpiTable, AcpiTables, PhysicalMapping};
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
    /// The table that says where the firmware's console is.
    pub console_table: Option<&'static [u8]>,
    /// What could not be read.
    pub notes: Vec<&'static str>,
    /// Nobody but the firmware says where IOMMUs are: not to be set from outside.
    iommus: Option<&'static [u8]>,
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

/// The first inputs are those of the ISA interrupts, but for overrides.
const ISA_INTERRUPTS: u32 = 16;
/// No table is longer.
const TABLE_BYTES_MAX: usize = 16 << 20;
const HEADER_BYTES: usize = size_of::<SdtHeader>();

/// What stands where no table can be: nothing that has a table's signature.
static NOTHING: [u64; 512] = [0; 512];

/// Physical memory is mapped at its own addresses.
#[derive(Clone)]
struct IdentityMap;

impl AcpiHandler for IdentityMap {
    unsafe fn map_physical_region<T>(&self, physical_address: usize, size: usize) -> PhysicalMapping<Self, T> {
        let readable = can_read(physical_address, size) && (size != HEADER_BYTES || has_sane_length(physical_address));
        assert!(readable || size <= size_of_val(&NOTHING), "a table's header vouches for its length");
        let at = if readable { physical_address as *mut T } else { (&raw const NOTHING).cast_mut().cast() };
        let start = NonNull::new(at).unwrap_or(NonNull::dangling());
        // SAFETY: `size` bytes from there can be read, and the crate only reads.
        unsafe { PhysicalMapping::new(physical_address, start, size, size, self.clone()) }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}

/// Maps `size` bytes of the firmware's; says whether there can be any.
fn can_read(address: usize, size: usize) -> bool {
    size <= TABLE_BYTES_MAX && memory::map_firmware(Hpa::new(address as u64), size as u64)
}

/// Whether the table whose header is at `address` can be as long as it says. The crate asks for the header alone first.
fn has_sane_length(address: usize) -> bool {
    // SAFETY: a header's bytes, which `can_read` mapped.
    let [signature, length] = unsafe { (address as *const [u32; 2]).read_unaligned() };
    // The root pointer is as long as a header, and holds the rest of its signature there.
    let is_root_pointer = signature.to_le_bytes() == *b"RSD ";
    is_root_pointer || length as usize >= HEADER_BYTES && can_read(address, length as usize)
}

/// The ACPI root pointer's address: what the boot loader passed, or where the BIOS's memory holds one.
///
/// Called while the first page can still be read.
pub fn find_rsdp(passed: Option<u64>) -> Option<u64> {
    // SAFETY: without a pointer from its loader the machine was started by a BIOS.
    let search = || unsafe { Rsdp::search_for_on_bios(IdentityMap) };
    passed.or_else(|| search().ok().map(|rsdp| rsdp.physical_start() as u64))
}

impl Platform {
    /// Reads the tables behind the root pointer. Called with the host's own page tables, which can map all of them.
    pub fn read(rsdp: Option<u64>) -> Self {
        let mut platform = Self::default();
        // SAFETY: the pointer is the boot loader's or has a root pointer's signature and checksum.
        let tables = rsdp.and_then(|address| unsafe { AcpiTables::from_rsdp(IdentityMap, address as usize) }.ok());
        let Some(tables) = tables else {
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
        platform.console_table = whole::<Spcr>(&tables);
        platform.iommus = whole::<Dmar>(&tables).or_else(|| whole::<Ivrs>(&tables));
        platform
    }

    /// The firmware's table of the IOMMUs, from its header on: DMAR or IVRS.
    pub fn iommus(&self) -> Option<&'static [u8]> {
        self.iommus
    }

    /// The input of an ISA interrupt: I/O APIC, global system interrupt, and how it is signalled.
    pub fn isa_input(&self, irq: u8) -> Option<(IoApic, Override)> {
        let own = Override { irq, gsi: irq.into(), level: false, active_low: false };
        let place = self.overrides.iter().find(|place| place.irq == irq).copied().unwrap_or(own);
        let takes = |apic: &&IoApic| apic.first_gsi <= place.gsi && place.gsi < apic.first_gsi + apic.inputs();
        Some((*self.io_apics.iter().find(takes)?, place))
    }

    /// The inputs where a PCI device's interrupt line may end, as they are signalled then: those past the ISA interrupts,
    /// and of these the ones that firmware calls levels (PCI Local Bus Specification 3.0, section 2.2.6; ACPI 6.5,
    /// section 5.2.12.5).
    pub fn line_inputs(&self) -> impl Iterator<Item = (IoApic, Override)> {
        let all = self.io_apics.iter().flat_map(|apic| {
            let inputs = apic.first_gsi..apic.first_gsi.saturating_add(apic.inputs());
            inputs.map(|gsi| (*apic, gsi))
        });
        let signalled = |gsi: u32| {
            let own = Override { irq: 0, gsi, level: gsi >= ISA_INTERRUPTS, active_low: true };
            self.overrides.iter().find(|place| place.gsi == gsi).copied().unwrap_or(own)
        };
        let levels = all.map(move |(apic, gsi)| (apic, signalled(gsi))).filter(|(_, input)| input.level);
        let (own, isa): (Vec<_>, Vec<_>) = levels.partition(|(_, input)| input.gsi >= ISA_INTERRUPTS);
        own.into_iter().chain(isa)
    }

    fn read_madt(&mut self, madt: Pin<&Madt>) {
        const ENABLED: u32 = 1;
        for entry in madt.entries() {
            match entry {
                MadtEntry::LocalApic(entry) if entry.flags & ENABLED != 0 => self.add_cpu(entry.apic_id.into()),
                MadtEntry::LocalX2Apic(entry) if entry.flags & ENABLED != 0 => self.add_cpu(entry.x2apic_id),
                MadtEntry::IoApic(entry) => self.io_apics.push(IoApic {
                    id: entry.io_apic_id,
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

    /// Adds a processor, once: firmware may list it as both kinds.
    fn add_cpu(&mut self, apic_id: u32) {
        if !self.cpus.contains(&apic_id) {
            self.cpus.push(apic_id);
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
        let aml = tables.dsdt().ok().filter(|table| can_read(table.address, table.length as usize)).map(|table| {
            // SAFETY: the table was found and checked by the crate, and its bytes can be read.
            unsafe { core::slice::from_raw_parts(table.address as *const u8, table.length as usize) }
        });
        self.power_off = control.zip(aml.and_then(power::sleep_type_off)).map(|(port, kind)| (port, power::off(kind)));
    }
}

/// Intel's table of IOMMUs, and AMD's: of interest to the `iommu` crate, which reads them.
#[repr(transparent)]
struct Dmar(SdtHeader);
#[repr(transparent)]
struct Ivrs(SdtHeader);

// SAFETY: the type is a table's header, and the signature the table's.
unsafe impl AcpiTable for Dmar {
    const SIGNATURE: Signature = Signature::DMAR;

    fn header(&self) -> &SdtHeader {
        &self.0
    }
}

// SAFETY: as above.
unsafe impl AcpiTable for Ivrs {
    const SIGNATURE: Signature = Signature::IVRS;

    fn header(&self) -> &SdtHeader {
        &self.0
    }
}

/// All bytes of a table, if there is one.
fn whole<T: AcpiTable>(tables: &AcpiTables<IdentityMap>) -> Option<&'static [u8]> {
    let table = tables.find_table::<T>().ok()?;
    let (start, bytes) = (table.physical_start(), table.region_length());
    // SAFETY: the crate found and checked the table, mapping all of its bytes, which stay mapped and do not change.
    can_read(start, bytes).then(|| unsafe { core::slice::from_raw_parts(start as *const u8, bytes) })
}
