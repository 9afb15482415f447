//! The machine's disks: from virtio-blk requests to transfers over host memory, and back.
//!
//! A request's guest buffers are resolved to host memory here, so that the host's disk reads and writes them without a
//! copy. A transfer's id carries the disk's epoch: what was in flight when the driver reset its device completes into
//! nothing, and the reset itself ends only when the host no longer touches the guest's memory for it. For a driver that
//! knows no flush, each write goes through the host disk's cache, or is followed by a flush before it completes (Virtio
//! 1.2, 5.2.6.2).

mod saved;

use crate::board::{Board, Slot};
use crate::meter::Meter;
use crate::output::{OutTransfer, Outbox};
use alloc::vec::Vec;
use block::HostRun;
use core::convert::Infallible;
use guestmem::{GuestMemory, Outside};
use virtio::blk::{BlkConfig, Op, Outcome, Request};
use virtio::{Blk, Function, Piece};

/// A disk of a machine.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// Its size in sectors of 512 bytes.
    pub sectors: u64,
    /// The unit in which the guest addresses it, in bytes.
    pub block_bytes: u32,
    /// Whether writes fail.
    pub read_only: bool,
    /// Whether the host's disk writes through its cache where that is asked for.
    pub write_through: bool,
    /// Whether discards and zeroing reach the host's disk.
    pub discard: bool,
    /// What the guest's get-id shows; padded with zeroes.
    pub serial: [u8; 20],
}

/// A disk on the board.
pub struct Disk {
    pub function: Function<Blk>,
    /// The host's disk can write through its cache.
    writes_through: bool,
    request: Request,
    epoch: u64,
    in_flight: u32,
    /// Transfers of earlier epochs that the host still works on.
    stale: u32,
    /// The heads of writes that were done and must be made stable.
    unflushed: Vec<u16>,
    /// The memory that the host's transfers work in, until they are done: where a read goes, a device writes unseen.
    under_way: Vec<UnderWay>,
    /// Lists that are free to be used again.
    spare: Vec<Vec<Piece>>,
    /// It was cut off, or is to leave: what was not done is not done any more.
    is_stopped: bool,
}

/// A transfer that the host works on.
struct UnderWay {
    id: u64,
    /// Whether it writes to guest memory.
    is_read: bool,
    pieces: Vec<Piece>,
}

/// A transfer's id: the request's head in the low 16 bits, whether a flush must follow, and the epoch.
const FLUSH_FOLLOWS: u64 = 1 << 16;
const EPOCH_SHIFT: u32 = 17;

impl Disk {
    /// The one queue of virtio-blk.
    pub const QUEUE: u16 = 0;

    pub fn new(config: DiskConfig) -> Self {
        let DiskConfig { sectors, block_bytes, read_only, write_through, discard, serial } = config;
        let blk = BlkConfig { block_bytes, read_only, discard, serial, ..BlkConfig::new(sectors) };
        Self {
            function: Function::new(Blk::new(blk)),
            writes_through: write_through,
            request: Request::default(),
            epoch: 0,
            in_flight: 0,
            stale: 0,
            unflushed: Vec::new(),
            under_way: Vec::new(),
            spare: Vec::new(),
            is_stopped: false,
        }
    }

    /// The driver reset the device.
    pub fn reset(&mut self) {
        self.epoch += 1;
        self.stale += core::mem::take(&mut self.in_flight);
        self.unflushed.clear();
        if self.stale > 0 {
            self.function.hold_reset();
        }
    }

    /// Nothing more is done: requests fail, those that wait now, a queue of them at most, and those that it is told of later;
    /// says whether there may be more of them now.
    pub fn stop(&mut self, memory: &GuestMemory) -> bool {
        self.is_stopped = true;
        self.refuse(memory)
    }

    fn refuse(&mut self, memory: &GuestMemory) -> bool {
        for head in core::mem::take(&mut self.unflushed) {
            self.function.complete(memory, head, Outcome::IoError);
        }
        for _ in 0..BlkConfig::QUEUE_SIZE {
            if !self.function.next_request(memory, &mut self.request) {
                return false;
            }
            self.function.complete(memory, self.request.id, Outcome::IoError);
        }
        true
    }

