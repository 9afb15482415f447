//! What the host's devices may reach by DMA, where there is an IOMMU: their drivers' memory, and, for disks, the memory of
//! the VMs that use them, for as long as they do; and which interrupts they may raise: their own.
//!
//! [`start`] turns the units on before the first driver starts: from then on a device reaches nothing. [`driving`] says
//! whose driver works, so that what it allocates is its device's, [`message`] lets a device interrupt a processor, and
//! [`Grant`] puts a VM's memory in a disk's reach. Addresses are not changed: a device sees memory where the processor
//! does.

use addr::{Gpa, Hpa, LARGE_PAGE_BYTES, PAGE_BYTES};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use drivers::pci;
use interrupts::local_apic;
use iommu::{Abilities, Access, Coverage, Fault, Found, IoApic, IoTables, Kind, Remapping, Reserved, Source, Stuck};
use memory::DmaWatch;
use nested::amdvi::AmdVi;
use nested::vtd::VtD;
use nested::{Format, OutOfMemory, PageSize, Tables};
use platform::Platform;
use shell::Dma;
use spin::{Mutex, Once};

/// How often units are asked for accesses that they stopped.
pub const FAULTS_NS: u64 = 1_000_000_000;
/// So many are told of; the rest is counted.
const FAULTS_TOLD_MAX: u64 = 16;
/// Of one look, so many are taken at most: a device can make them faster than they are read.
const FAULTS_TAKEN_MAX: usize = 256;

static CONFINEMENT: Once<Mutex<Confinement>> = Once::new();
/// Why there is none.
static ABSENCE: Once<String> = Once::new();

/// The IOMMUs, and what each device was given.
struct Confinement {
    kind: Kind,
    units: Vec<Found>,
    reserved: Vec<Reserved>,
    aliases: Vec<(Source, Source)>,
    /// Those whose interrupts the units see. Empty, where interrupts are not remapped.
    io_apics: Vec<IoApic>,
    /// Whether an interrupt needs a route.
    remaps: bool,
    /// Domain `n` is number `n + 1`.
    domains: Vec<Domain>,
    /// The device whose driver works now.
    driving: Option<Source>,
    faults: u64,
}

/// What one device reaches.
struct Domain {
    source: Source,
    unit: usize,
    abilities: Abilities,
    tables: DomainTables,
}

enum DomainTables {
    VtD(Tables<VtD, IoTables>),
    AmdVi(Tables<AmdVi, IoTables>),
}

/// That a device reaches memory of a VM. What it was given must be taken back, or stays in its reach for ever.
pub struct Grant {
    domain: usize,
}

/// Turns the IOMMUs on, if there are any that can be used.
pub fn start(platform: &Platform) {
    match Confinement::begin(platform) {
        Ok(confinement) => {
            CONFINEMENT.call_once(|| Mutex::new(confinement));
            memory::watch_dma(DmaWatch { taken, given_back });
        }
        Err(why) => drop(ABSENCE.call_once(|| why)),
    }
}

/// Calls `act`, in which the driver of the device at `source` works: memory that it takes is in its device's reach. What
/// is taken outside of such a call is in no device's.
pub fn driving<R>(source: Source, act: impl FnOnce() -> R) -> R {
    let set = |device| {
        if let Some(confinement) = CONFINEMENT.get() {
            confinement.lock().driving = device;
        }
    };
    set(Some(source));
    let result = act();
    set(None);
    result
}

/// Lets a device interrupt the processor with APIC ID `to` by `vector`, and no other by that vector any more. Gives the
/// address and data of the message; `None` where none reaches that processor.
pub fn message(source: Source, to: u32, vector: u8) -> Option<(u64, u32)> {
    match CONFINEMENT.get() {
        Some(confinement) => confinement.lock().message(source, to, vector),
        None => local_apic::msi(to, vector),
    }
}

/// As [`message`], for what the I/O APIC with this ID signals.
pub fn io_apic_message(id: u8, to: u32, vector: u8) -> Option<(u64, u32)> {
    let remapped = CONFINEMENT.get().map(|confinement| confinement.lock());
    let known = remapped.and_then(|mut confinement| {
        let IoApic { source, unit, .. } = confinement.io_apics.iter().find(|apic| apic.id == id).copied()?;
        Some(confinement.route(unit, source, to, vector))
    });
    known.unwrap_or_else(|| local_apic::msi(to, vector))
}

