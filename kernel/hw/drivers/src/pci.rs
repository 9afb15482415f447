//! The host's PCI functions (PCI Local Bus Specification 3.0).
//!
//! The main type is [`Function`], the right to drive one; [`enumerate`] gives them out, once. Configuration space is
//! reached through ports CF8 and CFC (section 3.2.2.3.2); [`interrupt`] sets up MSI-X and MSI for the drivers.
#![expect(unsafe_code, reason = "configuration space is reached through ports")]

pub mod interrupt;

use addr::Hpa;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
pub use pci_types::PciAddress;
use pci_types::{CommandRegister, ConfigRegionAccess, EndpointHeader, HeaderType, PciHeader};
use spin::Mutex;
use virtio_drivers::transport::pci::bus::{BarInfo, ConfigurationAccess, DeviceFunction, PciRoot};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const CONFIG_ENABLE: u32 = 1 << 31;

/// Devices on a bus.
const DEVICES: u8 = 32;
/// Header type, in the doubleword at 0Ch (section 6.2.1).
const MULTIPLE_FUNCTIONS: u32 = 1 << 23;
const HEADER_TYPE: u32 = 0x7f << 16;
const HEADER_BRIDGE: u32 = 1 << 16;

/// Capabilities that fit into the 192 bytes for them, at 4 bytes each.
const CAPABILITIES_MAX: usize = 48;

/// Address and data port belong together: whoever writes one holds this until done with the other.
static PORTS: Mutex<()> = Mutex::new(());

/// Whether the functions have been given out.
static ENUMERATED: AtomicBool = AtomicBool::new(false);

/// Configuration space: segment 0, and the first 256 bytes of each function. Not for interrupt handlers.
#[derive(Clone, Copy)]
pub(crate) struct ConfigAccess(());

impl ConfigAccess {
    fn read32(&self, address: PciAddress, offset: u16) -> u32 {
        let _ports = PORTS.lock();
        // SAFETY: these ports are this type's alone, the lock keeps the two accesses together, and reading does no harm.
        unsafe {
            cpu::port_out32(CONFIG_ADDRESS, selector(address, offset));
            cpu::port_in32(CONFIG_DATA)
        }
    }

    fn write32(&self, address: PciAddress, offset: u16, value: u32) {
        let _ports = PORTS.lock();
        // SAFETY: as in `read32`; what is written is the business of the one driver that has the `Function`.
        unsafe {
            cpu::port_out32(CONFIG_ADDRESS, selector(address, offset));
            cpu::port_out32(CONFIG_DATA, value);
        }
    }
}

/// What CONFIG_ADDRESS takes for the doubleword that holds `offset`.
fn selector(address: PciAddress, offset: u16) -> u32 {
    let function =
        u32::from(address.bus()) << 16 | u32::from(address.device()) << 11 | u32::from(address.function()) << 8;
    CONFIG_ENABLE | function | u32::from(offset & 0xfc)
}

impl ConfigRegionAccess for ConfigAccess {
    unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
        self.read32(address, offset)
    }

    unsafe fn write(&self, address: PciAddress, offset: u16, value: u32) {
        self.write32(address, offset, value);
    }
}

impl ConfigurationAccess for ConfigAccess {
    fn read_word(&self, function: DeviceFunction, offset: u8) -> u32 {
        self.read32(from_virtio(function), offset.into())
    }

    fn write_word(&mut self, function: DeviceFunction, offset: u8, value: u32) {
        self.write32(from_virtio(function), offset.into(), value);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}

fn from_virtio(function: DeviceFunction) -> PciAddress {
    PciAddress::new(0, function.bus, function.device, function.function)
}

/// A base address register with its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bar {
    /// A range of physical memory.
    Memory {
        /// Its first byte; 0 where firmware assigned none.
        start: Hpa,
        /// Its length.
        bytes: u64,
        /// Whether reads have no side effects.
        prefetchable: bool,
    },
    /// A range of ports.
    Io {
        /// The first.
        port: u32,
        /// How many.
        ports: u32,
    },
}

/// A PCI function that answers, and the right to drive it: there is one of these for each.
pub struct Function {
    address: PciAddress,
    vendor: u16,
    device: u16,
    class: [u8; 3],
    revision: u8,
    bars: [Option<Bar>; 6],
    access: ConfigAccess,
}

/// Every function of segment 0, in order of address. Only the first call gives any. It sizes BARs.
pub fn enumerate() -> Vec<Function> {
    let mut functions = Vec::new();
    if ENUMERATED.swap(true, Ordering::AcqRel) {
        return functions;
    }
    let access = ConfigAccess(());
    // A virtual machine's further roots have something at device 0; of real ones it is not sure.
    let root_devices = if cpu::is_virtual() { 1 } else { DEVICES };
    let found = find(root_devices, |address, offset| access.read32(address, offset));
    functions.extend(found.into_iter().filter_map(|address| Function::read(access, address)));
    functions
}

