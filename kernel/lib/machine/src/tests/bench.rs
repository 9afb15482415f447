//! [`Bench`]: a machine with 4 MiB of memory whose one vCPU is a [`MockVcpu`] and whose host is a [`TestHost`].
//!
//! The guest is a flat 32-bit program without paging: linear addresses are physical ones. Time is what the test says:
//! the TSC ticks twice a nanosecond and did not start at zero.

use super::mock::{MockVcpu, Shared, host_tsc};
use crate::*;
use addr::Gpa;
use block::HostRun;
use guestmem::heap::guest_memory;
use std::sync::atomic::{AtomicU64, Ordering as AtomicOrdering};
use std::sync::{Arc, Mutex as StdMutex};
use vcpu::*;

/// For what is not limited in time.
pub const NOW: Moment = Moment { ns: 0, tsc: 0 };
pub const MEMORY_BYTES: u64 = 4 << 20;
pub const TSC_KHZ: u32 = 2_000_000;
pub const WALL_UNIX_NS: u64 = 1_700_000_000_123_456_789;
/// Where the code of [`Bench::emulate`] lies.
const CODE: u64 = 0x8000;

/// A host that writes down what it is told.
pub struct TestHost {
    time: Arc<AtomicU64>,
    /// Who was kicked, in order.
    pub kicks: Vec<usize>,
    /// To whom a vCPU gave way.
    pub ways: Vec<Option<usize>>,
    pub steal_ns: u64,
    pub armed: Vec<u64>,
    pub console: Vec<u8>,
    pub transfers: Vec<(OutTransfer, Vec<HostRun>)>,
    pub frames: Vec<(usize, Vec<u8>)>,
    /// How often the guest gave memory up.
    pub given_up: u32,
    /// Whether there is memory for what a guest touches, and for what it touched.
    pub has_memory: bool,
    pub backed: Vec<Gpa>,
    /// How many pages were shown, or hidden, at a time.
    pub shown: Vec<(usize, bool)>,
    /// What is done while the vCPU lingers, one for each time that it may.
    pub lingers: Vec<Box<dyn FnOnce() + Send>>,
    /// How often the vCPU may run on when the host is called.
    pub runs_on: u32,
    /// The most that one flush had: console bytes, transfers, runs, frames.
    pub flush_max: [usize; 4],
}

impl TestHost {
    /// A host that was told nothing. `time` is in nanoseconds.
    pub fn new(time: Arc<AtomicU64>) -> Self {
        let (kicks, armed, console, transfers, frames) = (vec![], vec![], vec![], vec![], vec![]);
        let (given_up, has_memory, backed, shown) = (0, false, vec![], vec![]);
        let (ways, steal_ns, flush_max) = (vec![], 0, [0; 4]);
        Self {
            time,
            kicks,
            ways,
            steal_ns,
            armed,
            console,
            transfers,
            frames,
            given_up,
            has_memory,
            backed,
            shown,
            lingers: vec![],
            runs_on: 0,
            flush_max,
        }
    }
}

impl Host for TestHost {
    fn now(&self) -> Moment {
        let ns = self.time.load(AtomicOrdering::Relaxed);
        Moment { ns, tsc: host_tsc(ns) }
    }

    fn arm(&mut self, ns: u64) {
        self.armed.push(ns);
    }

    fn kick(&mut self, vcpu: usize) {
        self.kicks.push(vcpu);
    }

    fn linger(&mut self, has_mail: &dyn Fn() -> bool) -> bool {
        if let Some(meanwhile) = self.lingers.pop() {
            assert!(!has_mail(), "what was there kept it from halting");
            meanwhile();
        }
        has_mail()
    }

    fn may_run_on(&mut self) -> bool {
        let may = self.runs_on > 0;
        self.runs_on = self.runs_on.saturating_sub(1);
        may
    }

    fn give_way(&mut self, to: Option<usize>) {
        self.ways.push(to);
    }

    fn back(&mut self, gpa: Gpa) -> bool {
        self.backed.push(gpa);
        self.has_memory
    }

    fn show_pages(&mut self, pages: &mut dyn Iterator<Item = (Gpa, addr::Hpa)>, readable: bool) {
        self.shown.push((pages.count(), readable));
    }

    fn steal_ns(&self) -> u64 {
        self.steal_ns
    }

