//! The saved form of the clock chip.

use super::{C_FLAGS, C_IRQ, FIRST_UPDATE_NS, NS_PER_SECOND, Rtc, a, at};
use crate::saved::FAR_TICKS;
use minicbor::{Decode, Encode};
use state::Invalid;

/// More seconds than any date that the chip shows is away from 1970.
const FAR_S: u64 = 1 << 42;

/// Memory, flags, and how its time follows from machine time.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    index: u8,
    #[cbor(n(1), with = "minicbor::bytes")]
    cmos: [u8; 128],
    #[n(2)]
    flags: u8,
    #[n(3)]
    unix_offset_s: i64,
    #[n(4)]
    phase_ns: u64,
    #[n(5)]
    weekday_ahead: u8,
    #[n(6)]
    second: u64,
    #[n(7)]
    divider: u64,
    #[n(8)]
    alarm: Option<u64>,
}

impl Rtc {
    /// What restores it.
    pub fn save(&self) -> Saved {
        Saved {
            index: self.index,
            cmos: self.cmos,
            flags: self.flags,
            unix_offset_s: self.unix_offset_s,
            phase_ns: self.phase_ns,
            weekday_ahead: self.weekday_ahead,
            second: self.second,
            divider: self.divider,
            alarm: self.alarm,
        }
    }

    /// A clock that goes on where the saved one was.
    ///
    /// # Errors
    /// Where no clock can have been there.
    pub fn restore(saved: &Saved) -> Result<Self, Invalid> {
        let time = saved.unix_offset_s.unsigned_abs() < FAR_S
            && saved.second < FAR_S
            && saved.divider < FAR_TICKS
            && saved.phase_ns <= NS_PER_SECOND + FIRST_UPDATE_NS
            && saved.weekday_ahead < 7;
        let registers = saved.index < 0x80
            && saved.flags & !(C_IRQ | C_FLAGS) == 0
            && saved.cmos[at::A] & a::UPDATE_IN_PROGRESS == 0;
        Invalid::unless(time && registers, "the clock")?;
        Ok(Self {
            index: saved.index,
            cmos: saved.cmos,
            flags: saved.flags,
            unix_offset_s: saved.unix_offset_s,
            phase_ns: saved.phase_ns,
            weekday_ahead: saved.weekday_ahead,
            second: saved.second,
            divider: saved.divider,
            alarm: saved.alarm,
        })
    }
}
