//! AMD's IOMMU (AMD I/O Virtualization Technology specification, 48882, revision 3.08).
//!
//! [`AmdVi`] keeps the device table and each device's interrupts, and speaks to the unit through its command buffer; accesses that it stopped come
//! back through the event log.

use crate::registers::Registers;
use crate::shared::Shared;
use crate::{Abilities, Access, Fault, MESSAGE, Remapping, SHORT_ID_MAX, Source, Stuck, Unit, wait};
use addr::Hpa;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;

/// Registers (3.4).
const DEVICE_TABLE: u64 = 0x00;
const COMMAND_BUFFER: u64 = 0x08;
const EVENT_LOG: u64 = 0x10;
const CONTROL: u64 = 0x18;
const COMMAND_HEAD: u64 = 0x2000;
const COMMAND_TAIL: u64 = 0x2008;
const EVENT_HEAD: u64 = 0x2010;
const EVENT_TAIL: u64 = 0x2018;
const STATUS: u64 = 0x2020;
const WINDOW_BYTES: u64 = 0x4000;

/// Bits of CONTROL (3.4.5).
const ENABLE: u64 = 1;
const EVENT_LOG_ENABLE: u64 = 1 << 2;
const COHERENT: u64 = 1 << 10;
const COMMANDS_ENABLE: u64 = 1 << 12;
/// The event log overflowed and stopped (3.4.12); written to clear.
const EVENT_OVERFLOW: u64 = 1;

/// Device table entries are four words of 64 bits (2.2.2), one for each requester ID.
const ENTRY_WORDS: usize = 4;
const ENTRIES: usize = 1 << 16;
const DEVICE_TABLE_FRAMES: usize = ENTRIES * ENTRY_WORDS * 8 / 4096;
const VALID: u64 = 1;
const TRANSLATION_VALID: u64 = 1 << 1;
const FOUR_LEVELS: u64 = 4 << 9;
const READABLE: u64 = 1 << 61;
const WRITABLE: u64 = 1 << 62;
/// No tables, no rights: every access is stopped. An entry that is not valid would let all of them pass.
const STOPPED: u64 = VALID | TRANSLATION_VALID;
/// In an entry's third word: interrupts are looked at, and with no more than this all are stopped; then a table of so many
/// (2 to this) for those that the message's data names by its vector.
const INTERRUPTS_VALID: u64 = 1;
const INTERRUPTS_BY_TABLE: u64 = 2 << 60;
const INTERRUPT_ENTRIES: u64 = 8 << 1;
/// An entry of that table (2.2.5): it holds.
const REMAPPED: u64 = 1;

/// The command buffer and the event log have 256 entries of 16 bytes: 2 to the eighth (3.4.2, 3.4.3).
const RING_ENTRIES: u64 = 256;
const RING_LENGTH: u64 = 8 << 56;

/// Commands (2.4).
const WAIT: u64 = 1 << 60;
const WAIT_STORES: u64 = 1;
const FORGET_DEVICE: u64 = 2 << 60;
const FORGET_PAGES: u64 = 3 << 60;
const FORGET_INTERRUPTS: u64 = 5 << 60;
/// All pages of a domain, and what leads to them (2.4.3).
const ALL_PAGES: u64 = 0x7fff_ffff_ffff_f003;

/// The event of an access that its tables do not allow, in bits 63:60 (2.5.3).
const PAGE_FAULT: u64 = 2;
/// Within it: the access was an interrupt; it was a write.
const FAULT_INTERRUPTS: u64 = 1 << 51;
const FAULT_WRITES: u64 = 1 << 53;

/// One AMD-Vi unit.
pub struct AmdVi {
    registers: Registers,
    devices: Shared,
    /// Interrupts by who raises them.
    interrupts: BTreeMap<Source, Shared>,
    commands: Shared,
    events: Shared,
    /// What the unit writes when it has waited.
    done: Shared,
    tail: u64,
    waits: u64,
}

