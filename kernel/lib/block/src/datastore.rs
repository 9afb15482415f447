//! A host disk whose partitions are virtual disks.
//!
//! The main type is [`Datastore`]: it lends each partition to one VM, or to several that only read it, keeps every
//! transfer inside its partition, cuts what is too long for the disk, queues what the disk has no room for, and joins the
//! completions. Above it is `machine/storage`, below it a [`Disk`].

use crate::gpt::{Guid, Partition};
use crate::pieces::{Cursor, dataless_sectors, join_runs};
use crate::{Disk, Geometry, Health, HostRun, IoError, Op, Outcome, SECTOR_BYTES, SubmitError, Transfer};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Transfers that one virtual disk may have outstanding. Each has its own, so that a VM only ever waits for itself.
const REQUESTS_PER_VIRTUAL_DISK: u32 = 256;
/// Runs that a place of the slab keeps memory for: those of half a mebibyte in single pages.
const RUNS_KEPT: usize = 128;

/// A claim on a partition. A stale one (released since) is refused everywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VirtualDisk {
    partition: u16,
    generation: u32,
}

impl VirtualDisk {
    /// The partition's position in [`Datastore::partitions`].
    pub fn partition(self) -> usize {
        self.partition.into()
    }
}

/// A transfer that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// Whose it was.
    pub disk: VirtualDisk,
    /// The [`Transfer::id`] it was submitted with.
    pub id: u64,
    /// How it ended. Of several errors, the first.
    pub outcome: Outcome,
}

/// Why a partition was not lent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClaimError {
    /// There is none at this position.
    Missing,
    /// A VM has it, or reads it where it was asked for alone.
    InUse,
}

/// Why a partition was not taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReleaseError {
    /// The claim is a stale one.
    Stale,
    /// So many transfers have not come out of [`Datastore::completed`] yet; the device may still use their memory.
    Busy(u32),
}

/// A partition and who has it.
struct Lot {
    partition: Partition,
    /// One that has it alone, or any number that read.
    claims: Vec<Claim>,
    /// The next claim's generation.
    generation: u32,
}

struct Claim {
    /// Tells claims of the same partition apart.
    generation: u32,
    /// It reads, beside others.
    is_shared: bool,
    /// Transfers submitted and not yet returned by [`Datastore::completed`].
    outstanding: u32,
}

/// One transfer on its way. Its place in the slab is reused, and so is the memory of `runs`.
struct Request {
    disk: VirtualDisk,
    id: u64,
    op: Op,
    /// The next sector to hand to the disk, counted from the start of the disk.
    sector: u64,
    sectors_left: u32,
    runs: Vec<HostRun>,
    cursor: Cursor,
    /// Pieces that the disk has.
    pieces: u32,
    /// Whether it is in the waiting line, with more to hand over.
    queued: bool,
    /// Whether the place is taken.
    live: bool,
    /// Tells users of the same place apart.
    generation: u32,
    outcome: Outcome,
}

/// What became of an attempt to hand a request's next piece to the disk.
enum Issue {
    /// That was the last piece.
    All,
    /// More pieces follow.
    More,
    /// The disk has no room.
    Full,
    /// No further piece will be handed over.
    Stopped,
}

/// A host disk with its partitions as virtual disks.
pub struct Datastore {
    name: String,
    disk: Box<dyn Disk>,
    /// The partitions, and last the whole disk, read-only.
    lots: Vec<Lot>,
    requests: Vec<Request>,
    free: Vec<u16>,
    /// Requests with more to hand over, oldest first; one that has had a turn goes to the end.
    waiting: VecDeque<u16>,
    /// Ended without, or apart from, a completion of the disk.
    ended: VecDeque<Completion>,
    /// The piece being handed over; kept for its memory.
    piece: Vec<HostRun>,
    pieces_in_flight: u32,
    kick_due: bool,
}

impl Datastore {
    /// A datastore called `name` on `disk`, whose partition table held `partitions`.
    pub fn new(name: String, disk: Box<dyn Disk>, partitions: Vec<Partition>) -> Self {
        let sectors = disk.geometry().sectors;
        let whole = Partition {
            number: 0,
            name: name.clone(),
            first_sector: 0,
            sectors,
            type_guid: Guid::default(),
            unique_guid: Guid::default(),
            read_only: true,
        };
        // The table reader checked this; the window check below relies on it.
        let lots = partitions
            .into_iter()
            .filter(|partition| partition.end_sector().is_some_and(|end| end <= sectors))
            .take(usize::from(u16::MAX) - 1)
            .chain(core::iter::once(whole))
            .map(|partition| Lot { partition, claims: Vec::new(), generation: 0 })
            .collect();
        Self {
            name,
            disk,
            lots,
            requests: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            ended: VecDeque::new(),
            piece: Vec::new(),
            pieces_in_flight: 0,
            kick_due: false,
        }
    }

