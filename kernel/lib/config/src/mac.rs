//! MAC addresses.

use alloc::{format, string::String};
use core::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

use crate::Invalid;

/// A unicast MAC address, written `02:00:00:00:00:07`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Mac([u8; 6]);

impl Mac {
    /// From the bytes in the order of the wire; none where they are a group address (IEEE 802-2014, 8.2.2: the first
    /// byte's bit 0) or all zero.
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        (bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// The bytes in the order of the wire.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = Invalid;

    /// Takes six pairs of hexadecimal digits with `:` or `-` between them.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let example = "write six bytes, such as 02:00:00:00:00:07";
        let bytes = parse_bytes(text).ok_or_else(|| Invalid::new(format!("`{text}` is not a MAC address"), example))?;
        Self::new(bytes).ok_or_else(|| {
            let what = if bytes == [0; 6] { "is all zero" } else { "is a group address" };
            Invalid::new(format!("`{text}` {what}"), "a NIC's first byte is even, such as 02:00:00:00:00:07")
        })
    }
}

fn parse_bytes(text: &str) -> Option<[u8; 6]> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut bytes = [0; 6];
    let mut parts = text.split(separator);
    for byte in &mut bytes {
        let part =
            parts.next().filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        let text: String = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}");
        f.pad(&text)
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_both_separators() {
        let mac = Mac::new([2, 0, 0xab, 0, 0, 7]).unwrap();
        assert_eq!("02:00:ab:00:00:07".parse(), Ok(mac));
        assert_eq!("02-00-AB-00-00-07".parse(), Ok(mac));
        assert_eq!(mac.to_string(), "02:00:ab:00:00:07");
    }

    #[test]
    fn refuses_what_no_nic_can_have() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:07:08",
            "2:0:0:0:0:7",
            "02:00:00-00:00:07",
            "02:00:00:00:00:0g",
            "02:00:00:00:00:+7",
            "00:00:00:00:00:00",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
