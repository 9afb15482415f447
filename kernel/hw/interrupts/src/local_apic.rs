//! The local APIC of a physical processor: x2APIC where there is one, else xAPIC through memory.
//!
//! SDM volume 3, chapter 13 (revision 087). The timer runs in TSC-deadline mode where the processor has it; else as a
//! one-shot down-counter whose rate [`init`] measures against the TSC.

use addr::Hpa;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use cpu::{cpuid, msr};

use crate::{SPURIOUS, TIMER};

/// Registers, as offsets in the xAPIC page; an x2APIC's MSR is 0x800 plus a sixteenth.
const ID: u32 = 0x20;
const TASK_PRIORITY: u32 = 0x80;
const END_OF_INTERRUPT: u32 = 0xb0;
const SPURIOUS_VECTOR: u32 = 0xf0;
const REQUESTED: u32 = 0x200;
const COMMAND: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const TIMER_ENTRY: u32 = 0x320;
const LINT0: u32 = 0x350;
const LINT1: u32 = 0x360;
const INITIAL_COUNT: u32 = 0x380;
const CURRENT_COUNT: u32 = 0x390;
const DIVIDE: u32 = 0x3e0;

const MASKED: u32 = 1 << 16;
const DEADLINE_MODE: u32 = 2 << 17;
const DELIVERY_NMI: u32 = 4 << 8;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const COMMAND_PENDING: u32 = 1 << 12;
const COMMAND_ASSERT: u32 = 1 << 14;
const DIVIDE_BY_1: u32 = 0b1011;

const APIC_BASE_X2APIC: u64 = 1 << 10;
const APIC_BASE_ENABLE: u64 = 1 << 11;

/// The last APIC ID that an xAPIC, an I/O APIC or a device's message can name; 255 is everybody.
const SHORT_ID_MAX: u32 = 254;
/// How often an xAPIC's command register is asked whether it is done with the last one, which takes a microsecond.
const COMMAND_READS_MAX: u32 = 1_000_000;

/// How the registers are reached.
const OFF: u8 = 0;
const X_APIC: u8 = 1;
const X2_APIC: u8 = 2;
static ACCESS: AtomicU8 = AtomicU8::new(OFF);
static PAGE: AtomicU64 = AtomicU64::new(0xfee0_0000);

/// Timer ticks in 2^32 TSC cycles; 0 in deadline mode.
static TICKS_PER_4G_CYCLES: AtomicU64 = AtomicU64::new(0);

/// Turns on this processor's local APIC. The first call decides for all whether it is used as an x2APIC.
pub fn init() {
    // SAFETY: every 64-bit processor has the register; the bits set turn the APIC on, which nothing else does.
    unsafe {
        let base = msr::read(msr::APIC_BASE);
        PAGE.store(base & 0x000f_ffff_ffff_f000, Ordering::Relaxed);
        if cpuid(1, 0).ecx & 1 << 21 != 0 {
            msr::write(msr::APIC_BASE, base | APIC_BASE_ENABLE);
            msr::write(msr::APIC_BASE, base | APIC_BASE_ENABLE | APIC_BASE_X2APIC);
            ACCESS.store(X2_APIC, Ordering::Relaxed);
        } else {
            msr::write(msr::APIC_BASE, base | APIC_BASE_ENABLE);
            ACCESS.store(X_APIC, Ordering::Relaxed);
        }
    }
    write(TASK_PRIORITY, 0);
    write(SPURIOUS_VECTOR, SOFTWARE_ENABLE | u32::from(SPURIOUS));
    write(LINT0, MASKED);
    write(LINT1, DELIVERY_NMI);
    init_timer();
}

/// This processor's APIC ID.
pub fn id() -> u32 {
    if ACCESS.load(Ordering::Relaxed) == X2_APIC { read(ID) } else { read(ID) >> 24 }
}

/// Whether the local APICs are used as x2APICs, and whether their timers know deadlines, for the report.
pub fn modes() -> (bool, bool) {
    (ACCESS.load(Ordering::Relaxed) == X2_APIC, has_deadline_mode())
}

