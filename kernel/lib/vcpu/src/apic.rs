//! The registers of a local APIC that a processor can change by itself while its guest runs, where they all are: in a page
//! laid out as the processor reads it.
//!
//! [`ApicPage`] belongs to the local APIC's model, which nobody but the vCPU's own thread calls; a vCPU that was shown it
//! ([`Vcpu::share_apic`](crate::Vcpu::share_apic)) may give it to the processor between an entry and an exit. So there is
//! nothing to bring over before or after. SDM volume 3, 11.4.1 and 30.1; APM volume 2, 15.29.3.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// A register: 32 bits at the start of 16 bytes, of which the others read as zero.
#[repr(C, align(16))]
#[derive(Debug, Default)]
struct Register {
    value: AtomicU32,
    rest: [u32; 3],
}

/// A set of interrupt vectors, as IRR, ISR and TMR are: 256 bits, of which the highest matters most.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Vectors([Register; 8]);

/// The page. Offsets are those of xAPIC's registers.
#[repr(C, align(4096))]
#[derive(Debug, Default)]
pub struct ApicPage {
    identity: [Register; 8],
    task_priority: Register,
    /// Arbitration and processor priority, EOI, addresses, spurious vector.
    unshared: [Register; 7],
    in_service: Vectors,
    trigger_mode: Vectors,
    requested: Vectors,
    /// Error status, interrupt command, local vector table, timer.
    unshared_too: [Register; 23],
    self_ipi: Register,
    /// Behind the registers: their owner changed a set of vectors.
    is_changed: AtomicBool,
}

impl ApicPage {
    /// One without interrupts, at priority 0.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The task priority, whose upper half is CR8.
    pub fn task_priority(&self) -> u8 {
        self.task_priority.load() as u8
    }

    /// Sets it.
    pub fn set_task_priority(&self, value: u8) {
        self.task_priority.store(value.into());
    }

    /// IRR: the interrupts that wait.
    pub fn requested(&self) -> &Vectors {
        &self.requested
    }

    /// ISR: those whose handlers run.
    pub fn in_service(&self) -> &Vectors {
        &self.in_service
    }

    /// TMR: those of which the end must be told, as they were level-triggered when they were accepted last.
    pub fn trigger_mode(&self) -> &Vectors {
        &self.trigger_mode
    }

    /// What the guest wrote to the register for IPIs to itself, where the processor leaves that to its host.
    pub fn self_ipi(&self) -> u8 {
        self.self_ipi.load() as u8
    }

    /// Accepts an interrupt.
    pub fn request(&self, vector: u8, is_level_triggered: bool) {
        if is_level_triggered {
            self.trigger_mode.insert(vector);
        } else {
            self.trigger_mode.remove(vector);
        }
        self.requested.insert(vector);
        self.note_change();
    }

    /// Begins an interrupt that waits.
    pub fn begin(&self, vector: u8) {
        self.requested.remove(vector);
        self.in_service.insert(vector);
        self.note_change();
    }

    /// Ends the one in service with the highest priority, which it returns.
    pub fn end(&self) -> Option<u8> {
        let vector = self.in_service.highest()?;
        self.in_service.remove(vector);
        self.note_change();
        Some(vector)
    }

    /// Replaces all three sets, each in the form of [`Vectors::words`].
    pub fn replace(&self, requested: [u64; 4], in_service: [u64; 4], trigger_mode: [u64; 4]) {
        self.requested.replace(requested);
        self.in_service.replace(in_service);
        self.trigger_mode.replace(trigger_mode);
        self.note_change();
    }

    /// Whether the page's owner changed a set of vectors since the last call: what the processor made of them is out of
    /// date.
    pub fn take_change(&self) -> bool {
        let is_changed = self.is_changed.load(Ordering::Relaxed);
        if is_changed {
            self.is_changed.store(false, Ordering::Relaxed);
        }
        is_changed
    }

    fn note_change(&self) {
        self.is_changed.store(true, Ordering::Relaxed);
    }
}

impl Vectors {
    /// Whether the vector is in the set.
    pub fn contains(&self, vector: u8) -> bool {
        self.of(vector).load() & bit(vector) != 0
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.iter().fold(0, |bits, register| bits | register.load()) == 0
    }

