//! The only way to guest bytes: checked copies in and out, never references.
//!
//! [`GuestMemory`] maps guest-physical addresses through slots of large frames to host frames and copies through a
//! [`Backing`], which alone knows how to reach host memory. A guest can change its bytes at any moment: callers copy
//! once, check the copy, and use the copy. `virtio`, `loader`, `firmware` and `machine` build on it.
#![cfg_attr(not(any(test, feature = "heap")), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod dirty;
#[cfg(any(test, feature = "heap"))]
pub mod heap;
mod pages;

pub use dirty::NoRoom;
pub use pages::PageSet;

use addr::{Gpa, GpaRange, Hpa, LARGE_PAGE_BYTES, PAGE_BYTES};
use alloc::sync::Arc;
use alloc::vec::Vec;
use dirty::DirtyLog;

/// How host frames are reached: raw copies, and single loads and stores that are atomic when aligned.
///
/// Implemented by the kernel over its identity map and by [`heap`] over a vector for tests. The caller has already
/// checked that the bytes belong to one guest's frame; a copy never crosses a large-page boundary.
pub trait Backing: Send + Sync {
    /// Copies host bytes out.
    fn read(&self, at: Hpa, into: &mut [u8]);
    /// Copies bytes into host memory.
    fn write(&self, at: Hpa, from: &[u8]);
    /// Fills host memory with zeroes.
    fn zero(&self, at: Hpa, bytes: u64);
    /// Loads an aligned little-endian integer of `size` (1, 2, 4 or 8) bytes, as one access.
    fn load(&self, at: Hpa, size: usize) -> u64;
    /// Stores an aligned little-endian integer of `size` (1, 2, 4 or 8) bytes, as one access.
    fn store(&self, at: Hpa, size: usize, value: u64);
    /// Replaces an aligned integer of `size` bytes by `new` if it is `expected`, as one access; says whether it was.
    fn compare_exchange(&self, at: Hpa, size: usize, expected: u64, new: u64) -> bool;
}

/// An access outside the guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outside {
    /// The first address that is not memory.
    pub at: Gpa,
}

/// A run of host-physical bytes that backs guest memory without a gap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostRun {
    /// Its first address.
    pub start: Hpa,
    /// Its length.
    pub bytes: u64,
}

/// A piece of the guest-physical address space that is memory.
struct Slot {
    range: GpaRange,
    /// One large frame for each [`LARGE_PAGE_BYTES`] of the range.
    frames: Vec<Hpa>,
}

/// A piece of the guest-physical address space that can be read and not written, in one piece of host memory.
struct Rom {
    range: GpaRange,
    at: Hpa,
}

/// The memory of one guest.
pub struct GuestMemory {
    backing: Arc<dyn Backing>,
    slots: Vec<Slot>,
    roms: Vec<Rom>,
    dirty: DirtyLog,
}

impl GuestMemory {
    /// A guest without memory.
    pub fn new(backing: Arc<dyn Backing>) -> Self {
        Self { backing, slots: Vec::new(), roms: Vec::new(), dirty: DirtyLog::default() }
    }

    /// Adds memory at `start`, a large frame for each [`LARGE_PAGE_BYTES`].
    ///
    /// # Panics
    /// Where addresses are not aligned, wrap, or overlap memory that is there: the caller lays out the guest.
    pub fn add_slot(&mut self, start: Gpa, frames: Vec<Hpa>) {
        assert!(start.is_aligned(LARGE_PAGE_BYTES) && frames.iter().all(|frame| frame.is_aligned(LARGE_PAGE_BYTES)));
        let range = GpaRange::new(start, frames.len() as u64 * LARGE_PAGE_BYTES).expect("a slot does not wrap");
        assert!(self.slots.iter().all(|slot| !slot.range.overlaps(range)), "slots do not overlap");
        self.slots.push(Slot { range, frames });
        self.slots.sort_by_key(|slot| slot.range.start());
    }

    /// Adds read-only memory, whole pages that lie in one piece at `at` in the host. It is read by
    /// [`read`](Self::read) and [`load`](Self::load) and counts as memory nowhere else.
    ///
    /// # Panics
    /// As [`add_slot`](Self::add_slot).
    pub fn add_rom(&mut self, start: Gpa, at: Hpa, bytes: u64) {
        assert!(start.is_aligned(PAGE_BYTES) && at.is_aligned(PAGE_BYTES) && bytes.is_multiple_of(PAGE_BYTES));
        let range = GpaRange::new(start, bytes).expect("read-only memory does not wrap");
        let others = self.ranges().chain(self.roms.iter().map(|rom| rom.range));
        assert!(others.into_iter().all(|other| !other.overlaps(range)), "memory does not overlap");
        self.roms.push(Rom { range, at });
    }

