//! Whom a node asks when others die, and that nobody else is asked before that.

use super::*;

/// From the death of a node to the first answer by another one: a quarter of the time for the first heartbeat, all of it for
/// the silence after it, and some for the way.
const DETECTED_US: u64 = DETECT_US + DETECT_US / 4 + 50 * MS;

/// Nodes of a binary tree of 16: the chain of 15 is 7, 3, 1, 0 and the standby 2.
const LEAF: u32 = 15;

#[test]
fn a_dead_parent_is_replaced_by_its_parent_and_used_again() {
    let mut wire = Wire::new(PLAN);
    wire.kill(7);
    let (waited, outcome) = wire.must(LEAF, "a");
    assert!(is_entry(&outcome) && waited > DETECT_US && waited < DETECTED_US, "{waited} us: {outcome:?}");
    let asks = wire.node(LEAF).asks().next().unwrap();
    assert_eq!((asks.parent, asks.now), (Some(NodeId(7)), Asked::Node(NodeId(3))));
    // What is asked from now on does not wait, and the old parent is looked for all the while.
    assert!(wire.must(LEAF, "b").0 < 10 * MS);
    wire.run(10 * S);
    wire.start(7);
    wire.run(2 * S);
    let asks = wire.node(LEAF).asks().next().unwrap();
    assert_eq!(asks.now, Asked::Node(NodeId(7)));
    let counters = wire.node(LEAF).counters();
    assert_eq!((counters.failovers, counters.suspicions, counters.asked_again, counters.timeouts), (1, 1, 1, 0));
    let begin = wire.now;
    assert!(wire.must(LEAF, "c").0 < 10 * MS);
    let to: Vec<_> =
        wire.sent.iter().filter(|s| s.from == LEAF && s.is_request && s.at >= begin).map(|s| s.to).collect();
    assert_eq!(to, [7]);
}

#[test]
fn two_levels_that_die_at_once_cost_no_second_wait() {
    let mut wire = Wire::new(PLAN);
    wire.kill(7);
    wire.kill(3);
    let (waited, outcome) = wire.must(LEAF, "a");
    assert!(is_entry(&outcome) && waited < DETECTED_US, "{waited} us: {outcome:?}");
    assert_eq!(wire.node(LEAF).asks().next().unwrap().now, Asked::Node(NodeId(1)));
    // Even where both had been used before, so that they were known to serve.
    let mut wire = Wire::new(PLAN);
    wire.kill(7);
    wire.must(LEAF, "a");
    wire.start(7);
    wire.run(2 * S);
    wire.kill(7);
    wire.kill(3);
    let (waited, _) = wire.must(LEAF, "b");
    assert!(waited < DETECTED_US, "{waited} us");
}

#[test]
fn who_knows_an_older_version_than_it_is_asked_for_does_not_call_the_newer_one_stale() {
    let mut wire = Wire::new(PLAN);
    let version = |outcome: &Outcome| match outcome {
        Outcome::Entry(inode) => inode.attr.version(),
        other => panic!("{other:?}"),
    };
    let old = version(&wire.must(2, "a").1);
    // The file is changed, and an invalidation does not reach the standby.
    wire.writes = 1;
    wire.is_cut = Box::new(|from, to| from == 2 || to == 2);
    wire.sweep(0, "a");
    wire.run(12 * S);
    let new = version(&wire.must(LEAF, "a").1);
    assert_ne!(old, new);
    wire.is_cut = Box::new(|_, _| false);
    [0, 1, 3, 7].into_iter().for_each(|node| wire.kill(node));
    let mut read = |version| {
        let waiter = wire.ask(LEAF, Object::Chunk { path: b"a"[..].into(), version, index: 0 });
        wire.run(6 * S);
        wire.answers[&waiter].1.clone()
    };
    let outcome = read(new);
    assert!(matches!(outcome, Outcome::Chunk(_)), "{outcome:?}");
    let outcome = read(old);
    assert!(matches!(outcome, Outcome::Failed { errno: 116 }), "{outcome:?}");
    assert_eq!(version(&wire.must(2, "a").1), new);
}

