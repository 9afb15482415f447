//! Checks that interrupts arrive: IPIs to itself, the local APIC's timer in its modes, the PIT both ways; and HLT.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and the deadline is an MSR")]

use guests::apic::{self, register};
use guests::interrupts::{self, APIC_VECTOR, PIC_VECTOR};
use guests::{cpu, guest, legacy, tap};

guest!(timer);

const IPI_VECTOR: u8 = APIC_VECTOR + 1;
const TIMER_VECTOR: u8 = APIC_VECTOR + 2;
const PIT_VECTOR: u8 = APIC_VECTOR + 3;
/// The vector of lower priority of two.
const LOW_VECTOR: u8 = 0x41;
const HIGH_VECTOR: u8 = 0x81;
/// Some seconds, on any processor.
const WAIT_CYCLES: u64 = 10_000_000_000;
const DIVIDE_BY_16: u32 = 3;
const PERIODIC: u32 = 1 << 17;
const PIT_PIN: u8 = 2;

fn timer() {
    apic::start();
    apic::write(register::DIVIDE, DIVIDE_BY_16);
    ipis();
    priorities();
    one_shot();
    periodic();
    deadline();
    pit_by_ioapic();
    pit_by_pic();
}

/// Whether `start` makes `vector` come within the wait, `times` times.
fn arrives(vector: u8, times: u32, start: impl FnOnce()) -> bool {
    let before = interrupts::count(vector);
    start();
    cpu::wait_until(WAIT_CYCLES, || interrupts::count(vector).wrapping_sub(before) >= times)
}

fn ipis() {
    tap::check(arrives(IPI_VECTOR, 1, || apic::send_to_self(IPI_VECTOR)), "an IPI to self arrives");
    tap::check(arrives(IPI_VECTOR, 1, || apic::send(IPI_VECTOR, apic::id())), "an IPI to the own id arrives");
    let before = interrupts::count(IPI_VECTOR);
    apic::send_to_self(IPI_VECTOR);
    apic::send_to_self(IPI_VECTOR);
    tap::check(interrupts::count(IPI_VECTOR) == before, "no interrupt comes while RFLAGS.IF is clear");
    cpu::wait_until(WAIT_CYCLES, || interrupts::count(IPI_VECTOR) != before);
    cpu::wait_until(1_000_000, || false);
    tap::check(interrupts::count(IPI_VECTOR) == before + 1, "two while one is pending are one");
}

fn priorities() {
    apic::write(register::TASK_PRIORITY, 0x50);
    apic::send_to_self(LOW_VECTOR);
    tap::check(arrives(HIGH_VECTOR, 1, || apic::send_to_self(HIGH_VECTOR)), "a vector above the TPR arrives");
    tap::check(interrupts::count(LOW_VECTOR) == 0, "a vector below the TPR waits");
    tap::check(arrives(LOW_VECTOR, 1, || apic::write(register::TASK_PRIORITY, 0)), "and arrives when the TPR falls");
}

fn one_shot() {
    let start = |count| {
        apic::write(register::LVT_TIMER, u32::from(TIMER_VECTOR));
        apic::write(register::INITIAL_COUNT, count);
    };
    tap::check(arrives(TIMER_VECTOR, 1, || start(100_000)), "the one-shot timer arrives");
    tap::check(apic::read(register::CURRENT_COUNT) == 0, "and then stands at zero");
    let before = interrupts::count(TIMER_VECTOR);
    start(1_000_000);
    while interrupts::count(TIMER_VECTOR) == before {
        cpu::wait_for_interrupt();
    }
    tap::check(interrupts::count(TIMER_VECTOR) == before + 1, "the one-shot timer ends HLT");
}

fn periodic() {
    let came = arrives(TIMER_VECTOR, 5, || {
        apic::write(register::LVT_TIMER, PERIODIC | u32::from(TIMER_VECTOR));
        apic::write(register::INITIAL_COUNT, 200_000);
    });
    apic::write(register::LVT_TIMER, apic::MASKED);
    apic::write(register::INITIAL_COUNT, 0);
    // One more may have been due by then.
    cpu::wait_until(1_000_000, || false);
    tap::check(came, "the periodic timer arrives again and again");
}

fn deadline() {
    if !apic::has_tsc_deadline() {
        return tap::skip("the TSC deadline arrives", "no TSC-deadline mode");
    }
    let arm = |cycles| {
        // SAFETY: it only raises the timer's interrupt.
        unsafe { cpu::write_msr(cpu::msr::TSC_DEADLINE, cpu::tsc() + cycles) };
    };
    apic::write(register::LVT_TIMER, apic::TSC_DEADLINE_MODE | u32::from(TIMER_VECTOR));
    tap::check(arrives(TIMER_VECTOR, 1, || arm(1_000_000)), "the TSC deadline arrives");
    tap::check(cpu::read_msr(cpu::msr::TSC_DEADLINE) == 0, "and is then disarmed");
    let before = interrupts::count(TIMER_VECTOR);
    let end = cpu::tsc() + 20_000_000;
    arm(20_000_000);
    while interrupts::count(TIMER_VECTOR) == before {
        cpu::wait_for_interrupt();
    }
    tap::check(cpu::tsc() >= end, "the TSC deadline ends HLT, not too early");
    tap::check(arrives(TIMER_VECTOR, 1, || arm(0)), "a deadline in the past arrives at once");
    apic::write(register::LVT_TIMER, apic::MASKED);
}

fn pit_by_ioapic() {
    let tick = (legacy::PIT_HZ / 200) as u16;
    let came = arrives(PIT_VECTOR, 3, || {
        legacy::route(PIT_PIN, Some(PIT_VECTOR), apic::id() as u8);
        legacy::start_pit(tick);
    });
    legacy::stop_pit();
    legacy::route(PIT_PIN, None, 0);
    tap::check(came, "the PIT arrives through the IOAPIC");
}

fn pit_by_pic() {
    let tick = (legacy::PIT_HZ / 200) as u16;
    let came = arrives(PIC_VECTOR, 3, || {
        apic::write(register::LVT_LINT0, apic::EXTERNAL);
        legacy::start_pics(!1);
        legacy::start_pit(tick);
    });
    legacy::stop_pit();
    legacy::start_pics(0xffff);
    apic::write(register::LVT_LINT0, apic::MASKED);
    tap::check(came, "the PIT arrives through the PIC");
}
