//! Disks on a controller that tests play.

mod device;

use super::controller::{ABORT_NS, TRANSFER_NS};
use super::*;
use crate::virtio::tests::TestHal;
use addr::Hpa;
use block::{Disk, Health, HostRun, IoError, Op, SubmitError, Transfer};
use device::{Device, TestPort};
use std::cell::Cell;
use std::sync::MutexGuard;

type TestDisk = Namespace<TestHal, TestPort>;

/// Starts the driver on a controller; its clock moves by a millisecond each time that it is read.
fn started(device: Device) -> (Result<Vec<TestDisk>, Fault>, TestPort) {
    let port = TestPort(Arc::new(std::sync::Mutex::new(device)));
    let clock = Cell::new(0);
    let now_ns = || {
        clock.set(clock.get() + 1_000_000);
        clock.get()
    };
    (start(port.clone(), "NVMe", true, &now_ns), port)
}

fn disk(device: Device) -> (TestDisk, TestPort) {
    let (disks, port) = started(device);
    (disks.unwrap().remove(0), port)
}

fn lock(port: &TestPort) -> MutexGuard<'_, Device> {
    port.0.lock().unwrap()
}

/// Memory of whole pages, at a page boundary.
struct Buffer(DmaMemory<TestHal>);

impl Buffer {
    fn new(bytes: usize) -> Self {
        let mut memory = DmaMemory::new(bytes).unwrap();
        (0..bytes).for_each(|index| memory.store(index, (index % 251) as u8));
        Self(memory)
    }

    fn run(&self, offset: usize, bytes: u32) -> HostRun {
        HostRun { start: Hpa::new(self.0.physical(offset)), bytes }
    }

    fn bytes(&self, runs: &[HostRun]) -> Vec<u8> {
        runs.iter()
            .flat_map(|run| (0..u64::from(run.bytes)).map(|at| crate::virtio::tests::peek(run.start.as_u64() + at)))
            .collect()
    }
}

fn data(id: u64, op: Op, sector: u64, runs: &[HostRun]) -> Transfer<'_> {
    Transfer { id, op, sector, sectors: runs.iter().map(|run| run.bytes).sum::<u32>() / 512, runs }
}

/// Does a transfer and gives how it ended.
fn carry_out(disk: &mut TestDisk, transfer: &Transfer<'_>) -> block::Outcome {
    disk.submit(transfer).unwrap();
    disk.kick();
    let (id, outcome) = disk.completed().unwrap();
    assert_eq!(id, transfer.id);
    outcome
}

fn flush(id: u64) -> Transfer<'static> {
    Transfer { id, op: Op::Flush, sector: 0, sectors: 0, runs: &[] }
}

#[test]
fn data_comes_back_by_whatever_describes_it() {
    for (sgl, block_power) in [(0, 9), (0, 12), (1, 9), (1, 12), (2, 9)] {
        let disk_bytes = vec![0; 4096 << block_power];
        let (mut disk, _) = disk(Device { sgl, block_power, disk: disk_bytes, ..Device::default() });
        let (from, to) = (Buffer::new(1 << 20), Buffer::new(1 << 20));
        // In pages, from within a page, long, in one block of odd pieces.
        let shapes: [&[(usize, u32)]; 5] = [
            &[(0, 4096)],
            &[(0x800, 0x800), (0x3000, 0x1000), (0x8000, 0x800)],
            &[(0x200, 0x8_0000)],
            &[(0x1001, 1), (0x2003, 4091), (0x5000, 4)],
            &[(0x1004, 0x1000)],
        ];
        for (sector, shape) in (0..).step_by(512).zip(shapes) {
            let runs = |buffer: &Buffer| shape.iter().map(|&(at, bytes)| buffer.run(at, bytes)).collect::<Vec<_>>();
            let (written, read) = (runs(&from), runs(&to));
            // A block at a time where blocks are small and the runs are odd.
            if block_power == 9 && shape[0].0 == 0x1001 && sgl != 1 {
                assert_eq!(disk.submit(&data(1, Op::Write, sector, &written)), Err(SubmitError::Refused));
                continue;
            }
            assert_eq!(carry_out(&mut disk, &data(1, Op::Write, sector, &written)), Ok(()), "{shape:?}");
            assert_eq!(carry_out(&mut disk, &data(2, Op::Read, sector, &read)), Ok(()), "{shape:?}");
            assert_eq!(to.bytes(&read), from.bytes(&written), "{shape:?} sgl {sgl}");
        }
        assert!(disk.with_controller(|controller| controller.is_idle()));
    }
}

#[test]
fn a_read_fills_odd_pieces_and_nothing_else() {
    let (mut disk, port) = disk(Device::default());
    lock(&port).disk[..512].fill(0xab);
    let to = Buffer::new(8192);
    let runs = [to.run(3, 100), to.run(0x1101, 412)];
    assert_eq!(carry_out(&mut disk, &data(1, Op::Read, 0, &runs)), Ok(()));
    assert!(to.bytes(&runs).iter().all(|byte| *byte == 0xab));
    let around = [to.run(0, 3), to.run(103, 2), to.run(0x1101 + 412, 2)];
    assert!(to.bytes(&around).iter().all(|byte| *byte != 0xab));
}

