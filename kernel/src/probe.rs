//! What this machine has: found at start-up, reported then and by `host`.

use crate::backend::Backend as HostBackend;
use crate::confinement;
use crate::host::Host;
use crate::isa;
use crate::lines;
use crate::network::Network;
use crate::serial;
use crate::storage::{Interrupt, Storage};
use crate::time::Clock;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use block::{Datastore, Health};
use boot::BootInfo;
use config::Config;
use drivers::pci::interrupt::Message;
use drivers::{Interrupts, Probed, pci, probe, read_partitions};
use interrupts::local_apic;
use iommu::Source;
use memory::Dma;
use platform::Platform;
use shell::{Backend, Device, DeviceStatus, Feature};
use spin::Mutex;

/// The boot module with the configuration.
const CONFIG_MODULE: &str = "pollux.toml";
/// How often a silent disk is asked for its partition table.
const DISK_TRIES: u32 = 50_000_000;

/// Disks and network cards, as the report shows them.
static DEVICES: Mutex<(Vec<Device>, Vec<Device>)> = Mutex::new((Vec::new(), Vec::new()));

/// Reads the configuration that travelled on the image. A wrong one is reported, and the defaults hold.
pub fn read_config(boot: &BootInfo) -> Config {
    let Some(module) = boot.modules().iter().find(|module| *module.name == *CONFIG_MODULE) else {
        return Config::default();
    };
    let parsed = core::str::from_utf8(module.bytes).map_err(|_| "it is not UTF-8".to_string());
    parsed.and_then(|text| config::parse(text).map_err(|error| error.to_string())).unwrap_or_else(|error| {
        log::error!("{CONFIG_MODULE}: {error}");
        Config::default()
    })
}

/// Starts the drivers of everything on the PCI bus.
pub fn devices(platform: &Platform, clock: Clock) -> (Storage, Network) {
    let (mut storage, mut network) = (Storage::default(), Network::new());
    for function in pci::enumerate() {
        let Some(function) = serial::offer(function) else { continue };
        let place = function.to_string();
        let address = function.address();
        let source = Source::new(address.bus(), address.device(), address.function());
        let mut line = Line { platform, source, interrupt: None };
        let probed = confinement::driving(source, || probe::<Dma>(function, &mut line, &|| clock.now_ns()));
        let interrupt = line.interrupt;
        match probed {
            Probed::Disks(disks) => disks.into_iter().for_each(|disk| add_disk(&mut storage, disk, source, interrupt)),
            Probed::Nic(nic) => {
                let mac = config::Mac::new(nic.mac()).map_or_else(|| "no address".into(), |mac| mac.to_string());
                let name = format!("nic{}", network.nics().len());
                let how = if nic.has_interrupt() { "" } else { ", polled" };
                DEVICES.lock().1.push(ready(name, format!("{} at {place}, {mac}{how}", nic.name())));
                network.add_nic(nic, interrupt.map(|interrupt| interrupt.vector));
            }
            Probed::Unsupported { what } => add_unsupported(place, &what),
            Probed::Other => {}
        }
    }
    (storage, network)
}

/// A device's interrupt: one vector at this processor, however it comes there.
struct Line<'a> {
    platform: &'a Platform,
    source: Source,
    interrupt: Option<Interrupt>,
}

impl Line<'_> {
    fn vector(&mut self, is_message: bool) -> Option<u8> {
        let known = self.interrupt.map(|interrupt| interrupt.vector);
        let vector = known.or_else(interrupts::take_device_vector)?;
        self.interrupt = Some(Interrupt { vector, is_message });
        Some(vector)
    }
}

impl Interrupts for Line<'_> {
    fn message(&mut self) -> Option<Message> {
        let vector = self.vector(true)?;
        let (address, data) = confinement::message(self.source, local_apic::id(), vector)?;
        Some(Message { address, data })
    }

    fn isa(&mut self, irq: u8) -> bool {
        self.vector(false).is_some_and(|vector| isa::route(self.platform, irq, vector))
    }

    fn line(&mut self, pull: &mut dyn FnMut(bool)) -> bool {
        let is_found = lines::find(self.platform, pull);
        self.interrupt = is_found.then_some(Interrupt { vector: interrupts::LINE, is_message: false });
        is_found
    }
}

