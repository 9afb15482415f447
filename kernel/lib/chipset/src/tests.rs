//! The board as a whole: decoding, wiring, and what hostile guests do to it.

mod saved;

use super::*;
use addr::Gpa;
use proptest::prelude::*;

fn at(ns: u64) -> Clock {
    Clock { ns, tsc: ns }
}

fn board() -> Chipset {
    Chipset::new(1_795_355_083_000_000_000, 4 << 30)
}

fn out(chipset: &mut Chipset, port: u16, value: u8, clock: Clock) -> Vec<Effect> {
    let mut effects = Vec::new();
    assert!(chipset.port_write(port, 1, u32::from(value), clock, &mut effects), "port {port:#x}");
    effects
}

fn inb(chipset: &mut Chipset, port: u16, clock: Clock) -> u8 {
    chipset.port_read(port, 1, clock, &mut Vec::new()).unwrap() as u8
}

/// Programs an IOAPIC pin: the vector and flags in the low half, CPU 0.
fn route(chipset: &mut Chipset, pin: u8, low: u64) {
    let mut effects = Vec::new();
    assert!(chipset.mmio_write(IOAPIC_BASE, 4, u64::from(0x10 + 2 * pin), &mut effects));
    assert!(chipset.mmio_write(Gpa::new(0xfec0_0010), 4, low, &mut effects));
}

fn edge(vector: u8) -> Effect {
    let target = Target::Physical(0);
    Effect::Interrupt(Message { vector, mode: DeliveryMode::Fixed, target, level_triggered: false })
}

fn level(vector: u8) -> Effect {
    let target = Target::Physical(0);
    Effect::Interrupt(Message { vector, mode: DeliveryMode::Fixed, target, level_triggered: true })
}

#[test]
fn debug_ports_outlast_a_reset() {
    let mut chipset = board().with_debug_ports(DebugPorts { exit: true, console: true });
    chipset.reset(&mut Vec::new());
    assert_eq!(out(&mut chipset, 0xe9, b'x', at(0)), [Effect::DebugConsole(b'x')]);
    assert_eq!(out(&mut chipset, 0xf4, 7, at(0)), [Effect::Exit(7)]);
}

#[test]
fn console_goes_out_and_comes_in() {
    let mut chipset = board();
    assert_eq!(out(&mut chipset, 0x3f8, b'x', at(0)), [Effect::Console(b'x')]);
    assert_eq!(inb(&mut chipset, 0x3fd, at(0)), 0x60);
    route(&mut chipset, 4, 0x34);
    out(&mut chipset, 0x3fa, 0x01, at(0));
    out(&mut chipset, 0x3fc, 0x08, at(0));
    out(&mut chipset, 0x3f9, 0x01, at(0));
    let mut effects = Vec::new();
    assert_eq!(chipset.console_room(), 16);
    assert_eq!(chipset.console_input(b"hello, sixteen bytes", &mut effects), 16);
    assert_eq!(effects, [edge(0x34)]);
    assert_eq!(inb(&mut chipset, 0x3f8, at(0)), b'h');
}

#[test]
fn each_transmitted_byte_interrupts_anew() {
    let mut chipset = board();
    route(&mut chipset, 4, 0x34);
    out(&mut chipset, 0x3fc, 0x08, at(0));
    assert_eq!(out(&mut chipset, 0x3f9, 0x02, at(0)), [edge(0x34)]);
    assert_eq!(inb(&mut chipset, 0x3fa, at(0)), 0x02);
    assert_eq!(out(&mut chipset, 0x3f8, b'a', at(0)), [Effect::Console(b'a'), edge(0x34)]);
    assert_eq!(out(&mut chipset, 0x3f8, b'b', at(0)), [Effect::Console(b'b'), edge(0x34)]);
}

