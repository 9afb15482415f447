//! The names of hosts and VMs.

use alloc::{format, string::String};
use core::{borrow::Borrow, fmt, ops::Deref, str::FromStr};

use serde::Serialize;

use crate::Invalid;

/// A name of 1 to 32 characters from a-z, 0-9 and `-`, the first not a `-`: it needs no quotes in a shell, a host name
/// or a URL, and cannot be taken for an option.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 32;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let good = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if (1..=Self::BYTES_MAX).contains(&text.len()) && text.bytes().all(good) && !text.starts_with('-') {
            return Ok(Self(text.into()));
        }
        Err(Invalid::new(
            format!("`{text}` is not a name"),
            format!("use 1 to {} of a-z, 0-9 and -, such as web-1", Self::BYTES_MAX),
        ))
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_a_name() {
        for text in ["a", "0", "web-1", "a-", "abcdefghijklmnopqrstuvwxyz-01234"] {
            assert_eq!(text.parse::<Name>().unwrap().as_str(), text);
        }
        for text in ["", "-a", "Web", "a b", "a_b", "ä", "a\n", "abcdefghijklmnopqrstuvwxyz-012345"] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }
}
