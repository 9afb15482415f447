//! The 8254 interval timer and system control port B, through which its third counter is gated and heard.
//!
//! The type is [`Pit`]; counter 0 interrupts, counter 1 once refreshed memory, counter 2 has a gate. Source: Intel 8254
//! datasheet (September 1993). Counts are computed from the time, never stepped.

mod saved;

pub use saved::Saved;

use crate::{PERIOD_NS_MIN, next_expiry, scale, scale_up};

/// The input clock of all three counters.
pub const HZ: u64 = 1_193_182;

const NS_PER_SECOND: u64 = 1_000_000_000;
const PERIOD_TICKS_MIN: u64 = scale_up(PERIOD_NS_MIN, HZ, NS_PER_SECOND);

/// Bits of port B.
mod port_b {
    pub const GATE: u8 = 1;
    pub const WRITABLE: u8 = 0x0f;
    pub const REFRESH: u8 = 0x10;
    pub const OUT: u8 = 0x20;
    /// How long each level of the refresh bit lasts.
    pub const REFRESH_NS: u64 = 15_085;
}

/// The timer.
#[derive(Clone, Debug)]
pub struct Pit {
    counters: [Counter; 3],
    /// The tick at which counter 0's output rises next.
    next_rise: Option<u64>,
    port_b: u8,
}

impl Pit {
    /// A timer that nobody has programmed yet.
    pub fn new() -> Self {
        let counter = |gate| Counter { gate, ..Counter::default() };
        Self { counters: [counter(true), counter(true), counter(false)], next_rise: None, port_b: 0 }
    }

    /// Reads counter `number` (0 to 2).
    pub fn read(&mut self, number: u16, now_ns: u64) -> u8 {
        self.counters[usize::from(number % 3)].read(ticks(now_ns))
    }

    /// Writes counter `number` (0 to 2).
    pub fn write(&mut self, number: u16, value: u8, now_ns: u64) {
        let now = ticks(now_ns);
        self.counters[usize::from(number % 3)].write(value, now);
        if number == 0 {
            self.next_rise = self.counters[0].next_rise(now);
        }
    }

    /// Writes the control word register: programs a counter, latches its count, or reads back several.
    pub fn control(&mut self, value: u8, now_ns: u64) {
        let now = ticks(now_ns);
        match value >> 6 {
            3 => {
                for (number, counter) in self.counters.iter_mut().enumerate() {
                    if value & 2 << number != 0 {
                        counter.read_back(value & 0x20 == 0, value & 0x10 == 0, now);
                    }
                }
            }
            number => {
                self.counters[usize::from(number)].control(value, now);
                if number == 0 && value & 0x30 != 0 {
                    self.next_rise = None;
                }
            }
        }
    }

    /// Reads system control port B.
    pub fn read_port_b(&mut self, now_ns: u64) -> u8 {
        let refresh = if (now_ns / port_b::REFRESH_NS) & 1 != 0 { port_b::REFRESH } else { 0 };
        let out = if self.counters[2].output(ticks(now_ns)) { port_b::OUT } else { 0 };
        self.port_b | refresh | out
    }

    /// Writes system control port B.
    pub fn write_port_b(&mut self, value: u8, now_ns: u64) {
        self.port_b = value & port_b::WRITABLE;
        self.counters[2].set_gate(value & port_b::GATE != 0, ticks(now_ns));
    }

    /// The output of counter 0, which is ISA interrupt 0.
    pub fn output(&mut self, now_ns: u64) -> bool {
        self.counters[0].output(ticks(now_ns))
    }

    /// Whether counter 0's output rose since the last call; several times count once.
    pub fn advance(&mut self, now_ns: u64) -> bool {
        let now = ticks(now_ns);
        let Some(rise) = self.next_rise.filter(|&rise| rise <= now) else { return false };
        let period = self.counters[0].period(now);
        self.next_rise = period.map(|period| next_expiry(rise, period, now, PERIOD_TICKS_MIN));
        true
    }

    /// When it rises next.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.next_rise.map(|rise| scale_up(rise, NS_PER_SECOND, HZ))
    }
}

const fn ticks(ns: u64) -> u64 {
    scale(ns, HZ, NS_PER_SECOND)
}

/// Which bytes of a count a read or write carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Access {
    Low,
    High,
    #[default]
    LowThenHigh,
}

/// What a counter does with its count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Mode {
    #[default]
    TerminalCount,
    OneShot,
    RateGenerator,
    SquareWave,
    SoftwareStrobe,
    HardwareStrobe,
}

