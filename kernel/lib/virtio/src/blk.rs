//! The block device (5.2): requests out of the ring, outcomes back in.
//!
//! [`Blk`] checks each request against the disk before its owner sees it as a [`Request`] with the guest's own buffers,
//! ready for DMA; what is malformed or needs no disk is answered here. Each request is bounded by its chain.

mod saved;

pub use saved::Saved;

use crate::chain::{Chain, after, gather, scatter, total_bytes};
use crate::{Device, Function, Piece, Signal};
use addr::Gpa;
use alloc::vec::Vec;
use guestmem::GuestMemory;

/// The unit of sectors, whatever the disk's block size (5.2.4).
pub const SECTOR_BYTES: u64 = 512;

const QUEUE: usize = 0;
const HEADER_BYTES: usize = 16;
const SEGMENT_BYTES: usize = 16;
const SERIAL_BYTES: usize = 20;

/// Feature bits (5.2.3).
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Request types (5.2.6).
const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

/// The one flag of a discard or write-zeroes segment.
const SEGMENT_UNMAP: u32 = 1;

/// What a disk is. Sectors are 512 bytes.
#[derive(Clone, Debug)]
pub struct BlkConfig {
    /// Its capacity.
    pub sectors: u64,
    /// Writes of any kind fail.
    pub read_only: bool,
    /// Up to 20 characters, padded with zeroes.
    pub serial: [u8; SERIAL_BYTES],
    /// Whether discard and write-zeroes are offered.
    pub discard: bool,
    /// Entries in the queue, a power of two of at least 4. Usually [`BlkConfig::QUEUE_SIZE`].
    pub queue_size: u16,
    /// Bytes in the disk's logical block, a multiple of 512: what a driver aligns to. Nothing enforces it here.
    pub block_bytes: u32,
    /// Logical blocks in a physical one, as a power of two.
    pub physical_block_exponent: u8,
    /// The most sectors in one discard or write-zeroes request, a multiple of the block.
    pub range_sectors_max: u32,
}

impl BlkConfig {
    /// The queue size that suits most disks.
    pub const QUEUE_SIZE: u16 = 256;

    /// A writable disk of 512-byte blocks in 4 KiB physical ones that takes discards.
    pub fn new(sectors: u64) -> Self {
        Self {
            sectors,
            read_only: false,
            serial: [0; SERIAL_BYTES],
            discard: true,
            queue_size: Self::QUEUE_SIZE,
            block_bytes: SECTOR_BYTES as u32,
            physical_block_exponent: 3,
            // 2 GiB: long, but no range takes a disk for minutes.
            range_sectors_max: 1 << 22,
        }
    }
}

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Op {
    /// Disk to guest memory.
    #[default]
    Read,
    /// Guest memory to disk.
    Write,
    /// Everything completed so far must be stable before this completes.
    Flush,
    /// The range's content is not needed any more.
    Discard,
    /// The range must read as zeroes.
    WriteZeroes {
        /// It may be deallocated for that.
        unmap: bool,
    },
}

/// A request, checked against the disk. Reused from one to the next.
#[derive(Clone, Default, Debug)]
pub struct Request {
    /// What to complete it by; unique among the requests in flight.
    pub id: u16,
    /// What to do.
    pub op: Op,
    /// The first sector. The range lies on the disk.
    pub sector: u64,
    /// How many sectors; 0 only for a flush.
    pub sectors: u64,
    /// The guest's buffers for a read or write, together `sectors` long and all in memory; otherwise empty. A single
    /// piece can start anywhere and have any length.
    pub pieces: Vec<Piece>,
}

impl Request {
    /// The length of the range.
    pub fn bytes(&self) -> u64 {
        self.sectors * SECTOR_BYTES
    }
}

/// How a request ended. The values are those of the status byte (5.2.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Done.
    Ok = 0,
    /// The disk failed.
    IoError = 1,
    /// The disk does not do that.
    Unsupported = 2,
}

