//! Puts a kernel where a boot loader would and says with which registers its first vCPU starts.
//!
//! [`load`] takes a kernel with its initrd and command line ([`Boot`]). A bzImage starts by Linux's 64-bit boot protocol
//! (Linux 6.12, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"; Documentation/arch/x86/zero-page.rst), a
//! Multiboot 1 image by that specification, another ELF kernel by PVH where it has that note. `machine` writes the tables of `firmware` first and passes their root in;
//! [`layout`] says what lies where below 1 MiB for Linux.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod boot_parameters;
mod bzimage;
pub mod layout;
mod memory_map;
mod modules;
mod multiboot;
mod places;
mod pvh;
mod start;
#[cfg(test)]
mod tests;

use addr::Gpa;
use boot_parameters::BootParameters;
use bzimage::BzImage;
use core::fmt;
use guestmem::{GuestMemory, Outside};
use places::Places;
use vcpu::VcpuState;
use zerocopy::IntoBytes;

/// A file by its name.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// What a Multiboot or PVH kernel is told that it is called: for its modules, with what they are given behind it.
    pub name: &'a str,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct Boot<'a> {
    /// The bzImage, Multiboot image or PVH kernel.
    pub kernel: Module<'a>,
    /// The initial RAM disk, which is a Multiboot or PVH kernel's first module.
    pub initrd: Option<Module<'a>>,
    /// More modules, for such a kernel only.
    pub modules: &'a [Module<'a>],
    /// The command line, without the terminating NUL.
    pub command_line: &'a str,
    /// Where the ACPI tables' root pointer lies.
    pub rsdp: Gpa,
}

impl<'a> Boot<'a> {
    /// All that a kernel is given for which everything is a module.
    fn all_modules(&self) -> impl Iterator<Item = Module<'a>> {
        self.initrd.into_iter().chain(self.modules.iter().copied())
    }
}

/// Why a guest cannot be booted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The file has neither Linux's signatures nor a Multiboot header nor PVH's note.
    NotKernel,
    /// The kernel speaks an older boot protocol than 2.12.
    TooOld {
        /// Its version: the major number in bits 15:8, the minor one in bits 7:0.
        version: u16,
    },
    /// The kernel has no 64-bit entry: it is a 32-bit one.
    No64BitEntry,
    /// The kernel's file ends before its header says it does.
    Truncated,
    /// The header contradicts itself; the text names the field.
    BadHeader(&'static str),
    /// Kernel and initrd do not fit the guest's memory below 4 GiB.
    TooLarge {
        /// How much memory from 0 on they need.
        needed_bytes: u64,
        /// How much there is.
        have_bytes: u64,
    },
    /// The command line is longer than the kernel takes.
    CommandLineTooLong {
        /// The most that it takes, in bytes.
        max: u32,
    },
    /// The command line contains a NUL byte.
    CommandLineHasNul,
    /// There are modules, and the kernel is one that takes none.
    ModulesForLinux,
    /// A Multiboot image that says neither by addresses nor by an ELF header for 32-bit x86 what to load.
    NotElf32,
    /// A Multiboot image requires what this loader does not know.
    UnknownRequirements {
        /// The bits of its header's flags.
        flags: u32,
    },
    /// A Multiboot image, or what it is told, must lie where no free memory is.
    NoMemoryAt {
        /// The first address.
        start: u64,
        /// The end.
        end: u64,
    },
    /// An address that must be memory is none.
    Outside(Outside),
}

