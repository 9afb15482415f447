//! A partition or disk that the host itself transfers to or from, and memory for what is no guest's.

use crate::host::Host;
use crate::services;
use crate::storage::{Identity, Lent, Storage};
use crate::vm::{GuestFrames, Refusal, Running};
use addr::{Gpa, LARGE_PAGE_BYTES};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::{HostRun, Op, SECTOR_BYTES, SubmitError, Transfer};
use guestmem::GuestMemory;
use iommu::Source;
use nested::OutOfMemory;

/// The services run on this CPU, and so do those who have slots.
const SERVICE_CPU: usize = 0;
/// Transfers that a job has under way at most.
const IN_FLIGHT_MAX: u32 = 4;
/// The longest run handed to a disk at once.
const RUN_BYTES_MAX: u64 = 1 << 20;

/// A partition or disk, and what is under way on it.
pub struct Slot {
    name: String,
    lent: Lent,
    device: Source,
    bytes: u64,
    /// Completed writes need a flush to be durable.
    flushes: bool,
    in_flight: u32,
    failed: bool,
}

/// The disk has no room for another transfer now.
pub struct Full;

/// Host memory for headers and streams, which disks read and write.
pub struct Staging {
    memory: GuestMemory,
    _frames: Arc<GuestFrames>,
}

impl Slot {
    /// Takes the partition called `name`, which nobody has.
    pub fn claim(host: &Host, name: &str) -> Result<Self, Refusal> {
        let mut storage = host.storage.lock();
        let lent = storage.claim_for_host(name).map_err(|(message, remedy)| (message, remedy.to_string()))?;
        Ok(Self::new(&storage, name, lent))
    }

    /// Takes the whole host disk called `name`, for reading.
    pub fn claim_disk(host: &Host, name: &str) -> Result<Self, Refusal> {
        let mut storage = host.storage.lock();
        let lent = storage.claim_disk_for_host(name).map_err(|(message, remedy)| (message, remedy.to_string()))?;
        Ok(Self::new(&storage, name, lent))
    }

    fn new(storage: &Storage, name: &str, lent: Lent) -> Self {
        let geometry = storage.geometry(lent);
        let bytes = geometry.sectors * u64::from(SECTOR_BYTES);
        let device = storage.source(lent);
        Self { name: name.into(), lent, device, bytes, flushes: geometry.flush, in_flight: 0, failed: false }
    }

