//! Carries out what `mitigation` decides: at start-up once, and around each run of a guest.
//!
//! [`init`] and [`enable`] set a processor up; `svm` and `vmx` call [`switched`] and [`before_entry`], and enter by a
//! second, guarded way where [`guards`] says so: straight code with [`clear_buffers!`](crate::clear_buffers) before the
//! entry and [`after_exit!`](crate::after_exit) behind the exit, in which no branch can be steered past a step.

use crate::{cpuid, msr};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use mitigation::{Finding, Plan, Processor, Vendor, control};
use spin::Once;

/// IA32_BIOS_SIGN_ID and AMD's PATCH_LEVEL: the microcode's revision.
const MICROCODE: u32 = 0x8b;
/// IA32_SPEC_CTRL.
const SPEC_CTRL: u32 = 0x48;
/// IA32_PRED_CMD and its IBPB.
const PRED_CMD: u32 = 0x49;
const IBPB: u64 = 1;
/// IA32_FLUSH_CMD and its L1D_FLUSH.
const FLUSH_CMD: u32 = 0x10b;
const L1D_FLUSH: u64 = 1;
/// IA32_ARCH_CAPABILITIES.
const ARCH_CAPABILITIES: u32 = 0x10a;
/// EFER's Automatic IBRS (APM volume 2, 3.2.9).
const AUTOMATIC_IBRS: u64 = 1 << 21;

/// Bits of [`AFTER_EXIT`].
const BARRIER: u32 = 1 << 0;
const CONTROL: u32 = 1 << 1;

/// What [`after_exit!`](crate::after_exit) does beside filling the return stack.
pub static AFTER_EXIT: AtomicU32 = AtomicU32::new(0);
/// The low half of IA32_SPEC_CTRL in the host; nothing is in the high one.
pub static HOST_CONTROL: AtomicU32 = AtomicU32::new(0);
/// What VERW looks at: the null selector.
pub static NULL_SELECTOR: AtomicU32 = AtomicU32::new(0);

static GUARDS: AtomicBool = AtomicBool::new(false);
static REPORT: Once<Report> = Once::new();

/// Number of a vCPU, never used again.
static NEXT_VCPU: AtomicU64 = AtomicU64::new(1);

/// What was found and decided, as the boot processor is.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The microcode's revision; 0 where the processor does not say.
    pub microcode: u32,
    /// Two threads share a core.
    pub has_threads: bool,
    /// What is done.
    pub plan: Plan,
    /// How each weakness stands.
    pub findings: [Finding; mitigation::FINDINGS],
}

/// Decides, by the boot processor. With `always`, an emulator is treated as the processor that it shows, for tests.
pub fn init(always: bool) {
    let processor = processor(always);
    let (plan, findings) = mitigation::plan(&processor);
    let flags = if plan.barrier_on_exit { BARRIER } else { 0 } | if plan.control_each_exit { CONTROL } else { 0 };
    AFTER_EXIT.store(flags, Ordering::Relaxed);
    HOST_CONTROL.store(plan.control as u32, Ordering::Relaxed);
    GUARDS.store(plan.guards_each_exit(), Ordering::Relaxed);
    REPORT.call_once(|| Report { microcode: microcode(), has_threads: processor.has_threads, plan, findings });
}

/// Sets this processor up, after [`init`]; all are taken to be of one kind.
pub fn enable() {
    let plan = report().plan;
    // SAFETY: the plan names registers and bits that CPUID offers; they concern nothing but speculation.
    unsafe {
        if plan.control != 0 {
            msr::write(SPEC_CTRL, plan.control);
        }
        if plan.automatic_ibrs {
            msr::write(msr::EFER, msr::read(msr::EFER) | AUTOMATIC_IBRS);
        }
    }
}

/// What was found and decided.
///
/// # Panics
/// Before [`init`].
pub fn report() -> &'static Report {
    REPORT.get().expect("init ran")
}

/// Whether guests are entered by the guarded way. It does not change after start-up.
pub fn guards() -> bool {
    GUARDS.load(Ordering::Relaxed)
}

/// A vCPU, as far as what it leaves in the predictors is concerned.
pub struct Trainer(u64);

impl Trainer {
    /// One that has never been.
    pub fn another() -> Self {
        Self(NEXT_VCPU.fetch_add(1, Ordering::Relaxed))
    }
}

/// Who trained a processor's predictors last.
#[derive(Default)]
pub struct Trained(AtomicU64);

/// `next` is about to run on the processor to which `last` belongs: it finds no predictions of another vCPU.
pub fn switched(last: &Trained, next: &Trainer) {
    if last.0.load(Ordering::Relaxed) == next.0 {
        return;
    }
    last.0.store(next.0, Ordering::Relaxed);
    if REPORT.get().is_some_and(|report| report.plan.barrier_on_switch) {
        // SAFETY: the plan asks for it only where CPUID offers it.
        unsafe { msr::write(PRED_CMD, IBPB) };
    }
}

