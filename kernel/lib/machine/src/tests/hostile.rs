//! A guest that does anything, a host that answers in any order: nothing panics, nothing grows without end.

use super::bench::*;
use super::driver::{BUFFERS, Driver, VERSION_1};
use crate::Pause;
use addr::Gpa;
use chipset::{DeliveryMode, Message, Target};
use proptest::prelude::*;
use vcpu::{Access, Exit, Gpr, PortAccess, PortDirection, rflags};
use virtio::blk::Outcome;

/// Where the instructions of emulated accesses lie.
const CODE: u64 = 0x8000;

/// What happens next.
#[derive(Clone, Debug)]
enum Action {
    Exit(Exit),
    /// A MOV at an address.
    Move {
        gpa: u64,
        size: u8,
        value: Option<u32>,
    },
    Register(usize, u64),
    /// Eight bytes of memory where rings, buffers and code are.
    Memory(u64, u64),
    Kick(u32, u32),
    Pass(u64),
    Flags(u64),
    Key(usize),
    Frame(usize),
    Finish(usize, bool),
    PowerButton,
}

fn port() -> impl Strategy<Value = u16> {
    let board = prop::sample::select(vec![
        0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x4d0, 0x4d1, 0x600, 0x602,
        0x608, 0xcf8, 0xcfa, 0xcfc, 0xcfd, 0xcff, 0xc000, 0xc020, 0xc040, 0xc060,
    ]);
    prop_oneof![3 => board, 2 => 0x3f8..0x400u16, 1 => any::<u16>()]
}

fn gpa() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0u64..4, 0u64..0x4000).prop_map(|(device, offset)| 0xfe00_0000 + 0x1_0000 * device + offset),
        2 => (0u64..4, 0u64..64).prop_map(|(device, offset)| 0xfe00_0000 + 0x1_0000 * device + offset),
        1 => (0u64..0x50).prop_map(|offset| 0xfec0_0000 + offset),
        1 => (0u64..0x400).prop_map(|offset| 0xfee0_0000 + offset),
        1 => (0u64..0x10_0000).prop_map(|offset| 0xe000_0000 + offset),
        1 => 0xc000_0000..0xffff_fff0u64,
    ]
}

fn msr() -> impl Strategy<Value = u32> {
    prop_oneof![
        0x800..0x840u32,
        0x200..0x300u32,
        prop::sample::select(vec![0x10, 0x1b, 0x6e0, 0x8b, 0x1a0, 0xc000_0080, 0xc001_0015, 0xc001_1029]),
        0x4b56_4d00..0x4b56_4d06u32,
        any::<u32>(),
    ]
}

fn msr_value() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), any::<u16>().prop_map(u64::from), (0..MEMORY_BYTES + 0x1000).prop_map(|at| at | 1)]
}

