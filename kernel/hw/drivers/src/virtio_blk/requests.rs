//! A virtio disk's requests in flight (section 5.2.6).
//!
//! The main type is [`Requests`]. Each request's header, segment and status live in a slot of DMA memory that belongs to
//! the head of its chain, so none is ever allocated.

use crate::dma::DmaMemory;
use crate::virtio::Queue;
use crate::virtio::ring::{Buffer, Position};
use alloc::string::String;
use alloc::vec::Vec;
use block::{IoError, Op, Outcome, SubmitError, Transfer};
use virtio_drivers::Hal;

/// Request types.
const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

/// Status values.
const STATUS_OK: u8 = 0;
const STATUS_UNSUPPORTED: u8 = 2;
/// What the status is before the device writes it; none of the device's.
const STATUS_NONE: u8 = 0xff;

/// A slot: the request's header, the segment of a discard or zeroing, the serial number, the status.
const SLOT_BYTES: usize = 64;
const HEADER_BYTES: usize = 16;
const SEGMENT_AT: usize = 16;
const SEGMENT_BYTES: usize = 16;
const SERIAL_AT: usize = 32;
const SERIAL_BYTES: usize = 20;
const STATUS_AT: usize = 52;

/// How often the queue is looked at for the serial number, with a pause each: well under a second.
const SERIAL_POLLS_MAX: u32 = 5_000_000;

/// What a chain with the device is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flight {
    /// The transfer with this id.
    Transfer(u64),
    /// The serial number.
    Serial,
}

/// The requests that a disk has.
pub(super) struct Requests<H: Hal> {
    queue: Queue<H>,
    slots: DmaMemory<H>,
    /// By the head of the chain.
    flights: Vec<Option<Flight>>,
}

impl<H: Hal> Requests<H> {
    /// An empty set on a queue; `None` where there is no memory.
    pub(super) fn new(queue: Queue<H>) -> Option<Self> {
        let size = usize::from(queue.ring.size());
        Some(Self { queue, slots: DmaMemory::new(size * SLOT_BYTES)?, flights: alloc::vec![None; size] })
    }

    /// Whether the device has broken the rules.
    pub(super) fn is_broken(&self) -> bool {
        self.queue.ring.is_broken()
    }

    /// Puts a transfer, which the disk can do, into the queue.
    pub(super) fn submit(&mut self, transfer: &Transfer<'_>) -> Result<(), SubmitError> {
        let (kind, data) = match transfer.op {
            Op::Read => (TYPE_IN, Data::Runs { device_writes: true }),
            // It offers no writing through, so that only plain writes come here.
            Op::Write | Op::WriteThrough => (TYPE_OUT, Data::Runs { device_writes: false }),
            Op::Flush => (TYPE_FLUSH, Data::None),
            Op::Discard => (TYPE_DISCARD, Data::Segment),
            Op::WriteZeroes => (TYPE_WRITE_ZEROES, Data::Segment),
        };
        self.push(kind, data, transfer, Flight::Transfer(transfer.id)).ok_or(SubmitError::Full)
    }

    /// Tells the device of what was submitted.
    pub(super) fn kick(&mut self) {
        self.queue.kick();
    }

    /// The next transfer that the device has finished.
    pub(super) fn completed(&mut self) -> Option<(u64, Outcome)> {
        loop {
            let head = self.queue.ring.pop()?.head;
            let status = self.slots.load(usize::from(head) * SLOT_BYTES + STATUS_AT);
            if let Some(Flight::Transfer(id)) = self.flights[usize::from(head)].take() {
                return Some((id, outcome(status)));
            }
        }
    }

    /// Asks for an interrupt at the next completion; returns whether there is one already.
    pub(super) fn arm(&mut self) -> bool {
        self.queue.ring.arm()
    }

    /// Gives up one transfer that the device had. Only once the device is stopped.
    pub(super) fn abandon(&mut self) -> Option<(u64, Outcome)> {
        self.flights.iter_mut().find_map(|flight| match flight.take() {
            Some(Flight::Transfer(id)) => Some((id, Err(IoError::Device))),
            Some(Flight::Serial) | None => None,
        })
    }

