//! CR4: its bits, which of them a processor has, and which writes it refuses.
//!
//! SDM volume 3, 2.5 and volume 2, MOV to control registers; APM volume 2, 3.1.3. [`named`] turns what CPUID says into
//! bits, for the host's own CPUID and for what a guest is shown; both back ends ask [`may_write`].

use crate::{Paging, efer};

#[allow(missing_docs, reason = "the names are the architecture's")]
mod bits {
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const VMXE: u64 = 1 << 13;
    pub const SMXE: u64 = 1 << 14;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
    pub const CET: u64 = 1 << 23;
    pub const PKS: u64 = 1 << 24;
}
pub use bits::*;

/// Bits that a CPUID bit names: the leaf, the register (EAX is 0), its bit, and theirs.
const NAMED: [(u32, usize, u32, u64); 21] = [
    (1, EDX, 1, VME | PVI),
    (1, EDX, 2, DE),
    (1, EDX, 3, PSE),
    (1, EDX, 4, TSD),
    (1, EDX, 6, PAE),
    (1, EDX, 7, MCE),
    (1, EDX, 13, PGE),
    (1, EDX, 24, OSFXSR),
    (1, EDX, 25, OSXMMEXCPT),
    (1, ECX, 5, VMXE),
    (1, ECX, 6, SMXE),
    (1, ECX, 17, PCIDE),
    (1, ECX, 26, OSXSAVE),
    (7, EBX, 0, FSGSBASE),
    (7, EBX, 7, SMEP),
    (7, EBX, 20, SMAP),
    (7, ECX, 2, UMIP),
    (7, ECX, 3, PKE),
    (7, ECX, 7, CET),
    (7, ECX, 16, LA57),
    (7, ECX, 31, PKS),
];
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// The bits that there are where subleaf 0 of a leaf reads so (EAX, EBX, ECX, EDX). PCE has no name; every processor with
/// long mode has it.
pub fn named(leaf: impl Fn(u32) -> [u32; 4]) -> u64 {
    let (one, seven) = (leaf(1), leaf(7));
    NAMED.iter().fold(PCE, |bits, &(leaf, register, bit, named)| {
        let registers = if leaf == 1 { one } else { seven };
        bits | if registers[register] & 1 << bit != 0 { named } else { 0 }
    })
}

/// Whether a guest that was offered these bits may write `value`: else it gets #GP(0).
pub fn may_write(paging: &Paging, value: u64, offered: u64) -> bool {
    let (long, changed) = (paging.efer & efer::LMA != 0, paging.cr4 ^ value);
    let stays_long = !long || value & PAE != 0 && changed & LA57 == 0;
    let tags = changed & value & PCIDE != 0;
    value & !offered == 0 && stays_long && (!tags || long && paging.cr3 & 0xfff == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_has_its_name() {
        assert_eq!(named(|_| [0; 4]), PCE);
        assert_eq!(named(|leaf| if leaf == 7 { [0, 1 << 20, 1 << 3, 0] } else { [0; 4] }), PCE | SMAP | PKE);
        assert_eq!(named(|leaf| if leaf == 1 { [0, 0, 1 << 17, 1 << 1] } else { [0; 4] }), PCE | PCIDE | VME | PVI);
        assert_eq!(named(|_| [u32::MAX; 4]).count_ones(), 23);
    }

    #[test]
    fn what_was_not_offered_is_refused() {
        let paging = Paging { cr4: PAE, ..Paging::default() };
        assert!(may_write(&paging, PAE | SMEP, PAE | SMEP));
        assert!(!may_write(&paging, PAE | SMEP, PAE));
        assert!(!may_write(&paging, 1 << 63, !(1 << 63)));
        assert!(!may_write(&paging, 1 << 15, PAE));
    }

    #[test]
    fn long_mode_stays_as_it_is() {
        let long = Paging { cr4: PAE, efer: efer::LMA, cr3: 0x1000, ..Paging::default() };
        let all = u64::MAX;
        assert!(may_write(&long, PAE | PCIDE, all));
        assert!(!may_write(&long, 0, all), "without PAE");
        assert!(!may_write(&long, PAE | LA57, all), "another depth of tables");
        assert!(!may_write(&Paging { cr3: 0x1008, ..long }, PAE | PCIDE, all), "a PCID before there are any");
        let with_pcid = Paging { cr3: 0x1008, cr4: PAE | PCIDE, ..long };
        assert!(may_write(&with_pcid, PAE | PCIDE | PGE, all), "one that was there");
        let short = Paging { efer: 0, ..long };
        assert!(may_write(&short, LA57, all), "before long mode");
        assert!(!may_write(&short, PAE | PCIDE, all), "PCIDs outside long mode");
    }
}