    fn flush(&mut self, outbox: &mut Outbox) {
        let before = (self.console.len(), self.transfers.len(), self.frames.len());
        self.given_up += u32::from(outbox.given_up());
        self.console.extend_from_slice(outbox.console());
        self.transfers.extend(outbox.transfers().map(|(transfer, runs)| (*transfer, runs.to_vec())));
        self.frames.extend(outbox.frames_mut().iter().map(|out| (out.nic, out.frame.bytes.clone())));
        let runs = self.transfers[before.1..].iter().map(|(_, runs)| runs.len()).sum();
        let sizes =
            [self.console.len() - before.0, self.transfers.len() - before.1, runs, self.frames.len() - before.2];
        for (max, size) in self.flush_max.iter_mut().zip(sizes) {
            *max = size.max(*max);
        }
    }

    fn random(&mut self, into: &mut [u8]) {
        into.fill(0xa5);
    }

    fn trace(&mut self, _event: trace::Event) {}
}

/// A machine, its vCPU and its host.
pub struct Bench {
    pub machine: Arc<Machine>,
    pub thread: Thread,
    pub outbox: Outbox,
    pub host: TestHost,
    pub shared: Arc<StdMutex<Shared>>,
    time: Arc<AtomicU64>,
    disks: Vec<DiskConfig>,
    nics: Vec<NicConfig>,
}

/// A processor of AMD's with every feature bit set but TSC_ADJUST, which is Intel's: leaves up to 0Dh and 8000_001Eh.
pub fn amd(leaf: u32, subleaf: u32) -> Leaf {
    let all = Leaf { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };
    let component = |bytes, offset, aligned| Leaf { eax: bytes, ebx: offset, ecx: aligned, edx: 0 };
    match (leaf, subleaf) {
        (0, _) => vendor(0x20, b"AuthenticAMD"),
        (0x8000_0000, _) => vendor(0x8000_001e, b"AuthenticAMD"),
        // Nothing about speculation, no protection keys and no LA57, which the first version did not offer.
        (0x8000_0008, _) => Leaf { eax: 0x3030_3028, ebx: 1, ..all },
        (7, 0) => Leaf { ebx: !(1 << 1), ecx: !(1 << 3 | 1 << 16), edx: 1 << 4, ..all },
        (7, _) => Leaf::default(),
        (0xd, 0) => Leaf { eax: 0xe7, ebx: 0, ecx: 0, edx: u32::MAX },
        // No XSAVES, which it did not offer either.
        (0xd, 1) => Leaf { eax: !(1 << 3), ..all },
        (0xd, 2) => component(256, 576, 0),
        // The standard form has a hole before these; the compacted one aligns the last.
        (0xd, 5) => component(40, 1088, 0),
        (0xd, 6) => component(512, 1152, 0),
        (0xd, 7) => component(1024, 1664, 2),
        (0xd, 9) => component(8, 2688, 0),
        _ => all,
    }
}

/// Leaf 0 of a processor.
pub fn vendor(last: u32, name: &[u8; 12]) -> Leaf {
    let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
    Leaf { eax: last, ebx: word(0), edx: word(4), ecx: word(8) }
}

pub fn disk(sectors: u64) -> DiskConfig {
    DiskConfig { sectors, block_bytes: 512, read_only: false, write_through: false, discard: true, serial: [b's'; 20] }
}

pub fn nic() -> NicConfig {
    NicConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }
}

pub fn flat_state() -> VcpuState {
    let segment = |attributes| Segment { selector: 8, attributes, limit: u32::MAX, base: 0 };
    let mut state = VcpuState::reset();
    state.segments = [segment(0xc93); 6];
    state.segments[SegmentName::Cs as usize] = segment(0xc9b);
    (state.cr0, state.rip) = (cr0::PE | cr0::ET, CODE);
    state
}

impl Bench {
    /// A machine without disks and cards.
    pub fn new() -> Self {
        Self::with(vec![], vec![])
    }

    pub fn with(disks: Vec<DiskConfig>, nics: Vec<NicConfig>) -> Self {
        Self::on(amd, disks, nics)
    }

    /// A machine on a processor with this CPUID.
    pub fn on(host_leaf: fn(u32, u32) -> Leaf, disks: Vec<DiskConfig>, nics: Vec<NicConfig>) -> Self {
        Self::with_debug_ports(host_leaf, disks, nics, DebugPorts::default())
    }

    /// The same with debug ports.
    pub fn with_debug_ports(
        host_leaf: fn(u32, u32) -> Leaf,
        disks: Vec<DiskConfig>,
        nics: Vec<NicConfig>,
        debug: DebugPorts,
    ) -> Self {
        Self::of(MachineConfig {
            id: 1,
            vcpus: 1,
            memory: guest_memory(MEMORY_BYTES),
            profile: CpuProfile::new(host_leaf, 1, TSC_KHZ),
            disks,
            nics,
            debug,
            firmware: None,
            wall_unix_ns: WALL_UNIX_NS,
        })
    }

