//! One life's variables on their partition: read once, written whenever the firmware wrote.

use super::Next;
use crate::host::Host;
use crate::slot::{Full, Slot, Staging, io_error};
use crate::storage::Identity;
use crate::vm::{Order, Refusal, Running};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use block::Op;
use core::sync::atomic::Ordering;
use state::variables::{BLOCK_BYTES, CONTENT_BYTES_MAX, COPY_BYTES, Found, STORE_BYTES, Store, Unusable, Write};

/// How long the firmware gets to write more before what it wrote is written: one variable takes several writes of its.
const SETTLE_NS: u64 = 20_000_000;
/// How soon a disk without room is asked again.
const LOOK_NS: u64 = 100_000;
/// How soon it is looked again whether there is memory to write from.
const MEMORY_NS: u64 = 1_000_000_000;

/// The partition and what is under way there.
pub struct Keeper {
    slot: Slot,
    staging: Option<Staging>,
    /// None before the partition was read.
    store: Option<Store>,
    /// The size of the flash.
    bytes: usize,
    /// What the flash holds comes from elsewhere: the life was restored, or moved here.
    has_state: bool,
    step: Step,
}

/// What a keeper is called for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// To write what the firmware wrote, soon after.
    Follow,
    /// To write all of it, at once: the guest stands still, and goes on from there here or elsewhere.
    Finish,
    /// The same, and nothing comes after it: the guest runs no more.
    End,
}

/// What comes next. Each step begins when the transfer of the one before has ended.
enum Step {
    /// Nothing before the life runs.
    Wait,
    Read,
    Take,
    Rest,
    /// The firmware may write more until this moment.
    Settle(u64),
    Blocks(Write),
    Header(Write),
    Flush(Write),
    Written(Write),
    /// Nothing is kept any more.
    Over,
}

impl Keeper {
    /// Takes the partition called `name` for a flash of `bytes`, or says why it cannot serve.
    pub fn new(host: &Host, name: &str, bytes: usize, has_state: bool) -> Result<Self, String> {
        if bytes > CONTENT_BYTES_MAX {
            return Err(format!("{} KiB of them are too much", bytes >> 10));
        }
        let slot = Slot::claim(host, name).map_err(|(message, _)| message)?;
        if slot.bytes() < STORE_BYTES as u64 {
            slot.release(host);
            return Err(format!("{name} has {} KiB and must have {}", slot.bytes() >> 10, STORE_BYTES >> 10));
        }
        let step = if has_state { Step::Wait } else { Step::Read };
        Ok(Self { slot, staging: None, store: None, bytes, has_state, step })
    }

    /// Its partition's name.
    pub fn place(&self) -> &str {
        self.slot.name()
    }

    /// Which partition that is, while it serves.
    pub fn identity(&self, host: &Host) -> Option<Identity> {
        (!matches!(self.step, Step::Over)).then(|| self.slot.identity(host))
    }

    /// Whether nothing is under way on its partition.
    pub fn is_idle(&mut self, host: &Host) -> bool {
        while self.slot.ended(host).is_some() {}
        self.slot.is_idle()
    }

    /// Gives the partition back, on which nothing is under way.
    pub fn release(self, host: &Host) {
        self.slot.release(host);
    }

