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
}

impl Registered {
    pub fn save(&self) -> Saved {
        let Self { wall_clock, system_time, system_time_version, pv_eoi, eoi_offered: _ } = *self;
        Saved { wall_clock, system_time, system_time_version, pv_eoi }
    }

    /// Every value is possible: the memory that they name is looked up, and checked, at each use.
    pub fn restore(saved: &Saved) -> Self {
        let Saved { wall_clock, system_time, system_time_version, pv_eoi } = *saved;
        // An odd version would tell readers that the clock is being changed, for ever.
        let system_time_version = system_time_version & !1;
        Self { wall_clock, system_time, system_time_version, pv_eoi, eoi_offered: false }
    }
}