    /// Any machine with one vCPU.
    pub fn of(config: MachineConfig) -> Self {
        let (time, shared) = (Arc::new(AtomicU64::new(1_000)), Arc::new(StdMutex::new(Shared::default())));
        let (disks, nics) = (config.disks.clone(), config.nics.clone());
        let machine = Arc::new(Machine::new(config));
        let vcpu = MockVcpu::new(shared.clone());
        let host = TestHost::new(time.clone());
        let thread = machine.thread(0, Box::new(vcpu), &flat_state(), 0, Moment { ns: 1_000, tsc: host_tsc(1_000) });
        Self { machine, thread, outbox: Outbox::new(), host, shared, time, disks, nics }
    }

    /// Saves the machine, which goes on afterwards.
    pub fn save(&mut self) -> Result<Vec<u8>, Busy> {
        let now = self.host.now();
        self.machine.close();
        let vcpu = self.machine.save_vcpu(&mut self.thread, now);
        let saved = self.machine.save(&[vcpu], now);
        self.machine.open();
        saved
    }

    /// A machine on another host, whose clock is at `now_ns` and `away_ns` ahead of when `self` is, with the memory of
    /// `self` and what was saved of it.
    pub fn restore(&self, saved: &[u8], now_ns: u64, away_ns: u64) -> Result<Self, RestoreError> {
        let wall_unix_ns = WALL_UNIX_NS + self.now_ns() + away_ns - now_ns;
        let plan = self.machine.plan();
        let here = CpuProfile::new(amd, 1, TSC_KHZ);
        self.restore_with(saved, now_ns, 0, |memory| MachineConfig {
            id: 2,
            vcpus: 1,
            memory,
            profile: plan.profile_on(&here).unwrap(),
            disks: self.disks.clone(),
            nics: self.nics.clone(),
            debug: self.machine.board.lock().chipset.debug_ports(),
            firmware: None,
            wall_unix_ns,
        })
    }

    pub fn restore_with(
        &self,
        saved: &[u8],
        now_ns: u64,
        ahead_ns: i64,
        config: impl FnOnce(guestmem::GuestMemory) -> MachineConfig,
    ) -> Result<Self, RestoreError> {
        let (time, shared) = (Arc::new(AtomicU64::new(now_ns)), Arc::new(StdMutex::new(Shared::default())));
        let memory = guest_memory(MEMORY_BYTES);
        memory.write(Gpa::new(0), &self.memory_image()).unwrap();
        let machine = Arc::new(Machine::new(config(memory)));
        let host = TestHost::new(time.clone());
        let vcpu = Box::new(MockVcpu::new(shared.clone()));
        let mut threads = machine.restore(saved, vec![vcpu], host.now(), ahead_ns)?;
        let thread = threads.remove(0);
        let (disks, nics) = (self.disks.clone(), self.nics.clone());
        Ok(Self { machine, thread, outbox: Outbox::new(), host, shared, time, disks, nics })
    }

    pub fn memory_image(&self) -> Vec<u8> {
        let mut image = vec![0; MEMORY_BYTES as usize];
        self.machine.memory().read(Gpa::new(0), &mut image).unwrap();
        image
    }

    /// Nanoseconds that the guest's TSC has been running, twice.
    pub fn now_ns(&self) -> u64 {
        self.time.load(AtomicOrdering::Relaxed)
    }

    pub fn pass(&mut self, ns: u64) {
        self.time.fetch_add(ns, AtomicOrdering::Relaxed);
    }

    /// Appends to what the guest does.
    pub fn then(&mut self, step: impl FnOnce(&mut VcpuState) -> Exit + Send + 'static) {
        self.shared.lock().unwrap().script.push_back(Box::new(step));
    }

    /// Runs until the script is over or something else ends the run.
    pub fn run(&mut self) -> Pause {
        self.machine.run(&mut self.thread, &mut self.outbox, &mut self.host)
    }

    /// Runs with one more exit.
    pub fn exit(&mut self, exit: Exit) -> Pause {
        self.then(move |_| exit);
        self.run()
    }

