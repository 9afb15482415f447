//! The view that the board has of a virtio function: its registers, whatever device is behind them.
//!
//! [`PciFunction`] is what is left of [`Function`] when its device's type is forgotten, so that the board can keep
//! functions of several kinds in one order.

use addr::{Gpa, GpaRange};
use alloc::vec::Vec;
use virtio::{Function, Signal};

/// A virtio function, whatever its device.
pub trait PciFunction {
    fn set_interrupt_line(&mut self, line: u8);
    fn config_read(&mut self, offset: u16, size: u8, signals: &mut Vec<Signal>) -> u32;
    fn config_write(&mut self, offset: u16, size: u8, value: u32, signals: &mut Vec<Signal>);
    fn port_hit(&self, port: u16) -> Option<u16>;
    fn port_read(&mut self, offset: u16, size: u8) -> u32;
    fn port_write(&mut self, offset: u16, size: u8, value: u32, signals: &mut Vec<Signal>);
    fn mmio_hit(&self, gpa: Gpa) -> Option<u32>;
    fn mmio_read(&mut self, offset: u32, size: u8, signals: &mut Vec<Signal>) -> u64;
    fn mmio_write(&mut self, offset: u32, size: u8, value: u64, signals: &mut Vec<Signal>);
    fn kick_all(&mut self, signals: &mut Vec<Signal>);
    fn each_ring(&self, each: &mut dyn FnMut(GpaRange));
}

impl<D: virtio::Device> PciFunction for Function<D> {
    fn set_interrupt_line(&mut self, line: u8) {
        self.set_interrupt_line(line);
    }
    fn config_read(&mut self, offset: u16, size: u8, signals: &mut Vec<Signal>) -> u32 {
        self.config_read(offset, size, signals)
    }
    fn config_write(&mut self, offset: u16, size: u8, value: u32, signals: &mut Vec<Signal>) {
        self.config_write(offset, size, value, signals);
    }
    fn port_hit(&self, port: u16) -> Option<u16> {
        self.port_hit(port)
    }
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        self.port_read(offset, size)
    }
    fn port_write(&mut self, offset: u16, size: u8, value: u32, signals: &mut Vec<Signal>) {
        self.port_write(offset, size, value, signals);
    }
    fn mmio_hit(&self, gpa: Gpa) -> Option<u32> {
        self.mmio_hit(gpa)
    }
    fn mmio_read(&mut self, offset: u32, size: u8, signals: &mut Vec<Signal>) -> u64 {
        self.mmio_read(offset, size, signals)
    }
    fn mmio_write(&mut self, offset: u32, size: u8, value: u64, signals: &mut Vec<Signal>) {
        self.mmio_write(offset, size, value, signals);
    }
    fn kick_all(&mut self, signals: &mut Vec<Signal>) {
        Function::kick_all(self, signals);
    }
    fn each_ring(&self, each: &mut dyn FnMut(GpaRange)) {
        self.rings().for_each(each);
    }
}
