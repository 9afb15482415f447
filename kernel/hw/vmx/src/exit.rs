//! From an exit reason and its qualification to a vendor-free [`Exit`] (28.2, appendix C).

use crate::checks;
use crate::enable::Features;
use crate::entry::Vmx;
use crate::event::info;
use crate::host_state;
use crate::vmcs::{Field, interruptibility, processor};
use addr::Gpa;
use core::arch::asm;
use cpu::machine_check::{self, Verdict};
use vcpu::{Access, Event, Exception, Exit, Gpr, PortAccess, PortDirection, TaskSwitchSource, Vcpu};

/// Basic exit reasons (appendix C).
mod reason {
    pub const EXCEPTION_OR_NMI: u32 = 0;
    pub const EXTERNAL_INTERRUPT: u32 = 1;
    pub const TRIPLE_FAULT: u32 = 2;
    pub const INIT: u32 = 3;
    pub const INTERRUPT_WINDOW: u32 = 7;
    pub const NMI_WINDOW: u32 = 8;
    pub const TASK_SWITCH: u32 = 9;
    pub const CPUID: u32 = 10;
    pub const GETSEC: u32 = 11;
    pub const HLT: u32 = 12;
    pub const INVD: u32 = 13;
    pub const RDPMC: u32 = 15;
    pub const RSM: u32 = 17;
    pub const VMCALL: u32 = 18;
    /// VMCLEAR up to VMXON follow each other.
    pub const VMCLEAR: u32 = 19;
    pub const VMXON: u32 = 27;
    pub const CONTROL_REGISTER: u32 = 28;
    pub const PORT: u32 = 30;
    pub const RDMSR: u32 = 31;
    pub const WRMSR: u32 = 32;
    pub const INVALID_STATE: u32 = 33;
    pub const MSR_LOADING: u32 = 34;
    pub const MWAIT: u32 = 36;
    pub const MONITOR: u32 = 39;
    pub const PAUSE: u32 = 40;
    pub const MACHINE_CHECK: u32 = 41;
    pub const TPR_BELOW_THRESHOLD: u32 = 43;
    pub const VIRTUALIZED_EOI: u32 = 45;
    pub const EPT_VIOLATION: u32 = 48;
    pub const EPT_MISCONFIGURATION: u32 = 49;
    pub const INVEPT: u32 = 50;
    pub const PREEMPTION_TIMER: u32 = 52;
    pub const INVVPID: u32 = 53;
    pub const WBINVD: u32 = 54;
    pub const XSETBV: u32 = 55;
    pub const APIC_WRITE: u32 = 56;
    pub const VMFUNC: u32 = 59;
    pub const WRITE_LOG_FULL: u32 = 62;
}

/// The exit-reason field (table 25-15).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reason(pub u32);

impl Reason {
    const ENTRY_FAILED: u32 = 1 << 31;

    fn basic(self) -> u32 {
        self.0 & 0xffff
    }

    /// Whether an instruction caused the exit, so that its length is known (28.2.5).
    pub fn has_length(self) -> bool {
        !matches!(
            self.basic(),
            reason::EXCEPTION_OR_NMI
                ..=reason::NMI_WINDOW
                    | reason::INVALID_STATE
                    | reason::MSR_LOADING
                    | reason::MACHINE_CHECK
                    | reason::TPR_BELOW_THRESHOLD
                    | reason::VIRTUALIZED_EOI
                    | reason::APIC_WRITE
                    | reason::EPT_VIOLATION
                    | reason::EPT_MISCONFIGURATION
                    | reason::PREEMPTION_TIMER
                    | reason::WRITE_LOG_FULL
        )
    }
}

