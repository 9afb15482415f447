//! IOMMUs: what a host device may reach by DMA, and which interrupts it may raise, on Intel VT-d and AMD-Vi.
//!
//! The main type is [`Unit`], one IOMMU: it joins a device ([`Source`]) to the tables of a domain, lets it interrupt a
//! processor, forgets what it cached, and tells of accesses that it stopped. [`find`] reads the firmware's table of them ([`dmar`] and [`ivrs`]).
//! Which device gets what is the kernel's business (`kernel/src/confinement.rs`); what a device was not given, it cannot
//! reach.
#![cfg_attr(not(test), no_std)]
#![expect(unsafe_code, reason = "IOMMUs are driven by registers and shared memory")]

extern crate alloc;

mod amdvi;
mod dmar;
mod ivrs;
mod registers;
mod shared;
mod table;
mod vtd;

pub use shared::IoTables;

use addr::Hpa;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use platform::Platform;

/// A requester ID: what a device's accesses carry (PCI Express Base 2.2.6.2). Bus, device and function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Source(pub u16);

impl Source {
    /// The function at this place.
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | (device as u16 & 31) << 3 | function as u16 & 7)
    }

    /// Its bus.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Its device and function as one byte.
    const fn slot(self) -> u8 {
        self.0 as u8
    }
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:02x}:{:02x}.{}", self.bus(), self.slot() >> 3, self.slot() & 7)
    }
}

/// An access that an IOMMU stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Who tried.
    pub source: Source,
    /// What it tried.
    pub access: Access,
}

/// What a device tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// To reach memory.
    Memory {
        /// The address it asked for.
        address: u64,
        /// Whether it wanted to write, where that is known.
        write: Option<bool>,
    },
    /// To interrupt a processor.
    Interrupt,
}

/// The unit did not do what it was told within the time in which any would.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stuck;

/// The format of a unit's tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Intel's.
    VtD,
    /// AMD's.
    AmdVi,
}

/// What a unit's tables may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abilities {
    /// Pages of 2 MiB.
    pub large_pages: bool,
    /// Whether it sees what the processor's caches hold. Otherwise table entries must be flushed from them.
    pub coherent: bool,
    /// Whether it may keep in mind that something was not mapped.
    pub caches_absence: bool,
    /// Whether it can stop interrupts.
    pub remaps_interrupts: bool,
}

/// How interrupts are remapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remapping {
    /// The processors' local APICs have IDs of 32 bits.
    pub x2apic: bool,
}

/// One IOMMU.
pub trait Unit: Send {
    /// What it can do.
    fn abilities(&self) -> Abilities;

    /// From now on every access of the devices that it covers is translated. What no domain was given to is stopped; so is,
    /// with `remapping`, an interrupt that no route was made for.
    fn enable(&mut self, remapping: Option<Remapping>) -> Result<(), Stuck>;

    /// Gives a device the four-level tables at `root`, as domain number `domain`, which is not 0.
    fn assign(&mut self, source: Source, domain: u16, root: Hpa) -> Result<(), Stuck>;

    /// Lets a device, or an I/O APIC, interrupt the processor with APIC ID `to` by `vector`, and no other processor by that
    /// vector any more. Gives the address and data of the message that does so; `None` where that ID cannot be named.
    fn route(&mut self, source: Source, to: u32, vector: u8) -> Result<Option<(u64, u32)>, Stuck>;

    /// Forgets what it cached of a domain's tables. When this returns, no access by the old ones is under way.
    fn invalidate(&mut self, domain: u16) -> Result<(), Stuck>;

    /// The next access that it stopped and that was not told of. It may lose some when there are many.
    fn next_fault(&mut self) -> Option<Fault>;
}

/// A unit with the devices that it covers.
pub struct Found {
    /// The unit, not enabled.
    pub unit: Box<dyn Unit>,
    /// Who its domains are for.
    pub coverage: Coverage,
}

/// Devices that a unit covers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Coverage {
    /// These, from first to last.
    Ranges(Vec<(Source, Source)>),
    /// All that no other unit covers.
    Rest,
}

