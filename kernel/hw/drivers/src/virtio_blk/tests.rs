//! Requests against a device that tests play.

use super::requests::Requests;
use crate::virtio::tests::{TestBuffer, TestDevice, TestHal, peek, poke, queue};
use addr::Hpa;
use block::{HostRun, IoError, Op, SubmitError, Transfer};

fn requests() -> (Requests<TestHal>, TestDevice) {
    let (queue, device) = queue(6, true);
    (Requests::new(queue).unwrap(), device)
}

fn transfer(id: u64, op: Op, runs: &[HostRun]) -> Transfer<'_> {
    let bytes: u32 = runs.iter().map(|run| run.bytes).sum();
    Transfer { id, op, sector: 77, sectors: bytes / 512, runs }
}

fn run(start: u64, bytes: u32) -> HostRun {
    HostRun { start: Hpa::new(start), bytes }
}

/// Finishes the chain with a status.
fn finish(device: &mut TestDevice, (head, buffers): (u16, Vec<TestBuffer>), status: u8) {
    poke(buffers.last().unwrap().address, status);
    device.finish(head.into(), 1);
}

#[test]
fn data_goes_straight_to_its_runs() {
    let (mut requests, mut device) = requests();
    for (op, kind, device_writes) in [(Op::Read, 0_u32, true), (Op::Write, 1, false)] {
        requests.submit(&transfer(9, op, &[run(0x10_0000, 512), run(0x30_0000, 4096)])).unwrap();
        let chain = device.take().unwrap();
        let [header, first, second, status] = chain.1[..] else { panic!("four buffers") };
        assert_eq!((header.bytes, header.device_writes), (16, false));
        assert_eq!((peek::<u32>(header.address), peek::<u64>(header.address + 8)), (kind, 77));
        assert_eq!(first, TestBuffer { address: 0x10_0000, bytes: 512, device_writes });
        assert_eq!(second, TestBuffer { address: 0x30_0000, bytes: 4096, device_writes });
        assert_eq!((status.bytes, status.device_writes), (1, true));
        finish(&mut device, chain, 0);
        assert_eq!(requests.completed(), Some((9, Ok(()))));
    }
}

#[test]
fn discards_have_a_segment() {
    let (mut requests, mut device) = requests();
    for (op, kind) in [(Op::Discard, 11_u32), (Op::WriteZeroes, 13)] {
        requests.submit(&Transfer { sectors: 64, ..transfer(1, op, &[]) }).unwrap();
        let chain = device.take().unwrap();
        let [header, segment, _] = chain.1[..] else { panic!("three buffers") };
        assert_eq!((peek::<u32>(header.address), peek::<u64>(header.address + 8)), (kind, 0));
        assert_eq!((segment.bytes, segment.device_writes), (16, false));
        assert_eq!(peek::<u64>(segment.address), 77);
        assert_eq!((peek::<u32>(segment.address + 8), peek::<u32>(segment.address + 12)), (64, 0));
        finish(&mut device, chain, 2);
        assert_eq!(requests.completed(), Some((1, Err(IoError::Unsupported))));
    }
}

#[test]
fn only_a_written_status_is_success() {
    let (mut requests, mut device) = requests();
    for status in [None, Some(1), Some(3), Some(0xff)] {
        requests.submit(&transfer(1, Op::Flush, &[])).unwrap();
        let chain = device.take().unwrap();
        assert_eq!((chain.1.len(), peek::<u32>(chain.1[0].address)), (2, 4));
        match status {
            Some(status) => finish(&mut device, chain, status),
            None => device.finish(chain.0.into(), 0),
        }
        assert_eq!(requests.completed(), Some((1, Err(IoError::Device))));
    }
}

#[test]
fn completions_come_in_any_order() {
    let (mut requests, mut device) = requests();
    let chains: Vec<_> = (0..8)
        .map(|id| {
            requests.submit(&transfer(id, Op::Read, &[run(0x1000, 512)])).unwrap();
            device.take().unwrap()
        })
        .collect();
    assert_eq!(requests.submit(&transfer(8, Op::Flush, &[])), Err(SubmitError::Full));
    for (id, chain) in chains.into_iter().enumerate().rev() {
        finish(&mut device, chain, 0);
        assert_eq!(requests.completed(), Some((id as u64, Ok(()))));
    }
}

#[test]
fn a_broken_device_gives_everything_back_once() {
    let (mut requests, mut device) = requests();
    for id in 10..13 {
        requests.submit(&transfer(id, Op::Flush, &[])).unwrap();
    }
    device.finish(99, 0);
    assert_eq!(requests.completed(), None);
    assert!(requests.is_broken());
    let abandoned: Vec<_> = core::iter::from_fn(|| requests.abandon()).collect();
    assert_eq!(abandoned, [10, 11, 12].map(|id| (id, Err(IoError::Device))));
}

#[test]
fn a_serial_number_that_never_comes_leaves_the_disk_usable() {
    let (mut requests, mut device) = requests();
    assert_eq!(requests.read_serial(), None);
    let late = device.take().unwrap();
    assert_eq!((peek::<u32>(late.1[0].address), late.1[1].bytes), (8, 20));
    requests.submit(&transfer(4, Op::Flush, &[])).unwrap();
    let chain = device.take().unwrap();
    finish(&mut device, late, 0);
    finish(&mut device, chain, 0);
    assert_eq!(requests.completed(), Some((4, Ok(()))));
}
