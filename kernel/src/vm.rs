//! Virtual machines from definition to end: made, started, ordered about, taken down.
//!
//! [`Vm`] is what the operator sees; [`Running`] is one life of it, with everything that life owns. A life ends in
//! three steps: its CPU stops running it, the disks finish what they still do in its memory, and then the host's
//! services take everything back ([`take_down`]).

use crate::backend::SecondStage;
use crate::host::{self, Host};
use crate::storage::Lent;
use addr::{Gpa, HUGE_PAGE_BYTES, Hpa, LARGE_PAGE_BYTES};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use config::{Mac, VmSpec};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use guestmem::{Backing, GuestMemory};
use machine::{CpuProfile, DiskConfig, End, Kernel, Leaf, Machine, MachineConfig, NicConfig, Thread};
use memory::{FRAMES, HostFrames};
use nested::PageSize;
use shell::{ConsoleBuffer, VmState};
use spin::Mutex;
use switch::PortId;
use trace::{Event, RunState};
use virtio::blk::Outcome;

/// A line that says what is wrong, and one that says what to do.
pub type Refusal = (String, String);

/// A VM as the operator knows it.
pub struct Vm {
    /// What it is called in traces.
    pub id: u16,
    /// Its definition.
    pub spec: VmSpec,
    /// What its console printed.
    pub console: Mutex<ConsoleBuffer>,
    /// The addresses of its network cards.
    pub macs: Vec<Mac>,
    life: Mutex<Life>,
}

enum Life {
    Created,
    Running(Arc<Running>),
    Stopped,
    Crashed(String),
}

/// What a running VM was told to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Order {
    Run,
    Pause,
    Kill,
    Reset,
}

/// One life of a VM.
pub struct Running {
    pub vm: Arc<Vm>,
    pub machine: Machine,
    pub thread: Mutex<Thread>,
    /// The CPU that it runs on.
    pub cpu: usize,
    pub started_ns: u64,
    pub disks: Vec<Lent>,
    pub ports: Vec<PortId>,
    pub io: Mutex<Vec<DiskIo>>,
    /// Time on a CPU, and time that it was ready and had none.
    pub cpu_ns: AtomicU64,
    pub steal_ns: AtomicU64,
    order: AtomicU8,
    /// It sleeps until this moment; 0 when it does not.
    sleep_until_ns: AtomicU64,
    /// Dropped after everything that points into them.
    _second_stage: SecondStage,
    _frames: GuestFrames,
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

/// The large frames behind a guest's memory.
struct GuestFrames(Vec<Hpa>);

impl Drop for GuestFrames {
    fn drop(&mut self) {
        let mut frames = FRAMES.lock();
        self.0.iter().for_each(|&frame| frames.free_large(frame));
    }
}

static NEXT_ID: AtomicU16 = AtomicU16::new(0);
static NEXT_MAC: AtomicU16 = AtomicU16::new(1);

/// Heap that a start leaves for everybody else.
const HEAP_RESERVE_BYTES: usize = 256 << 10;

/// Defines the VMs of the configuration, and starts those that it says.
pub fn create_configured(host: &'static Host) {
    for spec in &host.config.vms {
        if let Err((message, remedy)) = create(host, spec.clone()) {
            log::error!("{}: {message}; {remedy}", spec.name);
        }
    }
}

/// Defines a VM, and starts it where the definition says so.
pub fn create(host: &'static Host, spec: VmSpec) -> Result<(), Refusal> {
    if host.vm(&spec.name).is_some() {
        return Err((format!("there is a VM {} already", spec.name), "choose another name, or delete it".into()));
    }
    if spec.vcpus != 1 {
        return Err((format!("{} vCPUs are not supported yet", spec.vcpus), "use --vcpus 1".into()));
    }
    for module in [Some(&spec.kernel), spec.initrd.as_ref()].into_iter().flatten() {
        if host.module(module).is_none() {
            return Err((format!("there is no boot module {module}"), "see \"modules\"".into()));
        }
    }
    let start = spec.start;
    let macs = spec.nics.iter().map(|nic| nic.mac.unwrap_or_else(choose_mac)).collect();
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let console = Mutex::new(ConsoleBuffer::new());
    let vm = Arc::new(Vm { id, spec, console, macs, life: Mutex::new(Life::Created) });
    host.vms.lock().push(vm.clone());
    if !start {
        return Ok(());
    }
    vm.start(host).inspect_err(|_| {
        host.vms.lock().retain(|other| !Arc::ptr_eq(other, &vm));
    })
}

/// Forgets a VM that does not run.
pub fn delete(host: &Host, vm: &Arc<Vm>) -> Result<(), Refusal> {
    if vm.running().is_some() {
        return Err((format!("{} is running", vm.name()), format!("stop it first: vm kill {}", vm.name())));
    }
    host.vms.lock().retain(|other| !Arc::ptr_eq(other, vm));
    Ok(())
}

impl Vm {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its present life.
    pub fn running(&self) -> Option<Arc<Running>> {
        match &*self.life.lock() {
            Life::Running(running) => Some(running.clone()),
            Life::Created | Life::Stopped | Life::Crashed(_) => None,
        }
    }

