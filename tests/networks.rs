//! Nodes in network namespaces of their own whose links fail: no client gets an error or a wrong byte.

mod common;

use std::time::{Duration, Instant};

use common::fleet::FleetPlan;
use common::load::{Library, Load, assert_well};
use common::network::Network;
use common::{can_network, eventually, wait_until};

/// How long a link is cut.
const CUT: Duration = Duration::from_secs(10);

/// How long after it was mended what was lost may take to get through: TCP repeats at pauses that have grown meanwhile.
const MENDED_MAX: Duration = Duration::from_secs(6);

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
        network.inside(from, "sh", &["-c", &connect]).stderr(std::process::Stdio::null()).status().unwrap().code()
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
fn a_cut_link_hurts_nobody() {
    if !can_network("a_cut_link_hurts_nobody") {
        return;
    }
    let library = Library::generate(1500);
    // 1 has the children 3 and 4.
    let fleet = FleetPlan::new(5, library.path()).with("--fanout 2").in_network(None).start();
    let load = Load::start(&library, &fleet, 0..5, Duration::from_millis(15));
    wait_until(Instant::now() + Duration::from_millis(1500));
    let event = Instant::now();
    fleet.network().link(1, false);
    wait_until(event + CUT);
    fleet.network().link(1, true);
    let mended = Instant::now();
    wait_until(mended + MENDED_MAX);
    // Whoever waited for the link has its answer soon after.
    assert_well(&load.end(), mended, MENDED_MAX);
}
