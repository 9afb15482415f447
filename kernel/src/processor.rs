//! What the processors leak by speculation, and the errors that they report, as `host` and the log show them.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use cpu::machine_check::{self, Severity};
use mitigation::{Finding, Status};
use shell::{HardwareErrors, Speculation, Weakness, WeaknessStatus};

/// How often each processor looks at its banks.
const LOOK_NS: u64 = 30_000_000_000;
/// Errors of a kind that are all logged; of those after them only each that doubles their number.
const LOGGED: u64 = 16;

/// Errors since the start.
static CORRECTED: AtomicU64 = AtomicU64::new(0);
static DEFERRED: AtomicU64 = AtomicU64::new(0);
static UNCORRECTED: AtomicU64 = AtomicU64::new(0);
static THERMAL: AtomicU64 = AtomicU64::new(0);

/// When a processor looks at its banks next.
#[derive(Default)]
pub struct Watch {
    due_ns: u64,
}

impl Watch {
    /// Looks if it is time, or something happened; returns when it is time again.
    pub fn turn(&mut self, cpu: usize, now_ns: u64) -> u64 {
        if now_ns >= self.due_ns || machine_check::is_urgent() {
            look(cpu);
            self.due_ns = now_ns + LOOK_NS;
        }
        self.due_ns
    }
}

/// Empties this processor's banks into the log and the counters.
pub fn look(cpu: usize) {
    machine_check::poll(|record, severity| {
        let (counter, what) = match severity {
            Severity::Corrected => (&CORRECTED, "corrected"),
            Severity::Deferred => (&DEFERRED, "uncorrected, not used"),
            Severity::Contained | Severity::Fatal => (&UNCORRECTED, "uncorrected"),
        };
        if is_logged(counter) {
            log::warn!("CPU {cpu}: {what}: {record}");
        }
    });
    if machine_check::was_hot() && is_logged(&THERMAL) {
        log::warn!("CPU {cpu} was too hot and slowed itself down");
    }
}

/// Counts one more; says whether it is worth a line.
fn is_logged(counter: &AtomicU64) -> bool {
    let count = counter.fetch_add(1, Ordering::Relaxed) + 1;
    count <= LOGGED || count.is_power_of_two()
}

/// The errors since the start, of all processors as far as they have looked.
pub fn errors() -> HardwareErrors {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    HardwareErrors {
        corrected: count(&CORRECTED),
        deferred: count(&DEFERRED),
        uncorrected: count(&UNCORRECTED),
        thermal: count(&THERMAL),
        nmis: interrupts::nmis(),
    }
}

/// What the processor leaks by speculation, and what is done about it.
pub fn speculation() -> Speculation {
    let report = cpu::speculation::report();
    let weakness = |finding: &Finding| Weakness {
        name: finding.name.into(),
        status: match finding.status {
            Status::NotAffected => WeaknessStatus::NotAffected,
            Status::Mitigated(by) => WeaknessStatus::Mitigated { by: by.into() },
            Status::Exposed(reason) => WeaknessStatus::Exposed { reason: reason.into() },
        },
    };
    Speculation {
        microcode: report.microcode,
        threads: report.has_threads,
        control: cpu::speculation::control(),
        weaknesses: report.findings.iter().map(weakness).collect(),
    }
}

/// Says in the log what stays open.
pub fn report() {
    let findings = cpu::speculation::report().findings;
    let is_open = |finding: &&Finding| matches!(finding.status, Status::Exposed(_));
    let names: Vec<&str> = findings.iter().filter(is_open).map(|finding| finding.name).collect();
    if !names.is_empty() {
        log::warn!("guests may learn what is not theirs by {}: see \"host\"", names.join(", "));
    }
}
