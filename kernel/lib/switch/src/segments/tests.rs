//! Segments against an independent reading of their headers.

use super::*;
use crate::complete_checksum;
use proptest::prelude::*;

const ALL_FLAGS: u8 = TCP_CWR | TCP_FIN | TCP_PSH | 0x10;

/// A TCP frame over IPv4 with `payload`, options of 12 bytes and, where asked, a VLAN tag.
fn tcp4(payload: &[u8], vlan: bool) -> (Vec<u8>, Offload) {
    let mut frame = vec![2; 12];
    if vlan {
        frame.extend([0x81, 0, 0, 5]);
    }
    frame.extend([8, 0]);
    let ip = frame.len();
    frame.extend([0x45, 0, 0, 0, 0xff, 0xff, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    (finish(frame, payload), offload(Gso::Tcp4, ip + 20))
}

fn tcp6(payload: &[u8], options: bool) -> (Vec<u8>, Offload) {
    let mut frame = vec![2; 12];
    frame.extend([0x86, 0xdd]);
    frame.extend([0x60, 0, 0, 0, 0, 0, if options { 60 } else { 6 }, 64]);
    frame.extend([0x20; 16]);
    frame.extend([0x30; 16]);
    if options {
        frame.extend([6, 0, 1, 4, 0, 0, 0, 0]);
    }
    let tcp = frame.len();
    (finish(frame, payload), offload(Gso::Tcp6, tcp))
}

fn finish(mut frame: Vec<u8>, payload: &[u8]) -> Vec<u8> {
    frame.extend([0, 80, 1, 2, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 0x80, ALL_FLAGS, 1, 0, 0xab, 0xcd, 0, 0]);
    frame.extend([1; 12]);
    frame.extend(payload);
    frame
}

fn offload(gso: Gso, tcp: usize) -> Offload {
    Offload {
        needs_checksum: true,
        checksum_start: tcp as u16,
        checksum_offset: 16,
        gso,
        gso_size: 100,
        ..Offload::default()
    }
}

fn segments(frame: &[u8], offload: &Offload) -> Vec<Vec<u8>> {
    let mut segments = Segments::new(frame, offload).unwrap();
    let (mut segment, mut all) = (Vec::new(), Vec::new());
    while segments.next_into(&mut segment) {
        all.push(segment.clone());
        assert!(all.len() <= frame.len());
    }
    all
}

/// Checks a segment's checksum by making it again the way a sender with checksum offload would.
fn assert_checksum(segment: &[u8], offload: &Offload) {
    let tcp = usize::from(offload.checksum_start);
    let addresses = if offload.gso == Gso::Tcp4 { &segment[tcp - 8..tcp] } else { &segment[22..54] };
    let words = addresses.chunks(2).map(|pair| u32::from(word_at(pair, 0)));
    let mut sum: u32 = words.sum::<u32>() + 6 + (segment.len() - tcp) as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let mut again = segment.to_vec();
    store(&mut again, tcp + 16, sum as u16);
    complete_checksum(&mut again, offload);
    assert_eq!(again, segment);
}

#[test]
fn ipv4_segments_are_whole_packets() {
    let payload: Vec<u8> = (0..250).collect();
    for vlan in [false, true] {
        let (frame, offload) = tcp4(&payload, vlan);
        let (tcp, segments) = (usize::from(offload.checksum_start), segments(&frame, &offload));
        let ip = tcp - 20;
        let lengths: Vec<_> = segments.iter().map(|segment| segment.len() - tcp - 32).collect();
        assert_eq!(lengths, [100, 100, 50]);
        for (index, segment) in segments.iter().enumerate() {
            assert_eq!(usize::from(word_at(segment, ip + 2)), segment.len() - ip);
            assert_eq!(word_at(segment, ip + 4), 0xffff_u16.wrapping_add(index as u16));
            assert_eq!(Sum::default().add(&segment[ip..tcp]).checksum(), 0xffff, "the header sums to nothing");
            let sequence = u32::from_be_bytes(*segment[tcp + 4..].first_chunk().unwrap());
            assert_eq!(sequence, 0xffff_ff00_u32.wrapping_add(index as u32 * 100));
            assert_checksum(segment, &offload);
        }
        let flags: Vec<_> = segments.iter().map(|segment| segment[tcp + 13]).collect();
        assert_eq!(flags, [TCP_CWR | 0x10, 0x10, TCP_FIN | TCP_PSH | 0x10]);
        let joined: Vec<u8> = segments.iter().flat_map(|segment| segment[tcp + 32..].to_vec()).collect();
        assert_eq!(joined, payload);
    }
}

#[test]
fn ipv6_segments_are_whole_packets() {
    for options in [false, true] {
        let (frame, offload) = tcp6(&[7; 201], options);
        let segments = segments(&frame, &offload);
        assert_eq!(segments.len(), 3);
        for segment in &segments {
            assert_eq!(usize::from(word_at(segment, 18)), segment.len() - 54);
            assert_checksum(segment, &offload);
        }
    }
}

#[test]
fn a_short_frame_is_one_segment() {
    for payload in [&[][..], &[1; 100]] {
        let (frame, offload) = tcp4(payload, false);
        let segments = segments(&frame, &offload);
        assert_eq!(segments.len(), 1);
        assert_eq!(segments[0][47], ALL_FLAGS);
    }
}

#[test]
fn what_is_not_tcp_is_refused() {
    let (frame, offload) = tcp4(&[0; 300], false);
    let refused =
        |frame: &[u8], offload: &Offload| assert_eq!(Segments::new(frame, offload).err(), Some(BadOffload::Gso));
    for (at, value) in [(12, 9), (14, 0x65), (14, 0x44), (20, 0x20), (21, 1), (23, 17), (46, 0x40)] {
        let mut frame = frame.clone();
        frame[at] = value;
        refused(&frame, &offload);
    }
    refused(&frame, &Offload { gso: Gso::Tcp6, ..offload });
    refused(&frame, &Offload { gso_size: 0, ..offload });
    refused(&frame, &Offload { gso_size: u16::MAX, ..offload });
    refused(&frame, &Offload { needs_checksum: false, ..offload });
    refused(&frame, &Offload { checksum_start: 33, ..offload });
    let (mut routed, offload) = tcp6(&[0; 300], true);
    routed[20] = 43;
    refused(&routed, &offload);
    assert_eq!(Segments::new(&[0; 70_000], &offload).err(), Some(BadOffload::TooLong));
}

proptest! {
    #[test]
    fn hostile_frames_do_not_panic(
        seed in any::<bool>(),
        cut in 0_usize..400,
        changes in prop::collection::vec((0_usize..100, any::<u8>()), 0..6),
        start in prop_oneof![Just(34_u16), Just(54), any::<u16>()],
        gso_size in prop_oneof![Just(1_u16), Just(100), any::<u16>()],
    ) {
        let (mut frame, offload) = if seed { tcp4(&[3; 250], false) } else { tcp6(&[3; 250], false) };
        for (at, value) in changes {
            frame[at] = value;
        }
        frame.truncate(cut);
        let offload = Offload { checksum_start: start, gso_size, ..offload };
        if let Ok(mut segments) = Segments::new(&frame, &offload) {
            let mut segment = Vec::new();
            for _ in 0..=frame.len() {
                if !segments.next_into(&mut segment) {
                    return Ok(());
                }
            }
            prop_assert!(false, "more segments than bytes");
        }
    }
}
