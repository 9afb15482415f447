//! The firmware of a VM without a kernel: OVMF, whose two files travel as boot modules.
//!
//! [`Files`] finds and checks them; [`prepare`] lays out a VM's memory with the code at its end, as read-only pages that all
//! VMs share. The variables belong to the VM.

use super::{GuestFrames, Refusal, Vm};
use crate::host::Host;
use addr::{Gpa, Hpa, LARGE_PAGE_BYTES, PAGE_BYTES};
use alloc::format;
use alloc::sync::Arc;
use firmware::layout;
use guestmem::GuestMemory;
use machine::FirmwareConfig;
use spin::Once;

/// The boot modules' names.
const CODE: &str = "ovmf-code";
const VARIABLES: &str = "ovmf-vars";
/// How much code and variables may be together: what PC firmware has below 4 GiB, above the local APICs.
const FLASH_BYTES_MAX: u64 = 8 << 20;

/// What the code is told by from another one: accidents, not intent, make two hosts' differ.
const CHECKSUM: crc::Crc<u64> = crc::Crc::<u64>::new(&crc::CRC_64_XZ);

/// The code's, which is made once: it takes milliseconds.
static CODE_CHECKSUM: Once<u64> = Once::new();

/// The firmware's files.
pub struct Files {
    code: &'static [u8],
    /// What a new VM's variables are.
    pub variables: &'static [u8],
}

impl Files {
    /// The files, or why no VM can boot by UEFI.
    pub fn find(host: &Host) -> Result<Self, Refusal> {
        let module = |name| {
            let remedy = || format!("give the VM a kernel, or put {CODE} and {VARIABLES} (Debian's ovmf) on the image");
            host.module(name).ok_or_else(|| (format!("there is no boot module {name}, to boot by UEFI"), remedy()))
        };
        let (code, variables) = (module(CODE)?, module(VARIABLES)?);
        let bytes = code.len() as u64 + variables.len() as u64;
        let whole = |file: &[u8]| !file.is_empty() && (file.len() as u64).is_multiple_of(PAGE_BYTES);
        if !whole(code) || !whole(variables) || bytes > FLASH_BYTES_MAX || !place(code).is_aligned(PAGE_BYTES) {
            let message = format!("the boot modules {CODE} and {VARIABLES} are no firmware in two files");
            return Err((message, "use OVMF_CODE_4M.fd and OVMF_VARS_4M.fd of Debian's ovmf".into()));
        }
        Ok(Self { code, variables })
    }
}

/// What a VM with a firmware of its own is made of.
type Prepared = (GuestMemory, Option<FirmwareConfig>, Option<Arc<GuestFrames>>);

/// A VM's memory over its frames, and its firmware, with the memory of its flash, if it has one.
pub fn prepare(host: &Host, vm: &Vm, frames: &Arc<GuestFrames>) -> Result<Prepared, Refusal> {
    if vm.spec.kernel.is_some() {
        return Ok((frames.memory()?, None, None));
    }
    let files = Files::find(host)?;
    let code_bytes = files.code.len() as u64;
    let mut memory = frames.memory_below(layout::LOW_MEMORY_END_FIRMWARE)?;
    let start = Gpa::new(layout::FLASH_END.as_u64() - code_bytes);
    memory.add_rom(start, place(files.code), code_bytes);
    let flash_bytes = (files.variables.len() as u64).next_multiple_of(LARGE_PAGE_BYTES);
    let flash_frames = Arc::new(GuestFrames::take(flash_bytes, &Arc::default())?);
    let flash = flash_frames.memory()?;
    let kept = vm.variables.lock();
    let content = kept.as_deref().unwrap_or(files.variables);
    flash.write(Gpa::new(0), content).expect("it was made for them");
    let code_checksum = *CODE_CHECKSUM.call_once(|| CHECKSUM.checksum(files.code));
    let firmware = FirmwareConfig { code_bytes, code_checksum, variables: flash, variables_bytes: content.len() };
    Ok((memory, Some(firmware), Some(flash_frames)))
}

/// Where a boot module is: virtual addresses are physical ones.
fn place(module: &[u8]) -> Hpa {
    Hpa::new(module.as_ptr() as u64)
}
