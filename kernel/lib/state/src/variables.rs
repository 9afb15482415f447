//! What a guest's firmware keeps, on a disk: two copies, of which one is whole whatever moment the power fails in.
//!
//! [`Store`] says what the disk holds ([`Store::read`]) and what to write next ([`Store::next`]); it does no I/O. A copy is
//! a header, which has a checksum of each block, and the blocks. The older copy is always the one that is written, and only
//! where it differs, and counts from the moment in which all of it is there: a write that is cut short leaves a copy whose
//! checksums do not match, and the other one.

use crate::CHECKSUM;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// What is written at least.
pub const BLOCK_BYTES: usize = 4096;
/// How far apart the copies begin.
pub const COPY_BYTES: usize = 1 << 20;
/// How much of a partition is used.
pub const STORE_BYTES: usize = 2 * COPY_BYTES;
/// How much a firmware can keep.
pub const CONTENT_BYTES_MAX: usize = BLOCKS_MAX * BLOCK_BYTES;

const BLOCKS_MAX: usize = COPY_BYTES / BLOCK_BYTES - 1;
const MAGIC: [u8; 8] = *b"PLXUEFIV";
const VERSION: u32 = 1;
/// Where a header's parts are.
const CHECKSUMS_AT: usize = 32;
const CHECKSUM_AT: usize = BLOCK_BYTES - 4;
/// No disk lives to see so many writes.
const SEQUENCE_MAX: u64 = u64::MAX / 2;

const _: () = assert!(CHECKSUMS_AT + 4 * BLOCKS_MAX <= CHECKSUM_AT, "a header holds every block's checksum");

/// The checksum of a block.
static BLOCKS: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);

/// Both copies, as they are on the disk, beside what the firmware's flash holds.
#[derive(Debug)]
pub struct Store {
    copies: [Half; 2],
    /// Which copy counts; the other one is written next.
    newest: usize,
    /// That copy's.
    sequence: u64,
}

/// One copy.
#[derive(Clone, Debug)]
struct Half {
    /// Each block's checksum.
    checksums: Vec<u32>,
    /// Blocks that differ from the flash, or may.
    stale: Vec<bool>,
}

/// What was found on a disk.
#[derive(Debug)]
pub struct Found {
    /// For what comes.
    pub store: Store,
    /// What the firmware kept; `None` where that was never written, or no copy is whole.
    pub content: Option<Vec<u8>>,
    /// Which copies are damaged.
    pub damaged: [bool; 2],
}

/// Why a partition is left alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unusable {
    /// It holds something else.
    Foreign,
    /// What it holds is in a form newer than this reader.
    Version(u32),
    /// It holds the variables of a firmware whose flash has another size, in bytes.
    Size(usize),
}

/// Blocks of a copy to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    copy: usize,
    blocks: Range<usize>,
    /// The header for them; empty before [`Store::seal`].
    checksums: Vec<u32>,
}

/// What one copy is.
enum Kind {
    Blank,
    Foreign,
    Damaged,
    Version(u32),
    Whole { sequence: u64, checksums: Vec<u32> },
}

impl Store {
    /// Reads both copies, each from its start on, for a flash of `bytes`: whole blocks, at most [`CONTENT_BYTES_MAX`].
    ///
    /// # Errors
    /// Where something is there that must not be overwritten unasked.
    pub fn read(copies: [&[u8]; 2], bytes: usize) -> Result<Found, Unusable> {
        let kinds = copies.map(Kind::of);
        let mut newest: Option<(usize, u64)> = None;
        for (index, kind) in kinds.iter().enumerate() {
            match *kind {
                Kind::Version(version) => return Err(Unusable::Version(version)),
                Kind::Whole { sequence, .. } if newest.is_none_or(|(_, other)| sequence > other) => {
                    newest = Some((index, sequence));
                }
                Kind::Whole { .. } | Kind::Blank | Kind::Foreign | Kind::Damaged => {}
            }
        }
        let is_foreign = kinds.iter().any(|kind| matches!(kind, Kind::Foreign));
        let is_own = kinds.iter().any(|kind| matches!(kind, Kind::Damaged | Kind::Whole { .. }));
        if is_foreign && !is_own {
            return Err(Unusable::Foreign);
        }
        let content = newest.map(|(index, _)| content(copies[index], &kinds[index]));
        if let Some(content) = content.filter(|content| content.len() != bytes) {
            return Err(Unusable::Size(content.len()));
        }
        // Beside a whole copy, whatever the other one is, it was one.
        let damaged = [0, 1]
            .map(|index| matches!(kinds[index], Kind::Damaged) || is_own && matches!(kinds[index], Kind::Foreign));
        let copy = |index: usize| Half::of(&kinds[index], copies[index], content, bytes);
        let (newest, sequence) = newest.unwrap_or((1, 0));
        let store = Self { copies: [copy(0), copy(1)], newest, sequence };
        Ok(Found { store, content: content.map(Vec::from), damaged })
    }

    /// The flash holds something else in this range of bytes.
    pub fn note(&mut self, range: Range<usize>) {
        let blocks = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
        for copy in &mut self.copies {
            copy.stale[blocks.clone()].fill(true);
        }
    }

    /// The flash holds `flash` and not `kept`, which was read as the content; both are as long as it is.
    pub fn note_differences(&mut self, kept: &[u8], flash: &[u8]) {
        let blocks = kept.chunks(BLOCK_BYTES).zip(flash.chunks(BLOCK_BYTES));
        for (at, (_, block)) in (0..).step_by(BLOCK_BYTES).zip(blocks).filter(|(_, (kept, flash))| kept != flash) {
            self.note(at..at + block.len());
        }
    }

