//! The image: a header in its first 8 KiB, and segments as the header or the file's ELF header says.
//!
//! [`Header::find`] says whether a file is for Multiboot at all, [`Image::parse`] what is loaded where (Multiboot
//! Specification 0.6.96, 3.1; System V gABI 4.1, chapter 5, and its Intel386 supplement). All numbers are the file's and
//! none is believed.

use crate::Error;
use addr::Gpa;
use core::ops::Range;
use guestmem::{GuestMemory, Outside};

const MAGIC: u32 = 0x1bad_b002;
/// The header lies in the image's first bytes, all of it, on a multiple of four.
const SEARCHED_BYTES: usize = 8192;
const HEADER_BYTES: usize = 12;
/// Modules on page boundaries, memory information and a video mode. The last is a wish: the information says that none
/// was set.
const KNOWN_REQUIREMENTS: u32 = 0b111;
/// A loader that does not know one of these must refuse the image.
const REQUIREMENTS: u32 = 0xffff;
/// The header says what to load, whatever format the file has.
const HAS_ADDRESSES: u32 = 1 << 16;

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// 32-bit, little-endian, version 1.
const ELF_CLASS: [u8; 3] = [1, 1, 1];
const EXECUTABLE: u16 = 2;
const I386: u16 = 3;
const PROGRAM_HEADER_BYTES: u16 = 32;
const LOADABLE: u32 = 1;
const RUNNABLE: u32 = 1 << 0;
/// Linkers make a handful.
const SEGMENTS_MAX: usize = 16;

/// Where a file has its Multiboot header.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    at: usize,
    flags: u32,
}

/// A piece of the kernel; it ends at 4 GiB at the latest, and its content is no longer than itself.
#[derive(Clone, Copy, Default, Debug)]
pub struct Piece<'a> {
    /// Its physical address.
    pub start: u64,
    /// The first address past it.
    pub end: u64,
    /// What lies at its start; zeroes follow.
    pub content: &'a [u8],
}

/// An image, checked.
#[derive(Debug)]
pub struct Image<'a> {
    pieces: [Piece<'a>; SEGMENTS_MAX],
    count: usize,
    /// The physical address of the first instruction.
    pub entry: u32,
}

impl Header {
    /// The header, if the file has one.
    pub fn find(file: &[u8]) -> Option<Self> {
        let searched = &file[..file.len().min(SEARCHED_BYTES)];
        (0..searched.len().saturating_sub(HEADER_BYTES - 1)).step_by(4).find_map(|at| {
            let (magic, flags, checksum) = (word(searched, at)?, word(searched, at + 4)?, word(searched, at + 8)?);
            let is_header = magic == MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0;
            is_header.then_some(Self { at, flags })
        })
    }
}

impl<'a> Image<'a> {
    /// The image in a file with this header.
    ///
    /// # Errors
    /// Where the image asks for what there is not, or contradicts itself.
    pub fn parse(file: &'a [u8], header: Header) -> Result<Self, Error> {
        let unknown = header.flags & REQUIREMENTS & !KNOWN_REQUIREMENTS;
        if unknown != 0 {
            return Err(Error::UnknownRequirements { flags: unknown });
        }
        let image = if header.flags & HAS_ADDRESSES != 0 { addressed(file, header.at) } else { elf(file) }?;
        image.check_entry()?;
        Ok(image)
    }

    /// Whether the first instruction lies in the image.
    pub fn check_entry(&self) -> Result<(), Error> {
        let entry = u64::from(self.entry);
        let is_inside = self.segments().any(|piece| (piece.start..piece.end).contains(&entry));
        if is_inside { Ok(()) } else { Err(Error::BadHeader("entry")) }
    }

    /// Puts it where it belongs.
    pub fn write(&self, memory: &GuestMemory) -> Result<(), Outside> {
        for piece in self.segments() {
            memory.write(Gpa::new(piece.start), piece.content)?;
            let content_bytes = piece.content.len() as u64;
            memory.zero(Gpa::new(piece.start + content_bytes), piece.end - piece.start - content_bytes)?;
        }
        Ok(())
    }

