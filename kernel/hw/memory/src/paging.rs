//! The host's own page tables: virtual address = physical address, writable or executable, never both.
//!
//! APM volume 2, revision 3.42, chapter 5. The tables are changed under one lock, and changes are flushed on the
//! processor that asked. That is enough, as mappings change only while it runs alone: no other may hold a large page's
//! translation while the page is split (5.5.2). [`share`] ends that time.

use crate::take_zeroed;
use addr::{HUGE_PAGE_BYTES, Hpa, LARGE_PAGE_BYTES, PAGE_BYTES};
use boot::{BootInfo, Image};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};
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
/// Where the lower half of virtual addresses ends, and with it what can be mapped at its own address.
const ADDRESS_END: u64 = 1 << 47;

/// Whether other processors may use the tables.
static SHARED: AtomicBool = AtomicBool::new(false);
static ROOT: Once<Mutex<Hpa>> = Once::new();

/// Builds the tables.
pub fn init(boot: &BootInfo, image: Image) {
    let root = table();
    // Everything below 4 GiB is mapped, so that devices and firmware tables can be reached; what is no RAM, uncached.
    for start in (0..FOUR_GIB).step_by(LARGE_PAGE_BYTES as usize) {
        let flags = if is_ram(boot, start) { RAM } else { DEVICE };
        *entry(root, start, 2) = start | flags | LARGE;
    }
    // Above, what is RAM and not a byte more: next to it may be devices.
    for region in boot.regions().iter().filter(|region| region.usable && region.end > FOUR_GIB) {
        let mut at = region.start.max(FOUR_GIB).next_multiple_of(PAGE_BYTES);
        while at + PAGE_BYTES <= region.end.min(ADDRESS_END) {
            let large = at.is_multiple_of(LARGE_PAGE_BYTES) && at + LARGE_PAGE_BYTES <= region.end;
            let (level, flags, bytes) = if large { (2, RAM | LARGE, LARGE_PAGE_BYTES) } else { (1, RAM, PAGE_BYTES) };
            *entry(root, at, level) = at | flags;
            at += bytes;
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
    *entry(root, BootInfo::stack_guard(), 1) = 0;
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
    set_page(page.as_u64(), 0);
}

/// Makes the page at `page` executable and read-only, for code that was put there.
pub fn seal_code(page: Hpa) {
    set_page(page.as_u64(), page.as_u64() | PRESENT);
}

/// Other processors are about to use the tables: nothing that is mapped may change any more.
pub fn share() {
    SHARED.store(true, Ordering::Release);
}

/// Maps a device's registers, uncached, and returns their address. Idempotent. Where a large page that holds them is
/// RAM for the rest, they become small pages of their own.
pub fn map_mmio(start: Hpa, bytes: u64) -> *mut u8 {
    let end = start.as_u64() + bytes;
    let mut at = start.align_down(PAGE_BYTES).as_u64();
    while at < end {
        let large = at & !(LARGE_PAGE_BYTES - 1);
        if map_absent(large, DEVICE) || lookup(at) & DEVICE == DEVICE {
            at = if lookup(at) & LARGE != 0 { large + LARGE_PAGE_BYTES } else { at + PAGE_BYTES };
        } else {
            set_page(at, at | DEVICE);
            at += PAGE_BYTES;
        }
    }
    start.as_u64() as *mut u8
}

/// Maps what the firmware left in memory that it does not call usable; says whether all of it can be read now.
/// Idempotent; everything below 4 GiB is mapped already.
pub fn map_firmware(start: Hpa, bytes: u64) -> bool {
    let Some(end) = start.as_u64().checked_add(bytes).filter(|&end| end <= ADDRESS_END.min(physical_end())) else {
        return false;
    };
    let first = start.align_down(PAGE_BYTES).as_u64().max(FOUR_GIB);
    for page in (first..end).step_by(PAGE_BYTES as usize) {
        if lookup(page) & PRESENT == 0 {
            set_page(page, page | RAM);
        }
    }
    true
}

/// Whether any of the large page at `start` is RAM, of whatever kind the firmware calls it.
fn is_ram(boot: &BootInfo, start: u64) -> bool {
    let end = start + LARGE_PAGE_BYTES;
    boot.regions().iter().any(|region| region.usable && region.start < end && start < region.end)
}

/// The first physical address that this processor has not.
fn physical_end() -> u64 {
    1 << (cpu::cpuid(0x8000_0008, 0).eax & 0xff).clamp(32, 52)
}

/// Maps the large page at `large`, if nothing of it is mapped; says whether it did.
fn map_absent(large: u64, flags: u64) -> bool {
    let root = ROOT.get().expect("init ran").lock();
    let entry = entry(*root, large, 2);
    let absent = *entry & PRESENT == 0;
    if absent {
        *entry = large | flags | LARGE;
    }
    absent
}

/// Writes the entry of a small page and flushes its translation here.
fn set_page(page: u64, value: u64) {
    assert!(!SHARED.load(Ordering::Acquire), "mappings change only before other processors use them");
    let root = ROOT.get().expect("init ran").lock();
    *entry(*root, page, 1) = value;
    // SAFETY: flushes one translation, of whatever size.
    unsafe { asm!("invlpg [{}]", in(reg) page, options(nostack, preserves_flags)) }
}

/// The entry that maps `address`, or one that is not present.
fn lookup(address: u64) -> u64 {
    let root = ROOT.get().expect("init ran").lock();
    let mut table_at = *root;
    for level in (1..=4).rev() {
        let entry = *slot(table_at, address, level);
        if entry & PRESENT == 0 || entry & LARGE != 0 || level == 1 {
            return entry;
        }
        table_at = Hpa::new(entry & ADDRESS);
    }
    unreachable!("level 1 has no table below")
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
