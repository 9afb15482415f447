//! When a CPU's timer interrupts it.
//!
//! The type is [`Alarm`]. Most that ask want the moment that is set already, and where Pollux runs as a guest itself, to
//! set a timer is an exit.

use crate::time::Clock;
use interrupts::local_apic;

/// The timer of the CPU whose loop has it.
#[derive(Default)]
pub struct Alarm {
    /// What it is set to; nothing, once it rang.
    set_ns: Option<u64>,
}

impl Alarm {
    /// Has it ring then, and no more when it was to ring before.
    pub fn set(&mut self, clock: &Clock, ns: u64) {
        if self.set_ns != Some(ns) {
            local_apic::arm_timer(clock.tsc_at(ns));
            self.set_ns = Some(ns);
        }
    }

    /// Notes its interrupt.
    pub fn rang(&mut self) {
        self.set_ns = None;
    }
}
