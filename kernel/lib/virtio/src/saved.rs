//! The saved forms of virtio functions and of the devices that have more state than their queues.
//!
//! [`Function`] is what every function has; [`Balloon`], [`Blk`] and [`Net`] go with it. Queues are saved with nothing in flight but
//! what their owner saves beside them: rings lie in guest memory and need no saving.

pub use crate::balloon::Saved as Balloon;
pub use crate::blk::Saved as Blk;
pub use crate::net::Saved as Net;
pub use crate::transport::Saved as Function;

#[cfg(test)]
mod tests;