#[test]
fn who_is_told_of_an_invalidation_asks_nobody_who_may_not_have_heard_of_it() {
    let mut wire = Wire::new(PLAN);
    let told = |outcome: &Outcome| match outcome {
        Outcome::Entry(inode) => inode.attr.version(),
        other => panic!("{other:?}"),
    };
    // The root cannot be reached, so node 2 asks the standby.
    wire.is_cut = Box::new(|from, to| from == 0 || to == 0);
    let old = told(&wire.must(2, "a").1);
    assert_eq!(wire.node(2).asks().next().unwrap().now, Asked::Node(NodeId(1)));
    // It can be again, by node 2 first, and invalidates the file before anybody has noticed.
    wire.writes = 1;
    wire.is_cut = Box::new(|from, to| from + to == 1);
    wire.sweep(0, "a");
    wire.run(MS);
    assert!(wire.expired.contains(&(2, "a".to_owned())) && !wire.expired.contains(&(1, "a".to_owned())));
    assert_ne!(told(&wire.must(2, "a").1), old);
}

#[test]
fn a_backend_that_hangs_makes_nobody_look_elsewhere() {
    let mut wire = Wire::new(PLAN);
    wire.hangs_until = wire.now + 20 * S;
    let (waited, outcome) = wire.must(LEAF, "a");
    assert!(is_entry(&outcome) && waited >= 20 * S, "{waited} us: {outcome:?}");
    let counters = wire.counters();
    assert!(counters.iter().all(|c| c.failovers == 0 && c.suspicions == 0 && c.asked_again == 0), "{counters:?}");
    assert_eq!(wire.readers(0), [0]);
}

#[test]
fn a_dead_root_leads_to_one_new_reader_until_it_returns() {
    let mut wire = Wire::new(PLAN);
    wire.kill(0);
    let begin = wire.now;
    let asked: Vec<_> = (1..16).map(|node| wire.look_up(node, &format!("a{node}"))).collect();
    wire.run(4 * S);
    for waiter in asked {
        let (at, outcome) = &wire.answers[&waiter];
        assert!(is_entry(outcome) && at - begin < DETECTED_US + DETECT_US, "{} us: {outcome:?}", at - begin);
    }
    assert_eq!(wire.readers(begin), [1]);
    assert_eq!(wire.node(1).asks().next().unwrap().now, Asked::Backend);
    assert_eq!((wire.node(1).substitutes(), wire.node(2).substitutes()), (1, 0));
    assert_eq!(wire.node(1).counters().rate_limited, 0, "a standby is not slowed down");
    // The root returns: it is asked again, and nobody else asks the backend.
    wire.start(0);
    wire.run(2 * S);
    let begin = wire.now;
    for node in 1..16 {
        wire.must(node, &format!("b{node}"));
    }
    assert_eq!(wire.readers(begin), [0]);
    assert_eq!(wire.node(1).substitutes(), 0);
}

#[test]
fn standbys_follow_each_other_in_book_order() {
    let mut wire = Wire::new(PLAN);
    for (dead, reader) in [(0, 1), (1, 2), (2, 3)] {
        wire.kill(dead);
        let begin = wire.now;
        for node in [3, 8, LEAF] {
            let (_, outcome) = wire.must(node, &format!("a{dead}-{node}"));
            assert!(is_entry(&outcome));
        }
        wire.run(5 * S);
        let begin = begin + 8 * S;
        wire.run(begin.saturating_sub(wire.now) + S);
        for node in [3, 8, LEAF] {
            wire.must(node, &format!("b{dead}-{node}"));
        }
        assert_eq!(wire.readers(begin), [reader], "after the death of {dead}");
    }
}

#[test]
fn a_parent_that_starts_again_is_asked_again_at_once() {
    let mut wire = Wire::new(PLAN);
    wire.hangs_until = wire.now + 5 * S;
    let waiter = wire.look_up(LEAF, "a");
    wire.run(100 * MS);
    wire.kill(7);
    wire.start(7);
    let begin = wire.now;
    // Its first frame is the probe of its own parent; it is its children's probes that it answers.
    wire.run(600 * MS);
    let again = wire.sent.iter().find(|s| s.from == LEAF && s.is_request && s.at > begin).expect("it is asked again");
    assert!(again.to == 7 && again.at - begin < DETECT_US / 4 + 50 * MS, "{again:?} after {begin}");
    wire.run(5 * S);
    assert!(is_entry(&wire.answers[&waiter].1));
    let counters = wire.node(LEAF).counters();
    assert_eq!((counters.asked_again, counters.failovers, counters.retries), (1, 0, 0));
}

