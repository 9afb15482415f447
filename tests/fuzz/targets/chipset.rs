//! The board and a local APIC: any sequence of accesses, lines and times.
#![no_main]

use addr::Gpa;
use chipset::{Chipset, Clock, Effect, IOAPIC_BASE, Lapic};
use fuzz::Input;
use libfuzzer_sys::fuzz_target;

/// More effects than any access can have.
const EFFECTS_MAX: usize = 4096;
/// Where the local APIC's registers are as MSRs (Intel SDM volume 3, 11.12.1.2).
const X2APIC_MSRS: u32 = 0x800;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut board = Chipset::new(1_700_000_000_000_000_000, 512 << 20);
    let mut lapic = Lapic::new(0, true, 2_000_000);
    let mut clock = Clock::default();
    let mut effects = Vec::new();
    while !input.is_empty() {
        let step_ns = u64::from(input.u16()) << (input.u8() % 40);
        clock.ns = clock.ns.saturating_add(step_ns);
        clock.tsc = clock.tsc.saturating_add(step_ns.saturating_mul(2));
        act(&mut input, &mut board, &mut lapic, clock, &mut effects);
        assert!(effects.len() < EFFECTS_MAX, "one action has {} effects", effects.len());
        for effect in effects.split_off(0) {
            carry_out(effect, &mut board, &mut lapic, &mut effects);
        }
        effects.clear();
    }
});

fn act(input: &mut Input<'_>, board: &mut Chipset, lapic: &mut Lapic, clock: Clock, effects: &mut Vec<Effect>) {
    match input.u8() % 12 {
        0 | 1 => {
            board.port_write(input.u16(), input.port_width(), input.u32(), clock, effects);
        }
        2 => {
            board.port_read(input.u16(), input.port_width(), clock, effects);
        }
        3 => {
            board.mmio_write(
                Gpa::new(IOAPIC_BASE.as_u64() + u64::from(input.u16())),
                input.width(),
                input.u64(),
                effects,
            );
        }
        4 => {
            board.mmio_read(Gpa::new(IOAPIC_BASE.as_u64() + u64::from(input.u16())), input.width());
        }
        5 => board.set_gsi(input.u8(), input.u8() & 1 != 0, effects),
        6 => {
            board.console_input(input.bytes(40), effects);
        }
        7 => board.advance(clock, effects),
        8 => {
            // An error is the guest's #GP.
            let _ = lapic.write_msr(X2APIC_MSRS + u32::from(input.u8()), input.u64(), clock, effects);
        }
        9 => {
            let _ = lapic.read_msr(X2APIC_MSRS + u32::from(input.u8()), clock);
        }
        10 => lapic.mmio_write(input.u16() & 0xfff, input.width().min(4), input.u32(), clock, effects),
        _ => {
            lapic.advance(clock);
            match input.u8() {
                choice @ 0..32 => board.announce_device(choice, effects),
                choice @ 32..64 => board.ask_device_to_leave(choice - 32, effects),
                choice @ 64..96 => board.tell_of_lost_device(choice - 64, effects),
                _ => board.press_power_button(effects),
            }
            assert!(lapic.deadline_ns(clock).is_none_or(|deadline_ns| deadline_ns >= clock.ns));
        }
    }
}

fn carry_out(effect: Effect, board: &mut Chipset, lapic: &mut Lapic, effects: &mut Vec<Effect>) {
    match effect {
        Effect::Interrupt(message) => {
            if lapic.address().hears(&message) {
                lapic.accept(&message);
            }
        }
        Effect::PicLine(asserted) => lapic.set_lint0(asserted),
        Effect::LevelEoi(vector) => board.end_of_interrupt(vector, effects),
        Effect::Reset => {
            board.reset(effects);
            lapic.reset();
        }
        Effect::Console(_) | Effect::DebugConsole(_) | Effect::PowerOff | Effect::Exit(_) | Effect::Eject(_) => {}
    }
}
