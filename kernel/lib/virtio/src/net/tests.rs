//! Frames both ways, with and without merged buffers and offloads, and the control queue.

use super::*;
use crate::testing::{BUFFERS, Driver, END, config_interrupt, queue_interrupt};

const OWN: Mac = [2, 0, 0, 0, 0, 1];
const TX: u64 = BUFFERS;
const RX: u64 = BUFFERS + 0x2_0000;
const COMMAND: u64 = BUFFERS + 0x8_0000;
const ANSWER: u64 = COMMAND + 0x1000;

fn card() -> Net {
    Net::new(NetConfig { mac: OWN, mtu: 1500, offloads: true })
}

fn driver() -> Driver<Net> {
    Driver::new(card())
}

/// A frame to the guest with recognisable bytes.
fn frame(bytes: usize) -> Vec<u8> {
    let mut frame: Vec<_> = (0..bytes).map(|index| index as u8).collect();
    frame[..6].copy_from_slice(&OWN);
    frame
}

impl Driver<Net> {
    /// Adds a frame to send, its header in a piece of its own.
    fn send(&mut self, header: &NetHeader, frame: &[u8]) -> u16 {
        self.put(TX, &header.encode(0));
        self.put(TX + 0x100, frame);
        self.rings[1].add(&self.memory, &[(TX, 12, false), (TX + 0x100, frame.len() as u32, false)])
    }

    fn transmitted(&mut self) -> Option<TxFrame> {
        let mut frame = TxFrame::new();
        self.function.transmit(&self.memory, &mut frame).then_some(frame)
    }

    fn receive(&mut self, header: &NetHeader, frame: &[u8]) -> Result<(), NoBuffer> {
        self.function.receive(&self.memory, header, frame)
    }

    /// Ends a batch, and says what the driver got.
    fn received(&mut self) -> Vec<(u16, u32)> {
        self.function.notify_receive(&self.memory, &mut self.signals);
        self.rings[0].take_used(&self.memory)
    }

    /// Has a command carried out and returns the answer.
    fn command(&mut self, command: &[u8]) -> u8 {
        self.put(COMMAND, command);
        self.put(ANSWER, &[0xee]);
        // Class and command apart from the data, as Linux sends them.
        let data = command.len() as u32 - 2;
        let pieces = [(COMMAND, 2, false), (COMMAND + 2, data, false), (ANSWER, 1, true)];
        self.rings[2].add(&self.memory, &pieces);
        self.function.control(&self.memory, &mut self.signals);
        assert_eq!(self.rings[2].take_used(&self.memory).len(), 1);
        self.get(ANSWER, 1)[0]
    }

    fn config(&mut self, offset: u32, size: u8) -> u64 {
        self.read(0x2000 + offset, size)
    }
}

#[test]
fn a_frame_leaves() {
    let mut driver = driver();
    let head = driver.send(&NetHeader::default(), &frame(60));
    assert!(driver.kick(1));
    let sent = driver.transmitted().unwrap();
    assert_eq!((sent.header, sent.bytes), (NetHeader::default(), frame(60)));
    assert!(driver.transmitted().is_none());
    driver.take_signals();
    driver.function.notify_transmit(&driver.memory, &mut driver.signals);
    assert_eq!(driver.rings[1].take_used(&driver.memory), [(head, 0)]);
    assert_eq!(driver.take_signals(), [queue_interrupt(1)]);
}

#[test]
fn a_shorter_frame_after_a_longer_one_is_not_longer() {
    let mut driver = driver();
    let mut reused = TxFrame::new();
    for bytes in [1500, 60, 14] {
        driver.send(&NetHeader::default(), &frame(bytes));
        assert!(driver.function.transmit(&driver.memory, &mut reused));
        assert_eq!(reused.bytes, frame(bytes));
    }
}

#[test]
fn frames_that_make_no_sense_are_skipped() {
    let mut driver = driver();
    let bad = NetHeader { flags: FLAG_NEEDS_CSUM, csum_start: 59, ..NetHeader::default() };
    driver.send(&bad, &frame(60));
    assert!(driver.transmitted().is_none());
    driver.send(&NetHeader::default(), &frame(13));
    driver.rings[1].add(&driver.memory, &[(TX, 11, false)]);
    driver.rings[1].add(&driver.memory, &[(END - 6, 100, false)]);
    driver.rings[1].add(&driver.memory, &[(TX, 100, false), (TX, 12, true)]);
    driver.rings[1].add(&driver.memory, &[(TX, u32::MAX, false)]);
    driver.rings[1].add(&driver.memory, &[(TX, 12, false), (TX, 65 << 10, false)]);
    driver.rings[1].add_indirect(&driver.memory, BUFFERS + 0x4000, &[(TX, 1, false); 259]);
    assert!(driver.transmitted().is_none());
    driver.function.notify_transmit(&driver.memory, &mut driver.signals);
    assert_eq!(driver.rings[1].take_used(&driver.memory).len(), 8, "all come back");
    assert_eq!(driver.function.device.counters().transmit_malformed, 8);
    assert!(!driver.function.needs_reset());
    driver.send(&NetHeader::default(), &frame(60));
    assert!(driver.transmitted().is_some());
}

