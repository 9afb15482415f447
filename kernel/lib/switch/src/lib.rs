//! A layer-2 learning switch between guests' NICs, the uplink and the management address, and what travels with frames.
//!
//! The main types are [`Switch`], which says to which ports a frame goes, [`Offload`], the work its sender left undone
//! (checksum, segmentation) with the software that does it, and [`Nic`], the seam a network driver implements.
//! `machine` and the kernel carry the frames; nothing here holds or queues one.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod checksum;
mod coalesce;
mod forward;
mod nic;
mod offload;
mod overlooked;
mod segments;
mod shares;
mod table;

pub use coalesce::{Received, coalesce};
pub use forward::{Counters, PortConfig, PortId, Switch, Targets};
pub use nic::{CardCounters, Full, Link, Nic, Offloads};
pub use offload::{BadOffload, Gso, Offload, complete_checksum};
pub use overlooked::Overlooked;
pub use segments::{Headers, Segments, network_header};
pub use shares::{Sender, Shares};

/// A layer-2 (MAC) address.
pub type Mac = [u8; 6];

/// Bytes in an Ethernet header: destination, source, type.
pub const ETHERNET_HEADER_BYTES: usize = 14;

/// The longest frame on the wire: header, one VLAN tag, 1500 bytes of payload; no frame check sequence.
pub const FRAME_BYTES_MAX: usize = ETHERNET_HEADER_BYTES + 4 + 1500;

/// The longest frame that waits for segmentation: header, one VLAN tag, 64 KiB of IP.
pub const GSO_FRAME_BYTES_MAX: usize = ETHERNET_HEADER_BYTES + 4 + 65535;