/// A request in flight, by the index of its head.
#[derive(Clone, Copy, Default, Debug)]
struct InFlight {
    busy: bool,
    status: Gpa,
    /// Data bytes that the device writes if all goes well.
    bytes: u32,
}

/// The block device.
#[derive(Clone, Debug)]
pub struct Blk {
    config: BlkConfig,
    queue_sizes: [u16; 1],
    features: u64,
    in_flight: Vec<InFlight>,
}

impl Blk {
    /// The device for a disk.
    ///
    /// # Panics
    /// On a configuration that no disk has.
    pub fn new(config: BlkConfig) -> Self {
        assert!(config.queue_size >= 4, "a request needs three descriptors");
        let block_bytes = u64::from(config.block_bytes);
        assert!(block_bytes.is_multiple_of(SECTOR_BYTES) && (SECTOR_BYTES..=1 << 16).contains(&block_bytes));
        assert!(config.physical_block_exponent < 16);
        let in_flight = alloc::vec![InFlight::default(); usize::from(config.queue_size)];
        Self { queue_sizes: [config.queue_size], features: 0, in_flight, config }
    }

    /// The disk.
    pub fn config(&self) -> &BlkConfig {
        &self.config
    }

    /// Whether each write must be stable when it completes: the driver knows no flush (5.2.6.2).
    pub fn write_through(&self) -> bool {
        self.features & F_FLUSH == 0
    }

    /// How many requests were taken and not completed.
    pub fn in_flight(&self) -> usize {
        self.in_flight.iter().filter(|slot| slot.busy).count()
    }