    /// Asks the disk for its serial number and waits for a while. `None` where it has none or takes too long; then the
    /// request stays with the device, which may write into its slot for as long as it likes.
    pub(super) fn read_serial(&mut self) -> Option<String> {
        let none = Transfer { id: 0, op: Op::Read, sector: 0, sectors: 0, runs: &[] };
        self.push(TYPE_GET_ID, Data::Serial, &none, Flight::Serial)?;
        self.queue.kick();
        for _ in 0..SERIAL_POLLS_MAX {
            if let Some(used) = self.queue.ring.pop() {
                self.flights[usize::from(used.head)] = None;
                return self.serial(used.head);
            }
            core::hint::spin_loop();
        }
        None
    }

    fn serial(&self, head: u16) -> Option<String> {
        let slot = usize::from(head) * SLOT_BYTES;
        if self.slots.load::<u8>(slot + STATUS_AT) != STATUS_OK {
            return None;
        }
        let mut bytes = Vec::new();
        self.slots.append_to(slot + SERIAL_AT, SERIAL_BYTES, &mut bytes);
        Some(printable(&bytes))
    }

    /// Writes a request into the slot of the next head and puts its chain into the ring.
    fn push(&mut self, kind: u32, data: Data, transfer: &Transfer<'_>, flight: Flight) -> Option<()> {
        let (slots, runs) = (&mut self.slots, transfer.runs);
        let data_buffers = match data {
            Data::None => 0,
            Data::Segment | Data::Serial => 1,
            Data::Runs { .. } => runs.len(),
        };
        let head = self.queue.ring.push(data_buffers + 2, |Position { head, index, .. }| {
            let slot = usize::from(head) * SLOT_BYTES;
            let inside = |at: usize, bytes: usize, device_writes| Buffer {
                address: slots.physical(slot + at),
                bytes: bytes as u32,
                device_writes,
            };
            match (index.checked_sub(1), data) {
                (None, _) => {
                    let header = inside(0, HEADER_BYTES, false);
                    write_slot(slots, slot, kind, transfer);
                    header
                }
                (Some(index), _) if index == data_buffers => inside(STATUS_AT, 1, true),
                (Some(index), Data::Runs { device_writes }) => {
                    Buffer { address: runs[index].start.as_u64(), bytes: runs[index].bytes, device_writes }
                }
                (Some(_), Data::Serial) => inside(SERIAL_AT, SERIAL_BYTES, true),
                (Some(_), Data::Segment | Data::None) => inside(SEGMENT_AT, SEGMENT_BYTES, false),
            }
        })?;
        self.flights[usize::from(head)] = Some(flight);
        Some(())
    }
}

/// What lies between a request's header and its status.
#[derive(Clone, Copy)]
enum Data {
    None,
    /// The transfer's runs.
    Runs {
        device_writes: bool,
    },
    /// The slot's segment.
    Segment,
    /// The slot's serial number.
    Serial,
}

/// Fills a slot: header, segment, and a status that the device has to overwrite.
fn write_slot<H: Hal>(slots: &mut DmaMemory<H>, slot: usize, kind: u32, transfer: &Transfer<'_>) {
    let has_segment = matches!(kind, TYPE_DISCARD | TYPE_WRITE_ZEROES);
    // The device takes a discard's place from its segment.
    let sector = if has_segment { 0 } else { transfer.sector };
    slots.store(slot, kind);
    slots.store(slot + 4, 0_u32);
    slots.store(slot + 8, sector);
    if has_segment {
        slots.store(slot + SEGMENT_AT, transfer.sector);
        slots.store(slot + SEGMENT_AT + 8, transfer.sectors);
        slots.store(slot + SEGMENT_AT + 12, 0_u32);
    }
    slots.store(slot + STATUS_AT, STATUS_NONE);
}

fn outcome(status: u8) -> Outcome {
    match status {
        STATUS_OK => Ok(()),
        STATUS_UNSUPPORTED => Err(IoError::Unsupported),
        _ => Err(IoError::Device),
    }
}

/// A serial number without what could talk to the operator's terminal.
fn printable(bytes: &[u8]) -> String {
    let text = bytes.iter().take_while(|byte| **byte != 0);
    text.map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' }).collect()
}
