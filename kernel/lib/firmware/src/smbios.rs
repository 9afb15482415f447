//! The guest's SMBIOS structures (DSP0134, version 3.7): who made the machine and how much memory it has.
//!
//! [`write_smbios`] puts a 64-bit entry point where the scan of a guest without UEFI looks, and the structures behind it;
//! [`image`] gives the bytes to a firmware that places them itself.

use crate::layout;
use crate::{Board, Error};
use addr::Gpa;
use alloc::vec::Vec;
use guestmem::GuestMemory;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

/// The entry point's size, rounded up to a paragraph.
const ENTRY_POINT_BYTES: u64 = 32;
const MANUFACTURER: &str = "Pollux";
const PRODUCT: &str = "Virtual Machine";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const RELEASE_DATE: &str = "01/01/2026";

const MEMORY_ARRAY: u16 = 0x1000;
const MEMORY_DEVICE: u16 = 0x1100;
const MEMORY_RANGES: u16 = 0x1300;

/// Writes an SMBIOS 3 entry point and the structures of types 0, 1, 3, 4, 16, 17, 19 and 127 for this memory and board.
/// Returns the entry point's address.
///
/// # Errors
/// Where the guest has no memory there.
pub fn write_smbios(memory: &GuestMemory, board: &Board) -> Result<Gpa, Error> {
    let start = layout::SMBIOS_TABLES.start();
    let structures_at = start.wrapping_add(ENTRY_POINT_BYTES);
    let (entry_point, structures) = image(memory, board, structures_at);
    let max = layout::SMBIOS_TABLES.end().as_u64() - structures_at.as_u64();
    if structures.len() as u64 > max {
        return Err(Error::Window("memory's SMBIOS tables"));
    }
    memory.write(structures_at, &structures)?;
    memory.write(start, &entry_point)?;
    Ok(start)
}

/// The entry point and the structures, which it says are at `structures_at`.
pub fn image(memory: &GuestMemory, board: &Board, structures_at: Gpa) -> (Vec<u8>, Vec<u8>) {
    let mut structures = Structures(Vec::new());
    structures.firmware();
    structures.system();
    structures.processor(board.vcpus);
    structures.memory(memory);
    structures.add(127, 0x7f00, &[], &[]);
    let entry_point = EntryPoint::new(structures_at, structures.0.len() as u32);
    (entry_point.as_bytes().to_vec(), structures.0)
}

/// The 64-bit entry point (5.2.2).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct EntryPoint {
    anchor: [u8; 5],
    checksum: u8,
    length: u8,
    version: [u8; 3],
    revision: u8,
    reserved: u8,
    structures_bytes_max: U32,
    structures_at: U64,
}

impl EntryPoint {
    fn new(structures_at: Gpa, structures_bytes: u32) -> Self {
        let mut entry = Self {
            anchor: *b"_SM3_",
            checksum: 0,
            length: size_of::<Self>() as u8,
            version: [3, 7, 0],
            revision: 1,
            reserved: 0,
            structures_bytes_max: structures_bytes.into(),
            structures_at: structures_at.as_u64().into(),
        };
        entry.checksum = entry.as_bytes().iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
        entry
    }
}

struct Structures(Vec<u8>);

impl Structures {
    /// Adds one structure: header, formatted area, strings (6.1).
    fn add(&mut self, kind: u8, handle: u16, formatted: &[u8], strings: &[&str]) {
        const HEADER_BYTES: usize = 4;
        self.0.extend_from_slice(&[kind, (HEADER_BYTES + formatted.len()) as u8]);
        self.0.extend_from_slice(&handle.to_le_bytes());
        self.0.extend_from_slice(formatted);
        for string in strings {
            self.0.extend_from_slice(string.as_bytes());
            self.0.push(0);
        }
        self.0.extend_from_slice(if strings.is_empty() { &[0, 0] } else { &[0] });
    }

    /// Type 0, platform firmware information (7.1).
    fn firmware(&mut self) {
        const NO_CHARACTERISTICS: u64 = 1 << 3;
        const IS_VIRTUAL_MACHINE: u8 = 1 << 4;
        const UNKNOWN: u8 = 0xff;
        let mut area = Vec::from([1, 2]);
        // The segment of firmware without one, and the ROM's size: 64 KiB.
        area.extend_from_slice(&[0, 0, 3, 0]);
        area.extend_from_slice(&NO_CHARACTERISTICS.to_le_bytes());
        area.extend_from_slice(&[0, IS_VIRTUAL_MACHINE, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]);
        area.extend_from_slice(&[0, 0]);
        self.add(0, 0, &area, &[MANUFACTURER, VERSION, RELEASE_DATE]);
    }

    /// Types 1 and 3, system and its enclosure (7.2, 7.4). A UUID of zeroes says that there is none.
    fn system(&mut self) {
        const WOKEN_BY_POWER_SWITCH: u8 = 6;
        let mut area = Vec::from([1, 2, 3, 0]);
        area.extend_from_slice(&[0; 16]);
        area.extend_from_slice(&[WOKEN_BY_POWER_SWITCH, 0, 0]);
        self.add(1, 0x100, &area, &[MANUFACTURER, PRODUCT, VERSION]);

        const OTHER_ENCLOSURE: u8 = 1;
        const SAFE: u8 = 3;
        const NO_SECURITY: u8 = 3;
        let mut area = Vec::from([1, OTHER_ENCLOSURE, 0, 0, 0, SAFE, SAFE, SAFE, NO_SECURITY]);
        area.extend_from_slice(&[0; 9]);
        self.add(3, 0x300, &area, &[MANUFACTURER]);
    }