    /// Lets the disk reach the memory of a VM.
    pub fn reach(&self, running: &Running) -> Result<(), Refusal> {
        running.put_in_reach(self.device).map_err(no_tables)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What and where the device behind it is, for people.
    pub fn device_name(&self, host: &Host) -> String {
        host.storage.lock().device_name(self.lent)
    }

    /// Which partition it is.
    pub fn identity(&self, host: &Host) -> Identity {
        host.storage.lock().identity(self.lent)
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether another transfer should wait.
    pub fn is_busy(&self) -> bool {
        self.in_flight >= IN_FLIGHT_MAX
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Whether a transfer failed.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// The same, for who tries again: it is forgotten.
    pub fn take_failure(&mut self) -> bool {
        core::mem::take(&mut self.failed)
    }

    /// Starts a transfer of whole sectors at a place; what the disk refuses counts as failed.
    pub fn submit(&mut self, host: &Host, id: u64, op: Op, at_bytes: u64, runs: &[HostRun]) -> Result<(), Full> {
        let result = self.queue(host, id, op, at_bytes, runs);
        self.kick(host);
        result
    }

    /// As [`Slot::submit`], but the disk may begin only with [`Slot::kick`].
    pub fn queue(&mut self, host: &Host, id: u64, op: Op, at_bytes: u64, runs: &[HostRun]) -> Result<(), Full> {
        let bytes: u64 = runs.iter().map(|run| u64::from(run.bytes)).sum();
        let unit = u64::from(SECTOR_BYTES);
        let transfer = Transfer { id, op, sector: at_bytes / unit, sectors: (bytes / unit) as u32, runs };
        let mut storage = host.storage.lock();
        match storage.submit_for_host(self.lent, &transfer) {
            Ok(()) => self.in_flight += 1,
            Err(SubmitError::Full) => return Err(Full),
            Err(SubmitError::Refused) => self.failed = true,
        }
        Ok(())
    }

    /// Tells the disk of what was queued.
    pub fn kick(&self, host: &Host) {
        let mut storage = host.storage.lock();
        storage.kick();
        if storage.has_ended() {
            services::note_transfers(host, SERVICE_CPU);
        }
    }

    /// Has everything that was written be durable, where that is not so anyway.
    pub fn flush(&mut self, host: &Host) -> Result<(), Full> {
        if self.flushes { self.submit(host, 0, Op::Flush, 0, &[]) } else { Ok(()) }
    }

    /// The next transfer that ended, by its id.
    pub fn ended(&mut self, host: &Host) -> Option<u64> {
        let (id, is_done) = host.storage.lock().take_ended_for_host(self.lent)?;
        self.in_flight -= 1;
        self.failed |= !is_done;
        Some(id)
    }

    /// Gives the partition back; nothing is under way.
    pub fn release(&self, host: &Host) {
        assert!(self.is_idle(), "a slot is released at rest");
        host.storage.lock().release(self.lent);
    }
}

impl Staging {
    /// Memory for `bytes` bytes, zeroed, that the disk behind a slot reaches.
    pub fn new(slot: &Slot, bytes: u64) -> Result<Self, Refusal> {
        let frames = GuestFrames::take(bytes.next_multiple_of(LARGE_PAGE_BYTES), &Arc::default())?;
        frames.put_in_reach(slot.device).map_err(no_tables)?;
        let frames = Arc::new(frames);
        let memory = frames.memory()?;
        (0..).take_while(|&index| frames.zero(index)).for_each(drop);
        Ok(Self { memory, _frames: frames })
    }

    /// Puts bytes in from the start on.
    pub fn fill(&self, bytes: &[u8]) {
        self.fill_at(0, bytes);
    }

    /// Puts bytes in from an offset on.
    pub fn fill_at(&self, offset: u64, bytes: &[u8]) {
        self.memory.write(Gpa::new(offset), bytes).expect("it was made for them");
    }

    /// Takes bytes out from the start on.
    pub fn take(&self, into: &mut [u8]) {
        self.take_at(0, into);
    }

    /// Takes bytes out from an offset on.
    pub fn take_at(&self, offset: u64, into: &mut [u8]) {
        self.memory.read(Gpa::new(offset), into).expect("it was made for them");
    }

    /// The memory of its first `bytes` bytes, for a disk.
    pub fn runs(&self, bytes: u64) -> Vec<HostRun> {
        self.runs_at(0, bytes)
    }

    /// The memory of `bytes` bytes from an offset on, for a disk.
    pub fn runs_at(&self, offset: u64, bytes: u64) -> Vec<HostRun> {
        let mut runs = Vec::new();
        self.memory
            .each_run(Gpa::new(offset), bytes, |run| push_runs(&mut runs, run.start, run.bytes))
            .expect("it is there");
        runs
    }
}

/// Adds memory in runs that every disk takes.
pub fn push_runs(runs: &mut Vec<HostRun>, start: addr::Hpa, bytes: u64) {
    let mut done = 0;
    while done < bytes {
        let part = (bytes - done).min(RUN_BYTES_MAX);
        runs.push(HostRun { start: start.wrapping_add(done), bytes: part as u32 });
        done += part;
    }
}

fn no_tables(_: OutOfMemory) -> Refusal {
    ("there is no memory for page tables".into(), "stop another VM first".into())
}

/// What an I/O error on a partition leads to.
pub fn io_error(name: &str) -> Refusal {
    (format!("disk {name} failed"), "see \"log\" and \"disk list\"".into())
}
