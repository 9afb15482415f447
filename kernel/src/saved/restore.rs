//! A VM on its way back from a partition. Its memory is read into the frames of a life that is held; the image is void
//! before the guest runs, so that nobody restores it twice.

use super::Next;
use crate::cpu_loop::InputHost;
use crate::host::Host;
use crate::services;
use crate::slot::{Full, Slot, Staging, io_error, push_runs};
use crate::vm::{Ending, Order, Refusal, Running, Start, Vm};
use addr::Hpa;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::Op;
use machine::Thread;
use state::image::{Contents, HEADER_BYTES, Header, PAGE_BYTES, PAGES_AT_BYTES, Pages};

/// The services run on this CPU.
const SERVICE_CPU: usize = 0;
/// How soon a disk without room is asked again.
const LOOK_NS: u64 = 100_000;

/// What comes next. But for the pages, each step begins when the transfers of the one before have ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Header,
    Stream,
    Build,
    Pages,
    Machine,
    Void,
    VoidFlush,
    Run,
}

/// The job.
pub struct Restore {
    vm: Arc<Vm>,
    outcome: Arc<Start>,
    slot: Slot,
    staging: Staging,
    step: Step,
    header: Option<Header>,
    contents: Option<Contents>,
    running: Option<Arc<Running>>,
    /// Where the guest's frames are.
    memory: Vec<Hpa>,
    /// How many frames are read or on their way, and where the next one's pages are.
    frames: usize,
    at_bytes: u64,
    threads: Vec<Thread>,
    /// Something is wrong with what was read.
    refusal: Option<Refusal>,
}

impl Restore {
    /// Takes the partition.
    pub fn begin(host: &'static Host, vm: &Arc<Vm>, partition: &str) -> Result<Self, Refusal> {
        let slot = Slot::claim(host, partition)?;
        let staging = Staging::new(&slot, HEADER_BYTES as u64).inspect_err(|_| slot.release(host))?;
        Ok(Self {
            vm: vm.clone(),
            outcome: Arc::default(),
            slot,
            staging,
            step: Step::Header,
            header: None,
            contents: None,
            running: None,
            memory: Vec::new(),
            frames: 0,
            at_bytes: PAGES_AT_BYTES,
            threads: Vec::new(),
            refusal: None,
        })
    }

    /// How it went, once that is known.
    pub fn outcome(&self) -> Arc<Start> {
        self.outcome.clone()
    }

    /// Goes on.
    pub fn poll(&mut self, host: &'static Host) -> Next {
        while let Some(id) = self.slot.ended(host) {
            if self.step == Step::Pages || self.step == Step::Machine {
                self.check_frame(id as usize);
            }
        }
        let is_stopped = self.running.as_ref().is_some_and(|running| running.is_over());
        let result = if self.slot.has_failed() {
            Err(io_error(self.slot.name()))
        } else if let Some(refusal) = self.refusal.clone() {
            Err(refusal)
        } else if is_stopped {
            Err((format!("{} was stopped", self.vm.name()), "restore it again".into()))
        } else {
            self.advance(host)
        };
        match result {
            Ok(next) => next,
            // The disk may still write to the VM's memory.
            Err(_) if !self.slot.is_idle() => Next::Transfer,
            Err(refusal) => self.give_up(host, refusal),
        }
    }

    fn advance(&mut self, host: &'static Host) -> Result<Next, Refusal> {
        let waits = if self.step == Step::Pages { self.slot.is_busy() } else { !self.slot.is_idle() };
        if waits {
            return Ok(Next::Transfer);
        }
        let now_ns = host.clock.now_ns();
        let taken = match self.step {
            Step::Header => self.read_staged(host, 0, HEADER_BYTES as u64).map(|()| Step::Stream),
            Step::Stream => self.read_stream(host)?,
            Step::Build => self.build(host).map(|()| Ok(Step::Pages))?,
            Step::Pages => self.read_pages(host)?,
            Step::Machine => self.restore_machine(host).map(|()| Ok(Step::Void))?,
            Step::Void => {
                self.staging.fill(&[0; HEADER_BYTES]);
                let runs = self.staging.runs(HEADER_BYTES as u64);
                self.slot.submit(host, 0, Op::Write, 0, &runs).map(|()| Step::VoidFlush)
            }
            Step::VoidFlush => self.slot.flush(host).map(|()| Step::Run),
            Step::Run => return Ok(self.run(host)),
        };
        match taken {
            Ok(step) => {
                self.step = step;
                Ok(Next::At(now_ns))
            }
            Err(Full) if self.slot.is_idle() => Ok(Next::At(now_ns + LOOK_NS)),
            Err(Full) => Ok(Next::Transfer),
        }
    }

    fn read_staged(&mut self, host: &'static Host, at_bytes: u64, bytes: u64) -> Result<(), Full> {
        self.slot.submit(host, 0, Op::Read, at_bytes, &self.staging.runs(bytes))
    }

    /// Reads the header that has arrived, and asks for the stream.
    fn read_stream(&mut self, host: &'static Host) -> Result<Result<Step, Full>, Refusal> {
        let mut block = [0; HEADER_BYTES];
        self.staging.take(&mut block);
        let header = Header::parse(&block, self.slot.bytes());
        let header = header.map_err(|what| self.unusable(&format!("{what}")))?;
        let padded_bytes = header.stream_bytes.next_multiple_of(PAGE_BYTES);
        // The end of a partition need not be the end of a page.
        let bytes = padded_bytes.min(self.slot.bytes() - header.stream_at_bytes);
        self.staging = Staging::new(&self.slot, bytes)?;
        self.header = Some(header);
        Ok(self.read_staged(host, header.stream_at_bytes, bytes).map(|()| Step::Build))
    }

