//! The MC146818 real-time clock with 128 bytes of CMOS memory.
//!
//! The type is [`Rtc`]; `board` drives its line. Source: Motorola MC146818A datasheet (1984); the century byte and the
//! memory sizes stand where PC firmware puts them. The time is computed from machine time, and kept in UTC.

mod saved;

pub use saved::Saved;

use crate::calendar::{DAY_S, DateTime};
use crate::{scale, scale_up};

const NS_PER_SECOND: u64 = 1_000_000_000;
/// The divider chain's frequency, from which the periodic rates come.
const DIVIDER_HZ: u64 = 32_768;
/// How long before an update "update in progress" is shown.
const UPDATE_WARNING_NS: u64 = 244_000;
/// After the divider was held in reset, the first update comes this much later.
const FIRST_UPDATE_NS: u64 = 500_000_000;

/// Addresses in the chip.
mod at {
    pub const SECOND: usize = 0x00;
    pub const SECOND_ALARM: usize = 0x01;
    pub const MINUTE: usize = 0x02;
    pub const MINUTE_ALARM: usize = 0x03;
    pub const HOUR: usize = 0x04;
    pub const HOUR_ALARM: usize = 0x05;
    pub const WEEKDAY: usize = 0x06;
    pub const DAY: usize = 0x07;
    pub const MONTH: usize = 0x08;
    pub const YEAR: usize = 0x09;
    pub const A: usize = 0x0a;
    pub const B: usize = 0x0b;
    pub const C: usize = 0x0c;
    pub const D: usize = 0x0d;
    pub const EQUIPMENT: usize = 0x14;
    pub const BASE_MEMORY: usize = 0x15;
    pub const EXTENDED_MEMORY: usize = 0x17;
    pub const EXTENDED_MEMORY_COPY: usize = 0x30;
    pub const CENTURY: usize = 0x32;
    pub const MEMORY_ABOVE_16M: usize = 0x34;
    pub const MEMORY_ABOVE_4G: usize = 0x5b;
}

mod a {
    pub const UPDATE_IN_PROGRESS: u8 = 0x80;
    /// Both upper divider bits hold the chain in reset.
    pub const DIVIDER_RESET: u8 = 0x60;
    pub const RATE: u8 = 0x0f;
    /// 32768 Hz time base, periodic rate 1024 Hz.
    pub const DEFAULT: u8 = 0x26;
}

mod b {
    pub const SET: u8 = 0x80;
    pub const PERIODIC: u8 = 0x40;
    pub const ALARM: u8 = 0x20;
    pub const UPDATE_ENDED: u8 = 0x10;
    pub const SQUARE_WAVE: u8 = 0x08;
    pub const BINARY: u8 = 0x04;
    pub const HOURS_24: u8 = 0x02;
}

/// Register C has its flags where register B has their enables.
const C_IRQ: u8 = 0x80;
const C_FLAGS: u8 = b::PERIODIC | b::ALARM | b::UPDATE_ENDED;
/// Register D: the battery is good.
const D_VALID: u8 = 0x80;
/// In a 12-hour byte.
const HOUR_PM: u8 = 0x80;
/// Alarm bytes from here on match anything.
const ALARM_ANY: u8 = 0xc0;

/// The clock chip.
#[derive(Clone, Debug)]
pub struct Rtc {
    index: u8,
    /// The memory. The time's bytes are current only while the clock is stopped.
    cmos: [u8; 128],
    flags: u8,
    /// Seconds since 1970 at the moment where [`Self::second`] is zero.
    unix_offset_s: i64,
    /// What to add to machine time so that its whole seconds are the chip's.
    phase_ns: u64,
    /// What the guest's day of the week is ahead of the calendar's.
    weekday_ahead: u8,
    /// The second and the divider tick up to which flags have been set.
    second: u64,
    divider: u64,
    /// The second at which the alarm matches next.
    alarm: Option<u64>,
}

impl Rtc {
    /// A running clock: UTC in nanoseconds since 1970 at machine time zero. RAM sizes are for the memory bytes.
    pub fn new(wall_unix_ns: u64, low_ram_bytes: u64, high_ram_bytes: u64) -> Self {
        let mut cmos = [0; 128];
        cmos[at::A] = a::DEFAULT;
        cmos[at::B] = b::HOURS_24;
        store_memory_sizes(&mut cmos, low_ram_bytes, high_ram_bytes);
        let mut rtc = Self {
            index: 0,
            cmos,
            flags: 0,
            unix_offset_s: (wall_unix_ns / NS_PER_SECOND) as i64,
            phase_ns: wall_unix_ns % NS_PER_SECOND,
            weekday_ahead: 0,
            second: 0,
            divider: 0,
            alarm: None,
        };
        rtc.aim_alarm();
        rtc
    }