#[test]
fn the_timer_reaches_pin_2_and_the_pic() {
    let mut chipset = board();
    route(&mut chipset, 2, 0x30);
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
        out(&mut chipset, port, value, at(0));
    }
    assert_eq!(out(&mut chipset, 0x43, 0x34, at(0)), [Effect::PicLine(true), edge(0x30)], "the output goes high");
    assert_eq!(chipset.acknowledge_pic(&mut Vec::new()), 0x30);
    out(&mut chipset, 0x20, 0x20, at(0));
    out(&mut chipset, 0x40, 0x9c, at(0));
    out(&mut chipset, 0x40, 0x2e, at(0));
    let due = chipset.deadline_ns().unwrap();
    let mut effects = Vec::new();
    chipset.advance(at(due - 1), &mut effects);
    assert_eq!(effects, []);
    chipset.advance(at(due), &mut effects);
    assert_eq!(effects, [Effect::PicLine(true), edge(0x30)]);
    effects.clear();
    assert_eq!(chipset.acknowledge_pic(&mut effects), 0x30);
    assert_eq!(effects, [Effect::PicLine(false)]);
    assert!(chipset.deadline_ns().unwrap() > due);
}

#[test]
fn power_button_and_system_control_interrupt() {
    let mut chipset = board();
    route(&mut chipset, 9, 0x39 | 1 << 15);
    let mut effects = Vec::new();
    assert!(chipset.port_write(0x602, 2, 0x0100, at(0), &mut effects));
    chipset.press_power_button(&mut effects);
    assert_eq!(effects, [level(0x39)]);
    effects.clear();
    chipset.end_of_interrupt(0x39, &mut effects);
    assert_eq!(effects, [level(0x39)], "not acknowledged");
    assert_eq!(chipset.port_read(0x600, 2, at(0), &mut effects), Some(0x0100));
    effects.clear();
    assert!(chipset.port_write(0x600, 2, 0x0100, at(0), &mut effects));
    chipset.end_of_interrupt(0x39, &mut effects);
    assert_eq!(effects, []);
    assert!(chipset.port_write(0x604, 2, 0x3400, at(0), &mut effects));
    assert_eq!(effects, [Effect::PowerOff]);
}

#[test]
fn resets() {
    let mut chipset = board();
    assert_eq!(out(&mut chipset, 0x64, 0xfe, at(0)), [Effect::Reset]);
    assert_eq!(out(&mut chipset, 0xcf9, 0x06, at(0)), [Effect::Reset]);
    assert_eq!(out(&mut chipset, 0x92, 0x01, at(0)), [Effect::Reset]);
}

#[test]
fn reset_keeps_the_time_and_lowers_the_pic() {
    let mut chipset = board();
    out(&mut chipset, 0x70, 0x32, at(0));
    let mut effects = Vec::new();
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0)] {
        out(&mut chipset, port, value, at(0));
    }
    chipset.set_gsi(5, true, &mut effects);
    assert_eq!(effects, [Effect::PicLine(true)]);
    chipset.reset(&mut effects);
    assert_eq!(effects[1..], [Effect::PicLine(false)]);
    out(&mut chipset, 0x70, 0x09, at(0));
    assert_eq!(inb(&mut chipset, 0x71, at(0)), 0x26);
}

#[test]
fn who_is_absent() {
    let mut chipset = board();
    let mut effects = Vec::new();
    // COM2 to COM4, diskettes, DMA, PCI configuration, a second CMOS bank, both sides of the ACPI block.
    for port in [0x2f8, 0x3e8, 0x2e8, 0x3f0, 0x00, 0xcf8, 0xcfc, 0x72, 0x5ff, 0x60c] {
        assert_eq!(chipset.port_read(port, 1, at(0), &mut effects), None, "{port:#x}");
        assert!(!chipset.port_write(port, 1, 0, at(0), &mut effects), "{port:#x}");
    }
    assert_eq!(chipset.port_read(0xcf9, 2, at(0), &mut effects), None);
    assert_eq!(chipset.mmio_read(Gpa::new(0xfec0_1000), 4), None);
    assert_eq!(chipset.mmio_read(Gpa::new(0xfebf_fffc), 4), None);
    assert!(!chipset.mmio_write(Gpa::new(0), 4, 0, &mut effects));
    out(&mut chipset, 0x80, 0xaa, at(0));
    out(&mut chipset, 0xed, 0xaa, at(0));
}

#[test]
fn wide_accesses_split() {
    let mut chipset = board();
    let mut effects = Vec::new();
    assert!(chipset.port_write(0x70, 2, 0x5a40, at(0), &mut effects));
    assert_eq!(inb(&mut chipset, 0x71, at(0)), 0x5a);
    assert_eq!(chipset.port_read(0x71, 2, at(0), &mut effects), Some(0xff5a));
    assert_eq!(chipset.port_read(0x3fc, 4, at(0), &mut effects), Some(0x00b0_6000));
    assert_eq!(chipset.port_read(0x608, 4, at(1_000_000_000), &mut effects), Some(3_579_545));
}

