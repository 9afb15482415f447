//! Debug ports: what they do where a machine has them, and that nobody answers where it has not.

use super::bench::*;
use crate::{DebugPorts, End, Pause};

const EXIT: u16 = 0xf4;
const CONSOLE: u16 = 0xe9;

fn with(exit: bool, console: bool) -> Bench {
    Bench::with_debug_ports(amd, vec![], vec![], DebugPorts { exit, console })
}

#[test]
fn a_write_to_the_debug_exit_ends_the_machine_with_its_code() {
    for (port, size, code) in [(EXIT, 1, 0x10), (EXIT, 2, 0x1234), (EXIT, 4, 0xdead_beef), (EXIT + 3, 1, 0)] {
        assert_eq!(with(true, false).out(port, size, code), Pause::Ended(End::Exit(code)), "{size} bytes");
    }
    assert_eq!(with(true, false).input(EXIT, 1) as u8, 0);
    assert_eq!(with(true, false).out(EXIT + 4, 1, 1), Pause::Interrupted, "it has four ports");
}

#[test]
fn the_debug_console_prints_and_tells_that_it_is_there() {
    let mut bench = with(false, true);
    bench.out(CONSOLE, 1, b'a'.into());
    bench.out(0x3f8, 1, b'b'.into());
    bench.out(CONSOLE, 1, b'c'.into());
    assert_eq!(bench.host.console, b"abc");
    assert_eq!(bench.input(CONSOLE, 1) as u8, 0xe9);
}

#[test]
fn a_machine_has_neither_unasked() {
    let mut bench = with(false, false);
    assert_eq!(bench.out(EXIT, 1, 1), Pause::Interrupted);
    bench.out(CONSOLE, 1, b'a'.into());
    assert_eq!(bench.host.console, b"");
    assert_eq!((bench.input(EXIT, 1) as u8, bench.input(CONSOLE, 1) as u8), (0xff, 0xff));
}

#[test]
fn a_saved_machine_goes_on_with_the_same_ports_only() {
    let mut bench = with(true, true);
    let saved = bench.save().unwrap();
    let mut copy = bench.restore(&saved, 1000, 0).unwrap();
    assert_eq!(copy.out(EXIT, 1, 3), Pause::Ended(End::Exit(3)));
    let refused = with(true, false).restore(&saved, 1000, 0).map(drop).unwrap_err().to_string();
    assert_eq!(refused, "its debug ports are others than this VM's");
}
