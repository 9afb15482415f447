//! A VM on its way to a partition. Until the header is written the VM can go on as if nothing had been; afterwards it
//! must not run again.

use super::Next;
use super::undo::{Undo, Undone};
use crate::host::Host;
use crate::services;
use crate::slot::{Full, Slot, Staging, io_error, push_runs};
use crate::vm::{Ending, Order, Refusal, Running, Start, Vm, limits, tracking};
use addr::{Gpa, Hpa, LARGE_PAGE_BYTES};
use alloc::format;
use alloc::string::ToString;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use block::{HostRun, Op};
use guestmem::PageSet;
use state::image::{Contents, FRAME_PAGES, Frame, HEADER_BYTES, Header, PAGE_BYTES, PAGES_AT_BYTES, Pages};

/// The services run on this CPU.
const SERVICE_CPU: usize = 0;
/// How long the VM's disks may take to finish what they do.
const REST_NS: u64 = 30_000_000_000;
/// How often it is looked whether the VM has come to rest.
const LOOK_NS: u64 = 100_000;

/// What comes next. But for the pages, each step begins when the transfers of the one before have ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Rest,
    /// An older image is void before its pages are overwritten.
    Clear,
    ClearFlush,
    Pages,
    Stream,
    StreamFlush,
    Commit,
    CommitFlush,
    End,
}

/// The job.
pub struct Save {
    running: Arc<Running>,
    outcome: Arc<Start>,
    slot: Slot,
    staging: Staging,
    step: Step,
    began_ns: u64,
    was_paused: bool,
    contents: Contents,
    /// The frames of the VM's memory, as of its rest.
    memory: Vec<(Gpa, Option<Hpa>)>,
    /// A frame's pages that the disk had no room for yet.
    pending: Vec<HostRun>,
    /// Where the next pages go, and in the end the stream.
    at_bytes: u64,
    header: Option<Header>,
    /// It failed with the header written, which is taken back.
    undo: Option<Undo>,
}

impl Save {
    /// Pauses and holds the VM.
    pub fn begin(host: &'static Host, vm: &Arc<Vm>, partition: &str) -> Result<Self, Refusal> {
        let running = vm.must_run()?;
        if !running.has_started() {
            return Err((format!("{} has not started yet", vm.name()), "try again in a moment".into()));
        }
        if running.machine.memory().is_waiting() {
            return Err((format!("{}'s memory is still on its way here", vm.name()), "wait for that".into()));
        }
        let slot = Slot::claim(host, partition)?;
        let staged = slot.reach(&running).and_then(|()| Staging::new(&slot, HEADER_BYTES as u64));
        let staging = staged.inspect_err(|_| slot.release(host))?;
        let was_paused = running.order() == Order::Pause;
        if !running.hold() || !running.command(host, SERVICE_CPU, Order::Pause) {
            slot.release(host);
            return Err((format!("{} is being saved or stopped already", vm.name()), "see \"vm list\"".into()));
        }
        running.machine.close();
        let limits = Some(limits::to_travel(&vm.limits()));
        let (console, machine, frames, first) = Default::default();
        let contents = Contents { name: vm.name().into(), console, machine, limits, frames, first };
        Ok(Self {
            running,
            outcome: Arc::default(),
            slot,
            staging,
            step: Step::Rest,
            began_ns: host.clock.now_ns(),
            was_paused,
            contents,
            memory: Vec::new(),
            pending: Vec::new(),
            at_bytes: PAGES_AT_BYTES,
            header: None,
            undo: None,
        })
    }

    /// How it went, once that is known.
    pub fn outcome(&self) -> Arc<Start> {
        self.outcome.clone()
    }

    /// The life that it ends.
    pub fn life(&self) -> Weak<Running> {
        Arc::downgrade(&self.running)
    }

    /// Goes on.
    pub fn poll(&mut self, host: &'static Host) -> Next {
        while self.slot.ended(host).is_some() {}
        if let Some(undo) = &mut self.undo {
            return match undo.poll(host, &mut self.slot, &self.staging) {
                Undone::Waits(next) => next,
                Undone::Over { is_undone, refusal } => self.give_up(host, refusal, is_undone),
            };
        }
        let result = if self.slot.has_failed() {
            Err(io_error(self.slot.name()))
        } else if self.running.is_over() {
            Err((format!("{} was stopped", self.running.vm.name()), "see \"vm list\"".into()))
        } else {
            self.advance(host)
        };
        match result {
            Ok(next) => next,
            // The disk may still read the VM's memory.
            Err(_) if !self.slot.is_idle() => Next::Transfer,
            Err(refusal) if matches!(self.step, Step::CommitFlush | Step::End) => {
                self.undo = Some(Undo::new(&mut self.slot, &self.staging, &[0; HEADER_BYTES], refusal));
                Next::At(host.clock.now_ns())
            }
            Err(refusal) => self.give_up(host, refusal, true),
        }
    }

