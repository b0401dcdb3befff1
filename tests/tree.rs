//! A tree is served as it is: at the root, at its child and at its grandchild, from one read of the backend.

mod common;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use bornite::observe::Counter;
use common::tree::{CHUNK, Tree};
use common::{Cluster, DEPTHS, Plan, assert_same_bytes, noise};

#[test]
fn a_thousand_files_are_identical_at_every_depth() {
    needs_fuse!("a_thousand_files_are_identical_at_every_depth");
    let tree = Tree::generate();
    let cluster = Plan { cache_bytes: 128 << 20, ..Plan::new(4, tree.root()) }.start();
    // The deepest first, so that everything has come all the way once.
    for node in DEPTHS.into_iter().rev() {
        let seen = tree.assert_served_at(cluster.mount(node));
        let ino = |path: &str| seen.files[Path::new(path)];
        assert_eq!(ino("links/original"), ino("links/second"), "hard links at node {node}");
        assert_eq!(ino("links/original"), ino("deep/third"), "hard links at node {node}");
        assert_ne!(ino("links/original"), ino("sizes/1"));
        if node == 3 {
            assert_eq!(cluster.count(0, Counter::BackendLookup), seen.objects as u64, "each object is looked up once");
        }
    }
    cluster.assert_only_root_asked();
    let before: Vec<u64> = DEPTHS.iter().map(|&node| cluster.count(node, Counter::RequestsToParent)).collect();
    let backend = cluster.backend_ops(0);
    for node in DEPTHS {
        tree.assert_served_at(cluster.mount(node));
    }
    cluster.quiet();
    assert_eq!(cluster.backend_ops(0), backend, "the second walk asked the backend");
    for (&node, before) in DEPTHS.iter().zip(before) {
        assert_eq!(cluster.count(node, Counter::RequestsToParent), before, "the second walk of node {node}");
    }
}

#[test]
fn eight_readers_on_each_node_cost_one_read_of_each_byte() {
    needs_fuse!("eight_readers_on_each_node_cost_one_read_of_each_byte");
    let target = tempfile::tempdir().unwrap();
    fs::create_dir(target.path().join("lib")).unwrap();
    let sizes = [0, 1, 16_383, 16_384, 16_385, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7, 20 * CHUNK];
    let files: Vec<(String, Vec<u8>)> =
        sizes.iter().map(|&len| (format!("lib/{len}"), noise(len as u64 + 1, len))).collect();
    for (path, bytes) in &files {
        fs::write(target.path().join(path), bytes).unwrap();
    }
    let cluster = Cluster::start(4, target.path());
    std::thread::scope(|scope| {
        for node in 0..4 {
            for reader in 0..8 {
                let (cluster, files) = (&cluster, &files);
                scope.spawn(move || {
                    for at in 0..files.len() {
                        // Half of them in another order, so that all chunks are asked for at many moments.
                        let at = if reader % 2 == 0 { at } else { files.len() - 1 - at };
                        let (path, bytes) = &files[at];
                        let got = fs::read(cluster.mount(node).join(path)).unwrap();
                        assert_same_bytes(&got, bytes, format_args!("{path} at node {node}"));
                    }
                });
            }
        }
    });
    cluster.quiet();
    cluster.assert_only_root_asked();
    let total: u64 = sizes.iter().map(|&len| len as u64).sum();
    assert_eq!(cluster.count(0, Counter::BackendReadBytes), total);
    // The files, their directory, and the root.
    assert_eq!(cluster.count(0, Counter::BackendLookup), files.len() as u64 + 2);
    for node in 1..4 {
        assert_eq!(cluster.count(node, Counter::ReadBytesFromParent), total, "bytes that node {node} fetched");
        assert_eq!(cluster.count(node, Counter::BadChecksums), 0);
        // In strict mode some reads fail and are repeated.
        assert!(common::is_strict() || cluster.count(node, Counter::Retries) == 0, "repeats of node {node}");
    }
}

#[test]
fn mounts_inside_the_served_tree_are_empty_directories() {
    needs_fuse!("mounts_inside_the_served_tree_are_empty_directories");
    let target = tempfile::tempdir().unwrap();
    let mounts = target.path().join("job/mounts");
    for dir in ["lib", "job/mounts/node1x", "job/mounts/node"] {
        fs::create_dir_all(target.path().join(dir)).unwrap();
        fs::write(target.path().join(dir).join("file"), dir).unwrap();
    }
    let cluster = Plan { mounts: Some(mounts.clone()), ..Plan::new(4, target.path()) }.start();
    for node in DEPTHS.into_iter().rev() {
        let mut found = Vec::new();
        walk(cluster.mount(node), Path::new(""), &mut found);
        found.sort();
        let expected = [
            "job",
            "job/mounts",
            "job/mounts/node",
            "job/mounts/node/file",
            "job/mounts/node0",
            "job/mounts/node1",
            "job/mounts/node1x",
            "job/mounts/node1x/file",
            "job/mounts/node2",
            "job/mounts/node3",
            "lib",
            "lib/file",
        ];
        assert_eq!(found, expected.map(PathBuf::from), "node {node}");
        for other in 0..4 {
            let point = cluster.mount(node).join(format!("job/mounts/node{other}"));
            assert!(fs::metadata(&point).unwrap().is_dir());
            assert!(fs::metadata(point.join("lib")).is_err_and(|e| e.kind() == ErrorKind::NotFound));
        }
        for dir in ["lib", "job/mounts/node1x", "job/mounts/node"] {
            assert_eq!(fs::read(cluster.mount(node).join(dir).join("file")).unwrap(), dir.as_bytes());
        }
    }
    cluster.assert_only_root_asked();
}

/// All paths below `root`, without following links.
fn walk(root: &Path, at: &Path, found: &mut Vec<PathBuf>) {
    assert!(found.len() < 100, "the walk does not end: {found:?}");
    for entry in fs::read_dir(root.join(at)).unwrap() {
        let entry = entry.unwrap();
        let path = at.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            walk(root, &path, found);
        }
        found.push(path);
    }
}
