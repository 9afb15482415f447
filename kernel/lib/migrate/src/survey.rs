//! What a session is about that is none of a migration: one host asks what another's processor has.
//!
//! [`Word`] is the question and its answer, a kind and a version before what `machine` reads and writes; the kinds are
//! none of [`crate::wire`]'s. The channel has authenticated who speaks; what is said is checked by who uses it.

use alloc::vec::Vec;

/// The version of what describes a processor. Another one is not understood.
pub const VERSION: u16 = 1;

/// One side's word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word<'a> {
    /// What does your processor have?
    Ask {
        /// The version that the caller understands.
        version: u16,
    },
    /// This.
    Tell {
        /// Its version.
        version: u16,
        /// What it has.
        processor: &'a [u8],
    },
}

const ASK: u8 = 32;
const TELL: u8 = 33;

impl<'a> Word<'a> {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, version, rest): (u8, u16, &[u8]) = match *self {
            Self::Ask { version } => (ASK, version, &[]),
            Self::Tell { version, processor } => (TELL, version, processor),
        };
        [&[kind], &version.to_le_bytes()[..], rest].concat()
    }

    /// From bytes; nothing where they are none of these.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (&kind, rest) = bytes.split_first()?;
        let (version, rest) = rest.split_first_chunk()?;
        let version = u16::from_le_bytes(*version);
        match (kind, rest) {
            (ASK, []) => Some(Self::Ask { version }),
            (TELL, processor) => Some(Self::Tell { version, processor }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Malformed, Message};
    use proptest::prelude::*;

    #[test]
    fn words_come_back_and_are_no_messages_of_a_migration() {
        for word in [Word::Ask { version: VERSION }, Word::Tell { version: 7, processor: b"one" }] {
            let bytes = word.encode();
            assert_eq!(Word::parse(&bytes), Some(word));
            assert!(matches!(Message::parse(&bytes), Err(Malformed::Kind(ASK | TELL))));
        }
    }

    #[test]
    fn what_is_no_word_is_nothing() {
        for bytes in [&b""[..], &[ASK], &[ASK, 1], &[TELL, 1], &[ASK, 1, 0, 9], &[1, 1, 0], &[34, 1, 0]] {
            assert_eq!(Word::parse(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn a_word_has_one_form(bytes in proptest::collection::vec(any::<u8>(), 0..50), kind in 30..35u8) {
            let bytes = [&[kind], &bytes[..]].concat();
            if let Some(word) = Word::parse(&bytes) {
                prop_assert_eq!(word.encode(), bytes);
            }
        }
    }
}
