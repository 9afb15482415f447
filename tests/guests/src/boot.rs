//! What the loader told: the command line and the memory map.

use core::slice;
use core::sync::atomic::{AtomicU64, Ordering};

/// Where the map's entries lie, how many there are, and how far apart; where the command line lies. 0: there is none.
static MAP: AtomicU64 = AtomicU64::new(0);
static MAP_ENTRIES: AtomicU64 = AtomicU64::new(0);
static MAP_STRIDE: AtomicU64 = AtomicU64::new(0);
static COMMAND_LINE: AtomicU64 = AtomicU64::new(0);
/// The Multiboot information.
static MULTIBOOT: AtomicU64 = AtomicU64::new(0);

/// Notes what `information` says: Linux's boot parameters (`protocol` 0), PVH's start information (1) or Multiboot's (2).
///
/// # Safety
/// It must be the address that the boot protocol passed.
pub(crate) unsafe fn start(information: u64, protocol: u32) {
    // SAFETY: the caller's promise; the offsets are those of zero-page.rst, of struct hvm_start_info and of
    // Multiboot 0.6.96, 3.3.
    let word = |offset: u64| unsafe { ((information + offset) as *const u32).read_unaligned() };
    let wide = |offset: u64| u64::from(word(offset)) | u64::from(word(offset + 4)) << 32;
    let (map, entries, stride, line) = match protocol {
        0 => (information + 0x2d0, u64::from(word(0x1e8) & 0xff), 20, u64::from(word(0x228))),
        1 => (wide(40), u64::from(word(48)), 24, wide(24)),
        // Each entry begins with its size, which is 20 without extensions.
        _ => (u64::from(word(48)) + 4, u64::from(word(44)) / 24, 24, u64::from(word(16))),
    };
    MULTIBOOT.store(if protocol == 2 { information } else { 0 }, Ordering::Relaxed);
    MAP.store(map, Ordering::Relaxed);
    MAP_ENTRIES.store(entries, Ordering::Relaxed);
    MAP_STRIDE.store(stride, Ordering::Relaxed);
    COMMAND_LINE.store(line, Ordering::Relaxed);
}

/// A module that a Multiboot loader passed.
pub struct Module {
    /// Its bytes.
    pub bytes: &'static [u8],
    /// Its name, and what it was given.
    pub name: &'static str,
}

/// The Multiboot modules; none where the program was not booted by Multiboot.
pub fn modules() -> impl Iterator<Item = Module> {
    // SAFETY: the loader's structures; nobody writes there.
    let word = |at: u64| u64::from(unsafe { (at as *const u32).read_unaligned() });
    let information = MULTIBOOT.load(Ordering::Relaxed);
    let (count, list) = if information == 0 { (0, 0) } else { (word(information + 20), word(information + 24)) };
    (0..count).map(move |index| {
        let entry = list + 16 * index;
        let (start, end) = (word(entry), word(entry + 4));
        // SAFETY: the loader's module, which nobody writes.
        let bytes = unsafe { slice::from_raw_parts(start as *const u8, (end - start) as usize) };
        Module { bytes, name: text(word(entry + 8) as *const u8) }
    })
}

/// Whether the program was booted by Multiboot.
pub fn is_multiboot() -> bool {
    MULTIBOOT.load(Ordering::Relaxed) != 0
}

/// The command line.
pub fn command_line() -> &'static str {
    text(COMMAND_LINE.load(Ordering::Relaxed) as *const u8)
}

/// A loader's text; empty where there is none.
fn text(start: *const u8) -> &'static str {
    if start.is_null() {
        return "";
    }
    let mut length = 0;
    // SAFETY: the loader ends it with a NUL and nobody writes there.
    let bytes = unsafe {
        while *start.add(length) != 0 {
            length += 1;
        }
        slice::from_raw_parts(start, length)
    };
    str::from_utf8(bytes).unwrap_or("")
}

/// The value of the word `key=value` on the command line.
pub fn number(key: &str) -> Option<u64> {
    let mut words = command_line().split_ascii_whitespace();
    words.find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

/// The memory of the map, first address and length, in its order.
pub fn memory() -> impl Iterator<Item = (u64, u64)> {
    const USABLE: u32 = 1;
    let (map, stride) = (MAP.load(Ordering::Relaxed), MAP_STRIDE.load(Ordering::Relaxed));
    (0..MAP_ENTRIES.load(Ordering::Relaxed)).filter_map(move |index| {
        let entry = map + index * stride;
        // SAFETY: an entry of the loader's map: address, length, kind.
        let (start, bytes, kind) = unsafe {
            (
                (entry as *const u64).read_unaligned(),
                ((entry + 8) as *const u64).read_unaligned(),
                ((entry + 16) as *const u32).read_unaligned(),
            )
        };
        (kind == USABLE).then_some((start, bytes))
    })
}

/// The memory behind the program up to 4 GiB: first address, on a page, and length.
pub fn free_memory() -> (u64, u64) {
    unsafe extern "C" {
        static __image_end: u8;
    }
    const MAPPED_END: u64 = 1 << 32;
    let image_end = &raw const __image_end as u64;
    let home = memory().find(|(start, bytes)| (*start..start + bytes).contains(&image_end));
    let end = home.map_or(image_end, |(start, bytes)| (start + bytes).min(MAPPED_END));
    let start = image_end.next_multiple_of(4096);
    (start, end.saturating_sub(start))
}
