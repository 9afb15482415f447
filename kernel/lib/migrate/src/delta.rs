//! What changed of a page since it was sent: the words that differ, which are few where a guest counts, links or marks.
//!
//! [`Copies`] keeps pages as they were sent last, those that the guest is known to write to, as far as there is room;
//! [`encode`] finds what changed since, and [`Delta`] is that as it arrives. A delta is a list of runs: two bytes, with
//! the first word of eight bytes in bits 8:0 and the number of words less one in bits 15:9, then the words.
//! [`crate::pace`] uses the one, whoever stores pages at the target the other.

use crate::pages::{BadRecord, PAGE};
use alloc::vec::Vec;

const WORD: usize = 8;
const WORDS: usize = PAGE / WORD;
const RUN_WORDS_MAX: usize = 1 << 7;
const RUN_HEADER_BYTES: usize = 2;
/// A longer delta is not worth its many writes at the target.
pub const DELTA_BYTES_MAX: usize = PAGE / 2;

/// Pages that are kept at most: 64 MiB.
const COPIES_MAX: u64 = 16_384;
/// Copies are kept in blocks of so many pages, which are the heap's large frames.
const BLOCK_PAGES: usize = 512;
/// How many places are looked at for a page, of twice as many as there can be copies.
const PROBES: usize = 8;

/// What a delta says of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delta<'a>(&'a [u8]);

impl<'a> Delta<'a> {
    /// Of these bytes, if each run is whole and within its page.
    pub fn new(bytes: &'a [u8]) -> Result<Self, BadRecord> {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = split_run(rest).ok_or(BadRecord)?.2;
        }
        Ok(Self(bytes))
    }

    /// Where in the page, and what is there now.
    pub fn runs(self) -> impl Iterator<Item = (usize, &'a [u8])> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let (offset, bytes, after) = split_run(rest)?;
            rest = after;
            Some((offset, bytes))
        })
    }
}

/// The first run's place and bytes, and what follows it.
fn split_run(bytes: &[u8]) -> Option<(usize, &[u8], &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<RUN_HEADER_BYTES>()?;
    let header = usize::from(u16::from_le_bytes(*header));
    let (first, count) = (header % WORDS, header / WORDS + 1);
    let (words, rest) = rest.split_at_checked(count * WORD)?;
    (first + count <= WORDS).then_some((first * WORD, words, rest))
}

/// Appends what makes `new` of `old`, which becomes it; gives up, with both as they were, where that takes more than
/// [`DELTA_BYTES_MAX`].
pub fn encode(out: &mut Vec<u8>, old: &mut [u8; PAGE], new: &[u8; PAGE]) -> bool {
    let start = out.len();
    let mut from = 0;
    while let Some((first, end)) = next_run(old, new, from) {
        let words = &new[first * WORD..end * WORD];
        if out.len() - start + RUN_HEADER_BYTES + words.len() > DELTA_BYTES_MAX {
            out.truncate(start);
            return false;
        }
        let header = first + (end - first - 1) * WORDS;
        out.extend_from_slice(&(header as u16).to_le_bytes());
        out.extend_from_slice(words);
        from = end;
    }
    let delta = Delta(&out[start..]);
    delta.runs().for_each(|(offset, bytes)| old[offset..offset + bytes.len()].copy_from_slice(bytes));
    true
}

/// The next words from `from` on that differ: the first, and the first behind them that does not.
fn next_run(old: &[u8; PAGE], new: &[u8; PAGE], from: usize) -> Option<(usize, usize)> {
    let (old, new) = (old.as_chunks::<WORD>().0, new.as_chunks::<WORD>().0);
    let mut first = from;
    // Most of a page is the same: it is skipped by lines.
    loop {
        let (old, new) = (&old[first..], &new[first..]);
        if let (Some(old), Some(new)) = (old.first_chunk::<8>(), new.first_chunk::<8>())
            && old == new
        {
            first += 8;
            continue;
        }
        first += old.iter().zip(new).position(|(old, new)| old != new)?;
        break;
    }
    let longest = (first + RUN_WORDS_MAX).min(WORDS);
    let end = (first..longest).find(|&word| old[word] == new[word]).unwrap_or(longest);
    Some((first, end))
}

/// Pages as they were sent last.
pub struct Copies {
    /// Which page is kept where; a power of two of places. Empty where nothing is kept.
    places: Vec<Place>,
    blocks: Vec<Vec<[u8; PAGE]>>,
    /// How many may be kept.
    room: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    page: u64,
    index: u32,
}

const FREE: Place = Place { page: u64::MAX, index: 0 };

impl Copies {
    /// Keeps none.
    pub const fn none() -> Self {
        Self { places: Vec::new(), blocks: Vec::new(), room: 0 }
    }

    /// None yet, of a guest with so many pages: a quarter of them at most is kept, and only where there is memory for it.
    pub fn new(pages: u64) -> Self {
        let room = (pages / 4).min(COPIES_MAX) as usize;
        let mut this = Self { room, ..Self::none() };
        let count = (room * 2).next_power_of_two().max(PROBES);
        if this.places.try_reserve_exact(count).is_ok() {
            this.places.resize(count, FREE);
        }
        this
    }

