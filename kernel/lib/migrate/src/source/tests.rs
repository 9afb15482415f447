//! A source by itself: what it says, when it stops the guest, and what it does when others fail.

use super::*;

const SECOND: u64 = 1_000_000_000;

fn source(pages: u64, settings: Settings) -> Source {
    let mut all = PageSet::new(pages).unwrap();
    all.insert(0, pages);
    let mut source = Source::new(Id::default(), settings, all, 0).unwrap();
    assert_eq!(source.take_effect(), Some(Effect::Say(Word::Offer)));
    source.accepted();
    source
}

fn written(pages: u64, count: u64) -> PageSet {
    let mut set = PageSet::new(pages).unwrap();
    set.insert(0, count);
    set
}

/// Sends what there is; gives what follows.
fn send(source: &mut Source) -> Option<Effect> {
    while source.take_page().is_some() {}
    source.advance();
    source.take_effect()
}

#[test]
fn a_quiet_guest_moves_in_one_round() {
    let mut source = source(100, Settings::default());
    assert_eq!(send(&mut source), Some(Effect::Look));
    source.looked(&written(100, 3), 1000, 0, 0);
    assert_eq!(source.take_effect(), Some(Effect::Stop));
    source.stopped(&PageSet::default());
    assert_eq!(source.take_effect(), Some(Effect::Look));
    source.looked(&written(100, 5), 1000, 0, 0);
    assert_eq!(source.remaining(), 5);
    assert_eq!(send(&mut source), Some(Effect::SendState));
    source.state_sent();
    source.ready();
    source.running();
    let effects: Vec<_> = core::iter::from_fn(|| source.take_effect()).collect();
    assert_eq!(effects, [Effect::Say(Word::Finish), Effect::Say(Word::Commit), Effect::End(Outcome::Moved)]);
}

#[test]
fn rounds_go_on_while_they_leave_less() {
    let mut source = source(1000, Settings::default());
    for left in [40, 20, 9] {
        assert_eq!(send(&mut source), Some(Effect::Look));
        // A millisecond a page: 40 ms would fit the downtime, and 20 more so.
        source.looked(&written(1000, left), 1_000_000, 0, 0);
    }
    assert_eq!((source.round(), source.remaining()), (4, 9));
    assert_eq!(send(&mut source), Some(Effect::Look));
    source.looked(&written(1000, 8), 1_000_000, 0, 0);
    assert_eq!(source.take_effect(), Some(Effect::Stop));
}

#[test]
fn a_busy_guest_is_throttled_step_by_step_and_then_given_up() {
    let mut source = source(100, Settings { timeout_ns: 100 * SECOND, ..Settings::default() });
    let mut steps = Vec::new();
    for second in 0.. {
        match send(&mut source) {
            Some(Effect::Look) => source.looked(&written(100, 90), SECOND, 0, second * SECOND),
            Some(Effect::Throttle(percent)) => steps.push(percent),
            Some(other) => {
                assert!(matches!(other, Effect::Resume), "{other:?}");
                break;
            }
            None => {}
        }
    }
    assert_eq!(steps, [50, 25, 12, 6, 5]);
    assert!(matches!(source.take_effect(), Some(Effect::Say(Word::Abort(_)))));
    assert!(matches!(source.take_effect(), Some(Effect::End(Outcome::Stayed(_)))));
}

#[test]
fn the_stop_strategy_stops_at_the_timeout() {
    let mut source = source(100, Settings { timeout_ns: SECOND, strategy: Strategy::Stop, ..Settings::default() });
    source.tick(SECOND - 1);
    assert_eq!(source.take_effect(), None);
    source.tick(SECOND);
    assert_eq!(source.take_effect(), Some(Effect::Stop));
}

/// A guest of 100 pages that is handed over with half of them.
fn serving() -> Source {
    let settings = Settings { timeout_ns: SECOND, strategy: Strategy::Postcopy, ..Settings::default() };
    let mut source = source(100, settings);
    (0..50).for_each(|page| assert_eq!(source.take_page(), Some(page)));
    source.tick(SECOND);
    let mut essential = PageSet::new(100).unwrap();
    [3, 7, 80].iter().for_each(|&page| essential.insert(page, 1));
    source.stopped(&essential);
    source.looked(&written(100, 5), 1, 0, SECOND);
    // Page 7 is there already.
    assert_eq!([source.take_page(), source.take_page(), source.take_page()], [Some(3), Some(80), None]);
    source.advance();
    source.state_sent();
    source.ready();
    source.running();
    let effects: Vec<_> = core::iter::from_fn(|| source.take_effect()).collect();
    let say = Effect::Say;
    let last = [say(Word::Missing), Effect::SendState, say(Word::Finish), say(Word::Commit)];
    assert_eq!(effects, [vec![Effect::Stop, Effect::Look], last.to_vec()].concat());
    assert_eq!((source.phase(), source.remaining()), (Phase::Serving, 53));
    source
}

#[test]
fn what_is_wanted_goes_first_and_its_neighbours_next() {
    let mut source = serving();
    [90, 7, 1, 90, 5000].iter().for_each(|&page| source.wanted(page));
    let pages: Vec<_> = core::iter::from_fn(|| source.take_page()).take(4).collect();
    assert_eq!(pages, [90, 1, 2, 4]);
    assert!(!source.cancel("too late"));
    source.aborted("too late");
    while source.take_page().is_some() {}
    assert_eq!(source.take_effect(), None, "it keeps its memory");
    source.complete();
    assert_eq!(source.take_effect(), Some(Effect::End(Outcome::Moved)));
}

