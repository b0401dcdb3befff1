//! The job's secret: that all works with it, and that nobody without it gets a byte.

use super::*;
use crate::core::wire::Header;

const SECRET: &[u8] = b"the secret of this job";
const OTHER: &[u8] = b"the secret of another one";

const AUTH: Plan = Plan { secret: Some(SECRET), ..PLAN };

/// Frames that `from` sent to `to` since `begin`.
fn sent(wire: &Wire, from: u32, to: u32, begin: u64) -> usize {
    wire.sent.iter().filter(|sent| (sent.from, sent.to) == (from, to) && sent.at >= begin).count()
}

fn refused(wire: &mut Wire, at: u32) -> (u64, u64) {
    let counters = wire.node(at).counters();
    (counters.auth_refused, counters.auth_replayed)
}

#[test]
fn nodes_of_one_job_work_as_without() {
    let mut wire = Wire::new(AUTH);
    assert!(is_entry(&wire.must(15, "file").1));
    let begin = wire.now;
    assert!(is_entry(&wire.must(15, "other").1));
    let frames = |wire: &Wire| wire.sent.iter().filter(|sent| sent.at >= begin && sent.header.session == 0).count();
    assert_eq!(frames(&wire), 0, "every frame has its session");
    // Who sends is told apart from who is sent to, and one session from another.
    let numbers: std::collections::BTreeSet<_> = wire.sent.iter().map(|sent| sent.header.session).collect();
    assert!(numbers.len() >= 15, "{}", numbers.len());
    (0..16).for_each(|node| wire.mount(node));
    let swept = wire.sweep(9, "");
    wire.run(5 * S);
    assert_eq!(wire.swept[&swept], Swept { reached: 16, missing: 0 });
    assert_eq!(wire.node(0).readiness().ready, 16);
    assert!((0..16).all(|node| refused(&mut wire, node) == (0, 0)));
}

#[test]
fn a_node_that_was_started_again_is_greeted_anew() {
    let mut wire = Wire::new(AUTH);
    wire.must(15, "a");
    wire.kill(7);
    wire.start(7);
    let (waited, outcome) = wire.must(15, "b");
    assert!(is_entry(&outcome) && waited < DETECT_US, "{waited} us");
    // A dead one is replaced, and a sweep finds its way to all.
    wire.kill(3);
    let (waited, outcome) = wire.must(7, "c");
    assert!(is_entry(&outcome) && waited < DETECT_US + DETECT_US / 2, "{waited} us");
    wire.start(3);
    wire.kill(0);
    wire.start(0);
    wire.run(20 * S);
    let swept = wire.sweep(15, "");
    wire.run(10 * S);
    assert_eq!(wire.swept[&swept], Swept { reached: 16, missing: 0 });
    assert_eq!(wire.node(15).asks().next().unwrap().now, Asked::Node(NodeId(7)));
}

#[test]
fn both_may_say_hello_at_once() {
    let mut wire = Wire::empty(Plan { nodes: 2, ..AUTH });
    (0..2).for_each(|node| wire.start(node));
    // The root has something to say to its child, who has something to ask.
    wire.sweep(0, "");
    let asked = wire.look_up(1, "file");
    wire.run(S);
    assert!(is_entry(&wire.answers[&asked].1));
    assert_eq!(wire.hellos.len(), 2);
    assert_eq!((refused(&mut wire, 0), refused(&mut wire, 1)), ((0, 0), (0, 0)));
}

#[test]
fn another_secret_or_none_gets_no_answer() {
    for secret in [Some(OTHER), None] {
        let mut wire = Wire::empty(AUTH);
        (0..16).filter(|node| *node != 7).for_each(|node| wire.start(node));
        wire.run(2 * S);
        wire.start_with(7, secret);
        let asked = wire.look_up(7, "file");
        wire.run(60 * S);
        assert!(matches!(wire.answers[&asked].1, Outcome::Failed { .. }), "{:?}", wire.answers[&asked]);
        // Its parent and all above it: not one frame. Its children greet it, and ask others.
        for above in [3, 1, 0] {
            assert_eq!(sent(&wire, above, 7, 0), 0, "from node {above}");
            assert!(refused(&mut wire, above).0 > 0);
        }
        assert!(is_entry(&wire.must(15, "file").1));
        assert!(wire.asked.iter().all(|(_, node, _)| *node == 0), "{:?}", wire.asked);
    }
}

#[test]
fn whoever_asks_without_a_session_gets_no_byte() {
    let mut wire = Wire::new(AUTH);
    wire.must(15, "mid");
    let child =
        wire.sent.iter().find(|sent| sent.from == 3 && sent.to == 1 && sent.is_probe).expect("it probed").header;
    let begin = wire.now;
    wire.run(1);
    assert_ne!(child.session, 0);
    let guesses = [0, 1, child.session ^ 1, child.session.rotate_left(1)];
    for session in guesses {
        let header = Header { id: 99, session, ..child };
        let messages = [
            Message::Probe { begun: 1 },
            Message::Attr { path: b"mid", bytes: 0 },
            Message::List { path: b"", stamp: 0, from: 0, purpose: Purpose::Reading },
            Message::Statfs,
            Message::Sweep { tree: 0, path: b"", down: true },
            Message::Hello { nonce: &[1; 16], mac: &[2; 32] },
            Message::Welcome { nonce: &[1; 16], mac: &[2; 32] },
        ];
        for message in messages {
            wire.hear(1, &message.encode(&header));
        }
    }
    // Nor does the session of another node, nor of another life.
    let header = Header { from: NodeId(4), ..child };
    wire.hear(1, &Message::Statfs.encode(&header));
    wire.hear(1, &Message::Statfs.encode(&Header { incarnation: child.incarnation + 1, ..child }));
    assert_eq!(sent(&wire, 1, 3, begin + 1) + sent(&wire, 1, 4, begin + 1), 0);
    // All but the welcomes, which answer nothing.
    assert_eq!(refused(&mut wire, 1).0, guesses.len() as u64 * 6 + 2);
    wire.hear(1, &Message::Probe { begun: 1 }.encode(&child));
    assert_eq!(sent(&wire, 1, 3, begin + 1), 1, "with the right one it is answered");
}

#[test]
fn a_replayed_hello_gets_no_answer_and_harms_nobody() {
    let mut wire = Wire::new(AUTH);
    wire.must(15, "a");
    let (begin, hellos) = (wire.now + 1, wire.hellos.clone());
    wire.run(1);
    for (to, hello) in &hellos {
        wire.hear(*to, hello);
    }
    assert_eq!(wire.sent.iter().filter(|sent| sent.at >= begin).count(), 0);
    let replayed: u64 = (0..16).map(|node| refused(&mut wire, node).1).sum();
    assert_eq!(replayed, hellos.len() as u64);
    // Whoever has begun another life has not heard it: its welcome goes to the address of the book, and ends there.
    wire.kill(1);
    wire.start(1);
    wire.run(5 * S);
    let begin = wire.now + 1;
    wire.run(1);
    for (_, hello) in hellos.iter().filter(|(to, _)| *to == 1) {
        let (header, _) = wire::decode(hello).unwrap();
        wire.hear(1, hello);
        let ask = Message::Attr { path: b"a", bytes: 0 }.encode(&Header { session: 0, ..header });
        wire.hear(1, &ask);
    }
    let welcomes = wire.sent.iter().filter(|sent| sent.at >= begin && sent.from == 1).count();
    assert!(welcomes <= hellos.len());
    wire.run(S);
    assert!(is_entry(&wire.must(15, "b").1));
}
