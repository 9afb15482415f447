//! Pages as records: what a batch of guest memory looks like on the wire.
//!
//! [`encode`] appends one record for a page; neighbouring pages of zeroes become one. [`Records`] reads a batch and checks
//! each record before it is used; what changed of a page is [`crate::delta`]'s. A record is eight bytes (the page's number
//! in bits 39:0, its [`Kind`] in 47:40, a count or length in 63:48), then the page's bytes, if it has any. [`Runs`] are
//! pages by their numbers alone.

use crate::delta::{self, Delta};
use addr::PAGE_BYTES;
use alloc::vec::Vec;
use guestmem::PageSet;

/// Bytes in a page.
pub const PAGE: usize = PAGE_BYTES as usize;

/// Bytes in front of each page.
pub const HEADER_BYTES: usize = 8;

const NUMBER_MASK: u64 = (1 << 40) - 1;

/// Pages that one batch names, at most: it is a turn of the processor, at either end.
pub const BATCH_PAGES_MAX: usize = 512;

/// A compressed page that is longer is sent as it is: the target would unpack it for little.
const COMPRESSED_BYTES_MAX: usize = PAGE / 4 * 3;

/// How a record carries its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nothing but zeroes; the count is that of the pages, which follow each other.
    Zero,
    /// As it is; the length is [`PAGE`].
    Raw,
    /// An LZ4 block of that length.
    Lz4,
    /// What changed since it was sent last, of that length; it may be nothing.
    Delta,
}

impl Kind {
    fn of(code: u64) -> Option<Self> {
        match code {
            0 => Some(Self::Zero),
            1 => Some(Self::Raw),
            2 => Some(Self::Lz4),
            3 => Some(Self::Delta),
            _ => None,
        }
    }
}

/// The most bytes that one page adds to a batch.
pub const RECORD_BYTES_MAX: usize = HEADER_BYTES + PAGE;

/// Appends zero page `page`; `last_zero` is where the record of the page before starts, if that was one.
pub fn encode_zero(out: &mut Vec<u8>, page: u64, last_zero: Option<usize>) -> usize {
    if let Some(at) = last_zero
        && let Some((header, [])) = out[at..].split_first_chunk::<HEADER_BYTES>()
    {
        let (number, _, count) = split(u64::from_le_bytes(*header));
        if number + u64::from(count) == page && count < u16::MAX {
            out[at..].copy_from_slice(&header_of(number, Kind::Zero, count + 1));
            return at;
        }
    }
    out.extend_from_slice(&header_of(page, Kind::Zero, 1));
    out.len() - HEADER_BYTES
}

/// Appends a page as it is.
pub fn encode_raw(out: &mut Vec<u8>, page: u64, bytes: &[u8; PAGE]) {
    out.extend_from_slice(&header_of(page, Kind::Raw, PAGE as u16));
    out.extend_from_slice(bytes);
}

/// Appends a page compressed; says whether it did. `packed` is room to work in.
pub fn encode_lz4(out: &mut Vec<u8>, page: u64, bytes: &[u8; PAGE], packed: &mut [u8]) -> bool {
    match lz4_flex::block::compress_into(bytes, packed) {
        Ok(length) if length <= COMPRESSED_BYTES_MAX => {
            out.extend_from_slice(&header_of(page, Kind::Lz4, length as u16));
            out.extend_from_slice(&packed[..length]);
            true
        }
        _ => false,
    }
}

/// Appends what changed of a page since `old` was sent, which becomes what it is now; says whether it did.
pub fn encode_delta(out: &mut Vec<u8>, page: u64, old: &mut [u8; PAGE], bytes: &[u8; PAGE]) -> bool {
    let at = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    if !delta::encode(out, old, bytes) {
        out.truncate(at);
        return false;
    }
    let length = out.len() - at - HEADER_BYTES;
    out[at..at + HEADER_BYTES].copy_from_slice(&header_of(page, Kind::Delta, length as u16));
    true
}

/// How much room [`encode_lz4`] wants to work in.
pub fn packed_bytes_max() -> usize {
    lz4_flex::block::get_maximum_output_size(PAGE)
}

fn header_of(page: u64, kind: Kind, length: u16) -> [u8; HEADER_BYTES] {
    assert!(page <= NUMBER_MASK, "a page's number fits");
    (page | (kind as u64) << 40 | u64::from(length) << 48).to_le_bytes()
}

fn split(header: u64) -> (u64, u64, u16) {
    (header & NUMBER_MASK, header >> 40 & 0xff, (header >> 48) as u16)
}

