//! The saved form of the IOAPIC. The levels of its pins are the board's.

use super::{ID_BITS, IoApic, PIN_COUNT, entry, is_level};
use minicbor::{Decode, Encode};
use state::Invalid;

/// The selector, the identifier and the redirection entries with remote IRR.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    select: u8,
    #[n(1)]
    id: u32,
    #[n(2)]
    entries: [u64; PIN_COUNT],
}

impl IoApic {
    /// What restores it, together with the levels of its pins.
    pub fn save(&self) -> Saved {
        Saved { select: self.select, id: self.id, entries: self.entries }
    }

    /// An IOAPIC that goes on where the saved one was. `lines` are the levels of its pins.
    ///
    /// # Errors
    /// Where no IOAPIC can have been there.
    pub fn restore(saved: &Saved, lines: u32) -> Result<Self, Invalid> {
        let possible = |&entry: &u64| {
            entry & !(entry::LOW_WRITABLE | entry::HIGH_WRITABLE | entry::REMOTE_IRR) == 0
                && (entry & entry::REMOTE_IRR == 0 || is_level(entry))
        };
        Invalid::unless(saved.id & !ID_BITS == 0 && saved.entries.iter().all(possible), "the IOAPIC")?;
        Ok(Self { select: saved.select, id: saved.id, entries: saved.entries, lines })
    }
}
