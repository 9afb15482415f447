//! Carries out what `mitigation` decides: at start-up once, and around each run of a guest.
//!
//! [`init`] and [`enable`] set a processor up; `svm` and `vmx` call [`switched`] and [`before_entry`], and enter by a
//! second, guarded way where [`GuestControl::guards`] says so: straight code with
//! [`clear_buffers!`](crate::clear_buffers) before the entry and [`after_exit!`](crate::after_exit) behind the exit, in
//! which no branch can be steered past a step.
//!
//! A guest's IA32_SPEC_CTRL is in force only between these two. The order at an entry:
//!
//! 1. the guest's value, where it differs from the host's; from here on no indirect branch is taken;
//! 2. the L1D flush, then VERW, behind which nothing but the guest's own is loaded.
//!
//! At an exit, all without an indirect branch, and with returns only to the calls that fill the return stack:
//!
//! 1. the return stack is filled, and the guest's registers are saved;
//! 2. IBPB;
//! 3. the guest's value is kept, where the guest can write it, and the host's comes back where it differs; where IBRS holds
//!    for what was trained before it was written, it is written in any case;
//! 4. LFENCE, which also ends what was speculated past a step by a conditional branch. Then the first return follows.
//!
//! On VMX an NMI or a machine check can come before the host's value is back: the few instructions of its handler.

use crate::{cpuid, msr};
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use mitigation::{Finding, Plan, Processor, Vendor};
use spin::Once;

/// IA32_BIOS_SIGN_ID and AMD's PATCH_LEVEL: the microcode's revision.
const MICROCODE: u32 = 0x8b;
/// IA32_PRED_CMD's IBPB.
const IBPB: u64 = 1;
/// IA32_FLUSH_CMD's L1D_FLUSH.
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
        // Also where the plan wants nothing: what firmware has left there is no guest's.
        if has_control() {
            msr::write(msr::SPEC_CTRL, plan.control);
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

/// IA32_SPEC_CTRL on this processor as it is now, where there is one.
pub fn control() -> Option<u64> {
    // SAFETY: CPUID offers the register.
    has_control().then(|| unsafe { msr::read(msr::SPEC_CTRL) })
}

/// IA32_ARCH_CAPABILITIES, where there is one.
pub fn arch_capabilities() -> Option<u64> {
    let has_capabilities = cpuid(7, 0).edx & 1 << 29 != 0;
    // SAFETY: CPUID offers the register.
    has_capabilities.then(|| unsafe { msr::read(ARCH_CAPABILITIES) })
}

/// A guest's IA32_SPEC_CTRL. A guest that never sets it costs nothing.
#[repr(C)]
#[derive(Default)]
pub struct GuestControl {
    /// What the register holds while the guest runs; its upper half is reserved. [`after_exit!`](crate::after_exit) reads
    /// it, and writes it where `is_open` says so.
    in_force: u32,
    /// The guest reads and writes the register without exits.
    is_open: bool,
    /// The guest has set something: what it was by its last exit for that.
    is_set: bool,
    set: u32,
}

const _: () = assert!(offset_of!(GuestControl, in_force) == 0 && offset_of!(GuestControl, is_open) == 4);

impl GuestControl {
    /// What the guest reads there.
    pub fn value(&self) -> u64 {
        if self.is_open { self.in_force.into() } else { self.set.into() }
    }

    /// Sets it. The processor has all of these bits.
    pub fn set(&mut self, value: u64) {
        (self.in_force, self.set) = (value as u32, value as u32);
        self.is_set |= value != 0;
    }

    /// Whether the guest has set something.
    pub fn is_set(&self) -> bool {
        self.is_set
    }

    /// From now on the guest reads and writes the register itself. It has set it before.
    pub fn open(&mut self) {
        assert!(self.is_set, "the host's value is not the guest's");
        self.is_open = true;
    }

    /// Whether the guest is entered by the guarded way. Only the first value that is set changes it.
    pub fn guards(&self) -> bool {
        GUARDS.load(Ordering::Relaxed) || self.is_set
    }
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
        unsafe { msr::write(msr::PRED_CMD, IBPB) };
    }
}

/// What is to be done in the last moment before a guarded entry.
#[inline(always)]
pub fn before_entry(guest: &mut GuestControl) {
    let plan = &report().plan;
    if !guest.is_open {
        guest.in_force = plan.guest_control(guest.is_set.then_some(guest.set.into())) as u32;
    }
    // SAFETY: as in `enable`, and the guest's bits are the processor's. After this nothing but the entry follows, which
    // takes no indirect branch.
    unsafe {
        if plan.control_each_exit || u64::from(guest.in_force) != plan.control {
            msr::write(msr::SPEC_CTRL, guest.in_force.into());
        }
        if plan.flush_l1d {
            msr::write(msr::FLUSH_CMD, L1D_FLUSH);
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
/// A branch that a guest has trained to pass one by is found out at the LFENCE. The vCPU's [`GuestControl`] is named at
/// RSP + 8. Uses EAX, ECX, EDX, R8 and the flags; its operands are `after_exit` and `host_control`.
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
            "mov r8, [rsp + 8]\n",
            "mov ecx, 0x48\n",
            "mov eax, dword ptr [r8]\n",
            "cmp byte ptr [r8 + 4], 0\n",
            "je 96f\n",
            "rdmsr\n",
            "mov dword ptr [r8], eax\n",
            "96:\n",
            "cmp eax, dword ptr [rip + {host_control}]\n",
            "jne 97f\n",
            "test dword ptr [rip + {after_exit}], 2\n",
            "jz 98f\n",
            "97:\n",
            "mov eax, dword ptr [rip + {host_control}]\n",
            "xor edx, edx\n",
            "wrmsr\n",
            "98:\n",
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
    Processor {
        vendor: vendor(),
        family: base + if base == 15 { signature >> 20 & 0xff } else { 0 },
        model: signature >> 4 & 15 | if matches!(base, 6 | 15) { extended_model << 4 } else { 0 },
        leaf_7: [leaf_7.ebx, leaf_7.edx],
        leaf_7_2: if leaf_7.eax >= 2 { cpuid(7, 2).edx } else { 0 },
        extended_8: cpuid(0x8000_0008, 0).ebx,
        extended_21: [extended_21.eax, extended_21.ecx],
        capabilities: arch_capabilities().unwrap_or(0),
        has_threads: has_threads(),
        is_interpreted: !always && is_interpreted(),
    }
}

/// Whether there is IA32_SPEC_CTRL: IBRS, STIBP or SSBD as Intel names them, or these or PSFD as AMD does.
fn has_control() -> bool {
    const INTEL: u32 = 1 << 26 | 1 << 27 | 1 << 31;
    const AMD: u32 = 1 << 14 | 1 << 15 | 1 << 24 | 1 << 28;
    cpuid(7, 0).edx & INTEL != 0 || cpuid(0x8000_0008, 0).ebx & AMD != 0
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