/// Whether interrupts pass by an IOMMU. Its routes are for messages and edges.
pub fn remaps_interrupts() -> bool {
    CONFINEMENT.get().is_some_and(|confinement| confinement.lock().remaps)
}

/// Puts memory in a device's reach; `None` where nothing is confined.
pub fn grant(source: Source, runs: &[(Hpa, u64)]) -> Result<Option<Grant>, OutOfMemory> {
    let Some(confinement) = CONFINEMENT.get() else { return Ok(None) };
    let Some(domain) = confinement.lock().domain(source) else { return Ok(None) };
    let grant = Grant { domain };
    grant.give(runs).map(|()| Some(grant))
}

impl Grant {
    /// Puts more memory in the device's reach: all of it, or nothing.
    pub fn give(&self, runs: &[(Hpa, u64)]) -> Result<(), OutOfMemory> {
        let mut confinement = CONFINEMENT.get().expect("a grant comes from here").lock();
        confinement.give(self.domain, runs).inspect_err(|_| {
            // A unit that does not answer says so when the VM ends.
            let _ = confinement.take(self.domain, runs);
        })
    }

    /// Takes memory out of the device's reach. False where the unit does not answer: then it may still be reached, and
    /// nobody else may have it.
    pub fn take(&self, runs: &[(Hpa, u64)]) -> bool {
        let confinement = CONFINEMENT.get().expect("a grant comes from here");
        confinement.lock().take(self.domain, runs).is_ok()
    }
}

/// Tells of accesses that were stopped since the last call; returns when to look again, if ever.
pub fn tell_of_faults(now_ns: u64) -> Option<u64> {
    let mut confinement = CONFINEMENT.get()?.lock();
    let Confinement { units, faults, .. } = &mut *confinement;
    let new = units.iter_mut().flat_map(|found| core::iter::from_fn(|| found.unit.next_fault()));
    for Fault { source, access } in new.take(FAULTS_TAKEN_MAX) {
        *faults += 1;
        if *faults <= FAULTS_TOLD_MAX {
            tell(source, access);
        }
        if *faults == FAULTS_TOLD_MAX {
            log::warn!("further stray accesses are counted only: see \"host\"");
        }
    }
    Some(now_ns + FAULTS_NS)
}

fn tell(source: Source, access: Access) {
    let (what, address) = match access {
        Access::Interrupt => {
            return log::warn!("the device at {source} was kept from an interrupt that is not its own");
        }
        Access::Memory { address, write: Some(true) } => ("write to", address),
        Access::Memory { address, write: Some(false) } => ("read of", address),
        Access::Memory { address, write: None } => ("access to", address),
    };
    log::warn!("the device at {source} was kept from a {what} {address:#x}: it was not given that memory");
}

/// What the report says of it.
pub fn report() -> Dma {
    let Some(confinement) = CONFINEMENT.get() else {
        let why = ABSENCE.get().map_or("it was not started", String::as_str);
        let description = format!("no IOMMU: {why}; devices reach all memory");
        return Dma { confined: false, interrupts_confined: false, description, stopped: 0 };
    };
    let confinement = confinement.lock();
    let name = match confinement.kind {
        Kind::VtD => "VT-d",
        Kind::AmdVi => "AMD-Vi",
    };
    let interrupts = if confinement.remaps { "raise their own interrupts" } else { "may raise any interrupt" };
    let count = confinement.domains.len();
    let description = format!("{name}: {count} devices reach what they were given, and {interrupts}");
    Dma { confined: true, interrupts_confined: confinement.remaps, description, stopped: confinement.faults }
}

/// A driver takes memory.
fn taken(start: Hpa, bytes: u64) -> bool {
    let Some(confinement) = CONFINEMENT.get() else { return true };
    let mut confinement = confinement.lock();
    let Some(source) = confinement.driving else { return true };
    confinement.domain(source).is_some_and(|domain| confinement.give(domain, &[(start, bytes)]).is_ok())
}

