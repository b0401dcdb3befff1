//! Nodes that know something older than what they are asked for: memory does not speak against who was told of it by others.

use super::*;
use crate::cache::types::Version;

/// The chain of 15 is 7, 3, 1, 0 and the standby 2.
const LEAF: u32 = 15;
const ESTALE: i32 = 116;
/// Others are asked so soon that an absence is remembered for longer.
const HASTY: Plan = Plan { detect_us: 300 * MS, ..PLAN };

fn version(outcome: &Outcome) -> Version {
    match outcome {
        Outcome::Entry(inode) => inode.attr.version(),
        other => panic!("{other:?}"),
    }
}

fn is_absent(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Absent { .. })
}

/// Asks on node `at`, and gives the answer that comes within 100 ms.
fn soon(wire: &mut Wire, at: u32, object: Object) -> Outcome {
    let waiter = wire.ask(at, object);
    wire.run(100 * MS);
    wire.answers.remove(&waiter).expect("an answer").1
}

fn chunk_of(path: &[u8], version: Version) -> Object {
    Object::Chunk { path: path.into(), version, index: 0 }
}

/// The leaf was told of what is at `path` by others than its parent and the parent's parent. It asks them again now, and they
/// remember what they were told before the `change`.
fn behind_its_parents(path: &str, was: impl Fn(&Outcome) -> bool, change: impl FnOnce(&mut Wire)) -> (Wire, Outcome) {
    let mut wire = Wire::new(HASTY);
    wire.is_early = true;
    let before = wire.must(7, path).1;
    assert!(was(&before), "{before:?}");
    let is_behind = |node| [7, 3].contains(&node);
    wire.is_cut = Box::new(move |from, to| is_behind(from) || is_behind(to));
    change(&mut wire);
    wire.sweep(0, path);
    let told = wire.must(LEAF, path).1;
    assert_eq!(wire.node(LEAF).asks().next().unwrap().now, Asked::Node(NodeId(1)));
    wire.is_cut = Box::new(|_, _| false);
    wire.run(500 * MS);
    for (node, above) in [(LEAF, 7), (7, 3), (3, 1)] {
        assert_eq!(wire.node(node).asks().next().unwrap().now, Asked::Node(NodeId(above)));
    }
    for node in [7, 3] {
        let waiter = wire.look_up(node, path);
        assert!(was(&wire.answers[&waiter].1), "it still remembers");
    }
    (wire, told)
}

#[test]
fn absence_that_a_parent_remembers_makes_no_newer_file_stale() {
    let (mut wire, told) = behind_its_parents("late", is_absent, |wire| wire.is_early = false);
    let read = soon(&mut wire, LEAF, chunk_of(b"late", version(&told)));
    assert!(matches!(read, Outcome::Chunk(_)), "{read:?}");
    assert!(is_entry(&wire.must(7, "late").1), "it knows better now");
}

#[test]
fn absence_that_a_root_remembers_makes_no_newer_file_stale() {
    let mut wire = Wire::new(HASTY);
    wire.is_early = true;
    wire.kill(0);
    assert!(is_entry(&wire.must(LEAF, "a").1));
    assert_eq!(wire.node(1).asks().next().unwrap().now, Asked::Backend);
    // The root is there again, but nobody knows yet. Its own client looks for the file before it is made.
    wire.is_cut = Box::new(|from, to| from == 0 || to == 0);
    wire.start(0);
    assert!(is_absent(&wire.must(0, "late").1));
    wire.is_early = false;
    let told = version(&wire.must(LEAF, "late").1);
    wire.is_cut = Box::new(|_, _| false);
    wire.run(1200 * MS);
    assert_eq!(wire.node(1).asks().next().unwrap().now, Asked::Node(NodeId(0)));
    let waiter = wire.look_up(0, "late");
    assert!(is_absent(&wire.answers[&waiter].1), "the root still remembers");
    let read = soon(&mut wire, LEAF, chunk_of(b"late", told));
    assert!(matches!(read, Outcome::Chunk(_)), "{read:?}");
}

#[test]
fn a_directory_that_a_parent_knows_as_a_file_is_listed() {
    let (mut wire, told) = behind_its_parents("turn-long", is_file, |wire| wire.is_turned = true);
    assert!(!is_file(&told));
    let listed = soon(&mut wire, LEAF, Object::List(b"turn-long"[..].into()));
    assert!(matches!(&listed, Outcome::Listing { listing, .. } if listing.len() == 300), "{listed:?}");
}

fn is_file(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Entry(inode) if !inode.attr.is_dir())
}

#[test]
fn what_is_gone_is_stale_after_one_more_look_at_the_backend() {
    let mut wire = Wire::new(PLAN);
    let told = version(&wire.must(LEAF, "late").1);
    wire.is_early = true;
    wire.sweep(0, "late");
    wire.run(S);
    assert!(is_absent(&wire.must(0, "late").1));
    let begin = wire.now;
    let read = soon(&mut wire, LEAF, chunk_of(b"late", told));
    assert!(matches!(read, Outcome::Failed { errno: ESTALE }), "{read:?}");
    let asked = wire.asked.iter().filter(|(at, ..)| *at >= begin).count();
    assert_eq!(asked, 1, "the root remembers absence, and looks once more");
    // Those on the way have learnt it.
    let read = soon(&mut wire, LEAF, chunk_of(b"late", told));
    assert!(matches!(read, Outcome::Failed { errno: ESTALE }), "{read:?}");
}
