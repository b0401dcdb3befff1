//! How the nodes of a job share the backend's work: by trees each of which has a root of its own, and by stripes of one tree.

mod common;

use bornite::observe::Counter;
use common::load::Library;
use common::{Cluster, Plan};

const NODES: usize = 16;

/// The roots where 16 nodes are divided by four.
const ROOTS: [usize; 4] = [0, 4, 8, 12];

/// Sixteen daemons, and every file read at each of them, all at once. None but the four roots ask the backend.
fn read_everywhere(library: &Library, trees: u32, stripes: u32) -> Cluster {
    let cluster = Plan { trees, stripes, ..Plan::new(NODES, library.path()) }.start();
    std::thread::scope(|scope| {
        for node in 0..NODES {
            let mount = cluster.mount(node);
            scope.spawn(move || assert_eq!(library.read_all(mount, node * 11), None, "node {node}"));
        }
    });
    cluster.quiet();
    let reading: Vec<usize> = (0..NODES).filter(|&node| cluster.backend_ops(node) > 0).collect();
    assert_eq!(reading, ROOTS);
    cluster
}

#[test]
fn each_tree_reads_the_backend_once() {
    needs_fuse!("each_tree_reads_the_backend_once");
    let library = Library::generate(100);
    let cluster = read_everywhere(&library, 4, 1);
    for root in ROOTS {
        assert_eq!(cluster.count(root, Counter::BackendLookup), library.objects(), "lookups of root {root}");
        assert_eq!(cluster.count(root, Counter::BackendReadBytes), library.bytes(), "bytes read by root {root}");
    }
}

#[test]
fn stripes_share_one_read_of_the_backend() {
    needs_fuse!("stripes_share_one_read_of_the_backend");
    let library = Library::generate(100);
    let cluster = read_everywhere(&library, 1, 4);
    let first = cluster.daemon(4).status();
    assert_eq!(first.stripes.len(), 4, "{first:?}");
    assert_eq!((first.stripes[0].parent.clone(), first.stripes[0].children.clone()), (first.parent, first.children));
    for (tree, root) in ROOTS.into_iter().enumerate() {
        assert_eq!(cluster.daemon(root).status().stripes[tree].parent, None, "node {root} is its root");
        assert!(first.stripes[tree].parent.is_some() || root == 4);
    }
    let sum = |counter| -> u64 { ROOTS.iter().map(|&root| cluster.count(root, counter)).sum() };
    assert_eq!(sum(Counter::BackendLookup), library.objects(), "each object is looked up once");
    assert_eq!(sum(Counter::BackendReadBytes), library.bytes(), "each byte is read once");
    for root in ROOTS {
        let lookups = cluster.count(root, Counter::BackendLookup);
        println!("root {root}: {lookups} lookups, {} bytes", cluster.count(root, Counter::BackendReadBytes));
        let share = library.objects() / 4;
        assert!(
            (share / 2..=share * 2).contains(&lookups),
            "{lookups} of {} lookups at root {root}",
            library.objects()
        );
    }
}
