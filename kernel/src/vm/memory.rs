//! A guest's memory: host frames taken, handed to the guest's slots, mapped, and given back.
//!
//! The main type is [`GuestFrames`]. Frames come as the last owner left them: the CPU that runs the guest zeroes them
//! one by one ([`GuestFrames::zero`]) before the guest's first instruction.

use super::Refusal;
use crate::backend::SecondStage;
use crate::confinement::{self, Grant};
use addr::{Gpa, HUGE_PAGE_BYTES, Hpa, LARGE_PAGE_BYTES};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use firmware::layout;
use guestmem::{Backing, GuestMemory};
use iommu::Source;
use memory::{FRAMES, HostFrames};
use nested::{OutOfMemory, PageSize};
use spin::Mutex;

/// Free memory that a start leaves for everybody else: page tables, the heap, the devices' queues.
const RESERVE_BYTES: u64 = 8 << 20;

/// Guest memory that does not fit below the PCI window starts here.
const HIGH_MEMORY: Gpa = Gpa::new(4 << 30);

/// The large frames behind a guest's memory, in the order of its addresses, and the devices that reach them.
pub struct GuestFrames {
    frames: Vec<Hpa>,
    /// Which devices were let in, and what takes that back where an IOMMU stands between.
    grants: Mutex<Vec<(Source, Option<Grant>)>>,
}

impl Drop for GuestFrames {
    fn drop(&mut self) {
        // All of them, even when one device's unit does not answer.
        let grants = core::mem::take(&mut *self.grants.lock());
        let stuck = grants.into_iter().filter_map(|(_, grant)| grant).map(Grant::revoke).filter(|done| !done).count();
        if stuck > 0 {
            let mib = self.bytes() >> 20;
            log::error!("an IOMMU does not answer: {mib} MiB stay out of use, a device may still reach them");
            return;
        }
        let mut frames = FRAMES.lock();
        self.frames.iter().for_each(|&frame| frames.free_large(frame));
    }
}

impl GuestFrames {
    /// Frames for `bytes` bytes of memory, or in one line why there are none.
    pub fn take(bytes: u64) -> Result<Self, Refusal> {
        let free_bytes = FRAMES.lock().free_bytes().saturating_sub(RESERVE_BYTES);
        if bytes > free_bytes {
            return Err(too_much(bytes, free_bytes));
        }
        let count = (bytes / LARGE_PAGE_BYTES) as usize;
        let mut taken = Self { frames: list_of(count, bytes, free_bytes)?, grants: Mutex::new(Vec::new()) };
        if taken.fill(count) { Ok(taken) } else { Err(too_much(bytes, free_bytes)) }
    }

    /// The guest's memory over these frames: from 0 up to the PCI window, the rest from 4 GiB on.
    pub fn memory(&self) -> Result<GuestMemory, Refusal> {
        self.memory_below(layout::LOW_MEMORY_END)
    }

    /// The same, the first part up to `low_end` at most.
    pub fn memory_below(&self, low_end: Gpa) -> Result<GuestMemory, Refusal> {
        let low_count = self.frames.len().min((low_end.as_u64() / LARGE_PAGE_BYTES) as usize);
        let (low, high) = self.frames.split_at(low_count);
        let mut memory = GuestMemory::new(Arc::new(HostFrames));
        for (start, frames) in [(Gpa::new(0), low), (HIGH_MEMORY, high)] {
            if !frames.is_empty() {
                let mut list = list_of(frames.len(), self.bytes(), 0)?;
                list.extend_from_slice(frames);
                memory.add_slot(start, list);
            }
        }
        Ok(memory)
    }

    /// Zeroes the frame at `index`; says whether there is one.
    pub fn zero(&self, index: usize) -> bool {
        self.frames.get(index).inspect(|&&frame| HostFrames.zero(frame, LARGE_PAGE_BYTES)).is_some()
    }

