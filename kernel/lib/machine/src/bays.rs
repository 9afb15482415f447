//! Places for parts that come and go: each has a number of its own, which nothing else ever gets.
//!
//! The type is [`Bays`]. Whatever arrives late for a part that has gone finds nobody there.

use alloc::vec::Vec;
use core::ops::{Index, IndexMut};

/// Parts by their numbers.
pub struct Bays<T>(Vec<Option<T>>);

impl<T> Bays<T> {
    /// Puts a part in; gives its number.
    pub fn add(&mut self, part: T) -> usize {
        self.0.push(Some(part));
        self.0.len() - 1
    }

    /// Takes a part out.
    pub fn remove(&mut self, number: usize) {
        self.0[number] = None;
    }

    /// A part, where it is there.
    pub fn get(&self, number: usize) -> Option<&T> {
        self.0.get(number)?.as_ref()
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, number: usize) -> Option<&mut T> {
        self.0.get_mut(number)?.as_mut()
    }

    /// The parts that are there, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().flatten()
    }

    /// The numbers of the parts that are there.
    pub fn numbers(&self) -> impl Iterator<Item = usize> + use<T> {
        let there: Vec<usize> = (0..self.0.len()).filter(|&number| self.0[number].is_some()).collect();
        there.into_iter()
    }

    /// The number of the first part for which that holds.
    pub fn find(&self, holds: impl Fn(&T) -> bool) -> Option<usize> {
        self.0.iter().position(|part| part.as_ref().is_some_and(&holds))
    }
}

impl<T> FromIterator<T> for Bays<T> {
    fn from_iter<I: IntoIterator<Item = T>>(parts: I) -> Self {
        Self(parts.into_iter().map(Some).collect())
    }
}

impl<T> Index<usize> for Bays<T> {
    type Output = T;

    fn index(&self, number: usize) -> &T {
        self.get(number).expect("the part is there")
    }
}

impl<T> IndexMut<usize> for Bays<T> {
    fn index_mut(&mut self, number: usize) -> &mut T {
        self.get_mut(number).expect("the part is there")
    }
}