#[test]
fn an_answer_to_what_was_asked_before_is_none_to_what_was_asked_again() {
    let mut wire = Wire::new(PLAN);
    wire.hangs_until = wire.now + 5 * S;
    let waiter = wire.look_up(LEAF, "no-such-name");
    let asked = wire.sent.iter().find(|s| s.from == LEAF && s.is_request).unwrap().header;
    wire.run(100 * MS);
    wire.start(7);
    wire.run(600 * MS);
    let again = wire.sent.iter().rfind(|s| s.from == LEAF && s.is_request).unwrap().header;
    assert_ne!(again.id, asked.id);
    // It was on its way while the parent started again: what time is left of it does not count from the second question.
    let late = Message::Absent { remaining_us: ENOENT_US };
    let from = wire.sent.iter().rfind(|s| s.from == 7).unwrap().header;
    let now = Micros(wire.now);
    wire.node(LEAF).frame(now, &late.encode(&wire::Header { id: asked.id, ..from }));
    wire.run(MS);
    assert!(!wire.answers.contains_key(&waiter));
    wire.run(6 * S);
    assert!(matches!(wire.answers[&waiter].1, Outcome::Absent { .. }));
}

#[test]
fn a_stopped_parent_is_replaced_and_its_late_answers_are_no_news() {
    let mut wire = Wire::new(PLAN);
    wire.stop(7);
    let (waited, outcome) = wire.must(LEAF, "no-such-name");
    assert!(waited < DETECTED_US, "{waited} us");
    let begin = wire.now;
    // The time that is left counts from the question to the new node.
    let Outcome::Absent { expires } = outcome else { panic!("{outcome:?}") };
    assert!(expires.0 > begin && expires.0 <= begin + ENOENT_US, "{expires:?} at {begin}");
    wire.run(8 * S);
    let waiter = wire.look_up(LEAF, "a");
    wire.run(10 * MS);
    assert!(wire.answers.contains_key(&waiter));
    let dropped = wire.node(LEAF).counters().dropped;
    wire.go_on(7);
    wire.run(2 * S);
    assert!(wire.node(LEAF).counters().dropped > dropped, "the late answer to the first question");
    assert_eq!(wire.node(LEAF).asks().next().unwrap().now, Asked::Node(NodeId(7)));
    assert!(wire.must(LEAF, "b").0 < 10 * MS);
    let counters = wire.counters();
    assert!(counters.iter().all(|c| c.timeouts == 0));
}

#[test]
fn a_node_that_was_stopped_itself_gives_up_nobody() {
    let mut wire = Wire::new(PLAN);
    wire.hangs_until = wire.now + 30 * S;
    let waiter = wire.look_up(LEAF, "a");
    wire.run(DETECT_US / 4 + 20);
    let last = wire.sent.last().unwrap();
    assert!(last.is_probe && last.from == LEAF, "a heartbeat is under way: {last:?}");
    wire.stop(LEAF);
    wire.run(20 * S);
    // Its timers run before it sees what arrived, and again before it sees all of it.
    for later in [0, 50 * MS, 100 * MS] {
        let now = Micros(wire.now + later);
        wire.node(LEAF).timer(now);
    }
    wire.go_on(LEAF);
    wire.run(15 * S);
    assert!(is_entry(&wire.answers[&waiter].1));
    let counters = wire.node(LEAF).counters();
    assert_eq!((counters.failovers, counters.asked_again, counters.backend_attr), (0, 0, 0), "{counters:?}");
}

