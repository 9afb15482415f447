//! One life of a VM, from the order to start it until everything that it had is given back.
//!
//! The main type is [`Running`]. A life begins unprepared: its CPU zeroes its memory in steps and loads the kernel
//! ([`Running::prepare`]), so that nobody else waits for that. It ends in three steps: its CPU stops running it, the
//! disks finish what they still do in its memory, and then the host's services take everything back.

use super::memory::GuestFrames;
use super::{Refusal, Vm, note};
use crate::backend::SecondStage;
use crate::host::Host;
use crate::storage::Lent;
use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use machine::{End, Kernel, Machine, Thread};
use spin::Mutex;
use switch::PortId;
use trace::RunState;
use vcpu::Vcpu;
use virtio::blk::Outcome;

/// What a running VM was told to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Order {
    Run,
    Pause,
    Kill,
    Reset,
}

/// Why a life ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The guest, or an order, ended it.
    Ended(End),
    /// It never ran.
    NotStarted(Refusal),
}

/// How a start went, for whoever ordered it.
#[derive(Default)]
pub struct Start(Mutex<Option<Result<(), Refusal>>>);

/// One life of a VM.
pub struct Running {
    pub vm: Arc<Vm>,
    pub machine: Box<Machine>,
    /// The CPU that it runs on.
    pub cpu: usize,
    pub started_ns: u64,
    pub disks: Vec<Lent>,
    pub ports: Vec<PortId>,
    pub io: Mutex<Vec<DiskIo>>,
    /// Time on a CPU, and time that it was ready and had none.
    pub cpu_ns: AtomicU64,
    pub steal_ns: AtomicU64,
    /// How its start went.
    pub start: Arc<Start>,
    /// The start also made the VM, and is to be undone as a whole.
    pub is_first: bool,
    /// Its vCPU, for its own CPU alone.
    stage: Mutex<Stage>,
    is_prepared: AtomicBool,
    order: AtomicU8,
    /// It sleeps until this moment; 0 when it does not.
    sleep_until_ns: AtomicU64,
    /// Since when it is ready, unless it sleeps.
    ready_since_ns: AtomicU64,
    /// Dropped after everything that points into them.
    _second_stage: SecondStage,
    frames: GuestFrames,
}

/// What a life is made of.
pub struct Parts {
    pub machine: Box<Machine>,
    pub vcpu: Box<dyn Vcpu>,
    pub second_stage: SecondStage,
    pub frames: GuestFrames,
    pub disks: Vec<Lent>,
    pub ports: Vec<PortId>,
    pub cpu: usize,
    pub now_ns: u64,
    pub is_first: bool,
}

/// How far a life has got.
enum Stage {
    /// Its memory is zeroed up to this frame.
    Preparing { zeroed: usize, vcpu: Box<dyn Vcpu> },
    /// It runs.
    Ready(Box<Thread>),
    /// The vCPU is on its way from one to the other, or the kernel was not loaded.
    Nothing,
}

/// What a disk did for a VM.
#[derive(Clone, Copy, Default)]
pub struct DiskIo {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub errors: u64,
}

impl Start {
    /// How it went; `None` while that is open.
    pub fn outcome(&self) -> Option<Result<(), Refusal>> {
        self.0.lock().clone()
    }

    /// Says how it went. The first word counts.
    pub fn settle(&self, outcome: Result<(), Refusal>) {
        self.0.lock().get_or_insert(outcome);
    }
}

impl Running {
    /// A life of `vm`, its memory not prepared.
    pub fn new(vm: Arc<Vm>, parts: Parts) -> Self {
        let Parts { machine, vcpu, second_stage, frames, disks, ports, cpu, now_ns, is_first } = parts;
        Self {
            vm,
            machine,
            cpu,
            started_ns: now_ns,
            io: Mutex::new(alloc::vec![DiskIo::default(); disks.len()]),
            disks,
            ports,
            cpu_ns: AtomicU64::new(0),
            steal_ns: AtomicU64::new(0),
            start: Arc::default(),
            is_first,
            stage: Mutex::new(Stage::Preparing { zeroed: 0, vcpu }),
            is_prepared: AtomicBool::new(false),
            order: AtomicU8::new(Order::Run as u8),
            sleep_until_ns: AtomicU64::new(0),
            ready_since_ns: AtomicU64::new(now_ns),
            _second_stage: second_stage,
            frames,
        }
    }

    /// Goes on with what comes before the guest's first instruction, until about `until_ns`; says whether the guest
    /// can run now. At least one step is taken. Only its own CPU calls this.
    pub fn prepare(&self, host: &Host, until_ns: u64) -> Result<bool, Refusal> {
        if self.is_prepared.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let mut stage = self.stage.lock();
        let Stage::Preparing { zeroed, .. } = &mut *stage else { return Ok(false) };
        while self.frames.zero(*zeroed) {
            *zeroed += 1;
            if host.clock.now_ns() >= until_ns {
                return Ok(false);
            }
        }
        let Stage::Preparing { vcpu, .. } = core::mem::replace(&mut *stage, Stage::Nothing) else { return Ok(false) };
        let state = self.machine.load(&self.kernel(host)?).map_err(|error| (error.0, "see \"modules\"".to_string()))?;
        *stage = Stage::Ready(Box::new(Thread::new(0, vcpu, &state, host.clock.tsc_khz() as u32, cpu::tsc().wrapping_neg())));
        self.is_prepared.store(true, Ordering::Relaxed);
        self.start.settle(Ok(()));
        Ok(true)
    }

