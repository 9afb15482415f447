//! Disks and cards that come and go while the guest runs.

use super::bench::*;
use super::driver::{BUFFERS, Driver, VERSION_1};
use crate::*;
use switch::Offload;
use virtio::blk::Outcome;

const ARRIVED: u16 = 0x630;
const LEAVING: u16 = 0x634;
const VANISHED: u16 = 0x638;
const EJECT: u16 = 0x63c;
const EVENTS: u16 = 0x620;
const FLUSH: u64 = 1 << 9;
/// With one disk and nothing else the balloon is at 4.
const NEXT: u32 = 5;
const VIRTIO: u32 = 0x1af4;

fn bench() -> Bench {
    let mut bench = Bench::with(vec![disk(1000)], vec![]);
    bench.enable_x2apic();
    bench
}

fn vendor(bench: &mut Bench, device: u32) -> u32 {
    bench.out(0xcf8, 4, 1 << 31 | device << 11);
    bench.input(0xcfc, 4) as u32
}

/// Places the BARs of a device that came and drives it.
fn drive(bench: &mut Bench, device: u32, features: u64, sizes: &[u16]) -> Driver {
    for (register, base) in [(0x10, 0xc000 + 0x20 * (device - 1)), (0x14, 0xfe00_0000 + 0x1_0000 * (device - 1))] {
        bench.out(0xcf8, 4, 1 << 31 | device << 11 | register);
        bench.out(0xcfc, 4, base);
    }
    Driver::new(bench, device, VERSION_1 | features, sizes)
}

fn read_sector(bench: &Bench, driver: &mut Driver, index: u64) -> u16 {
    transfer_sector(bench, driver, index, 0)
}

/// Offers a transfer of a sector: 0 reads, 1 writes.
fn transfer_sector(bench: &Bench, driver: &mut Driver, index: u64, kind: u64) -> u16 {
    let (header, status) = (BUFFERS + 16 * index, BUFFERS + 0x8000 + index);
    bench.store(header, 8, kind);
    bench.store(header + 8, 8, index);
    bench.store(status, 1, 0x77);
    driver.add(bench, 0, &[(header, 16, false), (BUFFERS + 0x1_0000, 512, kind == 0), (status, 1, true)])
}

fn end_transfers(bench: &mut Bench, outcome: Outcome) {
    for (transfer, _) in std::mem::take(&mut bench.host.transfers) {
        bench.machine.disk_done(transfer.disk, transfer.id, outcome, &mut bench.host);
        bench.machine.disks_settle(transfer.disk, &mut bench.host);
    }
}

#[test]
fn a_disk_comes_works_and_goes() {
    let mut bench = bench();
    assert_eq!(vendor(&mut bench, NEXT), u32::MAX);
    bench.out(EVENTS + 2, 2, 2);
    assert_eq!(bench.machine.plug_disk(disk(500), &mut bench.host), Ok(1));
    assert_eq!(bench.input(EVENTS, 2) & 0xffff, 2, "the event is there");
    bench.out(EVENTS, 2, 2);
    assert_eq!(bench.input(ARRIVED, 4) as u32, 1 << NEXT);
    assert_eq!(vendor(&mut bench, NEXT) & 0xffff, VIRTIO);
    let mut driver = drive(&mut bench, NEXT, FLUSH, &[256]);
    let head = read_sector(&bench, &mut driver, 0);
    driver.kick(&mut bench, 0);
    assert_eq!(bench.host.transfers[0].0.disk, 1);
    end_transfers(&mut bench, Outcome::Ok);
    assert_eq!(driver.used(&bench, 0), [(head, 513)]);

    let part = Part::Disk(1);
    bench.out(EJECT, 4, 1 << NEXT);
    assert!(!bench.machine.is_leaving(part), "nobody asked");
    bench.machine.ask_to_leave(part, &mut bench.host);
    assert_eq!(bench.input(LEAVING, 4) as u32, 1 << NEXT);
    assert_eq!(vendor(&mut bench, NEXT) & 0xffff, VIRTIO, "it is the guest's until it lets go");
    driver.set_status(&mut bench, 0);
    bench.out(EJECT, 4, 1 << NEXT);
    assert!(bench.machine.has_left(part));
    assert_eq!(vendor(&mut bench, NEXT), u32::MAX);
    assert_eq!(bench.input(0xc000 + 0x20 * (NEXT as u16 - 1), 4) as u32, u32::MAX);
    assert_eq!(bench.mmio_read(driver.mmio() + 20, 4), u32::MAX);
    assert_eq!(bench.input(VANISHED, 4) as u32, 0, "the guest knows");
    assert_eq!(bench.machine.plug_disk(disk(500), &mut bench.host), Ok(2), "numbers are not used again");
    assert_eq!(vendor(&mut bench, NEXT) & 0xffff, VIRTIO, "places are");
}

