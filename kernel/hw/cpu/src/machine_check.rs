//! This processor's machine-check banks: set up, looked at after a machine check, and emptied from time to time.
//!
//! [`outcome`] is for the moment of the exception and only reads; [`poll`] empties the banks and gives what they held, on
//! every processor every few seconds, and after [`outcome`] let something go on. What errors mean is `mca`'s business.

use crate::{cpuid, msr};
use core::sync::atomic::{AtomicBool, Ordering};
use mca::Reporting;
pub use mca::{Record, Severity, Verdict};

/// IA32_MCG_CAP, IA32_MCG_STATUS, IA32_MCG_CTL (SDM volume 3, 16.3.1).
const GLOBAL_CAPABILITY: u32 = 0x179;
const GLOBAL_STATUS: u32 = 0x17a;
const GLOBAL_CONTROL: u32 = 0x17b;
/// IA32_MC0_CTL; status and address follow, and four registers on the next bank (16.3.2).
const BANKS: u32 = 0x400;
/// MCG_CAP's bits.
const HAS_CONTROL: u64 = 1 << 8;
const RECOVERS: u64 = 1 << 24;
/// AMD's SUCCOR, in CPUID 8000_0007, EBX.
const AMD_RECOVERS: u32 = 1 << 1;
/// Bank numbers reach the registers that something else owns from here on.
const BANKS_MAX: u8 = 32;

/// IA32_THERM_STATUS, its "the processor was too hot" and the same since somebody looked (15.8.5).
const THERMAL_STATUS: u32 = 0x19c;
const WAS_HOT: u64 = 1 << 1;

/// Something is in the banks of a processor, by the low byte of its APIC ID: do not wait for the next look. Its own block
/// cannot be reached while a guest's state is in it.
static SOON: [AtomicBool; 256] = [const { AtomicBool::new(false) }; 256];

/// Makes this processor report. What its banks hold from before the reset stays, for [`poll`].
pub fn enable() {
    // SAFETY: the processor has the registers, and all ones is what each is enabled with (16.8).
    unsafe {
        if banks() > 0 && msr::read(GLOBAL_CAPABILITY) & HAS_CONTROL != 0 {
            msr::write(GLOBAL_CONTROL, u64::MAX);
        }
        for bank in 0..banks() {
            msr::write(register(bank), u64::MAX);
        }
    }
}

/// What follows from the machine check that this processor just took. Unless the host stops, the next one can come.
pub fn outcome(in_guest: bool) -> Verdict {
    if banks() == 0 {
        return Verdict::StopHost;
    }
    // SAFETY: the processor has the register.
    let global_status = unsafe { msr::read(GLOBAL_STATUS) };
    let verdict = mca::verdict(global_status, records(), reporting(), in_guest);
    if verdict != Verdict::StopHost {
        soon().store(true, Ordering::Release);
        // SAFETY: 0 says that the machine check is over (16.3.1.2).
        unsafe { msr::write(GLOBAL_STATUS, 0) };
    }
    verdict
}

/// Ends the host, after an [`outcome`] that asks for it: the gravest error is what its epitaph says.
///
/// # Panics
/// Always.
pub fn stop_host() -> ! {
    match records().max_by_key(|record| record.severity(reporting())) {
        Some(record) => panic!("machine check: {record}"),
        None => panic!("machine check: no bank says why"),
    }
}

/// What this processor's banks hold.
pub fn records() -> impl Iterator<Item = Record> {
    (0..banks()).filter_map(|bank| {
        // SAFETY: the bank is there; its address is valid where its status says so.
        unsafe { Record::read(bank, msr::read(register(bank) + 1), || msr::read(register(bank) + 2)) }
    })
}

/// Empties this processor's banks, giving what they held, and how grave each is.
pub fn poll(mut each: impl FnMut(Record, Severity)) {
    soon().store(false, Ordering::Release);
    for record in records() {
        // SAFETY: 0 empties the bank (16.3.2.2).
        unsafe { msr::write(register(record.bank) + 1, 0) };
        each(record, record.severity(reporting()));
    }
}

/// Whether this processor's banks should be looked at before it is time.
pub fn is_urgent() -> bool {
    soon().load(Ordering::Relaxed)
}

fn soon() -> &'static AtomicBool {
    &SOON[(cpuid(1, 0).ebx >> 24) as usize]
}

/// Whether this processor was too hot since the last call. AMD's do not say.
pub fn was_hot() -> bool {
    let says = cpuid(1, 0).edx & 1 << 22 != 0 && cpuid(6, 0).eax & 1 != 0 && !is_amd();
    // SAFETY: CPUID offers the register; a 0 in a bit that notes forgets it, and in the others changes nothing.
    unsafe {
        let hot = says && msr::read(THERMAL_STATUS) & WAS_HOT != 0;
        if hot {
            msr::write(THERMAL_STATUS, 0);
        }
        hot
    }
}

fn register(bank: u8) -> u32 {
    BANKS + 4 * u32::from(bank)
}

/// How many banks this processor has.
fn banks() -> u8 {
    let features = cpuid(1, 0).edx;
    if features & 1 << 7 == 0 || features & 1 << 14 == 0 {
        return 0;
    }
    // SAFETY: CPUID offers the register.
    (unsafe { msr::read(GLOBAL_CAPABILITY) } as u8).min(BANKS_MAX)
}

fn reporting() -> Reporting {
    let is_amd = is_amd();
    let recovers = if is_amd {
        cpuid(0x8000_0007, 0).ebx & AMD_RECOVERS != 0
    } else {
        // SAFETY: a processor with banks has the register.
        unsafe { msr::read(GLOBAL_CAPABILITY) & RECOVERS != 0 }
    };
    Reporting { is_amd, recovers }
}

/// Whether the maker is AMD or Hygon.
fn is_amd() -> bool {
    matches!(cpuid(0, 0).ecx.to_le_bytes(), [b'c', b'A', b'M', b'D'] | [b'u', b'i', b'n', b'e'])
}
