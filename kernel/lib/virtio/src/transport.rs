//! What every virtio PCI function has apart from its device: status, features, queues and interrupts (2.1, 4.1).
//!
//! [`Transport`] is used by the devices to take chains and give them back; `common` is the register window on it, and
//! `function` joins it to a device and to configuration space. What goes wrong on a ring ends here: the device then
//! needs a reset (2.1.2), takes no more work and tells the driver at the next chance to signal.

mod saved;

pub use saved::Saved;

use crate::Signal;
use crate::chain::{Chain, Malformed, Table};
use crate::queue::{Broken, NO_VECTOR, Queue};
use alloc::vec::Vec;
use guestmem::GuestMemory;
use pci::{ConfigSpace, MsiX};

/// Device status bits (2.1).
pub(crate) const STATUS_DRIVER_OK: u8 = 4;
pub(crate) const STATUS_FEATURES_OK: u8 = 8;
pub(crate) const STATUS_NEEDS_RESET: u8 = 64;

/// ISR status bits (4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// The common part of a function.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    pub config: ConfigSpace,
    pub msix: MsiX,
    pub status: u8,
    /// The driver's features; settled once FEATURES_OK is set.
    pub features: u64,
    pub offered: u64,
    pub device_feature_select: u32,
    pub driver_feature_select: u32,
    pub queue_select: u16,
    pub config_vector: u16,
    pub generation: u8,
    pub queues: Vec<Queue>,
    /// The reset is not over: the host still works for what was in flight.
    pub reset_held: bool,
    isr: u8,
    /// The level of the interrupt pin.
    line: bool,
    /// The driver is to be told that the configuration (or the device's health) changed.
    config_changed: bool,
    /// Queues (a bit each) whose work was left before its end, to be taken up again.
    unfinished: u32,
}

impl Transport {
    /// A function that was just reset.
    pub fn new(config: ConfigSpace, msix: MsiX, queue_sizes: &[u16], offered: u64) -> Self {
        assert!(queue_sizes.len() <= 32);
        Self {
            config,
            msix,
            status: 0,
            features: 0,
            offered,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            config_vector: NO_VECTOR,
            generation: 0,
            queues: queue_sizes.iter().map(|size| Queue::new(*size)).collect(),
            reset_held: false,
            isr: 0,
            line: false,
            config_changed: false,
            unfinished: 0,
        }
    }

    /// Back to the state before the driver came. MSI-X and the rest of configuration space are PCI's and stay.
    pub fn reset(&mut self, signals: &mut Vec<Signal>) {
        self.status = 0;
        self.features = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        self.config_vector = NO_VECTOR;
        for queue in &mut self.queues {
            *queue = Queue::new(queue.size_max);
        }
        self.config_changed = false;
        self.unfinished = 0;
        self.isr = 0;
        self.update_line(signals);
    }

    /// Whether the driver has everything set up and the device may take work: it also must be allowed to reach
    /// memory (command register, bus master).
    pub fn live(&self) -> bool {
        self.running() && self.config.bus_master()
    }

    /// Takes the head of the next chain on a queue.
    pub fn pop(&mut self, memory: &GuestMemory, queue: usize) -> Option<u16> {
        if !self.live() {
            return None;
        }
        let head = self.queues[queue].pop(memory);
        head.unwrap_or_else(|Broken| {
            self.fail();
            None
        })
    }

    /// Whether there is a chain to take on a queue. If not, the driver will kick when there is.
    pub fn has_next(&mut self, memory: &GuestMemory, queue: usize) -> bool {
        if !self.live() {
            return false;
        }
        let next = self.queues[queue].has_next(memory);
        next.unwrap_or_else(|Broken| {
            self.fail();
            false
        })
    }