#[test]
fn after_a_lost_link_the_target_says_what_it_lacks() {
    let mut source = serving();
    source.unlinked("gone");
    assert_eq!((source.take_effect(), source.take_page()), (Some(Effect::Connect), None));
    source.linked();
    source.running();
    assert_eq!(source.take_effect(), Some(Effect::Say(Word::Commit)));
    source.missing(98, u64::MAX);
    assert_eq!([source.take_page(), source.take_page(), source.take_page()], [Some(98), Some(99), None]);
    let mut forgotten = source.clone();
    forgotten.unknown();
    source.torn();
    for mut source in [source, forgotten] {
        assert_eq!(source.take_effect(), Some(Effect::End(Outcome::Torn)));
    }
}

#[test]
fn a_guest_that_is_to_be_handed_over_is_not_slowed_down() {
    let mut source = source(100, Settings { strategy: Strategy::Postcopy, ..Settings::default() });
    for _ in 0..2 {
        assert_eq!(send(&mut source), Some(Effect::Look));
        source.looked(&written(100, 90), SECOND, 0, 0);
    }
    assert_eq!((source.take_effect(), source.running_percent()), (Some(Effect::Stop), 100));
}

#[test]
fn what_fails_twice_ends_once() {
    let mut source = source(4, Settings { timeout_ns: SECOND, strategy: Strategy::Stop, ..Settings::default() });
    source.tick(SECOND);
    source.fail("a disk cannot make stable what was written");
    source.fail("its devices do not come to rest");
    let effects: Vec<_> = core::iter::from_fn(|| source.take_effect()).collect();
    assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::End(_))).count(), 1, "{effects:?}");
    let mut given = serving();
    given.fail("there is no memory to keep track of its pages");
    assert_eq!((given.phase(), given.take_effect()), (Phase::Serving, None));
}

#[test]
fn a_look_from_before_the_stop_is_not_the_last() {
    let mut source = source(100, Settings { timeout_ns: SECOND, strategy: Strategy::Stop, ..Settings::default() });
    assert_eq!(send(&mut source), Some(Effect::Look));
    source.tick(SECOND);
    assert_eq!(source.take_effect(), Some(Effect::Stop));
    source.stopped(&PageSet::default());
    source.looked(&written(100, 2), 1, 0, SECOND);
    assert_eq!((source.phase(), source.take_effect()), (Phase::LastLook, Some(Effect::Look)));
    source.looked(&written(100, 5), 1, 0, SECOND);
    assert_eq!((source.phase(), source.remaining()), (Phase::LastPages, 5));
}

#[test]
fn early_looks_do_not_end_the_first_round() {
    let mut source = source(64, Settings::default());
    for _ in 0..2 {
        source.take_page();
    }
    source.advance();
    assert_eq!(source.take_effect(), Some(Effect::Look));
    source.looked(&written(64, 1), 1, 0, 0);
    assert_eq!((source.round(), source.remaining()), (1, 63));
    assert_eq!(source.take_effect(), None);
}

#[test]
fn a_lost_link_leaves_the_guest_here_until_the_commit() {
    let mut copying = source(4, Settings::default());
    copying.unlinked("gone");
    assert_eq!(copying.take_effect(), Some(Effect::End(Outcome::Stayed("gone".to_string()))));

    let mut finished = source(0, Settings::default());
    finished.advance();
    finished.looked(&written(0, 0), 1, 0, 0);
    finished.stopped(&PageSet::default());
    finished.looked(&written(0, 0), 1, 0, 0);
    finished.state_sent();
    while finished.take_effect().is_some() {}
    let mut committed = finished.clone();
    finished.unlinked("gone");
    assert_eq!(finished.take_effect(), Some(Effect::Resume));
    assert_eq!(finished.take_effect(), Some(Effect::End(Outcome::Stayed("gone".to_string()))));
    assert_eq!(finished.take_effect(), Some(Effect::Connect));
    finished.ready();
    assert_eq!(finished.take_effect(), None, "ready comes too late");
    for _ in 0..2 {
        finished.linked();
        assert!(matches!(finished.take_effect(), Some(Effect::Say(Word::Abort(_)))));
        finished.unlinked("gone again");
        assert_eq!(finished.take_effect(), Some(Effect::Connect));
    }
    assert!(!finished.cancel("it stays anyway"));
    finished.unknown();
    assert_eq!((finished.phase(), finished.take_effect()), (Phase::Done, None), "it was decided before");

    committed.ready();
    assert_eq!(committed.take_effect(), Some(Effect::Say(Word::Commit)));
    assert!(!committed.cancel("too late"));
    committed.unlinked("gone");
    assert_eq!(committed.take_effect(), Some(Effect::Connect));
    committed.linked();
    assert_eq!(committed.take_effect(), Some(Effect::Say(Word::Commit)));
    let mut forgotten = committed.clone();
    forgotten.unknown();
    assert_eq!(forgotten.take_effect(), Some(Effect::End(Outcome::Lost)));
    committed.aborted("the operator said so");
    assert_eq!(committed.take_effect(), Some(Effect::Resume));
}
