//! A host without hardware, for tests and fuzzing: DMA memory from the heap, at whose addresses devices find it.
//!
//! The main types are [`HeapHal`] and, for devices with addresses of 32 bits, [`LowHal`]; [`peek`] and [`poke`] are the
//! device's side of their memory.
#![expect(unsafe_code, reason = "memory is reached by its address, as a device does")]

use alloc::alloc::{alloc_zeroed, dealloc, handle_alloc_error};
use alloc::vec::Vec;
use core::alloc::Layout;
use core::ptr::NonNull;
use spin::Mutex;
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

/// Where devices see the first memory of [`LowHal`].
const LOW_START: u64 = 1 << 20;

/// The memory that [`LowHal`] gave out: where devices see it, where it is, and its bytes.
static LOW: Mutex<Vec<(u64, u64, u64)>> = Mutex::new(Vec::new());

/// Memory from the heap that devices see below 4 GiB, at [`low`].
pub struct LowHal;

// SAFETY: memory is that of `HeapHal`, and no two pieces that live at one time have the same address for devices.
unsafe impl Hal for LowHal {
    fn dma_alloc(pages: usize, direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let (at, start) = HeapHal::dma_alloc(pages, direction);
        let mut low = LOW.lock();
        let physical = low.iter().map(|(physical, _, bytes)| physical + bytes).max().unwrap_or(LOW_START);
        low.push((physical, at, (pages * PAGE_SIZE) as u64));
        (physical, start)
    }

    unsafe fn dma_dealloc(physical: PhysAddr, start: NonNull<u8>, pages: usize) -> i32 {
        LOW.lock().retain(|(other, ..)| *other != physical);
        // SAFETY: the caller gives back what `dma_alloc` gave.
        unsafe { HeapHal::dma_dealloc(physical, start, pages) }
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("such devices have no registers in memory")
    }

    unsafe fn share(_: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        unreachable!("this crate shares nothing")
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// The address for [`peek`] and [`poke`] of memory that a device sees at `address`; `None` where not all of it is one
/// piece that [`LowHal`] gave.
pub fn low(address: u64, bytes: u64) -> Option<u64> {
    let low = LOW.lock();
    let piece = low.iter().find(|(start, _, all)| address >= *start && address + bytes <= start + all);
    piece.map(|(start, at, _)| at + (address - start))
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
