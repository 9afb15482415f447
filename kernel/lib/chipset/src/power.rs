//! ACPI fixed hardware: the PM1a event and control blocks, the power management timer and the two reset ports.
//!
//! The type is [`Power`]; `board` drives the SCI with its level. Source: ACPI 6.5, section 4.8; the reset control
//! register as in the Intel ICH9 datasheet, section 13.7.5. The board is always in ACPI mode: there is no SMI command port.

mod saved;

pub use saved::Saved;

use crate::{Effect, scale, scale_up};
use alloc::vec::Vec;

/// The frequency of the power management timer.
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// How many bits of it count: the FADT must set TMR_VAL_EXT.
pub const PM_TIMER_BITS: u32 = 32;
/// The GSI of the system control interrupt: level-triggered, active high.
pub const SCI_GSI: u8 = 9;
/// SLP_TYPa for S5, the only sleeping state there is.
pub const SLEEP_TYPE_OFF: u8 = 5;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Offsets from the event block, which the control block and the timer follow.
mod offset {
    pub const STATUS: u16 = 0;
    pub const ENABLE: u16 = 2;
    pub const CONTROL: u16 = 4;
    pub const TIMER: u16 = 8;
}
/// Ports that the three blocks span; the two between control and timer read as ones.
pub const BLOCK_PORTS: u16 = 12;

/// Bits of the PM1 event registers.
mod event {
    pub const TIMER: u16 = 1 << 0;
    pub const POWER_BUTTON: u16 = 1 << 8;
    /// The enable bits that exist: timer, global lock, power and sleep button, real-time clock. Drivers read them back.
    pub const ENABLE_WRITABLE: u16 = 0x0721;
}

/// Bits of PM1 control.
mod control {
    pub const SCI_ENABLE: u16 = 1 << 0;
    /// Bus master reload and the sleep type keep what is written; SCI_EN is set for good, the rest is write-only.
    pub const WRITABLE: u16 = 1 << 1 | 7 << 10;
    pub const SLEEP_TYPE_SHIFT: u16 = 10;
    pub const SLEEP_ENABLE: u16 = 1 << 13;
}

/// Bits of the reset control register.
mod reset {
    pub const CPU: u8 = 1 << 2;
    pub const WRITABLE: u8 = 0x0e;
}

/// Bits of system control port A.
mod port_a {
    pub const FAST_RESET: u8 = 1;
    /// The A20 gate: kept, but processors since Haswell have no A20M# input for it to act on.
    pub const A20: u8 = 2;
}

/// The power management registers.
#[derive(Clone, Debug)]
pub struct Power {
    status: u16,
    enable: u16,
    control: u16,
    /// The timer's ticks since power-up, when last looked at.
    ticks: u64,
    reset: u8,
    port_a: u8,
}

impl Power {
    /// The registers after power-up.
    pub fn new() -> Self {
        Self { status: 0, enable: 0, control: 0, ticks: 0, reset: 0, port_a: port_a::A20 }
    }

    /// Reset: as after power-up, but the timer runs on.
    pub fn reset(&mut self) {
        *self = Self { ticks: self.ticks, ..Self::new() };
    }

