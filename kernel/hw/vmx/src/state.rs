//! The guest's state in the VMCS, in and out: the verbs of [`Vcpu`].

use crate::control_registers::cr4_present;
use crate::entry::{Hot, Vmx};
use crate::event::Encoded;
use crate::msrs::Way;
use crate::vmcs::{Field, LDTR, TR, access_rights, interruptibility, processor};
use addr::Gpa;
use alloc::sync::Arc;
use alloc::vec::Vec;
use cpu::msr;
use vcpu::{
    ApicPage, Blocking, Breakpoints, Event, Exception, Exit, Gpr, Paging, Posted, ReadyFor, Segment, SegmentName,
    Speculation, Table, TscRatio, Unloadable, Vcpu, VcpuState, Window, Xfd, cr0, dr6_after_trap, efer, rflags,
};

/// DR6 and DR7: the bits that always read 1.
const DR6_FIXED: u64 = 0xffff_0ff0;
const DR7_FIXED: u64 = 0x400;
/// Pending debug exceptions: breakpoints 3 to 0, an enabled one among them, single step (table 25-4).
const PENDING_DEBUG_BITS: u64 = 0xf | 1 << 12 | 1 << 14;
/// The flags that there are.
const RFLAGS_DEFINED: u64 = 0x003f_7fd5;

/// A busy TSS of 64 bits, or of 32 outside long mode; present.
const BUSY_TSS: u16 = 0x8b;

impl Vcpu for Vmx {
    fn run(&mut self) -> Exit {
        self.enter()
    }

    fn park(&mut self) {
        // Each exit brought back what the host uses; an interrupt that ended the run was handled or is
        // still pending.
    }

    fn unload(&mut self) {
        self.leave();
    }

    fn gprs(&self) -> &[u64; 16] {
        &self.gprs
    }

    fn gprs_mut(&mut self) -> &mut [u64; 16] {
        &mut self.gprs
    }

    fn rip(&self) -> u64 {
        self.hot.rip
    }

    fn rflags(&self) -> u64 {
        self.hot.rflags
    }

    fn set_rflags(&mut self, value: u64) {
        self.hot.rflags = value;
    }

    fn next_rip(&self) -> Option<u64> {
        self.next_rip
    }

    fn breakpoints(&self) -> Option<Breakpoints> {
        let dr7 = if self.loaded { self.vmcs.read(Field::GUEST_DR7) } else { self.saved.dr7 };
        Breakpoints::new(dr7, || self.debug_registers())
    }

    fn retire(&mut self, next_rip: u64, met: u64) {
        self.hot.rip = next_rip;
        self.hot.rflags &= !rflags::RF;
        self.hot.interruptibility &= !(interruptibility::STI | interruptibility::MOV_SS);
        let steps = self.hot.rflags & rflags::TF != 0;
        if steps || met != 0 {
            self.change_dr6(|dr6| dr6_after_trap(dr6, met, steps));
            self.forget_general_detect();
            self.inject(Event::Exception(Exception::DEBUG));
        }
    }

    fn segment(&self, name: SegmentName) -> Segment {
        if self.loaded { self.read_segment(name as usize) } else { self.saved.segments[name as usize] }
    }

    fn paging(&self) -> Paging {
        let cr3 = if self.loaded { self.vmcs.read(Field::GUEST_CR3) } else { self.saved.cr3 };
        // SS.DPL is the current privilege level in every mode (25.4.1).
        let cpl = (self.segment(SegmentName::Ss).attributes >> 5 & 3) as u8;
        Paging { cr0: self.cr0(), cr3, cr4: self.cr4(), efer: self.efer(), cpl }
    }

    fn inject(&mut self, event: Event) {
        let encoded = self.encode(event);
        match self.interrupted {
            // A fault while another event was being delivered: the contributory ones make a double fault, and a fault
            // in delivering that is a shutdown, which the processor finds out by itself (7.15).
            Some(first) if first.is_exception() => {
                self.interrupted = Some(first.then(encoded, self.is_real_mode()));
            }
            _ => {
                assert!(self.event.is_none(), "one event an entry");
                self.event = Some(encoded);
            }
        }
    }

    fn ready_for(&self) -> ReadyFor {
        const SHADOW: u64 = interruptibility::STI | interruptibility::MOV_SS;
        if self.interrupted.is_some() || self.event.is_some() {
            ReadyFor::Nothing
        } else if self.hot.rflags & rflags::IF == 0 || self.hot.interruptibility & SHADOW != 0 {
            ReadyFor::Exceptions
        } else {
            ReadyFor::Interrupts
        }
    }

