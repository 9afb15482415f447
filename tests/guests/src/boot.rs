//! What the loader told: the command line and the memory map.

use core::slice;
use core::sync::atomic::{AtomicU64, Ordering};

/// Where the map's entries lie, how many there are, and how far apart; where the command line lies. 0: there is none.
static MAP: AtomicU64 = AtomicU64::new(0);
static MAP_ENTRIES: AtomicU64 = AtomicU64::new(0);
static MAP_STRIDE: AtomicU64 = AtomicU64::new(0);
static COMMAND_LINE: AtomicU64 = AtomicU64::new(0);

/// Notes what `information` says: Linux's boot parameters (`protocol` 0) or PVH's start information.
///
/// # Safety
/// It must be the address that the boot protocol passed.
pub(crate) unsafe fn start(information: u64, protocol: u32) {
    // SAFETY: the caller's promise; the offsets are those of zero-page.rst and of struct hvm_start_info.
    let word = |offset: u64| unsafe { ((information + offset) as *const u32).read_unaligned() };
    let wide = |offset: u64| u64::from(word(offset)) | u64::from(word(offset + 4)) << 32;
    let (map, entries, stride, line) = if protocol == 0 {
        (information + 0x2d0, u64::from(word(0x1e8) & 0xff), 20, u64::from(word(0x228)))
    } else {
        (wide(40), u64::from(word(48)), 24, wide(24))
    };
    MAP.store(map, Ordering::Relaxed);
    MAP_ENTRIES.store(entries, Ordering::Relaxed);
    MAP_STRIDE.store(stride, Ordering::Relaxed);
    COMMAND_LINE.store(line, Ordering::Relaxed);
}

/// The command line.
pub fn command_line() -> &'static str {
    let start = COMMAND_LINE.load(Ordering::Relaxed) as *const u8;
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
