//! Joined segments against those that arrived.

use super::*;
use crate::Segments;
use proptest::prelude::*;

const SEGMENT_BYTES: u16 = 100;
const IP: usize = 14;

/// A long TCP frame and what is to be done to it; `is_ipv6` says over what.
fn long(payload: &[u8], is_ipv6: bool, flags: u8) -> Received {
    let mut frame = vec![2; 12];
    let gso = if is_ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 6, 64]);
        frame.extend([0x20; 32]);
        Gso::Tcp6
    } else {
        frame.extend([8, 0, 0x45, 0, 0, 0, 0xff, 0xfe, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        Gso::Tcp4
    };
    let tcp = frame.len();
    frame.extend([0, 80, 1, 2, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 0x80, flags, 1, 0, 0, 0, 0, 0]);
    frame.extend([1; 12]);
    let header_bytes = frame.len() as u16;
    frame.extend(payload);
    let offload = Offload {
        needs_checksum: true,
        checksum_start: tcp as u16,
        checksum_offset: 16,
        gso,
        gso_size: SEGMENT_BYTES,
        header_bytes,
        ..Offload::default()
    };
    (offload, frame)
}

/// The frames that such a one is on the wire.
fn cut((offload, frame): &Received) -> Vec<Received> {
    let mut segments = Segments::new(frame, offload).unwrap();
    let (mut segment, mut all) = (Vec::new(), Vec::new());
    while segments.next_into(&mut segment) {
        all.push((Offload::default(), segment.clone()));
    }
    all
}

fn arrived(payload_bytes: usize) -> Vec<Received> {
    let payload: Vec<u8> = (0..payload_bytes).map(|byte| byte as u8).collect();
    cut(&long(&payload, false, TCP_ACK | TCP_PSH))
}

fn kept(mut frames: Vec<Received>) -> Vec<Received> {
    let count = coalesce(&mut frames, |_| true);
    frames.truncate(count);
    frames
}

/// Repairs the checksums of a frame over IPv4.
fn repair(frame: &mut [u8]) {
    store(frame, IP + 10, 0);
    let checksum = Sum::default().add(&frame[IP..IP + 20]).checksum();
    store(frame, IP + 10, checksum);
    store(frame, IP + 20 + TCP_CHECKSUM, 0);
    let segment = Segment { gso: Gso::Tcp4, ip: IP, tcp: IP + 20, payload: IP + 52 };
    let checksum = segment.pseudo_sum(frame).add(&frame[IP + 20..]).checksum();
    store(frame, IP + 20 + TCP_CHECKSUM, checksum);
}

#[test]
fn a_stream_becomes_one_frame_and_the_same_segments_again() {
    for is_ipv6 in [false, true] {
        let before = cut(&long(&[7; 950], is_ipv6, TCP_ACK | TCP_PSH));
        assert_eq!(before.len(), 10);
        let joined = kept(before.clone());
        let [(offload, frame)] = &joined[..] else { panic!("{} frames", joined.len()) };
        assert_eq!(offload.check(frame), Ok(()));
        assert_eq!(offload.gso_size, SEGMENT_BYTES);
        assert_eq!(cut(&joined[0]), before);
    }
}

#[test]
fn neighbours_that_differ_stay_apart() {
    // By offset from the IP header: type of service, identification, lifetime, address, port, sequence, acknowledgement,
    // window, options.
    for at in [1, 5, 8, 15, 21, 27, 31, 35, 45] {
        let mut frames = arrived(200);
        frames[1].1[IP + at] ^= 1;
        repair(&mut frames[1].1);
        let before = frames.iter().map(|(_, frame)| frame.clone()).collect::<Vec<_>>();
        let after: Vec<_> = kept(frames).into_iter().map(|(_, frame)| frame).collect();
        assert_eq!(after, before, "offset {at}");
    }
    assert_eq!(kept(arrived(200)).len(), 1);
}

#[test]
fn only_acknowledging_data_is_joined() {
    for flags in [TCP_ACK | 1, TCP_ACK | 2, TCP_ACK | 4, TCP_ACK | 0x20, TCP_ACK | 0x40, TCP_ACK | 0x80, 0] {
        let mut frames = arrived(200);
        frames[1].1[IP + 20 + TCP_FLAGS] = flags;
        repair(&mut frames[1].1);
        assert_eq!(kept(frames).len(), 2, "{flags:#x}");
    }
}

#[test]
fn a_push_or_a_short_segment_is_the_last() {
    let mut frames = arrived(300);
    frames[1].1[IP + 20 + TCP_FLAGS] |= TCP_PSH;
    repair(&mut frames[1].1);
    assert_eq!(kept(frames).len(), 2);
    let mut frames = arrived(250);
    frames.extend(arrived(100));
    assert_eq!(kept(frames).len(), 2);
}

#[test]
fn damage_is_passed_on() {
    for at in [IP + 8, IP + 60] {
        let mut frames = arrived(200);
        frames[1].1[at] ^= 0x10;
        let after = kept(frames.clone());
        assert_eq!(after[1], frames[1], "offset {at}");
    }
    // Where the card has verified the sum it is not verified again.
    let mut frames = arrived(200);
    frames[1].1[IP + 60] ^= 0x10;
    frames[1].0.checksum_valid = true;
    assert_eq!(kept(frames).len(), 1);
}

#[test]
fn what_may_not_be_joined_is_left_alone() {
    let mut frames = arrived(1000);
    let before = frames.clone();
    assert_eq!(coalesce(&mut frames, |_| false), 10);
    assert_eq!(frames, before);
}

#[test]
fn no_packet_grows_beyond_its_length_field() {
    let payload = vec![1; 65000];
    let mut frames = cut(&long(&payload, false, TCP_ACK));
    let mut more = cut(&long(&payload, false, TCP_ACK));
    for (index, (_, frame)) in more.iter_mut().enumerate() {
        store(frame, IP + 4, 0xfffe_u16.wrapping_add(650 + index as u16));
        let sequence = 0xffff_ff00_u32.wrapping_add(65000 + 100 * index as u32);
        frame[IP + 24..IP + 28].copy_from_slice(&sequence.to_be_bytes());
        repair(frame);
    }
    frames.extend(more);
    let before = frames.clone();
    let after = kept(frames);
    assert_eq!(after.len(), 2);
    assert_eq!(after[0].1.len() - IP, 20 + 32 + 65400, "a segment more would be too long");
    assert_eq!(after.iter().flat_map(cut).collect::<Vec<_>>(), before);
}

proptest! {
    #[test]
    fn streams_survive(
        lengths in prop::collection::vec(1..600_usize, 1..6),
        is_ipv6: bool,
        pushes: bool,
    ) {
        let flags = if pushes { TCP_ACK | TCP_PSH } else { TCP_ACK };
        let before: Vec<_> = lengths.iter().flat_map(|&length| cut(&long(&vec![5; length], is_ipv6, flags))).collect();
        let restore = |received: Received| match received.0.gso {
            Gso::None => vec![(Offload::default(), received.1)],
            Gso::Tcp4 | Gso::Tcp6 => cut(&received),
        };
        let after: Vec<_> = kept(before.clone()).into_iter().flat_map(restore).collect();
        prop_assert_eq!(after, before);
    }

    #[test]
    fn nonsense_does_no_harm(
        mut frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 0..6),
        start in prop::option::of(0..2_usize),
    ) {
        if let Some(version) = start {
            let header = long(&[], version == 1, TCP_ACK).1;
            frames.iter_mut().for_each(|frame| { frame.splice(..0, header[..header.len() - 20].iter().copied()); });
        }
        let frames: Vec<Received> = frames.into_iter().map(|frame| {
            (Offload { checksum_valid: true, ..Offload::default() }, frame)
        }).collect();
        for (offload, frame) in kept(frames) {
            if offload.gso != Gso::None {
                prop_assert_eq!(offload.check(&frame), Ok(()));
            }
        }
    }
}