    /// What is loaded; none is empty.
    pub fn segments(&self) -> impl Iterator<Item = &Piece<'a>> {
        self.pieces[..self.count].iter()
    }

    /// The first address past all of it.
    pub fn end(&self) -> u64 {
        self.segments().map(|piece| piece.end).max().unwrap_or(0)
    }

    /// An image of nothing.
    pub fn empty(entry: u32) -> Self {
        Self { pieces: [Piece::default(); SEGMENTS_MAX], count: 0, entry }
    }

    /// Adds a piece.
    pub fn push(&mut self, start: u32, content: &'a [u8], memory_bytes: u64) -> Result<(), Error> {
        let end = u64::from(start).saturating_add(memory_bytes);
        if content.len() as u64 > memory_bytes || end > 1 << 32 {
            return Err(Error::BadHeader("segment"));
        }
        if memory_bytes > 0 {
            let slot = self.pieces.get_mut(self.count).ok_or(Error::BadHeader("too many segments"))?;
            *slot = Piece { start: start.into(), end, content };
            self.count += 1;
        }
        Ok(())
    }
}

/// The image as the header's address fields have it: one piece of the file that ends in zeroes.
fn addressed(file: &[u8], header: usize) -> Result<Image<'_>, Error> {
    let field = |index: usize| word(file, header + HEADER_BYTES + 4 * index).ok_or(Error::Truncated);
    let (own, load, load_end, bss_end, entry) = (field(0)?, field(1)?, field(2)?, field(3)?, field(4)?);
    let before = own.checked_sub(load).ok_or(Error::BadHeader("load_addr"))?;
    let first = header.checked_sub(before as usize).ok_or(Error::BadHeader("header_addr"))?;
    let content = if load_end == 0 {
        &file[first..]
    } else {
        let bytes = load_end.checked_sub(load).ok_or(Error::BadHeader("load_end_addr"))?;
        range(file, first..first.saturating_add(bytes as usize))?
    };
    let memory_bytes = match bss_end {
        0 => content.len() as u64,
        end => end.checked_sub(load).ok_or(Error::BadHeader("bss_end_addr"))?.into(),
    };
    let mut image = Image::empty(entry);
    image.push(load, content, memory_bytes)?;
    Ok(image)
}

/// The image as the ELF file's program headers have it.
fn elf(file: &[u8]) -> Result<Image<'_>, Error> {
    if !file.starts_with(&ELF_MAGIC) || file.get(4..7) != Some(&ELF_CLASS) {
        return Err(Error::NotElf32);
    }
    if half(file, 16)? != EXECUTABLE || half(file, 18)? != I386 {
        return Err(Error::NotElf32);
    }
    let field = |at: usize| word(file, at).ok_or(Error::Truncated);
    let (virtual_entry, table) = (field(24)?, field(28)? as usize);
    let (header_bytes, headers) = (half(file, 42)?, half(file, 44)?);
    if headers > 0 && header_bytes != PROGRAM_HEADER_BYTES {
        return Err(Error::BadHeader("e_phentsize"));
    }
    let mut image = Image::empty(virtual_entry);
    for index in 0..usize::from(headers) {
        let at = table.saturating_add(index * usize::from(PROGRAM_HEADER_BYTES));
        let header = range(file, at..at.saturating_add(PROGRAM_HEADER_BYTES.into()))?;
        let field = |index: usize| word(header, 4 * index).ok_or(Error::Truncated);
        if field(0)? != LOADABLE {
            continue;
        }
        let (offset, virtual_start, start) = (field(1)? as usize, field(2)?, field(3)?);
        let content = range(file, offset..offset.saturating_add(field(4)? as usize))?;
        image.push(start, content, field(5)?.into())?;
        // The entry is a virtual address, and paging is off.
        let within = virtual_entry.checked_sub(virtual_start).filter(|&within| (within as usize) < content.len());
        if let Some(within) = within.filter(|_| field(6).is_ok_and(|flags| flags & RUNNABLE != 0)) {
            image.entry = start.wrapping_add(within);
        }
    }
    Ok(image)
}

fn range(file: &[u8], range: Range<usize>) -> Result<&[u8], Error> {
    file.get(range).ok_or(Error::Truncated)
}

fn word(file: &[u8], at: usize) -> Option<u32> {
    let bytes = file.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn half(file: &[u8], at: usize) -> Result<u16, Error> {
    let bytes = file.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u16::from_le_bytes).ok_or(Error::Truncated)
}
