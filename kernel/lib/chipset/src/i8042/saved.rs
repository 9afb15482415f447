//! The saved form of the keyboard controller.

use super::{I8042, RESET_LINE, status};
use minicbor::{Decode, Encode};
use state::Invalid;

/// Its memory, output buffer and status.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[cbor(n(0), with = "minicbor::bytes")]
    ram: [u8; 32],
    #[n(1)]
    output: u8,
    #[n(2)]
    status: u8,
    #[n(3)]
    output_port: u8,
    #[n(4)]
    command: Option<u8>,
}

impl I8042 {
    /// What restores it.
    pub fn save(&self) -> Saved {
        let Self { ram, output, status, output_port, command } = *self;
        Saved { ram, output, status, output_port, command }
    }

    /// A controller that goes on where the saved one was.
    ///
    /// # Errors
    /// Where no controller can have been there.
    pub fn restore(saved: &Saved) -> Result<Self, Invalid> {
        const KEPT: u8 = status::OUTPUT_FULL | status::AUXILIARY | status::TIMEOUT | status::COMMAND;
        let Saved { ram, output, status, output_port, command } = *saved;
        Invalid::unless(status & !KEPT == 0 && output_port & RESET_LINE != 0, "the keyboard controller")?;
        Ok(Self { ram, output, status, output_port, command })
    }
}
