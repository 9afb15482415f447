//! The machine's console: one stream of bytes each way, over the UART and the virtio console.
//!
//! Output of both joins. Input goes to the one that spoke last: a guest has its login on one of them. What does not
//! fit the device waits here, bounded.

mod saved;

use crate::board::{Board, Slot};
use crate::output::Outbox;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use chipset::{Chipset, Effect};
use guestmem::GuestMemory;
use virtio::{Function, Signal};

/// How many keys wait at most.
const WAITING_BYTES_MAX: usize = 4096;

/// The console on the board.
pub struct Console {
    pub function: Function<virtio::Console>,
    /// Whether the virtio console spoke last.
    virtio_spoke: bool,
    waiting: VecDeque<u8>,
}

impl Console {
    pub fn new() -> Self {
        Self { function: Function::new(virtio::Console::new()), virtio_spoke: false, waiting: VecDeque::new() }
    }

    /// The UART sent a byte.
    pub fn note_uart_output(&mut self) {
        self.virtio_spoke = false;
    }

    /// The virtio console lost its driver.
    pub fn note_reset(&mut self) {
        self.virtio_spoke = false;
    }

    /// Moves waiting keys into the UART, as far as they fit.
    pub fn feed_uart(&mut self, chipset: &mut Chipset, effects: &mut Vec<Effect>) {
        if self.virtio_spoke || self.waiting.is_empty() {
            return;
        }
        let taken = chipset.console_input(self.waiting.make_contiguous(), effects);
        self.waiting.drain(..taken);
    }

    fn feed_virtio(&mut self, memory: &GuestMemory, signals: &mut Vec<Signal>) {
        if self.virtio_spoke && !self.waiting.is_empty() {
            // All of it at once: the driver announces more room only after it ran out.
            let keys = self.waiting.make_contiguous();
            let taken = self.function.input(memory, keys, signals);
            self.waiting.drain(..taken);
        }
    }
}

impl Board {
    /// Sees to the queues of the virtio console; says whether bytes must leave before it can go on.
    pub(crate) fn pump_console(&mut self, memory: &GuestMemory, outbox: &mut Outbox) -> bool {
        if outbox.is_console_full() {
            return true;
        }
        let console = &mut self.console;
        let before = outbox.console().len();
        console.function.take_output(memory, outbox.console_mut(), &mut self.signals);
        if outbox.console().len() > before {
            console.virtio_spoke = true;
        }
        console.feed_virtio(memory, &mut self.signals);
        self.settle(Slot::Console);
        false
    }

    pub(crate) fn console_input(&mut self, memory: &GuestMemory, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(WAITING_BYTES_MAX - self.console.waiting.len().min(WAITING_BYTES_MAX));
        self.console.waiting.extend(&bytes[..taken]);
        self.console.feed_uart(&mut self.chipset, &mut self.effects);
        self.console.feed_virtio(memory, &mut self.signals);
        self.settle(Slot::Console);
        taken
    }
}
