//! What CPUID shows a guest: the host's answers, less what is not virtualised, plus what Linux knows of hypervisors.
//!
//! SDM volume 2, CPUID; APM volume 3, appendix E; for the hypervisor leaves Linux's Documentation/virt/kvm/x86/cpuid.rst,
//! whose interface Pollux offers as far as it implements it. Everything is a mask over the host's leaf, so that a
//! feature is offered only when it is known here and the host has it.

mod amx;
mod baseline;
mod saved;
mod speculation;
mod tsc;

pub use baseline::{BASELINE_BYTES_MAX, Baseline, NoBaseline};
pub use saved::SavedProfile;
pub(crate) use tsc::is_another_rate;

use amx::Tiles;
use speculation::Facts;
use tsc::Tsc;
use vcpu::{Paging, TscRatio, cr4};

/// One leaf's registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "the names are the architecture's")]
pub struct Leaf {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

impl Leaf {
    /// As it is while the local APIC is disabled by IA32_APIC_BASE (SDM volume 3, 12.4.3).
    pub fn without_apic(self, leaf: u32) -> Self {
        const APIC: u32 = 1 << 9;
        const EXTENDED_1: u32 = EXTENDED + 1;
        if matches!(leaf, 1 | EXTENDED_1) { Self { edx: self.edx & !APIC, ..self } } else { self }
    }
}

/// What CPUID shows, ready to be looked up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuProfile {
    basic: [Leaf; BASIC_LEAVES],
    /// Leaf 4: Intel's caches.
    caches: [Leaf; CACHES_MAX],
    /// Subleaf 0 of leaf 7 is in `basic`; these are those of leaf 0Dh.
    xsave: [Leaf; XSAVE_SUBLEAVES],
    tiles: Option<Tiles>,
    extended: [Leaf; EXTENDED_LEAVES],
    facts: Facts,
    vcpus: u32,
    tsc: Tsc,
}

const BASIC_LEAVES: usize = 0xe;
const CACHES_MAX: usize = 4;
const EXTENDED_LEAVES: usize = 0x1b;
const XSAVE_SUBLEAVES: usize = 10;
const EXTENDED: u32 = 0x8000_0000;

/// The hypervisor leaves: KVM's interface, and Pollux's own name behind it.
const HYPERVISOR: u32 = 0x4000_0000;
/// Intel and AMD leave what begins so to hypervisors.
const HYPERVISOR_LAST: u32 = 0x4fff_ffff;
const HYPERVISOR_END: u32 = HYPERVISOR_LAST + 1;
const HYPERVISOR_FEATURES: u32 = 0x4000_0001;
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
const POLLUX: u32 = 0x4000_0100;

/// Leaf 1 ECX: SSE3, PCLMULQDQ, SSSE3, FMA, CX16, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
const FEATURES_1_ECX: u32 = 1 << 0
    | 1 << 1
    | 1 << 9
    | 1 << 12
    | 1 << 13
    | 1 << 17
    | 1 << 19
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 25
    | 1 << 26
    | 1 << 28
    | 1 << 29
    | 1 << 30;
/// Leaf 1 ECX, whatever the host has: x2APIC, TSC deadline, hypervisor present.
const ALWAYS_1_ECX: u32 = 1 << 21 | 1 << 24 | 1 << 31;
const OSXSAVE: u32 = 1 << 27;
/// Leaf 1 EDX: FPU to CX8, APIC, SEP to PSE36, CLFSH, MMX, FXSR, SSE, SSE2. Not: DS, ACPI, SS, TM, PBE.
const FEATURES_1_EDX: u32 = 0x078b_fbff;
/// Leaf 1 EDX: the package has several logical processors. AMD's leaf 8000_0001 ECX: they are cores, not threads.
const HTT: u32 = 1 << 28;
const CMP_LEGACY: u32 = 1 << 1;

/// Leaf 7 EBX: FSGSBASE, TSC_ADJUST, BMI1, AVX2, SMEP, BMI2, ERMS, INVPCID, AVX-512 F and DQ, RDSEED, ADX, SMAP, IFMA, CLFLUSHOPT,
/// CLWB, AVX-512 CD, SHA, BW, VL.
const FEATURES_7_EBX: u32 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 5
    | 1 << 7
    | 1 << 8
    | 1 << 9
    | 1 << 10
    | 1 << 16
    | 1 << 17
    | 1 << 18
    | 1 << 19
    | 1 << 20
    | 1 << 21
    | 1 << 23
    | 1 << 24
    | 1 << 28
    | 1 << 29
    | 1 << 30
    | 1 << 31;
