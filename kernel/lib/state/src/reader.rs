//! Reading a stream, which may come from anybody.

use crate::{CHECKSUM, END, Error, FORMAT, HEADER_BYTES, Kind, MAGIC, UNIT_HEAD_BYTES, UNITS_MAX};
use alloc::vec::Vec;
use minicbor::{Decode, Decoder};

/// A stream that was checked as a whole. Units are taken out; [`Reader::finish`] refuses what nobody took.
pub struct Reader<'a> {
    units: Vec<Unit<'a>>,
}

#[derive(Clone, Copy)]
struct Unit<'a> {
    kind: u16,
    instance: u16,
    version: u16,
    body: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Checks the stream's form: header, lengths, checksum, no unit twice, nothing behind the end.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let (header, mut rest) = bytes.split_at_checked(HEADER_BYTES).ok_or(Error::Foreign)?;
        let (magic, format) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(Error::Foreign);
        }
        match u32::from_le_bytes(format.try_into().map_err(|_| Error::Foreign)?) {
            FORMAT => {}
            other => return Err(Error::Format(other)),
        }
        let mut units: Vec<Unit<'a>> = Vec::new();
        loop {
            let before_bytes = bytes.len() - rest.len();
            let unit = split_unit(&mut rest)?;
            if unit.kind == END {
                let checksum = CHECKSUM.checksum(&bytes[..before_bytes]).to_le_bytes();
                let is_whole = unit.body == checksum && (unit.instance, unit.version) == (0, 0) && rest.is_empty();
                return if is_whole { Ok(Self { units }) } else { Err(Error::Damaged) };
            }
            if units.len() == UNITS_MAX {
                return Err(Error::TooManyUnits);
            }
            if units.iter().any(|other| (other.kind, other.instance) == (unit.kind, unit.instance)) {
                return Err(Error::Repeated(unit.kind, unit.instance));
            }
            units.push(unit);
        }
    }

    /// Takes a unit out and decodes it; `None` where it is missing.
    ///
    /// # Errors
    /// A version newer than `kind` knows, or a body that is not what its version says.
    pub fn take<T: Decode<'a, ()>>(&mut self, kind: Kind, instance: u16) -> Result<Option<T>, Error> {
        let is_it = |unit: &Unit<'_>| (unit.kind, unit.instance) == (kind.number, instance);
        let Some(place) = self.units.iter().position(is_it) else { return Ok(None) };
        let unit = self.units.swap_remove(place);
        if unit.version > kind.version {
            return Err(Error::TooNew(kind, unit.version));
        }
        let mut decoder = Decoder::new(unit.body);
        match decoder.decode() {
            Ok(value) if decoder.position() == unit.body.len() => Ok(Some(value)),
            Ok(_) | Err(_) => Err(Error::Malformed(kind, instance)),
        }
    }

    /// As [`Reader::take`], for a unit without which there is nothing to restore.
    ///
    /// # Errors
    /// Also where it is missing.
    pub fn must_take<T: Decode<'a, ()>>(&mut self, kind: Kind, instance: u16) -> Result<T, Error> {
        self.take(kind, instance)?.ok_or(Error::Missing(kind))
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// Where a unit is left that nobody knew.
    pub fn finish(self) -> Result<(), Error> {
        match self.units.first() {
            Some(unit) => Err(Error::Unknown(unit.kind, unit.instance)),
            None => Ok(()),
        }
    }
}

/// Takes the next unit off the front.
fn split_unit<'a>(rest: &mut &'a [u8]) -> Result<Unit<'a>, Error> {
    let (head, behind) = rest.split_first_chunk::<UNIT_HEAD_BYTES>().ok_or(Error::Truncated)?;
    let field = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
    if field(6) != 0 {
        return Err(Error::Damaged);
    }
    let (body, behind) = behind.split_at_checked(length as usize).ok_or(Error::Truncated)?;
    *rest = behind;
    Ok(Unit { kind: field(0), instance: field(2), version: field(4), body })
}
