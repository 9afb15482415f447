//! Sizes as people write them.

use alloc::format;
use core::{fmt, str::FromStr};

use crate::Invalid;

/// A number of bytes, written in binary units: `4096`, `512K`, `256M`, `1G`, `2T`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Size(u64);

/// The suffixes and their powers of two, largest first.
const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl Size {
    /// This many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// This many MiB.
    pub const fn from_mib(mib: u32) -> Self {
        Self((mib as u64) << 20)
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = Invalid;

    /// Takes decimal digits and at most one of K, M, G and T in either case, alone or followed by `B` or `iB`.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = || Invalid::new(format!("`{text}` is not a size"), "write a number with K, M or G, such as 256M");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let mut suffix = text[digits.len()..].chars();
        let shift = match suffix.next() {
            None => 0,
            Some(letter) => UNITS.iter().find(|unit| unit.0 == letter.to_ascii_uppercase()).ok_or_else(invalid)?.1,
        };
        if !matches!(suffix.as_str(), "" | "B" | "iB") || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid());
        }
        let number: u64 = digits.parse().map_err(|_| invalid())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(invalid)
    }
}

impl fmt::Display for Size {
    /// In the largest unit that divides it, in the form that [`from_str`](Size::from_str) takes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|unit| self.0 != 0 && self.0.trailing_zeros() >= unit.1) {
            Some(&(letter, shift)) => write!(f, "{}{letter}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_binary_suffixes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512k", 512 << 10),
            ("256M", 256 << 20),
            ("1G", 1 << 30),
            ("1GiB", 1 << 30),
            ("3GB", 3 << 30),
            ("2t", 2 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_size() {
        for text in
            ["", "M", "1X", "-1M", "+1M", "1.5G", "1 G", "1Gi b", "1MM", "20000000000G", "99999999999999999999", "1é"]
        {
            let error = text.parse::<Size>().unwrap_err();
            assert!(error.message.contains("not a size") && error.remedy.contains("256M"), "{text}");
        }
    }

    #[test]
    fn is_shown_as_it_is_written() {
        for text in ["0", "1000", "512K", "256M", "1536M", "1G", "3T"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }
}
