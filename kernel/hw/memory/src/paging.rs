//! The host's own page tables: virtual address = physical address, writable or executable, never both.
//!
//! APM volume 2, revision 3.42, chapter 5. The tables are changed under one lock; a page that loses rights is flushed
//! on the processor that asked, which is enough: guard pages are made before their stack is used.

use crate::take_zeroed;
use addr::{HUGE_PAGE_BYTES, Hpa, LARGE_PAGE_BYTES, PAGE_BYTES};
use boot::{BootInfo, Image};
use core::arch::asm;
use spin::{Mutex, Once};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const RAM: u64 = PRESENT | WRITABLE | NO_EXECUTE;
const DEVICE: u64 = RAM | CACHE_DISABLE | WRITE_THROUGH;

const FOUR_GIB: u64 = 4 << 30;

static ROOT: Once<Mutex<Hpa>> = Once::new();

/// Builds the tables.
pub fn init(boot: &BootInfo, image: Image) {
    let root = table();
    // Everything below 4 GiB is mapped, so that devices and firmware tables can be reached; what is no RAM, uncached.
    for start in (0..FOUR_GIB).step_by(LARGE_PAGE_BYTES as usize) {
        let flags = if is_ram(boot, start) { RAM } else { DEVICE };
        *entry(root, start, 2) = start | flags | LARGE;
    }
    for region in boot.regions().iter().filter(|region| region.usable && region.end > FOUR_GIB) {
        let mut at = region.start.max(FOUR_GIB) & !(LARGE_PAGE_BYTES - 1);
        while at < region.end.next_multiple_of(LARGE_PAGE_BYTES) {
            *entry(root, at, 2) = at | RAM | LARGE;
            at += LARGE_PAGE_BYTES;
        }
    }
    let rights = [(image.text, image.rodata, PRESENT), (image.rodata, image.data, PRESENT | NO_EXECUTE)];
    for (start, end, flags) in rights {
        for page in (start..end).step_by(PAGE_BYTES as usize) {
            *entry(root, page, 1) = page | flags;
        }
    }
    // Nothing lives at address 0, but the processors start in the page after it.
    *entry(root, 0, 1) = 0;
    ROOT.call_once(|| Mutex::new(root));
}

/// Loads the tables on this processor.
pub fn load() {
    // SAFETY: the tables map all memory where it was mapped before.
    unsafe { asm!("mov cr3, {}", in(reg) root().as_u64(), options(nostack, preserves_flags)) }
}

/// The tables' address.
pub fn root() -> Hpa {
    *ROOT.get().expect("init ran").lock()
}

/// Takes away the page at `page`: touching it is a fault from now on.
pub fn unmap_page(page: Hpa) {
    let root = ROOT.get().expect("init ran").lock();
    *entry(*root, page.as_u64(), 1) = 0;
    // SAFETY: flushes one translation.
    unsafe { asm!("invlpg [{}]", in(reg) page.as_u64(), options(nostack, preserves_flags)) }
}

/// Makes the page at `page` executable and read-only, for code that was put there.
pub fn seal_code(page: Hpa) {
    let root = ROOT.get().expect("init ran").lock();
    *entry(*root, page.as_u64(), 1) = page.as_u64() | PRESENT;
    // SAFETY: flushes one translation.
    unsafe { asm!("invlpg [{}]", in(reg) page.as_u64(), options(nostack, preserves_flags)) }
}

/// Maps a device's registers, uncached, and returns their address. Idempotent; what lies below 4 GiB is mapped already.
pub fn map_mmio(start: Hpa, bytes: u64) -> *mut u8 {
    let root = ROOT.get().expect("init ran").lock();
    let mut at = start.align_down(LARGE_PAGE_BYTES).as_u64();
    while at < start.as_u64() + bytes {
        let entry = entry(*root, at, 2);
        if *entry & PRESENT == 0 {
            *entry = at | DEVICE | LARGE;
        }
        at += LARGE_PAGE_BYTES;
    }
    start.as_u64() as *mut u8
}

/// Whether any of the large page at `start` is RAM, of whatever kind the firmware calls it.
fn is_ram(boot: &BootInfo, start: u64) -> bool {
    let end = start + LARGE_PAGE_BYTES;
    boot.regions().iter().any(|region| region.usable && region.start < end && start < region.end)
}

/// An empty table.
fn table() -> Hpa {
    take_zeroed(1).expect("memory for page tables at start-up")
}

/// The entry that maps `address` at `level` (1: 4 KiB, 2: 2 MiB), making the tables above it; a larger page in the way
/// is split into equal smaller ones.
fn entry(root: Hpa, address: u64, level: u32) -> &'static mut u64 {
    let mut table_at = root;
    for above in (level + 1..=4).rev() {
        let entry = slot(table_at, address, above);
        if *entry & PRESENT == 0 {
            *entry = table().as_u64() | PRESENT | WRITABLE;
        } else if *entry & LARGE != 0 {
            *entry = split(*entry, above).as_u64() | PRESENT | WRITABLE;
        }
        table_at = Hpa::new(*entry & ADDRESS);
    }
    slot(table_at, address, level)
}

/// A table of smaller pages that maps what the large page `entry` at `level` does.
fn split(entry: u64, level: u32) -> Hpa {
    let part_bytes = if level == 3 { LARGE_PAGE_BYTES } else { PAGE_BYTES };
    let (base_mask, keep) = if level == 3 { (HUGE_PAGE_BYTES - 1, LARGE) } else { (LARGE_PAGE_BYTES - 1, 0) };
    let base = entry & ADDRESS & !base_mask;
    let flags = entry & !ADDRESS & !LARGE | keep;
    let parts = table();
    for index in 0..512 {
        *slot(parts, index * part_bytes, level - 1) = (base + index * part_bytes) | flags;
    }
    parts
}

fn slot(table_at: Hpa, address: u64, level: u32) -> &'static mut u64 {
    let index = address >> (12 + 9 * (level - 1)) & 511;
    // SAFETY: a table of ours, identity-mapped; the callers hold the lock, or run before there is one.
    unsafe { &mut *((table_at.as_u64() + index * 8) as *mut u64) }
}
