//! The greatest common profile of a set of hosts: what a guest can be shown so that it runs on each of them.
//!
//! [`Baseline::of`] is what one host has, and [`Baseline::meet`] what two have in common; in which order hosts are added,
//! and how often, makes no difference. A guest is started with [`Baseline::profile_on`] a host that has all of it.
//!
//! Each leaf has its own sense of less: features are those of both; sizes, counts, ways and address widths the lesser;
//! a component of XSAVE is in common only where it lies at the same place, and AMX where all that is said of tiles is the
//! same; family, model and stepping are the older processor's, by whose errata a guest is cautious enough for both; what
//! can only be equal (descriptors of leaf 2, the name) is replaced by a value that promises nothing; what a processor is
//! not affected by, all must not be (`speculation`).
//! The vendor must be the same. Hypervisor leaves are Pollux's own and the same everywhere. The MSRs that a guest has
//! follow from its leaves (`msr`), and XCR0 from leaf 0Dh. The TSC runs at the rate of the host that a guest is started
//! on; the rates are kept to be told.

use super::saved::{leaf, words};
use super::tsc::{Tsc, is_another_rate};
use super::{BASIC_LEAVES, CpuProfile, EXTENDED_LEAVES, Leaf, SavedProfile, XSAVE_SUBLEAVES};
use crate::saved::Unlike;
use alloc::string::String;
use alloc::vec::Vec;

/// The longest encoding of a host's baseline, in bytes: about twice what one takes.
pub const BASELINE_BYTES_MAX: usize = 4096;

/// What a set of hosts has in common.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Baseline {
    /// As a guest with one vCPU sees it, at the lowest of the TSC's rates.
    profile: CpuProfile,
    tsc_khz_max: u32,
}

/// Another host's bytes that are no baseline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoBaseline;

/// What processors are called that are not called the same.
const COMMON_NAME: &[u8; 48] = b"Processor with what several hosts have in common";
/// Leaf 2: the caches are in leaf 4 (SDM volume 2, table 3-12, descriptor FFh).
const CACHES_ELSEWHERE: Leaf = Leaf { eax: 0xff01, ebx: 0, ecx: 0, edx: 0 };
/// No component of XSAVE is as long, or lies as far.
const COMPONENT_BYTES_MAX: u32 = 1 << 16;
/// Leaf 1 EBX but what depends on the guest and the CPU: the size of a line.
const CLFLUSH_BYTES: u32 = 0xff00;

/// A feature: its register and bit.
type Feature = (Register, u32);

/// A register of feature bits.
#[derive(Clone, Copy)]
enum Register {
    Leaf1Ecx,
    Leaf7Ebx,
    Leaf7Ecx,
    Extended1Ecx,
    Xcr0,
}
use Register::{Extended1Ecx, Leaf1Ecx, Leaf7Ebx, Leaf7Ecx, Xcr0};

const XSAVE: Feature = (Leaf1Ecx, 26);
const AVX: Feature = (Leaf1Ecx, 28);
const AVX2: Feature = (Leaf7Ebx, 5);
const AVX512F: Feature = (Leaf7Ebx, 16);
const PKU: Feature = (Leaf7Ecx, 3);
const AVX_STATE: Feature = (Xcr0, 2);
const AVX512_STATE: [Feature; 3] = [(Xcr0, 5), (Xcr0, 6), (Xcr0, 7)];
const PKRU_STATE: Feature = (Xcr0, 9);

