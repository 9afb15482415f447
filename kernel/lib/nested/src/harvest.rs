//! Which pages the guest wrote: dirty tracking over the second-stage tables.
//!
//! [`Tables::start_tracking`] clears a mark on every page, [`Tables::harvest`] reports the pages that carry it again and
//! clears it, [`Tables::stop_tracking`] puts everything back. The mark is the dirty bit that the processor sets, or,
//! where it sets none, the right to write, which [`Tables::note_write`] gives back at the fault. A page of 2 MiB is split
//! when it is found written, and joined again in the end. After each of the three the caller makes every vCPU forget its
//! translations *before* it reads a reported page: until then a processor writes without setting the mark anew. Neighbours:
//! `guestmem` notes what the host itself writes.

use crate::{ENTRIES, Format, OutOfMemory, PageSize, READ_ONLY, ROOT_LEVEL, TableMemory, Tables, index_of};
use addr::{Gpa, Hpa, PAGE_BYTES};
use alloc::vec::Vec;

/// How a page shows that it was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// The processor sets the entry's dirty bit.
    Dirty,
    /// Pages are write-protected, and the fault lifts that.
    Writable,
}

/// Tables that lead nowhere any more. A processor may still walk them until every vCPU has forgotten its translations;
/// then [`Tables::give_back`] frees them.
#[derive(Default, Debug)]
#[must_use = "tables that are not given back are lost"]
pub struct Retired(Vec<Hpa>);

impl Mark {
    fn bits<F: Format>(self) -> u64 {
        match self {
            Self::Dirty => F::DIRTY,
            Self::Writable => F::WRITABLE,
        }
    }
}

impl<F: Format, M: TableMemory> Tables<F, M> {
    /// Clears the mark on every page; those of 1 GiB are split first. On an error some are, and tracking can be stopped
    /// or started again.
    pub fn start_tracking(&mut self, mark: Mark) -> Result<(), OutOfMemory> {
        self.split_huge()?;
        self.each_page(self.root, ROOT_LEVEL, Gpa::new(0), &mut |tables, table, index, _, _| {
            tables.memory.clear(table, index, mark.bits::<F>());
        });
        Ok(())
    }

    /// Reports the pages that were written since the last call, as address and number of 4 KiB pages, and clears their
    /// marks. A large page that was written is split, so that the next call tells its parts apart; without memory for
    /// that it is reported whole again.
    pub fn harvest(&mut self, mark: Mark, mut report: impl FnMut(Gpa, u64)) {
        let bits = mark.bits::<F>();
        self.each_page(self.root, ROOT_LEVEL, Gpa::new(0), &mut |tables, table, index, level, gpa| {
            if tables.memory.read(table, index) & bits != 0 {
                tables.take_mark(table, index, level, bits);
                report(gpa, bytes_at(level) / PAGE_BYTES);
            }
        });
    }

    /// As [`harvest`](Self::harvest) of [`Mark::Dirty`] for the one page around `gpa`, by whoever knows from a log which
    /// were written: the page's address and number of 4 KiB pages, if it carried the mark.
    pub fn harvest_page(&mut self, gpa: Gpa) -> Option<(Gpa, u64)> {
        let mut table = self.root;
        for level in (1..=ROOT_LEVEL).rev() {
            let index = index_of(gpa, level);
            let entry = self.memory.read(table, index);
            if !F::is_present(entry) {
                return None;
            }
            if level == 1 || F::is_large(entry) {
                if entry & F::DIRTY == 0 {
                    return None;
                }
                self.take_mark(table, index, level, F::DIRTY);
                let start = gpa.as_u64() & !(bytes_at(level) - 1);
                return Some((Gpa::new(start), bytes_at(level) / PAGE_BYTES));
            }
            table = F::frame(entry);
        }
        None
    }

    /// The guest wrote to a page that [`Mark::Writable`] protects: gives the right back to the 4 KiB around `gpa`, or to
    /// all of a large page where there is no memory to split it. The caller invalidates the vCPU that faulted, which may
    /// hold the narrower entry. False where no page is mapped, or one that is read-only for good.
    #[must_use]
    pub fn note_write(&mut self, gpa: Gpa) -> bool {
        let mut table = self.root;
        for level in (1..=ROOT_LEVEL).rev() {
            let index = index_of(gpa, level);
            let entry = self.memory.read(table, index);
            if !F::is_present(entry) {
                return false;
            }
            if entry & READ_ONLY != 0 {
                return false;
            }
            let is_page = level == 1 || F::is_large(entry);
            if is_page && entry & F::WRITABLE != 0 {
                // Another vCPU was here first: all of the page counts as written.
                return true;
            }
            if is_page && (level == 1 || self.split(table, index, level, F::WRITABLE).is_err()) {
                self.memory.write(table, index, entry | F::WRITABLE);
                return true;
            }
            table = F::frame(self.memory.read(table, index));
        }
        false
    }