#[test]
fn segmentation_passes_only_when_negotiated() {
    let header = NetHeader {
        flags: FLAG_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
    };
    let mut driver = driver();
    driver.send(&header, &frame(60_000));
    let sent = driver.transmitted().unwrap();
    assert_eq!((sent.header, sent.bytes.len()), (header, 60_000));
    let mut driver = Driver::with_features(card(), !F_HOST_TSO4);
    driver.send(&header, &frame(60_000));
    assert!(driver.transmitted().is_none());
    assert_eq!(
        Driver::new(Net::new(NetConfig { offloads: false, ..card().config })).offered() & (F_CSUM | GUEST_OFFLOADS),
        0
    );
}

#[test]
fn a_frame_arrives() {
    let mut driver = driver();
    assert!(!driver.function.has_receive_buffers(&driver.memory));
    let head = driver.rings[0].add(&driver.memory, &[(RX, 1600, true)]);
    assert!(driver.kick(0));
    assert!(driver.function.has_receive_buffers(&driver.memory));
    driver.take_signals();
    let header = NetHeader { flags: FLAG_DATA_VALID, ..NetHeader::default() };
    driver.receive(&header, &frame(1000)).unwrap();
    assert_eq!(driver.received(), [(head, 1012)]);
    assert_eq!(driver.take_signals(), [queue_interrupt(0)]);
    assert_eq!(driver.get(RX, 12), header.encode(1));
    assert_eq!(driver.get(RX + 12, 1000), frame(1000));
}

#[test]
fn a_long_frame_is_merged_from_buffers() {
    let mut driver = driver();
    let heads: Vec<_> =
        (0..3).map(|buffer| driver.rings[0].add(&driver.memory, &[(RX + 0x1000 * buffer, 1500, true)])).collect();
    driver.receive(&NetHeader::default(), &frame(3000)).unwrap();
    assert_eq!(driver.received(), [(heads[0], 1500), (heads[1], 1500), (heads[2], 12)]);
    assert_eq!(driver.get(RX + 10, 2), [3, 0]);
    let parts = [driver.get(RX + 12, 1488), driver.get(RX + 0x1000, 1500), driver.get(RX + 0x2000, 12)];
    assert_eq!(parts.concat(), frame(3000));
}

#[test]
fn without_enough_buffers_nothing_happens() {
    let mut driver = driver();
    let first = driver.rings[0].add(&driver.memory, &[(RX, 1500, true)]);
    assert!(driver.kick(0));
    assert_eq!(driver.receive(&NetHeader::default(), &frame(3000)), Err(NoBuffer));
    assert!(driver.function.has_receive_buffers(&driver.memory), "it was put back");
    assert!(driver.received().is_empty());
    let rest = [1, 2].map(|buffer| driver.rings[0].add(&driver.memory, &[(RX + 0x1000 * buffer, 1500, true)]));
    assert!(driver.kick(0), "the next buffer is told");
    driver.receive(&NetHeader::default(), &frame(3000)).unwrap();
    assert_eq!(driver.received(), [(first, 1500), (rest[0], 1500), (rest[1], 12)]);
}

#[test]
fn without_merging_a_frame_fits_one_buffer_or_is_lost() {
    let mut driver = Driver::with_features(card(), !F_MRG_RXBUF);
    let head = driver.rings[0].add(&driver.memory, &[(RX, 12, true), (RX + 0x1000, 1488, true)]);
    driver.receive(&NetHeader::default(), &frame(1489)).unwrap();
    assert_eq!(driver.function.device.counters().receive_dropped, 1);
    driver.receive(&NetHeader::default(), &frame(1488)).unwrap();
    assert_eq!(driver.received(), [(head, 1500)]);
    assert_eq!(driver.get(RX, 12), NetHeader::default().encode(1), "5.1.6.4.1: one buffer, also without merging");
}

#[test]
fn tiny_buffers_do_not_make_long_merges() {
    let mut driver = driver();
    for _ in 0..200 {
        driver.rings[0].add(&driver.memory, &[(RX, 1, true)]);
    }
    driver.receive(&NetHeader::default(), &frame(100)).unwrap();
    assert_eq!(driver.function.device.counters().receive_dropped, 1);
    assert!(driver.received().is_empty());
}

#[test]
fn wrong_receive_buffers_stop_the_device() {
    for pieces in [[(RX, 0, true)], [(RX, 2000, false)], [(END - 100, 2000, true)]] {
        let mut driver = driver();
        driver.rings[0].add(&driver.memory, &pieces);
        driver.receive(&NetHeader::default(), &frame(100)).unwrap();
        assert!(driver.function.needs_reset());
        assert!(driver.received().is_empty());
        assert_eq!(driver.take_signals(), [config_interrupt()]);
        assert_eq!(driver.receive(&NetHeader::default(), &frame(100)), Ok(()), "gone, not kept waiting");
    }
}

