//! The saved form of a CPU profile, and whether a host can go on with it.

use super::amx::Tiles;
use super::speculation::Facts;
use super::tsc::Tsc;
use super::{BASIC_LEAVES, CACHES_MAX, CpuProfile, EXTENDED_LEAVES, Leaf, XSAVE_SUBLEAVES};
use crate::saved::Unlike;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use minicbor::{Decode, Encode};

/// What a guest sees by CPUID: each leaf as EAX, EBX, ECX and EDX.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct SavedProfile {
    #[n(0)]
    basic: [[u32; 4]; BASIC_LEAVES],
    #[n(1)]
    caches: [[u32; 4]; CACHES_MAX],
    #[n(2)]
    xsave: [[u32; 4]; XSAVE_SUBLEAVES],
    #[n(3)]
    extended: [[u32; 4]; EXTENDED_LEAVES],
    #[n(4)]
    vcpus: u32,
    #[n(5)]
    tsc_khz: u32,
    /// Leaf 7.2 EDX, leaf 8000_0021 EAX and ECX: absent where they are zero.
    #[n(6)]
    leaf_7_2: Option<u32>,
    #[n(7)]
    extended_21: Option<[u32; 2]>,
    /// IA32_ARCH_CAPABILITIES, where leaf 7 offers it.
    #[n(8)]
    arch_capabilities: Option<u64>,
    /// [`Tiles`], where there are any.
    #[n(9)]
    tiles: Option<[[u32; 4]; 4]>,
}

