//! The host's I/O APICs, as far as Pollux needs them: everything masked, and routed what devices without messages
//! raise: the serial console, legacy disk channels, and old cards on PCI.
//!
//! 82093AA data sheet. All other devices on PCI use message-signalled interrupts and pass by the I/O APIC.

use addr::Hpa;

const VERSION: u8 = 0x01;
const REDIRECTION: u8 = 0x10;
const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const ACTIVE_LOW: u32 = 1 << 13;

/// One I/O APIC.
#[derive(Clone, Copy, Debug)]
pub struct IoApic {
    /// Its ID, by which other tables name it.
    pub id: u8,
    /// Where its registers are mapped, uncached.
    pub base: Hpa,
    /// The first global system interrupt that it takes.
    pub first_gsi: u32,
}

impl IoApic {
    /// How many inputs it has.
    pub fn inputs(self) -> u32 {
        (self.read(VERSION) >> 16 & 0xff) + 1
    }

    /// Masks every input.
    pub fn mask_all(self) {
        for input in 0..self.inputs() {
            self.write(REDIRECTION + 2 * input as u8, MASKED);
        }
    }

    /// Has input `gsi` send `vector` as a message to `address`, which says to which processor. Bits 19:4 of it are an
    /// entry's upper ones, whatever they mean (VT-d 4.1, section 5.1.5.1).
    pub fn route(self, gsi: u32, address: u64, vector: u8, level: bool, active_low: bool) {
        self.prepare(gsi, address, vector, level, active_low);
        self.unmask(gsi);
    }

    /// The same, but leaves the input masked. A level that comes before it is unmasked is seen then.
    pub fn prepare(self, gsi: u32, address: u64, vector: u8, level: bool, active_low: bool) {
        let register = self.entry(gsi);
        let flags = if level { LEVEL } else { 0 } | if active_low { ACTIVE_LOW } else { 0 };
        self.write(register, MASKED | u32::from(vector) | flags);
        self.write(register + 1, ((address >> 4) as u32 & 0xffff) << 16);
    }

    /// Masks input `gsi`.
    pub fn mask(self, gsi: u32) {
        self.write(self.entry(gsi), self.read(self.entry(gsi)) | MASKED);
    }

    /// Opens input `gsi`, which was prepared.
    pub fn unmask(self, gsi: u32) {
        self.write(self.entry(gsi), self.read(self.entry(gsi)) & !MASKED);
    }

    fn entry(self, gsi: u32) -> u8 {
        REDIRECTION + 2 * (gsi - self.first_gsi) as u8
    }

    fn read(self, register: u8) -> u32 {
        self.select(register);
        // SAFETY: the data window, selected above; one processor programs the I/O APICs.
        unsafe { ((self.base.as_u64() + 0x10) as *const u32).read_volatile() }
    }

    fn write(self, register: u8, value: u32) {
        self.select(register);
        // SAFETY: as in `read`.
        unsafe { ((self.base.as_u64() + 0x10) as *mut u32).write_volatile(value) }
    }

    fn select(self, register: u8) {
        // SAFETY: the index register of an I/O APIC that ACPI names.
        unsafe { (self.base.as_u64() as *mut u32).write_volatile(register.into()) }
    }
}
