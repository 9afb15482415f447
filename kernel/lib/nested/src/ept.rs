//! Intel's extended page tables: an entry format of their own (SDM volume 3, revision 083, 29.3.2, tables 29-1 to 29-7).

use crate::Format;
use addr::Hpa;

const READABLE: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const EXECUTABLE: u64 = 1 << 2;
/// The memory type of a page, bits 5:3: write-back.
const WRITE_BACK: u64 = 6 << 3;
/// The guest's PAT does not count (29.3.7.2): its memory is the host's too, which maps it write-back, and two types for
/// one page are the guest's slowness at best.
const IGNORE_PAT: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// The format of extended page tables.
pub struct Ept;

impl Format for Ept {
    const ACCESSED: u64 = ACCESSED;
    const DIRTY: u64 = DIRTY;
    const WRITABLE: u64 = WRITABLE;

    fn table(next: Hpa, _level: u32) -> u64 {
        next.as_u64() | READABLE | WRITABLE | EXECUTABLE
    }

    fn page(frame: Hpa, large: bool) -> u64 {
        let rights = READABLE | WRITABLE | EXECUTABLE;
        frame.as_u64() | rights | WRITE_BACK | IGNORE_PAT | if large { LARGE } else { 0 }
    }

    fn is_present(entry: u64) -> bool {
        entry & (READABLE | WRITABLE | EXECUTABLE) != 0
    }

    fn is_large(entry: u64) -> bool {
        entry & LARGE != 0
    }

    fn frame(entry: u64) -> Hpa {
        Hpa::new(entry & FRAME)
    }
}
