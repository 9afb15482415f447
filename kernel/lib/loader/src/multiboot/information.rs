//! What a Multiboot kernel is told: one block with the structure that EBX points to and all that hangs on it.
//!
//! [`Information`] is made before it has a place, and [`Information::write`] puts it there (Multiboot Specification
//! 0.6.96, 3.3).

use crate::memory_map::{self, Kind};
use crate::modules::Modules;
use crate::{Boot, Error, check_command_line, layout};
use addr::Gpa;
use guestmem::{GuestMemory, Outside};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes};

/// Memory sizes, command line, modules, memory map and the loader's name are there.
const PRESENT: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
const LOADER_NAME: &[u8] = b"Pollux\0";
const MAP_ENTRIES_MAX: usize = 128;

/// Where things lie in the block. The structure is longer for kernels that know graphics; to them the rest is zeroes.
/// Behind the map come the list of modules, and the texts, each with its NUL.
const NAME: u64 = 0x80;
const MAP: u64 = 0x90;

#[derive(FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct Structure {
    flags: U32,
    mem_lower: U32,
    mem_upper: U32,
    boot_device: U32,
    cmdline: U32,
    mods_count: U32,
    mods_addr: U32,
    syms: [U32; 4],
    mmap_length: U32,
    mmap_addr: U32,
    drives: [U32; 2],
    config_table: U32,
    boot_loader_name: U32,
    apm_table: U32,
}

const _: () = assert!(size_of::<Structure>() == 72 && size_of::<Structure>() as u64 <= NAME);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ModuleEntry {
    start: U32,
    end: U32,
    string: U32,
    reserved: U32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MapEntry {
    /// Of what follows.
    size: U32,
    start: U64,
    bytes: U64,
    kind: U32,
}

/// What the kernel is told.
pub struct Information<'a> {
    boot: &'a Boot<'a>,
    modules: &'a Modules<'a>,
    map_entries: u64,
}

impl<'a> Information<'a> {
    /// About this memory, with the boot's modules where they were placed.
    ///
    /// # Errors
    /// When a text is too long or has a NUL in it.
    pub fn new(memory: &GuestMemory, boot: &'a Boot<'a>, modules: &'a Modules<'a>) -> Result<Self, Error> {
        let max = layout::COMMAND_LINE_BYTES as u32 - 1;
        for text in [boot.command_line, boot.kernel.name].into_iter().chain(modules.iter().map(|(_, it)| it.name)) {
            check_command_line(text, max)?;
        }
        let map_entries = memory_map::entries(memory).take(MAP_ENTRIES_MAX).count() as u64;
        Ok(Self { boot, modules, map_entries })
    }

    /// The length of the block.
    pub fn bytes(&self) -> u64 {
        let strings: usize = self.modules.iter().map(|(_, module)| module.name.len() + 1).sum();
        self.strings() + strings as u64
    }

    /// Writes the block to `at`, below 4 GiB.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn write(&self, memory: &GuestMemory, at: Gpa) -> Result<(), Outside> {
        memory.zero(at, self.bytes())?;
        memory.write(at, self.structure(memory, at).as_bytes())?;
        memory.write(at.wrapping_add(NAME), LOADER_NAME)?;
        for (entry, index) in self.map(memory).zip(0..) {
            memory.write(at.wrapping_add(MAP + index * size_of::<MapEntry>() as u64), entry.as_bytes())?;
        }
        self.write_command_line(memory, at.wrapping_add(self.command_line()))?;
        self.write_modules(memory, at)
    }

    fn write_modules(&self, memory: &GuestMemory, at: Gpa) -> Result<(), Outside> {
        let mut entry_at = at.wrapping_add(self.module_list());
        let mut string = at.wrapping_add(self.strings());
        for (start, module) in self.modules.iter() {
            let end = address(start.wrapping_add(module.bytes.len() as u64));
            let entry = ModuleEntry { start: address(start), end, string: address(string), reserved: 0.into() };
            memory.write(entry_at, entry.as_bytes())?;
            memory.write(string, module.name.as_bytes())?;
            entry_at = entry_at.wrapping_add(size_of::<ModuleEntry>() as u64);
            string = string.wrapping_add(module.name.len() as u64 + 1);
        }
        Ok(())
    }

    fn structure(&self, memory: &GuestMemory, at: Gpa) -> Structure {
        let (low, high) = (layout::LOW_MEMORY_END.as_u64(), layout::HIGH_MEMORY.as_u64());
        let end_from = |first: u64| {
            let mut ranges = memory_map::entries(memory).filter(|(_, _, kind)| *kind == Kind::Memory);
            ranges.find(|(start, _, _)| *start == first).map_or(first, |(_, end, _)| end.min(u32::MAX.into()))
        };
        let kib = |bytes: u64| U32::new((bytes >> 10) as u32);
        let mut structure = Structure::new_zeroed();
        structure.flags = PRESENT.into();
        structure.mem_lower = kib(end_from(0).min(low));
        structure.mem_upper = kib(end_from(high) - high);
        structure.cmdline = address(at.wrapping_add(self.command_line()));
        structure.mods_count = (self.modules.count() as u32).into();
        structure.mods_addr = address(at.wrapping_add(self.module_list()));
        structure.mmap_length = ((self.map_entries * size_of::<MapEntry>() as u64) as u32).into();
        structure.mmap_addr = address(at.wrapping_add(MAP));
        structure.boot_loader_name = address(at.wrapping_add(NAME));
        structure
    }

    fn map(&self, memory: &GuestMemory) -> impl Iterator<Item = MapEntry> {
        const SIZE: u32 = size_of::<MapEntry>() as u32 - 4;
        memory_map::entries(memory).take(self.map_entries as usize).map(|(start, end, kind)| MapEntry {
            size: SIZE.into(),
            start: start.into(),
            bytes: (end - start).into(),
            kind: (kind as u32).into(),
        })
    }

    /// The kernel's name, and behind a space what it was given.
    fn write_command_line(&self, memory: &GuestMemory, at: Gpa) -> Result<(), Outside> {
        let name = self.boot.kernel.name.as_bytes();
        memory.write(at, name)?;
        memory.write(at.wrapping_add(name.len() as u64), b" ")?;
        memory.write(at.wrapping_add(name.len() as u64 + 1), self.boot.command_line.as_bytes())
    }

    /// Where the list of modules lies in the block.
    fn module_list(&self) -> u64 {
        MAP + self.map_entries * size_of::<MapEntry>() as u64
    }

    /// Where the command line lies in it.
    fn command_line(&self) -> u64 {
        self.module_list() + self.modules.count() * size_of::<ModuleEntry>() as u64
    }

    /// Where the modules' texts lie in it: behind the command line, with its space and its NUL.
    fn strings(&self) -> u64 {
        self.command_line() + (self.boot.kernel.name.len() + self.boot.command_line.len() + 2) as u64
    }
}

/// An address that was chosen below 4 GiB.
fn address(at: Gpa) -> U32 {
    let at = u32::try_from(at.as_u64()).expect("the loader places everything below 4 GiB");
    at.into()
}
