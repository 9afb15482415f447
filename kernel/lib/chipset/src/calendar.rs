//! The Gregorian calendar, as far as a clock chip shows it.
//!
//! The type is [`DateTime`]; only `rtc` uses it.

/// Seconds in a day.
pub const DAY_S: i64 = 86_400;

/// Days from 0000-03-01 to 1970-01-01. Years that begin in March have their leap day last.
const EPOCH_DAYS: i64 = 719_468;
/// Days in 400 years.
const CYCLE_DAYS: i64 = 146_097;

/// A moment in UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DateTime {
    /// Gregorian year.
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 1 (Sunday) to 7. Ignored by [`Self::to_unix`].
    pub weekday: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

impl DateTime {
    /// From seconds since 1970.
    pub fn from_unix(unix_s: i64) -> Self {
        let days = unix_s.div_euclid(DAY_S);
        let second_of_day = unix_s.rem_euclid(DAY_S);
        let since_cycle_zero = days.saturating_add(EPOCH_DAYS);
        let day_of_cycle = since_cycle_zero.rem_euclid(CYCLE_DAYS);
        // Leap days so far: every 1461st day, but not the 36525th, but the last of the cycle.
        let leap_free = day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / (CYCLE_DAYS - 1);
        let year_of_cycle = leap_free / 365;
        let day_of_year = day_of_cycle - days_before_year(year_of_cycle);
        // Months from March alternate in a rhythm of 153 days in five months.
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = since_cycle_zero.div_euclid(CYCLE_DAYS) * 400 + year_of_cycle + i64::from(month <= 2);
        Self {
            year,
            month: month as u8,
            day: (day_of_year - days_before_month(month_from_march) + 1) as u8,
            weekday: ((days + 4).rem_euclid(7) + 1) as u8,
            hour: (second_of_day / 3600) as u8,
            minute: (second_of_day / 60 % 60) as u8,
            second: (second_of_day % 60) as u8,
        }
    }

    /// To seconds since 1970. Fields out of range carry over, months are taken into range.
    pub fn to_unix(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let year = self.year - i64::from(month <= 2);
        let month_from_march = (month + 9) % 12;
        let days = year.div_euclid(400) * CYCLE_DAYS
            + days_before_year(year.rem_euclid(400))
            + days_before_month(month_from_march)
            + i64::from(self.day)
            - 1
            - EPOCH_DAYS;
        days * DAY_S + i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }
}

/// Days of a 400-year cycle before its year `year`.
fn days_before_year(year: i64) -> i64 {
    year * 365 + year / 4 - year / 100
}

/// Days of a year before its month, counted from March.
fn days_before_month(month_from_march: i64) -> i64 {
    (153 * month_from_march + 2) / 5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        for (unix_s, date) in [
            (0, (1970, 1, 1, 5)),
            (951_782_400, (2000, 2, 29, 3)),
            (951_868_800, (2000, 3, 1, 4)),
            (1_795_219_200, (2026, 11, 21, 7)),
            (4_107_542_400, (2100, 3, 1, 2)),
            (-1, (1969, 12, 31, 4)),
        ] {
            let at = DateTime::from_unix(unix_s);
            assert_eq!((at.year, at.month, at.day, at.weekday), date, "{unix_s}");
        }
    }

    #[test]
    fn there_and_back() {
        for day in (-800_000..800_000).step_by(13) {
            let unix_s = day * DAY_S + 12_345;
            assert_eq!(DateTime::from_unix(unix_s).to_unix(), unix_s);
        }
    }
}
