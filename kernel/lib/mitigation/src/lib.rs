//! What a processor leaks by speculation, and what the host does about it: facts in, decisions out.
//!
//! The main function is [`plan`]: from a [`Processor`] it makes the [`Plan`] that the world switch carries out, and a
//! [`Finding`] for each weakness that a guest could use against the host or against another guest. `hw/cpu` reads the
//! facts and applies the plan; `host` prints the findings. A guest inside its own tables cannot reach the host by
//! Meltdown, and between user and kernel of a guest the guest itself decides.
//!
//! Intel: SDM volume 4, table 2-2, and "Speculative Execution Side Channel Mitigations", revision 3.0; the affected models
//! by Intel's "Affected Processors" list. AMD: APM volume 3, appendix E, and "Software Techniques for Managing Speculation"
//! (2024), the security bulletins 7005 (SRSO), 1037 (return predictions) and 7029 (TSA).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod amd;
mod intel;
#[cfg(test)]
mod tests;

/// Who made the processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vendor {
    /// Intel.
    Intel,
    /// AMD, and Hygon, whose first cores are AMD's.
    Amd,
    /// Anybody else: nothing is known of it.
    Other,
}

/// What is known of a processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Processor {
    /// Who made it.
    pub vendor: Vendor,
    /// Family and model with their extensions (CPUID 1, EAX).
    pub family: u32,
    /// See `family`.
    pub model: u32,
    /// CPUID 7, EBX and EDX.
    pub leaf_7: [u32; 2],
    /// CPUID 7.2, EDX.
    pub leaf_7_2: u32,
    /// CPUID 8000_0008, EBX.
    pub extended_8: u32,
    /// CPUID 8000_0021, EAX and ECX.
    pub extended_21: [u32; 2],
    /// IA32_ARCH_CAPABILITIES; 0 where there is none.
    pub capabilities: u64,
    /// Two threads share a core.
    pub has_threads: bool,
    /// It is a program that interprets instructions one after the other, and so speculates nothing.
    pub is_interpreted: bool,
}

/// What the world switch does beside switching. Each part that is not needed costs nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// IA32_SPEC_CTRL in the host; 0: it is left alone, and may not be there.
    pub control: u64,
    /// It does not hold across an exit: written after each, and cleared before each entry.
    pub control_each_exit: bool,
    /// EFER.AIBRSE.
    pub automatic_ibrs: bool,
    /// IBPB before another vCPU runs.
    pub barrier_on_switch: bool,
    /// IBPB after each exit.
    pub barrier_on_exit: bool,
    /// The return stack buffer is filled after each exit.
    pub fill_return_stack: bool,
    /// VERW, which overwrites the processor's buffers, before each entry.
    pub clear_buffers: bool,
    /// IA32_FLUSH_CMD.L1D_FLUSH before each entry.
    pub flush_l1d: bool,
}

impl Plan {
    /// Whether the plain world switch will not do.
    pub fn guards_each_exit(&self) -> bool {
        self.control_each_exit || self.barrier_on_exit || self.fill_return_stack || self.clear_buffers || self.flush_l1d
    }

    /// IA32_SPEC_CTRL while a guest runs that has set it so, or has never set it.
    pub fn guest_control(&self, set: Option<u64>) -> u64 {
        match set {
            // The guest sees no other thread of its core, and leaves it to the host to hold that off.
            Some(value) => value | self.control & control::STIBP,
            None if self.control_each_exit => self.control & !control::IBRS,
            None => self.control,
        }
    }
}

/// How a weakness stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// This processor has not got it.
    NotAffected,
    /// It is closed, and how.
    Mitigated(&'static str),
    /// It is open, and why.
    Exposed(&'static str),
}

/// A weakness and how it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The name by which Linux lists it.
    pub name: &'static str,
    /// How it stands.
    pub status: Status,
}

/// How many weaknesses are looked at.
pub const FINDINGS: usize = 13;

/// Bits of IA32_SPEC_CTRL.
pub mod control {
    /// Indirect branches are not steered from a lower privilege.
    pub const IBRS: u64 = 1 << 0;
    /// Nor from the other thread of the core.
    pub const STIBP: u64 = 1 << 1;
    /// Nor by the history of branches.
    pub const BHI_DIS_S: u64 = 1 << 10;
}

/// What to do on this processor, and how each weakness stands then.
pub fn plan(processor: &Processor) -> (Plan, [Finding; FINDINGS]) {
    let (plan, statuses) = match processor.vendor {
        _ if processor.is_interpreted => (Plan::default(), Statuses::all(Status::NotAffected)),
        Vendor::Intel => intel::plan(processor),
        Vendor::Amd => amd::plan(processor),
        Vendor::Other => {
            (Plan::default(), Statuses::all(Status::Exposed("nothing is known of this maker's processors")))
        }
    };
    (plan, statuses.findings())
}

/// The status of each weakness.
struct Statuses {
    spectre_v2: Status,
    branch_history: Status,
    return_stack: Status,
    retbleed: Status,
    srso: Status,
    l1tf: Status,
    mds: Status,
    taa: Status,
    mmio_stale_data: Status,
    register_file: Status,
    gather: Status,
    tsa: Status,
    instruction_tlb: Status,
}

impl Statuses {
    fn all(status: Status) -> Self {
        Self {
            spectre_v2: status,
            branch_history: status,
            return_stack: status,
            retbleed: status,
            srso: status,
            l1tf: status,
            mds: status,
            taa: status,
            mmio_stale_data: status,
            register_file: status,
            gather: status,
            tsa: status,
            instruction_tlb: status,
        }
    }

    fn findings(self) -> [Finding; FINDINGS] {
        [
            ("spectre_v2", self.spectre_v2),
            ("bhi", self.branch_history),
            ("return_stack", self.return_stack),
            ("retbleed", self.retbleed),
            ("spec_rstack_overflow", self.srso),
            ("l1tf", self.l1tf),
            ("mds", self.mds),
            ("tsx_async_abort", self.taa),
            ("mmio_stale_data", self.mmio_stale_data),
            ("reg_file_data_sampling", self.register_file),
            ("gather_data_sampling", self.gather),
            ("tsa", self.tsa),
            ("itlb_multihit", self.instruction_tlb),
        ]
        .map(|(name, status)| Finding { name, status })
    }
}

/// What no microcode offers cannot be done.
const OLD_MICROCODE: &str = "needs newer microcode";

/// The status of a weakness that something closes, where it is offered.
fn closed(affected: bool, offered: bool, how: &'static str) -> Status {
    match (affected, offered) {
        (false, _) => Status::NotAffected,
        (true, true) => Status::Mitigated(how),
        (true, false) => Status::Exposed(OLD_MICROCODE),
    }
}

/// The same, where the other thread of a core still sees what it should not.
fn closed_but_for_threads(processor: &Processor, affected: bool, offered: bool, how: &'static str) -> Status {
    match closed(affected, offered, how) {
        Status::Mitigated(_) if processor.has_threads => {
            Status::Exposed("closed within a thread; the core's other thread still sees: turn hyper-threading off")
        }
        status => status,
    }
}
