//! Daemons that die, hang and come back, under load: no client gets an error or a wrong byte, and what failed is used
//! again when it returns.
//!
//! Real daemons as processes of their own, over loopback. Times are told with `--nocapture`; what is asserted of them leaves
//! room for a busy machine.

mod common;

use std::time::{Duration, Instant};

use bornite::observe::Counter;
use common::backend::{Call, Scripted, Trouble};
use common::fleet::FleetPlan;
use common::load::{Library, Load, assert_well};
use common::{DEADLINE, assert_same_bytes, eventually, noise, wait_until};

/// A client begins an operation so often, if it can.
const PACE: Duration = Duration::from_millis(12);

/// The load before something happens.
const BEFORE: Duration = Duration::from_millis(1500);

/// A node that lost its parent has answers again after 3 s; a busy machine adds to that.
const RECOVERY_MAX: Duration = Duration::from_secs(6);

/// Files for some 20 s of load.
const FILES: usize = 1500;

#[test]
fn a_restarted_root_is_asked_again_at_once() {
    needs_fuse!("a_restarted_root_is_asked_again_at_once");
    let library = Library::generate(FILES);
    let mut fleet = FleetPlan::new(4, library.path()).with("--fanout 2").start();
    let load = Load::start(&library, &fleet, [1, 2, 3], PACE);
    wait_until(Instant::now() + BEFORE);
    let event = Instant::now();
    fleet.kill(&[0]);
    fleet.restart(0);
    wait_until(event + RECOVERY_MAX);
    let records = load.end();
    assert_well(&records, event, RECOVERY_MAX);
    assert!(fleet.requests_of_peers(0) > 0, "nobody asks the restarted root");
}

#[test]
fn a_backend_that_hangs_is_waited_for() {
    needs_fuse!("a_backend_that_hangs_is_waited_for");
    const HANG: Duration = Duration::from_secs(20);
    const NODES: usize = 4;
    let names: Vec<String> = (0..NODES).map(|node| format!("d/held{node}")).collect();
    let bytes = noise(3, 300_000);
    let objects: Vec<(&str, Option<&[u8]>)> =
        [("d", None)].into_iter().chain(names.iter().map(|name| (name.as_str(), Some(&bytes[..])))).collect();
    let backend = Scripted::start(&objects);
    let fleet = FleetPlan::new(NODES, backend.path()).with("--fanout 2").start();
    // All that is asked hangs: one node's lookup, the others' reads.
    for (node, name) in names.iter().enumerate() {
        let call = if node % 2 == 0 { Call::Lookup } else { Call::Read };
        backend.trouble(name, call, Trouble::Hold);
    }
    let clients: Vec<_> = (0..NODES)
        .map(|node| {
            let path = fleet.view(node).join(&names[node]);
            std::thread::spawn(move || std::fs::read(path))
        })
        .collect();
    let held = eventually(DEADLINE, || backend.held() >= NODES);
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
    // A lookup hangs in its first call, a read is the second one and the kernel may cut it.
    assert!(calls <= 4 * NODES as u64, "{calls} calls of a backend that hangs");
    fleet.assert_readers(0..NODES, &[0]);
    for node in 0..NODES {
        assert_eq!(fleet.count(node, Counter::Timeouts), 0, "node {node}");
    }
}