    fn nmi_blocked(&self) -> bool {
        // A shadow holds an NMI back too: its injection would break a rule of entry (27.3.1.5).
        let blocked = self.hot.interruptibility != 0;
        // Who asks has one: an exit shall say when it can go in.
        self.nmi_waits.set(blocked);
        blocked
    }

    fn want_interrupt_window(&mut self, window: Window) {
        let open = u64::from(processor::INTERRUPT_WINDOW);
        let others = self.hot.processor_controls & !open;
        self.hot.processor_controls = others | if window == Window::Open { open } else { 0 };
        self.hot.tpr_threshold = if let Window::Below(class) = window { class.into() } else { 0 };
    }

    fn tpr(&self) -> u8 {
        self.apic.tpr()
    }

    fn set_tpr(&mut self, class: u8) {
        self.apic.set_tpr(class);
    }

    fn share_apic(&mut self, page: &Arc<ApicPage>) -> bool {
        self.put_apic_page(page);
        self.delivers_interrupts()
    }

    fn share_posted(&mut self, posted: &Arc<Posted>) -> bool {
        self.put_posted(posted)
    }

    fn open_apic(&mut self, is_open: bool) {
        self.put_apic_open(is_open);
    }

    fn state(&mut self) -> VcpuState {
        self.unload();
        let interruptibility = self.hot.interruptibility;
        VcpuState {
            gprs: self.gprs,
            rip: self.hot.rip,
            rflags: self.hot.rflags,
            xcr0: self.extended.xcr0(),
            xfd: self.extended.xfd().into(),
            spec_ctrl: self.spec_ctrl(),
            blocking: Blocking {
                sti: interruptibility & interruptibility::STI != 0,
                mov_ss: interruptibility & interruptibility::MOV_SS != 0,
                nmi: interruptibility & interruptibility::NMI != 0,
                debug: self.pending_debug,
            },
            waiting: self.interrupted.or(self.event).map(Encoded::decode),
            ..self.saved.clone()
        }
    }

    fn set_state(&mut self, state: &VcpuState) {
        self.unload();
        self.saved = state.clone();
        (self.saved.dr6, self.saved.dr7) = (state.dr6 & 0xffff_ffff | DR6_FIXED, state.dr7 & 0xffff_ffff | DR7_FIXED);
        self.gprs = state.gprs;
        self.extended.set_xcr0(state.xcr0);
        self.extended.set_xfd(state.xfd.into());
        self.hot = Hot {
            rip: state.rip,
            rsp: state.gprs[Gpr::Rsp as usize],
            rflags: state.rflags & RFLAGS_DEFINED | rflags::FIXED,
            interruptibility: interruptibility_of(state.blocking),
            ..self.hot
        };
        self.event = state.waiting.map(|event| Encoded::new(event, state.cr0 & cr0::PE == 0));
        self.interrupted = None;
        self.pending_debug = state.blocking.debug & PENDING_DEBUG_BITS;
        self.pointers_stale = true;
        // What is cached may be of other page tables.
        self.vpid_of = None;
        self.set_spec_ctrl(state.spec_ctrl);
    }

    fn extended_state(&mut self) -> Vec<u8> {
        self.unload();
        self.extended.as_bytes().to_vec()
    }

    fn set_extended_state(&mut self, area: &[u8]) -> Result<(), Unloadable> {
        self.unload();
        if self.extended.replace(area) { Ok(()) } else { Err(Unloadable) }
    }

    fn offer_cr4(&mut self, bits: u64) {
        self.unload();
        self.cr4_offered = bits & cr4_present();
    }

    fn write_cr4(&mut self, value: u64) -> bool {
        self.change_cr4(value).is_ok()
    }

    fn offer_speculation(&mut self, offered: Speculation) {
        let here = Speculation::named(|leaf, subleaf| cpu::cpuid(leaf, subleaf).registers());
        (self.spec_ctrl_offered, self.spec_ctrl_passes) = (offered.control, offered.control == here.control);
        self.msrs.pass(msr::PRED_CMD, Way::Write, offered.has_prediction_command);
        self.msrs.pass(msr::FLUSH_CMD, Way::Write, offered.has_flush_command);
    }

    fn spec_ctrl(&self) -> u64 {
        self.spec_ctrl.value() & self.spec_ctrl_offered
    }

    fn set_spec_ctrl(&mut self, value: u64) {
        self.change_spec_ctrl(value);
    }

    fn pkru(&self) -> u32 {
        self.extended.pkru()
    }

    fn set_xcr0(&mut self, value: u64) {
        self.extended.set_xcr0(value);
    }

