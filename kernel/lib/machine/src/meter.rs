//! What a machine's disks and cards may do in a time, and the queues that wait until they may again.
//!
//! The types are [`IoLimits`], which the host sets, and [`Meter`]. All disks pass one gate, all cards another. A queue
//! that finds its gate shut joins a line, which the board's timers let go on, so that nobody asks again and again. What
//! arrives beyond its limit is lost, as where a line is slow and its switch full: nobody else waits for that, and
//! protocols that share a network send less.

use crate::board::{Board, Slot};
use crate::{Host, Machine};
use alloc::vec::Vec;
use limit::Limit;

/// What comes at once after a rest.
const BURST_NS: u64 = 100_000_000;
/// Who waits waits as long at least: many small requests go on together, not each by a timer of its own.
const WAIT_NS_MIN: u64 = 1_000_000;

/// So much a second at most; nothing says: as much as it can.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IoLimits {
    /// Requests to all disks.
    pub disk_requests: Option<u64>,
    /// Bytes to and from all disks.
    pub disk_bytes: Option<u64>,
    /// Bytes that all cards send.
    pub sent_bytes: Option<u64>,
    /// Bytes that all cards receive.
    pub received_bytes: Option<u64>,
}

/// The gates, and the time.
#[derive(Default)]
pub struct Meter {
    disks: Gate,
    cards: Gate,
    /// What arrives at cards.
    received: Option<Limit>,
    /// Machine time, as last told.
    now_ns: u64,
}

/// What was used, and who waits.
#[derive(Default)]
struct Gate {
    requests: Option<Limit>,
    bytes: Option<Limit>,
    /// Queues, the one that took something last in front.
    line: Vec<(Slot, u16)>,
    /// When the line goes on, in machine time; until then all that come join it.
    due_ns: Option<u64>,
}

impl Machine {
    /// Sets what its disks and cards may do. What was used counts no more, and nobody waits any longer.
    pub fn set_io_limits(&self, limits: IoLimits, host: &mut dyn Host) {
        let mut board = self.enter();
        board.set_io_limits(limits);
        self.leave(&mut board, host);
    }
}

impl Board {
    fn set_io_limits(&mut self, limits: IoLimits) {
        let IoLimits { disk_requests, disk_bytes, sent_bytes, received_bytes } = limits;
        self.resume_waiting(u64::MAX);
        self.meter.disks.set(disk_requests, disk_bytes);
        self.meter.cards.set(None, sent_bytes);
        self.meter.received = received_bytes.map(|per_second| Limit::new(per_second, BURST_NS));
    }

    /// Lets queues go on that have waited until `now_ns`.
    pub fn resume_waiting(&mut self, now_ns: u64) {
        let mut meter = core::mem::take(&mut self.meter);
        for gate in [&mut meter.disks, &mut meter.cards] {
            gate.resume(now_ns, |slot, queue| self.kick_again(slot, queue));
        }
        self.meter = meter;
    }
}

impl Meter {
    /// Whether there is any limit: else nobody needs to tell the time.
    pub fn is_on(&self) -> bool {
        self.disks.is_on() || self.cards.is_on()
    }

    /// Tells the time.
    pub fn set_now_ns(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// Whether a disk or card may take a request off this queue; if not, the queue waits.
    pub fn may_take(&mut self, slot: Slot, queue: u16) -> bool {
        let now_ns = self.now_ns;
        self.gate(slot).may_take(slot, queue, now_ns)
    }

    /// It took one, of so many bytes.
    pub fn took(&mut self, slot: Slot, bytes: u64) {
        let now_ns = self.now_ns;
        let gate = self.gate(slot);
        gate.requests.iter_mut().for_each(|limit| limit.take(1, now_ns));
        gate.bytes.iter_mut().for_each(|limit| limit.take(bytes, now_ns));
    }

    /// Whether a frame may arrive.
    pub fn may_receive(&self, now_ns: u64) -> bool {
        self.received.is_none_or(|limit| limit.due_ns(now_ns).is_none())
    }

    /// Counts a frame that arrived.
    pub fn note_received(&mut self, bytes: u64, now_ns: u64) {
        if let Some(limit) = &mut self.received {
            limit.take(bytes, now_ns);
        }
    }

    /// When queues that wait go on, in machine time.
    pub fn due_ns(&self) -> Option<u64> {
        self.disks.due_ns.into_iter().chain(self.cards.due_ns).min()
    }

    /// The queues that wait.
    pub fn waiting(&self) -> impl Iterator<Item = &(Slot, u16)> {
        self.disks.line.iter().chain(&self.cards.line)
    }

    /// None of a function's queues waits any more.
    pub fn forget(&mut self, slot: Slot) {
        self.gate(slot).line.retain(|(waiting, _)| *waiting != slot);
    }

    fn gate(&mut self, slot: Slot) -> &mut Gate {
        match slot {
            Slot::Card(_) => &mut self.cards,
            Slot::Disk(_) | Slot::Console | Slot::Rng | Slot::Balloon => &mut self.disks,
        }
    }
}

impl Gate {
    fn set(&mut self, requests: Option<u64>, bytes: Option<u64>) {
        let limit = |per_second: Option<u64>| per_second.map(|per_second| Limit::new(per_second, BURST_NS));
        (self.requests, self.bytes) = (limit(requests), limit(bytes));
    }

    fn is_on(&self) -> bool {
        self.requests.is_some() || self.bytes.is_some()
    }

    fn may_take(&mut self, slot: Slot, queue: u16, now_ns: u64) -> bool {
        if self.due_ns.is_none() {
            let limits = self.requests.iter().chain(&self.bytes);
            let Some(due_ns) = limits.filter_map(|limit| limit.due_ns(now_ns)).max() else { return true };
            self.due_ns = Some(due_ns.max(now_ns.saturating_add(WAIT_NS_MIN)));
        }
        if !self.line.contains(&(slot, queue)) {
            self.line.push((slot, queue));
        }
        false
    }

    /// Lets the line go on if it is time. Who took something last goes last: else it would take all again.
    fn resume(&mut self, now_ns: u64, mut kick: impl FnMut(Slot, u16)) {
        if self.due_ns.is_none_or(|due_ns| due_ns > now_ns) {
            return;
        }
        self.due_ns = None;
        if !self.line.is_empty() {
            self.line.rotate_left(1);
        }
        // The last to be kicked is looked at first.
        self.line.drain(..).rev().for_each(|(slot, queue)| kick(slot, queue));
    }
}
