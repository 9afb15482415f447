//! How a local APIC is addressed, in a word that any processor may read: whom a message concerns is its sender's to find.
//!
//! The type is [`Address`]; [`Lapic::address`](super::Lapic::address) makes it, and the machine keeps one of each vCPU
//! where all of them can see it.

use crate::{DeliveryMode, Message, Target};

/// What messages are compared with: ID, mode, logical ID and its format, and whether vectors are taken at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    id: u32,
    bits: u32,
}

/// The fields of [`Address::bits`].
const ENABLED: u32 = 1 << 0;
const X2APIC: u32 = 1 << 1;
const SOFTWARE_ENABLED: u32 = 1 << 2;
const LOGICAL_ID_SHIFT: u32 = 8;
const FORMAT_SHIFT: u32 = 16;

impl Address {
    /// The address of the local APIC made with `id`, from what [`bits`](Self::bits) gave.
    pub const fn from_bits(id: u32, bits: u32) -> Self {
        Self { id, bits }
    }

    /// Everything but the ID, in a form that is private to this type.
    pub const fn bits(self) -> u32 {
        self.bits
    }

    pub(super) fn new(id: u32, is_enabled: bool, is_x2apic: bool, is_software_enabled: bool) -> Self {
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let mode = flag(is_enabled, ENABLED) | flag(is_x2apic, X2APIC);
        Self { id, bits: mode | flag(is_software_enabled, SOFTWARE_ENABLED) }
    }

    /// With the logical destination and destination format registers of xAPIC mode.
    pub(super) fn with_logical(self, ldr: u32, dfr: u32) -> Self {
        Self { bits: self.bits | ldr >> 24 << LOGICAL_ID_SHIFT | dfr >> 28 << FORMAT_SHIFT, ..self }
    }

    /// Whether `message` concerns this local APIC: it is addressed, and what comes is not dropped at once. A globally
    /// disabled one hears nothing, a software-disabled one takes no vectors (sections 11.4.3, 11.4.7.2).
    pub fn hears(self, message: &Message) -> bool {
        let takes = match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority | DeliveryMode::ExtInt => {
                self.bits & SOFTWARE_ENABLED != 0
            }
            DeliveryMode::Nmi | DeliveryMode::Init | DeliveryMode::Startup => true,
            // There is no system management mode.
            DeliveryMode::Smi => false,
        };
        takes && self.is_addressed_by(message.target)
    }

    /// Whether `target` means this local APIC (sections 11.6.2, 11.12.9).
    pub fn is_addressed_by(self, target: Target) -> bool {
        self.bits & ENABLED != 0
            && match target {
                Target::All => true,
                Target::Only(id) => id == self.id,
                Target::AllBut(id) => id != self.id,
                Target::Physical(id) => id == self.visible_id(),
                Target::Logical(address) => self.is_in_logical(address),
            }
    }

    fn is_x2apic(self) -> bool {
        self.bits & X2APIC != 0
    }

    /// The ID as software and the bus see it: eight bits in xAPIC mode.
    pub(super) fn visible_id(self) -> u32 {
        if self.is_x2apic() { self.id } else { self.id & 0xff }
    }

    /// The logical ID in x2APIC mode (section 11.12.10.2): a cluster of sixteen and one bit in it.
    pub(super) fn x2apic_ldr(self) -> u32 {
        (self.id >> 4) << 16 | 1 << (self.id & 15)
    }

    /// Whether a message destination address means this one (sections 11.6.2.2, 11.12.10.2).
    fn is_in_logical(self, address: u32) -> bool {
        if self.is_x2apic() {
            let ldr = self.x2apic_ldr();
            return address >> 16 == ldr >> 16 && address & ldr & 0xffff != 0;
        }
        let Ok(address) = u8::try_from(address) else { return false };
        let id = (self.bits >> LOGICAL_ID_SHIFT) as u8;
        match self.bits >> FORMAT_SHIFT & 0xf {
            0xf => address & id != 0,
            0 => address == 0xff || address >> 4 == id >> 4 && address & id & 0xf != 0,
            _ => false,
        }
    }
}
