//! Quantities as people read them.

use alloc::{format, string::String};

/// A number of bytes in the largest binary unit that leaves at least 1, with one decimal below 100: "1.5 GiB".
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match UNITS.iter().find(|(shift, _)| bytes >> shift != 0) {
        Some((shift, unit)) => {
            let whole = bytes >> shift;
            let tenths = (((bytes >> (shift - 10)) & 0x3ff) * 10) >> 10;
            decimal(whole, tenths, unit)
        }
        None => format!("{bytes} B"),
    }
}

/// A time: "850 ns", "1.2 ms", "3.4 s", "2 min 5 s", "3 h 20 min", "41 d 6 h".
pub(crate) fn duration(ns: u64) -> String {
    let s = ns / 1_000_000_000;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => decimal(ns / 1_000, ns % 1_000 / 100, "us"),
        1_000_000..1_000_000_000 => decimal(ns / 1_000_000, ns % 1_000_000 / 100_000, "ms"),
        _ if s < 60 => decimal(s, ns % 1_000_000_000 / 100_000_000, "s"),
        _ if s < 3_600 => format!("{} min {} s", s / 60, s % 60),
        _ if s < 86_400 => format!("{} h {} min", s / 3_600, s % 3_600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// A count with a comma between thousands: "12,345".
pub(crate) fn count(count: u64) -> String {
    let digits = format!("{count}");
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A moment as seconds and microseconds: "12.345678".
pub(crate) fn moment(ns: u64) -> String {
    format!("{}.{:06}", ns / 1_000_000_000, ns % 1_000_000_000 / 1_000)
}

/// A rate: "2.4 GHz".
pub(crate) fn hertz(hz: u64) -> String {
    match hz {
        1_000_000_000.. => decimal(hz / 1_000_000_000, hz % 1_000_000_000 / 100_000_000, "GHz"),
        _ => decimal(hz / 1_000_000, hz % 1_000_000 / 100_000, "MHz"),
    }
}

fn decimal(whole: u64, tenths: u64, unit: &str) -> String {
    if whole >= 100 || tenths == 0 { format!("{whole} {unit}") } else { format!("{whole}.{tenths} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_binary_units() {
        for (value, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (256 << 20, "256 MiB"),
            ((1 << 30) - 1, "1023 MiB"),
            (17_100_000_000, "15.9 GiB"),
            (u64::MAX, "16777215 TiB"),
        ] {
            assert_eq!(bytes(value), text);
        }
    }

    #[test]
    fn times_in_what_people_count_in() {
        for (value, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_250, "1.2 us"),
            (3_000_000, "3 ms"),
            (3_450_000_000, "3.4 s"),
            (125_000_000_000, "2 min 5 s"),
            (12_000_000_000_000, "3 h 20 min"),
            (3_564_000_000_000_000, "41 d 6 h"),
            (u64::MAX, "213503 d 23 h"),
        ] {
            assert_eq!(duration(value), text);
        }
    }

    #[test]
    fn counts_and_the_rest() {
        assert_eq!([count(0), count(999), count(1_000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(moment(12_345_678_901), "12.345678");
        assert_eq!([hertz(2_450_000_000), hertz(1_000_000_000), hertz(999_900_000)], ["2.4 GHz", "1 GHz", "999 MHz"]);
    }
}
