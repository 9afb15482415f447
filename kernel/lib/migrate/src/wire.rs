//! The messages between source and target, and their bytes.
//!
//! A message is a kind, one byte, and what belongs to it; integers are little-endian. `peer` says where each begins and
//! ends and that nobody changed it; what is in it is still the other host's word and is checked here and in [`crate::pages`].
//! The first message of a session is [`Message::Offer`], or, after a link was lost, [`Message::Commit`] or
//! [`Message::Abort`] again. Where [`Message::Missing`] went before [`Message::Finish`], pages follow the commit until the
//! target's [`Message::Complete`].

use crate::Id;
use crate::pages::{RUN_BYTES, Runs};
use alloc::vec::Vec;

/// The protocol's version, part of an offer. Another one is refused.
pub const VERSION: u16 = 5;

/// The longest message: what one frame of `peer` holds.
pub const MESSAGE_BYTES_MAX: usize = 65_000;

/// State bytes in one message.
pub const STATE_BYTES_MAX: usize = 60_000;

/// The longest reason.
pub const REASON_BYTES_MAX: usize = 1000;

/// A message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    /// Source: take this VM, described by bytes that the two hosts' kernels understand.
    Offer {
        /// The migration.
        id: Id,
        /// The source's [`VERSION`].
        version: u16,
        /// What the VM is.
        description: &'a [u8],
    },
    /// Target: send it.
    Accept,
    /// Target: no, and why.
    Refuse {
        /// One line.
        reason: &'a str,
    },
    /// Source: records of [`crate::pages`].
    Pages {
        /// The records.
        records: &'a [u8],
    },
    /// Source: a piece of the machine's state, in order.
    State {
        /// How long all of it is.
        total: u32,
        /// The next of it.
        bytes: &'a [u8],
    },
    /// Source: what is the time? Before it sends memory, so that nothing is in the way.
    Clock {
        /// When it asked, by a clock of its own: comes back.
        asked_ns: u64,
    },
    /// Target: this.
    Time {
        /// When it was asked.
        asked_ns: u64,
        /// UTC as the target has it, in nanoseconds since 1970.
        utc_ns: u64,
    },
    /// Source: more of what the guest's console printed, in order.
    Console {
        /// The text.
        bytes: &'a [u8],
    },
    /// Source: that is all; the guest stands still.
    Finish {
        /// The migration.
        id: Id,
        /// How far the target's clock on the wall is ahead of the source's.
        ahead_ns: i64,
        /// How many pages follow the commit.
        left_behind: u64,
    },
    /// Source, before it finishes: these pages follow the commit. Target, on a session after that: these are missing.
    Missing {
        /// The pages, in ascending order.
        runs: Runs<'a>,
    },
    /// Target, which runs it: send these first.
    Want {
        /// The pages, one a run, in the order in which they are wanted.
        runs: Runs<'a>,
    },
    /// Target, which runs it: all of it is here, or what is not is needed no more.
    Complete {
        /// The migration.
        id: Id,
    },
    /// Target: everything is here and restored; say the word.
    Ready {
        /// The migration.
        id: Id,
    },
    /// Source: it is yours. Said again until an answer comes.
    Commit {
        /// The migration.
        id: Id,
    },
    /// Target: it runs here.
    Running {
        /// The migration.
        id: Id,
    },
    /// Either, before the commit: it stays at the source. A source says it again until an answer comes.
    Abort {
        /// The migration.
        id: Id,
        /// One line.
        reason: &'a str,
    },
    /// Target: there is nothing of it here (any more).
    Unknown {
        /// The migration.
        id: Id,
    },
}

/// A message that is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// It ends too early.
    Short,
    /// It goes on after its end, or is longer than messages are.
    Long,
    /// No message is of this kind.
    Kind(u8),
    /// A reason is no text, or too long.
    Reason,
    /// Runs of pages are cut, or one is empty, or they are not as the message has them.
    Runs,
}

