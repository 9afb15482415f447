//! The image: an ELF file for x86, of 32 or 64 bits, with Xen's note that names its 32-bit entry.
//!
//! [`Note::find`] says whether a file is for PVH at all, [`parse`] what is loaded where (System V gABI 4.1, chapter 5; Xen
//! 4.19, public/elfnote.h). All numbers are the file's and none is believed.

use crate::Error;
use crate::multiboot::Image;
use core::ops::Range;

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const EXECUTABLES: [u64; 2] = [2, 3];
const I386: u64 = 3;
const X86_64: u64 = 62;
const LOADABLE: u64 = 1;
const NOTES: u64 = 4;

const NOTE_NAME: &[u8] = b"Xen\0";
/// XEN_ELFNOTE_PHYS32_ENTRY.
const NOTE_ENTRY: u64 = 18;
/// Linux has some twenty; a program header table has no more entries than this.
const NOTES_MAX: usize = 64;
const HEADERS_MAX: u64 = 64;

/// The entry that a file's note names: a physical address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Note(u32);

/// Where a class of files has its fields: place and size.
struct Class {
    table: (usize, usize),
    header_bytes: usize,
    headers: usize,
    offset: (usize, usize),
    start: (usize, usize),
    file_bytes: (usize, usize),
    memory_bytes: (usize, usize),
    entry_bytes: u64,
}

const ELF32: Class = Class {
    table: (28, 4),
    header_bytes: 42,
    headers: 44,
    offset: (4, 4),
    start: (12, 4),
    file_bytes: (16, 4),
    memory_bytes: (20, 4),
    entry_bytes: 32,
};
const ELF64: Class = Class {
    table: (32, 8),
    header_bytes: 54,
    headers: 56,
    offset: (8, 8),
    start: (24, 8),
    file_bytes: (32, 8),
    memory_bytes: (40, 8),
    entry_bytes: 56,
};

/// A program header.
struct ProgramHeader<'a> {
    kind: u64,
    /// A physical address.
    start: u64,
    content: &'a [u8],
    memory_bytes: u64,
}

impl Note {
    /// The note, if the file is a program for x86 that has one.
    pub fn find(file: &[u8]) -> Option<Self> {
        let headers = headers(file).ok()?;
        headers.flatten().filter(|header| header.kind == NOTES).find_map(|header| entry_in(header.content)).map(Self)
    }
}

/// The image in a file with this note.
pub fn parse(file: &[u8], Note(entry): Note) -> Result<Image<'_>, Error> {
    let mut image = Image::empty(entry);
    for header in headers(file)? {
        let ProgramHeader { kind, start, content, memory_bytes } = header?;
        if kind == LOADABLE {
            let start = u32::try_from(start).map_err(|_| Error::BadHeader("p_paddr"))?;
            image.push(start, content, memory_bytes)?;
        }
    }
    image.check_entry()?;
    Ok(image)
}

/// The program headers of an ELF file for x86.
fn headers(file: &[u8]) -> Result<impl Iterator<Item = Result<ProgramHeader<'_>, Error>>, Error> {
    let class = match file.get(4..7) {
        Some([1, 1, 1]) => &ELF32,
        Some([2, 1, 1]) => &ELF64,
        _ => return Err(Error::NotKernel),
    };
    let is_program = EXECUTABLES.contains(&number(file, (16, 2))?) && [I386, X86_64].contains(&number(file, (18, 2))?);
    if !file.starts_with(&ELF_MAGIC) || !is_program {
        return Err(Error::NotKernel);
    }
    let (table, count) = (number(file, class.table)?, number(file, (class.headers, 2))?);
    if count > HEADERS_MAX || count > 0 && number(file, (class.header_bytes, 2))? != class.entry_bytes {
        return Err(Error::BadHeader("program headers"));
    }
    Ok((0..count).map(move |index| {
        let at = table.saturating_add(index * class.entry_bytes);
        let header = range(file, at, class.entry_bytes)?;
        let content = range(file, number(header, class.offset)?, number(header, class.file_bytes)?)?;
        let (start, memory_bytes) = (number(header, class.start)?, number(header, class.memory_bytes)?);
        Ok(ProgramHeader { kind: number(header, (0, 4))?, start, content, memory_bytes })
    }))
}

/// The entry in a segment of notes.
fn entry_in(mut notes: &[u8]) -> Option<u32> {
    for _ in 0..NOTES_MAX {
        let field = |at| number(notes, (at, 4)).ok();
        let (name_bytes, content_bytes, kind) = (field(0)?, field(4)?, field(8)?);
        let content_at = 12 + name_bytes.next_multiple_of(4);
        let name = range(notes, 12, name_bytes).ok()?;
        let content = range(notes, content_at, content_bytes).ok()?;
        if name == NOTE_NAME && kind == NOTE_ENTRY {
            let entry = number(content, (0, if content_bytes >= 8 { 8 } else { 4 })).ok()?;
            return u32::try_from(entry).ok();
        }
        let next = content_at + content_bytes.next_multiple_of(4);
        notes = notes.get(usize::try_from(next).ok()?..)?;
    }
    None
}

fn range(file: &[u8], at: u64, bytes: u64) -> Result<&[u8], Error> {
    let place = |number: u64| usize::try_from(number).map_err(|_| Error::Truncated);
    let range: Range<usize> = place(at)?..place(at.saturating_add(bytes))?;
    file.get(range).ok_or(Error::Truncated)
}

/// A little-endian number of up to 8 bytes at a place.
fn number(file: &[u8], (at, bytes): (usize, usize)) -> Result<u64, Error> {
    let mut value = [0; 8];
    value[..bytes].copy_from_slice(file.get(at..at + bytes).ok_or(Error::Truncated)?);
    Ok(u64::from_le_bytes(value))
}