/// The first and last bus behind the bridge with this requester ID (PCI-to-PCI Bridge Architecture 1.2, section 3.2.5).
/// `None` where no bridge is.
pub fn buses_behind(requester: u16) -> Option<(u8, u8)> {
    let [slot, bus] = requester.to_le_bytes();
    let address = PciAddress::new(0, bus, slot >> 3, slot & 7);
    let access = ConfigAccess(());
    let is_bridge = answers(&|address, offset| access.read32(address, offset), address)
        && access.read32(address, 0x0c) & HEADER_TYPE == HEADER_BRIDGE;
    let [_, secondary, subordinate, _] = access.read32(address, 0x18).to_le_bytes();
    is_bridge.then_some((secondary, subordinate))
}

/// The addresses of all functions that answer, in order.
///
/// Asking every device of every bus takes tens of milliseconds. So bridges tell which buses there are below bus 0
/// (PCI-to-PCI Bridge Architecture 1.2, section 3.2.5.3). Large machines have more roots, to which no bridge leads: of
/// the other buses, the first `root_devices` devices are asked, and all of the bus where one answers.
fn find(root_devices: u8, read: impl Fn(PciAddress, u16) -> u32) -> Vec<PciAddress> {
    let (mut found, mut seen) = (Vec::new(), [false; 256]);
    for root in 0..=255_u8 {
        let answers = |device| answers(&read, PciAddress::new(0, root, device, 0));
        let is_root = !seen[usize::from(root)] && (root == 0 || (0..root_devices).any(answers));
        let mut pending = if is_root { vec![root] } else { Vec::new() };
        while let Some(bus) = pending.pop() {
            // Bridges that nobody set up name bus 0 or each other's.
            if !core::mem::replace(&mut seen[usize::from(bus)], true) {
                (0..DEVICES).for_each(|device| ask(bus, device, &read, &mut found, &mut pending));
            }
        }
    }
    found.sort();
    found
}

/// Adds a device's functions to `found`, and the buses behind those that are bridges to `buses`.
fn ask(bus: u8, device: u8, read: &impl Fn(PciAddress, u16) -> u32, found: &mut Vec<PciAddress>, buses: &mut Vec<u8>) {
    let first = PciAddress::new(0, bus, device, 0);
    if !answers(read, first) {
        return;
    }
    let functions = if read(first, 0x0c) & MULTIPLE_FUNCTIONS != 0 { 8 } else { 1 };
    let all = (0..functions).map(|function| PciAddress::new(0, bus, device, function));
    for address in all.filter(|&address| answers(read, address)) {
        found.push(address);
        if read(address, 0x0c) & HEADER_TYPE == HEADER_BRIDGE {
            let [_, secondary, ..] = read(address, 0x18).to_le_bytes();
            buses.push(secondary);
        }
    }
}

fn answers(read: &impl Fn(PciAddress, u16) -> u32, address: PciAddress) -> bool {
    read(address, 0) as u16 != 0xffff
}

impl fmt::Display for Function {
    /// Where it is: "00:04.0".
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:02x}:{:02x}.{}", self.address.bus(), self.address.device(), self.address.function())
    }
}

impl Function {
    /// Where it is.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Who made it and what its maker calls it.
    pub fn ids(&self) -> (u16, u16) {
        (self.vendor, self.device)
    }

    /// What kind of device it is: base class, subclass and programming interface (PCI Code and ID Assignment 1.11).
    pub fn class(&self) -> [u8; 3] {
        self.class
    }

    /// Its maker's revision.
    pub fn revision(&self) -> u8 {
        self.revision
    }

    /// Its BARs by number. The slot after a 64-bit BAR is empty; so are all of a bridge's.
    pub fn bars(&self) -> &[Option<Bar>; 6] {
        &self.bars
    }

    fn read(access: ConfigAccess, address: PciAddress) -> Option<Self> {
        let header = PciHeader::new(address);
        let (vendor, device) = header.id(access);
        if vendor == 0xffff {
            return None;
        }
        let (revision, class, subclass, interface) = header.revision_and_class(access);
        let class = [class, subclass, interface];
        let mut found = Self { address: header.address(), vendor, device, class, revision, bars: [None; 6], access };
        if header.header_type(access) == HeaderType::Endpoint {
            found.bars = found.read_bars();
        }
        Some(found)
    }

