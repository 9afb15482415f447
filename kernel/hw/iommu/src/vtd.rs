//! Intel's IOMMU (Intel Virtualization Technology for Directed I/O, specification 4.1), in legacy mode.
//!
//! [`VtD`] keeps the root and context tables, and speaks to the unit through its invalidation queue.

use crate::registers::Registers;
use crate::shared::Shared;
use crate::{Abilities, Fault, Source, Stuck, Unit, wait};
use addr::Hpa;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Registers (11.4).
const CAPABILITY: u64 = 0x08;
const EXTENDED_CAPABILITY: u64 = 0x10;
const COMMAND: u64 = 0x18;
const STATUS: u64 = 0x1c;
const ROOT_TABLE: u64 = 0x20;
const FAULT_STATUS: u64 = 0x34;
const QUEUE_TAIL: u64 = 0x88;
const QUEUE_ADDRESS: u64 = 0x90;
/// What is mapped: the registers and, on units that have them further up, the fault records.
const WINDOW_BYTES: u64 = 0x1000;

/// Bits of COMMAND and STATUS (11.4.4, 11.4.5).
const TRANSLATION: u32 = 1 << 31;
const SET_ROOT: u32 = 1 << 30;
const WRITE_BUFFER: u32 = 1 << 27;
const QUEUE: u32 = 1 << 26;
const INTERRUPT_REMAPPING: u32 = 1 << 25;
/// The bits of STATUS that say what stays on, and that COMMAND must repeat.
const LASTING: u32 = TRANSLATION | QUEUE | INTERRUPT_REMAPPING;

/// Fault status (11.4.7): an overflow, and whether any record is full.
const FAULT_OVERFLOW: u32 = 1;
const FAULT_PENDING: u32 = 1 << 1;

/// Descriptors of the invalidation queue (6.5.2), and how many it holds.
const CONTEXT_CACHE: u64 = 1;
const IOTLB: u64 = 2;
const WAIT: u64 = 5;
const GLOBAL: u64 = 1 << 4;
const DOMAIN: u64 = 2 << 4;
const DRAIN: u64 = 3 << 6;
const WAIT_WRITES: u64 = 1 << 5;
const DESCRIPTORS: u64 = 256;

/// A context entry's address width for four levels (9.3).
const FOUR_LEVELS: u64 = 2;
const PRESENT: u64 = 1;

/// One VT-d unit.
pub struct VtD {
    registers: Registers,
    capability: u64,
    coherent: bool,
    root: Shared,
    /// Context tables by bus.
    contexts: Vec<Option<Shared>>,
    queue: Shared,
    /// What the unit writes when it has waited.
    done: Shared,
    tail: u64,
    waits: u32,
    /// The fault record to look at next.
    record: u64,
}

impl VtD {
    /// Takes over the unit whose registers are at `base`, or says why it cannot be used.
    ///
    /// # Safety
    /// A unit is there, and the caller alone drives it.
    pub unsafe fn open(base: Hpa) -> Result<Self, String> {
        // SAFETY: the caller's promise.
        let registers = unsafe { Registers::map(base, WINDOW_BYTES) };
        let (capability, extended) = (registers.read64(CAPABILITY), registers.read64(EXTENDED_CAPABILITY));
        let why = check(capability, extended);
        if let Some(why) = why {
            return Err(format!("VT-d at {base}: {why}"));
        }
        let coherent = extended & 1 != 0;
        let no_memory = || "there is no memory for its tables".to_string();
        let shared = || Shared::new(1, !coherent).ok_or_else(no_memory);
        let (root, queue, done) = (shared()?, shared()?, shared()?);
        let contexts = (0..256).map(|_| None).collect();
        Ok(Self { registers, capability, coherent, root, contexts, queue, done, tail: 0, waits: 0, record: 0 })
    }

    /// Sends a bit of COMMAND, and waits until STATUS shows it as `on`.
    fn command(&mut self, bit: u32, on: bool) -> Result<(), Stuck> {
        let lasting = self.registers.read32(STATUS) & LASTING & !bit;
        self.registers.write32(COMMAND, lasting | if on { bit } else { 0 });
        wait(|| (self.registers.read32(STATUS) & bit != 0) == on)
    }

    /// Puts descriptors into the queue and waits until they are done.
    fn submit(&mut self, descriptors: &[[u64; 2]]) -> Result<(), Stuck> {
        self.waits = self.waits.wrapping_add(1);
        let wait_for = [WAIT | WAIT_WRITES | u64::from(self.waits) << 32, self.done.start().as_u64()];
        for [low, high] in descriptors.iter().copied().chain([wait_for]) {
            let index = self.tail as usize * 2;
            self.queue.write(index + 1, high);
            self.queue.write(index, low);
            self.tail = (self.tail + 1) % DESCRIPTORS;
        }
        self.registers.write64(QUEUE_TAIL, self.tail << 4);
        wait(|| self.done.read(0) as u32 == self.waits)
    }

