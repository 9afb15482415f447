//! The input door: what arrives from other CPUs while the vCPU sleeps or is in the middle of an exit.

use super::bench::*;
use super::driver::{BUFFERS, Driver, VERSION_1};
use crate::{End, Pause};
use addr::Gpa;
use vcpu::Exit;

#[test]
fn what_a_port_write_left_waits_for_an_outbox() {
    let mut bench = Bench::new();
    let clock = chipset::Clock { ns: 2_000, tsc: 2_000 };
    // The vCPU is between its write and the rest of the exit as a key arrives.
    bench.machine.board.lock().port_write(0x3f8, 1, b'x'.into(), clock);
    bench.machine.console_input(b"y", &mut bench.host);
    assert_eq!(bench.host.console, b"");
    bench.run();
    assert_eq!(bench.host.console, b"x");
}

#[test]
fn an_end_that_an_input_found_ends_the_machine() {
    let mut bench = Bench::new();
    bench.set_if(true);
    bench.exit(Exit::Halt);
    bench.machine.board.lock().port_write(0xcf9, 1, 6, chipset::Clock { ns: 2_000, tsc: 2_000 });
    bench.machine.power_button(&mut bench.host);
    assert!(bench.machine.has_mail(0));
    assert_eq!(bench.run(), Pause::Ended(End::Reset));
}

#[test]
fn the_power_button_without_a_driver_does_nothing() {
    let mut bench = Bench::new();
    bench.set_if(true);
    bench.exit(Exit::Halt);
    bench.machine.power_button(&mut bench.host);
    assert!(!bench.machine.has_mail(0));
    assert_eq!(bench.run(), Pause::Idle(None));
}

#[test]
fn random_bytes_fill_what_the_guest_offers() {
    let mut bench = Bench::new();
    let mut driver = Driver::new(&mut bench, 2, VERSION_1, &[16]);
    driver.add(&bench, 0, &[(BUFFERS, 16, true)]);
    driver.add(&bench, 0, &[(BUFFERS + 0x100, 4096, true)]);
    driver.kick(&mut bench, 0);
    assert_eq!(driver.used(&bench, 0), [(0, 16), (1, 64)]);
    assert_eq!((bench.load(BUFFERS + 8, 8), bench.load(BUFFERS + 16, 8)), (0xa5a5_a5a5_a5a5_a5a5, 0));
}

#[test]
fn a_broken_random_ring_is_reported() {
    let mut bench = Bench::new();
    bench.enable_x2apic();
    let driver = Driver::new(&mut bench, 2, VERSION_1, &[16]);
    bench.mmio_write(driver.mmio() + 16, 2, 1);
    driver.break_ring(&bench, 0);
    driver.kick(&mut bench, 0);
    assert_eq!(driver.status(&mut bench) & 64, 64);
    bench.set_if(true);
    bench.run();
    assert_eq!(bench.taken(), [vcpu::Event::Interrupt(driver.vector(1))], "the configuration's interrupt");
}

#[test]
fn memory_is_what_the_guest_was_given() {
    let bench = Bench::new();
    assert_eq!(bench.machine.memory().total_bytes(), MEMORY_BYTES);
    assert!(bench.machine.memory().check(Gpa::new(MEMORY_BYTES - 1), 1).is_ok());
}