    /// Calls `act` with the vCPU's thread, if it is prepared. Only its own CPU calls this.
    pub fn with_thread<R>(&self, act: impl FnOnce(&mut Thread) -> R) -> Option<R> {
        match &mut *self.stage.lock() {
            Stage::Ready(thread) => Some(act(thread)),
            Stage::Preparing { .. } | Stage::Nothing => None,
        }
    }

    fn kernel<'a>(&'a self, host: &Host) -> Result<Kernel<'a>, Refusal> {
        let spec = &self.vm.spec;
        Ok(Kernel {
            image: super::module(host, &spec.kernel)?,
            initrd: spec.initrd.as_deref().map(|name| super::module(host, name)).transpose()?,
            command_line: &spec.command_line,
        })
    }

    /// What it was told.
    pub fn order(&self) -> Order {
        order_of(self.order.load(Ordering::Acquire))
    }

    /// Tells it something; says whether it will be done. What ends a life is not taken back: a kill stands, and a reset
    /// gives way to a kill only. `from` is the CPU that calls.
    pub fn command(&self, host: &Host, from: usize, order: Order) -> bool {
        let gives_way = |present: u8| match order_of(present) {
            Order::Run | Order::Pause => true,
            Order::Reset => matches!(order, Order::Kill | Order::Reset),
            Order::Kill => order == Order::Kill,
        };
        let next = |present: u8| gives_way(present).then_some(order as u8);
        if self.order.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).is_err() {
            return false;
        }
        let state = match order {
            Order::Run => RunState::Running,
            Order::Pause => RunState::Paused,
            Order::Kill | Order::Reset => RunState::Stopped,
        };
        note(self.vm.id, state);
        self.ready_since_ns.store(host.clock.now_ns(), Ordering::Relaxed);
        self.wake(host, from);
        true
    }

    /// Ends its sleep, and makes its CPU look around; says whether it slept. `from` is the CPU that calls.
    pub fn wake(&self, host: &Host, from: usize) -> bool {
        let slept = self.sleep_until_ns.swap(0, Ordering::SeqCst) != 0;
        if slept {
            self.ready_since_ns.store(host.clock.now_ns(), Ordering::Relaxed);
        }
        host.cpus.kick(from, self.cpu);
        slept
    }

    /// Lets it sleep until a moment, unless mail came meanwhile.
    pub fn sleep(&self, until_ns: Option<u64>) {
        // The store, the mailbox's own flag and a poster's wake-up are in one order that all CPUs agree on: mail that
        // was posted before the store is seen here, and mail posted after it wakes.
        self.sleep_until_ns.store(until_ns.unwrap_or(u64::MAX), Ordering::SeqCst);
        if self.machine.has_mail(0) {
            self.sleep_until_ns.store(0, Ordering::SeqCst);
        }
    }

    /// When it can run next; `None` while it may not.
    pub fn ready_at_ns(&self) -> Option<u64> {
        match self.order() {
            Order::Run => Some(self.sleep_until_ns.load(Ordering::Acquire)),
            Order::Pause => None,
            Order::Kill | Order::Reset => Some(0),
        }
    }

    /// Books the time that it was ready and had no CPU.
    pub fn begin_slice(&self, now_ns: u64) {
        // A moment to sleep until that has come is when it became ready.
        let slept_until_ns = self.sleep_until_ns.swap(0, Ordering::SeqCst);
        let since_ns = slept_until_ns.max(self.ready_since_ns.load(Ordering::Relaxed));
        self.steal_ns.fetch_add(now_ns.saturating_sub(since_ns), Ordering::Relaxed);
    }

    /// Books the time that it had a CPU.
    pub fn end_slice(&self, start_ns: u64, now_ns: u64) {
        self.cpu_ns.fetch_add(now_ns.saturating_sub(start_ns), Ordering::Relaxed);
        self.ready_since_ns.store(now_ns, Ordering::Relaxed);
    }

    /// Counts a transfer that ended.
    pub fn count(&self, disk: usize, op: block::Op, bytes: u64) {
        let io = &mut self.io.lock()[disk];
        match op {
            block::Op::Read => (io.reads, io.read_bytes) = (io.reads + 1, io.read_bytes + bytes),
            block::Op::Write | block::Op::WriteZeroes => {
                (io.writes, io.written_bytes) = (io.writes + 1, io.written_bytes + bytes);
            }
            block::Op::Flush => io.flushes += 1,
            block::Op::Discard => {}
        }
    }

    /// Counts a transfer that failed.
    pub fn count_outcome(&self, disk: usize, outcome: Outcome) {
        if outcome != Outcome::Ok {
            self.io.lock()[disk].errors += 1;
        }
    }
}

fn order_of(order: u8) -> Order {
    match order {
        order if order == Order::Run as u8 => Order::Run,
        order if order == Order::Pause as u8 => Order::Pause,
        order if order == Order::Kill as u8 => Order::Kill,
        _ => Order::Reset,
    }
}
