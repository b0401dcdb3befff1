//! Daemons that die, hang and come back, and links that fail, under load: no client gets an error or a wrong byte, another node
//! is asked within seconds, and what failed is used again when it returns.
//!
//! Real daemons as processes of their own. Times are told with `--nocapture`; what is asserted of them leaves room for a busy
//! machine.

mod common;

use std::process::Stdio;
use std::time::{Duration, Instant};

use bornite::observe::Counter;
use common::backend::{Call, Scripted, Trouble};
use common::fleet::{Fleet, FleetPlan, Resources};
use common::load::{Library, Load, assert_well};
use common::network::Network;
use common::{DEADLINE, assert_same_bytes, can_network, eventually, noise, wait_until};
use rustix::process::Signal;

/// A client begins an operation so often, if it can.
const PACE: Duration = Duration::from_millis(15);

/// The load before something happens, and for a while after it was overcome.
const CALM: Duration = Duration::from_secs(1);

/// A node that lost its parent has answers again after 3 s; a busy machine adds to that.
const RECOVERY_MAX: Duration = Duration::from_secs(8);

/// How long what came back may take to be used again.
const RETURN_MAX: Duration = Duration::from_secs(15);

/// How long something that does not die is out of order.
const OUTAGE: Duration = Duration::from_secs(10);

/// Files for some 15 s of load; who reads on after that is answered from memory.
const FILES: usize = 1000;

/// Descriptors that a node may have more than before: connections to nodes that it did not know.
const MORE_DESCRIPTORS: usize = 8;

/// How long a node without work may keep what it needed for the work.
const REST_MAX: Duration = Duration::from_secs(12);

/// What these nodes hold.
fn resources(fleet: &Fleet, nodes: &[usize]) -> Vec<(usize, Resources)> {
    nodes.iter().map(|&node| (node, fleet.resources(node))).collect()
}

/// Asserts that these nodes hold no more than they did.
#[track_caller]
fn assert_came_back(fleet: &Fleet, before: &[(usize, Resources)]) {
    for (node, before) in before {
        // Workers that came for the work leave again.
        let fewer = eventually(REST_MAX, || fleet.resources(*node).threads <= before.threads);
        let after = fleet.resources(*node);
        println!("node {node} held {before:?}, now {after:?}");
        assert!(fewer, "node {node}: {before:?}, then {after:?}");
        assert!(after.descriptors <= before.descriptors + MORE_DESCRIPTORS, "node {node}: {before:?}, then {after:?}");
        // The cache fills meanwhile.
        assert!(after.rss_bytes <= before.rss_bytes + (80 << 20), "node {node}: {before:?}, then {after:?}");
    }
}

/// Waits until the present daemon of `node` is asked by others again, all of which then ask their parents.
#[track_caller]
fn assert_used_again(fleet: &Fleet, node: usize, askers: &[usize]) {
    let (begin, before) = (Instant::now(), fleet.requests_of_peers(node));
    assert!(eventually(RETURN_MAX, || fleet.requests_of_peers(node) >= before + 20), "node {node} is not used again");
    println!("node {node} is used again {:?} after its return", begin.elapsed());
    let instead = |node: &usize| fleet.status(*node).is_none_or(|status| !status.asks.is_empty());
    assert!(eventually(RETURN_MAX, || !askers.iter().any(instead)), "some of {askers:?} still ask others");
}

