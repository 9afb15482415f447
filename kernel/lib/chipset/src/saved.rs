//! The saved form of the board and of a local APIC: plain data with numbered fields, apart from the types that run.
//!
//! [`Board`] is [`Chipset::save`](crate::Chipset::save)'s, [`LocalApic`] is [`Lapic::save`](crate::Lapic::save)'s and
//! [`Flash`] is [`Flash::save`](crate::Flash::save)'s; each
//! device's part stands beside the device. Times are machine time and guest TSC: they go on where they were, wherever the
//! machine is restored. A device that is missing takes its state after reset.

use minicbor::{Decode, Encode};

pub use crate::flash::Saved as Flash;
pub use crate::hotplug::Saved as Hotplug;
pub use crate::i8042::Saved as I8042;
pub use crate::ioapic::Saved as IoApic;
pub use crate::lapic::Saved as LocalApic;
pub use crate::pic::Saved as PicPair;
pub use crate::pit::Saved as Pit;
pub use crate::power::Saved as Power;
pub use crate::rtc::Saved as Rtc;
pub use crate::uart::Saved as Uart;

/// Ticks and nanoseconds that no machine gets to: what follows from less does not overflow.
pub(crate) const FAR_TICKS: u64 = 1 << 62;

/// The devices that a VM has once, and the wires between them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[allow(missing_docs, reason = "the names are the devices'")]
pub struct Board {
    #[n(0)]
    pub uart: Option<Uart>,
    #[n(1)]
    pub pics: Option<PicPair>,
    #[n(2)]
    pub pit: Option<Pit>,
    #[n(3)]
    pub rtc: Option<Rtc>,
    #[n(4)]
    pub keyboard: Option<I8042>,
    #[n(5)]
    pub ioapic: Option<IoApic>,
    #[n(6)]
    pub power: Option<Power>,
    /// The level of each GSI, which is that of the interrupt controllers' inputs too.
    #[n(7)]
    pub lines: u32,
    /// The PIC's output as the boot CPU knows it.
    #[n(8)]
    pub pic_output: bool,
    /// Missing where it is as after power-up.
    #[n(9)]
    pub hotplug: Option<Hotplug>,
}