    /// RESET#: interrupts are disabled and their flags cleared; time and memory stay.
    pub fn reset(&mut self) {
        self.cmos[at::B] &= !(C_FLAGS | b::SQUARE_WAVE);
        self.flags = 0;
    }

    /// Selects a byte; the highest bit is the board's NMI mask.
    pub fn select(&mut self, value: u8) {
        self.index = value & 0x7f;
    }

    /// Reads the selected byte.
    pub fn read(&mut self, now_ns: u64) -> u8 {
        self.advance(now_ns);
        match usize::from(self.index) {
            at::A => self.cmos[at::A] | if self.is_updating(now_ns) { a::UPDATE_IN_PROGRESS } else { 0 },
            at::C => core::mem::take(&mut self.flags),
            at::D => D_VALID,
            index => {
                if !self.is_stopped() && is_time(index) {
                    self.store_time();
                }
                self.cmos[index]
            }
        }
    }

    /// Writes the selected byte.
    pub fn write(&mut self, value: u8, now_ns: u64) {
        self.advance(now_ns);
        let index = usize::from(self.index);
        match index {
            at::A | at::B => self.write_control(index, value, now_ns),
            at::C | at::D => (),
            _ if is_time(index) && !self.is_stopped() => {
                self.store_time();
                self.cmos[index] = value;
                self.load_time();
            }
            _ => self.cmos[index] = value,
        }
        self.aim_alarm();
        self.signal();
    }

    /// The level of the interrupt output.
    pub fn irq(&self) -> bool {
        self.flags & C_IRQ != 0
    }

    /// Sets the flags of what happened up to now.
    pub fn advance(&mut self, now_ns: u64) {
        let second = self.second_at(now_ns);
        let divider = scale(now_ns, DIVIDER_HZ, NS_PER_SECOND);
        let stopped = self.is_stopped();
        if second > self.second && !stopped {
            self.flags |= b::UPDATE_ENDED;
        }
        if let Some(period) = self.period()
            && divider / period > self.divider / period
        {
            self.flags |= b::PERIODIC;
        }
        self.second = second;
        self.divider = divider;
        if self.alarm.is_some_and(|alarm| alarm <= second) && !stopped {
            self.flags |= b::ALARM;
            self.aim_alarm();
        }
        self.signal();
    }

    /// When a flag that interrupts is set next; `None` while one is.
    pub fn deadline_ns(&self) -> Option<u64> {
        if self.irq() {
            return None;
        }
        let enabled = |bit| self.cmos[at::B] & bit != 0;
        let at_second = |second: u64| second.saturating_mul(NS_PER_SECOND).saturating_sub(self.phase_ns);
        let running = !self.is_stopped();
        let update = (enabled(b::UPDATE_ENDED) && running).then(|| at_second(self.second.saturating_add(1)));
        let alarm = self.alarm.filter(|_| enabled(b::ALARM) && running).map(at_second);
        let periodic = self
            .period()
            .filter(|_| enabled(b::PERIODIC))
            .map(|period| scale_up((self.divider / period + 1) * period, NS_PER_SECOND, DIVIDER_HZ));
        [update, alarm, periodic].into_iter().flatten().min()
    }

    /// Raises the output if a flag meets its enable.
    fn signal(&mut self) {
        if self.flags & self.cmos[at::B] & C_FLAGS != 0 {
            self.flags |= C_IRQ;
        }
    }

    /// Machine time in the chip's whole seconds.
    fn second_at(&self, now_ns: u64) -> u64 {
        now_ns.saturating_add(self.phase_ns) / NS_PER_SECOND
    }

    fn unix_at(&self, second: u64) -> i64 {
        self.unix_offset_s.saturating_add_unsigned(second)
    }

    /// Whether software holds the time: by SET, or by the divider's reset.
    fn is_stopped(&self) -> bool {
        self.cmos[at::B] & b::SET != 0 || self.is_divider_reset()
    }

    fn is_divider_reset(&self) -> bool {
        self.cmos[at::A] & a::DIVIDER_RESET == a::DIVIDER_RESET
    }

    fn is_updating(&self, now_ns: u64) -> bool {
        let into_second = now_ns.saturating_add(self.phase_ns) % NS_PER_SECOND;
        !self.is_stopped() && into_second >= NS_PER_SECOND - UPDATE_WARNING_NS
    }