/// A driver gives memory back; false where its device may still reach it.
fn given_back(start: Hpa, bytes: u64) -> bool {
    let Some(confinement) = CONFINEMENT.get() else { return true };
    let mut confinement = confinement.lock();
    let holders = (0..confinement.domains.len()).filter(|&domain| confinement.domains[domain].tables.reaches(start));
    let holders: Vec<usize> = holders.collect();
    holders.into_iter().all(|domain| confinement.take(domain, &[(start, bytes)]).is_ok())
}

impl Confinement {
    fn begin(platform: &Platform) -> Result<Self, String> {
        let machine = iommu::find(platform, &|bridge| pci::buses_behind(bridge.0))?;
        let iommu::Machine { kind, mut units, reserved, aliases, io_apics, remaps_interrupts } = machine;
        // One that nobody knows could not interrupt any more.
        let is_known = |id| io_apics.iter().any(|apic| apic.id == id && apic.unit < units.len());
        let remaps = remaps_interrupts
            && units.iter().all(|found| found.unit.abilities().remaps_interrupts)
            && platform.io_apics.iter().all(|apic| is_known(apic.id));
        let remapping = remaps.then(|| Remapping { x2apic: local_apic::modes().0 });
        for found in &mut units {
            found.unit.enable(remapping).map_err(|Stuck| "a unit does not start".to_string())?;
        }
        let io_apics = if remaps { io_apics } else { Vec::new() };
        let (domains, driving, faults) = (Vec::new(), None, 0);
        Ok(Self { kind, units, reserved, aliases, io_apics, remaps, domains, driving, faults })
    }

    /// The domain of a device, made when it is first asked for. `None` where no unit covers the device, or where it cannot
    /// be given one: then it reaches nothing.
    fn domain(&mut self, source: Source) -> Option<usize> {
        if let Some(known) = self.domains.iter().position(|domain| domain.source == source) {
            return Some(known);
        }
        let unit = self.unit_of(source)?;
        let abilities = self.units[unit].unit.abilities();
        let memory = IoTables { flush: !abilities.coherent };
        let tables = match self.kind {
            Kind::VtD => Tables::new(memory).map(DomainTables::VtD),
            Kind::AmdVi => Tables::new(memory).map(DomainTables::AmdVi),
        };
        let number = self.domains.len();
        self.domains.push(Domain { source, unit, abilities, tables: tables.ok()? });
        let own = self.reserved.iter().filter(|reserved| reserved.sources.names(source));
        let own: Vec<_> = own.map(|reserved| (reserved.start, reserved.bytes)).collect();
        let joined = self.give(number, &own).map_err(|OutOfMemory| Stuck).and_then(|()| self.join(number));
        if joined.is_err() {
            log::error!("the device at {source} cannot be confined: it reaches nothing");
        }
        Some(number)
    }

    /// The unit that covers a device.
    fn unit_of(&self, source: Source) -> Option<usize> {
        let rest = || self.units.iter().position(|found| found.coverage == Coverage::Rest);
        self.units.iter().position(|found| found.coverage.names(source)).or_else(rest)
    }

    /// Every requester ID that a device uses.
    fn ids(&self, source: Source) -> Vec<Source> {
        let aliases = self.aliases.iter().filter(|(device, _)| *device == source).map(|(_, alias)| *alias);
        core::iter::once(source).chain(aliases).collect()
    }

    fn message(&mut self, source: Source, to: u32, vector: u8) -> Option<(u64, u32)> {
        match self.unit_of(source).filter(|_| self.remaps) {
            Some(unit) => self.ids(source).into_iter().map(|id| self.route(unit, id, to, vector)).last()?,
            None => local_apic::msi(to, vector),
        }
    }

    fn route(&mut self, unit: usize, source: Source, to: u32, vector: u8) -> Option<(u64, u32)> {
        self.units[unit].unit.route(source, to, vector).unwrap_or_else(|Stuck| {
            log::error!("an interrupt of {source} could not be routed: its IOMMU does not answer");
            None
        })
    }

    /// Lets the unit know of a domain, under every requester ID that its device uses.
    fn join(&mut self, number: usize) -> Result<(), Stuck> {
        let Domain { source, unit, tables, .. } = &self.domains[number];
        let (ids, root, unit) = (self.ids(*source), tables.root(), *unit);
        let unit = &mut self.units[unit].unit;
        ids.into_iter().try_for_each(|id| unit.assign(id, number_of(number), root))
    }

