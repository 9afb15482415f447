//! The host: what all CPUs share, made once at start-up.

use crate::backend::Backend;
use crate::migration::Migrations;
use crate::network::Network;
use crate::profiles::Profiles;
use crate::storage::Storage;
use crate::time::Clock;
use crate::vm::{Queued, Vm};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use boot::{BootInfo, Module};
use config::Config;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use cpu::percpu::CPUS_MAX;
use interrupts::local_apic;
use platform::Platform;
use spin::{Mutex, Once};
use trace::{Event, Ring};

/// Trace entries that each CPU keeps.
const TRACE_ENTRIES: usize = 512;

/// How often at most a vCPU goes to or from a CPU because another is wanted less.
const SHARE_NS: u64 = 30_000_000;

/// What the heap takes for small blocks of each size before there are guests.
const CLASS_BYTES: usize = 128 << 10;

/// A CPU's trace.
pub type Trace = Ring<TRACE_ENTRIES>;

static HOST: Once<Host> = Once::new();
static TRACES: [Mutex<Trace>; CPUS_MAX] = [const { Mutex::new(Ring::new()) }; CPUS_MAX];

/// What all CPUs share.
pub struct Host {
    /// What the firmware says of the machine.
    pub platform: Platform,
    /// The clock.
    pub clock: Clock,
    /// What runs guests.
    pub backend: Backend,
    /// The configuration that travelled on the image.
    pub config: Config,
    /// The CPUs.
    pub cpus: Cpus,
    /// Disks.
    pub storage: Mutex<Storage>,
    /// The switch and what is joined to it.
    pub network: Mutex<Network>,
    /// The VMs.
    pub vms: Mutex<Vec<Arc<Vm>>>,
    /// VMs that leave and arrive.
    pub migrations: Mutex<Migrations>,
    /// CPU profiles.
    pub profiles: Mutex<Profiles>,
    boot: BootInfo,
}

impl Host {
    /// Everything that start-up found.
    pub fn new(
        boot: BootInfo,
        platform: Platform,
        clock: Clock,
        backend: Backend,
        config: Config,
        storage: Storage,
        network: Network,
    ) -> Self {
        let migrations = Mutex::new(Migrations::new(&config));
        Self {
            platform,
            clock,
            backend,
            config,
            cpus: Cpus::default(),
            storage: Mutex::new(storage),
            network: Mutex::new(network),
            vms: Mutex::new(Vec::new()),
            migrations,
            profiles: Mutex::default(),
            boot,
        }
    }

    /// The boot modules.
    pub fn modules(&self) -> &[Module] {
        self.boot.modules()
    }

    /// The boot module with this name.
    pub fn module(&self, name: &str) -> Option<&'static [u8]> {
        self.modules().iter().find(|module| *module.name == *name).map(|module| module.bytes)
    }

    /// The VM with this name.
    pub fn vm(&self, name: &str) -> Option<Arc<Vm>> {
        self.vms.lock().iter().find(|vm| vm.name() == name).cloned()
    }

    /// Memory that the firmware reported as usable.
    pub fn memory_bytes(&self) -> u64 {
        self.boot.regions().iter().filter(|region| region.usable).map(|region| region.end - region.start).sum()
    }
}

/// Makes the host known to all CPUs.
pub fn init(host: Host) -> &'static Host {
    fill_heap();
    HOST.call_once(|| host)
}

/// Lets the heap take what histories, traces and queues will grow to, so that free memory moves with guests only: what
/// the heap has taken for small blocks it keeps.
fn fill_heap() {
    for block_bytes in (4..=11).map(|shift| 1 << shift) {
        let blocks: Vec<Vec<u8>> = (0..CLASS_BYTES / block_bytes).map(|_| Vec::with_capacity(block_bytes)).collect();
        drop(blocks);
    }
}

/// The host.
pub fn get() -> &'static Host {
    HOST.get().expect("start-up made the host before anything runs")
}

/// A CPU's trace ring.
pub fn trace_of(cpu: usize) -> &'static Mutex<Trace> {
    &TRACES[cpu]
}

/// Notes an event in this CPU's trace.
pub fn trace(cpu: usize, event: Event) {
    TRACES[cpu].lock().push(cpu::tsc(), event);
}

/// The CPUs and the vCPUs placed on them.
pub struct Cpus {
    count: AtomicUsize,
    cpus: Box<[Cpu]>,
}

/// One CPU, as others see it.
#[derive(Default)]
pub struct Cpu {
    apic_id: AtomicUsize,
    /// The boot processor's TSC just before this one was started.
    started_tsc: AtomicU64,
    /// It has nothing to do, and could run a vCPU of another's.
    is_idle: AtomicBool,
    /// The weights of the vCPUs that want it, and when a vCPU last went to or from it because others want it less.
    wanted: AtomicUsize,
    shared_ns: AtomicU64,
    /// How often it slept, how long until its last sleep, and since when it sleeps; 0: it is awake.
    sleeps: AtomicU64,
    slept_ns: AtomicU64,
    asleep_since_ns: AtomicU64,
    /// What runs here.
    queue: Mutex<Vec<Queued>>,
}

impl Default for Cpus {
    fn default() -> Self {
        Self { count: AtomicUsize::new(0), cpus: (0..CPUS_MAX).map(|_| Cpu::default()).collect() }
    }
}

impl Cpus {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Adds one. Only start-up does, on one processor.
    pub fn add(&self, apic_id: u32) {
        let index = self.count();
        self.cpus[index].apic_id.store(apic_id as usize, Ordering::Relaxed);
        self.cpus[index].started_tsc.store(cpu::tsc(), Ordering::Relaxed);
        self.count.store(index + 1, Ordering::Release);
    }

