//! The bzImage file: a setup header inside real-mode code, then the protected-mode kernel.
//!
//! [`BzImage`] is a file whose header has been checked as far as this loader relies on it (Linux 6.12,
//! Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"). `places` and `boot_parameters` use it.

use crate::Error;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const SECTOR_BYTES: usize = 512;
/// Where the header starts, in the file and in the boot parameters.
pub const HEADER_OFFSET: usize = 0x1f1;
/// Where the space for it ends at the latest in the boot parameters.
const HEADER_END_MAX: usize = 0x290;
/// Where the header of the oldest protocol accepted here ends.
const HEADER_END_MIN: usize = 0x268;
/// The jump's displacement byte says where the header ends, counted from the byte after it.
const JUMP_END_OFFSET: usize = 0x202;
const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// The first protocol with a 64-bit entry that is announced (xloadflags).
const VERSION_MIN: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1 << 0;

/// The setup header with the names of the documentation, without its prefixes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone)]
#[repr(C)]
pub struct SetupHeader {
    pub setup_sects: u8,
    root_flags: U16,
    pub syssize: U32,
    ram_size: U16,
    vid_mode: U16,
    root_dev: U16,
    pub boot_flag: U16,
    jump: [u8; 2],
    pub header: U32,
    pub version: U16,
    realmode_swtch: U32,
    start_sys_seg: U16,
    kernel_version: U16,
    pub type_of_loader: u8,
    pub loadflags: u8,
    setup_move_size: U16,
    code32_start: U32,
    pub ramdisk_image: U32,
    pub ramdisk_size: U32,
    bootsect_kludge: U32,
    heap_end_ptr: U16,
    ext_loader_ver: u8,
    ext_loader_type: u8,
    pub cmd_line_ptr: U32,
    pub initrd_addr_max: U32,
    pub kernel_alignment: U32,
    pub relocatable_kernel: u8,
    min_alignment: u8,
    pub xloadflags: U16,
    pub cmdline_size: U32,
    hardware_subarch: U32,
    hardware_subarch_data: U64,
    payload_offset: U32,
    payload_length: U32,
    pub setup_data: U64,
    pub pref_address: U64,
    pub init_size: U32,
    handover_offset: U32,
    kernel_info_offset: U32,
    /// Room for what later protocols add.
    later: [u8; HEADER_END_MAX - 0x26c],
}

const _: () = assert!(size_of::<SetupHeader>() == HEADER_END_MAX - HEADER_OFFSET);
const _: () = assert!(HEADER_OFFSET + core::mem::offset_of!(SetupHeader, pref_address) == 0x258);

/// A kernel file, checked.
pub struct BzImage<'a> {
    /// The header, with zeroes behind its end.
    pub header: SetupHeader,
    /// The protected-mode kernel, which is loaded.
    pub payload: &'a [u8],
}

impl<'a> BzImage<'a> {
    /// Where the 64-bit entry lies in the payload.
    pub const ENTRY_OFFSET: u64 = 0x200;

    pub fn parse(file: &'a [u8]) -> Result<Self, Error> {
        let header = header(file)?;
        // A kernel from before it was counted has four.
        let setup_sectors = if header.setup_sects == 0 { 4 } else { usize::from(header.setup_sects) };
        let payload = file.get((setup_sectors + 1) * SECTOR_BYTES..).ok_or(Error::Truncated)?;
        // The size is in paragraphs, the last of which the file may cut short; behind it a signature may follow.
        let declared = u64::from(header.syssize.get()) * 16;
        if declared > (payload.len() as u64).next_multiple_of(16) {
            return Err(Error::Truncated);
        }
        let payload = &payload[..payload.len().min(declared as usize)];
        if payload.len() as u64 <= Self::ENTRY_OFFSET {
            return Err(Error::BadHeader("syssize"));
        }
        Ok(Self { header, payload })
    }

    /// How much memory the kernel needs from its start on until it has read the memory map.
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.header.init_size.get()).max(self.payload.len() as u64)
    }
}

fn header(file: &[u8]) -> Result<SetupHeader, Error> {
    const JUMP_OFFSET: usize = JUMP_END_OFFSET - 1;
    let jump = usize::from(*file.get(JUMP_OFFSET).ok_or(Error::NotKernel)?);
    let end = (JUMP_END_OFFSET + jump).min(HEADER_END_MAX);
    let mut raw = [0; HEADER_END_MAX - HEADER_OFFSET];
    let present = file.get(HEADER_OFFSET..end.min(file.len())).ok_or(Error::NotKernel)?;
    raw[..present.len()].copy_from_slice(present);
    let header = SetupHeader::read_from_bytes(&raw).map_err(|_| Error::NotKernel)?;

    let version = header.version.get();
    if header.boot_flag.get() != BOOT_FLAG || header.header.get() != MAGIC {
        return Err(Error::NotKernel);
    }
    if version < VERSION_MIN {
        return Err(Error::TooOld { version });
    }
    if file.len() < end {
        return Err(Error::Truncated);
    }
    if end < HEADER_END_MIN {
        return Err(Error::BadHeader("jump"));
    }
    if header.xloadflags.get() & XLF_KERNEL_64 == 0 {
        return Err(Error::No64BitEntry);
    }
    if !header.kernel_alignment.get().is_power_of_two() {
        return Err(Error::BadHeader("kernel_alignment"));
    }
    Ok(header)
}
