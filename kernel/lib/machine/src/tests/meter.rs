//! What disks and cards may do in a time: counted, not felt.

use super::bench::*;
use super::driver::{BUFFERS, Driver, VERSION_1};
use crate::*;
use switch::Offload;
use vcpu::Exit;
use virtio::blk::Outcome;

const FLUSH: u64 = 1 << 9;
const SECOND_NS: u64 = 1_000_000_000;
const TRANSMIT: usize = 1;

fn limited(limits: IoLimits) -> (Bench, Driver) {
    let mut bench = Bench::with(vec![disk(1000)], vec![]);
    bench.enable_x2apic();
    let driver = Driver::new(&mut bench, 3, VERSION_1 | FLUSH, &[256]);
    bench.machine.set_io_limits(limits, &mut bench.host);
    (bench, driver)
}

fn requests(number: u64) -> IoLimits {
    IoLimits { disk_requests: Some(number), ..IoLimits::default() }
}

/// Offers reads of a page each.
fn offer(bench: &mut Bench, driver: &mut Driver, count: u64) {
    for index in 0..count {
        let (header, status) = (BUFFERS + 16 * index, BUFFERS + 0x8000 + index);
        bench.store(header, 8, 0);
        bench.store(header + 8, 8, 0);
        driver.add(bench, 0, &[(header, 16, false), (BUFFERS + 0x1_0000, 4096, true), (status, 1, true)]);
    }
    driver.kick(bench, 0);
}

/// Lets that much time pass in steps, with every request done at once; how many of each disk were begun.
fn begun_in<const DISKS: usize>(bench: &mut Bench, ns: u64) -> [usize; DISKS] {
    let mut begun = [0; DISKS];
    for _ in 0..100 {
        bench.pass(ns / 100);
        bench.run();
        for (transfer, _) in std::mem::take(&mut bench.host.transfers) {
            begun[transfer.disk] += 1;
            bench.machine.disk_done(transfer.disk, transfer.id, Outcome::Ok, &mut bench.host);
        }
        (0..DISKS).for_each(|disk| bench.machine.disks_settle(disk, &mut bench.host));
    }
    begun
}

#[test]
fn requests_are_spread_over_time_and_the_host_is_armed_for_the_next() {
    let (mut bench, mut driver) = limited(requests(100));
    offer(&mut bench, &mut driver, 60);
    let at_once = bench.host.transfers.len();
    assert_eq!(at_once, 11, "a tenth of a second's, and one that is being earned");
    bench.run();
    assert!(bench.host.armed.last().is_some_and(|&ns| ns > bench.now_ns() && ns <= bench.now_ns() + 10_000_000));
    let [later] = begun_in(&mut bench, SECOND_NS / 5).map(|begun| begun - at_once);
    assert!((19..=21).contains(&later), "{later}");
    assert_eq!(begun_in(&mut bench, SECOND_NS), [60 - at_once - later], "and the rest comes, too");
}

#[test]
fn bytes_count_as_requests_do() {
    let (mut bench, mut driver) = limited(IoLimits { disk_bytes: Some(40_960), ..IoLimits::default() });
    offer(&mut bench, &mut driver, 60);
    let at_once = bench.host.transfers.len();
    assert_eq!(at_once, 2);
    let [later] = begun_in(&mut bench, SECOND_NS).map(|begun| begun - at_once);
    assert!((9..=11).contains(&later), "{later}");
}

#[test]
fn one_a_second_is_one_a_second() {
    let (mut bench, mut driver) = limited(requests(1));
    offer(&mut bench, &mut driver, 30);
    assert_eq!(begun_in(&mut bench, 10 * SECOND_NS), [11]);
}

#[test]
fn many_small_requests_wait_together() {
    let (mut bench, mut driver) = limited(requests(100));
    offer(&mut bench, &mut driver, 20);
    bench.machine.set_io_limits(requests(1_000), &mut bench.host);
    offer(&mut bench, &mut driver, 200);
    bench.run();
    let due_ns = bench.host.armed.last().copied().unwrap_or_default();
    assert!(due_ns >= bench.now_ns() + 1_000_000, "no timer of its own for each: {due_ns}");
}

#[test]
fn disks_take_turns() {
    let mut bench = Bench::with(vec![disk(1000), disk(1000), disk(1000)], vec![]);
    bench.enable_x2apic();
    let mut drivers = [3, 4, 5].map(|device| Driver::new(&mut bench, device, VERSION_1 | FLUSH, &[256]));
    bench.machine.set_io_limits(requests(10), &mut bench.host);
    for driver in &mut drivers {
        offer(&mut bench, driver, 50);
    }
    let begun = begun_in::<3>(&mut bench, 6 * SECOND_NS);
    assert!(begun.iter().all(|&begun| (18..=23).contains(&begun)), "{begun:?}");
}

#[test]
fn a_lifted_limit_lets_all_go_on() {
    let (mut bench, mut driver) = limited(requests(1));
    offer(&mut bench, &mut driver, 30);
    assert_eq!(bench.host.transfers.len(), 1);
    bench.machine.set_io_limits(IoLimits::default(), &mut bench.host);
    bench.run();
    assert_eq!(bench.host.transfers.len(), 30);
}

