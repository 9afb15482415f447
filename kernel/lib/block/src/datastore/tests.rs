//! A datastore on a scripted disk.

use super::*;
use crate::tests::{MemoryDisk, Script, geometry, partition};
use addr::Hpa;
use std::sync::{Arc, Mutex};

fn datastore_with(geometry: Geometry) -> (Datastore, VirtualDisk, Arc<Mutex<Script>>) {
    let (disk, script) = MemoryDisk::with(geometry);
    let mut read_only = partition(3, "iso", 300, 100);
    read_only.read_only = true;
    let partitions = vec![partition(1, "root", 100, 100), partition(2, "data", 200, 100), read_only];
    let mut datastore = Datastore::new("disk0".into(), Box::new(disk), partitions);
    let root = datastore.claim(0).unwrap();
    (datastore, root, script)
}

fn datastore() -> (Datastore, VirtualDisk, Arc<Mutex<Script>>) {
    datastore_with(geometry())
}

fn transfer(id: u64, op: Op, sector: u64, sectors: u32, runs: &[HostRun]) -> Transfer<'_> {
    Transfer { id, op, sector, sectors, runs }
}

fn run(start: u64, bytes: u32) -> HostRun {
    HostRun { start: Hpa::new(start), bytes }
}

#[test]
fn a_transfer_is_moved_to_its_partition() {
    let (mut datastore, root, script) = datastore();
    datastore.submit(root, &transfer(7, Op::Write, 99, 1, &[run(0x5000, 512)])).unwrap();
    datastore.kick();
    datastore.kick();
    assert_eq!(script.lock().unwrap().kicks, 1);
    let seen = script.lock().unwrap().complete(Ok(()));
    assert_eq!((seen.op, seen.sector, seen.sectors, seen.runs), (Op::Write, 199, 1, vec![run(0x5000, 512)]));
    assert_eq!(datastore.completed(), Some(Completion { disk: root, id: 7, outcome: Ok(()) }));
    assert_eq!(datastore.completed(), None);
}

#[test]
fn nothing_leaves_its_partition() {
    let (mut datastore, root, script) = datastore();
    let iso = datastore.claim(2).unwrap();
    let block = [run(0x5000, 512)];
    for (disk, op, sector, sectors, runs) in [
        (root, Op::Read, 100, 1, &block[..]),
        (root, Op::Read, 99, 2, &[run(0, 1024)]),
        (root, Op::Read, u64::MAX, 1, &block),
        (root, Op::Read, u64::MAX - 99, 1, &block),
        (root, Op::Read, 0, 0, &[]),
        (root, Op::Read, 0, 1, &[]),
        (root, Op::Read, 0, 1, &[run(0, 513)]),
        (root, Op::Discard, 0, 101, &[]),
        (root, Op::Discard, 0, 1, &block),
        (root, Op::Flush, 0, 1, &[]),
        (iso, Op::Write, 0, 1, &block),
        (iso, Op::WriteZeroes, 0, 1, &[]),
    ] {
        assert_eq!(datastore.submit(disk, &transfer(0, op, sector, sectors, runs)), Err(SubmitError::Refused));
    }
    assert!(script.lock().unwrap().seen.is_empty());
    assert_eq!(datastore.outstanding(root), 0);
    datastore.submit(iso, &transfer(0, Op::Read, 0, 1, &block)).unwrap();
}

#[test]
fn partial_blocks_are_refused() {
    let (mut datastore, root, _) = datastore_with(Geometry { logical_block_bytes: 4096, ..geometry() });
    let block = [run(0, 4096)];
    assert_eq!(datastore.submit(root, &transfer(0, Op::Read, 1, 8, &block)), Err(SubmitError::Refused));
    assert_eq!(datastore.submit(root, &transfer(0, Op::Read, 0, 1, &[run(0, 512)])), Err(SubmitError::Refused));
    datastore.submit(root, &transfer(0, Op::Read, 8, 8, &block)).unwrap();
}

