//! How the nodes of a job share the backend's work: by trees each of which has a root of its own, and by stripes of one tree.

mod common;

use std::sync::Arc;

use bornite::observe::Counter;
use common::fleet::{Fleet, FleetPlan};
use common::load::Library;

const NODES: usize = 16;

/// The roots where 16 nodes are divided by four.
const ROOTS: [usize; 4] = [0, 4, 8, 12];

/// Sixteen daemons, and every file read at each of them, all at once.
fn read_everywhere(library: &Arc<Library>, arguments: &str) -> Fleet {
    let fleet = FleetPlan::new(NODES, library.path()).with(arguments).start();
    std::thread::scope(|scope| {
        for node in 0..NODES {
            let mount = fleet.view(node);
            scope.spawn(move || assert_eq!(library.read_all(&mount, node * 11), None, "node {node}"));
        }
    });
    fleet
}

#[test]
fn each_tree_reads_the_backend_once() {
    needs_fuse!("each_tree_reads_the_backend_once");
    let library = Library::generate(150);
    let fleet = read_everywhere(&library, "--trees 4");
    fleet.assert_readers(0..NODES, &ROOTS);
    for root in ROOTS {
        assert_eq!(fleet.count(root, Counter::BackendLookup), library.objects(), "lookups of root {root}");
        assert_eq!(fleet.count(root, Counter::BackendReadBytes), library.bytes(), "bytes read by root {root}");
    }
}
