//! Why an entry failed, in words: the rules of 27.2 and 27.3 over what is in the VMCS, as far as software can make a
//! guest's state break them. The processor only says that one was broken.

use crate::entry::Vmx;
use crate::event::info;
use crate::vmcs::{Field, LDTR, TR, access_rights, entering, interruptibility};
use vcpu::{SegmentName, VcpuState, cr0, cr4, efer, rflags};

/// A rule: whether it is broken, and what it says.
type Rule = (bool, &'static str);

/// What a state that comes from outside must keep to, for it is written to registers that would raise #GP here.
pub fn loadable(state: &VcpuState) -> Result<(), &'static str> {
    first(&[
        (!is_canonical(state.lstar), "LSTAR is not canonical"),
        (!is_canonical(state.cstar), "CSTAR is not canonical"),
        (!is_canonical(state.kernel_gs_base), "KernelGSbase is not canonical"),
        (state.sfmask >> 32 != 0, "SFMASK bits 63:32 are not zero"),
        (state.tsc_aux >> 32 != 0, "TSC_AUX bits 63:32 are not zero"),
    ])
}

/// A VM-instruction error (31.4): controls or host state, which are Pollux's own.
pub fn instruction_error(number: u64) -> &'static str {
    match number {
        4 => "VMLAUNCH of a VMCS that is not clear",
        5 => "VMRESUME of a VMCS that was not launched",
        7 => "a control field is not valid (27.2.1)",
        8 => "a host-state field is not valid (27.2.2 to 27.2.4)",
        26 => "events are blocked by MOV SS in the host",
        _ => "a VM-instruction error of 31.4 that does not belong to VM entry",
    }
}

/// Which rule of 27.3.1 the guest's state breaks. The qualification tells some apart (27.8).
pub fn rule_broken(vmx: &Vmx, qualification: u64) -> &'static str {
    match qualification {
        2 => return "a page-directory pointer has reserved bits set",
        3 => return "an NMI was injected while NMIs are blocked by STI",
        4 => return "the VMCS link pointer is not valid",
        _ => {}
    }
    let checks = [
        control_registers,
        debug_and_msrs,
        segments,
        types_and_privileges,
        system_segments,
        flags_and_rip,
        interruptibility_state,
        pending_debug_exceptions,
    ];
    let broken = checks.iter().find_map(|check| check(vmx).err());
    broken.unwrap_or("a rule of SDM volume 3, 27.3.1, that software cannot tell apart")
}

/// 27.3.1.1, first half.
fn control_registers(vmx: &Vmx) -> Result<(), &'static str> {
    let (cr0, cr4) = (read(vmx, Field::GUEST_CR0), read(vmx, Field::GUEST_CR4));
    let (efer, cr3) = (read(vmx, Field::GUEST_EFER), read(vmx, Field::GUEST_CR3));
    let long = is_long(vmx);
    let paging = cr0 & cr0::PG != 0;
    let width = cpu::cpuid(0x8000_0008, 0).eax & 0xff;
    first(&[
        (paging && cr0 & cr0::PE == 0, "CR0.PG is set while CR0.PE is clear"),
        (cr0 & cr0::NE == 0, "CR0.NE is clear"),
        (cr0 >> 32 != 0, "CR0 bits 63:32 are not zero"),
        (cr4 & crate::enable::CR4_VMXE == 0, "CR4.VMXE is clear"),
        (cr4 & !fixed_1(CR4_FIXED_1) != 0, "CR4 has a bit set that this processor does not have"),
        (long && !paging, "long mode is active while CR0.PG is clear"),
        (long && cr4 & cr4::PAE == 0, "long mode is active while CR4.PAE is clear"),
        (!long && cr4 & cr4::PCIDE != 0, "CR4.PCIDE is set outside long mode"),
        (cr3 >> width != 0, "CR3 has bits beyond the physical address width set"),
        ((efer & efer::LMA != 0) != long, "EFER.LMA differs from the entry's mode"),
        (paging && (efer & efer::LME != 0) != long, "EFER.LME differs from EFER.LMA while CR0.PG is set"),
        (efer & !EFER_DEFINED != 0, "EFER has reserved bits set"),
    ])
}

/// 27.3.1.1, second half.
fn debug_and_msrs(vmx: &Vmx) -> Result<(), &'static str> {
    let pat = read(vmx, Field::GUEST_PAT);
    first(&[
        (read(vmx, Field::GUEST_DR7) >> 32 != 0, "DR7 bits 63:32 are not zero"),
        (!pat.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7)), "PAT holds a reserved memory type"),
        (!is_canonical(read(vmx, Field::GUEST_SYSENTER_ESP)), "SYSENTER_ESP is not canonical"),
        (!is_canonical(read(vmx, Field::GUEST_SYSENTER_EIP)), "SYSENTER_EIP is not canonical"),
    ])
}

