//! Virtual machines from definition to end: made, started, ordered about, taken down.
//!
//! [`Vm`] is what the operator sees; [`Running`] is one life of it, with everything that life owns, and [`take_down`]
//! its end. Only CPU 0, which serves, calls what is here; a life's own CPU runs it.

pub mod absent;
pub mod arrival;
mod devices;
mod guest_firmware;
pub mod hotplug;
mod life;
pub mod limits;
mod memory;
mod place;
mod release;
mod reservation;
pub mod tracking;
pub mod variables;

use crate::host::{self, Host};
use crate::services;
use crate::storage::Lent;
use ::memory::{FRAMES, Heap};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use config::{DiskSpec, Limits, Mac, ModuleSpec, VmSpec};
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use devices::Devices;
pub use life::{Away, DiskIo, Ending, Order, Running, Start};
use life::{Bay, Parts};
use machine::{Baseline, CpuProfile, DebugPorts, DiskConfig, End, Leaf, Machine, MachineConfig, NicConfig, Plan};
pub use memory::{GuestFrames, has_huge_pages};
pub use place::LINGER_NS;
pub use reservation::{Reservation, promised_bytes};
use shell::{ConsoleBuffer, VmState};
use spin::{Mutex, Once};
use trace::{Event, RunState};

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
    /// Its disks and network cards, which come and go.
    devices: Mutex<Devices>,
    /// What it may use at most.
    limits: Mutex<Limits>,
    /// Memory that is kept for it.
    pub reservation: Arc<Reservation>,
    /// Between its lives, what its firmware keeps.
    variables: Mutex<Option<Vec<u8>>>,
    /// Where that is kept beyond this host's run, in words.
    variables_place: Mutex<Option<String>>,
    life: Mutex<Life>,
    /// What its guest sees of the processor, wherever it starts: a CPU profile's, or what it had where it came from. Without
    /// any it sees what its host has.
    baseline: Mutex<Option<Baseline>>,
    is_restoring: AtomicBool,
    /// How many lives in a row were short and ended with a reset.
    resets_in_a_row: AtomicU32,
    /// The host that it was moved to.
    moved_to: Once<String>,
}

/// What a life that was saved brings along for its VM.
pub struct Shape {
    devices: Devices,
    baseline: Option<Baseline>,
}

enum Life {
    Created,
    Running(Arc<Running>),
    Stopped,
    Saved,
    /// By its debug exit, with this code.
    Exited(u32),
    Crashed(String),
}

static NEXT_ID: AtomicU16 = AtomicU16::new(0);
static NEXT_MAC: AtomicU16 = AtomicU16::new(1);

/// VMs that are kept at most, running or not.
const VMS_MAX: usize = 256;

/// Free memory that a new VM's definition and console leave for everybody else.
const RESERVE_BYTES: u64 = 8 << 20;

/// Defines the VMs of the configuration, and starts those that it says.
pub fn create_configured(host: &'static Host) {
    for spec in &host.config.vms {
        if let Err((message, remedy)) = create(host, spec.clone()) {
            log::error!("{}: {message}; {remedy}", spec.name);
        }
    }
}

/// Defines a VM, and starts it where the definition says so; gives that start. Where it fails the VM is forgotten.
pub fn create(host: &'static Host, spec: VmSpec) -> Result<Option<Arc<Running>>, Refusal> {
    check_room(host)?;
    if host.vm(&spec.name).is_some() {
        return Err((format!("there is a VM {} already", spec.name), "choose another name, or delete it".into()));
    }
    check_fits(host, &spec)?;
    let files = [&spec.kernel, &spec.initrd].into_iter().flatten().map(String::as_str);
    for name in files.chain(spec.modules.iter().map(ModuleSpec::name)) {
        module(host, name)?;
    }
    if spec.kernel.is_none() {
        guest_firmware::Files::find(host)?;
    }
    let baseline = spec.cpu_profile.as_ref().map(|name| host.profiles.lock().get(name)).transpose()?;
    let start = spec.start;
    let macs = spec.nics.iter().map(|nic| nic.mac.unwrap_or_else(choose_mac)).collect();
    let vm = Vm::new(spec, macs)?;
    *vm.baseline.lock() = baseline;
    host.vms.lock().push(vm.clone());
    if !start {
        return Ok(None);
    }
    vm.start_as(host, Origin::Boot { is_first: true }).inspect_err(|_| forget(host, &vm)).map(Some)
}

