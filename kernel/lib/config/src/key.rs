//! Control keys as people write them.

use alloc::format;
use core::{fmt, str::FromStr};

use crate::Invalid;

/// A key pressed together with Ctrl, as the byte that a terminal sends for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlKey(u8);

impl ControlKey {
    /// Ctrl-], which leaves a guest's console unless the operator chose another key.
    pub const DETACH: Self = Self(0x1d);

    /// The byte that a terminal sends.
    pub const fn byte(self) -> u8 {
        self.0
    }
}

impl Default for ControlKey {
    fn default() -> Self {
        Self::DETACH
    }
}

impl FromStr for ControlKey {
    type Err = Invalid;

    /// Takes `ctrl-` and a letter or one of `@ \ ] ^ _`. Keys that a guest cannot do without (Backspace, Tab, Enter,
    /// line feed, Escape: Ctrl-H, I, M, J, [) are refused.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let remedy = "write ctrl- and a letter or one of @ \\ ] ^ _, such as ctrl-]";
        let invalid = || Invalid::new(format!("`{text}` is not a control key"), remedy);
        let (prefix, key) = text.split_at_checked(5).ok_or_else(invalid)?;
        let &[key] = key.as_bytes() else { return Err(invalid()) };
        if !prefix.eq_ignore_ascii_case("ctrl-") || !matches!(key.to_ascii_uppercase(), b'@'..=b'_') {
            return Err(invalid());
        }
        match key.to_ascii_uppercase() {
            b'H' | b'I' | b'J' | b'M' | b'[' => {
                Err(Invalid::new(format!("a guest needs `{text}` itself"), "choose another key, such as ctrl-]"))
            }
            key => Ok(Self(key & 0x1f)),
        }
    }
}

impl fmt::Display for ControlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ctrl-{}", char::from(self.0 | 0x40))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_control_keys() {
        assert_eq!("ctrl-]".parse(), Ok(ControlKey::DETACH));
        assert_eq!("Ctrl-a".parse::<ControlKey>().unwrap().byte(), 1);
        assert_eq!("ctrl-@".parse::<ControlKey>().unwrap().byte(), 0);
        assert_eq!("CTRL-Q".parse::<ControlKey>().unwrap().to_string(), "Ctrl-Q");
        assert_eq!(ControlKey::default().to_string(), "Ctrl-]");
    }

    #[test]
    fn refuses_others() {
        for text in ["", "]", "ctrl", "ctrl-", "ctrl-ab", "ctrl-1", "alt-a", "ctrl-é", "éééé", "ctrl-m", "ctrl-["]
        {
            assert!(text.parse::<ControlKey>().is_err(), "{text}");
        }
    }
}