#[test]
fn a_partition_has_one_user() {
    let (mut datastore, root, script) = datastore();
    assert_eq!(datastore.claim(0), Err(ClaimError::InUse));
    assert_eq!(datastore.claim(9), Err(ClaimError::Missing));
    datastore.submit(root, &transfer(0, Op::Flush, 0, 0, &[])).unwrap();
    assert_eq!(datastore.release(root), Err(ReleaseError::Busy(1)));
    script.lock().unwrap().complete(Ok(()));
    assert!(datastore.completed().is_some());
    datastore.release(root).unwrap();
    assert_eq!(datastore.release(root), Err(ReleaseError::Stale));
    let again = datastore.claim(0).unwrap();
    assert_ne!(again, root);
    assert_eq!(datastore.submit(root, &transfer(0, Op::Flush, 0, 0, &[])), Err(SubmitError::Refused));
    assert_eq!(datastore.virtual_geometry(root), None);
}

#[test]
fn several_read_what_nobody_writes() {
    let (mut datastore, root, script) = datastore();
    assert_eq!(datastore.claim_shared(0), Err(ClaimError::InUse), "somebody writes it");
    assert_eq!(datastore.claim_shared(3), Err(ClaimError::Missing), "the whole disk is no partition");
    let first = datastore.claim_shared(1).unwrap();
    let second = datastore.claim_shared(1).unwrap();
    assert_eq!(datastore.claim(1), Err(ClaimError::InUse), "somebody reads it");
    assert!(datastore.virtual_geometry(first).unwrap().read_only);
    assert!(!datastore.virtual_geometry(root).unwrap().read_only);
    let block = [run(0x5000, 512)];
    for (op, runs) in [(Op::Write, &block[..]), (Op::WriteThrough, &block), (Op::Discard, &[]), (Op::WriteZeroes, &[])]
    {
        assert_eq!(datastore.submit(first, &transfer(0, op, 0, 1, runs)), Err(SubmitError::Refused), "{op:?}");
    }
    datastore.submit(first, &transfer(1, Op::Read, 0, 1, &block)).unwrap();
    datastore.submit(second, &transfer(1, Op::Read, 0, 1, &block)).unwrap();
    assert_eq!((datastore.outstanding(first), datastore.outstanding(second)), (1, 1));
    script.lock().unwrap().complete(Ok(()));
    assert_eq!(datastore.completed().map(|completion| completion.disk), Some(first));
    datastore.release(first).unwrap();
    assert_eq!(datastore.release(first), Err(ReleaseError::Stale));
    assert_eq!(datastore.release(second), Err(ReleaseError::Busy(1)));
    assert_eq!(datastore.claim(1), Err(ClaimError::InUse), "one still reads it");
    script.lock().unwrap().complete(Ok(()));
    assert_eq!(datastore.completed().map(|completion| completion.disk), Some(second));
    datastore.release(second).unwrap();
    let alone = datastore.claim(1).unwrap();
    datastore.submit(alone, &transfer(2, Op::Write, 0, 1, &block)).unwrap();
}

#[test]
fn the_whole_disk_can_be_read_beside_its_users() {
    let (mut datastore, root, script) = datastore();
    assert_eq!(datastore.partitions().count(), 3);
    assert_eq!(datastore.claim(3), Err(ClaimError::Missing));
    let whole = datastore.claim_whole().unwrap();
    assert_eq!(datastore.claim_whole(), Err(ClaimError::InUse));
    assert_eq!((whole.partition(), datastore.virtual_geometry(whole).unwrap().sectors), (3, 1 << 20));
    let block = [run(0x5000, 512)];
    datastore.submit(whole, &transfer(1, Op::Read, 150, 1, &block)).unwrap();
    assert_eq!(script.lock().unwrap().complete(Ok(())).sector, 150);
    assert_eq!(datastore.completed(), Some(Completion { disk: whole, id: 1, outcome: Ok(()) }));
    for op in [Op::Write, Op::WriteThrough, Op::Discard, Op::WriteZeroes] {
        let runs = if matches!(op, Op::Write | Op::WriteThrough) { &block[..] } else { &[] };
        assert_eq!(datastore.submit(whole, &transfer(2, op, 150, 1, runs)), Err(SubmitError::Refused));
    }
    assert_eq!(datastore.submit(whole, &transfer(3, Op::Read, 1 << 20, 1, &block)), Err(SubmitError::Refused));
    datastore.release(whole).unwrap();
    assert_eq!(datastore.submit(whole, &transfer(4, Op::Read, 0, 1, &block)), Err(SubmitError::Refused));
    datastore.submit(root, &transfer(5, Op::Write, 0, 1, &block)).unwrap();
}

