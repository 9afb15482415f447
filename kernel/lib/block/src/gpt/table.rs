//! The on-disk structures of a GUID partition table (UEFI Specification 2.10, sections 5.2.3 and 5.3).
//!
//! The main type is [`Header`], checked when it is made; [`super::Scan`] reads the blocks it is made from.

use super::{Error, Guid, Partition};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use crc::{CRC_32_ISO_HDLC, Crc};

/// The CRC of section 5.3: polynomial 0x04c11db7, reflected, as in Ethernet.
pub(super) const CRC32: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// The most bytes of entries. The usual table has 16 KiB.
const ENTRIES_BYTES_MAX: u64 = 128 << 10;
/// Bytes in the header's defined fields, and the least that it may say it has.
const HEADER_BYTES: u32 = 92;
/// Bytes in an entry's defined fields, and the least that an entry may have.
const ENTRY_BYTES: u32 = 128;
/// Attribute bit 60.
const ATTRIBUTE_READ_ONLY: u64 = 1 << 60;

/// Whether block 0 is a protective MBR: the boot signature and a partition of type 0xee (section 5.2.3).
pub(super) fn is_protective_mbr(block: &[u8]) -> bool {
    let signed = block.get(510..512) == Some(&[0x55, 0xaa]);
    signed && (0..4).any(|index| block.get(446 + index * 16 + 4) == Some(&0xee))
}

/// A table header whose fields agree with each other and with the disk.
#[derive(Debug)]
pub(super) struct Header {
    first_usable: u64,
    last_usable: u64,
    entries_block: u64,
    entry_bytes: u32,
    entries: u32,
    entries_crc: u32,
}

impl Header {
    /// Parses the header in `block`, which is the block with this number on a disk of `blocks` blocks.
    pub(super) fn parse(bytes: &[u8], block: u64, blocks: u64) -> Result<Self, Error> {
        let header_bytes = u32_at(bytes, 12).ok_or(Error::Damaged)?;
        let intact = bytes.starts_with(b"EFI PART")
            && (HEADER_BYTES..=bytes.len() as u32).contains(&header_bytes)
            && u32_at(bytes, 16) == Some(header_crc(&bytes[..header_bytes as usize]))
            && u64_at(bytes, 24) == Some(block);
        if !intact {
            return Err(Error::Damaged);
        }
        let header = Self::fields(bytes).ok_or(Error::Damaged)?;
        header.check(bytes, block, blocks)?;
        Ok(header)
    }

    fn fields(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            first_usable: u64_at(bytes, 40)?,
            last_usable: u64_at(bytes, 48)?,
            entries_block: u64_at(bytes, 72)?,
            entries: u32_at(bytes, 80)?,
            entry_bytes: u32_at(bytes, 84)?,
            entries_crc: u32_at(bytes, 88)?,
        })
    }

    /// The rules of section 5.3.2: where things lie, and how large an entry is.
    fn check(&self, bytes: &[u8], block: u64, blocks: u64) -> Result<(), Error> {
        if !self.entry_bytes.is_power_of_two() || self.entry_bytes < ENTRY_BYTES || self.entries == 0 {
            return Err(Error::Damaged);
        }
        if self.entries_bytes() > ENTRIES_BYTES_MAX {
            return Err(Error::TooLarge);
        }
        let entries_end = self.entries_block.checked_add(self.entries_bytes().div_ceil(bytes.len() as u64));
        let entries_end = entries_end.ok_or(Error::Damaged)?;
        let usable = self.first_usable <= self.last_usable && self.last_usable < blocks - 1 && self.first_usable >= 2;
        let before_usable = self.entries_block >= 2 && entries_end <= self.first_usable;
        let after_usable = self.entries_block > self.last_usable && entries_end < blocks;
        let placed = if block == 1 { before_usable } else { after_usable };
        if usable && placed { Ok(()) } else { Err(Error::Damaged) }
    }

    pub(super) fn entries_block(&self) -> u64 {
        self.entries_block
    }

    pub(super) fn entries_bytes(&self) -> u64 {
        u64::from(self.entries) * u64::from(self.entry_bytes)
    }

    pub(super) fn entries_are_intact(&self, entries: &[u8]) -> bool {
        CRC32.checksum(entries) == self.entries_crc
    }

    /// The partitions in use, in the table's order.
    pub(super) fn partitions(&self, entries: &[u8], block_sectors: u64) -> Result<Vec<Partition>, Error> {
        let mut partitions = Vec::new();
        for (number, entry) in (1..).zip(entries.chunks_exact(self.entry_bytes as usize)) {
            if let Some(partition) = self.partition(number, entry, block_sectors)? {
                partitions.push(partition);
            }
        }
        check_apart(&partitions)?;
        Ok(partitions)
    }

    /// One entry (section 5.3.3); `None` where it is unused.
    fn partition(&self, number: u32, entry: &[u8], block_sectors: u64) -> Result<Option<Partition>, Error> {
        let range = Error::OutOfRange(number);
        let type_guid = guid_at(entry, 0).ok_or(range)?;
        if type_guid == Guid::default() {
            return Ok(None);
        }
        let first = u64_at(entry, 32).ok_or(range)?;
        let last = u64_at(entry, 40).ok_or(range)?;
        if first < self.first_usable || last > self.last_usable || first > last {
            return Err(range);
        }
        Ok(Some(Partition {
            number,
            name: name(number, entry.get(56..128).unwrap_or_default()),
            // Below the disk's size in sectors, so these do not overflow.
            first_sector: first * block_sectors,
            sectors: (last - first + 1) * block_sectors,
            type_guid,
            unique_guid: guid_at(entry, 16).ok_or(range)?,
            read_only: u64_at(entry, 48).ok_or(range)? & ATTRIBUTE_READ_ONLY != 0,
        }))
    }
}

/// The header's CRC, which counts its own field as zero.
pub(super) fn header_crc(header: &[u8]) -> u32 {
    let mut digest = CRC32.digest();
    digest.update(&header[..16]);
    digest.update(&[0; 4]);
    digest.update(&header[20..]);
    digest.finalize()
}

/// Refuses partitions that share a block: each will be a VM's own.
fn check_apart(partitions: &[Partition]) -> Result<(), Error> {
    let mut by_start: Vec<_> = partitions.iter().collect();
    by_start.sort_unstable_by_key(|partition| partition.first_sector);
    for pair in by_start.windows(2) {
        if let [one, other] = pair
            && one.end_sector().is_none_or(|end| end > other.first_sector)
        {
            return Err(Error::Overlap(one.number, other.number));
        }
    }
    Ok(())
}

/// A name in UTF-16, little-endian, up to a zero or the end of its field.
fn name(number: u32, field: &[u8]) -> String {
    let units = field.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).take_while(|unit| *unit != 0);
    let name: String = char::decode_utf16(units)
        .map(|character| match character {
            Ok(character) if !character.is_control() => character,
            _ => char::REPLACEMENT_CHARACTER,
        })
        .collect();
    if name.is_empty() { format!("part{number}") } else { name }
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().copied().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().copied().map(u64::from_le_bytes)
}

fn guid_at(bytes: &[u8], offset: usize) -> Option<Guid> {
    bytes.get(offset..)?.first_chunk().copied().map(Guid)
}