    /// Its present life, or why an order cannot be carried out.
    pub fn must_run(&self) -> Result<Arc<Running>, Refusal> {
        let remedy = || format!("start it first: vm start {}", self.name());
        self.running().ok_or_else(|| (format!("{} is not running", self.name()), remedy()))
    }

    /// What it is doing.
    pub fn state(&self) -> VmState {
        match &*self.life.lock() {
            Life::Created => VmState::Created,
            Life::Running(running) if running.order() == Order::Pause => VmState::Paused,
            Life::Running(_) => VmState::Running,
            Life::Stopped => VmState::Stopped,
            Life::Crashed(reason) => VmState::Crashed { reason: reason.clone() },
        }
    }

    /// Powers it on.
    pub fn start(self: &Arc<Self>, host: &'static Host) -> Result<(), Refusal> {
        let mut life = self.life.lock();
        if matches!(*life, Life::Running(_)) {
            return Err((format!("{} is running already", self.name()), "see \"vm list\"".into()));
        }
        let mut disks = Vec::new();
        let running = claim_disks(host, &self.spec.disks, &mut disks).and_then(|()| self.build(host, &disks));
        let running = running.inspect_err(|_| {
            let mut storage = host.storage.lock();
            disks.iter().for_each(|&lent| storage.release(lent));
        })?;
        {
            let mut storage = host.storage.lock();
            running.disks.iter().enumerate().for_each(|(index, &lent)| storage.set_owner(lent, &running, index));
        }
        host.network.lock().set_guest(&running);
        host.cpus.queue(running.cpu).lock().push(running.clone());
        *life = Life::Running(running.clone());
        drop(life);
        note(self.id, RunState::Running);
        running.wake(host, cpu::percpu::current().index());
        log::info!("{} starts on CPU {}", self.name(), running.cpu);
        Ok(())
    }