/// The exit that the VMCS describes, or `None` when it was seen to and the guest goes on.
pub fn exit(vmx: &mut Vmx) -> Option<Exit> {
    if vmx.reason.0 & Reason::ENTRY_FAILED != 0 {
        return Some(entry_failure(vmx));
    }
    Some(match vmx.reason.basic() {
        reason::EXCEPTION_OR_NMI => return exception_or_nmi(vmx),
        reason::EXTERNAL_INTERRUPT => {
            if vmx.features.contains(Features::POSTED_INTERRUPTS) {
                let vector = vmx.vmcs.read(Field::EXIT_EVENT) as u8;
                handle_interrupt(host_state::handler(&vmx.vmcs, vector));
            }
            Exit::HostInterrupt
        }
        reason::PREEMPTION_TIMER => Exit::HostInterrupt,
        // INIT comes from a processor on which Pollux is dying: in VMX operation it stops nobody by itself (24.8).
        reason::INIT => cpu::halt_forever(),
        reason::INTERRUPT_WINDOW => Exit::InterruptWindow,
        // The MOV to CR8 is done.
        reason::TPR_BELOW_THRESHOLD => {
            vmx.hot.tpr_threshold = 0;
            Exit::InterruptWindow
        }
        reason::NMI_WINDOW => {
            vmx.hot.processor_controls &= !u64::from(processor::NMI_WINDOW);
            Exit::InterruptWindow
        }
        reason::PORT => Exit::Port(port(qualification(vmx))),
        reason::RDMSR => Exit::MsrRead { index: gpr(vmx, Gpr::Rcx) as u32 },
        reason::WRMSR => Exit::MsrWrite { index: gpr(vmx, Gpr::Rcx) as u32, value: edx_eax(vmx) },
        reason::CPUID => Exit::Cpuid { leaf: gpr(vmx, Gpr::Rax) as u32, subleaf: gpr(vmx, Gpr::Rcx) as u32 },
        reason::EPT_VIOLATION => nested_fault(vmx),
        reason::WRITE_LOG_FULL => {
            let unblocked = qualification(vmx) & u64::from(info::NMI_UNBLOCKED) != 0;
            block_nmi_again(vmx, unblocked);
            Exit::WriteLogFull
        }
        reason::HLT => Exit::Halt,
        // Both follow the instruction.
        reason::VIRTUALIZED_EOI => Exit::EndOfInterrupt { vector: qualification(vmx) as u8 },
        // By x2APIC's registers only an IPI to itself exits so (30.5).
        reason::APIC_WRITE => Exit::SelfIpi { vector: vmx.apic.self_ipi() },
        reason::VMCALL => Exit::Hypercall,
        reason::XSETBV => Exit::SetXcr { index: gpr(vmx, Gpr::Rcx) as u32, value: edx_eax(vmx) },
        reason::PAUSE => Exit::Pause,
        reason::WBINVD | reason::INVD => Exit::CacheFlush,
        reason::TRIPLE_FAULT => Exit::TripleFault,
        reason::TASK_SWITCH => task_switch(vmx),
        reason::CONTROL_REGISTER => {
            let qualification = qualification(vmx);
            return vmx.control_register_exit(qualification);
        }
        reason::GETSEC
        | reason::RSM
        | reason::VMCLEAR..=reason::VMXON
        | reason::MWAIT
        | reason::MONITOR
        | reason::INVEPT
        | reason::INVVPID
        | reason::VMFUNC => Exit::Unoffered(Exception::UNDEFINED),
        // No counter is there to be read.
        reason::RDPMC => Exit::Unoffered(Exception::PROTECTION),
        reason::EPT_MISCONFIGURATION => Exit::Fatal("an EPT entry that breaks the rules (EPT misconfiguration)"),
        other => Exit::Unexpected(other.into()),
    })
}

/// The entry failed after the checks of controls and host (27.8).
fn entry_failure(vmx: &Vmx) -> Exit {
    match vmx.reason.basic() {
        reason::INVALID_STATE => Exit::InvalidState(checks::rule_broken(vmx, qualification(vmx))),
        reason::MACHINE_CHECK => Exit::Fatal("a machine check during VM entry"),
        other => Exit::Unexpected(other.into()),
    }
}

fn exception_or_nmi(vmx: &mut Vmx) -> Option<Exit> {
    const DEBUG: u32 = 1;
    const ALIGNMENT: u32 = 17;
    const MACHINE_CHECK: u32 = 18;
    let event = vmx.vmcs.read(Field::EXIT_EVENT) as u32;
    if event & info::TYPE_MASK == info::NMI {
        // The NMI was the host's and is gone, but still blocks others: the handler's IRET ends that (28.5.5).
        // SAFETY: the host's handler for vector 2 notes the NMI and returns.
        unsafe { asm!("int 2") }
        return Some(Exit::HostInterrupt);
    }
    block_nmi_again(vmx, event & info::NMI_UNBLOCKED != 0);
    match event & 0xff {
        DEBUG => debug_exception(vmx),
        ALIGNMENT => reflect(vmx, Exception { vector: 17, error_code: Some(0), fault_address: None }),
        MACHINE_CHECK => machine_check(),
        other => Some(Exit::Unexpected(other.into())),
    }
}

