use super::*;
use proptest::prelude::*;
use spin::Mutex;

fn keys(seed: u8) -> KeyPair {
    KeyPair::new([seed; 32])
}

fn seeded(seed: u8) -> impl FnMut(&mut [u8]) {
    move |into: &mut [u8]| into.iter_mut().enumerate().for_each(|(at, byte)| *byte = seed ^ at as u8)
}

fn pair(expected: PublicKey) -> (Session, Session) {
    pair_with(expected, [None; 2], None)
}

fn pair_with(expected: PublicKey, aes: [Option<MakeSealer>; 2], crew: Option<&'static dyn Crew>) -> (Session, Session) {
    let caller = Session::new(Role::Initiator(expected), &keys(1), aes[0], crew, &mut seeded(11));
    (caller, Session::new(Role::Responder, &keys(2), aes[1], crew, &mut seeded(22)))
}

type Messages = Vec<(u8, Vec<u8>)>;

fn pass(from: &mut Session, to: &mut Session) -> (Vec<Event>, Messages) {
    let bytes = from.drain();
    feed(to, &bytes)
}

fn feed(to: &mut Session, bytes: &[u8]) -> (Vec<Event>, Messages) {
    to.receive(bytes);
    let (mut events, mut messages) = (Vec::new(), Vec::new());
    let mut hear = |stream: u8, bytes: &[u8]| {
        messages.push((stream, bytes.to_vec()));
        ControlFlow::Continue(())
    };
    while let Some(event) = to.poll(&mut hear) {
        events.push(event);
    }
    (events, messages)
}

fn open() -> (Session, Session) {
    open_with([None; 2], None)
}

fn open_with(aes: [Option<MakeSealer>; 2], crew: Option<&'static dyn Crew>) -> (Session, Session) {
    let (mut caller, mut called) = pair_with(keys(2).public(), aes, crew);
    pass(&mut caller, &mut called);
    pass(&mut called, &mut caller);
    pass(&mut caller, &mut called);
    assert_eq!(pass(&mut called, &mut caller).0, [Event::Open]);
    assert_eq!(pass(&mut caller, &mut called).0, [Event::Identified(keys(1).public())]);
    assert_eq!(called.trust(Ok(())), Some(Event::Open));
    (caller, called)
}

#[test]
fn messages_arrive_whole_on_their_streams_both_ways() {
    let (mut caller, mut called) = open();
    assert!(caller.send(1, &[b"he", b"llo"]) && caller.send(7, &[&[9; MESSAGE_BYTES_MAX]]));
    let (events, messages) = pass(&mut caller, &mut called);
    assert_eq!(events, []);
    assert_eq!(messages, [(1, b"hello".to_vec()), (7, vec![9; MESSAGE_BYTES_MAX])]);
    called.send(1, &[b"yes"]);
    assert_eq!(pass(&mut called, &mut caller).1, [(1, b"yes".to_vec())]);
    assert_eq!((caller.remote(), called.remote()), (Some(keys(2).public()), Some(keys(1).public())));
}

