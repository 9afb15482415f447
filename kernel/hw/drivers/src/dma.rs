//! Memory that a device reads and writes while the driver does.
//!
//! The main type is [`DmaMemory`]. No reference into it is ever made: values and bytes are copied in and out.
#![expect(unsafe_code, reason = "memory shared with a device is reached through raw pointers")]

use alloc::vec::Vec;
use block::HostRun;
use core::marker::PhantomData;
use core::ptr::NonNull;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE};

/// An integer as device structures hold it: little-endian, which is this processor's order.
pub(crate) trait Integer: Copy {}
impl Integer for u8 {}
impl Integer for u16 {}
impl Integer for u32 {}
impl Integer for u64 {}

/// A contiguous piece of DMA memory, zeroed at first. Freed on drop, which only happens once the device is stopped.
pub(crate) struct DmaMemory<H: Hal> {
    start: NonNull<u8>,
    physical: u64,
    pages: usize,
    hal: PhantomData<fn() -> H>,
}

// SAFETY: the memory belongs to this value alone on the processor's side, and raw memory has no thread.
unsafe impl<H: Hal> Send for DmaMemory<H> {}

impl<H: Hal> DmaMemory<H> {
    /// At least `bytes` bytes, or `None` where there is no memory.
    pub(crate) fn new(bytes: usize) -> Option<Self> {
        let pages = bytes.div_ceil(PAGE_SIZE).max(1);
        let (physical, start) = H::dma_alloc(pages, BufferDirection::Both);
        (physical != 0).then_some(Self { start, physical, pages, hal: PhantomData })
    }

    /// The device's address of the byte at `offset`.
    pub(crate) fn physical(&self, offset: usize) -> u64 {
        self.physical + offset as u64
    }

    /// Reads an integer at `offset`, a multiple of its size, as it is at this moment.
    pub(crate) fn load<T: Integer>(&self, offset: usize) -> T {
        // SAFETY: `integer` gives an aligned pointer inside this memory, and any bits are a `T`.
        unsafe { self.integer::<T>(offset).read_volatile() }
    }

    /// Writes an integer at `offset`, a multiple of its size.
    pub(crate) fn store<T: Integer>(&mut self, offset: usize, value: T) {
        // SAFETY: `integer` gives an aligned pointer inside this memory.
        unsafe { self.integer::<T>(offset).write_volatile(value) }
    }

    /// Copies bytes to `offset`.
    pub(crate) fn copy_from(&mut self, offset: usize, bytes: &[u8]) {
        let to = self.span(offset, bytes.len());
        // SAFETY: `span` gives as many bytes of this memory, which no reference reaches, so they overlap no slice.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) }
    }

    /// Copies `bytes` bytes at `offset` to the end of `into`.
    pub(crate) fn append_to(&self, offset: usize, bytes: usize, into: &mut Vec<u8>) {
        let from = self.span(offset, bytes);
        into.reserve(bytes);
        let length = into.len();
        // SAFETY: `reserve` made room for `bytes` more, `span` gives as many to read, and the two never overlap; all of
        // the new length is written before it is set.
        unsafe {
            from.as_ptr().copy_to_nonoverlapping(into.as_mut_ptr().add(length), bytes);
            into.set_len(length + bytes);
        }
    }

    /// Copies the bytes of runs, one after the other, to `offset`.
    ///
    /// # Safety
    /// The runs are memory of the host, mapped at its own addresses, that may be read meanwhile and is not this memory.
    pub(crate) unsafe fn copy_from_runs(&mut self, offset: usize, runs: &[HostRun]) {
        let mut at = offset;
        for run in runs {
            let bytes = run.bytes as usize;
            let to = self.span(at, bytes);
            // SAFETY: the caller answers for the source, and `span` for the destination.
            unsafe { (run.start.as_u64() as *const u8).copy_to_nonoverlapping(to.as_ptr(), bytes) };
            at += bytes;
        }
    }

    /// Copies the bytes at `offset` to runs, one after the other.
    ///
    /// # Safety
    /// As [`DmaMemory::copy_from_runs`], but that the runs may be written.
    pub(crate) unsafe fn copy_to_runs(&self, offset: usize, runs: &[HostRun]) {
        let mut at = offset;
        for run in runs {
            let bytes = run.bytes as usize;
            let from = self.span(at, bytes);
            // SAFETY: the caller answers for the destination, and `span` for the source.
            unsafe { (run.start.as_u64() as *mut u8).copy_from_nonoverlapping(from.as_ptr(), bytes) };
            at += bytes;
        }
    }

    fn integer<T: Integer>(&self, offset: usize) -> NonNull<T> {
        assert!(offset.is_multiple_of(size_of::<T>()), "an unaligned device field");
        self.span(offset, size_of::<T>()).cast()
    }

    /// The start of `bytes` bytes at `offset`, which must be inside.
    fn span(&self, offset: usize, bytes: usize) -> NonNull<u8> {
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.pages * PAGE_SIZE), "outside the DMA memory");
        // SAFETY: the sum is inside the allocation, as just checked.
        unsafe { self.start.add(offset) }
    }
}

impl<H: Hal> Drop for DmaMemory<H> {
    fn drop(&mut self) {
        // SAFETY: these are the values that `dma_alloc` gave and took in `new`, and drop runs once.
        unsafe { H::dma_dealloc(self.physical, self.start, self.pages) };
    }
}