/// Runs the host's handler of an interrupt that the exit acknowledged (28.2.2): where interrupts are taken, it is pending
/// no more.
fn handle_interrupt(handler: u64) {
    // SAFETY: what is called is the handler that the host has for the vector, with the frame that it expects (7.14.2); it
    // gives back every register, and leaves interrupts shut.
    unsafe {
        asm!(
            "mov {stack}, rsp",
            "mov {segment:e}, ss",
            "and rsp, -16",
            "push {segment}",
            "push {stack}",
            "pushfq",
            "mov {segment:e}, cs",
            "push {segment}",
            "call {handler}",
            stack = out(reg) _,
            segment = out(reg) _,
            handler = in(reg) handler,
        );
    }
}

/// A machine check while the guest ran: it goes on, or it cannot, or the host cannot.
fn machine_check() -> Option<Exit> {
    match machine_check::outcome(true) {
        Verdict::GoOn => None,
        Verdict::StopGuest => Some(Exit::Fatal("an error of the hardware that could not be corrected (machine check)")),
        Verdict::StopHost => machine_check::stop_host(),
    }
}

/// The processor left DR6 and DR7 as they were: what #DB does to them is done here (28.2.1, table 28-1).
fn debug_exception(vmx: &mut Vmx) -> Option<Exit> {
    /// B0 to B3: each says what this exception met; the other bits only ever add up.
    const BREAKPOINTS: u64 = 0xf;
    const REASONS: u64 = BREAKPOINTS | 1 << 13 | 1 << 14;
    let met = qualification(vmx) & REASONS;
    vmx.change_dr6(|dr6| dr6 & !BREAKPOINTS | met);
    vmx.forget_general_detect();
    reflect(vmx, Exception::DEBUG)
}

/// Delivers an exception that exits only because delivering it for ever would hang the processor.
fn reflect(vmx: &mut Vmx, exception: Exception) -> Option<Exit> {
    let encoded = vmx.encode(Event::Exception(exception));
    // If its delivery interrupted another's, it goes first: #DB and #AC are benign, and the first is raised again by its
    // own instruction (7.15).
    vmx.interrupted = Some(encoded);
    None
}

/// An IRET that ended the blocking of NMIs did not complete: it blocks again (28.2.3).
fn block_nmi_again(vmx: &mut Vmx, unblocked: bool) {
    if unblocked && vmx.interrupted.is_none() {
        vmx.hot.interruptibility |= interruptibility::NMI;
    }
}

/// A port access's qualification (table 28-5).
fn port(qualification: u64) -> PortAccess {
    let size = match qualification & 7 {
        0 => 1,
        1 => 2,
        _ => 4,
    };
    let direction = if qualification & 1 << 3 != 0 { PortDirection::In } else { PortDirection::Out };
    PortAccess { port: (qualification >> 16) as u16, size, direction, string: qualification & 1 << 4 != 0 }
}

/// An EPT violation's qualification (table 28-7). With accessed and dirty bits, a walk of the guest's tables counts as a
/// write whatever it was for.
fn nested_fault(vmx: &mut Vmx) -> Exit {
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 2;
    const LINEAR_VALID: u64 = 1 << 7;
    const FINAL_ACCESS: u64 = 1 << 8;
    const NMI_UNBLOCKED: u64 = 1 << 12;
    let info = qualification(vmx);
    block_nmi_again(vmx, info & NMI_UNBLOCKED != 0);
    let access = match info {
        _ if info & FETCH != 0 => Access::Fetch,
        _ if info & WRITE != 0 => Access::Write,
        _ => Access::Read,
    };
    let page_walk = info & LINEAR_VALID != 0 && info & FINAL_ACCESS == 0;
    Exit::NestedFault { gpa: Gpa::new(vmx.vmcs.read(Field::GUEST_PHYSICAL_ADDRESS)), access, page_walk }
}

/// A task switch's qualification (table 28-2).
fn task_switch(vmx: &Vmx) -> Exit {
    let qualification = qualification(vmx);
    let source = match qualification >> 30 & 3 {
        0 => TaskSwitchSource::Call,
        1 => TaskSwitchSource::Iret,
        2 => TaskSwitchSource::Jump,
        _ => TaskSwitchSource::Gate,
    };
    Exit::TaskSwitch { selector: qualification as u16, source }
}

fn qualification(vmx: &Vmx) -> u64 {
    vmx.vmcs.read(Field::EXIT_QUALIFICATION)
}

fn gpr(vmx: &Vmx, gpr: Gpr) -> u64 {
    vmx.gprs()[gpr as usize]
}

fn edx_eax(vmx: &Vmx) -> u64 {
    gpr(vmx, Gpr::Rdx) << 32 | gpr(vmx, Gpr::Rax) & 0xffff_ffff
}
