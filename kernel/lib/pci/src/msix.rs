//! The MSI-X table and pending bits of one function (6.8.2).
//!
//! [`MsiX`] is the structure behind the BAR; its enable and mask-all bits live in the capability and are handed over
//! with [`MsiX::set_control`]. Whoever owns the function turns the [`Msi`]s it returns into interrupts.

mod saved;

pub use saved::Saved;

use crate::MsixControl;
use alloc::vec::Vec;

/// Bytes of one table entry: address, data, vector control.
pub const MSIX_ENTRY_BYTES: u32 = 16;

/// A message: what a function writes, and where, to interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Msi {
    /// The guest-physical address written to.
    pub address: u64,
    /// The 4 bytes written.
    pub data: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    message: Msi,
    masked: bool,
    pending: bool,
}

/// Every vector is masked after reset (6.8.2.9).
const RESET: Entry = Entry { message: Msi { address: 0, data: 0 }, masked: true, pending: false };

/// Table and pending bits of one function.
#[derive(Clone, Debug)]
pub struct MsiX {
    entries: Vec<Entry>,
    control: MsixControl,
    /// From the start of the table.
    pending_offset: u32,
}

impl MsiX {
    /// `vectors` masked vectors, with the pending bits `pending_offset` bytes after the start of the table.
    pub fn new(vectors: u16, pending_offset: u32) -> Self {
        assert!(pending_offset >= u32::from(vectors) * MSIX_ENTRY_BYTES && pending_offset.is_multiple_of(8));
        Self { entries: alloc::vec![RESET; usize::from(vectors)], control: MsixControl::default(), pending_offset }
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }

    /// Whether messages are in use; otherwise the function interrupts by its pin.
    pub fn enabled(&self) -> bool {
        self.control.enabled
    }

    /// Takes over the capability's control bits. What was pending and may now go is passed to `send`.
    pub fn set_control(&mut self, control: MsixControl, mut send: impl FnMut(Msi)) {
        self.control = control;
        if control.enabled && !control.masked {
            for entry in self.entries.iter_mut().filter(|entry| entry.pending && !entry.masked) {
                entry.pending = false;
                send(entry.message);
            }
        }
    }

    /// The function has something to say on `vector`: the message, or `None` where it is masked (it then stays
    /// pending), MSI-X is off, or there is no such vector.
    pub fn raise(&mut self, vector: u16) -> Option<Msi> {
        let entry = self.entries.get_mut(usize::from(vector))?;
        if !self.control.enabled {
            return None;
        }
        if self.control.masked || entry.masked {
            entry.pending = true;
            return None;
        }
        Some(entry.message)
    }

    /// Reads `size` bytes at `offset` from the start of the table. Only aligned accesses of 4 or 8 bytes are defined
    /// (6.8.2); others, and holes, read as zero.
    pub fn read(&self, offset: u32, size: u8) -> u64 {
        match size {
            4 if offset.is_multiple_of(4) => u64::from(self.read_word(offset)),
            8 if offset.is_multiple_of(8) => {
                u64::from(self.read_word(offset)) | u64::from(self.read_word(offset + 4)) << 32
            }
            _ => 0,
        }
    }

    /// Writes `size` bytes at `offset` from the start of the table. An access that is not 4 or 8 bytes, aligned, is
    /// dropped. Where it unmasks a vector that was pending, that vector's message is returned.
    pub fn write(&mut self, offset: u32, size: u8, value: u64) -> Option<Msi> {
        match size {
            4 if offset.is_multiple_of(4) => self.write_word(offset, value as u32),
            8 if offset.is_multiple_of(8) => {
                // The address half cannot unmask anything: only the second word can yield a message.
                self.write_word(offset, value as u32);
                self.write_word(offset + 4, (value >> 32) as u32)
            }
            _ => None,
        }
    }

    /// Forgets everything, as a reset of the function does.
    pub fn reset(&mut self) {
        self.entries.fill(RESET);
        self.control = MsixControl::default();
    }

    fn read_word(&self, offset: u32) -> u32 {
        if offset >= self.pending_offset {
            return self.pending_word((offset - self.pending_offset) / 4);
        }
        let Some(entry) = self.entries.get((offset / MSIX_ENTRY_BYTES) as usize) else { return 0 };
        match offset % MSIX_ENTRY_BYTES {
            0 => entry.message.address as u32,
            4 => (entry.message.address >> 32) as u32,
            8 => entry.message.data,
            _ => u32::from(entry.masked),
        }
    }

