//! Multiboot 1: finds a place for the image, its modules and what the kernel is told, and enters it as a boot loader does.
//!
//! [`load`] follows the Multiboot Specification 0.6.96: section 3.1 is the header and 3.4 the image ([`image`]), 3.2 the
//! machine's state, 3.3 the information. Addresses follow QEMU's `-kernel` where the specification leaves them open: the
//! modules lie on pages behind the image ([`Modules`]), the command line begins with the kernel's name.

mod image;
mod information;
#[cfg(test)]
mod tests;

pub use image::{Header, Image};

use crate::memory_map::{self, Kind};
use crate::modules::Modules;
use crate::{Boot, Error, layout};
use addr::{Gpa, PAGE_BYTES};
use guestmem::GuestMemory;
use information::Information;
use vcpu::{Gpr, Segment, SegmentName, Table, VcpuState, cr0, rflags};

/// What EAX holds at the kernel's entry.
const MAGIC: u64 = 0x2bad_b002;
/// 32-bit code and data over all 4 GiB. The GDT that would give them need not exist.
const CODE: Segment = Segment { selector: 0x08, attributes: 0xc9b, limit: u32::MAX, base: 0 };
const DATA: Segment = Segment { selector: 0x10, attributes: 0xc93, limit: u32::MAX, base: 0 };
/// Everything that a 32-bit kernel is told lies below.
const ADDRESSES_END: u64 = 1 << 32;

/// Writes image, modules and information, and returns the first vCPU's state.
///
/// # Errors
/// As [`crate::load`].
pub fn load(memory: &GuestMemory, boot: &Boot<'_>, image: &Image<'_>) -> Result<VcpuState, Error> {
    check_places(memory, image)?;
    let modules = Modules::place(memory, boot, image)?;
    let information = Information::new(memory, boot, &modules)?;
    let at = place_information(memory, image, information.bytes())?;

    image.write(memory)?;
    modules.write(memory)?;
    information.write(memory, at)?;
    Ok(state(image.entry, at))
}

/// Memory that can hold parts of a kernel: first address and end of each range.
pub fn usable(memory: &GuestMemory) -> impl Iterator<Item = (u64, u64)> + '_ {
    memory_map::entries(memory)
        .filter(|(_, _, kind)| *kind == Kind::Memory)
        .map(|(start, end, _)| (start, end.min(ADDRESSES_END)))
        .filter(|(start, end)| start < end)
}

/// A kernel that is linked to an address lies there or nowhere.
pub fn check_places(memory: &GuestMemory, image: &Image<'_>) -> Result<(), Error> {
    for segment in image.segments() {
        let (start, end) = (segment.start, segment.end);
        if !usable(memory).any(|(first, last)| first <= start && end <= last) {
            return Err(Error::NoMemoryAt { start, end });
        }
    }
    Ok(())
}

/// The highest page below 640 KiB from which on the image leaves `bytes` alone, but for the first page.
pub fn place_information(memory: &GuestMemory, image: &Image<'_>, bytes: u64) -> Result<Gpa, Error> {
    let low_end = layout::LOW_MEMORY_END.as_u64();
    let mut end = usable(memory).find(|(start, _)| *start == 0).map_or(0, |(_, end)| end.min(low_end));
    loop {
        let start = end.saturating_sub(bytes) / PAGE_BYTES * PAGE_BYTES;
        if start < PAGE_BYTES {
            return Err(Error::NoMemoryAt { start: PAGE_BYTES, end: PAGE_BYTES + bytes });
        }
        // Each turn goes below one segment more.
        match image.segments().find(|segment| segment.start < end && start < segment.end) {
            Some(segment) => end = segment.start,
            None => return Ok(Gpa::new(start)),
        }
    }
}

/// The registers at the kernel's entry: protected mode, paging and interrupts off.
pub fn state(entry: u32, information: Gpa) -> VcpuState {
    let mut state = VcpuState::reset();
    state.gprs = [0; 16];
    state.gprs[Gpr::Rax as usize] = MAGIC;
    state.gprs[Gpr::Rbx as usize] = information.as_u64();
    state.rip = entry.into();
    state.rflags = rflags::FIXED;
    state.segments = [DATA; 6];
    state.segments[SegmentName::Cs as usize] = CODE;
    state.gdtr = Table { base: 0, limit: 0 };
    state.idtr = Table { base: 0, limit: 0 };
    state.cr0 = cr0::PE | cr0::ET;
    state
}
