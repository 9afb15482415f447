//! The guest's state in the VMCB, in and out: the verbs of [`Vcpu`].

use crate::entry::{Svm, event};
use crate::exit;
use crate::intercepts::Intercept;
use crate::msrs::Way;
use crate::vmcb::{VmcbSegment, clean, virtual_interrupt};
use addr::Gpa;
use alloc::sync::Arc;
use alloc::vec::Vec;
use cpu::msr;
use vcpu::{
    ApicPage, Blocking, Breakpoints, Event, Exception, Exit, Gpr, Paging, Posted, ReadyFor, Segment, SegmentName,
    Speculation, Table, TscRatio, Unloadable, Vcpu, VcpuState, Window, Xfd, cr4, dr6_after_trap, efer,
    makes_double_fault, rflags,
};

/// DR7.GD, which every debug exception clears.
const DR7_GENERAL_DETECT: u64 = 1 << 13;

impl Vcpu for Svm {
    fn run(&mut self) -> Exit {
        self.enter()
    }

    fn park(&mut self) {
        self.leave_world();
    }

    fn unload(&mut self) {
        self.leave_world();
        self.unload_fpu();
    }

    fn gprs(&self) -> &[u64; 16] {
        &self.gprs
    }

    fn gprs_mut(&mut self) -> &mut [u64; 16] {
        &mut self.gprs
    }

    fn rip(&self) -> u64 {
        self.vmcb.save.rip
    }

    fn rflags(&self) -> u64 {
        self.vmcb.save.rflags
    }

    fn set_rflags(&mut self, value: u64) {
        self.vmcb.save.rflags = value;
    }

    fn next_rip(&self) -> Option<u64> {
        const IOIO: u64 = 0x7b;
        const TASK_SWITCH: u64 = 0x7d;
        const FIRST_FAULT_LIKE: u64 = 0x400;
        let control = &self.vmcb.control;
        match control.exit_code {
            // A port access says so on every processor (15.10.2).
            IOIO => Some(control.exit_info_2),
            // No intercept of an instruction (15.7.1).
            TASK_SWITCH => None,
            code if code >= FIRST_FAULT_LIKE => None,
            _ if self.features.contains(crate::Features::NEXT_RIP) && control.next_rip != 0 => Some(control.next_rip),
            _ => None,
        }
    }

    fn breakpoints(&self) -> Option<Breakpoints> {
        Breakpoints::new(self.vmcb.save.dr7, || self.debug_registers())
    }

    fn retire(&mut self, next_rip: u64, met: u64) {
        let save = &mut self.vmcb.save;
        save.rip = next_rip;
        save.rflags &= !rflags::RF;
        self.vmcb.control.interrupt_shadow = 0;
        let steps = save.rflags & rflags::TF != 0;
        if steps || met != 0 {
            save.dr6 = dr6_after_trap(save.dr6, met, steps);
            save.dr7 &= !DR7_GENERAL_DETECT;
            self.changed(clean::DEBUG);
            self.inject(Event::Exception(Exception::DEBUG));
        }
    }

    fn segment(&self, name: SegmentName) -> Segment {
        from_vmcb(&self.vmcb.save.segments[name as usize])
    }

    fn paging(&self) -> Paging {
        let save = &self.vmcb.save;
        Paging { cr0: save.cr0, cr3: save.cr3, cr4: save.cr4, efer: save.efer & !efer::SVME, cpl: save.cpl }
    }

    fn inject(&mut self, event: Event) {
        let encoded = self.encode(event);
        match self.interrupted {
            // A fault while another event was being delivered: the contributory ones make a double fault, and a fault
            // in delivering that is a shutdown, which the processor finds out by itself (APM 8.2.9).
            Some(first) if first & event::TYPE_MASK == event::EXCEPTION => {
                let double_fault = event::VALID | event::EXCEPTION | event::ERROR_VALID | 8;
                let is_double = makes_double_fault(first as u8, encoded as u8);
                self.interrupted = Some(if is_double { double_fault } else { encoded });
            }
            _ => {
                assert!(self.vmcb.control.event_injection & event::VALID == 0, "one event an entry");
                self.vmcb.control.event_injection = encoded;
            }
        }
    }

    fn ready_for(&self) -> ReadyFor {
        let control = &self.vmcb.control;
        if self.interrupted.is_some() || control.event_injection & event::VALID != 0 {
            ReadyFor::Nothing
        } else if self.vmcb.save.rflags & rflags::IF == 0 || control.interrupt_shadow & 1 != 0 {
            ReadyFor::Exceptions
        } else {
            ReadyFor::Interrupts
        }
    }