    /// The copy of a page.
    pub fn of(&mut self, page: u64) -> Option<&mut [u8; PAGE]> {
        let place = self.probe(page).find(|&at| self.places[at].page == page)?;
        let index = self.places[place].index as usize;
        self.blocks[index / BLOCK_PAGES].get_mut(index % BLOCK_PAGES)
    }

    /// Notes what was sent of a page; one of which there is no copy is kept where it `is_worth` it and there is room.
    pub fn sent(&mut self, page: u64, bytes: &[u8; PAGE], is_worth: bool) {
        if let Some(copy) = self.of(page) {
            *copy = *bytes;
        } else if is_worth
            && let Some(at) = self.probe(page).find(|&at| self.places[at] == FREE)
            && let Some(index) = self.push(bytes)
        {
            self.places[at] = Place { page, index };
        }
    }

    fn push(&mut self, bytes: &[u8; PAGE]) -> Option<u32> {
        let index = self.blocks.last().map_or(0, |last| (self.blocks.len() - 1) * BLOCK_PAGES + last.len());
        if index >= self.room {
            return None;
        }
        if index.is_multiple_of(BLOCK_PAGES) {
            let mut block = Vec::new();
            // Where there is no memory now, others need it more.
            if block.try_reserve_exact(BLOCK_PAGES).is_err() {
                self.room = index;
                return None;
            }
            self.blocks.push(block);
        }
        self.blocks.last_mut()?.push(*bytes);
        u32::try_from(index).ok()
    }

    fn probe(&self, page: u64) -> impl Iterator<Item = usize> + use<> {
        let count = self.places.len();
        (0..PROBES.min(count)).map(move |step| (page as usize).wrapping_add(step) % count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn applied(mut page: [u8; PAGE], bytes: &[u8]) -> [u8; PAGE] {
        for (offset, run) in Delta::new(bytes).unwrap().runs() {
            page[offset..offset + run.len()].copy_from_slice(run);
        }
        page
    }

    #[test]
    fn a_word_costs_ten_bytes_and_nothing_none() {
        let (mut old, mut new) = ([7; PAGE], [7; PAGE]);
        let mut out = Vec::new();
        assert!(encode(&mut out, &mut old, &new) && out.is_empty());
        new[PAGE - 1] = 8;
        assert!(encode(&mut out, &mut old, &new));
        assert_eq!((out.len(), old), (10, new));
        assert_eq!(applied([7; PAGE], &out), new);
    }

    #[test]
    fn a_page_that_is_another_is_no_delta() {
        let (mut old, new) = ([0; PAGE], [1; PAGE]);
        let mut out = vec![5];
        assert!(!encode(&mut out, &mut old, &new));
        assert_eq!((out, old), (vec![5], [0; PAGE]));
    }

    #[test]
    fn runs_outside_their_page_or_cut_are_refused() {
        let run = |first: u16, count: u16, bytes: usize| {
            let mut run = (first | (count - 1) << 9).to_le_bytes().to_vec();
            run.resize(2 + bytes, 9);
            run
        };
        assert!(Delta::new(&run(511, 1, 8)).is_ok() && Delta::new(&run(384, 128, 1024)).is_ok());
        assert_eq!(Delta::new(&run(511, 2, 16)), Err(BadRecord));
        assert_eq!(Delta::new(&run(400, 128, 1024)), Err(BadRecord));
        assert_eq!(Delta::new(&run(0, 2, 15)), Err(BadRecord));
        assert_eq!(Delta::new(&[1]), Err(BadRecord));
    }

    #[test]
    fn copies_are_found_again_until_there_is_no_room() {
        let mut copies = Copies::new(4096);
        (0..2000).for_each(|page| copies.sent(page * 3, &[page as u8; PAGE], true));
        let kept: Vec<u64> = (0..2000).filter(|page| copies.of(page * 3).is_some()).collect();
        assert_eq!(kept.len(), 1024, "a quarter");
        kept.iter().for_each(|&page| assert_eq!(copies.of(page * 3), Some(&mut [page as u8; PAGE])));
        copies.sent(kept[7] * 3, &[99; PAGE], false);
        assert_eq!(copies.of(kept[7] * 3), Some(&mut [99; PAGE]), "what is kept is what was sent last");
        let mut none = Copies::none();
        none.sent(1, &[1; PAGE], true);
        assert!(none.of(1).is_none());
    }

    proptest! {
        #[test]
        fn the_target_has_what_the_source_has(
            old in any::<u64>(),
            changes in proptest::collection::vec((0..PAGE, any::<u8>(), 1..400_usize), 0..12),
        ) {
            let old: [u8; PAGE] = core::array::from_fn(|at| (old.wrapping_mul(at as u64 + 1) >> 56) as u8);
            let mut new = old;
            for (at, value, length) in changes {
                let end = (at + length).min(PAGE);
                new[at..end].fill(value);
            }
            let (mut kept, mut out) = (old, Vec::new());
            if encode(&mut out, &mut kept, &new) {
                prop_assert!(out.len() <= DELTA_BYTES_MAX);
                prop_assert_eq!(applied(old, &out), new);
                prop_assert_eq!(kept, new);
            } else {
                prop_assert!(out.is_empty() && kept == old);
            }
        }

        #[test]
        fn hostile_deltas_stay_in_their_page(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            if let Ok(delta) = Delta::new(&bytes) {
                prop_assert!(delta.runs().all(|(offset, run)| offset + run.len() <= PAGE));
            }
        }
    }
}
