//! Disk requests from the guest's ring to the host's transfers and back.

use super::bench::*;
use super::driver::{BUFFERS, Driver, VERSION_1};
use crate::DiskConfig;
use addr::Gpa;
use block::Op;
use vcpu::{Event, Exit};
use virtio::blk::Outcome;

const DEVICE: u32 = 3;
const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const SECTORS: u64 = 1000;
const HEADERS: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x8000;
const DATA: u64 = BUFFERS + 0x1_0000;

fn bench() -> Bench {
    let mut bench = Bench::with(vec![disk(SECTORS)], vec![]);
    bench.enable_x2apic();
    bench
}

fn driver(bench: &mut Bench, features: u64) -> Driver {
    Driver::new(bench, DEVICE, VERSION_1 | features, &[256])
}

/// Offers request `index`: type (0 read, 1 write, 4 flush), sector, data bytes.
fn request(bench: &Bench, driver: &mut Driver, index: u64, kind: u64, sector: u64, bytes: u32) -> u16 {
    let (header, status) = (HEADERS + 16 * index, STATUS + index);
    bench.store(header, 8, kind);
    bench.store(header + 8, 8, sector);
    bench.store(status, 1, 0x77);
    let data = (DATA, bytes, kind == 0);
    let pieces = [(header, 16, false), data, (status, 1, true)];
    if bytes == 0 { driver.add(bench, 0, &[pieces[0], pieces[2]]) } else { driver.add(bench, 0, &pieces) }
}

/// The host ends its oldest transfers.
fn finish(bench: &mut Bench, count: usize, outcome: Outcome) {
    let ids: Vec<_> = bench.host.transfers.drain(..count).map(|(transfer, _)| transfer.id).collect();
    for id in ids {
        bench.machine.disk_done(0, id, outcome, &mut bench.host);
    }
    bench.machine.disks_settle(0, &mut bench.host);
}

#[test]
fn a_read_reaches_the_host_and_comes_back() {
    let mut bench = bench();
    let mut driver = driver(&mut bench, FLUSH);
    let head = request(&bench, &mut driver, 0, 0, 40, 8192);
    driver.kick(&mut bench, 0);
    let [(transfer, runs)] = &bench.host.transfers[..] else { panic!("one transfer") };
    assert_eq!((transfer.disk, transfer.op, transfer.sector, transfer.sectors), (0, Op::Read, 40, 16));
    assert_eq!(runs.iter().map(|run| (run.start.as_u64(), run.bytes)).collect::<Vec<_>>(), [(DATA, 8192)]);
    assert_eq!(driver.used(&bench, 0), [], "not yet");
    bench.set_if(true);
    bench.exit(Exit::Halt);
    let kicks = bench.host.kicks.len();
    finish(&mut bench, 1, Outcome::Ok);
    assert!(bench.host.kicks.len() > kicks && bench.machine.has_mail(0), "a sleeper is woken");
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(driver.vector(0))]);
    assert_eq!(driver.used(&bench, 0), [(head, 8193)]);
    assert_eq!(bench.load(STATUS, 1), 0);
}

#[test]
fn data_is_resolved_to_where_it_lies() {
    let mut bench = bench();
    let mut driver = driver(&mut bench, FLUSH);
    // Across the boundary of two large frames.
    bench.store(HEADERS, 8, 1);
    driver.add(&bench, 0, &[(HEADERS, 16, false), ((2 << 20) - 512, 1024, false), (STATUS, 1, true)]);
    driver.kick(&mut bench, 0);
    let (transfer, runs) = &bench.host.transfers[0];
    assert_eq!(transfer.op, Op::Write);
    assert_eq!(
        runs.iter().map(|run| (run.start.as_u64(), run.bytes)).collect::<Vec<_>>(),
        [((2 << 20) - 512, 512), (2 << 20, 512)]
    );
}

