//! Second-stage page tables: from guest-physical to host-physical addresses, over an entry format.
//!
//! [`Tables`] maps pages of 4 KiB, 2 MiB and 1 GiB, splits a large one when a part of it must differ, and gives its
//! frames back when it goes. [`npt`] is AMD's format and [`ept`] Intel's; [`amdvi`] and [`vtd`] are what their IOMMUs walk
//! for devices. The tables' memory is reached through [`TableMemory`], so that the walk is tested on the host.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod amdvi;
pub mod ept;
mod harvest;
pub mod npt;
pub mod vtd;

pub use harvest::{Mark, Retired};

use addr::{Gpa, HUGE_PAGE_BYTES, Hpa, LARGE_PAGE_BYTES, PAGE_BYTES};

/// Where tables live.
pub trait TableMemory {
    /// A zeroed frame for a table, or `None` when memory ran out.
    fn take(&mut self) -> Option<Hpa>;
    /// Takes a table's frame back.
    fn give(&mut self, table: Hpa);
    /// Reads entry `index` (0 to 511).
    fn read(&self, table: Hpa, index: usize) -> u64;
    /// Writes entry `index` (0 to 511), as one access: the processor may be walking.
    fn write(&mut self, table: Hpa, index: usize, entry: u64);
    /// Clears `bits` of entry `index`, as one access: the processor may be setting others.
    fn clear(&mut self, table: Hpa, index: usize, bits: u64);
}

/// How a vendor's entries look.
pub trait Format {
    /// The bit that the processor sets where it walked through an entry.
    const ACCESSED: u64;
    /// The bit that it sets where it writes to a page, in the entry that maps it.
    const DIRTY: u64;
    /// The right to write.
    const WRITABLE: u64;
    /// An entry at `level` (1 is the last) that leads to the next table.
    fn table(next: Hpa, level: u32) -> u64;
    /// An entry that maps a page with all rights; `large` where it stands above the last level.
    fn page(frame: Hpa, large: bool) -> u64;
    /// Whether the entry leads anywhere.
    fn is_present(entry: u64) -> bool;
    /// Whether a present entry above the last level maps a page.
    fn is_large(entry: u64) -> bool;
    /// The frame behind a present entry.
    fn frame(entry: u64) -> Hpa;
}

/// A page's size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageSize {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
    /// 1 GiB.
    Huge,
}

impl PageSize {
    /// Its bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Small => PAGE_BYTES,
            Self::Large => LARGE_PAGE_BYTES,
            Self::Huge => HUGE_PAGE_BYTES,
        }
    }

    /// The level of the table whose entries map such pages: 1 is the last.
    const fn level(self) -> u32 {
        match self {
            Self::Small => 1,
            Self::Large => 2,
            Self::Huge => 3,
        }
    }
}

/// Software's own bit of an entry in every format: the page stays read-only, whatever tracking does.
const READ_ONLY: u64 = 1 << 52;

/// Memory for a table ran out. What was mapped before is still mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfMemory;

/// One guest's second-stage tables, four levels deep.
pub struct Tables<F: Format, M: TableMemory> {
    root: Hpa,
    memory: M,
    format: core::marker::PhantomData<F>,
}

const ENTRIES: usize = 512;
const ROOT_LEVEL: u32 = 4;

impl<F: Format, M: TableMemory> Tables<F, M> {
    /// Tables that map nothing.
    pub fn new(mut memory: M) -> Result<Self, OutOfMemory> {
        let root = memory.take().ok_or(OutOfMemory)?;
        Ok(Self { root, memory, format: core::marker::PhantomData })
    }

    /// The root table, for nCR3 or the EPT pointer.
    pub fn root(&self) -> Hpa {
        self.root
    }

    /// Maps a page. A mapping that is there is replaced; a larger one around it is split first.
    ///
    /// # Panics
    /// When an address is not aligned to the page's size, or smaller pages stand where a large one should: the caller
    /// lays out the guest.
    pub fn map(&mut self, gpa: Gpa, hpa: Hpa, size: PageSize) -> Result<(), OutOfMemory> {
        assert!(gpa.is_aligned(size.bytes()) && hpa.is_aligned(size.bytes()));
        let (table, index) = self.entry_of(gpa, size.level())?;
        let old = self.memory.read(table, index);
        assert!(size == PageSize::Small || !F::is_present(old) || F::is_large(old), "a table stands at {gpa}");
        self.memory.write(table, index, F::page(hpa, size != PageSize::Small));
        Ok(())
    }

