//! fw_cfg: how a firmware asks what machine it is on (QEMU, docs/specs/fw_cfg.rst, 7.2).
//!
//! [`FwCfg`] is the device: items by number, files by name in a directory, read byte by byte or by DMA. `machine` gives it
//! its ports and has [`FwCfg::transfer`] carry out what the guest asked for; [`crate::describe`] makes the items.

mod saved;

pub use saved::Saved;

use addr::Gpa;
use alloc::string::String;
use alloc::vec::Vec;
use guestmem::GuestMemory;

/// Selects an item: two bytes.
pub const SELECTOR_PORT: u16 = 0x510;
/// The next byte of the item.
pub const DATA_PORT: u16 = 0x511;
/// The upper half of a DMA structure's address, big-endian.
pub const DMA_HIGH_PORT: u16 = 0x514;
/// The lower half; writing it starts the transfer.
pub const DMA_LOW_PORT: u16 = 0x518;

/// Items with fixed numbers.
mod key {
    pub const SIGNATURE: u16 = 0x00;
    pub const INTERFACES: u16 = 0x01;
    pub const CPUS: u16 = 0x05;
    pub const CPUS_MAX: u16 = 0x0f;
    pub const DIRECTORY: u16 = 0x19;
    pub const FILES: u16 = 0x20;
}

/// There are ports for bytes, and DMA.
const INTERFACES: u32 = 1 << 0 | 1 << 1;
/// What the DMA ports read as: "QEMU CFG".
const DMA_SIGNATURE: [&[u8; 4]; 2] = [b"QEMU", b" CFG"];
/// A file's name in the directory, with its NUL.
const NAME_BYTES: usize = 56;

/// Bits of a DMA structure's control word; the upper half is an item's number.
mod control {
    pub const ERROR: u32 = 1 << 0;
    pub const READ: u32 = 1 << 1;
    pub const SKIP: u32 = 1 << 2;
    pub const SELECT: u32 = 1 << 3;
    pub const WRITE: u32 = 1 << 4;
}

/// Control, length and address, all big-endian.
const DMA_BYTES: usize = 16;
/// A transfer has no more: items are much smaller, and zeroes behind their end cost the host time.
const TRANSFER_BYTES_MAX: u32 = 1 << 20;

/// The device.
#[derive(Clone, Debug)]
pub struct FwCfg {
    /// By number; each once.
    items: Vec<(u16, Vec<u8>)>,
    selected: u16,
    /// How much of the item was read.
    offset: u32,
    dma_high: u32,
    /// The structure of a transfer that waits to be carried out.
    pending: Option<Gpa>,
}

/// A transfer that cannot be carried out; the guest sees its error bit.
struct Refused;

impl FwCfg {
    /// The device for so many vCPUs, with these files: name and content.
    ///
    /// # Panics
    /// With a name longer than a directory takes: the machine's author chooses them.
    pub fn new(vcpus: u16, files: Vec<(String, Vec<u8>)>) -> Self {
        let mut items = Vec::from([
            (key::SIGNATURE, b"QEMU".to_vec()),
            (key::INTERFACES, INTERFACES.to_le_bytes().to_vec()),
            (key::CPUS, vcpus.to_le_bytes().to_vec()),
            (key::CPUS_MAX, vcpus.to_le_bytes().to_vec()),
            (key::DIRECTORY, directory(&files)),
        ]);
        items.extend((key::FILES..).zip(files).map(|(key, (_, content))| (key, content)));
        Self { items, selected: 0, offset: 0, dma_high: 0, pending: None }
    }

    /// Reads `size` bytes of a port. `None`: it is none of this device's.
    pub fn port_read(&mut self, port: u16, size: u8) -> Option<u32> {
        match (port, size) {
            (DATA_PORT, 1) => {
                let value = self.rest().first().copied().unwrap_or(0);
                self.offset = self.offset.saturating_add(1);
                Some(value.into())
            }
            (DMA_HIGH_PORT, 4) => Some(u32::from_le_bytes(*DMA_SIGNATURE[0])),
            (DMA_LOW_PORT, 4) => Some(u32::from_le_bytes(*DMA_SIGNATURE[1])),
            _ => None,
        }
    }

    /// Writes `size` bytes to a port. False: it is none of this device's.
    pub fn port_write(&mut self, port: u16, size: u8, value: u32) -> bool {
        match (port, size) {
            (SELECTOR_PORT, 2) => self.select(value as u16),
            // Items cannot be written.
            (DATA_PORT, 1) => {}
            (DMA_HIGH_PORT, 4) => self.dma_high = u32::from_be(value),
            (DMA_LOW_PORT, 4) => {
                let low = u32::from_be(value);
                self.pending = Some(Gpa::new(u64::from(self.dma_high) << 32 | u64::from(low)));
                self.dma_high = 0;
            }
            _ => return false,
        }
        true
    }

