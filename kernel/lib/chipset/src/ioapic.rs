//! The IOAPIC: 24 pins, each with a redirection entry that turns its line into interrupt messages.
//!
//! The type is [`IoApic`]; `board` drives its pins. Source: Intel 82093AA datasheet (May 1996); the EOI register is the
//! one of version 0x20 parts (Intel ICH9 datasheet, section 13.5). Polarity is the board's affair: a pin here is asserted or not.

mod saved;

pub use saved::Saved;

use crate::{DeliveryMode, Effect, Message, Target};
use addr::Gpa;
use alloc::vec::Vec;

/// Where the register window lies.
pub const BASE: Gpa = Gpa::new(0xfec0_0000);
/// Bytes that the window takes.
pub const WINDOW_BYTES: u64 = 0x1000;
/// How many pins there are; they are GSIs 0 to 23.
pub const PINS: u8 = 24;

const PIN_COUNT: usize = PINS as usize;

/// Offsets in the window.
mod window {
    pub const SELECT: u64 = 0x00;
    pub const DATA: u64 = 0x10;
    pub const EOI: u64 = 0x40;
}

/// Indirect registers.
mod index {
    pub const ID: u8 = 0x00;
    pub const VERSION: u8 = 0x01;
    pub const ARBITRATION: u8 = 0x02;
    pub const REDIRECTION: u8 = 0x10;
    pub const REDIRECTION_LAST: u8 = 0x3f;
}

const VERSION: u32 = (PINS as u32 - 1) << 16 | 0x20;
const ID_BITS: u32 = 0x0f00_0000;

/// Bits of a redirection entry.
mod entry {
    pub const LOGICAL: u64 = 1 << 11;
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASKED: u64 = 1 << 16;
    /// What a write to the low half changes; delivery status and remote IRR are read-only.
    pub const LOW_WRITABLE: u64 = 0x1_afff;
    /// The destination: bits 63 to 56, extended by bits 55 to 49 for guests that were offered extended IDs.
    pub const HIGH_WRITABLE: u64 = 0xfffe_0000 << 32;
}

/// The IOAPIC.
#[derive(Clone, Debug)]
pub struct IoApic {
    select: u8,
    id: u32,
    entries: [u64; PIN_COUNT],
    /// The level of each pin.
    lines: u32,
}

impl IoApic {
    /// An IOAPIC after reset: every pin masked.
    pub fn new() -> Self {
        Self { select: 0, id: 0, entries: [entry::MASKED; PIN_COUNT], lines: 0 }
    }

