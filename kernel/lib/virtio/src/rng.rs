//! The entropy device (5.4): buffers that want random bytes.
//!
//! [`Rng`] hands out one request at a time; its owner decides where the bytes come from (they are an input of the
//! machine) and when they arrive.

use crate::chain::{scatter, total_bytes};
use crate::{Device, Function, Signal};
use alloc::vec::Vec;
use guestmem::GuestMemory;

const QUEUE: usize = 0;
const QUEUE_SIZE: u16 = 16;

/// The most bytes given to one request; the device may give less than was asked for (5.4.6.2).
pub const FILL_BYTES_MAX: usize = 4096;

/// The entropy device.
#[derive(Clone, Default, Debug)]
pub struct Rng {
    /// The head of the request that waits for its bytes.
    wanted: Option<u16>,
}

impl Rng {
    /// An idle device.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Device for Rng {
    const TYPE: u16 = 4;
    /// A device of no other class.
    const CLASS: u32 = 0xff_0000;
    const CONFIG_BYTES: u32 = 0;

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        0
    }

    fn set_driver_features(&mut self, _features: u64) {}

    fn config_read(&self, _offset: u32, _into: &mut [u8]) {}

    fn reset(&mut self) {
        self.wanted = None;
    }
}

impl Function<Rng> {
    /// The next request: its head, and how many bytes it takes (1..=[`FILL_BYTES_MAX`]). `None` where there is none, or
    /// the last one is not filled yet, or the driver broke the ring; [`Function::flush`] then tells the driver.
    pub fn wanted(&mut self, memory: &GuestMemory) -> Option<(u16, usize)> {
        if self.device.wanted.is_some() {
            return None;
        }
        let head = self.transport.pop_chain(memory, QUEUE, &mut self.chain)?;
        let bytes = total_bytes(&self.chain.writable).min(FILL_BYTES_MAX as u64) as usize;
        if bytes == 0 {
            // 5.4.6.1: a buffer without room is the driver's error.
            self.transport.fail();
            return None;
        }
        self.device.wanted = Some(head);
        Some((head, bytes))
    }

    /// Fills the request at `head` with as many of `bytes` as it takes, and notifies. A head that is not waiting (it
    /// was, before a reset) is ignored.
    pub fn fill(&mut self, memory: &GuestMemory, head: u16, bytes: &[u8], signals: &mut Vec<Signal>) {
        if self.device.wanted == Some(head) {
            self.device.wanted = None;
            self.write(memory, head, &bytes[..bytes.len().min(FILL_BYTES_MAX)]);
        }
        self.transport.notify(memory, QUEUE, signals);
    }

    /// Reads the chain once more: what is not kept needs no saving, and is checked like the first time.
    fn write(&mut self, memory: &GuestMemory, head: u16, bytes: &[u8]) {
        let table = self.transport.table(QUEUE);
        let read = self.chain.read(memory, table, head).is_ok();
        match scatter(memory, self.chain.writable.iter().copied(), bytes) {
            Ok(written) if read => self.transport.push_used(memory, QUEUE, head, written as u32),
            _ => self.transport.fail(),
        }
    }
}

#[cfg(test)]
mod tests;