    fn give(&mut self, domain: usize, runs: &[(Hpa, u64)]) -> Result<(), OutOfMemory> {
        let Domain { unit, abilities, tables, .. } = &mut self.domains[domain];
        let result = runs.iter().try_for_each(|&(start, bytes)| {
            let large_pages = abilities.large_pages;
            pages(start, bytes).try_for_each(|(page, size)| tables.map(page, size, large_pages))
        });
        if abilities.caches_absence {
            // A unit that is stuck stops the access; that is safe.
            let _ = self.units[*unit].unit.invalidate(number_of(domain));
        }
        result
    }

    fn take(&mut self, domain: usize, runs: &[(Hpa, u64)]) -> Result<(), Stuck> {
        let Domain { unit, tables, .. } = &mut self.domains[domain];
        for &(start, bytes) in runs {
            pages(start, bytes).for_each(|(page, size)| tables.unmap(page, size));
        }
        self.units[*unit].unit.invalidate(number_of(domain))
    }
}

impl DomainTables {
    fn root(&self) -> Hpa {
        match self {
            Self::VtD(tables) => tables.root(),
            Self::AmdVi(tables) => tables.root(),
        }
    }

    fn reaches(&self, address: Hpa) -> bool {
        let address = Gpa::new(address.as_u64());
        match self {
            Self::VtD(tables) => tables.translate(address).is_some(),
            Self::AmdVi(tables) => tables.translate(address).is_some(),
        }
    }

    fn map(&mut self, page: Hpa, size: PageSize, large_pages: bool) -> Result<(), OutOfMemory> {
        match self {
            Self::VtD(tables) => map(tables, page, size, large_pages),
            Self::AmdVi(tables) => map(tables, page, size, large_pages),
        }
    }

    fn unmap(&mut self, page: Hpa, size: PageSize) {
        match self {
            Self::VtD(tables) => unmap(tables, page, size),
            Self::AmdVi(tables) => unmap(tables, page, size),
        }
    }
}

/// Maps a page at its own address. A large one is mapped by its parts where the unit has no large pages, or where a table
/// stands from when its parts belonged to a driver.
fn map<F: Format>(
    tables: &mut Tables<F, IoTables>,
    page: Hpa,
    size: PageSize,
    large_pages: bool,
) -> Result<(), OutOfMemory> {
    let at = |page: Hpa| Gpa::new(page.as_u64());
    if size == PageSize::Large && (!large_pages || tables.is_split(at(page), size)) {
        return parts(page).try_for_each(|part| tables.map(at(part), part, PageSize::Small));
    }
    tables.map(at(page), page, size)
}

/// Takes a page away that [`map`] put there, which needs no memory: no error can come.
fn unmap<F: Format>(tables: &mut Tables<F, IoTables>, page: Hpa, size: PageSize) {
    let at = |page: Hpa| Gpa::new(page.as_u64());
    if size == PageSize::Large && tables.is_split(at(page), size) {
        for part in parts(page) {
            let _ = tables.unmap(at(part), PageSize::Small);
        }
    } else {
        let _ = tables.unmap(at(page), size);
    }
}

/// The small pages of a large one.
fn parts(page: Hpa) -> impl Iterator<Item = Hpa> {
    (0..LARGE_PAGE_BYTES).step_by(PAGE_BYTES as usize).map(move |offset| page.wrapping_add(offset))
}

/// The number of the domain at an index. Number 0 stands for no domain.
fn number_of(index: usize) -> u16 {
    index as u16 + 1
}

/// The pages of a run, large where it is aligned for that.
fn pages(start: Hpa, bytes: u64) -> impl Iterator<Item = (Hpa, PageSize)> {
    let mut at = start.align_down(PAGE_BYTES);
    let end = start.as_u64().saturating_add(bytes);
    core::iter::from_fn(move || {
        let left = end.checked_sub(at.as_u64()).filter(|&left| left > 0)?;
        let fits = at.is_aligned(LARGE_PAGE_BYTES) && left >= LARGE_PAGE_BYTES;
        let page = (at, if fits { PageSize::Large } else { PageSize::Small });
        at = at.wrapping_add(page.1.bytes());
        Some(page)
    })
}