/// 27.3.1.2 for the segments that a program can name.
fn segments(vmx: &Vmx) -> Result<(), &'static str> {
    const LONG_AND_BIG: u32 = access_rights::LONG | access_rights::BIG;
    let (code, stack) = (SegmentName::Cs as usize, SegmentName::Ss as usize);
    let (cs, ss) = (rights(vmx, code), rights(vmx, stack));
    let virtual_8086 = read(vmx, Field::GUEST_RFLAGS) & rflags::VM != 0;
    if virtual_8086 {
        let like_8086 = |index| {
            let base = read(vmx, Field::guest_selector(index)) << 4;
            read(vmx, Field::guest_base(index)) == base
                && read(vmx, Field::guest_limit(index)) == 0xffff
                && rights(vmx, index) == 0xf3
        };
        return first(&[(!(code - 1..LDTR).all(like_8086), "a segment is not as virtual-8086 mode has it")]);
    }
    let usable = |index| rights(vmx, index) & access_rights::UNUSABLE == 0;
    let far = |index| read(vmx, Field::guest_base(index)) >> 32 != 0;
    let near = [SegmentName::Es as usize, stack, SegmentName::Ds as usize];
    first(&[
        (!usable(code), "CS is unusable"),
        (!matches!(cs & 0xf, 3 | 9 | 11 | 13 | 15), "CS has a type that is no code segment's"),
        (is_long(vmx) && cs & LONG_AND_BIG == LONG_AND_BIG, "CS has both L and D set"),
        (usable(stack) && !matches!(ss & 0xf, 3 | 7), "SS has a type that is no stack segment's"),
        (cs & 0xf == 3 && ss >> 5 & 3 != 0, "SS.DPL is not 0 while CS is a data segment"),
        ((0..LDTR).any(|index| usable(index) && rights(vmx, index) & 0x10 == 0), "a segment has S clear"),
        ((0..LDTR).any(|index| usable(index) && rights(vmx, index) & 0xf00 != 0), "a segment has reserved bits set"),
        ((0..LDTR).any(|index| usable(index) && !granularity_fits(vmx, index)), "a segment's G does not fit its limit"),
        (far(code), "CS.base bits 63:32 are not zero"),
        (near.into_iter().any(|index| usable(index) && far(index)), "ES, SS or DS has a base above 4 GiB"),
        (!is_canonical(read(vmx, Field::guest_base(SegmentName::Fs as usize))), "FS.base is not canonical"),
        (!is_canonical(read(vmx, Field::guest_base(SegmentName::Gs as usize))), "GS.base is not canonical"),
    ])
}

/// 27.3.1.2: what the types of segments ask of each other, outside virtual-8086 mode.
fn types_and_privileges(vmx: &Vmx) -> Result<(), &'static str> {
    if read(vmx, Field::GUEST_RFLAGS) & rflags::VM != 0 {
        return Ok(());
    }
    let (cs, ss) = (rights(vmx, SegmentName::Cs as usize), rights(vmx, SegmentName::Ss as usize));
    let data =
        [SegmentName::Es, SegmentName::Ds, SegmentName::Fs, SegmentName::Gs].map(|name| rights(vmx, name as usize));
    first(&privilege_rules(cs, ss, data, read(vmx, Field::GUEST_CR0) & cr0::PE == 0))
}

/// The rules over the access rights of CS, SS and the four others.
fn privilege_rules(cs: u32, ss: u32, data: [u32; 4], real: bool) -> [Rule; 6] {
    const ACCESSED: u32 = 1 << 0;
    const CODE: u32 = 1 << 3;
    const READABLE: u32 = 1 << 1;
    let usable = |rights: &u32| rights & access_rights::UNUSABLE == 0;
    let unreadable = |rights: u32| rights & CODE != 0 && rights & READABLE == 0;
    let (code_dpl, stack_dpl) = (cs >> 5 & 3, ss >> 5 & 3);
    [
        (data.into_iter().filter(usable).any(|rights| rights & ACCESSED == 0), "ES, DS, FS or GS was not accessed"),
        (data.into_iter().filter(usable).any(unreadable), "ES, DS, FS or GS is code that cannot be read"),
        (cs & 0xf == 3 && code_dpl != 0, "CS.DPL is not 0 while CS is a data segment"),
        (matches!(cs & 0xf, 9 | 11) && code_dpl != stack_dpl, "CS.DPL is not SS.DPL while CS is non-conforming"),
        (matches!(cs & 0xf, 13 | 15) && code_dpl > stack_dpl, "CS.DPL is above SS.DPL while CS is conforming"),
        (real && stack_dpl != 0, "SS.DPL is not 0 in real mode"),
    ]
}