    fn nmi_blocked(&self) -> bool {
        self.holds_nmis()
    }

    fn want_interrupt_window(&mut self, window: Window) {
        const ANY: u64 = virtual_interrupt::PRIORITY_HIGHEST | virtual_interrupt::IGNORE_TPR;
        const REQUEST: u64 = virtual_interrupt::REQUEST | ANY;
        // A virtual interrupt that is never delivered: its intercept comes first (15.21.4).
        let request = match window {
            Window::Never => 0,
            Window::Open => REQUEST,
            Window::Below(class) => {
                let priority = class.saturating_sub(self.equal_priority_passes.into());
                virtual_interrupt::REQUEST | u64::from(priority) << virtual_interrupt::PRIORITY_SHIFT
            }
        };
        let control = &mut self.vmcb.control;
        if control.virtual_interrupt & REQUEST != request {
            control.virtual_interrupt = control.virtual_interrupt & !REQUEST | request;
            self.changed(clean::TPR);
            self.intercept(Intercept::InterruptWindow, request != 0);
            // See `exit::withdraw_window`.
            let is_open = window == Window::Open && !self.features.contains(crate::Features::DECODE_ASSISTS);
            self.intercept(Intercept::Cr8Write, is_open);
        }
    }

    fn tpr(&self) -> u8 {
        (self.vmcb.control.virtual_interrupt & virtual_interrupt::TPR) as u8
    }

    fn set_tpr(&mut self, class: u8) {
        if class != self.tpr() {
            let others = self.vmcb.control.virtual_interrupt & !virtual_interrupt::TPR;
            self.vmcb.control.virtual_interrupt = others | u64::from(class) & virtual_interrupt::TPR;
            self.changed(clean::TPR);
        }
    }

    fn share_apic(&mut self, _page: &Arc<ApicPage>) -> bool {
        false
    }

    fn share_posted(&mut self, _posted: &Arc<Posted>) -> bool {
        false
    }

    fn open_apic(&mut self, _is_open: bool) {
        // Every access exits.
    }

    fn state(&mut self) -> VcpuState {
        self.unload();
        let save = &self.vmcb.save;
        let mut segments = save.segments.each_ref().map(from_vmcb);
        // Elsewhere the level is SS.DPL; here it need not be, after SYSRET or with a null SS.
        let stack = &mut segments[SegmentName::Ss as usize];
        stack.attributes = stack.attributes & !(3 << 5) | u16::from(save.cpl) << 5;
        VcpuState {
            gprs: self.gprs,
            rip: save.rip,
            rflags: save.rflags,
            segments,
            ldtr: from_vmcb(&save.ldtr),
            tr: from_vmcb(&save.tr),
            gdtr: Table { base: save.gdtr.base, limit: save.gdtr.limit as u16 },
            idtr: Table { base: save.idtr.base, limit: save.idtr.limit as u16 },
            cr0: save.cr0,
            cr2: save.cr2,
            cr3: save.cr3,
            cr4: save.cr4,
            efer: save.efer & !efer::SVME,
            dr: self.dr,
            dr6: save.dr6,
            dr7: save.dr7,
            xcr0: self.extended.xcr0(),
            xfd: self.extended.xfd().into(),
            pat: save.pat,
            star: save.star,
            lstar: save.lstar,
            cstar: save.cstar,
            sfmask: save.sfmask,
            kernel_gs_base: save.kernel_gs_base,
            sysenter_cs: save.sysenter_cs,
            sysenter_esp: save.sysenter_esp,
            sysenter_eip: save.sysenter_eip,
            tsc_aux: self.tsc_aux,
            spec_ctrl: self.spec_ctrl(),
            blocking: Blocking {
                sti: self.vmcb.control.interrupt_shadow & 1 != 0,
                nmi: self.in_nmi(),
                ..Blocking::default()
            },
            waiting: self.waiting(),
        }
    }