    /// The periodic interrupt's period in ticks of the divider chain (table 5 of the datasheet).
    fn period(&self) -> Option<u64> {
        let rate = self.cmos[at::A] & a::RATE;
        match rate {
            _ if self.is_divider_reset() => None,
            0 => None,
            // The two fastest rates of this time base repeat the two that follow the others.
            1 | 2 => Some(1 << (rate + 6)),
            _ => Some(1 << (rate - 1)),
        }
    }

    /// Registers A and B: stopping the clock freezes the time into its bytes, letting it go takes it from them.
    fn write_control(&mut self, index: usize, value: u8, now_ns: u64) {
        let was_stopped = self.is_stopped();
        let was_divider_reset = self.is_divider_reset();
        if !was_stopped {
            self.store_time();
        }
        self.cmos[index] = match index {
            at::A => value & !a::UPDATE_IN_PROGRESS,
            _ if value & b::SET != 0 => value & !b::UPDATE_ENDED,
            _ => value,
        };
        if was_divider_reset && !self.is_divider_reset() {
            self.phase_ns = NS_PER_SECOND + FIRST_UPDATE_NS - now_ns % NS_PER_SECOND;
            self.second = self.second_at(now_ns);
        }
        if was_stopped && !self.is_stopped() {
            self.load_time();
        }
    }

    /// Puts the time into its bytes.
    fn store_time(&mut self) {
        let now = DateTime::from_unix(self.unix_at(self.second));
        let weekday = (now.weekday - 1 + self.weekday_ahead) % 7 + 1;
        let year = now.year.rem_euclid(10_000);
        for (index, value) in [
            (at::SECOND, now.second),
            (at::MINUTE, now.minute),
            (at::WEEKDAY, weekday),
            (at::DAY, now.day),
            (at::MONTH, now.month),
            (at::YEAR, (year % 100) as u8),
        ] {
            self.cmos[index] = self.encode(value);
        }
        self.cmos[at::HOUR] = self.encode_hour(now.hour);
        // To the chip this byte is memory, so register B does not change its format.
        self.cmos[at::CENTURY] = to_bcd((year / 100) as u8);
    }

    /// Takes the time from its bytes.
    fn load_time(&mut self) {
        let field = |index: usize| self.decode(self.cmos[index]);
        let weekday = field(at::WEEKDAY);
        let time = DateTime {
            year: i64::from(from_bcd(self.cmos[at::CENTURY])) * 100 + i64::from(field(at::YEAR)),
            month: field(at::MONTH),
            day: field(at::DAY),
            weekday,
            hour: self.decode_hour(self.cmos[at::HOUR]),
            minute: field(at::MINUTE),
            second: field(at::SECOND),
        };
        let unix_s = time.to_unix();
        self.unix_offset_s = unix_s.saturating_sub_unsigned(self.second);
        self.weekday_ahead = (weekday % 7 + 14 - DateTime::from_unix(unix_s).weekday) % 7;
    }

    /// Finds the alarm's next match after the present second, within the day that follows.
    fn aim_alarm(&mut self) {
        let now = self.unix_at(self.second).rem_euclid(DAY_S);
        let matches = |index: usize, value: u8| self.cmos[index] >= ALARM_ANY || self.cmos[index] == value;
        // A byte that no second shows would make the search below walk a whole day in steps of one.
        let possible = (0..60).any(|second| matches(at::SECOND_ALARM, self.encode(second)));
        let mut ahead = 1;
        self.alarm = loop {
            if ahead > DAY_S || !possible {
                break None;
            }
            let second_of_day = (now + ahead) % DAY_S;
            let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
            if !matches(at::HOUR_ALARM, self.encode_hour(hour as u8)) {
                ahead += 3600 - second_of_day % 3600;
            } else if !matches(at::MINUTE_ALARM, self.encode(minute as u8)) {
                ahead += 60 - second;
            } else if !matches(at::SECOND_ALARM, self.encode(second as u8)) {
                ahead += 1;
            } else {
                break Some(self.second.saturating_add(ahead as u64));
            }
        };
    }

    fn encode(&self, value: u8) -> u8 {
        if self.cmos[at::B] & b::BINARY != 0 { value } else { to_bcd(value) }
    }