    /// Reads `size` bytes at an offset from the event block.
    pub fn read(&mut self, offset: u16, size: u8, now_ns: u64) -> u32 {
        self.advance(now_ns);
        let events = u128::from(self.status) | u128::from(self.enable) << 16;
        let control = u128::from(self.control | control::SCI_ENABLE) << (8 * offset::CONTROL) | 0xffff << 48;
        let timer = u128::from(self.ticks as u32) << (8 * offset::TIMER);
        let after = u128::MAX << (8 * BLOCK_PORTS);
        let value = (events | control | timer | after) >> (8 * u32::from(offset.min(15)));
        value as u32 & u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4)))
    }

    /// Writes `size` bytes at an offset from the event block, each byte by its own meaning.
    pub fn write(&mut self, offset: u16, size: u8, value: u32, now_ns: u64, effects: &mut Vec<Effect>) {
        self.advance(now_ns);
        for (at, byte) in (offset..).zip(value.to_le_bytes()).take(usize::from(size)) {
            let bits = u16::from(byte) << (8 * (at & 1));
            let lane = 0xff << (8 * (at & 1));
            match at & !1 {
                offset::STATUS => self.status &= !bits,
                offset::ENABLE => self.enable = (self.enable & !lane | bits) & event::ENABLE_WRITABLE,
                offset::CONTROL => self.write_control(lane, bits, effects),
                // The timer is read-only.
                _ => (),
            }
        }
    }

    /// Whether the system control interrupt is asserted.
    pub fn sci(&self) -> bool {
        self.status & self.enable != 0
    }

    /// The power button was pressed and let go.
    pub fn press_button(&mut self) {
        self.status |= event::POWER_BUTTON;
    }

    /// Brings the timer status up to now: it is set as the timer's highest bit changes.
    pub fn advance(&mut self, now_ns: u64) {
        let ticks = scale(now_ns, PM_TIMER_HZ, NS_PER_SECOND);
        if (ticks ^ self.ticks) >> (PM_TIMER_BITS - 1) != 0 {
            self.status |= event::TIMER;
        }
        self.ticks = ticks;
    }

    /// When the timer status is set next, if that interrupts.
    pub fn deadline_ns(&self) -> Option<u64> {
        let awaited = self.enable & !self.status & event::TIMER != 0;
        let next = ((self.ticks >> (PM_TIMER_BITS - 1)) + 1) << (PM_TIMER_BITS - 1);
        awaited.then(|| scale_up(next, NS_PER_SECOND, PM_TIMER_HZ))
    }

    /// Reads the reset control register.
    pub fn read_reset(&self) -> u8 {
        self.reset
    }

    /// Writes it: as RST_CPU rises, everything resets.
    pub fn write_reset(&mut self, value: u8, effects: &mut Vec<Effect>) {
        if value & !self.reset & reset::CPU != 0 {
            effects.push(Effect::Reset);
        }
        self.reset = value & reset::WRITABLE;
    }

    /// Reads system control port A.
    pub fn read_port_a(&self) -> u8 {
        self.port_a
    }

    /// Writes it: as the fast reset bit rises, the processor resets.
    pub fn write_port_a(&mut self, value: u8, effects: &mut Vec<Effect>) {
        if value & !self.port_a & port_a::FAST_RESET != 0 {
            effects.push(Effect::Reset);
        }
        self.port_a = value & (port_a::FAST_RESET | port_a::A20);
    }

    /// One byte of PM1 control. Sleep types other than S5's are not offered and do nothing.
    fn write_control(&mut self, lane: u16, bits: u16, effects: &mut Vec<Effect>) {
        self.control = (self.control & !lane | bits) & control::WRITABLE;
        let sleep_type = self.control >> control::SLEEP_TYPE_SHIFT & 7;
        if bits & control::SLEEP_ENABLE != 0 && sleep_type == u16::from(SLEEP_TYPE_OFF) {
            effects.push(Effect::PowerOff);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(power: &mut Power, offset: u16, size: u8, value: u32) -> Vec<Effect> {
        let mut effects = Vec::new();
        power.write(offset, size, value, 0, &mut effects);
        effects
    }

    #[test]
    fn timer_counts_and_wraps() {
        let mut power = Power::new();
        assert_eq!(power.read(8, 4, 0), 0);
        assert_eq!(power.read(8, 4, NS_PER_SECOND), 3_579_545);
        assert_eq!(power.read(9, 1, NS_PER_SECOND), 3_579_545 >> 8 & 0xff);
        let wrapped = scale_up((1 << 32) + 5, NS_PER_SECOND, PM_TIMER_HZ);
        assert_eq!(power.read(8, 4, wrapped), 5);
    }

    #[test]
    fn timer_status_follows_the_highest_bit() {
        let mut power = Power::new();
        assert_eq!(power.deadline_ns(), None);
        write(&mut power, 2, 2, 1);
        let due = power.deadline_ns().unwrap();
        power.advance(due - 1);
        assert!(!power.sci());
        power.advance(due);
        assert!(power.sci());
        assert_eq!(power.deadline_ns(), None, "until it is acknowledged");
    }

    #[test]
    fn power_button() {
        let mut power = Power::new();
        power.press_button();
        assert!(!power.sci());
        write(&mut power, 2, 2, 0x120);
        assert!(power.sci());
        assert_eq!(power.read(0, 4, 0), 0x0120_0100);
        write(&mut power, 0, 2, 0x100);
        assert!(!power.sci());
    }

    #[test]
    fn control_shows_acpi_mode_and_powers_off() {
        let mut power = Power::new();
        assert_eq!(power.read(4, 2, 0), 1);
        assert_eq!(write(&mut power, 4, 2, 5 << 10), [], "without SLP_EN");
        assert_eq!(power.read(4, 2, 0), 1 | 5 << 10);
        assert_eq!(write(&mut power, 4, 2, 3 << 10 | 1 << 13), [], "no S3");
        assert_eq!(write(&mut power, 4, 2, 5 << 10 | 1 << 13), [Effect::PowerOff]);
        assert_eq!(power.read(6, 2, 0), 0xffff);
    }

    #[test]
    fn resets_on_rising_bits() {
        let mut power = Power::new();
        let mut effects = Vec::new();
        power.write_reset(0x02, &mut effects);
        assert_eq!(effects, []);
        power.write_reset(0x06, &mut effects);
        assert_eq!(effects, [Effect::Reset]);
        power.write_port_a(0x03, &mut effects);
        power.write_port_a(0x03, &mut effects);
        assert_eq!(effects.len(), 2);
    }
}
