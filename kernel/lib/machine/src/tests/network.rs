//! Frames both ways.

use super::bench::*;
use super::driver::{BUFFERS, Driver, VERSION_1};
use crate::FrameLost;
use addr::Gpa;
use switch::{Gso, Offload};
use vcpu::{Event, Exit};
use virtio::net::{FLAG_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NetHeader};

const DEVICE: u32 = 3;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const HEADER: u64 = 12;

fn bench() -> (Bench, Driver) {
    let mut bench = Bench::with(vec![], vec![nic()]);
    bench.enable_x2apic();
    let driver = Driver::new(&mut bench, DEVICE, VERSION_1, &[256, 256, 64]);
    (bench, driver)
}

/// A frame to the card of [`nic`] whose payload is `tag`.
fn frame(tag: u8) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0][..], &[tag; 50]].concat()
}

fn send(bench: &Bench, driver: &mut Driver, tag: u8) {
    let at = BUFFERS + 0x100 * u64::from(tag);
    bench.machine.memory().zero(Gpa::new(at), HEADER).unwrap();
    bench.machine.memory().write(Gpa::new(at + HEADER), &frame(tag)).unwrap();
    driver.add(bench, TRANSMIT, &[(at, HEADER as u32, false), (at + HEADER, 64, false)]);
}

#[test]
fn a_long_batch_leaves_in_order_and_in_pieces() {
    let (mut bench, mut driver) = bench();
    (0..40).for_each(|tag| send(&bench, &mut driver, tag));
    driver.kick(&mut bench, TRANSMIT as u32);
    let expected: Vec<_> = (0..40).map(|tag| (0, frame(tag))).collect();
    assert_eq!(bench.host.frames, expected);
    assert_eq!(bench.host.flush_max[3], 16);
    assert_eq!(driver.used(&bench, TRANSMIT).len(), 40);
}

#[test]
fn a_frame_that_makes_no_sense_is_skipped() {
    let (mut bench, mut driver) = bench();
    driver.add(&bench, TRANSMIT, &[(BUFFERS, 5, false)]);
    send(&bench, &mut driver, 1);
    driver.kick(&mut bench, TRANSMIT as u32);
    assert_eq!(bench.host.frames, [(0, frame(1))]);
    assert_eq!(driver.used(&bench, TRANSMIT).len(), 2);
}

#[test]
fn frames_arrive_with_one_interrupt() {
    let (mut bench, mut driver) = bench();
    for index in 0..4 {
        driver.add(&bench, RECEIVE, &[(BUFFERS + 0x1000 * index, 2048, true)]);
    }
    driver.kick(&mut bench, RECEIVE as u32);
    bench.set_if(true);
    bench.exit(Exit::Halt);
    for tag in 0..3 {
        assert_eq!(bench.machine.frame(0, &Offload::default(), &frame(tag), NOW), Ok(()));
    }
    assert!(!bench.machine.has_mail(0), "the batch is open");
    bench.machine.frames_settle(0, &mut bench.host);
    assert!(bench.machine.has_mail(0));
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(driver.vector(0))]);
    assert_eq!(driver.used(&bench, RECEIVE), [(0, 76), (1, 76), (2, 76)]);
    let mut got = vec![0; 64];
    bench.machine.memory().read(Gpa::new(BUFFERS + 0x1000 + HEADER), &mut got).unwrap();
    assert_eq!(got, frame(1));
}

#[test]
fn without_a_buffer_a_frame_is_lost_and_said_to_be() {
    let (mut bench, mut driver) = bench();
    assert_eq!(bench.machine.frame(0, &Offload::default(), &frame(0), NOW), Err(FrameLost));
    bench.machine.frames_settle(0, &mut bench.host);
    driver.add(&bench, RECEIVE, &[(BUFFERS, 2048, true)]);
    driver.kick(&mut bench, RECEIVE as u32);
    assert_eq!(bench.machine.frame(0, &Offload::default(), &frame(1), NOW), Ok(()));
    bench.machine.frames_settle(0, &mut bench.host);
    assert_eq!(driver.used(&bench, RECEIVE), [(0, 76)]);
}

#[test]
fn what_the_guest_takes_unfinished_is_what_it_negotiated() {
    let mut bench = Bench::with(vec![], vec![nic()]);
    let offloads = |bench: &Bench| {
        let offloads = bench.machine.nic_offloads(0);
        (offloads.transmit_checksum, offloads.transmit_tso4, offloads.transmit_tso6)
    };
    assert_eq!(offloads(&bench), (false, false, false));
    Driver::new(&mut bench, DEVICE, VERSION_1 | 1 << 1 | 1 << 7, &[64, 64, 64]);
    assert_eq!(offloads(&bench), (true, true, false));
}

#[test]
fn headers_say_the_same_in_both_languages() {
    for (gso_type, gso) in [(GSO_NONE, Gso::None), (GSO_TCPV4, Gso::Tcp4), (GSO_TCPV6, Gso::Tcp6)] {
        let header = NetHeader {
            flags: FLAG_NEEDS_CSUM,
            gso_type,
            hdr_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
        };
        let offload = crate::offload_of(&header);
        assert_eq!((offload.gso, offload.needs_checksum, offload.checksum_valid), (gso, true, false));
        assert_eq!((offload.checksum_start, offload.checksum_offset), (34, 16));
        assert_eq!((offload.gso_size, offload.header_bytes), (1448, 54));
        assert_eq!(crate::network::header_of(&offload), header);
    }
}
