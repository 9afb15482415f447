//! What a guest gives up is handed to the host in large frames, once, and never while a device works in it.

use super::bench::*;
use super::driver::{Driver, VERSION_1};
use crate::*;
use addr::{Gpa, LARGE_PAGE_BYTES};
use vcpu::{Access, Exit};

/// Where lists of page numbers are written: outside the frame that is given up.
const NUMBERS: u64 = 0x4_0000;
/// The large frame that is given up.
const FRAME: u64 = LARGE_PAGE_BYTES;
const INFLATE: u32 = 0;
const DEFLATE: u32 = 1;
const REPORT: u32 = 3;

/// A machine, and a driver of its balloon.
fn driven(bench: &mut Bench, device: u32) -> Driver {
    Driver::new(bench, device, VERSION_1 | 1 << 1 | 1 << 2 | 1 << 5, &[8, 8, 8, 8])
}

/// Sends a list of page numbers.
fn send(bench: &mut Bench, driver: &mut Driver, queue: u32, pages: impl Iterator<Item = u64>) -> u16 {
    let mut bytes = 0;
    for number in pages {
        bench.store(NUMBERS + bytes, 4, number);
        bytes += 4;
    }
    let head = driver.add(bench, queue as usize, &[(NUMBERS, bytes as u32, false)]);
    driver.kick(bench, queue);
    head
}

/// The pages of the frame.
fn pages() -> std::ops::Range<u64> {
    FRAME / 4096..2 * FRAME / 4096
}

/// What the host is handed at one call.
fn released(bench: &mut Bench) -> Vec<u64> {
    let mut frames = Vec::new();
    let count = bench.machine.clone().release(8, &mut bench.host, &mut |gpa| frames.push(gpa.as_u64()));
    assert_eq!(count, frames.len());
    frames
}

#[test]
fn a_frame_is_handed_over_when_its_last_page_is_given_up() {
    let mut bench = Bench::new();
    let mut driver = driven(&mut bench, 3);
    let first = send(&mut bench, &mut driver, INFLATE, pages().skip(1));
    assert_eq!(std::mem::take(&mut bench.host.given_up), 1);
    assert_eq!(released(&mut bench), []);
    assert_eq!(driver.used(&bench, 0), [(first, 0)], "nothing to wait for");
    // Some of it again, no memory, and the page that was missing.
    let last = send(&mut bench, &mut driver, INFLATE, [600, 600, 1 << 20, u64::from(u32::MAX), 512].into_iter());
    assert_eq!(released(&mut bench), [FRAME]);
    assert_eq!(driver.used(&bench, 0), [], "the host is not done");
    assert_eq!(bench.machine.busy(), Some(Busy::Balloon));
    assert_eq!(released(&mut bench), []);
    assert_eq!(driver.used(&bench, 0), [(last, 0)]);
    assert_eq!(bench.machine.busy(), None);
}

#[test]
fn a_page_that_was_taken_back_keeps_its_frame() {
    let mut bench = Bench::new();
    let mut driver = driven(&mut bench, 3);
    send(&mut bench, &mut driver, INFLATE, pages());
    send(&mut bench, &mut driver, DEFLATE, [700, 700, 5].into_iter());
    assert_eq!(released(&mut bench), []);
    send(&mut bench, &mut driver, INFLATE, [700].into_iter());
    assert_eq!(released(&mut bench), [FRAME]);
}

#[test]
fn reported_memory_is_handed_over_as_far_as_it_fills_frames() {
    let mut bench = Bench::new();
    let mut driver = driven(&mut bench, 3);
    for (start, bytes) in [(FRAME + 4096, FRAME as u32), (FRAME, 4096), (u64::MAX - 4095, u32::MAX)] {
        driver.add(&bench, REPORT as usize, &[(start, bytes, true)]);
    }
    driver.kick(&mut bench, REPORT);
    assert_eq!(released(&mut bench), []);
    driver.add(&bench, REPORT as usize, &[(FRAME - 4096, u32::MAX, true)]);
    driver.kick(&mut bench, REPORT);
    assert_eq!(released(&mut bench), [FRAME]);
    assert_eq!(released(&mut bench), []);
    assert_eq!(driver.used(&bench, REPORT as usize).len(), 4);
}