#[test]
fn errors_reach_the_guest() {
    let mut bench = bench();
    let mut driver = driver(&mut bench, FLUSH | DISCARD);
    request(&bench, &mut driver, 0, 0, SECTORS, 512);
    request(&bench, &mut driver, 1, 99, 0, 512);
    driver.kick(&mut bench, 0);
    assert!(bench.host.transfers.is_empty(), "the host does not see what the disk refuses");
    assert_eq!((bench.load(STATUS, 1), bench.load(STATUS + 1, 1)), (1, 2));
    assert_eq!(driver.used(&bench, 0).len(), 2, "and the guest is told at once");
    request(&bench, &mut driver, 2, 0, 0, 512);
    driver.kick(&mut bench, 0);
    finish(&mut bench, 1, Outcome::IoError);
    assert_eq!(bench.load(STATUS + 2, 1), 1);
}

#[test]
fn many_transfers_leave_in_pieces() {
    let mut bench = bench();
    let mut driver = driver(&mut bench, FLUSH);
    for index in 0..80 {
        request(&bench, &mut driver, index, 0, index, 512);
    }
    driver.kick(&mut bench, 0);
    let sectors: Vec<_> = bench.host.transfers.iter().map(|(transfer, _)| transfer.sector).collect();
    assert_eq!(sectors, (0..80).collect::<Vec<_>>(), "all of them, in order");
    assert!(bench.host.flush_max[1] <= 64);
}

#[test]
fn a_reset_ends_when_the_host_is_done_with_memory() {
    let mut bench = bench();
    let mut driver = driver(&mut bench, FLUSH);
    for index in 0..3 {
        request(&bench, &mut driver, index, 0, 0, 512);
    }
    driver.kick(&mut bench, 0);
    finish(&mut bench, 1, Outcome::Ok);
    driver.set_status(&mut bench, 0);
    assert_ne!(driver.status(&mut bench), 0, "two transfers write to memory");
    finish(&mut bench, 1, Outcome::Ok);
    assert_ne!(driver.status(&mut bench), 0, "one does");
    finish(&mut bench, 1, Outcome::Ok);
    assert_eq!(driver.status(&mut bench), 0);
    assert_eq!((bench.load(STATUS, 1), bench.load(STATUS + 1, 1)), (0, 0x77), "late ones complete into nothing");
}

#[test]
fn transfers_of_before_a_reset_do_not_complete_those_of_after() {
    let mut bench = bench();
    let mut driver = driver(&mut bench, FLUSH);
    request(&bench, &mut driver, 0, 0, 0, 512);
    driver.kick(&mut bench, 0);
    // A driver that does not wait.
    driver.set_status(&mut bench, 0);
    let old = bench.host.transfers.remove(0).0.id;
    bench.machine.disk_done(0, old, Outcome::Ok, &mut bench.host);
    driver.bring_up(&mut bench, VERSION_1 | FLUSH, &[256]);
    request(&bench, &mut driver, 0, 0, 0, 512);
    driver.kick(&mut bench, 0);
    driver.set_status(&mut bench, 0);
    driver.set_status(&mut bench, 0);
    assert_ne!(bench.host.transfers[0].0.id, old, "the same head, another epoch");
    assert_ne!(driver.status(&mut bench), 0);
    finish(&mut bench, 1, Outcome::Ok);
    assert_eq!(driver.status(&mut bench), 0);
    assert_eq!(bench.load(STATUS, 1), 0x77);
}

#[test]
fn a_flush_goes_through() {
    let mut bench = bench();
    let mut driver = driver(&mut bench, FLUSH);
    request(&bench, &mut driver, 0, 1, 0, 512);
    request(&bench, &mut driver, 1, 4, 0, 0);
    driver.kick(&mut bench, 0);
    let ops: Vec<_> = bench.host.transfers.iter().map(|(transfer, _)| transfer.op).collect();
    assert_eq!(ops, [Op::Write, Op::Flush]);
    finish(&mut bench, 2, Outcome::Ok);
    assert_eq!(driver.used(&bench, 0).len(), 2);
    bench.run();
    assert!(bench.host.transfers.is_empty(), "the driver flushes itself");
}

