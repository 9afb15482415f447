//! The ring against a device that tests play.

use super::*;
use crate::virtio::tests::{TestBuffer, queue};
use proptest::prelude::*;

fn buffer(position: Position) -> Buffer {
    Buffer { address: 0x1000 + position.index as u64, bytes: 10, device_writes: position.index > 0 }
}

fn expected(length: usize) -> Vec<TestBuffer> {
    (0..length)
        .map(|index| TestBuffer { address: 0x1000 + index as u64, bytes: 10, device_writes: index > 0 })
        .collect()
}

#[test]
fn chains_reach_the_device_and_come_back() {
    for table_entries in [0, 4] {
        let (mut queue, mut device) = queue(table_entries, true);
        for round in 0..100_u32 {
            let length = 1 + round as usize % 4;
            let head = queue.ring.push(length, buffer).unwrap();
            assert_eq!(device.take(), Some((head, expected(length))));
            assert_eq!(queue.ring.pop(), None);
            device.finish(head.into(), round);
            assert_eq!(queue.ring.pop(), Some(Used { head, bytes: round }));
            assert_eq!(queue.ring.free(), 8);
        }
    }
}

#[test]
fn a_full_ring_takes_nothing() {
    let (mut direct, _) = queue(0, true);
    assert!(direct.ring.push(3, buffer).is_some() && direct.ring.push(4, buffer).is_some());
    assert_eq!(direct.ring.push(2, buffer), None);
    assert_eq!(direct.ring.push(9, buffer), None);
    assert!(direct.ring.push(1, buffer).is_some());
    let (mut indirect, mut device) = queue(4, true);
    let heads: Vec<_> = (0..8).map(|_| indirect.ring.push(4, buffer).unwrap()).collect();
    assert_eq!(indirect.ring.push(1, buffer), None);
    device.finish(heads[5].into(), 0);
    assert_eq!(indirect.ring.pop().map(|used| used.head), Some(heads[5]));
    assert_eq!(indirect.ring.push(4, buffer), Some(heads[5]));
}

#[test]
fn kicks_follow_the_event_index() {
    let (mut queue, mut device) = queue(0, true);
    queue.kick();
    assert!(!device.was_rung(), "nothing to announce");
    queue.ring.push(1, buffer);
    queue.ring.push(1, buffer);
    queue.kick();
    assert!(device.was_rung());
    queue.ring.push(1, buffer);
    queue.kick();
    assert!(!device.was_rung(), "the device has not asked again");
    device.set_available_event(3);
    queue.ring.push(1, buffer);
    queue.kick();
    assert!(device.was_rung());
}

#[test]
fn kicks_follow_the_flag() {
    let (mut queue, mut device) = queue(0, false);
    device.set_used_flags(1);
    queue.ring.push(1, buffer);
    queue.kick();
    assert!(!device.was_rung());
    device.set_used_flags(0);
    queue.ring.push(1, buffer);
    queue.kick();
    assert!(device.was_rung());
}

#[test]
fn interrupts_are_asked_for() {
    let (mut queue, mut device) = queue(0, true);
    let head = queue.ring.push(1, buffer).unwrap();
    assert!(!queue.ring.arm());
    assert_eq!(device.used_event(), 0);
    device.finish(head.into(), 0);
    queue.ring.pop();
    queue.ring.disarm();
    assert_eq!(device.used_event(), 0);
    assert!(!queue.ring.arm());
    assert_eq!(device.used_event(), 1);
    let (mut plain, device) = self::queue(0, false);
    plain.ring.disarm();
    assert_eq!(device.available_flags(), 1);
    plain.ring.arm();
    assert_eq!(device.available_flags(), 0);
}

#[test]
fn what_is_finished_between_the_last_look_and_the_wish_is_told_of() {
    for event_index in [true, false] {
        let (mut queue, mut device) = queue(0, event_index);
        let head = queue.ring.push(1, buffer).unwrap();
        assert_eq!(queue.ring.pop(), None);
        device.finish(head.into(), 0);
        assert!(queue.ring.arm(), "the device may have raised no interrupt for it");
        assert!(queue.ring.pop().is_some());
        assert_eq!(queue.ring.pop(), None);
        assert!(!queue.ring.arm());
    }
}

#[test]
fn finished_chains_can_be_looked_at() {
    let (mut queue, mut device) = queue(0, true);
    let heads = [(); 2].map(|()| queue.ring.push(1, buffer).unwrap());
    device.finish(heads[1].into(), 7);
    device.finish(heads[0].into(), 8);
    assert_eq!(queue.ring.finished(), 2);
    assert_eq!(queue.ring.peek(1), Some(Used { head: heads[0], bytes: 8 }));
    assert_eq!(queue.ring.peek(2), None);
    assert_eq!(queue.ring.pop(), Some(Used { head: heads[1], bytes: 7 }));
}

#[test]
fn a_lying_device_breaks_its_ring_only() {
    for id in [1, 8, 65_536, u32::MAX] {
        let (mut queue, mut device) = queue(0, true);
        assert_eq!(queue.ring.push(2, buffer), Some(0));
        device.finish(id, 0);
        assert_eq!(queue.ring.pop(), None);
        assert!(queue.ring.is_broken());
        assert_eq!(queue.ring.push(1, buffer), None);
        device.finish(0, 0);
        assert_eq!(queue.ring.pop(), None);
    }
    let (mut queue, mut device) = queue(0, true);
    device.set_used(9);
    assert_eq!(queue.ring.finished(), 0);
    assert!(queue.ring.is_broken());
}

#[test]
fn a_chain_finishes_once() {
    let (mut queue, mut device) = queue(0, true);
    let head = queue.ring.push(1, buffer).unwrap();
    device.finish(head.into(), 0);
    device.finish(head.into(), 0);
    assert!(queue.ring.pop().is_some());
    assert_eq!(queue.ring.pop(), None);
    assert!(queue.ring.is_broken());
}

proptest! {
    #[test]
    fn descriptors_are_never_lost(actions in prop::collection::vec((0_usize..6, any::<prop::sample::Index>()), 1..200), table in prop_oneof![Just(0_u16), Just(3)]) {
        let (mut queue, mut device) = queue(table, true);
        let mut flying: Vec<u16> = Vec::new();
        for (length, which) in actions {
            if length > 0 {
                if let Some(head) = queue.ring.push(length, buffer) {
                    prop_assert_eq!(device.take(), Some((head, expected(length))));
                    flying.push(head);
                }
            } else if !flying.is_empty() {
                let head = flying.swap_remove(which.index(flying.len()));
                device.finish(head.into(), 0);
                prop_assert_eq!(queue.ring.pop().map(|used| used.head), Some(head));
            }
        }
        for head in flying {
            device.finish(head.into(), 0);
            prop_assert!(queue.ring.pop().is_some());
        }
        prop_assert_eq!(queue.ring.free(), 8);
        prop_assert!(!queue.ring.is_broken());
    }
}
