//! One life of a VM, from the order to start it until everything that it had is given back.
//!
//! The main type is [`Running`]. A life begins unprepared: the boot vCPU's CPU loads the kernel
//! ([`Running::prepare`]), so that nobody else waits for that. It ends in three steps: the CPUs stop running its
//! vCPUs, the last of them hands it over ([`Running::leave`]), the disks finish what they still do in its memory, and then
//! the host's services take everything back.

use super::memory::GuestFrames;
use super::place::Place;
use super::release::Releasing;
use super::variables::Keeping;
use super::{Refusal, Vm, note};
use crate::backend::SecondStage;
use crate::cpu_loop::InputHost;
use crate::host::Host;
use crate::services;
use crate::storage::Lent;
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use config::{Limits, ModuleSpec, Name, Size};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use iommu::Source;
use limit::Limit;
use machine::{End, ExitCounters, IoLimits, Kernel, Machine, Module, RestoreError, Thread};
use nested::OutOfMemory;
use spin::{Mutex, MutexGuard};
use switch::PortId;
use trace::RunState;
use vcpu::{Vcpu, VcpuState};
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
    /// Another host runs it now.
    Moved,
    /// It never ran.
    NotStarted(Refusal),
    /// It was saved, and goes on where it is restored.
    Saved,
}

/// What another host has of a VM that is on its way there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Away {
    /// The right to run it: whether it does is not known here.
    Given,
    /// It runs it, and lacks memory that is here.
    Serving,
}

/// How a start went, for whoever ordered it.
#[derive(Default)]
pub struct Start(Mutex<Option<Result<(), Refusal>>>);

/// One life of a VM.
pub struct Running {
    pub vm: Arc<Vm>,
    pub machine: Box<Machine>,
    /// Its vCPUs; the first is the boot vCPU.
    pub vcpus: Box<[Place]>,
    pub started_ns: u64,
    /// Its disks, by their numbers in the machine; none where one has left.
    bays: Mutex<Vec<Option<Bay>>>,
    /// Its cards' places in the network, in the same way; none before it runs here.
    pub ports: Mutex<Vec<PortId>>,
    /// How its start went.
    pub start: Arc<Start>,
    /// The start also made the VM, and is to be undone as a whole.
    pub is_first: bool,
    is_prepared: AtomicBool,
    order: AtomicU8,
    /// Who saves or restores it gives its orders.
    is_held: AtomicBool,
    /// Its memory is read from where it was saved while it runs.
    is_reading: AtomicBool,
    /// Why it ends; the first reason counts.
    ending: Mutex<Option<Ending>>,
    is_over: AtomicBool,
    /// It is on its way between hosts: nobody else gives it orders.
    is_moving: AtomicBool,
    /// Another host has it, by its name.
    away: Mutex<Option<(Away, Name)>>,
    /// It arrives, and has never run here.
    is_arriving: AtomicBool,
    /// How much of its time its guest gets, in percent.
    running_percent: AtomicU8,
    /// What its vCPUs may have of CPUs, in nanoseconds a second; whether that is limited; and until when it is used up.
    cpu_limit: Mutex<Option<Limit>>,
    is_cpu_limited: AtomicBool,
    limited_until_ns: AtomicU64,
    /// vCPUs that their CPUs have not let go of for good.
    queued: AtomicUsize,
    /// Dropped after everything that points into them.
    pub(super) second_stage: Mutex<SecondStage>,
    pub(super) frames: Arc<GuestFrames>,
    pub(super) releasing: Releasing,
    pub(super) keeping: Keeping,
    /// The memory of its firmware's flash.
    _flash: Option<Arc<GuestFrames>>,
}

/// What a life is made of.
pub struct Parts {
    pub machine: Box<Machine>,
    /// A vCPU and its CPU each.
    pub vcpus: Vec<(Box<dyn Vcpu>, usize)>,
    pub second_stage: SecondStage,
    pub frames: Arc<GuestFrames>,
    /// The memory of its firmware's flash, where it has one.
    pub flash: Option<Arc<GuestFrames>>,
    pub bays: Vec<Option<Bay>>,
    pub now_ns: u64,
    pub is_first: bool,
    /// It is restored, and does not start by itself.
    pub is_held: bool,
}

