//! The data of IDENTIFY DEVICE (ACS-4, section 7.13).
//!
//! The main type is [`Identity`]; both ATA drivers make a disk's geometry of it, and recognise the disk by it after its
//! link was down.

use super::PAGE_BYTES;
use alloc::string::String;
use block::{Geometry, SECTOR_BYTES};
use core::fmt;

/// The largest logical block that is driven; larger ones do not exist.
const BLOCK_BYTES_MAX: u32 = 4096;
/// Ranges in one block of them, and the most logical blocks of a range that is whole 4 KiB blocks (section 7.6.3.2).
pub(crate) const TRIM_RANGES: u32 = (PAGE_BYTES / 8) as u32;
pub(crate) const TRIM_RANGE_BLOCKS_MAX: u32 = 0xfff8;
/// Long enough that a command itself costs nothing, short enough that others get a turn.
const TRANSFER_BYTES_MAX: u32 = 16 << 20;

/// Why a disk cannot be driven.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unfit {
    /// The data fails its own checksum.
    Checksum,
    /// It is no disk, or one that knows neither LBA nor DMA.
    NoDma,
    /// It has no sectors, or blocks of a size that is not driven.
    Size,
}

impl fmt::Display for Unfit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Checksum => "what it says of itself fails its checksum",
            Self::NoDma => "it is no disk with LBA and DMA",
            Self::Size => "its size or its block size makes no sense",
        })
    }
}

/// What a disk says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub serial: String,
    pub model: String,
    /// Size in logical blocks.
    pub blocks: u64,
    pub logical_block_bytes: u32,
    pub physical_block_bytes: u32,
    /// Whether it takes 48-bit addresses and 16-bit counts.
    pub has_lba48: bool,
    /// How many commands it queues by NCQ; 0 without.
    pub queue_depth: u8,
    /// Whether a volatile write cache is on.
    pub has_write_cache: bool,
    /// Whether it takes TRIM.
    pub has_trim: bool,
}

impl Identity {
    /// Reads the 512 bytes.
    pub(crate) fn parse(bytes: &[u8; PAGE_BYTES]) -> Result<Self, Unfit> {
        // Words 255: a signature and a byte that makes the sum zero.
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        if bytes[510] == 0xa5 && sum != 0 {
            return Err(Unfit::Checksum);
        }
        let words = Words(bytes);
        let has = |word: usize, bit: u32| words.at(word) & 1 << bit != 0;
        // Words 82 to 84 and 85 to 87 mean something only under these marks.
        let supported = words.at(83) >> 14 == 0b01;
        let enabled = words.at(87) >> 14 == 0b01;
        if has(0, 15) || !has(49, 8) || !has(49, 9) {
            return Err(Unfit::NoDma);
        }
        let has_lba48 = supported && has(83, 10);
        let (logical_block_bytes, physical_block_bytes) = words.block_bytes().ok_or(Unfit::Size)?;
        let blocks = words.blocks(has_lba48);
        if blocks == 0 || blocks >> 48 != 0 {
            return Err(Unfit::Size);
        }
        // Word 76 is that of a serial ATA disk, or all zeroes or all ones.
        let has_ncq = has_lba48 && words.at(76) != 0xffff && has(76, 8);
        Ok(Self {
            serial: words.text(10..20),
            model: words.text(27..47),
            blocks,
            logical_block_bytes,
            physical_block_bytes,
            has_lba48,
            queue_depth: if has_ncq { (words.at(75) & 0x1f) as u8 + 1 } else { 0 },
            has_write_cache: enabled && has(85, 5),
            has_trim: has_lba48 && has(169, 0) && words.at(105) != 0xffff,
        })
    }