    /// Its name, the part after `@` in a virtual disk's full name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host disk's geometry.
    pub fn geometry(&self) -> &Geometry {
        self.disk.geometry()
    }

    /// The partitions and whether a VM has each.
    pub fn partitions(&self) -> impl Iterator<Item = (&Partition, bool)> {
        self.lots[..self.whole()].iter().map(|lot| (&lot.partition, !lot.claims.is_empty()))
    }

    /// Lends the partition at `position` of [`Datastore::partitions`] to one VM.
    pub fn claim(&mut self, position: usize) -> Result<VirtualDisk, ClaimError> {
        if position == self.whole() { Err(ClaimError::Missing) } else { self.claim_lot(position, false) }
    }

    /// Lends it for reading, beside others who read it: nobody writes it meanwhile.
    pub fn claim_shared(&mut self, position: usize) -> Result<VirtualDisk, ClaimError> {
        if position == self.whole() { Err(ClaimError::Missing) } else { self.claim_lot(position, true) }
    }

    /// Lends the whole disk for reading, whoever has its partitions. Its position is the one behind theirs.
    pub fn claim_whole(&mut self) -> Result<VirtualDisk, ClaimError> {
        self.claim_lot(self.whole(), false)
    }

    /// Takes a partition back. Nothing of it may be outstanding: [`Datastore::cancel`], then drain
    /// [`Datastore::completed`].
    pub fn release(&mut self, disk: VirtualDisk) -> Result<(), ReleaseError> {
        let (_, claim) = self.claimed(disk).ok_or(ReleaseError::Stale)?;
        if claim.outstanding > 0 {
            return Err(ReleaseError::Busy(claim.outstanding));
        }
        self.lots[disk.partition()].claims.retain(|claim| claim.generation != disk.generation);
        Ok(())
    }

    /// How many transfers of a virtual disk have not come out of [`Datastore::completed`] yet.
    pub fn outstanding(&self, disk: VirtualDisk) -> u32 {
        self.claimed(disk).map_or(0, |(_, claim)| claim.outstanding)
    }

    /// The geometry of a virtual disk: the host disk's, with the partition's size, name and serial number
    /// ([`Partition::serial`]). `None` for a stale claim.
    pub fn virtual_geometry(&self, disk: VirtualDisk) -> Option<Geometry> {
        let (partition, claim) = self.claimed(disk)?;
        let host = self.disk.geometry();
        Some(Geometry {
            sectors: partition.sectors,
            read_only: host.read_only || partition.read_only || claim.is_shared,
            serial: partition.serial(),
            name: format!("{}@{}", partition.name, self.name),
            ..host.clone()
        })
    }

    /// Takes a transfer of a virtual disk, with [`Transfer::sector`] counted from the start of its partition.
    ///
    /// `Full`: this virtual disk has 256 outstanding. `Refused`: a stale claim, or a transfer that leaves the
    /// partition, is not whole blocks, does not match its runs, writes what is read-only or needs what the disk lacks.
    pub fn submit(&mut self, disk: VirtualDisk, transfer: &Transfer<'_>) -> Result<(), SubmitError> {
        let sector = self.check(disk, transfer).ok_or(SubmitError::Refused)?;
        if self.outstanding(disk) >= REQUESTS_PER_VIRTUAL_DISK {
            return Err(SubmitError::Full);
        }
        let index = self.place().ok_or(SubmitError::Full)?;
        if !self.fill(index, disk, sector, transfer) {
            self.vacate(index);
            return Err(SubmitError::Refused);
        }
        if let Some(claim) = self.claim_mut(disk) {
            claim.outstanding += 1;
        }
        // A disk without a volatile cache has nothing to flush.
        if transfer.op == Op::Flush && !self.disk.geometry().flush {
            self.end(index);
            return Ok(());
        }
        self.requests[usize::from(index)].queued = true;
        self.waiting.push_back(index);
        // Behind others, it has to wait for room as they do.
        if self.waiting.len() == 1 {
            self.issue();
        }
        Ok(())
    }

    /// Tells the disk of everything submitted since the last call.
    pub fn kick(&mut self) {
        if core::mem::take(&mut self.kick_due) {
            self.disk.kick();
        }
    }

    /// The next transfer that has ended, of any virtual disk. `None` also arms the disk's interrupt.
    pub fn completed(&mut self) -> Option<Completion> {
        loop {
            if let Some(completion) = self.ended.pop_front() {
                if let Some(claim) = self.claim_mut(completion.disk) {
                    claim.outstanding -= 1;
                }
                return Some(completion);
            }
            match self.disk.completed() {
                Some((token, outcome)) => {
                    self.settle(token, outcome);
                    self.issue();
                }
                None if self.ended.is_empty() => {
                    self.kick();
                    return None;
                }
                None => {}
            }
        }
    }

