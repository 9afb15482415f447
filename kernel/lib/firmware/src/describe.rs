//! What a guest's own firmware is told of its machine: the items of its fw_cfg device.
//!
//! [`describe`] builds the device for a [`Board`], its memory and the order in which disks are booted from.

use crate::fw_cfg::FwCfg;
use crate::{Board, Error, smbios, table_loader};
use addr::Gpa;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use guestmem::GuestMemory;

/// An E820 entry that is memory.
const MEMORY: u32 = 1;

/// The fw_cfg device of a machine: processors, memory map, ACPI and SMBIOS tables, and the disks to boot from, in order,
/// by the PCI device numbers of their virtio-blk functions.
///
/// # Errors
/// Where the board cannot be described.
pub fn describe(memory: &GuestMemory, board: &Board, disks: impl Iterator<Item = u8>) -> Result<FwCfg, Error> {
    let mut files = Vec::from(table_loader::files(board)?);
    // The firmware places the structures itself, by the lengths in them.
    let (entry_point, structures) = smbios::image(memory, board, Gpa::new(0));
    let mut add = |name: &str, content: Vec<u8>| files.push((name.to_string(), content));
    add("etc/smbios/smbios-anchor", entry_point);
    add("etc/smbios/smbios-tables", structures);
    add("etc/e820", memory_map(memory));
    let order = boot_order(disks);
    if !order.is_empty() {
        add("bootorder", order);
    }
    Ok(FwCfg::new(board.vcpus as u16, files))
}

/// The memory as E820 entries: first address, length, kind.
fn memory_map(memory: &GuestMemory) -> Vec<u8> {
    let mut map = Vec::new();
    for range in memory.ranges() {
        map.extend_from_slice(&range.start().as_u64().to_le_bytes());
        map.extend_from_slice(&range.bytes().to_le_bytes());
        map.extend_from_slice(&MEMORY.to_le_bytes());
    }
    map
}

/// Open Firmware paths of the disks, a line each, with a NUL behind the last.
fn boot_order(disks: impl Iterator<Item = u8>) -> Vec<u8> {
    let paths: Vec<String> = disks.map(|device| format!("/pci@i0cf8/scsi@{device:x}/disk@0,0")).collect();
    let mut order = paths.join("\n").into_bytes();
    if !order.is_empty() {
        order.push(0);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestmem::heap::guest_memory;

    #[test]
    fn disks_are_named_in_order() {
        assert_eq!(boot_order([3, 12].into_iter()), b"/pci@i0cf8/scsi@3/disk@0,0\n/pci@i0cf8/scsi@c/disk@0,0\0");
        assert_eq!(boot_order([].into_iter()), b"");
    }

    #[test]
    fn memory_is_all_that_there_is() {
        let mut memory = guest_memory(4 << 20);
        memory.add_slot(Gpa::new(1 << 32), vec![addr::Hpa::new(0)]);
        let map = memory_map(&memory);
        assert_eq!(map.len(), 40);
        assert_eq!(&map[8..20], [0, 0, 0x40, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(&map[20..28], [0, 0, 0, 0, 1, 0, 0, 0]);
    }
}
