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
const CALM: Duration = Duration::from_millis(1500);

/// A node that lost its parent has answers again after 3 s; a busy machine adds to that.
const RECOVERY_MAX: Duration = Duration::from_secs(6);

/// How long what came back may take to be used again.
const RETURN_MAX: Duration = Duration::from_secs(15);

/// How long something that does not die is out of order.
const OUTAGE: Duration = Duration::from_secs(10);

/// Files for some 20 s of load.
const FILES: usize = 1500;

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
    const HANG: Duration = Duration::from_secs(20);
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
    wait_until(begin + HANG);
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