    /// Ends tracking: every page may be written, and tables of small or large pages that lie together as one larger page
    /// does become that page. `has_huge_pages` says whether pages of 1 GiB may be made.
    pub fn stop_tracking(&mut self, has_huge_pages: bool) -> Retired {
        let mut retired = Retired::default();
        self.join_below(self.root, ROOT_LEVEL, has_huge_pages, &mut retired);
        retired
    }

    /// Frees tables once no processor can walk them.
    pub fn give_back(&mut self, retired: Retired) {
        retired.0.into_iter().for_each(|table| self.memory.give(table));
    }

    /// Clears the mark of a page that has it; splits the page where it is large.
    fn take_mark(&mut self, table: Hpa, index: usize, level: u32, bits: u64) {
        if level == 1 || self.split(table, index, level, bits).is_err() {
            self.memory.clear(table, index, bits);
        }
    }

    /// Puts a table of its parts, without `bits`, in the place of a large page.
    fn split(&mut self, table: Hpa, index: usize, level: u32, bits: u64) -> Result<(), OutOfMemory> {
        let parts = self.memory.take().ok_or(OutOfMemory)?;
        let entry = self.memory.read(table, index);
        self.fill_parts(parts, F::frame(entry), level - 1);
        (0..ENTRIES).for_each(|part| self.memory.clear(parts, part, bits));
        // Complete before it can be walked.
        self.memory.write(table, index, F::table(parts, level));
        Ok(())
    }

    fn split_huge(&mut self) -> Result<(), OutOfMemory> {
        for top in 0..ENTRIES {
            let entry = self.memory.read(self.root, top);
            if !F::is_present(entry) {
                continue;
            }
            let table = F::frame(entry);
            for index in 0..ENTRIES {
                let entry = self.memory.read(table, index);
                if F::is_present(entry) && F::is_large(entry) {
                    self.split(table, index, PageSize::Huge.level(), 0)?;
                }
            }
        }
        Ok(())
    }

    /// Calls `act` with table, index, level and address of every entry that maps a page.
    fn each_page(&mut self, table: Hpa, level: u32, start: Gpa, act: &mut impl FnMut(&mut Self, Hpa, usize, u32, Gpa)) {
        for index in 0..ENTRIES {
            let entry = self.memory.read(table, index);
            if !F::is_present(entry) {
                continue;
            }
            let gpa = start.wrapping_add(index as u64 * bytes_at(level));
            if level == 1 || F::is_large(entry) {
                act(self, table, index, level, gpa);
            } else {
                self.each_page(F::frame(entry), level - 1, gpa, act);
            }
        }
    }

    /// Joins what lies together in the tables behind `table`, and lets every page be written.
    fn join_below(&mut self, table: Hpa, level: u32, has_huge_pages: bool, retired: &mut Retired) {
        for index in 0..ENTRIES {
            let entry = self.memory.read(table, index);
            if !F::is_present(entry) {
                continue;
            }
            if level == 1 || F::is_large(entry) {
                if entry & (F::WRITABLE | READ_ONLY) == 0 {
                    self.memory.write(table, index, entry | F::WRITABLE);
                }
                continue;
            }
            let next = F::frame(entry);
            self.join_below(next, level - 1, has_huge_pages, retired);
            let may_join = level == PageSize::Large.level() || level == PageSize::Huge.level() && has_huge_pages;
            if may_join && let Some(frame) = self.joined(next, level) {
                self.memory.write(table, index, F::page(frame, true) | F::ACCESSED | F::DIRTY);
                retired.0.push(next);
            }
        }
    }

    /// The frame that the entries of `table`, which stands below `level`, make up together; `None` where they do not.
    fn joined(&self, table: Hpa, level: u32) -> Option<Hpa> {
        let first = F::frame(self.memory.read(table, 0));
        let part_bytes = bytes_at(level - 1);
        let is_part = |index: usize| {
            let entry = self.memory.read(table, index);
            let is_page = F::is_present(entry)
                && entry & READ_ONLY == 0
                && (level == PageSize::Large.level() || F::is_large(entry));
            is_page && F::frame(entry) == first.wrapping_add(index as u64 * part_bytes)
        };
        (first.is_aligned(bytes_at(level)) && (0..ENTRIES).all(is_part)).then_some(first)
    }
}

