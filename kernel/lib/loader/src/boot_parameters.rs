//! The boot parameters ("zero page") that the kernel finds through RSI.
//!
//! [`BootParameters`] holds the setup header as completed by the loader and the memory map (Linux 6.12,
//! Documentation/arch/x86/zero-page.rst and boot.rst; the map's form is that of INT 15h, E820h).

use crate::bzimage::{BzImage, HEADER_OFFSET, SetupHeader};
use crate::{Boot, Places, layout, memory_map};
use addr::Gpa;
use core::mem::offset_of;
use guestmem::GuestMemory;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes};

const MAP_ENTRIES_MAX: usize = 128;
/// A loader that has no number of its own.
const UNREGISTERED_LOADER: u8 = 0xff;
const LOADED_HIGH: u8 = 1 << 0;

/// The page, with the fields that are not zero.
#[derive(FromZeros, IntoBytes, Immutable)]
#[repr(C)]
pub struct BootParameters {
    screen_and_firmware: [u8; 0x70],
    acpi_rsdp_addr: U64,
    older_tables: [u8; 0x170],
    e820_entries: u8,
    eddbuf_and_sentinel: [u8; 8],
    header: SetupHeader,
    edd_signatures: [u8; 0x40],
    e820_table: [MapEntry; MAP_ENTRIES_MAX],
    rest: [u8; 0x330],
}

const _: () = assert!(size_of::<BootParameters>() == 0x1000);
const _: () = assert!(offset_of!(BootParameters, e820_entries) == 0x1e8);
const _: () = assert!(offset_of!(BootParameters, header) == HEADER_OFFSET);
const _: () = assert!(offset_of!(BootParameters, e820_table) == 0x2d0);

#[derive(FromZeros, IntoBytes, Immutable, Clone, Copy)]
#[repr(C)]
struct MapEntry {
    start: U64,
    bytes: U64,
    kind: U32,
}

impl BootParameters {
    pub fn new(memory: &GuestMemory, boot: &Boot<'_>, image: &BzImage<'_>, places: Places) -> Self {
        let mut page = Self::new_zeroed();
        page.acpi_rsdp_addr = boot.rsdp.as_u64().into();
        page.header = image.header.clone();
        page.header.type_of_loader = UNREGISTERED_LOADER;
        page.header.loadflags |= LOADED_HIGH;
        page.header.setup_data = 0.into();
        page.header.cmd_line_ptr = address(layout::COMMAND_LINE);
        page.header.ramdisk_image = address(places.initrd);
        page.header.ramdisk_size = (boot.initrd.map_or(0, |module| module.bytes.len()) as u32).into();
        page.map(memory);
        page
    }

    /// Fills in the map. Memory in more pieces than it can hold stays unknown to the guest.
    fn map(&mut self, memory: &GuestMemory) {
        for (slot, (start, end, kind)) in self.e820_table.iter_mut().zip(memory_map::entries(memory)) {
            *slot = MapEntry { start: start.into(), bytes: (end - start).into(), kind: (kind as u32).into() };
            self.e820_entries += 1;
        }
    }
}

/// An address that was chosen below 4 GiB.
fn address(at: Gpa) -> U32 {
    let at = u32::try_from(at.as_u64()).expect("the loader places everything below 4 GiB");
    at.into()
}
