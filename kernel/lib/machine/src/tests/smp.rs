//! Several vCPUs: start-up, interrupts between them, who is told, and what each sees of the others.

use super::bench::*;
use super::mock::{MockVcpu, Shared, host_tsc};
use crate::*;
use guestmem::heap::guest_memory;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex as StdMutex};
use vcpu::*;

/// The address of the x2APIC's interrupt command register.
const ICR: u32 = 0x830;
const INIT: u64 = 5 << 8;
const STARTUP: u64 = 6 << 8;
const ALL_BUT_SELF: u64 = 3 << 18;

/// A machine of several vCPUs.
struct Smp {
    machine: Machine,
    threads: Vec<Thread>,
    shared: Vec<Arc<StdMutex<Shared>>>,
    outbox: Outbox,
    host: TestHost,
}

impl Smp {
    fn new(vcpus: usize) -> Self {
        let machine = Machine::new(MachineConfig {
            id: 1,
            vcpus: vcpus as u32,
            memory: guest_memory(MEMORY_BYTES),
            profile: CpuProfile::new(amd, vcpus as u32, TSC_KHZ),
            disks: vec![],
            nics: vec![],
            debug: DebugPorts::default(),
            firmware: None,
            wall_unix_ns: WALL_UNIX_NS,
        });
        let shared: Vec<Arc<StdMutex<Shared>>> = (0..vcpus).map(|_| Arc::default()).collect();
        let thread = |index: usize| {
            let vcpu = Box::new(MockVcpu::new(shared[index].clone()));
            let state = if index == 0 { flat_state() } else { VcpuState::reset() };
            machine.thread(index, vcpu, &state, 0, Moment { ns: 1_000, tsc: host_tsc(1_000) })
        };
        let threads = (0..vcpus).map(thread).collect();
        let host = TestHost::new(Arc::new(AtomicU64::new(1_000)));
        Self { machine, threads, shared, outbox: Outbox::new(), host }
    }

    /// With all of them started, their local APICs enabled in x2APIC mode and interrupts open.
    fn started(vcpus: usize) -> Self {
        let mut smp = Self::new(vcpus);
        smp.enable_x2apic(0);
        smp.write_msr(0, ICR, ALL_BUT_SELF | INIT);
        smp.write_msr(0, ICR, ALL_BUT_SELF | STARTUP | 0x10);
        for vcpu in 1..vcpus {
            smp.enable_x2apic(vcpu);
        }
        for vcpu in 0..vcpus {
            smp.open(vcpu);
        }
        smp.host.kicks.clear();
        smp
    }

    fn run(&mut self, vcpu: usize) -> Pause {
        self.machine.run(&mut self.threads[vcpu], &mut self.outbox, &mut self.host)
    }

    fn exit(&mut self, vcpu: usize, exit: Exit) -> Pause {
        self.shared[vcpu].lock().unwrap().script.push_back(Box::new(move |_| exit));
        self.run(vcpu)
    }

    fn write_msr(&mut self, vcpu: usize, index: u32, value: u64) {
        assert_eq!(self.exit(vcpu, Exit::MsrWrite { index, value }), Pause::Interrupted);
    }

    fn enable_x2apic(&mut self, vcpu: usize) {
        let boot = if vcpu == 0 { 0x100 } else { 0 };
        self.write_msr(vcpu, 0x1b, 0xfee0_0c00 | boot);
        self.write_msr(vcpu, 0x80f, 0x1ff);
    }

    /// STI.
    fn open(&mut self, vcpu: usize) {
        let flags = self.threads[vcpu].vcpu.rflags() | rflags::IF;
        self.threads[vcpu].vcpu.set_rflags(flags);
    }

    /// What the guest took on a vCPU since the last call, its handlers being over at once.
    fn taken(&mut self, vcpu: usize) -> Vec<Event> {
        self.open(vcpu);
        std::mem::take(&mut self.shared[vcpu].lock().unwrap().taken)
    }
}

#[test]
fn others_wait_until_they_are_started() {
    let mut smp = Smp::new(3);
    assert_eq!(smp.run(1), Pause::Idle(None));
    smp.enable_x2apic(0);
    smp.write_msr(0, ICR, 1 << 32 | STARTUP | 0x9a);
    assert_eq!(smp.host.kicks, [1]);
    assert_eq!(smp.run(1), Pause::Interrupted, "after power-up it waits as after INIT");
    let state = smp.threads[1].vcpu.state();
    let code = state.segments[SegmentName::Cs as usize];
    assert_eq!((code.selector, code.base, state.rip), (0x9a00, 0x9a000, 0));
    assert_eq!(smp.run(2), Pause::Idle(None), "it was not meant");
    smp.write_msr(0, ICR, 1 << 32 | STARTUP | 0x44);
    smp.run(1);
    assert_eq!(smp.threads[1].vcpu.segment(SegmentName::Cs).base, 0x9a000, "it runs: nobody hears the second");
}