#[test]
fn a_killed_parent_is_replaced_and_used_again() {
    needs_fuse!("a_killed_parent_is_replaced_and_used_again");
    let library = Library::generate(FILES);
    // 1 has the children 3 and 4.
    let mut fleet = FleetPlan::new(5, library.path()).with("--fanout 2").start();
    let load = Load::start(&library, &fleet, [0, 2, 3, 4], PACE);
    wait_until(Instant::now() + CALM);
    let before = resources(&fleet, &[0, 2, 3, 4]);
    let event = Instant::now();
    fleet.kill(&[1]);
    assert!(load.renewed(event, RECOVERY_MAX), "no new answers");
    for node in [3, 4] {
        assert_eq!(fleet.status(node).expect("it runs").asks, ["node0 instead of node1"], "node {node}");
        assert_eq!(fleet.count(node, Counter::Failovers), 1, "node {node}");
    }
    for node in [0, 2] {
        assert_eq!(fleet.count(node, Counter::Failovers), 0, "node {node} was not concerned");
    }
    wait_until(Instant::now() + CALM);
    fleet.assert_readers([0, 2, 3, 4], &[0]);
    fleet.restart(1);
    assert_used_again(&fleet, 1, &[3, 4]);
    wait_until(Instant::now() + CALM);
    assert_well(&load.end(), event, RECOVERY_MAX);
    fleet.assert_readers(0..5, &[0]);
    assert_came_back(&fleet, &before);
}

#[test]
fn a_stopped_parent_is_replaced_and_used_again() {
    needs_fuse!("a_stopped_parent_is_replaced_and_used_again");
    let library = Library::generate(FILES);
    let fleet = FleetPlan::new(5, library.path()).with("--fanout 2").start();
    let load = Load::start(&library, &fleet, [0, 2, 3, 4], PACE);
    wait_until(Instant::now() + CALM);
    let before = resources(&fleet, &[0, 1, 2, 3, 4]);
    let event = Instant::now();
    fleet.signal(1, Signal::STOP);
    assert!(load.renewed(event, RECOVERY_MAX), "no new answers");
    wait_until(event + OUTAGE);
    fleet.signal(1, Signal::CONT);
    assert_used_again(&fleet, 1, &[3, 4]);
    wait_until(Instant::now() + CALM);
    assert_well(&load.end(), event, RECOVERY_MAX);
    fleet.assert_readers(0..5, &[0]);
    assert_came_back(&fleet, &before);
}

#[test]
fn a_killed_root_is_replaced_by_one_node_of_sixteen() {
    needs_fuse!("a_killed_root_is_replaced_by_one_node_of_sixteen");
    const NODES: usize = 16;
    let library = Library::generate(FILES);
    let mut fleet = FleetPlan::new(NODES, library.path()).start();
    let load = Load::start(&library, &fleet, 1..NODES, 4 * PACE);
    wait_until(Instant::now() + CALM);
    fleet.assert_readers(0..NODES, &[0]);
    let event = Instant::now();
    fleet.kill(&[0]);
    assert!(load.renewed(event, RECOVERY_MAX), "no new answers");
    wait_until(Instant::now() + CALM);
    fleet.assert_readers(1..NODES, &[1]);
    assert_eq!(fleet.count(1, Counter::Substitutes), 1);
    fleet.restart(0);
    assert_used_again(&fleet, 0, &[1, 2]);
    // What the other one has under way may still end there.
    wait_until(Instant::now() + CALM);
    let acting = fleet.backend_ops(1);
    wait_until(Instant::now() + CALM);
    assert_eq!(fleet.backend_ops(1), acting, "node 1 goes on asking the backend");
    assert_eq!(fleet.count(1, Counter::Substitutes), 0);
    assert_well(&load.end(), event, RECOVERY_MAX);
    fleet.assert_readers(0..NODES, &[0, 1]);
}

#[test]
fn two_levels_killed_at_once_are_skipped() {
    needs_fuse!("two_levels_killed_at_once_are_skipped");
    let library = Library::generate(FILES);
    // A chain: 4 asks 3, which asks 2, which asks 1, which asks 0.
    let mut fleet = FleetPlan::new(5, library.path()).with("--fanout 1").start();
    let load = Load::start(&library, &fleet, [0, 3, 4], PACE);
    wait_until(Instant::now() + CALM);
    let event = Instant::now();
    fleet.kill(&[1, 2]);
    assert!(load.renewed(event, RECOVERY_MAX), "no new answers");
    assert_eq!(fleet.status(3).expect("it runs").asks, ["node0 instead of node2"]);
    wait_until(Instant::now() + CALM);
    fleet.assert_readers([0, 3, 4], &[0]);
    // The nearer one comes back first: whoever asks it must not be sent round in circles.
    fleet.restart(2);
    assert_used_again(&fleet, 2, &[3]);
    fleet.restart(1);
    assert_used_again(&fleet, 1, &[2, 3]);
    wait_until(Instant::now() + CALM);
    assert_well(&load.end(), event, RECOVERY_MAX);
    // 1 and 2 may take the place of a root that is alive only if they cannot know that it is.
    fleet.assert_readers(0..5, &[0]);
}

