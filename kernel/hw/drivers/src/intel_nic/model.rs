//! Which cards this driver drives, and what its parts have to know of each.
//!
//! The main type is [`Model`], found by PCI device id. Only cards with copper ports are listed whose differences the
//! driver handles: the network functions of chipsets (I217 to I219) share their PHY with firmware and are not.

use super::descriptor::{ReceiveFormat, TransmitFormat};

/// Intel's PCI vendor id.
pub(crate) const INTEL_VENDOR: u16 = 0x8086;

/// Cards that are programmed alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// PCI and PCI-X: 82540 and 82545. Polled: the former has an interrupt pin only, whose way to the processor is
    /// described in AML, which this host does not run.
    E1000,
    /// PCI Express with one port: 82574, 82583.
    E1000e,
    /// PCI Express with advanced descriptors: 82576, I210, I211, I350.
    Igb,
}

/// A card.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Model {
    /// The PCI device id.
    pub device: u16,
    /// What its maker calls it.
    pub name: &'static str,
    /// How it is programmed.
    pub family: Family,
}

const fn model(device: u16, name: &'static str, family: Family) -> Model {
    Model { device, name, family }
}

const MODELS: [Model; 9] = [
    model(0x100e, "Intel 82540EM (e1000)", Family::E1000),
    model(0x100f, "Intel 82545EM (e1000)", Family::E1000),
    model(0x10d3, "Intel 82574L (e1000e)", Family::E1000e),
    model(0x10f6, "Intel 82574LA (e1000e)", Family::E1000e),
    model(0x150c, "Intel 82583V (e1000e)", Family::E1000e),
    model(0x10c9, "Intel 82576 (igb)", Family::Igb),
    model(0x1533, "Intel I210 (igb)", Family::Igb),
    model(0x1539, "Intel I211 (igb)", Family::Igb),
    model(0x1521, "Intel I350 (igb)", Family::Igb),
];

impl Model {
    /// The card with these ids, if this driver drives it.
    pub fn find((vendor, device): (u16, u16)) -> Option<Self> {
        MODELS.into_iter().find(|model| vendor == INTEL_VENDOR && model.device == device)
    }
}

impl Family {
    /// Whether the card is behind PCI Express, where requests of its own are under way when it is reset.
    pub(super) fn is_express(self) -> bool {
        self != Self::E1000
    }

    pub(super) fn receive_format(self) -> ReceiveFormat {
        if self == Self::Igb { ReceiveFormat::Advanced } else { ReceiveFormat::Legacy }
    }

    pub(super) fn transmit_format(self) -> TransmitFormat {
        if self == Self::Igb { TransmitFormat::Advanced } else { TransmitFormat::Extended }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_known_by_vendor_and_device() {
        assert_eq!(Model::find((0x8086, 0x10d3)).unwrap().family, Family::E1000e);
        assert_eq!(Model::find((0x8086, 0x10c9)).unwrap().name, "Intel 82576 (igb)");
        assert_eq!(Model::find((0x8087, 0x10d3)), None);
        assert_eq!(Model::find((0x8086, 0x15b8)), None, "an I219");
    }
}