    /// Reads `size` bytes at an offset in the window. Registers are 32 bits wide on 16-byte boundaries.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        let byte = offset & 0xf;
        if byte + u64::from(size) > 4 || size == 0 {
            return 0;
        }
        let value = match offset & !0xf {
            window::SELECT => u32::from(self.select),
            window::DATA => self.read_indirect(),
            _ => 0,
        };
        u64::from(value) >> (8 * byte) & u64::from(u32::MAX >> (32 - 8 * u32::from(size)))
    }

    /// Writes at an offset in the window. The selector takes any width; the rest takes 32 bits.
    pub fn write(&mut self, offset: u64, size: u8, value: u64, effects: &mut Vec<Effect>) {
        match (offset, size) {
            (window::SELECT, _) => self.select = value as u8,
            (window::DATA, 4) => self.write_indirect(value as u32, effects),
            (window::EOI, 4) => self.end_of_interrupt(value as u8, effects),
            _ => (),
        }
    }

    /// Sets the level of a pin. A rising edge at a masked edge-triggered pin is lost, as the datasheet has it.
    pub fn set_pin(&mut self, pin: u8, asserted: bool, effects: &mut Vec<Effect>) {
        let Some(&entry) = self.entries.get(usize::from(pin)) else { return };
        let rising = asserted && self.lines & 1 << pin == 0;
        if asserted {
            self.lines |= 1 << pin;
        } else {
            self.lines &= !(1 << pin);
        }
        if rising && !is_level(entry) {
            self.send(usize::from(pin), effects);
        } else if asserted {
            self.send_level(usize::from(pin), effects);
        }
    }

    /// The end of a level-triggered interrupt: pins with this vector may interrupt again, and do if still asserted.
    pub fn end_of_interrupt(&mut self, vector: u8, effects: &mut Vec<Effect>) {
        for pin in 0..PIN_COUNT {
            let entry = &mut self.entries[pin];
            if *entry & entry::REMOTE_IRR != 0 && *entry as u8 == vector {
                *entry &= !entry::REMOTE_IRR;
                self.send_level(pin, effects);
            }
        }
    }

    fn read_indirect(&self) -> u32 {
        match self.select {
            index::ID | index::ARBITRATION => self.id,
            index::VERSION => VERSION,
            index::REDIRECTION..=index::REDIRECTION_LAST => {
                let (pin, shift) = entry_half(self.select);
                (self.entries[pin] >> shift) as u32
            }
            _ => 0,
        }
    }

    fn write_indirect(&mut self, value: u32, effects: &mut Vec<Effect>) {
        match self.select {
            index::ID => self.id = value & ID_BITS,
            index::REDIRECTION..=index::REDIRECTION_LAST => {
                let (pin, shift) = entry_half(self.select);
                let writable = if shift == 0 { entry::LOW_WRITABLE } else { entry::HIGH_WRITABLE };
                let entry = &mut self.entries[pin];
                *entry = *entry & !writable | u64::from(value) << shift & writable;
                // Drivers of parts without an EOI register clear remote IRR by a turn through edge mode.
                if !is_level(*entry) {
                    *entry &= !entry::REMOTE_IRR;
                }
                self.send_level(pin, effects);
            }
            _ => (),
        }
    }

    /// Sends for a level-triggered pin that is asserted and whose last message has been served.
    fn send_level(&mut self, pin: usize, effects: &mut Vec<Effect>) {
        let entry = self.entries[pin];
        if self.lines & 1 << pin != 0 && is_level(entry) && entry & entry::REMOTE_IRR == 0 {
            self.send(pin, effects);
        }
    }

    fn send(&mut self, pin: usize, effects: &mut Vec<Effect>) {
        let entry = self.entries[pin];
        if entry & entry::MASKED != 0 {
            return;
        }
        let mode = match DeliveryMode::from_bits((entry >> 8) as u32) {
            None | Some(DeliveryMode::Startup) => return,
            Some(mode) => mode,
        };
        let level_triggered = is_level(entry);
        if level_triggered {
            self.entries[pin] |= entry::REMOTE_IRR;
        }
        let destination = (entry >> 56 | (entry >> 49 & 0x7f) << 8) as u32;
        let target = Target::from_device(destination, entry & entry::LOGICAL != 0);
        effects.push(Effect::Interrupt(Message { vector: entry as u8, mode, target, level_triggered }));
    }
}

/// Whether an entry acts on the level: the modes that no EOI ends are edge-triggered, whatever it says (section 3.2.4).
fn is_level(entry: u64) -> bool {
    let mode = DeliveryMode::from_bits((entry >> 8) as u32);
    entry & entry::LEVEL != 0 && matches!(mode, Some(DeliveryMode::Fixed | DeliveryMode::LowestPriority))
}

