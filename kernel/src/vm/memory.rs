//! A guest's memory: host frames taken, handed to the guest's slots, mapped, and given back.
//!
//! The main type is [`GuestFrames`]. Frames come as the last owner left them, and a new guest has all of them from the
//! start: each is zeroed and put in its reach when it is used for the first time ([`GuestFrames::zero_at_use`]). A frame
//! that the guest gave up goes back in two steps, [`GuestFrames::set_aside`] and [`GuestFrames::free_aside`], between which
//! every vCPU forgets it; where the guest uses that memory again it gets another ([`Supply`]).

use super::Refusal;
use super::reservation::Reservation;
use crate::backend::SecondStage;
use crate::confinement::{self, Grant};
use addr::{Gpa, HUGE_PAGE_BYTES, Hpa, LARGE_PAGE_BYTES};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use firmware::layout;
use guestmem::{Backing, GuestMemory, Supply};
use iommu::Source;
use memory::{FRAMES, HostFrames};
use nested::{OutOfMemory, PageSize};
use spin::Mutex;

/// Free memory that a start leaves for everybody else: page tables, the heap, the devices' queues.
pub const RESERVE_BYTES: u64 = 8 << 20;
/// More of it that guests leave which use again what they gave up: their devices find room there, as they cannot wait.
const DEVICES_BYTES: u64 = 16 << 20;

/// Guest memory that does not fit below the PCI window starts here.
const HIGH_MEMORY: Gpa = Gpa::new(4 << 30);

/// The large frames behind a guest's memory, in the order of its addresses, and the devices that reach them.
pub struct GuestFrames {
    count: usize,
    held: Mutex<Held>,
}

struct Held {
    /// Of the VM whose they are.
    reservation: Arc<Reservation>,
    /// None where the guest gave the memory up.
    frames: Vec<Option<Hpa>>,
    /// Which of them nobody has used yet; empty where all were put in the guest's reach at once.
    unused: Vec<bool>,
    /// What was taken from the guest, and a vCPU may still use.
    aside: Vec<Hpa>,
    /// Which devices were let in, and what takes that back where an IOMMU stands between.
    grants: Vec<(Source, Option<Grant>)>,
}

impl Drop for GuestFrames {
    fn drop(&mut self) {
        self.held.lock().give_back_all();
    }
}

impl Held {
    fn give_back_all(&mut self) {
        let mut frames: Vec<Hpa> = self.frames.drain(..).flatten().collect();
        frames.append(&mut self.aside);
        self.give_back(&frames);
    }

    /// Frees frames, once no device reaches them.
    fn give_back(&self, frames: &[Hpa]) {
        let runs = runs_of(frames);
        // All devices, even when one's unit does not answer.
        let stuck =
            self.grants.iter().filter_map(|(_, grant)| grant.as_ref()).filter(|grant| !grant.take(&runs)).count();
        if stuck > 0 {
            let mib = (frames.len() as u64 * LARGE_PAGE_BYTES) >> 20;
            log::error!("an IOMMU does not answer: {mib} MiB stay out of use, a device may still reach them");
            return;
        }
        self.reservation.gave(frames.len() as u64 * LARGE_PAGE_BYTES);
        let mut free = FRAMES.lock();
        frames.iter().for_each(|&frame| free.free_large(frame));
    }

    /// The frame with this number, if it is used now for the first time.
    fn first_use(&mut self, number: usize) -> Option<Hpa> {
        let is_unused = self.unused.get_mut(number).is_some_and(core::mem::take);
        self.frames[number].filter(|_| is_unused)
    }

    /// Lets every device that was let in reach a frame; none of them where it fails.
    fn grant(&self, frame: Hpa) -> bool {
        let run = [(frame, LARGE_PAGE_BYTES)];
        let granted = self.grants.iter().filter_map(|(_, grant)| grant.as_ref()).all(|grant| grant.give(&run).is_ok());
        if !granted {
            self.give_back(&[frame]);
        }
        granted
    }
}

