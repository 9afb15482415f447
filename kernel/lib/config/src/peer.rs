//! The tables `[[peer]]`, and keys: which other hosts this one trusts.

use crate::{Error, Invalid, Name, section::Section};
use alloc::format;
use core::fmt;
use core::net::Ipv4Addr;
use core::str::FromStr;

/// A host that this one moves VMs to, and takes VMs from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerSpec {
    /// What it is called here.
    pub name: Name,
    /// Its management address.
    pub address: Ipv4Addr,
    /// Its public key.
    pub key: Key,
}

/// A public or private key of a host: 32 bytes, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; 32]);

pub(crate) const KEYS: &[&str] = &["name", "address", "key"];

impl PeerSpec {
    /// Checks what an operator typed.
    ///
    /// # Errors
    /// If a value is none of its kind.
    pub fn new(name: &str, address: &str, key: &str) -> Result<Self, Invalid> {
        Ok(Self { name: name.parse()?, address: address_of(address)?, key: key.parse()? })
    }

    pub(crate) fn parse(section: &Section<'_>) -> Result<Self, Error> {
        let name = section.required("name", section.parsed("name")?, "\"castor\"")?;
        let text = section.required("address", section.text("address")?, "\"192.168.7.21\"")?;
        let address = address_of(text).map_err(|cause| section.error_at("address", cause))?;
        let key = section.required("key", section.parsed("key")?, "\"the key that its `host` shows\"")?;
        Ok(Self { name, address, key })
    }
}

fn address_of(text: &str) -> Result<Ipv4Addr, Invalid> {
    let address = text.parse().ok().filter(|address: &Ipv4Addr| {
        !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast())
    });
    address
        .ok_or_else(|| Invalid::new(format!("`{text}` is not a host's IPv4 address"), "write one such as 192.168.7.21"))
}

impl Key {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Key {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // The text may be a private key: it is not repeated.
        let invalid = || Invalid::new("that is not a key", "give the 64 hexadecimal digits that `host` shows");
        let digit = |digit: u8| char::from(digit).to_digit(16).ok_or_else(invalid);
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() {
            return Err(invalid());
        }
        let mut bytes = [0; 32];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = (digit(*high)? << 4 | digit(*low)?) as u8;
        }
        Ok(Self(bytes))
    }
}

/// It may be private.
impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Key(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_key_is_64_digits() {
        let key: Key = "0123456789abcdefABCDEF0000000000000000000000000000000000000000ff".parse().unwrap();
        assert_eq!((key.bytes()[0], key.bytes()[1], key.bytes()[31]), (0x01, 0x23, 0xff));
        for text in ["", "0", &"0".repeat(63), &"0".repeat(65), &"x".repeat(64), &"é".repeat(32)] {
            assert!(text.parse::<Key>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_private_key_is_never_shown() {
        let secret = "11".repeat(31) + "zz";
        let error = secret.parse::<Key>().unwrap_err();
        assert!(!error.to_string().contains("11"));
    }

    #[test]
    fn only_a_hosts_address_is_one() {
        let key = &"0".repeat(64);
        assert!(PeerSpec::new("castor", "192.168.7.21", key).is_ok());
        for address in ["", "castor", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "1.2.3.4/24"] {
            assert!(PeerSpec::new("castor", address, key).is_err(), "{address}");
        }
    }
}