    /// Type 4, one package with all vCPUs (7.5).
    fn processor(&mut self, vcpus: u32) {
        const CENTRAL: u8 = 3;
        const UNKNOWN_FAMILY: u8 = 2;
        const POPULATED_AND_ENABLED: u8 = 0x41;
        const UNKNOWN_UPGRADE: u8 = 2;
        const NO_CACHE: [u8; 6] = [0xff; 6];
        const CAPABLE_OF_64_BIT: u16 = 1 << 2;
        // From 256 on the byte is 255 and the word holds the number.
        let (small, wide) = (vcpus.min(255) as u8, vcpus.min(u32::from(u16::MAX)) as u16);
        let mut area = Vec::from([1, CENTRAL, UNKNOWN_FAMILY, 2]);
        area.extend_from_slice(&[0; 8]);
        // Version string, voltage, external clock, greatest and current speed: unknown.
        area.extend_from_slice(&[0; 8]);
        area.extend_from_slice(&[POPULATED_AND_ENABLED, UNKNOWN_UPGRADE]);
        area.extend_from_slice(&NO_CACHE);
        area.extend_from_slice(&[0, 0, 0, small, small, small]);
        area.extend_from_slice(&CAPABLE_OF_64_BIT.to_le_bytes());
        area.extend_from_slice(&u16::from(UNKNOWN_FAMILY).to_le_bytes());
        (0..3).for_each(|_| area.extend_from_slice(&wide.to_le_bytes()));
        self.add(4, 0x400, &area, &["CPU 0", MANUFACTURER]);
    }

    /// Types 16, 17 and 19: one array of one device, and a mapping for each range (7.17, 7.18, 7.20).
    fn memory(&mut self, memory: &GuestMemory) {
        self.memory_array(memory.total_bytes());
        self.memory_device(memory.total_bytes());
        for (range, handle) in memory.ranges().zip(MEMORY_RANGES..) {
            let mut area = Vec::from(u32::MAX.to_le_bytes());
            area.extend_from_slice(&u32::MAX.to_le_bytes());
            area.extend_from_slice(&MEMORY_ARRAY.to_le_bytes());
            area.push(1);
            area.extend_from_slice(&range.start().as_u64().to_le_bytes());
            area.extend_from_slice(&range.end().as_u64().saturating_sub(1).to_le_bytes());
            self.add(19, handle, &area, &[]);
        }
    }

    fn memory_array(&mut self, total_bytes: u64) {
        const OTHER_LOCATION: u8 = 1;
        const SYSTEM_MEMORY: u8 = 3;
        const MULTI_BIT_ECC: u8 = 6;
        /// Says that the extended field holds the size.
        const EXTENDED: u32 = 0x8000_0000;
        const NO_ERROR_HANDLE: u16 = 0xfffe;
        let mut area = Vec::from([OTHER_LOCATION, SYSTEM_MEMORY, MULTI_BIT_ECC]);
        area.extend_from_slice(&EXTENDED.to_le_bytes());
        area.extend_from_slice(&NO_ERROR_HANDLE.to_le_bytes());
        area.extend_from_slice(&1u16.to_le_bytes());
        area.extend_from_slice(&total_bytes.to_le_bytes());
        self.add(16, MEMORY_ARRAY, &area, &[]);
    }

    fn memory_device(&mut self, total_bytes: u64) {
        const NO_ERROR_HANDLE: u16 = 0xfffe;
        const UNKNOWN_WIDTH: u16 = 0xffff;
        /// This size and larger ones, in MiB, stand in the extended field.
        const EXTENDED: u16 = 0x7fff;
        const DIMM: u8 = 9;
        const RAM: u8 = 7;
        const OTHER_DETAIL: u16 = 1 << 1;
        let total_mib = (total_bytes >> 20).min(0x7fff_ffff) as u32;
        let size = total_mib.min(u32::from(EXTENDED)) as u16;
        let extended_mib = if size == EXTENDED { total_mib } else { 0 };
        let mut area = Vec::from(MEMORY_ARRAY.to_le_bytes());
        for word in [NO_ERROR_HANDLE, UNKNOWN_WIDTH, UNKNOWN_WIDTH, size] {
            area.extend_from_slice(&word.to_le_bytes());
        }
        area.extend_from_slice(&[DIMM, 0, 1, 0, RAM]);
        area.extend_from_slice(&OTHER_DETAIL.to_le_bytes());
        area.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0]);
        area.extend_from_slice(&extended_mib.to_le_bytes());
        // Configured speed and voltages: unknown.
        area.extend_from_slice(&[0; 8]);
        self.add(17, MEMORY_DEVICE, &area, &["DIMM 0", MANUFACTURER]);
    }
}
