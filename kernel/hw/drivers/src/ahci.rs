//! Serial ATA disks behind an AHCI controller (Serial ATA AHCI 1.3.1).
//!
//! The main function is [`start`], which gives a [`block::Disk`] for each disk on a port. [`hba`] takes the controller
//! over, [`port`] is a port's registers, [`slots`] its memory, [`disk`] what runs, [`recovery`] what happens when
//! something goes wrong. Data goes to and from the runs of a transfer by DMA: no byte is copied here.
#![expect(unsafe_code, reason = "takes over a controller's registers")]

mod disk;
mod hba;
mod port;
mod recovery;
mod slots;

use crate::mmio::Registers;
pub use crate::mmio::Words;
use crate::pci::Function;
use crate::pci::interrupt::{Message, aim_msi, enable_msi};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::{Disk, HostRun};
use core::sync::atomic::{AtomicBool, Ordering};
pub use hba::Fault;
use spin::Mutex;
use virtio_drivers::Hal;

/// The BAR with the registers (section 2.1.11).
const ABAR: u8 = 5;

/// What the disks of a controller share.
pub(crate) struct Controller {
    name: String,
    /// The right to take DMA from all of it; none where a test plays it.
    function: Mutex<Option<Function>>,
    failed: AtomicBool,
    /// Whether it has 64-bit addresses (CAP.S64A).
    reaches_all: AtomicBool,
}

/// Takes over a controller and starts the disks on its ports.
pub(crate) fn start<H: Hal + 'static>(
    mut function: Function,
    message: impl FnOnce() -> Option<Message>,
    now_ns: &dyn Fn() -> u64,
) -> Result<Vec<Box<dyn Disk>>, Fault> {
    function.enable();
    let (start, bytes) = function.memory_bar(ABAR).ok_or(Fault::Registers)?;
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(hba::REGISTERS_BYTES);
    if bytes < port::PORTS_AT {
        return Err(Fault::Registers);
    }
    // SAFETY: all of it lies in a memory BAR of an enabled function that is ours; the copies of the window that ports get
    // are each of their own registers, but for IS, where each port writes ones to its own bit alone.
    let registers = unsafe { Registers::map::<H>(start.as_u64(), bytes) };
    let controller = Arc::new(Controller::new(alloc::format!("AHCI at {function}"), Some(function)));
    let disks = hba::bring_up::<H, _>(&controller, registers, now_ns)
        .inspect_err(|_| controller.cut_off("it could not be started"))?;
    let signals = || controller.function.lock().as_mut().is_some_and(|function| signal(function, message));
    let has_interrupt = !disks.is_empty() && signals();
    Ok(finish(disks, registers, has_interrupt))
}

/// Starts the disks of a controller that the caller plays; its interrupts arrive.
#[cfg(any(test, feature = "heap"))]
pub fn start_played<H: Hal + 'static, W: Words + Clone + 'static>(
    registers: W,
    now_ns: &dyn Fn() -> u64,
) -> Result<Vec<Box<dyn Disk>>, Fault> {
    let controller = Arc::new(Controller::new("AHCI, played".into(), None));
    Ok(finish(hba::bring_up::<H, W>(&controller, registers.clone(), now_ns)?, registers, true))
}

fn signal(function: &mut Function, message: impl FnOnce() -> Option<Message>) -> bool {
    message().is_some_and(|message| enable_msi(function, message))
}

/// Lets interrupts through to the disks, where there are any.
fn finish<H: Hal + 'static, W: Words + 'static>(
    mut disks: Vec<disk::AhciDisk<H, W>>,
    mut registers: W,
    has_interrupt: bool,
) -> Vec<Box<dyn Disk>> {
    if has_interrupt {
        disks.iter_mut().for_each(disk::AhciDisk::use_interrupts);
        hba::enable_interrupts(&mut registers);
    }
    disks.into_iter().map(|disk| Box::new(disk) as Box<dyn Disk>).collect()
}

impl Controller {
    fn new(name: String, function: Option<Function>) -> Self {
        let (failed, reaches_all) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { name, function: Mutex::new(function), failed, reaches_all }
    }

    /// Takes DMA from the controller, and so from all its ports.
    fn cut_off(&self, why: &str) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            log::error!("{}: {why}: it is cut off from memory", self.name);
            if let Some(function) = self.function.lock().as_mut() {
                function.stop_dma();
            }
        }
    }

    /// Has the interrupt of all ports go to another processor.
    fn aim_interrupt(&self, address: u64) {
        if let Some(function) = self.function.lock().as_mut() {
            aim_msi(function, address);
        }
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    fn set_reach(&self, all: bool) {
        self.reaches_all.store(all, Ordering::Release);
    }

    /// Whether memory up to `end` can be addressed.
    fn reaches_to(&self, end: u64) -> bool {
        end <= 1 << 32 || self.reaches_all.load(Ordering::Acquire)
    }

    /// Whether all of the runs can be addressed.
    fn reaches(&self, runs: &[HostRun]) -> bool {
        let mut ends = runs.iter().map(|run| run.start.as_u64().checked_add(run.bytes.into()));
        ends.all(|end| end.is_some_and(|end| self.reaches_to(end)))
    }
}

#[cfg(test)]
mod tests;
