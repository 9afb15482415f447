//! A NOR flash chip with 4 KiB blocks on an eight-bit bus, which keeps a firmware's variables.
//!
//! The type is [`Flash`]. `machine` says where it is, lets the guest read it without an exit while [`Flash::is_readable`]
//! says so, and sees to it that [`Flash::take_written`] reaches a disk. Commands
//! are those of Intel's basic set (28F640J3 datasheet, table 16) that firmware uses; what the chip answers where Intel's
//! and QEMU's `pflash_cfi01` differ is QEMU's, which OVMF was written against: programming sets bits as well as clearing
//! them, and the status register reads 0 once it was cleared.

mod saved;

pub use saved::Saved;

use addr::Gpa;
use alloc::vec::Vec;
use core::ops::Range;
use guestmem::GuestMemory;

/// What is erased at a time.
pub const BLOCK_BYTES: usize = 4096;
/// An erased byte.
const ERASED: u8 = 0xff;

/// The first byte of a command.
mod command {
    pub const PROGRAM: u8 = 0x40;
    pub const PROGRAM_ALSO: u8 = 0x10;
    pub const ERASE: u8 = 0x20;
    pub const CLEAR_STATUS: u8 = 0x50;
    pub const READ_STATUS: u8 = 0x70;
    pub const CONFIRM: u8 = 0xd0;
    pub const READ_ARRAY: u8 = 0xff;
}

/// Bits of the status register.
mod status {
    pub const READY: u8 = 1 << 7;
    /// Erase and program errors together: a command that the chip does not know, or a sequence that is none.
    pub const SEQUENCE_ERROR: u8 = 1 << 5 | 1 << 4;
}

/// What the next access means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// Reads give the content.
    Array,
    /// Reads give the status register.
    Status,
    /// The next write is data.
    Program,
    /// The next write confirms, or does not.
    Erase,
}

/// The chip.
pub struct Flash {
    /// Its content, from address 0 on.
    cells: GuestMemory,
    bytes: usize,
    mode: Mode,
    status: u8,
    /// Which blocks were written and not taken.
    written: Vec<bool>,
    /// Something was written that [`Flash::take_news`] has not told.
    has_news: bool,
}

impl Flash {
    /// A chip over the first `bytes` bytes of memory that nobody else writes.
    ///
    /// # Panics
    /// Where that are no whole blocks, or the memory has less: the host chooses both.
    pub fn new(cells: GuestMemory, bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(BLOCK_BYTES) && cells.check(Gpa::new(0), bytes as u64).is_ok(), "whole blocks");
        let written = alloc::vec![false; bytes / BLOCK_BYTES];
        Self { cells, bytes, mode: Mode::Array, status: 0, written, has_news: false }
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What a range of it holds.
    ///
    /// # Panics
    /// Where it has less.
    pub fn content(&self, range: Range<usize>) -> Vec<u8> {
        assert!(range.end <= self.bytes, "inside the chip");
        let mut content = alloc::vec![0; range.len()];
        self.cells.read(Gpa::new(range.start as u64), &mut content).expect("the chip is there");
        content
    }

    /// The memory behind it.
    pub fn cells(&self) -> &GuestMemory {
        &self.cells
    }

    /// Whether reads give the content.
    pub fn is_readable(&self) -> bool {
        self.mode == Mode::Array
    }