    /// 32 pending bits.
    fn pending_word(&self, word: u32) -> u32 {
        let bits = self.entries.iter().skip(word as usize * 32).take(32);
        bits.enumerate().fold(0, |word, (bit, entry)| word | u32::from(entry.pending) << bit)
    }

    fn write_word(&mut self, offset: u32, value: u32) -> Option<Msi> {
        // The pending bits lie past the last entry: a write there finds none.
        let entry = self.entries.get_mut((offset / MSIX_ENTRY_BYTES) as usize)?;
        let message = &mut entry.message;
        match offset % MSIX_ENTRY_BYTES {
            // Bits 1:0 of a message address are always zero (6.8.2.4).
            0 => message.address = message.address >> 32 << 32 | u64::from(value & !0b11),
            4 => message.address = message.address & 0xffff_ffff | u64::from(value) << 32,
            8 => message.data = value,
            _ => {
                entry.masked = value & 1 != 0;
                let deliver = entry.pending && !entry.masked && self.control.enabled && !self.control.masked;
                entry.pending &= !deliver;
                return deliver.then_some(entry.message);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: MsixControl = MsixControl { enabled: true, masked: false };
    const MASKED: MsixControl = MsixControl { enabled: true, masked: true };
    const PENDING: u32 = 0x800;

    /// Three vectors; vector `n` carries data `n`, all unmasked.
    fn table() -> MsiX {
        let mut msix = MsiX::new(3, PENDING);
        for vector in 0..3 {
            msix.write(vector * 16, 8, 0xfee0_1000);
            msix.write(vector * 16 + 8, 4, u64::from(vector));
            msix.write(vector * 16 + 12, 4, 0);
        }
        msix
    }

    fn message(data: u32) -> Msi {
        Msi { address: 0xfee0_1000, data }
    }

    fn control(msix: &mut MsiX, control: MsixControl) -> Vec<Msi> {
        let mut sent = Vec::new();
        msix.set_control(control, |message| sent.push(message));
        sent
    }

    #[test]
    fn vectors_start_masked() {
        let msix = MsiX::new(1, PENDING);
        assert_eq!(msix.read(12, 4), 1);
    }

    #[test]
    fn an_open_vector_sends() {
        let mut msix = table();
        assert_eq!(msix.raise(1), None, "not enabled, and nothing becomes pending");
        assert_eq!(control(&mut msix, ON), []);
        assert_eq!(msix.raise(1), Some(message(1)));
        assert_eq!(msix.raise(3), None);
        assert_eq!(msix.raise(0xffff), None);
    }

    #[test]
    fn a_masked_vector_is_pending_until_unmasked() {
        let mut msix = table();
        control(&mut msix, ON);
        msix.write(2 * 16 + 8, 8, 1 << 32 | 2);
        assert_eq!(msix.raise(2), None);
        assert_eq!(msix.raise(2), None);
        assert_eq!(msix.read(PENDING, 8), 0b100);
        assert_eq!(msix.write(2 * 16 + 8, 8, 7), Some(message(7)), "with the data written in the same access");
        assert_eq!(msix.read(PENDING, 4), 0);
        assert_eq!(msix.write(2 * 16 + 12, 4, 0), None);
    }

    #[test]
    fn the_function_mask_holds_all() {
        let mut msix = table();
        control(&mut msix, MASKED);
        assert_eq!((msix.raise(0), msix.raise(2)), (None, None));
        assert_eq!(msix.write(12, 4, 0), None, "a vector's own mask does not override");
        assert_eq!(control(&mut msix, ON), [message(0), message(2)]);
        assert_eq!(control(&mut msix, ON), []);
    }

    #[test]
    fn undefined_accesses_do_nothing() {
        let mut msix = table();
        for (offset, size) in [(0, 1), (2, 4), (4, 8), (12, 2), (48, 4), (PENDING, 8), (!7, 8)] {
            assert_eq!(msix.write(offset, size, u64::MAX), None);
        }
        assert_eq!(msix.read(0, 8), 0xfee0_1000);
        assert_eq!(msix.read(12, 4), 0);
        assert_eq!(msix.read(1, 4), 0);
        assert_eq!(msix.read(!7, 8), 0);
    }

    #[test]
    fn reset_masks_and_forgets() {
        let mut msix = table();
        control(&mut msix, MASKED);
        msix.raise(0);
        msix.reset();
        assert_eq!(control(&mut msix, ON), []);
        assert_eq!((msix.read(0, 8), msix.read(12, 4)), (0, 1));
    }
}