/// A register of feature bits: what it is called, and the names of its bits from bit 0 on; those without a name are
/// told by number.
pub(super) type Names = (&'static str, &'static [(u32, &'static str)]);

const LEAF_1_ECX: Names = (
    "leaf 1 ECX",
    &[
        (0, "SSE3"),
        (1, "PCLMULQDQ"),
        (9, "SSSE3"),
        (12, "FMA"),
        (13, "CX16"),
        (17, "PCID"),
        (19, "SSE4.1"),
        (20, "SSE4.2"),
        (22, "MOVBE"),
        (23, "POPCNT"),
        (25, "AES"),
        (26, "XSAVE"),
        (28, "AVX"),
        (29, "F16C"),
        (30, "RDRAND"),
    ],
);
const LEAF_1_EDX: Names = ("leaf 1 EDX", &[(19, "CLFLUSH"), (23, "MMX"), (24, "FXSR"), (25, "SSE"), (26, "SSE2")]);
const LEAF_7_EBX: Names = (
    "leaf 7 EBX",
    &[
        (0, "FSGSBASE"),
        (1, "TSC_ADJUST"),
        (3, "BMI1"),
        (5, "AVX2"),
        (7, "SMEP"),
        (8, "BMI2"),
        (9, "ERMS"),
        (10, "INVPCID"),
        (16, "AVX512F"),
        (17, "AVX512DQ"),
        (18, "RDSEED"),
        (19, "ADX"),
        (20, "SMAP"),
        (21, "AVX512IFMA"),
        (23, "CLFLUSHOPT"),
        (24, "CLWB"),
        (28, "AVX512CD"),
        (29, "SHA"),
        (30, "AVX512BW"),
        (31, "AVX512VL"),
    ],
);
const LEAF_7_ECX: Names = (
    "leaf 7 ECX",
    &[
        (1, "AVX512VBMI"),
        (2, "UMIP"),
        (3, "PKU"),
        (6, "AVX512VBMI2"),
        (8, "GFNI"),
        (9, "VAES"),
        (10, "VPCLMULQDQ"),
        (11, "AVX512VNNI"),
        (12, "AVX512BITALG"),
        (14, "AVX512VPOPCNTDQ"),
        (16, "LA57"),
        (22, "RDPID"),
    ],
);
const LEAF_7_EDX: Names = (
    "leaf 7 EDX",
    &[
        (4, "FSRM"),
        (10, "MD_CLEAR"),
        (22, "AMX_BF16"),
        (24, "AMX_TILE"),
        (25, "AMX_INT8"),
        (26, "SPEC_CTRL"),
        (27, "STIBP"),
        (28, "L1D_FLUSH"),
        (29, "ARCH_CAPABILITIES"),
        (31, "SSBD"),
    ],
);
const EXTENDED_1_ECX: Names = (
    "leaf 80000001 ECX",
    &[
        (0, "LAHF64"),
        (5, "ABM"),
        (6, "SSE4A"),
        (7, "MISALIGNSSE"),
        (8, "PREFETCHW"),
        (11, "XOP"),
        (16, "FMA4"),
        (21, "TBM"),
    ],
);
const EXTENDED_1_EDX: Names = (
    "leaf 80000001 EDX",
    &[
        (11, "SYSCALL"),
        (20, "NX"),
        (22, "MMXEXT"),
        (25, "FFXSR"),
        (26, "1 GiB pages"),
        (27, "RDTSCP"),
        (29, "long mode"),
        (30, "3DNOWEXT"),
        (31, "3DNOW"),
    ],
);
const EXTENDED_7_EDX: Names = ("leaf 80000007 EDX", &[(8, "invariant TSC")]);
const EXTENDED_8_EBX: Names = (
    "leaf 80000008 EBX",
    &[
        (0, "CLZERO"),
        (12, "IBPB"),
        (14, "IBRS"),
        (15, "STIBP"),
        (16, "IBRS_ALWAYS_ON"),
        (17, "STIBP_ALWAYS_ON"),
        (18, "IBRS_PREFERRED"),
        (19, "IBRS_SAME_MODE"),
        (24, "SSBD"),
        (26, "SSB_NO"),
        (28, "PSFD"),
        (29, "BTC_NO"),
        (30, "IBPB_RET"),
    ],
);
const XSAVE_COMPONENTS: Names = (
    "XCR0",
    &[
        (2, "AVX state"),
        (5, "AVX-512 state"),
        (6, "AVX-512 state"),
        (7, "AVX-512 state"),
        (9, "PKRU state"),
        (17, "AMX state"),
        (18, "AMX state"),
    ],
);
const XSAVE_INSTRUCTIONS: Names =
    ("leaf D.1 EAX", &[(0, "XSAVEOPT"), (1, "XSAVEC"), (2, "XGETBV1"), (3, "XSAVES"), (4, "XFD")]);

impl SavedProfile {
    /// The profile, on the host that it is of.
    pub(super) fn profile(&self) -> CpuProfile {
        CpuProfile {
            basic: self.basic.map(leaf),
            caches: self.caches.map(leaf),
            xsave: self.xsave.map(leaf),
            tiles: self.tiles.map(Tiles::restore),
            extended: self.extended.map(leaf),
            facts: self.facts(),
            vcpus: self.vcpus,
            tsc: Tsc::new(self.tsc_khz),
        }
    }

    fn facts(&self) -> Facts {
        let leaf_7_2 = self.leaf_7_2.unwrap_or_default();
        let extended_21 = self.extended_21.unwrap_or_default();
        Facts::new(leaf_7_2, extended_21, self.arch_capabilities)
    }
}

impl CpuProfile {
    /// What restores it.
    pub fn save(&self) -> SavedProfile {
        SavedProfile {
            basic: self.basic.map(words),
            caches: self.caches.map(words),
            xsave: self.xsave.map(words),
            extended: self.extended.map(words),
            vcpus: self.vcpus,
            tsc_khz: self.tsc.told_khz,
            leaf_7_2: Some(self.facts.leaf_7_2).filter(|&edx| edx != 0),
            extended_21: Some(self.facts.extended_21).filter(|&registers| registers != [0; 2]),
            arch_capabilities: self.arch_capabilities(),
            tiles: self.tiles.as_ref().map(Tiles::save),
        }
    }

    /// The saved profile, on a host that would show new guests `host`.
    ///
    /// # Errors
    /// Where the host is another vendor's, or lacks something of it.
    pub(crate) fn restore(saved: &SavedProfile, host: &Self) -> Result<Self, Unlike> {
        let profile = Self { tsc: host.tsc.told(saved.tsc_khz), ..saved.profile() };
        if profile.vendor() != host.vendor() {
            return Err(Unlike::Vendor(profile.vendor(), host.vendor()));
        }
        let mut missing = profile.missing_on(host);
        if profile.physical_address_bits() > host.physical_address_bits() {
            missing.push(alloc::format!("{} bits of physical address", profile.physical_address_bits()));
        }
        let layout = (2..XSAVE_SUBLEAVES).all(|index| {
            let offered = profile.xsave[0].eax & 1 << index != 0;
            !offered || profile.xsave[index] == host.xsave[index]
        });
        if missing.is_empty() && !layout {
            missing.push("the layout of its XSAVE area".to_string());
        }
        if missing.is_empty() && profile.tiles.is_some() && profile.tiles != host.tiles {
            missing.push("tiles of that kind".to_string());
        }
        if missing.is_empty() && saved.tsc_khz > 0 { Ok(profile) } else { Err(Unlike::Features(missing)) }
    }

    /// The names of the features that it offers.
    pub(super) fn features(&self) -> Vec<String> {
        let set = |(offered, (_, names)): (u32, Names)| {
            names.iter().filter(move |(bit, _)| offered & 1 << bit != 0).map(|(_, name)| name.to_string())
        };
        let mut features: Vec<String> = self.registers().flat_map(set).collect();
        features.dedup();
        features
    }

    /// Takes features away by name, in capitals or not; `Err` is a name that there is not.
    pub(super) fn withhold<'a>(&mut self, names: &[&'a str]) -> Result<(), &'a str> {
        for &name in names {
            let is_it = |(_, named): &&(u32, &str)| named.eq_ignore_ascii_case(name);
            let mut is_known = false;
            for (register, (_, named)) in self.registers_mut() {
                let bits = named.iter().filter(is_it).fold(0, |bits, (bit, _)| bits | 1 << bit);
                is_known |= bits != 0;
                *register &= !bits;
            }
            if !is_known {
                return Err(name);
            }
        }
        Ok(())
    }

    /// Whose processor it is, for people.
    pub fn vendor(&self) -> &'static str {
        let Leaf { ebx, edx, ecx, .. } = self.basic[0];
        match [ebx, edx, ecx].map(u32::to_le_bytes).as_flattened() {
            b"AuthenticAMD" => "AMD (SVM)",
            b"GenuineIntel" => "Intel (VT-x)",
            _ => "another vendor's processor",
        }
    }

    /// The features that this profile offers and `host` lacks, by name.
    pub(super) fn missing_on(&self, host: &Self) -> Vec<String> {
        let mut missing = Vec::new();
        for ((offered, (register, names)), (there, _)) in self.registers().zip(host.registers()) {
            for bit in (0..32).filter(|bit| offered & !there & 1 << bit != 0) {
                let name = names.iter().find(|(named, _)| *named == bit).map(|(_, name)| name.to_string());
                missing.push(name.unwrap_or_else(|| alloc::format!("bit {bit} of {register}")));
            }
        }
        missing.dedup();
        missing
    }

    /// The registers of feature bits, to change.
    fn registers_mut(&mut self) -> impl Iterator<Item = (&mut u32, Names)> {
        let [_, one, _, _, _, _, _, seven, ..] = &mut self.basic;
        let [_, extended_1, _, _, _, _, _, extended_7, extended_8, ..] = &mut self.extended;
        let [components, instructions, ..] = &mut self.xsave;
        let near = [
            (&mut one.ecx, LEAF_1_ECX),
            (&mut one.edx, LEAF_1_EDX),
            (&mut seven.ebx, LEAF_7_EBX),
            (&mut seven.ecx, LEAF_7_ECX),
            (&mut seven.edx, LEAF_7_EDX),
            (&mut extended_1.ecx, EXTENDED_1_ECX),
            (&mut extended_1.edx, EXTENDED_1_EDX),
            (&mut extended_7.edx, EXTENDED_7_EDX),
            (&mut extended_8.ebx, EXTENDED_8_EBX),
            (&mut components.eax, XSAVE_COMPONENTS),
            (&mut instructions.eax, XSAVE_INSTRUCTIONS),
        ];
        near.into_iter().chain(self.facts.registers_mut())
    }

    /// The registers of feature bits, without those that only depend on how many vCPUs there are.
    fn registers(&self) -> impl Iterator<Item = (u32, Names)> {
        let near = [
            (self.basic[1].ecx, LEAF_1_ECX),
            (self.basic[1].edx & !super::HTT, LEAF_1_EDX),
            (self.basic[7].ebx, LEAF_7_EBX),
            (self.basic[7].ecx, LEAF_7_ECX),
            (self.basic[7].edx, LEAF_7_EDX),
            (self.extended[1].ecx & !super::CMP_LEGACY, EXTENDED_1_ECX),
            (self.extended[1].edx, EXTENDED_1_EDX),
            (self.extended[7].edx, EXTENDED_7_EDX),
            (self.extended[8].ebx, EXTENDED_8_EBX),
            (self.xsave[0].eax, XSAVE_COMPONENTS),
            (self.xsave[1].eax, XSAVE_INSTRUCTIONS),
        ];
        near.into_iter().chain(self.facts.registers())
    }
}

pub(super) fn words(leaf: Leaf) -> [u32; 4] {
    [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
}

pub(super) fn leaf([eax, ebx, ecx, edx]: [u32; 4]) -> Leaf {
    Leaf { eax, ebx, ecx, edx }
}