/// Forgets a VM that does not run.
pub fn delete(host: &Host, vm: &Arc<Vm>) -> Result<(), Refusal> {
    if vm.running().is_some() {
        return Err((format!("{} is running", vm.name()), format!("stop it first: vm kill {}", vm.name())));
    }
    if vm.is_restoring.load(Ordering::Acquire) {
        return Err((format!("{} is being restored", vm.name()), "wait for that".into()));
    }
    forget(host, vm);
    Ok(())
}

impl Vm {
    /// A VM that has had no life yet.
    fn new(spec: VmSpec, macs: Vec<Mac>) -> Result<Arc<Self>, Refusal> {
        let reservation = Reservation::admit(spec.reserved.bytes())?;
        let devices = Mutex::new(Devices::new(&spec, macs));
        let limits = Mutex::new(spec.limits);
        Ok(Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            spec,
            console: Mutex::new(ConsoleBuffer::new()),
            devices,
            limits,
            reservation,
            variables: Mutex::new(None),
            variables_place: Mutex::new(None),
            life: Mutex::new(Life::Created),
            baseline: Mutex::new(None),
            is_restoring: AtomicBool::new(false),
            moved_to: Once::new(),
            resets_in_a_row: AtomicU32::new(0),
        }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its present life.
    pub fn running(&self) -> Option<Arc<Running>> {
        match &*self.life.lock() {
            Life::Running(running) => Some(running.clone()),
            Life::Created | Life::Stopped | Life::Saved | Life::Exited(_) | Life::Crashed(_) => None,
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
            Life::Running(running) if running.is_arriving() => VmState::Arriving,
            Life::Running(running) if running.is_moving() => match running.away() {
                Some((Away::Given, to)) => VmState::Given { to },
                Some((Away::Serving, to)) => VmState::Serving { to },
                // On its last way it stands still for a moment that is nobody's pause.
                None => VmState::Running,
            },
            Life::Running(running) if running.order() == Order::Pause => VmState::Paused,
            Life::Running(running) if running.is_short_of_memory() => VmState::Waiting,
            Life::Running(_) => VmState::Running,
            Life::Stopped => VmState::Stopped,
            Life::Saved => VmState::Saved,
            Life::Exited(code) => VmState::Exited { code: *code },
            Life::Crashed(reason) => VmState::Crashed { reason: reason.clone() },
        }
    }

    /// Powers it on. Its CPU goes on from here; [`Running::start`] says how that went.
    pub fn start(self: &Arc<Self>, host: &'static Host) -> Result<Arc<Running>, Refusal> {
        if self.is_restoring.load(Ordering::Acquire) {
            return Err((format!("{} is being restored", self.name()), "see \"vm list\"".into()));
        }
        if matches!(*self.life.lock(), Life::Saved) {
            // Started anew it would change disks that what is saved takes for unchanged.
            let remedy = format!("let it go on by \"vm restore\", or give that up: vm delete {}", self.name());
            return Err((format!("{} is saved", self.name()), remedy));
        }
        self.start_as(host, Origin::Boot { is_first: false })
    }

    /// What a saved life changes of the VM itself.
    pub fn shape(&self) -> Shape {
        Shape { devices: self.devices.lock().clone(), baseline: self.baseline.lock().clone() }
    }

    /// Undoes that.
    pub fn put_back(&self, shape: Shape) {
        (*self.devices.lock(), *self.baseline.lock()) = (shape.devices, shape.baseline);
    }

    /// Makes a life for what was saved: its memory is not prepared, and it does not run before it is let go. The VM takes
    /// its [`Shape`], also where that fails.
    pub fn start_held(self: &Arc<Self>, host: &'static Host, plan: &Plan) -> Result<Arc<Running>, Refusal> {
        let here = profile(host, plan.vcpus());
        let profile = plan.profile_on(&here).map_err(|unlike| {
            (format!("{} cannot go on here: {unlike}", self.name()), "restore it on a host like the one before".into())
        })?;
        let serial = |disk: &DiskSpec| padded(&host.storage.lock().serial(&disk.name).unwrap_or_default());
        self.devices.lock().adopt(plan, serial);
        *self.baseline.lock() = Some(Baseline::of(&profile));
        self.start_as(host, Origin::Saved(Box::new(profile)))
    }

    /// Notes that it is being restored; says whether it was not.
    pub fn start_restoring(&self) -> bool {
        !self.is_restoring.swap(true, Ordering::AcqRel)
    }

    /// Ends that.
    pub fn end_restoring(&self) {
        self.is_restoring.store(false, Ordering::Release);
    }

    /// Notes that it runs on another host now, or may: it is not started here again.
    pub fn set_moved(&self, to: &str) {
        self.moved_to.call_once(|| to.to_string());
    }

    /// The host that it was moved to.
    pub fn moved_to(&self) -> Option<&str> {
        self.moved_to.get().map(String::as_str)
    }

    /// The addresses of its network cards.
    pub fn macs(&self) -> Vec<Mac> {
        self.devices.lock().macs()
    }

    /// Its disks.
    pub fn disks(&self) -> Vec<DiskSpec> {
        self.devices.lock().disk_specs()
    }

    /// What its console printed, as far as it is kept.
    pub fn console_text(&self) -> Vec<u8> {
        let console = self.console.lock();
        let mut cursor = console.replay();
        let mut text = Vec::new();
        loop {
            let run = console.read(&mut cursor, ConsoleBuffer::BYTES);
            if run.is_empty() {
                return text;
            }
            text.extend_from_slice(run);
        }
    }

    /// Puts what its console had printed when it was saved behind what is kept, unless that ends so.
    pub fn recall_console(&self, text: &[u8]) {
        if !self.console_text().ends_with(text) {
            self.console.lock().push(text);
        }
    }

    fn start_as(self: &Arc<Self>, host: &'static Host, origin: Origin) -> Result<Arc<Running>, Refusal> {
        if self.running().is_some() {
            return Err((format!("{} is running already", self.name()), "see \"vm list\"".into()));
        }
        if let Some(to) = self.moved_to() {
            // It may run there, on the same disks.
            let remedy = format!("look there; if it is lost: vm delete {}, and create it anew", self.name());
            return Err((format!("{} was given to {to}", self.name()), remedy));
        }
        let mut disks = Vec::new();
        let running = claim_disks(host, &self.disks(), &mut disks).and_then(|()| {
            let running = self.build(host, &disks, origin)?;
            let ports = host.network.lock().add_guest(self)?;
            *running.ports.lock() = ports;
            Ok(running)
        });
        let running = running.inspect_err(|_| {
            let mut storage = host.storage.lock();
            disks.iter().for_each(|&lent| storage.release(lent));
        })?;
        self.live(host, &running);
        host.network.lock().set_guest(&running);
        Self::enqueue(host, &running);
        log::info!("{} starts on {}", self.name(), names_of_cpus(&running));
        Ok(running)
    }

    /// What its guest sees where it starts here.
    fn profile(&self, host: &Host) -> Result<CpuProfile, Refusal> {
        let vcpus = self.spec.vcpus.into();
        let here = profile(host, vcpus);
        let Some(baseline) = &*self.baseline.lock() else { return Ok(here) };
        baseline.profile_on(&here, vcpus).map_err(|unlike| {
            (
                format!("{} cannot start here: {unlike}", self.name()),
                "derive its CPU profile anew, of this host too".into(),
            )
        })
    }

    /// Makes it the VM's life.
    fn live(&self, host: &'static Host, running: &Arc<Running>) {
        running.limit(host, &self.limits());
        {
            let mut storage = host.storage.lock();
            running.lents().into_iter().enumerate().for_each(|(index, lent)| storage.set_owner(lent, running, index));
        }
        running.begin_keeping(host);
        *self.life.lock() = Life::Running(running.clone());
        services::note_variables(host, cpu::percpu::current().index());
    }

    /// Gives its vCPUs to their CPUs.
    fn enqueue(host: &Host, running: &Arc<Running>) {
        let from = cpu::percpu::current().index();
        for (vcpu, place) in running.vcpus.iter().enumerate() {
            host.cpus.queue(place.cpu()).lock().push(Queued { running: running.clone(), vcpu });
        }
        note(running.vm.id, RunState::Running);
        running.call_all(host, from);
    }

    /// Everything that a life needs, with its disks claimed.
    fn build(self: &Arc<Self>, host: &'static Host, disks: &[Lent], origin: Origin) -> Result<Arc<Running>, Refusal> {
        let no_memory = |_| ("there is no memory for page tables".to_string(), "stop another VM first".to_string());
        let frames = Arc::new(GuestFrames::take(self.spec.memory.bytes(), &self.reservation)?);
        let mut devices: Vec<_> = disks.iter().map(|&lent| host.storage.lock().source(lent)).collect();
        devices.sort();
        devices.dedup();
        devices.into_iter().try_for_each(|device| frames.put_in_reach(device)).map_err(no_memory)?;
        if let Origin::Boot { .. } = origin {
            frames.zero_at_use()?;
        }
        let (memory, firmware, flash) = guest_firmware::prepare(host, self, &frames)?;
        let mut second_stage = host.backend.second_stage().map_err(no_memory)?;
        let vcpu = |cpu| host.backend.vcpu(&second_stage).map(|vcpu| (vcpu, cpu));
        let cpus = host.cpus.choose(self.spec.vcpus.into(), &self.spec.pin);
        let vcpus = cpus.into_iter().map(vcpu).collect::<Result<Vec<_>, _>>();
        let vcpus = vcpus.map_err(|why| (why, "see \"host\"".to_string()))?;
        memory::map(&memory, &mut second_stage).map_err(no_memory)?;
        let (profile, is_first, is_held) = match origin {
            Origin::Boot { is_first } => (self.profile(host)?, is_first, false),
            Origin::Saved(profile) => (*profile, false, true),
        };
        let machine = Box::new(Machine::new(MachineConfig {
            id: self.id,
            vcpus: self.spec.vcpus.into(),
            memory,
            profile,
            disks: disks.iter().map(|&lent| disk_config(host, lent)).collect(),
            nics: self.macs().iter().map(|mac| NicConfig { mac: mac.bytes(), mtu: 1500 }).collect(),
            debug: DebugPorts { exit: self.spec.debug_exit, console: self.spec.debug_console },
            firmware,
            wall_unix_ns: host.clock.wall_unix_ns(),
        }));
        for (gpa, hpa) in machine.variable_pages() {
            second_stage.map_read_only(gpa, hpa).map_err(no_memory)?;
        }
        let bays = self.disks().into_iter().zip(disks).map(|(disk, &lent)| Some(Bay::new(disk.name, lent))).collect();
        let now_ns = host.clock.now_ns();
        let parts = Parts { machine, vcpus, second_stage, frames, flash, bays, now_ns, is_first, is_held };
        Ok(Arc::new(Running::new(self.clone(), parts)))
    }
}

/// Where a life comes from.
enum Origin {
    /// It begins with its kernel; `is_first`: this start also made the VM.
    Boot { is_first: bool },
    /// It was saved, with this profile.
    Saved(Box<CpuProfile>),
}

/// What a new guest with so many vCPUs sees here.
pub fn profile(host: &Host, vcpus: u32) -> CpuProfile {
    const XSAVES: u32 = 1 << 3;
    let hidden = if host.backend.has_xsaves() { 0 } else { XSAVES };
    let leaf = |leaf: u32, subleaf: u32| {
        let found = host_leaf(leaf, subleaf);
        if (leaf, subleaf) == (0xd, 1) { Leaf { eax: found.eax & !hidden, ..found } } else { found }
    };
    let profile = CpuProfile::new(leaf, vcpus, host.clock.tsc_khz() as u32);
    let profile = profile.with_arch_capabilities(cpu::speculation::arch_capabilities());
    match host.backend.tsc_fraction_bits() {
        Some(bits) => profile.with_tsc_scaling(bits),
        None => profile,
    }
}

/// A vCPU in its CPU's queue.
#[derive(Clone)]
pub struct Queued {
    pub running: Arc<Running>,
    /// Which of its vCPUs.
    pub vcpu: usize,
}

impl Queued {
    /// Whether it could run now.
    pub fn is_ready(&self, now_ns: u64) -> bool {
        self.running.ready_at_ns(self.vcpu).is_some_and(|ready_ns| ready_ns <= now_ns)
    }

