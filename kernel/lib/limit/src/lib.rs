//! How much of something a VM gets in a time: a token bucket without tokens.
//!
//! The type is [`Limit`]: it knows the moment at which all that was taken will have been earned, and so needs no refilling.
//! `machine` meters disks and network cards by it, the kernel time on CPUs. Time is a parameter, in nanoseconds.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

const NS_PER_SECOND: u64 = 1_000_000_000;

/// So much of something a second, some of it in advance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    per_second: u64,
    burst_ns: u64,
    /// When everything taken will have been earned.
    earned_at_ns: u64,
}

impl Limit {
    /// At most `per_second` (at least 1) on average; after a rest, what is earned in `burst_ns` comes at once.
    pub fn new(per_second: u64, burst_ns: u64) -> Self {
        Self { per_second: per_second.max(1), burst_ns, earned_at_ns: 0 }
    }

    /// When something may be taken again; nothing says: now.
    pub fn due_ns(&self, now_ns: u64) -> Option<u64> {
        let due_ns = self.earned_at_ns.saturating_sub(self.burst_ns);
        (due_ns > now_ns).then_some(due_ns)
    }

    /// Takes so much, which may be more than there is: the next waits the longer.
    pub fn take(&mut self, amount: u64, now_ns: u64) {
        let cost_ns = u128::from(amount) * u128::from(NS_PER_SECOND);
        // Rounded up: never more than the limit.
        let cost_ns = cost_ns.div_ceil(u128::from(self.per_second));
        let cost_ns = u64::try_from(cost_ns).unwrap_or(u64::MAX);
        self.earned_at_ns = self.earned_at_ns.max(now_ns).saturating_add(cost_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes pieces of `amount` as soon as each may be, for `ns`; gives how much that was.
    fn taken(limit: &mut Limit, amount: u64, from_ns: u64, ns: u64) -> u64 {
        let (mut now_ns, mut sum) = (from_ns, 0);
        loop {
            now_ns = limit.due_ns(now_ns).unwrap_or(now_ns);
            if now_ns >= from_ns + ns {
                return sum;
            }
            limit.take(amount, now_ns);
            sum += amount;
        }
    }

    #[test]
    fn the_average_holds_whatever_the_pieces() {
        for (per_second, amount) in [(100, 1), (1 << 20, 4096), (1 << 20, 10 << 20), (3, 1), (1 << 40, 1 << 30)] {
            let mut limit = Limit::new(per_second, 50_000_000);
            let sum = taken(&mut limit, amount, 1_000, 20 * NS_PER_SECOND);
            let most = 20 * per_second + per_second / 20 + amount;
            assert!(sum <= most && sum + amount >= 20 * per_second, "{per_second} by {amount}: {sum}");
        }
    }

    #[test]
    fn a_rest_earns_one_burst_and_no_more() {
        let mut limit = Limit::new(1000, 100_000_000);
        taken(&mut limit, 1, 0, NS_PER_SECOND);
        let after_rest = taken(&mut limit, 1, 100 * NS_PER_SECOND, 1);
        assert_eq!(after_rest, 101, "a tenth of a second's worth, and the one that is being earned");
    }

    #[test]
    fn what_is_taken_beyond_is_waited_for() {
        let mut limit = Limit::new(10, 0);
        assert_eq!(limit.due_ns(5), None);
        limit.take(20, 5);
        assert_eq!(limit.due_ns(6), Some(2 * NS_PER_SECOND + 5));
        limit.take(u64::MAX, 6);
        limit.take(u64::MAX, 7);
        assert_eq!(limit.due_ns(8), Some(u64::MAX));
    }
}