impl Mode {
    const fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::RateGenerator,
            3 | 7 => Self::SquareWave,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    const fn is_periodic(self) -> bool {
        matches!(self, Self::RateGenerator | Self::SquareWave)
    }

    /// Whether a rising gate, not the count, starts it.
    const fn is_triggered(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }
}

#[derive(Clone, Debug, Default)]
struct Counter {
    /// The low six bits of the control word, as the status shows them.
    control: u8,
    mode: Mode,
    access: Access,
    bcd: bool,
    gate: bool,
    /// The count that it counts down from, 1 to 65536; zero before the first.
    reload: u64,
    /// A count that waits for the end of the period, at this tick, or for a trigger (`u64::MAX`).
    reload_next: Option<(u64, u64)>,
    /// Ticks counted before `since`; it counts while `since` is there.
    counted: u64,
    since: Option<u64>,
    /// Whether it has been started: by a count, or by the gate in the triggered modes.
    started: bool,
    low_written: Option<u8>,
    high_reads_next: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    fn control(&mut self, value: u8, now: u64) {
        let access = match value >> 4 & 3 {
            0 => return self.read_back(true, false, now),
            1 => Access::Low,
            2 => Access::High,
            _ => Access::LowThenHigh,
        };
        *self = Self {
            control: value & 0x3f,
            mode: Mode::from_bits(value >> 1),
            access,
            bcd: value & 1 != 0,
            gate: self.gate,
            ..Self::default()
        };
    }

    /// Latches what is not latched already.
    fn read_back(&mut self, count: bool, status: bool, now: u64) {
        self.settle(now);
        if status && self.latched_status.is_none() {
            let out = u8::from(self.output(now)) << 7;
            let null_count = u8::from(self.reload == 0 || self.reload_next.is_some()) << 6;
            self.latched_status = Some(out | null_count | self.control);
        }
        if count && self.latched_count.is_none() {
            self.latched_count = Some(self.count(now));
        }
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        self.settle(now);
        let count = self.latched_count.unwrap_or_else(|| self.count(now));
        let high = match self.access {
            Access::Low => false,
            Access::High => true,
            Access::LowThenHigh => {
                self.high_reads_next = !self.high_reads_next;
                !self.high_reads_next
            }
        };
        if high || self.access == Access::Low {
            self.latched_count = None;
        }
        if high { (count >> 8) as u8 } else { count as u8 }
    }