impl AmdVi {
    /// Takes over the unit whose registers are at `base`, or says why it cannot be used.
    ///
    /// # Safety
    /// A unit is there, and the caller alone drives it.
    pub unsafe fn open(base: Hpa) -> Result<Self, String> {
        // SAFETY: the caller's promise.
        let registers = unsafe { Registers::map(base, WINDOW_BYTES) };
        if registers.read64(CONTROL) == u64::MAX {
            return Err(format!("AMD-Vi at {base}: nothing answers there"));
        }
        // The unit looks into the processor's caches when told to (3.4.5, Coherent).
        let shared = |frames| Shared::new(frames, false).ok_or("there is no memory for AMD-Vi's tables");
        let (mut devices, commands) = (shared(DEVICE_TABLE_FRAMES)?, shared(1)?);
        let (events, done) = (shared(1)?, shared(1)?);
        (0..ENTRIES).for_each(|entry| devices.write(entry * ENTRY_WORDS, STOPPED));
        let (interrupts, tail, waits) = (BTreeMap::new(), 0, 0);
        Ok(Self { registers, devices, interrupts, commands, events, done, tail, waits })
    }

    /// Puts commands into the buffer and waits until they are done.
    fn submit(&mut self, commands: &[[u64; 2]]) -> Result<(), Stuck> {
        self.waits += 1;
        let wait_for = [WAIT | WAIT_STORES | self.done.start().as_u64(), self.waits];
        for [low, high] in commands.iter().copied().chain([wait_for]) {
            let index = self.tail as usize * 2;
            self.commands.write(index, low);
            self.commands.write(index + 1, high);
            self.tail = (self.tail + 1) % RING_ENTRIES;
        }
        self.registers.write64(COMMAND_TAIL, self.tail << 4);
        wait(|| self.done.read(0) == self.waits)
    }
}

impl Unit for AmdVi {
    fn abilities(&self) -> Abilities {
        Abilities { large_pages: true, coherent: true, caches_absence: false, remaps_interrupts: true }
    }

    fn enable(&mut self, remapping: Option<Remapping>) -> Result<(), Stuck> {
        // What a firmware left on is on with its own tables.
        self.registers.write64(CONTROL, 0);
        if remapping.is_some() {
            (0..ENTRIES).for_each(|entry| self.devices.write(entry * ENTRY_WORDS + 2, INTERRUPTS_VALID));
        }
        let table = self.devices.start().as_u64() | (DEVICE_TABLE_FRAMES as u64 - 1);
        self.registers.write64(DEVICE_TABLE, table);
        self.registers.write64(COMMAND_BUFFER, self.commands.start().as_u64() | RING_LENGTH);
        self.registers.write64(EVENT_LOG, self.events.start().as_u64() | RING_LENGTH);
        for register in [COMMAND_HEAD, COMMAND_TAIL, EVENT_HEAD, EVENT_TAIL] {
            self.registers.write64(register, 0);
        }
        let on = ENABLE | EVENT_LOG_ENABLE | COMMANDS_ENABLE | COHERENT;
        self.registers.write64(CONTROL, on);
        self.submit(&[])
    }

    fn assign(&mut self, source: Source, domain: u16, root: Hpa) -> Result<(), Stuck> {
        let entry = usize::from(source.0) * ENTRY_WORDS;
        self.devices.write(entry + 1, domain.into());
        // The word with the tables and the rights at once.
        self.devices.write(entry, STOPPED | FOUR_LEVELS | root.as_u64() | READABLE | WRITABLE);
        self.submit(&[[FORGET_DEVICE | u64::from(source.0), 0]])?;
        self.invalidate(domain)
    }

