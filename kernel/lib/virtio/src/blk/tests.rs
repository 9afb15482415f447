//! Requests as a driver makes them, and as one should not.

use super::*;
use crate::testing::{BUFFERS, Driver, END, config_interrupt, queue_interrupt};

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;
const SECTORS: u64 = 1000;

fn disk() -> BlkConfig {
    BlkConfig { serial: *b"POLLUX-0123456789abc", ..BlkConfig::new(SECTORS) }
}

fn driver() -> Driver<Blk> {
    Driver::new(Blk::new(disk()))
}

impl Driver<Blk> {
    /// Adds a request with its header at [`HEADER`] and its status at [`STATUS`], preset to a value no device writes.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> u16 {
        self.put(HEADER, &(u128::from(kind) | u128::from(sector) << 64).to_le_bytes());
        self.put(STATUS, &[0xee]);
        let mut pieces = vec![(HEADER, 16, false)];
        pieces.extend_from_slice(data);
        pieces.push((STATUS, 1, true));
        self.rings[0].add(&self.memory, &pieces)
    }

    fn next(&mut self) -> Option<Request> {
        let mut request = Request::default();
        self.function.next_request(&self.memory, &mut request).then_some(request)
    }

    fn complete(&mut self, id: u16, outcome: Outcome) {
        self.function.complete(&self.memory, id, outcome);
    }

    fn notify(&mut self) {
        self.function.notify_if_needed(&self.memory, &mut self.signals);
    }

    fn status(&self) -> u8 {
        self.get(STATUS, 1)[0]
    }

    /// The status of a request that must be answered without asking the disk.
    fn answer(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> u8 {
        self.request(kind, sector, data);
        assert!(self.next().is_none());
        self.notify();
        assert_eq!(self.rings[0].take_used(&self.memory).len(), 1);
        self.status()
    }
}

#[test]
fn a_read() {
    let mut driver = driver();
    let head = driver.request(TYPE_IN, 10, &[(DATA, 1024, true), (DATA + 0x1000, 512, true)]);
    assert!(driver.kick(0));
    assert_eq!(driver.take_signals(), [Signal::Kicked(0)]);
    let request = driver.next().unwrap();
    assert_eq!((request.id, request.op, request.sector, request.sectors), (head, Op::Read, 10, 3));
    assert_eq!(request.pieces, [(Gpa::new(DATA), 1024), (Gpa::new(DATA + 0x1000), 512)]);
    assert_eq!(driver.function.device.in_flight(), 1);
    driver.complete(head, Outcome::Ok);
    assert!(driver.rings[0].take_used(&driver.memory).is_empty(), "not before the batch ends");
    driver.notify();
    assert_eq!(driver.rings[0].take_used(&driver.memory), [(head, 1537)]);
    assert_eq!(driver.take_signals(), [queue_interrupt(0)]);
    assert_eq!((driver.status(), driver.function.device.in_flight()), (0, 0));
}

#[test]
fn a_write_and_its_failure() {
    let mut driver = driver();
    let head = driver.request(TYPE_OUT, SECTORS - 1, &[(DATA + 7, 512, false)]);
    let request = driver.next().unwrap();
    assert_eq!((request.op, request.sectors), (Op::Write, 1));
    assert_eq!(request.pieces, [(Gpa::new(DATA + 7), 512)]);
    driver.complete(head, Outcome::IoError);
    driver.notify();
    assert_eq!(driver.rings[0].take_used(&driver.memory), [(head, 1)]);
    assert_eq!(driver.status(), 1);
}

#[test]
fn framing_is_the_drivers_choice() {
    let mut driver = driver();
    // Header split in two, its second half in one buffer with data; data and status in one buffer.
    driver.put(DATA, &u128::from(TYPE_OUT).to_le_bytes());
    driver.rings[0].add(&driver.memory, &[(DATA, 5, false), (DATA + 5, 11 + 512, false), (STATUS, 1, true)]);
    assert_eq!(driver.next().unwrap().pieces, [(Gpa::new(DATA + 16), 512)]);
    driver.put(HEADER, &u128::from(TYPE_IN).to_le_bytes());
    driver.rings[0].add_indirect(&driver.memory, BUFFERS + 0x800, &[(HEADER, 16, false), (DATA, 513, true)]);
    let request = driver.next().unwrap();
    assert_eq!(request.pieces, [(Gpa::new(DATA), 512)]);
    driver.complete(request.id, Outcome::Unsupported);
    assert_eq!(driver.get(DATA + 512, 1), [2]);
}

