//! Whose turn it is on a CPU: one vCPU after the other, each for a slice as long as its VM's weight says.
//!
//! The type is [`Turns`], which a CPU's loop asks each time it is free. A vCPU keeps its turn over interruptions. One that
//! slept and has something to do now, or for which another waits, goes before its turn, for a short while; what such
//! vCPUs take they owe to the one whose turn it is, so that nobody starves.

use crate::vm::Queued;

/// How long a slice is for each part of a weight; 10 ms by the usual weight.
const SLICE_NS_PER_WEIGHT: u64 = 100_000;
/// A rest of a slice that is worth nothing any more.
const REST_NS_MIN: u64 = 20_000;
/// How long a vCPU runs at most that goes before its turn.
const EARLY_NS: u64 = 1_000_000;
/// How much time those before their turn may owe.
const DEBT_NS_MAX: u64 = 10_000_000;

/// A CPU's turns.
#[derive(Default)]
pub struct Turns {
    /// Whose turn it is, and how much of it is left.
    turn: Option<(Queued, u64)>,
    /// Somebody waits for this one.
    favoured: Option<Queued>,
    /// What those before their turn owe.
    debt_ns: u64,
}

/// Who runs now, and how long while others want to.
pub struct Slice {
    pub queued: Queued,
    pub ns: u64,
}

impl Turns {
    /// Who runs next, of the ready ones in `queue`, which turns.
    pub fn next(&mut self, queue: &mut [Queued], now_ns: u64) -> Option<Slice> {
        let is_ready = |queued: &Queued| queued.is_ready(now_ns);
        let favoured = self.favoured.take().filter(is_ready);
        if self.debt_ns < DEBT_NS_MAX {
            let woke = |queued: &&Queued| queued.running.vcpus[queued.vcpu].woke() && is_ready(queued);
            let early = favoured.or_else(|| queue.iter().find(woke).cloned());
            if let Some(queued) = early.filter(|queued| !self.is_turn_of(queued)) {
                return Some(Slice { queued, ns: EARLY_NS });
            }
        }
        if let Some((queued, left_ns)) = &self.turn
            && *left_ns > REST_NS_MIN
            && is_ready(queued)
        {
            return Some(Slice { queued: queued.clone(), ns: *left_ns });
        }
        let position = queue.iter().position(is_ready)?;
        queue.rotate_left(position);
        let queued = queue[0].clone();
        queue.rotate_left(1);
        let ns = SLICE_NS_PER_WEIGHT * queued.weight() as u64;
        self.turn = Some((queued.clone(), ns));
        self.debt_ns = 0;
        Some(Slice { queued, ns })
    }

    /// Books how long a vCPU ran.
    pub fn ran(&mut self, queued: &Queued, ns: u64) {
        match &mut self.turn {
            Some((turn, left_ns)) if turn.is(queued) => {
                *left_ns = left_ns.saturating_sub(ns);
                self.debt_ns = self.debt_ns.saturating_sub(ns);
            }
            _ => self.debt_ns = self.debt_ns.saturating_add(ns),
        }
    }

    /// Lets a vCPU of this CPU go before its turn: another waits for it.
    pub fn favour(&mut self, queued: Queued) {
        self.favoured = Some(queued);
    }

    /// Ends a vCPU's turn, if it is its.
    pub fn end(&mut self, queued: &Queued) {
        self.turn = self.turn.take().filter(|(turn, _)| !turn.is(queued));
    }

    /// A vCPU has left this CPU for good.
    pub fn forget(&mut self, queued: &Queued) {
        self.end(queued);
        self.favoured = self.favoured.take().filter(|favoured| !favoured.is(queued));
    }

    fn is_turn_of(&self, queued: &Queued) -> bool {
        self.turn.as_ref().is_some_and(|(turn, _)| turn.is(queued))
    }
}
