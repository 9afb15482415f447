//! The script by which a firmware places the ACPI tables itself (QEMU's `etc/table-loader`): allocate, link, sum up.
//!
//! [`files`] turns an [`Image`] into the three files of that interface; `fw_cfg` hands them out. A command is 128 bytes,
//! its fields little-endian, as the firmware's `QemuLoader.h` has them (EDK II, OvmfPkg/AcpiPlatformDxe).

use crate::acpi::Image;
use crate::{Board, Error};
use addr::Gpa;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// The files' names. All but the script's are known by it alone.
const SCRIPT: &str = "etc/table-loader";
const RSDP: &str = "etc/acpi/rsdp";
const TABLES: &str = "etc/acpi/tables";

const COMMAND_BYTES: usize = 128;
/// A file's name with its NUL.
const NAME_BYTES: usize = 56;

const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
/// Where a file goes: anywhere below 4 GiB, or between E0000h and FFFFFh.
const ZONE_HIGH: u8 = 1;
const ZONE_F_SEGMENT: u8 = 2;

/// The tables of a board as files: the script, the RSDP, the other tables.
///
/// # Errors
/// Where the board cannot be described.
pub fn files(board: &Board) -> Result<[(String, Vec<u8>); 3], Error> {
    // Made for address 0, every address is an offset into the file, which is what ADD_POINTER wants.
    let mut image = Image::new(board, Gpa::new(0))?;
    let mut script = Script(Vec::new());
    script.allocate(RSDP, 16, ZONE_F_SEGMENT);
    script.allocate(TABLES, 64, ZONE_HIGH);
    for &(offset, bytes) in &image.links {
        script.add_pointer(TABLES, offset, bytes);
    }
    script.add_pointer(RSDP, Image::RSDP_XSDT_OFFSET, 8);
    let linked = image.linked.clone();
    for (result, (start, bytes)) in image.clear_checksums().into_iter().zip(linked) {
        script.add_checksum(TABLES, result, start, bytes);
    }
    for (result, bytes) in Image::RSDP_CHECKSUMS {
        script.add_checksum(RSDP, result, 0, bytes);
    }
    let file = |name: &str, bytes| (name.to_string(), bytes);
    Ok([file(SCRIPT, script.0), file(RSDP, image.rsdp), file(TABLES, image.tables)])
}

struct Script(Vec<u8>);

impl Script {
    fn allocate(&mut self, file: &str, alignment: u32, zone: u8) {
        self.command(ALLOCATE, &[file], &[&alignment.to_le_bytes(), &[zone]]);
    }

    /// Adds the address of the tables to what stands at `offset` in `file`.
    fn add_pointer(&mut self, file: &str, offset: u32, bytes: u8) {
        self.command(ADD_POINTER, &[file, TABLES], &[&offset.to_le_bytes(), &[bytes]]);
    }

    fn add_checksum(&mut self, file: &str, result: u32, start: u32, bytes: u32) {
        let fields = [result, start, bytes].map(u32::to_le_bytes);
        self.command(ADD_CHECKSUM, &[file], &[&fields[0], &fields[1], &fields[2]]);
    }

    fn command(&mut self, kind: u32, files: &[&str], fields: &[&[u8]]) {
        let end = self.0.len() + COMMAND_BYTES;
        self.0.extend_from_slice(&kind.to_le_bytes());
        for file in files {
            let name_end = self.0.len() + NAME_BYTES;
            self.0.extend_from_slice(file.as_bytes());
            self.0.resize(name_end, 0);
        }
        fields.iter().for_each(|field| self.0.extend_from_slice(field));
        self.0.resize(end, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout;

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// What a firmware does with the script, the tables placed at `tables_at`.
    fn carry_out(files: &[(String, Vec<u8>); 3], tables_at: u64) -> (Vec<u8>, Vec<u8>) {
        let [(_, script), (_, rsdp), (_, tables)] = files;
        let mut blobs = [(RSDP, rsdp.clone()), (TABLES, tables.clone())];
        for command in script.chunks(COMMAND_BYTES) {
            let name = core::str::from_utf8(&command[4..60]).unwrap().trim_end_matches('\0');
            let blob = &mut blobs.iter_mut().find(|(other, _)| *other == name).unwrap().1;
            match u32_at(command, 0) as u32 {
                ALLOCATE => assert!(u32_at(command, 60).is_power_of_two()),
                ADD_POINTER => {
                    assert_eq!(&command[60..75], TABLES.as_bytes());
                    let (at, bytes) = (u32_at(command, 116), usize::from(command[120]));
                    let mut value = [0; 8];
                    value[..bytes].copy_from_slice(&blob[at..at + bytes]);
                    assert!(u64::from_le_bytes(value) < tables.len() as u64, "an offset");
                    let value = u64::from_le_bytes(value) + tables_at;
                    blob[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
                }
                ADD_CHECKSUM => {
                    let (result, start, bytes) = (u32_at(command, 60), u32_at(command, 64), u32_at(command, 68));
                    assert_eq!(blob[result], 0, "not summed up twice");
                    blob[result] = sum(&blob[start..start + bytes]).wrapping_neg();
                }
                other => panic!("command {other}"),
            }
        }
        let [(_, rsdp), (_, tables)] = blobs;
        (rsdp, tables)
    }

    #[test]
    fn the_script_makes_what_direct_boot_has() {
        let board = Board {
            vcpus: 3,
            ecam: None,
            pci_memory: layout::PCI_MEMORY,
            pci_memory64: None,
            keyboard: false,
            hotplug: 0,
        };
        let tables_at = 0x7f12_3000;
        let (rsdp, tables) = carry_out(&files(&board).unwrap(), tables_at);
        let direct = Image::new(&board, Gpa::new(tables_at)).unwrap();
        assert_eq!(rsdp, direct.rsdp);
        assert_eq!(tables, direct.tables);
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    }
}
