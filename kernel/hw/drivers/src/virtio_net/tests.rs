//! The two queues against a device that tests play.

use super::*;
use crate::virtio::tests::{TestBuffer, TestDevice, TestHal, peek, poke, queue};
use switch::{FRAME_BYTES_MAX, Gso};

const ALL: Offloads =
    Offloads { transmit_checksum: true, transmit_tso4: true, transmit_tso6: true, transmit_ecn: true };

fn receiver(merges: bool) -> (Receiver<TestHal>, TestDevice) {
    let (queue, device) = queue(0, true);
    (Receiver::new(queue, merges).unwrap(), device)
}

fn transmitter(offloads: Offloads) -> (Transmitter<TestHal>, TestDevice) {
    let (queue, device) = queue(0, true);
    (Transmitter::new(queue, offloads).unwrap(), device)
}

/// Writes a frame into the next buffers as the device does; `count` is what the header says of their number.
fn deliver(device: &mut TestDevice, flags: u8, gso: u8, count: u16, parts: &[&[u8]]) {
    for (index, part) in parts.iter().enumerate() {
        let (head, buffers) = device.take().unwrap();
        let [TestBuffer { address, bytes: 2048, device_writes: true }] = buffers[..] else { panic!("one buffer") };
        let mut written = Vec::new();
        if index == 0 {
            written.extend([flags, gso, 0, 0, 0, 0, 0, 0, 0, 0]);
            written.extend(count.to_le_bytes());
        }
        written.extend_from_slice(part);
        for (byte, at) in written.iter().zip(address..) {
            poke(at, *byte);
        }
        device.finish(head.into(), written.len() as u32);
    }
}

#[test]
fn frames_are_received() {
    let (mut receiver, mut device) = receiver(true);
    let mut frame = vec![9; 9];
    for round in 0..50_u8 {
        assert_eq!(receiver.receive(&mut frame), None);
        deliver(&mut device, 2, 0, 1, &[&[round; 60]]);
        let offload = Offload { checksum_valid: true, ..Offload::default() };
        assert_eq!(receiver.receive(&mut frame), Some(offload));
        assert_eq!(frame, [round; 60]);
    }
}

#[test]
fn a_queue_that_fills_behind_the_last_look_is_not_forgotten() {
    let (mut receiver, mut device) = receiver(true);
    let mut frame = Vec::new();
    assert_eq!(receiver.receive(&mut frame), None);
    assert!(!receiver.has_received());
    for number in 0..8 {
        deliver(&mut device, 0, 0, 1, &[&[number; 60]]);
    }
    // Without a buffer the device finishes no more chains, and raises no more interrupts.
    assert!(device.take().is_none());
    assert!(receiver.arm() && receiver.has_received());
    for number in 0..8 {
        assert!(receiver.receive(&mut frame).is_some() && frame == [number; 60]);
    }
    assert!(receiver.receive(&mut frame).is_none() && !receiver.arm() && !receiver.has_received());
}

#[test]
fn spread_frames_are_joined_once_complete() {
    let (mut receiver, mut device) = receiver(true);
    let mut frame = Vec::new();
    let (first, second) = ([1; 2036], [2; 100]);
    deliver(&mut device, 0, 0, 2, &[&first]);
    assert_eq!(receiver.receive(&mut frame), None);
    let (head, buffers) = device.take().unwrap();
    (0..100).for_each(|at| poke(buffers[0].address + at, 2_u8));
    device.finish(head.into(), 100);
    assert_eq!(receiver.receive(&mut frame), Some(Offload::default()));
    assert_eq!(frame, [&first[..], &second].concat());
}

#[test]
fn without_merging_the_count_means_nothing() {
    let (mut receiver, mut device) = receiver(false);
    let mut frame = Vec::new();
    deliver(&mut device, 0, 0, 0, &[&[5; 60]]);
    assert_eq!(receiver.receive(&mut frame), Some(Offload::default()));
    assert_eq!(frame, [5; 60]);
}

