//! The saved form of power management.

use super::{Power, control, event, port_a, reset};
use crate::saved::FAR_TICKS;
use minicbor::{Decode, Encode};
use state::Invalid;

/// The registers, and the timer as it was looked at last.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    status: u16,
    #[n(1)]
    enable: u16,
    #[n(2)]
    control: u16,
    #[n(3)]
    ticks: u64,
    #[n(4)]
    reset: u8,
    #[n(5)]
    port_a: u8,
}

impl Power {
    /// What restores it.
    pub fn save(&self) -> Saved {
        let Self { status, enable, control, ticks, reset, port_a } = *self;
        Saved { status, enable, control, ticks, reset, port_a }
    }

    /// Registers that go on where the saved ones were.
    ///
    /// # Errors
    /// Where no registers can have been there.
    pub fn restore(saved: &Saved) -> Result<Self, Invalid> {
        let Saved { status, enable, control, ticks, reset, port_a } = *saved;
        let possible = status & !(event::TIMER | event::POWER_BUTTON) == 0
            && enable & !event::ENABLE_WRITABLE == 0
            && control & !control::WRITABLE == 0
            && reset & !reset::WRITABLE == 0
            && port_a & !(port_a::FAST_RESET | port_a::A20) == 0;
        Invalid::unless(possible && ticks < FAR_TICKS, "power management")?;
        Ok(Self { status, enable, control, ticks, reset, port_a })
    }
}