    /// The events taken since the last call.
    pub fn taken(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.shared.lock().unwrap().taken)
    }

    pub fn gpr(&self, gpr: Gpr) -> u64 {
        self.thread.vcpu.gprs()[gpr as usize]
    }

    pub fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.thread.vcpu.gprs_mut()[gpr as usize] = value;
    }

    /// STI or CLI.
    pub fn set_if(&mut self, open: bool) {
        let others = self.thread.vcpu.rflags() & !rflags::IF;
        self.thread.vcpu.set_rflags(others | if open { rflags::IF } else { 0 });
    }

    pub fn out(&mut self, port: u16, size: u8, value: u32) -> Pause {
        self.set_gpr(Gpr::Rax, value.into());
        self.exit(Exit::Port(PortAccess { port, size, direction: PortDirection::Out, string: false }))
    }

    /// IN, all ones before it in RAX; all of RAX after it.
    pub fn input(&mut self, port: u16, size: u8) -> u64 {
        self.set_gpr(Gpr::Rax, u64::MAX);
        self.exit(Exit::Port(PortAccess { port, size, direction: PortDirection::In, string: false }));
        self.gpr(Gpr::Rax)
    }

    pub fn read_msr(&mut self, index: u32) -> Result<u64, Event> {
        self.taken();
        self.exit(Exit::MsrRead { index });
        match self.taken().first() {
            Some(&event @ Event::Exception(_)) => Err(event),
            _ => Ok(self.gpr(Gpr::Rdx) << 32 | self.gpr(Gpr::Rax)),
        }
    }

    pub fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Event> {
        self.taken();
        self.exit(Exit::MsrWrite { index, value });
        match self.taken().first() {
            Some(&event @ Event::Exception(_)) => Err(event),
            _ => Ok(()),
        }
    }

    pub fn cpuid(&mut self, leaf: u32, subleaf: u32) -> Leaf {
        self.exit(Exit::Cpuid { leaf, subleaf });
        let [eax, ecx, edx, ebx] = [Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rbx].map(|gpr| self.gpr(gpr) as u32);
        Leaf { eax, ebx, ecx, edx }
    }

    /// Carries out the instruction `code` behind an exit.
    pub fn emulate(&mut self, code: &[u8], exit: Exit) {
        self.machine.memory().write(Gpa::new(CODE), code).unwrap();
        let code_bytes = code.len() as u64;
        self.then(move |state| {
            state.rip = CODE;
            exit
        });
        assert_eq!(self.run(), Pause::Interrupted);
        assert_eq!(self.thread.rip(), CODE + code_bytes, "{code:02x?} is complete");
    }

    /// MOV [EDI], EAX or AX or AL.
    pub fn mmio_write(&mut self, gpa: u64, size: u8, value: u32) {
        let code: &[u8] = match size {
            1 => &[0x88, 0x07],
            2 => &[0x66, 0x89, 0x07],
            _ => &[0x89, 0x07],
        };
        self.set_gpr(Gpr::Rdi, gpa);
        self.set_gpr(Gpr::Rax, value.into());
        self.emulate(code, Exit::NestedFault { gpa: Gpa::new(gpa), access: Access::Write, page_walk: false });
    }

    /// MOV EAX or AX or AL, [EDI].
    pub fn mmio_read(&mut self, gpa: u64, size: u8) -> u32 {
        let code: &[u8] = match size {
            1 => &[0x8a, 0x07],
            2 => &[0x66, 0x8b, 0x07],
            _ => &[0x8b, 0x07],
        };
        self.set_gpr(Gpr::Rdi, gpa);
        self.set_gpr(Gpr::Rax, 0);
        self.emulate(code, Exit::NestedFault { gpa: Gpa::new(gpa), access: Access::Read, page_walk: false });
        self.gpr(Gpr::Rax) as u32
    }

    pub fn load(&self, at: u64, size: usize) -> u64 {
        self.machine.memory().load(Gpa::new(at), size).unwrap()
    }

    pub fn store(&self, at: u64, size: usize, value: u64) {
        self.machine.memory().store(Gpa::new(at), size, value).unwrap();
    }

    /// Turns on the local APIC in x2APIC mode.
    pub fn enable_x2apic(&mut self) {
        self.write_msr(0x1b, 0xfee0_0d00).unwrap();
        self.write_msr(0x80f, 0x1ff).unwrap();
    }

    /// Programs an IOAPIC pin.
    pub fn set_ioapic_pin(&mut self, pin: u32, low: u32) {
        for (register, value) in [(0x11 + 2 * pin, 0), (0x10 + 2 * pin, low)] {
            self.mmio_write(0xfec0_0000, 4, register);
            self.mmio_write(0xfec0_0010, 4, value);
        }
    }
}

/// #GP(0).
pub const PROTECTION: Event = Event::Exception(Exception::PROTECTION);