    /// How many vectors are in it.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|register| register.load().count_ones()).sum()
    }

    /// The member with the highest priority.
    pub fn highest(&self) -> Option<u8> {
        // Mostly there is none: that is asked at each exit, and without a branch a register.
        if self.0.iter().fold(0, |any, register| any | register.load()) == 0 {
            return None;
        }
        (0u8..8).rev().find_map(|index| {
            let word = self.register(usize::from(index));
            word.checked_ilog2().map(|high| index << 5 | high as u8)
        })
    }

    /// One of the eight registers.
    ///
    /// # Panics
    /// Where there is none of that number.
    pub fn register(&self, index: usize) -> u32 {
        self.0[index].load()
    }

    /// The set in four words: bit `n` of word `m` is vector `64 * m + n`.
    pub fn words(&self) -> [u64; 4] {
        core::array::from_fn(|index| {
            u64::from(self.register(2 * index)) | u64::from(self.register(2 * index + 1)) << 32
        })
    }

    fn replace(&self, words: [u64; 4]) {
        for (index, register) in self.0.iter().enumerate() {
            register.store((words[index / 2] >> (32 * (index % 2))) as u32);
        }
    }

    fn insert(&self, vector: u8) {
        let register = self.of(vector);
        register.store(register.load() | bit(vector));
    }

    fn remove(&self, vector: u8) {
        let register = self.of(vector);
        register.store(register.load() & !bit(vector));
    }

    fn of(&self, vector: u8) -> &Register {
        &self.0[usize::from(vector >> 5)]
    }
}

/// Loads and stores, and no exchanges: but for the processor, which has the page when its owner does not run, nobody else
/// writes.
impl Register {
    fn load(&self) -> u32 {
        self.value.load(Ordering::Relaxed)
    }

    fn store(&self, value: u32) {
        self.value.store(value, Ordering::Relaxed);
    }
}

const fn bit(vector: u8) -> u32 {
    1 << (vector & 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn registers_are_where_the_processor_has_them() {
        assert_eq!(size_of::<ApicPage>(), 4096);
        assert_eq!(offset_of!(ApicPage, task_priority), 0x80);
        assert_eq!(offset_of!(ApicPage, in_service), 0x100);
        assert_eq!(offset_of!(ApicPage, trigger_mode), 0x180);
        assert_eq!(offset_of!(ApicPage, requested), 0x200);
        assert_eq!(offset_of!(ApicPage, self_ipi), 0x3f0);
        assert_eq!(offset_of!(ApicPage, is_changed), 0x400);
    }

    #[test]
    fn the_highest_member_is_found_in_every_word() {
        let set = Vectors::default();
        assert_eq!(set.highest(), None);
        for vector in [0, 31, 32, 63, 64, 127, 128, 200, 255] {
            set.insert(vector);
            assert_eq!(set.highest(), Some(vector));
            assert!(set.contains(vector));
        }
        assert_eq!(set.len(), 9);
        set.remove(255);
        assert_eq!((set.highest(), set.contains(255), set.is_empty()), (Some(200), false, false));
    }

    #[test]
    fn words_and_registers_show_the_same_set() {
        let set = Vectors::default();
        set.insert(33);
        set.insert(255);
        assert_eq!((set.register(0), set.register(1), set.register(7)), (0, 2, 1 << 31));
        assert_eq!(set.words(), [1 << 33, 0, 0, 1 << 63]);
        let copy = Vectors::default();
        copy.replace(set.words());
        assert_eq!(copy.words(), set.words());
    }

    #[test]
    fn an_interrupt_is_requested_begun_and_ended() {
        let page = ApicPage::new();
        assert!(!page.take_change());
        page.request(0x31, true);
        page.request(0x42, false);
        assert!(page.take_change() && !page.take_change(), "once for any number of changes");
        page.begin(0x31);
        page.begin(0x42);
        assert!(page.requested().is_empty() && page.trigger_mode().contains(0x31));
        assert_eq!((page.end(), page.end(), page.end()), (Some(0x42), Some(0x31), None));
        page.request(0x31, false);
        assert!(page.trigger_mode().is_empty(), "the last acceptance counts");
        page.set_task_priority(0xff);
        page.replace([0; 4], [0; 4], [0; 4]);
        assert_eq!((page.task_priority(), page.requested().highest()), (0xff, None));
    }
}
