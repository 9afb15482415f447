//! Whether a processor offers VMX, and turning it on.

use crate::controls::{self, Controls};
use crate::vmcs::{Region, leaving, pin, secondary};
use alloc::boxed::Box;
use bitflags::bitflags;
use core::arch::asm;
use core::fmt;
use core::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use cpu::percpu::CPUS_MAX;
use cpu::speculation::Trained;
use cpu::{cpuid, msr};
use spin::Once;

/// IA32_FEATURE_CONTROL (24.7): the register is locked; VMX may be turned on outside SMX.
const FEATURE_LOCKED: u64 = 1 << 0;
const FEATURE_VMX: u64 = 1 << 2;

/// CR0.NE and CR4.VMXE, which VMX operation needs; the other fixed bits (24.8, A.7, A.8) every 64-bit host has.
const CR0_NE: u64 = 1 << 5;
pub const CR4_VMXE: u64 = 1 << 13;

/// IA32_VMX_EPT_VPID_CAP (A.10).
const EPT_VPID_CAP: u32 = 0x48c;
mod ept_vpid {
    pub const WALK_4_LEVELS: u64 = 1 << 6;
    pub const WRITE_BACK: u64 = 1 << 14;
    pub const LARGE_PAGES: u64 = 1 << 16;
    pub const HUGE_PAGES: u64 = 1 << 17;
    pub const INVEPT: u64 = 1 << 20;
    pub const ACCESSED_DIRTY: u64 = 1 << 21;
    pub const INVEPT_SINGLE: u64 = 1 << 25;
    pub const INVEPT_ALL: u64 = 1 << 26;
    pub const INVVPID: u64 = 1 << 32;
    pub const INVVPID_SINGLE: u64 = 1 << 41;
    pub const INVVPID_ALL: u64 = 1 << 42;
}

bitflags! {
    /// What VMX offers here, beyond what Pollux cannot do without (A.2 to A.10).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Features: u32 {
        /// The EPT's entries note accesses and writes.
        const EPT_ACCESSED_DIRTY = 1 << 0;
        /// The EPT maps pages of 1 GiB.
        const EPT_1_GIB_PAGES = 1 << 1;
        /// One EPT's translations can be flushed.
        const INVEPT_SINGLE = 1 << 2;
        /// Translations are tagged with their guest, and stay across entries and exits.
        const VPID = 1 << 3;
        /// Writes are logged, where the EPT notes them.
        const PAGE_MODIFICATION_LOG = 1 << 4;
        /// A run can be limited in time.
        const PREEMPTION_TIMER = 1 << 5;
        /// The guest's TSC can run at another rate.
        const TSC_SCALING = 1 << 6;
        /// A guest that spins can be noticed.
        const PAUSE_LOOP = 1 << 7;
        /// The guest's XSAVES can be let through.
        const XSAVES = 1 << 8;
        /// Reads of APIC registers need no exit.
        const APIC_REGISTERS = 1 << 9;
        /// The same for an x2APIC.
        const X2APIC = 1 << 10;
        /// Virtual interrupts are evaluated and delivered without exits.
        const VIRTUAL_INTERRUPTS = 1 << 11;
        /// The same for interrupts that others send.
        const POSTED_INTERRUPTS = 1 << 12;
    }
}

/// The binary places of a TSC multiplier (26.3).
pub(crate) const TSC_FRACTION_BITS: u32 = 48;

impl Features {
    /// How many binary places a guest's TSC ratio has, where there is one.
    pub fn tsc_fraction_bits(self) -> Option<u32> {
        self.contains(Self::TSC_SCALING).then_some(TSC_FRACTION_BITS)
    }
}

/// Why a processor cannot run guests by VMX.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unavailable {
    /// CPUID does not offer it.
    Missing,
    /// The firmware left it off and locked the switch.
    LockedByFirmware,
    /// A control or capability, named as the manual names it, is not there.
    Lacks(&'static str),
    /// There is no XSAVE, with which guests' floating-point state is switched.
    NoXsave,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Missing => "this processor has no VT-x (CPUID 1 ECX bit 5 is clear)",
            Self::LockedByFirmware => "the firmware disabled and locked VT-x: enable \"VT-x\" in its set-up",
            Self::Lacks(what) => return write!(out, "this processor's VT-x is too old: it has no {what}"),
            Self::NoXsave => "this processor has no XSAVE (CPUID 1 ECX bit 26 is clear)",
        })
    }
}

/// What a physical processor keeps for the guests that run on it.
pub(crate) struct Host {
    /// Where the processor keeps what it needs in VMX operation (25.11.5).
    _region: Box<Region>,
    /// Whose predictions it holds.
    pub trained: Trained,
    next_vpid: AtomicU16,
    /// How often the VPIDs were used up; a vCPU whose VPID is of an earlier round needs a new one.
    vpid_round: AtomicU64,
}

static HOSTS: [Once<Host>; CPUS_MAX] = [const { Once::new() }; CPUS_MAX];