#[test]
fn a_node_that_is_cut_off_asks_the_backend_slowly() {
    let mut wire = Wire::new(PLAN);
    wire.must(LEAF, "a");
    wire.is_cut = Box::new(|from, to| from == LEAF || to == LEAF);
    let begin = wire.now;
    let asked: Vec<_> = (0..400).map(|n| wire.look_up(LEAF, &format!("a{n}"))).collect();
    wire.run(3 * S);
    let at_once = wire.asked.iter().filter(|(at, node, _)| *at > begin && *node == LEAF).count() as u64;
    assert!((limits::ALONE_BURST..limits::ALONE_BURST + 2 * limits::ALONE_PER_S).contains(&at_once), "{at_once}");
    wire.run(5 * S);
    let later = wire.asked.iter().filter(|(at, node, _)| *at > begin && *node == LEAF).count() as u64;
    assert!((later - at_once).abs_diff(5 * limits::ALONE_PER_S) <= 1, "{at_once} and then {later}");
    assert_eq!(wire.node(LEAF).asks().next().unwrap().now, Asked::Backend);
    wire.is_cut = Box::new(|_, _| false);
    wire.run(2 * S);
    assert_eq!(wire.node(LEAF).asks().next().unwrap().now, Asked::Node(NodeId(7)));
    assert!(asked.iter().all(|waiter| is_entry(&wire.answers[waiter].1)));
    assert!(wire.node(LEAF).counters().rate_limited > 0);
}

#[test]
fn a_root_that_was_never_ready_is_waited_for() {
    let mut wire = Wire::empty(PLAN);
    (1..16).for_each(|node| wire.start(node));
    let asked: Vec<_> = (1..16).map(|node| wire.look_up(node, &format!("a{node}"))).collect();
    wire.run(30 * S);
    assert!(wire.answers.is_empty() && wire.asked.is_empty(), "nobody takes the root's place");
    wire.start(0);
    wire.run(2 * S);
    assert!(asked.iter().all(|waiter| is_entry(&wire.answers[waiter].1)));
    assert_eq!(wire.readers(0), [0]);
}

#[test]
fn a_parent_that_was_never_ready_is_bypassed_after_two_seconds() {
    let mut wire = Wire::empty(PLAN);
    (0..16).filter(|node| *node != 7).for_each(|node| wire.start(node));
    let (waited, outcome) = wire.must(LEAF, "a");
    assert!(is_entry(&outcome) && waited.abs_diff(limits::BYPASS_US) < 50 * MS, "{waited} us");
    assert_eq!(wire.node(LEAF).asks().next().unwrap().now, Asked::Node(NodeId(3)));
    wire.start(7);
    wire.run(2 * S);
    assert_eq!(wire.node(LEAF).asks().next().unwrap().now, Asked::Node(NodeId(7)));
}

#[test]
fn a_standby_that_starts_while_the_root_is_dead_learns_that_there_was_one() {
    let mut wire = Wire::new(PLAN);
    wire.kill(0);
    wire.kill(1);
    wire.run(500 * MS);
    wire.start(1);
    let (waited, outcome) = wire.must(LEAF, "a");
    assert!(is_entry(&outcome) && waited < 15 * S, "{waited} us: {outcome:?}");
    wire.run(10 * S);
    let begin = wire.now;
    for node in 1..16 {
        assert!(wire.must(node, &format!("b{node}")).0 < 10 * MS);
    }
    assert_eq!(wire.readers(begin), [1]);
}

#[test]
fn idle_nodes_send_one_heartbeat_each_five_seconds() {
    let mut wire = Wire::new(PLAN);
    wire.run(10 * S);
    let begin = wire.now;
    wire.run(50 * S);
    for node in 1..16 {
        let probes = wire.sent.iter().filter(|s| s.at > begin && s.from == node && s.is_probe);
        assert_eq!(probes.map(|s| Some(NodeId(s.to)) == wire.topology(node).parent()).collect::<Vec<_>>(), [true; 10]);
    }
    assert!(wire.sent.iter().all(|s| s.at <= begin || s.is_probe || s.to > s.from));
}

