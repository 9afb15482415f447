//! Task switches that the processor leaves to its host.

use super::bench::*;
use crate::{End, Pause};
use addr::Gpa;
use guestmem::PageSet;
use vcpu::*;

const GDT: u64 = 0x1_0000;
const OLD_TSS: u64 = 0x1_1000;
const NEW_TSS: u64 = 0x1_2000;
const NEW: u16 = 0x20;

/// A machine whose guest has two tasks.
fn tasks() -> Bench {
    let mut bench = Bench::new();
    for (at, descriptor) in [
        (8, 0x00cf_9b00_0000_ffff),
        (0x10, 0x00cf_9300_0000_ffff),
        (0x18, 0x0000_8b01_1000_0067),
        (0x20, 0x0000_8901_2000_0067),
    ] {
        bench.store(GDT + at, 8, descriptor);
    }
    let fields = [(0x20, 0x9000), (0x24, 2), (0x38, 0x7000), (0x48, 0x10), (0x4c, 8), (0x50, 0x10), (0x54, 0x10)];
    fields.into_iter().for_each(|(at, value)| bench.store(NEW_TSS + at, 4, value));
    bench.then(|state| {
        state.gdtr = Table { base: GDT, limit: 0xff };
        state.tr = Segment { selector: 0x18, attributes: 0x8b, limit: 0x67, base: OLD_TSS };
        Exit::HostInterrupt
    });
    bench.run();
    bench
}

fn jump(bench: &mut Bench) -> Pause {
    bench.exit(Exit::TaskSwitch { selector: NEW, source: TaskSwitchSource::Jump })
}

/// By the gate of this exception, in whose delivery the exit stands.
fn gate(bench: &mut Bench, exception: Exception) -> Pause {
    bench.then(move |state| {
        state.waiting = Some(Event::Exception(exception));
        Exit::TaskSwitch { selector: NEW, source: TaskSwitchSource::Gate }
    });
    bench.run()
}

#[test]
fn another_task_goes_on() {
    let mut bench = tasks();
    let rip = bench.thread.rip();
    assert_eq!(jump(&mut bench), Pause::Interrupted);
    assert_eq!((bench.thread.rip(), bench.load(OLD_TSS + 0x20, 4)), (0x9000, rip + 2));
    assert_eq!(bench.taken(), []);
}

#[test]
fn a_refusal_is_raised() {
    let mut bench = tasks();
    bench.store(GDT + u64::from(NEW) + 5, 1, 0x8b);
    assert_eq!(jump(&mut bench), Pause::Interrupted);
    let busy = Exception { error_code: Some(NEW.into()), ..Exception::PROTECTION };
    assert_eq!(bench.taken(), [Event::Exception(busy)]);
    assert_ne!(bench.thread.vcpu.rflags() & rflags::RF, 0);
}

#[test]
fn a_fault_behind_a_double_fault_ends_the_machine() {
    let mut bench = tasks();
    bench.store(NEW_TSS + 0x54, 4, 0x58);
    assert!(matches!(gate(&mut bench, Exception::DOUBLE_FAULT), Pause::Ended(End::TripleFault(_))));
}

#[test]
fn memory_that_is_on_its_way_is_waited_for() {
    let mut bench = tasks();
    let memory = bench.machine.memory();
    let mut pages = PageSet::new(memory.pages_end()).unwrap();
    pages.insert(NEW_TSS / 4096, 1);
    memory.start_waiting(&pages).unwrap();
    let rip = bench.thread.rip();
    assert!(matches!(jump(&mut bench), Pause::Idle(Some(_))));
    assert_eq!((bench.thread.rip(), bench.load(OLD_TSS + 0x20, 4)), (rip, 0), "nothing has happened");
    assert_eq!(bench.machine.memory().load(Gpa::new(GDT + 0x18 + 5), 1), Ok(0x8b));
}