#[test]
fn scaling_rounds_and_does_not_overflow() {
    assert_eq!(scale(1_000_000_000, PM_TIMER_HZ, 1_000_000_000), PM_TIMER_HZ);
    assert_eq!((scale(999, 1, 1000), scale_up(999, 1, 1000), scale_up(1000, 1, 1000)), (0, 1, 1));
    scale(u64::MAX, PM_TIMER_HZ, 1_000_000_000);
    scale_up(u64::MAX, 1_000_000_000, PIT_HZ);
    assert_eq!(next_expiry(100, 10, 125, 1), 130);
    assert_eq!(next_expiry(100, 10, 100, 35), 140);
}

/// Something that a guest, or the machine around it, can do.
#[derive(Clone, Copy, Debug)]
enum Act {
    In(u16, u8),
    Out(u16, u8, u32),
    Load(u64, u8),
    Store(u64, u8, u64),
    Line(u8, bool),
    Eoi(u8),
    AcknowledgePic,
    Advance,
    Input,
    Button,
    Reset,
}

fn a_port() -> impl Strategy<Value = u16> {
    let ours = [
        0x20u16, 0x21, 0xa0, 0xa1, 0x4d0, 0x40, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0x3f8, 0x3f9, 0x3fa,
        0x3fb, 0x3fc, 0x600, 0x602, 0x604, 0x608, 0xcf9, 0xffff,
    ];
    prop_oneof![8 => prop::sample::select(ours.to_vec()), 1 => any::<u16>()]
}

fn an_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (a_port(), any::<u8>()).prop_map(|(port, size)| Act::In(port, size)),
        8 => (a_port(), 0u8..6, any::<u32>()).prop_map(|(port, size, value)| Act::Out(port, size, value)),
        1 => (0u64..0x1100, any::<u8>()).prop_map(|(offset, size)| Act::Load(offset, size)),
        4 => (prop::sample::select(vec![0u64, 0x10, 0x40]), 0u8..9, any::<u64>())
            .prop_map(|(offset, size, value)| Act::Store(offset, size, value & 0x1_ffff)),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(gsi, asserted)| Act::Line(gsi % 30, asserted)),
        1 => any::<u8>().prop_map(Act::Eoi),
        1 => Just(Act::AcknowledgePic),
        4 => Just(Act::Advance),
        1 => Just(Act::Input),
        1 => Just(Act::Button),
        1 => Just(Act::Reset),
    ]
}

/// Does it, and says what a read gave.
fn do_to_board(chipset: &mut Chipset, act: Act, clock: Clock, effects: &mut Vec<Effect>) -> Option<u64> {
    let at = |offset: u64| Gpa::new(0xfec0_0000 + offset);
    match act {
        Act::In(port, size) => return chipset.port_read(port, size, clock, effects).map(u64::from),
        Act::Out(port, size, value) => drop(chipset.port_write(port, size, value, clock, effects)),
        Act::Load(offset, size) => return chipset.mmio_read(at(offset), size),
        Act::Store(offset, size, value) => drop(chipset.mmio_write(at(offset), size, value, effects)),
        Act::Line(gsi, asserted) => chipset.set_gsi(gsi, asserted, effects),
        Act::Eoi(vector) => chipset.end_of_interrupt(vector, effects),
        Act::AcknowledgePic => return Some(chipset.acknowledge_pic(effects).into()),
        Act::Advance => chipset.advance(clock, effects),
        Act::Input => return Some(chipset.console_input(&[1, 2, 3], effects) as u64),
        Act::Button => chipset.press_power_button(effects),
        Act::Reset => chipset.reset(effects),
    }
    None
}

