//! Checks and their report, in the lines of the Test Anything Protocol (version 14): `ok 1 - name`, `not ok 2 - name`.

use crate::println;
use core::sync::atomic::{AtomicU32, Ordering};

static CHECKS: AtomicU32 = AtomicU32::new(0);

/// Reports a check.
pub fn check(holds: bool, name: &str) {
    let number = CHECKS.fetch_add(1, Ordering::Relaxed) + 1;
    println!("{} {number} - {name}", if holds { "ok" } else { "not ok" });
}

/// Reports that a check does not apply to this machine.
pub fn skip(name: &str, reason: &str) {
    let number = CHECKS.fetch_add(1, Ordering::Relaxed) + 1;
    println!("ok {number} - {name} # SKIP {reason}");
}

/// Prints the plan, how many checks there were.
pub fn finish() {
    println!("1..{}", CHECKS.load(Ordering::Relaxed));
}
