//! One physical processor: its registers, CPUID, ports, descriptor tables and per-CPU data.
//!
//! Thin wrappers whose safety is argued once, here; [`tables::load`] and [`percpu`] set up a processor. Every other
//! `hw` crate builds on this one.
#![no_std]
#![expect(unsafe_code, reason = "instructions that Rust has no word for")]

extern crate alloc;

pub mod fpu;
pub mod machine_check;
pub mod msr;
pub mod percpu;
pub mod speculation;
pub mod tables;

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc};

/// What CPUID returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "the names are the architecture's")]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

impl CpuidResult {
    /// EAX, EBX, ECX and EDX.
    pub const fn registers(self) -> [u32; 4] {
        [self.eax, self.ebx, self.ecx, self.edx]
    }
}

/// CPUID of a leaf; zeroes for one beyond what the processor has, where Intel's would repeat its last.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let last = __cpuid_count(leaf & 0xffff_0000, 0).eax;
    if leaf > last {
        return CpuidResult::default();
    }
    let result = __cpuid_count(leaf, subleaf);
    CpuidResult { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx }
}

/// Whether this machine says of itself that it is a virtual one.
pub fn is_virtual() -> bool {
    cpuid(1, 0).ecx & 1 << 31 != 0
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: CR4.TSD is clear and every 64-bit processor has it.
    unsafe { _rdtsc() }
}

/// Lets interrupts in and waits for one; returns after its handler, with interrupts shut again.
///
/// Call with interrupts shut, after the last look at what would be a reason not to wait: STI takes effect after HLT
/// has begun, so that an interrupt in between is not missed.
pub fn wait_for_interrupt() {
    // SAFETY: handlers are installed before the first use; they touch only their own data. Not `nomem`, here and below:
    // what handlers note must be read after it, and what they read must be written before.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}

/// Shuts interrupts; says whether they were open.
pub fn shut_interrupts() -> bool {
    let flags: u64;
    // SAFETY: reads RFLAGS and clears IF.
    unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) }
    flags & 1 << 9 != 0
}

/// Lets pending interrupts in for one moment.
pub fn take_interrupts() {
    // SAFETY: as in `wait_for_interrupt`; NOP ends STI's shadow.
    unsafe { asm!("sti", "nop", "cli", options(nostack)) }
}

/// Opens interrupts.
pub fn open_interrupts() {
    // SAFETY: as in `wait_for_interrupt`.
    unsafe { asm!("sti", options(nostack)) }
}

/// Stops this processor for ever.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: nothing runs on this processor after it.
        unsafe { asm!("cli", "hlt", options(nostack)) }
    }
}

/// Port input of one byte.
///
/// # Safety
/// Reading the port must have no effect that another part of the host relies on not happening.
pub unsafe fn port_in8(port: u16) -> u8 {
    let value;
    // SAFETY: the caller's promise.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Port output of one byte.
///
/// # Safety
/// The device behind the port does what its owner wants.
pub unsafe fn port_out8(port: u16, value: u8) {
    // SAFETY: the caller's promise.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

/// Port input of two bytes.
///
/// # Safety
/// As [`port_in8`].
pub unsafe fn port_in16(port: u16) -> u16 {
    let value;
    // SAFETY: the caller's promise.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Port output of two bytes.
///
/// # Safety
/// As [`port_out8`].
pub unsafe fn port_out16(port: u16, value: u16) {
    // SAFETY: the caller's promise.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) }
}

/// Port input of four bytes.
///
/// # Safety
/// As [`port_in8`].
pub unsafe fn port_in32(port: u16) -> u32 {
    let value;
    // SAFETY: the caller's promise.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Port output of four bytes.
///
/// # Safety
/// As [`port_out8`].
pub unsafe fn port_out32(port: u16, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) }
}

/// A random number from RDRAND, where the processor has it and it delivers.
pub fn random() -> Option<u64> {
    if cpuid(1, 0).ecx & 1 << 30 == 0 {
        return None;
    }
    // The manual advises ten tries (SDM volume 1, 7.3.17.1).
    (0..10).find_map(|_| {
        let (value, ok): (u64, u8);
        // SAFETY: CPUID offers the instruction.
        unsafe { asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) ok, options(nomem, nostack)) }
        (ok != 0).then_some(value)
    })
}
