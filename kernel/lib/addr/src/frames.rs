//! Which frames of host memory are free: 4 KiB, 2 MiB and 1 GiB, from one bitmap of large frames.
//!
//! [`FrameAllocator`] keeps a bit for each 2 MiB of the first [`MEMORY_BYTES_MAX`] of physical memory. Small frames
//! come from large ones that were split, each with a bitmap of its own; a split frame whose parts are all free is whole
//! again. It never touches the memory that it hands out; `hw/memory` owns the one instance of the host.

use crate::{HUGE_PAGE_BYTES, Hpa, LARGE_PAGE_BYTES, PAGE_BYTES};

/// Physical memory beyond this address is not used.
pub const MEMORY_BYTES_MAX: u64 = 1 << 40;

const LARGE_FRAMES: usize = (MEMORY_BYTES_MAX / LARGE_PAGE_BYTES) as usize;
const SMALL_PER_LARGE: usize = (LARGE_PAGE_BYTES / PAGE_BYTES) as usize;
const LARGE_PER_HUGE: usize = (HUGE_PAGE_BYTES / LARGE_PAGE_BYTES) as usize;

/// How many large frames can be split at a time: 1 GiB of small frames.
const SPLITS_MAX: usize = 512;

/// The host's free memory.
pub struct FrameAllocator {
    /// A bit for each large frame: set where it is free and whole.
    large: [u64; LARGE_FRAMES / 64],
    /// Large frames that were split. An unused entry has no base.
    splits: [Split; SPLITS_MAX],
    /// Entries of `splits` from this one on were never used.
    splits_used: usize,
    free_bytes: u64,
    total_bytes: u64,
    /// No whole large frame is free below this index.
    first_large: usize,
}

/// A large frame in small ones.
#[derive(Clone, Copy)]
struct Split {
    base: Option<Hpa>,
    /// Small frames that belong to the allocator at all: the edges of a memory region cut a large frame.
    owned: Bits,
    /// Those of them that are free.
    free: Bits,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Bits([u64; SMALL_PER_LARGE / 64]);

impl Bits {
    const NONE: Self = Self([0; SMALL_PER_LARGE / 64]);
    const ALL: Self = Self([u64::MAX; SMALL_PER_LARGE / 64]);

    fn get(&self, index: usize) -> bool {
        self.0[index / 64] & 1 << (index % 64) != 0
    }

    fn set(&mut self, index: usize, value: bool) {
        let bit = 1 << (index % 64);
        if value {
            self.0[index / 64] |= bit;
        } else {
            self.0[index / 64] &= !bit;
        }
    }

    /// The first of `count` neighbouring set bits, at a multiple of `count` rounded up to a power of two.
    fn find_run(&self, count: usize) -> Option<usize> {
        if count == 1 {
            let word = self.0.iter().position(|&word| word != 0)?;
            return Some(word * 64 + self.0[word].trailing_zeros() as usize);
        }
        let mut starts = (0..SMALL_PER_LARGE).step_by(count.next_power_of_two());
        starts.find(|&start| (start..start + count).all(|index| self.get(index)))
    }
}

impl FrameAllocator {
    /// An allocator that owns nothing yet.
    pub const fn new() -> Self {
        Self {
            large: [0; LARGE_FRAMES / 64],
            splits: [Split { base: None, owned: Bits::NONE, free: Bits::NONE }; SPLITS_MAX],
            splits_used: 0,
            free_bytes: 0,
            total_bytes: 0,
            // All zeroes: the static allocator takes no room in the image.
            first_large: 0,
        }
    }

    /// Hands the memory from `start` up to `end` to the allocator; parts of pages at the ends, and what lies beyond
    /// [`MEMORY_BYTES_MAX`], are left out.
    pub fn donate(&mut self, start: Hpa, end: Hpa) {
        let mut at = start.as_u64().next_multiple_of(PAGE_BYTES);
        let end = Hpa::new(end.as_u64().min(MEMORY_BYTES_MAX)).align_down(PAGE_BYTES).as_u64();
        while at < end {
            let next = if at.is_multiple_of(LARGE_PAGE_BYTES) && at + LARGE_PAGE_BYTES <= end {
                self.set_large(Hpa::new(at), true);
                at + LARGE_PAGE_BYTES
            } else {
                let base = Hpa::new(at).align_down(LARGE_PAGE_BYTES);
                let next = end.min(base.as_u64() + LARGE_PAGE_BYTES);
                let Some(split) = self.split_entry(base) else {
                    at = next;
                    continue;
                };
                let first = (at - base.as_u64()) / PAGE_BYTES;
                for index in first..(next - base.as_u64()) / PAGE_BYTES {
                    split.owned.set(index as usize, true);
                    split.free.set(index as usize, true);
                }
                next
            };
            self.total_bytes += next - at;
            self.free_bytes += next - at;
            at = next;
        }
    }

