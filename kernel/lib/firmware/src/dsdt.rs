//! The DSDT's AML: the PCI host bridge, the ISA devices, the processors and soft off; `hotplug` adds the bridge's slots.
//!
//! [`aml`] builds the body that `acpi` wraps in a table. The grammar is `acpi_tables`' (ACPI 6.5, chapter 20), the
//! objects are those of chapters 6 and 19 and of the PCI Firmware Specification 3.3, section 4.

use crate::hotplug::{self, Raw};
use crate::{Board, Error, layout};
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO, If, Interrupt,
    Memory32Fixed, Method, Name, Or, Package, PackageBuilder, Path, ResourceTemplate, Return, Scope, Uuid, ZERO,
};
use addr::{Gpa, GpaRange};
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

/// Bytes of the configuration space of one bus (PCI Express base specification, 7.2.2).
const ECAM_BYTES: u64 = 1 << 20;
const PCI_DEVICES: u8 = 32;
const PCI_PINS: u8 = 4;

/// The body of the DSDT for `board`.
pub fn aml(board: &Board) -> Result<Vec<u8>, Error> {
    let windows = Windows::new(board)?;
    let mut body = Vec::new();
    soft_off().to_aml_bytes(&mut body);

    let mut system_bus = Vec::new();
    host_bridge(&windows, board.hotplug, &mut system_bus);
    reserved(windows.ecam, &mut system_bus);
    serial_port(&mut system_bus);
    real_time_clock(&mut system_bus);
    if board.keyboard {
        keyboard(&mut system_bus);
    }
    (0..board.vcpus).for_each(|id| processor(id, &mut system_bus));
    body.extend_from_slice(&Scope::raw(Path::new("_SB_"), system_bus));
    hotplug::event(&mut body);
    Ok(body)
}

/// The address windows of the host bridge, checked, the ECAM cut out.
struct Windows {
    ecam: Option<u32>,
    /// First and last address.
    memory: Vec<(u32, u32)>,
    memory64: Option<(u64, u64)>,
}

impl Windows {
    fn new(board: &Board) -> Result<Self, Error> {
        let ecam = board.ecam.map(ecam_range).transpose()?;
        let window = board.pci_memory;
        let pieces = match ecam.filter(|ecam| ecam.overlaps(window)) {
            Some(ecam) => [between(window.start(), ecam.start()), between(ecam.end(), window.end())],
            None => [between(window.start(), window.end()), None],
        };
        let mut memory = Vec::new();
        for (first, last) in pieces.into_iter().flatten() {
            let last = u32::try_from(last).map_err(|_| Error::Window("32-bit PCI window"))?;
            memory.push((first as u32, last));
        }
        if memory.is_empty() {
            return Err(Error::Window("32-bit PCI window"));
        }
        let memory64 = match board.pci_memory64 {
            Some(window) => Some(between(window.start(), window.end()).ok_or(Error::Window("64-bit PCI window"))?),
            None => None,
        };
        Ok(Self { ecam: ecam.map(|ecam| ecam.start().as_u64() as u32), memory, memory64 })
    }
}

/// The ECAM's range, which must lie below 4 GiB on a multiple of its size.
fn ecam_range(start: Gpa) -> Result<GpaRange, Error> {
    const LIMIT: u64 = 1 << 32;
    if start.as_u64() >= LIMIT || !start.is_aligned(ECAM_BYTES) {
        return Err(Error::Window("ECAM"));
    }
    GpaRange::new(start, ECAM_BYTES).ok_or(Error::Window("ECAM"))
}

/// First and last address of a range, or `None` where it is empty.
fn between(start: Gpa, end: Gpa) -> Option<(u64, u64)> {
    (start < end).then(|| (start.as_u64(), end.as_u64() - 1))
}

/// `\_S5`: the sleep types to write for soft off (7.4.2).
fn soft_off() -> Name {
    let off = layout::SLEEP_TYPE_OFF;
    Name::new(Path::new("_S5_"), &Package::new(Vec::from([&off as &dyn Aml, &off, &ZERO, &ZERO])))
}

fn host_bridge(windows: &Windows, slots: u32, out: &mut Vec<u8>) {
    // PCI Express only where its configuration space is there; the older bridge's id fits both.
    let express = windows.ecam.is_some();
    let mut id = Vec::new();
    if express {
        Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")).to_aml_bytes(&mut id);
        Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")).to_aml_bytes(&mut id);
        operating_system_capabilities(&mut id);
    } else {
        Name::new(Path::new("_HID"), &EISAName::new("PNP0A03")).to_aml_bytes(&mut id);
    }
    let uid = Name::new(Path::new("_UID"), &ZERO);
    let segment = Name::new(Path::new("_SEG"), &ZERO);
    let bus = Name::new(Path::new("_BBN"), &ZERO);
    let resources = bridge_resources(windows);
    let routing = Name::new(Path::new("_PRT"), &interrupt_routing());
    let (id, slots) = (Raw(id), Raw(hotplug::slots(slots)));
    let all = Vec::from([&id as &dyn Aml, &uid, &segment, &bus, &resources, &routing, &slots]);
    Device::new(Path::new(hotplug::BRIDGE), all).to_aml_bytes(out);
}

