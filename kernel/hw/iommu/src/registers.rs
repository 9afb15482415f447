//! A unit's registers in memory.

use addr::Hpa;

/// A window of registers.
pub struct Registers {
    start: u64,
    bytes: u64,
}

impl Registers {
    /// Maps the first `bytes` of the registers at `base`, uncached.
    ///
    /// # Safety
    /// They are a unit's, and the caller alone drives it.
    pub unsafe fn map(base: Hpa, bytes: u64) -> Self {
        Self { start: memory::map_mmio(base, bytes) as u64, bytes }
    }

    /// Reads 32 bits.
    pub fn read32(&self, offset: u64) -> u32 {
        // SAFETY: `at` gives an aligned register of the window, which is mapped for ever.
        unsafe { (self.at(offset, 4) as *const u32).read_volatile() }
    }

    /// Reads 64 bits.
    pub fn read64(&self, offset: u64) -> u64 {
        // SAFETY: as in `read32`.
        unsafe { (self.at(offset, 8) as *const u64).read_volatile() }
    }

    /// Writes 32 bits.
    pub fn write32(&mut self, offset: u64, value: u32) {
        // SAFETY: as in `read32`; what is written is the business of the one driver.
        unsafe { (self.at(offset, 4) as *mut u32).write_volatile(value) }
    }

    /// Writes 64 bits.
    pub fn write64(&mut self, offset: u64, value: u64) {
        // SAFETY: as in `write32`.
        unsafe { (self.at(offset, 8) as *mut u64).write_volatile(value) }
    }

    fn at(&self, offset: u64, bytes: u64) -> u64 {
        assert!(offset.is_multiple_of(bytes) && offset + bytes <= self.bytes, "outside the unit's registers");
        self.start + offset
    }
}
