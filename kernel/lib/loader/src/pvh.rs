//! PVH: enters an ELF kernel at the 32-bit address that its note names, with one structure that says everything.
//!
//! [`load`] follows Xen's docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h (4.19): the machine's state, and
//! version 1 of the structure. [`image`] says what is loaded where. The initial RAM disk is the first of the modules
//! ([`Modules`]). Its mirror is [`crate::multiboot`].

mod image;
#[cfg(test)]
mod tests;

pub use image::Note;

use crate::memory_map;
use crate::modules::Modules;
use crate::multiboot::{check_places, place_information, state};
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

/// Where the memory map lies in the block; behind it the list of modules, the command line, and theirs.
const MAP: u64 = size_of::<StartInformation>() as u64;

/// Writes kernel, modules and information, and returns the first vCPU's state.
///
/// # Errors
/// As [`crate::load`].
pub fn load(memory: &GuestMemory, boot: &Boot<'_>, note: Note) -> Result<VcpuState, Error> {
    let image = image::parse(boot.kernel.bytes, note)?;
    texts_of(boot).try_for_each(|text| check_command_line(text, layout::COMMAND_LINE_BYTES as u32 - 1))?;
    check_places(memory, &image)?;
    let modules = Modules::place(memory, boot, &image)?;
    let layout = Layout::new(memory, boot, &modules);
    let at = place_information(memory, &image, layout.bytes)?;

    image.write(memory)?;
    modules.write(memory)?;
    write_information(memory, boot, &modules, at, &layout)?;
    let mut state = state(image.entry, at);
    state.gprs[Gpr::Rax as usize] = 0;
    Ok(state)
}

/// Where what hangs on the structure lies in the block.
struct Layout {
    map_entries: u64,
    list: u64,
    /// The command line, and behind it the modules' texts, each with its NUL.
    texts: u64,
    bytes: u64,
}

impl Layout {
    fn new(memory: &GuestMemory, boot: &Boot<'_>, modules: &Modules<'_>) -> Self {
        let map_entries = memory_map::entries(memory).take(MAP_ENTRIES_MAX).count() as u64;
        let list = MAP + map_entries * size_of::<MapEntry>() as u64;
        let texts = list + modules.count() * size_of::<ModuleEntry>() as u64;
        let text_bytes: usize = texts_of(boot).map(|text| text.len() + 1).sum();
        Self { map_entries, list, texts, bytes: texts + text_bytes as u64 }
    }
}

/// The command line, and what the modules are given.
fn texts_of<'a>(boot: &Boot<'a>) -> impl Iterator<Item = &'a str> {
    core::iter::once(boot.command_line).chain(boot.all_modules().map(|module| module.name))
}

fn write_information(
    memory: &GuestMemory,
    boot: &Boot<'_>,
    modules: &Modules<'_>,
    at: Gpa,
    layout: &Layout,
) -> Result<(), Outside> {
    let address = |offset: u64| U64::new(at.wrapping_add(offset).as_u64());
    memory.zero(at, layout.bytes)?;
    let structure = StartInformation {
        magic: MAGIC.into(),
        version: VERSION.into(),
        flags: 0.into(),
        modules: (modules.count() as u32).into(),
        module_list: if modules.count() > 0 { address(layout.list) } else { 0.into() },
        command_line: address(layout.texts),
        rsdp: boot.rsdp.as_u64().into(),
        map: address(MAP),
        map_entries: (layout.map_entries as u32).into(),
        reserved: 0.into(),
    };
    memory.write(at, structure.as_bytes())?;
    for ((start, end, kind), index) in memory_map::entries(memory).take(layout.map_entries as usize).zip(0..) {
        let entry = MapEntry {
            start: start.into(),
            bytes: (end - start).into(),
            kind: (kind as u32).into(),
            reserved: 0.into(),
        };
        memory.write(at.wrapping_add(MAP + index * size_of::<MapEntry>() as u64), entry.as_bytes())?;
    }
    memory.write(at.wrapping_add(layout.texts), boot.command_line.as_bytes())?;
    let mut text = layout.texts + boot.command_line.len() as u64 + 1;
    for ((start, module), index) in modules.iter().zip(0..) {
        let entry = ModuleEntry {
            start: start.as_u64().into(),
            bytes: (module.bytes.len() as u64).into(),
            command_line: address(text),
            reserved: 0.into(),
        };
        memory.write(at.wrapping_add(layout.list + index * size_of::<ModuleEntry>() as u64), entry.as_bytes())?;
        memory.write(at.wrapping_add(text), module.name.as_bytes())?;
        text += module.name.len() as u64 + 1;
    }
    Ok(())
}