/// Writes the start-up report.
pub fn report(host: &Host) {
    let memory_mib = host.memory_bytes() >> 20;
    log::info!("{}, {} CPUs, {memory_mib} MiB of memory", cpu_model(), host.cpus.count());
    let (x2apic, deadline) = local_apic::modes();
    log::info!(
        "TSC {} kHz by {}; {}; timer by {}",
        host.clock.tsc_khz(),
        host.clock.source(),
        if x2apic { "x2APIC" } else { "xAPIC" },
        if deadline { "TSC deadline" } else { "count" },
    );
    serial::report();
    host.platform.notes.iter().for_each(|note| log::warn!("{note}"));
    match &host.backend {
        HostBackend::None(why) => log::error!("no guest can run: {why}"),
        backend => {
            let list = |wanted: bool| {
                let features = backend.features().into_iter().filter(|(_, present)| *present == wanted);
                features.map(|(name, _)| name).collect::<Vec<_>>().join(", ")
            };
            log::info!("{}: ready; {}", backend.name(), list(true));
            log::info!("{}: not there: {}", backend.name(), list(false));
        }
    }
    let dma = confinement::report();
    log::log!(if dma.confined { log::Level::Info } else { log::Level::Warn }, "{}", dma.description);
    let devices = DEVICES.lock();
    for device in devices.0.iter().chain(&devices.1) {
        match &device.status {
            DeviceStatus::Ready => log::info!("{}: {}: ready", device.name, device.description),
            DeviceStatus::Failed => log::error!("{}: {}: failed", device.name, device.description),
            DeviceStatus::NotSupported { reason } => {
                log::warn!("{}: {}: not supported: {reason}", device.name, device.description);
            }
        }
    }
    if devices.0.is_empty() {
        log::warn!("no disk was found");
    }
    if devices.1.is_empty() {
        log::warn!("no network card was found");
    }
}

/// The processor's name.
pub fn cpu_model() -> String {
    let leaves = (0x8000_0002..=0x8000_0004).map(|leaf| cpu::cpuid(leaf, 0));
    let bytes: Vec<u8> = leaves
        .flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
        .flat_map(u32::to_le_bytes)
        .take_while(|&byte| byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).trim().to_string()
}

/// What runs guests.
pub fn backend(host: &Host) -> Backend {
    host.backend.reply()
}

/// The processor's features that matter.
pub fn features(host: &Host) -> Vec<Feature> {
    let (x2apic, deadline) = local_apic::modes();
    let invariant = cpu::cpuid(0x8000_0007, 0).edx & 1 << 8 != 0;
    let huge = cpu::cpuid(0x8000_0001, 0).edx & 1 << 26 != 0;
    let random = cpu::cpuid(1, 0).ecx & 1 << 30 != 0;
    let own = [
        ("x2apic", x2apic),
        ("tsc deadline", deadline),
        ("invariant tsc", invariant),
        ("1 gib pages", huge),
        ("rdrand", random),
    ];
    let own = own.map(|(name, present)| (name.to_string(), present));
    own.into_iter().chain(host.backend.features()).map(|(name, present)| Feature { name, present }).collect()
}

/// The host's disks.
pub fn disks(storage: &Storage) -> Vec<Device> {
    let mut devices = DEVICES.lock().0.clone();
    for datastore in storage.datastores().iter().filter(|datastore| datastore.health() == Health::Failed) {
        let found = devices.iter_mut().find(|device| device.name == datastore.name());
        found.into_iter().for_each(|device| device.status = DeviceStatus::Failed);
    }
    devices
}

/// The host's network cards.
pub fn nics() -> Vec<Device> {
    DEVICES.lock().1.clone()
}

fn add_disk(storage: &mut Storage, mut disk: Box<dyn block::Disk>, source: Source, interrupt: Option<Interrupt>) {
    let name = format!("disk{}", storage.datastores().len());
    let geometry = disk.geometry();
    let size_mib = geometry.sectors >> 11;
    let description = format!("{}, {size_mib} MiB", geometry.name);
    let mut tries = 0;
    let mut is_silent = || {
        tries += 1;
        tries > DISK_TRIES
    };
    let partitions = confinement::driving(source, || read_partitions::<Dma>(&mut *disk, &mut is_silent));
    let partitions = partitions.unwrap_or_else(|error| {
        log::warn!("{name}: {error}: no virtual disks on it");
        Vec::new()
    });
    let description = format!("{description}, {} virtual disks", partitions.len());
    DEVICES.lock().0.push(ready(name.clone(), description));
    storage.add(Datastore::new(name, disk, partitions), source, interrupt);
}

fn add_unsupported(place: String, what: &str) {
    let (description, reason) = match what.strip_suffix(": not supported yet") {
        Some(description) => (description, "no driver yet"),
        None => (what, "its driver could not start it"),
    };
    let status = DeviceStatus::NotSupported { reason: reason.into() };
    let device = Device { name: place, description: description.to_string(), status };
    let is_nic = what.contains("network");
    let mut devices = DEVICES.lock();
    let list = if is_nic { &mut devices.1 } else { &mut devices.0 };
    list.push(device);
}

fn ready(name: String, description: String) -> Device {
    Device { name, description, status: DeviceStatus::Ready }
}
