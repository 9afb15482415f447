//! The saved form of what a guest's own firmware finds beside the board that every guest has.

use super::Firmware;
use firmware::fw_cfg::FwCfg;
use minicbor::{Decode, Encode};
use state::Invalid;

/// The devices. The firmware's code is not among them: where it goes on there must be the same.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    flash: chipset::saved::Flash,
    #[n(1)]
    fw_cfg: firmware::fw_cfg::Saved,
    #[n(2)]
    lpc: pci::saved::ConfigSpace,
}

impl Firmware {
    pub fn save(&self) -> Saved {
        Saved { flash: self.flash.save(), fw_cfg: self.fw_cfg.save(), lpc: self.lpc.save() }
    }

    /// Makes fresh devices go on where the saved ones were.
    ///
    /// # Errors
    /// Where no such devices can have been there.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), Invalid> {
        self.flash.restore(&saved.flash)?;
        self.fw_cfg = FwCfg::restore(&saved.fw_cfg)?;
        self.lpc.restore(&saved.lpc)?;
        self.is_mapped = self.flash.is_readable();
        Ok(())
    }
}