    /// What the disk can do behind a controller that takes `max_runs` runs of up to `max_run_bytes` in a command and
    /// `queue_depth` commands. `place` is for people: "AHCI at 00:1f.2 port 0".
    pub(crate) fn geometry(&self, place: &str, max_runs: u16, max_run_bytes: u32, queue_depth: u16) -> Geometry {
        let sectors_per_block = u64::from(self.logical_block_bytes / SECTOR_BYTES);
        let max_blocks: u32 = if self.has_lba48 { 1 << 16 } else { 1 << 8 };
        Geometry {
            sectors: self.blocks * sectors_per_block,
            logical_block_bytes: self.logical_block_bytes,
            physical_block_bytes: self.physical_block_bytes,
            read_only: false,
            flush: self.has_write_cache,
            write_through: false,
            discard: self.has_trim,
            write_zeroes: false,
            max_discard_sectors: TRIM_RANGES * TRIM_RANGE_BLOCKS_MAX * sectors_per_block as u32,
            max_write_zeroes_sectors: 0,
            run_alignment_bytes: 2,
            run_boundary_bytes: 1,
            max_runs,
            max_run_bytes,
            max_transfer_bytes: TRANSFER_BYTES_MAX.min(max_blocks * self.logical_block_bytes),
            queue_depth,
            serial: self.serial.clone(),
            name: alloc::format!("{place}, {}", self.model),
        }
    }
}

/// The data as the 256 little-endian words that the standard counts in.
struct Words<'a>(&'a [u8; PAGE_BYTES]);

impl Words<'_> {
    fn at(&self, word: usize) -> u16 {
        u16::from_le_bytes([self.0[2 * word], self.0[2 * word + 1]])
    }

    /// A number of `words` words, the lowest first.
    fn number(&self, first: usize, words: usize) -> u64 {
        (first..first + words).rev().fold(0, |number, word| number << 16 | u64::from(self.at(word)))
    }

    /// The number of logical blocks: words 230 to 233 where word 69 says so, 100 to 103, or 60 and 61.
    fn blocks(&self, has_lba48: bool) -> u64 {
        let extended = self.at(69) != 0xffff && self.at(69) & 1 << 3 != 0;
        match (has_lba48, extended) {
            (true, true) => self.number(230, 4),
            (true, false) => self.number(100, 4),
            (false, _) => self.number(60, 2) & 0x0fff_ffff,
        }
    }

    /// The sizes of logical and physical blocks (words 106, 117 and 118).
    fn block_bytes(&self) -> Option<(u32, u32)> {
        let layout = self.at(106);
        if layout >> 14 != 0b01 {
            return Some((SECTOR_BYTES, SECTOR_BYTES));
        }
        let has_size = layout & 1 << 12 != 0;
        let logical = if has_size { u32::try_from(self.number(117, 2) * 2).ok()? } else { SECTOR_BYTES };
        if !logical.is_power_of_two() || !(SECTOR_BYTES..=BLOCK_BYTES_MAX).contains(&logical) {
            return None;
        }
        let exponent = if layout & 1 << 13 != 0 { layout & 0xf } else { 0 };
        Some((logical, logical << exponent))
    }

    /// Text: two characters a word, the first in the high byte, filled up with blanks. What could talk to the operator's
    /// terminal is replaced.
    fn text(&self, words: core::ops::Range<usize>) -> String {
        let bytes = words.flat_map(|word| self.at(word).to_be_bytes());
        let shown = bytes.take_while(|byte| *byte != 0);
        let text: String =
            shown.map(|byte| if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '?' }).collect();
        text.trim().into()
    }
}

#[cfg(test)]
pub(crate) mod sample {
    //! The identity of a disk that does everything.

    use super::PAGE_BYTES;

    /// Writes a word.
    pub(crate) fn set(page: &mut [u8; PAGE_BYTES], word: usize, value: u16) {
        page[2 * word..2 * word + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// 1 GiB in blocks of 512 bytes, 4 KiB on the medium; 48-bit addresses, NCQ of depth 32, write cache, TRIM.
    pub(crate) fn page() -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        for (first, text) in [(10, "S1234               "), (27, "Disk of a test                          ")] {
            for (index, pair) in text.as_bytes().chunks(2).enumerate() {
                set(&mut page, first + index, u16::from_be_bytes([pair[0], pair[1]]));
            }
        }
        let words = [
            (49, 1 << 8 | 1 << 9),
            (60, 0),
            (61, 0x20),
            (75, 31),
            (76, 1 << 8),
            (83, 1 << 14 | 1 << 13 | 1 << 12 | 1 << 10),
            (85, 1 << 5),
            (87, 1 << 14),
            (101, 0x20),
            (105, 8),
            (106, 1 << 14 | 1 << 13 | 3),
            (169, 1),
        ];
        words.into_iter().for_each(|(word, value)| set(&mut page, word, value));
        page
    }
}

#[cfg(test)]
mod tests {
    use super::sample::{page, set};
    use super::*;
    use proptest::prelude::*;

