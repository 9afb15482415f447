//! Keys of hosts, and how people write them: 64 hexadecimal digits.

use crate::noise;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

/// A host's public X25519 key: who it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// A host's own pair of keys.
#[derive(Clone)]
pub struct KeyPair {
    private: [u8; 32],
    public: PublicKey,
}

/// A text that is no key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadKey;

impl KeyPair {
    /// The pair of a private key: 32 random bytes.
    pub fn new(private: [u8; 32]) -> Self {
        Self { private, public: noise::public_key(&private) }
    }

    /// The key that others know this host by.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    pub(crate) fn private(&self) -> &[u8; 32] {
        &self.private
    }
}

/// The private half stays private.
impl fmt::Debug for KeyPair {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "KeyPair({})", self.public)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")
    }
}

impl FromStr for PublicKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        bytes_of(text).map(Self)
    }
}

/// The 32 bytes of a key's text.
pub(crate) fn bytes_of(text: &str) -> Result<[u8; 32], BadKey> {
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return Err(BadKey);
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).ok_or(BadKey);
        *byte = (digit(digits[0])? << 4 | digit(digits[1])?) as u8;
    }
    Ok(bytes)
}

impl FromStr for KeyPair {
    type Err = BadKey;

    /// Of a private key's text.
    fn from_str(text: &str) -> Result<Self, BadKey> {
        bytes_of(text).map(Self::new)
    }
}

impl PublicKey {
    /// Its first eight digits, for a line that has no room for all.
    pub fn short(&self) -> String {
        let mut text = alloc::format!("{self}");
        text.truncate(8);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_is_that_of_rfc_7748() {
        // Section 5.2, the iterated vector after one iteration: both scalar and point are 9.
        let mut private = [0; 32];
        private[0] = 9;
        let public = "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079";
        assert_eq!(KeyPair::new(private).public().to_string(), public);
        assert_eq!(public.parse(), Ok(KeyPair::new(private).public()));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", "00", &"g".repeat(64), &"0".repeat(63), &"é".repeat(32)] {
            assert_eq!(text.parse::<PublicKey>(), Err(BadKey), "{text}");
        }
    }
}