    /// Takes the next chain on a queue into `chain`. A malformed one fails the device.
    pub fn pop_chain(&mut self, memory: &GuestMemory, queue: usize, chain: &mut Chain) -> Option<u16> {
        let head = self.pop(memory, queue)?;
        match chain.read(memory, self.table(queue), head) {
            Ok(()) => Some(head),
            Err(Malformed) => {
                self.fail();
                None
            }
        }
    }

    /// Where a queue's descriptors are.
    pub fn table(&self, queue: usize) -> Table {
        self.queues[queue].table()
    }

    /// Gives a chain back, `bytes` bytes of it written. Nothing happens on a device that is not running.
    pub fn push_used(&mut self, memory: &GuestMemory, queue: usize, head: u16, bytes: u32) {
        if self.running() && self.queues[queue].push_used(memory, head, bytes).is_err() {
            self.fail();
        }
    }

    /// Ends a batch: shows the driver what was given back, interrupts it if it wants that, and passes on everything
    /// that waited for a chance to signal.
    pub fn notify(&mut self, memory: &GuestMemory, queue: usize, signals: &mut Vec<Signal>) {
        if self.running() {
            match self.queues[queue].publish(memory) {
                Ok(true) => self.interrupt(self.queues[queue].vector, ISR_QUEUE, signals),
                Ok(false) => {}
                Err(Broken) => self.fail(),
            }
        }
        self.flush(signals);
        if self.unfinished & 1 << queue != 0 {
            self.unfinished &= !(1 << queue);
            signals.push(Signal::Kicked(queue as u16));
        }
    }

    /// Work on this queue stops before its end to stay bounded; the next notify asks the owner to come back.
    pub fn leave_unfinished(&mut self, queue: usize) {
        self.unfinished |= 1 << queue;
    }

    /// The device needs a reset (2.1.2).
    pub fn fail(&mut self) {
        self.status |= STATUS_NEEDS_RESET;
        self.config_changed |= self.status & STATUS_DRIVER_OK != 0;
    }

    /// Device configuration is different from now on; the driver hears of it at the next [`Transport::flush`].
    pub fn change_config(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.config_changed |= self.status & STATUS_DRIVER_OK != 0;
    }

    /// Interrupts the driver if its configuration changed.
    pub fn flush(&mut self, signals: &mut Vec<Signal>) {
        if self.config_changed {
            self.config_changed = false;
            self.interrupt(self.config_vector, ISR_CONFIG, signals);
        }
    }

    /// Reads and so clears the ISR status (4.1.4.5).
    pub fn take_isr(&mut self, signals: &mut Vec<Signal>) -> u8 {
        let isr = core::mem::take(&mut self.isr);
        self.update_line(signals);
        isr
    }

    /// Brings the pin in line with ISR status, MSI-X and the command register.
    pub fn update_line(&mut self, signals: &mut Vec<Signal>) {
        let wanted = self.isr != 0 && !self.msix.enabled();
        self.config.set_interrupt_status(wanted);
        let level = wanted && !self.config.intx_disabled();
        if level != self.line {
            self.line = level;
            signals.push(Signal::Line(level));
        }
    }

    /// The driver says that there is work; a wish that cannot be met is dropped.
    pub fn kick(&self, queue: u16, signals: &mut Vec<Signal>) {
        if self.live() && self.queues.get(usize::from(queue)).is_some_and(|queue| queue.enabled) {
            signals.push(Signal::Kicked(queue));
        }
    }

    /// Has every queue looked at, where kicks may have been dropped.
    pub fn kick_all(&self, signals: &mut Vec<Signal>) {
        for queue in 0..self.queues.len() as u16 {
            self.kick(queue, signals);
        }
    }

    /// Whether the driver said that it is ready, and nothing broke since.
    fn running(&self) -> bool {
        self.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK
    }

    fn interrupt(&mut self, vector: u16, cause: u8, signals: &mut Vec<Signal>) {
        if self.msix.enabled() {
            signals.extend(self.msix.raise(vector).map(Signal::Msi));
        } else {
            self.isr |= cause;
            self.update_line(signals);
        }
    }
}