#[test]
fn what_is_too_much_for_a_turn_waits_for_the_next() {
    let (mut caller, mut called) = open();
    (0..100_u8).for_each(|number| assert!(caller.send(1, &[&[number]])));
    caller.close("that was all");
    called.receive(&caller.drain());
    let mut messages = Vec::new();
    for turn in 1..=10 {
        assert!(called.has_more());
        let event = called.poll(|_, bytes| {
            messages.push(bytes[0]);
            if messages.len() < turn * 10 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert_eq!((event, messages.len()), (None, turn * 10));
    }
    let ended = called.poll(|_, _| unreachable!("there is no other message"));
    assert_eq!(ended, Some(Event::Ended(End::Farewell("that was all".into()))));
    assert!(!called.has_more() && messages.into_iter().eq(0..100));
}

/// No cipher: it adds the key's first byte to each, and a tag that depends on the nonce. It notes that it was used.
struct Shift(u8);

impl crate::Sealer for Shift {
    fn seal(&self, nonce: &[u8; 12], _: &[u8], plain: &[u8], out: &mut [u8]) {
        let (text, tag) = out.split_at_mut(plain.len());
        text.iter_mut().zip(plain).for_each(|(out, byte)| *out = byte.wrapping_add(self.0));
        tag.fill(0xaa ^ nonce[11]);
    }
    fn open(&self, nonce: &[u8; 12], _: &[u8], sealed: &[u8], out: &mut [u8]) -> bool {
        let (text, tag) = sealed.split_at(sealed.len() - TAG_BYTES);
        out.iter_mut().zip(text).for_each(|(out, byte)| *out = byte.wrapping_sub(self.0));
        tag.iter().all(|&byte| byte == 0xaa ^ nonce[11])
    }
}

const SHIFT: Option<MakeSealer> = Some(|key| Box::new(Shift(key[0])));

#[test]
fn the_cipher_is_aes_where_both_have_it() {
    for (aes, uses_it) in [([SHIFT; 2], true), ([SHIFT, None], false), ([None, SHIFT], false), ([None; 2], false)] {
        let (mut caller, mut called) = open_with(aes, None);
        caller.send(1, &[b"hello"]);
        let frame = caller.drain();
        assert_eq!(frame.ends_with(&[frame[frame.len() - 1]; TAG_BYTES]), uses_it);
        assert_eq!(feed(&mut called, &frame).1, [(1, b"hello".to_vec())]);
    }
}

#[test]
fn nobody_talks_two_hosts_out_of_aes() {
    let (mut caller, mut called) = pair_with(keys(2).public(), [SHIFT; 2], None);
    for session in [&mut caller, &mut called] {
        assert_eq!(core::mem::replace(&mut session.ready[7], 0), HAS_AES);
    }
    pass(&mut caller, &mut called);
    pass(&mut called, &mut caller);
    pass(&mut caller, &mut called);
    assert_eq!(pass(&mut called, &mut caller).0, [Event::Ended(End::Forged)]);
}

#[test]
fn keys_change_after_many_frames_and_messages_go_on() {
    let (mut caller, mut called) = open();
    for count in 0..REKEY_FRAMES + 3 {
        caller.send(1, &[&count.to_le_bytes()]);
        assert_eq!(pass(&mut caller, &mut called).1, [(1, count.to_le_bytes().to_vec())]);
    }
}

/// A crew that takes all it is shown, and does it when it is told.
#[derive(Default)]
struct Held(Mutex<Vec<Arc<Work>>>);

impl Crew for Held {
    fn offer(&self, work: &Arc<Work>) -> bool {
        self.0.lock().push(work.clone());
        true
    }
}

impl Held {
    fn new() -> &'static Self {
        Box::leak(Box::default())
    }

    fn take(&self) -> Vec<Arc<Work>> {
        core::mem::take(&mut self.0.lock())
    }
}

fn large(number: u8) -> Vec<u8> {
    vec![number; OFFERED_BYTES_MIN + usize::from(number)]
}

#[test]
fn what_others_did_in_any_order_comes_in_its_own() {
    let crew = Held::new();
    let (mut caller, mut called) = open_with([None; 2], Some(crew));
    (0..5).for_each(|number| assert!(caller.send(1, &[&large(number)]) && caller.is_helped()));
    caller.send(1, &[b"short"]);
    assert!(!caller.is_helped() && caller.outgoing().is_empty() && caller.is_elsewhere());
    let (mut works, to_send) = (crew.take(), caller.to_send());
    assert_eq!(works.len(), 5, "short frames are not shown");
    assert!(works.pop().unwrap().help() && works.pop().unwrap().help());
    assert!(caller.outgoing().is_empty(), "the first is not sealed");
    assert!(works[0].help() && !works[0].help());
    assert!(!caller.outgoing().is_empty() && !caller.is_elsewhere() && caller.to_send() == to_send);
    let wire = caller.drain();
    assert_eq!((wire.len(), caller.to_send()), (to_send, 0));
    assert_eq!(caller.counts(), FrameCounts { all: 6, helped: 3 });
    // All but the first, which its owner opens at once.
    called.receive(&wire);
    let mut got = Vec::new();
    let mut poll = |session: &mut Session| {
        session.poll(|_, bytes| {
            got.push(bytes.to_vec());
            if got.len() == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    };
    assert_eq!(poll(&mut called), None);
    let works = crew.take();
    assert_eq!((works.len(), called.has_more()), (4, true));
    assert!(works.iter().rev().all(|work| work.help()));
    assert_eq!(poll(&mut called), None);
    assert_eq!(called.counts(), FrameCounts { all: 6, helped: 4 });
    assert!(!called.has_more() && called.waiting() == 0);
    assert!(got.iter().map(Vec::len).eq((0..5).map(|number| large(number).len()).chain([5])));
}

#[test]
fn keys_change_with_frames_in_others_hands() {
    let crew = Held::new();
    let (mut caller, mut called) = open_with([SHIFT; 2], Some(crew));
    let message = |count: u64| [&count.to_le_bytes()[..], &[0; OFFERED_BYTES_MIN]].concat();
    (0..REKEY_FRAMES - 2).for_each(|_| {
        caller.send(1, &[b""]);
    });
    assert_eq!(pass(&mut caller, &mut called).1.len() as u64, REKEY_FRAMES - 2);
    (0..4).for_each(|count| assert!(caller.send(1, &[&message(count)])));
    let works = crew.take();
    // Those of the key before are sealed when it changes; the others are not.
    assert_eq!(works.iter().map(|work| work.help()).collect::<Vec<_>>(), [false, false, true, true]);
    let arrived = pass(&mut caller, &mut called).1;
    assert!(arrived.into_iter().map(|(_, bytes)| bytes).eq((0..4).map(message)));
}

/// Threads that do all that is shown to them, as fast as they can.
struct Threads(Mutex<Option<std::sync::mpsc::Sender<Arc<Work>>>>);

impl Crew for Threads {
    fn offer(&self, work: &Arc<Work>) -> bool {
        self.0.lock().as_ref().is_some_and(|threads| threads.send(work.clone()).is_ok())
    }
}

#[test]
fn many_processors_change_nothing() {
    let (sender, works) = std::sync::mpsc::channel::<Arc<Work>>();
    let (crew, works): (&Threads, _) = (Box::leak(Box::new(Threads(Mutex::new(Some(sender))))), Mutex::new(works));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Ok(work) = { works.lock().recv() } {
                    work.help();
                }
            });
        }
        let (mut caller, mut called) = open_with([None; 2], Some(crew));
        let mut got = 0;
        for count in 0..2000_u64 {
            let length = (count * 7919 % 50_000) as usize;
            assert!(caller.send(1, &[&count.to_le_bytes(), &vec![count as u8; length]]));
            while caller.to_send() > 0 && (count % 5 == 0 || caller.to_send() > 300_000) {
                let part = caller.outgoing().to_vec();
                caller.note_sent(part.len());
                called.receive(&part);
                caller.advance();
            }
            let event = called.poll(|_, bytes| {
                assert_eq!(bytes[..8], u64::to_le_bytes(got));
                assert!(bytes[8..].iter().all(|&byte| byte == got as u8));
                got += 1;
                ControlFlow::Continue(())
            });
            assert_eq!(event, None);
        }
        called.receive(&caller.drain());
        while got < 2000 {
            called.poll(|_, bytes| {
                assert_eq!(bytes[..8], u64::to_le_bytes(got));
                got += 1;
                ControlFlow::Continue(())
            });
        }
        crew.0.lock().take();
    });
}

