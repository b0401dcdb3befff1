//! Readiness end to end: the root knows of every mount, and says who is missing.

mod common;

use bornite::observe::TreeStatus;
use common::{Cluster, DEADLINE, Plan, eventually};

/// What the daemon of `node` says of the nodes at and below it.
fn tree(cluster: &Cluster, node: usize) -> TreeStatus {
    cluster.daemon(node).status().tree.expect("it has started")
}

fn ready(cluster: &Cluster, node: usize) -> (u32, Vec<String>) {
    let TreeStatus { nodes, ready, missing } = tree(cluster, node);
    assert_eq!(nodes - ready, missing.len() as u32);
    (nodes, missing)
}

#[test]
fn the_root_names_who_is_not_mounted_until_all_are() {
    needs_fuse!("the_root_names_who_is_not_mounted_until_all_are");
    let target = tempfile::tempdir().expect("a temporary directory");
    let mut cluster = Plan::new(6, target.path()).prepare();
    for node in [0, 1, 2, 3, 5] {
        cluster.launch(node).expect("it starts");
    }
    let is_known = |node, all, missing: &[&str]| {
        eventually(DEADLINE, || ready(&cluster, node) == (all, missing.iter().map(|name| (*name).to_owned()).collect()))
    };
    assert!(is_known(0, 6, &["node4"]), "{:?}", tree(&cluster, 0));
    assert!(is_known(1, 3, &["node4"]), "{:?}", tree(&cluster, 1));
    assert!(is_known(5, 1, &[]), "{:?}", tree(&cluster, 5));
    cluster.launch(4).expect("it starts");
    let is_all = eventually(DEADLINE, || ready(&cluster, 0) == (6, vec![]));
    assert!(is_all, "{:?}", tree(&cluster, 0));
}
