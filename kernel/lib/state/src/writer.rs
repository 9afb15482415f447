//! Making a stream.

use crate::{CHECKSUM, END, FORMAT, Kind, MAGIC};
use alloc::vec::Vec;
use minicbor::Encode;

/// A stream that is being made.
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// A stream without units.
    pub fn new() -> Self {
        let mut bytes = Vec::from(MAGIC);
        bytes.extend(FORMAT.to_le_bytes());
        Self { bytes }
    }

    /// Adds a unit. Whoever writes sees to it that no kind and instance come twice.
    ///
    /// # Panics
    /// With a body of 4 GiB, which no device has.
    pub fn unit(&mut self, kind: Kind, instance: u16, body: &impl Encode<()>) {
        // Nothing that writes into memory fails, and no saved type refuses to be written.
        let body = minicbor::to_vec(body).expect("memory takes every unit");
        self.put(kind.number, instance, kind.version, &body);
    }

    /// The whole stream.
    pub fn finish(mut self) -> Vec<u8> {
        let checksum = CHECKSUM.checksum(&self.bytes);
        self.put(END, 0, 0, &checksum.to_le_bytes());
        self.bytes
    }

    fn put(&mut self, kind: u16, instance: u16, version: u16, body: &[u8]) {
        let length = u32::try_from(body.len()).expect("a unit is shorter than 4 GiB");
        for field in [kind, instance, version, 0] {
            self.bytes.extend(field.to_le_bytes());
        }
        self.bytes.extend(length.to_le_bytes());
        self.bytes.extend_from_slice(body);
    }
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}