#[test]
fn without_flush_each_write_is_stable_before_it_completes() {
    let mut bench = bench();
    let mut driver = driver(&mut bench, 0);
    request(&bench, &mut driver, 0, 0, 0, 512);
    let heads = [1, 2].map(|index| request(&bench, &mut driver, index, 1, 0, 512));
    driver.kick(&mut bench, 0);
    finish(&mut bench, 3, Outcome::Ok);
    assert_eq!(driver.used(&bench, 0).len(), 1, "the read");
    assert_eq!(bench.load(STATUS + 1, 1), 0x77);
    assert!(bench.machine.has_mail(0), "a vCPU must send the flushes");
    bench.run();
    let ops: Vec<_> = bench.host.transfers.iter().map(|(transfer, runs)| (transfer.op, runs.len())).collect();
    assert_eq!(ops, [(Op::Flush, 0); 2]);
    finish(&mut bench, 1, Outcome::Ok);
    finish(&mut bench, 1, Outcome::IoError);
    let mut used = driver.used(&bench, 0);
    used.sort_unstable();
    assert_eq!(used, heads.map(|head| (head, 1)));
    let mut outcomes = [bench.load(STATUS + 1, 1), bench.load(STATUS + 2, 1)];
    outcomes.sort_unstable();
    assert_eq!(outcomes, [0, 1], "a write whose flush failed failed");
}

#[test]
fn without_flush_writes_go_through_a_cache_that_can() {
    let mut bench = Bench::with(vec![DiskConfig { write_through: true, ..disk(SECTORS) }], vec![]);
    bench.enable_x2apic();
    let mut driver = driver(&mut bench, 0);
    let head = request(&bench, &mut driver, 0, 1, 0, 512);
    driver.kick(&mut bench, 0);
    let ops: Vec<_> = bench.host.transfers.iter().map(|(transfer, _)| transfer.op).collect();
    assert_eq!(ops, [Op::WriteThrough]);
    finish(&mut bench, 1, Outcome::Ok);
    assert_eq!(driver.used(&bench, 0), [(head, 1)]);
    bench.run();
    assert!(bench.host.transfers.is_empty(), "no flush follows");
}

#[test]
fn a_write_that_failed_is_not_flushed() {
    let mut bench = bench();
    let mut driver = driver(&mut bench, 0);
    request(&bench, &mut driver, 0, 1, 0, 512);
    driver.kick(&mut bench, 0);
    finish(&mut bench, 1, Outcome::IoError);
    bench.run();
    assert!(bench.host.transfers.is_empty());
    assert_eq!(bench.load(STATUS, 1), 1);
}

#[test]
fn a_sleeping_guest_sends_the_flush_and_sleeps_on() {
    let mut bench = bench();
    let mut driver = driver(&mut bench, 0);
    request(&bench, &mut driver, 0, 1, 0, 512);
    driver.kick(&mut bench, 0);
    bench.set_if(true);
    bench.exit(Exit::Halt);
    finish(&mut bench, 1, Outcome::Ok);
    assert_eq!(bench.run(), crate::Pause::Idle(None));
    assert_eq!(bench.host.transfers.len(), 1);
}

#[test]
fn a_reset_forgets_flushes_that_were_to_follow() {
    let mut bench = bench();
    let mut driver = driver(&mut bench, 0);
    request(&bench, &mut driver, 0, 1, 0, 512);
    driver.kick(&mut bench, 0);
    finish(&mut bench, 1, Outcome::Ok);
    // The reset's exit finds the flush to send first; it is in flight, or forgotten, but never left over.
    driver.set_status(&mut bench, 0);
    let in_flight = bench.host.transfers.len();
    finish(&mut bench, in_flight, Outcome::Ok);
    assert_eq!(driver.status(&mut bench), 0);
    driver.bring_up(&mut bench, VERSION_1, &[256]);
    bench.run();
    assert!(bench.host.transfers.is_empty());
}