/// `_OSC`: every control that the OS may ask for stays with the firmware (PCI Firmware Specification 3.3, 4.5).
fn operating_system_capabilities(out: &mut Vec<u8>) {
    const PCI_HOST_BRIDGE: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
    const STATUS_OFFSET: u8 = 0;
    const CONTROL_OFFSET: u8 = 8;
    const UNRECOGNIZED_UUID: u8 = 1 << 2;
    let (status, control, buffer) = (Path::new("CDW1"), Path::new("CDW3"), Arg(3));
    let status_field = CreateDWordField::new(&status, &buffer, &STATUS_OFFSET);
    let control_field = CreateDWordField::new(&control, &buffer, &CONTROL_OFFSET);
    let uuid = Uuid::new(PCI_HOST_BRIDGE);
    let is_bridge = Equal::new(&Arg(0), &uuid);
    let grant_nothing = And::new(&control, &control, &ZERO);
    let refuse = Or::new(&status, &status, &UNRECOGNIZED_UUID);
    let bridge = If::new(&is_bridge, Vec::from([&control_field as &dyn Aml, &grant_nothing]));
    let other = Else::new(Vec::from([&refuse as &dyn Aml]));
    let result = Return::new(&buffer);
    // Serialised: it creates names, and must not run twice at once.
    Method::new(Path::new("_OSC"), 4, true, Vec::from([&status_field as &dyn Aml, &bridge, &other, &result]))
        .to_aml_bytes(out);
}

fn bridge_resources(windows: &Windows) -> Name {
    const CONFIG_PORT: u16 = 0xcf8;
    const IO_WINDOW: (u16, u16) = (0x1000, 0xffff);
    let uncached = AddressSpaceCacheable::NotCacheable;
    let mut all: Vec<Box<dyn Aml>> = Vec::from([
        Box::new(AddressSpace::new_bus_number(0u16, 0)) as Box<dyn Aml>,
        Box::new(IO::new(CONFIG_PORT, CONFIG_PORT, 1, 8)),
        Box::new(AddressSpace::new_io(IO_WINDOW.0, IO_WINDOW.1, None)),
    ]);
    for &(first, last) in &windows.memory {
        all.push(Box::new(AddressSpace::new_memory(uncached, true, first, last, None)));
    }
    if let Some((first, last)) = windows.memory64 {
        all.push(Box::new(AddressSpace::new_memory(uncached, true, first, last, None)));
    }
    resources(&all)
}

/// `_PRT` (6.2.13): each device's four pins, wired to the IOAPIC without a link device between.
fn interrupt_routing() -> PackageBuilder {
    const ALL_FUNCTIONS: u32 = 0xffff;
    let mut routing = PackageBuilder::new();
    for device in 0..PCI_DEVICES {
        let address = u32::from(device) << 16 | ALL_FUNCTIONS;
        for pin in 0..PCI_PINS {
            let gsi = layout::pci_gsi(device, pin);
            routing.add_element(&Package::new(Vec::from([&address as &dyn Aml, &pin, &ZERO, &gsi])));
        }
    }
    routing
}

/// Motherboard resources: what no driver may claim. Linux trusts an ECAM only where it is reserved here.
fn reserved(ecam: Option<u32>, out: &mut Vec<u8>) {
    // Power management, general-purpose events and hotplug.
    const POWER_MANAGEMENT_BYTES: u8 = 0x40;
    let ports = layout::PM1_EVENT_PORT;
    let mut all: Vec<Box<dyn Aml>> =
        Vec::from([Box::new(IO::new(ports, ports, 1, POWER_MANAGEMENT_BYTES)) as Box<dyn Aml>]);
    if let Some(ecam) = ecam {
        all.push(Box::new(Memory32Fixed::new(true, ecam, ECAM_BYTES as u32)));
    }
    device("MBRD", "PNP0C02", &all, out);
}

fn serial_port(out: &mut Vec<u8>) {
    let all: [Box<dyn Aml>; 2] =
        [Box::new(IO::new(layout::COM1_PORT, layout::COM1_PORT, 1, 8)), Box::new(isa_interrupt(layout::COM1_GSI))];
    device("COM1", "PNP0501", &all, out);
}

fn real_time_clock(out: &mut Vec<u8>) {
    const PORT: u16 = 0x70;
    const GSI: u32 = 8;
    let all: [Box<dyn Aml>; 2] = [Box::new(IO::new(PORT, PORT, 1, 2)), Box::new(isa_interrupt(GSI))];
    device("RTC_", "PNP0B00", &all, out);
}

fn keyboard(out: &mut Vec<u8>) {
    const DATA_PORT: u16 = 0x60;
    const COMMAND_PORT: u16 = 0x64;
    const GSI: u32 = 1;
    let all: [Box<dyn Aml>; 3] = [
        Box::new(IO::new(DATA_PORT, DATA_PORT, 1, 1)),
        Box::new(IO::new(COMMAND_PORT, COMMAND_PORT, 1, 1)),
        Box::new(isa_interrupt(GSI)),
    ];
    device("KBD_", "PNP0303", &all, out);
}

/// Edge-triggered, active high, not shared.
fn isa_interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// A processor device (8.4); its UID is the one in the MADT.
fn processor(id: u32, out: &mut Vec<u8>) {
    let name = Path::new(&format!("C{id:03X}"));
    let hardware = Name::new(Path::new("_HID"), &"ACPI0007");
    let uid = Name::new(Path::new("_UID"), &id);
    Device::new(name, Vec::from([&hardware as &dyn Aml, &uid])).to_aml_bytes(out);
}

/// A device that consists of an id and resources.
fn device(name: &str, id: &str, all: &[Box<dyn Aml>], out: &mut Vec<u8>) {
    let id = Name::new(Path::new("_HID"), &EISAName::new(id));
    let uid = Name::new(Path::new("_UID"), &ZERO);
    Device::new(Path::new(name), Vec::from([&id as &dyn Aml, &uid, &resources(all)])).to_aml_bytes(out);
}

fn resources(all: &[Box<dyn Aml>]) -> Name {
    Name::new(Path::new("_CRS"), &ResourceTemplate::new(all.iter().map(|resource| &**resource).collect()))
}
