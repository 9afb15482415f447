//! What the host's devices may reach by DMA, where there is an IOMMU: their drivers' memory, and, for disks, the memory of
//! the VMs that use them, for as long as they do.
//!
//! [`start`] turns the units on before the first driver starts: from then on a device reaches nothing. [`driving`] says
//! whose driver works, so that what it allocates is its device's, and [`Grant`] puts a VM's memory in a disk's reach.
//! Addresses are not changed: a device sees memory where the processor does.

use addr::{Gpa, Hpa, LARGE_PAGE_BYTES, PAGE_BYTES};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use drivers::pci;
use iommu::{Abilities, Coverage, Fault, Found, IoTables, Kind, Reserved, Source, Stuck};
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
    for Fault { source, address, write } in new.take(FAULTS_TAKEN_MAX) {
        *faults += 1;
        if *faults <= FAULTS_TOLD_MAX {
            let what = match write {
                Some(true) => "write to",
                Some(false) => "read of",
                None => "access to",
            };
            log::warn!("the device at {source} was kept from a {what} {address:#x}: it was not given that memory");
        }
        if *faults == FAULTS_TOLD_MAX {
            log::warn!("further stray accesses are counted only: see \"host\"");
        }
    }
    Some(now_ns + FAULTS_NS)
}

/// What the report says of it.
pub fn report() -> Dma {
    let Some(confinement) = CONFINEMENT.get() else {
        let why = ABSENCE.get().map_or("it was not started", String::as_str);
        return Dma { confined: false, description: format!("no IOMMU: {why}; devices reach all memory"), stopped: 0 };
    };
    let confinement = confinement.lock();
    let name = match confinement.kind {
        Kind::VtD => "VT-d",
        Kind::AmdVi => "AMD-Vi",
    };
    let description = format!("{name}: {} devices reach what they were given", confinement.domains.len());
    Dma { confined: true, description, stopped: confinement.faults }
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
        let iommu::Machine { kind, mut units, reserved, aliases } = machine;
        for found in &mut units {
            found.unit.enable().map_err(|Stuck| "a unit does not start".to_string())?;
        }
        Ok(Self { kind, units, reserved, aliases, domains: Vec::new(), driving: None, faults: 0 })
    }

    /// The domain of a device, made when it is first asked for. `None` where no unit covers the device, or where it cannot
    /// be given one: then it reaches nothing.
    fn domain(&mut self, source: Source) -> Option<usize> {
        if let Some(known) = self.domains.iter().position(|domain| domain.source == source) {
            return Some(known);
        }
        let rest = || self.units.iter().position(|found| found.coverage == Coverage::Rest);
        let unit = self.units.iter().position(|found| found.coverage.names(source)).or_else(rest)?;
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

    /// Lets the unit know of a domain, under every requester ID that its device uses.
    fn join(&mut self, number: usize) -> Result<(), Stuck> {
        let Domain { source, unit, tables, .. } = &self.domains[number];
        let (source, root) = (*source, tables.root());
        let unit = &mut self.units[*unit].unit;
        let aliases = self.aliases.iter().filter(|(device, _)| *device == source).map(|(_, alias)| *alias);
        for id in core::iter::once(source).chain(aliases) {
            unit.assign(id, number_of(number), root)?;
        }
        Ok(())
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
