//! The form that a saved machine has: a stream of units, each with a kind, an instance, a version, a length and bytes.
//!
//! [`Writer`] makes one, [`Reader`] checks one as a whole and hands its units out. What is in a unit is its owner's
//! affair: a saved type with numbered fields (CBOR, RFC 8949), apart from the type that runs. Here nobody knows a device.
//!
//! # How the form may change
//! A unit of a known kind gains fields, each with a new number and optional, and its version grows by one: older bytes
//! stay readable. What older bytes cannot say takes a new kind. A reader refuses kinds that it does not know and versions
//! newer than its own; a unit that is missing is its owner's to replace by the state after reset.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod error;
pub mod image;
mod limits;
mod reader;
#[cfg(test)]
mod tests;
pub mod variables;
mod writer;

pub use error::{Error, Invalid};
pub use limits::Limits;
pub use reader::Reader;
pub use writer::Writer;

/// What the stream begins with.
const MAGIC: [u8; 8] = *b"PLXSTATE";
/// The version of the form itself.
const FORMAT: u32 = 1;
/// The stream's beginning: magic and format.
const HEADER_BYTES: usize = 12;
/// A unit's head: kind, instance, version, zero (16 bits each), length (32 bits), all little-endian.
const UNIT_HEAD_BYTES: usize = 12;
/// The kind that ends the stream; its 4 bytes are the checksum of all before it.
const END: u16 = 0;
/// How many units a stream has at most: each of 64 vCPUs and 31 functions has a few.
const UNITS_MAX: usize = 1024;
/// CRC-32C. It finds accidents; who must find intent reads the stream from an authenticated channel.
const CHECKSUM: crc::Crc<u32, crc::Table<1>> = crc::Crc::<u32, crc::Table<1>>::new(&crc::CRC_32_ISCSI);

/// A kind of unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    /// Its number, never 0, never used for another kind.
    pub number: u16,
    /// What messages call it.
    pub name: &'static str,
    /// The version that is written, and the newest that is read.
    pub version: u16,
}
