//! How fast the TSC runs, against a timer of known rate.

use crate::Platform;
use cpu::{cpuid, port_in8, port_in32, port_out8, tsc};

/// The power management timer's rate (ACPI 6.5, 4.8.2.1) and width.
const PM_TIMER_HZ: u64 = 3_579_545;
const PM_TIMER_MASK: u32 = 0x00ff_ffff;
/// The PIT's rate (8254 data sheet).
const PIT_HZ: u64 = 1_193_182;

/// For how long the TSC is measured: 1/40 s gives four digits against an emulated timer too.
const PERIODS_A_SECOND: u64 = 40;

/// The TSC's rate in kHz, and where the figure comes from.
///
/// CPUID leaf 15h is not believed: emulators state what they do not keep.
pub fn tsc_khz(platform: &Platform) -> (u64, &'static str) {
    if let Some(khz) = hypervisor_khz() {
        return (khz, "the hypervisor's timing leaf");
    }
    match platform.pm_timer {
        Some(port) => (against_pm_timer(port), "the ACPI timer"),
        None => (against_pit(), "the PIT"),
    }
}

/// Leaf 4000_0010h, which KVM and VMware give their guests: exact, where Pollux itself is a guest.
fn hypervisor_khz() -> Option<u64> {
    const HYPERVISOR: u32 = 1 << 31;
    if cpuid(1, 0).ecx & HYPERVISOR == 0 || cpuid(0x4000_0000, 0).eax < 0x4000_0010 {
        return None;
    }
    Some(cpuid(0x4000_0010, 0).eax.into()).filter(|&khz| khz > 100_000)
}

fn against_pm_timer(port: u16) -> u64 {
    const TICKS: u64 = PM_TIMER_HZ / PERIODS_A_SECOND;
    // SAFETY: reading the timer has no effect.
    let now = || unsafe { port_in32(port) } & PM_TIMER_MASK;
    let (start, start_tsc) = (now(), tsc());
    let ticks = loop {
        let ticks = now().wrapping_sub(start) & PM_TIMER_MASK;
        if u64::from(ticks) >= TICKS {
            break ticks;
        }
    };
    (tsc() - start_tsc) * PM_TIMER_HZ / u64::from(ticks) / 1000
}

/// Counts down channel 2, whose output can be read at port 61h.
fn against_pit() -> u64 {
    const TICKS: u64 = PIT_HZ / PERIODS_A_SECOND;
    const GATE: u8 = 1 << 0;
    const SPEAKER: u8 = 1 << 1;
    const OUTPUT: u8 = 1 << 5;
    // SAFETY: channel 2 drives the speaker alone, which is off.
    unsafe {
        port_out8(0x61, port_in8(0x61) & !SPEAKER | GATE);
        port_out8(0x43, 0xb0);
        port_out8(0x42, TICKS as u8);
        port_out8(0x42, (TICKS >> 8) as u8);
        let start = tsc();
        while port_in8(0x61) & OUTPUT == 0 {}
        (tsc() - start) * PERIODS_A_SECOND / 1000
    }
}