    /// Older chipsets keep writes of the tables back until told (6.8).
    fn flush_writes(&mut self) -> Result<(), Stuck> {
        if self.capability & 1 << 4 == 0 {
            return Ok(());
        }
        let lasting = self.registers.read32(STATUS) & LASTING;
        self.registers.write32(COMMAND, lasting | WRITE_BUFFER);
        // This bit of STATUS is set while it works.
        wait(|| self.registers.read32(STATUS) & WRITE_BUFFER == 0)
    }
}

/// Why a unit with these capabilities cannot be used.
fn check(capability: u64, extended: u64) -> Option<&'static str> {
    let records_end = fault_records(capability) + 16 * fault_record_count(capability);
    match () {
        () if capability == u64::MAX => Some("nothing answers there"),
        () if extended & 1 << 1 == 0 => Some("it has no invalidation queue"),
        () if capability & 1 << 10 == 0 => Some("it does not walk four levels"),
        () if capability & 7 < 2 => Some("it has too few domains"),
        () if records_end > WINDOW_BYTES => Some("its fault records are out of reach"),
        () => None,
    }
}

/// Where the fault records start (11.4.2, FRO), and how many there are (NFR).
fn fault_records(capability: u64) -> u64 {
    (capability >> 24 & 0x3ff) * 16
}

fn fault_record_count(capability: u64) -> u64 {
    (capability >> 40 & 0xff) + 1
}

impl Unit for VtD {
    fn abilities(&self) -> Abilities {
        Abilities {
            large_pages: self.capability & 1 << 34 != 0,
            coherent: self.coherent,
            caches_absence: self.capability & 1 << 7 != 0,
        }
    }

    fn enable(&mut self) -> Result<(), Stuck> {
        // What a firmware left on is on with its own tables.
        self.command(QUEUE, false)?;
        self.command(INTERRUPT_REMAPPING, false)?;
        self.flush_writes()?;
        self.registers.write64(ROOT_TABLE, self.root.start().as_u64());
        self.command(SET_ROOT, true)?;
        self.registers.write64(QUEUE_TAIL, 0);
        self.registers.write64(QUEUE_ADDRESS, self.queue.start().as_u64());
        self.command(QUEUE, true)?;
        self.submit(&[[CONTEXT_CACHE | GLOBAL, 0]])?;
        self.submit(&[[IOTLB | GLOBAL | DRAIN, 0]])?;
        self.command(TRANSLATION, true)
    }

    fn assign(&mut self, source: Source, domain: u16, root: Hpa) -> Result<(), Stuck> {
        let bus = usize::from(source.bus());
        if self.contexts[bus].is_none() {
            let table = Shared::new(1, !self.coherent).ok_or(Stuck)?;
            self.root.write(bus * 2, table.start().as_u64() | PRESENT);
            self.contexts[bus] = Some(table);
        }
        let context = self.contexts[bus].as_mut().expect("made a moment ago");
        let index = usize::from(source.slot()) * 2;
        // The half with the present bit last.
        context.write(index + 1, FOUR_LEVELS | u64::from(domain) << 8);
        context.write(index, root.as_u64() | PRESENT);
        self.flush_writes()?;
        self.submit(&[[CONTEXT_CACHE | GLOBAL, 0]])?;
        self.invalidate(domain)
    }

    fn invalidate(&mut self, domain: u16) -> Result<(), Stuck> {
        self.flush_writes()?;
        self.submit(&[[IOTLB | DOMAIN | DRAIN | u64::from(domain) << 16, 0]])
    }

    fn next_fault(&mut self) -> Option<Fault> {
        let status = self.registers.read32(FAULT_STATUS);
        if status & (FAULT_PENDING | FAULT_OVERFLOW) == 0 {
            return None;
        }
        for _ in 0..fault_record_count(self.capability) {
            let record = fault_records(self.capability) + 16 * self.record;
            self.record = (self.record + 1) % fault_record_count(self.capability);
            let high = self.registers.read64(record + 8);
            if high >> 63 != 0 {
                let address = self.registers.read64(record) & !0xfff;
                // The full bit is cleared by writing it (11.4.14).
                self.registers.write32(record + 12, 1 << 31);
                return Some(Fault { source: Source(high as u16), address, write: Some(high & 1 << 62 == 0) });
            }
        }
        self.registers.write32(FAULT_STATUS, FAULT_OVERFLOW);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU's unit says of itself.
    const CAPABILITY: u64 = 0x00d2_008c_2226_0286 | 1 << 10;
    const EXTENDED: u64 = 0xf0_0f4a;

    #[test]
    fn units_that_cannot_be_used_say_why() {
        assert_eq!(check(CAPABILITY, EXTENDED), None);
        assert!(check(u64::MAX, u64::MAX).unwrap().contains("nothing"));
        assert!(check(CAPABILITY, EXTENDED & !2).unwrap().contains("queue"));
        assert!(check(CAPABILITY & !(1 << 10), EXTENDED).unwrap().contains("four levels"));
        assert!(check(CAPABILITY | 0x3ff << 24, EXTENDED).unwrap().contains("out of reach"));
    }

    #[test]
    fn fault_records_are_where_the_capability_says() {
        assert_eq!(fault_records(0x22 << 24), 0x220);
        assert_eq!(fault_record_count(7 << 40), 8);
    }
}
