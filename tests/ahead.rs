//! Chunks that are fetched before they are asked for: for who reads a file in order, and for nobody else.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bornite::observe::Counter;
use common::tree::CHUNK;
use common::{Cluster, DEPTHS, assert_same_bytes, noise};
use rustix::fs::{Advice, fadvise};

/// A directory with `file` in it, which has that many bytes.
fn target(len: usize) -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let bytes = noise(7, len);
    std::fs::write(dir.path().join("file"), &bytes).expect("a file");
    (dir, bytes)
}

/// A file of a mount whose kernel reads nothing ahead by itself.
fn open_for_random(mount: &Path) -> File {
    let file = File::open(mount.join("file")).expect("a file");
    fadvise(&file, 0, None, Advice::Random).expect("advice");
    file
}

#[test]
fn who_reads_in_order_finds_the_next_chunks_there_and_no_byte_is_fetched_twice() {
    needs_fuse!("who_reads_in_order_finds_the_next_chunks_there_and_no_byte_is_fetched_twice");
    needs_a_reliable_network!("who_reads_in_order_finds_the_next_chunks_there_and_no_byte_is_fetched_twice");
    const CHUNKS: u64 = 16;
    let (target, bytes) = target(CHUNKS as usize * CHUNK - 5);
    let cluster = Cluster::start(4, target.path());
    assert_same_bytes(&std::fs::read(cluster.mount(3).join("file")).expect("a file"), &bytes, "the file");
    cluster.quiet();
    cluster.assert_only_root_asked();
    let count = |node, counter| cluster.count(node, counter);
    // Backend, root, child and grandchild: every chunk once.
    assert_eq!(count(0, Counter::BackendReadBytes), bytes.len() as u64);
    assert_eq!(count(0, Counter::BackendRead), CHUNKS);
    for node in [1, 3] {
        assert_eq!(count(node, Counter::ReadsFromParent), CHUNKS, "node {node}");
        assert_eq!(count(node, Counter::ReadBytesFromParent), bytes.len() as u64, "node {node}");
    }
    // Only the node whose client reads does so; what it asks for is a request like any other to those above.
    assert_eq!((count(0, Counter::ChunksAhead), count(1, Counter::ChunksAhead)), (0, 0));
    let (ahead, used) = (count(3, Counter::ChunksAhead), count(3, Counter::ChunksAheadHit));
    assert!(ahead >= CHUNKS - 3, "{ahead} of {CHUNKS} chunks were asked for ahead");
    // A chunk that a client asked for while it was under way is no chunk that waited for its use.
    assert!(used <= ahead, "{used} of {ahead}");
    assert_eq!((count(3, Counter::ChunksAheadWasted), count(3, Counter::ChunksAheadDropped)), (0, 0));
    // More than one chunk was asked for at once, or there would be nothing to gain.
    let together = count(3, Counter::ChunksInFlightMax);
    assert!((2..=6).contains(&together), "{together} chunks in flight at once");
}

#[test]
fn reads_here_and_there_fetch_their_chunks_and_no_other() {
    needs_fuse!("reads_here_and_there_fetch_their_chunks_and_no_other");
    needs_a_reliable_network!("reads_here_and_there_fetch_their_chunks_and_no_other");
    let (target, bytes) = target(24 * CHUNK);
    let cluster = Cluster::start(4, target.path());
    for node in DEPTHS.into_iter().rev() {
        let file = open_for_random(cluster.mount(node));
        let places = [5, 20, 6, 7, 8, 1, 0, 13].map(|chunk| chunk * CHUNK + (chunk * 37 % 256) * 4096);
        for (round, at) in places.into_iter().chain(places.map(|at| at / CHUNK * CHUNK + 9 * 4096)).enumerate() {
            let mut got = [0; 4096];
            file.read_exact_at(&mut got, at as u64).expect("bytes");
            assert_same_bytes(&got, &bytes[at..at + 4096], format!("read {round} of node {node}"));
        }
        cluster.quiet();
        assert_eq!(cluster.count(node, Counter::ChunksAhead), 0, "node {node}");
    }
    assert_eq!(cluster.count(0, Counter::BackendReadBytes), 8 * CHUNK as u64);
    assert_eq!(cluster.count(3, Counter::ReadsFromParent), 8);
}

#[test]
fn the_start_of_a_large_file_fetches_one_chunk() {
    needs_fuse!("the_start_of_a_large_file_fetches_one_chunk");
    let (target, bytes) = target(64 * CHUNK);
    let cluster = Cluster::start(1, target.path());
    // With the kernel's own readahead: what a loader does that looks at a header.
    let mut got = [0; 4096];
    let file = File::open(cluster.mount(0).join("file")).expect("a file");
    file.read_exact_at(&mut got, 0).expect("bytes");
    assert_same_bytes(&got, &bytes[..4096], "the header");
    cluster.quiet();
    assert_eq!(cluster.count(0, Counter::BackendReadBytes), CHUNK as u64);
    assert_eq!(cluster.count(0, Counter::ChunksAhead), 0);
}

#[test]
fn a_memory_that_is_too_small_for_the_window_fetches_little_ahead_and_hardly_any_twice() {
    needs_fuse!("a_memory_that_is_too_small_for_the_window_fetches_little_ahead_and_hardly_any_twice");
    needs_a_reliable_network!("a_memory_that_is_too_small_for_the_window_fetches_little_ahead_and_hardly_any_twice");
    let (target, bytes) = target(64 * CHUNK);
    let mut plan = common::Plan::new(2, target.path());
    plan.cache_bytes = 8 * CHUNK as u64;
    let cluster = plan.start();
    for node in [1, 0] {
        assert_same_bytes(&std::fs::read(cluster.mount(node).join("file")).expect("a file"), &bytes, "the file");
    }
    cluster.quiet();
    // Once for the child's reader and once for the root's own, which comes when all of it is long gone.
    // Uses are noted by tens of milliseconds: what was fetched ahead may look as old as what was read, and go first.
    let some = 64 / 8;
    assert!(cluster.count(0, Counter::BackendReadBytes) <= 2 * bytes.len() as u64 + (some * CHUNK) as u64);
    assert_eq!(cluster.count(1, Counter::ReadBytesFromParent), bytes.len() as u64);
    for node in 0..2 {
        assert!(cluster.count(node, Counter::ChunksAhead) > 0, "node {node}");
        let wasted = cluster.count(node, Counter::ChunksAheadWasted);
        assert!(wasted <= some as u64, "node {node}: {wasted} chunks were fetched ahead for nothing");
    }
}