#[test]
fn init_stops_a_running_one_and_keeps_what_it_must() {
    let mut smp = Smp::started(2);
    let mut state = smp.threads[1].vcpu.state();
    (state.cr0, state.pat, state.xcr0, state.rip) = (cr0::PE | cr0::CD, 0x0606, 7, 0x1234);
    smp.threads[1].vcpu.set_state(&state);
    smp.write_msr(0, ICR, 1 << 32 | 1 << 14 | INIT);
    assert_eq!(smp.run(1), Pause::Idle(None));
    let after = smp.threads[1].vcpu.state();
    assert_eq!((after.cr0, after.pat, after.xcr0, after.rip), (cr0::ET | cr0::CD, 0x0606, 7, 0xfff0));
    smp.write_msr(0, ICR, 1 << 32 | 0x40);
    smp.write_msr(0, ICR, 1 << 32 | 4 << 8);
    assert_eq!(smp.run(1), Pause::Idle(None), "its local APIC is off, and an NMI waits for nobody");
    smp.write_msr(0, ICR, 1 << 32 | STARTUP | 0x10);
    assert_eq!(smp.run(1), Pause::Interrupted);
    assert_eq!(smp.taken(1), []);
    assert_eq!(smp.threads[1].vcpu.tsc_offset(), smp.threads[0].vcpu.tsc_offset(), "one TSC for all");
}

#[test]
fn init_right_before_start_up_is_one_look() {
    let mut smp = Smp::started(2);
    smp.write_msr(0, ICR, 1 << 32 | STARTUP | 0x77);
    smp.write_msr(0, ICR, 1 << 32 | INIT);
    smp.write_msr(0, ICR, 1 << 32 | STARTUP | 0x20);
    assert_eq!(smp.run(1), Pause::Interrupted);
    assert_eq!(smp.threads[1].vcpu.segment(SegmentName::Cs).base, 0x20000);
}

#[test]
fn only_those_addressed_are_told_and_each_once() {
    let mut smp = Smp::started(4);
    smp.write_msr(0, ICR, 2 << 32 | 0x41);
    assert_eq!(smp.host.kicks, [2]);
    smp.write_msr(3, ICR, 2 << 32 | 0x42);
    smp.write_msr(3, ICR, 2 << 32 | 0x42);
    assert_eq!(smp.host.kicks, [2], "it was told and has not looked yet");
    smp.run(2);
    assert_eq!(smp.taken(2), [Event::Interrupt(0x42)]);
    smp.write_msr(2, 0x80b, 0);
    assert_eq!(smp.taken(2), [Event::Interrupt(0x41)]);
    smp.host.kicks.clear();
    smp.write_msr(1, ICR, ALL_BUT_SELF | 0x51);
    assert_eq!(smp.host.kicks, [0, 2, 3]);
    smp.host.kicks.clear();
    // Cluster 0, members 0 and 1.
    smp.write_msr(3, ICR, 3 << 32 | 1 << 11 | 0x52);
    assert_eq!(smp.host.kicks, [1], "vCPU 0 still has mail");
}

#[test]
fn an_interrupt_to_itself_needs_no_look_by_others() {
    let mut smp = Smp::started(2);
    smp.write_msr(1, 0x83f, 0x61);
    assert_eq!(smp.taken(1), [Event::Interrupt(0x61)]);
    assert!(smp.host.kicks.iter().all(|&vcpu| vcpu == 1));
}

#[test]
fn an_nmi_ends_a_halt_of_another() {
    let mut smp = Smp::started(2);
    assert_eq!(smp.exit(1, Exit::Halt), Pause::Idle(None));
    smp.write_msr(0, ICR, 1 << 32 | 4 << 8);
    assert!(smp.machine.has_mail(1));
    assert_eq!(smp.run(1), Pause::Interrupted);
    assert_eq!(smp.taken(1), [Event::Nmi]);
}

#[test]
fn the_chipsets_timers_are_the_boot_vcpu_s_whoever_sets_them() {
    let mut smp = Smp::started(2);
    for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        smp.threads[1].vcpu.gprs_mut()[Gpr::Rax as usize] = value;
        smp.exit(1, Exit::Port(PortAccess { port, size: 1, direction: PortDirection::Out, string: false }));
    }
    assert_eq!(smp.host.kicks, [0]);
    smp.host.armed.clear();
    smp.run(0);
    let due = smp.machine.board.lock().chipset.deadline_ns().unwrap();
    assert_eq!(smp.host.armed, [due]);
    assert_eq!(smp.exit(1, Exit::Halt), Pause::Idle(None));
}

#[test]
fn an_invalidation_is_seen_before_the_next_entry() {
    let mut smp = Smp::started(2);
    smp.machine.invalidate_all(&mut smp.host);
    assert_eq!(smp.host.kicks, [0, 1]);
    assert!(smp.machine.invalidated(), "nobody is in the guest");
    for vcpu in 0..2 {
        let shared = smp.shared[vcpu].clone();
        let seen = Box::new(move |_: &mut VcpuState| {
            assert_eq!(shared.try_lock().unwrap().invalidations, 1);
            Exit::Pause
        });
        smp.shared[vcpu].lock().unwrap().script.push_back(seen);
        smp.run(vcpu);
        assert_eq!(smp.shared[vcpu].lock().unwrap().script.len(), 0);
    }
}

