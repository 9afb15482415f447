//! The memory balloon (5.5): pages that the guest gives up and takes back, free pages that it reports, and statistics.
//!
//! [`Balloon`] tells its owner of pages ([`Offer`]) and keeps the chains with what was given up until the owner has let go
//! of the memory ([`Function::finish`]): before that the driver uses none of it. What a page number means, and whether it
//! is memory, is the owner's to judge. Sections are of Virtio 1.2.

mod saved;

pub use saved::Saved;

use crate::chain::{after, gather, total_bytes};
use crate::{Device, Function, Signal};
use addr::{Gpa, PAGE_BYTES};
use alloc::vec::Vec;
use guestmem::GuestMemory;

/// Pages that the guest gives up.
const QUEUE_INFLATE: u16 = 0;
/// Pages that it takes back.
const QUEUE_DEFLATE: u16 = 1;
const QUEUE_STATS: u16 = 2;
/// Free pages. 5.5.2 gives reporting queue 4 and leaves 3 to free page hinting, which is not offered; Linux and QEMU
/// close that gap (their reporting queue is 3 then). Both numbers serve.
const QUEUE_REPORTING: u16 = 3;
const QUEUE_REPORTING_BY_THE_BOOK: u16 = 4;

const QUEUE_SIZE: u16 = 128;
const QUEUES: usize = 5;

/// The driver takes pages back where its system would run out of memory (5.5.3).
const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_PAGE_REPORTING: u64 = 1 << 5;

/// Page numbers are 32 bits wide (5.5.6).
const NUMBER_BYTES: usize = 4;
/// Page numbers looked at in one chain: Linux sends 256. The rest of a longer chain is not looked at.
const NUMBERS_MAX: u64 = 4096;

/// A statistic is a 16-bit tag and a 64-bit value (5.5.6.3).
const STATISTIC_BYTES: usize = 10;
const STATISTICS_MAX: usize = 16;

/// What the driver says about memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offer {
    /// It does without this page, until it takes it back or touches it.
    GivenUp(Gpa),
    /// It has taken this page back.
    TakenBack(Gpa),
    /// It has nothing in these bytes, and uses none of them before [`Function::finish`].
    Free(Gpa, u32),
}

/// What the guest says of its memory (5.5.6.4), in bytes; none where it did not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// Not used for anything.
    pub free_bytes: Option<u64>,
    /// All that it has.
    pub total_bytes: Option<u64>,
    /// What a new program could get without swapping.
    pub available_bytes: Option<u64>,
    /// Caches of files.
    pub cache_bytes: Option<u64>,
}

/// The memory balloon.
#[derive(Clone, Debug)]
pub struct Balloon {
    /// How many pages the guest is to give up.
    target_pages: u32,
    /// How many it says it has given up.
    actual_pages: u32,
    statistics: Statistics,
    /// The buffer in which the driver sent its last statistics: giving it back asks for the next.
    statistics_head: Option<u16>,
    /// Chains with pages that were given up and are not let go of yet: queue and head.
    pending: Vec<(u16, u16)>,
}

impl Balloon {
    /// An empty balloon.
    pub fn new() -> Self {
        Self {
            target_pages: 0,
            actual_pages: 0,
            statistics: Statistics::default(),
            statistics_head: None,
            pending: Vec::with_capacity(usize::from(QUEUE_SIZE)),
        }
    }

    /// How many pages the guest is to give up.
    pub fn target_pages(&self) -> u32 {
        self.target_pages
    }

    /// How many pages the guest says it has given up.
    pub fn actual_pages(&self) -> u32 {
        self.actual_pages
    }

    /// What the guest said last.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Whether chains wait for [`Function::finish`].
    pub fn is_busy(&self) -> bool {
        !self.pending.is_empty()
    }
}

impl Default for Balloon {
    fn default() -> Self {
        Self::new()
    }
}

impl Device for Balloon {
    const TYPE: u16 = 5;
    /// A device of no other class.
    const CLASS: u32 = 0xff_0000;
    /// The two numbers of pages (5.5.4); the rest belongs to features that are not offered.
    const CONFIG_BYTES: u32 = 8;

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; QUEUES]
    }

    fn features(&self) -> u64 {
        F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_REPORTING
    }

    fn set_driver_features(&mut self, _features: u64) {}

    fn config_read(&self, offset: u32, into: &mut [u8]) {
        let image = u64::from(self.actual_pages) << 32 | u64::from(self.target_pages);
        crate::copy_from_image(&image.to_le_bytes(), offset, into);
    }

    fn config_write(&mut self, offset: u32, from: &[u8]) {
        // The driver writes its number, the second one, as a whole.
        if offset == 4
            && let Ok(bytes) = from.try_into()
        {
            self.actual_pages = u32::from_le_bytes(bytes);
        }
    }

    fn reset(&mut self) {
        *self = Self { target_pages: self.target_pages, ..Self::new() };
    }
}

