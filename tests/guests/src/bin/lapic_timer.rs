//! Checks the local APIC's timer in all its modes, as far as no clock is needed: what starts and stops it, what is kept.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and the deadline is an MSR")]

use guests::apic::{self, MASKED, TSC_DEADLINE_MODE, register};
use guests::interrupts::{self, APIC_VECTOR};
use guests::{cpu, guest, tap};

guest!(lapic_timer);

const VECTOR: u8 = APIC_VECTOR + 2;
const PERIODIC: u32 = 1 << 17;
const LONG: u32 = u32::MAX;
/// Long enough for an emulated processor to do something else meanwhile.
const PERIOD: u32 = 5_000_000;
const IRR: u32 = 0x20 + (VECTOR / 32) as u32;
const BIT: u32 = 1 << (VECTOR % 32);
/// Some seconds, on any processor.
const WAIT_CYCLES: u64 = 20_000_000_000;

fn lapic_timer() {
    apic::start();
    dividers();
    counts();
    periods();
    masks();
    deadlines();
    apic::write(register::LVT_TIMER, MASKED);
}

fn dividers() {
    apic::write(register::LVT_TIMER, MASKED | u32::from(VECTOR));
    for divide in [0, 1, 2, 3, 8, 9, 10, 11] {
        apic::write(register::DIVIDE, divide);
        apic::write(register::INITIAL_COUNT, LONG);
        let first = apic::read(register::CURRENT_COUNT);
        let moved = (0..10_000_000).any(|_| apic::read(register::CURRENT_COUNT) < first);
        tap::check(moved && apic::read(register::DIVIDE) == divide, "it counts down with each divider");
    }
}

fn counts() {
    apic::write(register::DIVIDE, 11);
    apic::write(register::INITIAL_COUNT, LONG);
    tap::check(apic::read(register::INITIAL_COUNT) == LONG, "the initial count is kept");
    apic::write(register::INITIAL_COUNT, 0);
    tap::check(apic::read(register::CURRENT_COUNT) == 0, "zero stops it");
    apic::write(register::LVT_TIMER, VECTOR.into());
    apic::write(register::INITIAL_COUNT, 1000);
    tap::check(pends(), "at its end it interrupts");
    tap::check(apic::read(register::CURRENT_COUNT) == 0, "and stands at zero");
    let_in();
    spin();
    tap::check(apic::read(IRR) & BIT == 0, "one-shot is once");
    apic::write(register::INITIAL_COUNT, LONG);
    tap::check(apic::read(register::CURRENT_COUNT) > LONG / 2, "it starts again with its count");
}

fn periods() {
    apic::write(register::LVT_TIMER, PERIODIC | u32::from(VECTOR));
    apic::write(register::INITIAL_COUNT, PERIOD);
    let again = (0..3).all(|_| {
        let pends = pends();
        let_in();
        pends
    });
    tap::check(again, "periodic is again and again");
    let current = apic::read(register::CURRENT_COUNT);
    tap::check((1..=PERIOD).contains(&current), "it never counts beyond its period");
    apic::write(register::INITIAL_COUNT, 0);
    let_in();
    spin();
    tap::check(apic::read(IRR) & BIT == 0, "zero ends the periods");
}

fn masks() {
    apic::write(register::LVT_TIMER, MASKED | u32::from(VECTOR));
    apic::write(register::INITIAL_COUNT, 1000);
    let ended = (0..10_000_000).any(|_| apic::read(register::CURRENT_COUNT) == 0);
    tap::check(ended, "masked, it counts to its end");
    apic::write(register::LVT_TIMER, VECTOR.into());
    tap::check(apic::read(IRR) & BIT == 0, "and that is lost");
}

fn deadlines() {
    if !apic::has_tsc_deadline() {
        return tap::skip("TSC deadlines", "there is no such mode");
    }
    set_deadline(cpu::tsc());
    tap::check(deadline() == 0, "in another mode no deadline is taken");
    apic::write(register::INITIAL_COUNT, LONG);
    apic::write(register::LVT_TIMER, TSC_DEADLINE_MODE | u32::from(VECTOR));
    tap::check(apic::read(register::CURRENT_COUNT) == 0, "deadline mode stops the count");
    apic::write(register::INITIAL_COUNT, 1000);
    spin();
    tap::check(apic::read(register::CURRENT_COUNT) == 0 && apic::read(IRR) & BIT == 0, "and takes no count");
    set_deadline(u64::MAX);
    tap::check(deadline() == u64::MAX, "a far deadline is kept");
    set_deadline(0);
    tap::check(deadline() == 0, "zero disarms it");
    set_deadline(cpu::tsc() + 1000);
    tap::check(pends() && deadline() == 0, "a deadline interrupts, and is over");
    let_in();
    set_deadline(u64::MAX);
    apic::write(register::LVT_TIMER, VECTOR.into());
    tap::check(deadline() == 0, "another mode disarms it");
}

fn deadline() -> u64 {
    cpu::read_msr(cpu::msr::TSC_DEADLINE)
}

fn set_deadline(tsc: u64) {
    // SAFETY: it only raises the timer's interrupt.
    unsafe { cpu::write_msr(cpu::msr::TSC_DEADLINE, tsc) }
}

/// Waits until the interrupt is pending.
fn pends() -> bool {
    let start = cpu::tsc();
    while apic::read(IRR) & BIT == 0 {
        if cpu::tsc() - start > WAIT_CYCLES {
            return false;
        }
    }
    true
}

/// Takes it.
fn let_in() {
    let before = interrupts::count(VECTOR);
    cpu::wait_until(WAIT_CYCLES / 1000, || interrupts::count(VECTOR) != before);
}

fn spin() {
    (0..1000).for_each(|_| {
        cpu::in8(0x80);
    });
}