    /// Sized by virtio-drivers' code: it stops decoding meanwhile and takes a reserved type for an error, where that of
    /// pci_types does neither.
    fn read_bars(&self) -> [Option<Bar>; 6] {
        let bars = PciRoot::new(self.access).bars(self.as_virtio());
        let Ok(bars) = bars else { return [None; 6] };
        bars.map(|bar| {
            bar.map(|bar| match bar {
                BarInfo::Memory { address, size, prefetchable, .. } => {
                    Bar::Memory { start: Hpa::new(address), bytes: size, prefetchable }
                }
                BarInfo::IO { address, size } => Bar::Io { port: address, ports: size },
            })
        })
    }

    pub(crate) fn as_virtio(&self) -> DeviceFunction {
        DeviceFunction { bus: self.address.bus(), device: self.address.device(), function: self.address.function() }
    }

    /// The memory BAR with this number, if it has one and firmware gave it an address.
    pub(crate) fn memory_bar(&self, number: u8) -> Option<(Hpa, u64)> {
        match self.bars.get(usize::from(number))? {
            Some(Bar::Memory { start, bytes, .. }) if start.as_u64() != 0 => Some((*start, *bytes)),
            _ => None,
        }
    }

    /// Lets the function decode its memory BARs and do DMA, and silences its interrupt pin.
    pub(crate) fn enable(&mut self) {
        PciHeader::new(self.address).update_command(self.access, |command| {
            command
                | CommandRegister::MEMORY_ENABLE
                | CommandRegister::BUS_MASTER_ENABLE
                | CommandRegister::INTERRUPT_DISABLE
        });
    }

    /// Lets the function decode its I/O and memory BARs, for a device without DMA that is polled.
    pub(crate) fn enable_decoding(&mut self) {
        PciHeader::new(self.address).update_command(self.access, |command| {
            command | CommandRegister::IO_ENABLE | CommandRegister::MEMORY_ENABLE | CommandRegister::INTERRUPT_DISABLE
        });
    }

    /// Lets the function decode its I/O BARs and do DMA, and silences it unless it may interrupt.
    pub(crate) fn enable_ports(&mut self, interrupts: bool) {
        PciHeader::new(self.address).update_command(self.access, |mut command| {
            command.set(CommandRegister::INTERRUPT_DISABLE, !interrupts);
            command | CommandRegister::IO_ENABLE | CommandRegister::BUS_MASTER_ENABLE
        });
    }

    /// Lets the function pull its interrupt pin, or silences it.
    pub(crate) fn let_pull(&mut self, may_pull: bool) {
        PciHeader::new(self.address).update_command(self.access, |mut command| {
            command.set(CommandRegister::INTERRUPT_DISABLE, !may_pull);
            command
        });
    }

    /// Takes DMA from the function, whatever state it is in, and silences its interrupt pin. MSI-X goes with DMA.
    pub(crate) fn stop_dma(&mut self) {
        PciHeader::new(self.address).update_command(self.access, |command| {
            (command - CommandRegister::BUS_MASTER_ENABLE) | CommandRegister::INTERRUPT_DISABLE
        });
    }

    pub(crate) fn access(&self) -> ConfigAccess {
        self.access
    }

    /// Reads a doubleword of its configuration space.
    pub(crate) fn read_config(&self, offset: u16) -> u32 {
        self.access.read32(self.address, offset)
    }

    /// Writes a doubleword of its configuration space.
    pub(crate) fn write_config(&mut self, offset: u16, value: u32) {
        self.access.write32(self.address, offset, value);
    }

    /// The offsets of its capabilities with their ids, or nothing where the list is not well-formed: it may then have
    /// no end, and must not be given to code that expects one.
    pub(crate) fn capabilities(&self) -> Vec<(u8, u16)> {
        let Some(header) = self.endpoint() else { return Vec::new() };
        walk(header.capability_pointer(self.access), |offset| self.read_config(offset)).unwrap_or_default()
    }

    fn endpoint(&self) -> Option<EndpointHeader> {
        EndpointHeader::from_header(PciHeader::new(self.address), self.access)
    }
}

/// Follows a capability list (section 6.7); `None` where it does not end or leaves its area.
fn walk(first: u16, read: impl Fn(u16) -> u32) -> Option<Vec<(u8, u16)>> {
    let (mut found, mut offset) = (Vec::new(), first);
    while offset != 0 {
        if offset < 0x40 || !offset.is_multiple_of(4) || found.len() == CAPABILITIES_MAX {
            return None;
        }
        let [id, next, ..] = read(offset).to_le_bytes();
        found.push((id, offset));
        offset = next.into();
    }
    Some(found)
}

