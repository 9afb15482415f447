//! The saved form of the flash: its content, and what the next access means.

use super::{BLOCK_BYTES, ERASED, Flash, Mode, status};
use addr::Gpa;
use alloc::vec::Vec;
use minicbor::{Decode, Encode};
use state::Invalid;

/// The chip. What of its content a disk lacks is not part of it: who restores it compares.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    awaits: Awaits,
    #[n(1)]
    status: u8,
    /// The blocks that are not erased, in order.
    #[n(2)]
    blocks: Vec<Block>,
}

/// What the next access means.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(index_only)]
enum Awaits {
    #[n(0)]
    Array,
    #[n(1)]
    Status,
    #[n(2)]
    Program,
    #[n(3)]
    Erase,
}

/// A block by its number.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
struct Block {
    #[n(0)]
    number: u32,
    #[cbor(n(1), with = "minicbor::bytes")]
    content: Vec<u8>,
}

impl Flash {
    /// What restores it.
    pub fn save(&self) -> Saved {
        let content = self.content(0..self.bytes);
        let blocks = (0..).zip(content.chunks(BLOCK_BYTES)).filter(|(_, block)| !is_erased(block));
        let awaits = match self.mode {
            Mode::Array => Awaits::Array,
            Mode::Status => Awaits::Status,
            Mode::Program => Awaits::Program,
            Mode::Erase => Awaits::Erase,
        };
        let blocks = blocks.map(|(number, block)| Block { number, content: block.into() }).collect();
        Saved { awaits, status: self.status, blocks }
    }

    /// Makes a chip of the same size go on where the saved one was. All of its content counts as taken.
    ///
    /// # Errors
    /// Where no chip of this size can have been there. Nothing has changed then.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), Invalid> {
        let Saved { awaits, status, blocks } = saved;
        let end = (self.bytes / BLOCK_BYTES) as u64;
        let possible = status & !(status::READY | status::SEQUENCE_ERROR) == 0
            && blocks.is_sorted_by(|one, next| one.number < next.number)
            && blocks.iter().all(|block| u64::from(block.number) < end && block.content.len() == BLOCK_BYTES);
        Invalid::unless(possible, "the flash")?;
        let mut content = alloc::vec![ERASED; self.bytes];
        for Block { number, content: block } in blocks {
            content[*number as usize * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(block);
        }
        self.cells.write(Gpa::new(0), &content).expect("the chip is there");
        self.written.fill(false);
        self.has_news = false;
        self.status = *status;
        self.mode = match awaits {
            Awaits::Array => Mode::Array,
            Awaits::Status => Mode::Status,
            Awaits::Program => Mode::Program,
            Awaits::Erase => Mode::Erase,
        };
        Ok(())
    }
}

fn is_erased(block: &[u8]) -> bool {
    block.iter().all(|&byte| byte == ERASED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chip(fill: u8) -> Flash {
        let cells = guestmem::heap::guest_memory(addr::LARGE_PAGE_BYTES);
        cells.write(Gpa::new(0), &[fill; 3 * BLOCK_BYTES]).unwrap();
        Flash::new(cells, 3 * BLOCK_BYTES)
    }

    #[test]
    fn it_goes_on_amid_any_command() {
        for command in [0xff, 0x70, 0x10, 0x20, 0xe8] {
            let mut flash = chip(0x5a);
            flash.erase(BLOCK_BYTES as u64);
            flash.write(0, 1, command);
            let saved = flash.save();
            assert_eq!(saved.blocks.len(), 2, "what is erased does not travel");
            let mut copy = chip(0);
            copy.restore(&saved).unwrap();
            assert_eq!(copy.save(), saved);
            assert!(!copy.has_written() && copy.is_readable() == flash.is_readable());
            for chip in [&mut flash, &mut copy] {
                chip.take_written();
                chip.write(7, 1, 0xd0);
            }
            assert_eq!(copy.read(7, 1), flash.read(7, 1), "after {command:#x}");
            assert_eq!(copy.take_written(), flash.take_written(), "after {command:#x}");
            assert_eq!(copy.content(0..3 * BLOCK_BYTES), flash.content(0..3 * BLOCK_BYTES));
        }
    }

    #[test]
    fn what_no_chip_was_is_refused_and_changes_nothing() {
        let good = chip(0x5a).save();
        let change = |act: &dyn Fn(&mut Saved)| {
            let mut saved = good.clone();
            act(&mut saved);
            saved
        };
        for bad in [
            change(&|saved| saved.status = 1),
            change(&|saved| saved.blocks[2].number = 3),
            change(&|saved| saved.blocks[0].number = 1),
            change(&|saved| saved.blocks.swap(0, 1)),
            change(&|saved| {
                saved.blocks[1].content.pop();
            }),
            change(&|saved| saved.blocks[1].content.push(0)),
        ] {
            let mut flash = chip(1);
            let before = flash.save();
            assert!(flash.restore(&bad).is_err());
            assert_eq!(flash.save(), before);
        }
    }
}
