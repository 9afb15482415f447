//! Hotplug in the DSDT: the slots of the host bridge, and what the guest does when one calls.
//!
//! [`slots`] is a part of the host bridge's device, [`event`] a scope of its own. The registers are `chipset`'s; both follow
//! [`layout::HOTPLUG_PORT`]. Sections are those of ACPI 6.5.

use crate::layout;
use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Local, Method, MethodCall,
    Name, Notify, OpRegion, OpRegionSpace, Path, Scope, Store, ZERO,
};
use alloc::format;
use alloc::vec::Vec;

/// The name of the host bridge's device.
pub const BRIDGE: &str = "PCI0";

/// What a guest is notified of (5.6.6): look at the bus; a device is there; let go of a device.
const BUS_CHECK: u8 = 0;
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// The names of the registers, and of the region that they are in.
const REGION: &str = "HPRG";
const ARRIVED: &str = "ARRV";
const LEAVING: &str = "LEAV";
const VANISHED: &str = "VNSH";
const EJECT: &str = "EJCT";
/// The method that tells the guest what happened.
const CALL: &str = "HPCL";

/// Registers, a device for each slot in `mask`, and the method that [`event`] calls.
pub fn slots(mask: u32) -> Vec<u8> {
    let mut out = Vec::new();
    registers(&mut out);
    let devices = (0..32u8).filter(|device| mask >> device & 1 != 0);
    devices.clone().for_each(|device| slot(device, &mut out));
    let mut body = Vec::new();
    notify_each(ARRIVED, DEVICE_CHECK, devices.clone(), &mut body);
    notify_each(LEAVING, EJECT_REQUEST, devices, &mut body);
    let (vanished, parent) = (Path::new(VANISHED), Path::new(&format!("\\_SB_.{BRIDGE}")));
    If::new(&vanished, Vec::from([&Notify::new(&parent, &BUS_CHECK) as &dyn Aml])).to_aml_bytes(&mut body);
    // Serialised: reading a register takes what it says.
    Method::new(Path::new(CALL), 0, true, Vec::from([&Raw(body) as &dyn Aml])).to_aml_bytes(&mut out);
    out
}

/// `\_GPE`: the general-purpose event of hotplug, edge-triggered (5.6.4.1): its status is cleared before the method runs.
pub fn event(out: &mut Vec<u8>) {
    let call = MethodCall::new(Path::new(&format!("\\_SB_.{BRIDGE}.{CALL}")), Vec::new());
    let method = Method::new(Path::new("_E01"), 0, false, Vec::from([&call as &dyn Aml]));
    Scope::new(Path::new("\\_GPE"), Vec::from([&method as &dyn Aml])).to_aml_bytes(out);
}

fn registers(out: &mut Vec<u8>) {
    const BYTES: u8 = 16;
    const BITS: usize = 32;
    let named = |name: &str| {
        let mut segment = [b'_'; 4];
        segment.copy_from_slice(name.as_bytes());
        FieldEntry::Named(segment, BITS)
    };
    OpRegion::new(Path::new(REGION), OpRegionSpace::SystemIO, &layout::HOTPLUG_PORT, &BYTES).to_aml_bytes(out);
    let fields = Vec::from([ARRIVED, LEAVING, VANISHED, EJECT].map(named));
    let (access, lock) = (FieldAccessType::DWord, FieldLockRule::NoLock);
    Field::new(Path::new(REGION), access, lock, FieldUpdateRule::WriteAsZeroes, fields).to_aml_bytes(out);
}

/// A slot: its address (6.1.1), its number for people (6.1.11), and how the guest lets go of what is in it (6.3.3).
fn slot(device: u8, out: &mut Vec<u8>) {
    let (address, bit) = (u32::from(device) << 16, 1u32 << device);
    let address = Name::new(Path::new("_ADR"), &address);
    let number = Name::new(Path::new("_SUN"), &device);
    let register = Path::new(EJECT);
    let let_go = Store::new(&register, &bit);
    let eject = Method::new(Path::new("_EJ0"), 1, true, Vec::from([&let_go as &dyn Aml]));
    Device::new(slot_name(device), Vec::from([&address as &dyn Aml, &number, &eject])).to_aml_bytes(out);
}

/// Takes a register and notifies each slot whose bit was set.
fn notify_each(register: &str, what: u8, devices: impl Iterator<Item = u8>, out: &mut Vec<u8>) {
    let (taken, register) = (Local(0), Path::new(register));
    Store::new(&taken, &register).to_aml_bytes(out);
    for device in devices {
        let (bit, slot) = (1u32 << device, slot_name(device));
        let is_set = And::new(&ZERO, &taken, &bit);
        If::new(&is_set, Vec::from([&Notify::new(&slot, &what) as &dyn Aml])).to_aml_bytes(out);
    }
}

fn slot_name(device: u8) -> Path {
    Path::new(&format!("S{device:02X}_"))
}

/// AML that is made already.
pub struct Raw(pub Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}