#[cfg(test)]
impl Function {
    /// A function that is not there, for tests that only look at its identity.
    pub(crate) fn for_test(class: [u8; 3], vendor: u16, device: u16) -> Self {
        let (address, access) = (PciAddress::new(0, 0, 0x1f, 2), ConfigAccess(()));
        Self { address, vendor, device, class, revision: 0, bars: [None; 6], access }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_name_bus_device_function_and_register() {
        assert_eq!(selector(PciAddress::new(0, 1, 2, 3), 0x3e), 0x8001_133c);
        assert_eq!(selector(PciAddress::new(0, 255, 31, 7), 0xfc), 0x80ff_fffc);
    }

    /// A machine of functions (bus, device, function, header type with its multi-function bit, secondary bus).
    fn machine<'a>(
        functions: &'a [(u8, u8, u8, u8, u8)],
        reads: &'a core::cell::Cell<u32>,
    ) -> impl Fn(PciAddress, u16) -> u32 + 'a {
        move |address, offset| {
            reads.set(reads.get() + 1);
            let place = (address.bus(), address.device(), address.function());
            let found = functions.iter().find(|(bus, device, function, ..)| (*bus, *device, *function) == place);
            match (found, offset) {
                (None, _) => u32::MAX,
                (Some(_), 0) => 0x1234_8086,
                (Some((.., kind, _)), 0x0c) => u32::from(*kind) << 16,
                (Some((.., secondary)), 0x18) => 0x0707_0000 | u32::from(*secondary) << 8,
                _ => panic!("another register is read"),
            }
        }
    }

    fn places(found: &[PciAddress]) -> Vec<(u8, u8, u8)> {
        found.iter().map(|address| (address.bus(), address.device(), address.function())).collect()
    }

    #[test]
    fn bridges_lead_to_buses() {
        let functions =
            [(0, 0, 0, 0, 0), (0, 3, 0, 0x81, 5), (0, 3, 2, 1, 2), (5, 0, 0, 1, 6), (6, 1, 0, 0, 0), (2, 9, 0, 0, 0)];
        let reads = Default::default();
        let found = find(1, machine(&functions, &reads));
        let mut expected = functions.map(|(bus, device, function, ..)| (bus, device, function));
        expected.sort();
        assert_eq!(places(&found), expected);
        assert!(reads.get() < 500, "{} reads", reads.get());
    }

    #[test]
    fn functions_past_the_first_need_the_bit() {
        let functions = [(0, 1, 0, 0, 0), (0, 1, 1, 0, 0), (0, 2, 0, 0x80, 0), (0, 2, 7, 0, 0), (0, 4, 3, 0, 0)];
        let found = find(1, machine(&functions, &Default::default()));
        assert_eq!(places(&found), [(0, 1, 0), (0, 2, 0), (0, 2, 7)]);
    }

    #[test]
    fn further_roots_are_found_by_their_first_devices() {
        let functions =
            [(0, 0, 0, 0, 0), (0x40, 0, 0, 0, 0), (0x40, 9, 0, 1, 0x41), (0x41, 0, 0, 0, 0), (0x80, 5, 0, 0, 0)];
        let some = find(1, machine(&functions, &Default::default()));
        assert_eq!(places(&some), [(0, 0, 0), (0x40, 0, 0), (0x40, 9, 0), (0x41, 0, 0)]);
        assert_eq!(find(32, machine(&functions, &Default::default())).len(), 5);
    }

    #[test]
    fn bridges_in_a_circle_end() {
        let functions = [(0, 0, 0, 1, 0), (0, 1, 0, 1, 1), (1, 0, 0, 1, 0), (1, 1, 0, 1, 1)];
        assert_eq!(find(1, machine(&functions, &Default::default())).len(), 4);
        let every = |address: PciAddress, offset| if offset == 0 { 1 } else { 0x81 << 16 | u32::from(address.bus()) };
        assert_eq!(find(32, every).len(), 256 * 32 * 8);
    }

    #[test]
    fn capability_lists_end() {
        let list = |offset| match offset {
            0x40 => 0x0000_5011,
            0x50 => 0x0000_0009,
            _ => panic!("read outside the list"),
        };
        assert_eq!(walk(0x40, list), Some(vec![(0x11, 0x40), (0x09, 0x50)]));
        assert_eq!(walk(0, list), Some(vec![]));
    }

    #[test]
    fn capability_lists_without_an_end_are_refused() {
        assert_eq!(walk(0x40, |_| 0x4009), None);
        assert_eq!(walk(0x40, |_| 0xffff_ffff), None);
        assert_eq!(walk(0x40, |_| 0x1009), None);
        assert_eq!(walk(0x41, |_| 0), None);
    }
}