    /// Its part of a CPU that others want too, relative to theirs.
    pub fn weight(&self) -> usize {
        self.running.vm.spec.weight.into()
    }

    /// How long it has been ready and may move to another CPU; `None` where it may not.
    pub fn waits_ns(&self, now_ns: u64) -> Option<u64> {
        let allowed_ns = now_ns.checked_sub(self.running.limited_until_ns())?;
        let waits_ns = self.running.vcpus[self.vcpu].waits_ns(now_ns)?;
        self.may_move(now_ns).then_some(waits_ns.min(allowed_ns))
    }

    /// Whether another CPU would be of use to it. While its VM has used up its time, none is.
    pub fn may_move(&self, now_ns: u64) -> bool {
        let may_run = self.running.may_run() && self.running.limited_until_ns() <= now_ns;
        may_run && self.running.vm.spec.pin.is_empty()
    }

    /// Whether they are the same vCPU.
    pub fn is(&self, other: &Self) -> bool {
        self.vcpu == other.vcpu && Arc::ptr_eq(&self.running, &other.running)
    }
}

fn names_of_cpus(running: &Running) -> String {
    let mut names = if running.vcpus.len() == 1 { "CPU".to_string() } else { "CPUs".to_string() };
    for (index, place) in running.vcpus.iter().enumerate() {
        names.push_str(&format!("{} {}", if index == 0 { "" } else { "," }, place.cpu()));
    }
    names
}

/// Takes an ended life's place in the network away: nobody finds it there from now on.
pub fn disconnect(host: &Host, running: &Running) {
    host.network.lock().remove_guest(running);
}

/// Takes back everything that an ended and disconnected life had; says whether that is done. It is not while disks
/// work in its memory, or another CPU is on its way out of it.
pub fn take_down(host: &'static Host, running: &Arc<Running>, ending: &Ending) -> bool {
    // What is left when all others have let go: the VM's own, and the caller's.
    const HOLDERS: usize = 2;
    if !running.finish_keeping(host) {
        return false;
    }
    {
        let mut storage = host.storage.lock();
        // All of them withdraw what they can, at once.
        let disks = running.lents();
        let busy = disks.iter().filter(|&&lent| !storage.drain(lent)).count();
        if busy > 0 || Arc::strong_count(running) > HOLDERS {
            return false;
        }
        disks.iter().for_each(|&lent| storage.release(lent));
    }
    let vm = &running.vm;
    vm.devices.lock().settle();
    // What never ran wrote nothing, and what was only half restored is nobody's.
    if running.has_begun()
        && let Some(variables) = running.machine.with_variables(|flash| flash.content(0..flash.bytes()))
    {
        *vm.variables.lock() = Some(variables);
    }
    *vm.life.lock() = match ending {
        // What is saved stays where it could not be restored.
        Ending::Saved => Life::Saved,
        Ending::NotStarted(_) | Ending::Ended(_) if running.is_held() && !running.has_begun() => Life::Saved,
        Ending::Ended(End::PowerOff | End::Reset | End::TripleFault(_)) | Ending::NotStarted(_) | Ending::Moved => {
            Life::Stopped
        }
        Ending::Ended(End::Exit(code)) => Life::Exited(*code),
        Ending::Ended(End::Crash(why)) => Life::Crashed(why.clone()),
    };
    match ending {
        Ending::Ended(End::PowerOff) => log::info!("{} is off", vm.name()),
        Ending::Ended(End::Reset | End::TripleFault(_)) => report_reset(vm, host.clock.now_ns() - running.started_ns),
        // Who saved it said so.
        Ending::Saved => {}
        Ending::Moved => forget(host, vm),
        Ending::Ended(End::Exit(code)) => log::info!("{} exited with {code}", vm.name()),
        Ending::Ended(End::Crash(why)) => log::error!("{} stopped: {why}", vm.name()),
        Ending::NotStarted((message, remedy)) => log::error!("{} does not start: {message}; {remedy}", vm.name()),
    }
    if running.is_first && matches!(ending, Ending::NotStarted(_)) {
        forget(host, vm);
    }
    true
}

/// Says that a life ended with a reset, `age_ns` after it began. A guest that does nothing but reset shall not fill the
/// console: of a row of short lives, those are reported whose number is a power of two.
fn report_reset(vm: &Vm, age_ns: u64) {
    const SHORT_NS: u64 = 10_000_000_000;
    let before = if age_ns < SHORT_NS { vm.resets_in_a_row.load(Ordering::Relaxed) } else { 0 };
    let count = before.saturating_add(1);
    vm.resets_in_a_row.store(count, Ordering::Relaxed);
    match count {
        1 => log::info!("{} resets", vm.name()),
        _ if count.is_power_of_two() => log::info!("{} resets, {count} times in a row", vm.name()),
        _ => {}
    }
}

/// Starts a VM again whose life ended with a reset.
pub fn restart(host: &'static Host, vm: &Arc<Vm>) {
    if let Err((message, remedy)) = vm.start(host) {
        log::error!("{} does not start again: {message}; {remedy}", vm.name());
    }
}

/// The boot module with this name, or in one line that there is none.
fn module(host: &Host, name: &str) -> Result<&'static [u8], Refusal> {
    host.module(name).ok_or_else(|| (format!("there is no boot module {name}"), "see \"modules\"".into()))
}