    /// Whether transfers have ended that no interrupt of the disk announces: [`Datastore::completed`] gives them.
    pub fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Withdraws the transfers of a virtual disk as far as the disk does not have them. Each still comes out of
    /// [`Datastore::completed`], with [`IoError::Cancelled`] unless all of it had reached the disk.
    pub fn cancel(&mut self, disk: VirtualDisk) {
        let mut waiting = core::mem::take(&mut self.waiting);
        waiting.retain(|&index| {
            let request = &mut self.requests[usize::from(index)];
            if request.disk != disk {
                return true;
            }
            request.queued = false;
            request.outcome = request.outcome.and(Err(IoError::Cancelled));
            if request.pieces == 0 {
                self.end(index);
            }
            false
        });
        self.waiting = waiting;
    }

    /// See [`Disk::acknowledge_interrupt`].
    pub fn acknowledge_interrupt(&mut self) {
        self.disk.acknowledge_interrupt();
    }

    /// See [`Disk::has_interrupt`].
    pub fn has_interrupt(&self) -> bool {
        self.disk.has_interrupt()
    }

    /// See [`Disk::aim_interrupt`].
    pub fn aim_interrupt(&mut self, address: u64) {
        self.disk.aim_interrupt(address);
    }

    /// See [`Disk::tick`].
    pub fn tick(&mut self, now_ns: u64) -> Option<u64> {
        self.disk.tick(now_ns)
    }

    /// See [`Disk::health`].
    pub fn health(&self) -> Health {
        self.disk.health()
    }

    /// Where the whole disk is in the list.
    fn whole(&self) -> usize {
        self.lots.len() - 1
    }

    fn claim_lot(&mut self, position: usize, is_shared: bool) -> Result<VirtualDisk, ClaimError> {
        let lot = self.lots.get_mut(position).ok_or(ClaimError::Missing)?;
        if lot.claims.iter().any(|other| !(is_shared && other.is_shared)) {
            return Err(ClaimError::InUse);
        }
        let generation = lot.generation;
        lot.generation = generation.wrapping_add(1);
        lot.claims.push(Claim { generation, is_shared, outstanding: 0 });
        // `new` keeps fewer partitions than fit into 16 bits.
        Ok(VirtualDisk { partition: position as u16, generation })
    }

    fn claimed(&self, disk: VirtualDisk) -> Option<(&Partition, &Claim)> {
        let lot = self.lots.get(disk.partition())?;
        let claim = lot.claims.iter().find(|claim| claim.generation == disk.generation)?;
        Some((&lot.partition, claim))
    }

    fn claim_mut(&mut self, disk: VirtualDisk) -> Option<&mut Claim> {
        let lot = self.lots.get_mut(disk.partition())?;
        lot.claims.iter_mut().find(|claim| claim.generation == disk.generation)
    }

    /// The disk's own number of the transfer's first sector, if all of it may be done.
    fn check(&self, disk: VirtualDisk, transfer: &Transfer<'_>) -> Option<u64> {
        let (partition, claim) = self.claimed(disk)?;
        let geometry = self.disk.geometry();
        let may_write = !geometry.read_only && !partition.read_only && !claim.is_shared;
        let allowed = match transfer.op {
            Op::Flush => return (transfer.sectors == 0 && transfer.runs.is_empty()).then_some(0),
            Op::Read => true,
            Op::Write => may_write,
            Op::WriteThrough => geometry.write_through && may_write,
            Op::Discard => geometry.discard && may_write,
            Op::WriteZeroes => geometry.write_zeroes && may_write,
        };
        let end = transfer.sector.checked_add(transfer.sectors.into())?;
        let block_sectors = geometry.sectors_per_block();
        let whole_blocks = transfer.sector.is_multiple_of(block_sectors.into())
            && transfer.sectors.is_multiple_of(block_sectors)
            && transfer.sectors > 0;
        (allowed && whole_blocks && end <= partition.sectors)
            .then(|| partition.first_sector.checked_add(transfer.sector))
            .flatten()
    }

    /// A free place in the slab, which grows to what the claims need and stays.
    fn place(&mut self) -> Option<u16> {
        if let Some(index) = self.free.pop() {
            return Some(index);
        }
        let index = u16::try_from(self.requests.len()).ok()?;
        self.requests.push(Request::vacant());
        Some(index)
    }

