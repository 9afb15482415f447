//! Exits counted by kind.
//!
//! [`Counters`] belongs to one vCPU, which records every exit in it; the shell's `stat` adds those of a VM up.

/// How often one kind of exit happened and what it cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counter {
    /// How many there were.
    pub count: u64,
    /// The TSC cycles from each exit to the entry after it, summed.
    pub cycles: u64,
}

impl Counter {
    fn add(&mut self, count: u64, cycles: u64) {
        self.count = self.count.wrapping_add(count);
        self.cycles = self.cycles.wrapping_add(cycles);
    }
}

/// A [`Counter`] for each of `KINDS` kinds of exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counters<const KINDS: usize> {
    counters: [Counter; KINDS],
}

impl<const KINDS: usize> Counters<KINDS> {
    /// All zero.
    pub const fn new() -> Self {
        Self { counters: [Counter { count: 0, cycles: 0 }; KINDS] }
    }

    /// Counts one exit that was dealt with in `cycles`.
    ///
    /// # Panics
    /// When `kind` is not below `KINDS`.
    #[inline]
    pub fn record(&mut self, kind: usize, cycles: u64) {
        self.counters[kind].add(1, cycles);
    }

    /// Adds those of another vCPU.
    pub fn add(&mut self, other: &Self) {
        for (counter, more) in self.counters.iter_mut().zip(&other.counters) {
            counter.add(more.count, more.cycles);
        }
    }

    /// The counters, by kind.
    pub const fn by_kind(&self) -> &[Counter; KINDS] {
        &self.counters
    }

    /// The sum over all kinds.
    pub fn total(&self) -> Counter {
        let mut total = Counter::default();
        for counter in &self.counters {
            total.add(counter.count, counter.cycles);
        }
        total
    }
}

impl<const KINDS: usize> Default for Counters<KINDS> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_sums() {
        let mut first = Counters::<3>::new();
        first.record(0, 100);
        first.record(2, 40);
        first.record(2, 60);
        let mut second = Counters::<3>::new();
        second.record(1, 7);
        second.record(2, u64::MAX);
        first.add(&second);
        assert_eq!(first.by_kind()[0], Counter { count: 1, cycles: 100 });
        assert_eq!(first.by_kind()[1], Counter { count: 1, cycles: 7 });
        assert_eq!(first.by_kind()[2], Counter { count: 3, cycles: 99 });
        assert_eq!(first.total().count, 5);
    }
}