/// What is to be done in the last moment before a guarded entry.
pub fn before_entry() {
    let plan = report().plan;
    // SAFETY: as in `enable`. After this nothing but the entry follows, which takes no indirect branch.
    unsafe {
        if plan.control_each_exit {
            msr::write(SPEC_CTRL, plan.control & !control::IBRS);
        }
        if plan.flush_l1d {
            msr::write(FLUSH_CMD, L1D_FLUSH);
        }
    }
}

/// Overwrites the processor's buffers with VERW; for the end of a guarded entry. Changes the flags. Where the processor
/// does not do more than the instruction says, it costs next to nothing. Its operand is `null_selector`.
#[macro_export]
macro_rules! clear_buffers {
    () => {
        "verw word ptr [rip + {null_selector}]"
    };
}

/// Fills the return stack buffer, so that no return goes where a guest has called from: 32 calls whose returns lead into
/// a trap. Directly behind a guarded exit, before any return. Uses EAX and the flags.
#[macro_export]
macro_rules! fill_return_stack {
    () => {
        concat!(
            "mov eax, 16\n",
            "92:\n",
            "call 93f\n",
            "int3\n",
            "93:\n",
            "call 94f\n",
            "int3\n",
            "94:\n",
            "add rsp, 16\n",
            "dec eax\n",
            "jnz 92b\n",
            "lfence\n",
        )
    };
}

/// What else is due behind a guarded exit, once the guest's registers are saved: IBPB, and IA32_SPEC_CTRL as in the host.
/// A branch that a guest has trained to pass one by is found out at the LFENCE. Uses EAX, ECX, EDX and the flags; its
/// operands are `after_exit` and `host_control`.
#[macro_export]
macro_rules! after_exit {
    () => {
        concat!(
            "test dword ptr [rip + {after_exit}], 1\n",
            "jz 95f\n",
            "mov ecx, 0x49\n",
            "mov eax, 1\n",
            "xor edx, edx\n",
            "wrmsr\n",
            "95:\n",
            "test dword ptr [rip + {after_exit}], 2\n",
            "jz 96f\n",
            "mov ecx, 0x48\n",
            "mov eax, dword ptr [rip + {host_control}]\n",
            "xor edx, edx\n",
            "wrmsr\n",
            "96:\n",
            "lfence\n",
        )
    };
}

/// What this processor is, in the eyes of `mitigation`.
fn processor(always: bool) -> Processor {
    let signature = cpuid(1, 0).eax;
    let base = signature >> 8 & 15;
    let extended_model = signature >> 16 & 15;
    let leaf_7 = cpuid(7, 0);
    let extended_21 = cpuid(0x8000_0021, 0);
    let has_capabilities = leaf_7.edx & 1 << 29 != 0;
    // SAFETY: CPUID offers the register.
    let capabilities = if has_capabilities { unsafe { msr::read(ARCH_CAPABILITIES) } } else { 0 };
    Processor {
        vendor: vendor(),
        family: base + if base == 15 { signature >> 20 & 0xff } else { 0 },
        model: signature >> 4 & 15 | if matches!(base, 6 | 15) { extended_model << 4 } else { 0 },
        leaf_7: [leaf_7.ebx, leaf_7.edx],
        leaf_7_2: if leaf_7.eax >= 2 { cpuid(7, 2).edx } else { 0 },
        extended_8: cpuid(0x8000_0008, 0).ebx,
        extended_21: [extended_21.eax, extended_21.ecx],
        capabilities,
        has_threads: has_threads(),
        is_interpreted: !always && is_interpreted(),
    }
}

fn vendor() -> Vendor {
    let leaf = cpuid(0, 0);
    match [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).as_flattened() {
        b"GenuineIntel" => Vendor::Intel,
        b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
        _ => Vendor::Other,
    }
}

/// Whether a core has more than one thread: Intel's topology leaf, or AMD's.
fn has_threads() -> bool {
    match vendor() {
        Vendor::Amd => cpuid(0x8000_001e, 0).ebx >> 8 & 0xff != 0,
        _ => cpuid(0xb, 0).ebx & 0xffff > 1,
    }
}

/// Whether QEMU interprets the instructions (its leaf 4000_0000h: "TCGTCGTCGTCG").
fn is_interpreted() -> bool {
    let leaf = cpuid(0x4000_0000, 0);
    crate::is_virtual() && [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).as_flattened() == b"TCGTCGTCGTCG"
}

/// The microcode's revision. Intel's processors show it after a CPUID that follows a 0 (SDM volume 3, 11.11.7.1).
fn microcode() -> u32 {
    // SAFETY: every processor of these makers with virtualisation has the register, and 0 is what Intel's is to be
    // written with.
    unsafe {
        match vendor() {
            Vendor::Intel => {
                msr::write(MICROCODE, 0);
                cpuid(1, 0);
                (msr::read(MICROCODE) >> 32) as u32
            }
            Vendor::Amd => msr::read(MICROCODE) as u32,
            Vendor::Other => 0,
        }
    }
}