#[test]
fn offloads_the_guest_does_not_take_are_not_given() {
    let mut driver = Driver::with_features(card(), !(F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_CSUM));
    assert_eq!(driver.function.device.guest_offloads(), Offloads::default());
    driver.rings[0].add(&driver.memory, &[(RX, 2000, true)]);
    let unfinished = NetHeader { flags: FLAG_NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..NetHeader::default() };
    driver.receive(&unfinished, &frame(100)).unwrap();
    assert_eq!(driver.function.device.counters().receive_dropped, 1);
    let verified = NetHeader { flags: FLAG_DATA_VALID, ..NetHeader::default() };
    driver.receive(&verified, &frame(100)).unwrap();
    assert_eq!(driver.get(RX, 1), [0], "no flag at all");
}

#[test]
fn the_filter_is_set_by_commands() {
    let mut driver = driver();
    let other = [&[2, 0, 0, 0, 0, 9][..], &[0; 54]].concat();
    assert!(driver.function.device.accepts_frame(&other));
    assert_eq!(driver.command(&[0, 0, 0]), 0);
    assert!(!driver.function.device.accepts_frame(&other));
    driver.receive(&NetHeader::default(), &other).unwrap();
    assert_eq!(driver.function.device.counters().receive_filtered, 1);
    let table = [&[1, 0][..], &[1, 0, 0, 0], &other[..6], &[0, 0, 0, 0]].concat();
    assert_eq!(driver.command(&table), 0);
    assert!(driver.function.device.accepts_frame(&other));
    let empty = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(driver.command(&empty), 0);
    assert!(!driver.function.device.accepts_frame(&other));
    let long = [&[1, 0, 65, 0, 0, 0][..], &[0x11; 65 * 6], &[0; 4]].concat();
    assert_eq!(driver.command(&long), 0);
    assert!(driver.function.device.accepts_frame(&other), "too many to keep: all");
    assert!(!driver.function.device.accepts_frame(&[1; 60]));
    assert_eq!(driver.command(&[0, 1, 1]), 0);
    assert!(driver.function.device.accepts_frame(&[1; 60]));
}

#[test]
fn the_address_and_offloads_are_set_by_commands() {
    let mut driver = driver();
    assert_eq!(driver.command(&[1, 1, 2, 3, 4, 5, 6, 7]), 0);
    assert_eq!(driver.function.device.mac(), [2, 3, 4, 5, 6, 7]);
    assert_eq!(driver.config(0, 4), 0x0504_0302);
    let offloads = |bits: u64| [&[5, 0][..], &bits.to_le_bytes()].concat();
    assert_eq!(driver.command(&offloads(F_GUEST_CSUM)), 0);
    assert_eq!(driver.function.device.guest_offloads(), Offloads { csum: true, tso4: false, tso6: false });
    assert_eq!(driver.command(&offloads(F_CSUM)), 1);
    driver.reset();
    assert_eq!(driver.function.device.mac(), OWN);
}

#[test]
fn wrong_commands_are_refused() {
    let mut driver = driver();
    let short_tables: [&[u8]; 3] =
        [&[1, 0, 2, 0, 0, 0, 1, 1, 1], &[1, 0, 0, 0, 0, 0], &[1, 0, 255, 255, 255, 255, 0, 0]];
    for command in [&[0, 2, 1][..], &[9, 0, 0], &[2, 0, 1, 0], &[1, 1, 2, 3], &[0, 0]] {
        assert_eq!(driver.command(command), 1, "{command:?}");
    }
    for command in short_tables {
        assert_eq!(driver.command(command), 1, "{command:?}");
    }
    driver.rings[2].add(&driver.memory, &[(ANSWER, 1, true), (COMMAND, 3, false)]);
    driver.function.control(&driver.memory, &mut driver.signals);
    assert_eq!(driver.get(ANSWER, 1), [1]);
    driver.rings[2].add(&driver.memory, &[(COMMAND, 3, false)]);
    driver.function.control(&driver.memory, &mut driver.signals);
    assert!(driver.function.needs_reset(), "nowhere to answer");
    let mut driver = Driver::with_features(card(), !F_CTRL_RX);
    assert_eq!(driver.command(&[0, 0, 0]), 1, "not negotiated");
}

#[test]
fn announcements_and_link_changes_are_told() {
    let mut driver = driver();
    assert_eq!(driver.config(6, 2), 1);
    driver.function.announce(&mut driver.signals);
    assert_eq!((driver.config(6, 2), driver.take_signals()), (3, vec![config_interrupt()]));
    assert_eq!(driver.command(&[3, 0]), 0);
    assert_eq!(driver.config(6, 2), 1);
    driver.take_signals();
    driver.function.set_link(false, &mut driver.signals);
    driver.function.set_link(false, &mut driver.signals);
    assert_eq!((driver.config(6, 2), driver.take_signals()), (0, vec![config_interrupt()]));
    driver.rings[0].add(&driver.memory, &[(RX, 2000, true)]);
    driver.receive(&NetHeader::default(), &frame(60)).unwrap();
    assert!(driver.received().is_empty(), "no link");
    let mut driver = Driver::with_features(card(), !F_GUEST_ANNOUNCE);
    driver.function.announce(&mut driver.signals);
    assert_eq!((driver.config(6, 2), driver.take_signals()), (1, vec![]));
}
