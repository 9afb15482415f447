//! The timer of a local APIC: one-shot, periodic and TSC-deadline (section 11.5.4).
//!
//! The type is [`Timer`]; it knows moments, not interrupts: `lapic` owns the LVT entry and says which mode holds.

use crate::{Clock, PERIOD_NS_MIN, next_expiry, scale_up};

/// The input clock before the divider: one tick a nanosecond.
pub const TIMER_HZ: u64 = 1_000_000_000;

/// The timer mode, bits 18:17 of its LVT entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Counts down once.
    OneShot,
    /// Counts down and starts again.
    Periodic,
    /// Waits for the TSC to reach IA32_TSC_DEADLINE.
    TscDeadline,
}

impl Mode {
    /// The mode in an LVT entry; the reserved encoding counts as TSC-deadline.
    pub const fn from_lvt(entry: u32) -> Self {
        match entry >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            _ => Self::TscDeadline,
        }
    }
}

/// The counting state.
#[derive(Clone, Debug)]
pub struct Timer {
    tsc_khz: u64,
    initial: u32,
    divide: u32,
    /// When the count reaches zero next; `None` while it stands at zero. Unused in TSC-deadline mode.
    end_ns: Option<u64>,
    /// IA32_TSC_DEADLINE; zero is disarmed.
    tsc_deadline: u64,
}

impl Timer {
    /// A stopped timer.
    pub fn new(tsc_khz: u64) -> Self {
        Self { tsc_khz: tsc_khz.max(1), initial: 0, divide: 0, end_ns: None, tsc_deadline: 0 }
    }

    /// A timer that goes on where a saved one was; every combination is one that a guest can bring about.
    pub fn restore(tsc_khz: u64, initial: u32, divide: u32, end_ns: Option<u64>, tsc_deadline: u64) -> Self {
        Self { initial, divide, end_ns, tsc_deadline, ..Self::new(tsc_khz) }
    }

    /// Stops the timer and zeroes its registers.
    pub fn reset(&mut self) {
        *self = Self::new(self.tsc_khz);
    }

    /// Stops it because the mode changed to or from TSC-deadline.
    pub fn disarm(&mut self) {
        self.end_ns = None;
        self.tsc_deadline = 0;
    }

    /// The initial-count register.
    pub fn initial(&self) -> u32 {
        self.initial
    }

    /// Writes the initial-count register, which starts the count; zero stops it.
    pub fn set_initial(&mut self, count: u32, now_ns: u64) {
        self.initial = count;
        self.end_ns = (count != 0).then(|| now_ns.saturating_add(self.period_ns()));
    }

    /// The current-count register, at a moment up to which the timer has been advanced.
    pub fn current(&self, now_ns: u64) -> u32 {
        let Some(end_ns) = self.end_ns else { return 0 };
        let left = end_ns.saturating_sub(now_ns).div_ceil(1 << self.shift());
        // A floored period (PERIOD_NS_MIN) ends several of the guest's periods from now.
        match u64::from(self.initial) {
            0 => 0,
            initial => (left.saturating_sub(1) % initial + 1) as u32,
        }
    }

    /// The divide configuration register.
    pub fn divide(&self) -> u32 {
        self.divide
    }

    /// Writes the divide configuration register; the count goes on from where it is at the new rate.
    pub fn set_divide(&mut self, value: u32, now_ns: u64) {
        let left = self.current(now_ns);
        self.divide = value & 0b1011;
        if self.end_ns.is_some() {
            self.end_ns = Some(now_ns.saturating_add(u64::from(left) << self.shift()));
        }
    }

    /// When the count reaches zero next, in machine time.
    pub fn end_ns(&self) -> Option<u64> {
        self.end_ns
    }

    /// IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Arms the deadline; zero disarms it.
    pub fn set_tsc_deadline(&mut self, tsc: u64) {
        self.tsc_deadline = tsc;
    }

    /// Brings the timer up to `clock`; whether it expired at least once on the way.
    pub fn advance(&mut self, mode: Mode, clock: Clock) -> bool {
        if mode == Mode::TscDeadline {
            let expired = self.tsc_deadline != 0 && clock.tsc >= self.tsc_deadline;
            if expired {
                self.tsc_deadline = 0;
            }
            return expired;
        }
        let Some(end_ns) = self.end_ns.filter(|&end_ns| end_ns <= clock.ns) else { return false };
        let periodic = mode == Mode::Periodic && self.initial != 0;
        self.end_ns = periodic.then(|| next_expiry(end_ns, self.period_ns(), clock.ns, PERIOD_NS_MIN));
        true
    }

