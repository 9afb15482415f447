//! Where kernel and initrd go.
//!
//! [`Places::find`] chooses among the guest's memory from 1 MiB to 4 GiB, so that nothing overlaps.

use crate::{BzImage, Error, layout};
use addr::{Gpa, GpaRange, PAGE_BYTES};
use guestmem::GuestMemory;

/// The page tables that the kernel starts with map up to here.
const MAPPED_END: u64 = 1 << 32;

/// What was chosen.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// The kernel and the memory it needs behind it.
    pub kernel: GpaRange,
    /// The initrd's first byte; 0 without one.
    pub initrd: Gpa,
}

impl Places {
    pub fn find(memory: &GuestMemory, image: &BzImage<'_>, initrd_bytes: u64) -> Result<Self, Error> {
        let too_large = |needed_bytes: u64| {
            let have_bytes = usable(memory).map(|range| range.1).max().unwrap_or(0);
            Error::TooLarge { needed_bytes, have_bytes }
        };
        let kernel = kernel(memory, image)
            .ok_or_else(|| too_large(image.header.pref_address.get().saturating_add(image.memory_bytes())))?;
        if initrd_bytes == 0 {
            return Ok(Self { kernel, initrd: Gpa::new(0) });
        }
        let limit = (u64::from(image.header.initrd_addr_max.get()) + 1).min(MAPPED_END);
        let initrd = initrd(memory, kernel, initrd_bytes, limit)
            .ok_or_else(|| too_large(kernel.end().as_u64().saturating_add(initrd_bytes)))?;
        Ok(Self { kernel, initrd })
    }
}

/// The guest's memory from 1 MiB to 4 GiB: first address and end of each range.
fn usable(memory: &GuestMemory) -> impl Iterator<Item = (u64, u64)> + '_ {
    memory
        .ranges()
        .map(|range| (range.start().as_u64().max(layout::HIGH_MEMORY.as_u64()), range.end().as_u64().min(MAPPED_END)))
        .filter(|(start, end)| start < end)
}

/// The lowest place from the preferred address on; a kernel that cannot be moved fits there or nowhere.
///
/// A relocatable kernel would move itself up to its preferred address from below (boot.rst, pref_address).
fn kernel(memory: &GuestMemory, image: &BzImage<'_>) -> Option<GpaRange> {
    let preferred = image.header.pref_address.get();
    let alignment = u64::from(image.header.kernel_alignment.get());
    usable(memory).find_map(|(start, end)| {
        let at = if image.header.relocatable_kernel != 0 {
            preferred.max(start).checked_next_multiple_of(alignment)?
        } else {
            preferred
        };
        let range = GpaRange::new(Gpa::new(at), image.memory_bytes())?;
        (at >= start && range.end().as_u64() <= end).then_some(range)
    })
}

/// The highest page-aligned place below `limit` that leaves the kernel alone.
fn initrd(memory: &GuestMemory, kernel: GpaRange, length_bytes: u64, limit: u64) -> Option<Gpa> {
    let (before, after) = (kernel.start().as_u64(), kernel.end().as_u64());
    usable(memory)
        .flat_map(|(start, end)| [(start, end.min(before)), (start.max(after), end)])
        .filter_map(|(start, end)| {
            let at = Gpa::new(end.min(limit).checked_sub(length_bytes)?).align_down(PAGE_BYTES);
            (at.as_u64() >= start).then_some(at)
        })
        .max()
}
