//! What one host sends another: a session's bytes before trust, messages of a migration, and batches of pages.
#![no_main]

use guestmem::PageSet;
use libfuzzer_sys::fuzz_target;
use migrate::pages::{PAGE, Record, Records, unpack};
use migrate::wire::Message;
use migrate::{Id, Settings, Source, Strategy, Target, source, target};
use peer::{KeyPair, Role, Session};

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    if first & 1 == 0 { session(data, first & 2 == 0) } else { messages(data) }
});

/// A stranger's bytes: they end the session or wait, and no message comes of them.
fn session(data: &[u8], greets: bool) {
    let keys = KeyPair::new([2; 32]);
    let mut called = Session::new(Role::Responder, &keys, None, None, &mut |into: &mut [u8]| into.fill(7));
    if greets {
        called.receive(b"POLLUX\x02\0");
    }
    for part in data.chunks(31) {
        called.receive(part);
        while called.poll(|_, _| panic!("a message before trust")).is_some() {}
    }
    assert!(!called.is_open());
}

/// A peer that is trusted and lies: messages of two bytes of length each.
fn messages(mut data: &[u8]) {
    let mut pages = PageSet::new(64).unwrap();
    pages.insert(0, 64);
    let mut source = serving(pages.clone());
    let mut target = Target::new(Id::default());
    target.prepared(pages).unwrap();
    let mut page = [0; PAGE];
    while let Some((length, rest)) = data.split_first_chunk::<2>() {
        let (bytes, rest) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
        data = rest;
        let Ok(message) = Message::parse(bytes) else { continue };
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(again, bytes, "a message has one form");
        hear(&mut target, message, &mut page);
        while let Some(effect) = target.take_effect() {
            if effect == target::Effect::Restore {
                target.restored(Ok(()));
            }
        }
        answer(&mut source, message);
        while source.take_effect().is_some() || source.take_page().is_some() {}
    }
}

/// A source whose guest runs at the target without its memory.
fn serving(pages: PageSet) -> Source {
    let settings = Settings { timeout_ns: 0, strategy: Strategy::Postcopy, ..Settings::default() };
    let mut source = Source::new(Id::default(), settings, pages.clone(), 0).unwrap();
    source.accepted();
    source.tick(1);
    source.stopped(&PageSet::default());
    source.looked(&pages, 1, 0, 1);
    source.advance();
    source.state_sent();
    source.ready();
    source.running();
    assert_eq!(source.phase(), source::Phase::Serving);
    source
}

fn answer(source: &mut Source, message: Message<'_>) {
    match message {
        Message::Missing { runs } => runs.iter().for_each(|(first, count)| source.missing(first, count)),
        Message::Want { runs } => runs.iter().for_each(|(first, _)| source.wanted(first)),
        Message::Abort { reason, .. } => source.aborted(reason),
        Message::Running { .. } => source.running(),
        Message::Ready { .. } => source.ready(),
        _ => {}
    }
}

fn hear(target: &mut Target, message: Message<'_>, page: &mut [u8; PAGE]) {
    let _ = match message {
        Message::Pages { records } => Records::new(records).try_for_each(|record| match record {
            Ok(Record::Zero(first, count)) => {
                (first..first.saturating_add(count)).try_for_each(|number| target.arrived(number).map(drop))
            }
            Ok(Record::Raw(number, _)) => target.arrived(number).map(drop),
            Ok(Record::Lz4(number, packed)) => {
                let _ = unpack(packed, page);
                target.arrived(number).map(drop)
            }
            Ok(Record::Delta(number, delta)) => {
                delta.runs().for_each(|(offset, bytes)| page[offset..][..bytes.len()].copy_from_slice(bytes));
                target.changed(number)
            }
            Err(_) => Ok(()),
        }),
        Message::Missing { runs } => runs.iter().try_for_each(|(first, count)| target.left_behind(first, count)),
        Message::State { total, bytes } => target.state_arrived(total, bytes),
        Message::Finish { left_behind, .. } => target.finished(left_behind),
        Message::Commit { .. } => target.committed(),
        Message::Abort { reason, .. } => target.aborted(reason),
        _ => Ok(()),
    };
}
