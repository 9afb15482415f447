//! Disks on an IDE controller with a bus master: PIIX and its kin, and SATA controllers that firmware shows as one (PCI
//! IDE Controller Specification 1.0, Bus Master IDE 1.0, ATA/ATAPI-7 volume 2).
//!
//! The main function is [`start`], which gives a [`block::Disk`] for each disk on the two channels. [`start_up`] finds
//! them, [`ports`] and [`interface`] are a channel's registers, [`slots`] a disk's memory, [`channel`] what runs, and
//! [`recovery`] what happens when something goes wrong. The devices keep the transfer mode that firmware agreed with
//! them: each maker's controller has its own registers for that.
#![expect(unsafe_code, reason = "takes over a controller's ports")]

mod channel;
mod disk;
mod interface;
mod ports;
mod recovery;
mod slots;
mod start_up;

use crate::pci::{Bar, Function};
use crate::probe::Interrupts;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::Disk;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use disk::IdeDisk;
use interface::Interface;
use ports::PortIo;
pub use ports::{Ports, Register};
use spin::Mutex;
use start_up::Found;
use virtio_drivers::Hal;

/// The programming interface (PCI IDE Controller Specification 1.0, section 3): which channels have their ports in BARs.
const NATIVE: [u8; 2] = [1 << 0, 1 << 2];
/// It has a bus master.
const HAS_MASTER: u8 = 1 << 7;
/// The BAR with the bus master's ports, eight a channel.
const MASTER_BAR: usize = 4;
/// The command block, the control block's one port and the interrupt of a channel that is where it always was.
const LEGACY: [(u16, u16, u8); 2] = [(0x1f0, 0x3f6, 14), (0x170, 0x376, 15)];
/// In a native channel's control block: the port that is used.
const CONTROL_AT: u32 = 2;

/// Which of the legacy channels have their driver: a second controller that claims them does not get them.
static LEGACY_TAKEN: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];

/// Why a controller was not started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// It has no bus master, or that has no ports.
    NoMaster,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMaster => out.write_str("it does no DMA"),
        }
    }
}

/// What the channels share.
pub(crate) struct Controller {
    name: String,
    /// The right to take DMA from all of it; none where a test plays it.
    function: Mutex<Option<Function>>,
    failed: AtomicBool,
}

/// Where a channel's registers are, and the ISA interrupt that it raises, if it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    command: u16,
    control: u16,
    irq: Option<u8>,
}

/// Takes over a controller and starts the disks on its channels. Channels in legacy mode interrupt; those in native mode
/// are polled, as their interrupt is a level that several devices share.
pub(crate) fn start<H: Hal + 'static>(
    mut function: Function,
    interrupts: &mut dyn Interrupts,
    now_ns: &dyn Fn() -> u64,
) -> Result<Vec<Box<dyn Disk>>, Fault> {
    let [_, _, mode] = function.class();
    let master = ports_of(function.bars()[MASTER_BAR], 16).filter(|_| mode & HAS_MASTER != 0).ok_or(Fault::NoMaster)?;
    let places = [0, 1].map(|channel| place(channel, mode, function.bars()));
    function.enable_ports(places.iter().flatten().any(|place| place.irq.is_some()));
    let controller = Arc::new(Controller::new(alloc::format!("IDE at {function}"), Some(function)));
    let mut disks = Vec::new();
    for (channel, place) in places.into_iter().enumerate() {
        let Some(Place { command, control, irq }) = place else { continue };
        if irq.is_some() && LEGACY_TAKEN[channel].swap(true, Ordering::AcqRel) {
            continue;
        }
        // SAFETY: the ports are those that the function decodes, in its BARs or where its class says that they are, and
        // each channel's are given out once.
        let ports = unsafe { PortIo::new(command, control, master + 8 * channel as u16) };
        let mut interface = Interface::new(ports);
        let name = alloc::format!("{} {}", controller.name, if channel == 0 { "primary" } else { "secondary" });
        if interface.is_simplex() && !disks.is_empty() {
            log::warn!("{name}: not driven: the controller serves one channel at a time");
            continue;
        }
        let Some(found) = start_up::find::<H, _>(&controller, interface, &name, now_ns) else { continue };
        let has_interrupt = irq.is_some_and(|irq| interrupts.isa(irq));
        disks.extend(finish(found, has_interrupt).into_iter().map(|disk| Box::new(disk) as Box<dyn Disk>));
    }
    Ok(disks)
}

/// Starts the disks of a channel that the caller plays; its interrupts arrive.
#[cfg(any(test, feature = "heap"))]
pub fn start_played<H: Hal + 'static, P: Ports + 'static>(ports: P, now_ns: &dyn Fn() -> u64) -> Vec<Box<dyn Disk>> {
    let controller = Arc::new(Controller::new("IDE, played".into(), None));
    let found = start_up::find::<H, P>(&controller, Interface::new(ports), "here", now_ns);
    let disks = found.map(|found| finish(found, true)).into_iter().flatten();
    disks.map(|disk| Box::new(disk) as Box<dyn Disk>).collect()
}

/// Lets interrupts through, and makes disks of what was found.
fn finish<H: Hal, P: Ports>(found: Found<H, P>, has_interrupt: bool) -> Vec<IdeDisk<H, P>> {
    let (mut channel, geometries) = found;
    channel.interface.let_interrupt();
    let channel = Arc::new(Mutex::new(channel));
    let disk = |(unit, geometry): (usize, Option<block::Geometry>)| {
        Some(IdeDisk { channel: channel.clone(), unit, geometry: geometry?, has_interrupt })
    };
    geometries.into_iter().enumerate().filter_map(disk).collect()
}

/// Where a channel is; `None` where its BARs say nothing.
fn place(channel: usize, mode: u8, bars: &[Option<Bar>; 6]) -> Option<Place> {
    if mode & NATIVE[channel] == 0 {
        let (command, control, irq) = LEGACY[channel];
        return Some(Place { command, control, irq: Some(irq) });
    }
    let command = ports_of(bars[2 * channel], 8)?;
    let control = ports_of(bars[2 * channel + 1], 4)? + CONTROL_AT as u16;
    Some(Place { command, control, irq: None })
}

/// The first port of a BAR that firmware gave an address, if it has as many.
fn ports_of(bar: Option<Bar>, at_least: u32) -> Option<u16> {
    match bar? {
        Bar::Io { port, ports } if port != 0 && ports >= at_least && port + at_least <= 1 << 16 => Some(port as u16),
        _ => None,
    }
}

impl Controller {
    fn new(name: String, function: Option<Function>) -> Self {
        Self { name, function: Mutex::new(function), failed: AtomicBool::new(false) }
    }

    /// Takes DMA from the controller, and so from both channels.
    fn cut_off(&self, why: &str) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            log::error!("{}: {why}: it is cut off from memory", self.name);
            if let Some(function) = self.function.lock().as_mut() {
                function.stop_dma();
            }
        }
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
