//! What a node gives to each of those who ask it; several trees; invalidation around dead nodes.

use super::*;

#[test]
fn a_parent_divides_what_it_can_receive() {
    let mut wire = Wire::new(Plan { nodes: 6, fanout: Some(5), receives: 20, ..PLAN });
    wire.run(10 * S);
    wire.hangs_until = wire.now + S;
    let asked: Vec<_> = (0..30).map(|n| wire.look_up(1, &format!("a{n}"))).collect();
    assert_eq!(wire.node(1).load().at_parent, 4, "five children share twenty");
    wire.run(3 * S);
    assert!(asked.iter().all(|waiter| is_entry(&wire.answers[waiter].1)));
    // Those who are gone leave their share to the others, and nobody gets less than two.
    (2..6).for_each(|node| wire.kill(node));
    wire.run(30 * S);
    wire.hangs_until = wire.now + S;
    (0..40).for_each(|n| _ = wire.look_up(1, &format!("b{n}")));
    assert_eq!(wire.node(1).load().at_parent, 20);
    let mut wire = Wire::new(Plan { nodes: 6, fanout: Some(5), receives: 1, ..PLAN });
    wire.hangs_until = wire.now + S;
    (0..9).for_each(|n| _ = wire.look_up(1, &format!("a{n}")));
    assert_eq!(wire.node(1).load().at_parent, limits::CREDITS_MIN);
}

#[test]
fn requests_that_hang_in_the_backend_keep_no_other_from_being_asked() {
    let mut wire = Wire::new(Plan { nodes: 6, fanout: Some(5), receives: 1, ..PLAN });
    wire.hangs_until = wire.now + 20 * S;
    let slow: Vec<_> = (0..2 * limits::CREDITS_MIN).map(|n| wire.look_up(1, &format!("slow{n}"))).collect();
    wire.run(limits::PENDING_US + 10 * MS);
    assert_eq!(wire.node(1).load().at_parent, slow.len(), "the root works on the first ones");
    wire.run(limits::PENDING_US);
    wire.hangs_until = 0;
    let (waited_us, outcome) = wire.must(1, "quick");
    assert!(is_entry(&outcome) && waited_us <= 10 * MS, "{waited_us} us");
    assert!(slow.iter().all(|waiter| !wire.answers.contains_key(waiter)));
    wire.run(20 * S);
    assert!(slow.iter().all(|waiter| is_entry(&wire.answers[waiter].1)));
}

#[test]
fn what_hangs_is_asked_for_anew_after_an_invalidation_without_waiting_for_the_old_answer() {
    let mut wire = Wire::new(Plan { nodes: 3, fanout: Some(1), ..PLAN });
    wire.hangs_until = wire.now + 10 * S;
    let (answered_at, begin) = (wire.hangs_until, wire.now);
    let waiter = wire.look_up(2, "slow");
    wire.run(100 * MS);
    wire.sweep(0, "");
    wire.run(5 * S);
    let requests = |wire: &Wire, from| {
        wire.sent.iter().filter(|sent| sent.from == from && sent.is_request && sent.at >= begin).count()
    };
    assert_eq!((requests(&wire, 2), requests(&wire, 1)), (2, 2), "asked for anew, once");
    assert!(!wire.answers.contains_key(&waiter));
    wire.run(6 * S);
    let (at, outcome) = &wire.answers[&waiter];
    assert!(is_entry(outcome) && *at < answered_at + 100 * MS, "{at} for {answered_at}");
    assert_eq!((requests(&wire, 2), requests(&wire, 1)), (2, 2), "the first answer is right");
    assert_eq!(wire.asked.iter().filter(|(_, node, path)| (*node, &**path) == (0, "slow")).count(), 2, "by the root");
}

#[test]
fn an_adopted_child_gets_its_share() {
    let mut wire = Wire::new(Plan { receives: 12, ..PLAN });
    // Node 3 asks 1, together with 4; then 7 and 8 too.
    wire.kill(3);
    wire.run(30 * S);
    wire.hangs_until = wire.now + 2 * S;
    (0..30).for_each(|n| _ = wire.look_up(7, &format!("a{n}")));
    assert_eq!(wire.node(7).asks().next().unwrap().now, Asked::Node(NodeId(1)));
    assert_eq!(wire.node(7).load().at_parent, 4, "4, 7 and 8 share twelve");
    wire.run(30 * S);
    let counters = wire.counters();
    assert!(counters.iter().all(|c| c.timeouts == 0));
}

#[test]
fn releases_that_are_lost_pin_no_more_than_the_bound() {
    let mut wire = Wire::new(Plan { nodes: 2, ..PLAN });
    wire.loses_releases = true;
    let mut most = 0;
    for n in 0..300 {
        let (_, found) = wire.must(1, &format!("mid{n}"));
        let Outcome::Entry(inode) = found else { panic!("{found:?}") };
        let (path, version) = (inode.path.as_ref().into(), inode.attr.version());
        wire.ask(1, Object::Chunk { path, version, index: 0 });
        wire.run(2 * MS);
        most = most.max(wire.node(0).load().grants_of_peer);
        assert!(most <= limits::GRANTS_PER_PEER_MAX);
    }
    let counters = wire.node(0).counters();
    assert_eq!((most, wire.answers.len()), (limits::GRANTS_PER_PEER_MAX, 300));
    assert_eq!(counters.grants_taken, 300 - limits::GRANTS_PER_PEER_MAX as u64);
    assert!(wire.answers.values().all(|(_, outcome)| matches!(outcome, Outcome::Chunk(_))), "{counters:?}");
    wire.run(limits::GRANT_LEASE_US + S);
    assert_eq!(wire.node(0).load().grants, 0);
}

