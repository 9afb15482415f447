//! A set of guest pages: a bit for each 4 KiB page from address 0 to the end of the guest's memory.
//!
//! [`PageSet`] is what is still to be sent, or what one look at the dirty bits found. It is one owner's plain data; bits
//! that several processors set at once are in [`crate::dirty`].

use alloc::vec::Vec;

/// Page numbers below a bound.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct PageSet {
    words: Vec<u64>,
    /// The bound.
    end: u64,
    count: u64,
}

impl PageSet {
    /// An empty set of pages below `end`; `None` when memory for it ran out.
    pub fn new(end: u64) -> Option<Self> {
        let words = usize::try_from(end.div_ceil(64)).ok()?;
        let mut set = Self { words: Vec::new(), end, count: 0 };
        set.words.try_reserve_exact(words).ok()?;
        set.words.resize(words, 0);
        Some(set)
    }

    /// The same set again; `None` when memory for it ran out.
    pub fn try_clone(&self) -> Option<Self> {
        let mut set = Self { words: Vec::new(), end: self.end, count: self.count };
        set.words.try_reserve_exact(self.words.len()).ok()?;
        set.words.extend_from_slice(&self.words);
        Some(set)
    }

    /// The bound: no page of the set has this number or a higher one.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// How many pages are in the set.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether no page is.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether `page` is in the set.
    pub fn contains(&self, page: u64) -> bool {
        page < self.end && self.words[(page / 64) as usize] & 1 << (page % 64) != 0
    }

    /// Whether the `count` pages from `first` on all are.
    pub fn contains_run(&self, first: u64, count: u64) -> bool {
        let mut is_whole = first.checked_add(count).is_some_and(|end| end <= self.end);
        each_word(first, count, self.end, |word, bits| is_whole &= self.words[word] & bits == bits);
        is_whole
    }

    /// Adds the `count` pages from `first` on, as far as they lie below the bound.
    pub fn insert(&mut self, first: u64, count: u64) {
        each_word(first, count, self.end, |word, bits| self.merge_word(word, bits));
    }

    /// Takes a page out; says whether it was there.
    pub fn remove(&mut self, page: u64) -> bool {
        let held = self.contains(page);
        if held {
            self.words[(page / 64) as usize] &= !(1 << (page % 64));
            self.count -= 1;
        }
        held
    }

    /// The first page of the set that is not below `from`.
    pub fn next_from(&self, from: u64) -> Option<u64> {
        if from >= self.end {
            return None;
        }
        let first = (from / 64) as usize;
        let head = self.words[first] & (u64::MAX << (from % 64));
        if head != 0 {
            return Some(first as u64 * 64 + u64::from(head.trailing_zeros()));
        }
        let (index, word) = self.words.iter().enumerate().skip(first + 1).find(|(_, word)| **word != 0)?;
        Some(index as u64 * 64 + u64::from(word.trailing_zeros()))
    }

    /// The first page that is not in the set and not below `from`.
    pub fn next_gap_from(&self, from: u64) -> u64 {
        let first = (from / 64) as usize;
        let mut words = self.words.iter().enumerate().skip(first);
        let gap = words.find_map(|(index, word)| {
            let below = if index == first { !(u64::MAX << (from % 64)) } else { 0 };
            let gaps = !(word | below);
            (gaps != 0).then(|| index as u64 * 64 + u64::from(gaps.trailing_zeros()))
        });
        gap.unwrap_or(self.end).max(from)
    }

    /// The pages, in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        core::iter::successors(self.next_from(0), |&page| self.next_from(page + 1))
    }

    /// Adds every page of `other`, which has the same bound.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.end, other.end, "sets of one guest");
        for (index, &bits) in other.words.iter().enumerate() {
            self.merge_word(index, bits);
        }
    }

    /// Adds those of the `count` pages from `first` on that are in `other`, which has the same bound.
    pub fn merge_run(&mut self, other: &Self, first: u64, count: u64) {
        assert_eq!(self.end, other.end, "sets of one guest");
        each_word(first, count, self.end, |word, bits| self.merge_word(word, other.words[word] & bits));
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.count = 0;
    }

    pub(crate) fn merge_word(&mut self, word: usize, bits: u64) {
        self.count += u64::from((bits & !self.words[word]).count_ones());
        self.words[word] |= bits;
    }
}

/// Calls `act` with each word of a bitmap that the pages touch, and their bits in it. Pages from `end` on are left out.
pub(crate) fn each_word(first: u64, count: u64, end: u64, mut act: impl FnMut(usize, u64)) {
    let last = first.saturating_add(count).min(end);
    let mut page = first;
    while page < last {
        let next = (page / 64 * 64 + 64).min(last);
        let bits = u64::MAX >> (64 - (next - page)) << (page % 64);
        act((page / 64) as usize, bits);
        page = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_counted_once_and_cut_at_the_bound() {
        let mut set = PageSet::new(200).unwrap();
        set.insert(60, 10);
        set.insert(65, 10);
        set.insert(190, u64::MAX);
        assert_eq!(set.count(), 15 + 10);
        assert!(!set.contains(59) && set.contains(60) && set.contains(74) && !set.contains(75) && !set.contains(200));
        assert_eq!(set.next_from(75), Some(190));
        assert_eq!(set.next_from(200), None);
        assert_eq!(set.iter().count(), 25);
    }

    #[test]
    fn runs_are_seen_whole_and_taken_over() {
        let mut set = PageSet::new(200).unwrap();
        set.insert(60, 70);
        set.insert(199, 1);
        assert!(set.contains_run(60, 70) && set.contains_run(64, 64) && set.contains_run(199, 1));
        assert!(!set.contains_run(59, 2) && !set.contains_run(100, 31) && !set.contains_run(199, 2));
        assert!(!set.contains_run(199, u64::MAX));
        let gaps = [0, 60, 64, 129, 130, 199, 200].map(|from| set.next_gap_from(from));
        assert_eq!(gaps, [0, 130, 130, 130, 130, 200, 200]);
        let mut part = PageSet::new(200).unwrap();
        part.merge_run(&set, 125, u64::MAX);
        assert_eq!(part.iter().collect::<Vec<_>>(), [125, 126, 127, 128, 129, 199]);
        assert_eq!((set.try_clone(), part.count()), (Some(set.clone()), 6));
    }

    #[test]
    fn removing_says_whether_it_was_there() {
        let mut set = PageSet::new(64).unwrap();
        set.insert(63, 1);
        assert!(set.remove(63) && !set.remove(63) && !set.remove(64));
        assert!(set.is_empty());
    }

    #[test]
    fn merging_keeps_both() {
        let (mut one, mut other) = (PageSet::new(130).unwrap(), PageSet::new(130).unwrap());
        one.insert(0, 3);
        other.insert(2, 1);
        other.insert(129, 1);
        one.merge(&other);
        assert_eq!(one.iter().collect::<Vec<_>>(), [0, 1, 2, 129]);
        assert_eq!(one.count(), 4);
    }
}