#[test]
fn a_host_with_another_key_is_named() {
    let (mut caller, mut called) = pair(keys(3).public());
    pass(&mut caller, &mut called);
    pass(&mut called, &mut caller);
    pass(&mut caller, &mut called);
    assert_eq!(pass(&mut called, &mut caller).0, [Event::Ended(End::WrongKey(keys(2).public()))]);
    assert!(!caller.send(1, &[b"secret"]) && caller.drain().is_empty());
}

#[test]
fn a_caller_that_is_not_trusted_is_told() {
    let (mut caller, mut called) = pair(keys(2).public());
    for _ in 0..2 {
        pass(&mut caller, &mut called);
        pass(&mut called, &mut caller);
    }
    assert_eq!(pass(&mut caller, &mut called).0, [Event::Identified(keys(1).public())]);
    caller.send(1, &[b"too early"]);
    let early = pass(&mut caller, &mut called);
    assert_eq!(early, (vec![], vec![]), "nothing is read before the key is judged");
    let ended = called.trust(Err("this host does not know you"));
    assert_eq!(ended, Some(Event::Ended(End::WrongKey(keys(1).public()))));
    let farewell = End::Farewell("this host does not know you".into());
    assert_eq!(pass(&mut called, &mut caller).0, [Event::Ended(farewell)]);
}

#[test]
fn another_protocol_or_version_is_named() {
    let (mut caller, _) = pair(keys(2).public());
    assert_eq!(feed(&mut caller, b"HTTP/1.1 400").0, [Event::Ended(End::NotPollux)]);
    let (mut caller, _) = pair(keys(2).public());
    assert_eq!(feed(&mut caller, b"POLLUX\x07\0").0, [Event::Ended(End::Version(7))]);
}

#[test]
fn doubled_reordered_and_changed_frames_end_the_session_unread() {
    type Mangle = fn(&mut Vec<Vec<u8>>);
    let mangles: [Mangle; 4] = [
        |frames| frames.insert(1, frames[0].clone()),
        |frames| frames.swap(0, 1),
        |frames| drop(frames.remove(0)),
        |frames| *frames[0].last_mut().unwrap() ^= 1,
    ];
    for (index, mangle) in mangles.into_iter().enumerate() {
        let (mut caller, mut called) = open();
        let mut frames = Vec::new();
        for word in [b"one", b"two"] {
            caller.send(1, &[word]);
            frames.push(caller.drain());
        }
        mangle(&mut frames);
        let (events, messages) = feed(&mut called, &frames.concat());
        assert_eq!(events, [Event::Ended(End::Forged)], "mangle {index}");
        assert!(messages.len() <= 1 && messages.iter().all(|(_, bytes)| bytes == b"one"));
        let told = pass(&mut called, &mut caller).0;
        assert!(matches!(&told[..], [Event::Ended(End::Farewell(_))]));
    }
}

#[test]
fn a_farewell_is_a_line() {
    let (mut caller, mut called) = open();
    caller.send(CONTROL, &[b"\x1b[2Jboo"]);
    assert_eq!(pass(&mut caller, &mut called).0, [Event::Ended(End::Farewell("it gives no reason".into()))]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_hostile_stream_ends_or_waits(bytes in proptest::collection::vec(any::<u8>(), 0..400), greeted: bool, opened: bool) {
        let mut session = if opened { open().1 } else { pair(keys(2).public()).1 };
        if greeted && !opened {
            feed(&mut session, &greeting(false));
        }
        let (events, messages) = feed(&mut session, &bytes);
        prop_assert!(messages.is_empty());
        prop_assert!(events.iter().all(|event| matches!(event, Event::Ended(_))));
    }
}
