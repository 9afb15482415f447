//! An emulator that ended by a signal nobody sent has a fault of its own. The type is [`Crashed`], the cause of the error
//! that an order to its monitor or a wait ends with; a program that meets a known fault of an emulator's tries again.

use std::fmt;

/// The emulator ended by this signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crashed(pub i32);

impl fmt::Display for Crashed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "the emulator itself was ended by signal {}", self.0)
    }
}

impl std::error::Error for Crashed {}