    /// Lets the device behind a disk reach all of it, until this is dropped. Once is enough.
    pub fn put_in_reach(&self, device: Source) -> Result<(), OutOfMemory> {
        let mut grants = self.grants.lock();
        if grants.iter().any(|(other, _)| *other == device) {
            return Ok(());
        }
        let mut runs: Vec<(Hpa, u64)> = Vec::new();
        for &frame in &self.frames {
            match runs.last_mut() {
                Some((start, bytes)) if start.wrapping_add(*bytes) == frame => *bytes += LARGE_PAGE_BYTES,
                _ => runs.push((frame, LARGE_PAGE_BYTES)),
            }
        }
        grants.push((device, confinement::grant(device, runs)?));
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.frames.len() as u64 * LARGE_PAGE_BYTES
    }

    /// Takes frames until there are `count`, huge ones where they fit; says whether there were enough.
    fn fill(&mut self, count: usize) -> bool {
        const LARGE_PER_HUGE: usize = (HUGE_PAGE_BYTES / LARGE_PAGE_BYTES) as usize;
        let mut frames = FRAMES.lock();
        while self.frames.len() < count {
            if count - self.frames.len() >= LARGE_PER_HUGE
                && let Some(huge) = frames.take_huge()
            {
                self.frames.extend((0..LARGE_PER_HUGE as u64).map(|index| huge.wrapping_add(index * LARGE_PAGE_BYTES)));
                continue;
            }
            let Some(frame) = frames.take_large() else { return false };
            self.frames.push(frame);
        }
        true
    }
}

/// Whether the processor has pages of 1 GiB.
pub fn has_huge_pages() -> bool {
    cpu::cpuid(0x8000_0001, 0).edx & 1 << 26 != 0
}

/// Maps the guest's memory, in 1 GiB pages where addresses allow and the processor has them, and its read-only memory.
pub fn map(memory: &GuestMemory, second_stage: &mut SecondStage) -> Result<(), OutOfMemory> {
    memory.rom_pages().try_for_each(|(gpa, hpa)| second_stage.map_read_only(gpa, hpa))?;
    let has_huge = has_huge_pages();
    let mut run = Run::default();
    for (gpa, hpa) in memory.frames() {
        if !run.extend(gpa, hpa) {
            run.map(has_huge, second_stage)?;
            run = Run { gpa, hpa, bytes: LARGE_PAGE_BYTES };
        }
    }
    run.map(has_huge, second_stage)
}

/// Frames that follow each other in the guest and in the host.
struct Run {
    gpa: Gpa,
    hpa: Hpa,
    bytes: u64,
}

impl Default for Run {
    fn default() -> Self {
        Self { gpa: Gpa::new(0), hpa: Hpa::new(0), bytes: 0 }
    }
}

impl Run {
    fn extend(&mut self, gpa: Gpa, hpa: Hpa) -> bool {
        let follows = gpa == self.gpa.wrapping_add(self.bytes) && hpa == self.hpa.wrapping_add(self.bytes);
        let follows = follows && self.bytes > 0;
        self.bytes += if follows { LARGE_PAGE_BYTES } else { 0 };
        follows
    }

    fn map(&self, has_huge: bool, second_stage: &mut SecondStage) -> Result<(), OutOfMemory> {
        let mut done_bytes = 0;
        while done_bytes < self.bytes {
            let (gpa, hpa) = (self.gpa.wrapping_add(done_bytes), self.hpa.wrapping_add(done_bytes));
            let is_huge = has_huge
                && self.bytes - done_bytes >= HUGE_PAGE_BYTES
                && gpa.is_aligned(HUGE_PAGE_BYTES)
                && hpa.is_aligned(HUGE_PAGE_BYTES);
            let (size, bytes) =
                if is_huge { (PageSize::Huge, HUGE_PAGE_BYTES) } else { (PageSize::Large, LARGE_PAGE_BYTES) };
            second_stage.map(gpa, hpa, size)?;
            done_bytes += bytes;
        }
        Ok(())
    }
}

fn list_of(count: usize, bytes: u64, free_bytes: u64) -> Result<Vec<Hpa>, Refusal> {
    let mut list = Vec::new();
    list.try_reserve_exact(count).map_err(|_| too_much(bytes, free_bytes))?;
    Ok(list)
}

fn too_much(bytes: u64, free_bytes: u64) -> Refusal {
    let message = format!("it needs {} MiB of memory and {} MiB are free", bytes >> 20, free_bytes >> 20);
    (message, "give it less memory, or stop another VM".into())
}