    /// When the timer expires next.
    pub fn deadline_ns(&self, mode: Mode, clock: Clock) -> Option<u64> {
        if mode != Mode::TscDeadline {
            return self.end_ns;
        }
        let ticks = (self.tsc_deadline != 0).then(|| self.tsc_deadline.saturating_sub(clock.tsc))?;
        Some(clock.ns.saturating_add(self.tsc_ns(ticks)))
    }

    /// Nanoseconds that so many TSC ticks take, rounded up; at most about 292 years.
    fn tsc_ns(&self, ticks: u64) -> u64 {
        if ticks / self.tsc_khz >= u64::MAX / 2_000_000 {
            return u64::MAX / 2;
        }
        scale_up(ticks, 1_000_000, self.tsc_khz)
    }

    fn period_ns(&self) -> u64 {
        u64::from(self.initial) << self.shift()
    }

    /// The divider as a power of two: bits 3, 1 and 0 of the register, with 111b for division by one (figure 11-10).
    fn shift(&self) -> u32 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        (code + 1) & 7
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ns: u64) -> Clock {
        Clock { ns, tsc: ns * 2 }
    }

    fn armed(initial: u32, divide: u32) -> Timer {
        let mut timer = Timer::new(2_000_000);
        timer.set_divide(divide, 0);
        timer.set_initial(initial, 0);
        timer
    }

    #[test]
    fn dividers() {
        for (register, divider) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
            let timer = armed(1000, register);
            assert_eq!(timer.deadline_ns(Mode::OneShot, at(0)), Some(1000 * divider), "register {register}");
        }
    }

    #[test]
    fn one_shot_counts_down_and_stops() {
        let mut timer = armed(1000, 11);
        assert_eq!(timer.current(0), 1000);
        assert_eq!(timer.current(400), 600);
        assert!(!timer.advance(Mode::OneShot, at(999)));
        assert!(timer.advance(Mode::OneShot, at(1000)));
        assert_eq!((timer.current(1000), timer.initial()), (0, 1000));
        assert!(!timer.advance(Mode::OneShot, at(5000)));
        assert_eq!(timer.deadline_ns(Mode::OneShot, at(5000)), None);
    }

    #[test]
    fn periodic_coalesces_and_keeps_phase() {
        let mut timer = armed(1_000_000, 11);
        assert!(timer.advance(Mode::Periodic, at(3_500_000)));
        assert_eq!(timer.current(3_500_000), 500_000);
        assert_eq!(timer.deadline_ns(Mode::Periodic, at(3_500_000)), Some(4_000_000));
    }

    #[test]
    fn a_tiny_period_does_not_ask_for_constant_wakeups() {
        let mut timer = armed(1, 11);
        assert!(timer.advance(Mode::Periodic, at(10)));
        assert!(timer.deadline_ns(Mode::Periodic, at(10)).unwrap() >= 10 + PERIOD_NS_MIN);
        assert_eq!(timer.current(10), 1);
    }

    #[test]
    fn tsc_deadline() {
        let mut timer = Timer::new(2_000_000);
        timer.set_tsc_deadline(1001);
        assert_eq!(timer.deadline_ns(Mode::TscDeadline, at(100)), Some(501));
        assert!(!timer.advance(Mode::TscDeadline, at(500)));
        assert!(timer.advance(Mode::TscDeadline, at(501)));
        assert_eq!(timer.tsc_deadline(), 0);
        timer.set_tsc_deadline(u64::MAX);
        assert!(timer.deadline_ns(Mode::TscDeadline, at(0)).unwrap() > 1 << 60);
    }

    #[test]
    fn a_new_divider_keeps_the_count() {
        let mut timer = armed(1000, 11);
        timer.set_divide(0, 400);
        assert_eq!(timer.current(400), 600);
        assert_eq!(timer.deadline_ns(Mode::OneShot, at(400)), Some(400 + 1200));
    }
}
