//! The saved form of what a guest registered. At rest no end of an interrupt is offered.

use super::Registered;
use minicbor::{Decode, Encode};

/// The registers as they read, and the version of the clock in guest memory.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    wall_clock: u64,
    #[n(1)]
    system_time: u64,
    #[n(2)]
    system_time_version: u32,
    #[n(3)]
    pv_eoi: u64,
    #[n(4)]
    steal: Option<Steal>,
}

/// Stolen time, of a guest that wants to know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
struct Steal {
    #[n(0)]
    register: u64,
    #[n(1)]
    version: u32,
    #[n(2)]
    told_ns: u64,
}

impl Registered {
    pub fn save(&self) -> Saved {
        let Self { wall_clock, system_time, system_time_version, pv_eoi, .. } = *self;
        let Self { steal_time: register, steal_version: version, steal_told_ns: told_ns, .. } = *self;
        let steal = (register != 0).then_some(Steal { register, version, told_ns });
        Saved { wall_clock, system_time, system_time_version, pv_eoi, steal }
    }

    /// Every value is possible: the memory that they name is looked up, and checked, at each use.
    pub fn restore(saved: &Saved) -> Self {
        let Saved { wall_clock, system_time, system_time_version, pv_eoi, steal } = *saved;
        let Steal { register, version, told_ns } = steal.unwrap_or(Steal { register: 0, version: 0, told_ns: 0 });
        Self {
            wall_clock,
            system_time,
            // An odd version would tell readers that the clock is being changed, for ever.
            system_time_version: system_time_version & !1,
            steal_time: register,
            steal_version: version & !1,
            steal_told_ns: told_ns,
            steal_counted_ns: 0,
            pv_eoi,
            eoi_offered: false,
        }
    }
}
