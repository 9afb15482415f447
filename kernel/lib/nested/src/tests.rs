use super::amdvi::AmdVi;
use super::ept::Ept;
use super::npt::Npt;
use super::vtd::VtD;
use super::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Tables in a map; `left` frames may still be taken.
#[derive(Clone, Default)]
pub struct Model(Rc<RefCell<State>>);

#[derive(Default)]
struct State {
    tables: HashMap<u64, [u64; 512]>,
    taken: u64,
    left: u64,
}

impl TableMemory for Model {
    fn take(&mut self) -> Option<Hpa> {
        let mut state = self.0.borrow_mut();
        state.left = state.left.checked_sub(1)?;
        state.taken += 1;
        let frame = 0x1000 * state.taken;
        state.tables.insert(frame, [0; 512]);
        Some(Hpa::new(frame))
    }

    fn give(&mut self, table: Hpa) {
        assert!(self.0.borrow_mut().tables.remove(&table.as_u64()).is_some());
    }

    fn read(&self, table: Hpa, index: usize) -> u64 {
        self.0.borrow().tables[&table.as_u64()][index]
    }

    fn write(&mut self, table: Hpa, index: usize, entry: u64) {
        self.0.borrow_mut().tables.get_mut(&table.as_u64()).unwrap()[index] = entry;
    }

    fn clear(&mut self, table: Hpa, index: usize, bits: u64) {
        self.0.borrow_mut().tables.get_mut(&table.as_u64()).unwrap()[index] &= !bits;
    }
}

impl Model {
    /// How many tables there are.
    pub fn tables(&self) -> usize {
        self.0.borrow().tables.len()
    }

    /// Lets so many more be taken.
    pub fn grant(&self, frames: u64) {
        self.0.borrow_mut().left = frames;
    }
}

pub fn model(frames: u64) -> Model {
    let model = Model::default();
    model.0.borrow_mut().left = frames;
    model
}

fn pages_of_every_size_translate<F: Format>() {
    let mut tables = Tables::<F, _>::new(model(16)).unwrap();
    tables.map(Gpa::new(0x20_0000), Hpa::new(0x4000_0000), PageSize::Large).unwrap();
    tables.map(Gpa::new(1 << 30), Hpa::new(3 << 30), PageSize::Huge).unwrap();
    tables.map(Gpa::new(0x1000), Hpa::new(0x7000), PageSize::Small).unwrap();
    assert_eq!(tables.translate(Gpa::new(0x20_1234)), Some((Hpa::new(0x4000_1234), PageSize::Large)));
    assert_eq!(tables.translate(Gpa::new((1 << 30) + 5)), Some((Hpa::new((3 << 30) + 5), PageSize::Huge)));
    assert_eq!(tables.translate(Gpa::new(0x1fff)), Some((Hpa::new(0x7fff), PageSize::Small)));
    assert_eq!(tables.translate(Gpa::new(0x2000)), None);
}

fn a_table_in_place_of_a_page_is_seen<F: Format>() {
    let mut tables = Tables::<F, _>::new(model(16)).unwrap();
    let at = Gpa::new(0x20_0000);
    assert!(!tables.is_split(at, PageSize::Large));
    tables.map(at, Hpa::new(0x4000_0000), PageSize::Large).unwrap();
    assert!(!tables.is_split(at, PageSize::Large) && tables.is_split(at, PageSize::Huge));
    tables.unmap(Gpa::new(0x20_1000), PageSize::Small).unwrap();
    assert!(tables.is_split(at, PageSize::Large) && !tables.is_split(at, PageSize::Small));
}

fn a_large_page_is_split_into_equal_parts<F: Format>() {
    let mut tables = Tables::<F, _>::new(model(16)).unwrap();
    tables.map(Gpa::new(0), Hpa::new(1 << 30), PageSize::Huge).unwrap();
    tables.unmap(Gpa::new(0x20_3000), PageSize::Small).unwrap();
    assert_eq!(tables.translate(Gpa::new(0x20_3000)), None);
    assert_eq!(tables.translate(Gpa::new(0x20_4000)), Some((Hpa::new((1 << 30) + 0x20_4000), PageSize::Small)));
    assert_eq!(tables.translate(Gpa::new(0x40_0000)), Some((Hpa::new((1 << 30) + 0x40_0000), PageSize::Large)));
}

fn every_frame_comes_back_even_after_running_out<F: Format>() {
    let memory = model(3);
    let mut tables = Tables::<F, _>::new(memory.clone()).unwrap();
    tables.map(Gpa::new(0), Hpa::new(0), PageSize::Large).unwrap();
    assert_eq!(tables.map(Gpa::new(0x1000), Hpa::new(0), PageSize::Small), Err(OutOfMemory));
    assert_eq!(tables.translate(Gpa::new(0x1000)), Some((Hpa::new(0x1000), PageSize::Large)));
    drop(tables);
    assert!(memory.0.borrow().tables.is_empty());
}

/// Every test above, for each format.
macro_rules! for_each_format {
    ($($test:ident),*) => {
        mod npt_tables {
            $(#[test] fn $test() { super::$test::<super::Npt>(); })*
        }
        mod ept_tables {
            $(#[test] fn $test() { super::$test::<super::Ept>(); })*
        }
        mod amdvi_tables {
            $(#[test] fn $test() { super::$test::<super::AmdVi>(); })*
        }
        mod vtd_tables {
            $(#[test] fn $test() { super::$test::<super::VtD>(); })*
        }
    };
}

for_each_format!(
    pages_of_every_size_translate,
    a_table_in_place_of_a_page_is_seen,
    a_large_page_is_split_into_equal_parts,
    every_frame_comes_back_even_after_running_out
);

/// Bits that must be zero are what the processor calls a misconfiguration (SDM volume 3, 29.3.3.1).
#[test]
fn ept_entries_are_as_the_manual_has_them() {
    let frame = Hpa::new(0x12_3456_7000);
    assert_eq!(Ept::table(frame, 2), 0x12_3456_7007);
    assert_eq!(Ept::page(frame, false), 0x12_3456_7077);
    assert_eq!(Ept::page(Hpa::new(0x4020_0000), true), 0x4020_00f7);
    assert!(!Ept::is_present(0) && Ept::is_present(Ept::table(frame, 2)));
    assert!(!Ept::is_large(Ept::table(frame, 2)) && !Ept::is_large(Ept::page(frame, false)));
    // The processor sets accessed and dirty, bits 8 and 9.
    assert_eq!(Ept::frame(Ept::page(frame, false) | 3 << 8), frame);
}

/// An entry names the level below, and a page names none (AMD I/O Virtualization Technology 3.08, figures 8 and 9).
#[test]
fn amdvi_entries_are_as_the_manual_has_them() {
    let frame = Hpa::new(0x12_3456_7000);
    assert_eq!(AmdVi::table(frame, 4), 0x6000_0012_3456_7601);
    assert_eq!(AmdVi::page(frame, true), 0x6000_0012_3456_7001);
    assert!(AmdVi::is_large(AmdVi::page(frame, true)) && !AmdVi::is_large(AmdVi::table(frame, 2)));
    assert_eq!(AmdVi::frame(AmdVi::table(frame, 2)), frame);
}

#[test]
fn vtd_entries_are_as_the_manual_has_them() {
    let frame = Hpa::new(0x4020_0000);
    assert_eq!((VtD::table(frame, 3), VtD::page(frame, false)), (0x4020_0003, 0x4020_0003));
    assert_eq!(VtD::page(frame, true), 0x4020_0083);
}