    /// Goes on.
    pub fn poll(&mut self, host: &'static Host, running: &Running, task: Task) -> Next {
        let is_at_once = task != Task::Follow;
        // What came from elsewhere and went on here is written however short its life was.
        let is_over = task == Task::End && !(self.has_state && running.has_begun());
        loop {
            if !self.is_idle(host) {
                return Next::Transfer;
            }
            if self.slot.has_failed() && !matches!(self.step, Step::Over) {
                self.fail(running);
            }
            let now_ns = host.clock.now_ns();
            let taken = match core::mem::replace(&mut self.step, Step::Over) {
                Step::Over => return Next::Nothing,
                Step::Wait | Step::Read | Step::Take if is_over => return Next::Nothing,
                step @ (Step::Wait | Step::Rest | Step::Settle(_)) if !is_at_once && !may_write(running) => {
                    self.step = step;
                    return Next::Nothing;
                }
                Step::Wait => Ok(Step::Read),
                Step::Read => self.read(host, running, task),
                Step::Take => Ok(self.take(running)),
                Step::Rest if !self.has_work(running) => {
                    self.step = Step::Rest;
                    return Next::Nothing;
                }
                Step::Rest => Ok(Step::Settle(now_ns + SETTLE_NS)),
                Step::Settle(until_ns) if now_ns < until_ns && !is_at_once => {
                    self.step = Step::Settle(until_ns);
                    return Next::At(until_ns);
                }
                Step::Settle(_) => self.begin_write(running, task),
                Step::Blocks(write) => self.write_blocks(host, write),
                Step::Header(write) => self.write_header(host, write),
                Step::Flush(write) => match self.slot.flush(host) {
                    Ok(()) => Ok(Step::Written(write)),
                    Err(Full) => Err((Step::Flush(write), LOOK_NS)),
                },
                Step::Written(write) => Ok(self.written(write)),
            };
            match taken {
                Ok(step) => self.step = step,
                Err((step, wait_ns)) => {
                    self.step = step;
                    return Next::At(now_ns + wait_ns);
                }
            }
        }
    }

    fn read(&mut self, host: &Host, running: &Running, task: Task) -> Result<Step, (Step, u64)> {
        let staging = match Staging::new(&self.slot, STORE_BYTES as u64) {
            Ok(staging) => staging,
            Err(_) if self.has_state => return self.without_memory(running, Step::Read, task),
            Err(refusal) => return Ok(refuse(running, refusal)),
        };
        let runs = staging.runs(STORE_BYTES as u64);
        self.staging = Some(staging);
        self.slot.submit(host, 0, Op::Read, 0, &runs).map(|()| Step::Take).map_err(|Full| (Step::Read, LOOK_NS))
    }

    /// Looks at what was read, and puts it where the firmware reads it.
    fn take(&mut self, running: &Running) -> Step {
        let staging = self.staging.take().expect("it was read into");
        let copies = [0, COPY_BYTES].map(|at| {
            let mut copy = alloc::vec![0; BLOCK_BYTES + self.bytes];
            staging.take_at(at as u64, &mut copy);
            copy
        });
        match Store::read([&copies[0], &copies[1]], self.bytes) {
            Ok(found) => self.accept(running, found),
            Err(unusable) => {
                let place = self.place();
                let why = match unusable {
                    // It was read as far as this firmware's variables would go.
                    Unusable::Foreign => format!("{place} holds something else; \"vm erase-variables\" makes room"),
                    Unusable::Version(_) | Unusable::Size(_) => format!("of {place}, {unusable}"),
                };
                running.vm.tell_place(place, Some(&why));
                running.keeping.is_loading.store(false, Ordering::Release);
                Step::Over
            }
        }
    }

    fn accept(&mut self, running: &Running, found: Found) -> Step {
        let Found { mut store, content, damaged } = found;
        let (name, place) = (running.vm.name(), self.place());
        match damaged.iter().position(|&damaged| damaged) {
            Some(copy) if content.is_some() => {
                log::warn!("{name}: copy {copy} of its UEFI variables on {place} is damaged: the other one serves");
            }
            Some(_) => {
                log::warn!("{name}: its UEFI variables on {place} are damaged: it starts with the firmware's own");
            }
            None => {}
        }
        if self.has_state {
            // What was saved counts, and mostly is what is there.
            if let Some(kept) = content
                && let Some(flash) = running.machine.with_variables(|flash| flash.content(0..kept.len()))
            {
                store.note_differences(&kept, &flash);
            }
        } else if let Some(content) = content {
            running.machine.with_variables(|flash| flash.load(&content));
        }
        self.store = Some(store);
        running.keeping.is_loading.store(false, Ordering::Release);
        Step::Rest
    }

