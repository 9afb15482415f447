//! What the processor leaks by speculation, as `host` and the start-up report show it.

use alloc::vec::Vec;
use mitigation::{Finding, Status};
use shell::{Speculation, Weakness, WeaknessStatus};

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