    /// Carries out the transfer that was asked for. To the guest it is done when its OUT is, but where memory for it is
    /// still on its way here: then it waits for the control word, and the transfer for the next call.
    pub fn transfer(&mut self, memory: &GuestMemory) {
        let Some(at) = self.pending.filter(|&at| memory.is_here(at, DMA_BYTES as u64)) else { return };
        let mut structure = [0; DMA_BYTES];
        if memory.read(at, &mut structure).is_err() {
            // There is no place for an error either.
            self.pending = None;
            return;
        }
        let word = |offset: usize| {
            let bytes = [structure[offset], structure[offset + 1], structure[offset + 2], structure[offset + 3]];
            u32::from_be_bytes(bytes)
        };
        let address = Gpa::new(u64::from(word(8)) << 32 | u64::from(word(12)));
        let into_bytes = if word(0) & control::READ != 0 { word(4).min(TRANSFER_BYTES_MAX) } else { 0 };
        if !memory.is_here(address, into_bytes.into()) {
            return;
        }
        self.pending = None;
        let result = match self.carry_out(memory, word(0), word(4), address) {
            Ok(()) => 0,
            Err(Refused) => control::ERROR,
        };
        // A structure in read-only memory stays as it is, and its guest waits for ever.
        let _ = memory.write(at, &result.to_be_bytes());
    }

    fn carry_out(&mut self, memory: &GuestMemory, word: u32, length: u32, address: Gpa) -> Result<(), Refused> {
        if word & control::SELECT != 0 {
            self.select((word >> 16) as u16);
        }
        if word & control::READ != 0 {
            self.copy_out(memory, length, address)?;
        } else if word & control::WRITE != 0 {
            return Err(Refused);
        } else if word & control::SKIP == 0 {
            return Ok(());
        }
        self.offset = self.offset.saturating_add(length);
        Ok(())
    }

    /// Copies the item's next bytes into the guest, and zeroes behind its end.
    fn copy_out(&self, memory: &GuestMemory, length: u32, address: Gpa) -> Result<(), Refused> {
        if length > TRANSFER_BYTES_MAX {
            return Err(Refused);
        }
        memory.check(address, length.into()).map_err(|_| Refused)?;
        let rest = self.rest();
        let there = &rest[..rest.len().min(length as usize)];
        memory.write(address, there).map_err(|_| Refused)?;
        let zeroes = u64::from(length) - there.len() as u64;
        memory.zero(address.wrapping_add(there.len() as u64), zeroes).map_err(|_| Refused)
    }

    fn select(&mut self, key: u16) {
        (self.selected, self.offset) = (key, 0);
    }

    /// What was not read yet of the item that is selected; nothing where there is no such item.
    fn rest(&self) -> &[u8] {
        let item = self.items.iter().find(|(key, _)| *key == self.selected);
        item.and_then(|(_, content)| content.get(self.offset as usize..)).unwrap_or_default()
    }
}

