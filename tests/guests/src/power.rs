//! Ways to end: soft off, reset, triple fault.

use crate::cpu;
use core::arch::asm;

const PM1_CONTROL: u16 = 0x604;
const SLEEP_ENABLE: u16 = 1 << 13;
/// SLP_TYP of soft off as the board's `\_S5` has it, and as QEMU's boards have it.
const SLEEP_TYPES: [u16; 2] = [5, 0];

/// Powers the machine off (ACPI 6.5, 4.8.3.2).
pub fn off() -> ! {
    for kind in SLEEP_TYPES {
        cpu::out16(PM1_CONTROL, SLEEP_ENABLE | kind << 10);
    }
    stop()
}

/// Halts with interrupts off.
pub fn stop() -> ! {
    loop {
        // SAFETY: nothing is left to run.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Resets by the reset control register.
pub fn reset() -> ! {
    cpu::out8(0xcf9, 0x06);
    stop()
}

/// Resets by the keyboard controller's pulse on its reset line.
pub fn reset_by_keyboard_controller() -> ! {
    cpu::out8(0x64, 0xfe);
    stop()
}

/// Faults without an IDT to find a handler in, until the processor gives up.
pub fn triple_fault() -> ! {
    let empty = [0u8; 10];
    // SAFETY: the machine ends here; the operand is a pseudo-descriptor with limit 0.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &empty, options(noreturn)) }
}
