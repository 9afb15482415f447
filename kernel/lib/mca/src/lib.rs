//! What a machine check means: how grave an error is that the processor reports, and who has to stop for it.
//!
//! The main types are [`Record`], what one bank holds, and [`Verdict`], what follows from all of them for the processor
//! that took a machine check. `hw/cpu` reads the banks; `kernel` logs and counts.
//!
//! Intel: SDM volume 3, revision 083, chapter 16. AMD: APM volume 2, revision 3.42, chapter 9.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

use core::fmt;

/// MCi_STATUS, as both makers have it.
mod status {
    pub const VALID: u64 = 1 << 63;
    pub const OVERFLOW: u64 = 1 << 62;
    pub const UNCORRECTED: u64 = 1 << 61;
    pub const ADDRESS_VALID: u64 = 1 << 58;
    pub const CONTEXT_CORRUPT: u64 = 1 << 57;
    /// Intel: signalled by a machine check.
    pub const SIGNALLED: u64 = 1 << 56;
    /// Intel: what runs cannot go on before something is done.
    pub const ACTION_REQUIRED: u64 = 1 << 55;
    /// AMD: the thread's context is corrupt.
    pub const THREAD_CORRUPT: u64 = 1 << 55;
    /// AMD: uncorrected, and not used yet.
    pub const DEFERRED: u64 = 1 << 44;
}

/// MCG_STATUS.RIPV: the program can go on where it was interrupted.
const RESTART_VALID: u64 = 1 << 0;

/// How the processor reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reporting {
    /// By AMD's rules; else by Intel's.
    pub is_amd: bool,
    /// Uncorrected errors can be told apart by what must be done (Intel: MCG_CAP.SER_P; AMD: SUCCOR).
    pub recovers: bool,
}

/// What a bank holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// The bank's number.
    pub bank: u8,
    /// MCi_STATUS.
    pub status: u64,
    /// MCi_ADDR, if it is valid.
    pub address: Option<u64>,
}

/// How grave an error is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// The hardware put it right.
    Corrected,
    /// It was not put right, and nothing has used what is wrong.
    Deferred,
    /// What ran has met it and cannot go on; everything else can.
    Contained,
    /// Nothing can be relied upon.
    Fatal,
}

/// What follows from a machine check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// What was interrupted goes on.
    GoOn,
    /// The guest that was interrupted cannot.
    StopGuest,
    /// The host cannot.
    StopHost,
}

impl Record {
    /// A bank's content, `None` for an empty one. `address` reads MCi_ADDR.
    pub fn read(bank: u8, status: u64, address: impl FnOnce() -> u64) -> Option<Self> {
        let address = (status & status::ADDRESS_VALID != 0).then(address);
        (status & status::VALID != 0).then_some(Self {
            bank,
            status,
            address: address.filter(|_| status & status::VALID != 0),
        })
    }

    /// How grave it is.
    pub fn severity(&self, reporting: Reporting) -> Severity {
        let has = |bit: u64| self.status & bit != 0;
        if !has(status::UNCORRECTED) {
            let deferred = reporting.is_amd && has(status::DEFERRED);
            return if deferred { Severity::Deferred } else { Severity::Corrected };
        }
        if has(status::CONTEXT_CORRUPT) || !reporting.recovers {
            return Severity::Fatal;
        }
        let (unused, contained) = match reporting.is_amd {
            true => (false, !has(status::THREAD_CORRUPT)),
            false => (!has(status::SIGNALLED) || !has(status::ACTION_REQUIRED), has(status::ACTION_REQUIRED)),
        };
        match (unused, contained) {
            (true, _) => Severity::Deferred,
            // Of another error of that kind nothing is known.
            (false, true) if !has(status::OVERFLOW) => Severity::Contained,
            _ => Severity::Fatal,
        }
    }

    /// What kind of error it is, by the compound code (Intel table 16-10; AMD 9.5.2).
    pub fn kind(&self) -> &'static str {
        match self.status as u16 & !(1 << 12) {
            0x0000 => "error without a code",
            0x0001..=0x0007 => "internal error",
            0x000b => "error of an I/O controller",
            0x000c..=0x000f | 0x0100..=0x01ff => "cache error",
            0x0010..=0x001f => "TLB error",
            0x0080..=0x00ff => "memory error",
            0x0400..=0x07ff => "internal error",
            0x0800..=0x0fff => "bus error",
            _ => "error",
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} in bank {}", self.kind(), self.bank)?;
        if let Some(address) = self.address {
            write!(out, " at {address:#x}")?;
        }
        write!(out, ", status {:#018x}", self.status)
    }
}