/// The directory: how many files, then size, number and name of each, big-endian.
fn directory(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::from((files.len() as u32).to_be_bytes());
    for ((name, content), key) in files.iter().zip(key::FILES..) {
        assert!(name.len() < NAME_BYTES, "{name} is too long a name");
        bytes.extend_from_slice(&(content.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&key.to_be_bytes());
        bytes.extend_from_slice(&[0; 2]);
        let end = bytes.len() + NAME_BYTES;
        bytes.extend_from_slice(name.as_bytes());
        bytes.resize(end, 0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use addr::LARGE_PAGE_BYTES;
    use guestmem::heap::guest_memory;

    fn device() -> FwCfg {
        FwCfg::new(3, vec![("etc/one".into(), b"hello".to_vec()), ("two".into(), vec![7; 300])])
    }

    fn read(device: &mut FwCfg, key: u16, bytes: usize) -> Vec<u8> {
        assert!(device.port_write(SELECTOR_PORT, 2, key.into()));
        (0..bytes).map(|_| device.port_read(DATA_PORT, 1).unwrap() as u8).collect()
    }

    /// Asks for a transfer by a structure at 1000h; gives the control word afterwards.
    fn dma(device: &mut FwCfg, memory: &GuestMemory, control: u32, length: u32, address: u64) -> u32 {
        let at = Gpa::new(0x1000);
        memory.write(at, &control.to_be_bytes()).unwrap();
        memory.write(at.wrapping_add(4), &length.to_be_bytes()).unwrap();
        memory.write(at.wrapping_add(8), &address.to_be_bytes()).unwrap();
        assert!(device.port_write(DMA_HIGH_PORT, 4, 0));
        assert!(device.port_write(DMA_LOW_PORT, 4, 0x1000_u32.to_be()));
        device.transfer(memory);
        u32::from_be(memory.load(at, 4).unwrap() as u32)
    }

    #[test]
    fn items_are_read_byte_by_byte() {
        let mut device = device();
        assert_eq!(read(&mut device, 0, 6), b"QEMU\0\0");
        assert_eq!(read(&mut device, 1, 4), [3, 0, 0, 0]);
        assert_eq!(read(&mut device, 5, 2), [3, 0]);
        assert_eq!(read(&mut device, 0x21, 2), [7, 7]);
        assert_eq!(read(&mut device, 0x1234, 3), [0; 3], "no such item");
        let directory = read(&mut device, 0x19, 4 + 2 * 64);
        assert_eq!(&directory[..4], [0, 0, 0, 2]);
        assert_eq!(&directory[4..20], b"\0\0\0\x05\0\x20\0\0etc/one\0");
        assert_eq!(&directory[68..76], [0, 0, 1, 44, 0, 0x21, 0, 0]);
    }

    #[test]
    fn dma_selects_skips_and_reads() {
        let (mut device, memory) = (device(), guest_memory(LARGE_PAGE_BYTES));
        assert_eq!(device.port_read(DMA_HIGH_PORT, 4).unwrap().to_le_bytes(), *b"QEMU");
        memory.write(Gpa::new(0x2000), &[0xa5; 16]).unwrap();
        assert_eq!(dma(&mut device, &memory, 0x20 << 16 | 8, 0, 0), 0);
        assert_eq!(dma(&mut device, &memory, 4, 2, 0), 0);
        assert_eq!(dma(&mut device, &memory, 2, 6, 0x2000), 0);
        let mut bytes = [0; 8];
        memory.read(Gpa::new(0x2000), &mut bytes).unwrap();
        assert_eq!(&bytes, b"llo\0\0\0\xa5\xa5", "zeroes behind the end");
    }

    #[test]
    fn hostile_transfers_are_refused() {
        let (mut device, memory) = (device(), guest_memory(LARGE_PAGE_BYTES));
        let end = LARGE_PAGE_BYTES - 2;
        for (control, length, address) in [
            (0x20 << 16 | 10, 5, end),
            (0x20 << 16 | 10, u32::MAX, 0),
            (0x20 << 16 | 10, TRANSFER_BYTES_MAX + 1, 0),
            (0x20 << 16 | 10, 8, u64::MAX - 3),
            (0x20 << 16 | 24, 1, 0x2000),
        ] {
            assert_eq!(dma(&mut device, &memory, control, length, address), 1, "{control:#x} {length} {address:#x}");
        }
        // An offset that cannot grow further, and a structure that is nowhere.
        assert_eq!(dma(&mut device, &memory, 4, u32::MAX, 0), 0);
        assert_eq!(dma(&mut device, &memory, 4, u32::MAX, 0), 0);
        assert_eq!(device.port_read(DATA_PORT, 1), Some(0));
        device.port_write(DMA_HIGH_PORT, 4, u32::MAX);
        device.port_write(DMA_LOW_PORT, 4, u32::MAX);
        device.transfer(&memory);
    }

    #[test]
    fn a_transfer_waits_for_memory_that_is_on_its_way() {
        let (mut device, memory) = (device(), guest_memory(LARGE_PAGE_BYTES));
        let mut absent = guestmem::PageSet::new(memory.pages_end()).unwrap();
        absent.insert(1, 2);
        // What has not come: the structure's page and the one that the item goes to.
        assert_eq!(dma(&mut device, &memory, 0x20 << 16 | 10, 5, 0x2000), 0);
        memory.zero(Gpa::new(0x2000), 5).unwrap();
        memory.start_waiting(&absent).unwrap();
        device.port_write(DMA_HIGH_PORT, 4, 0);
        device.port_write(DMA_LOW_PORT, 4, 0x1000_u32.to_be());
        let mut page = [0; 4096];
        page[..4].copy_from_slice(&(0x20_u32 << 16 | 10).to_be_bytes());
        page[4..8].copy_from_slice(&5_u32.to_be_bytes());
        page[14] = 0x20;
        for (number, content, word) in [(1, Some(&page), 0x20 << 16 | 10), (2, None, 0)] {
            device.transfer(&memory);
            assert_eq!(memory.put(number, content), Ok(true), "it is wanted");
            assert_eq!(memory.is_here(Gpa::new(0x1000), 16) && number == 1, number == 1);
            // Saved meanwhile, it waits at the other one.
            device = FwCfg::restore(&device.save()).unwrap();
            device.transfer(&memory);
            assert_eq!(memory.load(Gpa::new(0x1000), 4).unwrap(), u64::from(u32::to_be(word)));
        }
        assert_eq!(memory.load(Gpa::new(0x2000), 4).unwrap().to_le_bytes()[..4], *b"hell");
        device.transfer(&memory);
        assert_eq!(device.port_read(DATA_PORT, 1), Some(0), "it was carried out once");
    }

    #[test]
    fn it_goes_on_where_it_was_read() {
        let mut device = device();
        read(&mut device, 0x20, 2);
        device.port_write(DMA_HIGH_PORT, 4, 7);
        let saved = device.save();
        let mut copy = FwCfg::restore(&saved).unwrap();
        assert_eq!(copy.save(), saved);
        assert_eq!([0; 3].map(|_| copy.port_read(DATA_PORT, 1).unwrap() as u8), *b"llo");
        assert_eq!(read(&mut copy, 0x21, 2), [7, 7]);
    }

    #[test]
    fn other_widths_are_not_its_own() {
        let mut device = device();
        assert_eq!(device.port_read(DATA_PORT, 4), None);
        assert!(!device.port_write(SELECTOR_PORT, 1, 0));
        assert_eq!(device.port_read(0x512, 1), None);
    }
}