impl Coverage {
    /// Whether the unit covers a device by name.
    pub fn names(&self, source: Source) -> bool {
        match self {
            Self::Ranges(ranges) => ranges.iter().any(|&(first, last)| (first..=last).contains(&source)),
            Self::Rest => false,
        }
    }
}

/// Memory that the firmware says a device must reach at all times: a legacy keyboard's, a graphics card's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reserved {
    /// The devices.
    pub sources: Coverage,
    /// Its first byte.
    pub start: Hpa,
    /// Its length.
    pub bytes: u64,
}

/// Where a unit is and whom it covers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its registers.
    pub base: Hpa,
    /// Its devices.
    pub coverage: Coverage,
}

/// What a DMAR or IVRS table says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Description {
    /// The units of segment 0.
    pub units: Vec<Place>,
    /// What devices must reach at all times.
    pub reserved: Vec<Reserved>,
    /// Devices and the requester IDs under which their accesses come, where those are not their own.
    pub aliases: Vec<(Source, Source)>,
    /// The I/O APICs whose interrupts the units see.
    pub io_apics: Vec<IoApic>,
    /// Whether the machine is built for remapped interrupts.
    pub remaps_interrupts: bool,
}

/// An I/O APIC, as a source of interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoApic {
    /// Its ID in the MADT.
    pub id: u8,
    /// What its interrupts carry.
    pub source: Source,
    /// The unit that sees them, by its place among the units.
    pub unit: usize,
}

/// A machine's IOMMUs.
pub struct Machine {
    /// Whose they are.
    pub kind: Kind,
    /// The units.
    pub units: Vec<Found>,
    /// As in [`Description`].
    pub reserved: Vec<Reserved>,
    /// As in [`Description`].
    pub aliases: Vec<(Source, Source)>,
    /// As in [`Description`].
    pub io_apics: Vec<IoApic>,
    /// As in [`Description`].
    pub remaps_interrupts: bool,
}

/// Whether the units have been taken over.
static FOUND: AtomicBool = AtomicBool::new(false);

/// Takes over the units that the firmware names. Only the first call gives any. `buses` gives the first and last bus behind
/// the bridge at a place. An error says why units cannot be used.
pub fn find(platform: &Platform, buses: &dyn Fn(Source) -> Option<(u8, u8)>) -> Result<Machine, String> {
    let table = platform.iommus().ok_or("the firmware names none")?;
    if FOUND.swap(true, Ordering::AcqRel) {
        return Err("others drive the units".into());
    }
    let (kind, description) = match table.first_chunk() {
        Some(b"DMAR") => (Kind::VtD, dmar::parse(table, buses)),
        Some(b"IVRS") => (Kind::AmdVi, ivrs::parse(table)),
        _ => return Err("their table is of no kind that Pollux knows".into()),
    };
    let Description { units, reserved, aliases, io_apics, remaps_interrupts } =
        description.ok_or("their table is malformed")?;
    let open = |place: Place| {
        let unit: Box<dyn Unit> = match kind {
            // SAFETY: the firmware says that a unit is there, and this is the only call that takes it.
            Kind::VtD => Box::new(unsafe { vtd::VtD::open(place.base) }?),
            // SAFETY: as above.
            Kind::AmdVi => Box::new(unsafe { amdvi::AmdVi::open(place.base) }?),
        };
        Ok(Found { unit, coverage: place.coverage })
    };
    let units = units.into_iter().map(open).collect::<Result<_, String>>()?;
    Ok(Machine { kind, units, reserved, aliases, io_apics, remaps_interrupts })
}

/// What a message that is an interrupt is written to (Intel SDM volume 3, section 11.11.1).
const MESSAGE: u64 = 0xfee0_0000;
/// The highest APIC ID that fits 8 bits and is not everybody.
const SHORT_ID_MAX: u32 = 254;

/// How often a register or a word in memory is read before its unit counts as stuck.
const READS_MAX: u32 = 10_000_000;

/// Waits until `done`.
fn wait(mut done: impl FnMut() -> bool) -> Result<(), Stuck> {
    for _ in 0..READS_MAX {
        if done() {
            return Ok(());
        }
        core::hint::spin_loop();
    }
    Err(Stuck)
}
