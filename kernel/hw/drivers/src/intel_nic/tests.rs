//! The driver against a card that tests play.

use super::played::{Card, MAC};
use super::registers::*;
use super::*;
use crate::heap::HeapHal;
use switch::{FRAME_BYTES_MAX, GSO_FRAME_BYTES_MAX, Gso};

type TestNic = IntelNic<HeapHal, Card>;

const FAMILIES: [Family; 3] = [Family::E1000, Family::E1000e, Family::Igb];

fn started(family: Family) -> (TestNic, Card) {
    let card = Card::new();
    let model = Model { device: 0, name: "test", family };
    let nic = IntelNic::start(model, card.clone(), [2; 6], |_| family.is_express()).ok().unwrap();
    (nic, card)
}

/// The second word of a received frame's descriptor: done, end of packet, and these errors and status of the format.
fn word(family: Family, bytes: usize, status: u64) -> u64 {
    let bytes = bytes as u64;
    if family == Family::Igb { bytes << 32 | 3 | status } else { bytes | (3 | status) << 32 }
}

/// A TCP frame over IPv4 with so much payload, to be segmented.
pub(super) fn tcp4(payload_bytes: usize, gso_size: u16) -> (Vec<u8>, Offload) {
    let mut frame = vec![0; 54 + payload_bytes];
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&(40 + payload_bytes as u16).to_be_bytes());
    frame[23] = 6;
    frame[24..34].copy_from_slice(&[0xab, 0xcd, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame[46] = 5 << 4;
    (0..payload_bytes).for_each(|at| frame[54 + at] = at as u8);
    let offload = Offload {
        needs_checksum: true,
        checksum_start: 34,
        checksum_offset: 16,
        gso: Gso::Tcp4,
        gso_size,
        header_bytes: 54,
        ..Offload::default()
    };
    (frame, offload)
}

#[test]
fn a_card_starts_with_its_own_address() {
    for family in FAMILIES {
        let (mut nic, card) = started(family);
        assert_eq!(nic.mac(), MAC, "{family:?}, from the EEPROM");
        assert_eq!(nic.link(), Link::Up(Some(1000)));
        assert_eq!(card.get(RAL), 0x1200_5452);
        assert_eq!(card.get(RAH), RAH_VALID | 0x5634);
        assert_eq!(card.get(RDT), 255);
        assert_eq!(card.get(IMS) != 0, family.is_express());
        assert_eq!(card.get(RCTL) & 0x3002a, 0xa, "on, all addresses, no long packets, 2 KiB buffers");
    }
}

#[test]
fn an_address_in_the_filter_survives_the_reset() {
    let card = Card::new();
    card.set(RAL, 0x4433_2202);
    card.set(RAH, RAH_VALID | 0x6655);
    let model = Model { device: 0, name: "test", family: Family::Igb };
    let nic = TestNic::start(model, card, [2; 6], |_| false).ok().unwrap();
    assert_eq!(nic.mac(), [2, 0x22, 0x33, 0x44, 0x55, 0x66]);
}

#[test]
fn a_phy_without_a_link_is_made_to_negotiate() {
    for is_up in [true, false] {
        let card = Card::new();
        card.set_link(is_up);
        let model = Model { device: 0, name: "test", family: Family::Igb };
        let nic = TestNic::start(model, card.clone(), [2; 6], |_| false);
        assert!(nic.is_ok());
        assert_eq!(card.get(MDIC) & 0x1200 == 0x1200, !is_up);
    }
}

#[test]
fn cards_that_do_not_start_are_left_without_memory() {
    for prepare in [Card::stick, Card::vanish] {
        let card = Card::new();
        prepare(&card);
        let model = Model { device: 0, name: "test", family: Family::E1000e };
        assert!(TestNic::start(model, card.clone(), [2; 6], |_| true).is_err());
        assert!(card.dma_stopped());
    }
}

#[test]
fn frames_are_received_round_after_round() {
    for family in FAMILIES {
        let (mut nic, card) = started(family);
        let mut frame = vec![9; 9];
        for round in 0..700_usize {
            assert!(!nic.has_received());
            assert_eq!(nic.receive(&mut frame), None);
            assert!(card.deliver(&[round as u8; 100], word(family, 60 + round % 40, 0x20)));
            assert!(nic.has_received());
            let valid = Offload { checksum_valid: true, ..Offload::default() };
            assert_eq!(nic.receive(&mut frame), Some(valid));
            assert_eq!(frame, vec![round as u8; 60 + round % 40]);
        }
    }
}

#[test]
fn a_ring_that_was_full_is_emptied_and_refilled() {
    for family in FAMILIES {
        let (mut nic, card) = started(family);
        let mut frame = Vec::new();
        for _ in 0..3 {
            let delivered = (0..1000).take_while(|_| card.deliver(&[1; 60], word(family, 60, 0))).count();
            assert!((224..256).contains(&delivered), "{delivered}");
            let received = (0..1000).take_while(|_| nic.receive(&mut frame).is_some()).count();
            assert_eq!(received, delivered);
        }
    }
}

#[test]
fn senseless_frames_are_dropped() {
    for family in FAMILIES {
        let (mut nic, card) = started(family);
        let damaged = if family == Family::Igb { 1 << 31 } else { 1 << 8 };
        card.deliver(&[1; 60], word(family, 0, 0));
        card.deliver(&[1; 60], word(family, 2049, 0));
        card.deliver(&[1; 60], word(family, 0xffff, 0));
        card.deliver(&[1; 60], word(family, 60, damaged));
        // Spread over three buffers.
        card.deliver(&[1; 60], word(family, 60, 0) & !(2 << 32 | 2));
        card.deliver(&[1; 60], word(family, 60, 0));
        card.deliver(&[7; 64], word(family, 64, 0));
        let mut frame = Vec::new();
        assert_eq!(nic.receive(&mut frame), Some(Offload::default()));
        assert_eq!(frame, [7; 64]);
        assert_eq!(nic.receive(&mut frame), None);
    }
}

#[test]
fn a_ring_of_nonsense_ends() {
    let (mut nic, card) = started(Family::Igb);
    (0..256).for_each(|index| card.scribble(index, u64::MAX));
    assert_eq!(nic.receive(&mut Vec::new()), None);
}

#[test]
fn a_plain_frame_is_one_descriptor() {
    for family in FAMILIES {
        let (mut nic, card) = started(family);
        nic.transmit(&Offload::default(), &[0xab; 100]).unwrap();
        assert_eq!(card.send(), None, "nobody announced it");
        nic.kick();
        let sent = card.send().unwrap();
        assert_eq!((sent.contexts.len(), sent.data.len(), sent.bytes), (0, 1, vec![0xab; 100]));
    }
}

#[test]
fn a_context_is_told_once() {
    for family in FAMILIES {
        let (mut nic, card) = started(family);
        let (frame, offload) = tcp4(400, 0);
        let offload = Offload { gso: Gso::None, ..offload };
        for contexts in [1, 0, 0] {
            nic.transmit(&offload, &frame).unwrap();
            nic.transmit(&Offload::default(), &frame).unwrap();
            nic.kick();
            let sent = card.send().unwrap();
            assert_eq!((sent.contexts.len(), &sent.bytes), (contexts, &frame));
            assert_eq!(card.send().unwrap().contexts.len(), 0);
        }
    }
}

#[test]
fn long_frames_are_spread_and_have_no_lengths() {
    for family in FAMILIES {
        let (mut nic, card) = started(family);
        let (frame, offload) = tcp4(40_000, 1448);
        nic.transmit(&offload, &frame).unwrap();
        nic.kick();
        let sent = card.send().unwrap();
        assert_eq!((sent.contexts.len(), sent.data.len()), (1, 5));
        assert_eq!(sent.bytes[16..18], [0, 0], "the packet's length");
        assert_eq!(sent.bytes[24..26], [0, 0], "the header's checksum");
        // 0a00 + 0001 + 0a00 + 0002 + 6
        assert_eq!(sent.bytes[50..52], [0x14, 0x09], "the pseudo-header without a length");
        assert_eq!(sent.bytes[54..], frame[54..]);
    }
}

#[test]
fn what_the_card_cannot_is_done_in_software() {
    let (mut nic, card) = started(Family::E1000);
    let (frame, offload) = tcp4(1000, 100);
    nic.transmit(&offload, &frame).unwrap();
    let odd = Offload { gso: Gso::None, checksum_start: 300, ..offload };
    nic.transmit(&odd, &frame).unwrap();
    nic.kick();
    for _ in 0..10 {
        let sent = card.send().unwrap();
        assert_eq!((sent.contexts.len(), sent.bytes.len()), (0, 154));
    }
    let sent = card.send().unwrap();
    assert_ne!(sent.bytes[316..318], frame[316..318]);
    assert_eq!(card.send(), None);
}

#[test]
fn nonsense_is_not_sent() {
    let (mut nic, card) = started(Family::E1000e);
    let (frame, offload) = tcp4(4000, 1000);
    nic.transmit(&Offload { ecn: true, ..offload }, &frame).unwrap();
    nic.transmit(&Offload { gso: Gso::Tcp6, ..offload }, &frame).unwrap();
    nic.transmit(&Offload { checksum_start: u16::MAX, gso: Gso::None, ..offload }, &frame[..100]).unwrap();
    for bytes in [0, FRAME_BYTES_MAX + 1, GSO_FRAME_BYTES_MAX + 1] {
        nic.transmit(&Offload::default(), &vec![0; bytes]).unwrap();
    }
    nic.kick();
    assert_eq!(card.send(), None);
}

#[test]
fn a_full_ring_recovers_in_order() {
    for family in FAMILIES {
        let (mut nic, card) = started(family);
        let (mut next, mut seen) = (0_u8, 0_u8);
        // 1024 end where the ring of bytes does.
        for bytes in [1024, 1024, 1024, 1024, 60, 1514, 700, 60] {
            let mut given = 0;
            while nic.transmit(&Offload::default(), &vec![next; bytes]).is_ok() {
                (next, given) = (next.wrapping_add(1), given + 1);
            }
            assert!(given >= 200, "{given} of {bytes} bytes");
            // What filled it was announced.
            while let Some(sent) = card.send() {
                assert_eq!(sent.bytes, vec![seen; bytes]);
                seen = seen.wrapping_add(1);
            }
            assert_eq!(seen, next);
        }
    }
}

#[test]
fn the_longest_frames_fill_the_arena() {
    let (mut nic, card) = started(Family::Igb);
    let (frame, offload) = tcp4(65_000, 1448);
    for _ in 0..20 {
        let given = (0..100).take_while(|_| nic.transmit(&offload, &frame).is_ok()).count();
        assert!((7..=8).contains(&given), "{given}");
        for _ in 0..given {
            assert_eq!(card.send().unwrap().bytes[54..], frame[54..]);
        }
    }
}

#[test]
fn a_pulled_link_drops_frames_and_comes_back() {
    let (mut nic, card) = started(Family::E1000e);
    card.set_link(false);
    nic.acknowledge_interrupt();
    nic.transmit(&Offload::default(), &[1; 60]).unwrap();
    nic.kick();
    assert_eq!((card.send(), nic.link()), (None, Link::Down));
    card.set_link(true);
    nic.acknowledge_interrupt();
    nic.transmit(&Offload::default(), &[1; 60]).unwrap();
    nic.kick();
    assert!(card.send().is_some());
}

#[test]
fn a_line_is_pulled_and_let_go() {
    let card = Card::new();
    let model = Model { device: 0, name: "test", family: Family::E1000 };
    let connect = |bus: &mut Card| {
        let mut pull = |pulls| {
            setup::pull(bus, pulls);
            bus.pulls()
        };
        assert_eq!([true, false].map(&mut pull), [true, false]);
        true
    };
    let mut nic = TestNic::start(model, card.clone(), [2; 6], connect).ok().unwrap();
    assert!(!card.pulls() && !nic.acknowledge_interrupt());
    for cause in [CAUSE_RECEIVED, CAUSE_LINK] {
        card.set(ICR, cause);
        assert!(card.pulls() && nic.acknowledge_interrupt());
        assert!(!card.pulls());
    }
    card.set(ICR, CAUSE_TRANSMIT_LOW);
    assert!(!card.pulls() && !nic.acknowledge_interrupt(), "nobody asked for that");
}

#[test]
fn a_card_that_vanished_is_given_up() {
    for notice in [
        TestNic::tick as fn(&mut TestNic),
        |nic| assert_eq!(nic.link(), Link::Failed),
        |nic| assert!(!nic.acknowledge_interrupt()),
    ] {
        let (mut nic, card) = started(Family::Igb);
        card.vanish();
        notice(&mut nic);
        assert_eq!(nic.link(), Link::Failed);
        assert!(card.dma_stopped());
        for _ in 0..1000 {
            nic.transmit(&Offload::default(), &[1; 60]).unwrap();
        }
        nic.kick();
        assert_eq!(nic.receive(&mut Vec::new()), None);
    }
}

#[test]
fn a_card_that_vanished_without_a_sign_is_given_up() {
    let (mut nic, card) = started(Family::E1000e);
    nic.transmit(&Offload::default(), &[1; 60]).unwrap();
    card.vanish_silently();
    assert_eq!(nic.link(), Link::Down, "its registers read as if the cable were pulled");
    nic.tick();
    assert_eq!(nic.link(), Link::Failed);
    assert!(card.dma_stopped());
}

#[test]
fn a_card_that_stands_still_is_reset() {
    let (mut nic, card) = started(Family::E1000e);
    (0..100).for_each(|_| nic.tick());
    assert_eq!(card.resets(), 1, "an idle card does not stand still");
    nic.transmit(&Offload::default(), &[1; 60]).unwrap();
    nic.kick();
    (0..STALLS_MAX).for_each(|_| nic.tick());
    assert_eq!(card.resets(), 1);
    nic.tick();
    assert_eq!(card.resets(), 2);
    nic.transmit(&Offload::default(), &[2; 60]).unwrap();
    nic.kick();
    assert_eq!(card.send().unwrap().bytes, [2; 60]);
    assert!(card.deliver(&[3; 60], word(Family::E1000e, 60, 0)));
    assert!(nic.receive(&mut Vec::new()).is_some());
    assert_ne!(card.get(IMS), 0);
}

#[test]
fn a_card_that_does_not_come_back_is_given_up() {
    let (mut nic, card) = started(Family::E1000);
    nic.transmit(&Offload::default(), &[1; 60]).unwrap();
    nic.kick();
    card.stick();
    (0..=STALLS_MAX).for_each(|_| nic.tick());
    assert_eq!(nic.link(), Link::Failed);
    assert!(card.dma_stopped());
}

#[test]
fn counters_add_up() {
    let (mut nic, card) = started(Family::E1000e);
    for _ in 0..2 {
        for (register, value) in [(GPRC, 100), (GPTC, 50), (MPC, 3), (CRCERRS, 2), (RXERRC, 1), (RLEC, 4)] {
            card.set(register, value);
        }
        nic.tick();
    }
    let counters = CardCounters { received: 200, transmitted: 100, missed: 6, crc_errors: 4, other_errors: 10 };
    assert_eq!(nic.counters(), Some(counters));
}

/// Found by the fuzzer: what registers show is any noise, and only what the driver wrote says where its rings are.
#[test]
fn rings_are_where_the_driver_put_them() {
    for family in FAMILIES {
        let (mut nic, card) = started(family);
        for register in [RDBAL, RDBAH, RDLEN, RDT, TDBAL, TDBAH, TDLEN, TDT] {
            card.set(register, 0x9d10_1128);
        }
        assert!(card.deliver(&[1; 60], word(family, 60, 0)));
        card.scribble(1, 0);
        let mut frame = Vec::new();
        assert!(nic.receive(&mut frame).is_some());
        assert_eq!(frame, [1; 60]);
        assert_eq!(nic.receive(&mut frame), None);
        nic.transmit(&Offload::default(), &[2; 60]).unwrap();
        assert_eq!(card.send(), None, "it was not announced");
        nic.kick();
        assert_eq!(card.send().unwrap().bytes, [2; 60]);
    }
}