fn check_room(host: &Host) -> Result<(), Refusal> {
    if host.vms.lock().len() >= VMS_MAX {
        return Err((format!("there are {VMS_MAX} VMs already"), "delete one first: vm delete NAME".into()));
    }
    let idle_bytes = Heap::usage().idle_bytes() as u64;
    if idle_bytes + FRAMES.lock().free_bytes() < RESERVE_BYTES {
        return Err(("Pollux has no memory left for another VM".into(), "stop or delete one first".into()));
    }
    Ok(())
}

/// Refuses what this host can never run, whatever else runs on it.
fn check_fits(host: &Host, spec: &VmSpec) -> Result<(), Refusal> {
    let (needed_bytes, host_bytes) = (spec.memory.bytes(), host.memory_bytes());
    if needed_bytes > host_bytes {
        let message = format!("it needs {} MiB of memory and the host has {}", needed_bytes >> 20, host_bytes >> 20);
        return Err((message, "give it less memory".into()));
    }
    if let Some(cpu) = spec.pin.iter().find(|&&cpu| usize::from(cpu) >= host.cpus.count()) {
        let remedy = format!("pin it to CPUs below {}", host.cpus.count());
        return Err((format!("it is pinned to CPU {cpu}, which is not there"), remedy));
    }
    Ok(())
}

