//! Times what two processors do to each other: prints `BENCH name cycles`, the best of five rounds, per operation.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};
use guests::interrupts::{self, APIC_VECTOR};
use guests::{apic, cpu, guest, println, smp, tap};

guest!(main);

const PING_VECTOR: u8 = APIC_VECTOR + 1;
const PONG_VECTOR: u8 = APIC_VECTOR + 2;
const ROUNDS: u32 = 5;
const REPEATS: u32 = 200;
/// Some seconds, on any processor.
const WAIT_CYCLES: u64 = 20_000_000_000;

static ARRIVED: AtomicU32 = AtomicU32::new(0);
/// The other processor halts between interrupts, or looks for them.
static HALTS: AtomicU32 = AtomicU32::new(1);
/// It answers with an interrupt, or flushes and says so in memory.
static FLUSHES: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);

fn main() {
    if smp::count() < 2 {
        return tap::skip("everything", "there is one processor");
    }
    apic::start();
    smp::prepare(other);
    smp::start(Some(1));
    tap::check(cpu::wait_until(WAIT_CYCLES, || ARRIVED.load(Ordering::Acquire) == 1), "the other processor starts");
    cpu::enable_interrupts();
    bench("ipi_round_trip_halted", round_trip);
    HALTS.store(0, Ordering::Release);
    round_trip();
    bench("ipi_round_trip_busy", round_trip);
    FLUSHES.store(1, Ordering::Release);
    bench("remote_flush", flush);
    cpu::disable_interrupts();
}

fn round_trip() {
    let before = interrupts::count(PONG_VECTOR);
    apic::send(PING_VECTOR, 1);
    while interrupts::count(PONG_VECTOR) == before {
        core::hint::spin_loop();
    }
}

fn flush() {
    let before = DONE.load(Ordering::Acquire);
    apic::send(PING_VECTOR, 1);
    while DONE.load(Ordering::Acquire) == before {
        core::hint::spin_loop();
    }
}

fn other(_: usize) {
    let mut seen = interrupts::count(PING_VECTOR);
    ARRIVED.store(1, Ordering::Release);
    loop {
        if HALTS.load(Ordering::Acquire) != 0 {
            cpu::wait_for_interrupt();
        } else {
            cpu::wait_until(WAIT_CYCLES, || interrupts::count(PING_VECTOR) != seen);
        }
        if interrupts::count(PING_VECTOR) == seen {
            continue;
        }
        seen = interrupts::count(PING_VECTOR);
        if FLUSHES.load(Ordering::Acquire) == 0 {
            apic::send(PONG_VECTOR, 0);
        } else {
            smp::flush();
            DONE.fetch_add(1, Ordering::AcqRel);
        }
    }
}

fn bench(name: &str, operation: impl Fn()) {
    let best = (0..ROUNDS).map(|_| {
        let start = cpu::tsc();
        (0..REPEATS).for_each(|_| operation());
        cpu::tsc() - start
    });
    println!("BENCH {name} {}", best.min().unwrap_or(0) / u64::from(REPEATS));
}