    /// Writes a transfer into its place; returns whether its runs are as long as its sectors.
    fn fill(&mut self, index: u16, disk: VirtualDisk, sector: u64, transfer: &Transfer<'_>) -> bool {
        let request = &mut self.requests[usize::from(index)];
        let bytes = join_runs(transfer.runs, &mut request.runs);
        request.disk = disk;
        request.id = transfer.id;
        request.op = transfer.op;
        request.sector = sector;
        request.sectors_left = transfer.sectors;
        request.cursor = Cursor::default();
        request.live = true;
        request.outcome = Ok(());
        let expected_bytes = match transfer.op {
            Op::Read | Op::Write | Op::WriteThrough => u64::from(transfer.sectors) * u64::from(SECTOR_BYTES),
            Op::Flush | Op::Discard | Op::WriteZeroes => 0,
        };
        bytes == expected_bytes
    }

    fn vacate(&mut self, index: u16) {
        let request = &mut self.requests[usize::from(index)];
        assert!(request.live && !request.queued && request.pieces == 0, "a request ended twice");
        request.live = false;
        // What a long transfer took would stay in its place for ever.
        request.runs.clear();
        request.runs.shrink_to(RUNS_KEPT);
        request.generation = request.generation.wrapping_add(1);
        self.free.push(index);
    }

    /// Reports a request and frees its place.
    fn end(&mut self, index: u16) {
        let request = &self.requests[usize::from(index)];
        self.ended.push_back(Completion { disk: request.disk, id: request.id, outcome: request.outcome });
        self.vacate(index);
    }

    /// Hands waiting pieces to the disk until it has no room.
    fn issue(&mut self) {
        while let Some(&index) = self.waiting.front() {
            match self.issue_piece(index) {
                Issue::More => self.waiting.rotate_left(1),
                Issue::All => self.leave_line(),
                Issue::Full if self.pieces_in_flight > 0 => return,
                // An idle disk without room would never have any.
                Issue::Full => {
                    self.requests[usize::from(index)].fail(IoError::Device);
                    self.leave_line();
                }
                Issue::Stopped => self.leave_line(),
            }
        }
    }

    /// Takes the first request out of the line, and ends it if the disk has nothing of it.
    fn leave_line(&mut self) {
        let Some(index) = self.waiting.pop_front() else { return };
        let request = &mut self.requests[usize::from(index)];
        request.queued = false;
        if request.pieces == 0 {
            self.end(index);
        }
    }

    fn issue_piece(&mut self, index: u16) -> Issue {
        let request = &mut self.requests[usize::from(index)];
        if request.outcome.is_err() {
            return Issue::Stopped;
        }
        let geometry = self.disk.geometry();
        let mut cursor = request.cursor;
        let sectors = match request.op {
            Op::Read | Op::Write | Op::WriteThrough => {
                cursor.cut(&request.runs, request.sectors_left, geometry, &mut self.piece)
            }
            Op::Flush | Op::Discard | Op::WriteZeroes => {
                self.piece.clear();
                Some(dataless_sectors(request.op, request.sectors_left, geometry))
            }
        };
        let Some(sectors) = sectors else {
            request.fail(IoError::Unsupported);
            return Issue::Stopped;
        };
        let (id, op, sector) = (request.token(index), request.op, request.sector);
        match self.disk.submit(&Transfer { id, op, sector, sectors, runs: &self.piece }) {
            Ok(()) => {}
            Err(SubmitError::Full) => return Issue::Full,
            Err(SubmitError::Refused) => {
                request.fail(IoError::Device);
                return Issue::Stopped;
            }
        }
        self.kick_due = true;
        self.pieces_in_flight += 1;
        request.pieces += 1;
        request.cursor = cursor;
        request.sector += u64::from(sectors);
        request.sectors_left -= sectors;
        if request.sectors_left > 0 { Issue::More } else { Issue::All }
    }

    /// Books a completion of the disk. One for nothing that the disk has is ignored.
    fn settle(&mut self, token: u64, outcome: Outcome) {
        let index = token as u16;
        let Some(request) = self.requests.get_mut(usize::from(index)) else { return };
        if !request.live || request.pieces == 0 || request.token(index) != token {
            return;
        }
        self.pieces_in_flight -= 1;
        request.pieces -= 1;
        if let Err(error) = outcome {
            request.fail(error);
        }
        if request.pieces == 0 && !request.queued {
            self.end(index);
        }
    }
}

impl Request {
    fn vacant() -> Self {
        Self {
            disk: VirtualDisk { partition: 0, generation: 0 },
            id: 0,
            op: Op::Flush,
            sector: 0,
            sectors_left: 0,
            runs: Vec::new(),
            cursor: Cursor::default(),
            pieces: 0,
            queued: false,
            live: false,
            generation: 0,
            outcome: Ok(()),
        }
    }

    /// What the disk calls each of its pieces: the place and, above it, which user of the place.
    fn token(&self, index: u16) -> u64 {
        u64::from(self.generation) << 32 | u64::from(index)
    }

    /// Records an error unless there is one.
    fn fail(&mut self, error: IoError) {
        self.outcome = self.outcome.and(Err(error));
    }
}

#[cfg(test)]
mod tests;
