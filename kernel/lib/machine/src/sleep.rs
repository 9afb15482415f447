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
    use crate::mail::{Mailbox, Tell};
    use std::vec::Vec;

    /// What a vCPU and two who interrupt it share, and how far each has got. Each step is one access to what is shared, or
    /// several of which the others see no part.
    struct World {
        mailbox: Mailbox,
        sleep: Sleep,
        /// The vCPU's steps that are left, and how many interrupts it took in all.
        vcpu: &'static [Step],
        taken: u32,
        saw_mail: bool,
        /// Its processor takes what is posted while the guest runs, once the notification is there.
        is_in_guest: bool,
        is_notified: bool,
        posters: [Poster; 2],
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Poster {
        Begins,
        Left(u32),
        Tells(Tell),
        Done,
    }

    /// What the vCPU does.
    #[derive(Clone, Copy, PartialEq)]
    enum Step {
        Begin,
        BePostable,
        Take,
        Enter,
        Leave,
        Look,
        End,
        Note,
        AskForMail,
        RetractIfThere,
    }
    use Step::*;

    const VCPU: usize = 2;
    /// It stays in the guest; it enters again after it looked for mail; it leaves and sleeps, without and with looking.
    const STAYS: &[Step] = &[Begin, BePostable, Take, Enter];
    const ENTERS_AGAIN: &[Step] = &[Begin, BePostable, Take, Look, Begin, BePostable, Take, Enter];
    const SLEEPS: &[Step] = &[Begin, BePostable, Take, Enter, Leave, End, Note, AskForMail, RetractIfThere];
    const LOOKS_AND_SLEEPS: &[Step] =
        &[Begin, BePostable, Take, Enter, Leave, Look, Begin, End, Note, AskForMail, RetractIfThere];

    impl World {
        fn new(vcpu: &'static [Step]) -> Self {
            Self {
                mailbox: Mailbox::default(),
                sleep: Sleep::until(0),
                vcpu,
                taken: 0,
                saw_mail: false,
                is_in_guest: false,
                is_notified: false,
                posters: [Poster::Begins; 2],
            }
        }

        fn after(order: &[usize], vcpu: &'static [Step]) -> Self {
            let mut world = Self::new(vcpu);
            order.iter().for_each(|&actor| world.step(actor));
            world
        }

        fn is_done(&self, actor: usize) -> bool {
            if actor == VCPU { self.vcpu.is_empty() } else { self.posters[actor] == Poster::Done }
        }

        fn step(&mut self, actor: usize) {
            if actor == VCPU {
                return self.step_vcpu();
            }
            self.posters[actor] = match self.posters[actor] {
                Poster::Begins => Poster::Left(self.mailbox.leave(0x40 + actor as u8)),
                Poster::Left(before) => Poster::Tells(self.mailbox.whom_of_posted(before)),
                Poster::Tells(tell) => {
                    self.tell(tell);
                    Poster::Done
                }
                Poster::Done => unreachable!("it is done"),
            };
        }

        fn tell(&mut self, tell: Tell) {
            match tell {
                Tell::Nobody => {}
                // A kick ends what the guest does, too, and the vCPU looks for mail before it goes on.
                Tell::Vcpu if self.sleep.end() == 0 && self.is_in_guest => self.take(),
                Tell::Vcpu => {}
                Tell::Processor => {
                    self.is_notified = true;
                    self.process_posted();
                }
            }
        }

        fn step_vcpu(&mut self) {
            let (&step, left) = self.vcpu.split_first().expect("it is not done");
            self.vcpu = left;
            match step {
                Begin => self.mailbox.begin_running(),
                BePostable => self.mailbox.set_postable(true),
                Take => self.take(),
                Enter => {
                    self.is_in_guest = true;
                    self.process_posted();
                }
                Leave => self.is_in_guest = false,
                Look => self.mailbox.begin_looking(),
                End => self.mailbox.end_running(),
                Note => self.sleep.note(None),
                AskForMail => self.saw_mail = self.mailbox.has_mail(),
                RetractIfThere if self.saw_mail => self.sleep.retract(),
                RetractIfThere => {}
            }
        }

        /// What the processor does with a notification. Outside the guest it waits until the guest runs, or is noted by the
        /// host, which goes for nothing: the test has it wait, and the vCPU must not depend on it.
        fn process_posted(&mut self) {
            if self.is_in_guest && core::mem::take(&mut self.is_notified) {
                self.take();
            }
        }

        fn take(&mut self) {
            if let Some(taken) = self.mailbox.take() {
                taken.each(|_| self.taken += 1);
            }
        }
    }

    /// Every order in which the steps can follow each other.
    fn orders(vcpu: &'static [Step], prefix: &mut Vec<usize>, each: &mut dyn FnMut(&[usize])) {
        let world = World::after(prefix, vcpu);
        let mut is_over = true;
        for actor in (0..=VCPU).filter(|&actor| !world.is_done(actor)) {
            is_over = false;
            prefix.push(actor);
            orders(vcpu, prefix, each);
            prefix.pop();
        }
        if is_over {
            each(prefix);
        }
    }

    /// A vCPU that sleeps in the end, and how many orders of steps there are.
    fn sleeps_over_nothing(vcpu: &'static [Step], all: u32) {
        let (mut count, mut slept, mut stayed) = (0, 0, 0);
        orders(vcpu, &mut Vec::new(), &mut |order| {
            let mut world = World::after(order, vcpu);
            let sleeps = world.sleep.ends_at_ns() != 0;
            assert!(!(sleeps && world.mailbox.has_mail()), "it sleeps over mail after {order:?}");
            world.take();
            assert_eq!(world.taken, 2, "mail is lost after {order:?}");
            count += 1;
            if sleeps { slept += 1 } else { stayed += 1 }
        });
        assert_eq!(count, all);
        assert!(slept > 0 && stayed > 0, "the orders differ in what they lead to");
    }

    /// A vCPU that is in the guest in the end, and how many orders of steps there are.
    fn gets_its_interrupts(vcpu: &'static [Step], all: u32) {
        let mut count = 0;
        orders(vcpu, &mut Vec::new(), &mut |order| {
            assert_eq!(World::after(order, vcpu).taken, 2, "an interrupt waits for an exit after {order:?}");
            count += 1;
        });
        assert_eq!(count, all);
    }

    #[test]
    fn no_wake_up_is_lost_in_any_order() {
        // 15! / (9! 3! 3!)
        sleeps_over_nothing(SLEEPS, 100_100);
    }

    #[test]
    fn no_wake_up_is_lost_where_it_looked_before_it_sleeps() {
        // 17! / (11! 3! 3!)
        sleeps_over_nothing(LOOKS_AND_SLEEPS, 247_520);
    }

    #[test]
    fn a_guest_that_runs_on_gets_its_interrupts_in_any_order() {
        // 10! / (4! 3! 3!) and 14! / (8! 3! 3!)
        gets_its_interrupts(STAYS, 4200);
        gets_its_interrupts(ENTERS_AGAIN, 60_060);
    }
}
