//! How far apart the clocks on the walls of two hosts are, so that the guest's own does not jump by that.
//!
//! [`Comparison`] asks a few times, one question after the other, and believes the answer that came quickest: what a
//! question and its answer take is split in half, and the shorter it was, the less that can be wrong. Clocks drift apart,
//! so it asks again from time to time, and what is old counts less. The driver carries questions and answers
//! ([`crate::wire::Message::Clock`], [`crate::wire::Message::Time`]).

/// How often it asks in a row.
const QUESTIONS: u32 = 6;
/// Clocks are taken to drift apart by one part in so many: 500 ppm, as NTP does (RFC 5905, appendix A.1.1).
const DRIFT_PART: u64 = 2000;

/// The comparison of another host's clock with this host's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Comparison {
    /// Of this row.
    asked: u32,
    /// When the open question was asked.
    asked_ns: Option<u64>,
    answered: u32,
    best: Option<Answer>,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    at_ns: u64,
    /// How long it was under way, with its question.
    way_ns: u64,
    ahead_ns: i64,
}

impl Answer {
    /// By how much it may be wrong.
    fn error_ns(&self, now_ns: u64) -> u64 {
        self.way_ns / 2 + now_ns.saturating_sub(self.at_ns) / DRIFT_PART
    }
}

impl Comparison {
    /// Begins another row of questions.
    pub fn renew(&mut self) {
        self.asked = 0;
    }

    /// The next question, at this moment; none while one is open, or the row is at its end.
    pub fn ask(&mut self, now_ns: u64) -> Option<u64> {
        if self.asked_ns.is_some() || self.asked == QUESTIONS {
            return None;
        }
        self.asked += 1;
        self.asked_ns = Some(now_ns);
        self.asked_ns
    }

    /// The other host's UTC, in answer to the question asked then. `utc_ns` is this host's now.
    pub fn answered(&mut self, asked_ns: u64, other_utc_ns: u64, now_ns: u64, utc_ns: u64) {
        if self.asked_ns != Some(asked_ns) {
            return;
        }
        self.asked_ns = None;
        self.answered = self.answered.saturating_add(1);
        let way_ns = now_ns.saturating_sub(asked_ns);
        let ahead_ns = other_utc_ns.wrapping_sub(utc_ns.saturating_sub(way_ns / 2)).cast_signed();
        let answer = Answer { at_ns: now_ns, way_ns, ahead_ns };
        if self.best.is_none_or(|best| answer.error_ns(now_ns) <= best.error_ns(now_ns)) {
            self.best = Some(answer);
        }
    }

    /// Whether a first row of questions was answered.
    pub fn is_known(&self) -> bool {
        self.answered >= QUESTIONS
    }

    /// How far the other host's clock is ahead.
    pub fn ahead_ns(&self) -> i64 {
        self.best.map_or(0, |best| best.ahead_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(now_ns: u64) -> u64 {
        1_000_000 + now_ns
    }

    /// Asks at `start_ns` a clock that is `ahead_ns` ahead.
    fn ask(comparison: &mut Comparison, start_ns: u64, ahead_ns: u64, (there_ns, back_ns): (u64, u64)) {
        let asked = comparison.ask(start_ns).unwrap();
        let now = asked + there_ns + back_ns;
        comparison.answered(asked, utc(asked + there_ns) + ahead_ns, now, utc(now));
    }

    #[test]
    fn the_quickest_answer_counts() {
        let mut comparison = Comparison::default();
        for ways in [(40, 10), (3, 3), (90, 2), (8, 20), (7, 7), (30, 90)] {
            assert!(!comparison.is_known());
            ask(&mut comparison, 100, 500, ways);
        }
        assert!(comparison.is_known() && comparison.ask(200).is_none());
        assert_eq!(comparison.ahead_ns(), 500);
    }

    #[test]
    fn what_is_old_counts_less() {
        let mut comparison = Comparison::default();
        ask(&mut comparison, 0, 500, (10, 10));
        ask(&mut comparison, 100, 600, (50, 50));
        assert_eq!(comparison.ahead_ns(), 500);
        comparison.renew();
        ask(&mut comparison, 200_000, 600, (50, 50));
        assert_eq!(comparison.ahead_ns(), 600);
    }

    #[test]
    fn one_question_is_open_at_a_time_and_nonsense_is_a_number() {
        let mut comparison = Comparison::default();
        let asked = comparison.ask(u64::MAX).unwrap();
        assert_eq!(comparison.ask(1), None);
        comparison.answered(5, 7, 0, 0);
        assert_eq!(comparison.ahead_ns(), 0, "nobody asked that");
        comparison.answered(asked, u64::MAX, 0, 0);
        assert_eq!(comparison.ahead_ns(), -1);
    }
}
