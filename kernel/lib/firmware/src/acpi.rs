//! The static ACPI tables (ACPI Specification 6.5, section 5.2) and where they go.
//!
//! [`Image`] has the tables one after another, linked by address: [`write_acpi`] puts them into memory, and
//! `table_loader` tells a firmware how to. `dsdt` makes the one in AML. The structures that `acpi_tables` lacks (x2APIC,
//! source override, NMI, WAET) are here.

use crate::layout;
use crate::{Board, Error, dsdt};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::{Aml, facs::FACS, mcfg::MCFG, rsdp::Rsdp, sdt::Sdt, xsdt::XSDT};
use addr::Gpa;
use alloc::vec::Vec;
use guestmem::GuestMemory;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

const OEM_ID: [u8; 6] = *b"POLLUX";
const OEM_TABLE_ID: [u8; 8] = *b"POLLUXVM";
const OEM_REVISION: u32 = 1;

/// So many vCPUs' MADT entries and processor devices fit [`layout::ACPI_TABLES`]; the tests write that many.
const VCPUS_MAX: u32 = 1024;
/// Processors with a larger APIC id need x2APIC structures (5.2.12.12); id 255 is the broadcast of a local APIC.
const XAPIC_ID_MAX: u32 = 254;

/// The RSDP's place in front of the tables, where both lie in memory.
const RSDP_ROOM_BYTES: u64 = 64;
/// Where a table has its checksum (5.2.6).
const CHECKSUM_OFFSET: usize = 9;

/// Writes RSDP, XSDT, FADT, FACS, DSDT, MADT, WAET and, with an ECAM, MCFG, and returns the RSDP's address.
///
/// A vCPU's processor UID equals its APIC id. Nothing outside [`layout::ACPI_TABLES`] is written.
///
/// # Errors
/// Where the guest has no memory there, or the board cannot be described.
pub fn write_acpi(memory: &GuestMemory, board: &Board) -> Result<Gpa, Error> {
    let root = layout::ACPI_TABLES.start();
    let tables_at = root.wrapping_add(RSDP_ROOM_BYTES);
    let image = Image::new(board, tables_at)?;
    let end = tables_at.wrapping_add(image.tables.len() as u64);
    assert!(end <= layout::ACPI_TABLES.end(), "the tables of {VCPUS_MAX} vCPUs fit");
    memory.write(tables_at, &image.tables)?;
    memory.write(root, &image.rsdp)?;
    Ok(root)
}

/// The tables as bytes that are right at one place, and what changes at another.
pub struct Image {
    /// The root pointer, which leads to [`xsdt`](Self::xsdt).
    pub rsdp: Vec<u8>,
    /// All others, one after another.
    pub tables: Vec<u8>,
    /// Where in `tables` the XSDT begins.
    pub xsdt: u32,
    /// Where in `tables` addresses of tables stand, and how many bytes each has.
    pub links: Vec<(u32, u8)>,
    /// The tables in which those stand: where each begins, and its length.
    pub linked: Vec<(u32, u32)>,
    base: Gpa,
}

impl Image {
    /// The address of the XSDT in the RSDP (5.2.5.3).
    pub const RSDP_XSDT_OFFSET: u32 = 24;
    /// The RSDP's two checksums: where each stands, and how many bytes from the start on it covers.
    pub const RSDP_CHECKSUMS: [(u32, u32); 2] = [(8, 20), (32, 36)];

    /// The tables of a board, made for `base`, which is aligned as a FACS must be.
    pub fn new(board: &Board, base: Gpa) -> Result<Self, Error> {
        if board.vcpus == 0 || board.vcpus > VCPUS_MAX {
            return Err(Error::Vcpus { max: VCPUS_MAX });
        }
        let mut image =
            Self { rsdp: Vec::new(), tables: Vec::new(), xsdt: 0, links: Vec::new(), linked: Vec::new(), base };
        let facs = image.place(&bytes(&FACS::new()));
        let dsdt = image.place(&table(*b"DSDT", 2, &dsdt::aml(board)?));
        let mut tables = Vec::from([image.place_linked(&bytes(&fadt(board, facs, dsdt)), &FADT_LINKS)]);
        tables.push(image.place(&madt(board.vcpus)));
        tables.push(image.place(&waet()));
        if let Some(ecam) = board.ecam {
            let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
            mcfg.add_ecam(ecam.as_u64(), 0, 0, 0);
            tables.push(image.place(&bytes(&mcfg)));
        }
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        tables.iter().for_each(|table| xsdt.add_entry(table.as_u64()));
        let links: Vec<(u32, u8)> = (0..tables.len() as u32).map(|entry| (HEADER_BYTES + 8 * entry, 8)).collect();
        let xsdt = image.place_linked(&bytes(&xsdt), &links);
        image.xsdt = (xsdt.as_u64() - base.as_u64()) as u32;
        image.rsdp = bytes(&Rsdp::new(OEM_ID, xsdt.as_u64()));
        Ok(image)
    }

