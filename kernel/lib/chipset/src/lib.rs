//! The board of a guest PC: serial port, interrupt controllers, timers, clock, keyboard controller and power management.
//!
//! [`Chipset`] is the part that a VM has once and [`Lapic`] the part that each vCPU has; both are plain data, take
//! an access with its [`Clock`] and push [`Effect`]s. `machine` carries the effects out; nothing here knows memory, PCI or drivers.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod board;
mod calendar;
mod debug;
mod flash;
mod hotplug;
mod i8042;
mod ioapic;
mod lapic;
mod message;
mod pic;
mod pit;
pub mod ports;
mod power;
mod rtc;
pub mod saved;
mod uart;

pub use board::{CMOS_LOW_RAM_BYTES_MAX, Chipset};
pub use debug::DebugPorts;
pub use flash::Flash;
pub use ioapic::{BASE as IOAPIC_BASE, PINS as IOAPIC_PINS, WINDOW_BYTES as IOAPIC_BYTES};
pub use lapic::{Accepted, Address, GeneralProtection, Lapic, Pending, TIMER_HZ as LAPIC_TIMER_HZ};
pub use message::{DeliveryMode, Message, Target};
pub use pit::HZ as PIT_HZ;
pub use power::{PM_TIMER_BITS, PM_TIMER_HZ, SCI_GSI, SLEEP_TYPE_OFF};

/// The GSI of the serial port COM1 (edge-triggered, active high, as ISA has it).
pub const COM1_GSI: u8 = 4;
/// The GSI that the timer's ISA interrupt 0 reaches: the MADT needs an override from 0 to this.
pub const PIT_GSI: u8 = 2;
/// The GSI of the real-time clock.
pub const RTC_GSI: u8 = 8;

/// The shortest time between two wake-ups that a periodic timer asks for.
///
/// A guest can program a period of a nanosecond; its interrupts coalesce anyway, and its host must get other work done.
pub const PERIOD_NS_MIN: u64 = 50_000;

/// What a device model asks its machine to do. Effects are carried out in the order in which they were pushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// A byte left the UART.
    Console(u8),
    /// A byte was written to the debug console's port.
    DebugConsole(u8),
    /// An interrupt message, from the IOAPIC or a local APIC's command register, for every local APIC that it addresses
    /// ([`Address::hears`]); for [`DeliveryMode::LowestPriority`] one of them.
    Interrupt(Message),
    /// The output of the 8259 pair changed to this level: [`Lapic::set_lint0`] of the boot CPU.
    PicLine(bool),
    /// A local APIC ended a level-triggered interrupt with this vector: [`Chipset::end_of_interrupt`].
    LevelEoi(u8),
    /// The guest entered S5.
    PowerOff,
    /// The guest pulled its reset line.
    Reset,
    /// The guest ended its VM by the debug exit's port, with this code.
    Exit(u32),
    /// The guest let go of these PCI devices, a bit for each number, that were asked to leave.
    Eject(u32),
}

/// The moment of an access. Neither field ever goes back from one call to the next on one object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Clock {
    /// Machine time, in nanoseconds since the machine was made.
    pub ns: u64,
    /// What the guest's RDTSC would give.
    pub tsc: u64,
}

/// `value * numerator / denominator`, rounded down, for factors whose product with `denominator` fits 64 bits.
/// The quotient may wrap, as a free-running counter does.
const fn scale(value: u64, numerator: u64, denominator: u64) -> u64 {
    let whole = (value / denominator).wrapping_mul(numerator);
    whole.wrapping_add(value % denominator * numerator / denominator)
}

/// As [`scale`], rounded up.
const fn scale_up(value: u64, numerator: u64, denominator: u64) -> u64 {
    let whole = (value / denominator).wrapping_mul(numerator);
    whole.wrapping_add((value % denominator * numerator).div_ceil(denominator))
}

/// When a periodic timer expires after `end`, which is not after `now`: the first multiple of `period` (not zero) past
/// `now`, and for a period shorter than `period_min` so many further that wake-ups are that far apart.
const fn next_expiry(end: u64, period: u64, now: u64, period_min: u64) -> u64 {
    let missed = (now - end) / period + 1;
    let skipped = period_min.saturating_sub(period).div_ceil(period);
    end.saturating_add(missed.saturating_add(skipped).saturating_mul(period))
}

#[cfg(test)]
mod tests;
