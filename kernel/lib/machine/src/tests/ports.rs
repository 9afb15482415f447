//! Port and memory accesses: widths, what nobody answers, strings.

use super::bench::*;
use crate::Pause;
use addr::Gpa;
use vcpu::{Access, Exit, Gpr, PortAccess, PortDirection};

const NOBODY: u16 = 0x5000;

#[test]
fn in_replaces_as_much_of_rax_as_the_processor_does() {
    let mut bench = Bench::new();
    for (size, expected) in [(1, u64::MAX), (2, u64::MAX), (4, 0xffff_ffff)] {
        assert_eq!(bench.input(NOBODY, size), expected, "{size} bytes that nobody drives");
    }
    bench.out(0xcf8, 4, 0x8000_0000);
    assert_eq!(bench.input(0xcf8, 4), 0x8000_0000);
    let identity = bench.input(0xcfc, 4);
    assert_eq!(identity as u32, bench.mmio_read(0xe000_0000, 4));
    assert_eq!(identity >> 32, 0);
    assert_eq!(bench.input(0xcfc, 2) >> 16, 0xffff_ffff_ffff);
    assert_eq!(bench.input(0xcfd, 1) >> 8, 0xff_ffff_ffff_ffff);
}

#[test]
fn out_writes_as_much_of_rax_as_it_says() {
    let mut bench = Bench::new();
    bench.out(0xcf8, 4, 0x8000_083c);
    // The interrupt line register of device 1 is a byte of plain storage.
    bench.out(0xcfc, 1, 0x1234_5678);
    assert_eq!(bench.input(0xcfc, 2) as u16, 0x0178);
    bench.out(0x604, 2, 1 << 1);
    assert_eq!(bench.input(0x604, 2) as u16, 1 | 1 << 1);
}

#[test]
fn an_access_retires_its_instruction() {
    let mut bench = Bench::new();
    let rip = bench.thread.rip();
    bench.out(NOBODY, 1, 0);
    bench.input(NOBODY, 1);
    assert_eq!(bench.thread.rip(), rip + 4);
}

#[test]
fn configuration_space_is_the_same_by_port_and_by_memory() {
    let mut bench = Bench::with(vec![disk(8)], vec![]);
    for device in 0..6 {
        bench.out(0xcf8, 4, 1 << 31 | device << 11);
        let by_port = bench.input(0xcfc, 4) as u32;
        assert_eq!(bench.mmio_read(0xe000_0000 + u64::from(device << 15), 4), by_port, "device {device}");
        assert_eq!(by_port == u32::MAX, device == 5, "there are a bridge and four functions");
    }
    assert_eq!(bench.mmio_read(0xe000_9000, 4), u32::MAX, "no second function");
    assert_eq!(bench.mmio_read(0xe000_8ffc, 4), u32::MAX, "no extended space");
}

#[test]
fn memory_that_nobody_has_reads_as_ones() {
    let mut bench = Bench::new();
    for (size, ones) in [(1, 0xff), (2, 0xffff), (4, u32::MAX)] {
        assert_eq!(bench.mmio_read(0xd000_0000, size), ones);
        bench.mmio_write(0xd000_0000, size, 0);
    }
}

#[test]
fn a_function_answers_where_its_bar_is_now() {
    let mut bench = Bench::new();
    assert_eq!(bench.mmio_read(0xfe00_0000 + 18, 2), 2, "the console's queues");
    bench.out(0xcf8, 4, 0x8000_0814);
    bench.out(0xcfc, 4, 0xd000_0000);
    assert_eq!(bench.mmio_read(0xd000_0000 + 18, 2), 2);
    assert_eq!(bench.mmio_read(0xfe00_0000 + 18, 2), 0xffff);
}

