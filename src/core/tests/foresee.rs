//! What a node foresees, question by question.

use super::*;
use crate::cache::names::Inode;
use crate::core::limits::FORESEEN_MAX;

/// A chain of three nodes.
fn chain() -> Wire {
    let mut wire = Wire::new(Plan { nodes: 3, fanout: Some(1), ..PLAN });
    wire.must(2, "");
    wire
}

/// A client of node 2 looks a path up, and its kernel holds what is there.
fn look(wire: &mut Wire, path: &str) -> Arc<Inode> {
    look_at(wire, 2, path)
}

fn look_at(wire: &mut Wire, node: u32, path: &str) -> Arc<Inode> {
    let (_, outcome) = wire.must(node, path);
    wire.run(10 * MS);
    let Outcome::Entry(inode) = outcome else { panic!("{path}: {outcome:?}") };
    assert!(inode.hold());
    inode
}

/// As `look`, and reads the file.
fn read(wire: &mut Wire, path: &str) {
    read_at(wire, 2, path);
}

fn read_at(wire: &mut Wire, node: u32, path: &str) {
    let inode = look_at(wire, node, path);
    let chunk = Object::Chunk { path: Arc::from(&*inode.path), version: inode.attr.version(), index: 0 };
    let waiter = wire.ask(node, chunk);
    wire.run(10 * MS);
    assert!(matches!(wire.answers.remove(&waiter), Some((_, Outcome::Chunk(_)))), "{path}");
}

/// As a program does that looks at sources and reads what was compiled of them.
fn import(wire: &mut Wire, range: std::ops::Range<u32>) {
    for n in range {
        look(wire, &format!("p/m{n}.py"));
        read(wire, &format!("p/c/m{n}.x.pyc"));
    }
}

fn asked(wire: &mut Wire, work: impl FnOnce(&mut Wire)) -> (Vec<String>, u64) {
    let (before, requests) = (wire.asked.len(), wire.counters()[2].to_parent);
    work(wire);
    wire.run(10 * MS);
    let asked = wire.asked[before..].iter().map(|(.., path)| path.clone()).collect();
    (asked, wire.counters()[2].to_parent - requests)
}

#[test]
fn what_followed_before_is_asked_for_with_what_it_follows_and_its_bytes_come_along() {
    let mut wire = chain();
    import(&mut wire, 0..20);
    let (questions, requests) = asked(&mut wire, |wire| _ = look(wire, "q/r/new.py"));
    assert_eq!(questions, ["q/r/new.py", "q/r/c/new.x.pyc", "q/r/c/new.x.pyc"]);
    assert_eq!(requests, 2, "the bytes are no request of their own");
    // All of it is there before the client comes.
    let (questions, requests) = asked(&mut wire, |wire| read(wire, "q/r/c/new.x.pyc"));
    assert_eq!((questions.len(), requests), (0, 0));
    let counters = wire.counters()[2];
    assert!(counters.foreseen > 10 && counters.foreseen_wasted == 0, "{counters:?}");
}

#[test]
fn where_the_backend_is_asked_what_follows_is_asked_for_after_the_answer_and_only_if_there_is_something() {
    let mut wire = chain();
    for n in 0..20 {
        look_at(&mut wire, 0, &format!("p/m{n}.py"));
        read_at(&mut wire, 0, &format!("p/c/m{n}.x.pyc"));
    }
    let before = wire.asked.len();
    let waiter = wire.look_up(0, "q/r/new.py");
    let questions = |wire: &Wire| wire.asked[before..].iter().map(|(.., path)| path.clone()).collect::<Vec<_>>();
    assert_eq!(questions(&wire), ["q/r/new.py"], "nothing else is under way with it");
    wire.run(10 * MS);
    assert!(is_entry(&wire.answers[&waiter].1));
    assert_eq!(questions(&wire), ["q/r/new.py", "q/r/c/new.x.pyc", "q/r/c/new.x.pyc"]);
    let foreseen = wire.counters()[0].foreseen;
    let (_, outcome) = wire.must(0, "nothing.py");
    wire.run(10 * MS);
    assert!(matches!(outcome, Outcome::Absent { .. }), "{outcome:?}");
    assert_eq!((wire.counters()[0].foreseen, wire.asked.len() - before), (foreseen, 4));
}

#[test]
fn a_rule_that_fails_is_dropped_and_learnt_again() {
    let mut wire = chain();
    import(&mut wire, 0..20);
    let before = wire.counters()[2].foreseen;
    for n in 100..200 {
        look(&mut wire, &format!("p/m{n}.py"));
    }
    let foreseen = wire.counters()[2].foreseen - before;
    assert!((2..=FORESEEN_MAX as u64).contains(&foreseen), "{foreseen} in vain");
    import(&mut wire, 300..320);
    assert!(wire.counters()[2].foreseen > before + foreseen + 10);
}

#[test]
fn files_that_are_looked_up_and_not_read_bring_no_bytes() {
    let mut wire = chain();
    for n in 0..40 {
        look(&mut wire, &format!("p/m{n}.so"));
    }
    assert_eq!(wire.counters()[2].ahead, 0);
    for n in 40..80 {
        read(&mut wire, &format!("p/big{n}.so"));
    }
    let (questions, requests) = asked(&mut wire, |wire| _ = look(wire, "lib/mid.so"));
    assert_eq!((questions, requests), (vec!["lib/mid.so".to_owned(); 2], 1));
}

#[test]
fn a_program_without_habits_is_foreseen_nothing() {
    let mut wire = chain();
    for n in 0..50 {
        let (n, other) = (n * 7 % 50, n * 11 % 50);
        read(&mut wire, &format!("d{n}/a{other}.txt"));
        read(&mut wire, &format!("d{n}/b{other}"));
        look(&mut wire, &format!("d{n}/.hidden"));
    }
    assert_eq!(wire.counters()[2].foreseen, 0);
}

#[test]
fn a_file_that_is_gone_when_its_bytes_are_to_follow_fails_for_nobody() {
    let mut wire = chain();
    import(&mut wire, 0..20);
    // The parent dies before it has sent what it was asked for.
    wire.hangs_until = wire.now + S;
    wire.look_up(2, "p/late-m.py");
    wire.run(5 * MS);
    wire.kill(1);
    wire.run(10 * S);
    read(&mut wire, "p/c/late-m.x.pyc");
    wire.run(60 * S);
    assert_eq!((wire.node(2).in_flight(), wire.node(2).ahead, wire.node(2).chunks), (0, 0, 0));
}
