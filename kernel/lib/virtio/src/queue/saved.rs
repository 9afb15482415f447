//! The saved form of a queue: where its rings are, and how far the device has got.

use super::{NO_VECTOR, Queue};
use minicbor::{Decode, Encode};
use state::Invalid;

/// A queue. Which rules of notification hold follows from the features.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    size: u16,
    #[n(1)]
    enabled: bool,
    #[n(2)]
    vector: u16,
    #[n(3)]
    descriptors: u64,
    #[n(4)]
    available: u64,
    #[n(5)]
    used: u64,
    #[n(6)]
    next_available: u16,
    #[n(7)]
    seen_available: u16,
    #[n(8)]
    armed: bool,
    #[n(9)]
    next_used: u16,
    #[n(10)]
    published_used: u16,
}

impl Queue {
    /// What restores it.
    pub fn save(&self) -> Saved {
        Saved {
            size: self.size,
            enabled: self.enabled,
            vector: self.vector,
            descriptors: self.descriptors,
            available: self.available,
            used: self.used,
            next_available: self.next_available,
            seen_available: self.seen_available,
            armed: self.armed,
            next_used: self.next_used,
            published_used: self.published_used,
        }
    }

    /// Makes a fresh queue go on where the saved one was, under the driver's `features` and with that many `vectors`.
    ///
    /// # Errors
    /// Where no queue can have been there.
    pub fn restore(&mut self, saved: &Saved, features: u64, vectors: u16) -> Result<(), Invalid> {
        const WHAT: &str = "its queues";
        let size = saved.size.is_power_of_two() && saved.size <= self.size_max;
        let vector = saved.vector < vectors || saved.vector == NO_VECTOR;
        let ahead = saved.seen_available.wrapping_sub(saved.next_available) <= saved.size;
        Invalid::unless(size && vector && ahead, WHAT)?;
        *self = Self {
            size: saved.size,
            vector: saved.vector,
            descriptors: saved.descriptors,
            available: saved.available,
            used: saved.used,
            next_available: saved.next_available,
            seen_available: saved.seen_available,
            armed: saved.armed,
            next_used: saved.next_used,
            published_used: saved.published_used,
            ..Self::new(self.size_max)
        };
        if saved.enabled {
            self.enable(features);
            Invalid::unless(self.enabled, WHAT)?;
        }
        Ok(())
    }
}
