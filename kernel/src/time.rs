//! The host's clock: nanoseconds since the start, from the TSC.

use machine::Moment;
use platform::Platform;

/// Turns the TSC into nanoseconds and back.
#[derive(Clone, Copy)]
pub struct Clock {
    base_tsc: u64,
    tsc_khz: u64,
    /// Nanoseconds in 2^32 ticks.
    ns_per_4g_ticks: u64,
    wall_unix_ns: u64,
    source: &'static str,
}

/// Measures the TSC and reads the time of day.
pub fn init(platform: &Platform) -> Clock {
    let (tsc_khz, source) = platform::tsc_khz(platform);
    let clock = Clock {
        base_tsc: cpu::tsc(),
        tsc_khz,
        ns_per_4g_ticks: ((1_000_000u128 << 32) / u128::from(tsc_khz)) as u64,
        wall_unix_ns: platform::wall_unix_s() * 1_000_000_000,
        source,
    };
    crate::log_ring::set_clock(clock);
    clock
}

impl Clock {
    /// The moment. A processor whose TSC is behind sees the start until it has caught up.
    pub fn now(&self) -> Moment {
        let tsc = cpu::tsc();
        Moment { ns: self.ns(tsc.saturating_sub(self.base_tsc)), tsc }
    }

    /// Nanoseconds since the start.
    pub fn now_ns(&self) -> u64 {
        self.now().ns
    }

    /// How long `ticks` of the TSC take.
    pub fn ns(&self, ticks: u64) -> u64 {
        ((u128::from(ticks) * u128::from(self.ns_per_4g_ticks)) >> 32) as u64
    }

    /// The TSC at a moment, rounded up, so that the moment has come when the TSC says so.
    pub fn tsc_at(&self, ns: u64) -> u64 {
        let ticks = (u128::from(ns) << 32).div_ceil(u128::from(self.ns_per_4g_ticks));
        self.base_tsc.saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX))
    }

    /// When a TSC value was read, in nanoseconds since the start.
    pub fn ns_of_tsc(&self, tsc: u64) -> u64 {
        self.ns(tsc.saturating_sub(self.base_tsc))
    }

    /// The TSC's rate.
    pub fn tsc_khz(&self) -> u64 {
        self.tsc_khz
    }

    /// UTC at the start, in nanoseconds since 1970.
    pub fn wall_unix_ns(&self) -> u64 {
        self.wall_unix_ns
    }

    /// What the TSC was measured against.
    pub fn source(&self) -> &'static str {
        self.source
    }
}
