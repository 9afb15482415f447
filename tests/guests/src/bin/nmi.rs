//! Checks that NMIs wait for the end of an NMI's handler, that two which wait are one.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use guests::interrupts::{self, Frame, NMI};
use guests::{apic, cpu, guest, tap};

guest!(nmi);

/// Where the first handler returns to, and the second: RIP and RSP.
static FRAMES: [[AtomicU64; 2]; 2] = [const { [const { AtomicU64::new(0) }; 2] }; 2];
/// How many handlers have begun, how many ran at once, and how many NMIs the first sends.
static HANDLERS: AtomicU32 = AtomicU32::new(0);
static RUNNING: AtomicU32 = AtomicU32::new(0);
static NESTED: AtomicU32 = AtomicU32::new(0);
static TO_SEND: AtomicU32 = AtomicU32::new(0);

fn nmi() {
    apic::start();
    interrupts::handle(NMI, Some(handler));
    send();
    tap::check(HANDLERS.load(Ordering::Relaxed) == 1, "an NMI to itself arrives, with RFLAGS.IF clear");
    for (count, name) in [(1, "an NMI waits for the handler's end"), (2, "two that wait are one")] {
        HANDLERS.store(0, Ordering::Relaxed);
        TO_SEND.store(count, Ordering::Relaxed);
        send();
        tap::check(HANDLERS.load(Ordering::Relaxed) == 2 && NESTED.load(Ordering::Relaxed) == 0, name);
        let [first, second] = FRAMES.each_ref().map(|frame| frame.each_ref().map(|word| word.load(Ordering::Relaxed)));
        tap::check(first == second, "it comes when IRET is done, where the first one came");
    }
    HANDLERS.store(0, Ordering::Relaxed);
    send();
    send();
    tap::check(HANDLERS.load(Ordering::Relaxed) == 2, "and the next are not held back");
}

fn send() {
    apic::send_nmi(apic::id());
    // It comes behind the instruction that sends it, or soon.
    cpu::cpuid(0, 0);
    (0..1000).for_each(|_| core::hint::spin_loop());
}

fn handler(frame: &mut Frame) {
    if RUNNING.fetch_add(1, Ordering::Relaxed) != 0 {
        NESTED.fetch_add(1, Ordering::Relaxed);
    }
    let number = HANDLERS.fetch_add(1, Ordering::Relaxed) as usize;
    if let Some(noted) = FRAMES.get(number) {
        noted[0].store(frame.rip, Ordering::Relaxed);
        noted[1].store(frame.rsp, Ordering::Relaxed);
    }
    (0..TO_SEND.swap(0, Ordering::Relaxed)).for_each(|_| send());
    RUNNING.fetch_sub(1, Ordering::Relaxed);
}
