//! How fast a guest's time stamp counter runs, as a multiple of the host's: Intel SDM volume 3, 26.3 (use of the TSC
//! multiplier); AMD APM volume 2, 15.30.5 (TSC ratio). The main type is [`TscRatio`].

/// The binary places of Intel's multiplier, of which AMD's ratio has 32.
const FRACTION_BITS: u32 = 48;
/// AMD's integer part has eight bits.
const INTEGER_BITS: u32 = 8;

/// The guest's rate by the host's. The guest's TSC is the host's times this, and an offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TscRatio(u64);

impl TscRatio {
    /// The host's own rate.
    pub const ONE: Self = Self(1 << FRACTION_BITS);

    /// The ratio on a processor that knows so many binary places; `None` where no processor can have it.
    #[must_use]
    pub fn new(guest_khz: u32, host_khz: u32, fraction_bits: u32) -> Option<Self> {
        let exact = (u128::from(guest_khz) << FRACTION_BITS).checked_div(host_khz.into())?;
        // What the processor would drop must not be counted here either.
        let kept = exact >> FRACTION_BITS.checked_sub(fraction_bits)? << (FRACTION_BITS - fraction_bits);
        (1..1 << (FRACTION_BITS + INTEGER_BITS)).contains(&kept).then_some(Self(kept as u64))
    }

    /// The host's TSC in the guest's ticks.
    #[must_use]
    pub fn scale(self, host_tsc: u64) -> u64 {
        ((u128::from(host_tsc) * u128::from(self.0)) >> FRACTION_BITS) as u64
    }

    /// The ratio with so many binary places, as a processor takes it.
    #[must_use]
    pub fn fixed(self, fraction_bits: u32) -> u64 {
        self.0 >> (FRACTION_BITS - fraction_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_scales_what_the_host_counts() {
        assert_eq!(TscRatio::ONE.scale(u64::MAX), u64::MAX);
        let double = TscRatio::new(4_000_000, 2_000_000, 48).unwrap();
        assert_eq!((double.fixed(48), double.fixed(32)), (2 << 48, 2 << 32));
        assert_eq!((double.scale(21), double.scale(1 << 63)), (42, 0), "it wraps as the hardware's does");
        let slower = TscRatio::new(1_999_900, 2_600_000, 48).unwrap();
        let hours = 2_600_000_000 * 3600 * 1000;
        assert!(
            slower.scale(hours).abs_diff(1_999_900_000 * 3600 * 1000) < 100_000,
            "a thousand hours, and no 50 us off"
        );
    }

    #[test]
    fn what_the_processor_drops_is_not_counted() {
        let coarse = TscRatio::new(1_000_001, 3_000_000, 32).unwrap();
        assert_eq!(coarse.fixed(48), coarse.fixed(32) << 16);
    }

    #[test]
    fn what_no_processor_can_do_is_no_ratio() {
        for (guest, host, bits) in [(1, 0, 48), (0, 1, 48), (256, 1, 48), (1, u32::MAX, 31), (1, 1, 49)] {
            assert_eq!(TscRatio::new(guest, host, bits), None, "{guest} / {host}");
        }
        assert!(TscRatio::new(255, 1, 32).is_some() && TscRatio::new(1, u32::MAX, 32).is_some());
    }
}