impl core::fmt::Display for Malformed {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Short => out.write_str("a message ends too early"),
            Self::Long => out.write_str("a message is too long"),
            Self::Kind(kind) => write!(out, "a message is of unknown kind {kind}"),
            Self::Reason => out.write_str("a reason is no short text"),
            Self::Runs => out.write_str("a list of pages is none"),
        }
    }
}

mod kind {
    pub const OFFER: u8 = 1;
    pub const ACCEPT: u8 = 2;
    pub const REFUSE: u8 = 3;
    pub const PAGES: u8 = 4;
    pub const STATE: u8 = 5;
    pub const FINISH: u8 = 6;
    pub const READY: u8 = 7;
    pub const COMMIT: u8 = 8;
    pub const RUNNING: u8 = 9;
    pub const ABORT: u8 = 10;
    pub const UNKNOWN: u8 = 11;
    pub const CLOCK: u8 = 12;
    pub const TIME: u8 = 13;
    pub const CONSOLE: u8 = 14;
    pub const MISSING: u8 = 15;
    pub const WANT: u8 = 16;
    pub const COMPLETE: u8 = 17;
}

/// Runs of pages in one message.
pub const RUNS_MAX: usize = STATE_BYTES_MAX / RUN_BYTES;

/// The first byte of a message with pages: records follow it at once, so that they can be written in place.
pub const PAGES_KIND: u8 = kind::PAGES;

impl<'a> Message<'a> {
    /// Appends the message's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Offer { id, version, description } => {
                head(out, kind::OFFER, id);
                out.extend_from_slice(&version.to_le_bytes());
                out.extend_from_slice(description);
            }
            Self::Accept => out.push(kind::ACCEPT),
            Self::Refuse { reason } => {
                out.push(kind::REFUSE);
                out.extend_from_slice(cut(reason).as_bytes());
            }
            Self::Pages { records } => {
                out.push(kind::PAGES);
                out.extend_from_slice(records);
            }
            Self::State { total, bytes } => {
                out.push(kind::STATE);
                out.extend_from_slice(&total.to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Self::Clock { asked_ns } => {
                out.push(kind::CLOCK);
                out.extend_from_slice(&asked_ns.to_le_bytes());
            }
            Self::Time { asked_ns, utc_ns } => {
                out.push(kind::TIME);
                out.extend_from_slice(&asked_ns.to_le_bytes());
                out.extend_from_slice(&utc_ns.to_le_bytes());
            }
            Self::Console { bytes } => {
                out.push(kind::CONSOLE);
                out.extend_from_slice(bytes);
            }
            Self::Finish { id, ahead_ns, left_behind } => {
                head(out, kind::FINISH, id);
                out.extend_from_slice(&ahead_ns.to_le_bytes());
                out.extend_from_slice(&left_behind.to_le_bytes());
            }
            Self::Missing { runs } => {
                out.push(kind::MISSING);
                out.extend_from_slice(runs.bytes());
            }
            Self::Want { runs } => {
                out.push(kind::WANT);
                out.extend_from_slice(runs.bytes());
            }
            Self::Complete { id } => head(out, kind::COMPLETE, id),
            Self::Ready { id } => head(out, kind::READY, id),
            Self::Commit { id } => head(out, kind::COMMIT, id),
            Self::Running { id } => head(out, kind::RUNNING, id),
            Self::Abort { id, reason } => {
                head(out, kind::ABORT, id);
                out.extend_from_slice(cut(reason).as_bytes());
            }
            Self::Unknown { id } => head(out, kind::UNKNOWN, id),
        }
    }

    /// Reads a message that takes up all of `bytes`.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(Malformed::Long);
        }
        let (&kind, rest) = bytes.split_first().ok_or(Malformed::Short)?;
        let only_id = |message: fn(Id) -> Self| match id(rest)? {
            (id, []) => Ok(message(id)),
            _ => Err(Malformed::Long),
        };
        match kind {
            kind::OFFER => {
                let (id, rest) = id(rest)?;
                let (version, description) = rest.split_first_chunk().ok_or(Malformed::Short)?;
                Ok(Self::Offer { id, version: u16::from_le_bytes(*version), description })
            }
            kind::ACCEPT if rest.is_empty() => Ok(Self::Accept),
            kind::ACCEPT => Err(Malformed::Long),
            kind::REFUSE => Ok(Self::Refuse { reason: text(rest)? }),
            kind::PAGES => Ok(Self::Pages { records: rest }),
            kind::STATE => {
                let (total, bytes) = rest.split_first_chunk().ok_or(Malformed::Short)?;
                Ok(Self::State { total: u32::from_le_bytes(*total), bytes })
            }
            kind::CLOCK => Ok(Self::Clock { asked_ns: u64::from_le_bytes(whole(rest)?) }),
            kind::TIME => {
                let (asked_ns, rest) = rest.split_first_chunk().ok_or(Malformed::Short)?;
                Ok(Self::Time { asked_ns: u64::from_le_bytes(*asked_ns), utc_ns: u64::from_le_bytes(whole(rest)?) })
            }
            kind::CONSOLE => Ok(Self::Console { bytes: rest }),
            kind::FINISH => {
                let (id, rest) = id(rest)?;
                let (ahead_ns, rest) = rest.split_first_chunk().ok_or(Malformed::Short)?;
                let left_behind = u64::from_le_bytes(whole(rest)?);
                Ok(Self::Finish { id, ahead_ns: i64::from_le_bytes(*ahead_ns), left_behind })
            }
            kind::MISSING => Ok(Self::Missing { runs: runs(rest, Runs::are_ascending)? }),
            kind::WANT => Ok(Self::Want { runs: runs(rest, Runs::are_single)? }),
            kind::COMPLETE => only_id(|id| Self::Complete { id }),
            kind::READY => only_id(|id| Self::Ready { id }),
            kind::COMMIT => only_id(|id| Self::Commit { id }),
            kind::RUNNING => only_id(|id| Self::Running { id }),
            kind::ABORT => {
                let (id, rest) = id(rest)?;
                Ok(Self::Abort { id, reason: text(rest)? })
            }
            kind::UNKNOWN => only_id(|id| Self::Unknown { id }),
            kind => Err(Malformed::Kind(kind)),
        }
    }
}

