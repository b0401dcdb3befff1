//! What is asked for before a client does, through real mounts, by counts: it saves requests, costs the backend next to
//! nothing, and changes no byte.

mod common;

use std::fs;
use std::path::Path;

use bornite::observe::Counter;
use common::{Cluster, Plan};

const MODULES: usize = 150;

/// Uses of a rule before it is trusted, or before it is dropped, and what may be under way.
const FEW: u64 = 40;

fn compiled(n: usize) -> Vec<u8> {
    (0..3_000 + n * 100).map(|at| (at * (n + 7) % 251) as u8).collect()
}

/// A package of Python: sources, and what was compiled of them.
fn target() -> tempfile::TempDir {
    let target = tempfile::tempdir().unwrap();
    fs::create_dir_all(target.path().join("pkg/__pycache__")).unwrap();
    for n in 0..MODULES {
        fs::write(target.path().join(format!("pkg/m{n}.py")), format!("x = {n}\n")).unwrap();
        fs::write(target.path().join(format!("pkg/__pycache__/m{n}.cpython-311.pyc")), compiled(n)).unwrap();
    }
    target
}

/// As Python imports: it looks at the source, and reads what was compiled of it.
fn import(mount: &Path) {
    for n in 0..MODULES {
        assert!(fs::metadata(mount.join(format!("pkg/m{n}.py"))).unwrap().is_file());
        let bytes = fs::read(mount.join(format!("pkg/__pycache__/m{n}.cpython-311.pyc"))).unwrap();
        assert!(bytes == compiled(n), "module {n}");
    }
}

/// What a cold import at node `node` costs: its requests to the parent, and the backend's lookups and opened files.
fn cost(node: usize, foresight: bool, target: &Path) -> ([u64; 3], Cluster) {
    let cluster = Plan { foresight, ..Plan::new(4, target) }.start();
    import(cluster.mount(node));
    cluster.quiet();
    let counts = [(node, Counter::RequestsToParent), (0, Counter::BackendLookup), (0, Counter::BackendOpen)];
    (counts.map(|(node, counter)| cluster.count(node, counter)), cluster)
}

#[test]
fn an_import_takes_a_third_less_requests_and_no_more_of_the_backend() {
    needs_fuse!("an_import_takes_a_third_less_requests_and_no_more_of_the_backend");
    needs_a_reliable_network!("an_import_takes_a_third_less_requests_and_no_more_of_the_backend");
    let target = target();
    for node in [1, 3] {
        let ([requests, lookups, opens], off) = cost(node, false, target.path());
        assert_eq!(off.count(node, Counter::Foreseen), 0);
        let ([fewer, more_lookups, more_opens], on) = cost(node, true, target.path());
        assert!(fewer + MODULES as u64 <= requests + FEW, "node {node}: {fewer} requests instead of {requests}");
        assert!(on.count(node, Counter::Foreseen) + FEW >= MODULES as u64);
        // Every name and file would have been asked for anyway.
        assert_eq!((more_lookups, more_opens), (lookups, opens), "node {node}");
    }
}

#[test]
fn a_walk_that_reads_nothing_is_followed_by_few_questions_of_ours() {
    needs_fuse!("a_walk_that_reads_nothing_is_followed_by_few_questions_of_ours");
    let target = target();
    for n in 0..MODULES {
        fs::write(target.path().join(format!("pkg/other{n}.py")), "").unwrap();
    }
    let cluster = Cluster::start(2, target.path());
    import(cluster.mount(1));
    cluster.quiet();
    let before = cluster.count(0, Counter::BackendLookup);
    for n in 0..MODULES {
        fs::metadata(cluster.mount(1).join(format!("pkg/other{n}.py"))).unwrap();
    }
    cluster.quiet();
    let lookups = cluster.count(0, Counter::BackendLookup) - before;
    assert!(lookups <= MODULES as u64 + FEW, "{lookups} lookups of {MODULES} names");
}
