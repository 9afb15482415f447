//! Takes over an AHCI controller and finds its disks (AHCI 1.3.1, section 10.1.2).
//!
//! The main function is [`bring_up`]; it runs at start-up, with the clock, and waits for all ports together.

use super::Controller;
use super::disk::AhciDisk;
use super::port::{PORT_BYTES, PORTS_AT, Port, Signature};
use super::slots::{SLOTS_MAX, Slots};
use crate::ata::PAGE_BYTES;
use crate::ata::command::Command;
use crate::ata::identify::Identity;
use crate::mmio::Words;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use virtio_drivers::Hal;

/// Registers of the controller (section 3.1).
const CAP: usize = 0x00;
const GHC: usize = 0x04;
pub(super) const IS: usize = 0x08;
const PI: usize = 0x0c;
const CAP2: usize = 0x24;
const BOHC: usize = 0x28;

const CAP_64_BIT: u32 = 1 << 31;
const CAP_QUEUES: u32 = 1 << 30;
const GHC_AHCI: u32 = 1 << 31;
const GHC_INTERRUPTS: u32 = 1 << 1;
const GHC_RESET: u32 = 1 << 0;
const CAP2_HANDOFF: u32 = 1 << 0;
const BOHC_FIRMWARE: u32 = 1 << 0;
const BOHC_SYSTEM: u32 = 1 << 1;
const BOHC_BUSY: u32 = 1 << 4;

/// How long firmware may take to let go: 25 ms, or two seconds where it says that it is busy (section 10.6.3).
const HANDOFF_NS: u64 = 25_000_000;
const HANDOFF_BUSY_NS: u64 = 2_000_000_000;
/// How long the controller may take to reset (section 10.4.3).
const RESET_NS: u64 = 1_000_000_000;
/// How long a device may take to show that it is there after a reset: 10 ms (section 10.1.2), and some.
const PRESENCE_NS: u64 = 25_000_000;
/// How long a device may take until it is ready: it spins up.
const READY_NS: u64 = 15_000_000_000;
/// How long a device may take to say what it is, and a port to stop.
const ANSWER_NS: u64 = 5_000_000_000;
const STOP_NS: u64 = 500_000_000;

/// Why a controller could not be taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Its registers are missing, too few, or read as all ones.
    Registers,
    /// It does not reset.
    Stuck,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Registers => "its registers are not there",
            Self::Stuck => "does not reset",
        })
    }
}

/// What a port waits for until its disk can be asked.
struct Candidate<H: Hal, W> {
    port: Port<W>,
    slots: Slots<H>,
    /// It saw no device before the reset, though it listened.
    was_empty: bool,
}

/// Takes the controller over and starts the disks on its ports. `registers` are all of it.
pub(super) fn bring_up<H: Hal, W: Words>(
    controller: &Arc<Controller>,
    mut registers: W,
    now_ns: &dyn Fn() -> u64,
) -> Result<Vec<AhciDisk<H, W>>, Fault> {
    if registers.read(CAP) == u32::MAX {
        return Err(Fault::Registers);
    }
    take_from_firmware(&mut registers, now_ns);
    registers.write(GHC, GHC_AHCI);
    let implemented = registers.read(PI);
    let mut ports = Vec::new();
    for number in super::disk::bits(implemented) {
        let port = Port::new(&registers, number).ok_or(Fault::Registers)?;
        let was_empty = port.is_empty();
        ports.push((port, was_empty));
    }
    reset(&mut registers, now_ns)?;
    let capabilities = registers.read(CAP);
    controller.set_reach(capabilities & CAP_64_BIT != 0);
    let slots = (capabilities >> 8 & 0x1f) as u8 + 1;
    let candidates = ports.into_iter().filter_map(|(port, was_empty)| prepare(controller, port, was_empty, slots));
    let mut disks = Vec::new();
    for candidate in wait_for_devices(candidates.collect(), now_ns) {
        disks.extend(start(controller, candidate, capabilities & CAP_QUEUES != 0, now_ns));
    }
    Ok(disks)
}

/// Lets interrupts out.
pub(super) fn enable_interrupts(registers: &mut impl Words) {
    registers.write(IS, u32::MAX);
    let control = registers.read(GHC);
    registers.write(GHC, control | GHC_INTERRUPTS);
}

/// The bytes of registers of a controller with all its ports.
pub(super) const REGISTERS_BYTES: usize = PORTS_AT + SLOTS_MAX as usize * PORT_BYTES;

/// Asks firmware to let go, and takes the controller in any case (section 10.6.3).
fn take_from_firmware(registers: &mut impl Words, now_ns: &dyn Fn() -> u64) {
    if registers.read(CAP2) & CAP2_HANDOFF == 0 {
        return;
    }
    let handoff = registers.read(BOHC);
    registers.write(BOHC, handoff | BOHC_SYSTEM);
    let is_let_go = |registers: &mut _| Words::read(registers, BOHC) & BOHC_FIRMWARE == 0;
    if !wait(registers, now_ns, HANDOFF_NS, is_let_go) && registers.read(BOHC) & BOHC_BUSY != 0 {
        wait(registers, now_ns, HANDOFF_BUSY_NS, is_let_go);
    }
}