/// Leaf 7 ECX: VBMI, UMIP, PKU, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ, LA57, RDPID.
const FEATURES_7_ECX: u32 =
    1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14 | LA57 | 1 << 22;
/// Leaf 7 ECX: five levels of page tables.
const LA57: u32 = 1 << 16;
/// Leaf 7 ECX: CR4.PKE is set.
const OSPKE: u32 = 1 << 4;
/// Leaf 7 EDX: fast short REP MOV, what is about speculation, and AMX.
const FEATURES_7_EDX: u32 = 1 << 4 | speculation::FEATURES_7_EDX | amx::FEATURES_7_EDX;

/// Components of XCR0: x87, SSE, AVX, the three of AVX-512, PKRU, and the two of AMX.
const XCR0_COMPONENTS: u32 = 0x2e7 | amx::COMPONENTS;
/// Leaf 0Dh, subleaf 1: XSAVEOPT, XSAVEC, XGETBV with ECX = 1, XSAVES with IA32_XSS, XFD. No component of IA32_XSS.
const XSAVE_INSTRUCTIONS: u32 = 0xf | amx::XFD;
const XSAVES: u32 = 1 << 3;
/// Bytes of the legacy area and the header.
const XSAVE_BASE_BYTES: u32 = 576;

/// Leaf 8000_0001 ECX: LAHF, ABM, SSE4A, misaligned SSE, PREFETCHW, XOP, FMA4, TBM.
const FEATURES_EXTENDED_ECX: u32 = 1 << 0 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 16 | 1 << 21;
/// Leaf 8000_0001 EDX: leaf 1's, SYSCALL, NX, MMXEXT, FFXSR, 1 GiB pages, RDTSCP, long mode, 3DNow!.
const FEATURES_EXTENDED_EDX: u32 = 0x0183_fbff & FEATURES_1_EDX
    | 1 << 11
    | 1 << 20
    | 1 << 22
    | 1 << 25
    | 1 << 26
    | 1 << 27
    | 1 << 29
    | 1 << 30
    | 1 << 31;
/// Leaf 8000_0007 EDX: invariant TSC.
const INVARIANT_TSC: u32 = 1 << 8;
/// Leaf 8000_0008 EBX: CLZERO, and what is about speculation.
const FEATURES_8_EBX: u32 = 1 << 0 | speculation::FEATURES_8_EBX;

/// KVM's features: no need of I/O delays, kvm-clock at its second registers, stolen time, PV EOI, and a clock that is
/// stable across vCPUs.
const KVM_FEATURES: u32 = 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 24;
/// With several vCPUs: halts that another ends, flushes left for those that do not run, interrupts for many at once, and
/// giving way.
const KVM_FEATURES_SMP: u32 = 1 << 7 | 1 << 9 | 1 << 11 | 1 << 13;

