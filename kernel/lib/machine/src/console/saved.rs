//! The saved form of the console: the virtio port, and the keys that wait.

use super::{Console, WAITING_BYTES_MAX};
use alloc::vec::Vec;
use minicbor::{Decode, Encode};
use state::Invalid;

/// The console.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    function: virtio::saved::Function,
    #[n(1)]
    virtio_spoke: bool,
    #[cbor(n(2), with = "minicbor::bytes")]
    waiting: Vec<u8>,
}

impl Console {
    pub fn save(&self) -> Saved {
        Saved {
            function: self.function.save(),
            virtio_spoke: self.virtio_spoke,
            waiting: self.waiting.iter().copied().collect(),
        }
    }

    pub fn restore(&mut self, saved: &Saved) -> Result<(), Invalid> {
        Invalid::unless(saved.waiting.len() <= WAITING_BYTES_MAX, "more keys wait than can")?;
        self.function.restore(&saved.function)?;
        self.virtio_spoke = saved.virtio_spoke;
        self.waiting = saved.waiting.iter().copied().collect();
        Ok(())
    }
}
