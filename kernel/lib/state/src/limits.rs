//! What a VM may use at most, as it travels: in an image, and to another host. Whoever reads it checks it.

use minicbor::{Decode, Encode};

/// Limits; nothing says: as much as there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Limits {
    /// Time on CPUs, in percent of one.
    #[n(0)]
    pub cpu_percent: Option<u64>,
    /// Requests a second to all of its disks.
    #[n(1)]
    pub iops: Option<u64>,
    /// Bytes a second to and from all of its disks.
    #[n(2)]
    pub disk_bytes_per_s: Option<u64>,
    /// Bytes a second that its NICs send.
    #[n(3)]
    pub net_bytes_per_s: Option<u64>,
    /// Bytes a second that they receive.
    #[n(4)]
    pub receive_bytes_per_s: Option<u64>,
}