    /// Maps a page of 4 KiB that may be read and run but not written, also while writes are tracked.
    ///
    /// # Panics
    /// As [`map`](Self::map).
    pub fn map_read_only(&mut self, gpa: Gpa, hpa: Hpa) -> Result<(), OutOfMemory> {
        assert!(gpa.is_aligned(PAGE_BYTES) && hpa.is_aligned(PAGE_BYTES));
        let (table, index) = self.entry_of(gpa, PageSize::Small.level())?;
        self.memory.write(table, index, F::page(hpa, false) & !F::WRITABLE | READ_ONLY);
        Ok(())
    }

    /// Takes the mapping at `gpa` away, in pages of `size`. The caller invalidates the processors' copies.
    pub fn unmap(&mut self, gpa: Gpa, size: PageSize) -> Result<(), OutOfMemory> {
        let (table, index) = self.entry_of(gpa, size.level())?;
        self.memory.write(table, index, 0);
        Ok(())
    }

    /// Where `gpa` leads, and the size of the page that maps it.
    pub fn translate(&self, gpa: Gpa) -> Option<(Hpa, PageSize)> {
        let mut table = self.root;
        for level in (1..=ROOT_LEVEL).rev() {
            let entry = self.memory.read(table, index_of(gpa, level));
            if !F::is_present(entry) {
                return None;
            }
            if level == 1 || F::is_large(entry) {
                let size = [PageSize::Small, PageSize::Large, PageSize::Huge][level as usize - 1];
                return Some((F::frame(entry).wrapping_add(gpa.offset_in(size.bytes())), size));
            }
            table = F::frame(entry);
        }
        None
    }

    /// Whether a table stands where a page of `size` would.
    pub fn is_split(&self, gpa: Gpa, size: PageSize) -> bool {
        let mut table = self.root;
        for level in (size.level()..=ROOT_LEVEL).rev() {
            let entry = self.memory.read(table, index_of(gpa, level));
            if !F::is_present(entry) || F::is_large(entry) {
                return false;
            }
            table = F::frame(entry);
        }
        size != PageSize::Small
    }

    /// The table and index of the entry for `gpa` at `level`, making what stands above it.
    fn entry_of(&mut self, gpa: Gpa, level: u32) -> Result<(Hpa, usize), OutOfMemory> {
        let mut table = self.root;
        for above in (level + 1..=ROOT_LEVEL).rev() {
            let index = index_of(gpa, above);
            let entry = self.memory.read(table, index);
            table = if F::is_present(entry) && !F::is_large(entry) {
                F::frame(entry)
            } else {
                let next = self.memory.take().ok_or(OutOfMemory)?;
                if F::is_present(entry) {
                    self.fill_parts(next, F::frame(entry), above - 1);
                }
                // Complete before it can be walked.
                self.memory.write(table, index, F::table(next, above));
                next
            };
        }
        Ok((table, index_of(gpa, level)))
    }

    /// Fills a table at `level` with the parts of the large page at `frame`.
    fn fill_parts(&mut self, table: Hpa, frame: Hpa, level: u32) {
        let size = if level == 1 { PageSize::Small } else { PageSize::Large };
        for index in 0..ENTRIES {
            let part = frame.wrapping_add(index as u64 * size.bytes());
            self.memory.write(table, index, F::page(part, size != PageSize::Small));
        }
    }

    fn free(&mut self, table: Hpa, level: u32) {
        if level > 1 {
            for index in 0..ENTRIES {
                let entry = self.memory.read(table, index);
                if F::is_present(entry) && !F::is_large(entry) {
                    self.free(F::frame(entry), level - 1);
                }
            }
        }
        self.memory.give(table);
    }
}

impl<F: Format, M: TableMemory> Drop for Tables<F, M> {
    fn drop(&mut self) {
        self.free(self.root, ROOT_LEVEL);
    }
}

fn index_of(gpa: Gpa, level: u32) -> usize {
    (gpa.as_u64() >> (12 + 9 * (level - 1)) & 511) as usize
}

#[cfg(test)]
mod tests;
