//! NVMe disks (NVM Express Base Specification 2.0; NVM Command Set Specification 1.0; NVMe over PCIe Transport
//! Specification 1.0).
//!
//! The main function is [`start`], which makes a [`block::Disk`] of each active namespace of a controller;
//! [`controller::Controller`] is what they share. The controller's registers are behind [`Port`], so that tests and the
//! fuzzer play the controller. Data goes to and from the runs of a transfer by DMA.

mod command;
mod controller;
mod data;
mod identify;
mod lane;
mod namespace;
mod pair;
mod pci;

pub use namespace::Namespace;
pub(crate) use pci::start_function;

use crate::dma::DmaMemory;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use command::{Command, Subject};
use controller::Controller;
use core::fmt;
use identify::{ControllerFacts, IDENTIFY_BYTES, NamespaceFacts, active_namespaces};
use pair::Broken;
use spin::Mutex;
use virtio_drivers::Hal;

/// Namespaces of one controller that become disks.
const NAMESPACES_MAX: u16 = 16;

/// A controller's registers and what else only its bus can do.
pub trait Port: Send {
    /// Reads the 32-bit register at `offset`; all ones where the device is gone.
    fn read(&self, offset: usize) -> u32;
    /// Writes the 32-bit register at `offset`.
    fn write(&mut self, offset: usize, value: u32);
    /// Whether the device is still on its bus. Its registers need not show that it is gone: some buses give zeroes.
    fn is_present(&self) -> bool;
    /// How many bytes of registers there are.
    fn bytes(&self) -> usize;
    /// Takes DMA from the device, whatever state it is in.
    fn stop_dma(&mut self);
    /// Has the device's messages go to another processor.
    fn aim_interrupt(&mut self, address: u64) {
        let _ = address;
    }
    /// The number of the processor that calls: each uses a queue of its own where there are enough.
    fn cpu(&self) -> usize;
}

/// Why a controller could not be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Its registers are not in a memory BAR, or too few.
    Registers,
    /// It does not answer any more.
    Gone,
    /// It is of a kind that this driver does not know, or absurd: why.
    Unusable(&'static str),
    /// It does not start.
    Stuck,
    /// It does not say what it is.
    Silent,
    /// There is no memory for its queues.
    Memory,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registers => write!(out, "its registers have no address"),
            Self::Gone => write!(out, "it is gone"),
            Self::Unusable(why) => write!(out, "{why}"),
            Self::Stuck => write!(out, "it does not start"),
            Self::Silent => write!(out, "it does not say what it is"),
            Self::Memory => write!(out, "no memory for its queues"),
        }
    }
}

/// Starts a controller called `name` and gives its active namespaces as disks. Waits for the controller by the clock
/// `now_ns`, as long as it says that it may take. `interrupts`: whether completions raise the message that its bus was
/// set up with.
pub fn start<H: Hal, P: Port>(
    port: P,
    name: &str,
    interrupts: bool,
    now_ns: &dyn Fn() -> u64,
) -> Result<Vec<Namespace<H, P>>, Fault> {
    let mut controller = Controller::<H, P>::new(port, name.into(), interrupts, now_ns())?;
    let result = set_up(&mut controller, name, interrupts, now_ns);
    if result.is_err() && controller.health() != block::Health::Failed {
        controller.fail("it cannot be used");
    }
    let (mut disks, shared) = (result?, Arc::new(Mutex::new(controller)));
    Ok(disks.drain(..).map(|disk| disk.of(shared.clone())).collect())
}

/// Everything between the first stop and a controller that works.
fn set_up<H: Hal, P: Port>(
    controller: &mut Controller<H, P>,
    name: &str,
    interrupts: bool,
    now_ns: &dyn Fn() -> u64,
) -> Result<Vec<namespace::Draft>, Fault> {
    wait(controller, now_ns)?;
    let mut page = DmaMemory::<H>::new(IDENTIFY_BYTES).ok_or(Fault::Memory)?;
    let identified = identify(controller, &mut page, now_ns);
    if identified.is_err() {
        // It may yet write there.
        controller.fail("it does not say what it is");
    }
    let (facts, found) = identified?;
    // It gives at most `NAMESPACES_MAX`.
    let lanes = controller.lanes_each(found.len() as u16);
    let mut disks = Vec::new();
    for (number, namespace) in found {
        let name = if disks.is_empty() { String::from(name) } else { format!("{name} namespace {number}") };
        if controller.lanes_left() < lanes {
            log::warn!("{name}: not used: the controller grants too few queues");
            continue;
        }
        disks.push(namespace::Draft::new(controller, &facts, &namespace, number, lanes, name, interrupts)?);
    }
    controller.give_queues();
    wait(controller, now_ns)?;
    Ok(disks)
}

/// The controller and its usable namespaces, by number.
type Identified = (ControllerFacts, Vec<(u32, NamespaceFacts)>);

fn identify<H: Hal, P: Port>(
    controller: &mut Controller<H, P>,
    page: &mut DmaMemory<H>,
    now_ns: &dyn Fn() -> u64,
) -> Result<Identified, Fault> {
    let mut ask = |subject| ask(controller, page, subject, now_ns);
    let facts = ControllerFacts::parse(&ask(Subject::Controller)?.ok_or(Fault::Silent)?)?;
    let numbers = match ask(Subject::Namespaces)? {
        Some(list) => active_namespaces(&list),
        // Controllers of version 1.0 have no list.
        None => (1..=facts.namespaces.min(NAMESPACES_MAX.into())).collect(),
    };
    let mut found = Vec::new();
    for number in numbers {
        if found.len() == usize::from(NAMESPACES_MAX) {
            log::warn!("{}: only {NAMESPACES_MAX} namespaces are used", facts.model);
            break;
        }
        match NamespaceFacts::parse(&ask(Subject::Namespace(number))?.unwrap_or_default()) {
            Ok(Some(namespace)) => found.push((number, namespace)),
            Ok(None) => {}
            Err(why) => log::warn!("{}: namespace {number} is not used: {why}", facts.model),
        }
    }
    Ok((facts, found))
}

/// What the controller says about a subject; `None` where it refuses to.
fn ask<H: Hal, P: Port>(
    controller: &mut Controller<H, P>,
    page: &mut DmaMemory<H>,
    subject: Subject,
    now_ns: &dyn Fn() -> u64,
) -> Result<Option<Vec<u8>>, Fault> {
    for word in 0..IDENTIFY_BYTES / 8 {
        page.store(8 * word, 0_u64);
    }
    controller.give(Command::identify(subject, page.physical(0)));
    let answer = loop {
        controller.watch(now_ns());
        match controller.answer() {
            Ok(Some(answer)) => break answer,
            Ok(None) if controller.is_running() => core::hint::spin_loop(),
            Ok(None) | Err(Broken(_)) => return Err(Fault::Silent),
        }
    };
    let mut bytes = Vec::new();
    page.append_to(0, IDENTIFY_BYTES, &mut bytes);
    Ok(answer.status.is_success().then_some(bytes))
}

/// Waits until the controller has done what it was told.
fn wait<H: Hal, P: Port>(controller: &mut Controller<H, P>, now_ns: &dyn Fn() -> u64) -> Result<(), Fault> {
    loop {
        controller.tick(now_ns());
        match controller.health() {
            block::Health::Ready => return Ok(()),
            block::Health::Failed => return Err(Fault::Stuck),
            block::Health::Recovering => core::hint::spin_loop(),
        }
    }
}

#[cfg(test)]
mod tests;
