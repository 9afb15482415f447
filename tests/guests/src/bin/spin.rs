//! Spins with interrupts off, for ever: only its host can end it.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and the loop is one instruction")]

use core::arch::asm;
use guests::{guest, println};

guest!(spin);

fn spin() {
    println!("spinning");
    // SAFETY: it leaves nothing undone.
    unsafe { asm!("cli", "2: jmp 2b", options(noreturn)) }
}
