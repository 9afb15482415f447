//! The saved form of the board, but for the functions that have units of their own.

use super::Board;
use alloc::vec::Vec;
use minicbor::{Decode, Encode};
use pci::ConfigPort;
use state::Invalid;

/// Chipset, host bridge, configuration port, and what goes between functions and chipset.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    chipset: chipset::saved::Board,
    #[n(1)]
    bridge: pci::saved::ConfigSpace,
    #[n(2)]
    config_address: u32,
    /// The level of each device number's interrupt pin.
    #[n(3)]
    pins: u32,
    /// Device numbers and queues with work.
    #[n(4)]
    kicked: Vec<(u8, u16)>,
}

impl Board {
    pub fn save(&self) -> Saved {
        Saved {
            chipset: self.chipset.save(),
            bridge: self.bridge.save(),
            config_address: self.config_port.read_address(),
            pins: self.pins,
            kicked: self.kicked.iter().map(|&(slot, queue)| (self.device_number(slot), queue)).collect(),
        }
    }

    /// Makes a fresh board go on where the saved one was.
    ///
    /// # Errors
    /// Where no board like this can have been there.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), Invalid> {
        // Bit 0 is the host bridge's, which has no pin.
        let pins = ((1u64 << (self.slots.len() + 1)) - 2) as u32;
        Invalid::unless(saved.pins & !pins == 0, "the interrupt pins")?;
        for &(device, queue) in &saved.kicked {
            let slot = usize::from(device).checked_sub(1).and_then(|index| self.slots.get(index));
            let slot = *slot.ok_or(Invalid("a kick for nobody"))?;
            self.kick_again(slot, queue);
        }
        self.chipset = self.chipset.clone().restore(&saved.chipset)?;
        self.bridge.restore(&saved.bridge)?;
        self.config_port = ConfigPort::restore(saved.config_address)?;
        self.pins = saved.pins;
        Ok(())
    }
}