    fn route(&mut self, source: Source, to: u32, vector: u8) -> Result<Option<(u64, u32)>, Stuck> {
        // Wider IDs need entries of 128 bits, which not every unit has.
        if to > SHORT_ID_MAX {
            return Ok(None);
        }
        if !self.interrupts.contains_key(&source) {
            let table = Shared::new(1, false).ok_or(Stuck)?;
            let word = table.start().as_u64() | INTERRUPTS_BY_TABLE | INTERRUPT_ENTRIES | INTERRUPTS_VALID;
            self.devices.write(usize::from(source.0) * ENTRY_WORDS + 2, word);
            self.submit(&[[FORGET_DEVICE | u64::from(source.0), 0]])?;
            self.interrupts.insert(source, table);
        }
        let table = self.interrupts.get_mut(&source).expect("made a moment ago");
        // Two entries a word.
        let (word, shift) = (usize::from(vector / 2), u32::from(vector % 2) * 32);
        let others = table.read(word) & !(0xffff_ffff << shift);
        table.write(word, others | interrupt_entry(to, vector) << shift);
        self.submit(&[[FORGET_INTERRUPTS | u64::from(source.0), 0]])?;
        Ok(Some((MESSAGE | u64::from(to) << 12, vector.into())))
    }

    fn invalidate(&mut self, domain: u16) -> Result<(), Stuck> {
        self.submit(&[[FORGET_PAGES | u64::from(domain) << 32, ALL_PAGES]])
    }

    fn next_fault(&mut self) -> Option<Fault> {
        let tail = self.registers.read64(EVENT_TAIL) >> 4 & (RING_ENTRIES - 1);
        loop {
            let head = self.registers.read64(EVENT_HEAD) >> 4 & (RING_ENTRIES - 1);
            if head == tail {
                break;
            }
            let index = head as usize * 2;
            let event = [self.events.read(index), self.events.read(index + 1)];
            self.registers.write64(EVENT_HEAD, ((head + 1) % RING_ENTRIES) << 4);
            if let Some(fault) = fault_of(event) {
                return Some(fault);
            }
        }
        if self.registers.read64(STATUS) & EVENT_OVERFLOW != 0 {
            // It logs on when it is stopped, cleared and started (2.5.2).
            let control = self.registers.read64(CONTROL);
            self.registers.write64(CONTROL, control & !EVENT_LOG_ENABLE);
            self.registers.write64(STATUS, EVENT_OVERFLOW);
            self.registers.write64(CONTROL, control | EVENT_LOG_ENABLE);
        }
        None
    }
}

/// An entry that interrupts a processor, whose ID has 8 bits, by a vector (2.2.5).
fn interrupt_entry(to: u32, vector: u8) -> u64 {
    u64::from(vector) << 16 | u64::from(to) << 8 | REMAPPED
}

/// The access that an event tells of. Of other events (a malformed entry, a unit's own trouble) it names the device only.
fn fault_of([low, high]: [u64; 2]) -> Option<Fault> {
    let is_page_fault = low >> 60 == PAGE_FAULT;
    let access = match is_page_fault.then_some(low & FAULT_WRITES != 0) {
        Some(_) if low & FAULT_INTERRUPTS != 0 => Access::Interrupt,
        write => Access::Memory { address: high, write },
    };
    (low >> 60 != 0).then_some(Fault { source: Source(low as u16), access })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_tell_who_and_where() {
        let by = |access| Some(Fault { source: Source::new(0, 3, 0), access });
        let write = Access::Memory { address: 0xdead_b000, write: Some(true) };
        assert_eq!(fault_of([2 << 60 | FAULT_WRITES | 0x18, 0xdead_b000]), by(write));
        assert_eq!(fault_of([2 << 60 | FAULT_INTERRUPTS | 0x18, 0x31]), by(Access::Interrupt));
        assert_eq!(fault_of([1 << 60 | 0x18, 5]), by(Access::Memory { address: 5, write: None }));
        assert_eq!(fault_of([0, 0]), None);
    }

    #[test]
    fn an_entry_names_a_processor_and_a_vector() {
        assert_eq!(interrupt_entry(7, 0x31), 0x31_0701);
    }

    #[test]
    fn the_device_table_has_an_entry_for_each_requester() {
        assert_eq!(DEVICE_TABLE_FRAMES, 512);
    }
}