impl CpuProfile {
    /// What a guest with `vcpus` vCPUs sees on a host whose CPUID is `host` (leaf, subleaf), with a TSC of `tsc_khz`.
    pub fn new(host: impl Fn(u32, u32) -> Leaf, vcpus: u32, tsc_khz: u32) -> Self {
        let (basic_last, extended_last) = (host(0, 0).eax, host(EXTENDED, 0).eax);
        // Past its last leaf an Intel processor repeats another one.
        let host = |leaf: u32, subleaf: u32| {
            let last = if leaf < EXTENDED { basic_last } else { extended_last };
            if leaf <= last { host(leaf, subleaf) } else { Leaf::default() }
        };
        let mut basic = [Leaf::default(); BASIC_LEAVES];
        for index in [0, 1, 2, 7] {
            basic[index] = host(index as u32, 0);
        }
        basic[0].eax = BASIC_LEAVES as u32 - 1;
        basic[1].ecx = basic[1].ecx & FEATURES_1_ECX | ALWAYS_1_ECX;
        basic[1].edx &= FEATURES_1_EDX;
        // The APIC timer does not stop in sleep; no other power management is offered.
        basic[6].eax = 1 << 2;
        let seven = basic[7];
        basic[7] = Leaf {
            eax: 0,
            ebx: seven.ebx & FEATURES_7_EBX,
            ecx: seven.ecx & FEATURES_7_ECX,
            edx: seven.edx & FEATURES_7_EDX,
        };
        let xsave = core::array::from_fn(|index| xsave_leaf(&host, index as u32));
        let mut extended = [Leaf::default(); EXTENDED_LEAVES];
        for index in [0, 1, 2, 3, 4, 5, 6, 7, 8, 0x19, 0x1a] {
            extended[index] = host(EXTENDED + index as u32, 0);
        }
        let facts = Facts::of(&host);
        extended[0].eax =
            extended_last.min(EXTENDED + EXTENDED_LEAVES as u32 - 1).max(facts.last_extended(extended_last));
        extended[1].ecx &= FEATURES_EXTENDED_ECX;
        extended[1].edx &= FEATURES_EXTENDED_EDX;
        extended[7] = Leaf { edx: extended[7].edx & INVARIANT_TSC, ..Leaf::default() };
        let eight = extended[8];
        extended[8] = Leaf { eax: eight.eax & 0xffff, ebx: eight.ebx & FEATURES_8_EBX, ecx: 0, edx: 0 };
        let caches = core::array::from_fn(|index| host(4, index as u32));
        let tiles = Tiles::of(&host);
        let mut profile = Self { basic, caches, xsave, tiles, extended, facts, vcpus, tsc: Tsc::new(tsc_khz) };
        profile.close_tiles();
        profile.xsave[0].ecx = profile.xsave_bytes(profile.xsave[0].eax.into());
        profile.with_vcpus(vcpus)
    }

    /// The same on a host whose processor runs a guest's TSC at a ratio with so many binary places.
    #[must_use]
    pub fn with_tsc_scaling(self, fraction_bits: u32) -> Self {
        Self { tsc: Tsc { fraction_bits: Some(fraction_bits), ..self.tsc }, ..self }
    }

