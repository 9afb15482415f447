//! Model-specific registers.

use core::arch::asm;

/// IA32_SPEC_CTRL.
pub const SPEC_CTRL: u32 = 0x48;
/// IA32_PRED_CMD.
pub const PRED_CMD: u32 = 0x49;
/// IA32_FLUSH_CMD.
pub const FLUSH_CMD: u32 = 0x10b;
/// IA32_XFD.
pub const XFD: u32 = 0x1c4;
/// IA32_XFD_ERR.
pub const XFD_ERR: u32 = 0x1c5;
/// IA32_APIC_BASE.
pub const APIC_BASE: u32 = 0x1b;
/// IA32_PAT.
pub const PAT: u32 = 0x277;
/// IA32_XSS.
pub const XSS: u32 = 0xda0;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// EFER.
pub const EFER: u32 = 0xc000_0080;
/// STAR.
pub const STAR: u32 = 0xc000_0081;
/// LSTAR.
pub const LSTAR: u32 = 0xc000_0082;
/// CSTAR.
pub const CSTAR: u32 = 0xc000_0083;
/// SFMASK, which Intel calls IA32_FMASK.
pub const SFMASK: u32 = 0xc000_0084;
/// FS.base.
pub const FS_BASE: u32 = 0xc000_0100;
/// GS.base.
pub const GS_BASE: u32 = 0xc000_0101;
/// KernelGSbase.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// TSC_AUX.
pub const TSC_AUX: u32 = 0xc000_0103;
/// AMD TSC Ratio (APM volume 2, 15.30.5).
pub const TSC_RATIO: u32 = 0xc000_0104;
/// AMD VM_CR (APM volume 2, 15.30.1).
pub const VM_CR: u32 = 0xc001_0114;
/// AMD VM_HSAVE_PA (APM volume 2, 15.30.4).
pub const VM_HSAVE_PA: u32 = 0xc001_0117;
/// IA32_FEATURE_CONTROL (SDM volume 3, 24.7).
pub const FEATURE_CONTROL: u32 = 0x3a;

/// RDMSR.
///
/// # Safety
/// The processor has the register: another raises #GP, which stops the host.
pub unsafe fn read(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// WRMSR.
///
/// # Safety
/// The processor has the register, `value` is valid for it, and what it changes is the caller's to change.
pub unsafe fn write(index: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller's promise. Not `nomem`: many registers change what memory accesses do.
    unsafe { asm!("wrmsr", in("ecx") index, in("eax") low, in("edx") high, options(nostack, preserves_flags)) }
}