/// Something that happens to a local APIC: kind, register, value.
fn do_to_lapic(lapic: &mut Lapic, act: (u8, u32, u64), clock: Clock, effects: &mut Vec<Effect>) -> Option<u64> {
    let (kind, number, value) = act;
    let offset = (number << 4) as u16 | if value & 0xf00 == 0 { value as u16 & 0xf } else { 0 };
    match kind {
        0 => return lapic.read_msr(0x800 + number, clock).ok(),
        1 => drop(lapic.write_msr(0x800 + number, value & 0x7_ffff, clock, effects)),
        2 => return Some(lapic.mmio_read(offset, value as u8, clock).into()),
        3 => lapic.mmio_write(offset, 4, value as u32, clock, effects),
        4 => drop(lapic.write_msr(0x6e0, value, clock, effects)),
        5 => lapic.set_lint0(value & 1 != 0),
        _ => drop(lapic.accept(&Message {
            vector: value as u8,
            mode: DeliveryMode::from_bits(number).unwrap_or(DeliveryMode::Fixed),
            target: Target::All,
            level_triggered: value & 256 != 0,
        })),
    }
    None
}

proptest! {
    /// No sequence of accesses panics, pushes more than a handful of effects, or leaves a deadline in the past.
    #[test]
    fn hostile_board(acts in prop::collection::vec((an_act(), 0u64..1 << 34), 1..200), start in any::<u64>()) {
        let mut chipset = board();
        let mut now = start >> 8;
        chipset.advance(at(now), &mut Vec::new());
        let mut pic_output = false;
        for (act, step_ns) in acts {
            now += step_ns;
            let mut effects = Vec::new();
            do_to_board(&mut chipset, act, at(now), &mut effects);
            prop_assert!(effects.len() <= 64, "{act:?}: {}", effects.len());
            for effect in &effects {
                if let Effect::PicLine(output) = effect {
                    prop_assert_ne!(pic_output, *output, "only changes are told");
                    pic_output = *output;
                }
            }
            effects.clear();
            chipset.advance(at(now), &mut effects);
            for effect in &effects {
                if let Effect::PicLine(output) = effect {
                    pic_output = *output;
                }
            }
            prop_assert!(chipset.deadline_ns().is_none_or(|due| due > now), "{act:?}");
        }
    }

    /// The same for a local APIC in either mode, by MSR and by page.
    #[test]
    fn hostile_lapic(
        x2apic in any::<bool>(),
        acts in prop::collection::vec((0u8..7, 0u32..0x40, any::<u64>(), 0u64..1 << 34), 1..200),
    ) {
        let mut lapic = Lapic::new(1, false, 1);
        let mut effects = Vec::new();
        lapic.write_msr(0x1b, if x2apic { 0xfee0_0c00 } else { 0xfee0_0800 }, at(0), &mut effects).unwrap();
        let mut now = 0;
        for (kind, number, value, step_ns) in acts {
            now += step_ns;
            effects.clear();
            let clock = at(now);
            do_to_lapic(&mut lapic, (kind, number, value), clock, &mut effects);
            prop_assert!(effects.len() <= 2);
            lapic.advance(clock);
            prop_assert!(lapic.deadline_ns(clock).is_none_or(|due| due > now));
            match lapic.pending() {
                Some(Pending::Vector(vector)) => {
                    prop_assert!(vector >= 16);
                    lapic.acknowledge(vector);
                }
                Some(Pending::Nmi) => lapic.acknowledge_nmi(),
                Some(Pending::ExtInt) => lapic.acknowledge_ext_int(),
                None => lapic.end_of_interrupt(&mut effects),
            }
        }
    }
}

/// How Linux tries whether the timer interrupt arrives: counter 0 periodic, IOAPIC pin 2 edge-triggered, local APIC.
#[test]
fn the_timer_interrupt_goes_all_the_way() {
    let mut chipset = board();
    let mut lapic = Lapic::new(0, true, 1_000_000);
    let mut effects = Vec::new();
    lapic.mmio_write(0xf0, 4, 0x1ff, at(0), &mut effects);
    route(&mut chipset, 2, 0x30);
    for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        effects.extend(out(&mut chipset, port, value, at(0)));
    }
    let mut taken = 0;
    for _ in 0..10 {
        let due = chipset.deadline_ns().unwrap();
        chipset.advance(at(due), &mut effects);
        for effect in effects.drain(..) {
            if let Effect::Interrupt(message) = effect
                && lapic.address().hears(&message)
            {
                lapic.accept(&message);
            }
        }
        if lapic.pending() == Some(Pending::Vector(0x30)) {
            lapic.acknowledge(0x30);
            lapic.end_of_interrupt(&mut effects);
            taken += 1;
        }
    }
    assert_eq!(taken, 10);
    assert_eq!(effects, []);
}