    fn advance(&mut self, host: &'static Host) -> Result<Next, Refusal> {
        let waits = if self.step == Step::Pages { self.slot.is_busy() } else { !self.slot.is_idle() };
        if waits {
            return Ok(Next::Transfer);
        }
        let now_ns = host.clock.now_ns();
        let taken = match self.step {
            Step::Rest => return self.rest(host, now_ns),
            Step::Clear => {
                self.staging.fill(&[0; HEADER_BYTES]);
                self.write_staged(host, 0, HEADER_BYTES as u64).map(|()| Step::ClearFlush)
            }
            Step::ClearFlush => self.slot.flush(host).map(|()| Step::Pages),
            Step::Pages => self.write_pages(host)?,
            Step::Stream => self.write_stream(host)?,
            Step::StreamFlush => self.slot.flush(host).map(|()| Step::Commit),
            Step::Commit => {
                let taken = self.commit(host);
                if self.slot.has_failed() {
                    // It was refused: nothing was written.
                    return Err(io_error(self.slot.name()));
                }
                taken.map(|()| Step::CommitFlush)
            }
            Step::CommitFlush => self.slot.flush(host).map(|()| Step::End),
            Step::End => return Ok(self.end(host)),
        };
        match taken {
            Ok(step) => {
                self.step = step;
                Ok(Next::At(now_ns))
            }
            // Only this job's own transfers, or another VM's, take the room.
            Err(Full) if self.slot.is_idle() => Ok(Next::At(now_ns + LOOK_NS)),
            Err(Full) => Ok(Next::Transfer),
        }
    }

    /// Waits until no CPU and no disk works for the VM and what its firmware wrote is kept, then saves all of it but its
    /// memory.
    fn rest(&mut self, host: &'static Host, now_ns: u64) -> Result<Next, Refusal> {
        let is_late = now_ns - self.began_ns > REST_NS;
        if !self.running.is_quiescent() || !self.running.keep_last(host) {
            let message = format!("{} does not come to rest", self.running.vm.name());
            return if is_late { Err((message, "see \"disk list\"".into())) } else { Ok(Next::At(now_ns + LOOK_NS)) };
        }
        let machine = &self.running.machine;
        let now = host.clock.now();
        let saved = self.running.with_threads(|threads| {
            let vcpus: Vec<_> = threads.iter_mut().map(|thread| machine.save_vcpu(thread, now)).collect();
            machine.save(&vcpus, now)
        });
        match saved {
            Some(Ok(bytes)) => {
                self.contents.machine = bytes;
                self.contents.first = self.first()?;
                self.memory = machine.memory().all_frames().collect();
                self.contents.console = self.running.vm.console_text();
                self.step = Step::Clear;
                Ok(Next::At(now_ns))
            }
            Some(Err(busy)) if is_late => {
                Err((format!("{} cannot be saved: {busy}", self.running.vm.name()), "see \"disk list\"".into()))
            }
            Some(Err(_)) | None => Ok(Next::At(now_ns + LOOK_NS)),
        }
    }

    /// The frames that the machine cannot be put together without.
    fn first(&self) -> Result<Vec<u64>, Refusal> {
        let machine = &self.running.machine;
        let mut pages = PageSet::new(machine.memory().pages_end()).ok_or_else(tracking::no_room)?;
        self.running.with_threads(|threads| machine.essential(threads.iter().map(|thread| &**thread), &mut pages));
        let has = |gpa: u64| {
            pages.next_from(gpa / PAGE_BYTES).is_some_and(|page| page < (gpa + LARGE_PAGE_BYTES) / PAGE_BYTES)
        };
        Ok(machine.memory().all_frames().map(|(gpa, _)| gpa.as_u64()).filter(|&gpa| has(gpa)).collect())
    }

