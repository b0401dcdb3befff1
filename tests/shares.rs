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

#[test]
fn stripes_share_one_read_of_the_backend() {
    needs_fuse!("stripes_share_one_read_of_the_backend");
    let library = Library::generate(150);
    let fleet = read_everywhere(&library, "--stripes 4");
    fleet.assert_readers(0..NODES, &ROOTS);
    let sum = |counter| -> u64 { ROOTS.iter().map(|&root| fleet.count(root, counter)).sum() };
    assert_eq!(sum(Counter::BackendLookup), library.objects(), "each object is looked up once");
    assert_eq!(sum(Counter::BackendReadBytes), library.bytes(), "each byte is read once");
    for root in ROOTS {
        let lookups = fleet.count(root, Counter::BackendLookup);
        println!("root {root}: {lookups} lookups, {} bytes", fleet.count(root, Counter::BackendReadBytes));
        let share = library.objects() / 4;
        assert!(
            (share / 2..=share * 2).contains(&lookups),
            "{lookups} of {} lookups at root {root}",
            library.objects()
        );
    }
}
