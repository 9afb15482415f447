//! A vCPU's sleep, and that nobody's wake-up is lost between its last look for mail and the sleep.
//!
//! The type is [`Sleep`]. Its word and the mailbox's are changed in one order that all processors agree on: mail that was
//! posted before the sleep was noted is seen by the sleeper's last look, and who posts after it ends the sleep.

use crate::Machine;
use core::sync::atomic::{AtomicU64, Ordering};

/// Until when a vCPU sleeps.
pub struct Sleep {
    /// 0 when it does not.
    until_ns: AtomicU64,
}

impl Sleep {
    /// Sleep without an end of its own.
    pub const FOR_EVER_NS: u64 = u64::MAX;

    /// Sleep until a moment; 0 is none.
    pub const fn until(ns: u64) -> Self {
        Self { until_ns: AtomicU64::new(ns) }
    }

    /// Lets vCPU `vcpu` of `machine` sleep until a moment, unless mail came meanwhile.
    pub fn begin(&self, machine: &Machine, vcpu: usize, until_ns: Option<u64>) {
        self.note(until_ns);
        if machine.has_mail(vcpu) {
            self.retract();
        }
    }

    /// Ends the sleep; says until when it would have lasted, 0 when there was none. Who posted mail calls this after it.
    pub fn end(&self) -> u64 {
        self.until_ns.swap(0, Ordering::SeqCst)
    }

    /// When it ends by itself; 0 when there is none.
    pub fn ends_at_ns(&self) -> u64 {
        self.until_ns.load(Ordering::Acquire)
    }

    fn note(&self, until_ns: Option<u64>) {
        self.until_ns.store(until_ns.unwrap_or(Self::FOR_EVER_NS), Ordering::SeqCst);
    }

    fn retract(&self) {
        self.until_ns.store(0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::Sleep;
    use crate::mail::{Mail, Mailbox};
    use std::vec::Vec;

    /// What a sleeper and two posters share, and how far each has got. Each step is one atomic access, or one of which the
    /// others see no part.
    struct World {
        mailbox: Mailbox,
        sleep: Sleep,
        /// The sleeper's next step, whether its last look found mail, and what it took in all.
        sleeper: u32,
        saw_mail: bool,
        taken: u32,
        /// Each poster's next step, and whether it has to wake.
        posters: [(u32, bool); 2],
    }

    const SLEEPER: usize = 2;

    impl World {
        fn new() -> Self {
            let (mailbox, sleep) = (Mailbox::default(), Sleep::until(0));
            Self { mailbox, sleep, sleeper: 0, saw_mail: false, taken: 0, posters: [(0, false); 2] }
        }

        fn is_done(&self, actor: usize) -> bool {
            if actor == SLEEPER { self.sleeper == 4 } else { self.posters[actor].0 == 2 }
        }

        fn step(&mut self, actor: usize) {
            if actor == SLEEPER {
                return self.step_sleeper();
            }
            let (step, must_wake) = &mut self.posters[actor];
            match *step {
                0 => {
                    *must_wake = self.mailbox.post(Mail::Vector { vector: 0x40 + actor as u8, level_triggered: false })
                }
                _ if *must_wake => drop(self.sleep.end()),
                _ => {}
            }
            *step += 1;
        }

        fn step_sleeper(&mut self) {
            match self.sleeper {
                0 => self.take(),
                1 => self.sleep.note(None),
                2 => self.saw_mail = self.mailbox.has_mail(),
                _ if self.saw_mail => self.sleep.retract(),
                _ => {}
            }
            self.sleeper += 1;
        }

        fn take(&mut self) {
            if let Some(taken) = self.mailbox.take() {
                taken.each(|_| self.taken += 1);
            }
        }
    }

    /// Every order in which the steps can follow each other.
    fn orders(prefix: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
        let mut world = World::new();
        prefix.iter().for_each(|&actor| world.step(actor));
        let open: Vec<usize> = (0..=SLEEPER).filter(|&actor| !world.is_done(actor)).collect();
        if open.is_empty() {
            all.push(prefix.clone());
        }
        for actor in open {
            prefix.push(actor);
            orders(prefix, all);
            prefix.pop();
        }
    }

    #[test]
    fn no_wake_up_is_lost_in_any_order() {
        let mut all = Vec::new();
        orders(&mut Vec::new(), &mut all);
        assert_eq!(all.len(), 420, "8! / (4! 2! 2!)");
        let (mut slept, mut stayed) = (0, 0);
        for order in &all {
            let mut world = World::new();
            order.iter().for_each(|&actor| world.step(actor));
            let sleeps = world.sleep.ends_at_ns() != 0;
            assert!(!(sleeps && world.mailbox.has_mail()), "it sleeps over mail after {order:?}");
            world.take();
            assert_eq!(world.taken, 2, "mail is lost after {order:?}");
            if sleeps { slept += 1 } else { stayed += 1 }
        }
        assert!(slept > 0 && stayed > 0, "the orders differ in what they lead to");
    }
}
