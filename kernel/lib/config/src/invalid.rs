//! What is wrong with something an operator wrote.

use alloc::string::String;
use core::fmt;

/// A mistake and its remedy, each part of one sentence without a full stop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invalid {
    /// What is wrong: "`12X` is not a size".
    pub message: String,
    /// What to write instead, with an example.
    pub remedy: String,
}

impl Invalid {
    /// A mistake and its remedy.
    pub fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.message, self.remedy)
    }
}

impl core::error::Error for Invalid {}