fn head(out: &mut Vec<u8>, kind: u8, id: Id) {
    out.push(kind);
    out.extend_from_slice(&id.0);
}

fn id(bytes: &[u8]) -> Result<(Id, &[u8]), Malformed> {
    let (id, rest) = bytes.split_first_chunk().ok_or(Malformed::Short)?;
    Ok((Id(*id), rest))
}

/// Runs that end the message, and are like this.
fn runs<'a>(bytes: &'a [u8], is_so: fn(Runs<'a>) -> bool) -> Result<Runs<'a>, Malformed> {
    Runs::new(bytes).filter(|&runs| is_so(runs)).ok_or(Malformed::Runs)
}

/// Bytes that end the message.
fn whole<const BYTES: usize>(bytes: &[u8]) -> Result<[u8; BYTES], Malformed> {
    match bytes.split_first_chunk() {
        Some((chunk, [])) => Ok(*chunk),
        Some(_) => Err(Malformed::Long),
        None => Err(Malformed::Short),
    }
}

/// A reason: a line for people, so that nothing in it can steer a terminal.
fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    let text = core::str::from_utf8(bytes).map_err(|_| Malformed::Reason)?;
    let is_line = bytes.len() <= REASON_BYTES_MAX && !text.chars().any(char::is_control);
    is_line.then_some(text).ok_or(Malformed::Reason)
}