/// Stolen time at this address.
const STEAL: u64 = 0x5000;
const SEND_IPI: u64 = 10;

fn hypercall(smp: &mut Smp, vcpu: usize, arguments: [u64; 5]) -> u64 {
    for (gpr, value) in [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi].into_iter().zip(arguments) {
        smp.threads[vcpu].vcpu.gprs_mut()[gpr as usize] = value;
    }
    smp.exit(vcpu, Exit::Hypercall);
    smp.threads[vcpu].vcpu.gprs()[Gpr::Rax as usize]
}

#[test]
fn stolen_time_is_told_and_flushes_wait_for_the_next_entry() {
    let mut smp = Smp::started(2);
    let load = |smp: &Smp, offset, size| smp.machine.memory().load(addr::Gpa::new(STEAL + offset), size).unwrap();
    smp.host.steal_ns = 777;
    smp.write_msr(1, 0x4b56_4d03, STEAL | 1);
    assert_eq!(load(&smp, 16, 1), 1, "it does not run now");
    smp.host.steal_ns = 1234;
    let before = smp.shared[1].lock().unwrap().invalidations;
    smp.run(1);
    // What was stolen before it asked is nobody's; from then on it adds up.
    assert_eq!((load(&smp, 0, 8), load(&smp, 8, 4) % 2), (1234 - 777, 0));
    assert_eq!(smp.shared[1].lock().unwrap().invalidations, before, "nobody asked for a flush");
    smp.machine.memory().store(addr::Gpa::new(STEAL + 16), 1, 3).unwrap();
    smp.run(1);
    assert_eq!(smp.shared[1].lock().unwrap().invalidations, before + 1);
    smp.exit(1, Exit::MsrWrite { index: 0x4b56_4d03, value: STEAL | 9 });
    assert_eq!(smp.taken(1), [PROTECTION]);
    smp.exit(1, Exit::MsrWrite { index: 0x4b56_4d03, value: 1 << 40 | 1 });
    assert_eq!(smp.taken(1), [PROTECTION], "no memory there");
}

#[test]
fn one_hypercall_interrupts_many() {
    let mut smp = Smp::started(4);
    assert_eq!(hypercall(&mut smp, 0, [SEND_IPI, 0b101, 0, 1, 0x4041]), 2);
    assert_eq!(smp.host.kicks, [1, 3]);
    for vcpu in [1, 3] {
        smp.run(vcpu);
        assert_eq!(smp.taken(vcpu), [Event::Interrupt(0x41)]);
    }
    // Beyond the last one there is nobody; IDs that wrap are nobody's either.
    assert_eq!(hypercall(&mut smp, 0, [SEND_IPI, u64::MAX, u64::MAX, 3, 0x4041]), 1);
    assert_eq!(hypercall(&mut smp, 0, [SEND_IPI, 6, 0, u64::MAX, 0x4041]), 0);
    let start_up = 6 << 8 | 0x10;
    assert_eq!(hypercall(&mut smp, 0, [SEND_IPI, 2, 0, 0, start_up]) as u32, -22i32 as u32);
    let mut state = smp.threads[0].vcpu.state();
    state.segments[SegmentName::Ss as usize].attributes |= 3 << 5;
    smp.threads[0].vcpu.set_state(&state);
    assert_eq!(hypercall(&mut smp, 0, [SEND_IPI, 2, 0, 0, 0x41]) as u32, -1i32 as u32, "programs may not");
}

#[test]
fn a_kick_ends_a_halt_with_interrupts_shut_even_before_it() {
    let mut smp = Smp::started(2);
    let shut = smp.threads[1].vcpu.rflags() & !rflags::IF;
    smp.threads[1].vcpu.set_rflags(shut);
    assert_eq!(smp.exit(1, Exit::Halt), Pause::Idle(None));
    assert_eq!(hypercall(&mut smp, 0, [5, 0, 1, 0, 0]), 0);
    assert_eq!(smp.run(1), Pause::Interrupted, "it goes on");
    assert_eq!(smp.exit(1, Exit::Halt), Pause::Idle(None), "once");
    assert_eq!(hypercall(&mut smp, 0, [5, 0, 1, 0, 0]), 0);
    smp.run(1);
    assert_eq!(hypercall(&mut smp, 0, [5, 0, 1, 0, 0]), 0);
    assert_eq!(smp.exit(1, Exit::Halt), Pause::Interrupted, "the kick was first");
    assert_eq!(hypercall(&mut smp, 0, [5, 0, 9, 0, 0]) as u32, -22i32 as u32);
}

#[test]
fn who_spins_gives_way() {
    let mut smp = Smp::started(2);
    assert_eq!(smp.exit(0, Exit::Pause), Pause::Interrupted);
    assert_eq!(hypercall(&mut smp, 0, [11, 1, 0, 0, 0]), 0);
    assert_eq!(smp.host.ways, [None, Some(1)]);
}