#[test]
fn a_restarted_root_is_asked_again_at_once() {
    needs_fuse!("a_restarted_root_is_asked_again_at_once");
    let library = Library::generate(FILES);
    let mut fleet = FleetPlan::new(4, library.path()).with("--fanout 2").start();
    let load = Load::start(&library, &fleet, [1, 2, 3], PACE);
    wait_until(Instant::now() + CALM);
    let event = Instant::now();
    fleet.kill(&[0]);
    fleet.restart(0);
    assert!(load.renewed(event, RECOVERY_MAX), "no new answers");
    wait_until(Instant::now() + CALM);
    assert_used_again(&fleet, 0, &[1, 2, 3]);
    assert_well(&load.end(), event, RECOVERY_MAX);
}

#[test]
fn a_backend_that_hangs_is_waited_for() {
    needs_fuse!("a_backend_that_hangs_is_waited_for");
    hang(Duration::from_secs(8));
}

#[test]
#[ignore = "soak: 20 s and more"]
fn a_backend_that_hangs_for_20_s_is_waited_for() {
    needs_fuse!("a_backend_that_hangs_for_20_s_is_waited_for");
    hang(Duration::from_secs(20));
}

/// Forty requests of four nodes that all hang so long.
fn hang(time: Duration) {
    const NODES: usize = 4;
    const HELD: usize = 40;
    let names: Vec<String> = (0..HELD).map(|n| format!("d/held{n}")).collect();
    let bytes = noise(3, 30_000);
    let objects: Vec<(&str, Option<&[u8]>)> = [("d", None), ("d/other", Some(&b"other"[..]))]
        .into_iter()
        .chain(names.iter().map(|name| (name.as_str(), Some(&bytes[..]))))
        .collect();
    let backend = Scripted::start(&objects);
    let fleet = FleetPlan::new(NODES, backend.path()).with("--fanout 2").start();
    for node in 0..NODES {
        assert_eq!(std::fs::read(fleet.view(node).join("d/other")).unwrap(), b"other");
    }
    let before = resources(&fleet, &[0, 1, 2, 3]);
    for (n, name) in names.iter().enumerate() {
        let call = if n % 2 == 0 { Call::Lookup } else { Call::Read };
        backend.trouble(name, call, Trouble::Hold);
    }
    let clients: Vec<_> = (0..HELD)
        .map(|n| {
            let path = fleet.view(n % NODES).join(&names[n]);
            std::thread::spawn(move || std::fs::read(path))
        })
        .collect();
    let held = eventually(DEADLINE, || backend.held() >= HELD);
    let begin = Instant::now();
    wait_until(begin + time);
    let still = clients.iter().all(|client| !client.is_finished());
    let calls: u64 = names.iter().map(|name| backend.calls(name, Call::Lookup) + backend.calls(name, Call::Read)).sum();
    backend.recover();
    backend.release();
    for client in clients {
        assert_same_bytes(&client.join().unwrap().unwrap(), &bytes, "a held file");
    }
    assert!(held && still, "not all hung: the test shows nothing");
    // A lookup hangs in its first call, a read after one or two.
    assert!(calls <= 3 * HELD as u64, "{calls} calls of a backend that hangs");
    fleet.assert_readers(0..NODES, &[0]);
    for node in 0..NODES {
        assert_eq!(fleet.count(node, Counter::Timeouts), 0, "node {node}");
        assert_eq!(fleet.count(node, Counter::Failovers), 0, "node {node}");
    }
    assert_came_back(&fleet, &before);
}

