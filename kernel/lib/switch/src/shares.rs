//! How much of a card's transmit queue is whose.
//!
//! The type is [`Shares`]. The host and its guests send through one queue; whoever fills it would keep the other out for
//! good. So neither has more than its share of it while the other sends, and finds room however much the other sends.

use crate::FRAME_BYTES_MAX;
use alloc::collections::VecDeque;

/// Who sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// The management address: moves, too.
    Host,
    /// Any guest.
    Guest,
}

/// What one of the two leaves to the other: a quarter.
const OTHERS_PART: usize = 4;

/// What is in a queue, in frames of the usual size.
#[derive(Default)]
pub struct Shares {
    /// In the order of sending: who, and how much.
    sent: VecDeque<(Sender, usize)>,
    of_host: usize,
    of_guests: usize,
    /// The host has frames for which it found no room.
    host_waits: bool,
}

impl Shares {
    /// Notes whether the host has frames for which it found no room.
    pub fn note_host(&mut self, waits: bool) {
        self.host_waits = waits;
    }

    /// What `sender` may add to a queue that has `room` now, and `room_max` when it is empty.
    pub fn room(&mut self, sender: Sender, room: usize, room_max: usize) -> usize {
        self.settle(room_max.saturating_sub(room));
        self.limit(sender, room_max).min(room)
    }

    /// What `sender` may add for all that is known without asking the card.
    pub fn limit(&self, sender: Sender, room_max: usize) -> usize {
        let (own, other_sends) = match sender {
            // Guests wait nowhere, so nobody knows whether one will send.
            Sender::Host => (self.of_host, true),
            Sender::Guest => (self.of_guests, self.host_waits || self.of_host > 0),
        };
        let others = if other_sends { room_max / OTHERS_PART } else { 0 };
        (room_max - others).saturating_sub(own)
    }

    /// Notes a frame of so many bytes that went into the queue.
    pub fn sent(&mut self, sender: Sender, bytes: usize) {
        let frames = bytes.div_ceil(FRAME_BYTES_MAX);
        self.sent.push_back((sender, frames));
        *self.own(sender) += frames;
    }

    /// Forgets what has left: `waiting` frames are in the queue, the last that were sent.
    fn settle(&mut self, waiting: usize) {
        while let Some(&(sender, frames)) = self.sent.front()
            && self.of_host + self.of_guests - frames >= waiting
        {
            self.sent.pop_front();
            *self.own(sender) -= frames;
        }
    }

    fn own(&mut self, sender: Sender) -> &mut usize {
        match sender {
            Sender::Host => &mut self.of_host,
            Sender::Guest => &mut self.of_guests,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue of 64 frames, whose sender takes what it may.
    const MAX: usize = 64;

    fn fill(shares: &mut Shares, sender: Sender, waiting: &mut usize) -> usize {
        let room = shares.room(sender, MAX - *waiting, MAX);
        (0..room).for_each(|_| shares.sent(sender, 60));
        *waiting += room;
        if sender == Sender::Host {
            shares.note_host(room == 0);
        }
        room
    }

    #[test]
    fn nobody_is_kept_out_by_who_always_sends() {
        for (greedy, other) in [(Sender::Host, Sender::Guest), (Sender::Guest, Sender::Host)] {
            let (mut shares, mut waiting) = (Shares::default(), 0);
            // One leaves after the other, and the greedy one is always the first to look.
            let mut got = 0;
            for _ in 0..10 * MAX {
                fill(&mut shares, greedy, &mut waiting);
                got += fill(&mut shares, other, &mut waiting);
                waiting -= 1;
            }
            assert!(got > MAX, "only {got} of {} in turn", 10 * MAX);
        }
    }

    #[test]
    fn guests_have_all_of_it_while_the_host_has_nothing_to_send() {
        let (mut shares, mut waiting) = (Shares::default(), 0);
        assert_eq!(fill(&mut shares, Sender::Guest, &mut waiting), 64);
        assert_eq!(fill(&mut shares, Sender::Host, &mut waiting), 0, "it comes too late");
        waiting -= 20;
        assert_eq!(fill(&mut shares, Sender::Guest, &mut waiting), 4, "but its quarter is kept from now on");
        assert_eq!(fill(&mut shares, Sender::Host, &mut waiting), 16);
        waiting = 0;
        assert_eq!(fill(&mut shares, Sender::Guest, &mut waiting), 64, "until what it sent has left");
    }

    #[test]
    fn the_host_leaves_a_quarter() {
        let (mut shares, mut waiting) = (Shares::default(), 0);
        assert_eq!(fill(&mut shares, Sender::Host, &mut waiting), 48);
        assert_eq!(fill(&mut shares, Sender::Host, &mut waiting), 0);
        assert_eq!(fill(&mut shares, Sender::Guest, &mut waiting), 16);
    }

    #[test]
    fn a_long_frame_counts_for_what_it_is() {
        let mut shares = Shares::default();
        shares.sent(Sender::Guest, 64 << 10);
        assert_eq!(shares.limit(Sender::Guest, MAX), 64 - 44);
        shares.note_host(true);
        assert_eq!(shares.limit(Sender::Guest, MAX), 48 - 44);
        assert_eq!(shares.room(Sender::Guest, MAX, MAX), 48, "it has left");
        assert_eq!(shares.room(Sender::Guest, usize::MAX, MAX), 48, "a cut wire");
    }

    #[test]
    fn only_what_the_card_still_has_counts() {
        let mut shares = Shares::default();
        (0..30).for_each(|_| shares.sent(Sender::Host, 1500));
        (0..10).for_each(|_| shares.sent(Sender::Guest, 1500));
        assert_eq!(shares.room(Sender::Host, MAX - 20, MAX), 48 - 10, "twenty of the host's have left");
        assert_eq!(shares.room(Sender::Guest, MAX - 5, MAX), 64 - 5, "and all of them");
        assert_eq!(shares.room(Sender::Host, MAX, MAX), 48);
    }
}
