//! From a boot loader to `kernel_main`, and what the loader told us, as one checked type.
//!
//! The first instructions are in `entry.S`; [`BootInfo`] is read from multiboot2 (GRUB on the USB image) or
//! multiboot 1 (QEMU's `-kernel`). The kernel's binary links this crate and names its main function with [`entry!`].
//! Sources: Multiboot2 Specification 2.0, Multiboot Specification 0.6.96.
#![no_std]
#![expect(unsafe_code, reason = "reads what a boot loader left in physical memory, and the linker's symbols")]

mod multiboot1;
mod multiboot2;

use core::ops::Deref;

core::arch::global_asm!(include_str!("entry.S"), options(att_syntax));

/// Names the kernel's main function, `fn(BootInfo) -> !`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn kernel_main(magic: u32, info: u32) -> ! {
            let main: fn(Result<$crate::BootInfo, &'static str>) -> ! = $main;
            // SAFETY: entry.S calls this once, first of all, with what the boot loader passed.
            main(unsafe { $crate::BootInfo::read(magic, info) })
        }
    };
}

/// How many memory regions are kept; a firmware that reports more loses the rest, which is counted.
pub const REGIONS_MAX: usize = 128;
/// How many boot modules are kept.
pub const MODULES_MAX: usize = 64;

/// A run of physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Region {
    /// Its first address.
    pub start: u64,
    /// The first address past it.
    pub end: u64,
    /// Whether it is RAM that an operating system may use.
    pub usable: bool,
}

/// Bytes of a text that are kept.
const TEXT_BYTES: usize = 120;

/// A text of the boot loader's, copied: where loaders leave texts is memory that is handed out later. What is longer
/// than fits is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Text {
    bytes: [u8; TEXT_BYTES],
    length: usize,
}

impl Text {
    const EMPTY: Self = Self { bytes: [0; TEXT_BYTES], length: 0 };

    fn new(text: &str) -> Self {
        let mut length = text.len().min(TEXT_BYTES);
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        let mut bytes = [0; TEXT_BYTES];
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        Self { bytes, length }
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.length]).unwrap_or("")
    }
}

/// A file that the boot loader read into memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Module {
    /// The last word of its command line.
    pub name: Text,
    /// Its bytes.
    pub bytes: &'static [u8],
}

/// What a screen is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScreenKind {
    /// Cells of two bytes, as in VGA's text modes.
    Text,
    /// Pixels of four bytes.
    Pixels,
}

/// The screen that the boot loader left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Screen {
    /// Its physical address.
    pub address: u64,
    /// Bytes from one line to the next.
    pub pitch_bytes: u32,
    /// Cells or pixels in a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// What it is made of.
    pub kind: ScreenKind,
}

/// What the boot loader told us.
pub struct BootInfo {
    regions: [Region; REGIONS_MAX],
    region_count: usize,
    modules: [Module; MODULES_MAX],
    module_count: usize,
    /// The kernel's command line.
    pub command_line: Text,
    /// The ACPI root pointer's address, where the loader passes one (UEFI).
    pub rsdp: Option<u64>,
    /// The boot loader's own name.
    pub loader: Text,
    /// The screen, where the loader says that there is one of a known kind.
    pub screen: Option<Screen>,
    /// Regions and modules that found no room here.
    pub dropped: usize,
    /// Where the information itself lies, which must not be overwritten while it is in use.
    pub own: Region,
}

impl BootInfo {
    /// Reads the boot information.
    ///
    /// # Safety
    /// `magic` and `info` are the values that the boot loader passed, called once, before anything else writes
    /// memory, with the first 4 GiB identity-mapped.
    pub unsafe fn read(magic: u32, info: u32) -> Result<Self, &'static str> {
        let mut boot = Self {
            regions: [Region::default(); REGIONS_MAX],
            region_count: 0,
            modules: [Module { name: Text::EMPTY, bytes: &[] }; MODULES_MAX],
            module_count: 0,
            command_line: Text::EMPTY,
            rsdp: None,
            loader: Text::EMPTY,
            screen: None,
            dropped: 0,
            own: Region::default(),
        };
        match magic {
            // SAFETY: the caller vouches for the two values.
            multiboot2::MAGIC => unsafe { multiboot2::read(info, &mut boot)? },
            // SAFETY: as above.
            multiboot1::MAGIC => unsafe { multiboot1::read(info, &mut boot)? },
            _ => return Err("the boot loader speaks neither multiboot2 nor multiboot 1"),
        }
        Ok(boot)
    }

    /// The memory map.
    pub fn regions(&self) -> &[Region] {
        &self.regions[..self.region_count]
    }

    /// The boot modules.
    pub fn modules(&self) -> &[Module] {
        &self.modules[..self.module_count]
    }

    /// The kernel's image in memory: text, read-only data, writable data.
    pub fn image() -> Image {
        // SAFETY: symbols of the linker script; only their addresses are used.
        unsafe extern "C" {
            static image_start: u8;
            static rodata_start: u8;
            static data_start: u8;
            static image_end: u8;
        }
        Image {
            text: &raw const image_start as u64,
            rodata: &raw const rodata_start as u64,
            data: &raw const data_start as u64,
            end: &raw const image_end as u64,
        }
    }

    /// The page below the boot processor's stack, which may be unmapped.
    pub fn stack_guard() -> u64 {
        // SAFETY: a symbol of entry.S; only its address is used.
        unsafe extern "C" {
            static boot_stack_guard: u8;
        }
        &raw const boot_stack_guard as u64
    }

    fn add_region(&mut self, start: u64, bytes: u64, usable: bool) {
        let Some(end) = start.checked_add(bytes) else { return };
        if self.region_count == REGIONS_MAX {
            self.dropped += 1;
            return;
        }
        self.regions[self.region_count] = Region { start, end, usable };
        self.region_count += 1;
    }

    fn add_module(&mut self, command_line: &str, bytes: &'static [u8]) {
        if self.module_count == MODULES_MAX {
            self.dropped += 1;
            return;
        }
        let name = command_line.split_ascii_whitespace().next_back().unwrap_or("");
        let name = name.rsplit('/').next().unwrap_or(name);
        self.modules[self.module_count] = Module { name: Text::new(name), bytes };
        self.module_count += 1;
    }
}

/// Where the parts of the kernel's image start; each ends where the next begins.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// Executable, not writable.
    pub text: u64,
    /// Neither.
    pub rodata: u64,
    /// Writable, not executable.
    pub data: u64,
    /// The first address past the image.
    pub end: u64,
}