impl Function<Balloon> {
    /// Tells the driver how many pages to give up.
    pub fn set_target(&mut self, pages: u32, signals: &mut Vec<Signal>) {
        if self.device.target_pages != pages {
            self.device.target_pages = pages;
            self.transport.change_config();
            self.transport.flush(signals);
        }
    }

    /// Asks the driver for new statistics, where it has seen to the last question.
    pub fn ask_statistics(&mut self, memory: &GuestMemory, signals: &mut Vec<Signal>) {
        if let Some(head) = self.device.statistics_head.take() {
            self.transport.push_used(memory, QUEUE_STATS.into(), head, 0);
            self.transport.notify(memory, QUEUE_STATS.into(), signals);
        }
    }

    /// Takes what a queue holds and calls `offer` with what it says, in order.
    pub fn take(&mut self, memory: &GuestMemory, queue: u16, signals: &mut Vec<Signal>, mut offer: impl FnMut(Offer)) {
        let index = usize::from(queue);
        for _ in 0..QUEUE_SIZE {
            let Some(head) = self.transport.pop_chain(memory, index, &mut self.chain) else {
                return self.transport.notify(memory, index, signals);
            };
            match queue {
                QUEUE_INFLATE => self.each_page(memory, |page| offer(Offer::GivenUp(page))),
                QUEUE_DEFLATE => {
                    self.each_page(memory, |page| offer(Offer::TakenBack(page)));
                    self.transport.push_used(memory, index, head, 0);
                }
                QUEUE_STATS => self.take_statistics(memory, head),
                _ => self.chain.writable.iter().for_each(|&(at, bytes)| offer(Offer::Free(at, bytes))),
            }
            if matches!(queue, QUEUE_INFLATE | QUEUE_REPORTING | QUEUE_REPORTING_BY_THE_BOOK) {
                self.keep(queue, head);
            }
        }
        self.transport.leave_unfinished(index);
        self.transport.notify(memory, index, signals);
    }

    /// The owner has let go of all that was given up and reported so far: the driver gets its buffers back.
    pub fn finish(&mut self, memory: &GuestMemory, signals: &mut Vec<Signal>) {
        let mut queues = 0u32;
        for index in 0..self.device.pending.len() {
            let (queue, head) = self.device.pending[index];
            self.transport.push_used(memory, queue.into(), head, 0);
            queues |= 1 << queue;
        }
        self.device.pending.clear();
        for queue in (0..QUEUES).filter(|queue| queues & 1 << queue != 0) {
            self.transport.notify(memory, queue, signals);
        }
    }

    /// Keeps a chain until its pages are let go of. A driver that offers more of them than its queues hold is at fault.
    fn keep(&mut self, queue: u16, head: u16) {
        if self.device.pending.len() < QUEUES * usize::from(QUEUE_SIZE) {
            self.device.pending.push((queue, head));
        } else {
            self.transport.fail();
        }
    }

    /// Calls `act` with the address of each page whose number the chain at hand holds.
    fn each_page(&mut self, memory: &GuestMemory, mut act: impl FnMut(Gpa)) {
        let numbers = (total_bytes(&self.chain.readable) / NUMBER_BYTES as u64).min(NUMBERS_MAX);
        let mut bytes = [0; 64 * NUMBER_BYTES];
        let mut done = 0;
        while done < numbers {
            let count = ((numbers - done) as usize).min(bytes.len() / NUMBER_BYTES);
            let bytes = &mut bytes[..count * NUMBER_BYTES];
            if gather(memory, after(&self.chain.readable, done * NUMBER_BYTES as u64), bytes).is_err() {
                return self.transport.fail();
            }
            for number in bytes.as_chunks().0 {
                act(Gpa::new(u64::from(u32::from_le_bytes(*number)) * PAGE_BYTES));
            }
            done += count as u64;
        }
    }

    /// Reads the statistics in the chain at hand and keeps its buffer. The driver has one such buffer; one more is given
    /// back as it came.
    fn take_statistics(&mut self, memory: &GuestMemory, head: u16) {
        let mut bytes = [0; STATISTIC_BYTES * STATISTICS_MAX];
        let Ok(count) = gather(memory, self.chain.readable.iter().copied(), &mut bytes) else {
            return self.transport.fail();
        };
        let statistics = &mut self.device.statistics;
        for entry in bytes[..count].as_chunks::<STATISTIC_BYTES>().0 {
            let [t0, t1, value @ ..] = *entry;
            let value = Some(u64::from_le_bytes(value));
            match u16::from_le_bytes([t0, t1]) {
                4 => statistics.free_bytes = value,
                5 => statistics.total_bytes = value,
                6 => statistics.available_bytes = value,
                7 => statistics.cache_bytes = value,
                _ => {}
            }
        }
        if let Some(old) = self.device.statistics_head.replace(head) {
            self.transport.push_used(memory, QUEUE_STATS.into(), old, 0);
        }
    }
}

#[cfg(test)]
mod tests;