#[test]
fn only_disks_and_cards_can_leave() {
    let mut bench = bench();
    bench.machine.ask_to_leave(Part::Disk(0), &mut bench.host);
    bench.out(EJECT, 4, u32::MAX);
    let there: Vec<u32> = (0..32).filter(|&device| vendor(&mut bench, device) != u32::MAX).collect();
    assert_eq!(there, [0, 1, 2, 4]);
    assert_eq!(bench.machine.board.lock().hotplug_slots(), 0x7fff_ffe8);
}

#[test]
fn one_that_may_stay_stays() {
    let mut bench = bench();
    bench.machine.ask_to_leave(Part::Disk(0), &mut bench.host);
    bench.machine.let_stay(Part::Disk(0), &mut bench.host);
    bench.out(EJECT, 4, 1 << 3);
    assert_eq!((bench.input(LEAVING, 4) as u32, vendor(&mut bench, 3) & 0xffff), (0, VIRTIO));
}

#[test]
fn a_pulled_disk_fails_its_requests_and_then_is_gone() {
    let mut bench = bench();
    // A driver that knows no flush, so that a write is two transfers.
    let mut driver = Driver::new(&mut bench, 3, VERSION_1, &[256]);
    let heads: Vec<u16> = (0..3).map(|index| transfer_sector(&bench, &mut driver, index, index / 2)).collect();
    driver.kick(&mut bench, 0);
    assert_eq!(bench.host.transfers.len(), 3);
    bench.machine.pull(Part::Disk(0), &mut bench.host);
    assert!(bench.machine.is_leaving(Part::Disk(0)) && !bench.machine.has_left(Part::Disk(0)));
    read_sector(&bench, &mut driver, 3);
    driver.kick(&mut bench, 0);
    assert_eq!(bench.host.transfers.len(), 3, "nothing new is taken");
    assert!(bench.save().is_err(), "not on its way out");
    let write = bench.host.transfers.remove(2).0;
    bench.machine.disk_done(0, write.id, Outcome::Ok, &mut bench.host);
    bench.machine.disks_settle(0, &mut bench.host);
    end_transfers(&mut bench, Outcome::IoError);
    let used: Vec<u16> = driver.used(&bench, 0).iter().map(|(head, _)| *head).collect();
    assert_eq!(used, [heads[2], heads[0], heads[1]]);
    let statuses: Vec<u64> = (0..4).map(|index| bench.load(BUFFERS + 0x8000 + index, 1)).collect();
    assert_eq!(statuses, [1, 1, 1, 0x77], "a write without its flush was not done");
    assert!(bench.machine.has_left(Part::Disk(0)));
    assert_eq!((vendor(&mut bench, 3), bench.input(VANISHED, 4) as u32), (u32::MAX, 1));
    assert!(bench.save().is_ok());
}

