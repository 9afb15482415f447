//! The host-state area: what the processor loads on every exit (25.5, 28.5). It is this processor's own, and so written
//! whenever a VMCS comes to a processor.

use crate::vmcs::{Field, HOST_TR, Vmcs};
use core::arch::asm;
use cpu::msr;
use vcpu::SegmentName;

/// GDTR or IDTR as SGDT and SIDT store it.
#[repr(C, packed)]
#[derive(Default)]
struct TableRegister {
    limit: u16,
    base: u64,
}

/// Writes the host's state as it is now. The RSP is written by each entry.
pub fn write(vmcs: &mut Vmcs, exit_label: u64) {
    let (cr0, cr3, cr4) = control_registers();
    vmcs.write(Field::HOST_CR0, cr0);
    vmcs.write(Field::HOST_CR3, cr3);
    vmcs.write(Field::HOST_CR4, cr4);
    vmcs.write(Field::HOST_RIP, exit_label);
    let (gdt_base, idt_base) = tables();
    vmcs.write(Field::HOST_GDTR_BASE, gdt_base);
    vmcs.write(Field::HOST_IDTR_BASE, idt_base);
    let (code, task) = selectors();
    // The data segments are null, as `cpu::tables` made them.
    [SegmentName::Es, SegmentName::Ss, SegmentName::Ds, SegmentName::Fs, SegmentName::Gs]
        .into_iter()
        .for_each(|name| vmcs.write(Field::host_selector(name as usize), 0));
    vmcs.write(Field::host_selector(SegmentName::Cs as usize), code.into());
    vmcs.write(Field::host_selector(HOST_TR), task.into());
    vmcs.write(Field::HOST_TR_BASE, system_segment_base(gdt_base, task));
    // SAFETY: registers that every 64-bit processor has.
    unsafe {
        vmcs.write(Field::HOST_FS_BASE, msr::read(msr::FS_BASE));
        vmcs.write(Field::HOST_GS_BASE, msr::read(msr::GS_BASE));
        vmcs.write(Field::HOST_EFER, msr::read(msr::EFER));
        vmcs.write(Field::HOST_PAT, msr::read(msr::PAT));
    }
    // The host makes no system calls.
    vmcs.write(Field::HOST_SYSENTER_CS, 0);
    vmcs.write(Field::HOST_SYSENTER_ESP, 0);
    vmcs.write(Field::HOST_SYSENTER_EIP, 0);
}

/// CR0, CR3 and CR4.
pub fn control_registers() -> (u64, u64, u64) {
    let (cr0, cr3, cr4);
    // SAFETY: reads registers.
    unsafe {
        asm!("mov {}, cr0", "mov {}, cr3", "mov {}, cr4", out(reg) cr0, out(reg) cr3, out(reg) cr4,
            options(nomem, nostack, preserves_flags));
    }
    (cr0, cr3, cr4)
}

/// The bases of GDT and IDT.
fn tables() -> (u64, u64) {
    let (mut gdtr, mut idtr) = (TableRegister::default(), TableRegister::default());
    // SAFETY: stores ten bytes each.
    unsafe {
        asm!("sgdt [{}]", "sidt [{}]", in(reg) &raw mut gdtr, in(reg) &raw mut idtr,
            options(nostack, preserves_flags));
    }
    (gdtr.base, idtr.base)
}

/// Where the host's handler of a vector begins (SDM volume 3, figure 7-8).
pub fn handler(vmcs: &Vmcs, vector: u8) -> u64 {
    let at = (vmcs.read(Field::HOST_IDTR_BASE) + 16 * u64::from(vector)) as *const [u64; 2];
    // SAFETY: `write` put the base of the host's IDT there, which has all 256 gates.
    let [low, high] = unsafe { at.read_unaligned() };
    low & 0xffff | (low >> 48) << 16 | high << 32
}

/// CS and TR.
fn selectors() -> (u16, u16) {
    let (code, task): (u16, u16);
    // SAFETY: reads registers.
    unsafe { asm!("mov {:x}, cs", "str {:x}", out(reg) code, out(reg) task, options(nomem, nostack, preserves_flags)) }
    (code, task)
}

/// The base in a descriptor of 16 bytes (SDM volume 3, figure 8-4).
fn system_segment_base(gdt_base: u64, selector: u16) -> u64 {
    let at = (gdt_base + u64::from(selector & !7)) as *const [u64; 2];
    // SAFETY: TR was loaded from this descriptor of the host's GDT.
    let [low, high] = unsafe { at.read_unaligned() };
    low >> 16 & 0xff_ffff | (low >> 56 & 0xff) << 24 | high << 32
}