fn reset(registers: &mut impl Words, now_ns: &dyn Fn() -> u64) -> Result<(), Fault> {
    registers.write(GHC, GHC_AHCI | GHC_RESET);
    if !wait(registers, now_ns, RESET_NS, |registers| Words::read(registers, GHC) & GHC_RESET == 0) {
        return Err(Fault::Stuck);
    }
    registers.write(GHC, GHC_AHCI);
    Ok(())
}

/// Lets a port receive, and its device spin up.
fn prepare<H: Hal, W: Words>(
    controller: &Controller,
    mut port: Port<W>,
    was_empty: bool,
    slots: u8,
) -> Option<Candidate<H, W>> {
    let Some(slots) = Slots::<H>::new(slots) else {
        log::error!("{} port {}: no memory for its commands", controller.name, port.number());
        return None;
    };
    if !controller.reaches_to(slots.end()) {
        log::error!(
            "{} port {}: reaches only the lower 4 GiB, where there is no memory",
            controller.name,
            port.number()
        );
        return None;
    }
    let (command_list, frames) = slots.addresses();
    port.prepare(command_list, frames);
    Some(Candidate { port, slots, was_empty })
}

/// Waits for all devices together; gives the ports whose devices are ready.
fn wait_for_devices<H: Hal, W: Words>(
    mut candidates: Vec<Candidate<H, W>>,
    now_ns: &dyn Fn() -> u64,
) -> Vec<Candidate<H, W>> {
    let start_ns = now_ns();
    let mut ready = Vec::new();
    loop {
        let passed_ns = now_ns().saturating_sub(start_ns);
        for mut candidate in core::mem::take(&mut candidates) {
            let port = &mut candidate.port;
            let is_absent = port.is_offline() || (port.is_empty() && (candidate.was_empty || passed_ns > PRESENCE_NS));
            if port.is_ready() {
                ready.push(candidate);
            } else if is_absent || passed_ns > READY_NS {
                put_down(candidate, !is_absent, now_ns);
            } else {
                candidates.push(candidate);
            }
        }
        if candidates.is_empty() {
            ready.sort_by_key(|candidate| candidate.port.number());
            return ready;
        }
    }
}

/// Asks a device what it is, and makes a disk of it if it is one.
fn start<H: Hal, W: Words>(
    controller: &Arc<Controller>,
    mut candidate: Candidate<H, W>,
    queues: bool,
    now_ns: &dyn Fn() -> u64,
) -> Option<AhciDisk<H, W>> {
    let place = alloc::format!("{} port {}", controller.name, candidate.port.number());
    let what = match candidate.port.signature() {
        Signature::Disk => None,
        Signature::Packet => Some("an optical drive (ATAPI)"),
        Signature::Multiplier => Some("a port multiplier"),
        Signature::Enclosure => Some("an enclosure"),
        Signature::Unknown(_) => Some("a device of unknown kind"),
    };
    if let Some(what) = what {
        log::info!("{place}: {what}, which is not driven");
        put_down(candidate, false, now_ns);
        return None;
    }
    candidate.port.start();
    let page = identify(&mut candidate, now_ns);
    match page.map(|page| Identity::parse(&page)) {
        Some(Ok(identity)) => {
            let Candidate { port, slots, .. } = candidate;
            return Some(AhciDisk::new(controller.clone(), port, slots, identity, queues));
        }
        Some(Err(unfit)) => log::error!("{place}: {unfit}"),
        None => log::error!("{place}: does not say what it is"),
    }
    if !put_down(candidate, false, now_ns) {
        controller.cut_off("a port does not stop");
    }
    None
}

fn identify<H: Hal, W: Words>(candidate: &mut Candidate<H, W>, now_ns: &dyn Fn() -> u64) -> Option<[u8; PAGE_BYTES]> {
    candidate.slots.fill_own(&Command::identify());
    candidate.port.issue(1, false);
    let mut failed = false;
    let ended = wait(&mut candidate.port, now_ns, ANSWER_NS, |port| {
        let events = port.take_events();
        failed = events.task_file_error || events.fatal || events.gone;
        failed || (events.done && port.active(false) & 1 == 0)
    });
    let page = candidate.slots.take_own();
    (ended && !failed).then_some(page)
}

/// Stops a port for good, and gives its memory back where the port is sure not to touch it; else that memory stays
/// allocated. Returns whether it stopped.
fn put_down<H: Hal, W: Words>(candidate: Candidate<H, W>, is_slow: bool, now_ns: &dyn Fn() -> u64) -> bool {
    let Candidate { mut port, slots, .. } = candidate;
    if is_slow {
        log::warn!("port {}: there is a device that does not get ready", port.number());
    }
    port.stop();
    let mut is_silent = wait(&mut port, now_ns, STOP_NS, |port| port.is_stopped());
    if is_silent {
        port.stop_receiving();
        is_silent = wait(&mut port, now_ns, STOP_NS, |port| port.is_deaf());
    }
    if !is_silent {
        core::mem::forget(slots);
    }
    is_silent
}

/// Waits until `is_done`; returns whether it was before `limit_ns` had passed.
fn wait<T>(of: &mut T, now_ns: &dyn Fn() -> u64, limit_ns: u64, mut is_done: impl FnMut(&mut T) -> bool) -> bool {
    let start_ns = now_ns();
    loop {
        if is_done(of) {
            return true;
        }
        if now_ns().saturating_sub(start_ns) > limit_ns {
            return false;
        }
        core::hint::spin_loop();
    }
}
