//! Memory and mappings for the host's virtio drivers: everything is where its address says.

use crate::{FRAMES, map_mmio, take_zeroed};
use addr::Hpa;
use core::ptr::NonNull;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

/// The drivers' way to memory.
pub struct Dma;

// SAFETY: frames are taken once, zeroed, and mapped at their own addresses for ever.
unsafe impl Hal for Dma {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        match take_zeroed(pages) {
            Some(frame) => (frame.as_u64(), NonNull::new(frame.as_u64() as *mut u8).expect("frame 0 is never free")),
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        FRAMES.lock().free_small(Hpa::new(paddr), pages);
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