impl Supply for GuestFrames {
    fn supply(&self, number: usize, at_once: bool) -> Option<Hpa> {
        let reservation = {
            let mut held = self.held.lock();
            if let Some(frame) = held.first_use(number) {
                drop(held);
                HostFrames.zero(frame, LARGE_PAGE_BYTES);
                return Some(frame);
            }
            held.reservation.clone()
        };
        let frame = {
            let mut frames = FRAMES.lock();
            let is_promised = reservation.open_bytes() > 0;
            let devices_bytes = if at_once || is_promised { 0 } else { DEVICES_BYTES };
            let left_bytes = RESERVE_BYTES + devices_bytes + reservation.others_bytes();
            (frames.free_bytes() >= left_bytes + LARGE_PAGE_BYTES).then(|| frames.take_large()).flatten()?
        };
        reservation.got(LARGE_PAGE_BYTES);
        HostFrames.zero(frame, LARGE_PAGE_BYTES);
        let mut held = self.held.lock();
        if !held.grant(frame) {
            return None;
        }
        held.frames[number] = Some(frame);
        Some(frame)
    }
}

impl GuestFrames {
    /// Frames for `bytes` bytes of memory of a VM's, or in one line why there are none.
    pub fn take(bytes: u64, reservation: &Arc<Reservation>) -> Result<Self, Refusal> {
        let free_bytes = reservation.free_bytes();
        if bytes > free_bytes {
            return Err(too_much(bytes, free_bytes));
        }
        let count = (bytes / LARGE_PAGE_BYTES) as usize;
        let frames = list_of(count, bytes, free_bytes)?;
        let reserved = reservation.clone();
        let mut held =
            Held { reservation: reserved, frames, unused: Vec::new(), aside: Vec::new(), grants: Vec::new() };
        let is_enough = held.fill(count);
        reservation.got(held.frames.len() as u64 * LARGE_PAGE_BYTES);
        let taken = Self { count, held: Mutex::new(held) };
        if is_enough { Ok(taken) } else { Err(too_much(bytes, free_bytes)) }
    }

    /// Has each frame zeroed when it is used for the first time: to be said before there is memory over them.
    pub fn zero_at_use(&self) -> Result<(), Refusal> {
        let mut unused = list_of(self.count, self.bytes(), 0)?;
        unused.resize(self.count, true);
        self.held.lock().unused = unused;
        Ok(())
    }

    /// The guest's memory over these frames: from 0 up to the PCI window, the rest from 4 GiB on.
    pub fn memory(self: &Arc<Self>) -> Result<GuestMemory, Refusal> {
        self.memory_below(layout::LOW_MEMORY_END)
    }

    /// The same, the first part up to `low_end` at most.
    pub fn memory_below(self: &Arc<Self>, low_end: Gpa) -> Result<GuestMemory, Refusal> {
        let held = self.held.lock();
        let low_count = self.count.min((low_end.as_u64() / LARGE_PAGE_BYTES) as usize);
        let (low, high) = held.frames.split_at(low_count);
        let mut memory = GuestMemory::new(Arc::new(HostFrames)).with_supply(self.clone());
        for (start, frames) in [(Gpa::new(0), low), (HIGH_MEMORY, high)] {
            if !frames.is_empty() && !held.unused.is_empty() {
                memory.add_unused_slot(start, frames.len());
            } else if !frames.is_empty() {
                let mut list = list_of(frames.len(), self.bytes(), 0)?;
                list.extend(frames.iter().flatten());
                memory.add_slot(start, list);
            }
        }
        Ok(memory)
    }

    /// Takes the frame behind `gpa` from the guest, unless it has none there. It is nobody's before
    /// [`free_aside`](Self::free_aside).
    pub fn set_aside(&self, memory: &GuestMemory, gpa: Gpa) {
        let mut held = self.held.lock();
        let Some(number) = memory.frame_number(gpa) else { return };
        // Without room to note it, the guest keeps it.
        if held.aside.try_reserve(1).is_ok()
            && let Some(frame) = held.first_use(number).or_else(|| memory.take_frame(gpa))
        {
            held.frames[number] = None;
            held.aside.push(frame);
        }
    }