    /// Reads `size` (1, 2, 4 or 8) bytes at an offset; ones behind its end.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        let mut bytes = [self.status; 8];
        if self.mode == Mode::Array {
            bytes = [ERASED; 8];
            let count = (self.bytes as u64).saturating_sub(offset).min(8) as usize;
            self.cells.read(Gpa::new(offset), &mut bytes[..count]).expect("inside the chip");
        }
        u64::from_le_bytes(bytes) & u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)))
    }

    /// Writes `size` bytes at an offset: a command, which the lowest byte is, or its data.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) {
        let byte = value as u8;
        match (self.mode, byte) {
            (Mode::Program, _) => {
                self.program(offset, &value.to_le_bytes()[..usize::from(size.min(8))]);
                self.finish(0);
            }
            (Mode::Erase, command::CONFIRM) => {
                self.erase(offset);
                self.finish(0);
            }
            (Mode::Erase, _) => self.finish(status::SEQUENCE_ERROR),
            (_, command::PROGRAM | command::PROGRAM_ALSO) => self.mode = Mode::Program,
            (_, command::ERASE) => self.mode = Mode::Erase,
            (_, command::CLEAR_STATUS) => (self.mode, self.status) = (Mode::Array, 0),
            (_, command::READ_STATUS) => self.mode = Mode::Status,
            (_, command::READ_ARRAY) => self.mode = Mode::Array,
            // An unlocked block's "resume" and "confirm" do nothing; whatever else comes is no command.
            (_, command::CONFIRM) => {}
            _ => (self.mode, self.status) = (Mode::Array, self.status | status::SEQUENCE_ERROR),
        }
    }

    /// Puts in what was kept from an earlier life; that counts as taken.
    ///
    /// # Panics
    /// Where it has another size.
    pub fn load(&mut self, content: &[u8]) {
        assert_eq!(content.len(), self.bytes, "the chip's size");
        self.cells.write(Gpa::new(0), content).expect("the chip is there");
        self.written.fill(false);
    }

    /// Whether something was written since this was last asked. It waits for the end of a sequence of commands.
    pub fn take_news(&mut self) -> bool {
        self.mode == Mode::Array && core::mem::take(&mut self.has_news)
    }

    /// Whether anything was written that was not taken.
    pub fn has_written(&self) -> bool {
        self.written.contains(&true)
    }

    /// The next run of blocks that were written, as a range of bytes, and notes them as taken.
    pub fn take_written(&mut self) -> Option<Range<usize>> {
        let first = self.written.iter().position(|&written| written)?;
        let count = self.written[first..].iter().take_while(|&&written| written).count();
        self.written[first..first + count].fill(false);
        Some(first * BLOCK_BYTES..(first + count) * BLOCK_BYTES)
    }

    /// An operation ended, with these errors.
    fn finish(&mut self, errors: u8) {
        self.mode = Mode::Status;
        self.status |= status::READY | errors;
    }

    fn program(&mut self, offset: u64, bytes: &[u8]) {
        let count = (self.bytes as u64).saturating_sub(offset).min(bytes.len() as u64) as usize;
        self.cells.write(Gpa::new(offset), &bytes[..count]).expect("inside the chip");
        for at in (offset..).take(count) {
            self.written[at as usize / BLOCK_BYTES] = true;
        }
        self.has_news |= count > 0;
    }

    fn erase(&mut self, offset: u64) {
        let block = offset / BLOCK_BYTES as u64;
        let Some(written) = usize::try_from(block).ok().and_then(|block| self.written.get_mut(block)) else { return };
        *written = true;
        self.has_news = true;
        self.cells.write(Gpa::new(block * BLOCK_BYTES as u64), &[ERASED; BLOCK_BYTES]).expect("inside the chip");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chip() -> Flash {
        let cells = guestmem::heap::guest_memory(addr::LARGE_PAGE_BYTES);
        cells.write(Gpa::new(0), &[0x5a; 4 * BLOCK_BYTES]).unwrap();
        cells.write(Gpa::new(0), &[1]).unwrap();
        Flash::new(cells, 3 * BLOCK_BYTES)
    }

    #[test]
    fn firmware_tells_it_from_memory_and_from_rom() {
        let mut flash = chip();
        assert_eq!(flash.read(0, 1), 1);
        flash.write(0, 1, 0x50);
        assert_eq!(flash.read(0, 1), 1, "no memory: the command is not there");
        flash.write(0, 1, 0x70);
        assert_eq!(flash.read(0, 1), 0, "no ROM: a cleared status");
        flash.write(0, 1, 0xff);
        assert_eq!(flash.read(0, 4), 0x5a5a_5a01);
    }

    #[test]
    fn bytes_are_programmed_and_blocks_erased() {
        let mut flash = chip();
        flash.write(0x1001, 1, 0x10);
        flash.write(0x1001, 1, 0x33);
        assert_eq!(flash.read(5, 2), 0x8080, "ready");
        assert!(!flash.take_news(), "not while the sequence goes on");
        flash.write(0x1001, 1, 0xff);
        assert_eq!(flash.read(0x1000, 4), 0x5a5a_335a);
        assert!(flash.take_news() && !flash.take_news() && flash.has_written());
        flash.write(0x2fff, 1, 0x20);
        flash.write(0x2fff, 1, 0xd0);
        flash.write(0, 1, 0xff);
        assert_eq!((flash.read(0x1fff, 1), flash.read(0x2000, 1), flash.read(0x2fff, 1)), (0x5a, 0xff, 0xff));
        assert!(flash.take_news(), "an erased block is news");
        assert_eq!(flash.take_written(), Some(0x1000..0x3000));
        assert_eq!(flash.take_written(), None);
        assert!(!flash.has_written());
    }

    #[test]
    fn what_was_kept_is_there_and_is_not_news() {
        let mut flash = chip();
        flash.load(&[7; 3 * BLOCK_BYTES]);
        assert_eq!(flash.read(3 * BLOCK_BYTES as u64 - 2, 2), 0x0707);
        assert!(!flash.has_written() && !flash.take_news());
    }

    #[test]
    fn sequences_that_are_none_change_nothing() {
        let mut flash = chip();
        flash.write(0, 1, 0x20);
        flash.write(0, 1, 0x10);
        assert_eq!(flash.read(0, 1), 0xb0);
        flash.write(0, 1, 0x50);
        flash.write(0, 1, 0xe8);
        assert_eq!(flash.read(0, 1), 1);
        flash.write(0, 1, 0x70);
        assert_eq!(flash.read(0, 1), 0x30);
        flash.write(0, 1, 0xff);
        assert_eq!(flash.take_written(), None);
    }

    #[test]
    fn accesses_behind_the_end_are_harmless() {
        let mut flash = chip();
        for offset in [3 * BLOCK_BYTES as u64, u64::MAX - 3, u64::MAX] {
            flash.write(offset, 8, 0x10);
            flash.write(offset, 8, 0);
            flash.write(offset, 1, 0x20);
            flash.write(offset, 1, 0xd0);
            flash.write(offset, 1, 0xff);
            assert_eq!(flash.read(offset, 8), u64::MAX);
        }
        assert_eq!(flash.take_written(), None);
        flash.write(3 * BLOCK_BYTES as u64 - 2, 4, 0x10);
        flash.write(3 * BLOCK_BYTES as u64 - 2, 4, 0x1122_3344);
        flash.write(0, 1, 0xff);
        assert_eq!(flash.read(3 * BLOCK_BYTES as u64 - 4, 8), 0xffff_ffff_3344_5a5a);
        assert_eq!(
            flash.cells().load(Gpa::new(3 * BLOCK_BYTES as u64), 2),
            Ok(0x5a5a),
            "what follows is not the chip's"
        );
    }
}
