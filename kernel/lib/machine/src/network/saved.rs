//! The saved form of a network card.

use super::Card;
use crate::saved::plan;
use minicbor::{Decode, Encode};
use state::Invalid;

/// A card.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    function: virtio::saved::Function,
    #[n(1)]
    device: virtio::saved::Net,
}

impl Card {
    /// What it is, for comparison.
    pub fn plan(&self) -> plan::Nic {
        let config = self.function.device.config();
        plan::Nic { mac: config.mac, mtu: config.mtu }
    }

    pub fn save(&self) -> Saved {
        Saved { function: self.function.save(), device: self.function.device.save() }
    }

    pub fn restore(&mut self, saved: &Saved) -> Result<(), Invalid> {
        self.function.restore(&saved.function)?;
        self.function.device.restore(&saved.device)
    }
}