    /// Clears the checksums that depend on the place, for who moves the tables to sum up anew; says where each stands.
    pub fn clear_checksums(&mut self) -> Vec<u32> {
        Self::RSDP_CHECKSUMS.iter().for_each(|&(at, _)| self.rsdp[at as usize] = 0);
        let places = self.linked.iter().map(|&(start, _)| start + CHECKSUM_OFFSET as u32);
        let places: Vec<u32> = places.collect();
        places.iter().for_each(|&at| self.tables[at as usize] = 0);
        places
    }

    /// Appends a table; returns its address.
    fn place(&mut self, table: &[u8]) -> Gpa {
        // A FACS must be aligned so (5.2.10); for the others it does no harm.
        const ALIGNMENT: usize = 64;
        self.tables.resize(self.tables.len().next_multiple_of(ALIGNMENT), 0);
        let start = self.base.wrapping_add(self.tables.len() as u64);
        self.tables.extend_from_slice(table);
        start
    }

    /// The same for a table with addresses of others at `links`.
    fn place_linked(&mut self, table: &[u8], links: &[(u32, u8)]) -> Gpa {
        let address = self.place(table);
        let start = (address.as_u64() - self.base.as_u64()) as u32;
        self.links.extend(links.iter().map(|&(offset, bytes)| (start + offset, bytes)));
        self.linked.push((start, table.len() as u32));
        address
    }
}

/// Where the FADT has addresses of tables: FIRMWARE_CTRL, DSDT, X_DSDT (5.2.9).
const FADT_LINKS: [(u32, u8); 3] = [(36, 4), (40, 4), (140, 8)];
const HEADER_BYTES: u32 = 36;

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A table of a header and `body`, its length and checksum set.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(signature, HEADER_BYTES, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}