    /// The same for a guest with `vcpus` vCPUs.
    fn with_vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = vcpus;
        self.caches = self.caches.map(|cache| cache_leaf(cache, vcpus));
        self.basic[1].edx = self.basic[1].edx & !HTT | if vcpus > 1 { HTT } else { 0 };
        self.extended[1].ecx &= !CMP_LEGACY;
        self.extended[8].ecx = 0;
        if self.is_amd() && vcpus > 1 {
            // How many cores there are, and how many bits of the APIC ID number them.
            self.extended[1].ecx |= CMP_LEGACY;
            self.extended[8].ecx = id_bits(vcpus) << 12 | (vcpus - 1) & 0xff;
        }
        self
    }

    /// What vCPU `id` sees at a leaf, with control registers and XCR0 as they are.
    pub fn leaf(&self, leaf: u32, subleaf: u32, id: u32, paging: &Paging, xcr0: u64) -> Leaf {
        match self.in_range(leaf) {
            0 => Leaf { eax: self.last_basic(), ..self.basic[0] },
            1 => self.leaf_1(id, paging),
            4 => self.caches.get(subleaf as usize).copied().unwrap_or_default(),
            7 if subleaf == 0 => self.leaf_7(paging),
            7 if subleaf == 2 => self.leaf_7_2(),
            7 => Leaf::default(),
            0xb => self.topology(subleaf, id),
            0xd if subleaf == 0 => Leaf { ebx: self.xsave_bytes(xcr0), ..self.xsave[0] },
            0xd if subleaf == 1 => Leaf { ebx: self.xsave_compacted_bytes(xcr0), ..self.xsave[1] },
            0xd => self.component(subleaf),
            leaf @ 0..0xe => self.basic[leaf as usize],
            leaf @ amx::PALETTES..=amx::MULTIPLIER => self.leaf_of_tiles(leaf, subleaf),
            HYPERVISOR => signature(HYPERVISOR_TIMING, b"KVMKVMKVM\0\0\0"),
            HYPERVISOR_FEATURES => {
                let smp = if self.vcpus > 1 { KVM_FEATURES_SMP } else { 0 };
                Leaf { eax: KVM_FEATURES | smp, ..Leaf::default() }
            }
            HYPERVISOR_TIMING => {
                Leaf { eax: self.tsc.told_khz, ebx: chipset::LAPIC_TIMER_HZ as u32 / 1000, ..Leaf::default() }
            }
            POLLUX => signature(POLLUX, b"PolluxPollux"),
            leaf @ EXTENDED.. => {
                let near = self.extended.get((leaf - EXTENDED) as usize).copied();
                near.unwrap_or_else(|| self.extended_far(leaf))
            }
            _ => Leaf::default(),
        }
    }

    /// Whether XCR0 may be set to `value` (SDM volume 1, 13.3).
    pub fn allows_xcr0(&self, value: u64) -> bool {
        let has = |bits| value & bits == bits;
        let none = |bits| value & bits == 0;
        let offered = u64::from(self.xsave[0].eax);
        value & !offered == 0
            && has(1)
            && (none(1 << 2) || has(1 << 1))
            && (none(0xe0) || has(0xe0 | 1 << 2))
            && (none(amx::COMPONENTS.into()) || has(amx::COMPONENTS.into()))
            && self.basic[1].ecx & 1 << 26 != 0
    }

    /// The bits of EFER that a guest may set.
    pub fn efer_bits(&self) -> u64 {
        let edx = self.extended[1].edx;
        let offered = |bit: u32, efer: u64| if edx & 1 << bit != 0 { efer } else { 0 };
        vcpu::efer::LMA
            | offered(11, vcpu::efer::SCE)
            | offered(20, vcpu::efer::NXE)
            | offered(29, vcpu::efer::LME)
            | offered(25, 1 << 14)
    }

    /// The bits of CR4 that a guest may set.
    pub fn cr4_bits(&self) -> u64 {
        cr4::named(|leaf| saved::words(self.basic[leaf as usize]))
    }

    /// Whether there is IA32_TSC_ADJUST.
    pub fn has_tsc_adjust(&self) -> bool {
        self.basic[7].ebx & 1 << 1 != 0
    }

    /// Whether there is XSAVES, and IA32_XSS with it.
    pub fn has_xsaves(&self) -> bool {
        self.xsave[1].eax & XSAVES != 0
    }

    /// Where a component of XCR0 is in an XSAVE area of the standard layout, where the guest has it.
    pub(crate) fn xsave_offset(&self, component: usize) -> Option<usize> {
        let is_offered = self.xsave[0].eax & 1 << component != 0;
        is_offered.then(|| self.xsave[component].ebx as usize)
    }

    /// The guest's physical address width.
    pub fn physical_address_bits(&self) -> u32 {
        (self.extended[8].eax & 0xff).clamp(36, 52)
    }

    /// The guest's linear address width.
    pub fn linear_address_bits(&self) -> u32 {
        if self.basic[7].ecx & LA57 != 0 { 57 } else { 48 }
    }

    /// Whether the processor is one of AMD's.
    pub fn is_amd(&self) -> bool {
        let Leaf { ebx, edx, ecx, .. } = self.basic[0];
        [ebx, edx, ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
    }

    /// The rate of the guest's TSC as it is: what a guest from another host was told, almost at least where the processor
    /// can scale it.
    pub fn real_tsc_khz(&self) -> u32 {
        self.tsc.real_khz
    }

    /// The rate of the guest's TSC as it was told.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc.told_khz
    }

    /// How the guest's TSC follows the host's.
    pub fn tsc_ratio(&self) -> TscRatio {
        self.tsc.ratio
    }

    /// The leaf that is shown for `leaf`: past the last, Intel's processors show the last basic one (SDM volume 2, CPUID).
    fn in_range(&self, leaf: u32) -> u32 {
        let last_basic = self.last_basic();
        let is_there = match leaf {
            0..HYPERVISOR => leaf <= last_basic,
            HYPERVISOR..=HYPERVISOR_LAST => true,
            HYPERVISOR_END..EXTENDED => false,
            EXTENDED.. => leaf <= self.extended[0].eax,
        };
        if is_there || self.is_amd() { leaf } else { last_basic }
    }

    fn last_basic(&self) -> u32 {
        if self.tiles.is_some() { amx::MULTIPLIER } else { BASIC_LEAVES as u32 - 1 }
    }

    fn leaf_1(&self, id: u32, paging: &Paging) -> Leaf {
        let leaf = self.basic[1];
        let osxsave = if paging.cr4 & cr4::OSXSAVE != 0 { OSXSAVE } else { 0 };
        Leaf { ebx: leaf.ebx & 0xff00 | self.vcpus.min(0xff) << 16 | id << 24, ecx: leaf.ecx | osxsave, ..leaf }
    }

    fn leaf_7(&self, paging: &Paging) -> Leaf {
        let leaf = self.basic[7];
        // Its last subleaf.
        let eax = if self.facts.leaf_7_2 != 0 { 2 } else { 0 };
        Leaf { eax, ecx: leaf.ecx | if paging.cr4 & cr4::PKE != 0 { OSPKE } else { 0 }, ..leaf }
    }

    /// Leaf 0Bh: no threads, and every vCPU a core of one package.
    fn topology(&self, subleaf: u32, id: u32) -> Leaf {
        match subleaf {
            0 => Leaf { eax: 0, ebx: 1, ecx: 1 << 8, edx: id },
            1 => Leaf { eax: id_bits(self.vcpus), ebx: self.vcpus, ecx: 2 << 8 | 1, edx: id },
            _ => Leaf { eax: 0, ebx: 0, ecx: subleaf & 0xff, edx: id },
        }
    }

    /// The components of XCR0 that are not in the legacy area, with their numbers.
    fn components(&self) -> impl Iterator<Item = (usize, Leaf)> {
        let near = self.xsave.into_iter().enumerate().skip(2);
        near.chain(self.tiles.iter().flat_map(Tiles::components))
    }

    fn component(&self, number: u32) -> Leaf {
        let found = self.components().find(|&(index, _)| index == number as usize);
        found.map_or(Leaf::default(), |(_, component)| component)
    }

    /// Bytes of the XSAVE area for the components in `xcr0`.
    fn xsave_bytes(&self, xcr0: u64) -> u32 {
        let enabled = self.components().filter(|(index, _)| xcr0 & 1 << index != 0);
        let ends = enabled.map(|(_, component)| component.eax + component.ebx);
        ends.max().unwrap_or(0).max(XSAVE_BASE_BYTES)
    }

    /// The same in the compacted form, in which components follow each other, some aligned to 64 bytes. Nothing where
    /// XSAVEC and XSAVES, which write it, are not offered.
    fn xsave_compacted_bytes(&self, xcr0: u64) -> u32 {
        const XSAVEC: u32 = 1 << 1;
        const ALIGNED: u32 = 1 << 1;
        if self.xsave[1].eax & (XSAVEC | XSAVES) == 0 {
            return 0;
        }
        let enabled = self.components().filter(|(index, _)| xcr0 & 1 << index != 0);
        enabled.fold(XSAVE_BASE_BYTES, |end, (_, component)| {
            let start = if component.ecx & ALIGNED != 0 { end.next_multiple_of(64) } else { end };
            start + component.eax
        })
    }
}