#[test]
fn a_busy_parent_that_answers_gets_no_more_heartbeats_than_an_idle_one() {
    let mut wire = Wire::new(PLAN);
    wire.run(10 * S);
    let begin = wire.now;
    for n in 0..500 {
        wire.look_up(LEAF, &format!("a{n}"));
        wire.run(20 * MS);
    }
    let probes = wire.sent.iter().filter(|s| s.at > begin && s.from == LEAF && s.is_probe).count();
    assert!((1..=3).contains(&probes), "{probes} in 10 s");
}

#[test]
fn a_pull_that_never_ends_is_begun_anew_elsewhere_and_gives_its_memory_back() {
    let mut wire = Wire::new(PLAN);
    let (_, found) = wire.must(LEAF, "big");
    let Outcome::Entry(inode) = found else { panic!("{found:?}") };
    let used = wire.node(LEAF).store().stats().used_bytes;
    wire.pulls_hang = Some(LEAF);
    let object = Object::Chunk { path: inode.path.as_ref().into(), version: inode.attr.version(), index: 1 };
    let waiter = wire.ask(LEAF, object);
    wire.run(100 * MS);
    // Its parent has the bytes, and dies while they are read.
    wire.kill(7);
    wire.pulls_hang = None;
    wire.run(DETECTED_US);
    let (_, outcome) = wire.answers.remove(&waiter).expect("another node has the bytes");
    let Outcome::Chunk(chunk) = outcome else { panic!("{outcome:?}") };
    assert_eq!((chunk.len(), chunk.bytes()[5]), (CHUNK_BYTES, 1));
    let both = wire.node(LEAF).store().stats().used_bytes;
    assert_eq!(both - used, 2 * CHUNK_BYTES, "the memory of the first read is not reused while it may be written to");
    wire.run(11 * S);
    // Room is found by the next request for some.
    let object = Object::Chunk { path: inode.path.as_ref().into(), version: inode.attr.version(), index: 2 };
    wire.ask(LEAF, object);
    wire.run(100 * MS);
    assert_eq!(wire.node(LEAF).store().stats().used_bytes - used, 2 * CHUNK_BYTES);
    let counters = wire.node(LEAF).counters();
    assert_eq!((counters.asked_again, counters.retries), (1, 0));
}

#[test]
fn the_next_root_knows_how_often_bytes_changed_silently() {
    let mut wire = Wire::new(Plan { nodes: 3, ..PLAN });
    let version = |outcome: &Outcome| match outcome {
        Outcome::Entry(inode) => inode.attr.version(),
        other => panic!("{other:?}"),
    };
    let read = |wire: &mut Wire, at, version, index| {
        let waiter = wire.ask(at, Object::Chunk { path: b"big"[..].into(), version, index });
        wire.run(4 * S);
        wire.answers.remove(&waiter).unwrap().1
    };
    let first = version(&wire.must(1, "big").1);
    assert!(matches!(read(&mut wire, 1, first, 0), Outcome::Chunk(_)));
    wire.rewrites = 1;
    assert!(matches!(read(&mut wire, 1, first, 1), Outcome::Failed { .. }), "the root sees it");
    let second = version(&wire.must(1, "big").1);
    assert_eq!((first.change, second.change), (0, 1));
    assert!(matches!(read(&mut wire, 1, second, 0), Outcome::Chunk(_)));
    // The root dies, and the file is rewritten again: the new one has read nothing yet, but holds a chunk.
    wire.kill(0);
    wire.run(8 * S);
    let (_, outcome) = wire.must(1, "big");
    assert_eq!(version(&outcome).change, 1, "as it was heard");
    wire.rewrites = 2;
    assert!(matches!(read(&mut wire, 1, second, 1), Outcome::Failed { .. }), "these bytes are not those of chunk 0");
    assert_eq!(version(&wire.must(1, "big").1).change, 2);
}

#[test]
fn a_long_line_is_worked_off_in_steps() {
    let mut wire = Wire::new(PLAN);
    wire.kill(0);
    let asked: Vec<_> = (0..2000).map(|n| wire.look_up(1, &format!("a{n}"))).collect();
    wire.run(4 * S);
    assert!(asked.iter().all(|waiter| is_entry(&wire.answers[waiter].1)));
    let most = wire.questions_max;
    assert!(most > 100 && most <= limits::PUMP_STEPS_MAX, "{most} at once");
}