#[test]
fn senseless_frames_are_dropped() {
    let (mut receiver, mut device) = receiver(true);
    deliver(&mut device, 0, 0, 0, &[&[1; 60]]);
    deliver(&mut device, 0, 0, u16::MAX, &[&[1; 60]]);
    deliver(&mut device, 0, 3, 1, &[&[1; 60]]);
    deliver(&mut device, 0, 0, 1, &[&[]]);
    let (head, _) = device.take().unwrap();
    device.finish(head.into(), 3);
    deliver(&mut device, 0, 0, 1, &[&[7; 60]]);
    let mut frame = Vec::new();
    assert_eq!(receiver.receive(&mut frame), Some(Offload::default()));
    assert_eq!(frame, [7; 60]);
    assert!(!receiver.is_broken());
}

#[test]
fn a_length_beyond_the_buffer_is_cut() {
    let (mut receiver, mut device) = receiver(false);
    let (head, _) = device.take().unwrap();
    device.finish(head.into(), u32::MAX);
    let mut frame = Vec::new();
    assert!(receiver.receive(&mut frame).is_some());
    assert_eq!(frame.len(), BUFFER_BYTES - header::HEADER_BYTES);
}

#[test]
fn a_frame_is_sent_behind_its_header() {
    let (mut transmitter, mut device) = transmitter(ALL);
    let offload = Offload { needs_checksum: true, checksum_start: 34, checksum_offset: 16, ..Offload::default() };
    transmitter.transmit(&offload, &[0xab; 100]).unwrap();
    transmitter.kick();
    assert!(device.was_rung());
    let (_, buffers) = device.take().unwrap();
    let [TestBuffer { address, bytes: 112, device_writes: false }] = buffers[..] else { panic!("one buffer") };
    assert_eq!(peek::<[u8; 12]>(address), [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
    assert_eq!(peek::<[u8; 100]>(address + 12), [0xab; 100]);
}

#[test]
fn long_frames_are_spread() {
    let (mut transmitter, mut device) = transmitter(ALL);
    let offload = Offload { needs_checksum: true, gso: Gso::Tcp4, gso_size: 1448, ..Offload::default() };
    let frame: Vec<u8> = (0..9000_u32).map(|at| at as u8).collect();
    transmitter.transmit(&offload, &frame).unwrap();
    let (_, buffers) = device.take().unwrap();
    let sent: Vec<u8> =
        buffers.iter().flat_map(|buffer| (0..buffer.bytes).map(|at| peek(buffer.address + u64::from(at)))).collect();
    assert_eq!(buffers.len(), 5);
    assert_eq!(&sent[12..], frame);
}

#[test]
fn a_full_queue_asks_for_an_interrupt_and_recovers() {
    let (mut transmitter, mut device) = transmitter(ALL);
    for sent in 0..8 {
        assert_eq!((transmitter.room(), transmitter.room_max()), (8 - sent, 8));
        transmitter.transmit(&Offload::default(), &[1; 60]).unwrap();
    }
    assert_eq!(device.used_event(), u16::MAX, "no interrupts so far");
    assert_eq!(transmitter.transmit(&Offload::default(), &[1; 60]), Err(Full));
    assert!(device.was_rung(), "what fills the queue is announced");
    assert_eq!(device.used_event(), 0);
    let (head, _) = device.take().unwrap();
    device.finish(head.into(), 0);
    assert_eq!(transmitter.room(), 1, "what was sent is taken back to see");
    transmitter.transmit(&Offload::default(), &[1; 60]).unwrap();
}

#[test]
fn what_the_device_lacks_is_dropped() {
    let (mut transmitter, mut device) = transmitter(Offloads::default());
    let checksum = Offload { needs_checksum: true, ..Offload::default() };
    let gso = Offload { gso: Gso::Tcp4, gso_size: 1000, ..checksum };
    for (offload, bytes) in
        [(checksum, 60), (gso, 60), (Offload::default(), 0), (Offload::default(), FRAME_BYTES_MAX + 1)]
    {
        transmitter.transmit(&offload, &vec![0; bytes]).unwrap();
        assert_eq!(device.take(), None);
    }
}

#[test]
fn features_come_with_what_they_need() {
    let version = 1 << 32;
    assert_eq!(agreed(version | F_INDIRECT_DESC | WANTED), version | WANTED);
    assert_eq!(agreed(HOST_TSO | F_HOST_ECN | GUEST_TSO | F_GUEST_ECN | F_MRG_RXBUF), F_MRG_RXBUF);
    assert_eq!(agreed(F_GUEST_CSUM | GUEST_TSO | F_GUEST_ECN), F_GUEST_CSUM);
    assert_eq!(agreed(F_CSUM | F_HOST_ECN), F_CSUM);
}
