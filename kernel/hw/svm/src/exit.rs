//! From an exit code and its two words of information to a vendor-free [`Exit`] (15.7 to 15.14, appendix C).

use crate::entry::{Svm, event};
use crate::intercepts::Intercept;
use crate::vmcb::virtual_interrupt;
use addr::Gpa;
use cpu::machine_check::{self, Verdict};
use vcpu::{Access, Event, Exception, Exit, Gpr, PortAccess, PortDirection, TaskSwitchSource, Vcpu, Window};

/// Exit codes (appendix C).
mod code {
    pub const CR4_WRITE: u64 = 0x14;
    pub const CR8_WRITE: u64 = 0x18;
    pub const EXCEPTION_DEBUG: u64 = 0x41;
    pub const EXCEPTION_ALIGNMENT: u64 = 0x51;
    pub const EXCEPTION_MACHINE_CHECK: u64 = 0x52;
    pub const INTR: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const SMI: u64 = 0x62;
    pub const INIT: u64 = 0x63;
    pub const VINTR: u64 = 0x64;
    pub const RDPMC: u64 = 0x6f;
    pub const CPUID: u64 = 0x72;
    pub const IRET: u64 = 0x74;
    pub const INVD: u64 = 0x76;
    pub const PAUSE: u64 = 0x77;
    pub const HLT: u64 = 0x78;
    pub const INVLPGA: u64 = 0x7a;
    pub const IOIO: u64 = 0x7b;
    pub const MSR: u64 = 0x7c;
    pub const TASK_SWITCH: u64 = 0x7d;
    pub const FERR_FREEZE: u64 = 0x7e;
    pub const SHUTDOWN: u64 = 0x7f;
    pub const VMRUN: u64 = 0x80;
    pub const VMMCALL: u64 = 0x81;
    pub const SKINIT: u64 = 0x86;
    pub const WBINVD: u64 = 0x89;
    pub const MONITOR: u64 = 0x8a;
    pub const MWAIT_ARMED: u64 = 0x8c;
    pub const XSETBV: u64 = 0x8d;
    pub const RDPRU: u64 = 0x8e;
    pub const NESTED_PAGE_FAULT: u64 = 0x400;
    pub const INVALID: u64 = u64::MAX;
    /// VMRUN up to CLGI follow each other.
    pub const CLGI: u64 = 0x85;
}

/// The exit that the block describes; `None` for one that the vCPU has dealt with itself, so that the guest goes on.
pub fn exit(svm: &mut Svm) -> Option<Exit> {
    if svm.end_step(svm.vmcb.control.exit_code == code::EXCEPTION_DEBUG) {
        // What waits can be delivered.
        return Some(Exit::InterruptWindow);
    }
    let control = &svm.vmcb.control;
    let info = control.exit_info_1;
    Some(match control.exit_code {
        code::INTR | code::NMI | code::SMI | code::INIT => Exit::HostInterrupt,
        code::VINTR => return interrupt_window(svm),
        code::CR4_WRITE => Exit::Cr4Write { source: source(info) },
        code::CR8_WRITE => return withdraw_window(svm),
        code::IOIO => Exit::Port(port(info)),
        code::MSR => msr(svm, info),
        code::CPUID => Exit::Cpuid { leaf: gpr(svm, Gpr::Rax) as u32, subleaf: gpr(svm, Gpr::Rcx) as u32 },
        code::NESTED_PAGE_FAULT => nested_fault(info, control.exit_info_2),
        code::HLT => Exit::Halt,
        code::VMMCALL => Exit::Hypercall,
        code::XSETBV => Exit::SetXcr { index: gpr(svm, Gpr::Rcx) as u32, value: edx_eax(svm) },
        code::PAUSE => Exit::Pause,
        code::WBINVD | code::INVD => Exit::CacheFlush,
        code::SHUTDOWN => Exit::TripleFault,
        code::TASK_SWITCH => task_switch(svm),
        code::IRET if svm.in_nmi() => {
            svm.end_of_nmi();
            return None;
        }
        // One that `withdraw_window` waited for.
        code::IRET => {
            svm.intercept(Intercept::Iret, false);
            Exit::InterruptWindow
        }
        code::EXCEPTION_DEBUG => return reflect(svm, Exception::DEBUG),
        code::EXCEPTION_ALIGNMENT => return reflect(svm, Exception::ALIGNMENT),
        code::EXCEPTION_MACHINE_CHECK => return machine_check(),
        code::VMRUN..=code::CLGI | code::SKINIT | code::INVLPGA | code::MONITOR..=code::MWAIT_ARMED | code::RDPRU => {
            Exit::Unoffered(Exception::UNDEFINED)
        }
        // No counter is there to be read.
        code::RDPMC => Exit::Unoffered(Exception::PROTECTION),
        code::FERR_FREEZE => Exit::Fatal("a frozen x87 error (FERR)"),
        code::INVALID => Exit::InvalidState(rule_broken(svm)),
        other => Exit::Unexpected(other),
    })
}