    /// Frees what was set aside: no vCPU can reach it any more, and nobody copies from or to it.
    pub fn free_aside(&self) {
        let mut held = self.held.lock();
        let aside = core::mem::take(&mut held.aside);
        held.give_back(&aside);
    }

    /// How much of its memory the guest has, and what was set aside.
    pub fn held_bytes(&self) -> u64 {
        let held = self.held.lock();
        (held.frames.iter().flatten().count() + held.aside.len()) as u64 * LARGE_PAGE_BYTES
    }

    /// Zeroes the frame at `index`; says whether there is one.
    pub fn zero(&self, index: usize) -> bool {
        let frame = self.held.lock().frames.get(index).copied();
        frame.inspect(|frame| frame.iter().for_each(|&frame| HostFrames.zero(frame, LARGE_PAGE_BYTES))).is_some()
    }

    /// Lets the device behind a disk reach all of it, until this is dropped. Once is enough.
    pub fn put_in_reach(&self, device: Source) -> Result<(), OutOfMemory> {
        let mut held = self.held.lock();
        if held.grants.iter().any(|(other, _)| *other == device) {
            return Ok(());
        }
        let frames: Vec<Hpa> = held.frames.iter().flatten().copied().collect();
        let grant = confinement::grant(device, &runs_of(&frames))?;
        held.grants.push((device, grant));
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.count as u64 * LARGE_PAGE_BYTES
    }
}

impl Held {
    /// Takes frames until there are `count`, huge ones where they fit; says whether there were enough.
    fn fill(&mut self, count: usize) -> bool {
        const LARGE_PER_HUGE: usize = (HUGE_PAGE_BYTES / LARGE_PAGE_BYTES) as usize;
        let mut frames = FRAMES.lock();
        // Others may have taken some since it was asked how many there are.
        if count as u64 * LARGE_PAGE_BYTES > self.reservation.left_of(frames.free_bytes()) {
            return false;
        }
        while self.frames.len() < count {
            if count - self.frames.len() >= LARGE_PER_HUGE
                && let Some(huge) = frames.take_huge()
            {
                let parts = (0..LARGE_PER_HUGE as u64).map(|index| huge.wrapping_add(index * LARGE_PAGE_BYTES));
                self.frames.extend(parts.map(Some));
                continue;
            }
            let Some(frame) = frames.take_large() else { return false };
            self.frames.push(Some(frame));
        }
        true
    }
}

/// Frames as runs, where they follow each other.
fn runs_of(frames: &[Hpa]) -> Vec<(Hpa, u64)> {
    let mut runs: Vec<(Hpa, u64)> = Vec::new();
    for &frame in frames {
        match runs.last_mut() {
            Some((start, bytes)) if start.wrapping_add(*bytes) == frame => *bytes += LARGE_PAGE_BYTES,
            _ => runs.push((frame, LARGE_PAGE_BYTES)),
        }
    }
    runs
}

/// Whether the processor has pages of 1 GiB.
pub fn has_huge_pages() -> bool {
    cpu::cpuid(0x8000_0001, 0).edx & 1 << 26 != 0
}

/// Maps the guest's memory that is here (of a new guest, none), in 1 GiB pages where addresses allow and the processor has
/// them, and its read-only memory.
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

fn list_of<T>(count: usize, bytes: u64, free_bytes: u64) -> Result<Vec<T>, Refusal> {
    let mut list = Vec::new();
    list.try_reserve_exact(count).map_err(|_| too_much(bytes, free_bytes))?;
    Ok(list)
}

fn too_much(bytes: u64, free_bytes: u64) -> Refusal {
    let message = format!("it needs {} MiB of memory and {} MiB are free", bytes >> 20, free_bytes >> 20);
    (message, "give it less memory, or stop another VM".into())
}
