//! How a machine ends.

use super::bench::*;
use crate::{End, Pause};
use vcpu::Exit;

#[test]
fn power_off_and_resets() {
    let ends: [(u16, u8, u32, End); 4] = [
        (0x604, 2, 5 << 10 | 1 << 13, End::PowerOff),
        (0xcf9, 1, 6, End::Reset),
        (0x64, 1, 0xfe, End::Reset),
        (0x92, 1, 3, End::Reset),
    ];
    for (port, size, value, end) in ends {
        let mut bench = Bench::new();
        assert_eq!(bench.out(port, size, value), Pause::Ended(end), "port {port:#x}");
    }
    assert_eq!(Bench::new().out(0x604, 2, 3 << 10 | 1 << 13), Pause::Interrupted, "there is no S3");
}

#[test]
fn the_last_words_are_heard() {
    let mut bench = Bench::new();
    bench.out(0x3f8, 1, b'.'.into());
    bench.out(0x604, 2, 5 << 10 | 1 << 13);
    assert_eq!(bench.host.console, b".");
}

#[test]
fn a_triple_fault_says_where() {
    let end = End::TripleFault("vCPU 0 at 0x8000".into());
    assert_eq!(Bench::new().exit(Exit::TripleFault), Pause::Ended(end));
}

#[test]
fn a_crash_says_where_and_why() {
    let ends = [
        (Exit::InvalidState("the ASID is zero"), "refused to enter it: the ASID is zero"),
        (Exit::Fatal("a machine check while the guest ran"), "a machine check"),
        (Exit::Unexpected(0x1234), "code 0x1234"),
    ];
    for (exit, text) in ends {
        let Pause::Ended(End::Crash(why)) = Bench::new().exit(exit) else { panic!("{exit:?} is survived") };
        assert!(why.starts_with("vCPU 0 at 0x8000: ") && why.contains(text), "{why}");
    }
}

#[test]
fn an_instruction_that_cannot_be_carried_out_is_shown() {
    let mut bench = Bench::new();
    // ADDPS XMM0, [EDI].
    bench.store(0x8000, 4, 0x9007_580f);
    let gpa = addr::Gpa::new(0xd000_0000);
    let exit = Exit::NestedFault { gpa, access: vcpu::Access::Read, page_walk: false };
    let Pause::Ended(End::Crash(why)) = bench.exit(exit) else { panic!("it goes on") };
    assert!(why.contains("[0f, 58, 07"), "{why}");
}

#[test]
fn counters_are_there_after_the_run() {
    let mut bench = Bench::new();
    bench.exit(Exit::CacheFlush);
    let counters = bench.machine.counters(0);
    assert_eq!(counters.total().count, 2, "and the host's interrupt");
}