/// Which pin's entry, and how far to shift for its low or high half.
fn entry_half(select: u8) -> (usize, u32) {
    let number = select - index::REDIRECTION;
    (usize::from(number >> 1), u32::from(number & 1) * 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVEL: u32 = 1 << 15;
    const MASKED: u32 = 1 << 16;

    fn set_entry(ioapic: &mut IoApic, pin: u8, low: u32, high: u32) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (number, value) in [(1, high), (0, low)] {
            ioapic.write(0, 4, u64::from(0x10 + pin * 2 + number), &mut effects);
            ioapic.write(0x10, 4, u64::from(value), &mut effects);
        }
        effects
    }

    fn entry_low(ioapic: &mut IoApic, pin: u8) -> u32 {
        ioapic.write(0, 4, u64::from(0x10 + pin * 2), &mut Vec::new());
        ioapic.read(0x10, 4) as u32
    }

    fn drive(ioapic: &mut IoApic, pin: u8, asserted: bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        ioapic.set_pin(pin, asserted, &mut effects);
        effects
    }

    fn fixed(vector: u8, id: u32, level_triggered: bool) -> Vec<Effect> {
        let target = Target::Physical(id);
        vec![Effect::Interrupt(Message { vector, mode: DeliveryMode::Fixed, target, level_triggered })]
    }

    #[test]
    fn identity() {
        let mut ioapic = IoApic::new();
        ioapic.write(0, 4, 1, &mut Vec::new());
        assert_eq!(ioapic.read(0x10, 4), 0x0017_0020);
        ioapic.write(0, 4, 0, &mut Vec::new());
        ioapic.write(0x10, 4, u64::MAX, &mut Vec::new());
        assert_eq!(ioapic.read(0x10, 4), 0x0f00_0000);
        assert_eq!(entry_low(&mut ioapic, 23), MASKED);
        assert_eq!(ioapic.read(0x10, 8), 0);
    }

    #[test]
    fn edge_fires_once_and_is_lost_while_masked() {
        let mut ioapic = IoApic::new();
        set_entry(&mut ioapic, 4, 0x31 | MASKED, 2 << 24);
        assert_eq!(drive(&mut ioapic, 4, true), []);
        assert_eq!(set_entry(&mut ioapic, 4, 0x31, 2 << 24), [], "no edge any more");
        drive(&mut ioapic, 4, false);
        assert_eq!(drive(&mut ioapic, 4, true), fixed(0x31, 2, false));
        assert_eq!(drive(&mut ioapic, 4, true), []);
    }

    #[test]
    fn level_waits_for_its_end_and_repeats() {
        let mut ioapic = IoApic::new();
        set_entry(&mut ioapic, 16, 0x51 | LEVEL, 0);
        assert_eq!(drive(&mut ioapic, 16, true), fixed(0x51, 0, true));
        assert_ne!(entry_low(&mut ioapic, 16) & 1 << 14, 0);
        drive(&mut ioapic, 16, false);
        assert_eq!(drive(&mut ioapic, 16, true), [], "remote IRR holds it back");
        let mut effects = Vec::new();
        ioapic.end_of_interrupt(0x52, &mut effects);
        assert_eq!(effects, [], "another vector");
        ioapic.end_of_interrupt(0x51, &mut effects);
        assert_eq!(effects, fixed(0x51, 0, true));
        drive(&mut ioapic, 16, false);
        effects.clear();
        ioapic.write(0x40, 4, 0x51, &mut effects);
        assert_eq!(effects, []);
        assert_eq!(entry_low(&mut ioapic, 16) & 1 << 14, 0, "directed EOI");
    }

    #[test]
    fn level_fires_when_unmasked() {
        let mut ioapic = IoApic::new();
        set_entry(&mut ioapic, 9, 0x61 | LEVEL | MASKED, 0);
        assert_eq!(drive(&mut ioapic, 9, true), []);
        assert_eq!(set_entry(&mut ioapic, 9, 0x61 | LEVEL, 0), fixed(0x61, 0, true));
    }

    #[test]
    fn a_turn_through_edge_mode_clears_remote_irr() {
        let mut ioapic = IoApic::new();
        set_entry(&mut ioapic, 9, 0x61 | LEVEL, 0);
        drive(&mut ioapic, 9, true);
        set_entry(&mut ioapic, 9, 0x61 | MASKED, 0);
        assert_eq!(entry_low(&mut ioapic, 9) & 1 << 14, 0);
        assert_eq!(set_entry(&mut ioapic, 9, 0x61 | LEVEL, 0), fixed(0x61, 0, true));
    }

    #[test]
    fn destinations_and_modes() {
        let mut ioapic = IoApic::new();
        set_entry(&mut ioapic, 1, 0x31 | 1 << 11, 3 << 24);
        let Effect::Interrupt(message) = drive(&mut ioapic, 1, true)[0] else { panic!() };
        assert_eq!(message.target, Target::Logical(3));
        set_entry(&mut ioapic, 2, 0x31 | 7 << 8, 0x2c << 24 | 1 << 17);
        let Effect::Interrupt(message) = drive(&mut ioapic, 2, true)[0] else { panic!() };
        assert_eq!((message.mode, message.target), (DeliveryMode::ExtInt, Target::Physical(0x12c)));
        set_entry(&mut ioapic, 5, 0x31 | 4 << 8 | LEVEL, 0);
        let Effect::Interrupt(message) = drive(&mut ioapic, 5, true)[0] else { panic!() };
        assert_eq!((message.mode, message.level_triggered), (DeliveryMode::Nmi, false));
        drive(&mut ioapic, 5, false);
        assert_eq!(drive(&mut ioapic, 5, true).len(), 1, "an NMI has no end to wait for");
        set_entry(&mut ioapic, 3, 0x31 | 3 << 8, 0);
        assert_eq!(drive(&mut ioapic, 3, true), [], "reserved mode");
        assert_eq!(drive(&mut ioapic, 24, true), [], "no such pin");
        assert_eq!(drive(&mut ioapic, 255, true), []);
    }
}