    /// Bytes that are free.
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    /// Bytes that the allocator was given.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// `count` neighbouring small frames, at most a large frame's worth, aligned to `count` rounded up to a power of
    /// two.
    pub fn take_small(&mut self, count: usize) -> Option<Hpa> {
        assert!((1..=SMALL_PER_LARGE).contains(&count));
        let used = &mut self.splits[..self.splits_used];
        let found = used.iter_mut().find_map(|split| Some((split.free.find_run(count)?, split)));
        let (first, split) = match found {
            Some(found) => found,
            None => {
                let base = self.take_large_bits()?;
                let Some(split) = self.split_entry(base) else {
                    self.set_large(base, true);
                    return None;
                };
                (split.owned, split.free) = (Bits::ALL, Bits::ALL);
                (0, split)
            }
        };
        (first..first + count).for_each(|index| split.free.set(index, false));
        let base = split.base.expect("an entry in use has a base");
        self.free_bytes -= count as u64 * PAGE_BYTES;
        Some(base.wrapping_add(first as u64 * PAGE_BYTES))
    }

    /// Takes back what [`take_small`](Self::take_small) gave.
    ///
    /// # Panics
    /// When a frame is not the allocator's or is free already: somebody still uses memory that another owns.
    pub fn free_small(&mut self, frame: Hpa, count: usize) {
        let base = frame.align_down(LARGE_PAGE_BYTES);
        let used = &mut self.splits[..self.splits_used];
        let split = used.iter_mut().find(|split| split.base == Some(base)).expect("a small frame has a split frame");
        let first = (frame.offset_in(LARGE_PAGE_BYTES) / PAGE_BYTES) as usize;
        for index in first..first + count {
            assert!(split.owned.get(index) && !split.free.get(index), "{frame} is freed once");
            split.free.set(index, true);
        }
        if split.free == Bits::ALL {
            *split = Split { base: None, owned: Bits::NONE, free: Bits::NONE };
            self.set_large(base, true);
        }
        self.free_bytes += count as u64 * PAGE_BYTES;
    }

    /// A large frame.
    pub fn take_large(&mut self) -> Option<Hpa> {
        let frame = self.take_large_bits()?;
        self.free_bytes -= LARGE_PAGE_BYTES;
        Some(frame)
    }

    /// `count` neighbouring large frames. They are given back one by one.
    pub fn take_large_run(&mut self, count: usize) -> Option<Hpa> {
        assert!(count > 0);
        let (mut start, mut index) = (self.first_large, self.first_large);
        while index < LARGE_FRAMES {
            if self.large[index / 64] == 0 {
                index = (index / 64 + 1) * 64;
                start = index;
                continue;
            }
            if !self.large_is_free(index) {
                start = index + 1;
            }
            index += 1;
            if index - start == count {
                let frame = |index: usize| Hpa::new(index as u64 * LARGE_PAGE_BYTES);
                (start..index).for_each(|index| self.set_large(frame(index), false));
                self.free_bytes -= count as u64 * LARGE_PAGE_BYTES;
                return Some(frame(start));
            }
        }
        None
    }

    /// Takes back a large frame, alone or as a part of a run or of a huge one.
    ///
    /// # Panics
    /// When it is free already.
    pub fn free_large(&mut self, frame: Hpa) {
        assert!(frame.is_aligned(LARGE_PAGE_BYTES) && !self.large_is_free(large_index(frame)), "{frame} is freed once");
        self.set_large(frame, true);
        self.free_bytes += LARGE_PAGE_BYTES;
    }

    /// A huge frame, aligned to its size. It is given back as its large frames.
    pub fn take_huge(&mut self) -> Option<Hpa> {
        const WORDS: usize = LARGE_PER_HUGE / 64;
        let huge = self.large.chunks_exact_mut(WORDS).rposition(|words| words.iter().all(|&word| word == u64::MAX))?;
        self.large[huge * WORDS..][..WORDS].fill(0);
        self.free_bytes -= HUGE_PAGE_BYTES;
        Some(Hpa::new(huge as u64 * HUGE_PAGE_BYTES))
    }

    fn take_large_bits(&mut self) -> Option<Hpa> {
        let first = self.first_large / 64;
        let word = first + self.large[first.min(self.large.len())..].iter().position(|&word| word != 0)?;
        let index = word * 64 + self.large[word].trailing_zeros() as usize;
        let frame = Hpa::new(index as u64 * LARGE_PAGE_BYTES);
        self.set_large(frame, false);
        self.first_large = index + 1;
        Some(frame)
    }

    fn large_is_free(&self, index: usize) -> bool {
        self.large[index / 64] & 1 << (index % 64) != 0
    }

    fn set_large(&mut self, frame: Hpa, free: bool) {
        let index = large_index(frame);
        let bit = 1 << (index % 64);
        if free {
            self.large[index / 64] |= bit;
            self.first_large = self.first_large.min(index);
        } else {
            self.large[index / 64] &= !bit;
        }
    }