    fn write(&mut self, value: u8, now: u64) {
        self.settle(now);
        let count = match (self.access, self.low_written.take()) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::LowThenHigh, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::LowThenHigh, None) => {
                self.low_written = Some(value);
                // The first byte stops mode 0.
                if self.mode == Mode::TerminalCount {
                    self.started = false;
                    self.since = None;
                }
                return;
            }
        };
        self.load(self.decode(count), now);
    }

    fn load(&mut self, reload: u64, now: u64) {
        if self.started && self.mode.is_periodic() {
            let boundary = now.saturating_add(self.reload - self.elapsed(now) % self.reload);
            self.reload_next = Some((boundary, reload));
        } else if self.started && self.mode.is_triggered() {
            self.reload_next = Some((u64::MAX, reload));
        } else {
            self.reload = reload;
            if !self.mode.is_triggered() {
                self.start(now);
            }
        }
    }

    /// Starts from the full count, which the counter takes over at the next clock.
    fn start(&mut self, now: u64) {
        if let Some((_, reload)) = self.reload_next.take() {
            self.reload = reload;
        }
        self.started = self.reload != 0;
        self.counted = 0;
        self.since = (self.started && self.gate || self.mode.is_triggered()).then(|| now.saturating_add(1));
    }

    fn set_gate(&mut self, gate: bool, now: u64) {
        self.settle(now);
        let rising = gate && !self.gate;
        let falling = !gate && self.gate;
        self.gate = gate;
        let restarts = self.mode.is_triggered() || self.mode.is_periodic();
        if rising && restarts && self.reload != 0 {
            self.start(now);
        } else if rising && self.started {
            self.since = Some(now);
        } else if falling && !self.mode.is_triggered() {
            self.counted = self.elapsed(now);
            self.since = None;
        }
    }

    /// Takes over a waiting count whose moment has come.
    fn settle(&mut self, now: u64) {
        if let Some((boundary, reload)) = self.reload_next
            && boundary <= now
        {
            self.reload_next = None;
            self.reload = reload;
            self.counted = 0;
            self.since = Some(boundary);
        }
    }

    fn elapsed(&self, now: u64) -> u64 {
        self.counted.wrapping_add(self.since.map_or(0, |since| now.saturating_sub(since)))
    }

    /// The counting element, in the counter's number format.
    fn count(&self, now: u64) -> u16 {
        if self.reload == 0 {
            return 0;
        }
        let modulus = if self.bcd { 10_000 } else { 0x1_0000 };
        let elapsed = self.elapsed(now);
        let phase = elapsed % self.reload;
        let count = match self.mode {
            _ if !self.started => self.reload,
            Mode::RateGenerator => self.reload - phase,
            Mode::SquareWave => {
                // Counts by two in each half; an odd count's first half is one clock longer.
                let first_half = self.reload.div_ceil(2);
                let step = if phase < first_half { phase } else { phase - first_half };
                (self.reload & !1).saturating_sub(2 * step)
            }
            // Past the end these go on, all around.
            _ => self.reload.wrapping_sub(elapsed % modulus).wrapping_add(modulus),
        };
        self.encode((count % modulus) as u16)
    }

    fn output(&mut self, now: u64) -> bool {
        self.settle(now);
        if !self.started {
            return self.mode != Mode::TerminalCount;
        }
        let elapsed = self.elapsed(now);
        match self.mode {
            Mode::TerminalCount | Mode::OneShot => elapsed >= self.reload,
            Mode::RateGenerator => !self.gate || elapsed % self.reload != self.reload - 1,
            Mode::SquareWave => !self.gate || elapsed % self.reload < self.reload.div_ceil(2),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != self.reload,
        }
    }

    /// The tick after `now` at which the output rises, while the gate stays high.
    fn next_rise(&self, now: u64) -> Option<u64> {
        let since = self.since.filter(|_| self.started)?;
        let elapsed = self.elapsed(now);
        let end = since.saturating_add(self.reload);
        match self.mode {
            Mode::TerminalCount => Some(end),
            Mode::SoftwareStrobe => Some(end.saturating_add(1)),
            Mode::RateGenerator | Mode::SquareWave => {
                Some(since.saturating_add((elapsed / self.reload + 1).saturating_mul(self.reload)))
            }
            Mode::OneShot | Mode::HardwareStrobe => None,
        }
        .filter(|&rise| rise > now)
    }

    /// The period, in the modes that have one.
    fn period(&mut self, now: u64) -> Option<u64> {
        self.settle(now);
        (self.mode.is_periodic() && self.reload != 0).then_some(self.reload)
    }

    /// A written count: zero is the largest; decimal digits above nine count what they weigh.
    fn decode(&self, raw: u16) -> u64 {
        let raw = u64::from(raw);
        let digit = |shift: u32| raw >> shift & 0xf;
        let (count, largest) = if self.bcd {
            (digit(0) + 10 * digit(4) + 100 * digit(8) + 1000 * digit(12), 10_000)
        } else {
            (raw, 0x1_0000)
        };
        if count == 0 { largest } else { count }
    }

    fn encode(&self, count: u16) -> u16 {
        if !self.bcd {
            return count;
        }
        (count % 10) | ((count / 10 % 10) << 4) | (count / 100 % 10) << 8 | (count / 1000 % 10) << 12
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ns(ticks: u64) -> u64 {
        scale_up(ticks, NS_PER_SECOND, HZ)
    }

    fn programmed(control: u8, count: u16) -> Pit {
        let mut pit = Pit::new();
        pit.control(control, 0);
        let number = u16::from(control >> 6);
        pit.write(number, count as u8, 0);
        pit.write(number, (count >> 8) as u8, 0);
        pit
    }

    fn count(pit: &mut Pit, number: u16, at: u64) -> u16 {
        pit.control((number as u8) << 6, ns(at));
        u16::from_le_bytes([pit.read(number, ns(at)), pit.read(number, ns(at))])
    }

    #[test]
    fn periodic_tick() {
        let mut pit = programmed(0x34, 11932);
        assert_eq!(pit.deadline_ns(), Some(ns(11933)));
        assert!(!pit.advance(ns(11933) - 1));
        assert!(pit.advance(ns(11933)));
        assert!(!pit.advance(ns(11933)));
        assert_eq!(pit.deadline_ns(), Some(ns(1 + 2 * 11932)));
        assert!(pit.advance(ns(10 * 11932)));
        assert_eq!(pit.deadline_ns(), Some(ns(1 + 10 * 11932)), "missed ticks coalesce and the phase stays");
        assert_eq!(count(&mut pit, 0, 1 + 10 * 11932 + 32), 11900);
    }

    #[test]
    fn one_shot_by_mode_4() {
        let mut pit = programmed(0x38, 1000);
        assert!(pit.advance(ns(1002)));
        assert_eq!(pit.deadline_ns(), None);
    }

    #[test]
    fn terminal_count_lowers_then_raises_the_output() {
        let mut pit = programmed(0x30, 100);
        assert!(!pit.output(ns(50)));
        assert!(pit.output(ns(101)));
        assert_eq!(count(&mut pit, 0, 111), 0xfff6, "it counts on, around");
        pit.control(0x30, ns(200));
        assert!(!pit.output(ns(200)));
        assert_eq!(pit.deadline_ns(), None);
    }

    #[test]
    fn a_period_of_one_tick_does_not_ask_for_constant_wakeups() {
        let mut pit = programmed(0x34, 1);
        assert!(pit.advance(ns(5)));
        assert!(pit.deadline_ns().unwrap() >= ns(5) + PERIOD_NS_MIN - 1000);
    }

    /// Linux calibrates the TSC so: counter 2, mode 0, gate by port B, output in bit 5.
    #[test]
    fn calibration_by_the_gated_counter() {
        let mut pit = Pit::new();
        pit.write_port_b(0x01, 0);
        pit.control(0xb0, 0);
        pit.write(2, 0xff, 0);
        pit.write(2, 0x10, 0);
        assert_eq!(pit.read_port_b(ns(0x10ff)) & 0x21, 0x01);
        assert_eq!(pit.read_port_b(ns(0x1100)) & 0x21, 0x21);
        assert_eq!(pit.deadline_ns(), None, "counter 2 has no interrupt");
    }

    #[test]
    fn a_low_gate_suspends_mode_0() {
        let mut pit = Pit::new();
        pit.write_port_b(1, 0);
        pit.control(0xb0, 0);
        pit.write(2, 100, 0);
        pit.write(2, 0, 0);
        pit.write_port_b(0, ns(51));
        assert_eq!(count(&mut pit, 2, 1000), 50);
        pit.write_port_b(1, ns(1000));
        assert_eq!(count(&mut pit, 2, 1020), 30);
        assert_eq!(pit.read_port_b(ns(1050)) & 0x20, 0x20);
    }

    #[test]
    fn a_rising_gate_triggers_mode_1() {
        let mut pit = Pit::new();
        pit.control(0xb2, 0);
        pit.write(2, 100, 0);
        pit.write(2, 0, 0);
        assert_eq!(pit.read_port_b(ns(500)) & 0x20, 0x20);
        pit.write_port_b(1, ns(500));
        assert_eq!(pit.read_port_b(ns(550)) & 0x20, 0);
        assert_eq!(pit.read_port_b(ns(601)) & 0x20, 0x20);
    }

    #[test]
    fn square_wave() {
        let mut pit = programmed(0x36, 101);
        assert!(pit.output(ns(1 + 50)));
        assert!(!pit.output(ns(1 + 51)));
        assert!(pit.output(ns(1 + 101)));
        assert_eq!(count(&mut pit, 0, 1 + 10), 80);
    }

    #[test]
    fn a_new_count_waits_for_the_period() {
        let mut pit = programmed(0x34, 1000);
        pit.write(0, 0xf4, ns(301));
        pit.write(0, 0x01, ns(301));
        assert_eq!(count(&mut pit, 0, 501), 500);
        assert_eq!(pit.deadline_ns(), Some(ns(1001)));
        assert!(pit.advance(ns(1001)));
        assert_eq!(count(&mut pit, 0, 1001), 500);
        assert_eq!(pit.deadline_ns(), Some(ns(1501)));
    }

    #[test]
    fn latch_holds_and_readback_gives_status_first() {
        let mut pit = programmed(0x34, 1000);
        pit.control(0x00, ns(101));
        assert_eq!(pit.read(0, ns(300)), (900u16 & 0xff) as u8);
        assert_eq!(pit.read(0, ns(300)), (900u16 >> 8) as u8);
        pit.control(0xc2, ns(201));
        assert_eq!(pit.read(0, ns(400)), 0xb4);
        assert_eq!(u16::from_le_bytes([pit.read(0, ns(400)), pit.read(0, ns(400))]), 800);
    }

    #[test]
    fn decimal() {
        let mut pit = programmed(0x31, 0x1000);
        assert_eq!(count(&mut pit, 0, 2), 0x0999);
        let mut pit = programmed(0x35, 0);
        assert_eq!(count(&mut pit, 0, 1 + 1), 0x9999);
    }
}