    /// Where requests that were taken and not completed are to be answered.
    pub fn statuses(&self) -> impl Iterator<Item = Gpa> + '_ {
        self.in_flight.iter().filter(|slot| slot.busy).map(|slot| slot.status)
    }

    fn config_image(&self) -> [u8; CONFIG_BYTES as usize] {
        let config = &self.config;
        let mut image = [0; CONFIG_BYTES as usize];
        let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &config.sectors.to_le_bytes());
        // Header and status take a descriptor each.
        put(12, &u32::from(config.queue_size - 2).to_le_bytes());
        put(20, &config.block_bytes.to_le_bytes());
        put(24, &[config.physical_block_exponent]);
        // Transfers below a physical block are slow.
        put(26, &(1u16 << config.physical_block_exponent).to_le_bytes());
        put(34, &1u16.to_le_bytes());
        if config.discard {
            let physical = (config.block_bytes / SECTOR_BYTES as u32) << config.physical_block_exponent;
            put(36, &config.range_sectors_max.to_le_bytes());
            put(40, &1u32.to_le_bytes());
            put(44, &physical.to_le_bytes());
            put(48, &config.range_sectors_max.to_le_bytes());
            put(52, &1u32.to_le_bytes());
            put(56, &[1]);
        }
        image
    }

    /// Reads the request in `chain` and fills all of `request` but the identifier.
    fn parse(&self, memory: &GuestMemory, chain: &Chain, request: &mut Request) -> Verdict {
        let mut header = [0; HEADER_BYTES];
        let got = gather(memory, chain.readable.iter().copied(), &mut header);
        if chain.disordered || got != Ok(HEADER_BYTES) {
            return IO_ERROR;
        }
        let header = u128::from_le_bytes(header);
        request.sector = (header >> 64) as u64;
        match header as u32 {
            TYPE_IN => self.parse_read(memory, chain, request),
            TYPE_OUT => self.parse_write(memory, chain, request),
            TYPE_FLUSH => {
                (request.op, request.sector, request.sectors) = (Op::Flush, 0, 0);
                Verdict::Ask
            }
            TYPE_DISCARD if self.features & F_DISCARD != 0 => {
                request.op = Op::Discard;
                self.parse_range(memory, chain, request)
            }
            TYPE_WRITE_ZEROES if self.features & F_WRITE_ZEROES != 0 => {
                request.op = Op::WriteZeroes { unmap: false };
                self.parse_range(memory, chain, request)
            }
            TYPE_GET_ID => self.give_id(memory, chain),
            _ => UNSUPPORTED,
        }
    }

    fn parse_read(&self, memory: &GuestMemory, chain: &Chain, request: &mut Request) -> Verdict {
        if total_bytes(&chain.readable) != HEADER_BYTES as u64 {
            return IO_ERROR;
        }
        request.op = Op::Read;
        request.pieces.extend_from_slice(&chain.writable);
        // The last byte is the status, which may share a buffer with data.
        if let Some((at, bytes)) = request.pieces.pop()
            && bytes > 1
        {
            request.pieces.push((at, bytes - 1));
        }
        self.check_transfer(memory, request)
    }

    fn parse_write(&self, memory: &GuestMemory, chain: &Chain, request: &mut Request) -> Verdict {
        if total_bytes(&chain.writable) != 1 || self.config.read_only {
            return IO_ERROR;
        }
        request.op = Op::Write;
        request.pieces.extend(after(&chain.readable, HEADER_BYTES as u64));
        self.check_transfer(memory, request)
    }

    /// Checks the buffers of a read or write, and that they fit the disk.
    fn check_transfer(&self, memory: &GuestMemory, request: &mut Request) -> Verdict {
        let bytes = total_bytes(&request.pieces);
        // The used ring counts in 32 bits, status included.
        if !bytes.is_multiple_of(SECTOR_BYTES) || bytes >= u64::from(u32::MAX) {
            return IO_ERROR;
        }
        request.sectors = bytes / SECTOR_BYTES;
        if !self.on_disk(request) || request.pieces.iter().any(|&(at, bytes)| memory.check(at, bytes.into()).is_err()) {
            return IO_ERROR;
        }
        if bytes == 0 { OK } else { Verdict::Ask }
    }

    /// Reads the one segment of a discard or write-zeroes request (5.2.6.2).
    fn parse_range(&self, memory: &GuestMemory, chain: &Chain, request: &mut Request) -> Verdict {
        if self.config.read_only {
            return IO_ERROR;
        }
        if total_bytes(&chain.readable) != (HEADER_BYTES + SEGMENT_BYTES) as u64 {
            return UNSUPPORTED;
        }
        let mut segment = [0; SEGMENT_BYTES];
        if gather(memory, after(&chain.readable, HEADER_BYTES as u64), &mut segment) != Ok(SEGMENT_BYTES) {
            return IO_ERROR;
        }
        let segment = u128::from_le_bytes(segment);
        let (sectors, flags) = ((segment >> 64) as u32, (segment >> 96) as u32);
        (request.sector, request.sectors) = (segment as u64, sectors.into());
        match (&mut request.op, flags) {
            (_, 0) => {}
            (Op::WriteZeroes { unmap }, SEGMENT_UNMAP) => *unmap = true,
            _ => return UNSUPPORTED,
        }
        if sectors > self.config.range_sectors_max || !self.on_disk(request) {
            return IO_ERROR;
        }
        if sectors == 0 { OK } else { Verdict::Ask }
    }

    /// Writes the serial number, in front of the status.
    fn give_id(&self, memory: &GuestMemory, chain: &Chain) -> Verdict {
        let room = total_bytes(&chain.writable).saturating_sub(1).min(SERIAL_BYTES as u64) as usize;
        match scatter(memory, chain.writable.iter().copied(), &self.config.serial[..room]) {
            Ok(bytes) => Verdict::Answer(Outcome::Ok, bytes as u32),
            Err(_) => IO_ERROR,
        }
    }

    fn on_disk(&self, request: &Request) -> bool {
        request.sector.checked_add(request.sectors).is_some_and(|end| end <= self.config.sectors)
    }
}

/// What becomes of a request once it is read.
enum Verdict {
    /// The disk must be asked.
    Ask,
    /// The outcome is known, with this many data bytes written.
    Answer(Outcome, u32),
}

const OK: Verdict = Verdict::Answer(Outcome::Ok, 0);
const IO_ERROR: Verdict = Verdict::Answer(Outcome::IoError, 0);
const UNSUPPORTED: Verdict = Verdict::Answer(Outcome::Unsupported, 0);

