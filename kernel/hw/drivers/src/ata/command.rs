//! ATA commands as the registers that carry them (ACS-4, section 7; the 48-bit layout of section 4.1.2).
//!
//! The main type is [`Command`]; [`Manner`] is how a disk wants reads and writes to be asked for.

use super::PAGE_BYTES;
use super::identify::{Identity, TRIM_RANGE_BLOCKS_MAX};
use alloc::vec::Vec;
use block::{Op, Transfer};

const READ_DMA: u8 = 0xc8;
const READ_DMA_EXT: u8 = 0x25;
const READ_FPDMA_QUEUED: u8 = 0x60;
const WRITE_DMA: u8 = 0xca;
const WRITE_DMA_EXT: u8 = 0x35;
const WRITE_FPDMA_QUEUED: u8 = 0x61;
const FLUSH_CACHE: u8 = 0xe7;
const FLUSH_CACHE_EXT: u8 = 0xea;
const DATA_SET_MANAGEMENT: u8 = 0x06;
const FEATURE_TRIM: u16 = 1;
const READ_LOG_EXT: u8 = 0x2f;
const IDENTIFY_DEVICE: u8 = 0xec;

/// The log of a failed queued command (section 9.15).
const LOG_NCQ_ERROR: u64 = 0x10;
/// The device register: the address is an LBA.
const DEVICE_LBA: u8 = 1 << 6;

/// How a disk wants reads and writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Manner {
    /// READ and WRITE FPDMA QUEUED: many at a time.
    Queued,
    /// READ and WRITE DMA EXT.
    Dma48,
    /// READ and WRITE DMA, with 28-bit addresses.
    Dma28,
}

/// Which way a command's data goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Data {
    /// There is none.
    None,
    /// Disk to memory.
    In,
    /// Memory to disk.
    Out,
}

/// What is written to the disk's registers for a command. Of the 16-bit ones, a 28-bit command uses the low bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Command {
    pub opcode: u8,
    pub features: u16,
    pub count: u16,
    /// Bits 24 to 27 of a 28-bit command's address are in `device` as well.
    pub lba: u64,
    pub device: u8,
    pub data: Data,
    /// Whether other queued commands may be under way meanwhile, and only those.
    pub queued: bool,
}

impl Command {
    /// The command of a transfer that the disk can do. `tag` names a queued one.
    pub(crate) fn of(transfer: &Transfer<'_>, manner: Manner, block_sectors: u32, tag: u8) -> Self {
        let lba = transfer.sector / u64::from(block_sectors);
        // A count of 0 stands for the most that there is, which is where the number is cut off too.
        let blocks = (transfer.sectors / block_sectors) as u16;
        match transfer.op {
            Op::Read => Self::move_data(manner, Data::In, lba, blocks, tag),
            // No disk offers writing through, so that only plain writes come here.
            Op::Write | Op::WriteThrough => Self::move_data(manner, Data::Out, lba, blocks, tag),
            Op::Flush if manner == Manner::Dma28 => Self::plain(FLUSH_CACHE, Data::None),
            Op::Flush => Self::plain(FLUSH_CACHE_EXT, Data::None),
            // No disk offers zeroing, so that only discards come here.
            Op::Discard | Op::WriteZeroes => {
                Self { features: FEATURE_TRIM, count: 1, ..Self::plain(DATA_SET_MANAGEMENT, Data::Out) }
            }
        }
    }

    /// Asks the disk what it is.
    pub(crate) fn identify() -> Self {
        Self { device: 0, ..Self::plain(IDENTIFY_DEVICE, Data::In) }
    }

    /// Asks which queued command failed.
    pub(crate) fn read_error_log() -> Self {
        Self { count: 1, lba: LOG_NCQ_ERROR, ..Self::plain(READ_LOG_EXT, Data::In) }
    }

    fn plain(opcode: u8, data: Data) -> Self {
        Self { opcode, features: 0, count: 0, lba: 0, device: DEVICE_LBA, data, queued: false }
    }