/// 27.3.1.2 for TR and LDTR, and 27.3.1.3.
fn system_segments(vmx: &Vmx) -> Result<(), &'static str> {
    let (tr, ldtr) = (rights(vmx, TR), rights(vmx, LDTR));
    let has_ldt = ldtr & access_rights::UNUSABLE == 0;
    let busy = if is_long(vmx) { tr & 0xf == 11 } else { matches!(tr & 0xf, 3 | 11) };
    first(&[
        (tr & access_rights::UNUSABLE != 0, "TR is unusable"),
        (!busy, "TR is no busy TSS of the mode"),
        (read(vmx, Field::guest_selector(TR)) & 4 != 0, "TR's selector points into the LDT"),
        (!granularity_fits(vmx, TR), "TR's G does not fit its limit"),
        (!is_canonical(read(vmx, Field::guest_base(TR))), "TR.base is not canonical"),
        (has_ldt && ldtr & 0x1f != 2, "LDTR is no LDT"),
        (has_ldt && read(vmx, Field::guest_selector(LDTR)) & 4 != 0, "LDTR's selector points into the LDT"),
        (has_ldt && !granularity_fits(vmx, LDTR), "LDTR's G does not fit its limit"),
        (has_ldt && !is_canonical(read(vmx, Field::guest_base(LDTR))), "LDTR.base is not canonical"),
        (!is_canonical(read(vmx, Field::GUEST_GDTR_BASE)), "GDTR.base is not canonical"),
        (!is_canonical(read(vmx, Field::GUEST_IDTR_BASE)), "IDTR.base is not canonical"),
    ])
}

/// 27.3.1.4.
fn flags_and_rip(vmx: &Vmx) -> Result<(), &'static str> {
    let (rip, flags) = (read(vmx, Field::GUEST_RIP), read(vmx, Field::GUEST_RFLAGS));
    let long_code = is_long(vmx) && rights(vmx, SegmentName::Cs as usize) & access_rights::LONG != 0;
    let real = read(vmx, Field::GUEST_CR0) & cr0::PE == 0;
    first(&[
        (!long_code && rip >> 32 != 0, "RIP is above 4 GiB outside 64-bit code"),
        (long_code && !is_canonical(rip), "RIP is not canonical"),
        (flags & !RFLAGS_DEFINED != 0 || flags & rflags::FIXED == 0, "RFLAGS has reserved bits wrong"),
        (flags & rflags::VM != 0 && (is_long(vmx) || real), "RFLAGS.VM is set in real or long mode"),
        (injects_interrupt(vmx) && flags & rflags::IF == 0, "an interrupt was injected while RFLAGS.IF is clear"),
    ])
}

/// 27.3.1.5.
fn interruptibility_state(vmx: &Vmx) -> Result<(), &'static str> {
    const SHADOW: u64 = interruptibility::STI | interruptibility::MOV_SS;
    let (state, flags) = (read(vmx, Field::INTERRUPTIBILITY), read(vmx, Field::GUEST_RFLAGS));
    first(&[
        (state & SHADOW == SHADOW, "STI and MOV SS block events at once"),
        (state & interruptibility::STI != 0 && flags & rflags::IF == 0, "STI blocks events while RFLAGS.IF is clear"),
        (state & SHADOW != 0 && injects_interrupt(vmx), "an interrupt was injected into a shadow"),
        (state & interruptibility::MOV_SS != 0 && injects_nmi(vmx), "an NMI was injected while MOV SS blocks it"),
        (state & interruptibility::NMI != 0 && injects_nmi(vmx), "an NMI was injected while another is handled"),
    ])
}

