//! A test that this machine cannot run is neither passed nor failed. The type is [`Skipped`], an error that a program
//! returns and `cargo xtask test` announces and counts.

use std::fmt;

/// Why a test was not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped(pub String);

impl fmt::Display for Skipped {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skipped {}
