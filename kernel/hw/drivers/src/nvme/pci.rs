//! An NVMe controller behind PCI (NVMe over PCIe Transport Specification 1.0, section 3.1).
#![expect(unsafe_code, reason = "takes over a device's registers")]

use super::{Fault, Port, start};
use crate::mmio::Registers;
use crate::pci::Function;
use crate::pci::interrupt::{Message, MsiX, aim_msi, enable_msi};
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use block::Disk;
use virtio_drivers::Hal;

/// The most registers that are mapped: those of the queues in use lie within, whatever the doorbells' stride may be.
const REGISTERS_BYTES_MAX: u64 = 1 << 20;

/// The registers of a function that this driver owns.
struct PciPort {
    registers: Registers,
    bytes: usize,
    function: Function,
    msix: Option<MsiX>,
}

/// Starts a controller and gives its namespaces as disks.
pub(crate) fn start_function<H: Hal + 'static>(
    mut function: Function,
    message: impl FnOnce() -> Option<Message>,
    now_ns: &dyn Fn() -> u64,
) -> Result<Vec<Box<dyn Disk>>, Fault> {
    let name = format!("NVMe at {function}");
    // The registers are BAR 0, of 64 bits (section 2.1.10).
    let (bar, bar_bytes) = function.memory_bar(0).ok_or(Fault::Registers)?;
    // No more than the constant, so it fits.
    let bytes = bar_bytes.min(REGISTERS_BYTES_MAX) as usize;
    function.enable();
    // SAFETY: inside a memory BAR of a function that is enabled and ours. The interrupts' table may lie in the same BAR;
    // the port is used below it only, for the registers and the doorbells.
    let registers = unsafe { Registers::map::<H>(bar.as_u64(), bytes) };
    // SAFETY: the function is enabled, and this runs once for it.
    let mut msix = unsafe { MsiX::find::<H>(&function) };
    let interrupts = signal(&mut function, msix.as_mut(), message);
    let port = PciPort { registers, bytes, function, msix };
    let disks = start::<H, _>(port, &name, interrupts, now_ns)?;
    Ok(disks.into_iter().map(|disk| Box::new(disk) as Box<dyn Disk>).collect())
}

/// Makes the function raise the message for all its queues; returns whether it will.
fn signal(function: &mut Function, msix: Option<&mut MsiX>, message: impl FnOnce() -> Option<Message>) -> bool {
    let Some(message) = message() else { return false };
    match msix {
        Some(msix) => {
            let is_there = msix.program(0, message);
            if is_there {
                msix.enable(function);
            }
            is_there
        }
        None => enable_msi(function, message),
    }
}

impl Port for PciPort {
    fn read(&self, offset: usize) -> u32 {
        self.registers.read(offset)
    }

    fn write(&mut self, offset: usize, value: u32) {
        self.registers.write(offset, value);
    }

    fn is_present(&self) -> bool {
        let (vendor, device) = self.function.ids();
        self.function.read_config(0) == u32::from(device) << 16 | u32::from(vendor)
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn stop_dma(&mut self) {
        self.function.stop_dma();
    }

    fn aim_interrupt(&mut self, address: u64) {
        match &mut self.msix {
            Some(msix) => msix.aim(0, address),
            None => aim_msi(&mut self.function, address),
        }
    }

    fn cpu(&self) -> usize {
        cpu::percpu::current().index()
    }
}
