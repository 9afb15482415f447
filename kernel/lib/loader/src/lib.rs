//! Puts a Linux kernel where a boot loader would and says with which registers its first vCPU starts.
//!
//! [`load`] takes a bzImage, an initrd and a command line ([`Linux`]) and follows the kernel's 64-bit boot protocol
//! (Linux 6.12, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"; Documentation/arch/x86/zero-page.rst).
//! `machine` writes the tables of `firmware` first and passes their root in; [`layout`] says what lies where below 1 MiB.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod boot_parameters;
mod bzimage;
pub mod layout;
mod places;
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

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct Linux<'a> {
    /// The bzImage.
    pub kernel: &'a [u8],
    /// The initial RAM disk.
    pub initrd: Option<&'a [u8]>,
    /// The command line, without the terminating NUL.
    pub command_line: &'a str,
    /// Where the ACPI tables' root pointer lies.
    pub rsdp: Gpa,
}

/// Why a guest cannot be booted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The kernel has no boot sector with Linux's signatures.
    NotBzImage,
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
            Self::NotBzImage => write!(out, "not a Linux kernel: use a bzImage (a file like /boot/vmlinuz-*)"),
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
            Self::CommandLineHasNul => write!(out, "the command line contains a NUL byte: remove it"),
            Self::Outside(Outside { at }) => write!(out, "the guest has no memory at {at}: give it more memory"),
        }
    }
}

/// Writes kernel, initrd, command line, boot parameters, page tables and GDT, and returns the first vCPU's state.
///
/// The vCPU starts at the kernel's 64-bit entry with the first 4 GiB mapped one to one, interrupts off, and RSI at the
/// boot parameters. The kernel lies where it prefers to, or above where it can be moved; the initrd as high as it may.
///
/// # Errors
/// Nothing was written when the kernel, the initrd or the command line is refused. Only [`Error::Outside`], which a
/// guest without memory below 640 KiB gets, may come late.
pub fn load(memory: &GuestMemory, linux: &Linux<'_>) -> Result<VcpuState, Error> {
    let image = BzImage::parse(linux.kernel)?;
    check_command_line(linux.command_line, image.header.cmdline_size.get())?;
    let places = Places::find(memory, &image, linux.initrd.map_or(0, <[u8]>::len) as u64)?;
    let parameters = BootParameters::new(memory, linux, &image, places);

    memory.write(places.kernel.start(), image.payload)?;
    if let Some(initrd) = linux.initrd {
        memory.write(places.initrd, initrd)?;
    }
    memory.write(layout::COMMAND_LINE, linux.command_line.as_bytes())?;
    memory.store(layout::COMMAND_LINE.wrapping_add(linux.command_line.len() as u64), 1, 0)?;
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