#[test]
fn a_virtual_disk_looks_like_a_disk() {
    let (mut datastore, root, _) = datastore();
    let geometry = datastore.virtual_geometry(root).unwrap();
    assert_eq!((geometry.sectors, geometry.read_only), (100, false));
    assert_eq!((geometry.name.as_str(), geometry.serial.as_str()), ("root@disk0", "01010101010101010101"));
    let iso = datastore.claim(2).unwrap();
    assert!(datastore.virtual_geometry(iso).unwrap().read_only);
}

#[test]
fn long_transfers_are_cut_and_joined() {
    let (mut datastore, root, script) = datastore_with(Geometry { max_transfer_bytes: 1024, ..geometry() });
    datastore.submit(root, &transfer(5, Op::Read, 10, 5, &[run(0x1000, 2560)])).unwrap();
    let cuts: Vec<_> = script.lock().unwrap().seen.iter().map(|seen| (seen.sector, seen.sectors)).collect();
    assert_eq!(cuts, [(110, 2), (112, 2), (114, 1)]);
    script.lock().unwrap().complete(Ok(()));
    script.lock().unwrap().complete(Err(IoError::OutOfRange));
    assert_eq!(datastore.completed(), None);
    script.lock().unwrap().complete(Err(IoError::Device));
    let outcome = Err(IoError::OutOfRange);
    assert_eq!(datastore.completed(), Some(Completion { disk: root, id: 5, outcome }));
}

#[test]
fn an_error_stops_the_pieces_not_yet_sent() {
    let (mut datastore, root, script) = datastore_with(Geometry { max_transfer_bytes: 512, ..geometry() });
    script.lock().unwrap().room = 1;
    datastore.submit(root, &transfer(5, Op::Read, 0, 4, &[run(0x1000, 2048)])).unwrap();
    script.lock().unwrap().complete(Err(IoError::Device));
    let outcome = Err(IoError::Device);
    assert_eq!(datastore.completed(), Some(Completion { disk: root, id: 5, outcome }));
    assert!(script.lock().unwrap().seen.is_empty());
}

#[test]
fn a_full_disk_is_waited_for_in_turns() {
    let (mut datastore, root, script) = datastore_with(Geometry { max_transfer_bytes: 512, ..geometry() });
    let data = datastore.claim(1).unwrap();
    script.lock().unwrap().room = 1;
    datastore.submit(root, &transfer(1, Op::Write, 0, 3, &[run(0x1000, 1536)])).unwrap();
    datastore.submit(data, &transfer(2, Op::Write, 0, 1, &[run(0x9000, 512)])).unwrap();
    let (mut order, mut ended) = (Vec::new(), Vec::new());
    while !script.lock().unwrap().seen.is_empty() {
        order.push(script.lock().unwrap().complete(Ok(())).sector);
        ended.extend(datastore.completed().map(|completion| completion.id));
    }
    assert_eq!(order, [100, 101, 200, 102]);
    assert_eq!(ended, [2, 1]);
    assert!(script.lock().unwrap().kicks > 0, "pieces sent later are announced too");
}