    /// Everything that a life needs, with its disks claimed.
    fn build(self: &Arc<Self>, host: &'static Host, disks: &[Lent]) -> Result<Arc<Running>, Refusal> {
        if memory::Heap::usage().list_free_bytes < HEAP_RESERVE_BYTES {
            return Err(("Pollux has no memory left for another VM".into(), "stop one first".into()));
        }
        let no_memory = |_| ("there is no memory for page tables".to_string(), "stop another VM first".to_string());
        let mut second_stage = host.backend.second_stage().map_err(no_memory)?;
        let vcpu = host.backend.vcpu(&second_stage).map_err(|why| (why, "see \"host\"".to_string()))?;
        let (memory, frames) = guest_memory(self.spec.memory.bytes())?;
        map_memory(&memory, &mut second_stage).map_err(no_memory)?;
        let tsc_khz = host.clock.tsc_khz() as u32;
        let machine = Machine::new(MachineConfig {
            id: self.id,
            vcpus: self.spec.vcpus.into(),
            memory,
            profile: CpuProfile::new(host_leaf, self.spec.vcpus.into(), tsc_khz),
            disks: disks.iter().map(|&lent| disk_config(host, lent)).collect(),
            nics: self.macs.iter().map(|mac| NicConfig { mac: mac.bytes(), mtu: 1500 }).collect(),
            wall_unix_ns: host.clock.wall_unix_ns(),
        });
        let missing = |name: &str| (format!("there is no boot module {name}"), "see \"modules\"".to_string());
        let kernel = Kernel {
            image: host.module(&self.spec.kernel).ok_or_else(|| missing(&self.spec.kernel))?,
            initrd: match &self.spec.initrd {
                Some(name) => Some(host.module(name).ok_or_else(|| missing(name))?),
                None => None,
            },
            command_line: &self.spec.command_line,
        };
        let state = machine.load(&kernel).map_err(|error| (error.0, "see \"modules\"".to_string()))?;
        let ports = host.network.lock().add_guest(self)?;
        Ok(Arc::new(Running {
            vm: self.clone(),
            thread: Mutex::new(Thread::new(0, vcpu, &state, tsc_khz)),
            machine,
            cpu: host.cpus.least_loaded(),
            started_ns: host.clock.now_ns(),
            disks: disks.to_vec(),
            ports,
            io: Mutex::new(alloc::vec![DiskIo::default(); disks.len()]),
            cpu_ns: AtomicU64::new(0),
            steal_ns: AtomicU64::new(0),
            order: AtomicU8::new(Order::Run as u8),
            sleep_until_ns: AtomicU64::new(0),
            _second_stage: second_stage,
            _frames: frames,
        }))
    }
}

impl Running {
    /// What it was told.
    pub fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            order if order == Order::Run as u8 => Order::Run,
            order if order == Order::Pause as u8 => Order::Pause,
            order if order == Order::Kill as u8 => Order::Kill,
            _ => Order::Reset,
        }
    }

    /// Tells it something. `from` is the CPU that calls.
    pub fn command(&self, host: &Host, from: usize, order: Order) {
        self.order.store(order as u8, Ordering::Release);
        let state = match order {
            Order::Run => RunState::Running,
            Order::Pause => RunState::Paused,
            Order::Kill | Order::Reset => RunState::Stopped,
        };
        note(self.vm.id, state);
        self.wake(host, from);
    }

    /// Ends its sleep, and makes its CPU look around. `from` is the CPU that calls.
    pub fn wake(&self, host: &Host, from: usize) {
        self.sleep_until_ns.store(0, Ordering::Release);
        host.cpus.kick(from, self.cpu);
    }

    /// Lets it sleep until a moment, unless mail came meanwhile.
    pub fn sleep(&self, until_ns: Option<u64>) {
        self.sleep_until_ns.store(until_ns.unwrap_or(u64::MAX), Ordering::Release);
        // Mail that was posted before the store found nobody asleep.
        if self.machine.has_mail(0) {
            self.sleep_until_ns.store(0, Ordering::Release);
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

/// Takes back everything that an ended life had; says whether that is done, or disks still work in its memory.
pub fn take_down(host: &'static Host, running: &Arc<Running>, end: &End) -> bool {
    {
        let mut storage = host.storage.lock();
        let drained = running.disks.iter().fold(true, |drained, &lent| storage.drain(lent) && drained);
        if !drained {
            return false;
        }
        running.disks.iter().for_each(|&lent| storage.release(lent));
    }
    host.network.lock().remove_guest(running);
    let vm = running.vm.clone();
    let life = match end {
        End::PowerOff | End::Reset => Life::Stopped,
        End::Crash(why) => Life::Crashed(why.clone()),
    };
    match end {
        End::PowerOff => log::info!("{} is off", vm.name()),
        End::Reset => log::info!("{} resets", vm.name()),
        End::Crash(why) => log::error!("{} stopped: {why}", vm.name()),
    }
    *vm.life.lock() = life;
    true
}

/// Starts a VM again whose life ended with a reset.
pub fn restart(host: &'static Host, vm: &Arc<Vm>) {
    if let Err((message, remedy)) = vm.start(host) {
        log::error!("{} does not start again: {message}; {remedy}", vm.name());
    }
}

fn note(vm: u16, state: RunState) {
    host::trace(cpu::percpu::current().index(), Event::VmState { vm, state });
}

/// An address of the locally administered kind that no other card of this host has.
fn choose_mac() -> Mac {
    let [high, low] = NEXT_MAC.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let [a, b, ..] = cpu::random().unwrap_or_else(cpu::tsc).to_le_bytes();
    Mac::new([0x52, 0x50, a, b, high, low]).expect("a unicast address that is not zero")
}

fn claim_disks(host: &Host, names: &[String], disks: &mut Vec<Lent>) -> Result<(), Refusal> {
    let mut storage = host.storage.lock();
    for name in names {
        let lent = storage.claim(name).map_err(|(message, remedy)| (message, remedy.to_string()))?;
        disks.push(lent);
    }
    Ok(())
}

fn disk_config(host: &Host, lent: Lent) -> DiskConfig {
    let geometry = host.storage.lock().geometry(lent);
    let mut serial = [0; 20];
    let bytes = geometry.serial.as_bytes();
    serial[..bytes.len().min(20)].copy_from_slice(&bytes[..bytes.len().min(20)]);
    let discard = geometry.discard && geometry.write_zeroes;
    DiskConfig { sectors: geometry.sectors, read_only: geometry.read_only, discard, serial }
}

fn host_leaf(leaf: u32, subleaf: u32) -> Leaf {
    let cpu::CpuidResult { eax, ebx, ecx, edx } = cpu::cpuid(leaf, subleaf);
    Leaf { eax, ebx, ecx, edx }
}

/// Zeroed memory for a guest: from 0 up to the PCI window, the rest from 4 GiB on; huge frames where they fit.
fn guest_memory(bytes: u64) -> Result<(GuestMemory, GuestFrames), Refusal> {
    const HIGH_MEMORY: Gpa = Gpa::new(4 << 30);
    let low_bytes = bytes.min(3 << 30);
    let frames = take_frames(bytes / LARGE_PAGE_BYTES).ok_or_else(|| {
        let free_mib = FRAMES.lock().free_bytes() >> 20;
        let message = format!("it needs {} MiB of memory and {free_mib} MiB are free", bytes >> 20);
        (message, "give it less memory, or stop another VM".to_string())
    })?;
    for &frame in &frames.0 {
        HostFrames.zero(frame, LARGE_PAGE_BYTES);
    }
    let mut memory = GuestMemory::new(Arc::new(HostFrames));
    let (low, high) = frames.0.split_at((low_bytes / LARGE_PAGE_BYTES) as usize);
    memory.add_slot(Gpa::new(0), low.to_vec());
    if !high.is_empty() {
        memory.add_slot(HIGH_MEMORY, high.to_vec());
    }
    Ok((memory, frames))
}

fn take_frames(count: u64) -> Option<GuestFrames> {
    const LARGE_PER_HUGE: u64 = HUGE_PAGE_BYTES / LARGE_PAGE_BYTES;
    let mut taken = GuestFrames(Vec::with_capacity(count as usize));
    let mut frames = FRAMES.lock();
    while (taken.0.len() as u64) < count {
        let left = count - taken.0.len() as u64;
        if left >= LARGE_PER_HUGE
            && let Some(huge) = frames.take_huge()
        {
            taken.0.extend((0..LARGE_PER_HUGE).map(|index| huge.wrapping_add(index * LARGE_PAGE_BYTES)));
            continue;
        }
        match frames.take_large() {
            Some(frame) => taken.0.push(frame),
            None => {
                // Its frames go back by dropping it, which takes the lock.
                drop(frames);
                return None;
            }
        }
    }
    Some(taken)
}

/// Maps the guest's memory, in 1 GiB pages where addresses allow and the processor has them.
fn map_memory(memory: &GuestMemory, second_stage: &mut SecondStage) -> Result<(), nested::OutOfMemory> {
    const LARGE_PER_HUGE: usize = (HUGE_PAGE_BYTES / LARGE_PAGE_BYTES) as usize;
    let has_huge = cpu::cpuid(0x8000_0001, 0).edx & 1 << 26 != 0;
    let frames: Vec<_> = memory.frames().collect();
    let mut rest = &frames[..];
    while let [(gpa, hpa), ..] = *rest {
        let is_huge = has_huge
            && gpa.is_aligned(HUGE_PAGE_BYTES)
            && hpa.is_aligned(HUGE_PAGE_BYTES)
            && rest.get(..LARGE_PER_HUGE).is_some_and(|run| follow_each_other(run));
        let (size, count) = if is_huge { (PageSize::Huge, LARGE_PER_HUGE) } else { (PageSize::Large, 1) };
        second_stage.map(gpa, hpa, size)?;
        rest = &rest[count..];
    }
    Ok(())
}

fn follow_each_other(run: &[(Gpa, Hpa)]) -> bool {
    let (gpa, hpa) = run[0];
    (0..).zip(run).all(|(index, &(next_gpa, next_hpa))| {
        let offset = index * LARGE_PAGE_BYTES;
        next_gpa == gpa.wrapping_add(offset) && next_hpa == hpa.wrapping_add(offset)
    })
}