    /// What to write so that the disk holds what the flash does; `None` where it does.
    pub fn next(&self) -> Option<Write> {
        if !self.copies[self.newest].stale.contains(&true) {
            return None;
        }
        let copy = 1 - self.newest;
        let stale = &self.copies[copy].stale;
        let first = stale.iter().position(|&stale| stale)?;
        let end = stale.iter().rposition(|&stale| stale)? + 1;
        Some(Write { copy, blocks: first..end, checksums: Vec::new() })
    }

    /// The header of a write whose blocks hold `bytes`.
    ///
    /// # Panics
    /// Where that is another number of bytes than [`Write::content`] says.
    pub fn seal(&self, write: &mut Write, bytes: &[u8]) -> [u8; BLOCK_BYTES] {
        assert_eq!(bytes.len(), write.content().len(), "the blocks of the write");
        write.checksums.clone_from(&self.copies[write.copy].checksums);
        let blocks = bytes.as_chunks::<BLOCK_BYTES>().0;
        for (checksum, block) in write.checksums[write.blocks.clone()].iter_mut().zip(blocks) {
            *checksum = BLOCKS.checksum(block);
        }
        encode(self.sequence + 1, &write.checksums)
    }

    /// A write is on the disk, for good.
    pub fn written(&mut self, write: Write) {
        let copy = &mut self.copies[write.copy];
        copy.stale[write.blocks].fill(false);
        copy.checksums = write.checksums;
        self.newest = write.copy;
        self.sequence += 1;
    }
}

impl Write {
    /// Which bytes of the flash its blocks are.
    pub fn content(&self) -> Range<usize> {
        self.blocks.start * BLOCK_BYTES..self.blocks.end * BLOCK_BYTES
    }

    /// Where on the disk its header is.
    pub fn header_at(&self) -> usize {
        self.copy * COPY_BYTES
    }

    /// Where on the disk its blocks are.
    pub fn blocks_at(&self) -> usize {
        self.header_at() + (1 + self.blocks.start) * BLOCK_BYTES
    }
}

impl Half {
    /// What a copy is beside `content`, which the flash of `bytes` is about to hold.
    fn of(kind: &Kind, bytes_there: &[u8], content: Option<&[u8]>, bytes: usize) -> Self {
        let blocks = bytes / BLOCK_BYTES;
        match (kind, content) {
            (Kind::Whole { checksums, .. }, Some(content)) if checksums.len() == blocks => {
                let own = bytes_there[BLOCK_BYTES..].chunks(BLOCK_BYTES);
                let stale = own.zip(content.chunks(BLOCK_BYTES)).map(|(own, other)| own != other).collect();
                Self { checksums: checksums.clone(), stale }
            }
            _ => Self { checksums: alloc::vec![0; blocks], stale: alloc::vec![true; blocks] },
        }
    }
}

impl Kind {
    /// What the bytes of a copy are.
    fn of(copy: &[u8]) -> Self {
        let Some((header, rest)) = copy.split_first_chunk::<BLOCK_BYTES>() else { return Self::Foreign };
        if header[..8] != MAGIC {
            return if header.iter().all(|&byte| byte == 0) { Self::Blank } else { Self::Foreign };
        }
        if header[CHECKSUM_AT..] != CHECKSUM.checksum(&header[..CHECKSUM_AT]).to_le_bytes() {
            return Self::Damaged;
        }
        let word = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let (version, bytes) = (word(8), word(12) as usize);
        let sequence = u64::from(word(20)) << 32 | u64::from(word(16));
        if version != VERSION {
            return Self::Version(version);
        }
        if !bytes.is_multiple_of(BLOCK_BYTES) || !(1..=CONTENT_BYTES_MAX).contains(&bytes) || sequence > SEQUENCE_MAX {
            return Self::Damaged;
        }
        let checksums: Vec<u32> = (0..bytes / BLOCK_BYTES).map(|block| word(CHECKSUMS_AT + 4 * block)).collect();
        let blocks = rest.as_chunks::<BLOCK_BYTES>().0;
        let matches = |(block, checksum): (&[u8; BLOCK_BYTES], &u32)| BLOCKS.checksum(block) == *checksum;
        let is_whole = blocks.len() >= checksums.len() && blocks.iter().zip(&checksums).all(matches);
        if is_whole { Self::Whole { sequence, checksums } } else { Self::Damaged }
    }
}

/// The blocks of a whole copy.
fn content<'a>(copy: &'a [u8], kind: &Kind) -> &'a [u8] {
    let Kind::Whole { checksums, .. } = kind else { return &[] };
    &copy[BLOCK_BYTES..][..checksums.len() * BLOCK_BYTES]
}

fn encode(sequence: u64, checksums: &[u32]) -> [u8; BLOCK_BYTES] {
    let mut header = [0; BLOCK_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&((checksums.len() * BLOCK_BYTES) as u32).to_le_bytes());
    header[16..24].copy_from_slice(&sequence.to_le_bytes());
    for (place, checksum) in header[CHECKSUMS_AT..CHECKSUM_AT].as_chunks_mut::<4>().0.iter_mut().zip(checksums) {
        *place = checksum.to_le_bytes();
    }
    let checksum = CHECKSUM.checksum(&header[..CHECKSUM_AT]);
    header[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
    header
}

impl fmt::Display for Unusable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign => out.write_str("it holds something else"),
            Self::Version(version) => write!(out, "what it holds has form {version}, newer than this Pollux"),
            Self::Size(bytes) => write!(out, "it holds those of another firmware, whose flash has {} KiB", bytes >> 10),
        }
    }
}

#[cfg(test)]
mod tests;
