//! Invalidation: after it, every node and its kernel ask anew; what has not changed goes on undisturbed.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::Duration;

use bornite::observe::Counter;
use bornite::runtime::Swept;
use common::{Cluster, DEADLINE, DEPTHS, errno};
use rustix::io::Errno;

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect()
}

#[test]
fn every_node_sees_what_is_there_after_an_invalidation_anywhere() {
    needs_fuse!("every_node_sees_what_is_there_after_an_invalidation_anywhere");
    let target = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| target.path().join(name);
    fs::create_dir(at("d")).expect("a directory");
    for name in ["d/rewritten", "d/removed", "d/kept", "elsewhere"] {
        fs::write(at(name), b"old").expect("a file");
    }
    let cluster = Cluster::start(4, target.path());
    let read = |node: usize, name: &str| fs::read(cluster.mount(node).join(name));
    for node in 0..4 {
        for name in ["d/rewritten", "d/removed", "d/kept", "elsewhere"] {
            assert_eq!(read(node, name).expect("a file"), b"old");
        }
        assert_eq!(names(&cluster.mount(node).join("d")).len(), 3);
    }
    fs::write(at("d/rewritten"), b"new bytes").expect("a file");
    fs::remove_file(at("d/removed")).expect("a file");
    fs::write(at("d/made"), b"made").expect("a file");
    fs::write(at("elsewhere"), b"changed too").expect("a file");
    for node in 0..4 {
        assert_eq!(read(node, "d/rewritten").expect("a file"), b"old", "the cache is not asked: nothing is shown");
        assert_eq!(read(node, "d/removed").expect("a file"), b"old");
    }
    let kept = |node: usize| fs::metadata(cluster.mount(node).join("d/kept")).expect("a file").ino();
    let before: [u64; 4] = std::array::from_fn(kept);
    let open: Vec<File> = DEPTHS.map(|node| File::open(cluster.mount(node).join("d/kept")).expect("a file")).into();
    cluster.quiet();
    let bytes = cluster.count(0, Counter::BackendReadBytes);

    let swept = cluster.daemon(3).invalidate(b"d", DEADLINE);
    assert_eq!(swept, Some(Swept { reached: 4, missing: 0 }));
    for (node, kept_before) in before.into_iter().enumerate() {
        assert_eq!(read(node, "d/rewritten").expect("a file"), b"new bytes", "node {node}");
        assert_eq!(errno(read(node, "d/removed")), Some(Errno::NOENT), "node {node}");
        assert_eq!(read(node, "d/made").expect("a file"), b"made", "node {node}");
        let shown = names(&cluster.mount(node).join("d"));
        assert_eq!(shown, ["kept", "made", "rewritten"].map(str::to_owned).into(), "node {node}");
        assert_eq!(read(node, "elsewhere").expect("a file"), b"old", "node {node}: nobody asked for this one");
        // The same inode number, and nothing of it read again.
        assert_eq!((read(node, "d/kept").expect("a file"), kept(node)), (b"old".to_vec(), kept_before));
    }
    for file in open {
        let mut have = [0; 3];
        file.read_exact_at(&mut have, 0).expect("a file that has not changed stays readable");
        assert_eq!(&have, b"old");
    }
    cluster.quiet();
    assert_eq!(cluster.count(0, Counter::BackendReadBytes) - bytes, ("new bytes".len() + "made".len()) as u64);
    cluster.assert_only_root_asked();

    assert_eq!(cluster.daemon(0).invalidate(b"", DEADLINE), Some(Swept { reached: 4, missing: 0 }));
    for node in 0..4 {
        assert_eq!(read(node, "elsewhere").expect("a file"), b"changed too", "node {node}");
    }
}

#[test]
fn a_node_that_is_gone_is_counted_and_the_others_are_done() {
    needs_fuse!("a_node_that_is_gone_is_counted_and_the_others_are_done");
    let target = tempfile::tempdir().expect("a temporary directory");
    fs::write(target.path().join("file"), b"old").expect("a file");
    let mut cluster = Cluster::start(4, target.path());
    for node in 0..4 {
        assert_eq!(fs::read(cluster.mount(node).join("file")).expect("a file"), b"old");
    }
    cluster.take(2).stop(common::STOP_DEADLINE).expect("it stops");
    fs::write(target.path().join("file"), b"new").expect("a file");
    let swept = cluster.daemon(1).invalidate(b"", Duration::from_secs(20));
    assert_eq!(swept, Some(Swept { reached: 3, missing: 1 }));
    for node in DEPTHS {
        assert_eq!(fs::read(cluster.mount(node).join("file")).expect("a file"), b"new", "node {node}");
    }
}

#[test]
fn bytes_that_changed_under_a_kept_modification_time_are_found_out() {
    needs_fuse!("bytes_that_changed_under_a_kept_modification_time_are_found_out");
    let target = tempfile::tempdir().expect("a temporary directory");
    let path = target.path().join("file");
    fs::write(&path, b"old").expect("a file");
    let times = fs::metadata(&path).expect("a file");
    let cluster = Cluster::start(4, target.path());
    for node in 0..4 {
        assert_eq!(fs::read(cluster.mount(node).join("file")).expect("a file"), b"old");
    }
    let file = File::options().write(true).open(&path).expect("a file");
    file.write_all_at(b"new", 0).expect("all bytes");
    file.set_modified(times.modified().expect("a time")).expect("the time");
    assert_eq!(cluster.daemon(3).invalidate(b"file", DEADLINE), Some(Swept { reached: 4, missing: 0 }));
    for node in 0..4 {
        assert_eq!(fs::read(cluster.mount(node).join("file")).expect("a file"), b"new", "node {node}");
    }
    assert_eq!(cluster.count(0, Counter::Rechecks), 1);
}
