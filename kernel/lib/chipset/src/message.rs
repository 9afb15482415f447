//! An interrupt message as it travels from an IOAPIC, an MSI-capable device or a local APIC to local APICs.
//!
//! The type is [`Message`]; `lapic` decides whether one is addressed by it. Source: Intel SDM volume 3A (revision 083),
//! chapter 11 "Advanced Programmable Interrupt Controller".

/// An interrupt on its way to local APICs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// The vector; the page of the start-up code for [`DeliveryMode::Startup`]; unused in the other special modes.
    pub vector: u8,
    /// What the addressed processors do with it.
    pub mode: DeliveryMode,
    /// Whom it addresses.
    pub target: Target,
    /// Whether the receiver must report its end ([`Effect::LevelEoi`](crate::Effect::LevelEoi)).
    pub level_triggered: bool,
}

/// Whom a message addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The local APIC with this ID as software sees it. The broadcast IDs are [`Target::All`] already.
    Physical(u32),
    /// The members of a set: each compares this message destination address with its logical ID in its own format.
    Logical(u32),
    /// The local APIC made with this ID, and no other: the "self" shorthand.
    Only(u32),
    /// Every local APIC but the one made with this ID: the "all excluding self" shorthand.
    AllBut(u32),
    /// Every local APIC.
    All,
}

/// Delivery modes, section 11.6.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeliveryMode {
    /// The vector, to all that are addressed.
    Fixed,
    /// The vector, to the addressed one with the lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI.
    Startup,
    /// The vector comes from the 8259 pair.
    ExtInt,
}

impl DeliveryMode {
    /// Decodes the three-bit field; `None` is the reserved encoding.
    pub(crate) const fn from_bits(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::Startup),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }
}

/// The destination that addresses everyone, in the eight-bit format.
pub(crate) const BROADCAST_8: u32 = 0xff;

impl Target {
    /// The target behind a destination field of the IOAPIC or MSI format: eight bits, or fifteen where the guest was
    /// offered extended destination IDs. 0xFF is the broadcast in physical mode.
    pub(crate) const fn from_device(destination: u32, logical: bool) -> Self {
        match (logical, destination) {
            (true, _) => Self::Logical(destination),
            (false, BROADCAST_8) => Self::All,
            (false, id) => Self::Physical(id),
        }
    }
}

impl Message {
    /// The message that a DMA write of `data` to `address` is (section 11.11). Address bits 11 to 5 extend the
    /// destination ID by bits 14 to 8, as a guest that was offered KVM_FEATURE_MSI_EXT_DEST_ID writes it.
    ///
    /// `None`: the write is no interrupt message (another address, a reserved or start-up delivery mode), or it takes
    /// a level-triggered one back, which local APICs ignore.
    pub const fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xfee {
            return None;
        }
        let address = address as u32;
        let level_triggered = data & 1 << 15 != 0;
        if level_triggered && data & 1 << 14 == 0 {
            return None;
        }
        let logical = address & 1 << 2 != 0;
        let redirection_hint = address & 1 << 3 != 0;
        let mode = match DeliveryMode::from_bits(data >> 8) {
            None | Some(DeliveryMode::Startup) => return None,
            Some(DeliveryMode::Fixed) if logical && redirection_hint => DeliveryMode::LowestPriority,
            Some(mode) => mode,
        };
        let destination = address >> 12 & 0xff | (address >> 5 & 0x7f) << 8;
        Some(Self { vector: data as u8, mode, target: Target::from_device(destination, logical), level_triggered })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msi_fields() {
        let message = Message::from_msi(0xfee0_3000, 0x0041).unwrap();
        let expected =
            Message { vector: 0x41, mode: DeliveryMode::Fixed, target: Target::Physical(3), level_triggered: false };
        assert_eq!(message, expected);
        assert_eq!(Message::from_msi(0xfeef_f000, 0x31).unwrap().target, Target::All);
        assert_eq!(Message::from_msi(0xfeef_f004, 0x31).unwrap().target, Target::Logical(0xff));
        assert_eq!(Message::from_msi(0xfee0_100c, 0x31).unwrap().mode, DeliveryMode::LowestPriority);
        assert_eq!(Message::from_msi(0xfee0_0000, 0x0400).unwrap().mode, DeliveryMode::Nmi);
    }

    #[test]
    fn extended_destination() {
        assert_eq!(Message::from_msi(0xfee2_c020, 0x31).unwrap().target, Target::Physical(0x12c));
        assert_eq!(Message::from_msi(0xfeef_f020, 0x31).unwrap().target, Target::Physical(0x1ff));
    }

    #[test]
    fn what_is_no_message() {
        assert_eq!(Message::from_msi(0xfed0_0000, 0x31), None);
        assert_eq!(Message::from_msi(0x1_fee0_0000, 0x31), None);
        assert_eq!(Message::from_msi(0xfee0_0000, 0x0331), None, "reserved mode");
        assert_eq!(Message::from_msi(0xfee0_0000, 0x0631), None, "start-up is for IPIs");
        assert_eq!(Message::from_msi(0xfee0_0000, 0x8031), None, "level de-assert");
        assert!(Message::from_msi(0xfee0_0000, 0xc031).unwrap().level_triggered);
    }
}