fn exit() -> impl Strategy<Value = Exit> {
    let size = prop::sample::select(vec![1u8, 2, 4]);
    let access = (port(), size, any::<bool>(), prop::bool::weighted(0.1)).prop_map(|(port, size, out, string)| {
        let direction = if out { PortDirection::Out } else { PortDirection::In };
        Exit::Port(PortAccess { port, size, direction, string })
    });
    prop_oneof![
        8 => access,
        4 => msr().prop_map(|index| Exit::MsrRead { index }),
        4 => (msr(), msr_value()).prop_map(|(index, value)| Exit::MsrWrite { index, value }),
        2 => (any::<u32>(), any::<u32>()).prop_map(|(leaf, subleaf)| Exit::Cpuid { leaf, subleaf }),
        1 => (0u32..0x20, 0u32..12).prop_map(|(leaf, subleaf)| Exit::Cpuid { leaf, subleaf }),
        1 => (0u32..2, any::<u64>()).prop_map(|(index, value)| Exit::SetXcr { index, value }),
        1 => prop::option::of(0usize..16).prop_map(|gpr| Exit::Cr4Write { source: gpr.map(|gpr| Gpr::ALL[gpr]) }),
        1 => gpa().prop_map(|gpa| Exit::NestedFault { gpa: Gpa::new(gpa), access: Access::Write, page_walk: false }),
        2 => prop::sample::select(vec![
            Exit::HostInterrupt,
            Exit::InterruptWindow,
            Exit::Halt,
            Exit::Pause,
            Exit::CacheFlush,
            Exit::Hypercall,
            Exit::Unoffered(vcpu::Exception::UNDEFINED),
        ]),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let size = || prop::sample::select(vec![1u8, 2, 4]);
    prop_oneof![
        8 => exit().prop_map(Action::Exit),
        6 => (gpa(), size(), any::<Option<u32>>()).prop_map(|(gpa, size, value)| Action::Move { gpa, size, value }),
        3 => (gpa(), size(), 0u32..300).prop_map(|(gpa, size, value)| Action::Move { gpa, size, value: Some(value) }),
        2 => (0usize..16, any::<u64>()).prop_map(|(index, value)| Action::Register(index, value)),
        4 => (0x10_0000..0x14_0000u64, any::<u64>()).prop_map(|(at, value)| Action::Memory(at, value)),
        2 => (0x8000..0x8010u64, any::<u64>()).prop_map(|(at, value)| Action::Memory(at, value)),
        4 => (1u32..5, 0u32..4).prop_map(|(device, queue)| Action::Kick(device, queue)),
        2 => (0..10_000_000_000u64).prop_map(Action::Pass),
        2 => any::<u64>().prop_map(Action::Flags),
        1 => (0usize..6000).prop_map(Action::Key),
        1 => (0usize..70_000).prop_map(Action::Frame),
        2 => (0usize..8, any::<bool>()).prop_map(|(index, ok)| Action::Finish(index, ok)),
        1 => Just(Action::PowerButton),
    ]
}

/// A machine whose drivers are up and have work on their rings.
fn bench() -> Bench {
    let mut bench = Bench::with(vec![disk(1000)], vec![nic()]);
    bench.enable_x2apic();
    for (device, sizes) in [(1, &[128, 128][..]), (2, &[16]), (3, &[256]), (4, &[256, 256, 64])] {
        let mut driver = Driver::new(&mut bench, device, VERSION_1, sizes);
        for queue in 0..sizes.len() {
            for index in 0..4 {
                let at = BUFFERS + 0x1000 * index;
                driver.add(&bench, queue, &[(at, 16, false), (at + 16, 512, false), (at + 0x800, 1, true)]);
                driver.add(&bench, queue, &[(at, 2048, true)]);
            }
        }
    }
    bench
}

/// Runs with one more exit; false when the machine ended. A guest that sleeps is woken by an NMI, whose handler returns.
fn step(bench: &mut Bench, exit: Exit) -> bool {
    let string = matches!(exit, Exit::Port(PortAccess { string: true, .. }));
    bench.then(move |state| {
        if string || matches!(exit, Exit::NestedFault { .. }) {
            state.rip = CODE;
        }
        exit
    });
    let pause = bench.run();
    if let Pause::Idle(_) = pause {
        bench.thread.vcpu.set_rflags(bench.thread.vcpu.rflags() | rflags::IF);
        let nmi = Message { vector: 2, mode: DeliveryMode::Nmi, target: Target::All, level_triggered: false };
        bench.machine.send(&nmi, &mut bench.host);
        return !matches!(bench.run(), Pause::Ended(_));
    }
    !matches!(pause, Pause::Ended(_))
}

/// INS or OUTS as `access` has it, with a repeat prefix.
fn string_code(access: PortAccess) -> [u8; 4] {
    let opcode = if access.direction == PortDirection::In { 0x6c } else { 0x6e };
    match access.size {
        1 => [0xf3, opcode, 0x90, 0x90],
        2 => [0x66, 0xf3, opcode + 1, 0x90],
        _ => [0xf3, opcode + 1, 0x90, 0x90],
    }
}

/// Does it; false when the machine ended.
fn act(bench: &mut Bench, action: &Action) -> bool {
    match *action {
        Action::Exit(exit) => {
            if let Exit::Port(access @ PortAccess { string: true, port, .. }) = exit {
                bench.machine.memory().write(Gpa::new(CODE), &string_code(access)).unwrap();
                bench.set_gpr(Gpr::Rdx, port.into());
            }
            return step(bench, exit);
        }
        Action::Move { gpa, size, value } => {
            let (opcode, access) = if value.is_some() { (0x88, Access::Write) } else { (0x8a, Access::Read) };
            let code: &[u8] = match size {
                1 => &[opcode, 0x07, 0x90],
                2 => &[0x66, opcode + 1, 0x07],
                _ => &[opcode + 1, 0x07, 0x90],
            };
            bench.machine.memory().write(Gpa::new(CODE), code).unwrap();
            bench.set_gpr(Gpr::Rdi, gpa);
            bench.set_gpr(Gpr::Rax, value.unwrap_or(0).into());
            return step(bench, Exit::NestedFault { gpa: Gpa::new(gpa), access, page_walk: false });
        }
        Action::Register(index, value) => bench.thread.vcpu.gprs_mut()[index] = value,
        Action::Memory(at, value) => bench.store(at, 8, value),
        Action::Kick(device, queue) => {
            let port = 0xc000 + 0x20 * (device as u16 - 1);
            bench.set_gpr(Gpr::Rax, queue.into());
            let access = PortAccess { port, size: 2, direction: PortDirection::Out, string: false };
            return step(bench, Exit::Port(access));
        }
        Action::Pass(ns) => bench.pass(ns),
        Action::Flags(value) => bench.thread.vcpu.set_rflags(value & 0x3f_7fd5 & !rflags::VM | 2),
        Action::Key(count) => {
            let taken = bench.machine.console_input(&vec![b'k'; count], &mut bench.host);
            assert!(taken <= count);
        }
        Action::Frame(bytes) => {
            let _ = bench.machine.frame(0, &switch::Offload::default(), &vec![0xff; bytes], NOW);
            bench.machine.frames_settle(0, &mut bench.host);
        }
        Action::Finish(index, ok) => {
            if !bench.host.transfers.is_empty() {
                let place = index % bench.host.transfers.len();
                let (transfer, _) = bench.host.transfers.remove(place);
                let outcome = if ok { Outcome::Ok } else { Outcome::IoError };
                bench.machine.disk_done(transfer.disk, transfer.id, outcome, &mut bench.host);
                bench.machine.disks_settle(transfer.disk, &mut bench.host);
            }
        }
        Action::PowerButton => bench.machine.power_button(&mut bench.host),
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn nothing_that_a_guest_does_hurts(actions in prop::collection::vec(action(), 1..120)) {
        let mut bench = bench();
        for action in &actions {
            if !act(&mut bench, action) {
                break;
            }
            bench.host.console.clear();
            bench.host.frames.clear();
            bench.host.armed.clear();
            prop_assert!(bench.host.transfers.len() <= 512, "transfers in flight");
            for (_, runs) in &bench.host.transfers {
                for run in runs {
                    prop_assert!(run.start.as_u64() + u64::from(run.bytes) <= MEMORY_BYTES);
                }
            }
        }
        let [console, transfers, runs, frames] = bench.host.flush_max;
        prop_assert!(console <= 256 << 10 && transfers <= 64 && runs <= 4096 && frames <= 16);
    }

    #[test]
    fn idle_guests_are_woken_by_their_deadline(ticks in 1u64..1 << 40, vector in 16u64..256) {
        let mut bench = Bench::new();
        bench.enable_x2apic();
        bench.set_if(true);
        bench.write_msr(0x832, 2 << 17 | vector).unwrap();
        let tsc = bench.read_msr(0x10).unwrap();
        bench.write_msr(0x6e0, tsc + ticks).unwrap();
        let Pause::Idle(Some(until)) = bench.exit(Exit::Halt) else { panic!("it sleeps") };
        bench.pass(until - bench.now_ns());
        prop_assert_eq!(bench.run(), Pause::Interrupted);
        prop_assert_eq!(bench.taken(), vec![vcpu::Event::Interrupt(vector as u8)]);
    }
}
