//! Words as messages, and answers as events: what every driver of a [`Source`] or [`Target`] does with what comes and goes.
//!
//! [`hear`] and [`say`] are the source's, [`answer`] is the target's. What arrives at a target needs its machine, and is its
//! driver's to take.

use crate::wire::{Message, VERSION};
use crate::{Source, Target, source, target};
use alloc::string::{String, ToString};

/// Tells a source what its target said; `compare` takes when the time was asked for, and the target's.
///
/// # Errors
/// Where it is no message, or none of a target's, in one line: the session ends.
pub fn hear(source: &mut Source, bytes: &[u8], compare: &mut dyn FnMut(u64, u64)) -> Result<(), String> {
    let own = source.id();
    match Message::parse(bytes).map_err(|malformed| malformed.to_string())? {
        Message::Accept => source.accepted(),
        Message::Time { asked_ns, utc_ns } => compare(asked_ns, utc_ns),
        Message::Refuse { reason } => source.refused(reason),
        Message::Ready { id } if id == own => source.ready(),
        Message::Running { id } if id == own => source.running(),
        Message::Missing { runs } => runs.iter().for_each(|(first, count)| source.missing(first, count)),
        Message::Want { runs } => runs.iter().for_each(|(first, _)| source.wanted(first)),
        Message::Complete { id } if id == own => source.complete(),
        Message::Abort { id, reason } if id == own => source.aborted(reason),
        Message::Unknown { id } if id == own => source.unknown(),
        Message::Ready { .. }
        | Message::Running { .. }
        | Message::Complete { .. }
        | Message::Abort { .. }
        | Message::Unknown { .. }
        | Message::Offer { .. }
        | Message::Pages { .. }
        | Message::State { .. }
        | Message::Clock { .. }
        | Message::Console { .. }
        | Message::Finish { .. }
        | Message::Commit { .. } => return Err("it says what a target does not say".to_string()),
    }
    Ok(())
}

/// The message that a source's word is; `description` says what the VM is, `ahead_ns` how far the target's clock on the wall
/// is ahead, once that is known. `None` for [`source::Word::Missing`], which is many messages: its driver sends them as there
/// is room ([`crate::pages::next_runs`]).
pub fn say<'a>(source: &Source, word: &'a source::Word, description: &'a [u8], ahead_ns: i64) -> Option<Message<'a>> {
    let id = source.id();
    Some(match word {
        source::Word::Offer => Message::Offer { id, version: VERSION, description },
        source::Word::Missing => return None,
        source::Word::Finish => Message::Finish { id, ahead_ns, left_behind: source.remaining() },
        source::Word::Commit => Message::Commit { id },
        source::Word::Abort(reason) => Message::Abort { id, reason },
    })
}

/// The message that a target's word is; `None` for [`target::Word::Missing`], as of [`say`].
pub fn answer<'a>(target: &Target, word: &'a target::Word) -> Option<Message<'a>> {
    let id = target.id();
    Some(match word {
        target::Word::Accept => Message::Accept,
        target::Word::Refuse(reason) => Message::Refuse { reason },
        target::Word::Ready => Message::Ready { id },
        target::Word::Running => Message::Running { id },
        target::Word::Complete => Message::Complete { id },
        target::Word::Missing => return None,
        target::Word::Abort(reason) => Message::Abort { id, reason },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Id, Settings};
    use alloc::vec::Vec;
    use guestmem::PageSet;

    fn source() -> Source {
        let mut pages = PageSet::new(8).unwrap();
        [0, 2, 4].iter().for_each(|&page| pages.insert(page, 1));
        Source::new(Id([7; 16]), Settings::default(), pages, 0).unwrap()
    }

    #[test]
    fn a_source_hears_its_target_and_nobody_else() {
        let mut source = source();
        let mut heard = |message: Message<'_>| {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            let mut times = Vec::new();
            hear(&mut source, &bytes, &mut |asked_ns, utc_ns| times.push((asked_ns, utc_ns))).map(|()| times)
        };
        assert_eq!(heard(Message::Accept), Ok(vec![]));
        assert_eq!(heard(Message::Time { asked_ns: 1, utc_ns: 2 }), Ok(vec![(1, 2)]));
        assert!(heard(Message::Ready { id: Id([8; 16]) }).is_err(), "it is another's");
        assert!(heard(Message::Commit { id: Id([7; 16]) }).is_err(), "it is a source's");
        assert!(hear(&mut source, b"", &mut |_, _| ()).is_err());
        assert_eq!(source.phase(), source::Phase::Copying);
    }

    #[test]
    fn each_says_its_words_by_its_name() {
        let (id, description) = (Id([7; 16]), b"web".as_slice());
        let (source, target) = (source(), Target::new(id));
        let said = |word| {
            let message = say(&source, &word, description, -5)?;
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            assert_eq!(Message::parse(&bytes), Ok(message));
            Some(bytes)
        };
        assert_eq!(
            say(&source, &source::Word::Offer, description, 0),
            Some(Message::Offer { id, version: VERSION, description })
        );
        let finish = Message::Finish { id, ahead_ns: -5, left_behind: 3 };
        assert_eq!(say(&source, &source::Word::Finish, description, -5), Some(finish));
        assert!(said(source::Word::Commit) != said(source::Word::Abort("no".to_string())));
        assert_eq!(said(source::Word::Missing), None);
        assert_eq!(answer(&target, &target::Word::Missing), None);
        let no = target::Word::Abort("no".to_string());
        assert_eq!(answer(&target, &no), Some(Message::Abort { id, reason: "no" }));
    }
}
