//! What goes on after a restore as if there had been none, and what is refused.

use super::*;
use crate::saved::{Board, LocalApic};
use ::state::Invalid;

/// Through bytes and back, as a save and a restore do it.
fn restored(board: &Chipset) -> Chipset {
    let bytes = minicbor::to_vec(board.save()).unwrap();
    let saved: Board = minicbor::decode(&bytes).unwrap();
    Chipset::new(5, 1 << 20).restore(&saved).unwrap()
}

fn restored_lapic(lapic: &Lapic) -> Lapic {
    let bytes = minicbor::to_vec(lapic.save()).unwrap();
    Lapic::restore(1, false, 1, &minicbor::decode(&bytes).unwrap()).unwrap()
}

/// Changes bytes of a saved object: where, and to what.
fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
}

fn lapic_acts(most: usize) -> impl Strategy<Value = Vec<((u8, u32, u64), u64)>> {
    prop::collection::vec(((0u8..7, 0u32..0x40, any::<u64>()), 0u64..1 << 34), 1..most)
}

#[test]
fn missing_devices_take_their_reset_state() {
    let mut effects = Vec::new();
    let mut used = board();
    used.port_write(0x3f9, 1, 0x0f, at(0), &mut effects);
    let saved = Board { uart: None, ..used.save() };
    let mut fresh = board().restore(&saved).unwrap();
    assert_eq!(inb(&mut fresh, 0x3f9, at(0)), 0);
    assert_eq!(inb(&mut restored(&used), 0x3f9, at(0)), 0x0f);
}

#[test]
fn lines_without_a_pin_are_refused() {
    let saved = Board { lines: 1 << 24, ..board().save() };
    assert_eq!(board().restore(&saved).err(), Some(Invalid("the interrupt lines")));
}

/// Saved by the first version. Whoever has to change this test makes saved machines unreadable.
#[test]
fn version_1_stays_readable() {
    let mut used = board();
    let mut effects = Vec::new();
    for (port, value) in [(0x3fa, 0x41), (0x3f9, 0x05), (0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e), (0x70, 0x0b)] {
        used.port_write(port, 1, value, at(1000), &mut effects);
    }
    used.console_input(b"abc", &mut effects);
    route(&mut used, 4, 0x34);
    let kept = include_bytes!("saved-board-1.cbor");
    let saved: Board = minicbor::decode(kept).unwrap();
    assert_eq!(saved, used.save());
    let mut lapic = Lapic::new(1, false, 1);
    lapic.enter_virtual_wire_mode();
    lapic.mmio_write(0x320, 4, 0x2_0035, at(0), &mut effects);
    lapic.mmio_write(0x380, 4, 1_000_000, at(0), &mut effects);
    let kept = include_bytes!("saved-lapic-1.cbor");
    assert_eq!(minicbor::decode::<LocalApic>(kept).unwrap(), lapic.save());
}

proptest! {
    /// A restored board answers everything as the one that was saved does.
    #[test]
    fn a_restored_board_goes_on(
        before in prop::collection::vec((an_act(), 0u64..1 << 34), 0..150),
        after in prop::collection::vec((an_act(), 0u64..1 << 34), 1..150),
    ) {
        let (mut original, mut now) = (board(), 0);
        for (act, step_ns) in before {
            now += step_ns;
            do_to_board(&mut original, act, at(now), &mut Vec::new());
        }
        let mut copy = restored(&original);
        prop_assert_eq!(copy.save(), original.save());
        for (act, step_ns) in after {
            now += step_ns;
            let (mut effects, mut copied) = (Vec::new(), Vec::new());
            let answer = do_to_board(&mut original, act, at(now), &mut effects);
            prop_assert_eq!(do_to_board(&mut copy, act, at(now), &mut copied), answer, "{:?}", act);
            prop_assert_eq!(copied, effects, "{:?}", act);
            prop_assert_eq!(copy.deadline_ns(), original.deadline_ns(), "{:?}", act);
        }
    }

    #[test]
    fn a_restored_lapic_goes_on(x2apic in any::<bool>(), before in lapic_acts(150), after in lapic_acts(150)) {
        let mut original = Lapic::new(1, false, 1);
        original.write_msr(0x1b, if x2apic { 0xfee0_0c00 } else { 0xfee0_0800 }, at(0), &mut Vec::new()).unwrap();
        let mut now = 0;
        for (act, step_ns) in before {
            now += step_ns;
            do_to_lapic(&mut original, act, at(now), &mut Vec::new());
        }
        let mut copy = restored_lapic(&original);
        for (act, step_ns) in after {
            now += step_ns;
            let (mut effects, mut copied) = (Vec::new(), Vec::new());
            let answer = do_to_lapic(&mut original, act, at(now), &mut effects);
            prop_assert_eq!(do_to_lapic(&mut copy, act, at(now), &mut copied), answer, "{:?}", act);
            prop_assert_eq!(&copied, &effects, "{:?}", act);
            prop_assert_eq!(copy.pending(), original.pending());
            prop_assert_eq!(copy.deadline_ns(at(now)), original.deadline_ns(at(now)));
        }
    }

    /// A board from anybody is refused, or is a board: nothing that then happens to it panics.
    #[test]
    fn hostile_saved_boards(
        before in prop::collection::vec((an_act(), 0u64..1 << 34), 0..40),
        changes in changes(),
        after in prop::collection::vec((an_act(), 0u64..1 << 34), 1..60),
    ) {
        let (mut original, mut now) = (board(), 0);
        for (act, step_ns) in before {
            now += step_ns;
            do_to_board(&mut original, act, at(now), &mut Vec::new());
        }
        let mut bytes = minicbor::to_vec(original.save()).unwrap();
        changes.iter().for_each(|(place, byte)| *place.get_mut(&mut bytes) = *byte);
        let Ok(saved) = minicbor::decode::<Board>(&bytes) else { return Ok(()) };
        let Ok(mut copy) = board().restore(&saved) else { return Ok(()) };
        for (act, step_ns) in after {
            now += step_ns;
            do_to_board(&mut copy, act, at(now), &mut Vec::new());
            copy.advance(at(now), &mut Vec::new());
        }
    }

    #[test]
    fn hostile_saved_lapics(before in lapic_acts(40), changes in changes(), after in lapic_acts(60)) {
        let (mut original, mut now) = (Lapic::new(1, false, 1), 0);
        for (act, step_ns) in before {
            now += step_ns;
            do_to_lapic(&mut original, act, at(now), &mut Vec::new());
        }
        let mut bytes = minicbor::to_vec(original.save()).unwrap();
        changes.iter().for_each(|(place, byte)| *place.get_mut(&mut bytes) = *byte);
        let Ok(saved) = minicbor::decode::<LocalApic>(&bytes) else { return Ok(()) };
        let Ok(mut copy) = Lapic::restore(1, false, 1, &saved) else { return Ok(()) };
        for (act, step_ns) in after {
            now += step_ns;
            do_to_lapic(&mut copy, act, at(now), &mut Vec::new());
            copy.advance(at(now));
            if let Some(Pending::Vector(vector)) = copy.pending() {
                copy.acknowledge(vector);
            }
        }
    }
}
