//! What a guest is told of its time stamp counter, and what it has. The main type is [`Tsc`].

use vcpu::TscRatio;

/// TSC rates that differ by more than this many parts in a million differ for the guest.
const TOLERANCE_PPM: u64 = 250;

/// The time stamp counter of a guest on a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tsc {
    /// Its rate as the guest is told.
    pub told_khz: u32,
    /// Its rate as it is.
    pub real_khz: u32,
    /// How it follows the host's.
    pub ratio: TscRatio,
    /// How many binary places of a ratio the host's processor knows, if any.
    pub fraction_bits: Option<u32>,
}

impl Tsc {
    /// That of a guest that begins on a host whose own runs so fast.
    pub fn new(khz: u32) -> Self {
        Self { told_khz: khz, real_khz: khz, ratio: TscRatio::ONE, fraction_bits: None }
    }

    /// That of a guest that was told another rate elsewhere, on the host that gives new guests this one. Measured rates
    /// of like hosts differ a little, and so are no reason to scale.
    pub fn told(self, told_khz: u32) -> Self {
        let scaled = || TscRatio::new(told_khz, self.real_khz, self.fraction_bits?);
        match is_another_rate(told_khz, self.real_khz).then(scaled).flatten() {
            Some(ratio) => Self { told_khz, real_khz: told_khz, ratio, ..self },
            None => Self { told_khz, ..self },
        }
    }
}

/// Whether a guest that was told one TSC rate notices the other.
pub fn is_another_rate(told_khz: u32, real_khz: u32) -> bool {
    u64::from(told_khz.abs_diff(real_khz)) * 1_000_000 > u64::from(told_khz) * TOLERANCE_PPM
}