#[test]
fn a_disk_that_is_cut_off_fails_all_until_its_guest_lets_go() {
    let mut bench = bench();
    let mut driver = Driver::new(&mut bench, 3, VERSION_1 | FLUSH, &[256]);
    let begun = read_sector(&bench, &mut driver, 0);
    driver.kick(&mut bench, 0);
    let waiting = read_sector(&bench, &mut driver, 1);
    bench.machine.cut_off(0, &mut bench.host);
    assert_eq!(driver.used(&bench, 0), [(waiting, 1)], "what waited has failed");
    assert_eq!(bench.input(LEAVING, 4) as u32, 1 << 3, "the guest is asked");
    assert!(!bench.machine.is_leaving(Part::Disk(0)) && !bench.machine.is_disk_idle(0));
    end_transfers(&mut bench, Outcome::Ok);
    assert_eq!(driver.used(&bench, 0), [(begun, 513)], "what was begun ends as it ends");
    assert!(bench.machine.is_disk_idle(0) && bench.save().is_err(), "the host is done, the guest is not");
    for index in 2..6 {
        let head = transfer_sector(&bench, &mut driver, index, index % 2);
        driver.kick(&mut bench, 0);
        assert_eq!((driver.used(&bench, 0), bench.load(BUFFERS + 0x8000 + index, 1)), (vec![(head, 1)], 1));
    }
    assert!(bench.host.transfers.is_empty(), "nothing new reaches the host's disk");
    assert_eq!(vendor(&mut bench, 3) & 0xffff, VIRTIO, "it has not vanished");
    driver.set_status(&mut bench, 0);
    bench.out(EJECT, 4, 1 << 3);
    assert!(bench.machine.has_left(Part::Disk(0)) && bench.machine.is_disk_idle(0));
    assert_eq!((vendor(&mut bench, 3), bench.input(VANISHED, 4) as u32), (u32::MAX, 0));
    assert!(bench.save().is_ok());
}

#[test]
fn a_guest_that_keeps_a_disk_that_was_cut_off_loses_it() {
    let mut bench = bench();
    bench.machine.cut_off(0, &mut bench.host);
    bench.machine.pull(Part::Disk(0), &mut bench.host);
    assert!(bench.machine.has_left(Part::Disk(0)));
    assert_eq!((vendor(&mut bench, 3), bench.input(VANISHED, 4) as u32), (u32::MAX, 1));
    assert_eq!(bench.input(LEAVING, 4) as u32, 0);
}

#[test]
fn what_waits_when_a_disk_is_pulled_fails_at_once() {
    let mut bench = bench();
    let mut driver = Driver::new(&mut bench, 3, VERSION_1 | FLUSH, &[256]);
    let head = read_sector(&bench, &mut driver, 0);
    bench.machine.pull(Part::Disk(0), &mut bench.host);
    assert_eq!(driver.used(&bench, 0), [(head, 1)]);
    assert_eq!(bench.load(BUFFERS + 0x8000, 1), 1);
    assert!(bench.machine.has_left(Part::Disk(0)));
}

#[test]
fn a_guest_that_lets_go_too_early_does_not_get_its_memory_too_early() {
    let mut bench = bench();
    let mut driver = Driver::new(&mut bench, 3, VERSION_1 | FLUSH, &[256]);
    read_sector(&bench, &mut driver, 0);
    driver.kick(&mut bench, 0);
    bench.machine.ask_to_leave(Part::Disk(0), &mut bench.host);
    bench.out(EJECT, 4, 1 << 3);
    assert!(!bench.machine.has_left(Part::Disk(0)), "the host still writes there");
    end_transfers(&mut bench, Outcome::Ok);
    assert!(bench.machine.has_left(Part::Disk(0)));
}

#[test]
fn a_card_comes_and_goes() {
    let mut bench = bench();
    assert_eq!(bench.machine.plug_nic(nic(), &mut bench.host), Ok(0));
    let mut driver = drive(&mut bench, NEXT, 0, &[256, 256]);
    driver.add(&bench, 0, &[(BUFFERS, 2048, true)]);
    let frame = [[2, 0, 0, 0, 0, 1].as_slice(), &[7; 60]].concat();
    bench.machine.frame(0, &Offload::default(), &frame, NOW).unwrap();
    bench.machine.frames_settle(0, &mut bench.host);
    assert_eq!(driver.used(&bench, 0).len(), 1);
    bench.machine.pull(Part::Nic(0), &mut bench.host);
    assert!(bench.machine.has_left(Part::Nic(0)));
    assert_eq!(bench.machine.frame(0, &Offload::default(), &frame, NOW), Err(FrameLost));
    bench.machine.frames_settle(0, &mut bench.host);
    assert_eq!(bench.machine.nic_offloads(0), switch::Offloads::default());
    bench.machine.announce(&mut bench.host);
    assert_eq!(vendor(&mut bench, NEXT), u32::MAX);
}

