//! Complete directories, question by question.

use super::*;
use crate::cache::types::Listing;

/// A chain of three nodes, of which the last one's client knows the target, with these names in it. What begins with "no"
/// is not there; everything else is, listed or not.
fn chain(names: &'static [&'static str]) -> Wire {
    let mut wire = Wire::new(Plan { nodes: 3, fanout: Some(1), ..PLAN });
    wire.listed = Some(names);
    wire.must(2, "");
    wire
}

/// What the backend was asked while `work` was done.
fn asked(wire: &mut Wire, work: impl FnOnce(&mut Wire)) -> Vec<String> {
    let before = wire.asked.len();
    work(wire);
    wire.run(10 * MS);
    wire.asked[before..].iter().map(|(.., path)| path.clone()).collect()
}

fn assert_absent(wire: &mut Wire, at: u32, path: &str, within_us: u64) {
    let (_, outcome) = wire.must(at, path);
    let now = Micros(wire.now);
    let Outcome::Absent { expires } = outcome else { panic!("{path}: {outcome:?}") };
    assert!(expires.remaining_us(now) <= within_us, "{path}: {expires:?} at {now:?}");
}

fn listing(wire: &mut Wire, at: u32) -> Option<Arc<Listing>> {
    let inode = wire.node(at).names.get(b"").expect("it was looked up");
    inode.listing().filter(|timed| timed.absent_until > Micros(0)).map(|timed| timed.listing.clone())
}

#[test]
fn two_misses_are_asked_and_the_listing_answers_the_others_at_every_depth() {
    let mut wire = chain(&["a", "b"]);
    let begin = wire.now;
    let questions = asked(&mut wire, |wire| {
        for n in 0..50 {
            assert_absent(wire, 2, &format!("no{n}"), ENOENT_US);
        }
    });
    assert_eq!(questions, ["no0", "no1", ""]);
    let listed_us = wire.now - begin;
    for at in 0..3 {
        assert_eq!(asked(&mut wire, |wire| assert_absent(wire, at, "no-other", ENOENT_US)), [""; 0]);
    }
    // The time that is left is that of the listing, at every depth: none of them begins it anew.
    wire.run(ENOENT_US / 2);
    for at in 0..3 {
        assert_absent(&mut wire, at, &format!("no-more{at}"), ENOENT_US / 2 + listed_us);
    }
    assert_eq!(wire.counters()[2].listing_serves, 50 - 2 + 2);
}

#[test]
fn a_name_that_is_found_voids_a_listing_that_lacks_it() {
    let mut wire = chain(&["a"]);
    for n in 0..5 {
        assert_absent(&mut wire, 2, &format!("no{n}"), ENOENT_US);
    }
    assert!(is_entry(&wire.must(2, "a").1));
    assert!((0..3).all(|at| listing(&mut wire, at).is_some()));
    // A hidden name says nothing, any other voids it, by whatever way it was found.
    assert!(is_entry(&wire.must(2, ".hidden").1));
    assert!((0..3).all(|at| listing(&mut wire, at).is_some()));
    let (now, object) = (Micros(wire.now), Object::Attr(b"new".as_slice().into()));
    assert!(matches!(wire.node(0).recall(now, &object, Waiter::Nobody), Some(Outcome::Absent { .. })));
    for at in [0, 1, 2] {
        let now = Micros(wire.now);
        wire.node(at).note_found(now, b"new");
        wire.carry_out(at);
        assert!(listing(&mut wire, at).is_none(), "node {at}");
        assert!(wire.node(at).recall(now, &object, Waiter::Nobody).is_none());
        assert_eq!(wire.expired.last(), Some(&(at, String::new())), "its kernel is told");
    }
    assert!(wire.counters().iter().all(|counters| counters.listings_voided == 1));
}

#[test]
fn a_listing_that_is_older_than_a_name_found_meanwhile_tells_nothing() {
    let mut wire = chain(&["a"]);
    assert_absent(&mut wire, 0, "no0", ENOENT_US);
    wire.look_up(0, "no1");
    // That one is answered as ever, the listing is not.
    wire.hangs_until = wire.now + S;
    wire.run(BACKEND_US);
    assert!(wire.asked.last().is_some_and(|(.., path)| path.is_empty()), "{:?}", wire.asked.last());
    wire.hangs_until = 0;
    // The listing is under way, and lacks what is found before it is there.
    assert!(is_entry(&wire.must(0, "new").1));
    wire.run(2 * S);
    assert!(listing(&mut wire, 0).is_none());
}

#[test]
fn a_listing_whose_time_is_over_answers_nobody_who_waits_for_it_to_be_renewed() {
    let mut wire = chain(&["a"]);
    for n in 0..5 {
        assert_absent(&mut wire, 2, &format!("no{n}"), ENOENT_US);
    }
    let ino = wire.node(1).names.get(b"").expect("it was looked up").ino;
    wire.node(1).writer.drop_listing(ino);
    wire.run(2 * ENOENT_US);
    // The node in between reads it again, at a root where it tells nothing of absent names any more.
    wire.ask(1, Object::List(b""[..].into()));
    wire.run(10 * MS);
    let questions = asked(&mut wire, |wire| assert_absent(wire, 2, "no-late", ENOENT_US));
    assert_eq!(questions, ["no-late"]);
    assert_eq!(wire.counters()[2].listings_renewed, 1, "it was not told so: the test shows nothing");
}

#[test]
fn a_directory_that_is_too_large_or_tells_nothing_is_not_asked_again_soon() {
    let mut wire = chain(&["a"]);
    wire.listed = None;
    let questions = asked(&mut wire, |wire| (0..50).for_each(|n| assert_absent(wire, 2, &format!("no{n}"), ENOENT_US)));
    assert_eq!(questions.iter().filter(|path| path.is_empty()).count(), 1);
    assert_eq!(questions.len(), 51);
    assert!((0..3).all(|at| listing(&mut wire, at).is_none()));
}
