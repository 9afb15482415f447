//! The saved form of hotplug.

use super::Hotplug;
use minicbor::{Decode, Encode};

/// What the guest was not told yet, and what it was asked.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    arrived: u32,
    #[n(1)]
    leaving: u32,
    #[n(2)]
    vanished: bool,
    #[n(3)]
    asked: u32,
    /// The general-purpose events' registers.
    #[n(4)]
    status: u16,
    #[n(5)]
    enable: u16,
}

impl Hotplug {
    /// What restores it; nothing where it is as after power-up.
    pub fn save(&self) -> Option<Saved> {
        let Self { arrived, leaving, vanished, asked, status, enable } = *self;
        let saved = Saved { arrived, leaving, vanished, asked, status, enable };
        (saved != Saved::default()).then_some(saved)
    }

    /// One that goes on where the saved one was. Any bits can have been there.
    pub fn restore(saved: &Saved) -> Self {
        let Saved { arrived, leaving, vanished, asked, status, enable } = *saved;
        Self { arrived, leaving, vanished, asked, status, enable }
    }
}