#[test]
fn strings_go_out_and_come_in() {
    let mut bench = Bench::new();
    bench.machine.memory().write(Gpa::new(0x2000), b"hello").unwrap();
    bench.set_gpr(Gpr::Rsi, 0x2000);
    bench.set_gpr(Gpr::Rcx, 5);
    let access = PortAccess { port: 0x3f8, size: 1, direction: PortDirection::Out, string: true };
    bench.set_gpr(Gpr::Rdx, 0x3f8);
    bench.emulate(&[0xf3, 0x6e], Exit::Port(access));
    assert_eq!((bench.gpr(Gpr::Rcx), bench.gpr(Gpr::Rsi)), (0, 0x2005));
    assert_eq!(bench.host.console, b"hello");
    bench.set_gpr(Gpr::Rdi, 0x3000);
    bench.set_gpr(Gpr::Rcx, 3);
    bench.set_gpr(Gpr::Rdx, NOBODY.into());
    bench.emulate(
        &[0xf3, 0x6d],
        Exit::Port(PortAccess { port: NOBODY, size: 4, direction: PortDirection::In, string: true }),
    );
    assert_eq!((bench.load(0x3008, 4), bench.load(0x300c, 4)), (0xffff_ffff, 0));
}

#[test]
fn a_long_string_lets_the_host_in() {
    let mut bench = Bench::new();
    bench.set_gpr(Gpr::Rsi, 0x2000);
    bench.set_gpr(Gpr::Rcx, 1000);
    bench.set_gpr(Gpr::Rdx, 0x3f8);
    bench.store(0x8000, 2, 0x6ef3);
    let access = PortAccess { port: 0x3f8, size: 1, direction: PortDirection::Out, string: true };
    assert_eq!(bench.exit(Exit::Port(access)), Pause::Interrupted);
    assert_eq!((bench.thread.rip(), bench.gpr(Gpr::Rcx)), (0x8000, 1000 - 256), "the rest comes with the next exit");
    assert_eq!(bench.host.console.len(), 256);
}

#[test]
fn a_wide_memory_access_to_configuration_space_is_two() {
    let bench = Bench::with(vec![], vec![]);
    let mut board = bench.machine.board.lock();
    let low = board.mmio_read(Gpa::new(0xe000_8000), 4);
    let high = board.mmio_read(Gpa::new(0xe000_8004), 4);
    assert_eq!(board.mmio_read(Gpa::new(0xe000_8000), 8), low | high << 32);
    assert_eq!(board.mmio_read(Gpa::new(0xe000_8ffc), 8), u64::MAX);
}

#[test]
fn unknown_hypercalls_and_instructions_get_what_hardware_gives() {
    let mut bench = Bench::new();
    let rip = bench.thread.rip();
    bench.exit(Exit::Hypercall);
    assert_eq!((bench.gpr(Gpr::Rax), bench.thread.rip()), (-1000i64 as u64, rip + 2));
    bench.exit(Exit::CacheFlush);
    assert_eq!(bench.thread.rip(), rip + 4);
    bench.exit(Exit::Unoffered(vcpu::Exception::UNDEFINED));
    assert_eq!(bench.taken(), [vcpu::Event::Exception(vcpu::Exception::UNDEFINED)]);
    assert_eq!(bench.thread.rip(), rip + 4, "a fault stays at its instruction");
    assert_eq!(bench.exit(Exit::Pause), Pause::Interrupted);
    assert_eq!(bench.thread.rip(), rip + 6);
}

#[test]
fn nested_faults_that_no_device_can_serve_end_the_machine() {
    for (access, page_walk, text) in [(Access::Fetch, false, "runs code"), (Access::Read, true, "page tables")] {
        let mut bench = Bench::new();
        let gpa = Gpa::new(0xd000_0000);
        let Pause::Ended(crate::End::Crash(why)) = bench.exit(Exit::NestedFault { gpa, access, page_walk }) else {
            panic!("it goes on")
        };
        assert!(why.contains(text) && why.contains("vCPU 0 at 0x8000"), "{why}");
    }
}
