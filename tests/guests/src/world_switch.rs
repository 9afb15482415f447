//! The floor under every exit: VMRUN and #VMEXIT around one CPUID, with nothing between them.
//!
//! Only on a processor with SVM, that is, where the guest runs directly on the emulator. The inner program shares the
//! outer one's memory and page tables; nested paging maps every address to itself, as it must under a hypervisor. APM volume 2, chapter 15 and appendix B.

use crate::cpu;
use core::arch::asm;

const EFER_SVME: u64 = 1 << 12;
const VM_HSAVE_PA: u32 = 0xc001_0117;
const EXIT_CPUID: u64 = 0x72;

/// Offsets into the control block.
mod field {
    pub const INTERCEPT_MISC_1: usize = 0x0c;
    pub const INTERCEPT_MISC_2: usize = 0x10;
    pub const ASID: usize = 0x58;
    pub const EXIT_CODE: usize = 0x70;
    pub const NESTED_ENABLE: usize = 0x90;
    pub const NESTED_CR3: usize = 0xb0;
    pub const ES: usize = 0x400;
    pub const CS: usize = 0x410;
    pub const SS: usize = 0x420;
    pub const DS: usize = 0x430;
    pub const EFER: usize = 0x4d0;
    pub const CR4: usize = 0x548;
    pub const CR3: usize = 0x550;
    pub const CR0: usize = 0x558;
    pub const RFLAGS: usize = 0x570;
    pub const RIP: usize = 0x578;
    pub const RSP: usize = 0x5d8;
    pub const PAT: usize = 0x668;
}

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// The upper two levels of the nested tables: 4 GiB in pages of 1 GiB.
#[repr(C, align(4096))]
struct Table([u64; 512]);

static mut NESTED_ROOT: Table = Table([0; 512]);
static mut NESTED_HUGE: Table = Table([0; 512]);
static mut BLOCK: Page = Page([0; 4096]);
static mut HOST_SAVE: Page = Page([0; 4096]);

/// Whether this processor has SVM.
pub fn is_available() -> bool {
    cpu::cpuid(0x8000_0000, 0).eax >= 0x8000_000a && cpu::cpuid(0x8000_0001, 0).ecx & 1 << 2 != 0
}

/// Prepares the inner program; then [`round_trip`] may be called.
///
/// # Safety
/// Called once, on a processor with SVM, and nothing else uses SVM.
pub unsafe fn prepare() {
    let (cr0, cr3, cr4): (u64, u64, u64);
    // SAFETY: reads registers; the save area is a page of its own.
    unsafe {
        asm!("mov {}, cr0", "mov {}, cr3", "mov {}, cr4", out(reg) cr0, out(reg) cr3, out(reg) cr4);
        cpu::write_msr(cpu::msr::EFER, cpu::read_msr(cpu::msr::EFER) | EFER_SVME);
        cpu::write_msr(VM_HSAVE_PA, &raw const HOST_SAVE as u64);
    }
    // SAFETY: the tables are ours, and no reference reaches them.
    unsafe {
        NESTED_ROOT.0[0] = &raw const NESTED_HUGE as u64 | 7;
        for gigabyte in 0..4 {
            NESTED_HUGE.0[gigabyte as usize] = gigabyte << 30 | 0x87;
        }
    }
    set(field::NESTED_ENABLE, 8, 1);
    set(field::NESTED_CR3, 8, &raw const NESTED_ROOT as u64);
    set(field::INTERCEPT_MISC_1, 4, 1 << 18);
    set(field::INTERCEPT_MISC_2, 4, 1);
    set(field::ASID, 4, 1);
    for (segment, attributes) in [(field::ES, 0xc93), (field::CS, 0xa9b), (field::SS, 0xc93), (field::DS, 0xc93)] {
        set(segment, 2, 0x10);
        set(segment + 2, 2, attributes);
        set(segment + 4, 4, 0xffff_ffff);
    }
    set(field::EFER, 8, cpu::read_msr(cpu::msr::EFER));
    set(field::CR0, 8, cr0);
    set(field::CR3, 8, cr3);
    set(field::CR4, 8, cr4);
    set(field::RFLAGS, 8, 2);
    set(field::RIP, 8, inner as *const () as u64);
    set(field::RSP, 8, 0);
    set(field::PAT, 8, 0x0007_0406_0007_0406);
}

/// Enters the inner program, which leaves by CPUID at once; RIP stays there.
pub fn round_trip() {
    // SAFETY: `prepare` filled the block; the inner program runs one intercepted instruction and changes nothing. VMRUN
    // keeps RAX, RSP and RIP of this side; GIF stays clear after it until STGI.
    unsafe {
        asm!("clgi", "vmrun rax", "stgi", in("rax") &raw const BLOCK as u64, options(nostack));
    }
}

/// Whether the last round trip ended as it should.
pub fn ended_by_cpuid() -> bool {
    // SAFETY: the block is a page of ours that no reference reaches.
    unsafe { (&raw const BLOCK).cast::<u8>().add(field::EXIT_CODE).cast::<u64>().read_volatile() == EXIT_CPUID }
}

#[unsafe(naked)]
extern "C" fn inner() {
    core::arch::naked_asm!("cpuid", "hlt")
}

fn set(offset: usize, size: usize, value: u64) {
    // SAFETY: the fields above lie inside the block, aligned to their sizes.
    unsafe {
        let at = (&raw mut BLOCK).cast::<u8>().add(offset);
        match size {
            2 => at.cast::<u16>().write_volatile(value as u16),
            4 => at.cast::<u32>().write_volatile(value as u32),
            _ => at.cast::<u64>().write_volatile(value),
        }
    }
}
