//! The only way to guest bytes: checked copies in and out, never references.
//!
//! [`GuestMemory`] maps guest-physical addresses through slots of large frames to host frames and copies through a
//! [`Backing`], which alone knows how to reach host memory. A guest can change its bytes at any moment: callers copy
//! once, check the copy, and use the copy. `virtio`, `loader`, `firmware` and `machine` build on it. Memory that a guest
//! gave up, or has not used yet, has no frame and reads as zeroes; what writes there gets a frame from [`Supply`]. Memory that
//! is still on its way here can be neither read nor written: [`GuestMemory::is_here`] says so before an access.
#![cfg_attr(not(any(test, feature = "heap")), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod awaited;
mod dirty;
#[cfg(any(test, feature = "heap"))]
pub mod heap;
mod pages;

pub use dirty::NoRoom;
pub use pages::PageSet;

use addr::{Gpa, GpaRange, Hpa, LARGE_PAGE_BYTES, PAGE_BYTES};
use alloc::sync::Arc;
use alloc::vec::Vec;
use awaited::Awaited;
use core::sync::atomic::{AtomicU64, Ordering};
use dirty::DirtyLog;
use spin::Mutex;

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
    /// Whether the page (of 4 KiB) at `at` is all zeroes.
    fn is_zero_page(&self, at: Hpa) -> bool;
    /// Loads an aligned little-endian integer of `size` (1, 2, 4 or 8) bytes, as one access.
    fn load(&self, at: Hpa, size: usize) -> u64;
    /// Stores an aligned little-endian integer of `size` (1, 2, 4 or 8) bytes, as one access.
    fn store(&self, at: Hpa, size: usize, value: u64);
    /// Replaces an aligned integer of `size` bytes by `new` if it is `expected`, as one access; says whether it was.
    fn compare_exchange(&self, at: Hpa, size: usize, expected: u64, new: u64) -> bool;
}

/// Where frames come from for memory that the guest uses for the first time, or gave up and uses again.
pub trait Supply: Send + Sync {
    /// A zeroed large frame for the guest's frame `number` (in the order in which [`GuestMemory::add_slot`] added them),
    /// or `None` where the host has none. What is needed `at_once` is a device's; a guest can wait.
    fn supply(&self, number: usize, at_once: bool) -> Option<Hpa>;
}

/// An access outside the guest's memory, or to memory that the guest gave up and for which the host has no frame, or to
/// memory that is not here yet.
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
    /// One large frame for each [`LARGE_PAGE_BYTES`] of the range, or [`ABSENT`].
    frames: Vec<AtomicU64>,
    /// The number of the first.
    first: usize,
}

/// A piece of the guest-physical address space that can be read and not written, in one piece of host memory.
struct Rom {
    range: GpaRange,
    at: Hpa,
}

/// No frame's address.
const ABSENT: u64 = u64::MAX;

/// Locks of who puts frames in: zeroing one takes a while, and vCPUs that use new memory side by side do not wait for each
/// other.
const FILLERS: usize = 16;

/// The memory of one guest.
pub struct GuestMemory {
    backing: Arc<dyn Backing>,
    slots: Vec<Slot>,
    roms: Vec<Rom>,
    dirty: DirtyLog,
    awaited: Awaited,
    supply: Option<Arc<dyn Supply>>,
    /// Held by who puts a frame in, by the frame's number.
    filling: [Mutex<()>; FILLERS],
    absent_bytes: AtomicU64,
}

impl GuestMemory {
    /// A guest without memory.
    pub fn new(backing: Arc<dyn Backing>) -> Self {
        Self {
            backing,
            slots: Vec::new(),
            roms: Vec::new(),
            dirty: DirtyLog::default(),
            awaited: Awaited::default(),
            supply: None,
            filling: [const { Mutex::new(()) }; FILLERS],
            absent_bytes: AtomicU64::new(0),
        }
    }

    /// The same, with frames for what the guest gives up and uses again.
    pub fn with_supply(mut self, supply: Arc<dyn Supply>) -> Self {
        self.supply = Some(supply);
        self
    }