/// What VMX offers on this processor, or why it cannot be used (24.6).
pub fn check() -> Result<Features, Unavailable> {
    if cpuid(1, 0).ecx & 1 << 5 == 0 {
        return Err(Unavailable::Missing);
    }
    // SAFETY: a processor with VMX has the register.
    let feature_control = unsafe { msr::read(msr::FEATURE_CONTROL) };
    if feature_control & FEATURE_LOCKED != 0 && feature_control & FEATURE_VMX == 0 {
        return Err(Unavailable::LockedByFirmware);
    }
    let controls = Controls::adjusted()?;
    // SAFETY: a processor with EPT has the register.
    let capabilities = unsafe { msr::read(EPT_VPID_CAP) };
    let ept = [
        (ept_vpid::WALK_4_LEVELS, "EPT of four levels"),
        (ept_vpid::WRITE_BACK, "write-back EPT"),
        (ept_vpid::LARGE_PAGES, "EPT of 2 MiB pages"),
        (ept_vpid::INVEPT | ept_vpid::INVEPT_ALL, "INVEPT"),
    ];
    if let Some((_, what)) = ept.iter().find(|(bits, _)| capabilities & bits != *bits) {
        return Err(Unavailable::Lacks(what));
    }
    if cpuid(1, 0).ecx & 1 << 26 == 0 {
        return Err(Unavailable::NoXsave);
    }
    Ok(features(controls, capabilities))
}

fn features(controls: Controls, capabilities: u64) -> Features {
    /// All that VPIDs are used with.
    const VPID: u64 = ept_vpid::INVVPID | ept_vpid::INVVPID_SINGLE | ept_vpid::INVVPID_ALL;
    let (pins, secondaries) = controls::offered();
    let notes = capabilities & ept_vpid::ACCESSED_DIRTY != 0;
    let vpid = controls.secondary & secondary::VPID != 0 && capabilities & VPID == VPID;
    let delivers = controls.secondary & secondary::VIRTUAL_INTERRUPTS != 0;
    let acknowledges = controls.leaving & leaving::ACKNOWLEDGE_INTERRUPT != 0;
    let list = [
        (Features::EPT_ACCESSED_DIRTY, notes),
        (Features::EPT_1_GIB_PAGES, capabilities & ept_vpid::HUGE_PAGES != 0),
        (Features::INVEPT_SINGLE, capabilities & ept_vpid::INVEPT_SINGLE != 0),
        (Features::VPID, vpid),
        (Features::PAGE_MODIFICATION_LOG, notes && controls.secondary & secondary::PAGE_MODIFICATION_LOG != 0),
        (Features::PREEMPTION_TIMER, pins & pin::PREEMPTION_TIMER != 0),
        (Features::TSC_SCALING, controls.secondary & secondary::TSC_SCALING != 0),
        (Features::PAUSE_LOOP, controls.secondary & secondary::PAUSE_LOOP != 0),
        (Features::XSAVES, controls.secondary & secondary::XSAVES != 0),
        (Features::APIC_REGISTERS, secondaries & secondary::APIC_REGISTERS != 0),
        (Features::X2APIC, secondaries & secondary::X2APIC != 0),
        (Features::VIRTUAL_INTERRUPTS, delivers),
        (Features::POSTED_INTERRUPTS, delivers && acknowledges && controls.pin & pin::POSTED_INTERRUPTS != 0),
    ];
    list.into_iter().filter(|&(_, present)| present).map(|(feature, _)| feature).collect()
}

/// Turns VMX on for this processor, number `index` (24.7). [`check`] said that it is there.
///
/// # Panics
/// When the firmware locked VMX on this processor and not on the one that was checked.
pub fn enable(index: usize) {
    HOSTS[index].call_once(|| {
        let region = Region::boxed();
        let address = &raw const *region as u64;
        let failed: u8;
        // SAFETY: VMX is there; the region is a page of its own that lives for ever.
        unsafe {
            let feature_control = msr::read(msr::FEATURE_CONTROL);
            if feature_control & FEATURE_LOCKED == 0 {
                msr::write(msr::FEATURE_CONTROL, feature_control | FEATURE_VMX | FEATURE_LOCKED);
            }
            let unlocked = msr::read(msr::FEATURE_CONTROL) & FEATURE_VMX != 0;
            assert!(unlocked, "processor {index}: {}", Unavailable::LockedByFirmware);
            asm!("mov {0}, cr0", "or {0}, {1}", "mov cr0, {0}", out(reg) _, in(reg) CR0_NE, options(nostack));
            asm!("mov {0}, cr4", "or {0}, {1}", "mov cr4, {0}", out(reg) _, in(reg) CR4_VMXE, options(nostack));
            asm!("vmxon [{}]", "setbe {}", in(reg) &address, out(reg_byte) failed, options(nostack));
        }
        assert!(failed == 0, "VMXON takes a region of ours");
        cpu::fpu::enable();
        Host {
            _region: region,
            trained: Trained::default(),
            next_vpid: AtomicU16::new(1),
            vpid_round: AtomicU64::new(1),
        }
    });
}

/// This processor's block.
pub(crate) fn host() -> (&'static Host, usize) {
    let index = cpu::percpu::current().index();
    (HOSTS[index].get().expect("enable ran on this processor"), index)
}

impl Host {
    /// The current round of VPIDs.
    pub fn vpid_round(&self) -> u64 {
        self.vpid_round.load(Ordering::Relaxed)
    }

    /// A VPID that no translation of this processor is tagged with; and whether all must be flushed for that (29.4).
    pub fn take_vpid(&self) -> (u16, bool) {
        let vpid = self.next_vpid.fetch_add(1, Ordering::Relaxed);
        // 0 is the host's own, and where the count wraps.
        if vpid != 0 {
            return (vpid, false);
        }
        self.next_vpid.store(2, Ordering::Relaxed);
        self.vpid_round.fetch_add(1, Ordering::Relaxed);
        (1, true)
    }
}