    /// Whether the flash holds what the disk does not.
    fn has_work(&self, running: &Running) -> bool {
        let is_behind = self.store.as_ref().is_some_and(|store| store.next().is_some());
        is_behind || running.machine.with_variables(|flash| flash.has_written()) == Some(true)
    }

    /// There is no memory to transfer from or to: a life that ends does not wait for some, which it may have itself.
    fn without_memory(&self, running: &Running, step: Step, task: Task) -> Result<Step, (Step, u64)> {
        if task != Task::End {
            return Err((step, MEMORY_NS));
        }
        log::error!("{}: there is no memory to write the last of its UEFI variables", running.vm.name());
        Ok(Step::Over)
    }

    /// Takes what is to be written out of the flash.
    fn begin_write(&mut self, running: &Running, task: Task) -> Result<Step, (Step, u64)> {
        let Ok(staging) = Staging::new(&self.slot, COPY_BYTES as u64) else {
            return self.without_memory(running, Step::Rest, task);
        };
        let Some(store) = &mut self.store else { return Ok(Step::Over) };
        let taken = running.machine.with_variables(|flash| {
            while let Some(range) = flash.take_written() {
                store.note(range);
            }
            let write = store.next()?;
            let bytes = flash.content(write.content());
            Some((write, bytes))
        });
        let Some((mut write, bytes)) = taken.flatten() else { return Ok(Step::Rest) };
        staging.fill(&store.seal(&mut write, &bytes));
        staging.fill_at(BLOCK_BYTES as u64, &bytes);
        self.staging = Some(staging);
        Ok(Step::Blocks(write))
    }

    fn write_blocks(&mut self, host: &Host, write: Write) -> Result<Step, (Step, u64)> {
        let bytes = write.content().len() as u64;
        match self.submit_write(host, write.blocks_at(), BLOCK_BYTES as u64, bytes) {
            Ok(()) => Ok(Step::Header(write)),
            Err(Full) => Err((Step::Blocks(write), LOOK_NS)),
        }
    }

    fn write_header(&mut self, host: &Host, write: Write) -> Result<Step, (Step, u64)> {
        match self.submit_write(host, write.header_at(), 0, BLOCK_BYTES as u64) {
            Ok(()) => Ok(Step::Flush(write)),
            Err(Full) => Err((Step::Header(write), LOOK_NS)),
        }
    }

    fn submit_write(&mut self, host: &Host, at: usize, offset: u64, bytes: u64) -> Result<(), Full> {
        let runs = self.staging.as_ref().map_or(Vec::new(), |staging| staging.runs_at(offset, bytes));
        self.slot.submit(host, 0, Op::Write, at as u64, &runs)
    }

    fn written(&mut self, write: Write) -> Step {
        self.staging = None;
        if let Some(store) = &mut self.store {
            store.written(write);
        }
        Step::Rest
    }

    /// The partition's disk failed: a guest that has not started does not, another one goes on.
    fn fail(&mut self, running: &Running) {
        self.staging = None;
        let (message, remedy) = io_error(self.place());
        running.vm.tell_place(self.place(), Some(&message));
        self.step =
            if self.store.is_none() && !self.has_state { refuse(running, (message, remedy)) } else { Step::Over };
    }
}

/// The guest cannot start.
fn refuse(running: &Running, refusal: Refusal) -> Step {
    running.keeping.refusal.lock().get_or_insert(refusal);
    Step::Over
}

/// Whether what the guest's firmware keeps is this host's to write: not of a VM that has not come, or stands still to go.
fn may_write(running: &Running) -> bool {
    let leaves = running.is_moving() && running.order() == Order::Pause;
    running.has_started() && !running.is_arriving() && !leaves
}