/// A disk of a life.
pub struct Bay {
    /// Its partition's name.
    pub name: String,
    pub lent: Lent,
    pub io: DiskIo,
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

impl Bay {
    /// A disk that has done nothing yet.
    pub fn new(name: String, lent: Lent) -> Self {
        Self { name, lent, io: DiskIo::default() }
    }
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
        let Parts { machine, vcpus, second_stage, frames, flash, bays, now_ns, is_first, is_held } = parts;
        let queued = AtomicUsize::new(vcpus.len());
        let place = |(index, (vcpu, cpu))| Place::new(cpu, vcpu, index == 0, now_ns);
        Self {
            vm,
            machine,
            vcpus: vcpus.into_iter().enumerate().map(place).collect(),
            started_ns: now_ns,
            bays: Mutex::new(bays),
            ports: Mutex::default(),
            start: Arc::default(),
            is_first,
            is_prepared: AtomicBool::new(false),
            order: AtomicU8::new(if is_held { Order::Pause } else { Order::Run } as u8),
            is_held: AtomicBool::new(is_held),
            is_reading: AtomicBool::new(false),
            ending: Mutex::new(None),
            is_over: AtomicBool::new(false),
            is_moving: AtomicBool::new(false),
            away: Mutex::new(None),
            is_arriving: AtomicBool::new(false),
            running_percent: AtomicU8::new(100),
            cpu_limit: Mutex::new(None),
            is_cpu_limited: AtomicBool::new(false),
            limited_until_ns: AtomicU64::new(0),
            queued,
            second_stage: Mutex::new(second_stage),
            frames,
            releasing: Releasing::default(),
            keeping: Keeping::default(),
            _flash: flash,
        }
    }

    /// Goes on with what comes before the guest's first instruction; says whether the guest can run now. Only the boot
    /// vCPU's CPU calls this.
    pub fn prepare(&self, host: &Host) -> Result<bool, Refusal> {
        if self.is_prepared.load(Ordering::Relaxed) {
            return Ok(true);
        }
        if !self.has_variables()? {
            return Ok(false);
        }
        let boot = match &self.vm.spec.kernel {
            None => self.machine.power_on(),
            Some(kernel) => {
                let modules = self.modules(host)?;
                let kernel = self.kernel(host, kernel, &modules)?;
                self.machine.load(&kernel).map_err(|error| (error.0, "see \"modules\"".to_string()))?
            }
        };
        let now = host.clock.now();
        for (index, place) in self.vcpus.iter().enumerate() {
            let state = if index == 0 { &boot } else { &VcpuState::reset() };
            place.prepare(|vcpu| self.machine.thread(index, vcpu, state, 0, now));
        }
        self.is_prepared.store(true, Ordering::Release);
        self.start.settle(Ok(()));
        Ok(true)
    }

    /// Lets the device behind a disk that it is saved to, or restored from, reach its memory.
    pub fn put_in_reach(&self, device: Source) -> Result<(), OutOfMemory> {
        self.frames.put_in_reach(device)
    }

    /// Zeroes a frame of its memory, while it is held and before anything is put there; says whether there is one.
    pub fn zero_frame(&self, index: usize) -> bool {
        self.frames.zero(index)
    }

    /// Gives it the threads that were restored, in the order of its vCPUs. An order to run is due.
    pub fn begin(&self, threads: Vec<Thread>) {
        self.vcpus.iter().zip(threads).for_each(|(place, thread)| place.put(Box::new(thread)));
        self.is_prepared.store(true, Ordering::Release);
        self.start.settle(Ok(()));
    }

    /// Has nobody else give it orders, but a kill; says whether nobody held it.
    pub fn hold(&self) -> bool {
        !self.is_held.swap(true, Ordering::AcqRel)
    }

    /// Ends that. What its guest gave up meanwhile is looked at.
    pub fn let_go(&self, host: &Host) {
        self.is_held.store(false, Ordering::Release);
        self.note_given_up();
        services::note_given_up(host, cpu::percpu::current().index());
    }