impl From<Outside> for Error {
    fn from(outside: Outside) -> Self {
        Self::Outside(outside)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotKernel => {
                write!(
                    out,
                    "not a kernel: use a Linux bzImage (a file like /boot/vmlinuz-*), a Multiboot 1 image or a PVH kernel"
                )
            }
            Self::TooOld { version } => {
                let (major, minor) = (version >> 8, version & 0xff);
                write!(out, "the kernel's boot protocol is {major}.{minor}: use Linux 3.8 or newer (protocol 2.12)")
            }
            Self::No64BitEntry => write!(out, "the kernel is a 32-bit one: use a 64-bit (x86_64) kernel"),
            Self::Truncated => write!(out, "the kernel's file is cut short: copy it again"),
            Self::BadHeader(field) => write!(out, "the kernel's header is damaged ({field}): copy the file again"),
            Self::TooLarge { needed_bytes, have_bytes } => {
                let (needed, have) = (needed_bytes.div_ceil(1 << 20), have_bytes >> 20);
                write!(out, "kernel and initrd need {needed} MiB of memory below 4 GiB but the guest has {have} MiB")?;
                write!(out, ": give it more memory")
            }
            Self::CommandLineTooLong { max } => write!(out, "the command line is too long: use at most {max} bytes"),
            Self::ModulesForLinux => {
                write!(out, "Linux takes no modules: give it an initial RAM disk, or boot a Multiboot 1 or PVH kernel")
            }
            Self::CommandLineHasNul => write!(out, "the command line contains a NUL byte: remove it"),
            Self::NotElf32 => {
                write!(
                    out,
                    "the Multiboot image is no 32-bit x86 program: link it as ELF32, or set flag 16 and addresses"
                )
            }
            Self::UnknownRequirements { flags } => {
                write!(out, "the Multiboot image requires what is not known (flags {flags:#x}): build it without")
            }
            Self::NoMemoryAt { start, end } => {
                write!(out, "the kernel needs {start:#x} to {end:#x}, which is not free memory: link it elsewhere, ")?;
                write!(out, "or give the guest more")
            }
            Self::Outside(Outside { at }) => write!(out, "the guest has no memory at {at}: give it more memory"),
        }
    }
}

/// Writes the kernel and everything that it is given, and returns the first vCPU's state.
///
/// A bzImage starts at its 64-bit entry with the first 4 GiB mapped one to one, interrupts off, and RSI at the boot
/// parameters. It lies where it prefers to, or above where it can be moved; the initrd as high as it may. A Multiboot
/// image lies where it is linked to and starts in 32-bit protected mode.
///
/// # Errors
/// Nothing was written when the kernel, the initrd or the command line is refused. Only [`Error::Outside`], which a
/// guest without memory below 640 KiB gets, may come late.
pub fn load(memory: &GuestMemory, boot: &Boot<'_>) -> Result<VcpuState, Error> {
    match (BzImage::parse(boot.kernel.bytes), multiboot::Header::find(boot.kernel.bytes)) {
        (Ok(image), _) => load_linux(memory, boot, &image),
        (Err(Error::NotKernel), Some(header)) => {
            multiboot::load(memory, boot, &multiboot::Image::parse(boot.kernel.bytes, header)?)
        }
        (Err(Error::NotKernel), None) => {
            pvh::load(memory, boot, pvh::Note::find(boot.kernel.bytes).ok_or(Error::NotKernel)?)
        }
        (Err(error), _) => Err(error),
    }
}

fn load_linux(memory: &GuestMemory, boot: &Boot<'_>, image: &BzImage<'_>) -> Result<VcpuState, Error> {
    if !boot.modules.is_empty() {
        return Err(Error::ModulesForLinux);
    }
    check_command_line(boot.command_line, image.header.cmdline_size.get())?;
    let places = Places::find(memory, image, boot.initrd.map_or(0, |module| module.bytes.len()) as u64)?;
    let parameters = BootParameters::new(memory, boot, image, places);

    memory.write(places.kernel.start(), image.payload)?;
    if let Some(initrd) = boot.initrd {
        memory.write(places.initrd, initrd.bytes)?;
    }
    memory.write(layout::COMMAND_LINE, boot.command_line.as_bytes())?;
    memory.store(layout::COMMAND_LINE.wrapping_add(boot.command_line.len() as u64), 1, 0)?;
    memory.write(layout::BOOT_PARAMS, parameters.as_bytes())?;
    start::write_tables(memory)?;
    Ok(start::state(places.kernel.start()))
}

fn check_command_line(command_line: &str, max: u32) -> Result<(), Error> {
    // Room for the NUL in ours; the header's number does not count it.
    let max = max.min(layout::COMMAND_LINE_BYTES as u32 - 1);
    if command_line.len() > max as usize {
        return Err(Error::CommandLineTooLong { max });
    }
    if command_line.contains('\0') {
        return Err(Error::CommandLineHasNul);
    }
    Ok(())
}
