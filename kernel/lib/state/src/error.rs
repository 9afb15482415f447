//! Why saved bytes are refused.

use crate::Kind;
use core::fmt;

/// Why a stream, or a unit in it, is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// It does not begin as a saved machine does.
    Foreign,
    /// The form is newer than this reader: its version.
    Format(u32),
    /// It ends before its end.
    Truncated,
    /// Its checksum is another than it says.
    Damaged,
    /// It has more units than any machine.
    TooManyUnits,
    /// Two units of one kind (its number) and instance.
    Repeated(u16, u16),
    /// A kind that this reader does not know: its number and instance.
    Unknown(u16, u16),
    /// A unit whose version (the number) is newer than this reader.
    TooNew(Kind, u16),
    /// A unit of this kind and instance is not written as its version is.
    Malformed(Kind, u16),
    /// A unit of this kind and instance says what no device can be.
    Impossible(Kind, u16, Invalid),
    /// A unit without which there is no machine is not there.
    Missing(Kind),
}

/// A saved value that no running object can have: what it is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Invalid(pub &'static str);

impl Invalid {
    /// The error of the unit that the value was in.
    pub const fn within(self, kind: Kind, instance: u16) -> Error {
        Error::Impossible(kind, instance, self)
    }

    /// `Ok` where a saved value is possible.
    ///
    /// # Errors
    /// One about `what` where it is not.
    pub const fn unless(possible: bool, what: &'static str) -> Result<(), Self> {
        if possible { Ok(()) } else { Err(Self(what)) }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.0)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign => write!(out, "this is no saved machine"),
            Self::Format(version) => write!(out, "it has form {version}, which is newer than this Pollux"),
            Self::Truncated => write!(out, "its end is missing"),
            Self::Damaged => write!(out, "its checksum does not match: it is damaged"),
            Self::TooManyUnits => write!(out, "it has more parts than any machine"),
            Self::Repeated(kind, instance) => write!(out, "part {kind}.{instance} is there twice"),
            Self::Unknown(kind, instance) => write!(out, "part {kind}.{instance} is unknown to this Pollux"),
            Self::TooNew(kind, version) => {
                write!(out, "its {} has version {version}; this Pollux knows up to {}", kind.name, kind.version)
            }
            Self::Malformed(kind, instance) => write!(out, "its {} {instance} cannot be read", kind.name),
            Self::Impossible(kind, instance, what) => {
                write!(out, "its {} {instance} is impossible: {what}", kind.name)
            }
            Self::Missing(kind) => write!(out, "its {} is missing", kind.name),
        }
    }
}
