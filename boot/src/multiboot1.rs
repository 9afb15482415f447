//! Multiboot 1, as QEMU's `-kernel` passes it: a flat structure of physical addresses.

use crate::{BootInfo, Region, Text};
use core::ffi::CStr;

/// What EAX holds.
pub const MAGIC: u32 = 0x2bad_b002;

/// Bits of the structure's first word (Multiboot 0.6.96, section 3.3).
const HAS_COMMAND_LINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MEMORY_MAP: u32 = 1 << 6;

/// The part of the information structure that we read.
#[repr(C)]
struct Information {
    flags: u32,
    memory: [u32; 2],
    boot_device: u32,
    command_line: u32,
    module_count: u32,
    modules: u32,
    symbols: [u32; 4],
    memory_map_bytes: u32,
    memory_map: u32,
}

#[repr(C)]
struct ModuleEntry {
    start: u32,
    end: u32,
    command_line: u32,
    reserved: u32,
}

/// An entry of the memory map; `size` counts what follows it.
#[repr(C, packed)]
struct MapEntry {
    size: u32,
    start: u64,
    bytes: u64,
    kind: u32,
}

/// Reads the structure at `info`.
///
/// # Safety
/// As [`BootInfo::read`].
pub unsafe fn read(info: u32, boot: &mut BootInfo) -> Result<(), &'static str> {
    // SAFETY: the loader put the structure there, and it is read before any memory is reused.
    let header = unsafe { (info as usize as *const Information).read_unaligned() };
    boot.own = Region { start: info.into(), end: u64::from(info) + size_of::<Information>() as u64, usable: true };
    boot.loader = Text::new("multiboot 1");
    if header.flags & HAS_COMMAND_LINE != 0 {
        // SAFETY: a string of the loader's.
        boot.command_line = Text::new(unsafe { text(header.command_line) });
    }
    if header.flags & HAS_MODULES != 0 {
        for index in 0..header.module_count as usize {
            // SAFETY: an array of the loader's with that many entries.
            let entry = unsafe { (header.modules as usize as *const ModuleEntry).add(index).read_unaligned() };
            let bytes = entry.end.saturating_sub(entry.start) as usize;
            // SAFETY: the loader read the file there; the frame allocator leaves modules alone for ever.
            let (name, bytes) = unsafe {
                (text(entry.command_line), core::slice::from_raw_parts(entry.start as usize as *const u8, bytes))
            };
            boot.add_module(name, bytes);
        }
    }
    if header.flags & HAS_MEMORY_MAP == 0 {
        return Err("the boot loader passed no memory map");
    }
    let (mut at, end) = (header.memory_map as usize, header.memory_map as usize + header.memory_map_bytes as usize);
    while at + size_of::<MapEntry>() <= end {
        // SAFETY: inside the map that the loader described.
        let entry = unsafe { (at as *const MapEntry).read_unaligned() };
        boot.add_region(entry.start, entry.bytes, entry.kind == 1);
        at += entry.size as usize + size_of::<u32>();
    }
    Ok(())
}

/// A zero-terminated string of the loader's; what is not UTF-8 counts as empty.
///
/// # Safety
/// `at` is 0 or the address of such a string, which is not overwritten while the result is in use.
unsafe fn text<'a>(at: u32) -> &'a str {
    if at == 0 {
        return "";
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(at as usize as *const _) }.to_str().unwrap_or("")
}
