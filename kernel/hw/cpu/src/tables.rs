//! Descriptor tables: a GDT, a TSS with stacks for what must not use the current one, and the shared IDT.

use alloc::boxed::Box;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;

/// The stacks in the TSS: those of the double fault, the NMI and the machine check.
pub const SPECIAL_STACKS: usize = 3;

/// Slots of the interrupt stack table, from 0.
pub const DOUBLE_FAULT_STACK: u16 = 0;
/// See [`DOUBLE_FAULT_STACK`].
pub const NMI_STACK: u16 = 1;
/// See [`DOUBLE_FAULT_STACK`].
pub const MACHINE_CHECK_STACK: u16 = 2;

/// Loads a GDT and TSS of this processor's own and the host's IDT. Interrupts are shut. From then on machine checks are
/// exceptions; before, they stop the machine.
///
/// `stack_tops` are the ends of [`SPECIAL_STACKS`] stacks that nothing else uses.
pub fn load(stack_tops: [u64; SPECIAL_STACKS], idt: &'static InterruptDescriptorTable) {
    let mut tss = Box::new(TaskStateSegment::new());
    for (slot, top) in stack_tops.into_iter().enumerate() {
        tss.interrupt_stack_table[slot] = VirtAddr::new(top);
    }
    let tss = Box::leak(tss);
    let mut gdt = Box::new(GlobalDescriptorTable::<8>::new());
    let code = gdt.append(Descriptor::kernel_code_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    Box::leak(gdt).load();
    // SAFETY: the selectors belong to the table just loaded, which lives for ever. In 64-bit mode the data segments
    // may be null; that they are makes VM exits cheaper.
    unsafe {
        CS::set_reg(code);
        SS::set_reg(SegmentSelector::NULL);
        DS::set_reg(SegmentSelector::NULL);
        ES::set_reg(SegmentSelector::NULL);
        load_tss(task);
    }
    idt.load();
    // SAFETY: every 64-bit processor has machine checks (CPUID 1, EDX bit 7), and their handler is loaded. The rest is
    // there, and takes nothing from a host without pages of user mode.
    unsafe { Cr4::update(|flags| flags.insert(Cr4Flags::MACHINE_CHECK_EXCEPTION | paging_flags())) };
}

/// What a guest's CR4 has too, in most systems: the host has no pages of user mode and no global ones, so that only a
/// mistake in its tables would be caught. But an emulator, and perhaps a processor, forgets its translations once more
/// in each world switch for a difference here.
fn paging_flags() -> Cr4Flags {
    let (features, more) =
        (crate::cpuid(1, 0).edx, if crate::cpuid(0, 0).eax >= 7 { crate::cpuid(7, 0).ebx } else { 0 });
    [
        (features & 1 << 3 != 0, Cr4Flags::PAGE_SIZE_EXTENSION),
        (features & 1 << 13 != 0, Cr4Flags::PAGE_GLOBAL),
        (more & 1 << 7 != 0, Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION),
        (more & 1 << 20 != 0, Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION),
    ]
    .into_iter()
    .filter_map(|(is_there, flag)| is_there.then_some(flag))
    .collect()
}
