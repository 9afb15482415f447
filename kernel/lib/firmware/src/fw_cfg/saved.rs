//! The saved form of fw_cfg: its items too, which another version of the host might make differently while a firmware is
//! reading them.

use super::FwCfg;
use addr::Gpa;
use alloc::vec::Vec;
use minicbor::{Decode, Encode};
use state::Invalid;

/// The items and how far the guest has read.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    /// In the order of their numbers.
    #[n(0)]
    items: Vec<Item>,
    #[n(1)]
    selected: u16,
    #[n(2)]
    offset: u32,
    #[n(3)]
    dma_high: u32,
    /// Where the description of a transfer is that waits: for memory that was not here.
    #[n(4)]
    pending: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
struct Item {
    #[n(0)]
    number: u16,
    #[cbor(n(1), with = "minicbor::bytes")]
    content: Vec<u8>,
}

impl FwCfg {
    /// What restores it.
    pub fn save(&self) -> Saved {
        let Self { items, selected, offset, dma_high, pending } = self;
        let items = items.iter().map(|(number, content)| Item { number: *number, content: content.clone() }).collect();
        let pending = pending.map(|gpa| gpa.as_u64());
        Saved { items, selected: *selected, offset: *offset, dma_high: *dma_high, pending }
    }

    /// A device that goes on where the saved one was.
    ///
    /// # Errors
    /// Where no device can have been there.
    pub fn restore(saved: &Saved) -> Result<Self, Invalid> {
        let Saved { items, selected, offset, dma_high, pending } = saved;
        let each_once = items.is_sorted_by(|one, next| one.number < next.number);
        Invalid::unless(each_once, "the items of fw_cfg")?;
        let items = items.iter().map(|item| (item.number, item.content.clone())).collect();
        let pending = pending.map(Gpa::new);
        Ok(Self { items, selected: *selected, offset: *offset, dma_high: *dma_high, pending })
    }
}
