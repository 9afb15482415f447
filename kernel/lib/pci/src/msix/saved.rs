//! The saved form of a message table. Its control bits are configuration space's.

use super::{Entry, Msi, MsiX};
use crate::MsixControl;
use alloc::vec::Vec;
use minicbor::{Decode, Encode};
use state::Invalid;

/// The vectors, in order.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    vectors: Vec<SavedVector>,
}

#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
struct SavedVector {
    #[n(0)]
    address: u64,
    #[n(1)]
    data: u32,
    #[n(2)]
    masked: bool,
    #[n(3)]
    pending: bool,
}

impl MsiX {
    /// What restores it.
    pub fn save(&self) -> Saved {
        let vector = |&Entry { message: Msi { address, data }, masked, pending }: &Entry| SavedVector {
            address,
            data,
            masked,
            pending,
        };
        Saved { vectors: self.entries.iter().map(vector).collect() }
    }

    /// Takes over the vectors of a saved table, with the control bits of the configuration space around it.
    ///
    /// # Errors
    /// Where the table has other vectors than this one.
    pub fn restore(&mut self, saved: &Saved, control: MsixControl) -> Result<(), Invalid> {
        let aligned = saved.vectors.iter().all(|vector| vector.address & 0b11 == 0);
        Invalid::unless(saved.vectors.len() == self.entries.len() && aligned, "its message table")?;
        for (entry, saved) in self.entries.iter_mut().zip(&saved.vectors) {
            let &SavedVector { address, data, masked, pending } = saved;
            *entry = Entry { message: Msi { address, data }, masked, pending };
        }
        self.control = control;
        Ok(())
    }
}
