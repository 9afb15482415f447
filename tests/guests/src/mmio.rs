//! Single loads and stores at physical addresses, of every size and at every alignment, by one MOV each.

use core::arch::asm;

/// Loads `size` (1, 2, 4 or 8) bytes.
///
/// # Safety
/// The address must be mapped and hold no Rust object, or fault into [`crate::interrupts::catch`].
pub unsafe fn read(address: u64, size: usize) -> u64 {
    let value;
    // SAFETY: the caller's promise. MOV takes any alignment, unlike a volatile read.
    unsafe {
        match size {
            1 => {
                asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) address, options(nostack, preserves_flags))
            }
            2 => {
                asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) address, options(nostack, preserves_flags))
            }
            4 => asm!("mov {0:e}, [{1}]", out(reg) value, in(reg) address, options(nostack, preserves_flags)),
            _ => asm!("mov {0}, [{1}]", out(reg) value, in(reg) address, options(nostack, preserves_flags)),
        }
    }
    value
}

/// Stores `size` (1, 2, 4 or 8) bytes.
///
/// # Safety
/// As [`read`]; what the store starts must leave Rust's objects alone.
pub unsafe fn write(address: u64, size: usize, value: u64) {
    // SAFETY: as `read`.
    unsafe {
        match size {
            1 => asm!("mov [{1}], {0}", in(reg_byte) value as u8, in(reg) address, options(nostack, preserves_flags)),
            2 => asm!("mov [{1}], {0:x}", in(reg) value, in(reg) address, options(nostack, preserves_flags)),
            4 => asm!("mov [{1}], {0:e}", in(reg) value, in(reg) address, options(nostack, preserves_flags)),
            _ => asm!("mov [{1}], {0}", in(reg) value, in(reg) address, options(nostack, preserves_flags)),
        }
    }
}