    fn decode(&self, byte: u8) -> u8 {
        if self.cmos[at::B] & b::BINARY != 0 { byte } else { from_bcd(byte) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.cmos[at::B] & b::HOURS_24 != 0 {
            return self.encode(hour);
        }
        let half_day = if hour >= 12 { HOUR_PM } else { 0 };
        half_day | self.encode((hour + 11) % 12 + 1)
    }

    fn decode_hour(&self, byte: u8) -> u8 {
        if self.cmos[at::B] & b::HOURS_24 != 0 {
            return self.decode(byte);
        }
        let half_day = if byte & HOUR_PM != 0 { 12 } else { 0 };
        half_day + self.decode(byte & !HOUR_PM) % 12
    }
}

/// Whether a byte belongs to the time.
fn is_time(index: usize) -> bool {
    matches!(index, at::SECOND | at::MINUTE | at::HOUR | at::WEEKDAY..=at::YEAR | at::CENTURY)
}

fn to_bcd(value: u8) -> u8 {
    ((value / 10 % 10) << 4) | (value % 10)
}

fn from_bcd(byte: u8) -> u8 {
    (byte >> 4) * 10 + (byte & 0xf)
}

/// The memory sizes as firmware keeps them: KiB below 640 KiB and above 1 MiB, 64 KiB units above 16 MiB and above 4 GiB.
fn store_memory_sizes(cmos: &mut [u8; 128], low_ram_bytes: u64, high_ram_bytes: u64) {
    let base_kib = (low_ram_bytes >> 10).min(640) as u16;
    let extended_kib = (low_ram_bytes.saturating_sub(1 << 20) >> 10).min(0xffff) as u16;
    let above_16m = (low_ram_bytes.saturating_sub(16 << 20) >> 16).min(0xffff) as u16;
    let above_4g = (high_ram_bytes >> 16).min(0xff_ffff) as u32;
    // A coprocessor, no diskette drives.
    cmos[at::EQUIPMENT] = 0x02;
    cmos[at::BASE_MEMORY..][..2].copy_from_slice(&base_kib.to_le_bytes());
    cmos[at::EXTENDED_MEMORY..][..2].copy_from_slice(&extended_kib.to_le_bytes());
    cmos[at::EXTENDED_MEMORY_COPY..][..2].copy_from_slice(&extended_kib.to_le_bytes());
    cmos[at::MEMORY_ABOVE_16M..][..2].copy_from_slice(&above_16m.to_le_bytes());
    cmos[at::MEMORY_ABOVE_4G..][..3].copy_from_slice(&above_4g.to_le_bytes()[..3]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-22 13:44:43 UTC, a Sunday.
    const WALL_S: u64 = 1_795_355_083;
    const S: u64 = NS_PER_SECOND;

    fn rtc() -> Rtc {
        Rtc::new(WALL_S * S + 250_000_000, 3 << 30, 1 << 30)
    }

    fn read(rtc: &mut Rtc, index: u8, now_ns: u64) -> u8 {
        rtc.select(index);
        rtc.read(now_ns)
    }

    fn write(rtc: &mut Rtc, index: u8, value: u8, now_ns: u64) {
        rtc.select(index);
        rtc.write(value, now_ns);
    }

    fn time(rtc: &mut Rtc, now_ns: u64) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| read(rtc, index, now_ns))
    }

    #[test]
    fn shows_the_wall_clock_in_every_format() {
        let mut rtc = rtc();
        assert_eq!(time(&mut rtc, 0), [0x20, 0x26, 0x11, 0x22, 1, 0x13, 0x44, 0x43]);
        assert_eq!(time(&mut rtc, 750_000_000)[7], 0x44, "the second ends where the wall's does");
        write(&mut rtc, 0x0b, 0x06, 0);
        assert_eq!(time(&mut rtc, S)[5..], [13, 44, 44]);
        write(&mut rtc, 0x0b, 0x00, 0);
        assert_eq!(read(&mut rtc, 4, S), 0x81, "1 pm");
        assert_eq!(read(&mut rtc, 4, 11 * 3600 * S), 0x12, "midnight");
        assert_eq!((read(&mut rtc, 0x0d, S), read(&mut rtc, 0x0a, S)), (0x80, 0x26));
    }

    #[test]
    fn update_in_progress_before_the_second_ends() {
        let mut rtc = rtc();
        assert_eq!(read(&mut rtc, 0x0a, 749_700_000) & 0x80, 0);
        assert_eq!(read(&mut rtc, 0x0a, 749_800_000) & 0x80, 0x80);
        assert_eq!(read(&mut rtc, 0x0a, 750_000_000) & 0x80, 0);
    }