/// What is of no use without another feature (SDM volume 1, 13.3, 14.3 and 15.2): each after what takes it away.
const NEEDS: &[(Feature, Feature)] = &[
    (AVX, XSAVE),
    (AVX, AVX_STATE),
    (AVX_STATE, AVX),
    (PKU, XSAVE),
    (PKU, PKRU_STATE),
    (PKRU_STATE, PKU),
    ((Leaf1Ecx, 12), AVX),     // FMA
    ((Leaf1Ecx, 29), AVX),     // F16C
    ((Extended1Ecx, 11), AVX), // XOP
    ((Extended1Ecx, 16), AVX), // FMA4
    (AVX2, AVX),
    ((Leaf7Ecx, 9), AVX),  // VAES
    ((Leaf7Ecx, 10), AVX), // VPCLMULQDQ
    (AVX512F, AVX2),
    (AVX512F, AVX512_STATE[0]),
    (AVX512F, AVX512_STATE[1]),
    (AVX512F, AVX512_STATE[2]),
    (AVX512_STATE[0], AVX512F),
    (AVX512_STATE[1], AVX512F),
    (AVX512_STATE[2], AVX512F),
    ((Leaf7Ebx, 17), AVX512F), // DQ
    ((Leaf7Ebx, 21), AVX512F), // IFMA
    ((Leaf7Ebx, 28), AVX512F), // CD
    ((Leaf7Ebx, 30), AVX512F), // BW
    ((Leaf7Ebx, 31), AVX512F), // VL
    ((Leaf7Ecx, 1), AVX512F),  // VBMI
    ((Leaf7Ecx, 6), AVX512F),  // VBMI2
    ((Leaf7Ecx, 11), AVX512F), // VNNI
    ((Leaf7Ecx, 12), AVX512F), // BITALG
    ((Leaf7Ecx, 14), AVX512F), // VPOPCNTDQ
];

impl Baseline {
    /// What one host has, from what it would show new guests.
    pub fn of(host: &CpuProfile) -> Self {
        let mut profile = host.clone().with_vcpus(1);
        profile.tsc = host.tsc.told(host.tsc.real_khz);
        profile.basic[1].ebx &= CLFLUSH_BYTES;
        for (index, leaf) in profile.extended.iter_mut().enumerate() {
            if index > 8 && !matches!(index, 0x19 | 0x1a) {
                *leaf = Leaf::default();
            }
        }
        profile.facts = profile.facts.cleared();
        profile.close();
        Self { tsc_khz_max: profile.tsc.told_khz, profile }
    }

    /// A single host's, for another host.
    pub fn encode(&self) -> Vec<u8> {
        // A vector takes every byte.
        minicbor::to_vec(self.profile.save()).unwrap_or_default()
    }

    /// From another host's bytes.
    ///
    /// # Errors
    /// Where they are too many, or none of a host.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoBaseline> {
        if bytes.len() > BASELINE_BYTES_MAX {
            return Err(NoBaseline);
        }
        let saved: SavedProfile = minicbor::decode(bytes).map_err(|_| NoBaseline)?;
        let profile = saved.profile();
        let bounded = |(_, component): (usize, Leaf)| component.eax.max(component.ebx) <= COMPONENT_BYTES_MAX;
        let is_sound = profile.vcpus == 1
            && profile.tsc.told_khz > 0
            && profile.basic[0].eax == BASIC_LEAVES as u32 - 1
            && profile.components().all(bounded);
        is_sound.then(|| Self::of(&profile)).ok_or(NoBaseline)
    }

    /// What both have.
    ///
    /// # Errors
    /// Where they are of different vendors.
    pub fn meet(&self, other: &Self) -> Result<Self, Unlike> {
        let (a, b) = (&self.profile, &other.profile);
        let vendor = |profile: &CpuProfile| [profile.basic[0].ebx, profile.basic[0].ecx, profile.basic[0].edx];
        if vendor(a) != vendor(b) {
            return Err(Unlike::Vendor(a.vendor(), b.vendor()));
        }
        let mut profile = CpuProfile {
            basic: meet_basic(&a.basic, &b.basic),
            caches: core::array::from_fn(|index| meet_cache(a.caches[index], b.caches[index])),
            xsave: meet_xsave(&a.xsave, &b.xsave),
            tiles: a.tiles.filter(|_| a.tiles == b.tiles),
            extended: meet_extended(&a.extended, &b.extended),
            facts: a.facts.meet(&b.facts),
            vcpus: 1,
            tsc: Tsc::new(a.tsc.told_khz.min(b.tsc.told_khz)),
        };
        profile.close();
        Ok(Self { profile, tsc_khz_max: self.tsc_khz_max.max(other.tsc_khz_max) })
    }

    /// The same without the features of these names, and without what is of no use then; `Err` is a name that there is not.
    ///
    /// # Errors
    /// For such a name.
    pub fn without<'a>(mut self, names: &[&'a str]) -> Result<Self, &'a str> {
        self.profile.withhold(names)?;
        self.profile.close();
        Ok(self)
    }

    /// What a guest with so many vCPUs sees, on a host that would show new guests `host`.
    ///
    /// # Errors
    /// Where that host is another vendor's, or lacks something of it.
    pub fn profile_on(&self, host: &CpuProfile, vcpus: u32) -> Result<CpuProfile, Unlike> {
        let mut profile = self.profile.clone().with_vcpus(vcpus);
        profile.tsc.told_khz = host.tsc.real_khz;
        CpuProfile::restore(&profile.save(), host)
    }

    /// Whose processors they are, for people.
    pub fn vendor(&self) -> &'static str {
        self.profile.vendor()
    }

    /// What the processor is called.
    pub fn name(&self) -> String {
        let leaves = &self.profile.extended[2..5];
        let bytes: Vec<u8> = leaves.iter().flat_map(|leaf| words(*leaf)).flat_map(u32::to_le_bytes).collect();
        // Another host says it: nothing of it may work on a terminal.
        let text = String::from_utf8_lossy(&bytes);
        text.trim_matches(['\0', ' ']).chars().filter(|character| !character.is_control()).collect()
    }

    /// Family, model and stepping.
    pub fn signature(&self) -> (u32, u32, u32) {
        age(self.profile.basic[1].eax)
    }

    /// The components that XCR0 can have.
    pub fn xcr0(&self) -> u32 {
        self.profile.xsave[0].eax
    }

    /// Bits of a physical address.
    pub fn physical_address_bits(&self) -> u32 {
        self.profile.physical_address_bits()
    }

    /// The rates of the hosts' TSCs: the lowest and the highest, in kHz.
    pub fn tsc_khz(&self) -> (u32, u32) {
        (self.profile.tsc.told_khz, self.tsc_khz_max)
    }

    /// Whether a guest that was told one of the rates would notice another.
    pub fn has_several_rates(&self) -> bool {
        is_another_rate(self.profile.tsc.told_khz, self.tsc_khz_max)
    }

    /// The features that have names.
    pub fn features(&self) -> Vec<String> {
        self.profile.features()
    }

    /// What a host has beyond it, by name.
    pub fn withholds_of(&self, host: &Self) -> Vec<String> {
        host.profile.missing_on(&self.profile)
    }
}