#[test]
fn a_disk_never_strands_a_transfer() {
    let (mut datastore, root, script) = datastore();
    script.lock().unwrap().room = 0;
    datastore.submit(root, &transfer(1, Op::Flush, 0, 0, &[])).unwrap();
    assert_eq!(datastore.completed().unwrap().outcome, Err(IoError::Device));
    script.lock().unwrap().refuse = true;
    datastore.submit(root, &transfer(2, Op::Flush, 0, 0, &[])).unwrap();
    assert_eq!(datastore.completed().unwrap().outcome, Err(IoError::Device));
}

#[test]
fn a_flush_without_a_cache_ends_at_once() {
    let (mut datastore, root, script) = datastore_with(Geometry { flush: false, ..geometry() });
    assert!(!datastore.has_ended());
    datastore.submit(root, &transfer(3, Op::Flush, 0, 0, &[])).unwrap();
    assert!(datastore.has_ended(), "no interrupt comes for it");
    assert_eq!(datastore.completed(), Some(Completion { disk: root, id: 3, outcome: Ok(()) }));
    assert!(script.lock().unwrap().seen.is_empty());
    assert!(!datastore.has_ended());
}

#[test]
fn a_place_keeps_little_memory() {
    let (mut datastore, root, script) = datastore_with(Geometry { max_runs: 1000, ..geometry() });
    let runs: Vec<_> = (0..512).map(|index| run(index * 0x1000, 8)).collect();
    datastore.submit(root, &transfer(1, Op::Write, 0, 8, &runs)).unwrap();
    assert!(datastore.requests[0].runs.capacity() >= 512);
    while !script.lock().unwrap().seen.is_empty() {
        script.lock().unwrap().complete(Ok(()));
        datastore.completed();
    }
    assert!(!datastore.requests[0].live && datastore.requests[0].runs.capacity() <= RUNS_KEPT);
}

#[test]
fn one_disk_cannot_take_all_places() {
    let (mut datastore, root, _) = datastore();
    let data = datastore.claim(1).unwrap();
    for id in 0..256 {
        datastore.submit(root, &transfer(id, Op::Flush, 0, 0, &[])).unwrap();
    }
    assert_eq!(datastore.submit(root, &transfer(0, Op::Flush, 0, 0, &[])), Err(SubmitError::Full));
    datastore.submit(data, &transfer(0, Op::Flush, 0, 0, &[])).unwrap();
}

#[test]
fn stray_completions_are_ignored() {
    let (mut datastore, root, script) = datastore();
    datastore.submit(root, &transfer(1, Op::Flush, 0, 0, &[])).unwrap();
    let token = script.lock().unwrap().seen[0].token;
    for stray in [token + 1, token + (1 << 32), u64::MAX, token, token] {
        script.lock().unwrap().completions.push_back((stray, Ok(())));
    }
    assert_eq!(datastore.completed().map(|completion| completion.id), Some(1));
    assert_eq!(datastore.completed(), None);
}

#[test]
fn cancelling_withdraws_what_waits() {
    let (mut datastore, root, script) = datastore_with(Geometry { max_transfer_bytes: 512, ..geometry() });
    let data = datastore.claim(1).unwrap();
    script.lock().unwrap().room = 1;
    datastore.submit(root, &transfer(1, Op::Write, 0, 2, &[run(0x1000, 1024)])).unwrap();
    datastore.submit(root, &transfer(2, Op::Write, 0, 1, &[run(0x2000, 512)])).unwrap();
    datastore.submit(data, &transfer(3, Op::Write, 0, 1, &[run(0x3000, 512)])).unwrap();
    datastore.cancel(root);
    let cancelled = Err(IoError::Cancelled);
    assert_eq!(datastore.completed(), Some(Completion { disk: root, id: 2, outcome: cancelled }));
    assert_eq!(datastore.completed(), None);
    script.lock().unwrap().complete(Ok(()));
    assert_eq!(datastore.completed(), Some(Completion { disk: root, id: 1, outcome: cancelled }));
    datastore.release(root).unwrap();
    assert_eq!(script.lock().unwrap().seen[0].sector, 200);
}