/// As much of a reason as a message takes.
fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: Id = Id(*b"0123456789abcdef");

    fn round_trip(message: Message<'_>) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        assert_eq!(Message::parse(&bytes), Ok(message));
        let is_open = matches!(
            message,
            Message::Offer { .. }
                | Message::Pages { .. }
                | Message::State { .. }
                | Message::Console { .. }
                | Message::Refuse { .. }
                | Message::Abort { .. }
                | Message::Missing { .. }
                | Message::Want { .. }
        );
        if !is_open {
            bytes.push(0);
            assert_eq!(Message::parse(&bytes), Err(Malformed::Long));
        }
    }

    #[test]
    fn every_message_comes_back() {
        for message in [
            Message::Offer { id: ID, version: VERSION, description: b"vm" },
            Message::Accept,
            Message::Refuse { reason: "no room" },
            Message::Pages { records: &[1, 2, 3] },
            Message::State { total: 9, bytes: &[4, 5] },
            Message::Clock { asked_ns: 5 },
            Message::Time { asked_ns: 5, utc_ns: u64::MAX },
            Message::Console { bytes: b"login: " },
            Message::Finish { id: ID, ahead_ns: -3, left_behind: 7 },
            Message::Missing { runs: Runs::new(&[9, 0, 0, 0, 0, 1, 0, 0]).unwrap() },
            Message::Want { runs: Runs::new(&[8, 0, 0, 0, 0, 1, 0, 0]).unwrap() },
            Message::Complete { id: ID },
            Message::Ready { id: ID },
            Message::Commit { id: ID },
            Message::Running { id: ID },
            Message::Abort { id: ID, reason: "cancelled" },
            Message::Unknown { id: ID },
        ] {
            round_trip(message);
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert_eq!(Message::parse(&[]), Err(Malformed::Short));
        assert_eq!(Message::parse(&[kind::COMMIT, 1, 2]), Err(Malformed::Short));
        assert_eq!(Message::parse(&[kind::WANT, 0, 0, 0, 0, 0, 0, 0, 0]), Err(Malformed::Runs));
        assert_eq!(Message::parse(&[kind::MISSING, 0, 0, 0, 0, 0, 1]), Err(Malformed::Runs));
        assert_eq!(Message::parse(&[99]), Err(Malformed::Kind(99)));
        assert_eq!(Message::parse(&[kind::REFUSE, 0xff]), Err(Malformed::Reason));
        assert_eq!(Message::parse(b"\x03\x1b[2J"), Err(Malformed::Reason));
        assert_eq!(Message::parse(&alloc::vec![kind::PAGES; MESSAGE_BYTES_MAX + 1]), Err(Malformed::Long));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let mut bytes = Vec::new();
        Message::Refuse { reason: &"ä".repeat(REASON_BYTES_MAX) }.encode(&mut bytes);
        assert!(matches!(Message::parse(&bytes), Ok(Message::Refuse { reason }) if reason.len() == REASON_BYTES_MAX));
    }

    #[test]
    fn no_page_is_missing_twice_and_each_is_wanted_alone() {
        let parse = |kind: u8, runs: &[(u64, u64)]| {
            let runs = runs.iter().flat_map(|&(first, count)| crate::pages::run(first, count));
            let bytes: Vec<u8> = [kind].into_iter().chain(runs).collect();
            Message::parse(&bytes).err()
        };
        assert_eq!(parse(kind::MISSING, &[(0, 2), (2, 1), (9, 5)]), None);
        assert_eq!(parse(kind::MISSING, &[(0, 1 << 20), (0, 1 << 20)]), Some(Malformed::Runs));
        assert_eq!(parse(kind::MISSING, &[(4, 2), (5, 1)]), Some(Malformed::Runs));
        assert_eq!(parse(kind::WANT, &[(4, 1), (2, 1), (4, 1)]), None);
        assert_eq!(parse(kind::WANT, &[(4, 2)]), Some(Malformed::Runs));
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_surprise(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = Message::parse(&bytes) {
                let mut again = Vec::new();
                message.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
