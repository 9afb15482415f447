//! A window of 2 MiB, above everything else, whose pages a guest maps as it likes.

use crate::cpu;
use core::arch::asm;

/// Where the window begins.
pub const WINDOW: u64 = 1 << 39;
/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;

/// Bits of an entry.
pub mod entry {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
}

#[repr(C, align(4096))]
struct Table([u64; 512]);

static mut POINTERS: Table = Table([0; 512]);
static mut DIRECTORY: Table = Table([0; 512]);
static mut PAGES: Table = Table([0; 512]);

/// Opens the window, with no page in it.
pub fn start() {
    const ALL: u64 = entry::PRESENT | entry::WRITABLE | entry::USER;
    let root: u64;
    // SAFETY: the upper tables belong to this program and lead nowhere else; the root is the loader's or the start-up
    // code's, in memory that is mapped one to one, and its second entry is not in use.
    unsafe {
        asm!("mov {}, cr3", out(reg) root, options(nomem, nostack, preserves_flags));
        (&raw mut POINTERS).cast::<u64>().write_volatile(&raw const DIRECTORY as u64 | ALL);
        (&raw mut DIRECTORY).cast::<u64>().write_volatile(&raw const PAGES as u64 | ALL);
        ((root & !0xfff) as *mut u64).add(1).write_volatile(&raw const POINTERS as u64 | ALL);
        asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags));
    }
}

/// Maps page `index` of the window.
pub fn map(index: u64, to: u64) {
    // SAFETY: an entry of this program's own; who uses the window says what lies there.
    unsafe {
        (&raw mut PAGES).cast::<u64>().add(index as usize).write_volatile(to);
        asm!("invlpg [{}]", in(reg) WINDOW + index * PAGE_BYTES, options(nostack, preserves_flags));
    }
}

/// The entry of page `index`, as it is now.
pub fn mapped(index: u64) -> u64 {
    // SAFETY: as `map`.
    unsafe { (&raw const PAGES).cast::<u64>().add(index as usize).read_volatile() }
}

/// Sets or clears CR0.WP.
pub fn set_write_protect(on: bool) {
    const WP: u64 = 1 << 16;
    let value: u64;
    // SAFETY: this program writes to no page that is mapped read-only but on purpose.
    unsafe {
        asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags));
        asm!("mov cr0, {}", in(reg) if on { value | WP } else { value & !WP }, options(nostack, preserves_flags));
    }
}

/// Sets or clears CR4.SMAP; false where the processor has none.
pub fn set_smap(on: bool) -> bool {
    const SMAP: u64 = 1 << 21;
    if cpu::cpuid(7, 0).ebx & 1 << 20 == 0 {
        return false;
    }
    let value: u64;
    // SAFETY: only pages of the window are for users.
    unsafe {
        asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags));
        asm!("mov cr4, {}", in(reg) if on { value | SMAP } else { value & !SMAP }, options(nostack, preserves_flags));
    }
    true
}
