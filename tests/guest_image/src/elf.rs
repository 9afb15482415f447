//! As much of the ELF format as a statically linked x86-64 program needs (System V gABI 4.1, chapters 4 and 5).

use anyhow::{Context, Result, ensure};

const IDENTITY: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
const X86_64: u64 = 62;
const LOADABLE: u64 = 1;
const PROGRAM_HEADER_BYTES: u64 = 56;

/// A program's segments.
pub struct Elf<'a> {
    /// Its first instruction's address.
    pub entry: u64,
    /// What is loaded; at least one.
    pub segments: Vec<Segment<'a>>,
}

/// A piece of the program. Neither its content nor its memory wraps around the address space.
pub struct Segment<'a> {
    /// Its physical address.
    pub address: u64,
    /// What lies there.
    pub content: &'a [u8],
    /// How much memory it takes, the content included.
    pub memory_bytes: u64,
}

impl<'a> Elf<'a> {
    pub fn parse(file: &'a [u8]) -> Result<Self> {
        ensure!(file.starts_with(&IDENTITY), "not a 64-bit little-endian ELF file");
        ensure!(field(file, 18, 2)? == X86_64, "not an x86-64 program");
        ensure!(field(file, 54, 2)? == PROGRAM_HEADER_BYTES, "unknown size of program headers");
        let (table, count) = (field(file, 32, 8)?, field(file, 56, 2)?);
        let mut segments = Vec::new();
        for index in 0..count {
            let header = slice(file, table.saturating_add(index * PROGRAM_HEADER_BYTES), PROGRAM_HEADER_BYTES)?;
            if field(header, 0, 4)? == LOADABLE && field(header, 40, 8)? > 0 {
                segments.push(Segment::parse(file, header)?);
            }
        }
        ensure!(!segments.is_empty(), "the program has no segment to load");
        Ok(Self { entry: field(file, 24, 8)?, segments })
    }
}

impl<'a> Segment<'a> {
    fn parse(file: &'a [u8], header: &[u8]) -> Result<Self> {
        let (offset, address) = (field(header, 8, 8)?, field(header, 24, 8)?);
        let (content_bytes, memory_bytes) = (field(header, 32, 8)?, field(header, 40, 8)?);
        ensure!(content_bytes <= memory_bytes, "a segment has more content than memory");
        ensure!(address.checked_add(memory_bytes).is_some(), "a segment wraps around the address space");
        Ok(Self { address, content: slice(file, offset, content_bytes)?, memory_bytes })
    }
}

fn slice(file: &[u8], at: u64, bytes: u64) -> Result<&[u8]> {
    let end = at.checked_add(bytes).and_then(|end| usize::try_from(end).ok());
    end.and_then(|end| file.get(at as usize..end)).context("the ELF file ends early")
}

/// The little-endian integer of `bytes` bytes at `at`.
fn field(file: &[u8], at: u64, bytes: u64) -> Result<u64> {
    Ok(slice(file, at, bytes)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}
