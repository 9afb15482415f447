//! A host without hardware, for tests and fuzzing: DMA memory from the heap, at whose addresses devices find it.
//!
//! The main type is [`HeapHal`]; [`peek`] and [`poke`] are the device's side of its memory.
#![expect(unsafe_code, reason = "memory is reached by its address, as a device does")]

use alloc::alloc::{alloc_zeroed, dealloc, handle_alloc_error};
use core::alloc::Layout;
use core::ptr::NonNull;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// Memory from the heap.
pub struct HeapHal;

fn layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).expect("few pages")
}

// SAFETY: pages come from the allocator, zeroed, aligned and alone; addresses of registers are those of live memory.
unsafe impl Hal for HeapHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: the layout is not empty: no caller asks for no page.
        let start = unsafe { alloc_zeroed(layout(pages)) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout(pages)));
        (start.as_ptr() as u64, start)
    }

    unsafe fn dma_dealloc(_: PhysAddr, start: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller gives back what `dma_alloc` gave.
        unsafe { dealloc(start.as_ptr(), layout(pages)) };
        0
    }

    unsafe fn mmio_phys_to_virt(physical: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(physical as *mut u8).expect("registers have an address")
    }

    unsafe fn share(_: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        unreachable!("this crate shares nothing")
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// Reads a value at an address that a driver gave, of memory that it keeps.
pub fn peek<T: Copy>(address: u64) -> T {
    // SAFETY: callers pass addresses that the driver gave, of memory that it keeps.
    unsafe { (address as *const T).read_unaligned() }
}

/// Writes one.
pub fn poke<T: Copy>(address: u64, value: T) {
    // SAFETY: as in `peek`.
    unsafe { (address as *mut T).write_unaligned(value) }
}
