//! The saved form of configuration space: its image.

use super::{ConfigSpace, SPACE_BYTES, STATUS, STATUS_INTERRUPT};
use minicbor::{Decode, Encode};
use state::Invalid;

/// The 256 bytes as the guest reads them.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[cbor(n(0), with = "minicbor::bytes")]
    image: [u8; SPACE_BYTES],
}

impl ConfigSpace {
    /// What restores it.
    pub fn save(&self) -> Saved {
        Saved { image: self.image }
    }

    /// Takes over what a guest can have changed in the configuration space of this very function.
    ///
    /// # Errors
    /// Where it is another function's.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), Invalid> {
        for (at, (&new, (old, &writable))) in saved.image.iter().zip(self.image.iter().zip(&self.writable)).enumerate()
        {
            // The pin's state is the function's own, and the only part of it that changes.
            let changes = writable | if at == STATUS { STATUS_INTERRUPT as u8 } else { 0 };
            Invalid::unless((new ^ old) & !changes == 0, "it is another device's configuration space")?;
        }
        self.image = saved.image;
        Ok(())
    }
}