#[test]
fn a_network_is_what_it_says() {
    if !can_network("a_network_is_what_it_says") {
        return;
    }
    let mounts = || std::fs::read_to_string("/proc/self/mounts").unwrap().matches("bornite-test").count();
    let begin = Instant::now();
    let network = Network::start(16, Some("100mbit"));
    println!("16 nodes in {:?}", begin.elapsed());
    let reaches = |from: usize, to: usize| {
        // bash(1): a file of that name is a connection. Nobody listens: it is refused, unless it does not arrive.
        let connect = format!("timeout 1 bash -c 'echo > /dev/tcp/{}/9'", network.address(to));
        network.inside(from, "sh", &["-c", &connect]).stderr(Stdio::null()).status().unwrap().code()
    };
    const REFUSED: Option<i32> = Some(1);
    const LOST: Option<i32> = Some(124);
    assert_eq!(reaches(0, 15), REFUSED);
    network.link(15, false);
    assert_eq!((reaches(0, 15), reaches(0, 14)), (LOST, REFUSED));
    network.link(15, true);
    assert!(eventually(Duration::from_secs(5), || reaches(0, 15) == REFUSED), "the link does not come back");
    assert!(network.see("/run/netns/n15".as_ref()).exists());
    assert_eq!(mounts(), 0, "its mounts are seen outside");
    let gone = network.see("/run".as_ref());
    drop(network);
    assert!(!gone.exists());
}

#[test]
fn a_node_that_is_cut_off_goes_on_and_so_do_its_children() {
    if !can_network("a_node_that_is_cut_off_goes_on_and_so_do_its_children") {
        return;
    }
    let library = Library::generate(FILES);
    // 1 has the children 3 and 4.
    let fleet = FleetPlan::new(5, library.path()).with("--fanout 2").in_network(None).start();
    // Also on the node that is alone for a while.
    let load = Load::start(&library, &fleet, 0..5, PACE);
    wait_until(Instant::now() + CALM);
    let before = resources(&fleet, &[0, 1, 2, 3, 4]);
    fleet.network().link(1, false);
    let event = Instant::now();
    assert!(load.renewed(event, RECOVERY_MAX), "no new answers");
    // 1 cannot know that it is not the only one left.
    fleet.assert_readers([0, 2, 3, 4], &[0]);
    wait_until(event + OUTAGE);
    fleet.network().link(1, true);
    assert_used_again(&fleet, 1, &[1, 3, 4]);
    wait_until(Instant::now() + CALM);
    assert_well(&load.end(), event, RECOVERY_MAX);
    fleet.assert_readers(0..5, &[0, 1]);
    assert_came_back(&fleet, &before);
}