#[test]
fn a_frame_in_which_a_disk_works_stays() {
    let mut bench = Bench::with(vec![disk(64)], vec![]);
    let mut blk = Driver::new(&mut bench, 3, VERSION_1, &[8]);
    let mut driver = driven(&mut bench, 4);
    bench.store(NUMBERS, 8, 0);
    bench.store(NUMBERS + 8, 8, 0);
    blk.add(&bench, 0, &[(NUMBERS, 16, false), (2 * FRAME - 512, 512, true), (NUMBERS + 16, 1, true)]);
    blk.kick(&mut bench, 0);
    assert_eq!(bench.host.transfers.len(), 1);
    for round in 0..2 {
        driver.add(&bench, REPORT as usize, &[(FRAME, FRAME as u32, true)]);
        driver.kick(&mut bench, REPORT);
        assert_eq!(released(&mut bench), if round == 0 { vec![] } else { vec![FRAME] });
        let (id, machine) = (bench.host.transfers[0].0.id, bench.machine.clone());
        if round == 0 {
            machine.disk_done(0, id, virtio::blk::Outcome::Ok, &mut bench.host);
        }
    }
}

#[test]
fn a_reset_waits_for_the_host_and_forgets_what_was_given_up() {
    let mut bench = Bench::new();
    let mut driver = driven(&mut bench, 3);
    send(&mut bench, &mut driver, INFLATE, pages());
    assert_eq!(released(&mut bench), [FRAME]);
    driver.set_status(&mut bench, 0);
    assert_ne!(driver.status(&mut bench), 0, "the host may still take that memory");
    assert_eq!(released(&mut bench), []);
    assert_eq!(driver.status(&mut bench), 0);
    let mut driver = driven(&mut bench, 3);
    send(&mut bench, &mut driver, INFLATE, pages().skip(1));
    assert_eq!(released(&mut bench), [], "a new driver starts from nothing");
}

#[test]
fn on_the_way_elsewhere_nothing_is_taken() {
    let mut bench = Bench::new();
    let mut driver = driven(&mut bench, 3);
    driver.add(&bench, REPORT as usize, &[(FRAME, FRAME as u32, true)]);
    driver.kick(&mut bench, REPORT);
    bench.machine.clone().release_nothing(&mut bench.host);
    assert_eq!(driver.used(&bench, REPORT as usize).len(), 1);
    assert_eq!(released(&mut bench), []);
}

#[test]
fn what_is_in_the_balloon_goes_along_and_is_ready_there() {
    let mut bench = Bench::new();
    let mut driver = driven(&mut bench, 3);
    bench.machine.clone().set_balloon(3 << 20, &mut bench.host);
    send(&mut bench, &mut driver, INFLATE, pages());
    assert_eq!(bench.save(), Err(Busy::Balloon));
    assert_eq!((released(&mut bench), released(&mut bench)), (vec![FRAME], vec![]));
    let saved = bench.save().unwrap();
    let mut copy = bench.restore(&saved, 1000, 0).unwrap();
    assert_eq!(released(&mut copy), [FRAME]);
    assert_eq!(released(&mut copy), []);
    let state = copy.machine.clone().balloon(&mut copy.host);
    assert_eq!((state.has_driver, state.target_bytes), (true, 3 << 20));
    assert!(copy.save().is_ok());
}

#[test]
fn a_touch_of_what_was_given_up_is_the_hosts_to_serve() {
    let mut bench = Bench::new();
    let touch = Exit::NestedFault { gpa: Gpa::new(FRAME + 5), access: Access::Fetch, page_walk: true };
    let rip = bench.thread.rip();
    bench.host.has_memory = true;
    assert_eq!(bench.exit(touch), Pause::Interrupted);
    assert_eq!((bench.host.backed.as_slice(), bench.thread.rip()), (&[Gpa::new(FRAME + 5)][..], rip));
    bench.host.has_memory = false;
    match bench.exit(touch) {
        Pause::Idle(Some(until_ns)) => assert!(until_ns > bench.now_ns(), "it looks again by itself"),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.thread.rip(), rip);
}
