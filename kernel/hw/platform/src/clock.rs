//! How fast the TSC runs, against a timer of known rate.

use crate::Platform;
use cpu::{cpuid, port_in8, port_in32, port_out8, tsc};

/// The power management timer's rate (ACPI 6.5, 4.8.2.1) and width.
const PM_TIMER_HZ: u64 = 3_579_545;
const PM_TIMER_MASK: u32 = 0x00ff_ffff;
/// The PIT's rate (8254 data sheet).
const PIT_HZ: u64 = 1_193_182;

/// For how long the TSC is measured: in 1/40 s a tick of the ACPI timer is 11 parts in a million.
const PERIODS_A_SECOND: u64 = 40;

/// How often the timer is read at either end of it, for one reading that nothing held up.
const READINGS: u32 = 16;

/// How often a timer is read before it counts as dead. A read takes 100 ns at the least.
const READS_MAX: u32 = 2_000_000;
/// No processor's TSC is slower or faster.
const KHZ: core::ops::Range<u64> = 10_000..20_000_000;
/// What is assumed when nothing can be measured.
const KHZ_GUESS: u64 = 2_000_000;

/// The TSC's rate in kHz, and where the figure comes from.
///
/// CPUID leaf 15h is not believed: emulators state what they do not keep.
pub fn tsc_khz(platform: &Platform) -> (u64, &'static str) {
    if let Some(khz) = hypervisor_khz() {
        return (khz, "the hypervisor's timing leaf");
    }
    if let Some(port) = platform.pm_timer {
        if let Some(khz) = against_pm_timer(port) {
            return (khz, "the ACPI timer");
        }
        log::warn!("the ACPI timer does not run");
    }
    if let Some(khz) = against_pit() {
        return (khz, "the PIT");
    }
    log::warn!("the PIT does not run: time may pass too fast or too slowly");
    match u64::from(cpuid(0x16, 0).eax & 0xffff) * 1000 {
        khz if KHZ.contains(&khz) => (khz, "the processor's base frequency"),
        _ => (KHZ_GUESS, "a guess"),
    }
}

/// Leaf 4000_0010h, which KVM and VMware give their guests: exact, where Pollux itself is a guest.
fn hypervisor_khz() -> Option<u64> {
    if !cpu::is_virtual() || cpuid(0x4000_0000, 0).eax < 0x4000_0010 {
        return None;
    }
    Some(cpuid(0x4000_0010, 0).eax.into()).filter(|khz| KHZ.contains(khz))
}

fn against_pm_timer(port: u16) -> Option<u64> {
    const TICKS: u32 = (PM_TIMER_HZ / PERIODS_A_SECOND) as u32;
    // SAFETY: reading the timer has no effect.
    let timer = || unsafe { port_in32(port) } & PM_TIMER_MASK;
    let since = |start: u32, now: u32| now.wrapping_sub(start) & PM_TIMER_MASK;
    let (start_tsc, start) = quickest_reading(timer);
    (0..READS_MAX).find(|_| since(start, timer()) >= TICKS)?;
    let (end_tsc, end) = quickest_reading(timer);
    Some((end_tsc - start_tsc) * PM_TIMER_HZ / u64::from(since(start, end)) / 1000).filter(|khz| KHZ.contains(khz))
}

/// What a timer said, and the TSC then: of a reading that took long, in firmware or an emulator, nobody knows at which
/// moment of it the timer was looked at.
fn quickest_reading(timer: impl Fn() -> u32) -> (u64, u32) {
    let readings = (0..READINGS).map(|_| {
        let (before, ticks) = (tsc(), timer());
        let took = tsc() - before;
        (took, before + took / 2, ticks)
    });
    let (_, tsc, ticks) = readings.min_by_key(|&(took, ..)| took).expect("there are some");
    (tsc, ticks)
}

/// Counts down channel 2, whose output can be read at port 61h.
fn against_pit() -> Option<u64> {
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
        (0..READS_MAX).find(|_| port_in8(0x61) & OUTPUT != 0)?;
        Some((tsc() - start) * PERIODS_A_SECOND / 1000).filter(|khz| KHZ.contains(khz))
    }
}