    /// Whether nothing more is done for its guest.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Takes requests off the queue until there are none; says whether transfers must leave before it can go on.
    pub fn pump(&mut self, memory: &GuestMemory, index: usize, outbox: &mut Outbox, meter: &mut Meter) -> bool {
        if self.is_stopped {
            return self.refuse(memory);
        }
        loop {
            if outbox.is_disk_full() {
                return true;
            }
            if let Some(head) = self.unflushed.pop() {
                let flush = OutTransfer::new(index, self.transfer_id(head), block::Op::Flush, 0, 0);
                let Ok(()) = outbox.push_transfer(flush, |_| Ok::<(), Infallible>(()));
                self.in_flight += 1;
            } else if !meter.may_take(Slot::Disk(index), Disk::QUEUE) {
                return false;
            } else if self.function.next_request(memory, &mut self.request) {
                let is_transfer = matches!(self.request.op, Op::Read | Op::Write);
                meter.took(Slot::Disk(index), if is_transfer { self.request.bytes() } else { 0 });
                self.start(memory, index, outbox);
            } else {
                return false;
            }
        }
    }

    /// The guest memory that the host's transfers work in.
    pub fn pieces_under_way(&self) -> impl Iterator<Item = Piece> + '_ {
        self.under_way.iter().flat_map(|transfer| transfer.pieces.iter().copied())
    }

    /// Puts the request at hand into the outbox.
    fn start(&mut self, memory: &GuestMemory, index: usize, outbox: &mut Outbox) {
        let request = &self.request;
        let is_stable_at_once = self.function.device.write_through();
        let (op, follows) = match request.op {
            Op::Write if is_stable_at_once && self.writes_through => (block::Op::WriteThrough, 0),
            Op::Write | Op::WriteZeroes { .. } if is_stable_at_once => (op_of(request.op), FLUSH_FOLLOWS),
            op => (op_of(op), 0),
        };
        let id = self.transfer_id(request.id) | follows;
        let transfer = OutTransfer::new(index, id, op, request.sector, request.sectors as u32);
        let queued = outbox.push_transfer(transfer, |runs| {
            request.pieces.iter().try_for_each(|&(gpa, bytes)| {
                memory.each_run(gpa, bytes.into(), |run| {
                    runs.push(HostRun { start: run.start, bytes: run.bytes as u32 });
                })
            })
        });
        match queued {
            Ok(()) => {
                self.in_flight += 1;
                if !request.pieces.is_empty() {
                    let mut pieces = self.spare.pop().unwrap_or_default();
                    pieces.extend_from_slice(&request.pieces);
                    self.under_way.push(UnderWay { id, is_read: request.op == Op::Read, pieces });
                }
            }
            // virtio-blk checked the pieces: the host has no frame for memory that the guest had given up.
            Err(Outside { .. }) => self.function.complete(memory, self.request.id, Outcome::IoError),
        }
    }

    fn transfer_id(&self, head: u16) -> u64 {
        self.epoch << EPOCH_SHIFT | u64::from(head)
    }

    /// A transfer ended; says whether a flush must follow.
    fn done(&mut self, memory: &GuestMemory, id: u64, outcome: Outcome) -> bool {
        if let Some(index) = self.under_way.iter().position(|transfer| transfer.id == id) {
            let UnderWay { is_read, mut pieces, .. } = self.under_way.swap_remove(index);
            if is_read {
                // Whatever became of it, some of it may have been written.
                pieces.iter().for_each(|&(at, bytes)| memory.mark_dirty(at, bytes.into()));
            }
            pieces.clear();
            self.spare.push(pieces);
        }
        if id >> EPOCH_SHIFT != self.epoch {
            self.stale -= 1;
            if self.stale == 0 {
                self.function.finish_reset();
            }
            return false;
        }
        self.in_flight -= 1;
        let follows = id & FLUSH_FOLLOWS != 0 && outcome == Outcome::Ok;
        // Without its flush a write was not done.
        let (follows, outcome) =
            if follows && self.is_stopped { (false, Outcome::IoError) } else { (follows, outcome) };
        if follows {
            self.unflushed.push(id as u16);
        } else {
            self.function.complete(memory, id as u16, outcome);
        }
        follows
    }
}

impl Board {
    pub(crate) fn disk_done(&mut self, memory: &GuestMemory, disk: usize, id: u64, outcome: Outcome) {
        if self.disks[disk].done(memory, id, outcome) {
            self.kick_again(Slot::Disk(disk), Disk::QUEUE);
        }
    }

    pub(crate) fn disk_settle(&mut self, memory: &GuestMemory, disk: usize) {
        if let Some(function) = self.disks.get_mut(disk).map(|disk| &mut disk.function) {
            function.notify_if_needed(memory, &mut self.signals);
            self.settle(Slot::Disk(disk));
        }
        self.remove_idle();
    }
}

fn op_of(op: Op) -> block::Op {
    match op {
        Op::Read => block::Op::Read,
        Op::Write => block::Op::Write,
        Op::Flush => block::Op::Flush,
        Op::Discard => block::Op::Discard,
        Op::WriteZeroes { .. } => block::Op::WriteZeroes,
    }
}
