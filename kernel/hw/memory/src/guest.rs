//! Copies to and from guests' frames.

use addr::{Hpa, PAGE_BYTES};
use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use guestmem::Backing;

/// Guests' frames through the host's identity map.
///
/// A guest may change its bytes during a copy, so these are not Rust's copies, which may assume that nobody does: a
/// string instruction reads or writes each byte once and promises nothing about the whole.
pub struct HostFrames;

impl Backing for HostFrames {
    fn read(&self, at: Hpa, into: &mut [u8]) {
        // SAFETY: `GuestMemory` checked that the bytes lie in one of the guest's frames, which are mapped; `into` is ours.
        unsafe { copy(at.as_u64() as *const u8, into.as_mut_ptr(), into.len()) }
    }

    fn write(&self, at: Hpa, from: &[u8]) {
        // SAFETY: as in `read`, the other way.
        unsafe { copy(from.as_ptr(), at.as_u64() as *mut u8, from.len()) }
    }

    fn zero(&self, at: Hpa, bytes: u64) {
        // SAFETY: as in `write`; whole quadwords first, then the rest.
        unsafe {
            asm!("rep stosq", "mov rcx, {rest}", "rep stosb", rest = in(reg) bytes % 8, inout("rcx") bytes / 8 => _,
                inout("rdi") at.as_u64() => _, in("rax") 0u64, options(nostack, preserves_flags));
        }
    }

    fn is_zero_page(&self, at: Hpa) -> bool {
        // SAFETY: as in `load`, for each quadword of the page.
        let page = unsafe { &*(at.as_u64() as *const [AtomicU64; PAGE_BYTES as usize / 8]) };
        page.chunks(8).all(|line| line.iter().fold(0, |all, word| all | word.load(Ordering::Relaxed)) == 0)
    }

    fn load(&self, at: Hpa, size: usize) -> u64 {
        let at = at.as_u64();
        // SAFETY: a guest's frame as in `read`; `GuestMemory` checked the alignment; every access to guest memory from
        // Rust is atomic or a string instruction.
        unsafe {
            match size {
                1 => (*(at as *const AtomicU8)).load(Ordering::Acquire).into(),
                2 => (*(at as *const AtomicU16)).load(Ordering::Acquire).into(),
                4 => (*(at as *const AtomicU32)).load(Ordering::Acquire).into(),
                _ => (*(at as *const AtomicU64)).load(Ordering::Acquire),
            }
        }
    }

    fn store(&self, at: Hpa, size: usize, value: u64) {
        let at = at.as_u64();
        // SAFETY: as in `load`.
        unsafe {
            match size {
                1 => (*(at as *const AtomicU8)).store(value as u8, Ordering::Release),
                2 => (*(at as *const AtomicU16)).store(value as u16, Ordering::Release),
                4 => (*(at as *const AtomicU32)).store(value as u32, Ordering::Release),
                _ => (*(at as *const AtomicU64)).store(value, Ordering::Release),
            }
        }
    }

    fn compare_exchange(&self, at: Hpa, size: usize, expected: u64, new: u64) -> bool {
        const ORDER: Ordering = Ordering::SeqCst;
        let at = at.as_u64();
        // SAFETY: as in `load`.
        unsafe {
            match size {
                1 => (*(at as *const AtomicU8)).compare_exchange(expected as u8, new as u8, ORDER, ORDER).is_ok(),
                2 => (*(at as *const AtomicU16)).compare_exchange(expected as u16, new as u16, ORDER, ORDER).is_ok(),
                4 => (*(at as *const AtomicU32)).compare_exchange(expected as u32, new as u32, ORDER, ORDER).is_ok(),
                _ => (*(at as *const AtomicU64)).compare_exchange(expected, new, ORDER, ORDER).is_ok(),
            }
        }
    }
}

/// Copies `bytes` bytes that another processor may be changing.
///
/// # Safety
/// Both ends are mapped for `bytes` bytes, and the writable one is not borrowed.
unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise; whole quadwords first, then the rest.
    unsafe {
        asm!("rep movsq", "mov rcx, {rest}", "rep movsb", rest = in(reg) bytes % 8, inout("rcx") bytes / 8 => _,
            inout("rsi") from => _, inout("rdi") to => _, options(nostack, preserves_flags));
    }
}