#[test]
fn a_broken_ring_needs_a_reset_and_gets_one() {
    let mut bench = bench();
    let mut driver = driver(&mut bench, FLUSH);
    driver.break_ring(&bench, 0);
    driver.kick(&mut bench, 0);
    assert_eq!(driver.status(&mut bench) & 64, 64);
    driver.bring_up(&mut bench, VERSION_1 | FLUSH, &[256]);
    request(&bench, &mut driver, 0, 0, 0, 512);
    driver.kick(&mut bench, 0);
    assert_eq!(bench.host.transfers.len(), 1);
}

#[test]
fn a_shared_line_is_up_while_any_function_holds_it() {
    // Devices 3 and 11 share GSI 19.
    let mut bench = Bench::with((0..9).map(|_| disk(SECTORS)).collect(), vec![]);
    bench.enable_x2apic();
    bench.set_ioapic_pin(19, 1 << 15 | 0x49);
    let mut drivers = [3, 11].map(|device| Driver::with_pin(&mut bench, device, VERSION_1 | FLUSH, &[64]));
    for driver in &mut drivers {
        request(&bench, driver, 0, 99, 0, 512);
        driver.kick(&mut bench, 0);
    }
    bench.set_if(true);
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(0x49)]);
    // The first handler reads its ISR status, which lowers its own pin only.
    assert_eq!(bench.mmio_read(drivers[0].mmio() + 0x1000, 1), 1);
    bench.set_if(true);
    bench.then(|_| Exit::MsrWrite { index: 0x80b, value: 0 });
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(0x49)], "the second still holds the line");
    assert_eq!(bench.mmio_read(drivers[1].mmio() + 0x1000, 1), 1);
    bench.set_if(true);
    bench.then(|_| Exit::MsrWrite { index: 0x80b, value: 0 });
    bench.run();
    assert_eq!(bench.taken(), []);
}

#[test]
fn what_lies_outside_memory_is_refused() {
    let mut bench = bench();
    let mut driver = driver(&mut bench, FLUSH);
    bench.store(HEADERS, 8, 0);
    bench.store(HEADERS + 8, 8, 0);
    driver.add(&bench, 0, &[(HEADERS, 16, false), (MEMORY_BYTES - 512, 1024, true), (STATUS, 1, true)]);
    driver.kick(&mut bench, 0);
    assert!(bench.host.transfers.is_empty());
    assert_eq!(bench.load(STATUS, 1), 1);
    assert!(bench.machine.memory().check(Gpa::new(MEMORY_BYTES), 1).is_err());
}

/// The pages written since the last call.
fn dirty(bench: &Bench) -> guestmem::PageSet {
    let mut pages = guestmem::PageSet::new(bench.machine.memory().pages_end()).unwrap();
    bench.machine.memory().harvest(&mut pages);
    pages
}

#[test]
fn what_the_processor_logged_counts_as_written() {
    let mut bench = Bench::new();
    bench.machine.start_tracking().unwrap();
    let log = |bench: &Bench, page: u64| bench.shared.lock().unwrap().written.push(Gpa::new(page * 4096));
    log(&bench, 3);
    bench.exit(Exit::Cpuid { leaf: 0, subleaf: 0 });
    assert!(!dirty(&bench).contains(3), "it is asked for when the log is full, or by whoever wants to know");
    bench.exit(Exit::WriteLogFull);
    assert!(dirty(&bench).contains(3));
    log(&bench, 5);
    let Bench { machine, host, .. } = &mut bench;
    machine.invalidate_all(host);
    bench.run();
    assert!(dirty(&bench).contains(5));
}

/// A disk writes into memory unseen: a page that was sent before the transfer ended must be sent again.
#[test]
fn where_a_read_went_counts_as_written_when_it_ends() {
    let mut bench = bench();
    let mut driver = driver(&mut bench, FLUSH);
    request(&bench, &mut driver, 0, 0, 40, 8192);
    driver.kick(&mut bench, 0);
    bench.machine.start_tracking().unwrap();
    assert!(dirty(&bench).is_empty(), "the transfer is under way");
    finish(&mut bench, 1, Outcome::IoError);
    let written = dirty(&bench);
    assert!(written.contains(DATA / 4096) && written.contains(DATA / 4096 + 1) && !written.contains(DATA / 4096 + 2));
}