#[test]
fn zeroes_discards_and_flushes() {
    let (mut disk, port) = disk(Device::default());
    lock(&port).disk.fill(1);
    for (op, byte) in [(Op::WriteZeroes, 0), (Op::Discard, 0xdd)] {
        let transfer = Transfer { id: 5, op, sector: 8, sectors: 16, runs: &[] };
        assert_eq!(carry_out(&mut disk, &transfer), Ok(()));
        let device = lock(&port);
        assert!(device.disk[8 * 512..24 * 512].iter().all(|found| *found == byte));
        assert_eq!((device.disk[8 * 512 - 1], device.disk[24 * 512]), (1, 1));
    }
    assert_eq!(carry_out(&mut disk, &flush(6)), Ok(()));
    let last = *lock(&port).seen.last().unwrap();
    assert_eq!((last[0] & 0xff, last[1]), (0, 1));
    assert!(disk.with_controller(|controller| controller.is_idle()));
}

#[test]
fn writes_go_through_the_cache_where_that_is_asked_for() {
    let (mut disk, port) = disk(Device::default());
    assert!(disk.geometry().flush && disk.geometry().write_through);
    let from = Buffer::new(4096);
    let runs = [from.run(0, 4096)];
    for (op, access) in [(Op::Write, 0), (Op::WriteThrough, 1 << 30)] {
        lock(&port).disk.fill(0);
        assert_eq!(carry_out(&mut disk, &data(7, op, 16, &runs)), Ok(()));
        let device = lock(&port);
        let last = device.seen.last().unwrap();
        assert_eq!((last[0] & 0xff, last[12]), (1, 7 | access), "opcode; last block and force unit access");
        assert_eq!(device.disk[16 * 512..24 * 512], from.bytes(&runs));
    }
}

#[test]
fn each_active_namespace_is_a_disk() {
    let (disks, _) = started(Device { namespaces: vec![2, 7], granted: 3, ..Device::default() });
    let names: Vec<_> = disks.unwrap().iter().map(|disk| disk.geometry().name.clone()).collect();
    assert_eq!(names, ["NVMe", "NVMe namespace 7"]);
    // Too few queues for both.
    let (disks, _) = started(Device { namespaces: vec![2, 7], granted: 1, ..Device::default() });
    assert_eq!(disks.unwrap().len(), 1);
    // A controller without a list is asked for each number.
    let (disks, _) = started(Device { namespaces: vec![], ..Device::default() });
    assert_eq!(disks.unwrap().len(), 0);
}

#[test]
fn limits_are_the_controllers() {
    let (disk, _) = disk(Device { transfer_power: 3, ..Device::default() });
    let geometry = disk.geometry();
    assert_eq!((geometry.max_transfer_bytes, geometry.max_write_zeroes_sectors), (32 << 10, 64));
    assert_eq!((geometry.sectors, &*geometry.serial, geometry.flush), (4096, "S123", true));
    assert_eq!((geometry.run_alignment_bytes, geometry.run_boundary_bytes), (4, 4096));
}

#[test]
fn controllers_that_do_not_start_are_given_up() {
    let dead = |device: Device| started(device).0.map(|_| ()).unwrap_err();
    assert_eq!(dead(Device { is_gone: true, ..Device::default() }), Fault::Gone);
    assert_eq!(dead(Device { status: 1, stops: false, ..Device::default() }), Fault::Stuck);
    assert_eq!(dead(Device { is_mute: true, ..Device::default() }), Fault::Stuck);
    assert!(matches!(dead(Device { capabilities: 0, ..Device::default() }), Fault::Unusable(_)));
    let strides = Device { capabilities: 63 | 2 << 24 | 1 << 37 | 15 << 32, ..Device::default() };
    assert!(matches!(dead(strides), Fault::Unusable(_)));
}

#[test]
fn a_full_queue_has_room_after_a_completion() {
    let (mut disk, port) = disk(Device { holds: true, ..Device::default() });
    let depth = u64::from(disk.geometry().queue_depth);
    for round in 0..5 {
        (0..depth).for_each(|id| disk.submit(&flush(round * 1000 + id)).unwrap());
        assert_eq!(disk.submit(&flush(9)), Err(SubmitError::Full));
        disk.kick();
        lock(&port).release();
        let mut ended: Vec<_> = core::iter::from_fn(|| disk.completed()).collect();
        ended.sort_by_key(|(id, _)| *id);
        assert_eq!(ended, (0..depth).map(|id| (round * 1000 + id, Ok(()))).collect::<Vec<_>>());
    }
}

#[test]
fn pages_run_out_and_come_back() {
    let (mut disk, port) = disk(Device { holds: true, ..Device::default() });
    let buffer = Buffer::new(1 << 16);
    let runs = [buffer.run(0, 1 << 16)];
    let taken = (0..).take_while(|&id| disk.submit(&data(id, Op::Read, 0, &runs)).is_ok()).count();
    assert_eq!(taken, 32);
    disk.submit(&flush(100)).unwrap();
    disk.kick();
    lock(&port).release();
    assert_eq!(core::iter::from_fn(|| disk.completed()).count(), 33);
    assert!(disk.with_controller(|controller| controller.is_idle()));
}

