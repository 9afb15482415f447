//! The saved form of the block device: the requests that were taken and not completed.

use super::{Blk, InFlight};
use addr::Gpa;
use alloc::vec::Vec;
use minicbor::{Decode, Encode};
use state::Invalid;

/// The requests that its owner still has, by their heads. What the driver settled on is the function's.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    requests: Vec<SavedRequest>,
}

#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
struct SavedRequest {
    #[n(0)]
    head: u16,
    #[n(1)]
    status: u64,
    #[n(2)]
    bytes: u32,
}

impl Saved {
    /// The heads of the requests.
    pub fn heads(&self) -> impl Iterator<Item = u16> + '_ {
        self.requests.iter().map(|request| request.head)
    }
}

impl Blk {
    /// What restores it, beside its function.
    pub fn save(&self) -> Saved {
        let busy = self.in_flight.iter().enumerate().filter(|(_, slot)| slot.busy);
        let request = |(head, slot): (usize, &InFlight)| SavedRequest {
            head: head as u16,
            status: slot.status.as_u64(),
            bytes: slot.bytes,
        };
        Saved { requests: busy.map(request).collect() }
    }

    /// Takes the requests over. Each must be completed once, as before.
    ///
    /// # Errors
    /// Where a head is not the queue's, or comes twice.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), Invalid> {
        for &SavedRequest { head, status, bytes } in &saved.requests {
            let slot = self.in_flight.get_mut(usize::from(head)).filter(|slot| !slot.busy);
            let slot = slot.ok_or(Invalid("its requests"))?;
            // The driver sees one byte more, the status.
            Invalid::unless(bytes < u32::MAX, "its requests")?;
            *slot = InFlight { busy: true, status: Gpa::new(status), bytes };
        }
        Ok(())
    }
}