    /// The order in which Linux sets the clock.
    #[test]
    fn setting_the_time() {
        let mut rtc = rtc();
        let now = 10 * S;
        write(&mut rtc, 0x0b, 0x82, now);
        write(&mut rtc, 0x0a, 0x76, now);
        for (index, value) in [(0x32, 0x20), (9, 0x30), (8, 0x12), (7, 0x31), (6, 7), (4, 0x23), (2, 0x59), (0, 0x59)] {
            write(&mut rtc, index, value, now);
        }
        assert_eq!(time(&mut rtc, 20 * S)[7], 0x59, "it stands");
        write(&mut rtc, 0x0b, 0x02, 20 * S);
        write(&mut rtc, 0x0a, 0x26, 20 * S);
        assert_eq!(time(&mut rtc, 20 * S + 499_000_000), [0x20, 0x30, 0x12, 0x31, 7, 0x23, 0x59, 0x59]);
        assert_eq!(time(&mut rtc, 20 * S + 500_000_000), [0x20, 0x31, 0x01, 0x01, 1, 0, 0, 0]);
    }

    #[test]
    fn update_interrupt() {
        let mut rtc = rtc();
        write(&mut rtc, 0x0b, 0x12, 0);
        assert_eq!(rtc.deadline_ns(), Some(750_000_000));
        rtc.advance(749_999_999);
        assert!(!rtc.irq());
        rtc.advance(750_000_000);
        assert!(rtc.irq());
        assert_eq!(rtc.deadline_ns(), None);
        assert_eq!(read(&mut rtc, 0x0c, 750_000_000) & 0x90, 0x90);
        assert!(!rtc.irq());
        assert_eq!(rtc.deadline_ns(), Some(1_750_000_000));
    }

    #[test]
    fn periodic_interrupt() {
        let mut rtc = rtc();
        write(&mut rtc, 0x0b, 0x42, 0);
        assert_eq!(rtc.deadline_ns(), Some(976_563), "1024 Hz");
        rtc.advance(976_563);
        assert_eq!(read(&mut rtc, 0x0c, 976_563), 0xc0);
        for (rate, hz) in [(1, 256), (2, 128), (3, 8192), (15, 2)] {
            let mut rtc = self::rtc();
            write(&mut rtc, 0x0a, 0x20 | rate, 0);
            write(&mut rtc, 0x0b, 0x42, 0);
            assert_eq!(rtc.deadline_ns(), Some(S.div_ceil(hz)), "rate {rate}");
        }
        write(&mut rtc, 0x0a, 0x20, S);
        assert_eq!(rtc.deadline_ns(), None);
    }

    #[test]
    fn alarm() {
        let mut rtc = rtc();
        for (index, value) in [(5, 0x14), (3, 0x01), (1, 0x05), (0x0b, 0x22)] {
            write(&mut rtc, index, value, 0);
        }
        let due = (16 * 60 + 22) * S - 250_000_000;
        assert_eq!(rtc.deadline_ns(), Some(due));
        rtc.advance(due);
        assert_eq!(read(&mut rtc, 0x0c, due) & 0xa0, 0xa0);
        assert_eq!(rtc.deadline_ns(), Some(due + 86_400 * S));
        write(&mut rtc, 5, 0xff, due);
        write(&mut rtc, 3, 0xc0, due);
        assert_eq!(rtc.deadline_ns(), Some(due + 60 * S), "every minute");
        write(&mut rtc, 1, 0x61, due);
        assert_eq!(rtc.deadline_ns(), None, "never");
        write(&mut rtc, 1, 0xff, due);
        assert_eq!(rtc.deadline_ns(), Some(due + S), "every second");
        write(&mut rtc, 3, 0x77, due);
        assert_eq!(rtc.deadline_ns(), None);
    }

    #[test]
    fn memory() {
        let mut rtc = rtc();
        assert_eq!([0x15, 0x16].map(|index| read(&mut rtc, index, 0)), [0x80, 0x02]);
        assert_eq!([0x17, 0x18].map(|index| read(&mut rtc, index, 0)), [0xff, 0xff]);
        assert_eq!([0x34, 0x35].map(|index| read(&mut rtc, index, 0)), [0x00, 0xbf]);
        assert_eq!([0x5b, 0x5c, 0x5d].map(|index| read(&mut rtc, index, 0)), [0x00, 0x40, 0x00]);
        write(&mut rtc, 0xff, 0x5a, 0);
        assert_eq!(read(&mut rtc, 0x7f, 0), 0x5a);
    }

    #[test]
    fn reset_keeps_time_and_memory() {
        let mut rtc = rtc();
        write(&mut rtc, 0x0b, 0x72, 0);
        rtc.advance(S);
        rtc.reset();
        assert!(!rtc.irq());
        assert_eq!((rtc.deadline_ns(), read(&mut rtc, 0x0b, S)), (None, 0x02));
        assert_eq!(time(&mut rtc, S)[7], 0x44);
    }
}