/// A record of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record<'a> {
    /// So many pages of zeroes from this one on.
    Zero(u64, u64),
    /// A page's bytes.
    Raw(u64, &'a [u8; PAGE]),
    /// A page's bytes, to be unpacked by [`unpack`].
    Lz4(u64, &'a [u8]),
    /// What changed of a page that was sent before.
    Delta(u64, Delta<'a>),
}

/// A batch that does not consist of records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadRecord;

/// The records of a batch, until the first that is wrong, or names a page too many.
pub struct Records<'a> {
    rest: &'a [u8],
    /// How many more pages it may name.
    pages_left: usize,
}

impl<'a> Records<'a> {
    /// Of a batch.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, pages_left: BATCH_PAGES_MAX }
    }

    fn take(&mut self) -> Result<Record<'a>, BadRecord> {
        let (header, rest) = self.rest.split_first_chunk().ok_or(BadRecord)?;
        let (page, code, length) = split(u64::from_le_bytes(*header));
        let kind = Kind::of(code).ok_or(BadRecord)?;
        let pages = if kind == Kind::Zero { length.into() } else { 1 };
        self.pages_left = self.pages_left.checked_sub(pages).ok_or(BadRecord)?;
        let record = match kind {
            Kind::Zero if length == 0 => return Err(BadRecord),
            Kind::Zero => {
                self.rest = rest;
                return Ok(Record::Zero(page, length.into()));
            }
            Kind::Raw if usize::from(length) != PAGE => return Err(BadRecord),
            Kind::Raw => Record::Raw(page, rest.first_chunk().ok_or(BadRecord)?),
            Kind::Lz4 => Record::Lz4(page, rest.get(..length.into()).ok_or(BadRecord)?),
            Kind::Delta => Record::Delta(page, Delta::new(rest.get(..length.into()).ok_or(BadRecord)?)?),
        };
        self.rest = &rest[length.into()..];
        Ok(record)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.take();
        if record.is_err() {
            self.rest = &[];
        }
        Some(record)
    }
}

/// Bytes of a run: the first page's number in bits 39:0, how many follow each other in 63:40.
pub const RUN_BYTES: usize = 8;
const RUN_PAGES_MAX: u64 = (1 << 24) - 1;

/// Pages as runs, none of them empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Runs<'a>(&'a [[u8; RUN_BYTES]]);

impl<'a> Runs<'a> {
    /// Of these bytes, if they are runs.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let runs = Self(bytes.as_chunks().0);
        (bytes.len().is_multiple_of(RUN_BYTES) && runs.iter().all(|(_, count)| count > 0)).then_some(runs)
    }

    /// Whether each begins where the one before ended, or later: then no page is named twice.
    pub fn are_ascending(self) -> bool {
        self.iter().try_fold(0, |end, (first, count)| (first >= end).then_some(first + count)).is_some()
    }

    /// Whether each is one page.
    pub fn are_single(self) -> bool {
        self.iter().all(|(_, count)| count == 1)
    }

    /// First page and how many.
    pub fn iter(self) -> impl Iterator<Item = (u64, u64)> + 'a {
        self.0.iter().map(|run| {
            let run = u64::from_le_bytes(*run);
            (run & NUMBER_MASK, run >> 40)
        })
    }

    /// As bytes.
    pub fn bytes(self) -> &'a [u8] {
        self.0.as_flattened()
    }
}

/// The bytes of one run, which may be no longer than [`Runs`] can say.
pub fn run(first: u64, count: u64) -> [u8; RUN_BYTES] {
    assert!(first <= NUMBER_MASK && (1..=RUN_PAGES_MAX).contains(&count), "a run's numbers fit");
    (first | count << 40).to_le_bytes()
}

