//! The host's memory: frames, its own page tables, heap, stacks with guard pages, and the way to guests' frames.
//!
//! Every physical address is mapped at the same virtual address: RAM writable and never executable, the kernel's
//! image with the rights of its parts, the memory below 4 GiB that is no RAM uncached. [`init`] builds that from the
//! boot loader's map, [`protect`] takes the rights away; [`FRAMES`] is the one frame allocator.
#![no_std]
#![expect(unsafe_code, reason = "page tables, the heap and raw copies to guests' frames")]

extern crate alloc;

mod dma;
mod guest;
mod heap;
mod paging;
mod stack;
mod tables;

pub use dma::{Dma, DmaWatch, watch_dma};
pub use guest::HostFrames;
pub use heap::{Heap, HeapUse};
pub use paging::{map_firmware, map_mmio, seal_code, share};
pub use stack::Stack;
pub use tables::TableFrames;

use addr::frames::FrameAllocator;
use addr::{Hpa, PAGE_BYTES};
use boot::{BootInfo, Image, Region};
use spin::Mutex;

/// The host's free memory.
pub static FRAMES: Mutex<FrameAllocator> = Mutex::new(FrameAllocator::new());

/// Physical memory below this address is left alone: firmware data, and the page that starts the other processors.
const LOW_MEMORY_END: u64 = 1 << 20;

/// Gives all free RAM to [`FRAMES`], from which the heap takes what it needs.
///
/// Called once, on the boot processor, before anything is allocated.
pub fn init(boot: &BootInfo) {
    let image = BootInfo::image();
    let mut frames = FRAMES.lock();
    for region in boot.regions().iter().filter(|region| region.usable) {
        donate_free_parts(&mut frames, *region, boot, image);
    }
}

/// Replaces the boot code's page tables, in which everything may be written and executed, by the host's own.
///
/// Called once, after what must be read from the first page, which is unmapped from then on. The page below this
/// processor's stack is unmapped too.
pub fn protect(boot: &BootInfo) {
    paging::init(boot, BootInfo::image());
    paging::load();
}

/// Loads the host's page tables on another processor.
pub fn init_secondary() {
    paging::load();
}

/// The physical address of the host's page tables, for processors that start.
pub fn page_table() -> Hpa {
    paging::root()
}

/// `count` zeroed small frames in a row, aligned to `count` rounded up to a power of two.
pub fn take_zeroed(count: usize) -> Option<Hpa> {
    let frame = FRAMES.lock().take_small(count)?;
    // SAFETY: the frames were free, and the identity map covers them.
    unsafe { core::ptr::write_bytes(frame.as_u64() as *mut u8, 0, count * PAGE_BYTES as usize) };
    Some(frame)
}

/// Gives the allocator what of `region` holds neither low memory, the kernel, nor anything the boot loader left.
fn donate_free_parts(frames: &mut FrameAllocator, region: Region, boot: &BootInfo, image: Image) {
    let kernel = Region { start: image.text, end: image.end, usable: true };
    let low = Region { start: 0, end: LOW_MEMORY_END, usable: true };
    let modules = boot.modules().iter().map(|module| {
        let start = module.bytes.as_ptr() as u64;
        Region { start, end: start + module.bytes.len() as u64, usable: true }
    });
    let mut start = region.start;
    while start < region.end {
        // The first thing in use that ends above `start` decides what is free from there on.
        let used = [low, kernel, boot.own].into_iter().chain(modules.clone());
        let next = used.filter(|used| used.end > start && used.start < used.end).min_by_key(|used| used.start);
        let (free_end, resume) = match next {
            Some(used) if used.start < region.end => (used.start, used.end),
            _ => (region.end, region.end),
        };
        if start < free_end {
            frames.donate(Hpa::new(start), Hpa::new(free_end));
        }
        start = resume.next_multiple_of(PAGE_BYTES);
    }
}