    fn xfd(&self) -> Xfd {
        self.extended.xfd().into()
    }

    fn set_xfd(&mut self, xfd: Xfd) {
        self.extended.set_xfd(xfd.into());
    }

    fn scale_tsc(&mut self, ratio: TscRatio) {
        self.tsc_ratio = ratio;
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.hot.tsc_offset = offset;
    }

    fn tsc_offset(&self) -> u64 {
        self.hot.tsc_offset
    }

    fn invalidate(&mut self) {
        self.ept_changed = true;
    }

    fn take_written(&mut self, report: &mut dyn FnMut(Gpa)) {
        self.empty_write_log(report);
    }
}

impl Vmx {
    /// Writes the guest's registers into the VMCS (25.4.1).
    pub(crate) fn write_state(&mut self) {
        let saved = self.saved.clone();
        for (name, segment) in saved.segments.into_iter().enumerate() {
            self.write_segment(name, segment);
        }
        self.write_segment(LDTR, saved.ldtr);
        self.write_segment(TR, task_register(saved.tr));
        let fields = [
            (Field::GUEST_GDTR_BASE, saved.gdtr.base),
            (Field::GUEST_GDTR_LIMIT, saved.gdtr.limit.into()),
            (Field::GUEST_IDTR_BASE, saved.idtr.base),
            (Field::GUEST_IDTR_LIMIT, saved.idtr.limit.into()),
            (Field::GUEST_CR3, saved.cr3),
            (Field::GUEST_DR7, saved.dr7),
            (Field::GUEST_PAT, saved.pat),
            (Field::GUEST_SYSENTER_CS, saved.sysenter_cs),
            (Field::GUEST_SYSENTER_ESP, saved.sysenter_esp),
            (Field::GUEST_SYSENTER_EIP, saved.sysenter_eip),
            (Field::PENDING_DEBUG, self.pending_debug),
        ];
        fields.into_iter().for_each(|(field, value)| self.vmcs.write(field, value));
        self.put_cr0(saved.cr0);
        self.put_cr4(saved.cr4);
        let long = saved.efer & efer::LME != 0 && saved.cr0 & cr0::PG != 0;
        self.put_efer(saved.efer & !efer::LMA | if long { efer::LMA } else { 0 });
        self.write_all_hot();
    }

    /// Reads them back.
    pub(crate) fn read_state(&mut self) {
        let table =
            |vmcs: &crate::vmcs::Vmcs, base, limit| Table { base: vmcs.read(base), limit: vmcs.read(limit) as u16 };
        let segments = core::array::from_fn(|name| self.read_segment(name));
        let (ldtr, tr) = (self.read_segment(LDTR), self.read_segment(TR));
        let (cr0, cr4, efer) = (self.cr0(), self.cr4(), self.efer());
        let (saved, vmcs) = (&mut self.saved, &self.vmcs);
        (saved.segments, saved.ldtr, saved.tr) = (segments, ldtr, tr);
        (saved.cr0, saved.cr4, saved.efer) = (cr0, cr4, efer);
        saved.gdtr = table(vmcs, Field::GUEST_GDTR_BASE, Field::GUEST_GDTR_LIMIT);
        saved.idtr = table(vmcs, Field::GUEST_IDTR_BASE, Field::GUEST_IDTR_LIMIT);
        self.pending_debug = vmcs.read(Field::PENDING_DEBUG);
        saved.cr3 = vmcs.read(Field::GUEST_CR3);
        saved.dr7 = vmcs.read(Field::GUEST_DR7);
        saved.pat = vmcs.read(Field::GUEST_PAT);
        saved.sysenter_cs = vmcs.read(Field::GUEST_SYSENTER_CS);
        saved.sysenter_esp = vmcs.read(Field::GUEST_SYSENTER_ESP);
        saved.sysenter_eip = vmcs.read(Field::GUEST_SYSENTER_EIP);
    }

    fn read_segment(&self, index: usize) -> Segment {
        from_vmcs(
            self.vmcs.read(Field::guest_selector(index)) as u16,
            self.vmcs.read(Field::guest_access_rights(index)) as u32,
            self.vmcs.read(Field::guest_limit(index)) as u32,
            self.vmcs.read(Field::guest_base(index)),
        )
    }

    fn write_segment(&mut self, index: usize, segment: Segment) {
        self.vmcs.write(Field::guest_selector(index), segment.selector.into());
        self.vmcs.write(Field::guest_access_rights(index), access_rights(segment).into());
        self.vmcs.write(Field::guest_limit(index), segment.limit.into());
        self.vmcs.write(Field::guest_base(index), segment.base);
    }
}