    /// Adds memory at `start`, a large frame for each [`LARGE_PAGE_BYTES`].
    ///
    /// # Panics
    /// Where addresses are not aligned, wrap, or overlap memory that is there: the caller lays out the guest.
    pub fn add_slot(&mut self, start: Gpa, frames: Vec<Hpa>) {
        assert!(frames.iter().all(|frame| frame.is_aligned(LARGE_PAGE_BYTES)));
        self.add(start, frames.into_iter().map(|frame| AtomicU64::new(frame.as_u64())).collect());
    }

    /// Adds memory at `start`, so many large frames, each of which comes from [`Supply`] when it is used for the first time.
    ///
    /// # Panics
    /// As [`add_slot`](Self::add_slot), and where nobody supplies frames.
    pub fn add_unused_slot(&mut self, start: Gpa, count: usize) {
        assert!(self.supply.is_some(), "somebody supplies frames");
        self.add(start, (0..count).map(|_| AtomicU64::new(ABSENT)).collect());
        self.absent_bytes.fetch_add(count as u64 * LARGE_PAGE_BYTES, Ordering::Relaxed);
    }

    fn add(&mut self, start: Gpa, frames: Vec<AtomicU64>) {
        assert!(start.is_aligned(LARGE_PAGE_BYTES));
        let range = GpaRange::new(start, frames.len() as u64 * LARGE_PAGE_BYTES).expect("a slot does not wrap");
        assert!(self.slots.iter().all(|slot| !slot.range.overlaps(range)), "slots do not overlap");
        let first = self.slots.iter().map(|slot| slot.frames.len()).sum();
        self.slots.push(Slot { range, frames, first });
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

    /// The frames behind the guest's memory: guest-physical address and large frame, in order. Where the guest gave memory
    /// up there is none.
    pub fn frames(&self) -> impl Iterator<Item = (Gpa, Hpa)> + '_ {
        self.all_frames().filter_map(|(gpa, frame)| Some((gpa, frame?)))
    }

