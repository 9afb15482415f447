//! Breakpoints on data and ports, for instructions that are carried out in the processor's place.
//!
//! [`Breakpoints`] is what DR0 to DR3 and DR7 ask for; `insn` and `machine` ask it at each access that they make for the
//! guest, and [`Vcpu::retire`](crate::Vcpu::retire) raises the trap. Breakpoints on code are the processor's own: it meets
//! them before the instruction can exit. SDM volume 3, 19.2; APM volume 2, 13.1.

/// DR6.BS: a single step.
pub const DR6_SINGLE_STEP: u64 = 1 << 14;
/// B0 to B3 of DR6.
const DR6_MET: u64 = 0xf;
/// The local and global enables of all four in DR7.
const DR7_ENABLES: u64 = 0xff;

/// The four breakpoints, of which at least one is armed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Breakpoints {
    addresses: [u64; 4],
    dr7: u64,
}

/// What a breakpoint waits for, as DR7 encodes it.
mod condition {
    pub const WRITE: u64 = 1;
    pub const PORT: u64 = 2;
    pub const ACCESS: u64 = 3;
}

impl Breakpoints {
    /// Those of DR0 to DR3, which are read only when DR7 arms one.
    pub fn new(dr7: u64, addresses: impl FnOnce() -> [u64; 4]) -> Option<Self> {
        (dr7 & DR7_ENABLES != 0).then(|| Self { addresses: addresses(), dr7 })
    }

    /// The breakpoints that an access of `bytes` at a linear address meets, as bits of DR6.
    pub fn data(&self, linear: u64, bytes: u8, write: bool) -> u64 {
        self.met(linear, bytes, |kind| kind == condition::ACCESS || write && kind == condition::WRITE)
    }

    /// The same for an access to a port. They exist where CR4.DE is set.
    pub fn port(&self, port: u16, bytes: u8) -> u64 {
        self.met(port.into(), bytes, |kind| kind == condition::PORT)
    }

    /// Those that are met show in DR6 whether they are armed or not, if one of them is.
    fn met(&self, first: u64, bytes: u8, is_kind: impl Fn(u64) -> bool) -> u64 {
        let meets = |&number: &usize| {
            let (kind, length) = (self.dr7 >> (16 + 4 * number) & 3, self.dr7 >> (18 + 4 * number) & 3);
            let length_bytes = [1, 2, 8, 4][length as usize];
            let start = self.addresses[number] & !(length_bytes - 1);
            let (after, before) = (first.wrapping_sub(start), start.wrapping_sub(first));
            is_kind(kind) && (after < length_bytes || before < u64::from(bytes))
        };
        let bits = |numbers: &dyn Fn(&usize) -> bool| (0..4).filter(numbers).fold(0, |bits, number| bits | 1 << number);
        let armed = bits(&|&number| self.dr7 >> (2 * number) & 3 != 0);
        let met = bits(&meets);
        if met & armed == 0 { 0 } else { met }
    }
}

/// DR6 after a trap for `met` breakpoints, and a single step where `steps`: what was met before is forgotten, the other
/// bits only ever add up.
pub const fn dr6_after_trap(dr6: u64, met: u64, steps: bool) -> u64 {
    dr6 & !DR6_MET | met | if steps { DR6_SINGLE_STEP } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One breakpoint, the third, locally armed.
    fn third(kind: u64, length: u64, address: u64) -> Breakpoints {
        Breakpoints::new(1 << 4 | kind << 24 | length << 26, || [0, 0, address, 0]).unwrap()
    }

    #[test]
    fn none_is_armed_none_is_looked_at() {
        assert_eq!(Breakpoints::new(0x400, || panic!("not read")), None);
        assert!(Breakpoints::new(0x402, || [0; 4]).is_some());
    }

    #[test]
    fn data_meets_where_it_overlaps() {
        let word = third(condition::ACCESS, 3, 0x1004);
        for (linear, bytes, met) in [(0x1004, 4, 4), (0x1007, 1, 4), (0x1003, 2, 4), (0x1000, 4, 0), (0x1008, 8, 0)] {
            assert_eq!(word.data(linear, bytes, false), met, "{bytes} bytes at {linear:#x}");
        }
        assert_eq!(third(condition::ACCESS, 2, 0x1003).data(0x1000, 1, false), 4, "aligned down to its length");
        assert_eq!(third(condition::ACCESS, 0, u64::MAX).data(u64::MAX - 3, 4, false), 4);
    }

    #[test]
    fn kinds_are_told_apart() {
        assert_eq!(third(condition::WRITE, 0, 0x80).data(0x80, 1, false), 0, "a read");
        assert_eq!(third(condition::WRITE, 0, 0x80).data(0x80, 1, true), 4);
        assert_eq!(third(condition::PORT, 0, 0x80).data(0x80, 1, true), 0, "a port is no memory");
        assert_eq!(third(condition::PORT, 0, 0x80).port(0x7e, 4), 4);
        assert_eq!(third(condition::PORT, 0, 0x80).port(0x81, 1), 0);
        assert_eq!(third(0, 0, 0x80).data(0x80, 1, true), 0, "code");
    }

    #[test]
    fn what_is_not_armed_shows_beside_what_is() {
        let both = Breakpoints::new(1 << 3 | 3 << 16 | 3 << 20, || [0x10, 0x10, 0, 0]).unwrap();
        assert_eq!(both.data(0x10, 1, false), 3);
        let other = Breakpoints::new(1 << 3 | 3 << 16 | 3 << 20, || [0x10, 0x20, 0, 0]).unwrap();
        assert_eq!(other.data(0x10, 1, false), 0, "only one that is not armed");
    }

    #[test]
    fn dr6_forgets_what_was_met_before() {
        assert_eq!(dr6_after_trap(0xffff_6ff3, 4, true), 0xffff_6ff4 | DR6_SINGLE_STEP);
    }
}