/// Whether a disk's pin still interrupts once its request is done, and the disk was pulled or not.
fn pin_interrupts(pull: bool) -> bool {
    let mut bench = bench();
    let mut driver = Driver::with_pin(&mut bench, 3, VERSION_1 | FLUSH, &[256]);
    read_sector(&bench, &mut driver, 0);
    driver.kick(&mut bench, 0);
    end_transfers(&mut bench, Outcome::Ok);
    if pull {
        bench.machine.pull(Part::Disk(0), &mut bench.host);
    }
    bench.set_ioapic_pin(19, 0x8034);
    bench.set_if(true);
    bench.run();
    !bench.taken().is_empty()
}

#[test]
fn a_pin_falls_with_its_device() {
    assert!(pin_interrupts(false));
    assert!(!pin_interrupts(true));
}

#[test]
fn the_bus_fills_up() {
    let mut bench = bench();
    for number in 1..=26 {
        assert_eq!(bench.machine.plug_disk(disk(1), &mut bench.host), Ok(number));
    }
    assert_eq!(bench.machine.plug_disk(disk(1), &mut bench.host), Err(BusFull));
    assert_eq!(bench.machine.plug_nic(nic(), &mut bench.host), Err(BusFull));
    bench.machine.pull(Part::Disk(9), &mut bench.host);
    assert_eq!(bench.machine.plug_nic(nic(), &mut bench.host), Ok(0));
}

/// A target is made of the disks and cards that are there, and finds each where it was.
#[test]
fn what_came_is_where_it_was_after_a_restore() {
    let mut bench = bench();
    bench.machine.plug_disk(disk(700), &mut bench.host).unwrap();
    bench.machine.plug_nic(nic(), &mut bench.host).unwrap();
    bench.machine.pull(Part::Disk(0), &mut bench.host);
    let mut driver = drive(&mut bench, NEXT, FLUSH, &[256]);
    bench.machine.ask_to_leave(Part::Disk(1), &mut bench.host);
    let saved = bench.save().unwrap();
    let now_ns = bench.now_ns();
    let config = |memory| MachineConfig {
        id: 2,
        vcpus: 1,
        memory,
        profile: CpuProfile::new(amd, 1, TSC_KHZ),
        disks: vec![disk(700)],
        nics: vec![nic()],
        debug: DebugPorts::default(),
        firmware: None,
        wall_unix_ns: WALL_UNIX_NS,
    };
    let mut copy = bench.restore_with(&saved, now_ns, 0, config).unwrap();
    assert!(copy.save().unwrap() == saved, "nothing changed on the way");
    let there: Vec<u32> = (0..32).filter(|&device| vendor(&mut copy, device) != u32::MAX).collect();
    assert_eq!(there, [0, 1, 2, 4, 5, 6]);
    let head = read_sector(&copy, &mut driver, 0);
    driver.kick(&mut copy, 0);
    assert_eq!(copy.host.transfers[0].0.disk, 0, "numbers are the target's own");
    end_transfers(&mut copy, Outcome::Ok);
    assert_eq!(driver.used(&copy, 0), [(head, 513)]);
    assert_eq!((copy.input(LEAVING, 4) as u32, copy.input(VANISHED, 4) as u32), (1 << NEXT, 1));
    copy.out(EJECT, 4, 1 << NEXT);
    assert!(copy.machine.has_left(Part::Disk(0)), "what was asked is still asked");
}
