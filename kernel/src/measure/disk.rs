//! How fast the host's disks read: what `disk measure` started, in steps that block nobody.
//!
//! [`begin`] starts one. Which reads there are says
//! [`block::Load`]; their memory belongs to the measurement and is in the reach of its disk alone.

use super::{Measurement, Next, Outcome, submit};
use crate::host::Host;
use crate::slot::{Full, Slot, Staging, io_error};
use crate::vm::Refusal;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use block::{HostRun, Load, Op, Order, Pattern, SECTOR_BYTES};
use shell::{LoadOrder, Measured, MeasuredLoad, Reply};

/// The loads that a disk is put under, one after the other. The first needs the most memory.
const PATTERNS: [Pattern; 3] = [
    Pattern { order: Order::Sequential, bytes: 1 << 20, depth: 8 },
    Pattern { order: Order::Random, bytes: 4096, depth: 1 },
    Pattern { order: Order::Random, bytes: 4096, depth: 32 },
];
const STAGING_BYTES: u64 = PATTERNS[0].bytes as u64 * PATTERNS[0].depth as u64;
/// How soon a disk that had no room is asked again.
const RETRY_NS: u64 = 100_000;

/// One disk being measured.
struct DiskMeasurement {
    outcome: Arc<Outcome>,
    slot: Slot,
    device: String,
    staging: Staging,
    load: Load,
    /// The memory of each of the load's buffers.
    buffers: Vec<Vec<HostRun>>,
    done: Vec<MeasuredLoad>,
}

/// Begins to measure the host disk called `name`.
pub fn begin(host: &'static Host, name: &str) -> Result<Arc<Outcome>, Refusal> {
    let slot = Slot::claim_disk(host, name)?;
    let now_ns = host.clock.now_ns();
    let too_small = || (format!("{name} is too small to measure"), "it takes a mebibyte".into());
    let made = Load::new(PATTERNS[0], slot.bytes() / u64::from(SECTOR_BYTES), now_ns)
        .ok_or_else(too_small)
        .and_then(|load| Ok((load, Staging::new(&slot, STAGING_BYTES)?)));
    let (load, staging) = made.inspect_err(|_| slot.release(host))?;
    let outcome: Arc<Outcome> = Arc::default();
    submit(DiskMeasurement {
        outcome: outcome.clone(),
        device: slot.device_name(host),
        buffers: buffers(&staging, PATTERNS[0]),
        slot,
        staging,
        load,
        done: Vec::new(),
    });
    Ok(outcome)
}

impl Measurement for DiskMeasurement {
    fn poll(&mut self, host: &'static Host) -> Next {
        let now_ns = host.clock.now_ns();
        while let Some(buffer) = self.slot.ended(host) {
            self.load.ended(buffer as u32, now_ns);
        }
        let is_wanted = self.outcome.is_wanted();
        let mut next = Next::Transfer;
        if is_wanted && !self.slot.has_failed() {
            if self.load.is_over(now_ns) && !self.take_next_load(now_ns) {
                return self.end(host, None);
            }
            next = self.read(host, now_ns);
        }
        // The disk may still write to the memory.
        if (self.slot.has_failed() || !is_wanted) && self.slot.is_idle() {
            return self.end(host, Some(io_error(self.slot.name())));
        }
        next
    }
}

impl DiskMeasurement {
    /// Notes what the load did, and begins the next if there is one.
    fn take_next_load(&mut self, now_ns: u64) -> bool {
        let pattern = PATTERNS[self.done.len()];
        let rate = self.load.rate();
        self.done.push(MeasuredLoad {
            order: match pattern.order {
                Order::Sequential => LoadOrder::Sequential,
                Order::Random => LoadOrder::Random,
            },
            read_bytes: pattern.bytes,
            depth: pattern.depth,
            reads: rate.reads,
            time_ns: rate.time_ns,
            bytes_per_second: rate.bytes_per_second(pattern.bytes),
            reads_per_second: rate.per_second(),
        });
        let Some(&pattern) = PATTERNS.get(self.done.len()) else { return false };
        let sectors = self.slot.bytes() / u64::from(SECTOR_BYTES);
        self.load = Load::new(pattern, sectors, now_ns).expect("longer reads fitted");
        self.buffers = buffers(&self.staging, pattern);
        true
    }

    /// Hands reads to the disk for every buffer that has none.
    fn read(&mut self, host: &Host, now_ns: u64) -> Next {
        let mut next = Next::Transfer;
        while !self.slot.has_failed()
            && let Some(read) = self.load.next(now_ns)
        {
            let runs = &self.buffers[read.buffer as usize];
            let at_bytes = read.sector * u64::from(SECTOR_BYTES);
            if let Err(Full) = self.slot.queue(host, read.buffer.into(), Op::Read, at_bytes, runs) {
                self.load.not_taken(read.buffer);
                next = Next::At(now_ns + RETRY_NS);
                break;
            }
        }
        self.slot.kick(host);
        next
    }

    fn end(&mut self, host: &Host, refusal: Option<Refusal>) -> Next {
        self.slot.release(host);
        let loads = core::mem::take(&mut self.done);
        let measured = Measured { disk: self.slot.name().into(), device: self.device.clone(), loads };
        self.outcome.put(refusal.map_or(Ok(Reply::Measured(measured)), Err));
        Next::Over
    }
}

/// Memory for each of a load's reads.
fn buffers(staging: &Staging, pattern: Pattern) -> Vec<Vec<HostRun>> {
    let bytes = u64::from(pattern.bytes);
    (0..u64::from(pattern.depth)).map(|buffer| staging.runs_at(buffer * bytes, bytes)).collect()
}
