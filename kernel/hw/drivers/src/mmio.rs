//! Device registers in memory.
//!
//! The main type is [`Registers`], a checked window of them; PCI and virtio build on it.
#![expect(unsafe_code, reason = "device registers are reached through raw pointers")]

use crate::dma::Integer;
use core::ptr::NonNull;
use virtio_drivers::Hal;

/// A window of device registers.
#[derive(Clone, Copy)]
pub(crate) struct Registers {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: registers belong to no thread; who may use them when is their driver's business, and each is owned by one.
unsafe impl Send for Registers {}

impl Registers {
    /// Maps `bytes` bytes of registers at a physical address.
    ///
    /// # Safety
    /// They must lie in a memory BAR of a device that the caller drives, with memory decoding on, and nothing else may
    /// use them.
    pub(crate) unsafe fn map<H: Hal>(physical: u64, bytes: usize) -> Self {
        // SAFETY: the caller promises a valid MMIO region.
        Self { start: unsafe { H::mmio_phys_to_virt(physical, bytes) }, bytes }
    }

    /// The first `bytes` bytes of a window, from `offset`; `None` where it is too short.
    pub(crate) fn part(self, offset: usize, bytes: usize) -> Option<Self> {
        let end = offset.checked_add(bytes)?;
        // SAFETY: the sum is inside the window.
        (end <= self.bytes).then(|| Self { start: unsafe { self.start.add(offset) }, bytes })
    }

    /// Reads the register at `offset`.
    pub(crate) fn read<T: Integer>(&self, offset: usize) -> T {
        // SAFETY: `register` gives an aligned pointer inside the window, and any bits are a `T`.
        unsafe { self.register::<T>(offset).read_volatile() }
    }

    /// Writes the register at `offset`.
    pub(crate) fn write<T: Integer>(&mut self, offset: usize, value: T) {
        // SAFETY: `register` gives an aligned pointer inside the window, whose device this driver owns.
        unsafe { self.register::<T>(offset).write_volatile(value) }
    }

    fn register<T: Integer>(&self, offset: usize) -> NonNull<T> {
        let end = offset.checked_add(size_of::<T>());
        assert!(end.is_some_and(|end| end <= self.bytes), "outside the register window");
        // SAFETY: the sum is inside the window, as just checked.
        let register = unsafe { self.start.add(offset) }.cast::<T>();
        assert!(register.is_aligned(), "an unaligned register");
        register
    }
}

/// 32-bit registers, as drivers see them whose devices tests play.
pub trait Words: Sized + Send {
    /// The first `bytes` bytes of a window, from `offset`; `None` where it is too short.
    fn part(&self, offset: usize, bytes: usize) -> Option<Self>;

    /// Reads the register at `offset`.
    fn read(&self, offset: usize) -> u32;

    /// Writes the register at `offset`.
    fn write(&mut self, offset: usize, value: u32);
}

impl Words for Registers {
    fn part(&self, offset: usize, bytes: usize) -> Option<Self> {
        Registers::part(*self, offset, bytes)
    }

    fn read(&self, offset: usize) -> u32 {
        Registers::read(self, offset)
    }

    fn write(&mut self, offset: usize, value: u32) {
        Registers::write(self, offset, value);
    }
}