#[test]
fn every_path_has_one_root_and_all_roots_have_paths() {
    let plan = Plan { nodes: 8, stripes: 4, ..PLAN };
    let mut wire = Wire::new(plan);
    let mut by_root = BTreeMap::new();
    for n in 0..64 {
        let path = format!("a{n}");
        let begin = wire.now;
        for node in 0..8 {
            assert!(is_entry(&wire.must(node, &path).1));
        }
        let topology = wire.topology(0);
        let root = topology.tree(topology.tree_of(path.as_bytes())).root().0;
        assert_eq!(wire.readers(begin), [root], "{path}");
        *by_root.entry(root).or_insert(0) += 1;
    }
    assert_eq!(wire.asked.len(), 64, "each is asked for once");
    assert!(by_root.keys().eq(&[0, 2, 4, 6]) && by_root.values().all(|paths| *paths > 6), "{by_root:?}");
    // One of the roots dies: its paths have another reader, those of the others keep theirs.
    wire.kill(4);
    wire.run(10 * S);
    let begin = wire.now;
    for n in 0..64 {
        wire.must(1, &format!("b{n}"));
    }
    assert_eq!(wire.readers(begin), [0, 2, 5, 6]);
    assert_eq!(wire.node(5).substitutes(), 1);
}

#[test]
fn nodes_that_were_told_other_trees_do_not_talk() {
    let mut wire = Wire::empty(Plan { nodes: 3, ..PLAN });
    wire.start(0);
    wire.start(1);
    let topology = wire.topology(2);
    wire.start_as(2, topology, 8);
    wire.look_up(2, "a");
    wire.run(5 * S);
    assert!(wire.answers.is_empty() && wire.asked.is_empty());
    assert!(wire.node(0).counters().foreign > 1);
}

#[test]
fn an_invalidation_goes_around_the_dead() {
    for (dead, missing) in [(&[][..], 0), (&[3][..], 1), (&[3, 7][..], 2), (&[0][..], 1), (&[0, 1][..], 2)] {
        let mut wire = Wire::new(PLAN);
        dead.iter().for_each(|node| wire.kill(*node));
        wire.run(20 * S);
        let waiter = wire.sweep(LEAF, "");
        wire.run(10 * S);
        let swept = wire.swept.get(&waiter).copied();
        assert_eq!(swept, Some(Swept { reached: 16 - missing, missing }), "without {dead:?}");
    }
}

const LEAF: u32 = 15;

#[test]
fn an_invalidation_right_after_a_death_reaches_all_the_same() {
    for dead in [0, 7] {
        let mut wire = Wire::new(PLAN);
        wire.kill(dead);
        let waiter = wire.sweep(LEAF, "");
        // Nobody waits for the next heartbeat of idle nodes.
        wire.run(6 * S);
        assert_eq!(wire.swept.get(&waiter).copied(), Some(Swept { reached: 15, missing: 1 }), "without {dead}");
    }
}

#[test]
fn an_invalidation_reaches_other_groups_though_their_roots_are_dead() {
    for (dead, missing) in [(&[][..], 0), (&[5][..], 1), (&[0, 6][..], 2)] {
        let mut wire = Wire::new(Plan { nodes: 15, trees: 3, stripes: 2, ..PLAN });
        dead.iter().for_each(|node| wire.kill(*node));
        wire.run(20 * S);
        let waiter = wire.sweep(12, "");
        wire.run(11 * S);
        let swept = Swept { reached: 15 - missing, missing };
        assert_eq!(wire.swept.get(&waiter).copied(), Some(swept), "without {dead:?}");
    }
}

#[test]
fn an_invalidation_of_several_trees_is_told_as_one() {
    let mut wire = Wire::new(Plan { nodes: 8, stripes: 4, ..PLAN });
    let lookup = |wire: &mut Wire| (0..8).for_each(|node| (0..20).for_each(|n| _ = wire.must(node, &format!("a{n}"))));
    lookup(&mut wire);
    let before = wire.asked.len();
    lookup(&mut wire);
    assert_eq!(wire.asked.len(), before, "all of it is remembered");
    let waiter = wire.sweep(3, "");
    wire.run(S);
    assert_eq!(wire.swept.get(&waiter).copied(), Some(Swept { reached: 8, missing: 0 }));
    for node in 0..8 {
        let mut paths: Vec<_> = wire.expired.iter().filter(|(at, _)| *at == node).map(|(_, path)| path).collect();
        paths.sort();
        assert_eq!(paths.len(), 20, "the kernel of node {node} is told of each path once: {paths:?}");
        paths.dedup();
        assert_eq!(paths.len(), 20);
    }
    lookup(&mut wire);
    assert_eq!(wire.asked.len(), 2 * before, "each is asked for once more, of its own root");
}

#[test]
fn one_request_allocates_its_path_once() {
    let mut wire = Wire::new(Plan { nodes: 2, ..PLAN });
    let path: Arc<[u8]> = b"a"[..].into();
    let before = Arc::strong_count(&path);
    wire.hangs_until = wire.now + S;
    wire.ask(0, Object::Attr(path.clone()));
    assert!(Arc::strong_count(&path) > before + 1, "the request and the question to the backend share it");
}