/// Calls `with` with [`Runs`] of the pages from `from` on, at most `runs_max`, if there are any. Gives the page to go on
/// from, where there are more: runs of them all, in ascending order, come of calling this with what it gave.
pub fn next_runs(pages: &PageSet, from: u64, runs_max: usize, with: impl FnOnce(Runs<'_>)) -> Option<u64> {
    let mut runs = Vec::new();
    let mut next = pages.next_from(from);
    while let Some(first) = next
        && runs.len() < runs_max
    {
        let count = (pages.next_gap_from(first) - first).min(RUN_PAGES_MAX);
        runs.push(run(first, count));
        next = pages.next_from(first + count);
    }
    if !runs.is_empty() {
        with(Runs(&runs));
    }
    next
}

/// Unpacks a compressed page.
pub fn unpack(packed: &[u8], page: &mut [u8; PAGE]) -> Result<(), BadRecord> {
    match lz4_flex::block::decompress_into(packed, page) {
        Ok(PAGE) => Ok(()),
        _ => Err(BadRecord),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn zero_pages_in_a_row_are_one_record() {
        let mut out = Vec::new();
        let mut last = None;
        for page in [5, 6, 7, 9] {
            last = Some(encode_zero(&mut out, page, last));
        }
        let records: Vec<_> = Records::new(&out).collect();
        assert_eq!(records, [Ok(Record::Zero(5, 3)), Ok(Record::Zero(9, 1))]);
    }

    #[test]
    fn a_zero_page_after_another_kind_starts_its_own() {
        let mut out = Vec::new();
        let last = encode_zero(&mut out, 1, None);
        encode_raw(&mut out, 2, &[7; PAGE]);
        encode_zero(&mut out, 3, Some(last));
        let records: Vec<_> = Records::new(&out).collect();
        assert_eq!(records, [Ok(Record::Zero(1, 1)), Ok(Record::Raw(2, &[7; PAGE])), Ok(Record::Zero(3, 1))]);
    }

    #[test]
    fn a_page_comes_back_from_lz4_and_noise_is_not_packed() {
        let mut page = [0; PAGE];
        page[100..108].copy_from_slice(b"contents");
        let (mut out, mut packed) = (Vec::new(), alloc::vec![0; packed_bytes_max()]);
        assert!(encode_lz4(&mut out, 77, &page, &mut packed));
        assert!(out.len() < 100);
        let Some(Ok(Record::Lz4(77, bytes))) = Records::new(&out).next() else { panic!("{out:?}") };
        let mut again = [1; PAGE];
        unpack(bytes, &mut again).unwrap();
        assert_eq!(again, page);
        let mut seed = 1u64;
        let noise = core::array::from_fn(|_| {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (seed >> 56) as u8
        });
        assert!(!encode_lz4(&mut out, 78, &noise, &mut packed));
    }

    #[test]
    fn what_changed_is_a_record_and_nothing_is_one_too() {
        let (mut old, mut new) = ([3; PAGE], [3; PAGE]);
        let mut out = Vec::new();
        assert!(encode_delta(&mut out, 4, &mut old, &new));
        new[17] = 4;
        assert!(encode_delta(&mut out, 5, &mut old, &new));
        assert!(!encode_delta(&mut out, 6, &mut old, &[9; PAGE]));
        assert_eq!(out.len(), 2 * HEADER_BYTES + 10);
        let records: Vec<_> = Records::new(&out).map(Result::unwrap).collect();
        let [Record::Delta(4, none), Record::Delta(5, word)] = records[..] else { panic!("{records:?}") };
        assert_eq!(none.runs().count(), 0);
        assert_eq!(word.runs().collect::<Vec<_>>(), [(16, &new[16..24])]);
    }

    #[test]
    fn cut_batches_are_refused() {
        let mut out = Vec::new();
        encode_raw(&mut out, 2, &[7; PAGE]);
        for length in 1..out.len() {
            assert_eq!(Records::new(&out[..length]).next(), Some(Err(BadRecord)));
        }
        assert_eq!(Records::new(&header_of(1, Kind::Zero, 0)).next(), Some(Err(BadRecord)));
        assert_eq!(unpack(&[0x10], &mut [0; PAGE]), Err(BadRecord));
    }

    #[test]
    fn pages_come_back_from_runs() {
        let mut pages = PageSet::new(200).unwrap();
        [(0, 3), (70, 1), (72, 60), (199, 1)].iter().for_each(|&(first, count)| pages.insert(first, count));
        let (mut again, mut lists) = (PageSet::new(200).unwrap(), 0);
        let mut next = Some(0);
        while let Some(from) = next {
            next = next_runs(&pages, from, 3, |runs| {
                let runs = Runs::new(runs.bytes()).unwrap();
                assert!(runs.are_ascending());
                runs.iter().for_each(|(first, count)| again.insert(first, count));
                lists += 1;
            });
        }
        assert_eq!((again, lists), (pages, 2));
        assert_eq!(next_runs(&PageSet::default(), 0, 3, |_| panic!("there is none")), None);
        assert!(Runs::new(&[1; 7]).is_none() && Runs::new(&[0; 8]).is_none());
    }

    #[test]
    fn a_batch_names_so_many_pages_and_no_more() {
        let batch =
            |counts: &[u16]| -> Vec<u8> { counts.iter().flat_map(|&count| header_of(7, Kind::Zero, count)).collect() };
        assert_eq!(Records::new(&batch(&[500, 12])).filter(Result::is_ok).count(), 2);
        let bytes = batch(&[500, 13, 1]);
        let records: Vec<_> = Records::new(&bytes).collect();
        assert_eq!(records, [Ok(Record::Zero(7, 500)), Err(BadRecord)]);
        assert_eq!(Records::new(&batch(&[u16::MAX])).next(), Some(Err(BadRecord)));
    }

    proptest! {
        #[test]
        fn hostile_batches_end(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut page = [0; PAGE];
            for record in Records::new(&bytes) {
                if let Ok(Record::Lz4(_, packed)) = record {
                    let _ = unpack(packed, &mut page);
                }
            }
        }
    }
}