/// Whether interrupts between processors reach the one with APIC ID `to`.
pub fn reaches(to: u32) -> bool {
    ACCESS.load(Ordering::Relaxed) == X2_APIC || to <= SHORT_ID_MAX
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

/// Whether an interrupt waits to be taken.
pub fn has_requests() -> bool {
    // The first 32 vectors are the processor's own.
    (1..8).any(|index| read(REQUESTED + index * 0x10) != 0)
}

/// Asks for a [`TIMER`] interrupt when the TSC reaches `deadline_tsc`, in place of what was asked before.
pub fn arm_timer(deadline_tsc: u64) {
    let rate = TICKS_PER_4G_CYCLES.load(Ordering::Relaxed);
    if rate == 0 {
        // SAFETY: deadline mode is on. 0 would disarm.
        unsafe { msr::write(msr::TSC_DEADLINE, deadline_tsc.max(1)) };
        return;
    }
    let cycles = deadline_tsc.saturating_sub(cpu::tsc());
    let ticks = ((u128::from(cycles) * u128::from(rate)) >> 32) as u64;
    // 0 would disarm; too far away is looked at again when the count ends.
    write(INITIAL_COUNT, ticks.clamp(1, u32::MAX.into()) as u32);
}

/// Sends `vector` to the processor with APIC ID `to`.
pub fn send(to: u32, vector: u8) {
    command(to, u32::from(vector) | COMMAND_ASSERT);
}

/// Sends INIT to the processor with APIC ID `to`.
pub fn send_init(to: u32) {
    command(to, 5 << 8 | COMMAND_ASSERT);
}

/// Sends STARTUP: processor `to` begins in real mode at `page`, which lies below 1 MiB.
pub fn send_startup(to: u32, page: Hpa) {
    assert!(page.is_aligned(4096) && page.as_u64() < 1 << 20);
    command(to, 6 << 8 | COMMAND_ASSERT | (page.as_u64() >> 12) as u32);
}

/// Sends an NMI to every other processor; does nothing before [`init`] ran on this one.
pub fn send_nmi_to_others() {
    const ALL_BUT_SELF: u32 = 3 << 18;
    // SAFETY: every 64-bit processor has the register.
    let base = unsafe { msr::read(msr::APIC_BASE) };
    let own_access = match (base & APIC_BASE_ENABLE != 0, base & APIC_BASE_X2APIC != 0) {
        (false, _) => OFF,
        (true, false) => X_APIC,
        (true, true) => X2_APIC,
    };
    let access = ACCESS.load(Ordering::Relaxed);
    if access != OFF && access == own_access {
        command(0, DELIVERY_NMI | COMMAND_ASSERT | ALL_BUT_SELF);
    }
}

/// The address and data with which a device's MSI reaches processor `to` as `vector`; `None` where the APIC ID does not
/// fit, as interrupts are not remapped.
pub fn msi(to: u32, vector: u8) -> Option<(u64, u32)> {
    (to <= SHORT_ID_MAX).then(|| (0xfee0_0000 | u64::from(to) << 12, vector.into()))
}

fn has_deadline_mode() -> bool {
    cpuid(1, 0).ecx & 1 << 24 != 0
}

fn init_timer() {
    if has_deadline_mode() {
        write(TIMER_ENTRY, DEADLINE_MODE | u32::from(TIMER));
        // SAFETY: a fence, which the manual asks for between the mode and the first deadline (13.5.4.1).
        unsafe { core::arch::asm!("mfence", options(nostack, preserves_flags)) };
        return;
    }
    write(DIVIDE, DIVIDE_BY_1);
    if TICKS_PER_4G_CYCLES.load(Ordering::Relaxed) == 0 {
        TICKS_PER_4G_CYCLES.store(measure_rate(), Ordering::Relaxed);
    }
    write(TIMER_ENTRY, u32::from(TIMER));
}

/// Ticks of the timer in 2^32 TSC cycles, over some milliseconds.
fn measure_rate() -> u64 {
    const CYCLES: u64 = 20_000_000;
    write(TIMER_ENTRY, MASKED | u32::from(TIMER));
    write(INITIAL_COUNT, u32::MAX);
    let (start_tsc, start) = (cpu::tsc(), read(CURRENT_COUNT));
    while cpu::tsc() - start_tsc < CYCLES {
        core::hint::spin_loop();
    }
    let (ticks, cycles) = (start.wrapping_sub(read(CURRENT_COUNT)), cpu::tsc() - start_tsc);
    write(INITIAL_COUNT, 0);
    ((u64::from(ticks) << 32) / cycles).max(1)
}

fn command(to: u32, low: u32) {
    if ACCESS.load(Ordering::Relaxed) == X2_APIC {
        // SAFETY: the x2APIC's command register is one MSR. The fence makes what was stored before the interrupt
        // visible to its receiver (13.12.3).
        unsafe {
            core::arch::asm!("mfence", options(nostack, preserves_flags));
            msr::write(0x800 + COMMAND / 16, u64::from(to) << 32 | u64::from(low));
        }
        return;
    }
    // A command that never leaves is lost with or without the next one.
    let is_free = |_| read(COMMAND) & COMMAND_PENDING == 0;
    let _ = (0..COMMAND_READS_MAX).any(is_free);
    write(COMMAND_HIGH, to << 24);
    write(COMMAND, low);
}

fn read(register: u32) -> u32 {
    if ACCESS.load(Ordering::Relaxed) == X2_APIC {
        // SAFETY: the callers name registers that an x2APIC has.
        return unsafe { msr::read(0x800 + register / 16) as u32 };
    }
    // SAFETY: the page is mapped uncached, and the callers name registers of it.
    unsafe { ((PAGE.load(Ordering::Relaxed) + u64::from(register)) as *const u32).read_volatile() }
}

fn write(register: u32, value: u32) {
    if ACCESS.load(Ordering::Relaxed) == X2_APIC {
        // SAFETY: as in `read`; the values follow the manual.
        unsafe { msr::write(0x800 + register / 16, value.into()) };
        return;
    }
    // SAFETY: as in `read`.
    unsafe { ((PAGE.load(Ordering::Relaxed) + u64::from(register)) as *mut u32).write_volatile(value) }
}