    /// Writes the next frame's pages, but those that are zero.
    fn write_pages(&mut self, host: &'static Host) -> Result<Result<Step, Full>, Refusal> {
        if self.pending.is_empty() {
            let Some(&(gpa, hpa)) = self.memory.get(self.contents.frames.len()) else { return Ok(Ok(Step::Stream)) };
            let frame = self.look_at(gpa);
            // Memory that the guest gave up reads as zeroes: there is nothing to write.
            for (hpa, (first, count)) in hpa.into_iter().flat_map(|hpa| frame.runs().map(move |run| (hpa, run))) {
                let offset = first as u64 * PAGE_BYTES;
                push_runs(&mut self.pending, hpa.wrapping_add(offset), count as u64 * PAGE_BYTES);
            }
            self.contents.frames.push(frame);
        }
        let bytes: u64 = self.pending.iter().map(|run| u64::from(run.bytes)).sum();
        self.check_room(bytes)?;
        if bytes > 0 {
            if let Err(full) = self.slot.submit(host, 0, Op::Write, self.at_bytes, &self.pending) {
                return Ok(Err(full));
            }
            self.at_bytes += bytes;
            self.pending.clear();
        }
        Ok(Ok(Step::Pages))
    }

    /// Which pages of a frame are not zero, and their checksum.
    fn look_at(&self, gpa: Gpa) -> Frame {
        let mut present = [0u64; FRAME_PAGES / 64];
        let mut sum = Pages::new();
        let mut page = [0; PAGE_BYTES as usize];
        let memory = self.running.machine.memory();
        for index in 0..FRAME_PAGES {
            let at = gpa.wrapping_add(index as u64 * PAGE_BYTES);
            if !memory.is_zero_page(at.as_u64() / PAGE_BYTES).expect("its frames are memory") {
                memory.read(at, &mut page).expect("its frames are memory");
                present[index / 64] |= 1 << (index % 64);
                sum.add(&page);
            }
        }
        Frame { gpa: gpa.as_u64(), present, checksum: sum.finish() }
    }

    fn write_stream(&mut self, host: &'static Host) -> Result<Result<Step, Full>, Refusal> {
        let stream = self.contents.encode();
        let padded_bytes = (stream.len() as u64).next_multiple_of(PAGE_BYTES);
        self.check_room(padded_bytes)?;
        self.staging = Staging::new(&self.slot, padded_bytes)?;
        self.staging.fill(&stream);
        self.header = Some(Header { stream_at_bytes: self.at_bytes, stream_bytes: stream.len() as u64 });
        Ok(self.write_staged(host, self.at_bytes, padded_bytes).map(|()| Step::StreamFlush))
    }

    /// From here on the image is one.
    fn commit(&mut self, host: &'static Host) -> Result<(), Full> {
        let header = self.header.expect("the stream was written");
        self.staging.fill(&header.encode());
        self.write_staged(host, 0, HEADER_BYTES as u64)
    }

    fn write_staged(&mut self, host: &'static Host, at_bytes: u64, bytes: u64) -> Result<(), Full> {
        self.slot.submit(host, 0, Op::Write, at_bytes, &self.staging.runs(bytes))
    }

    fn check_room(&self, more_bytes: u64) -> Result<(), Refusal> {
        if self.at_bytes + more_bytes <= self.slot.bytes() {
            return Ok(());
        }
        let message = format!(
            "disk {} has {} MiB, which is too little for {}",
            self.slot.name(),
            self.slot.bytes() >> 20,
            self.running.vm.name()
        );
        Err((message, "choose a larger partition".to_string()))
    }

    fn end(&self, host: &'static Host) -> Next {
        self.slot.release(host);
        let saved_bytes = self.at_bytes + self.header.map_or(0, |header| header.stream_bytes);
        log::info!("{} is saved to {}: {} MiB", self.running.vm.name(), self.slot.name(), saved_bytes >> 20);
        self.outcome.settle(Ok(()));
        self.running.finish(host, SERVICE_CPU, Ending::Saved);
        Next::Over
    }

    /// The VM goes on, unless what was written may count as the VM.
    fn give_up(&self, host: &'static Host, (message, remedy): Refusal, is_void: bool) -> Next {
        let (vm, slot) = (self.running.vm.name(), self.slot.name());
        self.slot.release(host);
        self.running.machine.open();
        self.running.let_go(host);
        log::warn!("{vm} is not saved: {message}");
        if !is_void {
            log::error!("{vm} may be on disk {slot} as well: never restore it from there once it went on here");
        } else if !self.was_paused {
            self.running.command(host, SERVICE_CPU, Order::Run);
        }
        services::note_variables(host, SERVICE_CPU);
        self.outcome.settle(Err((message, remedy)));
        Next::Over
    }
}