    /// The read-only pages: guest-physical and host address, in order.
    pub fn rom_pages(&self) -> impl Iterator<Item = (Gpa, Hpa)> + '_ {
        self.roms.iter().flat_map(|rom| {
            let offsets = (0..rom.range.bytes()).step_by(PAGE_BYTES as usize);
            offsets.map(|offset| (rom.range.start().wrapping_add(offset), rom.at.wrapping_add(offset)))
        })
    }

    /// The ranges that are memory, in order.
    pub fn ranges(&self) -> impl Iterator<Item = GpaRange> + '_ {
        self.slots.iter().map(|slot| slot.range)
    }

    /// The frames behind the guest's memory: guest-physical address and large frame, in order.
    pub fn frames(&self) -> impl Iterator<Item = (Gpa, Hpa)> + '_ {
        self.slots.iter().flat_map(|slot| {
            let gpas = (0..).map(|index| slot.range.start().wrapping_add(index * LARGE_PAGE_BYTES));
            gpas.zip(slot.frames.iter().copied())
        })
    }

    /// How many bytes of memory the guest has.
    pub fn total_bytes(&self) -> u64 {
        self.ranges().map(GpaRange::bytes).sum()
    }

    /// Copies guest bytes out. On an error nothing useful is in `into`.
    pub fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), Outside> {
        let mut done = 0;
        let copied = self.each_run(at, into.len() as u64, |run| {
            let next = done + run.bytes as usize;
            self.backing.read(run.start, &mut into[done..next]);
            done = next;
        });
        copied.or_else(|outside| self.read_rom(at, into).ok_or(outside))
    }

    /// Copies bytes into the guest. On an error no byte was written.
    pub fn write(&self, at: Gpa, from: &[u8]) -> Result<(), Outside> {
        let mut done = 0;
        self.each_run(at, from.len() as u64, |run| {
            let next = done + run.bytes as usize;
            self.backing.write(run.start, &from[done..next]);
            done = next;
        })?;
        self.mark_dirty(at, from.len() as u64);
        Ok(())
    }

    /// Fills guest bytes with zeroes. On an error no byte was written.
    pub fn zero(&self, at: Gpa, bytes: u64) -> Result<(), Outside> {
        self.each_run(at, bytes, |run| self.backing.zero(run.start, run.bytes))?;
        self.mark_dirty(at, bytes);
        Ok(())
    }

    /// Calls `use_run` for each host run behind the range, in order, for DMA; for none of them if any byte is no memory.
    ///
    /// Neighbouring large frames that follow each other in host memory come as separate runs.
    pub fn each_run(&self, at: Gpa, bytes: u64, mut use_run: impl FnMut(HostRun)) -> Result<(), Outside> {
        // Most accesses lie in one large frame: one look-up serves both the check and the use.
        if let Some(run) = self.run_at(at)
            && run.bytes >= bytes
        {
            if bytes > 0 {
                use_run(HostRun { start: run.start, bytes });
            }
            return Ok(());
        }
        self.check(at, bytes)?;
        let (mut at, mut left) = (at, bytes);
        while left > 0 {
            let run = self.run_at(at).ok_or(Outside { at })?;
            let take = run.bytes.min(left);
            use_run(HostRun { start: run.start, bytes: take });
            at = at.wrapping_add(take);
            left -= take;
        }
        Ok(())
    }

    /// Loads an integer of `size` (1, 2, 4 or 8) bytes, as one access where it is aligned.
    pub fn load(&self, at: Gpa, size: usize) -> Result<u64, Outside> {
        assert!(matches!(size, 1 | 2 | 4 | 8));
        if at.is_aligned(size as u64)
            && let Some(run) = self.run_at(at)
        {
            return Ok(self.backing.load(run.start, size));
        }
        let mut bytes = [0; 8];
        self.read(at, &mut bytes[..size])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Stores an integer of `size` (1, 2, 4 or 8) bytes, as one access where it is aligned.
    pub fn store(&self, at: Gpa, size: usize, value: u64) -> Result<(), Outside> {
        assert!(matches!(size, 1 | 2 | 4 | 8));
        if at.is_aligned(size as u64) {
            self.backing.store(self.run_at(at).ok_or(Outside { at })?.start, size, value);
            self.mark_dirty(at, size as u64);
            return Ok(());
        }
        self.write(at, &value.to_le_bytes()[..size])
    }

    /// Replaces an integer of `size` (1, 2, 4 or 8) bytes by `new` if it is `expected`, as one access where it is aligned;
    /// says whether it was.
    pub fn compare_exchange(&self, at: Gpa, size: usize, expected: u64, new: u64) -> Result<bool, Outside> {
        assert!(matches!(size, 1 | 2 | 4 | 8));
        if at.is_aligned(size as u64) {
            let run = self.run_at(at).ok_or(Outside { at })?;
            let equal = self.backing.compare_exchange(run.start, size, expected, new);
            if equal {
                self.mark_dirty(at, size as u64);
            }
            return Ok(equal);
        }
        let equal = self.load(at, size)? == expected;
        if equal {
            self.store(at, size, new)?;
        }
        Ok(equal)
    }

    /// Whether every byte of the range is memory.
    pub fn check(&self, at: Gpa, bytes: u64) -> Result<(), Outside> {
        let range = GpaRange::new(at, bytes).ok_or(Outside { at: Gpa::new(u64::MAX) })?;
        let mut next = range.start();
        while next < range.end() {
            let slot = self.slot_at(next).ok_or(Outside { at: next })?;
            next = slot.range.end();
        }
        Ok(())
    }

    /// One more than the number of the last page (of 4 KiB) of memory.
    pub fn pages_end(&self) -> u64 {
        self.slots.last().map_or(0, |slot| slot.range.end().as_u64() / PAGE_BYTES)
    }

    /// Every page of memory.
    pub fn all_pages(&self) -> Result<PageSet, NoRoom> {
        let mut pages = PageSet::new(self.pages_end()).ok_or(NoRoom)?;
        for range in self.ranges() {
            pages.insert(range.start().as_u64() / PAGE_BYTES, range.bytes() / PAGE_BYTES);
        }
        Ok(pages)
    }

    /// Notes from now on which pages the host writes. A write that is under way on another CPU may not be noted: the
    /// caller lets all who write pass by once (their lock, their vCPU's exit) before it reads a page to send it.
    pub fn start_tracking(&self) -> Result<(), NoRoom> {
        self.dirty.start(self.pages_end())
    }

    /// Notes no more.
    pub fn stop_tracking(&self) {
        self.dirty.stop();
    }

    /// Notes, while tracking is on, that the bytes were written by other means than this type's: a device's DMA that
    /// has ended.
    pub fn mark_dirty(&self, at: Gpa, bytes: u64) {
        if bytes > 0 {
            let first = at.as_u64() / PAGE_BYTES;
            let last = at.as_u64().saturating_add(bytes - 1) / PAGE_BYTES;
            self.dirty.mark(first, last - first + 1);
        }
    }

    /// Moves the pages that the host wrote since the last call into `pages`, which comes from
    /// [`all_pages`](Self::all_pages) or has its bound. Whoever fails to send them puts them back with
    /// [`mark_dirty`](Self::mark_dirty), or keeps them.
    pub fn harvest(&self, pages: &mut PageSet) {
        assert_eq!(pages.end(), self.pages_end(), "a set of this guest's pages");
        self.dirty.harvest(pages);
    }

    /// The same in read-only memory; `None` where it does not hold all of the bytes.
    fn read_rom(&self, at: Gpa, into: &mut [u8]) -> Option<()> {
        let wanted = GpaRange::new(at, into.len() as u64)?;
        let rom = self.roms.iter().find(|rom| rom.range.contains(at) && wanted.end() <= rom.range.end())?;
        self.backing.read(rom.at.wrapping_add(at.as_u64() - rom.range.start().as_u64()), into);
        Some(())
    }

    fn slot_at(&self, at: Gpa) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.range.contains(at))
    }

    /// The rest of the large frame behind `at`.
    fn run_at(&self, at: Gpa) -> Option<HostRun> {
        let slot = self.slot_at(at)?;
        let offset = at.as_u64() - slot.range.start().as_u64();
        let inside = offset % LARGE_PAGE_BYTES;
        let frame = slot.frames[(offset / LARGE_PAGE_BYTES) as usize];
        Some(HostRun { start: frame.wrapping_add(inside), bytes: LARGE_PAGE_BYTES - inside })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heap::guest_memory;

    #[test]
    fn copies_cross_frames() {
        let memory = guest_memory(2 * LARGE_PAGE_BYTES);
        let at = Gpa::new(LARGE_PAGE_BYTES - 3);
        memory.write(at, b"abcdef").unwrap();
        let mut back = [0; 6];
        memory.read(at, &mut back).unwrap();
        assert_eq!(&back, b"abcdef");
        assert_eq!(memory.load(Gpa::new(LARGE_PAGE_BYTES - 1), 2).unwrap(), u64::from(u16::from_le_bytes(*b"cd")));
    }

    #[test]
    fn nothing_is_written_when_any_byte_is_outside() {
        let memory = guest_memory(LARGE_PAGE_BYTES);
        let at = Gpa::new(LARGE_PAGE_BYTES - 2);
        assert_eq!(memory.write(at, b"abcd"), Err(Outside { at: Gpa::new(LARGE_PAGE_BYTES) }));
        assert_eq!(memory.load(at, 2).unwrap(), 0);
        assert!(memory.write(Gpa::new(u64::MAX), b"ab").is_err());
        assert!(memory.check(Gpa::new(u64::MAX - 1), 1).is_err());
    }

    #[test]
    fn every_kind_of_write_is_noted_while_tracking_is_on() {
        let memory = guest_memory(2 * LARGE_PAGE_BYTES);
        let dirty = || {
            let mut pages = PageSet::new(memory.pages_end()).unwrap();
            memory.harvest(&mut pages);
            pages.iter().collect::<Vec<_>>()
        };
        memory.write(Gpa::new(0), b"unseen").unwrap();
        assert_eq!(dirty(), []);
        memory.start_tracking().unwrap();
        memory.write(Gpa::new(0xfff), b"ab").unwrap();
        memory.store(Gpa::new(0x5000), 4, 7).unwrap();
        memory.store(Gpa::new(0x7ffe), 4, 7).unwrap();
        memory.zero(Gpa::new(LARGE_PAGE_BYTES - 1), 2).unwrap();
        assert!(memory.compare_exchange(Gpa::new(0xa000), 8, 0, 1).unwrap());
        assert!(!memory.compare_exchange(Gpa::new(0xb000), 8, 5, 1).unwrap());
        memory.mark_dirty(Gpa::new(0xc000), 0x1001);
        assert_eq!(dirty(), [0, 1, 5, 7, 8, 10, 12, 13, 511, 512]);
        assert_eq!(dirty(), []);
        memory.stop_tracking();
        memory.write(Gpa::new(0), b"unseen").unwrap();
        memory.start_tracking().unwrap();
        assert_eq!(dirty(), []);
    }

    #[test]
    fn a_refused_write_is_not_noted() {
        let memory = guest_memory(LARGE_PAGE_BYTES);
        memory.start_tracking().unwrap();
        assert!(memory.write(Gpa::new(LARGE_PAGE_BYTES - 1), b"ab").is_err());
        let mut pages = PageSet::new(memory.pages_end()).unwrap();
        memory.harvest(&mut pages);
        assert!(pages.is_empty());
    }

    #[test]
    fn all_pages_leave_holes_out() {
        let mut memory = guest_memory(LARGE_PAGE_BYTES);
        memory.add_slot(Gpa::new(4 * LARGE_PAGE_BYTES), alloc::vec![Hpa::new(0)]);
        let pages = memory.all_pages().unwrap();
        assert_eq!(pages.count(), 1024);
        assert!(pages.contains(511) && !pages.contains(512) && pages.contains(2048));
    }

    #[test]
    fn read_only_memory_is_read_alone() {
        let mut memory = guest_memory(2 * LARGE_PAGE_BYTES);
        memory.write(Gpa::new(0x3ffe), b"abcd").unwrap();
        let rom = Gpa::new(0xffff_c000);
        memory.add_rom(rom, Hpa::new(0x2000), 0x4000);
        let mut back = [0; 4];
        memory.read(rom.wrapping_add(0x1ffe), &mut back).unwrap();
        assert_eq!(&back, b"abcd");
        assert_eq!(memory.load(rom.wrapping_add(0x2000), 2), Ok(0x6463));
        for at in [rom, rom.wrapping_add(0x1ffe)] {
            assert!(memory.write(at, b"x").is_err() && memory.store(at, 2, 1).is_err() && memory.zero(at, 1).is_err());
            assert!(memory.compare_exchange(at, 2, 0, 1).is_err() && memory.check(at, 1).is_err());
        }
        assert!(memory.read(rom.wrapping_add(0x3ffe), &mut back).is_err(), "past its end");
        assert_eq!(memory.total_bytes(), 2 * LARGE_PAGE_BYTES);
        assert_eq!(memory.rom_pages().last(), Some((rom.wrapping_add(0x3000), Hpa::new(0x5000))));
    }

    #[test]
    fn slots_leave_holes() {
        let mut memory = guest_memory(LARGE_PAGE_BYTES);
        memory.add_slot(Gpa::new(4 * LARGE_PAGE_BYTES), alloc::vec![Hpa::new(0)]);
        assert!(memory.check(Gpa::new(LARGE_PAGE_BYTES - 1), 2).is_err());
        assert!(memory.check(Gpa::new(4 * LARGE_PAGE_BYTES), LARGE_PAGE_BYTES).is_ok());
        assert_eq!(memory.total_bytes(), 2 * LARGE_PAGE_BYTES);
        assert_eq!(memory.frames().count(), 2);
    }
}