impl CpuProfile {
    /// Takes away what is of no use without what is not there.
    fn close(&mut self) {
        if !self.has(XSAVE) {
            self.xsave = [Leaf::default(); XSAVE_SUBLEAVES];
        }
        for index in 2..XSAVE_SUBLEAVES {
            if self.xsave[index].eax == 0 {
                self.take((Xcr0, index as u32));
            }
        }
        for &(feature, needed) in NEEDS {
            if !self.has(needed) {
                self.take(feature);
            }
        }
        self.close_tiles();
        self.close_speculation();
        let linear_bits = lesser(self.extended[8].eax >> 8 & 0xff, self.linear_address_bits(), &[8]);
        self.extended[8].eax = self.extended[8].eax & !0xff00 | linear_bits << 8;
        let offered = self.xsave[0].eax;
        for (index, component) in self.xsave.iter_mut().enumerate().skip(2) {
            if offered & 1 << index == 0 {
                *component = Leaf::default();
            }
        }
        self.xsave[0].ecx = if offered == 0 { 0 } else { self.xsave_bytes(offered.into()) };
    }

    fn has(&self, (register, bit): Feature) -> bool {
        let value = match register {
            Leaf1Ecx => self.basic[1].ecx,
            Leaf7Ebx => self.basic[7].ebx,
            Leaf7Ecx => self.basic[7].ecx,
            Extended1Ecx => self.extended[1].ecx,
            Xcr0 => self.xsave[0].eax,
        };
        value & 1 << bit != 0
    }

    fn take(&mut self, (register, bit): Feature) {
        let value = match register {
            Leaf1Ecx => &mut self.basic[1].ecx,
            Leaf7Ebx => &mut self.basic[7].ebx,
            Leaf7Ecx => &mut self.basic[7].ecx,
            Extended1Ecx => &mut self.extended[1].ecx,
            Xcr0 => &mut self.xsave[0].eax,
        };
        *value &= !(1 << bit);
    }
}

fn meet_basic(a: &[Leaf; BASIC_LEAVES], b: &[Leaf; BASIC_LEAVES]) -> [Leaf; BASIC_LEAVES] {
    let mut basic: [Leaf; BASIC_LEAVES] = core::array::from_fn(|index| both(a[index], b[index]));
    basic[0].eax = a[0].eax.min(b[0].eax);
    basic[1].eax = older(a[1].eax, b[1].eax);
    basic[1].ebx = a[1].ebx.min(b[1].ebx);
    basic[2] = if a[2] == b[2] { a[2] } else { CACHES_ELSEWHERE };
    basic[7].eax = a[7].eax.min(b[7].eax);
    basic
}

