//! Intel's IOMMU (Intel Virtualization Technology for Directed I/O, specification 4.1), in legacy mode.
//!
//! [`VtD`] keeps the root and context tables and that of interrupts, and speaks to the unit through its invalidation
//! queue.

use crate::registers::Registers;
use crate::shared::Shared;
use crate::{Abilities, Access, Fault, MESSAGE, Remapping, SHORT_ID_MAX, Source, Stuck, Unit, wait};
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
const INTERRUPT_TABLE: u64 = 0xb8;
/// What is mapped: the registers and, on units that have them further up, the fault records.
const WINDOW_BYTES: u64 = 0x1000;

/// Bits of COMMAND and STATUS (11.4.4, 11.4.5).
const TRANSLATION: u32 = 1 << 31;
const SET_ROOT: u32 = 1 << 30;
const WRITE_BUFFER: u32 = 1 << 27;
const QUEUE: u32 = 1 << 26;
const INTERRUPT_REMAPPING: u32 = 1 << 25;
const SET_INTERRUPT_TABLE: u32 = 1 << 24;
/// Messages that name no entry pass.
const COMPATIBILITY: u32 = 1 << 23;
/// The bits of STATUS that say what stays on, and that COMMAND must repeat.
const LASTING: u32 = TRANSLATION | QUEUE | INTERRUPT_REMAPPING | COMPATIBILITY;

/// Fault status (11.4.7): an overflow, and whether any record is full.
const FAULT_OVERFLOW: u32 = 1;
const FAULT_PENDING: u32 = 1 << 1;

/// Descriptors of the invalidation queue (6.5.2), and how many it holds.
const CONTEXT_CACHE: u64 = 1;
const IOTLB: u64 = 2;
const INTERRUPT_CACHE: u64 = 4;
const WAIT: u64 = 5;
const GLOBAL: u64 = 1 << 4;
const ONE_INTERRUPT: u64 = 1 << 4;
const DOMAIN: u64 = 2 << 4;
const DRAIN: u64 = 3 << 6;
const WAIT_WRITES: u64 = 1 << 5;
const DESCRIPTORS: u64 = 256;

/// A context entry's address width for four levels (9.3).
const FOUR_LEVELS: u64 = 2;
const PRESENT: u64 = 1;

/// The interrupt table (9.9, 11.4.24.1) has an entry for each vector: 2 to the one more than this. With the flag, entries
/// have APIC IDs of 32 bits.
const INTERRUPT_ENTRIES: u64 = 7;
const WIDE_IDS: u64 = 1 << 11;
/// In the upper half of an entry: the requester ID must be the one beside it (9.10, SVT).
const VERIFY_SOURCE: u64 = 1 << 18;
/// In a message's address: it names an entry (5.1.5.2).
const NAMES_ENTRY: u64 = 1 << 4;
/// Reasons of faults from here on are those of interrupts (7.1.3).
const INTERRUPT_REASONS: core::ops::RangeInclusive<u8> = 0x20..=0x2f;

/// One VT-d unit.
pub struct VtD {
    registers: Registers,
    capability: u64,
    extended: u64,
    root: Shared,
    /// Context tables by bus.
    contexts: Vec<Option<Shared>>,
    /// Interrupts by vector.
    interrupts: Shared,
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
        let no_memory = || "there is no memory for its tables".to_string();
        let shared = || Shared::new(1, !is_coherent(extended)).ok_or_else(no_memory);
        let (root, interrupts, queue, done) = (shared()?, shared()?, shared()?, shared()?);
        let contexts = (0..256).map(|_| None).collect();
        let (tail, waits, record) = (0, 0, 0);
        Ok(Self { registers, capability, extended, root, contexts, interrupts, queue, done, tail, waits, record })
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

    /// Stops the interrupts that no entry of the table lets pass.
    fn remap(&mut self, remapping: Remapping) -> Result<(), Stuck> {
        let wide = if remapping.x2apic && has_wide_ids(self.extended) { WIDE_IDS } else { 0 };
        self.registers.write64(INTERRUPT_TABLE, self.interrupts.start().as_u64() | wide | INTERRUPT_ENTRIES);
        self.command(SET_INTERRUPT_TABLE, true)?;
        self.submit(&[[INTERRUPT_CACHE, 0]])?;
        self.command(INTERRUPT_REMAPPING, true)
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

/// Whether the unit looks into the processor's caches (11.4.3, C).
fn is_coherent(extended: u64) -> bool {
    extended & 1 != 0
}

/// Whether entries of the interrupt table can have APIC IDs of 32 bits (11.4.3, EIM).
fn has_wide_ids(extended: u64) -> bool {
    extended & 1 << 4 != 0
}

/// The two halves of an entry that lets `source` interrupt processor `to` (9.10); `None` where the ID does not fit.
fn interrupt_entry(source: Source, to: u32, vector: u8, wide: bool) -> Option<[u64; 2]> {
    let destination = if wide { u64::from(to) } else { u64::from((to <= SHORT_ID_MAX).then_some(to)?) << 8 };
    Some([destination << 32 | u64::from(vector) << 16 | PRESENT, VERIFY_SOURCE | u64::from(source.0)])
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
            coherent: is_coherent(self.extended),
            caches_absence: self.capability & 1 << 7 != 0,
            remaps_interrupts: self.extended & 1 << 3 != 0,
        }
    }