const SECOND: u64 = 1_000_000_000;

/// Ticks every second until `ns` later.
fn pass(disk: &mut TestDisk, from_ns: u64, ns: u64) -> u64 {
    let mut now_ns = from_ns;
    while now_ns < from_ns + ns {
        now_ns += SECOND;
        disk.tick(now_ns);
    }
    now_ns
}

#[test]
fn a_late_transfer_is_aborted() {
    let (mut disk, port) = disk(Device { holds: true, ..Device::default() });
    disk.submit(&flush(1)).unwrap();
    disk.kick();
    let now_ns = pass(&mut disk, SECOND, TRANSFER_NS - SECOND);
    assert_eq!((disk.completed(), disk.health()), (None, Health::Ready));
    pass(&mut disk, now_ns, 3 * SECOND);
    assert_eq!(disk.completed(), Some((1, Err(IoError::Device))));
    assert_eq!((disk.health(), lock(&port).resets), (Health::Ready, 1));
}

#[test]
fn what_cannot_be_aborted_costs_a_reset_and_the_rest_is_done_again() {
    let (mut disk, port) = disk(Device { holds: true, aborts: false, ..Device::default() });
    disk.submit(&flush(1)).unwrap();
    disk.kick();
    let now_ns = pass(&mut disk, SECOND, TRANSFER_NS - 2 * SECOND);
    disk.submit(&flush(2)).unwrap();
    disk.kick();
    pass(&mut disk, now_ns, ABORT_NS + 5 * SECOND);
    assert_eq!((disk.health(), lock(&port).resets), (Health::Ready, 2));
    assert_eq!(disk.completed(), Some((1, Err(IoError::Device))));
    assert_eq!(disk.completed(), None);
    lock(&port).release();
    assert_eq!(disk.completed(), Some((2, Ok(()))));
    assert!(disk.with_controller(|controller| controller.is_idle()));
}

#[test]
fn transfers_wait_while_the_controller_is_reset() {
    let (mut disk, port) = disk(Device::default());
    (lock(&port).status, lock(&port).stops) = (3, false);
    disk.tick(SECOND);
    assert_eq!(disk.health(), Health::Recovering);
    disk.submit(&flush(3)).unwrap();
    disk.kick();
    assert_eq!((disk.completed(), disk.tick(SECOND)), (None, Some(SECOND + 10_000_000)));
    lock(&port).status = 0;
    disk.tick(SECOND);
    assert_eq!((disk.health(), disk.completed()), (Health::Ready, Some((3, Ok(())))));
}

#[test]
fn a_controller_that_stays_broken_is_given_up() {
    let (mut disk, port) = disk(Device { holds: true, aborts: false, ..Device::default() });
    disk.submit(&flush(1)).unwrap();
    disk.kick();
    lock(&port).stops = false;
    pass(&mut disk, SECOND, 60 * SECOND);
    assert_eq!((disk.health(), disk.completed()), (Health::Failed, Some((1, Err(IoError::Device)))));
    assert!(lock(&port).dma_stopped);
    assert_eq!(disk.submit(&flush(2)), Err(SubmitError::Refused));
    assert_eq!(disk.tick(100 * SECOND), None);
}

#[test]
fn a_pulled_controller_is_noticed() {
    for gone_reads in [0, u32::MAX] {
        let (mut disk, port) = disk(Device { holds: true, gone_reads, ..Device::default() });
        disk.submit(&flush(1)).unwrap();
        disk.kick();
        lock(&port).is_gone = true;
        disk.tick(SECOND);
        assert_eq!((disk.health(), disk.completed()), (Health::Failed, Some((1, Err(IoError::Device)))));
        assert!(disk.with_controller(|controller| controller.is_idle()));
    }
}

#[test]
fn lies_in_completions_lead_to_a_reset() {
    // Result, head with queue, identifier with status.
    for (word2, word3) in [(1 << 16, 50), (2 << 16 | 1, 0), (1 << 16 | 500, 0), (1 << 16 | 9, 0)] {
        let (mut disk, port) = disk(Device { holds: true, granted: 1, ..Device::default() });
        disk.submit(&flush(1)).unwrap();
        disk.kick();
        lock(&port).post(1, 0, word2, word3);
        assert_eq!((disk.completed(), disk.health()), (None, Health::Recovering), "{word2:x} {word3:x}");
        pass(&mut disk, 0, 5 * SECOND);
        lock(&port).release();
        assert_eq!((disk.completed(), disk.health()), (Some((1, Ok(()))), Health::Ready));
    }
}

#[test]
fn a_controller_that_only_ever_lies_is_given_up() {
    let (mut disk, port) = disk(Device { holds: true, ..Device::default() });
    let mut now_ns = 0;
    for _ in 0..4 {
        lock(&port).post(1, 0, 1 << 16, 7);
        assert_eq!(disk.completed(), None);
        now_ns = pass(&mut disk, now_ns, 5 * SECOND);
    }
    assert_eq!(disk.health(), Health::Failed);
}