/// The bytes that an entry at a level spans.
const fn bytes_at(level: u32) -> u64 {
    PAGE_BYTES << (9 * (level - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ept::Ept;
    use crate::npt::Npt;
    use crate::tests::{Model, model};
    use addr::{HUGE_PAGE_BYTES, LARGE_PAGE_BYTES};

    fn guest<F: Format>(memory: &Model) -> Tables<F, Model> {
        let mut tables = Tables::new(memory.clone()).unwrap();
        tables.map(Gpa::new(0), Hpa::new(HUGE_PAGE_BYTES), PageSize::Huge).unwrap();
        tables.map(Gpa::new(HUGE_PAGE_BYTES), Hpa::new(6 * LARGE_PAGE_BYTES), PageSize::Large).unwrap();
        tables
    }

    /// What a processor does that writes at `gpa`.
    fn write<F: Format>(tables: &mut Tables<F, Model>, gpa: Gpa) {
        let mut table = tables.root;
        for level in (1..=ROOT_LEVEL).rev() {
            let entry = tables.memory.read(table, index_of(gpa, level));
            assert!(F::is_present(entry));
            let leaf = level == 1 || F::is_large(entry);
            let bits = if leaf { F::ACCESSED | F::DIRTY } else { F::ACCESSED };
            tables.memory.write(table, index_of(gpa, level), entry | bits);
            if leaf {
                assert!(entry & F::WRITABLE != 0);
                return;
            }
            table = F::frame(entry);
        }
    }

    fn harvested<F: Format>(tables: &mut Tables<F, Model>, mark: Mark) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        tables.harvest(mark, |gpa, pages| found.push((gpa.as_u64(), pages)));
        found
    }

    fn writes_are_reported_once_and_ever_more_finely<F: Format>() {
        let memory = model(16);
        let mut tables = guest::<F>(&memory);
        write(&mut tables, Gpa::new(0x1234));
        tables.start_tracking(Mark::Dirty).unwrap();
        assert_eq!(harvested(&mut tables, Mark::Dirty), []);
        write(&mut tables, Gpa::new(0x40_5000));
        assert_eq!(harvested(&mut tables, Mark::Dirty), [(0x40_0000, 512)]);
        assert_eq!(harvested(&mut tables, Mark::Dirty), []);
        write(&mut tables, Gpa::new(0x40_5000));
        write(&mut tables, Gpa::new(0x5f_ffff));
        assert_eq!(harvested(&mut tables, Mark::Dirty), [(0x40_5000, 1), (0x5f_f000, 1)]);
        assert_eq!(tables.translate(Gpa::new(0x40_5123)).unwrap().0, Hpa::new(HUGE_PAGE_BYTES + 0x40_5123));
    }

    fn pages_that_a_log_names_are_reported_as_a_harvest_would<F: Format>() {
        let mut tables = guest::<F>(&model(16));
        tables.start_tracking(Mark::Dirty).unwrap();
        let (logged, beside) = (Gpa::new(0x40_5678), Gpa::new(0x40_7000));
        assert_eq!(tables.harvest_page(logged), None, "the host wrote it");
        write(&mut tables, logged);
        assert_eq!(tables.harvest_page(logged), Some((Gpa::new(0x40_0000), 512)));
        assert_eq!(tables.harvest_page(logged), None);
        write(&mut tables, logged);
        write(&mut tables, beside);
        assert_eq!(tables.harvest_page(logged), Some((Gpa::new(0x40_5000), 1)));
        assert_eq!(harvested(&mut tables, Mark::Dirty), [(0x40_7000, 1)]);
        assert_eq!(tables.harvest_page(Gpa::new(4 * HUGE_PAGE_BYTES)), None, "nothing is mapped there");
    }

    fn pages_are_joined_again_and_no_table_is_lost<F: Format>() {
        let memory = model(16);
        let mut tables = guest::<F>(&memory);
        let before = memory.tables();
        tables.start_tracking(Mark::Dirty).unwrap();
        for gpa in [0, 0x20_0000, HUGE_PAGE_BYTES] {
            write(&mut tables, Gpa::new(gpa));
        }
        assert_eq!(harvested(&mut tables, Mark::Dirty).len(), 3);
        assert_eq!(memory.tables(), before + 4);
        let retired = tables.stop_tracking(true);
        assert_eq!(tables.translate(Gpa::new(0x1234)), Some((Hpa::new(HUGE_PAGE_BYTES + 0x1234), PageSize::Huge)));
        let large = Some((Hpa::new(6 * LARGE_PAGE_BYTES), PageSize::Large));
        assert_eq!(tables.translate(Gpa::new(HUGE_PAGE_BYTES)), large);
        tables.give_back(retired);
        assert_eq!(memory.tables(), before);
    }

    fn read_only_pages_stay_so<F: Format>() {
        let memory = model(16);
        let mut tables = guest::<F>(&memory);
        let rom = 2 * HUGE_PAGE_BYTES;
        for page in 0..ENTRIES as u64 {
            let offset = page * PAGE_BYTES;
            tables.map_read_only(Gpa::new(rom + offset), Hpa::new(9 * LARGE_PAGE_BYTES + offset)).unwrap();
        }
        for mark in [Mark::Dirty, Mark::Writable] {
            tables.start_tracking(mark).unwrap();
            assert!(!tables.note_write(Gpa::new(rom)));
            assert_eq!(harvested(&mut tables, mark), []);
            let retired = tables.stop_tracking(true);
            tables.give_back(retired);
        }
        let (table, index) = tables.entry_of(Gpa::new(rom), 1).unwrap();
        let entry = tables.memory.read(table, index);
        assert!(F::is_present(entry) && entry & F::WRITABLE == 0);
        assert_eq!(tables.translate(Gpa::new(rom)), Some((Hpa::new(9 * LARGE_PAGE_BYTES), PageSize::Small)));
    }

    #[test]
    fn rom_is_never_writable() {
        read_only_pages_stay_so::<Npt>();
        read_only_pages_stay_so::<Ept>();
    }

    fn without_huge_pages_large_ones_stay<F: Format>() {
        let mut tables = guest::<F>(&model(16));
        tables.start_tracking(Mark::Dirty).unwrap();
        write(&mut tables, Gpa::new(0x20_0000));
        let _ = harvested(&mut tables, Mark::Dirty);
        let retired = tables.stop_tracking(false);
        tables.give_back(retired);
        assert_eq!(tables.translate(Gpa::new(0x20_0000)).unwrap().1, PageSize::Large);
    }

    fn without_memory_a_large_page_is_reported_whole<F: Format>() {
        let memory = model(5);
        let mut tables = guest::<F>(&memory);
        tables.start_tracking(Mark::Dirty).unwrap();
        for _ in 0..3 {
            write(&mut tables, Gpa::new(HUGE_PAGE_BYTES));
            write(&mut tables, Gpa::new(0));
            assert_eq!(harvested(&mut tables, Mark::Dirty).last(), Some(&(HUGE_PAGE_BYTES, 512)));
        }
        memory.grant(0);
        assert_eq!(guest_without_room::<F>().start_tracking(Mark::Dirty), Err(OutOfMemory));
    }

    fn guest_without_room<F: Format>() -> Tables<F, Model> {
        let memory = model(16);
        let tables = guest::<F>(&memory);
        memory.grant(0);
        tables
    }

    fn protection_tells_what_a_dirty_bit_would<F: Format>() {
        let memory = model(16);
        let mut tables = guest::<F>(&memory);
        tables.start_tracking(Mark::Writable).unwrap();
        assert_eq!(harvested(&mut tables, Mark::Writable), []);
        assert!(tables.note_write(Gpa::new(0x40_5678)));
        write(&mut tables, Gpa::new(0x40_5678));
        tables.map(Gpa::new(HUGE_PAGE_BYTES + LARGE_PAGE_BYTES), Hpa::new(0), PageSize::Large).unwrap();
        assert!(tables.note_write(Gpa::new(HUGE_PAGE_BYTES + LARGE_PAGE_BYTES)));
        memory.grant(0);
        assert!(tables.note_write(Gpa::new(HUGE_PAGE_BYTES + 0x3000)));
        assert!(!tables.note_write(Gpa::new(2 * HUGE_PAGE_BYTES)));
        let (split, whole) = ((0x40_5000, 1), |gpa| (gpa, 512));
        let found = [split, whole(HUGE_PAGE_BYTES), whole(HUGE_PAGE_BYTES + LARGE_PAGE_BYTES)];
        assert_eq!(harvested(&mut tables, Mark::Writable), found);
        assert_eq!(harvested(&mut tables, Mark::Writable), []);
        let retired = tables.stop_tracking(true);
        tables.give_back(retired);
        write(&mut tables, Gpa::new(0x40_5678));
        assert_eq!(tables.translate(Gpa::new(0)).unwrap().1, PageSize::Huge);
    }

    macro_rules! for_each_format {
        ($($test:ident),*) => {
            mod npt_tables {
                $(#[test] fn $test() { super::$test::<super::Npt>(); })*
            }
            mod ept_tables {
                $(#[test] fn $test() { super::$test::<super::Ept>(); })*
            }
        };
    }

    for_each_format!(
        writes_are_reported_once_and_ever_more_finely,
        pages_that_a_log_names_are_reported_as_a_harvest_would,
        pages_are_joined_again_and_no_table_is_lost,
        without_huge_pages_large_ones_stay,
        without_memory_a_large_page_is_reported_whole,
        protection_tells_what_a_dirty_bit_would
    );
}
