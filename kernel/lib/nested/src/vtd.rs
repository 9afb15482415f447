//! VT-d's second-stage tables: what an Intel IOMMU walks for a device (VT-d specification 4.1, 9.8, tables 45 to 48).

use crate::Format;
use addr::Hpa;

const READABLE: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
/// Set by units that can, where they are told to.
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// The format of VT-d's second-stage tables.
pub struct VtD;

impl Format for VtD {
    const ACCESSED: u64 = ACCESSED;
    const DIRTY: u64 = DIRTY;
    const WRITABLE: u64 = WRITABLE;

    fn table(next: Hpa, _level: u32) -> u64 {
        next.as_u64() | READABLE | WRITABLE
    }

    fn page(frame: Hpa, large: bool) -> u64 {
        frame.as_u64() | READABLE | WRITABLE | if large { LARGE } else { 0 }
    }

    fn is_present(entry: u64) -> bool {
        entry & (READABLE | WRITABLE) != 0
    }

    fn is_large(entry: u64) -> bool {
        entry & LARGE != 0
    }

    fn frame(entry: u64) -> Hpa {
        Hpa::new(entry & FRAME)
    }
}
