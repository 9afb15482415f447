//! PVH: enters an ELF kernel at the 32-bit address that its note names, with one structure that says everything.
//!
//! [`load`] follows Xen's docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h (4.19): the machine's state, and
//! version 1 of the structure. [`image`] says what is loaded where. The initial RAM disk is the first module, on the first
//! page behind the kernel. Its mirror is [`crate::multiboot`].

mod image;
#[cfg(test)]
mod tests;

pub use image::Note;

use crate::memory_map;
use crate::multiboot::{check_places, place_information, place_module, state};
use crate::{Boot, Error, check_command_line, layout};
use addr::Gpa;
use guestmem::{GuestMemory, Outside};
use vcpu::{Gpr, VcpuState};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const MAP_ENTRIES_MAX: usize = 128;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct StartInformation {
    magic: U32,
    version: U32,
    flags: U32,
    modules: U32,
    module_list: U64,
    command_line: U64,
    rsdp: U64,
    map: U64,
    map_entries: U32,
    reserved: U32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ModuleEntry {
    start: U64,
    bytes: U64,
    command_line: U64,
    reserved: U64,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MapEntry {
    start: U64,
    bytes: U64,
    kind: U32,
    reserved: U32,
}

/// Where things lie in the block behind the structure.
const MODULE: u64 = size_of::<StartInformation>() as u64;
const MAP: u64 = MODULE + size_of::<ModuleEntry>() as u64;

/// Writes kernel, module and information, and returns the first vCPU's state.
///
/// # Errors
/// As [`crate::load`].
pub fn load(memory: &GuestMemory, boot: &Boot<'_>, note: Note) -> Result<VcpuState, Error> {
    let image = image::parse(boot.kernel.bytes, note)?;
    check_command_line(boot.command_line, layout::COMMAND_LINE_BYTES as u32 - 1)?;
    check_places(memory, &image)?;
    let module = place_module(memory, boot, &image)?;
    let entries = memory_map::entries(memory).take(MAP_ENTRIES_MAX).count() as u64;
    let command_line = MAP + entries * size_of::<MapEntry>() as u64;
    let at = place_information(memory, &image, command_line + boot.command_line.len() as u64 + 1)?;

    image.write(memory)?;
    if let Some(initrd) = boot.initrd {
        memory.write(module, initrd.bytes)?;
    }
    write_information(memory, boot, module, at, entries)?;
    let mut state = state(image.entry, at);
    state.gprs[Gpr::Rax as usize] = 0;
    Ok(state)
}

fn write_information(memory: &GuestMemory, boot: &Boot<'_>, module: Gpa, at: Gpa, entries: u64) -> Result<(), Outside> {
    let address = |offset: u64| U64::new(at.wrapping_add(offset).as_u64());
    let command_line = MAP + entries * size_of::<MapEntry>() as u64;
    let structure = StartInformation {
        magic: MAGIC.into(),
        version: VERSION.into(),
        flags: 0.into(),
        modules: u32::from(boot.initrd.is_some()).into(),
        module_list: if boot.initrd.is_some() { address(MODULE) } else { 0.into() },
        command_line: address(command_line),
        rsdp: boot.rsdp.as_u64().into(),
        map: address(MAP),
        map_entries: (entries as u32).into(),
        reserved: 0.into(),
    };
    memory.write(at, structure.as_bytes())?;
    let bytes = boot.initrd.map_or(0, |initrd| initrd.bytes.len() as u64);
    let entry =
        ModuleEntry { start: module.as_u64().into(), bytes: bytes.into(), command_line: 0.into(), reserved: 0.into() };
    memory.write(at.wrapping_add(MODULE), entry.as_bytes())?;
    for ((start, end, kind), index) in memory_map::entries(memory).take(entries as usize).zip(0..) {
        let entry = MapEntry {
            start: start.into(),
            bytes: (end - start).into(),
            kind: (kind as u32).into(),
            reserved: 0.into(),
        };
        memory.write(at.wrapping_add(MAP + index * size_of::<MapEntry>() as u64), entry.as_bytes())?;
    }
    memory.write(at.wrapping_add(command_line), boot.command_line.as_bytes())?;
    memory.store(at.wrapping_add(command_line + boot.command_line.len() as u64), 1, 0)
}
