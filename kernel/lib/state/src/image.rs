//! A saved machine on a disk: a header, the pages of its memory, and a stream of units that says what they are.
//!
//! [`Header`] is the first block. It is written last and so commits the image; an image without one is none. Pages follow
//! from [`PAGES_AT_BYTES`] on, zero ones left out, frame by frame as [`Frame`]s in the stream say; the stream is behind
//! them. Everything is covered by a checksum: the header by its own, the stream by its, each frame's pages by the frame's.

use crate::{CHECKSUM, Invalid, Kind, Limits, Reader, Writer};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use minicbor::{Decode, Encode};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 4096;
/// Where the pages begin.
pub const PAGES_AT_BYTES: u64 = HEADER_BYTES as u64;
/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;
/// Pages in a frame, which is what memory is saved by.
pub const FRAME_PAGES: usize = 512;

const MAGIC: [u8; 8] = *b"PLXIMAGE";
const VERSION: u32 = 1;
/// Where the header's checksum is.
const CHECKSUM_AT: usize = HEADER_BYTES - 4;
/// The longest name of a VM.
const NAME_BYTES_MAX: usize = 64;
/// The longest stream: vCPUs, devices, a console and a map of 256 GiB.
const STREAM_BYTES_MAX: u64 = 16 << 20;

const NAME: Kind = Kind { number: 1, name: "name", version: 1 };
const CONSOLE: Kind = Kind { number: 2, name: "console's text", version: 1 };
const MACHINE: Kind = Kind { number: 3, name: "machine", version: 1 };
const MEMORY: Kind = Kind { number: 4, name: "memory map", version: 1 };
const FIRST: Kind = Kind { number: 5, name: "list of what comes first", version: 1 };
const LIMITS: Kind = Kind { number: 6, name: "limits", version: 1 };

/// The checksum of a frame's pages.
static PAGES: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);

/// What a partition begins with that has an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Where the stream is, in bytes from the partition's start; a multiple of a page.
    pub stream_at_bytes: u64,
    /// Its length.
    pub stream_bytes: u64,
}

/// Why a partition has no image that can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoImage {
    /// It does not begin as one.
    None,
    /// Its version is newer than this reader.
    Version(u32),
    /// Its header's checksum or places are wrong.
    Damaged,
}

/// A large frame of guest memory.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Frame {
    /// Its guest-physical address.
    #[n(0)]
    pub gpa: u64,
    /// A bit for each page that is not zero, and so on the disk.
    #[n(1)]
    pub present: [u64; FRAME_PAGES / 64],
    /// The checksum of those pages.
    #[n(2)]
    pub checksum: u32,
}

/// What the stream of an image says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contents {
    /// What the VM was called.
    pub name: String,
    /// The end of what its console printed.
    pub console: Vec<u8>,
    /// The machine, as its own stream.
    pub machine: Vec<u8>,
    /// What the VM may use at most; missing in an image of a host that knew none.
    pub limits: Option<Limits>,
    /// Its memory, in the order of the pages.
    pub frames: Vec<Frame>,
    /// The addresses of those frames that the machine cannot be put together without; others can come while it runs. Of an
    /// image that does not say so, all.
    pub first: Vec<u64>,
}

/// Bytes that CBOR takes as bytes.
#[derive(Encode, Decode)]
struct Bytes {
    #[cbor(n(0), with = "minicbor::bytes")]
    bytes: Vec<u8>,
}

