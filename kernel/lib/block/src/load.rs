//! A load that measures a disk: which reads to have under way, and how fast they were.
//!
//! The main type is [`Load`]: it keeps a number of reads of one [`Pattern`] under way for a while. Whoever drives it
//! (`kernel/src/measure`) hands its reads to the disk and tells it when they end.

use crate::SECTOR_BYTES;
use alloc::vec::Vec;

/// How long a load hands out reads.
pub const LOAD_NS: u64 = 1_000_000_000;

/// In which order a load reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// From the start of the disk on, and again from there.
    Sequential,
    /// All over the disk.
    Random,
}

/// What a load does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pattern {
    /// In which order it reads.
    pub order: Order,
    /// Bytes in one read; a multiple of [`SECTOR_BYTES`]. Each starts at a multiple of it.
    pub bytes: u32,
    /// How many reads are under way at once.
    pub depth: u32,
}

/// One read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Read {
    /// Which of the load's buffers it goes to, below [`Pattern::depth`].
    pub buffer: u32,
    /// Where it starts.
    pub sector: u64,
}

/// What a load has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Reads that ended.
    pub reads: u64,
    /// From the first read's start to the last one's end.
    pub time_ns: u64,
}

/// Reads of one pattern for [`LOAD_NS`].
pub struct Load {
    pattern: Pattern,
    /// Places of the disk where a read can be.
    places: u64,
    /// The next of them, of a sequential load.
    next: u64,
    seed: u64,
    /// Buffers without a read.
    free: Vec<u32>,
    began_ns: u64,
    ended_ns: u64,
    reads: u64,
}

impl Load {
    /// A load on a disk of `sectors` sectors that begins now. `None` where not one read fits.
    pub fn new(pattern: Pattern, sectors: u64, now_ns: u64) -> Option<Self> {
        let places = sectors / u64::from(pattern.bytes / SECTOR_BYTES).max(1);
        let free = (0..pattern.depth).rev().collect();
        let load = Self { pattern, places, next: 0, seed: 1, free, began_ns: now_ns, ended_ns: now_ns, reads: 0 };
        (places > 0).then_some(load)
    }

    /// The next read to hand to the disk, while there is a buffer and time.
    pub fn next(&mut self, now_ns: u64) -> Option<Read> {
        if !self.has_time(now_ns) {
            return None;
        }
        let buffer = self.free.pop()?;
        let sector = self.place() * u64::from(self.pattern.bytes / SECTOR_BYTES);
        Some(Read { buffer, sector })
    }

    /// The read into this buffer has ended.
    pub fn ended(&mut self, buffer: u32, now_ns: u64) {
        self.free.push(buffer);
        self.reads += 1;
        self.ended_ns = now_ns;
    }

    /// The disk did not take the read into this buffer.
    pub fn not_taken(&mut self, buffer: u32) {
        self.free.push(buffer);
    }

    /// Whether all is done.
    pub fn is_over(&self, now_ns: u64) -> bool {
        !self.has_time(now_ns) && self.free.len() == self.pattern.depth as usize
    }

    /// What was done up to here.
    pub fn rate(&self) -> Rate {
        Rate { reads: self.reads, time_ns: self.ended_ns.saturating_sub(self.began_ns) }
    }

    fn has_time(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.began_ns) < LOAD_NS
    }

    fn place(&mut self) -> u64 {
        match self.pattern.order {
            Order::Sequential => {
                let place = self.next;
                self.next = (place + 1) % self.places;
                place
            }
            Order::Random => {
                // A linear congruential generator modulo 2^64 (Knuth, MMIX); its high bits choose.
                self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((u128::from(self.seed) * u128::from(self.places)) >> 64) as u64
            }
        }
    }
}

impl Rate {
    /// Reads in a second.
    pub fn per_second(self) -> u64 {
        per_second(self.reads, self.time_ns)
    }

    /// Bytes in a second, where each read has so many.
    pub fn bytes_per_second(self, bytes: u32) -> u64 {
        per_second(self.reads.saturating_mul(bytes.into()), self.time_ns)
    }
}

fn per_second(count: u64, time_ns: u64) -> u64 {
    let rate = u128::from(count) * 1_000_000_000 / u128::from(time_ns.max(1));
    u64::try_from(rate).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANDOM: Pattern = Pattern { order: Order::Random, bytes: 4096, depth: 2 };

    #[test]
    fn keeps_its_depth_until_the_time_is_over() {
        let mut load = Load::new(RANDOM, 1000, 50).unwrap();
        let first = load.next(50).unwrap();
        let second = load.next(60).unwrap();
        assert_ne!(first.buffer, second.buffer);
        assert_eq!(load.next(70), None);
        load.ended(first.buffer, 80);
        assert_eq!(load.next(90).unwrap().buffer, first.buffer);
        load.ended(second.buffer, 100);
        assert_eq!(load.next(50 + LOAD_NS), None);
        assert!(!load.is_over(50 + LOAD_NS));
        load.ended(first.buffer, 100 + LOAD_NS);
        assert!(load.is_over(100 + LOAD_NS));
        assert_eq!(load.rate(), Rate { reads: 3, time_ns: 50 + LOAD_NS });
    }

    #[test]
    fn sequential_reads_begin_again_before_the_end() {
        let pattern = Pattern { order: Order::Sequential, bytes: 1 << 20, depth: 1 };
        let mut load = Load::new(pattern, 2 * 2048 + 2047, 0).unwrap();
        let sectors: Vec<u64> = (0..4)
            .map(|_| {
                let read = load.next(0).unwrap();
                load.ended(read.buffer, 1);
                read.sector
            })
            .collect();
        assert_eq!(sectors, [0, 2048, 0, 2048]);
    }

    #[test]
    fn random_reads_are_all_over_the_disk_and_inside() {
        let sectors = 8 * 100 + 7;
        let mut load = Load::new(RANDOM, sectors, 0).unwrap();
        let mut seen = [false; 100];
        for _ in 0..2000 {
            let read = load.next(0).unwrap();
            load.ended(read.buffer, 0);
            assert!(read.sector.is_multiple_of(8) && read.sector + 8 <= sectors);
            seen[(read.sector / 8) as usize] = true;
        }
        assert!(seen.iter().all(|seen| *seen));
        let mut largest = Load::new(RANDOM, u64::MAX, 0).unwrap();
        assert!(largest.next(0).unwrap().sector < u64::MAX - 8);
    }

    #[test]
    fn a_disk_without_room_for_a_read_has_no_load() {
        assert!(Load::new(RANDOM, 7, 0).is_none());
        assert!(Load::new(RANDOM, 8, 0).is_some());
    }

    #[test]
    fn rates_are_by_the_second() {
        let rate = Rate { reads: 300, time_ns: 1_500_000_000 };
        assert_eq!((rate.per_second(), rate.bytes_per_second(4096)), (200, 819_200));
        assert_eq!(Rate { reads: 0, time_ns: 0 }.per_second(), 0);
        assert_eq!(Rate { reads: u64::MAX, time_ns: 0 }.bytes_per_second(2), u64::MAX);
    }
}