/// Kills, stops and cuts inner nodes for a minute, one or two at a time, each time others, and lets them come back.
#[test]
#[ignore = "soak: a minute and more"]
fn nodes_that_fail_and_return_for_a_minute() {
    if !can_network("nodes_that_fail_and_return_for_a_minute") {
        return;
    }
    const TIME: Duration = Duration::from_secs(60);
    const NODES: usize = 9;
    const LEAVES: [usize; 5] = [4, 5, 6, 7, 8];
    let library = Library::generate(5000);
    // 0 has 1 and 2, 1 has 3 and 4, 2 has 5 and 6, 3 has 7 and 8.
    let mut fleet = FleetPlan::new(NODES, library.path()).with("--fanout 2").in_network(None).start();
    let load = Load::start(&library, &fleet, LEAVES, 2 * PACE);
    wait_until(Instant::now() + CALM);
    let before = resources(&fleet, &LEAVES);
    let begin = Instant::now();
    // The bytes choose; printed, so that a run can be repeated.
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    for choice in noise(seed, 1000).chunks(2) {
        if begin.elapsed() >= TIME {
            break;
        }
        let first = usize::from(choice[0]) % 4;
        let second = usize::from(choice[0] >> 4) % 4;
        let nodes = if first == second { vec![first] } else { vec![first, second] };
        let kind = choice[1] % 3;
        println!("{:?}: {} {nodes:?}", begin.elapsed(), ["kill", "stop", "cut"][usize::from(kind)]);
        let event = Instant::now();
        for &node in &nodes {
            match kind {
                0 => fleet.kill(&[node]),
                1 => fleet.signal(node, Signal::STOP),
                _ => fleet.network().link(node, false),
            }
        }
        assert!(load.renewed(event, RECOVERY_MAX), "no new answers");
        for &node in &nodes {
            match kind {
                0 => fleet.restart(node),
                1 => fleet.signal(node, Signal::CONT),
                _ => fleet.network().link(node, true),
            }
        }
        let instead = |node: usize| fleet.status(node).is_none_or(|status| !status.asks.is_empty());
        assert!(eventually(RETURN_MAX, || !(1..NODES).any(instead)), "some still ask others");
    }
    for (node, record) in load.end() {
        println!("node {node}: {} operations, the longest {:?}", record.done.len(), record.longest());
        assert_eq!(record.wrong, None);
    }
    assert_came_back(&fleet, &before);
}

#[test]
fn a_killed_root_of_a_stripe_is_replaced_in_its_stripe() {
    needs_fuse!("a_killed_root_of_a_stripe_is_replaced_in_its_stripe");
    const NODES: usize = 8;
    let library = Library::generate(FILES);
    // 0 is the root of one half of all paths, 4 of the other.
    let mut fleet = FleetPlan::new(NODES, library.path()).with("--stripes 2").start();
    let load = Load::start(&library, &fleet, 1..NODES, 3 * PACE);
    wait_until(Instant::now() + CALM);
    fleet.assert_readers(0..NODES, &[0, 4]);
    let event = Instant::now();
    fleet.kill(&[0]);
    assert!(load.renewed(event, RECOVERY_MAX), "no new answers");
    wait_until(Instant::now() + CALM);
    fleet.assert_readers(1..NODES, &[1, 4]);
    assert_eq!(fleet.count(1, Counter::Substitutes), 1, "node 1 is the first standby of one tree");
    assert_eq!(fleet.count(4, Counter::Substitutes), 0);
    fleet.restart(0);
    assert_used_again(&fleet, 0, &[1, 2, 3, 4, 5, 6, 7]);
    assert_well(&load.end(), event, RECOVERY_MAX);
    fleet.assert_readers(0..NODES, &[0, 1, 4]);
}

#[test]
#[ignore = "soak: idle time"]
fn a_parent_that_dies_unnoticed_costs_the_next_request_no_more() {
    needs_fuse!("a_parent_that_dies_unnoticed_costs_the_next_request_no_more");
    let library = Library::generate(FILES);
    let mut fleet = FleetPlan::new(5, library.path()).with("--fanout 2").start();
    for (pause, killed) in [(0, 1), (3, 2), (12, 0)] {
        let load = Load::start(&library, &fleet, [3, 4], PACE);
        wait_until(Instant::now() + CALM);
        drop(load.end());
        fleet.kill(&[killed]);
        wait_until(Instant::now() + Duration::from_secs(pause));
        let event = Instant::now();
        let load = Load::start(&library, &fleet, [3, 4], PACE);
        assert!(load.renewed(event, RECOVERY_MAX), "no new answers");
        println!("{killed} killed {pause} s before");
        wait_until(Instant::now() + CALM);
        assert_well(&load.end(), event, RECOVERY_MAX);
    }
}

