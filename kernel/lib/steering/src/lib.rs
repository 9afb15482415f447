//! Where a device's interrupt goes: to the processor whose guest waits for it, so that nobody has to pass it on.
//!
//! The type is [`Steering`], one for each interrupt: it is told for whom the device's news was, and says when the
//! interrupt should be turned to another processor. The kernel's storage asks it; the disks' drivers turn it.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

/// By how much the present processor can be ahead of all others: so many pieces of news for others turn the interrupt.
const LEAD_MAX: u8 = 8;
/// How long an interrupt stays where it was turned to: turning it costs a few accesses to the device.
const REST_NS: u64 = 5_000_000;

/// Where one interrupt goes, at first to processor 0, then by the majority of those whom it was for (the algorithm is Boyer and Moore's).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Steering {
    cpu: usize,
    lead: u8,
    turned_ns: u64,
}

impl Steering {
    /// Notes that news was for a guest on processor `cpu`; the processor to turn the interrupt to, if it is to be turned.
    pub fn note(&mut self, cpu: usize, now_ns: u64) -> Option<usize> {
        if cpu == self.cpu {
            self.lead = (self.lead + 1).min(LEAD_MAX);
            return None;
        }
        self.lead = self.lead.saturating_sub(1);
        if self.lead > 0 || now_ns.saturating_sub(self.turned_ns) < REST_NS {
            return None;
        }
        *self = Self { cpu, lead: 1, turned_ns: now_ns };
        Some(cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER_NS: u64 = 1_000_000_000;

    #[test]
    fn it_goes_to_the_only_one_at_once_and_stays() {
        let mut steering = Steering::default();
        assert_eq!(steering.note(3, LATER_NS), Some(3));
        assert_eq!(steering.note(3, LATER_NS), None);
    }

    #[test]
    fn it_stays_with_the_majority() {
        let mut steering = Steering::default();
        assert_eq!(steering.note(1, LATER_NS), Some(1));
        for round in 1..100 {
            let now_ns = LATER_NS * (1 + round);
            assert_eq!([1, 1, 2].map(|cpu| steering.note(cpu, now_ns)), [None; 3]);
        }
    }

    #[test]
    fn it_follows_one_that_moved_on() {
        let mut steering = Steering::default();
        (0..1000).for_each(|_| assert_eq!(steering.note(0, LATER_NS), None));
        let turned: Vec<_> = (0..u64::from(LEAD_MAX)).map(|_| steering.note(1, 2 * LATER_NS)).collect();
        assert_eq!(turned.iter().flatten().count(), 1);
        assert_eq!(turned.last(), Some(&Some(1)));
    }

    #[test]
    fn it_rests_between_two_turns() {
        let mut steering = Steering::default();
        assert_eq!(steering.note(1, LATER_NS), Some(1));
        let early: Vec<_> = (0..100).filter_map(|_| steering.note(2, LATER_NS + REST_NS - 1)).collect();
        assert_eq!(early, []);
        assert_eq!(steering.note(2, LATER_NS + REST_NS), Some(2));
    }
}