    /// Whether somebody holds it: who saves, restores, moves or measures it, or changes its devices, or waits until its
    /// memory is here.
    pub fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Acquire)
    }

    /// Whether it is read while it runs: it takes orders, though it is held.
    pub fn is_reading(&self) -> bool {
        self.is_reading.load(Ordering::Acquire)
    }

    /// Says whether it is.
    pub fn set_reading(&self, is_reading: bool) {
        self.is_reading.store(is_reading, Ordering::Release);
    }

    /// Takes a vCPU's thread for its CPU to run it, unless it may not run or was not made yet.
    pub fn take(&self, vcpu: usize) -> Option<Box<Thread>> {
        // Under the lock of its home: who paused the VM, and finds it there, keeps it there.
        self.vcpus[vcpu].take(|| self.may_run())
    }

    /// Whether its guest has got to its first instruction, and its life is not over.
    pub fn has_started(&self) -> bool {
        self.is_prepared.load(Ordering::Acquire) && !self.is_over()
    }

    /// Whether there were threads to run its guest, at whatever moment of its life.
    pub fn has_begun(&self) -> bool {
        self.is_prepared.load(Ordering::Acquire)
    }

    /// Whether a paused VM has come to rest: no CPU runs a vCPU of it or holds any of its state. It was told to pause
    /// and its CPUs were kicked, so that this takes microseconds.
    pub fn is_quiescent(&self) -> bool {
        self.with_threads(|_| ()).is_some()
    }

    /// Calls `act` with the threads of all vCPUs, in their order, if the VM is paused and has come to rest. Who gives
    /// orders calls this, so that no other order comes meanwhile.
    pub fn with_threads<R>(&self, act: impl FnOnce(&mut [Box<Thread>]) -> R) -> Option<R> {
        if self.order() != Order::Pause {
            return None;
        }
        let mut threads: Vec<Box<Thread>> = self.vcpus.iter().map_while(|place| place.take(|| true)).collect();
        let result = (threads.len() == self.vcpus.len()).then(|| act(&mut threads));
        self.vcpus.iter().zip(threads).for_each(|(place, thread)| place.put(thread));
        result
    }

    fn modules(&self, host: &Host) -> Result<Vec<Module<'_>>, Refusal> {
        let found = |module: &ModuleSpec| super::module(host, module.name());
        let modules = self.vm.spec.modules.iter();
        modules.map(|module| found(module).map(|bytes| Module { name: module.text(), bytes })).collect()
    }

    fn kernel<'a>(&'a self, host: &Host, image: &'a str, modules: &'a [Module<'a>]) -> Result<Kernel<'a>, Refusal> {
        let spec = &self.vm.spec;
        let module = |name| super::module(host, name).map(|bytes| Module { name, bytes });
        Ok(Kernel {
            image: module(image)?,
            initrd: spec.initrd.as_deref().map(module).transpose()?,
            modules,
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
        let now_ns = host.clock.now_ns();
        for (vcpu, place) in self.vcpus.iter().enumerate() {
            place.set_ready_since(now_ns);
            self.wake(host, vcpu, from);
        }
        true
    }

    /// Ends a vCPU's sleep, and makes its CPU look around; says whether it slept. `from` is the CPU that calls.
    pub fn wake(&self, host: &Host, vcpu: usize, from: usize) -> bool {
        let place = &self.vcpus[vcpu];
        let slept = place.wake(|| host.clock.now_ns());
        host.cpus.kick(from, place.cpu_to_tell());
        slept
    }

    /// When a vCPU can run next; `None` while it may not.
    pub fn ready_at_ns(&self, vcpu: usize) -> Option<u64> {
        match self.order() {
            _ if self.is_over() => Some(0),
            Order::Run => Some(self.vcpus[vcpu].ready_at_ns().max(self.limited_until_ns())),
            Order::Pause => None,
            Order::Kill | Order::Reset => Some(0),
        }
    }

    /// Whether its vCPUs may run.
    pub fn may_run(&self) -> bool {
        self.order() == Order::Run && !self.is_over()
    }

    /// Whether it ends: by an order, or because [`finish`](Self::finish) was called.
    pub fn is_over(&self) -> bool {
        matches!(self.order(), Order::Kill | Order::Reset) || self.is_over.load(Ordering::Acquire)
    }

    /// Ends it; a triple fault is a reset, as on hardware. `from` is the CPU that calls.
    pub fn finish(&self, host: &Host, from: usize, ending: Ending) {
        let ending = match ending {
            Ending::Ended(End::TripleFault(place)) => {
                log::warn!("{} had a triple fault: {place}", self.vm.name());
                Ending::Ended(End::Reset)
            }
            other => other,
        };
        self.ending.lock().get_or_insert(ending);
        self.is_over.store(true, Ordering::Release);
        self.call_all(host, from);
    }

    /// A CPU has let go of a vCPU of a life that is over, for good; gives the reason to the last one.
    pub fn leave(&self) -> Option<Ending> {
        if self.queued.fetch_sub(1, Ordering::AcqRel) != 1 {
            return None;
        }
        let ordered = if self.order() == Order::Reset { End::Reset } else { End::PowerOff };
        let ending = self.ending.lock().take().unwrap_or(Ending::Ended(ordered));
        self.start.settle(Err(match &ending {
            Ending::NotStarted(refusal) => refusal.clone(),
            Ending::Ended(_) | Ending::Saved | Ending::Moved => {
                ("it was stopped before it ran".into(), "start it again".into())
            }
        }));
        Some(ending)
    }

    /// Puts together what was saved, here or on another host: `saved` is the machine's state, its memory is there already.
    /// This host's clock on the wall is `ahead_ns` ahead of the other's. Gives the threads to [`begin`](Self::begin) with.
    pub fn restore(&self, host: &Host, saved: &[u8], ahead_ns: i64) -> Result<Vec<Thread>, RestoreError> {
        let vcpus = self.vcpus.iter().filter_map(Place::take_vcpu).collect();
        let threads = self.machine.restore(saved, vcpus, host.clock.now(), ahead_ns)?;
        let mut second_stage = self.second_stage();
        for page in self.machine.hidden_pages() {
            second_stage.unmap(page).expect("the tables for it are there from the start");
        }
        Ok(threads)
    }

    /// Its second-stage tables.
    pub fn second_stage(&self) -> MutexGuard<'_, SecondStage> {
        self.second_stage.lock()
    }

    /// Whether it is on its way between hosts.
    pub fn is_moving(&self) -> bool {
        self.is_moving.load(Ordering::Acquire)
    }

    /// Says whether it is.
    pub fn set_moving(&self, is_moving: bool) {
        self.is_moving.store(is_moving, Ordering::Release);
    }

    /// What another host has of it, if it does.
    pub fn away(&self) -> Option<(Away, Name)> {
        self.away.lock().clone()
    }

    /// Says that another host has it, or none.
    pub fn set_away(&self, away: Option<(Away, Name)>) {
        *self.away.lock() = away;
    }

    /// Whether it arrives from another host and has not run here.
    pub fn is_arriving(&self) -> bool {
        self.is_arriving.load(Ordering::Acquire)
    }

    /// Keeps it from running before it has arrived, or lets it.
    pub fn set_arriving(&self, is_arriving: bool) {
        self.is_arriving.store(is_arriving, Ordering::Release);
        self.order.store(if is_arriving { Order::Pause } else { Order::Run } as u8, Ordering::Release);
    }

    /// How much of its time its guest gets, in percent.
    pub fn running_percent(&self) -> u8 {
        self.running_percent.load(Ordering::Relaxed)
    }

    /// Throttles it, or lets it run.
    pub fn set_running_percent(&self, host: &Host, percent: u8) {
        self.running_percent.store(percent.clamp(1, 100), Ordering::Relaxed);
        self.call_all(host, cpu::percpu::current().index());
    }

    /// Limits what it uses from now on. What it used counts no more.
    pub fn limit(self: &Arc<Self>, host: &'static Host, limits: &Limits) {
        self.limit_cpu(limits.cpu_percent);
        let bytes = |rate: Option<Size>| rate.map(Size::bytes);
        let io = IoLimits {
            disk_requests: limits.iops.map(u64::from),
            disk_bytes: bytes(limits.disk_rate),
            sent_bytes: bytes(limits.net_rate),
            received_bytes: bytes(limits.receive_rate),
        };
        let from = cpu::percpu::current().index();
        self.machine.set_io_limits(io, &mut InputHost::new(host, from, self));
        self.call_all(host, from);
    }

    /// Has its vCPUs' CPUs look at what holds now: whoever runs, and whoever sleeps until an old limit lets it. `from` is
    /// the CPU that calls.
    pub(super) fn call_all(&self, host: &Host, from: usize) {
        self.vcpus.iter().for_each(|place| host.cpus.kick(from, place.cpu_to_tell()));
    }

    fn limit_cpu(&self, percent: Option<u16>) {
        const NS_PER_PERCENT: u64 = 10_000_000;
        const BURST_NS: u64 = 20_000_000;
        let mut limit = self.cpu_limit.lock();
        *limit = percent.map(|percent| Limit::new(u64::from(percent) * NS_PER_PERCENT, BURST_NS));
        self.is_cpu_limited.store(limit.is_some(), Ordering::Relaxed);
        self.limited_until_ns.store(0, Ordering::Relaxed);
    }

    /// Whether its time on CPUs is limited, by an order or for its move.
    pub fn is_throttled(&self) -> bool {
        self.running_percent() < 100 || self.is_cpu_limited.load(Ordering::Relaxed)
    }

    /// Until when its vCPUs have used up their time on CPUs.
    pub fn limited_until_ns(&self) -> u64 {
        self.limited_until_ns.load(Ordering::Relaxed)
    }

    /// Books time of a vCPU on a CPU. What it had beyond the VM's limit all of them wait for.
    pub fn book(&self, ns: u64, now_ns: u64) {
        if !self.is_cpu_limited.load(Ordering::Relaxed) {
            return;
        }
        if let Some(limit) = &mut *self.cpu_limit.lock() {
            limit.take(ns, now_ns);
            self.limited_until_ns.store(limit.due_ns(now_ns).unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// Exits by kind, of all its vCPUs.
    pub fn counters(&self) -> ExitCounters {
        let mut sum = ExitCounters::new();
        (0..self.vcpus.len()).for_each(|vcpu| sum.add(&self.machine.counters(vcpu)));
        sum
    }

    /// The CPU that each of its vCPUs runs on now.
    pub fn cpus(&self) -> Vec<u16> {
        self.vcpus.iter().map(|place| place.cpu() as u16).collect()
    }

    /// The time that its vCPUs had CPUs until now.
    pub fn cpu_ns(&self, now_ns: u64) -> u64 {
        self.vcpus.iter().map(|place| place.cpu_ns(now_ns)).sum()
    }

    /// The time that its vCPUs were ready and had none.
    pub fn steal_ns(&self) -> u64 {
        self.vcpus.iter().map(Place::steal_ns).sum()
    }

    /// Its disks.
    pub fn lents(&self) -> Vec<Lent> {
        self.bays.lock().iter().flatten().map(|bay| bay.lent).collect()
    }

    /// A disk, by its number.
    pub fn lent(&self, disk: usize) -> Option<Lent> {
        self.bays.lock().get(disk)?.as_ref().map(|bay| bay.lent)
    }

    /// What its disks did, with their names.
    pub fn disk_io(&self) -> Vec<(String, DiskIo)> {
        self.bays.lock().iter().flatten().map(|bay| (bay.name.clone(), bay.io)).collect()
    }

    /// The number of the disk on the partition called `name`.
    pub fn disk_number(&self, name: &str) -> Option<usize> {
        self.bays.lock().iter().position(|bay| bay.as_ref().is_some_and(|bay| bay.name == name))
    }

    /// Adds a disk; gives its number, which the machine will give it too.
    pub fn add_bay(&self, bay: Bay) -> usize {
        let mut bays = self.bays.lock();
        bays.push(Some(bay));
        bays.len() - 1
    }

    /// Takes the disk back that was added last, with this number: the machine did not take it.
    pub fn withdraw_bay(&self, disk: usize) {
        self.bays.lock().truncate(disk);
    }

    /// Forgets a disk that has left the machine.
    pub fn remove_bay(&self, disk: usize) {
        self.bays.lock()[disk] = None;
    }

    /// The place in the network of a card; nowhere for one that has none.
    pub fn port(&self, nic: usize) -> PortId {
        self.ports.lock().get(nic).copied().unwrap_or(PortId::NOWHERE)
    }

    /// Gives a card its place.
    pub fn set_port(&self, nic: usize, port: PortId) {
        let mut ports = self.ports.lock();
        let length = ports.len().max(nic + 1);
        ports.resize(length, PortId::NOWHERE);
        ports[nic] = port;
    }

    /// Takes a card's place away.
    pub fn take_port(&self, nic: usize) -> PortId {
        let port = self.port(nic);
        self.set_port(nic, PortId::NOWHERE);
        port
    }

    /// Counts a transfer; gives the disk that it is for.
    pub fn count(&self, disk: usize, op: block::Op, bytes: u64) -> Option<Lent> {
        let mut bays = self.bays.lock();
        let Bay { lent, io, .. } = bays.get_mut(disk)?.as_mut()?;
        match op {
            block::Op::Read => (io.reads, io.read_bytes) = (io.reads + 1, io.read_bytes + bytes),
            block::Op::Write | block::Op::WriteThrough | block::Op::WriteZeroes => {
                (io.writes, io.written_bytes) = (io.writes + 1, io.written_bytes + bytes);
            }
            block::Op::Flush => io.flushes += 1,
            block::Op::Discard => {}
        }
        Some(*lent)
    }

    /// Counts a transfer that failed.
    pub fn count_outcome(&self, disk: usize, outcome: Outcome) {
        if outcome != Outcome::Ok
            && let Some(Some(bay)) = self.bays.lock().get_mut(disk)
        {
            bay.io.errors += 1;
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