/// The checksum of pages, page by page.
pub struct Pages(crc::Digest<'static, u32, crc::Table<16>>);

impl Header {
    /// The block.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut block = [0; HEADER_BYTES];
        block[..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[16..24].copy_from_slice(&self.stream_at_bytes.to_le_bytes());
        block[24..32].copy_from_slice(&self.stream_bytes.to_le_bytes());
        let checksum = CHECKSUM.checksum(&block[..CHECKSUM_AT]);
        block[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    /// Reads the first block of a partition of `partition_bytes`.
    ///
    /// # Errors
    /// Where there is no image, or none that can be used.
    pub fn parse(block: &[u8; HEADER_BYTES], partition_bytes: u64) -> Result<Self, NoImage> {
        let word = |at: usize| block[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if block[..8] != MAGIC {
            return Err(NoImage::None);
        }
        let checksum = CHECKSUM.checksum(&block[..CHECKSUM_AT]).to_le_bytes();
        if block[CHECKSUM_AT..] != checksum {
            return Err(NoImage::Damaged);
        }
        match word(8) as u32 {
            VERSION => {}
            other => return Err(NoImage::Version(other)),
        }
        let header = Self { stream_at_bytes: word(16), stream_bytes: word(24) };
        let end = header.stream_at_bytes.checked_add(header.stream_bytes).filter(|end| *end <= partition_bytes);
        let placed = header.stream_at_bytes >= PAGES_AT_BYTES && header.stream_at_bytes.is_multiple_of(PAGE_BYTES);
        let bounded = (1..=STREAM_BYTES_MAX).contains(&header.stream_bytes);
        if end.is_some() && placed && bounded { Ok(header) } else { Err(NoImage::Damaged) }
    }

    /// How many bytes the pages have room for.
    pub fn pages_bytes(&self) -> u64 {
        self.stream_at_bytes - PAGES_AT_BYTES
    }
}

impl Frame {
    /// How many pages are on the disk.
    pub fn pages(&self) -> u32 {
        self.present.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether the page with this number is.
    pub fn has(&self, page: usize) -> bool {
        self.present[page / 64] >> (page % 64) & 1 != 0
    }

    /// The runs of pages that are, as first page and count.
    pub fn runs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let mut next = 0;
        core::iter::from_fn(move || {
            let first = (next..FRAME_PAGES).find(|&page| self.has(page))?;
            let end = (first..FRAME_PAGES).find(|&page| !self.has(page)).unwrap_or(FRAME_PAGES);
            next = end;
            Some((first, end - first))
        })
    }
}

impl Contents {
    /// The stream.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.unit(NAME, 0, &self.name);
        writer.unit(CONSOLE, 0, &Bytes { bytes: self.console.clone() });
        writer.unit(MACHINE, 0, &Bytes { bytes: self.machine.clone() });
        if let Some(limits) = &self.limits {
            writer.unit(LIMITS, 0, limits);
        }
        writer.unit(MEMORY, 0, &self.frames);
        writer.unit(FIRST, 0, &self.first);
        writer.finish()
    }

    /// Reads a stream whose pages have `pages_bytes` on the disk.
    ///
    /// # Errors
    /// Where it is none, or its frames do not fit there.
    pub fn parse(stream: &[u8], pages_bytes: u64) -> Result<Self, crate::Error> {
        let mut reader = Reader::parse(stream)?;
        let name: String = reader.must_take(NAME, 0)?;
        let console = reader.take(CONSOLE, 0)?.map_or(Vec::new(), |Bytes { bytes }| bytes);
        let Bytes { bytes: machine } = reader.must_take(MACHINE, 0)?;
        let limits = reader.take(LIMITS, 0)?;
        let frames: Vec<Frame> = reader.must_take(MEMORY, 0)?;
        let first: Option<Vec<u64>> = reader.take(FIRST, 0)?;
        reader.finish()?;
        let named = !name.is_empty() && name.len() <= NAME_BYTES_MAX;
        Invalid::unless(named, "its length").map_err(|what| what.within(NAME, 0))?;
        let pages: u64 = frames.iter().map(|frame| u64::from(frame.pages())).sum();
        let fits = pages.checked_mul(PAGE_BYTES).is_some_and(|bytes| bytes <= pages_bytes);
        Invalid::unless(fits, "more pages than there is room for").map_err(|what| what.within(MEMORY, 0))?;
        let mut all: Vec<u64> = frames.iter().map(|frame| frame.gpa).collect();
        all.sort_unstable();
        let first = first.unwrap_or_else(|| all.clone());
        let known = first.len() <= all.len() && first.iter().all(|gpa| all.binary_search(gpa).is_ok());
        Invalid::unless(known, "a frame that is none").map_err(|what| what.within(FIRST, 0))?;
        Ok(Self { name: name.to_string(), console, machine, limits, frames, first })
    }
}

impl Pages {
    /// Of no page.
    pub fn new() -> Self {
        Self(PAGES.digest())
    }

    /// Of one more.
    pub fn add(&mut self, page: &[u8]) {
        self.0.update(page);
    }

    /// The checksum.
    pub fn finish(self) -> u32 {
        self.0.finalize()
    }
}

impl Default for Pages {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for NoImage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => out.write_str("no saved VM is there"),
            Self::Version(version) => write!(out, "what is saved there has form {version}, newer than this Pollux"),
            Self::Damaged => out.write_str("what is saved there is damaged: its header's checksum does not match"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTITION_BYTES: u64 = 1 << 30;

    fn contents() -> Contents {
        let mut present = [0; FRAME_PAGES / 64];
        (present[0], present[7]) = (0b1011, 1 << 63);
        let frames = vec![Frame { gpa: 0, present, checksum: 7 }, Frame { gpa: 2 << 20, present: [0; 8], checksum: 0 }];
        let limits = Some(Limits { iops: Some(u64::MAX), ..Limits::default() });
        let first = vec![2 << 20];
        let (name, console) = ("web".into(), b"login: ".to_vec());
        Contents { name, console, machine: vec![1, 2, 3], limits, frames, first }
    }

    #[test]
    fn an_image_comes_back() {
        let stream = contents().encode();
        let header = Header { stream_at_bytes: 4096 * 5, stream_bytes: stream.len() as u64 };
        assert_eq!(Header::parse(&header.encode(), PARTITION_BYTES), Ok(header));
        assert_eq!(Contents::parse(&stream, header.pages_bytes()), Ok(contents()));
        assert!(Contents::parse(&stream, header.pages_bytes() - 1).is_err(), "four pages do not fit");
        let older = Contents { limits: None, ..contents() };
        assert_eq!(Contents::parse(&older.encode(), header.pages_bytes()), Ok(older));
    }

    #[test]
    fn what_comes_first_is_known_or_is_all() {
        let stranger = Contents { first: vec![4 << 20], ..contents() };
        assert!(Contents::parse(&stranger.encode(), 1 << 20).is_err());
        let mut writer = Writer::new();
        writer.unit(NAME, 0, &contents().name);
        writer.unit(MACHINE, 0, &Bytes { bytes: contents().machine });
        writer.unit(MEMORY, 0, &contents().frames);
        let old = Contents::parse(&writer.finish(), 1 << 20).unwrap();
        assert_eq!(old.first, [0, 2 << 20], "it was written when all of it came first");
    }

    /// What the first version wrote: whoever changes this test makes saved VMs unreadable.
    #[test]
    fn the_header_stays() {
        let block = Header { stream_at_bytes: 0x12_3000, stream_bytes: 0x4567 }.encode();
        assert_eq!(block[..32], *b"PLXIMAGE\x01\0\0\0\0\0\0\0\0\x30\x12\0\0\0\0\0\x67\x45\0\0\0\0\0\0");
        assert!(block[32..CHECKSUM_AT].iter().all(|&byte| byte == 0));
        assert_eq!(block[CHECKSUM_AT..], CHECKSUM.checksum(&block[..CHECKSUM_AT]).to_le_bytes());
    }

    #[test]
    fn a_frame_names_its_runs() {
        let frame = &contents().frames[0];
        assert_eq!(frame.runs().collect::<Vec<_>>(), [(0, 2), (3, 1), (511, 1)]);
        assert_eq!((frame.pages(), frame.has(2), frame.has(3)), (4, false, true));
        let all = Frame { gpa: 0, present: [u64::MAX; 8], checksum: 0 };
        assert_eq!(all.runs().collect::<Vec<_>>(), [(0, 512)]);
    }

    #[test]
    fn headers_that_are_none_are_refused() {
        let header = Header { stream_at_bytes: 8192, stream_bytes: 100 };
        assert_eq!(Header::parse(&[0; HEADER_BYTES], PARTITION_BYTES), Err(NoImage::None));
        let mut torn = header.encode();
        torn[512..].fill(0);
        assert_eq!(Header::parse(&torn, PARTITION_BYTES), Err(NoImage::Damaged));
        for wrong in [
            Header { stream_at_bytes: 4095, ..header },
            Header { stream_at_bytes: 0, ..header },
            Header { stream_at_bytes: u64::MAX - 4095, ..header },
            Header { stream_bytes: 0, ..header },
            Header { stream_bytes: PARTITION_BYTES, ..header },
        ] {
            assert_eq!(Header::parse(&wrong.encode(), PARTITION_BYTES), Err(NoImage::Damaged), "{wrong:?}");
        }
    }

    #[test]
    fn every_bit_of_a_page_counts() {
        let sum = |page: &[u8]| {
            let mut pages = Pages::new();
            pages.add(page);
            pages.finish()
        };
        let mut page = [0x5a; 4096];
        let before = sum(&page);
        page[4095] ^= 1;
        assert_ne!(sum(&page), before);
    }
}