/// The configuration structure (5.2.4) up to and with the write-zeroes fields.
const CONFIG_BYTES: u32 = 60;

impl Device for Blk {
    const TYPE: u16 = 2;
    /// Mass storage, other.
    const CLASS: u32 = 0x01_8000;
    const CONFIG_BYTES: u32 = CONFIG_BYTES;

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let read_only = if self.config.read_only { F_RO } else { 0 };
        let discard = if self.config.discard { F_DISCARD | F_WRITE_ZEROES } else { 0 };
        F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | read_only | discard
    }

    fn set_driver_features(&mut self, features: u64) {
        self.features = features;
    }

    fn config_read(&self, offset: u32, into: &mut [u8]) {
        crate::copy_from_image(&self.config_image(), offset, into);
    }

    fn reset(&mut self) {
        self.features = 0;
        self.in_flight.fill(InFlight::default());
    }
}

impl Function<Blk> {
    /// Takes the next request. False where there is none for now: a kick will tell, or the notify that ends the batch.
    pub fn next_request(&mut self, memory: &GuestMemory, request: &mut Request) -> bool {
        // Requests answered on the way cost time too, and the driver may add more of them meanwhile.
        for _ in 0..self.device.config.queue_size {
            let Some(id) = self.transport.pop_chain(memory, QUEUE, &mut self.chain) else { return false };
            let Some(status) =
                status_byte(memory, &self.chain).filter(|_| !self.device.in_flight[usize::from(id)].busy)
            else {
                // There is nowhere to report to, or the head is in use: the driver has lost track.
                self.transport.fail();
                return false;
            };
            request.id = id;
            request.pieces.clear();
            match self.device.parse(memory, &self.chain, request) {
                Verdict::Ask => {
                    let bytes = if request.op == Op::Read { request.bytes() as u32 } else { 0 };
                    self.device.in_flight[usize::from(id)] = InFlight { busy: true, status, bytes };
                    return true;
                }
                Verdict::Answer(outcome, bytes) => self.answer(memory, id, status, outcome, bytes),
            }
        }
        self.transport.leave_unfinished(QUEUE);
        false
    }

    /// Completes a request. An identifier that is not in flight (it was, before a reset) is ignored. The driver sees it
    /// after [`Function::notify_if_needed`].
    pub fn complete(&mut self, memory: &GuestMemory, id: u16, outcome: Outcome) {
        let Some(slot) = self.device.in_flight.get_mut(usize::from(id)) else { return };
        let InFlight { busy: true, status, bytes } = core::mem::take(slot) else { return };
        let bytes = if outcome == Outcome::Ok { bytes } else { 0 };
        self.answer(memory, id, status, outcome, bytes);
    }

    /// Ends a batch of [`Function::next_request`] and [`Function::complete`] calls: shows the driver what was completed
    /// and interrupts it if it asked for that.
    pub fn notify_if_needed(&mut self, memory: &GuestMemory, signals: &mut Vec<Signal>) {
        self.transport.notify(memory, QUEUE, signals);
    }

    /// The disk has another size now; the driver is told.
    pub fn resize(&mut self, sectors: u64, signals: &mut Vec<Signal>) {
        self.device.config.sectors = sectors;
        self.transport.change_config();
        self.transport.flush(signals);
    }

    fn answer(&mut self, memory: &GuestMemory, id: u16, status: Gpa, outcome: Outcome, bytes: u32) {
        match memory.store(status, 1, outcome as u64) {
            Ok(()) => self.transport.push_used(memory, QUEUE, id, bytes + 1),
            Err(_) => self.transport.fail(),
        }
    }
}

/// Where the status goes: the last byte the device may write, if that is memory.
fn status_byte(memory: &GuestMemory, chain: &Chain) -> Option<Gpa> {
    let (at, bytes) = *chain.writable.last()?;
    let status = at.checked_add(u64::from(bytes) - 1)?;
    memory.check(status, 1).ok().map(|()| status)
}

#[cfg(test)]
mod tests;
