//! The saved form of the timer. Ticks count from machine time zero.

use super::{Access, Counter, Mode, Pit, port_b};
use crate::saved::FAR_TICKS;
use minicbor::{Decode, Encode};
use state::Invalid;

/// The largest count that a register can hold: BCD digits above nine count what they weigh.
const RELOAD_MAX: u64 = 0x1_0000;

/// Three counters and port B.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    counters: [SavedCounter; 3],
    #[n(1)]
    next_rise: Option<u64>,
    #[n(2)]
    port_b: u8,
}

/// Mode, access and number format are in the control word.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
struct SavedCounter {
    #[n(0)]
    control: u8,
    #[n(1)]
    gate: bool,
    #[n(2)]
    reload: u64,
    #[n(3)]
    reload_next: Option<(u64, u64)>,
    #[n(4)]
    counted: u64,
    #[n(5)]
    since: Option<u64>,
    #[n(6)]
    started: bool,
    #[n(7)]
    low_written: Option<u8>,
    #[n(8)]
    high_reads_next: bool,
    #[n(9)]
    latched_count: Option<u16>,
    #[n(10)]
    latched_status: Option<u8>,
}

impl Pit {
    /// What restores it.
    pub fn save(&self) -> Saved {
        let counters = self.counters.each_ref().map(Counter::save);
        Saved { counters, next_rise: self.next_rise, port_b: self.port_b }
    }

    /// A timer that goes on where the saved one was.
    ///
    /// # Errors
    /// Where no timer can have been there.
    pub fn restore(saved: &Saved) -> Result<Self, Invalid> {
        Invalid::unless(saved.port_b & !port_b::WRITABLE == 0, "the timer's port")?;
        let [first, second, third] = &saved.counters;
        let counters = [Counter::restore(first)?, Counter::restore(second)?, Counter::restore(third)?];
        Ok(Self { counters, next_rise: saved.next_rise, port_b: saved.port_b })
    }
}

impl Counter {
    fn save(&self) -> SavedCounter {
        SavedCounter {
            control: self.control,
            gate: self.gate,
            reload: self.reload,
            reload_next: self.reload_next,
            counted: self.counted,
            since: self.since,
            started: self.started,
            low_written: self.low_written,
            high_reads_next: self.high_reads_next,
            latched_count: self.latched_count,
            latched_status: self.latched_status,
        }
    }

    fn restore(saved: &SavedCounter) -> Result<Self, Invalid> {
        let next = saved.reload_next.is_none_or(|(_, reload)| (1..=RELOAD_MAX).contains(&reload));
        let possible = saved.control <= 0x3f
            && saved.reload <= RELOAD_MAX
            && (!saved.started || saved.reload != 0)
            && saved.counted < FAR_TICKS;
        Invalid::unless(possible && next, "the timer's counters")?;
        Ok(Self {
            control: saved.control,
            mode: Mode::from_bits(saved.control >> 1),
            access: match saved.control >> 4 {
                1 => Access::Low,
                2 => Access::High,
                _ => Access::LowThenHigh,
            },
            bcd: saved.control & 1 != 0,
            gate: saved.gate,
            reload: saved.reload,
            reload_next: saved.reload_next,
            counted: saved.counted,
            since: saved.since,
            started: saved.started,
            low_written: saved.low_written,
            high_reads_next: saved.high_reads_next,
            latched_count: saved.latched_count,
            latched_status: saved.latched_status,
        })
    }
}
