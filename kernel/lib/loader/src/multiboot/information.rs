//! What a Multiboot kernel is told: one block with the structure that EBX points to and all that hangs on it.
//!
//! [`Information`] is made before it has a place, and [`Information::write`] puts it there (Multiboot Specification
//! 0.6.96, 3.3).

use crate::memory_map::{self, Kind};
use crate::{Boot, Error, Module, check_command_line, layout};
use addr::Gpa;
use guestmem::{GuestMemory, Outside};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes};

/// Memory sizes, command line, modules, memory map and the loader's name are there.
const PRESENT: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
const LOADER_NAME: &[u8] = b"Pollux\0";
const MAP_ENTRIES_MAX: usize = 128;

/// Where things lie in the block. The structure is longer for kernels that know graphics; to them the rest is zeroes.
const MODULE: u64 = 0x80;
const NAME: u64 = 0x90;
const MAP: u64 = 0xa0;

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

const _: () = assert!(size_of::<Structure>() == 72 && size_of::<Structure>() as u64 <= MODULE);

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
    module: Gpa,
    map_entries: u64,
}

impl<'a> Information<'a> {
    /// About this memory, with the boot's module at `module`.
    ///
    /// # Errors
    /// When a text is too long or has a NUL in it.
    pub fn new(memory: &GuestMemory, boot: &'a Boot<'a>, module: Gpa) -> Result<Self, Error> {
        let max = layout::COMMAND_LINE_BYTES as u32 - 1;
        for text in [boot.command_line, boot.kernel.name, boot.initrd.map_or("", |module| module.name)] {
            check_command_line(text, max)?;
        }
        let map_entries = memory_map::entries(memory).take(MAP_ENTRIES_MAX).count() as u64;
        Ok(Self { boot, module, map_entries })
    }

    /// Where the module lies.
    pub fn module(&self) -> Gpa {
        self.module
    }

    /// The length of the block.
    pub fn bytes(&self) -> u64 {
        let name = self.boot.initrd.map_or(0, |module| module.name.len() + 1);
        self.module_name() + name as u64
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
        let Some(Module { name, bytes }) = self.boot.initrd else { return Ok(()) };
        let string = at.wrapping_add(self.module_name());
        let (start, end) = (address(self.module), address(self.module.wrapping_add(bytes.len() as u64)));
        let entry = ModuleEntry { start, end, string: address(string), reserved: 0.into() };
        memory.write(at.wrapping_add(MODULE), entry.as_bytes())?;
        memory.write(string, name.as_bytes())
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
        structure.mods_count = u32::from(self.boot.initrd.is_some()).into();
        structure.mods_addr = address(at.wrapping_add(MODULE));
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

    /// Where the command line lies in the block.
    fn command_line(&self) -> u64 {
        MAP + self.map_entries * size_of::<MapEntry>() as u64
    }

    /// Where the module's name lies in the block: behind the command line, with its space and its NUL.
    fn module_name(&self) -> u64 {
        self.command_line() + (self.boot.kernel.name.len() + self.boot.command_line.len() + 2) as u64
    }
}

/// An address that was chosen below 4 GiB.
fn address(at: Gpa) -> U32 {
    let at = u32::try_from(at.as_u64()).expect("the loader places everything below 4 GiB");
    at.into()
}
