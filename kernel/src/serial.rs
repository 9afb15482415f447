//! Which UART the operator's console is on: the one that the firmware uses, else COM1, else COM2, else one on PCI.
//!
//! [`choose`] decides once at start-up; the console, and a dying host, [`open`] it.

use crate::isa;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use drivers::pci::Function;
use drivers::uart::{Line, Place, SerialPort};
use firmware::spcr;
use memory::Dma;
use platform::Platform;
use spin::{Mutex, Once};

/// What [`choose`] chose.
static CHOICE: Once<Option<Choice>> = Once::new();
/// UARTs that were found on PCI.
static ON_PCI: Mutex<Vec<Function>> = Mutex::new(Vec::new());

/// A line that answers.
struct Choice {
    line: Line,
    source: Source,
    /// Keys raise an interrupt; else they are asked for.
    has_interrupt: bool,
}

/// Why this one.
enum Source {
    Firmware,
    Legacy,
    Pci(String),
}

impl fmt::Display for Choice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line.place() {
            Place::Ports(0x3f8) => write!(out, "COM1")?,
            Place::Ports(0x2f8) => write!(out, "COM2")?,
            Place::Ports(first) => write!(out, "UART at port {first:#x}")?,
            Place::Memory { address, .. } => write!(out, "UART at {address:#x}")?,
        }
        match &self.source {
            Source::Firmware => write!(out, ", as the firmware's (SPCR)")?,
            Source::Legacy => {}
            Source::Pci(place) => write!(out, ", PCI {place}")?,
        }
        match self.line.baud() {
            Some(baud) => write!(out, ", {baud} baud")?,
            None => write!(out, ", at the firmware's rate")?,
        }
        write!(out, ", {}", if self.has_interrupt { "interrupt" } else { "polled" })
    }
}

/// Takes a PCI function that is a UART; gives every other back.
pub fn offer(function: Function) -> Option<Function> {
    if !Line::is_uart(&function) {
        return Some(function);
    }
    ON_PCI.lock().push(function);
    None
}

/// Finds the console's UART, and brings its interrupt to this processor where it has one. Called once, after the PCI bus
/// was looked at and before other processors start.
pub fn choose(platform: &Platform) {
    let found = declared(platform)
        .map(|(line, irq)| (line, irq, Source::Firmware))
        .or_else(|| legacy().map(|(line, irq)| (line, Some(irq), Source::Legacy)))
        .or_else(|| on_pci().map(|(line, place)| (line, None, Source::Pci(place))));
    CHOICE.call_once(|| {
        found.map(|(line, irq, source)| {
            let has_interrupt = irq.is_some_and(|irq| route(platform, irq));
            Choice { line, source, has_interrupt }
        })
    });
}

/// Opens the console's line; before there is one, COM1, for the last words of a start-up that fails.
pub fn open() -> Option<SerialPort> {
    let line = CHOICE.get().map_or(Some(Line::COM1), |choice| choice.as_ref().map(|choice| choice.line))?;
    SerialPort::open(line)
}

/// Whether keys raise an interrupt.
pub fn has_interrupt() -> bool {
    CHOICE.get().and_then(Option::as_ref).is_some_and(|choice| choice.has_interrupt)
}

/// Says in the log what was chosen.
pub fn report() {
    match CHOICE.get().and_then(Option::as_ref) {
        Some(choice) => log::info!("console: {choice}"),
        None => log::warn!("no UART was found: no console, the log only"),
    }
}

/// The line that the firmware's table names, if it answers.
fn declared(platform: &Platform) -> Option<(Line, Option<u8>)> {
    let console = match spcr::console(platform.console_table?) {
        Ok(console) => console,
        Err(spcr::Refusal::Disabled) => return None,
        Err(refusal) => {
            log::warn!("the firmware's console (SPCR) cannot be used: {refusal:?}");
            return None;
        }
    };
    if let Some(at) = console.pci {
        let is_it = |function: &&mut Function| {
            let address = function.address();
            (address.bus(), address.device(), address.function()) == (at.bus, at.device, at.function)
        };
        // The table gives the address; the function must answer to it.
        ON_PCI.lock().iter_mut().filter(is_it).for_each(|function| {
            let _ = Line::of_pci::<Dma>(function);
        });
    }
    let place = match console.place {
        spcr::Place::Ports(first) => Place::Ports(first),
        spcr::Place::Memory { address, wide } => Place::Memory { address, wide },
    };
    let line = Line::declared::<Dma>(place, console.baud, console.clock_hz);
    let line = line.filter(|&line| SerialPort::open(line).is_some());
    if line.is_none() {
        log::warn!("the firmware's console (SPCR) does not answer: another is looked for");
    }
    Some((line?, console.irq))
}

/// The first of a PC's serial ports that answers.
fn legacy() -> Option<(Line, u8)> {
    [(Line::COM1, 4), (Line::COM2, 3)].into_iter().find(|(line, _)| SerialPort::open(*line).is_some())
}

/// The first UART on PCI that answers. Its interrupt would be a level, which must not be let in before its cause is
/// taken away; so it is polled.
fn on_pci() -> Option<(Line, String)> {
    ON_PCI.lock().iter_mut().find_map(|function| {
        let line = Line::of_pci::<Dma>(function).filter(|&line| SerialPort::open(line).is_some())?;
        Some((line, function.to_string()))
    })
}

/// Brings its interrupt to this processor, where there is one to be had.
fn route(platform: &Platform, irq: u8) -> bool {
    platform.isa_input(irq).is_some()
        && interrupts::take_device_vector().is_some_and(|vector| isa::route(platform, irq, vector))
}
