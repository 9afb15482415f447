//! The saved form of a disk at rest: of its requests only writes are left that were done and wait for their flush.

use super::Disk;
use crate::saved::plan;
use alloc::vec::Vec;
use minicbor::{Decode, Encode};
use state::Invalid;

/// A disk.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    function: virtio::saved::Function,
    #[n(1)]
    requests: virtio::saved::Blk,
    /// The heads of those writes, last to be flushed first.
    #[n(2)]
    unflushed: Vec<u16>,
}

impl Disk {
    /// Whether the host works on nothing of it.
    pub fn is_at_rest(&self) -> bool {
        self.in_flight == 0 && self.stale == 0
    }

    /// Whether writes wait for a flush.
    pub fn has_unflushed(&self) -> bool {
        !self.unflushed.is_empty()
    }

    /// What it is, for comparison.
    pub fn plan(&self) -> plan::Disk {
        let config = self.function.device.config();
        plan::Disk {
            sectors: config.sectors,
            read_only: config.read_only,
            discard: config.discard,
            serial: config.serial,
        }
    }

    pub fn save(&self) -> Saved {
        assert!(self.is_at_rest(), "a disk at work is not saved");
        Saved {
            function: self.function.save(),
            requests: self.function.device.save(),
            unflushed: self.unflushed.clone(),
        }
    }

    pub fn restore(&mut self, saved: &Saved) -> Result<(), Invalid> {
        self.function.restore(&saved.function)?;
        self.function.device.restore(&saved.requests)?;
        // Whatever is in flight must be one of these, or nobody would ever complete it.
        let all_wait = saved.requests.heads().all(|head| saved.unflushed.contains(&head));
        let as_many = saved.requests.heads().count() == saved.unflushed.len();
        Invalid::unless(all_wait && as_many, "a request that nobody has")?;
        self.unflushed = saved.unflushed.clone();
        Ok(())
    }
}