/// A cache of leaf 4, none where they are not of one kind: ways, partitions, line and sets are the lesser.
fn meet_cache(a: Leaf, b: Leaf) -> Leaf {
    const KIND_AND_LEVEL: u32 = 0xff;
    if (a.eax ^ b.eax) & KIND_AND_LEVEL != 0 {
        return Leaf::default();
    }
    Leaf { eax: a.eax & b.eax, ebx: lesser(a.ebx, b.ebx, &[12, 10, 10]), ecx: a.ecx.min(b.ecx), edx: a.edx & b.edx }
}

/// Components are in common where they are as long, lie at the same place and are aligned alike.
fn meet_xsave(a: &[Leaf; XSAVE_SUBLEAVES], b: &[Leaf; XSAVE_SUBLEAVES]) -> [Leaf; XSAVE_SUBLEAVES] {
    core::array::from_fn(|index| match index {
        0 | 1 => both(a[index], b[index]),
        _ if a[index] == b[index] => a[index],
        _ => Leaf::default(),
    })
}

fn meet_extended(a: &[Leaf; EXTENDED_LEAVES], b: &[Leaf; EXTENDED_LEAVES]) -> [Leaf; EXTENDED_LEAVES] {
    let fields = |index: usize, widths: [&[u32]; 4]| {
        let (a, b) = (words(a[index]), words(b[index]));
        leaf(core::array::from_fn(|at| lesser(a[at], b[at], widths[at])))
    };
    let mut extended: [Leaf; EXTENDED_LEAVES] = core::array::from_fn(|index| both(a[index], b[index]));
    extended[0].eax = a[0].eax.min(b[0].eax);
    extended[1].eax = older(a[1].eax, b[1].eax);
    extended[1].ebx = if a[1].ebx == b[1].ebx { a[1].ebx } else { 0 };
    if a[2..5] != b[2..5] {
        for (leaf, name) in extended[2..5].iter_mut().zip(COMMON_NAME.chunks_exact(16)) {
            *leaf = named(name);
        }
    }
    // Entries and ways of TLBs, sizes of caches in their own units (APM volume 3, E.4.4 and E.4.5).
    extended[5] = fields(5, [&[8, 8, 8, 8]; 4]);
    extended[6] = fields(6, [&[12, 4, 12, 4], &[12, 4, 12, 4], &[8, 4, 4, 16], &[8, 4, 4, 2, 14]]);
    // Physical, linear and guest-physical addresses.
    extended[8].eax = lesser(a[8].eax, b[8].eax, &[8, 8, 8, 8]);
    extended[0x19] = fields(0x19, [&[12, 4, 12, 4]; 4]);
    extended
}

fn both(a: Leaf, b: Leaf) -> Leaf {
    Leaf { eax: a.eax & b.eax, ebx: a.ebx & b.ebx, ecx: a.ecx & b.ecx, edx: a.edx & b.edx }
}

/// The lesser of each field, of these widths in bits from bit 0 on.
fn lesser(a: u32, b: u32, widths: &[u32]) -> u32 {
    let mut at = 0;
    widths.iter().fold(0, |word, &width| {
        let mask = ((1 << width) - 1) << at;
        at += width;
        word | (a & mask).min(b & mask)
    })
}

/// The older processor's signature.
fn older(a: u32, b: u32) -> u32 {
    if (age(a), a) <= (age(b), b) { a } else { b }
}

/// Family, model and stepping (SDM volume 2, CPUID, figure 3-6).
fn age(signature: u32) -> (u32, u32, u32) {
    let family = signature >> 8 & 0xf;
    let family = if family == 0xf { family + (signature >> 20 & 0xff) } else { family };
    (family, signature >> 4 & 0xf | signature >> 12 & 0xf0, signature & 0xf)
}

fn named(bytes: &[u8]) -> Leaf {
    let word = |at: usize| u32::from_le_bytes(core::array::from_fn(|index| bytes[at + index]));
    Leaf { eax: word(0), ebx: word(4), ecx: word(8), edx: word(12) }
}
