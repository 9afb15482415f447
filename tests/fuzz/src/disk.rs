//! What the targets share that play a disk's device: [`Transfers`] gives a driver any transfers and sees that each ends
//! once, [`ata_identity`] is what an ATA disk says of itself.

use crate::Input;
use addr::Hpa;
use block::{Disk, HostRun, Op, Transfer};
use std::collections::BTreeSet;

/// Memory that transfers have their runs in: 64 KiB.
#[derive(Clone, Copy)]
pub struct Memory {
    start: u64,
    align_bytes: u16,
}

impl Memory {
    /// Memory of this process, for runs of any alignment. It is never given back: a driver may copy from it and to it.
    #[must_use]
    pub fn real() -> Self {
        static START: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
        Self { start: *START.get_or_init(|| vec![0_u8; 1 << 16].leak().as_mut_ptr() as u64), align_bytes: 1 }
    }

    /// Addresses that nothing is behind: for devices that are not played so far, and runs that need no copy.
    #[must_use]
    pub fn nowhere(start: u64, align_bytes: u16) -> Self {
        Self { start, align_bytes }
    }

    fn align(self, value: u16) -> u16 {
        value / self.align_bytes * self.align_bytes
    }
}

/// The transfers that a driver was given.
#[derive(Default)]
pub struct Transfers {
    in_flight: BTreeSet<u64>,
    next: u64,
}

impl Transfers {
    /// Submits some transfer, which the driver may refuse.
    pub fn submit(&mut self, disk: &mut dyn Disk, input: &mut Input<'_>, memory: Memory) {
        let byte = input.u8();
        let op = match [Op::Read, Op::Write, Op::Flush, Op::Discard, Op::WriteZeroes][usize::from(byte % 5)] {
            Op::Write if byte >= 0x80 && disk.geometry().write_through => Op::WriteThrough,
            op => op,
        };
        let mut runs = Vec::new();
        let has_data = matches!(op, Op::Read | Op::Write | Op::WriteThrough);
        for _ in 0..input.u8() % 6 {
            let (at, bytes) = (memory.align(input.u16() & 0x7fff), memory.align(input.u16() & 0x1fff));
            runs.push(HostRun { start: Hpa::new(memory.start + u64::from(at)), bytes: bytes.into() });
        }
        let total: u32 = runs.iter().map(|run| run.bytes).sum();
        if has_data && input.u8() & 1 == 0 {
            let block_bytes = disk.geometry().logical_block_bytes;
            runs.push(HostRun { start: Hpa::new(memory.start), bytes: block_bytes - total % block_bytes });
        }
        let bytes: u32 = runs.iter().map(|run| run.bytes).sum();
        let sectors = if has_data { bytes / 512 } else { input.u32() >> (input.u8() & 31) };
        let runs = if has_data { &runs[..] } else { &[] };
        let transfer = Transfer { id: self.next, op, sector: u64::from(input.u16() & 0xff8), sectors, runs };
        if disk.submit(&transfer).is_ok() {
            self.in_flight.insert(self.next);
        }
        self.next += 1;
    }

    /// Takes what has ended.
    ///
    /// # Panics
    /// If something ended that was not under way.
    pub fn take(&mut self, disk: &mut dyn Disk) {
        // The first end stands for "wait for the interrupt".
        for _ in 0..2 {
            while let Some((id, _)) = disk.completed() {
                assert!(self.in_flight.remove(&id), "a transfer ended that was not under way");
            }
        }
    }

    /// Takes what has ended, which is everything.
    ///
    /// # Panics
    /// If something is still under way.
    pub fn take_all(&mut self, disk: &mut dyn Disk) {
        self.take(disk);
        assert!(self.in_flight.is_empty(), "transfers are lost");
    }
}

/// What a disk says of itself that does everything (ACS-4, section 7.13), but for what the fuzzer changes.
#[must_use]
pub fn ata_identity(input: &mut Input<'_>) -> [u8; 512] {
    let mut words = [0_u16; 256];
    let said = [
        (10, 0x5331),
        (27, 0x4469),
        (49, 3 << 8),
        (61, 0x20),
        (75, 31),
        (76, 1 << 8),
        (83, 0x7400),
        (85, 1 << 5),
        (87, 1 << 14),
        (101, 0x20),
        (105, 8),
        (106, 0x6003),
        (169, 1),
    ];
    said.into_iter().for_each(|(word, value)| words[word] = value);
    for _ in 0..input.u8() % 8 {
        words[usize::from(input.u8())] = input.u16();
    }
    let mut page = [0; 512];
    page.as_chunks_mut().0.iter_mut().zip(words).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
    page
}
