//! The end of an absence, question by question.

use super::*;
use crate::core::limits::{ABSENT_TAIL_PARTS, ABSENT_TAIL_US_MAX};

const TAIL_US: u64 =
    if ENOENT_US / ABSENT_TAIL_PARTS < ABSENT_TAIL_US_MAX { ENOENT_US / ABSENT_TAIL_PARTS } else { ABSENT_TAIL_US_MAX };

/// A chain of three nodes.
fn chain() -> Wire {
    Wire::new(Plan { nodes: 3, fanout: Some(1), ..PLAN })
}

/// Until when nothing is at `path`, as a client of node `at` is told.
fn absent(wire: &mut Wire, at: u32, path: &str) -> u64 {
    match wire.must(at, path).1 {
        Outcome::Absent { expires } => expires.0,
        other => panic!("{path}: {other:?}"),
    }
}

/// How often the backend was asked for `path`.
fn looks(wire: &Wire, path: &str) -> usize {
    wire.asked.iter().filter(|(.., asked)| asked == path).count()
}

#[test]
fn the_last_part_of_an_absence_is_for_the_clients_of_a_node_alone() {
    let mut wire = chain();
    let end = absent(&mut wire, 1, "no");
    wire.run(end - wire.now - 2 * TAIL_US);
    let told = absent(&mut wire, 2, "no");
    assert!(told <= end && looks(&wire, "no") == 1, "what is left before that is told");
    let mut wire = chain();
    let end = absent(&mut wire, 1, "no");
    wire.run(end - wire.now - TAIL_US / 2);
    assert_eq!((absent(&mut wire, 1, "no"), looks(&wire, "no")), (end, 1));
    let mut wire = chain();
    let end = absent(&mut wire, 1, "no");
    wire.run(end - wire.now - TAIL_US / 2);
    let told = absent(&mut wire, 2, "no");
    assert_eq!(looks(&wire, "no"), 2);
    // The node in between was told the same, for its own clients as well.
    assert!(told > end + ENOENT_US / 2 && absent(&mut wire, 1, "no") > end + ENOENT_US / 2);
    assert_eq!(looks(&wire, "no"), 2);
}

#[test]
fn a_leaf_ends_a_little_earlier_each_name_at_another_moment() {
    let mut wire = chain();
    let mut early = Vec::new();
    for n in 0..40 {
        let path = format!("no{n}");
        let (leaf, inner, root) =
            (absent(&mut wire, 2, &path), absent(&mut wire, 1, &path), absent(&mut wire, 0, &path));
        assert!(leaf <= inner && inner <= root, "{path}: {leaf} {inner} {root}");
        // What the answers took on their way is not much.
        assert!(inner + 10 * MS > root && leaf + TAIL_US + 10 * MS > inner, "{path}: {leaf} {inner} {root}");
        early.push(inner - leaf);
    }
    early.sort_unstable();
    assert!(early[30] - early[10] > TAIL_US / 10, "{early:?}");
    // Always the same for one name.
    let first = absent(&mut wire, 2, "no0");
    assert_eq!(absent(&mut wire, 2, "no0"), first);
}