/// The fixed hardware (5.2.9): never in SMI's hands (SMI_CMD 0), so ACPI mode is on from the start.
fn fadt(board: &Board, facs: Gpa, dsdt: Gpa) -> impl Aml + use<> {
    const EVENT_BYTES: u8 = 4;
    const CONTROL_BYTES: u8 = 2;
    const TIMER_BYTES: u8 = 4;
    const EVENTS_BYTES: u8 = 4;
    // Latencies above the bounds of 5.2.9 say that C2 and C3 are not there.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .firmware_ctrl_32(facs.as_u64() as u32)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // Set means: no fixed sleep button. The power button's bit stays clear: it is a fixed one.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.dsdt = (dsdt.as_u64() as u32).into();
    fadt.x_dsdt = dsdt.as_u64().into();
    fadt.sci_int = (layout::SCI_GSI as u16).into();
    fadt.pm1a_evt_blk = u32::from(layout::PM1_EVENT_PORT).into();
    fadt.pm1a_cnt_blk = u32::from(layout::PM1_CONTROL_PORT).into();
    fadt.pm_tmr_blk = u32::from(layout::PM_TIMER_PORT).into();
    fadt.gpe0_blk = u32::from(layout::GPE0_PORT).into();
    fadt.gpe0_blk_len = EVENTS_BYTES;
    fadt.pm1_evt_len = EVENT_BYTES;
    fadt.pm1_cnt_len = CONTROL_BYTES;
    fadt.pm_tmr_len = TIMER_BYTES;
    fadt.x_pm1a_evt_blk = port(layout::PM1_EVENT_PORT, EVENT_BYTES, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(layout::PM1_CONTROL_PORT, CONTROL_BYTES, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = port(layout::PM_TIMER_PORT, TIMER_BYTES, AccessSize::DwordAccess);
    fadt.x_gpe0_blk = port(layout::GPE0_PORT, EVENTS_BYTES, AccessSize::ByteAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = layout::CENTURY_INDEX;
    fadt.iapc_boot_arch = boot_architecture(board.keyboard).into();
    fadt.reset_reg = port(layout::RESET_PORT, 1, AccessSize::ByteAccess);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.finalize()
}

/// IAPC_BOOT_ARCH (table 5.11). MSI is supported, a CMOS RTC is there: their "not" bits stay clear.
const fn boot_architecture(keyboard: bool) -> u16 {
    const LEGACY_DEVICES: u16 = 1 << 0;
    const KEYBOARD_CONTROLLER: u16 = 1 << 1;
    const NO_VGA: u16 = 1 << 2;
    const NO_ASPM: u16 = 1 << 4;
    LEGACY_DEVICES | NO_VGA | NO_ASPM | if keyboard { KEYBOARD_CONTROLLER } else { 0 }
}

fn port(port: u16, length_bytes: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, length_bytes * 8, 0, access, u64::from(port))
}

/// MADT: processors, the IOAPIC, where ISA interrupts differ, and who gets NMIs (5.2.12).
fn madt(vcpus: u32) -> Vec<u8> {
    const REVISION: u8 = 6;
    /// There are two 8259s as well, to be masked.
    const PCAT_COMPAT: u32 = 1;
    let mut body = Vec::new();
    body.extend_from_slice(&(layout::LOCAL_APIC.as_u64() as u32).to_le_bytes());
    body.extend_from_slice(&PCAT_COMPAT.to_le_bytes());
    for id in 0..vcpus {
        if id <= XAPIC_ID_MAX {
            body.extend_from_slice(ProcessorLocalApic::new(id as u8, id as u8, EnabledStatus::Enabled).as_bytes());
        } else {
            body.extend_from_slice(LocalX2Apic::new(id).as_bytes());
        }
    }
    body.extend_from_slice(IoApic::new(0, layout::IOAPIC.as_u64() as u32, 0).as_bytes());
    body.extend_from_slice(SourceOverride::new(0, layout::PIT_GSI, CONFORMS).as_bytes());
    body.extend_from_slice(SourceOverride::new(layout::SCI_GSI as u8, layout::SCI_GSI, LEVEL_HIGH).as_bytes());
    body.extend_from_slice(LocalApicNmi::ON_ALL.as_bytes());
    if vcpus > XAPIC_ID_MAX + 1 {
        body.extend_from_slice(LocalX2ApicNmi::ON_ALL.as_bytes());
    }
    table(*b"APIC", REVISION, &body)
}

/// MPS INTI flags (table 5.26): as the bus does, edge and active high for ISA.
const CONFORMS: u16 = 0;
/// MPS INTI flags (table 5.26): level-triggered (3) and active high (1).
const LEVEL_HIGH: u16 = 3 << 2 | 1;
/// The local APIC pin of NMIs.
const NMI_PIN: u8 = 1;

/// Processor Local x2APIC structure (5.2.12.12).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct LocalX2Apic {
    kind: u8,
    length: u8,
    reserved: U16,
    apic_id: U32,
    flags: U32,
    processor_uid: U32,
}

impl LocalX2Apic {
    fn new(id: u32) -> Self {
        const ENABLED: u32 = 1;
        let (apic_id, processor_uid) = (id.into(), id.into());
        Self { kind: 9, length: 16, reserved: 0.into(), apic_id, flags: ENABLED.into(), processor_uid }
    }
}

/// Interrupt Source Override structure (5.2.12.5).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct SourceOverride {
    kind: u8,
    length: u8,
    bus: u8,
    source: u8,
    gsi: U32,
    flags: U16,
}

impl SourceOverride {
    fn new(source: u8, gsi: u32, flags: u16) -> Self {
        Self { kind: 2, length: 10, bus: 0, source, gsi: gsi.into(), flags: flags.into() }
    }
}

/// Local APIC NMI structure (5.2.12.7).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct LocalApicNmi {
    kind: u8,
    length: u8,
    processor_uid: u8,
    flags: U16,
    pin: u8,
}

impl LocalApicNmi {
    const ON_ALL: Self = Self { kind: 4, length: 6, processor_uid: 0xff, flags: U16::new(CONFORMS), pin: NMI_PIN };
}

/// Local x2APIC NMI structure (5.2.12.13).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct LocalX2ApicNmi {
    kind: u8,
    length: u8,
    flags: U16,
    processor_uid: U32,
    pin: u8,
    reserved: [u8; 3],
}

impl LocalX2ApicNmi {
    const ON_ALL: Self = Self {
        kind: 0xa,
        length: 12,
        flags: U16::new(CONFORMS),
        processor_uid: U32::new(u32::MAX),
        pin: NMI_PIN,
        reserved: [0; 3],
    };
}

/// Windows ACPI Emulated Devices Table (Microsoft, 2009): the RTC's interrupt needs no read of register C before the
/// next one, and one read of the power-management timer is a good one.
fn waet() -> Vec<u8> {
    const RTC_GOOD: u32 = 1 << 0;
    const PM_TIMER_GOOD: u32 = 1 << 1;
    table(*b"WAET", 1, &(RTC_GOOD | PM_TIMER_GOOD).to_le_bytes())
}
