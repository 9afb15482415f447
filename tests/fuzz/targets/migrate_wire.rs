//! What one host sends another: a session's bytes before trust, messages of a migration, and batches of pages.
#![no_main]

use guestmem::PageSet;
use libfuzzer_sys::fuzz_target;
use migrate::pages::{PAGE, Record, Records, unpack};
use migrate::wire::Message;
use migrate::{Id, Target};
use peer::{KeyPair, Role, Session};

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    if first & 1 == 0 { session(data, first & 2 == 0) } else { messages(data) }
});

/// A stranger's bytes: they end the session or wait, and no message comes of them.
fn session(data: &[u8], greets: bool) {
    let mut called = Session::new(Role::Responder, &KeyPair::new([2; 32]), None, &mut |into: &mut [u8]| into.fill(7));
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
    let mut target = Target::new(Id::default());
    target.prepared(pages);
    let mut page = [0; PAGE];
    while let Some((length, rest)) = data.split_first_chunk::<2>() {
        let (bytes, rest) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
        data = rest;
        let Ok(message) = Message::parse(bytes) else { continue };
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(again, bytes, "a message has one form");
        hear(&mut target, message, &mut page);
        while target.take_effect().is_some() {}
    }
}

fn hear(target: &mut Target, message: Message<'_>, page: &mut [u8; PAGE]) {
    let _ = match message {
        Message::Pages { records } => Records::new(records).try_for_each(|record| match record {
            Ok(Record::Zero(first, count)) => target.arrived(first, count),
            Ok(Record::Raw(number, _)) => target.arrived(number, 1),
            Ok(Record::Lz4(number, packed)) => {
                let _ = unpack(packed, page);
                target.arrived(number, 1)
            }
            Err(_) => Ok(()),
        }),
        Message::State { total, bytes } => target.state_arrived(total, bytes),
        Message::Finish { .. } => target.finished(),
        Message::Commit { .. } => target.committed(),
        Message::Abort { reason, .. } => target.aborted(reason),
        _ => Ok(()),
    };
}
