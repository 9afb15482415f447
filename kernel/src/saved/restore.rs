//! A VM on its way back from a partition, until it runs. What its machine cannot be put together without is read first;
//! the image is void before the guest runs, so that nobody restores it twice, and the rest of its memory follows from there
//! ([`super::rest`]).

use super::Next;
use super::reading::{Damaged, Reading};
use super::rest::Rest;
use super::undo::{Undo, Undone};
use crate::cpu_loop::InputHost;
use crate::host::Host;
use crate::services;
use crate::slot::{Full, Slot, Staging, io_error};
use crate::vm::{Ending, Order, Refusal, Running, Shape, Start, Vm, limits};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use block::Op;
use config::Limits;
use machine::Thread;
use state::image::{Contents, HEADER_BYTES, Header, PAGE_BYTES};

/// The services run on this CPU.
const SERVICE_CPU: usize = 0;
/// How soon a disk without room is asked again, and whether a life is taken back.
const LOOK_NS: u64 = 100_000;

/// What comes next. But for what is read first, each step begins when the transfers of the one before have ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Header,
    Stream,
    Build,
    First,
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
    limits: Option<Limits>,
    running: Option<Arc<Running>>,
    /// How the VM was before that.
    shape: Option<Box<Shape>>,
    /// Its memory, once there is a life for it.
    reading: Option<Reading>,
    threads: Vec<Thread>,
    /// Something is wrong with what was read, or it is given up for this reason.
    refusal: Option<Refusal>,
    /// It failed with the image void, which is to be one again.
    undo: Option<Undo>,
    /// It is given up, which is said once this life is taken back.
    given_up: Option<Weak<Running>>,
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
            limits: None,
            running: None,
            shape: None,
            reading: None,
            threads: Vec::new(),
            refusal: None,
            undo: None,
            given_up: None,
        })
    }

    /// How it went, once that is known.
    pub fn outcome(&self) -> Arc<Start> {
        self.outcome.clone()
    }

    /// Goes on.
    pub fn poll(&mut self, host: &'static Host) -> Next {
        if let (Some(life), Some(refusal)) = (&self.given_up, &self.refusal) {
            if life.strong_count() > 0 {
                return Next::At(host.clock.now_ns() + LOOK_NS);
            }
            self.vm.end_restoring();
            self.outcome.settle(Err(refusal.clone()));
            return Next::Over;
        }
        while let Some(id) = self.slot.ended(host) {
            if self.step == Step::First && !self.slot.has_failed() {
                self.check_frame(id as usize);
            }
        }
        if let Some(undo) = &mut self.undo {
            return match undo.poll(host, &mut self.slot, &self.staging) {
                Undone::Waits(next) => next,
                Undone::Over { is_undone, refusal } => self.give_up(host, refusal, is_undone),
            };
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
            Err(refusal) if matches!(self.step, Step::VoidFlush | Step::Run) => {
                let header = self.header.expect("it was read before its stream").encode();
                self.undo = Some(Undo::new(&mut self.slot, &self.staging, &header, refusal));
                Next::At(host.clock.now_ns())
            }
            Err(refusal) => self.give_up(host, refusal, true),
        }
    }

    fn advance(&mut self, host: &'static Host) -> Result<Next, Refusal> {
        let waits = if self.step == Step::First { self.slot.is_busy() } else { !self.slot.is_idle() };
        if waits {
            return Ok(Next::Transfer);
        }
        let now_ns = host.clock.now_ns();
        let taken = match self.step {
            Step::Header => self.read_staged(host, 0, HEADER_BYTES as u64).map(|()| Step::Stream),
            Step::Stream => self.read_stream(host)?,
            Step::Build => self.build(host).map(|()| Ok(Step::First))?,
            Step::First => self.read_first(host),
            Step::Machine => self.restore_machine(host).map(|()| Ok(Step::Void))?,
            Step::Void => {
                self.staging.fill(&[0; HEADER_BYTES]);
                let runs = self.staging.runs(HEADER_BYTES as u64);
                let taken = self.slot.submit(host, 0, Op::Write, 0, &runs);
                if self.slot.has_failed() {
                    // It was refused: nothing was written.
                    return Err(io_error(self.slot.name()));
                }
                taken.map(|()| Step::VoidFlush)
            }
            Step::VoidFlush => self.slot.flush(host).map(|()| Step::Run),
            Step::Run => {
                self.run(host);
                return Ok(Next::Runs);
            }
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
        let mut contents = contents.map_err(|what| self.unusable(&format!("{what}")))?;
        if contents.name != self.vm.name() {
            let remedy = format!("restore that one: vm restore {} --from {}", contents.name, self.slot.name());
            return Err((format!("disk {} holds {}", self.slot.name(), contents.name), remedy));
        }
        let plan = machine::plan_of(&contents.machine).map_err(|what| self.unusable(&format!("{what}")))?;
        let limits = contents.limits.map(limits::from_travel).transpose();
        self.limits = limits.map_err(|invalid| self.unusable(&invalid.message))?;
        self.shape = Some(Box::new(self.vm.shape()));
        let running = self.vm.start_held(host, &plan)?;
        let gpas = running.machine.memory().frames().map(|(gpa, _)| gpa.as_u64());
        let same_memory = gpas.eq(contents.frames.iter().map(|frame| frame.gpa));
        self.running = Some(running.clone());
        self.slot.reach(&running)?;
        plan.same_as(&running.machine.plan()).map_err(|unlike| self.unlike(&format!("{unlike}")))?;
        if !same_memory {
            return Err(self.unusable("its memory map is another machine's"));
        }
        let reading = Reading::start(running, &mut contents);
        self.reading = Some(reading.map_err(|what| (what, "stop another VM".to_string()))?);
        self.contents = Some(contents);
        Ok(())
    }

    /// Reads the next frame that must be here before the machine is put together.
    fn read_first(&mut self, host: &'static Host) -> Result<Step, Full> {
        let Some(reading) = &mut self.reading else { unreachable!("it was built") };
        if !reading.has_begun_first() {
            reading.begin(host, &mut self.slot)?;
            return Ok(Step::First);
        }
        if self.slot.is_idle() { Ok(Step::Machine) } else { Err(Full) }
    }

    /// Compares a frame that has arrived with what was saved.
    fn check_frame(&mut self, index: usize) {
        if let Some(Err(Damaged { gpa })) = self.reading.as_mut().map(|reading| reading.ended(index)) {
            let what = format!("its memory at {gpa:#x} does not match its checksum: it is damaged");
            self.refusal = Some(self.unusable(&what));
        }
    }

    fn restore_machine(&mut self, host: &'static Host) -> Result<(), Refusal> {
        let (Some(contents), Some(running)) = (&self.contents, &self.running) else { unreachable!("they were built") };
        let threads = running.restore(host, &contents.machine, 0);
        self.threads = threads.map_err(|error| self.unlike(&format!("{error}")))?;
        Ok(())
    }

    /// What is left to do once the VM runs.
    pub fn into_rest(self) -> Rest {
        let Some(reading) = self.reading else { unreachable!("it was built") };
        Rest::new(self.slot, reading)
    }

    /// Lets it run. Until all of its memory is here it is not saved again, moved or given devices.
    fn run(&mut self, host: &'static Host) {
        let Some(running) = self.running.take() else { unreachable!("it was built") };
        let threads = core::mem::take(&mut self.threads);
        if let Some(contents) = &self.contents {
            self.vm.recall_console(&contents.console);
        }
        running.begin(threads);
        if let Some(limits) = self.limits {
            self.vm.set_limits(host, limits);
        }
        self.vm.end_restoring();
        services::note_variables(host, SERVICE_CPU);
        running.command(host, SERVICE_CPU, Order::Run);
        running.machine.announce(&mut InputHost::new(host, SERVICE_CPU, &running));
        let mib = self.reading.as_ref().map_or(0, Reading::left_bytes).div_ceil(1 << 20);
        log::info!("{} is restored from {}; {mib} MiB of its memory follow", self.vm.name(), self.slot.name());
        self.outcome.settle(Ok(()));
    }

    /// Nothing is lost, unless the image could not be made one again.
    fn give_up(&mut self, host: &'static Host, (message, remedy): Refusal, has_image: bool) -> Next {
        self.slot.release(host);
        self.reading = None;
        self.threads.clear();
        let mut life = Weak::new();
        if let Some(running) = self.running.take() {
            if !has_image {
                log::error!("what was saved of {} on disk {} may be gone", self.vm.name(), self.slot.name());
                // So it is not taken for saved.
                running.let_go(host);
            }
            running.finish(host, SERVICE_CPU, Ending::NotStarted((message.clone(), remedy.clone())));
            life = Arc::downgrade(&running);
        }
        if let Some(shape) = self.shape.take() {
            self.vm.put_back(*shape);
        }
        (self.given_up, self.refusal) = (Some(life), Some((message, remedy)));
        Next::At(host.clock.now_ns())
    }

    fn unusable(&self, what: &str) -> Refusal {
        (format!("disk {}: {what}", self.slot.name()), "choose a partition that a VM was saved to".into())
    }

    fn unlike(&self, what: &str) -> Refusal {
        let message: String = format!("{} does not fit what is saved on {}: {what}", self.vm.name(), self.slot.name());
        (message, "define it as it was when it was saved".into())
    }
}
