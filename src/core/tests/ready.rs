//! Who is ready: that a root comes to know of all, whatever gets lost, and that nobody says more than needed.

use super::*;
use crate::core::wire::{Header, SPANS_MAX, Span};

/// Who told whom since `begin`, and how many answers there were.
fn told(wire: &Wire, begin: u64) -> (Vec<(u32, u32)>, usize) {
    let since = || wire.sent.iter().filter(move |sent| sent.at >= begin);
    let told = since().filter(|sent| sent.is_ready).map(|sent| (sent.from, sent.to)).collect();
    (told, since().filter(|sent| sent.is_noted).count())
}

fn missing(wire: &mut Wire, at: u32) -> Vec<u32> {
    let Readiness { nodes, ready, missing } = wire.node(at).readiness();
    assert_eq!(nodes - ready, missing.len() as u32);
    missing.into_iter().map(|node| node.0).collect()
}

#[test]
fn the_root_knows_of_all_and_each_node_of_those_below_it() {
    let mut wire = Wire::new(PLAN);
    let begin = wire.now;
    assert_eq!(missing(&mut wire, 0), (0..16).collect::<Vec<_>>());
    (0..16).rev().filter(|node| *node != 11).for_each(|node| wire.mount(node));
    wire.run(S);
    assert_eq!(missing(&mut wire, 0), [11]);
    assert_eq!(missing(&mut wire, 2), [11], "below node 2 are 5, 6, 11, 12, 13, 14");
    assert_eq!(wire.node(2).readiness().nodes, 7);
    assert_eq!(missing(&mut wire, 1), [0; 0]);
    wire.mount(11);
    wire.run(S);
    assert_eq!(missing(&mut wire, 0), [0; 0]);
    assert_eq!(wire.node(0).readiness().ready, 16);
    let (messages, answers) = told(&wire, begin);
    assert!(messages.len() == answers && messages.len() < 3 * 16, "{messages:?}");
    // When all is said nobody says anything more.
    let end = wire.now;
    wire.run(60 * S);
    assert_eq!(told(&wire, end), (vec![], 0));
}

#[test]
fn groups_are_trees_of_their_own_and_stripes_are_not() {
    let mut wire = Wire::new(Plan { trees: 2, ..PLAN });
    (0..16).filter(|node| *node != 13).for_each(|node| wire.mount(node));
    wire.run(S);
    assert_eq!((wire.node(0).readiness().nodes, missing(&mut wire, 0)), (8, vec![]));
    assert_eq!((wire.node(8).readiness().nodes, missing(&mut wire, 8)), (8, vec![13]));
    let mut wire = Wire::new(Plan { stripes: 4, ..PLAN });
    (0..16).filter(|node| *node != 13).for_each(|node| wire.mount(node));
    wire.run(S);
    assert_eq!((wire.node(0).readiness().nodes, missing(&mut wire, 0)), (16, vec![13]));
}

#[test]
fn what_is_lost_is_said_again() {
    let mut wire = Wire::new(PLAN);
    wire.loses_readiness = true;
    (0..16).for_each(|node| wire.mount(node));
    wire.run(S);
    assert_eq!(missing(&mut wire, 0), (1..16).collect::<Vec<_>>());
    wire.loses_readiness = false;
    // Each level says it again on its own.
    wire.run(9 * S);
    assert_eq!(missing(&mut wire, 0), [0; 0]);
}

#[test]
fn another_life_is_told_anew_and_a_dead_parent_is_named() {
    let mut wire = Wire::new(PLAN);
    (0..16).filter(|node| *node != 1).for_each(|node| wire.mount(node));
    wire.kill(1);
    for node in [3, 4] {
        wire.look_up(node, "file");
    }
    wire.run(20 * S);
    assert_eq!(missing(&mut wire, 0), [1], "its children tell the root");
    wire.kill(0);
    wire.run(S);
    wire.start(0);
    wire.mount(0);
    assert_eq!(missing(&mut wire, 0), (1..16).collect::<Vec<_>>());
    // By the next heartbeat everybody knows that it lives anew.
    wire.run(20 * S);
    assert_eq!(missing(&mut wire, 0), [1]);
    wire.start(1);
    wire.mount(1);
    wire.run(20 * S);
    assert_eq!((missing(&mut wire, 0), missing(&mut wire, 1)), (vec![], vec![]));
}

#[test]
fn who_stands_in_for_the_root_knows_of_all() {
    let mut wire = Wire::new(PLAN);
    (0..16).for_each(|node| wire.mount(node));
    wire.run(S);
    wire.kill(0);
    (1..16).for_each(|node| _ = wire.look_up(node, &format!("file{node}")));
    wire.run(20 * S);
    assert_eq!((wire.node(1).readiness().nodes, missing(&mut wire, 1)), (16, vec![0]));
}

#[test]
fn what_does_not_fit_into_one_message_comes_with_the_next() {
    let nodes = 6 * SPANS_MAX as u32;
    let mut wire = Wire::empty(Plan { nodes, ..PLAN });
    (0..2).for_each(|node| wire.start(node));
    wire.run(S);
    // Every second node.
    let spans: Vec<_> = (0..nodes / 2).map(|at| Span::new(2 * at, 2 * at + 1)).collect();
    for (id, spans) in spans.chunks(SPANS_MAX).enumerate() {
        let header = Header { from: NodeId(8), job: 7, incarnation: 1, id: id as u64, session: 0 };
        wire.hear(1, &Message::Ready { spans }.encode(&header));
    }
    let begin = wire.now;
    wire.run(S);
    assert_eq!(wire.node(0).readiness().ready, nodes / 2);
    // One before all was known, and three with all; node 1 was told three times itself.
    let (messages, answers) = told(&wire, begin);
    assert_eq!((messages.len(), answers), (4, 4 + 3));
}

/// In a chain of 0, 1, 2, 3 node 1 comes 3 s late. Its child asks the root after 2 s, and has served its own child from the
/// start: that one asks nobody else, and what its parent has it gets at once.
#[test]
fn a_late_parent_holds_up_nobody_below_its_child() {
    let mut wire = Wire::empty(Plan { nodes: 4, fanout: Some(1), ..PLAN });
    let begin = wire.now;
    for node in [0, 2, 3] {
        wire.start(node);
    }
    let first = wire.look_up(3, "file");
    wire.run(100 * MS);
    let now = Micros(wire.now);
    assert_eq!(wire.node(3).parent_state(now), ParentState::Ready, "its parent serves, whatever that one waits for");
    assert_eq!(wire.node(2).parent_state(now), ParentState::Unreachable);
    wire.run(begin + 3 * S - wire.now);
    let (at, outcome) = wire.answers.remove(&first).expect("an answer before the parent is there");
    assert!(is_entry(&outcome) && (at - begin).abs_diff(limits::BYPASS_US) < 50 * MS, "after {} us", at - begin);
    // From memory.
    let (waited, outcome) = wire.must(3, "file");
    assert!(is_entry(&outcome) && waited < MS, "{waited} us");
    let (own, below) = (wire.node(2).counters(), wire.node(3).counters());
    // At 10, 30, 70, 150, 310, 630 and 1270 ms and 2270 ms.
    assert_eq!((own.probes_unanswered, own.probes_not_serving), (8, 0));
    assert_eq!((below.probes_unanswered, below.failovers, below.confirmed), (0, 0, 1));
    wire.start(1);
    wire.run(2 * S);
    assert_eq!(wire.node(2).asks().next().unwrap().now, Asked::Node(NodeId(1)));
    assert_eq!(wire.node(3).counters().failovers, 0);
}
