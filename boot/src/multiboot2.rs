//! Multiboot2, as GRUB passes it: a list of tags, read through the `multiboot2` crate.

use crate::{BootInfo, Region, Screen, ScreenKind, Text};
use multiboot2::{BootInformation, BootInformationHeader, FramebufferTag, FramebufferType, MemoryAreaType};

/// What EAX holds.
pub const MAGIC: u32 = multiboot2::MAGIC;

/// Reads the tags at `info`.
///
/// # Safety
/// As [`BootInfo::read`].
pub unsafe fn read(info: u32, boot: &mut BootInfo) -> Result<(), &'static str> {
    // SAFETY: the loader put the tags there, and they are read before any memory is reused.
    let tags = unsafe { BootInformation::load(info as usize as *const BootInformationHeader) }
        .map_err(|_| "the boot loader's multiboot2 information is malformed")?;
    boot.own = Region { start: tags.start_address() as u64, end: tags.end_address() as u64, usable: true };
    boot.loader = Text::new(tags.boot_loader_name_tag().and_then(|tag| tag.name().ok()).unwrap_or("multiboot2"));
    boot.command_line = Text::new(tags.command_line_tag().and_then(|tag| tag.cmdline().ok()).unwrap_or(""));
    let rsdp_v2 = tags.rsdp_v2_tag().map(|tag| &raw const *tag as u64);
    let rsdp_v1 = tags.rsdp_v1_tag().map(|tag| &raw const *tag as u64);
    // The tag holds a copy of the root pointer behind its eight bytes of header.
    boot.rsdp = rsdp_v2.or(rsdp_v1).map(|tag| tag + 8);
    boot.screen = tags.framebuffer_tag().and_then(|tag| screen(tag.ok()?));
    for module in tags.module_tags() {
        let bytes = module.end_address().saturating_sub(module.start_address()) as usize;
        // SAFETY: the loader read the file there; the frame allocator leaves modules alone for ever.
        let bytes = unsafe { core::slice::from_raw_parts(module.start_address() as usize as *const u8, bytes) };
        boot.add_module(module.cmdline().unwrap_or(""), bytes);
    }
    let map = tags.memory_map_tag().ok_or("the boot loader passed no memory map")?;
    for area in map.memory_areas() {
        boot.add_region(area.start_address(), area.size(), area.typ() == MemoryAreaType::Available);
    }
    Ok(())
}

/// The screen, if it is text, or of 32 bits a pixel.
fn screen(tag: &FramebufferTag) -> Option<Screen> {
    let kind = match (tag.buffer_type().ok()?, tag.bpp()) {
        (FramebufferType::Text, _) => ScreenKind::Text,
        (FramebufferType::RGB { .. }, 32) => ScreenKind::Pixels,
        _ => return None,
    };
    let (address, pitch_bytes) = (tag.address(), tag.pitch());
    Some(Screen { address, pitch_bytes, width: tag.width(), height: tag.height(), kind })
}
