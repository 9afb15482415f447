//! AMD's nested page tables: the format of long-mode tables (APM volume 2, revision 3.42, 15.25.5).

use crate::Format;
use addr::Hpa;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
/// Every access of a guest counts as a user's (15.25.5).
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// The format of nested page tables.
pub struct Npt;

impl Format for Npt {
    const ACCESSED: u64 = ACCESSED;
    const DIRTY: u64 = DIRTY;
    const WRITABLE: u64 = WRITABLE;

    fn table(next: Hpa, _level: u32) -> u64 {
        next.as_u64() | PRESENT | WRITABLE | USER
    }

    fn page(frame: Hpa, large: bool) -> u64 {
        frame.as_u64() | PRESENT | WRITABLE | USER | if large { LARGE } else { 0 }
    }

    fn is_present(entry: u64) -> bool {
        entry & PRESENT != 0
    }

    fn is_large(entry: u64) -> bool {
        entry & LARGE != 0
    }

    fn frame(entry: u64) -> Hpa {
        Hpa::new(entry & FRAME)
    }
}
