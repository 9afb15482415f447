//! Round trips, and streams that nobody should have made.

use super::*;
use minicbor::{Decode, Encode};
use proptest::prelude::*;

const THING: Kind = Kind { number: 7, name: "thing", version: 2 };
const OTHER: Kind = Kind { number: 8, name: "other", version: 1 };

#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
struct Thing {
    #[n(0)]
    count: u32,
    #[cbor(n(1), with = "minicbor::bytes")]
    bytes: Vec<u8>,
    /// Came with version 2.
    #[n(2)]
    later: Option<u64>,
}

/// The same, as version 1 knew it.
#[derive(Encode)]
struct OldThing {
    #[n(0)]
    count: u32,
    #[cbor(n(1), with = "minicbor::bytes")]
    bytes: Vec<u8>,
}

fn thing() -> Thing {
    Thing { count: 5, bytes: vec![1, 2, 3], later: Some(9) }
}

fn stream() -> Vec<u8> {
    let mut writer = Writer::new();
    writer.unit(THING, 0, &thing());
    writer.unit(THING, 1, &Thing { count: 6, ..thing() });
    writer.unit(OTHER, 0, &17u8);
    writer.finish()
}

/// The checksum made right again after a change.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - 4;
    let checksum = CHECKSUM.checksum(&bytes[..end - UNIT_HEAD_BYTES]);
    bytes[end..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn units_come_back() {
    let bytes = stream();
    let mut reader = Reader::parse(&bytes).unwrap();
    assert_eq!(reader.take(OTHER, 0), Ok(Some(17u8)));
    assert_eq!(reader.take(THING, 1), Ok(Some(Thing { count: 6, ..thing() })));
    assert_eq!(reader.must_take(THING, 0), Ok(thing()));
    assert_eq!(reader.take::<Thing>(THING, 0), Ok(None), "taken");
    assert_eq!(reader.must_take::<Thing>(THING, 2), Err(Error::Missing(THING)));
    assert_eq!(reader.finish(), Ok(()));
}

#[test]
fn an_older_version_lacks_the_later_field() {
    let mut writer = Writer::new();
    writer.unit(Kind { version: 1, ..THING }, 0, &OldThing { count: 5, bytes: vec![1, 2, 3] });
    let bytes = writer.finish();
    let mut reader = Reader::parse(&bytes).unwrap();
    assert_eq!(reader.take(THING, 0), Ok(Some(Thing { later: None, ..thing() })));
}

#[test]
fn what_is_newer_or_unknown_is_refused() {
    let mut writer = Writer::new();
    writer.unit(Kind { version: 3, ..THING }, 0, &thing());
    let bytes = writer.finish();
    let mut reader = Reader::parse(&bytes).unwrap();
    assert_eq!(reader.take::<Thing>(THING, 0), Err(Error::TooNew(THING, 3)));
    let bytes = stream();
    let mut reader = Reader::parse(&bytes).unwrap();
    reader.take::<u8>(OTHER, 0).unwrap();
    reader.take::<Thing>(THING, 0).unwrap();
    assert_eq!(reader.finish(), Err(Error::Unknown(7, 1)));
    let mut newer = stream();
    newer[8] = 2;
    assert_eq!(Reader::parse(&newer).err(), Some(Error::Format(2)));
}

#[test]
fn a_body_must_be_all_there_and_no_more() {
    let mut writer = Writer::new();
    writer.unit(OTHER, 0, &(1u8, 2u8));
    writer.unit(THING, 0, &5u8);
    let bytes = writer.finish();
    let mut reader = Reader::parse(&bytes).unwrap();
    assert_eq!(reader.take::<u8>(OTHER, 0), Err(Error::Malformed(OTHER, 0)));
    assert_eq!(reader.take::<Thing>(THING, 0), Err(Error::Malformed(THING, 0)));
}

#[test]
fn repeated_units_and_too_many_are_refused() {
    let mut writer = Writer::new();
    writer.unit(OTHER, 3, &1u8);
    writer.unit(OTHER, 3, &1u8);
    assert_eq!(Reader::parse(&writer.finish()).err(), Some(Error::Repeated(8, 3)));
    let mut writer = Writer::new();
    (0..=UNITS_MAX as u16).for_each(|instance| writer.unit(OTHER, instance, &1u8));
    assert_eq!(Reader::parse(&writer.finish()).err(), Some(Error::TooManyUnits));
}

#[test]
fn a_stream_cut_anywhere_is_refused() {
    let bytes = stream();
    for end in 0..bytes.len() {
        let error = Reader::parse(&bytes[..end]).err();
        assert_eq!(error, Some(if end < HEADER_BYTES { Error::Foreign } else { Error::Truncated }), "{end}");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert_eq!(Reader::parse(&longer).err(), Some(Error::Damaged));
}

#[test]
fn any_bit_that_flips_is_found() {
    let bytes = stream();
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Reader::parse(&bytes).is_err(), "bit {bit}");
    }
}

/// The bytes that the first version wrote: whoever changes this test makes saved machines unreadable.
#[test]
fn the_form_stays() {
    let mut writer = Writer::new();
    writer.unit(OTHER, 2, &Thing { count: 500, bytes: vec![0xaa, 0xbb], later: None });
    let expected =
        b"PLXSTATE\x01\0\0\0\x08\0\x02\0\x01\0\0\0\x07\0\0\0\x82\x19\x01\xf4\x42\xaa\xbb\0\0\0\0\0\0\0\0\x04\0\0\0";
    let bytes = writer.finish();
    let (body, checksum) = bytes.split_at(bytes.len() - 4);
    assert_eq!(body, expected);
    assert_eq!(checksum, [0x91, 0xc6, 0x8c, 0x0e]);
}

proptest! {
    /// Any bytes with a right checksum are read or refused, and nothing else happens.
    #[test]
    fn hostile_streams(cut in 0usize..100, garbage in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = stream();
        let at = HEADER_BYTES + cut.min(bytes.len() - HEADER_BYTES - UNIT_HEAD_BYTES - 4);
        for (byte, new) in bytes[at..].iter_mut().zip(garbage) {
            *byte = new;
        }
        if let Ok(mut reader) = Reader::parse(&sealed(bytes)) {
            let _ = reader.take::<Thing>(THING, 0);
            let _ = reader.take::<Thing>(THING, 1);
            let _ = reader.take::<Vec<u64>>(OTHER, 0);
            let _ = reader.finish();
        }
    }
}
