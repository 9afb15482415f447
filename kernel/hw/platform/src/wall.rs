//! The time of day at start-up, from the real-time clock (MC146818).

use cpu::{port_in8, port_out8};

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
const PM: u8 = 1 << 7;

/// How often the clock is asked whether it is in an update, which takes 2 ms; a question takes 200 ns at the least.
const UPDATE_READS_MAX: u32 = 100_000;

/// Seconds since 1970, taking the clock for UTC; 0 without a clock.
pub fn wall_unix_s() -> u64 {
    // Twice the same outside an update is a time that was not changing.
    let mut last = read();
    for _ in 0..100 {
        let next = read();
        if next == last {
            break;
        }
        last = next;
    }
    last.unwrap_or_else(|| {
        log::warn!("there is no real-time clock: the time of day is wrong");
        0
    })
}

/// The time, or `None` where an update never ends, as a clock that is not there reads.
fn read() -> Option<u64> {
    (0..UPDATE_READS_MAX).find(|_| register(0x0a) & UPDATE_IN_PROGRESS == 0)?;
    let format = register(0x0b);
    let number = |value: u8| u64::from(if format & BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) });
    let [second, minute, day, month, year] = [0x00, 0x02, 0x07, 0x08, 0x09].map(|index| number(register(index)));
    let raw_hour = register(0x04);
    let hour = match (format & HOURS_24 != 0, raw_hour & PM != 0) {
        (true, _) => number(raw_hour),
        (false, pm) => number(raw_hour & !PM) % 12 + if pm { 12 } else { 0 },
    };
    Some((days_since_1970(2000 + year, month, day) * 24 + hour) * 3600 + minute * 60 + second)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, counting years from March so that leap days come last.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month.saturating_sub(3)) };
    let day_of_year = (153 * month + 2) / 5 + day.max(1) - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

fn register(index: u8) -> u8 {
    // SAFETY: the clock's registers; the top bit keeps NMIs as they are after reset, enabled.
    unsafe {
        port_out8(INDEX, index);
        port_in8(DATA)
    }
}
