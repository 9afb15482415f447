//! What a guest is shown of how its processor speculates: what it can control, and which weaknesses it need not fear.
//!
//! SDM volume 4, table 2-2, IA32_ARCH_CAPABILITIES, and Intel's "CPUID Enumeration and Architectural MSRs"; APM volume 3,
//! E.4.6 and E.4.17. [`Facts`] keeps what is in no leaf that every processor has. In IA32_ARCH_CAPABILITIES most bits are
//! good news and two are bad; turned over, those are good news too, so that for hosts that differ AND is right for all.

use super::saved::{Names, words};
use super::{CpuProfile, Leaf};
use vcpu::Speculation;

/// Leaf 7 EDX: MD_CLEAR, IBRS and IBPB, STIBP, L1D_FLUSH, SSBD. IA32_ARCH_CAPABILITIES is offered with its value alone.
pub(super) const FEATURES_7_EDX: u32 = 1 << 10 | IBRS | 1 << 27 | 1 << 28 | 1 << 31;
const IBRS: u32 = 1 << 26;
const ARCH_CAPABILITIES: u32 = 1 << 29;
/// Leaf 8000_0008 EBX: IBPB, IBRS, STIBP, when these are best left on, IBRS in one mode, SSBD, whether it is needed, PSFD,
/// BTC_NO, IBPB of returns.
pub(super) const FEATURES_8_EBX: u32 = 1 << 12
    | 1 << 14
    | 1 << 15
    | 1 << 16
    | 1 << 17
    | 1 << 18
    | 1 << 19
    | 1 << 24
    | 1 << 26
    | 1 << 28
    | 1 << 29
    | 1 << 30;
const LEAF_21: u32 = 0x8000_0021;

/// Whatever has a name here is offered; not automatic IBRS, which is in EFER, nor what brings registers of its own.
const LEAF_7_2_EDX: Names =
    ("leaf 7.2 EDX", &[(0, "PSFD"), (1, "IPRED_CTRL"), (2, "RRSBA_CTRL"), (4, "BHI_CTRL"), (5, "MCDT_NO")]);
const EXTENDED_21_EAX: Names = (
    "leaf 80000021 EAX",
    &[(5, "VERW_CLEAR"), (27, "SBPB"), (28, "IBPB_BRTYPE"), (29, "SRSO_NO"), (30, "SRSO_USER_KERNEL_NO")],
);
const EXTENDED_21_ECX: Names = ("leaf 80000021 ECX", &[(1, "TSA_SQ_NO"), (2, "TSA_L1_NO")]);
const CAPABILITIES_LOW: Names = (
    "IA32_ARCH_CAPABILITIES 31:0",
    &[
        (0, "RDCL_NO"),
        (1, "IBRS_ALL"),
        (2, "no RSBA"),
        (3, "SKIP_L1DFL_VMENTRY"),
        (4, "SSB_NO"),
        (5, "MDS_NO"),
        (6, "PSCHANGE_MC_NO"),
        (8, "TAA_NO"),
        (13, "SBDR_SSDP_NO"),
        (14, "FBSDP_NO"),
        (15, "PSDP_NO"),
        (17, "FB_CLEAR"),
        (19, "no RRSBA"),
        (20, "BHI_NO"),
        (24, "PBRSB_NO"),
        (26, "GDS_NO"),
        (27, "RFDS_NO"),
        (28, "RFDS_CLEAR"),
    ],
);
const CAPABILITIES_HIGH: Names = ("IA32_ARCH_CAPABILITIES 63:32", &[(30, "ITS_NO")]);
/// Those of its bits that are bad news: RSBA, RRSBA.
const BAD_NEWS: u32 = 1 << 2 | 1 << 19;
const IBRS_ALL: u32 = 1 << 1;
/// What VERW clears, behind what makes that needless.
const CLEARED: [(u32, u32); 2] = [(1 << 13 | 1 << 14 | 1 << 15, 1 << 17), (1 << 27, 1 << 28)];

/// What is in no leaf that every processor has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Facts {
    /// Leaf 7.2 EDX.
    pub leaf_7_2: u32,
    /// Leaf 8000_0021 EAX and ECX.
    pub extended_21: [u32; 2],
    /// IA32_ARCH_CAPABILITIES in two halves, the bad news turned over; zero where there is none.
    merits: [u32; 2],
}

impl Facts {
    /// Those of a host that are known here, but IA32_ARCH_CAPABILITIES.
    pub fn of(host: &impl Fn(u32, u32) -> Leaf) -> Self {
        let Leaf { eax, ecx, .. } = host(LEAF_21, 0);
        let extended_21 = [eax & named(EXTENDED_21_EAX), ecx & named(EXTENDED_21_ECX)];
        Self::new(host(7, 2).edx & named(LEAF_7_2_EDX), extended_21, None)
    }