    fn parse(changes: &[(usize, u16)]) -> Result<Identity, Unfit> {
        let mut page = page();
        changes.iter().for_each(|&(word, value)| set(&mut page, word, value));
        Identity::parse(&page)
    }

    #[test]
    fn a_disk_that_does_everything() {
        let identity = parse(&[]).unwrap();
        assert_eq!((identity.serial.as_str(), identity.model.as_str()), ("S1234", "Disk of a test"));
        assert_eq!(
            (identity.blocks, identity.logical_block_bytes, identity.physical_block_bytes),
            (1 << 21, 512, 4096)
        );
        assert_eq!((identity.has_lba48, identity.queue_depth), (true, 32));
        assert!(identity.has_write_cache && identity.has_trim);
        let geometry = identity.geometry("here", 8, 4096, 32);
        assert_eq!((geometry.sectors, geometry.max_transfer_bytes), (1 << 21, 16 << 20));
        assert_eq!(geometry.max_discard_sectors % 8, 0);
    }

    #[test]
    fn large_blocks_are_counted_in_sectors() {
        let identity = parse(&[(106, 1 << 14 | 1 << 12), (117, 2048)]).unwrap();
        assert_eq!((identity.logical_block_bytes, identity.physical_block_bytes), (4096, 4096));
        assert_eq!(identity.geometry("here", 8, 4096, 32).sectors, 1 << 24);
        assert_eq!(parse(&[(106, 1 << 14 | 1 << 12), (117, 260)]), Err(Unfit::Size));
        assert_eq!(parse(&[(106, 1 << 14 | 1 << 12), (118, 0x8000)]), Err(Unfit::Size));
    }

    #[test]
    fn old_disks_have_short_addresses() {
        let identity = parse(&[(83, 1 << 14), (60, 0x1000), (61, 0xf001)]).unwrap();
        assert_eq!((identity.has_lba48, identity.queue_depth, identity.blocks), (false, 0, 0x1_1000));
        assert!(!identity.has_trim);
        assert_eq!(identity.geometry("here", 8, 4096, 1).max_transfer_bytes, 128 << 10);
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        assert_eq!(parse(&[(0, 0x8580)]), Err(Unfit::NoDma));
        assert_eq!(parse(&[(49, 1 << 9)]), Err(Unfit::NoDma));
        assert_eq!(parse(&[(101, 0)]), Err(Unfit::Size));
        assert_eq!(parse(&[(103, 1)]), Err(Unfit::Size));
    }

    #[test]
    fn a_checksum_is_kept_where_there_is_one() {
        let mut page = page();
        page[510] = 0xa5;
        page[511] = 0_u8.wrapping_sub(page.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
        assert!(Identity::parse(&page).is_ok());
        page[100] ^= 1;
        assert_eq!(Identity::parse(&page), Err(Unfit::Checksum));
    }

    #[test]
    fn marks_that_are_missing_void_the_words() {
        let identity = parse(&[(83, 0xffff), (87, 0xffff), (76, 0xffff)]).unwrap();
        assert!(!identity.has_lba48 && !identity.has_write_cache && identity.queue_depth == 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed(bytes in prop::collection::vec(any::<u8>(), PAGE_BYTES), block in 0_u16..2) {
            let mut page: [u8; PAGE_BYTES] = bytes.try_into().unwrap();
            // Past the first checks, which random bytes fail.
            page[510] = 0;
            set(&mut page, 0, 0);
            set(&mut page, 49, 0x300);
            set(&mut page, 106, block << 14);
            if let Ok(identity) = Identity::parse(&page) {
                let geometry = identity.geometry("here", 1, 4096, 1);
                prop_assert!(geometry.sectors >= identity.blocks && geometry.max_transfer_bytes >= 512);
                prop_assert!(identity.model.is_ascii() && !identity.model.contains('\x1b'));
            }
        }
    }
}