/// 27.3.1.5, its last part: in a shadow the trap of a single step must be pending exactly where there is one.
fn pending_debug_exceptions(vmx: &Vmx) -> Result<(), &'static str> {
    const SHADOW: u64 = interruptibility::STI | interruptibility::MOV_SS;
    const SINGLE_STEP: u64 = 1 << 14;
    const DEFINED: u64 = 0xf | 1 << 12 | SINGLE_STEP;
    let (pending, flags) = (read(vmx, Field::PENDING_DEBUG), read(vmx, Field::GUEST_RFLAGS));
    let (in_shadow, traps) = (read(vmx, Field::INTERRUPTIBILITY) & SHADOW != 0, flags & rflags::TF != 0);
    let is_pending = pending & SINGLE_STEP != 0;
    first(&[
        (pending & !DEFINED != 0, "the pending debug exceptions have reserved bits set"),
        (in_shadow && traps && !is_pending, "RFLAGS.TF is set in a shadow and no single step is pending"),
        (in_shadow && !traps && is_pending, "a single step is pending in a shadow while RFLAGS.TF is clear"),
    ])
}

const CR4_FIXED_1: u32 = 0x489;
/// SCE, LME, LMA, NXE.
const EFER_DEFINED: u64 = 0xd01;
const RFLAGS_DEFINED: u64 = 0x003f_7fd7;

fn read(vmx: &Vmx, field: Field) -> u64 {
    vmx.vmcs.read(field)
}

fn rights(vmx: &Vmx, index: usize) -> u32 {
    read(vmx, Field::guest_access_rights(index)) as u32
}

fn is_long(vmx: &Vmx) -> bool {
    read(vmx, Field::ENTRY_CONTROLS) as u32 & entering::GUEST_LONG_MODE != 0
}

fn granularity_fits(vmx: &Vmx, index: usize) -> bool {
    let limit = read(vmx, Field::guest_limit(index));
    if rights(vmx, index) & access_rights::GRANULAR != 0 { limit & 0xfff == 0xfff } else { limit >> 20 == 0 }
}

fn injects_interrupt(vmx: &Vmx) -> bool {
    injects(vmx, info::INTERRUPT)
}

fn injects_nmi(vmx: &Vmx) -> bool {
    injects(vmx, info::NMI)
}

fn injects(vmx: &Vmx, kind: u32) -> bool {
    let event = read(vmx, Field::ENTRY_EVENT) as u32;
    event & info::VALID != 0 && event & info::TYPE_MASK == kind
}

fn fixed_1(register: u32) -> u64 {
    // SAFETY: a processor with VMX has the registers of A.7 and A.8.
    unsafe { cpu::msr::read(register) }
}

/// Whether the bits above the processor's linear-address width, which CR4.LA57 does not change here (4.5.1), are equal.
fn is_canonical(address: u64) -> bool {
    vcpu::is_canonical(address, cpu::cpuid(0x8000_0008, 0).eax >> 8 & 0xff)
}

fn first(rules: &[Rule]) -> Result<(), &'static str> {
    match rules.iter().find(|(broken, _)| *broken) {
        Some((_, rule)) => Err(rule),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_fault_in_the_host_is_not_loaded() {
        let mut state = VcpuState::reset();
        assert_eq!(loadable(&state), Ok(()));
        state.lstar = 0xffff_8000_0000_0000;
        assert_eq!(loadable(&state), Ok(()));
        state.lstar = 1 << 63;
        assert_eq!(loadable(&state), Err("LSTAR is not canonical"));
        let aux = VcpuState { tsc_aux: 1 << 32, ..VcpuState::reset() };
        assert_eq!(loadable(&aux), Err("TSC_AUX bits 63:32 are not zero"));
    }

    #[test]
    fn segments_must_fit_each_other() {
        const DATA: u32 = 0xf3;
        let broken = |cs, ss, data, real| first(&privilege_rules(cs, ss, [DATA, DATA, data, 1 << 16], real)).err();
        assert_eq!(broken(0xfb, DATA, DATA, false), None);
        assert_eq!(broken(0x93, 0x93, DATA, true), None);
        assert_eq!(broken(0x9f, DATA, DATA, false), None);
        assert_eq!(broken(0xfb, DATA, 0xf2, false), Some("ES, DS, FS or GS was not accessed"));
        assert_eq!(broken(0xfb, DATA, 0xf9, false), Some("ES, DS, FS or GS is code that cannot be read"));
        assert_eq!(broken(0xb3, 0x93, DATA, false), Some("CS.DPL is not 0 while CS is a data segment"));
        assert_eq!(broken(0x9b, DATA, DATA, false), Some("CS.DPL is not SS.DPL while CS is non-conforming"));
        assert_eq!(broken(0xff, 0x93, DATA, false), Some("CS.DPL is above SS.DPL while CS is conforming"));
        assert_eq!(broken(0x9f, DATA, DATA, true), Some("SS.DPL is not 0 in real mode"));
    }
}
