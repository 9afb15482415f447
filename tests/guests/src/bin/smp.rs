//! Several processors: start-up, interrupts between them in every form, NMIs, flushes of all, one time, and INIT.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use guests::apic::{self, register};
use guests::interrupts::{self, APIC_VECTOR};
use guests::{cpu, guest, smp, tap};

guest!(main);

/// Every processor's own vector: this and its number.
const PING_VECTOR: u8 = APIC_VECTOR + 0x10;
const PONG_VECTOR: u8 = APIC_VECTOR + 0x01;
const FLUSH_VECTOR: u8 = APIC_VECTOR + 0x30;
const LOGICAL_VECTOR: u8 = APIC_VECTOR + 0x31;
const NMI: u8 = 2;
const ROUNDS: u32 = 100;
/// Some seconds, on any processor.
const WAIT_CYCLES: u64 = 20_000_000_000;

/// What the others do between interrupts.
static SPINS: AtomicU32 = AtomicU32::new(0);
/// How many have come, the APIC IDs of those that did (a bit each), and how many flushes were done in all.
static ARRIVED: AtomicU32 = AtomicU32::new(0);
static IDS: AtomicU64 = AtomicU64::new(0);
static FLUSHED: AtomicU32 = AtomicU32::new(0);
/// The latest time that anybody saw, and how often somebody saw an earlier one afterwards.
static LATEST: AtomicU64 = AtomicU64::new(0);
static BACKWARDS: AtomicU32 = AtomicU32::new(0);
static CLOCKS: AtomicU32 = AtomicU32::new(0);

fn main() {
    let others = smp::count() - 1;
    if others == 0 {
        return tap::skip("everything", "there is one processor");
    }
    apic::start();
    smp::prepare(other);
    smp::start(None);
    tap::check(wait(|| ARRIVED.load(Ordering::Acquire) == others as u32), "every processor starts");
    let expected = (1u64 << (others + 1)) - 2;
    tap::check(IDS.load(Ordering::Acquire) == expected, "each has an APIC ID of its own");
    for (spins, how) in [(0, "halted"), (1, "busy")] {
        SPINS.store(spins, Ordering::Release);
        tap::check((1..=others as u32).all(ping_pong), how_ping(how));
        tap::check(flushes(others as u32), how_flush(how));
    }
    logical(others);
    nmis();
    one_time(others as u32);
    restart(others as u32);
}

fn how_ping(how: &str) -> &'static str {
    if how == "busy" { "IPIs go to a busy processor and back" } else { "IPIs go to a halted processor and back" }
}

fn how_flush(how: &str) -> &'static str {
    if how == "busy" { "busy processors flush when told" } else { "halted processors flush when told" }
}

fn wait(condition: impl FnMut() -> bool) -> bool {
    cpu::wait_until(WAIT_CYCLES, condition)
}

