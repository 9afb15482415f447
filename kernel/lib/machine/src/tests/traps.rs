//! Single steps, breakpoints and RF over instructions that are carried out here.

use super::bench::*;
use addr::Gpa;
use vcpu::*;

const POST_PORT: u16 = 0x80;
const HOLE: u64 = 0xd000_0000;

/// The guest changes its debug registers and control registers.
fn set(bench: &mut Bench, change: impl FnOnce(&mut VcpuState) + Send + 'static) {
    bench.then(move |state| {
        change(state);
        Exit::HostInterrupt
    });
    bench.run();
}

/// Arms breakpoint 1 for one byte.
fn arm(bench: &mut Bench, kind: u64, address: u64) {
    set(bench, move |state| {
        (state.dr[1], state.dr7) = (address, 1 << 3 | kind << 20);
        state.cr4 |= cr4::DE;
    });
}

fn dr6(bench: &mut Bench) -> u64 {
    bench.thread.vcpu.state().dr6 & 0x600f
}

const DEBUG: Event = Event::Exception(Exception::DEBUG);

#[test]
fn a_fault_is_pushed_with_rf_and_a_completed_instruction_clears_it() {
    let mut bench = Bench::new();
    bench.read_msr(0x1234_5678).unwrap_err();
    assert_ne!(bench.thread.vcpu.rflags() & rflags::RF, 0);
    bench.cpuid(0, 0);
    assert_eq!(bench.thread.vcpu.rflags() & rflags::RF, 0);
}

#[test]
fn performance_counters_are_none() {
    let mut bench = Bench::new();
    bench.exit(Exit::Unoffered(Exception::PROTECTION));
    assert_eq!(bench.taken(), [PROTECTION]);
    assert_ne!(bench.thread.vcpu.rflags() & rflags::RF, 0);
}

#[test]
fn a_port_meets_its_breakpoint_behind_the_instruction() {
    let mut bench = Bench::new();
    arm(&mut bench, 2, POST_PORT.into());
    let rip = bench.thread.rip();
    bench.out(POST_PORT, 1, 0);
    assert_eq!((bench.taken(), bench.thread.rip()), (vec![DEBUG], rip + 2));
    assert_eq!(dr6(&mut bench), 1 << 1);
    bench.out(POST_PORT + 4, 1, 0);
    assert_eq!(bench.taken(), []);
    set(&mut bench, |state| state.cr4 &= !cr4::DE);
    bench.out(POST_PORT, 1, 0);
    assert_eq!(bench.taken(), [], "without CR4.DE there are none on ports");
}

#[test]
fn memory_meets_its_breakpoint() {
    let mut bench = Bench::new();
    arm(&mut bench, 1, HOLE + 2);
    bench.mmio_read(HOLE, 4);
    assert_eq!(bench.taken(), [], "a read");
    bench.mmio_write(HOLE, 4, 0);
    assert_eq!((bench.taken(), dr6(&mut bench)), (vec![DEBUG], 1 << 1));
    bench.mmio_write(HOLE + 4, 4, 0);
    assert_eq!(bench.taken(), []);
}

#[test]
fn a_step_and_a_breakpoint_are_one_trap() {
    let mut bench = Bench::new();
    arm(&mut bench, 3, HOLE);
    bench.thread.vcpu.set_rflags(bench.thread.vcpu.rflags() | rflags::TF);
    bench.mmio_read(HOLE, 1);
    assert_eq!((bench.taken(), dr6(&mut bench)), (vec![DEBUG], 1 << 14 | 1 << 1));
    bench.mmio_read(HOLE + 1, 1);
    assert_eq!((bench.taken(), dr6(&mut bench)), (vec![DEBUG], 1 << 14), "what was met before is forgotten");
}

#[test]
fn a_repeated_string_stops_behind_the_element_that_met_a_breakpoint() {
    let mut bench = Bench::new();
    arm(&mut bench, 3, 0x2001);
    bench.set_gpr(Gpr::Rsi, 0x2000);
    bench.set_gpr(Gpr::Rcx, 5);
    bench.set_gpr(Gpr::Rdx, POST_PORT.into());
    bench.store(0x8000, 2, 0x6ef3);
    let access = PortAccess { port: POST_PORT, size: 1, direction: PortDirection::Out, string: true };
    bench.exit(Exit::Port(access));
    assert_eq!((bench.gpr(Gpr::Rcx), bench.taken(), bench.thread.rip()), (3, vec![DEBUG], 0x8000));
    assert_ne!(bench.thread.vcpu.rflags() & rflags::RF, 0, "the instruction is not over");
    bench.exit(Exit::Port(access));
    assert_eq!((bench.gpr(Gpr::Rcx), bench.taken(), bench.thread.rip()), (0, vec![], 0x8002));
    assert_eq!(bench.thread.vcpu.rflags() & rflags::RF, 0);
}

#[test]
fn an_access_that_faults_meets_nothing() {
    let mut bench = Bench::new();
    arm(&mut bench, 3, 0x2000);
    set(&mut bench, |state| state.segments[SegmentName::Es as usize].limit = 0xfff);
    // MOVSB from the breakpoint to where ES does not reach.
    bench.set_gpr(Gpr::Rsi, 0x2000);
    bench.set_gpr(Gpr::Rdi, HOLE);
    bench.store(0x8000, 1, 0xa4);
    bench.exit(Exit::NestedFault { gpa: Gpa::new(HOLE), access: Access::Write, page_walk: false });
    assert_eq!((bench.taken(), dr6(&mut bench)), (vec![PROTECTION], 0));
}
