//! Why a run ended, in the terms of the architecture.

use crate::{Exception, Gpr};
use addr::Gpa;

/// Why [`run`](crate::Vcpu::run) returned. Registers are as the guest left them; RIP is at the instruction that exited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// The host was interrupted. The guest saw nothing.
    HostInterrupt,
    /// The guest can take an external interrupt now.
    InterruptWindow,
    /// IN, OUT, INS or OUTS.
    Port(PortAccess),
    /// An access to a guest-physical address that the nested page tables do not allow.
    NestedFault {
        /// The address.
        gpa: Gpa,
        /// What was attempted there.
        access: Access,
        /// Whether the access was the page walker's own, to a page table of the guest's.
        page_walk: bool,
    },
    /// RDMSR of an intercepted register.
    MsrRead {
        /// The register's number.
        index: u32,
    },
    /// WRMSR to an intercepted register.
    MsrWrite {
        /// The register's number.
        index: u32,
        /// EDX:EAX.
        value: u64,
    },
    /// CPUID.
    Cpuid {
        /// EAX.
        leaf: u32,
        /// ECX.
        subleaf: u32,
    },
    /// XSETBV.
    SetXcr {
        /// ECX.
        index: u32,
        /// EDX:EAX.
        value: u64,
    },
    /// MOV to CR4, of a value that may have bits which the guest was not offered.
    Cr4Write {
        /// The register that it takes the value from, where the processor says so.
        source: Option<Gpr>,
    },
    /// The log of the guest's writes is full: [`take_written`](crate::Vcpu::take_written) makes room.
    WriteLogFull,
    /// The guest ended a level-triggered interrupt by itself: it is no more in service.
    EndOfInterrupt {
        /// Its vector.
        vector: u8,
    },
    /// The guest sent an interrupt to itself by a vector that the processor does not deliver; the instruction is done.
    SelfIpi {
        /// The vector.
        vector: u8,
    },
    /// HLT.
    Halt,
    /// The guest spins in PAUSE loops.
    Pause,
    /// WBINVD, INVD or WBNOINVD.
    CacheFlush,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// An instruction that this guest has not (MONITOR, VMRUN, RDPMC of any counter, ...), with what it raises.
    Unoffered(Exception),
    /// A task switch: privileges are checked, and nothing has happened yet.
    TaskSwitch {
        /// Which task-state segment is switched to.
        selector: u16,
        /// What asks for it.
        source: TaskSwitchSource,
    },
    /// A triple fault.
    TripleFault,
    /// The processor refused the guest's state; the text names the field and the rule where they are known.
    InvalidState(&'static str),
    /// A machine check or another event that this vCPU cannot outlive; the text says which.
    Fatal(&'static str),
    /// An exit that was never asked for: the code as the hardware gave it.
    Unexpected(u64),
}

impl Exit {
    /// How many [`kind`](Exit::kind)s there are.
    pub const KINDS: usize = 23;

    /// The names of the kinds, in the order of [`kind`](Exit::kind).
    pub const KIND_NAMES: [&'static str; Self::KINDS] = [
        "host-interrupt",
        "interrupt-window",
        "port",
        "nested-fault",
        "msr-read",
        "msr-write",
        "cpuid",
        "set-xcr",
        "halt",
        "pause",
        "cache-flush",
        "hypercall",
        "unoffered",
        "task-switch",
        "triple-fault",
        "invalid-state",
        "fatal",
        "unexpected",
        "page-walk-fault",
        "write-log-full",
        "end-of-interrupt",
        "self-ipi",
        "cr4-write",
    ];

    /// The exit's kind, for counters and traces.
    pub const fn kind(&self) -> usize {
        match self {
            Self::HostInterrupt => 0,
            Self::InterruptWindow => 1,
            Self::Port(_) => 2,
            Self::NestedFault { page_walk: false, .. } => 3,
            Self::MsrRead { .. } => 4,
            Self::MsrWrite { .. } => 5,
            Self::Cpuid { .. } => 6,
            Self::SetXcr { .. } => 7,
            Self::Halt => 8,
            Self::Pause => 9,
            Self::CacheFlush => 10,
            Self::Hypercall => 11,
            Self::Unoffered(_) => 12,
            Self::TaskSwitch { .. } => 13,
            Self::TripleFault => 14,
            Self::InvalidState(_) => 15,
            Self::Fatal(_) => 16,
            Self::Unexpected(_) => 17,
            Self::NestedFault { page_walk: true, .. } => 18,
            Self::WriteLogFull => 19,
            Self::EndOfInterrupt { .. } => 20,
            Self::SelfIpi { .. } => 21,
            Self::Cr4Write { .. } => 22,
        }
    }
}

/// What asks for a task switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskSwitchSource {
    /// CALL.
    Call,
    /// IRET with RFLAGS.NT set.
    Iret,
    /// JMP.
    Jump,
    /// A task gate in the IDT: by the event whose delivery the exit interrupted, else by an INT.
    Gate,
}

/// A port access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortAccess {
    /// The port.
    pub port: u16,
    /// 1, 2 or 4 bytes.
    pub size: u8,
    /// Which way.
    pub direction: PortDirection,
    /// Whether it is INS or OUTS, whose data is in memory; else it is in RAX.
    pub string: bool,
}

/// Which way a port access goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortDirection {
    /// From the device.
    In,
    /// To the device.
    Out,
}

/// What an access does to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store, or a load that a store follows.
    Write,
    /// An instruction fetch.
    Fetch,
}
