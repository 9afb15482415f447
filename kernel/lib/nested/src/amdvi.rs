//! AMD-Vi's tables: what an AMD IOMMU walks for a device (AMD I/O Virtualization Technology specification 3.08, 2.2.3).

use crate::Format;
use addr::Hpa;

const PRESENT: u64 = 1 << 0;
/// Set by units that can, where they are told to.
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// The level of the table that an entry leads to, bits 11:9; 0 in one that maps a page of its own level's size.
const NEXT_LEVEL_SHIFT: u32 = 9;
const NEXT_LEVEL: u64 = 7 << NEXT_LEVEL_SHIFT;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const READABLE: u64 = 1 << 61;
const WRITABLE: u64 = 1 << 62;

/// The format of AMD-Vi's tables.
pub struct AmdVi;

impl Format for AmdVi {
    const ACCESSED: u64 = ACCESSED;
    const DIRTY: u64 = DIRTY;
    const WRITABLE: u64 = WRITABLE;

    fn table(next: Hpa, level: u32) -> u64 {
        next.as_u64() | PRESENT | u64::from(level - 1) << NEXT_LEVEL_SHIFT | READABLE | WRITABLE
    }

    fn page(frame: Hpa, _large: bool) -> u64 {
        frame.as_u64() | PRESENT | READABLE | WRITABLE
    }

    fn is_present(entry: u64) -> bool {
        entry & PRESENT != 0
    }

    fn is_large(entry: u64) -> bool {
        entry & NEXT_LEVEL == 0
    }

    fn frame(entry: u64) -> Hpa {
        Hpa::new(entry & FRAME)
    }
}
