//! Checks the IOAPIC's pins: edges and levels, remote IRR and what ends it, masks.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};
use guests::interrupts::{self, Frame};
use guests::{apic, cpu, guest, legacy, tap};

guest!(ioapic);

/// The serial line's pin, asserted while its transmitter is empty and it may say so.
const PIN: u8 = 4;
const ENABLE: u16 = 0x3f9;
const TRANSMITTER: u8 = 2;
/// Its second output lets the interrupt reach the pin, on a PC.
const MODEM_CONTROL: u16 = 0x3fc;
const LET_THROUGH: u8 = 0x0b;
const VECTOR: u8 = 0x52;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const REMOTE_IRR: u32 = 1 << 14;
/// Interrupt request, trigger mode: the registers that have the vector's bit.
const IRR: u32 = 0x20 + (VECTOR / 32) as u32;
const TMR: u32 = 0x18 + (VECTOR / 32) as u32;
const BIT: u32 = 1 << (VECTOR % 32);

static COUNT: AtomicU32 = AtomicU32::new(0);
/// How many ends of the interrupt leave the line asserted.
static LEFT_ASSERTED: AtomicU32 = AtomicU32::new(0);

fn ioapic() {
    apic::start();
    interrupts::handle(VECTOR, Some(handler));
    cpu::out8(MODEM_CONTROL, LET_THROUGH);
    assert_line(false);
    levels();
    ends();
    masks();
    edges();
    legacy::route(PIN, None, 0);
}

fn levels() {
    set(LEVEL);
    tap::check(low() & REMOTE_IRR == 0, "a pin that is not asserted is idle");
    assert_line(true);
    tap::check(low() & REMOTE_IRR != 0, "a level sets remote IRR");
    tap::check(apic::read(IRR) & BIT != 0, "the local APIC has the interrupt");
    tap::check(apic::read(TMR) & BIT != 0, "as a level");
    assert_line(false);
    tap::check(low() & REMOTE_IRR != 0, "remote IRR stays until the interrupt's end");
    let_in();
    tap::check(COUNT.swap(0, Ordering::Relaxed) == 1, "the interrupt comes");
    tap::check(low() & REMOTE_IRR == 0, "its end clears remote IRR");
    assert_line(true);
    LEFT_ASSERTED.store(3, Ordering::Relaxed);
    let_in();
    tap::check(COUNT.swap(0, Ordering::Relaxed) == 4, "it comes again as long as the line is asserted");
}

fn ends() {
    assert_line(true);
    assert_line(false);
    // The EOI register of later parts ends it without the local APIC.
    if legacy::read_ioapic(1) & 0xff < 0x20 {
        tap::skip("a directed end", "the IOAPIC has no EOI register");
    } else {
        legacy::end_ioapic(VECTOR + 1);
        tap::check(low() & REMOTE_IRR != 0, "another vector's end is not its");
        legacy::end_ioapic(VECTOR);
        tap::check(low() & REMOTE_IRR == 0, "a directed end clears remote IRR");
    }
    let_in();
    tap::check(COUNT.swap(0, Ordering::Relaxed) == 1, "what the local APIC had comes all the same");
}

fn masks() {
    set(LEVEL | MASKED);
    assert_line(true);
    tap::check(low() & REMOTE_IRR == 0 && apic::read(IRR) & BIT == 0, "a masked level waits");
    set(LEVEL);
    tap::check(apic::read(IRR) & BIT != 0, "and comes when the mask goes");
    assert_line(false);
    let_in();
    tap::check(COUNT.swap(0, Ordering::Relaxed) == 1, "once");
}

fn edges() {
    set(MASKED);
    assert_line(true);
    set(0);
    tap::check(apic::read(IRR) & BIT == 0, "an edge at a masked pin is lost");
    assert_line(false);
    assert_line(true);
    tap::check(apic::read(IRR) & BIT != 0 && apic::read(TMR) & BIT == 0, "an edge is an edge");
    tap::check(low() & REMOTE_IRR == 0, "and sets no remote IRR");
    let_in();
    tap::check(COUNT.swap(0, Ordering::Relaxed) == 1, "it comes once, though the line is asserted");
    assert_line(false);
}

fn handler(_: &mut Frame) {
    COUNT.fetch_add(1, Ordering::Relaxed);
    if LEFT_ASSERTED.load(Ordering::Relaxed) == 0 {
        assert_line(false);
    } else {
        LEFT_ASSERTED.fetch_sub(1, Ordering::Relaxed);
    }
    apic::acknowledge();
}

fn let_in() {
    cpu::enable_interrupts();
    (0..1000).for_each(|_| core::hint::spin_loop());
    cpu::disable_interrupts();
}

fn assert_line(on: bool) {
    cpu::out8(ENABLE, if on { TRANSMITTER } else { 0 });
}

fn set(flags: u32) {
    legacy::write_ioapic(0x11 + 2 * PIN, apic::id() << 24);
    legacy::write_ioapic(0x10 + 2 * PIN, u32::from(VECTOR) | flags);
}

fn low() -> u32 {
    legacy::read_ioapic(0x10 + 2 * PIN)
}