/// What every other processor runs.
fn other(_: usize) {
    let id = apic::id();
    let vector = PING_VECTOR + id as u8;
    let (mut pings, mut flushes) = (interrupts::count(vector), interrupts::count(FLUSH_VECTOR));
    let mut own_flushes = 0;
    IDS.fetch_or(1 << id, Ordering::AcqRel);
    ARRIVED.fetch_add(1, Ordering::AcqRel);
    loop {
        if SPINS.load(Ordering::Acquire) == 0 {
            cpu::wait_for_interrupt();
        } else {
            cpu::wait_until(100_000, || interrupts::count(vector) != pings);
        }
        if CLOCKS.load(Ordering::Acquire) != 0 {
            look_at_clock();
        }
        if interrupts::count(vector) != pings {
            pings = pings.wrapping_add(1);
            apic::send(PONG_VECTOR, 0);
        }
        // Each processor's handler counts once for each flush.
        let wanted = WANTED_FLUSHES.load(Ordering::Acquire);
        if own_flushes != wanted && interrupts::count(FLUSH_VECTOR) != flushes {
            flushes = interrupts::count(FLUSH_VECTOR);
            own_flushes = wanted;
            smp::flush();
            FLUSHED.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Rounds of flushes that were asked for.
static WANTED_FLUSHES: AtomicU32 = AtomicU32::new(0);

/// One interrupt to a processor, one back, many times.
fn ping_pong(id: u32) -> bool {
    (0..ROUNDS).all(|_| {
        let before = interrupts::count(PONG_VECTOR);
        apic::send(PING_VECTOR + id as u8, id);
        wait(|| interrupts::count(PONG_VECTOR) != before)
    })
}

/// As a kernel that changed a page table: all others forget translations, and it waits for the last.
fn flushes(others: u32) -> bool {
    (0..ROUNDS).all(|_| {
        let before = FLUSHED.load(Ordering::Acquire);
        let counted = interrupts::count(FLUSH_VECTOR);
        WANTED_FLUSHES.fetch_add(1, Ordering::AcqRel);
        apic::send_to_others(FLUSH_VECTOR);
        wait(|| {
            FLUSHED.load(Ordering::Acquire) == before + others && interrupts::count(FLUSH_VECTOR) == counted + others
        })
    })
}

/// A message to a set of processors reaches those in it, once each.
fn logical(others: usize) {
    if !apic::has_x2apic() {
        return tap::skip("a logical destination", "there is no x2APIC");
    }
    let members = others.min(14) as u32;
    apic::send_logical(LOGICAL_VECTOR, (1 << (members + 1)) - 2);
    tap::check(wait(|| interrupts::count(LOGICAL_VECTOR) == members), "a logical destination reaches its members");
    let nobody = 7 << 16 | 1;
    apic::send_logical(LOGICAL_VECTOR, nobody);
    cpu::wait_until(1_000_000, || false);
    tap::check(interrupts::count(LOGICAL_VECTOR) == members, "an empty cluster is nobody's");
}

fn nmis() {
    for spins in [1, 0] {
        SPINS.store(spins, Ordering::Release);
        let before = interrupts::count(NMI);
        apic::send_nmi(1);
        tap::check(wait(|| interrupts::count(NMI) == before + 1), "an NMI arrives");
    }
}

/// Notes the time, if nobody saw a later one before.
fn look_at_clock() {
    let latest = LATEST.load(Ordering::Acquire);
    let now = cpu::tsc();
    if now < latest {
        BACKWARDS.fetch_add(1, Ordering::AcqRel);
    }
    LATEST.fetch_max(now, Ordering::AcqRel);
}

/// No processor's time-stamp counter is behind what another has seen.
fn one_time(others: u32) {
    SPINS.store(1, Ordering::Release);
    CLOCKS.store(1, Ordering::Release);
    let before = interrupts::count(PONG_VECTOR);
    apic::send_to_others(PONG_VECTOR);
    (0..100_000).for_each(|_| look_at_clock());
    CLOCKS.store(0, Ordering::Release);
    // Nobody's is left for what follows.
    wait(|| interrupts::count(PONG_VECTOR) == before + others);
    tap::check(BACKWARDS.load(Ordering::Acquire) == 0, "time goes forwards on all processors");
}

/// INIT takes a busy processor back to where a start-up message finds it.
fn restart(others: u32) {
    apic::send_init(Some(1));
    cpu::wait_until(2_000_000, || false);
    let before = interrupts::count(PONG_VECTOR);
    apic::send(PING_VECTOR + 1, 1);
    tap::check(
        !cpu::wait_until(10_000_000, || interrupts::count(PONG_VECTOR) != before),
        "after INIT it takes no interrupts",
    );
    smp::start(Some(1));
    tap::check(wait(|| ARRIVED.load(Ordering::Acquire) == others + 1), "and starts again");
    SPINS.store(0, Ordering::Release);
    tap::check(ping_pong(1), "and answers again");
    apic::write(register::TASK_PRIORITY, 0);
}
