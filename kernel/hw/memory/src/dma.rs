//! Memory and mappings for the host's drivers: everything is where its address says.
//!
//! [`Dma`] is what drivers allocate through. Where an IOMMU confines devices, whoever drives it is told of what they
//! take and give back ([`watch_dma`]).

use crate::{FRAMES, map_mmio, take_zeroed};
use addr::Hpa;
use core::ptr::NonNull;
use spin::Once;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// The drivers' way to memory.
pub struct Dma;

/// Who wants to know what drivers take and give back.
#[derive(Clone, Copy)]
pub struct DmaWatch {
    /// A driver takes this many bytes from here on; false where its device cannot get them.
    pub taken: fn(Hpa, u64) -> bool,
    /// It gives them back; false where its device may still reach them, so that nobody else can have them.
    pub given_back: fn(Hpa, u64) -> bool,
}

static WATCH: Once<DmaWatch> = Once::new();

/// Tells `watch` of every allocation from now on. Once.
pub fn watch_dma(watch: DmaWatch) {
    WATCH.call_once(|| watch);
}

// SAFETY: frames are taken once, zeroed, and mapped at their own addresses for ever.
unsafe impl Hal for Dma {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let Some(frame) = take_zeroed(pages) else { return (0, NonNull::dangling()) };
        if WATCH.get().is_some_and(|watch| !(watch.taken)(frame, (pages * PAGE_SIZE) as u64)) {
            FRAMES.lock().free_small(frame, pages);
            return (0, NonNull::dangling());
        }
        (frame.as_u64(), NonNull::new(frame.as_u64() as *mut u8).expect("frame 0 is never free"))
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        if WATCH.get().is_none_or(|watch| (watch.given_back)(Hpa::new(paddr), (pages * PAGE_SIZE) as u64)) {
            FRAMES.lock().free_small(Hpa::new(paddr), pages);
        }
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
        NonNull::new(map_mmio(Hpa::new(paddr), size as u64)).expect("no device is at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}
