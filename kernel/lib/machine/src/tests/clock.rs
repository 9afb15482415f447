//! kvm-clock and the end of interrupt in memory.

use super::bench::*;
use vcpu::{Event, Exit};

const WALL_CLOCK: u32 = 0x4b56_4d00;
const SYSTEM_TIME: u32 = 0x4b56_4d01;
const PV_EOI: u32 = 0x4b56_4d04;
const CLOCK: u64 = 0x4000;
const FLAG: u64 = 0x5000;

/// What a guest computes from the structure when its TSC is `tsc` (pvclock-abi.h).
fn clock_ns(bench: &Bench, tsc: u64) -> u64 {
    assert_eq!(bench.load(CLOCK, 4) & 1, 0, "not being changed");
    assert_eq!(bench.load(CLOCK + 29, 1), 1, "stable across vCPUs");
    let delta = u128::from(tsc.wrapping_sub(bench.load(CLOCK + 8, 8)));
    let shift = bench.load(CLOCK + 28, 1) as i8;
    let shifted = if shift >= 0 { delta << shift } else { delta >> -shift };
    bench.load(CLOCK + 16, 8) + ((shifted * u128::from(bench.load(CLOCK + 24, 4))) >> 32) as u64
}

#[test]
fn the_clock_in_memory_is_the_hosts() {
    let mut bench = Bench::new();
    bench.pass(777);
    bench.write_msr(SYSTEM_TIME, CLOCK | 1).unwrap();
    assert_eq!(bench.read_msr(SYSTEM_TIME), Ok(CLOCK | 1));
    bench.pass(3_600_000_000_000);
    let tsc = bench.read_msr(0x10).unwrap();
    assert!(clock_ns(&bench, tsc).abs_diff(bench.now_ns()) <= 2);
}

#[test]
fn a_new_tsc_does_not_move_the_clock() {
    let mut bench = Bench::new();
    bench.write_msr(SYSTEM_TIME, CLOCK | 1).unwrap();
    let version = bench.load(CLOCK, 4);
    bench.pass(1_000_000);
    bench.write_msr(0x10, 5).unwrap();
    assert_eq!(clock_ns(&bench, 5), bench.now_ns());
    assert_ne!(bench.load(CLOCK, 4), version, "readers notice");
    bench.write_msr(SYSTEM_TIME, 0).unwrap();
    bench.store(CLOCK, 4, 0x77);
    bench.write_msr(0x10, 6).unwrap();
    assert_eq!(bench.load(CLOCK, 4), 0x77, "memory that was taken back stays alone");
}

#[test]
fn the_wall_clock_is_utc_at_machine_time_zero() {
    let mut bench = Bench::new();
    bench.write_msr(WALL_CLOCK, 0x6000).unwrap();
    assert_eq!((bench.load(0x6004, 4), bench.load(0x6008, 4)), (1_700_000_000, 123_456_789));
    assert_eq!(bench.load(0x6000, 4) & 1, 0);
    assert_eq!(bench.read_msr(WALL_CLOCK), Ok(0x6000));
}

#[test]
fn memory_that_is_none_is_refused() {
    let mut bench = Bench::new();
    for (index, value) in [
        (WALL_CLOCK, MEMORY_BYTES),
        (WALL_CLOCK, u64::MAX),
        (SYSTEM_TIME, (MEMORY_BYTES - 16) | 1),
        (SYSTEM_TIME, u64::MAX),
        (PV_EOI, MEMORY_BYTES | 1),
        (PV_EOI, FLAG | 3),
    ] {
        assert_eq!(bench.write_msr(index, value), Err(PROTECTION), "{index:#x} = {value:#x}");
        assert_eq!(bench.read_msr(index), Ok(0));
    }
}

/// A machine with x2APIC, PV EOI and interrupts open.
fn with_pv_eoi() -> Bench {
    let mut bench = Bench::new();
    bench.enable_x2apic();
    bench.write_msr(PV_EOI, FLAG | 1).unwrap();
    bench.set_if(true);
    bench
}

/// The highest vector in service.
fn in_service(bench: &mut Bench) -> Vec<u32> {
    let mut vectors = vec![];
    for register in 0..8 {
        let bits = bench.read_msr(0x810 + register).unwrap();
        vectors.extend((0..32).filter(|bit| bits & 1 << bit != 0).map(|bit| register * 32 + bit));
    }
    vectors
}

#[test]
fn the_guest_ends_its_interrupt_in_memory() {
    let mut bench = with_pv_eoi();
    bench.write_msr(0x83f, 0x41).unwrap();
    // In the handler the offer stands; the guest takes it.
    let machine = bench.machine.clone();
    bench.then(move |_| {
        let flag = addr::Gpa::new(FLAG);
        assert_eq!(machine.memory().load(flag, 1).unwrap(), 1, "offered");
        machine.memory().store(flag, 1, 0).unwrap();
        Exit::HostInterrupt
    });
    bench.run();
    assert_eq!(in_service(&mut bench), []);
}

#[test]
fn an_offer_that_is_not_taken_ends_with_the_run() {
    let mut bench = with_pv_eoi();
    bench.write_msr(0x83f, 0x41).unwrap();
    bench.exit(Exit::Pause);
    assert_eq!(bench.load(FLAG, 1), 0, "taken back");
    assert_eq!(in_service(&mut bench), [0x41]);
    bench.write_msr(0x80b, 0).unwrap();
    assert_eq!(in_service(&mut bench), []);
}

#[test]
fn no_offer_while_another_interrupt_waits_for_this_ones_end() {
    let mut bench = with_pv_eoi();
    bench.write_msr(0x83f, 0x42).unwrap();
    bench.write_msr(0x83f, 0x41).unwrap();
    let machine = bench.machine.clone();
    bench.then(move |_| {
        assert_eq!(machine.memory().load(addr::Gpa::new(FLAG), 1).unwrap(), 0);
        Exit::HostInterrupt
    });
    bench.run();
    bench.taken();
    bench.set_if(true);
    bench.write_msr(0x80b, 0).unwrap();
    bench.run();
    assert_eq!(in_service(&mut bench), [0x41]);
}

#[test]
fn without_registration_nothing_is_offered() {
    let mut bench = with_pv_eoi();
    bench.write_msr(PV_EOI, 0).unwrap();
    bench.write_msr(0x83f, 0x41).unwrap();
    bench.run();
    assert_eq!(bench.taken(), [], "taken by the write's own run");
    assert_eq!(bench.load(FLAG, 1), 0);
    assert_eq!(in_service(&mut bench), [0x41]);
}

#[test]
fn the_offer_covers_the_very_entry_that_injects() {
    let mut bench = with_pv_eoi();
    let machine = bench.machine.clone();
    bench.then(|_| Exit::MsrWrite { index: 0x83f, value: 0x61 });
    bench.then(move |state| {
        assert_eq!(state.rflags & vcpu::rflags::IF, 0, "the handler runs");
        assert_eq!(machine.memory().load(addr::Gpa::new(FLAG), 1).unwrap(), 1);
        Exit::HostInterrupt
    });
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(0x61)]);
}
