//! Instructions that Rust has no words for: ports, MSRs, CPUID, the time-stamp counter, interrupts on and off.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc, CpuidResult};

/// The MSRs that guests use by name.
pub mod msr {
    /// IA32_SPEC_CTRL.
    pub const SPEC_CTRL: u32 = 0x48;
    /// IA32_PRED_CMD.
    pub const PRED_CMD: u32 = 0x49;
    /// IA32_ARCH_CAPABILITIES.
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    /// IA32_FLUSH_CMD.
    pub const FLUSH_CMD: u32 = 0x10b;
    /// IA32_XFD.
    pub const XFD: u32 = 0x1c4;
    /// IA32_XFD_ERR.
    pub const XFD_ERR: u32 = 0x1c5;
    /// IA32_PAT.
    pub const PAT: u32 = 0x277;
    /// IA32_APIC_BASE.
    pub const APIC_BASE: u32 = 0x1b;
    /// IA32_TSC_DEADLINE.
    pub const TSC_DEADLINE: u32 = 0x6e0;
    /// EFER.
    pub const EFER: u32 = 0xc000_0080;
}

/// Reads a byte from a port.
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: no device of the board writes memory because a port is read.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads two bytes from a port.
pub fn in16(port: u16) -> u16 {
    let value;
    // SAFETY: as `in8`.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads four bytes from a port.
pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as `in8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a byte to a port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: a device that is started through a port reaches only memory that its driver here gave it.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// Writes two bytes to a port.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as `out8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) };
}

/// Writes four bytes to a port.
pub fn out32(port: u16, value: u32) {
    // SAFETY: as `out8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
}

/// Reads an MSR; #GP where there is none.
pub fn read_msr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading changes nothing; a fault goes to the handler.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR; #GP where there is none or the value is refused.
///
/// # Safety
/// The value must leave memory and control flow of the running program as they are.
pub unsafe fn write_msr(index: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller's promise.
    unsafe { asm!("wrmsr", in("ecx") index, in("eax") low, in("edx") high, options(nostack, preserves_flags)) };
}

/// One leaf of CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: RDTSC has no effect on memory.
    unsafe { _rdtsc() }
}

/// Lets maskable interrupts in.
pub fn enable_interrupts() {
    // SAFETY: the IDT is loaded before a guest's main runs; handlers only count.
    unsafe { asm!("sti", options(nostack)) };
}

/// Keeps maskable interrupts out.
pub fn disable_interrupts() {
    // SAFETY: it only delays handlers.
    unsafe { asm!("cli", options(nostack)) };
}

/// Lets interrupts in and halts until one has been handled; then keeps them out again.
pub fn wait_for_interrupt() {
    // SAFETY: as `enable_interrupts`. The shadow of STI covers HLT, so that no wake-up is lost between them.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Waits with interrupts let in until `condition` holds, for at most `cycles` of the time-stamp counter.
pub fn wait_until(cycles: u64, mut condition: impl FnMut() -> bool) -> bool {
    let start = tsc();
    enable_interrupts();
    let mut met = condition();
    while !met && tsc().wrapping_sub(start) < cycles {
        core::hint::spin_loop();
        met = condition();
    }
    disable_interrupts();
    met
}