    fn enable(&mut self, remapping: Option<Remapping>) -> Result<(), Stuck> {
        // What a firmware left on is on with its own tables.
        self.command(QUEUE, false)?;
        self.command(INTERRUPT_REMAPPING, false)?;
        self.command(COMPATIBILITY, false)?;
        self.flush_writes()?;
        self.registers.write64(ROOT_TABLE, self.root.start().as_u64());
        self.command(SET_ROOT, true)?;
        self.registers.write64(QUEUE_TAIL, 0);
        self.registers.write64(QUEUE_ADDRESS, self.queue.start().as_u64());
        self.command(QUEUE, true)?;
        self.submit(&[[CONTEXT_CACHE | GLOBAL, 0]])?;
        self.submit(&[[IOTLB | GLOBAL | DRAIN, 0]])?;
        self.command(TRANSLATION, true)?;
        remapping.map_or(Ok(()), |remapping| self.remap(remapping))
    }

    fn assign(&mut self, source: Source, domain: u16, root: Hpa) -> Result<(), Stuck> {
        let bus = usize::from(source.bus());
        if self.contexts[bus].is_none() {
            let table = Shared::new(1, !is_coherent(self.extended)).ok_or(Stuck)?;
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

    fn route(&mut self, source: Source, to: u32, vector: u8) -> Result<Option<(u64, u32)>, Stuck> {
        let wide = self.registers.read64(INTERRUPT_TABLE) & WIDE_IDS != 0;
        let Some([low, high]) = interrupt_entry(source, to, vector, wide) else { return Ok(None) };
        let index = usize::from(vector) * 2;
        // The half with the present bit last. An entry that stands has the same other half: its interrupts go on.
        self.interrupts.write(index + 1, high);
        self.interrupts.write(index, low);
        self.flush_writes()?;
        self.submit(&[[INTERRUPT_CACHE | ONE_INTERRUPT | u64::from(vector) << 32, 0]])?;
        Ok(Some((MESSAGE | u64::from(vector) << 5 | NAMES_ENTRY, 0)))
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
                let low = self.registers.read64(record);
                // The full bit is cleared by writing it (11.4.14).
                self.registers.write32(record + 12, 1 << 31);
                return Some(fault_of(low, high));
            }
        }
        self.registers.write32(FAULT_STATUS, FAULT_OVERFLOW);
        None
    }
}

/// The access that a fault record tells of (11.4.14).
fn fault_of(low: u64, high: u64) -> Fault {
    let access = if INTERRUPT_REASONS.contains(&((high >> 32) as u8)) {
        Access::Interrupt
    } else {
        Access::Memory { address: low & !0xfff, write: Some(high & 1 << 62 == 0) }
    };
    Fault { source: Source(high as u16), access }
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
    fn an_entry_names_one_source_one_processor_and_one_vector() {
        let source = Source::new(1, 2, 3);
        assert_eq!(interrupt_entry(source, 7, 0x31, false), Some([7 << 40 | 0x31 << 16 | 1, 1 << 18 | 0x113]));
        assert_eq!(
            interrupt_entry(source, 0x1_0007, 0x31, true),
            Some([0x1_0007 << 32 | 0x31 << 16 | 1, 1 << 18 | 0x113])
        );
        assert_eq!(interrupt_entry(source, 255, 0x31, false), None);
    }

    #[test]
    fn a_record_tells_of_memory_or_of_an_interrupt() {
        let (source, full) = (Source::new(0, 3, 0), 1 << 63 | 0x18);
        let memory = |write| Access::Memory { address: 0x20_0000, write: Some(write) };
        assert_eq!(fault_of(0x20_0123, full | 5 << 32), Fault { source, access: memory(true) });
        assert_eq!(fault_of(0x20_0123, full | 1 << 62 | 6 << 32), Fault { source, access: memory(false) });
        assert_eq!(fault_of(0x31 << 48, full | 0x22 << 32), Fault { source, access: Access::Interrupt });
    }

    #[test]
    fn fault_records_are_where_the_capability_says() {
        assert_eq!(fault_records(0x22 << 24), 0x220);
        assert_eq!(fault_record_count(7 << 40), 8);
    }
}