/// A cache in leaf 4, shared by all vCPUs from the third level on, in a package of as many cores.
fn cache_leaf(host: Leaf, vcpus: u32) -> Leaf {
    let (kind, level) = (host.eax & 0x1f, host.eax >> 5 & 7);
    if kind == 0 {
        return Leaf::default();
    }
    let others = (1 << id_bits(vcpus)) - 1;
    let sharers = if level >= 3 { others } else { 0 };
    Leaf { eax: host.eax & 0x3fff | sharers << 14 | others.min(0x3f) << 26, ..host }
}

/// How many bits of an APIC ID number the vCPUs.
fn id_bits(vcpus: u32) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

fn xsave_leaf(host: &impl Fn(u32, u32) -> Leaf, index: u32) -> Leaf {
    match index {
        0 => Leaf { eax: host(0xd, 0).eax & XCR0_COMPONENTS, ..Leaf::default() },
        1 => Leaf { eax: host(0xd, 1).eax & XSAVE_INSTRUCTIONS, ..Leaf::default() },
        _ if host(0xd, 0).eax & XCR0_COMPONENTS & 1 << index != 0 => host(0xd, index),
        _ => Leaf::default(),
    }
}

fn signature(last: u32, name: &[u8; 12]) -> Leaf {
    let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
    Leaf { eax: last, ebx: word(0), ecx: word(4), edx: word(8) }
}