    /// With this IA32_ARCH_CAPABILITIES, if there is one.
    pub fn new(leaf_7_2: u32, extended_21: [u32; 2], capabilities: Option<u64>) -> Self {
        let merits = capabilities.map_or([0; 2], |value| [value as u32 ^ BAD_NEWS, (value >> 32) as u32]);
        Self { leaf_7_2, extended_21, merits }
    }

    /// IA32_ARCH_CAPABILITIES.
    pub fn capabilities(&self) -> u64 {
        u64::from(self.merits[1]) << 32 | u64::from(self.merits[0] ^ BAD_NEWS)
    }

    /// The last extended leaf, on a processor whose last is `last`.
    pub fn last_extended(&self, last: u32) -> u32 {
        if self.extended_21 == [0; 2] { 0 } else { last.min(LEAF_21) }
    }

    /// What both have.
    pub fn meet(&self, other: &Self) -> Self {
        let both = |a: [u32; 2], b: [u32; 2]| [a[0] & b[0], a[1] & b[1]];
        Self {
            leaf_7_2: self.leaf_7_2 & other.leaf_7_2,
            extended_21: both(self.extended_21, other.extended_21),
            merits: both(self.merits, other.merits),
        }
    }

    /// The same where VERW counts as clearing what nobody could read anyway: so a guest that may come to a processor which
    /// leaks clears there.
    pub fn cleared(mut self) -> Self {
        for (not_affected, clears) in CLEARED {
            if self.merits[0] & not_affected == not_affected {
                self.merits[0] |= clears;
            }
        }
        self
    }

    /// The registers of feature bits, as if [`cleared`](Self::cleared).
    pub fn registers(&self) -> [(u32, Names); 5] {
        let mut cleared = self.cleared();
        cleared.registers_mut().map(|(register, names)| (*register, names))
    }

    /// The same, to change.
    pub fn registers_mut(&mut self) -> [(&mut u32, Names); 5] {
        let ([eax, ecx], [low, high]) = (&mut self.extended_21, &mut self.merits);
        [
            (&mut self.leaf_7_2, LEAF_7_2_EDX),
            (eax, EXTENDED_21_EAX),
            (ecx, EXTENDED_21_ECX),
            (low, CAPABILITIES_LOW),
            (high, CAPABILITIES_HIGH),
        ]
    }
}

impl CpuProfile {
    /// The same on a host that has IA32_ARCH_CAPABILITIES, as far as that is known here.
    #[must_use]
    pub fn with_arch_capabilities(mut self, host: Option<u64>) -> Self {
        if let Some(value) = host {
            let Facts { leaf_7_2, extended_21, .. } = self.facts;
            let known = u64::from(named(CAPABILITIES_HIGH)) << 32 | u64::from(named(CAPABILITIES_LOW));
            self.facts = Facts::new(leaf_7_2, extended_21, Some(value & known));
            self.basic[7].edx |= ARCH_CAPABILITIES;
        }
        self
    }

    /// IA32_ARCH_CAPABILITIES, where it is offered.
    pub fn arch_capabilities(&self) -> Option<u64> {
        (self.basic[7].edx & ARCH_CAPABILITIES != 0).then(|| self.facts.capabilities())
    }

    /// What a guest can control.
    pub fn speculation(&self) -> Speculation {
        Speculation::named(|leaf, subleaf| match (leaf, subleaf) {
            (7, 2) => [0, 0, 0, self.facts.leaf_7_2],
            (7, _) => words(self.basic[7]),
            _ => words(self.extended[8]),
        })
    }

    /// Subleaf 2 of leaf 7.
    pub(super) fn leaf_7_2(&self) -> Leaf {
        Leaf { edx: self.facts.leaf_7_2, ..Leaf::default() }
    }

    /// An extended leaf behind those that are kept whole.
    pub(super) fn extended_far(&self, leaf: u32) -> Leaf {
        let [eax, ecx] = self.facts.extended_21;
        if leaf == LEAF_21 { Leaf { eax, ecx, ..Leaf::default() } } else { Leaf::default() }
    }

    /// Takes away what is of no use without what is not there.
    pub(super) fn close_speculation(&mut self) {
        let edx = self.basic[7].edx;
        if edx & IBRS == 0 {
            self.facts.merits[0] &= !IBRS_ALL;
        }
        if edx & ARCH_CAPABILITIES == 0 {
            self.facts.merits = [0; 2];
        }
    }
}

/// The bits that have names.
fn named((_, names): Names) -> u32 {
    names.iter().fold(0, |bits, (bit, _)| bits | 1 << bit)
}
