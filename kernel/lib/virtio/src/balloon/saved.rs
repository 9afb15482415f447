//! The saved form of the balloon: what it was told and what it said. No chain of given-up pages is pending in it.

use super::{Balloon, QUEUE_SIZE};
use minicbor::{Decode, Encode};
use state::Invalid;

/// The balloon, beside its function.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    pub(super) target_pages: u32,
    #[n(1)]
    pub(super) actual_pages: u32,
    /// The buffer for statistics that the device has.
    #[n(2)]
    pub(super) statistics_head: Option<u16>,
}

impl Balloon {
    /// What restores it, beside its function and the pages in it.
    ///
    /// # Panics
    /// While chains are pending.
    pub fn save(&self) -> Saved {
        assert!(!self.is_busy(), "pages are let go of before it is saved");
        let Self { target_pages, actual_pages, statistics_head, .. } = *self;
        Saved { target_pages, actual_pages, statistics_head }
    }

    /// Takes that over.
    ///
    /// # Errors
    /// Where a head is not the queue's.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), Invalid> {
        let Saved { target_pages, actual_pages, statistics_head } = *saved;
        Invalid::unless(statistics_head.is_none_or(|head| head < QUEUE_SIZE), "its statistics' buffer")?;
        *self = Self { target_pages, actual_pages, statistics_head, ..Self::new() };
        Ok(())
    }
}
