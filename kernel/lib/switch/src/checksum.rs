//! The Internet checksum (RFC 1071).
//!
//! The main type is [`Sum`], a ones'-complement sum in the making.

/// A ones'-complement sum of 16-bit big-endian words, kept in 64 bits and in the processor's byte order: the sum is
/// the same in either order but for its own bytes (RFC 1071, section 2B).
#[derive(Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes; an odd last one counts as if a zero followed. All but the last addition must be of even length.
    pub(crate) fn add(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut sum = self.0;
        for word in words {
            sum = add_with_carry(sum, u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        Self(add_with_carry(sum, u64::from_le_bytes(last)))
    }

    /// Adds a big-endian word.
    pub(crate) fn add_word(self, word: u16) -> Self {
        Self(add_with_carry(self.0, word.swap_bytes().into()))
    }

    /// Whether bytes with their checksum among them are undamaged.
    pub(crate) fn is_right(self) -> bool {
        // Their sum is 0 in ones' complement, whose other form only bytes have that are all zero.
        self.checksum() == 0xffff
    }

    /// The checksum, never 0: where 0 means "none" (UDP) it has to be sent as all ones, and elsewhere both are right.
    pub(crate) fn checksum(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        // At most 16 bits by now.
        match !(sum as u16).swap_bytes() {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}

fn add_with_carry(sum: u64, word: u64) -> u64 {
    let (sum, carry) = sum.overflowing_add(word);
    sum + u64::from(carry)
}

/// Writes a big-endian word at `at`, which must be inside.
pub(crate) fn store(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let sum = Sum::default().add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.checksum(), !0xddf2);
        assert_eq!(Sum::default().add_word(0xf203).add_word(1).add(&[0xf4, 0xf5, 0xf6, 0xf7]).checksum(), !0xddf2);
    }

    proptest! {
        #[test]
        fn agrees_with_the_plain_sum(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
            let mut plain: u32 = words.sum();
            while plain > 0xffff {
                plain = (plain & 0xffff) + (plain >> 16);
            }
            let expected = if plain == 0xffff { 0xffff } else { !(plain as u16) };
            prop_assert_eq!(Sum::default().add(&bytes).checksum(), expected);
        }
    }
}