#[test]
fn flush_discard_and_write_zeroes() {
    let mut driver = driver();
    driver.request(TYPE_FLUSH, 77, &[]);
    let request = driver.next().unwrap();
    assert_eq!((request.op, request.sector, request.sectors), (Op::Flush, 0, 0));
    let segment = |sector: u64, sectors: u32, flags: u32| {
        (u128::from(sector) | u128::from(sectors) << 64 | u128::from(flags) << 96).to_le_bytes()
    };
    for (kind, flags, op) in [
        (TYPE_DISCARD, 0, Op::Discard),
        (TYPE_WRITE_ZEROES, 0, Op::WriteZeroes { unmap: false }),
        (TYPE_WRITE_ZEROES, 1, Op::WriteZeroes { unmap: true }),
    ] {
        driver.put(DATA, &segment(8, 16, flags));
        driver.request(kind, 0, &[(DATA, 16, false)]);
        let request = driver.next().unwrap();
        assert_eq!((request.op, request.sector, request.sectors, request.bytes()), (op, 8, 16, 8192));
        assert!(request.pieces.is_empty());
    }
    let range = [(DATA, 16, false)];
    for (kind, sector, sectors, flags, status) in [
        (TYPE_DISCARD, 0, 1, 1, 2),
        (TYPE_WRITE_ZEROES, 0, 1, 2, 2),
        (TYPE_DISCARD, SECTORS, 1, 0, 1),
        (TYPE_DISCARD, u64::MAX, 2, 0, 1),
        (TYPE_WRITE_ZEROES, 0, u32::MAX, 0, 1),
        (TYPE_WRITE_ZEROES, 5, 0, 0, 0),
    ] {
        driver.put(DATA, &segment(sector, sectors, flags));
        assert_eq!(driver.answer(kind, 0, &range), status);
    }
    assert_eq!(driver.answer(TYPE_DISCARD, 0, &[(DATA, 32, false)]), 2, "one segment is what was offered");
    assert_eq!(driver.answer(TYPE_DISCARD, 0, &[(END, 16, false)]), 1);
}

#[test]
fn get_id_is_answered_here() {
    let mut driver = driver();
    assert_eq!(driver.answer(TYPE_GET_ID, 0, &[(DATA, 20, true)]), 0);
    assert_eq!(driver.get(DATA, 20), b"POLLUX-0123456789abc");
    driver.put(DATA, &[0; 20]);
    assert_eq!(driver.answer(TYPE_GET_ID, 0, &[(DATA, 6, true)]), 0, "as much as there is room for");
    assert_eq!(driver.get(DATA, 8), b"POLLUX\0\0");
    assert_eq!(driver.answer(TYPE_GET_ID, 0, &[(END, 20, true)]), 1);
}

#[test]
fn wrong_requests_get_a_status() {
    let mut driver = driver();
    let data = |at, bytes, writable| [(at, bytes, writable)];
    for (kind, sector, pieces) in [
        (TYPE_IN, SECTORS, data(DATA, 512, true)),
        (TYPE_IN, SECTORS - 1, data(DATA, 1024, true)),
        (TYPE_IN, u64::MAX, data(DATA, 512, true)),
        (TYPE_IN, 0, data(DATA, 511, true)),
        (TYPE_IN, 0, data(END - 256, 512, true)),
        (TYPE_IN, 0, data(u64::MAX - 100, 512, true)),
        (TYPE_IN, 0, data(DATA, 512, false)),
        (TYPE_OUT, 0, data(DATA, 512, true)),
        (TYPE_OUT, 0, data(END, 512, false)),
        (TYPE_OUT, 0, data(DATA, u32::MAX, false)),
    ] {
        assert_eq!(driver.answer(kind, sector, &pieces), 1, "{kind} {sector} {pieces:x?}");
    }
    assert_eq!(driver.answer(TYPE_IN, 0, &[]), 0, "nothing is read at once");
    assert_eq!(driver.answer(99, 0, &[]), 2);
    let mixed = [(DATA, 512, true), (DATA + 0x1000, 512, false)];
    assert_eq!(driver.answer(TYPE_IN, 0, &mixed), 1, "readable after writable");
    driver.put(STATUS, &[0xee]);
    driver.rings[0].add(&driver.memory, &[(HEADER, 15, false), (STATUS, 1, true)]);
    assert!(driver.next().is_none());
    assert_eq!(driver.status(), 1, "short header");
    assert!(!driver.function.needs_reset());
}

#[test]
fn a_transfer_is_shorter_than_the_used_ring_can_say() {
    let device = Blk::new(BlkConfig::new(u64::MAX / SECTOR_BYTES));
    let memory = guestmem::heap::guest_memory(END);
    let transfer = |pieces| {
        let pieces = vec![(Gpa::new(0), END as u32); pieces];
        device.check_transfer(&memory, &mut Request { pieces, ..Request::default() })
    };
    assert!(matches!(transfer(1023), Verdict::Ask));
    assert!(matches!(transfer(1024), Verdict::Answer(Outcome::IoError, 0)));
}

#[test]
fn a_read_only_disk() {
    let mut driver = Driver::new(Blk::new(BlkConfig { read_only: true, ..disk() }));
    assert_ne!(driver.offered() & F_RO, 0);
    assert_eq!(driver.answer(TYPE_OUT, 0, &[(DATA, 512, false)]), 1);
    assert_eq!(driver.answer(TYPE_DISCARD, 0, &[(DATA, 16, false)]), 1);
    assert_eq!(driver.answer(TYPE_WRITE_ZEROES, 0, &[(DATA, 16, false)]), 1);
    driver.request(TYPE_IN, 0, &[(DATA, 512, true)]);
    assert!(driver.next().is_some());
}

