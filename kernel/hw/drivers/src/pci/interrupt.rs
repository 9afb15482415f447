//! Message-signalled interrupts of a function (PCI Local Bus Specification 3.0, section 6.8).
//!
//! The main types are [`Message`], what the function writes where, and [`MsiX`], a function's table of them; a function
//! without one may have plain MSI ([`enable_msi`]), and one without either is polled.
#![expect(unsafe_code, reason = "the MSI-X table is in device memory")]

use super::Function;
use crate::mmio::Registers;
use pci_types::capability::{MsiCapability, MsixCapability, MultipleMessageSupport, PciCapability};
use virtio_drivers::Hal;

/// The id of the MSI capability, and where in it the address is.
const CAPABILITY_MSI: u8 = 0x05;
const MSI_ADDRESS: u16 = 4;
/// Bytes in a table entry: address, data, vector control.
const ENTRY_BYTES: usize = 16;
/// The mask bit in the vector control.
const MASKED: u32 = 1;

/// The memory write that is an interrupt (Intel SDM volume 3, section 11.11; AMD64 APM volume 2, section 16.11).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Where: which processor.
    pub address: u64,
    /// What: which vector.
    pub data: u32,
}

/// A function's MSI-X table.
pub struct MsiX {
    capability: MsixCapability,
    table: Registers,
}

impl MsiX {
    /// The function's table, mapped. `None` where it has none or it lies outside its BARs.
    ///
    /// # Safety
    /// The function is enabled, and there is no other [`MsiX`] of it.
    pub(crate) unsafe fn find<H: Hal>(function: &Function) -> Option<Self> {
        let capability = capabilities(function)?.find_map(|capability| match capability {
            PciCapability::MsiX(capability) => Some(capability),
            _ => None,
        })?;
        let (start, bar_bytes) = function.memory_bar(capability.table_bar())?;
        let table_bytes = usize::from(capability.table_size()) * ENTRY_BYTES;
        let end = u64::from(capability.table_offset()) + table_bytes as u64;
        let physical = start.checked_add(capability.table_offset().into())?;
        if end > bar_bytes {
            return None;
        }
        // SAFETY: inside a memory BAR of an enabled function that the caller has the right to drive, and this is the
        // table's only user.
        let table = unsafe { Registers::map::<H>(physical.as_u64(), table_bytes) };
        Some(Self { capability, table })
    }

    /// How many entries the table has.
    pub fn entries(&self) -> u16 {
        self.capability.table_size()
    }

    /// Writes a message into an entry and unmasks it; returns whether there is such an entry.
    pub fn program(&mut self, entry: u16, message: Message) -> bool {
        if entry >= self.entries() {
            return false;
        }
        let at = usize::from(entry) * ENTRY_BYTES;
        // Masked meanwhile, so that no half of it is used.
        self.table.write(at + 12, MASKED);
        self.table.write(at, message.address as u32);
        self.table.write(at + 4, (message.address >> 32) as u32);
        self.table.write(at + 8, message.data);
        self.table.write(at + 12, 0_u32);
        true
    }

    /// Masks an entry: its interrupts wait in the function. Returns whether there is such an entry.
    pub fn mask(&mut self, entry: u16) -> bool {
        if entry >= self.entries() {
            return false;
        }
        self.table.write(usize::from(entry) * ENTRY_BYTES + 12, MASKED);
        true
    }

    /// Has the messages of an entry, which was programmed, go to `address`, which names another processor.
    pub fn aim(&mut self, entry: u16, address: u64) {
        let at = usize::from(entry) * ENTRY_BYTES;
        // Masked meanwhile: a function may keep what an open entry said. What it wants to say then, it says afterwards.
        self.table.write(at + 12, MASKED);
        self.table.write(at, address as u32);
        self.table.write(at + 4, (address >> 32) as u32);
        self.table.write(at + 12, 0_u32);
    }

    /// Switches the function from its interrupt pin to the table.
    pub fn enable(&mut self, function: &mut Function) {
        self.capability.set_function_mask(false, function.access());
        self.capability.set_enabled(true, function.access());
    }
}

/// Makes the function signal everything with one message by plain MSI; returns whether it can.
pub fn enable_msi(function: &mut Function, message: Message) -> bool {
    let Some(msi) = find_msi(function).filter(|msi| msi.is_64bit() || message.address >> 32 == 0) else {
        return false;
    };
    let access = function.access();
    msi.set_multiple_message_enable(MultipleMessageSupport::Int1, access);
    msi.set_message_info(message.address, message.data, access);
    msi.set_enabled(true, access);
    true
}

/// Has the message of plain MSI, which is enabled, go to `address`, which names another processor.
///
/// Only the lower half of the address is written, in one access: there is no moment at which half of it holds.
pub fn aim_msi(function: &mut Function, address: u64) {
    let place = function.capabilities().into_iter().find(|(id, _)| *id == CAPABILITY_MSI);
    if let Some((_, offset)) = place {
        function.write_config(offset + MSI_ADDRESS, address as u32);
    }
}

fn find_msi(function: &Function) -> Option<MsiCapability> {
    capabilities(function)?.find_map(|capability| match capability {
        PciCapability::Msi(msi) => Some(msi),
        _ => None,
    })
}

fn capabilities(function: &Function) -> Option<impl Iterator<Item = PciCapability> + use<>> {
    // An empty answer also stands for a list without an end, over which the iterator would not stop.
    if function.capabilities().is_empty() {
        return None;
    }
    Some(function.endpoint()?.capabilities(function.access()))
}
