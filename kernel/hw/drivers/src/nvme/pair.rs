//! A submission queue and the completion queue of the same number (NVM Express Base Specification 2.0, section 3.3; the
//! doorbells: NVMe over PCIe Transport Specification 1.0, section 3.1.2).
//!
//! The main type is [`Pair`]. It checks what the controller writes; who gave each command and what it meant is the
//! business of [`super::lane`] and [`super::controller`].

use super::command::{COMMAND_BYTES, COMPLETION_BYTES, Command, Completion, phase};
use super::{Fault, Port};
use crate::dma::DmaMemory;
use core::sync::atomic::{Ordering, fence};
use virtio_drivers::Hal;

/// Where the doorbells begin.
pub(super) const DOORBELLS_AT: usize = 0x1000;

/// The controller broke the rules of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Broken(pub &'static str);

/// Two queues of equal length.
pub(super) struct Pair<H: Hal> {
    pub id: u16,
    pub entries: u16,
    submissions: DmaMemory<H>,
    completions: DmaMemory<H>,
    /// Of the submission queue: where the next command goes, what the controller was told, and how far it has got.
    tail: u16,
    told_tail: u16,
    fetched: u16,
    /// Of the completion queue: the next entry to look at, what the controller was told, and the phase of new entries.
    head: u16,
    told_head: u16,
    phase: bool,
    tail_doorbell: usize,
    head_doorbell: usize,
}

impl<H: Hal> Pair<H> {
    /// Empty queues of `entries` each, at least 2.
    pub(super) fn new(id: u16, entries: u16, doorbell_stride: usize) -> Result<Self, Fault> {
        let count = usize::from(entries);
        let doorbell = DOORBELLS_AT + 2 * usize::from(id) * doorbell_stride;
        Ok(Self {
            id,
            entries,
            submissions: DmaMemory::new(count * COMMAND_BYTES).ok_or(Fault::Memory)?,
            completions: DmaMemory::new(count * COMPLETION_BYTES).ok_or(Fault::Memory)?,
            tail: 0,
            told_tail: 0,
            fetched: 0,
            head: 0,
            told_head: 0,
            phase: true,
            tail_doorbell: doorbell,
            head_doorbell: doorbell + doorbell_stride,
        })
    }

    /// The device's addresses of the submission and the completion queue.
    pub(super) fn addresses(&self) -> (u64, u64) {
        (self.submissions.physical(0), self.completions.physical(0))
    }

    /// Empties both; only while the controller is stopped.
    pub(super) fn clear(&mut self) {
        (self.tail, self.told_tail, self.fetched) = (0, 0, 0);
        (self.head, self.told_head, self.phase) = (0, 0, true);
        for entry in 0..usize::from(self.entries) {
            self.completions.store(entry * COMPLETION_BYTES + 12, 0_u32);
        }
    }

    /// Adds a command. The caller has at most `entries - 1` without a completion, so there is room.
    pub(super) fn push(&mut self, command: &Command) {
        let at = usize::from(self.tail) * COMMAND_BYTES;
        for (index, word) in command.0.iter().enumerate() {
            self.submissions.store(at + 4 * index, *word);
        }
        self.tail = self.after(self.tail);
    }

    /// Tells the controller of new commands, and how far its completions were taken.
    pub(super) fn ring(&mut self, port: &mut impl Port) {
        self.acknowledge(port);
        if self.told_tail != self.tail {
            // Commands, lists and copied data are in memory before the controller is told of them.
            fence(Ordering::Release);
            self.told_tail = self.tail;
            port.write(self.tail_doorbell, self.tail.into());
        }
    }

    /// Tells the controller how far its completions were taken.
    pub(super) fn acknowledge(&mut self, port: &mut impl Port) {
        if self.told_head != self.head {
            self.told_head = self.head;
            port.write(self.head_doorbell, self.head.into());
        }
    }

    /// The next completion.
    pub(super) fn pop(&mut self) -> Result<Option<Completion>, Broken> {
        let at = usize::from(self.head) * COMPLETION_BYTES;
        let word3: u32 = self.completions.load(at + 12);
        if phase(word3) != self.phase {
            return Ok(None);
        }
        // The rest of the entry, and the data it speaks of, were written before the phase tag.
        fence(Ordering::Acquire);
        let completion = Completion::new(self.completions.load(at), self.completions.load(at + 8), word3);
        if completion.queue != self.id {
            return Err(Broken("it completed a command of another queue"));
        }
        let distance = |from: u16, to: u16| if to >= from { to - from } else { self.entries - from + to };
        let is_ahead = completion.head < self.entries
            && distance(self.fetched, completion.head) <= distance(self.fetched, self.told_tail);
        if !is_ahead {
            return Err(Broken("it took commands that nobody gave"));
        }
        self.fetched = completion.head;
        self.head = self.after(self.head);
        self.phase ^= self.head == 0;
        Ok(Some(completion))
    }

    fn after(&self, index: u16) -> u16 {
        if index + 1 == self.entries { 0 } else { index + 1 }
    }
}