fn forget(host: &Host, vm: &Arc<Vm>) {
    host.vms.lock().retain(|other| !Arc::ptr_eq(other, vm));
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

fn claim_disks(host: &Host, specs: &[DiskSpec], disks: &mut Vec<Lent>) -> Result<(), Refusal> {
    for spec in specs {
        disks.push(claim_disk(host, spec)?);
    }
    Ok(())
}

fn claim_disk(host: &Host, DiskSpec { name, is_cdrom }: &DiskSpec) -> Result<Lent, Refusal> {
    let mut storage = host.storage.lock();
    let lent = if *is_cdrom { storage.claim_shared(name) } else { storage.claim(name) };
    lent.map_err(|(message, remedy)| (message, remedy.to_string()))
}

fn disk_config(host: &Host, lent: Lent) -> DiskConfig {
    let geometry = host.storage.lock().geometry(lent);
    let serial = padded(&geometry.serial);
    let discard = geometry.discard && geometry.write_zeroes && !geometry.read_only;
    DiskConfig {
        sectors: geometry.sectors,
        block_bytes: geometry.logical_block_bytes,
        read_only: geometry.read_only,
        write_through: geometry.write_through,
        discard,
        serial,
    }
}

/// A serial number as a virtual disk shows it.
fn padded(serial: &str) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
    bytes
}

fn host_leaf(leaf: u32, subleaf: u32) -> Leaf {
    let cpu::CpuidResult { eax, ebx, ecx, edx } = cpu::cpuid(leaf, subleaf);
    Leaf { eax, ebx, ecx, edx }
}