/// A machine check while the guest ran: it goes on, or it cannot, or the host cannot.
fn machine_check() -> Option<Exit> {
    match machine_check::outcome(true) {
        Verdict::GoOn => None,
        Verdict::StopGuest => Some(Exit::Fatal("an error of the hardware that could not be corrected (machine check)")),
        Verdict::StopHost => machine_check::stop_host(),
    }
}

/// An event whose delivery the exit interrupted and that must be delivered again (15.7.2). Software interrupts are
/// not: their instruction is run again.
pub fn interrupted_event(info: u64) -> Option<u64> {
    let software_exception = info & event::TYPE_MASK == event::EXCEPTION && matches!(info & 0xff, 3 | 4);
    let again = info & event::VALID != 0 && info & event::TYPE_MASK != event::SOFTWARE && !software_exception;
    again.then_some(info)
}

/// The event in such a field. Others than these three are never injected, and never delivered again.
pub fn decode_event(info: u64) -> Event {
    match info & event::TYPE_MASK {
        event::INTERRUPT => Event::Interrupt(info as u8),
        event::NMI => Event::Nmi,
        _ => {
            let error_code = (info & event::ERROR_VALID != 0).then_some((info >> 32) as u32);
            Event::Exception(Exception { vector: info as u8, error_code, fault_address: None })
        }
    }
}

/// EXITINFO1 of a port access (15.10.2).
fn port(info: u64) -> PortAccess {
    let size = match info >> 4 & 7 {
        1 => 1,
        2 => 2,
        _ => 4,
    };
    let direction = if info & 1 != 0 { PortDirection::In } else { PortDirection::Out };
    PortAccess { port: (info >> 16) as u16, size, direction, string: info & 1 << 2 != 0 }
}

/// EXITINFO1 of a MOV to a control register, where there are decode assists (15.8.1). Elsewhere it is zero.
fn source(info: u64) -> Option<Gpr> {
    const IS_MOV: u64 = 1 << 63;
    (info & IS_MOV != 0).then(|| Gpr::ALL[(info & 0xf) as usize])
}

fn msr(svm: &Svm, info: u64) -> Exit {
    let index = gpr(svm, Gpr::Rcx) as u32;
    if info & 1 == 0 { Exit::MsrRead { index } } else { Exit::MsrWrite { index, value: edx_eax(svm) } }
}

/// EXITINFO1 is a page fault's error code, with two bits that tell a table walk from a final access (15.25.6).
fn nested_fault(info: u64, gpa: u64) -> Exit {
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 4;
    const PAGE_WALK: u64 = 1 << 33;
    let access = match info {
        _ if info & FETCH != 0 => Access::Fetch,
        _ if info & WRITE != 0 => Access::Write,
        _ => Access::Read,
    };
    Exit::NestedFault { gpa: Gpa::new(gpa), access, page_walk: info & PAGE_WALK != 0 }
}

