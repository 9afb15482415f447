//! What a guest does about speculation: the bits of IA32_SPEC_CTRL, the commands beside it, and which a processor has.
//!
//! SDM volume 2, CPUID 7, and volume 4, table 2-2; APM volume 3, appendix E.4.6, and volume 2, 3.2.9. Where one vendor's
//! processors say what they have, the other's say nothing, so that [`Speculation::named`] looks at both. As with `cr4` it
//! serves the host's own CPUID and what a guest is shown.

#[allow(missing_docs, reason = "the names are the architecture's")]
mod bits {
    pub const IBRS: u64 = 1 << 0;
    pub const STIBP: u64 = 1 << 1;
    pub const SSBD: u64 = 1 << 2;
    pub const IPRED_DIS: u64 = 1 << 3 | 1 << 4;
    pub const RRSBA_DIS: u64 = 1 << 5 | 1 << 6;
    pub const PSFD: u64 = 1 << 7;
    pub const BHI_DIS_S: u64 = 1 << 10;
}
use bits::*;

/// What there is of it, or what a guest was offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Speculation {
    /// The bits of IA32_SPEC_CTRL; without any there is no such register.
    pub control: u64,
    /// IA32_PRED_CMD, with which a guest forgets predictions.
    pub has_prediction_command: bool,
    /// IA32_FLUSH_CMD, with which it empties the first-level data cache.
    pub has_flush_command: bool,
}

/// Bits of IA32_SPEC_CTRL that a CPUID bit names: leaf and subleaf, the register, its bit, and theirs.
const NAMED: [((u32, u32), usize, u32, u64); 11] = [
    ((7, 0), EDX, 26, IBRS),
    ((7, 0), EDX, 27, STIBP),
    ((7, 0), EDX, 31, SSBD),
    ((7, 2), EDX, 0, PSFD),
    ((7, 2), EDX, 1, IPRED_DIS),
    ((7, 2), EDX, 2, RRSBA_DIS),
    ((7, 2), EDX, 4, BHI_DIS_S),
    ((0x8000_0008, 0), EBX, 14, IBRS),
    ((0x8000_0008, 0), EBX, 15, STIBP),
    ((0x8000_0008, 0), EBX, 24, SSBD),
    ((0x8000_0008, 0), EBX, 28, PSFD),
];
const EBX: usize = 1;
const EDX: usize = 3;

impl Speculation {
    /// What there is where the leaves read so (leaf, subleaf: EAX, EBX, ECX, EDX).
    pub fn named(leaf: impl Fn(u32, u32) -> [u32; 4]) -> Self {
        let has = |(at, subleaf): (u32, u32), register: usize, bit: u32| leaf(at, subleaf)[register] & 1 << bit != 0;
        let control = NAMED
            .iter()
            .fold(0, |control, &(at, register, bit, named)| control | if has(at, register, bit) { named } else { 0 });
        Self {
            control,
            has_prediction_command: has((7, 0), EDX, 26) || has((0x8000_0008, 0), EBX, 12),
            has_flush_command: has((7, 0), EDX, 28),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(at: (u32, u32), registers: [u32; 4]) -> Speculation {
        Speculation::named(|leaf, subleaf| if (leaf, subleaf) == at { registers } else { [0; 4] })
    }

    #[test]
    fn each_vendor_names_the_same_registers_its_own_way() {
        assert_eq!(Speculation::named(|_, _| [0; 4]), Speculation::default());
        let intel = named((7, 0), [0, 0, 0, 1 << 26 | 1 << 27 | 1 << 28]);
        let both = IBRS | STIBP;
        let expected = Speculation { control: both, has_prediction_command: true, has_flush_command: true };
        assert_eq!(intel, expected);
        let amd = named((0x8000_0008, 0), [0, 1 << 12 | 1 << 14 | 1 << 15, 0, 0]);
        assert_eq!(amd, Speculation { has_flush_command: false, ..expected });
        let alone = named((0x8000_0008, 0), [0, 1 << 12, 0, 0]);
        assert_eq!((alone.control, alone.has_prediction_command), (0, true), "IBPB without the register");
    }

    #[test]
    fn each_bit_has_its_name() {
        assert_eq!(Speculation::named(|_, _| [u32::MAX; 4]).control, 0x4ff);
        assert_eq!(named((7, 2), [0, 0, 0, 1 << 4]).control, BHI_DIS_S);
        assert_eq!(named((7, 2), [0, 0, 0, 1 << 3]).control, 0, "the data-dependent prefetcher's is not known here");
    }
}
