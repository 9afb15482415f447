//! IOMMUs: guests use their disks through them, and a device that strays, in memory or by interrupts, is stopped.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::tiny;
use crate::bus::Bus;
use crate::{Artifacts, DiskBus, Host, NicModel, SCRATCH_DISK};

/// For a stray access to be told of.
const TOLD_LIMIT: Duration = Duration::from_secs(60);

/// For the device to copy.
const COPY_LIMIT: Duration = Duration::from_secs(60);

/// QEMU's educational device (docs/specs/edu.rst): it copies between its buffer and any address, and interrupts.
const EDU: (u16, u16) = (0x1234, 0x11e8);
const EDU_BUFFER: u64 = 0x4_0000;
const EDU_COPY: u64 = 1;
const EDU_TO_MEMORY: u64 = 2;
const EDU_RAISE: u64 = 0x60;
/// Its MSI capability's ID (PCI Local Bus 3.0, 6.8.1).
const MSI: u32 = 5;
/// What a message is written to, and data that makes it an NMI, which `host` counts (Intel SDM volume 3, 11.11).
const MESSAGE: u64 = 0xfee0_0000;
const NMI: u32 = 0x400;
/// VT-d's messages name entries of a table (specification 4.1, 5.1.5.2). That of the first vector that Pollux gives is some
/// disk's or card's; that of a vector below those of devices is nobody's.
const NAMES_ENTRY: u64 = 1 << 4;
const ENTRY_OF_ANOTHER: u64 = 0x30;
const ENTRY_OF_NOBODY: u64 = 0x10;
/// Where Pollux itself is.
const KERNEL: u64 = 0x20_0000;

/// Intel's.
pub fn vtd(artifacts: &Artifacts) -> Result<()> {
    let (mut host, mut bus) =
        confined(artifacts, "iommu_vtd", "intel-iommu,intremap=on", "VT-d", (DiskBus::Nvme, NicModel::Igb))?;
    host.emulator().expect("was kept from a write to 0x200", TOLD_LIMIT)?;
    for entry in [ENTRY_OF_ANOTHER, ENTRY_OF_NOBODY] {
        let before = stopped(&mut host)?;
        raise(&mut bus, MESSAGE | entry << 5 | NAMES_ENTRY, 0)?;
        host.emulator().expect("was kept from an interrupt that is not its own", TOLD_LIMIT)?;
        ensure!(stopped(&mut host)? > before, "`host` does not count the interrupt by entry {entry:#x}");
    }
    host.power_off()
}

/// AMD's. QEMU's lets everything pass unless told not to, and keeps to itself what it stops.
pub fn amdvi(artifacts: &Artifacts) -> Result<()> {
    let (mut host, mut bus) = confined(
        artifacts,
        "iommu_amdvi",
        "amd-iommu,pt=off,intremap=on",
        "AMD-Vi",
        (DiskBus::Ahci, NicModel::E1000e),
    )?;
    raise(&mut bus, MESSAGE, NMI)?;
    ensure!(nmis(&mut host)? == 0, "an interrupt that the device was not given arrived");
    host.power_off()
}

/// Without one, the report says so, and a device that strays is not stopped.
pub fn absent(artifacts: &Artifacts) -> Result<()> {
    let (socket, qtest) = Bus::argument("iommu_absent");
    let launch = artifacts.bare_with("iommu_absent", &[])?.argument("-device", "edu");
    let mut host = artifacts.boot(&launch.argument("-qtest", qtest).argument("-qtest-log", "/dev/null"))?;
    let dma = host.ask("host")?["dma"].take();
    ensure!(dma["confined"] == false, "`host` says that devices are confined: {dma}");
    let description = dma["description"].as_str().unwrap_or_default();
    ensure!(description.contains("no IOMMU"), "`host` describes it as {description:?}");
    raise(&mut Bus::connect(&socket)?, MESSAGE, NMI)?;
    ensure!(nmis(&mut host)? == 1, "the device's interrupt did not arrive: the tests of units prove nothing");
    host.power_off()
}

/// A guest uses disk and network card through the unit, and a device that was given nothing reaches nothing.
fn confined(
    artifacts: &Artifacts,
    name: &str,
    device: &str,
    unit: &str,
    (disk, nic): (DiskBus, NicModel),
) -> Result<(Host, Bus)> {
    let (socket, qtest) = Bus::argument(name);
    let launch = artifacts.bare_with(name, &[])?.argument("-device", device).argument("-device", "edu");
    let launch = launch.disk_bus(disk).disk(&artifacts.datastore).nic_model(nic).nic("");
    let mut host = artifacts.boot(&launch.argument("-qtest", qtest).argument("-qtest-log", "/dev/null"))?;
    let dma = host.ask("host")?["dma"].take();
    let description = dma["description"].as_str().context("`host` says nothing of DMA")?;
    ensure!(dma["confined"] == true && description.starts_with(unit), "`host` says of DMA: {dma}");
    ensure!(dma["interrupts_confined"] == true, "interrupts are not remapped: {dma}");

    tiny::run_selftest(&mut host, "t", "disk,nic", &format!("--disk {SCRATCH_DISK} --nic"))?;
    ensure!(stopped(&mut host)? == 0, "an access of a device that is driven was stopped");

    let mut bus = Bus::connect(&socket)?;
    stray(&mut host, &mut bus)?;
    Ok((host, bus))
}

/// Lets the device write over Pollux: nothing changes.
fn stray(host: &mut Host, bus: &mut Bus) -> Result<()> {
    let image = format!("xp /8xw {KERNEL:#x}");
    let before = host.emulator().monitor(&image)?;
    let function = bus.find(EDU.0, EDU.1)?;
    // Memory decoding and bus mastering (PCI Local Bus 3.0, 6.2.2).
    bus.config_write(function | 4, 6)?;
    let registers = u64::from(bus.config_read(function | 0x10)? & !0xf);
    for (register, value) in [(0x80, EDU_BUFFER), (0x88, KERNEL), (0x90, 32), (0x98, EDU_COPY | EDU_TO_MEMORY)] {
        bus.write64(registers + register, value)?;
    }
    let deadline = Instant::now() + COPY_LIMIT;
    while bus.read64(registers + 0x98)? & EDU_COPY != 0 {
        ensure!(Instant::now() < deadline, "the device has not copied within {COPY_LIMIT:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(host.emulator().monitor(&image)? == before, "the device wrote over Pollux");
    Ok(())
}

/// Lets the device send a message of its choice.
fn raise(bus: &mut Bus, address: u64, data: u32) -> Result<()> {
    let function = bus.find(EDU.0, EDU.1)?;
    bus.config_write(function | 4, 6)?;
    let capability = function | bus.config_read(function | 0x34)? & 0xfc;
    let header = bus.config_read(capability)?;
    ensure!(header & 0xff == MSI, "the device's first capability is {header:#x}");
    bus.config_write(capability + 4, address as u32)?;
    bus.config_write(capability + 8, (address >> 32) as u32)?;
    bus.config_write(capability + 12, data)?;
    bus.config_write(capability, header | 1 << 16)?;
    let registers = u64::from(bus.config_read(function | 0x10)? & !0xf);
    bus.write32(registers + EDU_RAISE, 1)
}

fn nmis(host: &mut Host) -> Result<u64> {
    host.ask("host")?["errors"]["nmis"].as_u64().context("`host` does not count NMIs")
}

fn stopped(host: &mut Host) -> Result<u64> {
    host.ask("host")?["dma"]["stopped"].as_u64().context("`host` does not count stopped accesses")
}