    /// The same for all of its memory.
    pub fn all_frames(&self) -> impl Iterator<Item = (Gpa, Option<Hpa>)> + '_ {
        self.slots.iter().flat_map(|slot| {
            let gpas = (0..).map(|index| slot.range.start().wrapping_add(index * LARGE_PAGE_BYTES));
            gpas.zip(slot.frames.iter().map(present))
        })
    }

    /// How many bytes of its memory have no frame.
    pub fn absent_bytes(&self) -> u64 {
        self.absent_bytes.load(Ordering::Relaxed)
    }

    /// Takes the large frame behind `at` away: its content is lost, and what the guest does there next finds zeroes. The
    /// caller sees to it that nobody works in the frame any more before another gets it.
    pub fn take_frame(&self, at: Gpa) -> Option<Hpa> {
        let slot = self.slot_at(at)?;
        let index = index_in(slot, at);
        let frame = slot.frames[index].swap(ABSENT, Ordering::AcqRel);
        (frame != ABSENT).then(|| {
            self.absent_bytes.fetch_add(LARGE_PAGE_BYTES, Ordering::Relaxed);
            Hpa::new(frame)
        })
    }

    /// The number of the frame around `at`, as [`Supply`] knows it, whether there is one now or not.
    pub fn frame_number(&self, at: Gpa) -> Option<usize> {
        self.slot_at(at).map(|slot| slot.first + index_in(slot, at))
    }

    /// The large frame behind `at`, after a touch of the guest's there: a new one where there was none. `None` where that is
    /// no memory, or the host has none left.
    pub fn touch(&self, at: Gpa) -> Option<Hpa> {
        self.fill(self.slot_at(at)?, at, false)
    }

    /// Puts a frame behind `at`, where there is none.
    fn fill(&self, slot: &Slot, at: Gpa, at_once: bool) -> Option<Hpa> {
        let index = index_in(slot, at);
        if let Some(frame) = present(&slot.frames[index]) {
            // Who zeroes another frame is not waited for.
            return Some(frame);
        }
        let _filling = self.filling[(slot.first + index) % FILLERS].lock();
        if let Some(frame) = present(&slot.frames[index]) {
            return Some(frame);
        }
        let frame = self.supply.as_ref()?.supply(slot.first + index, at_once)?;
        self.absent_bytes.fetch_sub(LARGE_PAGE_BYTES, Ordering::Relaxed);
        slot.frames[index].store(frame.as_u64(), Ordering::Release);
        Some(frame)
    }

    /// Puts frames behind the range, which is memory, where there are none.
    fn fill_range(&self, at: Gpa, bytes: u64) -> Result<(), Outside> {
        if bytes == 0 {
            return Ok(());
        }
        let mut next = at.align_down(LARGE_PAGE_BYTES);
        let end = at.as_u64().saturating_add(bytes);
        while next.as_u64() < end {
            let slot = self.slot_at(next).ok_or(Outside { at: next })?;
            self.fill(slot, next, true).ok_or(Outside { at: next })?;
            next = next.wrapping_add(LARGE_PAGE_BYTES);
        }
        Ok(())
    }

    /// How many bytes of memory the guest has.
    pub fn total_bytes(&self) -> u64 {
        self.ranges().map(GpaRange::bytes).sum()
    }

    /// Copies guest bytes out. On an error nothing useful is in `into`.
    pub fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), Outside> {
        self.must_be_here(at, into.len() as u64)?;
        if let Some(run) = self.run_at(at)
            && run.bytes >= into.len() as u64
        {
            self.backing.read(run.start, into);
            return Ok(());
        }
        if let Err(outside) = self.check(at, into.len() as u64) {
            return self.read_rom(at, into).ok_or(outside);
        }
        let (mut at, mut done) = (at, 0);
        while done < into.len() {
            let rest = (LARGE_PAGE_BYTES - at.offset_in(LARGE_PAGE_BYTES)) as usize;
            let next = into.len().min(done + rest);
            match self.run_at(at) {
                Some(run) => self.backing.read(run.start, &mut into[done..next]),
                None => into[done..next].fill(0),
            }
            at = at.wrapping_add((next - done) as u64);
            done = next;
        }
        Ok(())
    }

    /// Whether a page (of 4 KiB) is all zeroes, in its place: most of a guest's memory is, and a copy costs more than a
    /// look.
    pub fn is_zero_page(&self, page: u64) -> Result<bool, Outside> {
        let at = Gpa::new(page.saturating_mul(PAGE_BYTES));
        self.must_be_here(at, PAGE_BYTES)?;
        match self.run_at(at) {
            Some(run) => Ok(self.backing.is_zero_page(run.start)),
            None => self.check(at, PAGE_BYTES).map(|()| true),
        }
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
    /// What had been given up gets frames.
    ///
    /// Neighbouring large frames that follow each other in host memory come as separate runs.
    pub fn each_run(&self, at: Gpa, bytes: u64, mut use_run: impl FnMut(HostRun)) -> Result<(), Outside> {
        self.must_be_here(at, bytes)?;
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
        self.fill_range(at, bytes)?;
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
        self.must_be_here(at, size as u64)?;
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
        self.must_be_here(at, size as u64)?;
        if at.is_aligned(size as u64) {
            self.backing.store(self.filled_run_at(at)?.start, size, value);
            self.mark_dirty(at, size as u64);
            return Ok(());
        }
        self.write(at, &value.to_le_bytes()[..size])
    }

    /// Replaces an integer of `size` (1, 2, 4 or 8) bytes by `new` if it is `expected`, as one access where it is aligned;
    /// says whether it was.
    pub fn compare_exchange(&self, at: Gpa, size: usize, expected: u64, new: u64) -> Result<bool, Outside> {
        assert!(matches!(size, 1 | 2 | 4 | 8));
        self.must_be_here(at, size as u64)?;
        if at.is_aligned(size as u64) {
            let run = self.filled_run_at(at)?;
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

    /// Begins to wait for pages, which can be neither read nor written before [`put`](Self::put). Nobody accesses this
    /// memory meanwhile.
    pub fn start_waiting(&self, pages: &PageSet) -> Result<(), NoRoom> {
        assert_eq!(pages.end(), self.pages_end(), "a set of this guest's pages");
        self.awaited.start(pages)
    }

    /// Waits no more: every page is here, or is needed no more.
    pub fn stop_waiting(&self) {
        self.awaited.stop();
    }

    /// Whether pages are awaited.
    pub fn is_waiting(&self) -> bool {
        self.awaited.is_on()
    }

    /// Whether none of the bytes is in a page that is awaited; the first that is, is noted as wanted.
    pub fn is_here(&self, at: Gpa, bytes: u64) -> bool {
        self.must_be_here(at, bytes).is_ok()
    }

    /// Puts a page that is awaited here, or zeroes; says whether somebody wants it. It is no error if it is not awaited:
    /// nothing happens.
    pub fn put(&self, page: u64, content: Option<&[u8; PAGE_BYTES as usize]>) -> Result<bool, Outside> {
        let at = Gpa::new(page.saturating_mul(PAGE_BYTES));
        if !self.awaited.is_on() || !self.awaited.is_absent(page) {
            return Ok(false);
        }
        let run = self.filled_run_at(at)?;
        match content {
            Some(bytes) => self.backing.write(run.start, bytes),
            None => self.backing.zero(run.start, PAGE_BYTES),
        }
        Ok(self.awaited.arrived(page))
    }

    /// Copies a page out of its frame, awaited or not: what a device put there is looked at before it counts.
    pub fn read_frame(&self, page: u64, into: &mut [u8; PAGE_BYTES as usize]) -> Result<(), Outside> {
        let at = Gpa::new(page.saturating_mul(PAGE_BYTES));
        let run = self.run_at(at).ok_or(Outside { at })?;
        self.backing.read(run.start, into);
        Ok(())
    }

    /// What lies in the frames of these pages is what they were awaited for: they are here. Says whether somebody wants
    /// one of them.
    pub fn arrived(&self, first: u64, count: u64) -> bool {
        let pages = first..first.saturating_add(count).min(self.pages_end());
        pages.fold(false, |is_wanted, page| self.awaited.arrived(page) | is_wanted)
    }

    /// Whether a page is awaited. One that is not can be among those wanted all the same: who looked before it came noted it
    /// afterwards, and is to be told.
    pub fn is_awaited(&self, page: u64) -> bool {
        self.awaited.is_on() && self.awaited.is_absent(page)
    }

    /// Takes the pages that are wanted since the last call.
    pub fn take_wanted(&self, each: impl FnMut(u64)) {
        self.awaited.take_wanted(each);
    }

    /// What was taken as wanted may not come: who still waits notes it anew.
    pub fn ask_again(&self) {
        self.awaited.ask_again();
    }

    #[inline]
    fn must_be_here(&self, at: Gpa, bytes: u64) -> Result<(), Outside> {
        if bytes == 0 || !self.awaited.is_on() {
            return Ok(());
        }
        let first = at.as_u64() / PAGE_BYTES;
        let last = at.as_u64().saturating_add(bytes - 1) / PAGE_BYTES;
        match self.awaited.first_absent(first, last - first + 1) {
            Some(page) => Err(Outside { at: Gpa::new(page * PAGE_BYTES) }),
            None => Ok(()),
        }
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

    /// The rest of the large frame behind `at`, where there is one.
    fn run_at(&self, at: Gpa) -> Option<HostRun> {
        let slot = self.slot_at(at)?;
        present(&slot.frames[index_in(slot, at)]).map(|frame| rest_of(frame, at))
    }

    /// The same, with a frame put there where there was none.
    fn filled_run_at(&self, at: Gpa) -> Result<HostRun, Outside> {
        self.run_at(at).map_or_else(
            || {
                let slot = self.slot_at(at).ok_or(Outside { at })?;
                self.fill(slot, at, true).map(|frame| rest_of(frame, at)).ok_or(Outside { at })
            },
            Ok,
        )
    }
}

/// Which of a slot's frames is behind `at`, which lies in it.
fn index_in(slot: &Slot, at: Gpa) -> usize {
    ((at.as_u64() - slot.range.start().as_u64()) / LARGE_PAGE_BYTES) as usize
}

fn present(frame: &AtomicU64) -> Option<Hpa> {
    let frame = frame.load(Ordering::Acquire);
    (frame != ABSENT).then(|| Hpa::new(frame))
}

fn rest_of(frame: Hpa, at: Gpa) -> HostRun {
    let inside = at.offset_in(LARGE_PAGE_BYTES);
    HostRun { start: frame.wrapping_add(inside), bytes: LARGE_PAGE_BYTES - inside }
}

#[cfg(test)]
mod tests;