    /// The entry for the large frame at `base`: the one it has, or an unused one.
    fn split_entry(&mut self, base: Hpa) -> Option<&mut Split> {
        let used = &self.splits[..self.splits_used];
        let index = used.iter().position(|split| split.base == Some(base));
        let index = index.or_else(|| used.iter().position(|split| split.base.is_none())).unwrap_or(self.splits_used);
        let split = self.splits.get_mut(index)?;
        split.base = Some(base);
        self.splits_used = self.splits_used.max(index + 1);
        Some(split)
    }
}

impl Default for FrameAllocator {
    fn default() -> Self {
        Self::new()
    }
}

fn large_index(frame: Hpa) -> usize {
    (frame.as_u64() / LARGE_PAGE_BYTES) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn with(start: u64, end: u64) -> Box<FrameAllocator> {
        let mut frames = Box::new(FrameAllocator::new());
        frames.donate(Hpa::new(start), Hpa::new(end));
        frames
    }

    #[test]
    fn edges_of_a_region_become_small_frames() {
        let mut frames = with(MIB + 1, 5 * MIB + 8191);
        assert_eq!(frames.total_bytes(), 4 * MIB + 4096 - 4096);
        assert_eq!(frames.take_large(), Some(Hpa::new(2 * MIB)));
        assert_eq!(frames.take_large(), None);
        assert_eq!(frames.take_small(1), Some(Hpa::new(MIB + 4096)));
    }

    #[test]
    fn what_was_split_is_whole_again() {
        let mut frames = with(2 * MIB, 6 * MIB);
        let small: Vec<_> = (0..600).map(|_| frames.take_small(1).unwrap()).collect();
        assert_eq!(frames.take_large(), None);
        small.into_iter().for_each(|frame| frames.free_small(frame, 1));
        assert_eq!(frames.free_bytes(), 4 * MIB);
        assert!(frames.take_large().is_some() && frames.take_large().is_some() && frames.take_small(1).is_none());
    }

    #[test]
    fn runs_are_neighbours() {
        let mut frames = with(0, 4 * MIB);
        let one = frames.take_small(1).unwrap();
        let run = frames.take_small(5).unwrap();
        assert_eq!((one, run), (Hpa::new(0), Hpa::new(8 * PAGE_BYTES)));
        frames.free_small(run, 5);
        frames.free_small(one, 1);
        assert_eq!(frames.take_small(512), Some(Hpa::new(0)));
    }

    #[test]
    fn huge_frames_are_aligned_and_come_back_in_parts() {
        let mut frames = with(512 * MIB, 3 << 30);
        let huge = frames.take_huge().unwrap();
        assert!(huge.is_aligned(HUGE_PAGE_BYTES));
        (0..512).for_each(|index| frames.free_large(huge.wrapping_add(index * LARGE_PAGE_BYTES)));
        assert_eq!(frames.free_bytes(), frames.total_bytes());
        assert!(frames.take_huge().is_some() && frames.take_huge().is_some() && frames.take_huge().is_none());
    }

    #[test]
    fn large_runs_are_neighbours_and_come_back_in_parts() {
        let mut frames = with(0, 600 * MIB);
        let all: Vec<_> = (0..300).map(|_| frames.take_large().unwrap()).collect();
        assert_eq!(frames.take_large_run(1), None);
        // Frames 10, 12, 13, 62 to 66 and 299 are free.
        [10, 12, 13, 62, 63, 64, 65, 66, 299].into_iter().for_each(|index| frames.free_large(all[index]));
        assert_eq!(frames.take_large_run(2), Some(all[12]));
        assert_eq!(frames.take_large_run(6), None);
        assert_eq!(frames.take_large_run(4), Some(all[62]), "across words of the bitmap");
        assert_eq!(frames.take_large_run(2), None);
        assert_eq!(frames.free_bytes(), 3 * LARGE_PAGE_BYTES);
        (62..66).for_each(|index| frames.free_large(all[index]));
        assert_eq!(frames.take_large_run(5), Some(all[62]));
        assert_eq!(frames.take_large(), Some(all[10]));
        assert_eq!(frames.take_large_run(1), Some(all[299]));
        assert_eq!((frames.take_large_run(1), frames.free_bytes()), (None, 0));
    }

    #[test]
    fn large_runs_end_with_memory() {
        let mut frames = with(MEMORY_BYTES_MAX - 4 * MIB, MEMORY_BYTES_MAX);
        assert_eq!(frames.take_large_run(3), None);
        assert_eq!(frames.take_large_run(2), Some(Hpa::new(MEMORY_BYTES_MAX - 4 * MIB)));
        assert_eq!(frames.take_large_run(1), None);
    }

    #[test]
    #[should_panic(expected = "is freed once")]
    fn a_second_free_is_caught() {
        let mut frames = with(0, 4 * MIB);
        let frame = frames.take_large().unwrap();
        frames.free_large(frame);
        frames.free_large(frame);
    }
}