/// What follows for a processor that took a machine check: MCG_STATUS, what its banks hold, and whether a guest ran.
pub fn verdict(
    global_status: u64,
    records: impl Iterator<Item = Record>,
    reporting: Reporting,
    in_guest: bool,
) -> Verdict {
    let worst = records.map(|record| record.severity(reporting)).max();
    let restarts = global_status & RESTART_VALID != 0;
    match (worst, in_guest) {
        (Some(Severity::Fatal), _) => Verdict::StopHost,
        (Some(Severity::Contained), true) => Verdict::StopGuest,
        (Some(Severity::Contained), false) => Verdict::StopHost,
        (Some(Severity::Corrected | Severity::Deferred) | None, _) if restarts => Verdict::GoOn,
        // Something that no bank explains; it hit the guest, or the host.
        (Some(Severity::Deferred), true) => Verdict::StopGuest,
        _ => Verdict::StopHost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTEL: Reporting = Reporting { is_amd: false, recovers: true };
    const AMD: Reporting = Reporting { is_amd: true, recovers: true };
    const OLD: Reporting = Reporting { is_amd: false, recovers: false };

    /// VALID, ENABLED, MISC_VALID, ADDRESS_VALID; a read from memory.
    const CORRECTED: u64 = 0x9c00_0000_0000_0090;
    const UNCORRECTED: u64 = CORRECTED | status::UNCORRECTED;
    /// A load of data, as the manual's example of an error that requires action.
    const LOAD: u64 = 0xbd80_0000_0000_0134;

    fn record(status: u64) -> Record {
        Record::read(4, status, || 0x1234_5000).unwrap()
    }

    fn severity(status: u64, reporting: Reporting) -> Severity {
        record(status).severity(reporting)
    }

    #[test]
    fn empty_banks_hold_nothing() {
        assert_eq!(Record::read(0, 0, || panic!("not valid")), None);
        assert_eq!(Record::read(0, !status::VALID, || 0), None);
        assert_eq!(Record::read(0, status::VALID, || panic!("not valid")).unwrap().address, None);
    }

    #[test]
    fn intel_says_what_must_be_done() {
        assert_eq!(severity(CORRECTED, INTEL), Severity::Corrected);
        assert_eq!(severity(UNCORRECTED, INTEL), Severity::Deferred);
        assert_eq!(severity(UNCORRECTED | status::SIGNALLED, INTEL), Severity::Deferred);
        assert_eq!(severity(LOAD, INTEL), Severity::Contained);
        assert_eq!(severity(LOAD | status::OVERFLOW, INTEL), Severity::Fatal);
        assert_eq!(severity(LOAD | status::CONTEXT_CORRUPT, INTEL), Severity::Fatal);
        assert_eq!(severity(LOAD, OLD), Severity::Fatal);
    }

    #[test]
    fn amd_says_what_is_corrupt() {
        assert_eq!(severity(CORRECTED | status::DEFERRED, AMD), Severity::Deferred);
        assert_eq!(severity(UNCORRECTED, AMD), Severity::Contained);
        assert_eq!(severity(UNCORRECTED | status::THREAD_CORRUPT, AMD), Severity::Fatal);
        assert_eq!(severity(UNCORRECTED | status::CONTEXT_CORRUPT, AMD), Severity::Fatal);
        assert_eq!(severity(UNCORRECTED, Reporting { recovers: false, ..AMD }), Severity::Fatal);
    }

    #[test]
    fn only_what_is_contained_in_a_guest_stops_the_guest_alone() {
        let of = |records: &[u64], global: u64, in_guest: bool| {
            verdict(global, records.iter().map(|&status| record(status)), INTEL, in_guest)
        };
        assert_eq!(of(&[LOAD], 5, true), Verdict::StopGuest);
        assert_eq!(of(&[LOAD], 4, true), Verdict::StopGuest);
        assert_eq!(of(&[LOAD], 5, false), Verdict::StopHost);
        assert_eq!(of(&[LOAD, LOAD | status::CONTEXT_CORRUPT], 5, true), Verdict::StopHost);
        assert_eq!(of(&[CORRECTED, UNCORRECTED], 5, false), Verdict::GoOn);
        assert_eq!(of(&[CORRECTED], 4, false), Verdict::StopHost);
        assert_eq!(of(&[], 5, true), Verdict::GoOn);
        assert_eq!(of(&[], 4, true), Verdict::StopHost);
    }

    #[test]
    fn errors_are_named() {
        assert_eq!(record(CORRECTED).to_string(), "memory error in bank 4 at 0x12345000, status 0x9c00000000000090");
        let kind = |code: u64| record(status::VALID | code).kind();
        assert_eq!((kind(0x0134), kind(0x1136), kind(0x0e0b)), ("cache error", "cache error", "bus error"));
        assert_eq!((kind(0x0014), kind(0x0005), kind(0x2000)), ("TLB error", "internal error", "error"));
    }
}
