//! Checks that CR8 and the local APIC's task priority are one register, and that lowering it lets interrupts through.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and CR8 is reached by MOV")]

use core::arch::asm;
use guests::apic::{self, register};
use guests::interrupts;
use guests::{cpu, guest, tap};

guest!(cr8);

/// Vectors of three priority classes.
const LOW_VECTOR: u8 = 0x41;
const EQUAL_VECTOR: u8 = 0x5e;
const HIGH_VECTOR: u8 = 0x81;
/// The task priority that holds the first two back.
const CLASS: u64 = 5;
/// Some seconds, on any processor.
const WAIT_CYCLES: u64 = 10_000_000_000;
/// Long enough for an interrupt that is let through to come.
const GRACE_CYCLES: u64 = 1_000_000;

fn cr8() {
    apic::start();
    one_register();
    reserved_bits();
    holds_back();
    after_sti();
    cpu::disable_interrupts();
}

fn one_register() {
    write(0xa);
    tap::check(read() == 0xa, "CR8 keeps what was written");
    tap::check(apic::read(register::TASK_PRIORITY) == 0xa0, "the local APIC's task priority is CR8");
    apic::write(register::TASK_PRIORITY, 0x37);
    tap::check(read() == 3, "CR8 is the local APIC's task priority");
    tap::check(apic::read(register::TASK_PRIORITY) == 0x37, "reading CR8 leaves its lower bits");
    write(0);
    tap::check(apic::read(register::TASK_PRIORITY) == 0, "writing CR8 clears its lower bits");
}

fn reserved_bits() {
    let fault = interrupts::catch(|| write(0x10));
    tap::check(fault.is_some_and(|fault| fault.vector == interrupts::PROTECTION), "CR8 bits 63:4 are reserved");
    tap::check(read() == 0, "a refused write changes nothing");
}

fn holds_back() {
    write(CLASS);
    cpu::enable_interrupts();
    apic::send_to_self(LOW_VECTOR);
    apic::send_to_self(EQUAL_VECTOR);
    apic::send_to_self(HIGH_VECTOR);
    tap::check(comes(HIGH_VECTOR), "a vector above CR8 arrives");
    cpu::wait_until(GRACE_CYCLES, || false);
    tap::check(interrupts::count(EQUAL_VECTOR) == 0, "a vector of CR8's own class waits");
    tap::check(interrupts::count(LOW_VECTOR) == 0, "a vector below CR8 waits");
    cpu::enable_interrupts();
    write(CLASS - 1);
    // No instruction of the guest's exits on the way.
    tap::check(spins_until(EQUAL_VECTOR), "it arrives as soon as CR8 falls below its class");
    tap::check(interrupts::count(LOW_VECTOR) == 0, "a lower one waits on");
    cpu::enable_interrupts();
    write(0);
    tap::check(spins_until(LOW_VECTOR), "and arrives when CR8 is zero");
    cpu::disable_interrupts();
}

fn after_sti() {
    let before = interrupts::count(LOW_VECTOR);
    write(CLASS);
    apic::send_to_self(LOW_VECTOR);
    write(0);
    tap::check(interrupts::count(LOW_VECTOR) == before, "nothing comes while RFLAGS.IF is clear");
    cpu::enable_interrupts();
    while interrupts::count(LOW_VECTOR) == before {
        core::hint::spin_loop();
    }
    cpu::disable_interrupts();
    tap::check(interrupts::count(LOW_VECTOR) == before + 1, "it comes once when RFLAGS.IF is set");
}

fn comes(vector: u8) -> bool {
    cpu::wait_until(WAIT_CYCLES, || interrupts::count(vector) != 0)
}

/// Looks for an interrupt a while, with nothing but loads.
fn spins_until(vector: u8) -> bool {
    (0..100_000_000u32).any(|_| interrupts::count(vector) != 0)
}

fn read() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr8", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

fn write(value: u64) {
    // SAFETY: every vector is handled; reserved bits fault, which is caught.
    unsafe { asm!("mov cr8, {}", in(reg) value, options(nostack)) }
}