    /// Reads the stream that has arrived, and makes a life for what it says.
    fn build(&mut self, host: &'static Host) -> Result<(), Refusal> {
        let header = self.header.expect("it was read before its stream");
        let mut stream = Vec::new();
        let no_memory = |_| ("Pollux has no memory left to read it".into(), "stop or delete a VM first".into());
        stream.try_reserve_exact(header.stream_bytes as usize).map_err(no_memory)?;
        stream.resize(header.stream_bytes as usize, 0);
        self.staging.take(&mut stream);
        let contents = Contents::parse(&stream, header.pages_bytes());
        let contents = contents.map_err(|what| self.unusable(&format!("{what}")))?;
        if contents.name != self.vm.name() {
            let remedy = format!("restore that one: vm restore {} --from {}", contents.name, self.slot.name());
            return Err((format!("disk {} holds {}", self.slot.name(), contents.name), remedy));
        }
        let plan = machine::plan_of(&contents.machine).map_err(|what| self.unusable(&format!("{what}")))?;
        let running = self.vm.start_held(host, &plan)?;
        self.memory = running.machine.memory().frames().map(|(_, hpa)| hpa).collect();
        let gpas = running.machine.memory().frames().map(|(gpa, _)| gpa.as_u64());
        let same_memory = gpas.eq(contents.frames.iter().map(|frame| frame.gpa));
        self.running = Some(running.clone());
        self.slot.reach(&running)?;
        plan.same_as(&running.machine.plan()).map_err(|unlike| self.unlike(&format!("{unlike}")))?;
        if !same_memory {
            return Err(self.unusable("its memory map is another machine's"));
        }
        self.contents = Some(contents);
        Ok(())
    }

    /// Zeroes the next frame and reads the pages of it that are on the disk.
    fn read_pages(&mut self, host: &'static Host) -> Result<Result<Step, Full>, Refusal> {
        let (Some(contents), Some(running)) = (&self.contents, &self.running) else { unreachable!("they were built") };
        let Some((frame, &hpa)) = contents.frames.get(self.frames).zip(self.memory.get(self.frames)) else {
            return Ok(Ok(Step::Machine));
        };
        running.zero_frame(self.frames);
        let mut runs = Vec::new();
        for (first, count) in frame.runs() {
            push_runs(&mut runs, hpa.wrapping_add(first as u64 * PAGE_BYTES), count as u64 * PAGE_BYTES);
        }
        if !runs.is_empty() {
            if let Err(full) = self.slot.submit(host, self.frames as u64, Op::Read, self.at_bytes, &runs) {
                return Ok(Err(full));
            }
            self.at_bytes += u64::from(frame.pages()) * PAGE_BYTES;
        }
        self.frames += 1;
        Ok(Ok(Step::Pages))
    }

    /// Compares the pages of a frame that have arrived with what was saved.
    fn check_frame(&mut self, index: usize) {
        let (Some(contents), Some(running)) = (&self.contents, &self.running) else { return };
        let frame = &contents.frames[index];
        let mut sum = Pages::new();
        let mut page = [0; PAGE_BYTES as usize];
        for (first, count) in frame.runs() {
            for index in first..first + count {
                let at = addr::Gpa::new(frame.gpa).wrapping_add(index as u64 * PAGE_BYTES);
                running.machine.memory().read(at, &mut page).expect("its frames are memory");
                sum.add(&page);
            }
        }
        if sum.finish() != frame.checksum {
            let what = format!("its memory at {:#x} does not match its checksum: it is damaged", frame.gpa);
            self.refusal = Some(self.unusable(&what));
        }
    }

    fn restore_machine(&mut self, host: &'static Host) -> Result<(), Refusal> {
        let (Some(contents), Some(running)) = (&self.contents, &self.running) else { unreachable!("they were built") };
        let threads = running.machine.restore(&contents.machine, running.take_vcpus(), host.clock.now(), 0);
        self.threads = threads.map_err(|error| self.unlike(&format!("{error}")))?;
        self.vm.console.lock().push(&contents.console);
        Ok(())
    }

    fn run(&mut self, host: &'static Host) -> Next {
        self.slot.release(host);
        let Some(running) = self.running.take() else { unreachable!("it was built") };
        let threads = core::mem::take(&mut self.threads);
        running.begin(threads);
        running.let_go();
        self.vm.end_restoring();
        running.note_given_up();
        services::note_given_up(host, SERVICE_CPU);
        services::note_variables(host, SERVICE_CPU);
        running.command(host, SERVICE_CPU, Order::Run);
        running.machine.announce(&mut InputHost::new(host, SERVICE_CPU, &running));
        log::info!("{} is restored from {}", self.vm.name(), self.slot.name());
        self.outcome.settle(Ok(()));
        Next::Over
    }

    /// Nothing is lost: the image stays.
    fn give_up(&mut self, host: &'static Host, (message, remedy): Refusal) -> Next {
        self.slot.release(host);
        if let Some(running) = self.running.take() {
            running.finish(host, SERVICE_CPU, Ending::NotStarted((message.clone(), remedy.clone())));
        }
        self.vm.end_restoring();
        self.outcome.settle(Err((message, remedy)));
        Next::Over
    }

    fn unusable(&self, what: &str) -> Refusal {
        (format!("disk {}: {what}", self.slot.name()), "choose a partition that a VM was saved to".into())
    }

    fn unlike(&self, what: &str) -> Refusal {
        let message: String = format!("{} does not fit what is saved on {}: {what}", self.vm.name(), self.slot.name());
        (message, "define it as it was when it was saved".into())
    }
}