    /// Takes back the last one, which did not start.
    pub fn remove_last(&self) {
        self.count.fetch_sub(1, Ordering::Release);
    }

    /// How many ticks the TSC of CPU `index`, which calls, is behind the boot processor's at least. A lag shorter than
    /// the start took is not seen; clocks only stand still for as long.
    pub fn tsc_lag(&self, index: usize) -> u64 {
        self.cpus[index].started_tsc.load(Ordering::Relaxed).saturating_sub(cpu::tsc())
    }

    /// Makes CPU `to` look around. `from` is the CPU that calls: it cannot be asked while a guest's segments are loaded.
    pub fn kick(&self, from: usize, to: usize) {
        self.send(from, to, interrupts::KICK);
    }

    /// Lets the guest that CPU `to` runs have what was posted to it, without an exit.
    pub fn notify(&self, from: usize, to: usize) {
        self.send(from, to, interrupts::POSTED);
    }

    fn send(&self, from: usize, to: usize, vector: u8) {
        if from != to {
            local_apic::send(self.apic_id(to), vector);
        }
    }

    /// The APIC ID of CPU `index`.
    pub fn apic_id(&self, index: usize) -> u32 {
        self.cpus[index].apic_id.load(Ordering::Relaxed) as u32
    }

    /// CPUs for so many vCPUs: those of `pin` one after the other, where it has any; else one after the other where
    /// there are the fewest, the first CPU, which serves, after others that are as free.
    pub fn choose(&self, vcpus: usize, pin: &[u16]) -> Vec<usize> {
        if !pin.is_empty() {
            return (0..vcpus).map(|vcpu| pin[vcpu % pin.len()].into()).collect();
        }
        let mut loads: Vec<usize> = (0..self.count()).map(|index| self.cpus[index].queue.lock().len()).collect();
        let mut next = || {
            let cpu = (0..loads.len()).rev().min_by_key(|&index| loads[index]).unwrap_or(0);
            loads[cpu] += 1;
            cpu
        };
        (0..vcpus).map(|_| next()).collect()
    }

    /// Says of CPU `index`, which calls, whether it has nothing to do.
    pub fn set_idle(&self, index: usize, is_idle: bool) {
        self.cpus[index].is_idle.store(is_idle, Ordering::Relaxed);
    }

    /// Says by vCPUs of which weight together CPU `index`, which calls, is wanted.
    pub fn set_wanted(&self, index: usize, weight: usize) {
        self.cpus[index].wanted.store(weight, Ordering::Relaxed);
    }

    /// A CPU that is wanted less than CPU `index`, which calls, by `weight` or more: by how much. Not too often.
    pub fn claim_less_wanted(&self, index: usize, weight: usize, now_ns: u64) -> Option<(usize, usize)> {
        let wanted = |index: usize| self.cpus[index].wanted.load(Ordering::Relaxed);
        let is_due = |index: usize| now_ns >= self.cpus[index].shared_ns.load(Ordering::Relaxed) + SHARE_NS;
        if !is_due(index) {
            return None;
        }
        let to = (0..self.count()).filter(|&other| is_due(other)).min_by_key(|&other| wanted(other))?;
        let less = wanted(index).checked_sub(wanted(to)).filter(|&less| less >= weight)?;
        for cpu in [index, to] {
            self.cpus[cpu].shared_ns.store(now_ns, Ordering::Relaxed);
        }
        Some((to, less))
    }

    /// Notes that a vCPU goes from CPU `from`, which calls, to `to`, whose loop counts anew when it turns: one that has a
    /// single vCPU to run may not turn for long.
    pub fn note_moved(&self, from: usize, to: usize, weight: usize) {
        self.cpus[from].wanted.fetch_sub(weight, Ordering::Relaxed);
        self.cpus[to].wanted.fetch_add(weight, Ordering::Relaxed);
    }

    /// Notes that CPU `index`, which calls, sleeps from `now_ns` on.
    pub fn begin_sleep(&self, index: usize, now_ns: u64) {
        self.cpus[index].asleep_since_ns.store(now_ns, Ordering::Relaxed);
    }

    /// Notes that it is awake again.
    pub fn end_sleep(&self, index: usize, now_ns: u64) {
        let Cpu { sleeps, slept_ns, asleep_since_ns, .. } = &self.cpus[index];
        let since_ns = asleep_since_ns.swap(0, Ordering::Relaxed);
        // Nobody else writes these.
        sleeps.store(sleeps.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let slept = slept_ns.load(Ordering::Relaxed) + now_ns.saturating_sub(since_ns);
        slept_ns.store(slept, Ordering::Relaxed);
    }

    /// How often each CPU slept, and how long in all.
    pub fn sleeps(&self, now_ns: u64) -> impl Iterator<Item = (u64, u64)> {
        self.cpus[..self.count()].iter().map(move |cpu| {
            let since_ns = cpu.asleep_since_ns.load(Ordering::Relaxed);
            let present_ns = if since_ns == 0 { 0 } else { now_ns.saturating_sub(since_ns) };
            (cpu.sleeps.load(Ordering::Relaxed), cpu.slept_ns.load(Ordering::Relaxed) + present_ns)
        })
    }

    /// A CPU that has nothing to do, for the one who asks: the first CPU, which serves, after others.
    pub fn claim_idle(&self) -> Option<usize> {
        let is_idle = |&index: &usize| self.cpus[index].is_idle.load(Ordering::Relaxed);
        let idle = (0..self.count()).rev().find(is_idle)?;
        self.cpus[idle].is_idle.swap(false, Ordering::Relaxed).then_some(idle)
    }

    /// What runs on CPU `index`.
    pub fn queue(&self, index: usize) -> &Mutex<Vec<Queued>> {
        &self.cpus[index].queue
    }
}
