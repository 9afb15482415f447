//! Checks that the tree keeps its own rules. Each rule takes what it checks as a value and gives [`Violation`]s, so that
//! its tests can show that it fails; `tests/tree.rs` applies all of them to the checkout.

pub mod arrows;
pub mod functions;
pub mod scan;
pub mod text;
pub mod tree;
pub mod unsafety;

use std::fmt;

/// A rule that is broken somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The file, relative to the checkout, or the crate.
    pub place: String,
    /// The line, from 1; 0 where the whole file or crate is meant.
    pub line: usize,
    /// What is wrong and what to do instead.
    pub what: String,
}

impl Violation {
    /// A violation at a line.
    pub fn new(place: &str, line: usize, what: impl Into<String>) -> Self {
        Self { place: place.to_owned(), line, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.place, self.line, self.what)
    }
}
