//! PCI hotplug as ACPI has it: which devices came, which are asked to leave, and the guest's word that they may.
//!
//! The type is [`Hotplug`]; `board` drives the SCI with its level. It has the board's block of general-purpose events
//! (ACPI 6.5, 4.8.4.1), of which it uses one. The methods that the guest runs then are in the DSDT, which the host writes
//! too, so that the other registers are nobody's standard: four of 32 bits, a bit for each PCI device number. Reading one
//! of the first three takes what it says.

mod saved;

pub use saved::Saved;

use crate::Effect;
use alloc::vec::Vec;

/// The general-purpose event by which hotplug calls: the DSDT's `_E01`.
const EVENT: u16 = 1 << 1;
/// Ports of the block of general-purpose events: status and enable, two bytes each.
pub const EVENT_PORTS: u16 = 4;
/// Ports that the registers span.
pub const HOTPLUG_PORTS: u16 = 16;

/// Offsets of the registers.
mod offset {
    /// Devices that came.
    pub const ARRIVED: u16 = 0;
    /// Devices that are asked to leave.
    pub const LEAVING: u16 = 4;
    /// Whether devices left that nobody asked, in bit 0: the bus is to be looked at.
    pub const VANISHED: u16 = 8;
    /// Written: the guest lets go of these.
    pub const EJECT: u16 = 12;
}

/// The registers.
#[derive(Clone, Debug, Default)]
pub struct Hotplug {
    status: u16,
    enable: u16,
    arrived: u32,
    leaving: u32,
    vanished: bool,
    /// Devices that are asked to leave and have not left. The guest can let go of no others: they are the operator's.
    asked: u32,
}

impl Hotplug {
    /// A device came.
    pub fn arrive(&mut self, device: u8) {
        self.arrived |= bit(device);
        self.status |= EVENT;
    }

    /// A device is asked to leave.
    pub fn ask(&mut self, device: u8) {
        self.leaving |= bit(device);
        self.asked |= bit(device);
        self.status |= EVENT;
    }

    /// It may stay after all.
    pub fn withdraw(&mut self, device: u8) {
        self.leaving &= !bit(device);
        self.asked &= !bit(device);
    }

    /// A device left without being asked.
    pub fn vanish(&mut self, device: u8) {
        self.arrived &= !bit(device);
        self.withdraw(device);
        self.vanished = true;
        self.status |= EVENT;
    }

    /// Whether the system control interrupt is asserted.
    pub fn sci(&self) -> bool {
        self.status & self.enable != 0
    }

    /// Reads `size` bytes of the general-purpose events.
    pub fn read_events(&self, offset: u16, size: u8) -> u32 {
        part(u32::from(self.status) | u32::from(self.enable) << 16, offset, size)
    }

    /// Writes `size` bytes of them: ones clear the status.
    pub fn write_events(&mut self, offset: u16, size: u8, value: u32) {
        for (at, byte) in (offset..EVENT_PORTS).zip(value.to_le_bytes()).take(usize::from(size)) {
            let (lane, bits) = (0xff << (8 * (at & 1)), u16::from(byte) << (8 * (at & 1)));
            if at < 2 {
                self.status &= !bits;
            } else {
                self.enable = self.enable & !lane | bits;
            }
        }
    }

    /// Reads `size` bytes. A register is taken whole, whatever part of it is read.
    pub fn read(&mut self, offset: u16, size: u8) -> u32 {
        let register = match offset & !3 {
            offset::ARRIVED => core::mem::take(&mut self.arrived),
            offset::LEAVING => core::mem::take(&mut self.leaving),
            offset::VANISHED => core::mem::take(&mut self.vanished).into(),
            _ => 0,
        };
        part(register, offset, size)
    }

    /// Writes: the guest lets go of devices. Those that were not asked stay.
    pub fn write(&mut self, offset: u16, value: u32, effects: &mut Vec<Effect>) {
        let devices = value & self.asked;
        if offset == offset::EJECT && devices != 0 {
            self.asked &= !devices;
            self.leaving &= !devices;
            effects.push(Effect::Eject(devices));
        }
    }
}

const fn bit(device: u8) -> u32 {
    1 << (device & 31)
}

/// `size` bytes of a register of 32 bits.
fn part(register: u32, offset: u16, size: u8) -> u32 {
    let bits = 8 * u32::from(size.clamp(1, 4));
    register >> (8 * (offset & 3)) & u32::MAX >> (32 - bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(hotplug: &mut Hotplug, offset: u16, value: u32) -> Vec<Effect> {
        let mut effects = Vec::new();
        hotplug.write(offset, value, &mut effects);
        effects
    }

    #[test]
    fn what_happened_is_told_once() {
        let mut hotplug = Hotplug::default();
        hotplug.arrive(5);
        hotplug.arrive(30);
        assert_eq!(hotplug.read(0, 4), 1 << 5 | 1 << 30);
        assert_eq!(hotplug.read(0, 4), 0);
        hotplug.ask(7);
        assert_eq!(hotplug.read(4, 1), 1 << 7);
        assert_eq!(hotplug.read(4, 4), 0);
        hotplug.vanish(7);
        assert_eq!((hotplug.read(8, 4), hotplug.read(8, 4)), (1, 0));
    }

    #[test]
    fn it_calls_by_an_event() {
        let mut hotplug = Hotplug::default();
        hotplug.arrive(5);
        assert!(!hotplug.sci(), "nobody listens");
        hotplug.write_events(2, 2, 0x0002);
        assert!(hotplug.sci());
        assert_eq!(hotplug.read_events(0, 4), 0x0002_0002);
        hotplug.write_events(0, 1, 0x02);
        assert!(!hotplug.sci());
        hotplug.write_events(3, 4, u32::MAX);
        assert_eq!((hotplug.read_events(3, 1), hotplug.read_events(2, 2)), (0xff, 0xff02));
        hotplug.write_events(2, 1, 0);
        hotplug.ask(5);
        assert!(!hotplug.sci(), "nobody listens any more");
    }

    #[test]
    fn only_what_is_asked_leaves() {
        let mut hotplug = Hotplug::default();
        assert_eq!(write(&mut hotplug, 12, u32::MAX), []);
        hotplug.ask(3);
        hotplug.ask(4);
        assert_eq!(write(&mut hotplug, 8, 1 << 3), [], "another register");
        assert_eq!(write(&mut hotplug, 12, 1 << 3 | 1 << 9), [Effect::Eject(1 << 3)]);
        assert_eq!(write(&mut hotplug, 12, 1 << 3), [], "it has left");
        hotplug.withdraw(4);
        assert_eq!(write(&mut hotplug, 12, 1 << 4), [], "it may stay");
    }

    #[test]
    fn a_device_that_vanished_is_neither_new_nor_asked() {
        let mut hotplug = Hotplug::default();
        hotplug.arrive(3);
        hotplug.ask(3);
        hotplug.vanish(3);
        assert_eq!((hotplug.read(0, 4), hotplug.read(4, 4), hotplug.read(8, 2)), (0, 0, 1));
        assert_eq!(write(&mut hotplug, 12, 1 << 3), []);
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let mut hotplug = Hotplug::default();
        hotplug.arrive(9);
        assert_eq!(hotplug.read(1, 1), 2);
        for offset in 0..20 {
            for size in [1, 2, 4] {
                assert_eq!(hotplug.read(offset, size), 0);
            }
        }
    }
}