#[test]
fn who_waits_is_saved_and_goes_on_where_it_is_restored() {
    let (mut bench, mut driver) = limited(requests(1));
    offer(&mut bench, &mut driver, 3);
    begun_in::<1>(&mut bench, 100);
    let saved = bench.save().expect("nothing is under way");
    let mut there = bench.restore(&saved, SECOND_NS, 0).expect("it is the same");
    there.run();
    assert_eq!(there.host.transfers.len(), 2);
}

#[test]
fn a_reset_driver_waits_for_nothing() {
    let (mut bench, mut driver) = limited(requests(1));
    offer(&mut bench, &mut driver, 3);
    begun_in::<1>(&mut bench, 100);
    driver.bring_up(&mut bench, VERSION_1 | FLUSH, &[256]);
    assert_eq!(begun_in(&mut bench, 5 * SECOND_NS), [0], "what it had offered is gone");
    offer(&mut bench, &mut driver, 1);
    assert_eq!(begun_in(&mut bench, SECOND_NS), [1]);
}

#[test]
fn a_pulled_disk_fails_what_waits() {
    let (mut bench, mut driver) = limited(requests(1));
    offer(&mut bench, &mut driver, 3);
    begun_in::<1>(&mut bench, 100);
    bench.machine.pull(Part::Disk(0), &mut bench.host);
    assert_eq!(driver.used(&bench, 0).len(), 3);
    assert_eq!(begun_in(&mut bench, 5 * SECOND_NS), [0]);
}

/// Sends frames of 1000 bytes and more.
fn send(bench: &mut Bench, driver: &mut Driver, count: u64) {
    for _ in 0..count {
        driver.add(bench, TRANSMIT, &[(BUFFERS, 12 + 1000, false)]);
    }
    driver.kick(bench, TRANSMIT as u32);
}

#[test]
fn cards_are_limited_apart_from_disks() {
    let mut bench = Bench::with(vec![disk(1000)], vec![nic()]);
    bench.enable_x2apic();
    let mut disk = Driver::new(&mut bench, 3, VERSION_1 | FLUSH, &[256]);
    let mut card = Driver::new(&mut bench, 4, VERSION_1, &[64, 256, 64]);
    bench.machine.set_io_limits(
        IoLimits { sent_bytes: Some(100_000), disk_requests: Some(1), ..IoLimits::default() },
        &mut bench.host,
    );
    offer(&mut bench, &mut disk, 2);
    send(&mut bench, &mut card, 60);
    assert_eq!(bench.host.frames.len(), 11, "a disk that waits holds no card");
    begun_in::<1>(&mut bench, SECOND_NS / 5);
    let sent = bench.host.frames.len();
    assert!((30..=32).contains(&sent), "{sent}");
    begun_in::<1>(&mut bench, SECOND_NS);
    assert_eq!(bench.host.frames.len(), 60);
    assert_eq!(card.used(&bench, TRANSMIT).len(), 60);
}

#[test]
fn what_arrives_beyond_the_limit_is_lost_and_the_rest_arrives() {
    let mut bench = Bench::with(vec![], vec![nic(), nic()]);
    bench.enable_x2apic();
    let mut cards = [3, 4].map(|device| Driver::new(&mut bench, device, VERSION_1, &[256, 64, 64]));
    let limits = IoLimits { received_bytes: Some(100_000), ..IoLimits::default() };
    bench.machine.set_io_limits(limits, &mut bench.host);
    let frame = [[2, 0, 0, 0, 0, 1].as_slice(), &[7; 994]].concat();
    for card in &mut cards {
        for index in 0..100 {
            card.add(&bench, 0, &[(BUFFERS + 2048 * index, 2048, true)]);
        }
    }
    let arrive = |bench: &mut Bench, count: usize| {
        let now = bench.host.now();
        let frames = (0..count).map(|index| bench.machine.frame(index % 2, &Offload::default(), &frame, now));
        frames.filter(Result::is_ok).count()
    };
    assert_eq!(arrive(&mut bench, 60), 11, "a tenth of a second's, of both cards, and one that is being earned");
    assert_eq!(arrive(&mut bench, 10), 0, "nothing waits, and nothing is owed for what is lost");
    bench.pass(SECOND_NS / 5);
    let later = arrive(&mut bench, 60);
    assert!((10..=12).contains(&later), "{later}");
    bench.machine.set_io_limits(IoLimits::default(), &mut bench.host);
    assert_eq!(arrive(&mut bench, 60), 60, "a lifted limit");
}

#[test]
fn what_waited_interrupts_the_guest_before_it_runs_on() {
    let mut bench = Bench::with(vec![], vec![nic()]);
    bench.enable_x2apic();
    let mut card = Driver::new(&mut bench, 3, VERSION_1, &[64, 256, 64]);
    bench.machine.set_io_limits(IoLimits { sent_bytes: Some(100_000), ..IoLimits::default() }, &mut bench.host);
    send(&mut bench, &mut card, 60);
    bench.run();
    let sent = bench.host.frames.len();
    bench.pass(SECOND_NS);
    let machine = bench.machine.clone();
    bench.then(move |_| {
        assert!(!machine.has_mail(0), "it was taken before the entry");
        Exit::HostInterrupt
    });
    bench.run();
    assert!(bench.host.frames.len() > sent, "more was sent just before");
}