    fn set_state(&mut self, state: &VcpuState) {
        self.unload();
        self.gprs = state.gprs;
        (self.dr, self.tsc_aux) = (state.dr, state.tsc_aux);
        self.extended.set_xcr0(state.xcr0);
        self.extended.set_xfd(state.xfd.into());
        self.set_spec_ctrl(state.spec_ctrl);
        let save = &mut self.vmcb.save;
        (save.rip, save.rflags) = (state.rip, state.rflags);
        (save.rax, save.rsp) = (state.gprs[Gpr::Rax as usize], state.gprs[Gpr::Rsp as usize]);
        save.segments = state.segments.map(to_vmcb);
        (save.ldtr, save.tr) = (to_vmcb(state.ldtr), to_vmcb(state.tr));
        (save.gdtr, save.idtr) = (table_to_vmcb(state.gdtr), table_to_vmcb(state.idtr));
        (save.cr0, save.cr2, save.cr3, save.cr4) = (state.cr0, state.cr2, state.cr3, state.cr4);
        // A guest's EFER.SVME must be set for VMRUN (15.5.1); what the guest reads of it is the exit's to say.
        save.efer = state.efer | efer::SVME;
        (save.dr6, save.dr7, save.pat) = (state.dr6, state.dr7, state.pat);
        (save.star, save.lstar, save.cstar, save.sfmask) = (state.star, state.lstar, state.cstar, state.sfmask);
        save.kernel_gs_base = state.kernel_gs_base;
        (save.sysenter_cs, save.sysenter_esp, save.sysenter_eip) =
            (state.sysenter_cs, state.sysenter_esp, state.sysenter_eip);
        // The processor takes the current privilege level from SS.DPL, but in real mode and virtual-8086 mode.
        save.cpl = (state.segments[SegmentName::Ss as usize].attributes >> 5 & 3) as u8;
        self.vmcb.control.interrupt_shadow = u64::from(state.blocking.sti || state.blocking.mov_ss);
        self.interrupted = None;
        self.block_nmis(state.blocking.nmi);
        self.vmcb.control.event_injection = state.waiting.map_or(0, |event| self.encode(event));
        self.changed(clean::ALL);
        // What is cached may be of other page tables.
        self.flush();
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
        self.cr4_offered = bits;
        // What the processor has not it refuses by itself.
        let is_withheld = cr4::named(|leaf| cpu::cpuid(leaf, 0).registers()) & !bits != 0;
        self.intercept(Intercept::Cr4Write, is_withheld);
    }

    fn write_cr4(&mut self, value: u64) -> bool {
        let is_allowed = cr4::may_write(&self.paging(), value, self.cr4_offered);
        if is_allowed {
            self.vmcb.save.cr4 = value;
            self.changed(clean::CONTROL_REGISTERS);
            // The instruction would have forgotten translations (5.5.1); page-directory pointers are read as they are used,
            // with nested paging (15.25.10).
            self.flush();
        }
        is_allowed
    }

    fn offer_speculation(&mut self, offered: Speculation) {
        self.msrs.pass(msr::PRED_CMD, Way::Write, offered.has_prediction_command);
        self.changed(clean::PERMISSION_MAPS);
    }

    fn spec_ctrl(&self) -> u64 {
        self.spec_ctrl.value()
    }

    fn set_spec_ctrl(&mut self, value: u64) {
        // On AMD's processors Linux does not write it at each system call. So each write exits, and STIBP can be held for
        // guests that share a core. Where the VMCB has the register too (CPUID 8000_000A, EDX bit 20), it is zero there,
        // and both are in force.
        self.spec_ctrl.set(value);
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
        self.vmcb.control.tsc_offset = offset;
        self.changed(clean::INTERCEPTS);
    }

    fn tsc_offset(&self) -> u64 {
        self.vmcb.control.tsc_offset
    }

    fn invalidate(&mut self) {
        self.flush();
    }

    fn take_written(&mut self, _report: &mut dyn FnMut(Gpa)) {
        // SVM marks pages in the nested tables and logs nothing.
    }
}

impl Svm {
    /// What the next entry delivers; a page fault's address is in CR2 by now.
    fn waiting(&self) -> Option<Event> {
        let injected = Some(self.vmcb.control.event_injection).filter(|event| event & event::VALID != 0);
        self.interrupted.or(injected).map(exit::decode_event)
    }
}

fn from_vmcb(segment: &VmcbSegment) -> Segment {
    let VmcbSegment { selector, attributes, limit, base } = *segment;
    // The block packs the flags of the descriptor's upper byte right behind the lower one; so does the seam.
    Segment { selector, attributes, limit, base }
}

fn to_vmcb(segment: Segment) -> VmcbSegment {
    let Segment { selector, attributes, limit, base } = segment;
    VmcbSegment { selector, attributes, limit, base }
}

fn table_to_vmcb(table: Table) -> VmcbSegment {
    VmcbSegment { selector: 0, attributes: 0, limit: table.limit.into(), base: table.base }
}
