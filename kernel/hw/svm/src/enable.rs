//! Whether a processor offers SVM, and turning it on.

use crate::vmcb::Vmcb;
use alloc::boxed::Box;
use bitflags::bitflags;
use core::arch::asm;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use cpu::percpu::CPUS_MAX;
use cpu::speculation::Trained;
use cpu::{cpuid, msr};
use spin::Once;

/// EFER.SVME (15.4).
const EFER_SVME: u64 = 1 << 12;
/// VM_CR.SVMDIS (15.30.1).
const SVM_DISABLED: u64 = 1 << 4;
/// VM_CR.LOCK (15.30.1).
const SVM_LOCKED: u64 = 1 << 3;

bitflags! {
    /// What SVM offers here: CPUID 8000_000A, EDX.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Features: u32 {
        /// Nested paging.
        const NESTED_PAGING = 1 << 0;
        /// The exit says where the instruction ends.
        const NEXT_RIP = 1 << 3;
        /// The guest's TSC can run at another rate.
        const TSC_SCALING = 1 << 4;
        /// Unchanged parts of the VMCB need not be read again.
        const VMCB_CLEAN = 1 << 5;
        /// One guest's translations can be flushed.
        const FLUSH_BY_ASID = 1 << 6;
        /// The exit gives the instruction's bytes.
        const DECODE_ASSISTS = 1 << 7;
        /// A guest that spins can be noticed.
        const PAUSE_FILTER = 1 << 10;
        /// Interrupts are delivered without exits.
        const AVIC = 1 << 13;
        /// The guest's global interrupt flag is the hardware's.
        const VIRTUAL_GIF = 1 << 16;
    }
}

/// The binary places of a TSC ratio (15.30.5).
pub(crate) const TSC_FRACTION_BITS: u32 = 32;

impl Features {
    /// How many binary places a guest's TSC ratio has, where there is one.
    pub fn tsc_fraction_bits(self) -> Option<u32> {
        self.contains(Self::TSC_SCALING).then_some(TSC_FRACTION_BITS)
    }
}

/// Why a processor cannot run guests by SVM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unavailable {
    /// CPUID does not offer it.
    Missing,
    /// The firmware turned it off and locked the switch.
    LockedByFirmware,
    /// The firmware turned it off and did not say how it is turned on again.
    DisabledByFirmware,
    /// There is no nested paging.
    NoNestedPaging,
    /// There is no XSAVE, with which guests' floating-point state is switched.
    NoXsave,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Missing => "this processor has no AMD-V (CPUID 8000_0001 ECX bit 2 is clear)",
            Self::LockedByFirmware => "the firmware disabled and locked AMD-V: enable \"SVM mode\" in its set-up",
            Self::DisabledByFirmware => "the firmware disabled AMD-V: enable \"SVM mode\" in its set-up",
            Self::NoNestedPaging => "AMD-V has no nested paging here (CPUID 8000_000A EDX bit 0 is clear)",
            Self::NoXsave => "this processor has no XSAVE (CPUID 1 ECX bit 26 is clear)",
        })
    }
}

/// What a physical processor keeps for the guests that run on it.
pub(crate) struct Host {
    /// Holds the host's own VMLOAD state while a guest's is in the processor.
    pub state: Box<Vmcb>,
    /// Where VMRUN keeps the rest of the host's state (15.30.4).
    pub _save_area: Box<Vmcb>,
    /// The processor has RDTSCP or RDPID, and so the register that they read.
    pub has_tsc_aux: bool,
    /// Whose predictions it holds.
    pub trained: Trained,
    /// The TSC ratio of the guest that ran last; 0: nobody knows.
    tsc_ratio: AtomicU64,
    next_asid: AtomicU32,
    /// How often the ASIDs were used up; a vCPU whose ASID is of an earlier round needs a new one.
    asid_round: AtomicU64,
}

static HOSTS: [Once<Host>; CPUS_MAX] = [const { Once::new() }; CPUS_MAX];

/// What SVM offers on this processor, or why it cannot be used (15.4).
pub fn check() -> Result<Features, Unavailable> {
    if cpuid(0x8000_0001, 0).ecx & 1 << 2 == 0 {
        return Err(Unavailable::Missing);
    }
    // SAFETY: a processor with SVM has the register.
    let vm_cr = unsafe { msr::read(msr::VM_CR) };
    if vm_cr & SVM_DISABLED != 0 {
        let locked = vm_cr & SVM_LOCKED != 0;
        return Err(if locked { Unavailable::LockedByFirmware } else { Unavailable::DisabledByFirmware });
    }
    let features = Features::from_bits_truncate(cpuid(0x8000_000a, 0).edx);
    if !features.contains(Features::NESTED_PAGING) {
        return Err(Unavailable::NoNestedPaging);
    }
    if cpuid(1, 0).ecx & 1 << 26 == 0 {
        return Err(Unavailable::NoXsave);
    }
    Ok(features)
}

/// Turns SVM on for this processor, number `index`. [`check`] said that it is there.
pub fn enable(index: usize) {
    HOSTS[index].call_once(|| {
        let mut state = Vmcb::boxed();
        let save_area = Vmcb::boxed();
        // SAFETY: SVM is there; the save area and the state's block are pages of their own that live for ever.
        unsafe {
            msr::write(msr::EFER, msr::read(msr::EFER) | EFER_SVME);
            msr::write(msr::VM_HSAVE_PA, &raw const *save_area as u64);
            asm!("vmsave rax", in("rax") &raw mut *state, options(nostack, preserves_flags));
        }
        cpu::fpu::enable();
        let has_tsc_aux = cpuid(0x8000_0001, 0).edx & 1 << 27 != 0 || cpuid(7, 0).ecx & 1 << 22 != 0;
        // The first ASID that is taken begins a round, and so flushes what somebody left before us.
        let next_asid = AtomicU32::new(u32::MAX / 2);
        Host {
            state,
            _save_area: save_area,
            has_tsc_aux,
            trained: Trained::default(),
            tsc_ratio: AtomicU64::new(0),
            next_asid,
            asid_round: AtomicU64::new(0),
        }
    });
}

/// This processor's block.
pub(crate) fn host() -> (&'static Host, usize) {
    let index = cpu::percpu::current().index();
    (HOSTS[index].get().expect("enable ran on this processor"), index)
}

impl Host {
    /// Has guests' TSCs run at this ratio of the processor's from the next VMRUN on. The processor can scale them.
    pub fn scale_tsc(&self, ratio: u64) {
        if self.tsc_ratio.swap(ratio, Ordering::Relaxed) != ratio {
            // SAFETY: the register concerns nothing but guests' TSCs, and the bits that must be zero are.
            unsafe { msr::write(msr::TSC_RATIO, ratio) }
        }
    }

    /// The current round of ASIDs.
    pub fn asid_round(&self) -> u64 {
        self.asid_round.load(Ordering::Relaxed)
    }

    /// An ASID that no translation of this processor is tagged with; and whether it must be flushed for that (15.16).
    pub fn take_asid(&self) -> (u32, bool) {
        let last = cpuid(0x8000_000a, 0).ebx - 1;
        let asid = self.next_asid.fetch_add(1, Ordering::Relaxed);
        if asid <= last {
            return (asid, false);
        }
        self.next_asid.store(2, Ordering::Relaxed);
        self.asid_round.fetch_add(1, Ordering::Relaxed);
        (1, true)
    }
}