/// EXITINFO1 is the selector of the incoming task's segment, EXITINFO2 says what asks for it (15.14.1).
fn task_switch(svm: &mut Svm) -> Exit {
    const IRET: u64 = 1 << 36;
    const JUMP: u64 = 1 << 38;
    const RESUME: u64 = 1 << 48;
    let control = &svm.vmcb.control;
    let info = control.exit_info_2;
    let source = match info {
        _ if info & IRET != 0 => TaskSwitchSource::Iret,
        _ if info & JUMP != 0 => TaskSwitchSource::Jump,
        _ if control.exit_interrupt_info & event::VALID != 0 => TaskSwitchSource::Gate,
        _ => TaskSwitchSource::Call,
    };
    let selector = control.exit_info_1 as u16;
    if info & RESUME != 0 {
        // As it is to be saved.
        svm.vmcb.save.rflags |= vcpu::rflags::RF;
    }
    Exit::TaskSwitch { selector, source }
}

/// A virtual interrupt could be delivered. Where that happens although its priority is only CR8's own, which QEMU lets
/// through, a lower one is asked for from now on: the guest would otherwise never run on.
fn interrupt_window(svm: &mut Svm) -> Option<Exit> {
    let field = svm.vmcb.control.virtual_interrupt;
    let class = (field >> virtual_interrupt::PRIORITY_SHIFT & 0xf) as u8;
    let held = field & virtual_interrupt::IGNORE_TPR == 0 && class <= svm.tpr();
    if held && !svm.equal_priority_passes {
        svm.equal_priority_passes = true;
        svm.want_interrupt_window(Window::Below(class));
        return None;
    }
    Some(Exit::InterruptWindow)
}

/// The guest writes CR8 while a virtual interrupt waits for IF. QEMU 10's TCG stops at an assertion there, and it alone has
/// no decode assists: there the request is taken back, and made again at the guest's next IRET or exit. OVMF writes CR8
/// right before the IRET of every handler.
fn withdraw_window(svm: &mut Svm) -> Option<Exit> {
    svm.want_interrupt_window(Window::Never);
    svm.intercept(Intercept::Iret, true);
    None
}

/// Delivers an exception that is intercepted only because delivering it for ever would hang the processor.
fn reflect(svm: &mut Svm, exception: Exception) -> Option<Exit> {
    let encoded = svm.encode(Event::Exception(exception));
    // If its delivery interrupted another's, it goes first: #DB and #AC are benign, and the first is raised again by its
    // own instruction (APM volume 2, 8.2.9).
    svm.interrupted = Some(encoded);
    None
}

/// Which rule of 15.5.1 the guest's state breaks, as far as software can make it.
fn rule_broken(svm: &Svm) -> &'static str {
    let save = &svm.vmcb.save;
    let (cr0_cd, cr0_nw) = (save.cr0 & vcpu::cr0::CD != 0, save.cr0 & vcpu::cr0::NW != 0);
    let long = save.efer & vcpu::efer::LME != 0 && save.cr0 & vcpu::cr0::PG != 0;
    match () {
        () if save.efer & vcpu::efer::SVME == 0 => "EFER.SVME is clear",
        () if !cr0_cd && cr0_nw => "CR0.NW is set while CR0.CD is clear",
        () if save.cr0 >> 32 != 0 => "CR0 bits 63:32 are not zero",
        () if save.dr6 >> 32 != 0 || save.dr7 >> 32 != 0 => "DR6 or DR7 bits 63:32 are not zero",
        () if long && save.cr4 & vcpu::cr4::PAE == 0 => "long mode is active while CR4.PAE is clear",
        () if long && save.cr0 & vcpu::cr0::PE == 0 => "long mode is active while CR0.PE is clear",
        () if svm.vmcb.control.asid == 0 => "the ASID is zero",
        () => "a rule of APM volume 2, 15.5.1, that software cannot tell apart",
    }
}

fn gpr(svm: &Svm, gpr: Gpr) -> u64 {
    svm.gprs[gpr as usize]
}

fn edx_eax(svm: &Svm) -> u64 {
    gpr(svm, Gpr::Rdx) << 32 | gpr(svm, Gpr::Rax) & 0xffff_ffff
}