#[test]
fn what_was_not_negotiated_is_unsupported() {
    let mut driver = Driver::with_features(Blk::new(disk()), !(F_DISCARD | F_FLUSH));
    assert!(driver.function.device.write_through());
    driver.put(DATA, &(1u128 << 64).to_le_bytes());
    assert_eq!(driver.answer(TYPE_DISCARD, 0, &[(DATA, 16, false)]), 2);
}

#[test]
fn without_a_status_byte_the_device_stops() {
    for pieces in [
        vec![(HEADER, 16, false)],
        vec![(HEADER, 16, false), (END, 1, true)],
        vec![(HEADER, 16, false), (u64::MAX, 2, true)],
        vec![(HEADER, 16, false), (STATUS, 0, true)],
    ] {
        let mut driver = driver();
        driver.rings[0].add(&driver.memory, &pieces);
        assert!(driver.next().is_none());
        assert!(driver.function.needs_reset());
        driver.notify();
        assert_eq!(driver.take_signals(), [config_interrupt()]);
        driver.request(TYPE_FLUSH, 0, &[]);
        assert!(driver.next().is_none(), "until the reset");
        driver.notify();
        assert_eq!(driver.take_signals(), []);
    }
}

#[test]
fn a_head_in_flight_cannot_come_again() {
    let mut driver = driver();
    let head = driver.request(TYPE_FLUSH, 0, &[]);
    assert!(driver.next().is_some());
    driver.rings[0].offer(&driver.memory, head);
    assert!(driver.next().is_none());
    assert!(driver.function.needs_reset());
}

#[test]
fn completions_from_before_a_reset_are_ignored() {
    let mut driver = driver();
    let head = driver.request(TYPE_FLUSH, 0, &[]);
    assert!(driver.next().is_some());
    driver.reset();
    assert_eq!(driver.take_signals(), [Signal::Reset]);
    driver.complete(head, Outcome::Ok);
    driver.complete(u16::MAX, Outcome::Ok);
    assert_eq!(driver.status(), 0xee);
    let features = driver.offered();
    driver.bring_up(features);
    driver.request(TYPE_FLUSH, 0, &[]);
    assert!(driver.next().is_some());
}

#[test]
fn one_interrupt_for_a_batch() {
    let mut driver = driver();
    let heads: Vec<_> = (0..5).map(|sector| driver.request(TYPE_IN, sector, &[(DATA, 512, true)])).collect();
    assert!(driver.kick(0));
    driver.rings[0].set_used_event(&driver.memory, 4);
    for _ in &heads {
        driver.next().unwrap();
    }
    driver.take_signals();
    for head in &heads[..4] {
        driver.complete(*head, Outcome::Ok);
    }
    driver.notify();
    assert_eq!(driver.take_signals(), [], "the driver asked for the fifth");
    driver.complete(heads[4], Outcome::Ok);
    driver.notify();
    assert_eq!(driver.take_signals(), [queue_interrupt(0)]);
    driver.notify();
    assert_eq!(driver.take_signals(), [], "nothing new");
}

#[test]
fn a_flood_of_answered_requests_is_left_for_later() {
    let mut driver = driver();
    driver.put(HEADER, &99u128.to_le_bytes());
    // A ring full; the driver reuses one chain for all entries and adds more as soon as there is room.
    for _ in 0..256 {
        driver.rings[0].offer(&driver.memory, 0);
    }
    driver.rings[0].set_descriptor(&driver.memory, driver.rings[0].descriptors, 0, (HEADER, 16, 1, 1));
    driver.rings[0].set_descriptor(&driver.memory, driver.rings[0].descriptors, 1, (STATUS, 1, 2, 0));
    assert!(driver.next().is_none());
    driver.notify();
    assert_eq!(driver.take_signals(), [queue_interrupt(0), Signal::Kicked(0)]);
    assert!(driver.next().is_none());
    driver.notify();
    assert_eq!(driver.take_signals(), []);
}

#[test]
fn the_configuration_says_what_the_disk_is() {
    let mut driver = driver();
    assert_eq!(driver.read(0x2000, 8), SECTORS);
    assert_eq!(driver.read(0x2000 + 12, 4), 254);
    assert_eq!(driver.read(0x2000 + 20, 4), 512);
    assert_eq!(driver.read(0x2000 + 24, 4), 0x0008_0003);
    assert_eq!(driver.read(0x2000 + 44, 4), 8);
    assert_eq!(driver.read(0x2000 + 57, 8), 0);
    let generation = driver.read(21, 1);
    driver.function.resize(5000, &mut driver.signals);
    assert_eq!(driver.take_signals(), [config_interrupt()]);
    assert_eq!(driver.read(0x2000, 4), 5000);
    assert_ne!(driver.read(21, 1), generation);
}