/// The interruptibility state (table 25-3). STI and MOV SS never block together (27.3.1.5).
fn interruptibility_of(blocking: Blocking) -> u64 {
    let bit = |on, bit| if on { bit } else { 0 };
    bit(blocking.sti && !blocking.mov_ss, interruptibility::STI)
        | bit(blocking.mov_ss, interruptibility::MOV_SS)
        | bit(blocking.nmi, interruptibility::NMI)
}

/// The seam's form: flags right behind the type, and a segment that cannot be used is one that is not present.
fn from_vmcs(selector: u16, rights: u32, limit: u32, base: u64) -> Segment {
    let attributes = (rights & 0xff | rights >> 4 & 0xf00) as u16;
    let unusable = rights & access_rights::UNUSABLE != 0;
    let attributes = if unusable { attributes & !(access_rights::PRESENT as u16) } else { attributes };
    Segment { selector, attributes, limit, base }
}

/// The VMCS's form (table 25-2), with what the rules of entry want and no program can tell: a segment in use was
/// accessed, and its granularity is what its limit needs (27.3.1.2).
fn access_rights(segment: Segment) -> u32 {
    const CODE_OR_DATA: u32 = 1 << 4;
    const ACCESSED: u32 = 1 << 0;
    let Segment { attributes, limit, .. } = segment;
    let mut rights = u32::from(attributes) & 0xff | (u32::from(attributes) & 0xf00) << 4;
    if rights & access_rights::PRESENT == 0 {
        return rights | access_rights::UNUSABLE;
    }
    if rights & CODE_OR_DATA != 0 {
        rights |= ACCESSED;
    }
    if limit >> 20 != 0 {
        rights |= access_rights::GRANULAR;
    } else if limit & 0xfff != 0xfff {
        rights &= !access_rights::GRANULAR;
    }
    rights
}

/// TR must hold a busy TSS, also where the guest has loaded none yet (27.3.1.2).
fn task_register(tr: Segment) -> Segment {
    const PRESENT: u16 = 1 << 7;
    const BUSY: u16 = 1 << 1;
    if tr.attributes & PRESENT == 0 {
        return Segment { attributes: BUSY_TSS, limit: tr.limit.max(0x67), ..tr };
    }
    Segment { attributes: tr.attributes | BUSY, ..tr }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back_and_forth(segment: Segment) -> Segment {
        from_vmcs(segment.selector, access_rights(segment), segment.limit, segment.base)
    }

    #[test]
    fn segments_survive_the_way_there_and_back() {
        let code = Segment { selector: 0x10, attributes: 0xa9b, limit: u32::MAX, base: 0 };
        let data = Segment { selector: 0x2b, attributes: 0xcf3, limit: u32::MAX, base: 0 };
        let real = Segment { selector: 0xf000, attributes: 0x9b, limit: 0xffff, base: 0xffff_0000 };
        let null = Segment { selector: 0, attributes: 0, limit: 0, base: 0x7fff_0000_1000 };
        for segment in [code, data, real, null] {
            assert_eq!(back_and_forth(segment), segment);
        }
        assert_eq!(access_rights(code), 0xa09b);
        assert_eq!(access_rights(data), 0xc0f3);
        assert_eq!(access_rights(null), 1 << 16);
    }

    #[test]
    fn rights_are_made_to_keep_the_rules_of_entry() {
        let fresh = Segment { selector: 8, attributes: 0xa9a, limit: u32::MAX, base: 0 };
        assert_eq!(access_rights(fresh) & 1, 1, "a code segment that was not accessed");
        let long = Segment { selector: 8, attributes: 0x93, limit: 0xf_ffff_u32 << 8, base: 0 };
        assert_ne!(access_rights(long) & access_rights::GRANULAR, 0, "a limit that needs pages");
        let short = Segment { selector: 8, attributes: 0x893, limit: 0x67, base: 0 };
        assert_eq!(access_rights(short) & access_rights::GRANULAR, 0, "a limit that needs bytes");
    }

    #[test]
    fn a_task_register_is_always_a_busy_tss() {
        let tss = |attributes| Segment { selector: 0x40, attributes, limit: 0x67, base: 0x1000 };
        assert_eq!(task_register(tss(0)).attributes, 0x8b);
        assert_eq!(task_register(tss(0x89)).attributes, 0x8b);
        assert_eq!(task_register(tss(0x81)).attributes, 0x83);
        assert_eq!(task_register(tss(0x8b)), tss(0x8b));
    }
}