#[test]
#[ignore = "soak: slow by design"]
fn nodes_without_root_and_standbys_ask_the_backend_themselves_and_slowly() {
    needs_fuse!("nodes_without_root_and_standbys_ask_the_backend_themselves_and_slowly");
    const NODES: usize = 8;
    let library = Library::generate(FILES);
    let mut fleet = FleetPlan::new(NODES, library.path()).with("--fanout 2").start();
    let load = Load::start(&library, &fleet, 4..NODES, PACE);
    wait_until(Instant::now() + CALM);
    let event = Instant::now();
    fleet.kill(&[0, 1, 2, 3]);
    assert!(load.renewed(event, 2 * RECOVERY_MAX), "no new answers");
    wait_until(Instant::now() + OUTAGE);
    for node in 4..NODES {
        let (count, limited) = (fleet.backend_ops(node), fleet.count(node, Counter::RateLimited));
        println!("node {node}: {count} backend operations in {:?}, limited {limited}", event.elapsed());
        // Each question is some operations: to look a name up, to open a file and to read it.
        let questions = 200 + 20 * event.elapsed().as_secs();
        assert!(limited > 0 && count <= 4 * questions, "node {node}: {count} backend operations");
    }
    for node in 0..4 {
        fleet.restart(node);
    }
    let instead = |node: usize| fleet.status(node).is_none_or(|status| !status.asks.is_empty());
    assert!(eventually(RETURN_MAX, || !(1..NODES).any(instead)), "some still ask others");
    let event = Instant::now();
    assert!(load.renewed(event, RECOVERY_MAX), "no new answers");
    for (node, record) in load.end() {
        println!("node {node}: {} operations, the longest {:?}", record.done.len(), record.longest());
        assert_eq!(record.wrong, None);
    }
}

#[test]
fn large_files_that_are_being_read_survive_their_parents() {
    if !can_network("large_files_that_are_being_read_survive_their_parents") {
        return;
    }
    const LEN: usize = 24 << 20;
    let target = tempfile::tempdir().unwrap();
    let files: Vec<Vec<u8>> = (0..2).map(|n| noise(n + 7, LEN)).collect();
    for (n, bytes) in files.iter().enumerate() {
        std::fs::write(target.path().join(format!("large{n}")), bytes).unwrap();
    }
    // 1 has the children 3 and 4, 2 has 5 and 6. Both files together take 2 s on the root's link.
    let mut fleet = FleetPlan::new(7, target.path()).with("--fanout 2").in_network(Some("200mbit")).start();
    let readers = [3, 5].map(|node| fleet.view(node)).into_iter().enumerate();
    let readers: Vec<_> =
        readers.map(|(n, view)| std::thread::spawn(move || std::fs::read(view.join(format!("large{n}"))))).collect();
    let pulled = |node| fleet.count(node, Counter::ReadBytesFromParent);
    let begun = eventually(DEADLINE, || pulled(3) > 4 << 20 && pulled(5) > 4 << 20);
    // One dies, the other one falls silent; each in the middle of what it sends.
    let early = readers.iter().any(std::thread::JoinHandle::is_finished);
    let event = Instant::now();
    fleet.signal(2, Signal::STOP);
    fleet.kill(&[1]);
    assert!(begun && !early, "nothing was under way: the test shows nothing");
    for (reader, bytes) in readers.into_iter().zip(&files) {
        assert_same_bytes(&reader.join().unwrap().unwrap(), bytes, "a large file");
    }
    println!("read to their ends {:?} after the event", event.elapsed());
    assert!(event.elapsed() < 2 * RECOVERY_MAX, "it took {:?}", event.elapsed());
    fleet.signal(2, Signal::CONT);
    for node in [3, 5] {
        assert_eq!(fleet.count(node, Counter::Failovers), 1, "node {node}");
        // What had come already is not asked for again; what was under way may be.
        let again = fleet.count(node, Counter::ReadBytesFromParent).saturating_sub(LEN as u64);
        println!("node {node} pulled {again} bytes again");
        assert!(again <= LEN as u64 / 2, "node {node} pulled {again} bytes again");
    }
    fleet.assert_readers([0, 2, 3, 4, 5, 6], &[0]);
}
