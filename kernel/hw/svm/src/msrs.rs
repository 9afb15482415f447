//! Which accesses to model-specific registers exit (15.11): [`MsrMap`], one vCPU's permission map.

use alloc::boxed::Box;

/// Two bits an MSR, for reads and for writes.
#[repr(align(4096))]
pub(crate) struct MsrMap([u8; 2 * 4096]);

/// A way to access a register: which of its bits that is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    Read = 0,
    Write = 1,
}

/// SYSENTER_CS, ESP, EIP; STAR, LSTAR, CSTAR, SFMASK; FS, GS and kernel GS base; TSC_AUX.
const OWN: [u32; 11] = [
    0x174,
    0x175,
    0x176,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0103,
];

impl MsrMap {
    /// Every access exits but those to registers that VMLOAD and VMSAVE switch.
    pub fn boxed() -> Box<Self> {
        let mut map = Box::new(Self([0xff; 2 * 4096]));
        for msr in OWN {
            map.pass(msr, Way::Read, true);
            map.pass(msr, Way::Write, true);
        }
        map
    }

    /// Lets such accesses pass, or exit. The VMCB is to be read anew then.
    pub fn pass(&mut self, msr: u32, way: Way, passes: bool) {
        let (byte, bit) = place(msr, way);
        self.0[byte] = self.0[byte] & !bit | if passes { 0 } else { bit };
    }

    #[cfg(test)]
    pub fn passes(&self, msr: u32, way: Way) -> bool {
        let (byte, bit) = place(msr, way);
        self.0[byte] & bit == 0
    }
}

fn place(msr: u32, way: Way) -> (usize, u8) {
    const HIGH: usize = 0x800;
    let index = (msr & 0x1fff) as usize * 2 + way as usize;
    let start = if msr >= 0xc000_0000 { HIGH } else { 0 };
    (start + index / 8, 1 << (index % 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_switched_passes_until_more_is_let() {
        let mut map = MsrMap::boxed();
        let open =
            |map: &MsrMap, way| (0..0x2000).chain(0xc000_0000..0xc000_2000).filter(|&msr| map.passes(msr, way)).count();
        assert_eq!((open(&map, Way::Read), open(&map, Way::Write)), (OWN.len(), OWN.len()));
        assert!(
            map.passes(0xc000_0102, Way::Write) && map.passes(0x174, Way::Read) && !map.passes(0xc000_0080, Way::Write)
        );
        map.pass(0x49, Way::Write, true);
        assert!(map.passes(0x49, Way::Write) && !map.passes(0x49, Way::Read));
        map.pass(0x49, Way::Write, false);
        assert_eq!((open(&map, Way::Read), open(&map, Way::Write)), (OWN.len(), OWN.len()));
    }
}
