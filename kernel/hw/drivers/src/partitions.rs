//! Reads a disk's partition table at start-up, before anything else uses the disk.
//!
//! The main function is [`read_partitions`]; the parsing is [`block::gpt`]'s.

use crate::dma::DmaMemory;
use addr::Hpa;
use alloc::vec::Vec;
use block::gpt::{Error, Partition, READ_SECTORS_MAX, Scan, Step};
use block::{Disk, HostRun, Op, SECTOR_BYTES, Transfer};
use virtio_drivers::Hal;

/// Reads the disk's GUID partition table, waiting for the disk but no longer than until `expired` says so.
///
/// When it gives up on a read, the memory of that read stays allocated, as the disk may still write there; the disk is
/// not to be used then.
pub fn read_partitions<H: Hal>(
    disk: &mut dyn Disk,
    mut expired: impl FnMut() -> bool,
) -> Result<Vec<Partition>, Error> {
    let mut scan = Scan::new(disk.geometry().sectors, disk.geometry().logical_block_bytes);
    let memory = DmaMemory::<H>::new((READ_SECTORS_MAX * SECTOR_BYTES) as usize).ok_or(Error::Unreadable)?;
    let mut bytes = Vec::new();
    for id in 0.. {
        let (sector, sectors) = match scan.next() {
            Step::Read { sector, sectors } => (sector, sectors),
            Step::Done(result) => return result,
        };
        let runs = [HostRun { start: Hpa::new(memory.physical(0)), bytes: sectors * SECTOR_BYTES }];
        let submitted = disk.submit(&Transfer { id, op: Op::Read, sector, sectors, runs: &runs });
        if submitted.is_err() {
            scan.fail();
            continue;
        }
        disk.kick();
        let outcome = loop {
            match disk.completed() {
                Some((ended, outcome)) if ended == id => break outcome,
                Some(_) => {}
                None if expired() => {
                    core::mem::forget(memory);
                    return Err(Error::Unreadable);
                }
                None => core::hint::spin_loop(),
            }
        };
        bytes.clear();
        memory.append_to(0, (sectors * SECTOR_BYTES) as usize, &mut bytes);
        match outcome {
            Ok(()) => scan.supply(&bytes),
            Err(_) => scan.fail(),
        }
    }
    Err(Error::Unreadable)
}