    fn move_data(manner: Manner, data: Data, lba: u64, blocks: u16, tag: u8) -> Self {
        let is_read = data == Data::In;
        match manner {
            Manner::Queued => Self {
                features: blocks,
                count: u16::from(tag) << 3,
                lba,
                queued: true,
                ..Self::plain(if is_read { READ_FPDMA_QUEUED } else { WRITE_FPDMA_QUEUED }, data)
            },
            Manner::Dma48 => {
                Self { count: blocks, lba, ..Self::plain(if is_read { READ_DMA_EXT } else { WRITE_DMA_EXT }, data) }
            }
            Manner::Dma28 => Self {
                count: blocks & 0xff,
                lba,
                device: DEVICE_LBA | (lba >> 24) as u8 & 0xf,
                ..Self::plain(if is_read { READ_DMA } else { WRITE_DMA }, data)
            },
        }
    }
}

/// How the disk wants reads and writes on a controller that queues or does not.
pub(crate) fn manner(identity: &Identity, queues: bool) -> Manner {
    match identity {
        Identity { has_lba48: false, .. } => Manner::Dma28,
        Identity { queue_depth: 0, .. } => Manner::Dma48,
        _ if queues => Manner::Queued,
        _ => Manner::Dma48,
    }
}

/// The block of ranges that DATA SET MANAGEMENT takes: 64 entries of a 48-bit address and a 16-bit count, those with no
/// blocks unused (section 7.6.3.2).
pub(crate) fn trim_ranges(transfer: &Transfer<'_>, block_sectors: u32, page: &mut Vec<u8>) {
    page.clear();
    let mut lba = transfer.sector / u64::from(block_sectors);
    let mut blocks = transfer.sectors / block_sectors;
    while page.len() < PAGE_BYTES {
        let taken = blocks.min(TRIM_RANGE_BLOCKS_MAX);
        let start = if taken > 0 { lba } else { 0 };
        page.extend((u64::from(taken) << 48 | start).to_le_bytes());
        lba += u64::from(taken);
        blocks -= taken;
    }
}

/// The tag of the queued command that failed, by the log of it. `None` where it was none of the queued ones.
pub(crate) fn failed_tag(log: &[u8; PAGE_BYTES]) -> Option<u8> {
    let sum = log.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let not_queued = log[0] & 1 << 7 != 0;
    (sum == 0 && !not_queued).then_some(log[0] & 0x1f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::HostRun;

    fn transfer(op: Op, sector: u64, sectors: u32) -> Transfer<'static> {
        Transfer { id: 0, op, sector, sectors, runs: &[] as &[HostRun] }
    }

    #[test]
    fn queued_commands_have_their_count_in_the_features() {
        let read = Command::of(&transfer(Op::Read, 0x1234_5678_9abc, 0x180), Manner::Queued, 1, 5);
        let expected = Command {
            opcode: 0x60,
            features: 0x180,
            count: 5 << 3,
            lba: 0x1234_5678_9abc,
            device: 0x40,
            data: Data::In,
            queued: true,
        };
        assert_eq!(read, expected);
        assert_eq!(Command::of(&transfer(Op::Write, 0, 8), Manner::Queued, 8, 0).features, 1);
    }

    #[test]
    fn the_most_blocks_are_written_as_zero() {
        let most = Command::of(&transfer(Op::Write, 0, 1 << 16), Manner::Dma48, 1, 0);
        assert_eq!((most.opcode, most.count, most.queued), (0x35, 0, false));
        let most = Command::of(&transfer(Op::Read, 0xfed_cba9, 256), Manner::Dma28, 1, 0);
        assert_eq!((most.opcode, most.count, most.device), (0xc8, 0, 0x4f));
    }

    #[test]
    fn ranges_cover_a_discard() {
        let mut page = Vec::new();
        let discard = transfer(Op::Discard, 80, 8 * (TRIM_RANGE_BLOCKS_MAX + 3));
        trim_ranges(&discard, 8, &mut page);
        assert_eq!(page.len(), 512);
        let entry = |index: usize| u64::from_le_bytes(page[8 * index..8 * index + 8].try_into().unwrap());
        assert_eq!((entry(0) >> 48, entry(0) & 0xffff), (0xfff8, 10));
        assert_eq!((entry(1) >> 48, entry(1) & 0xf_ffff), (3, 0x1_0002));
        assert!((2..64).all(|index| entry(index) == 0));
    }

    #[test]
    fn the_log_names_a_tag() {
        let mut log = [0; PAGE_BYTES];
        (log[0], log[511]) = (7, 0xf9);
        assert_eq!(failed_tag(&log), Some(7));
        log[511] = 0;
        assert_eq!(failed_tag(&log), None);
        (log[0], log[511]) = (0x87, 0x79);
        assert_eq!(failed_tag(&log), None);
    }
}
