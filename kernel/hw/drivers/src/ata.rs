//! What ATA disks say and are told, whatever controller they hang on (ATA/ATAPI Command Set 4, T13 BSR INCITS 529).
//!
//! The main types are [`identify::Identity`], what a disk says of itself, and [`command::Command`], one command's
//! registers; `ahci` carries them in frames, `ide` writes them to ports.

pub(crate) mod command;
pub(crate) mod identify;
#[cfg(test)]
pub(crate) mod played;

/// The status register (section 6.2): a command is under way; the disk waits for data.
pub(crate) const STATUS_BUSY: u8 = 1 << 7;
pub(crate) const STATUS_DATA_REQUEST: u8 = 1 << 3;

/// Bytes of the data of IDENTIFY DEVICE, of a log's page and of a block of ranges.
pub(crate) const PAGE_BYTES: usize = 512;
