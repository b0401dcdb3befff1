//! The in-memory snapshot behind a mount.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use bornite_fuse::memory_fs::MemoryFs;
use bornite_fuse::{MountOptions, Op, Session};

use crate::support::{DEADLINE, fuse_is_here};

#[test]
fn a_snapshot_is_served_as_the_tree_was() {
    if !fuse_is_here() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (source, mountpoint) = (dir.path().join("source"), dir.path().join("mnt"));
    fs::create_dir_all(source.join("a/b")).expect("mkdir");
    fs::create_dir(&mountpoint).expect("mkdir");
    fs::write(source.join("a/file"), vec![b'x'; 100_000]).expect("write");
    fs::hard_link(source.join("a/file"), source.join("a/b/same")).expect("link");
    std::os::unix::fs::symlink("a/file", source.join("link")).expect("symlink");
    let error = MemoryFs::snapshot(&source, 99_999, Duration::ZERO).err().expect("too large");
    assert!(error.to_string().contains("99999 bytes"), "{error}");

    let snapshot = MemoryFs::snapshot(&source, 1 << 20, Duration::from_secs(1)).expect("read");
    assert_eq!((snapshot.inodes(), snapshot.bytes()), (5, 100_006));
    let session = Session::mount(Arc::new(snapshot), MountOptions::new(&mountpoint)).expect("mounts");
    fs::write(source.join("a/file"), b"changed").expect("write");
    assert_eq!(fs::read(mountpoint.join("link")).expect("read"), vec![b'x'; 100_000]);
    let (one, two) = (fs::metadata(mountpoint.join("a/file")), fs::metadata(mountpoint.join("a/b/same")));
    let (one, two) = (one.expect("stat"), two.expect("stat"));
    assert_eq!((one.ino(), one.nlink(), one.len()), (two.ino(), 2, 100_000));
    let names = fs::read_dir(mountpoint.join("a")).expect("opendir").map(|e| e.expect("an entry").file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["b", "file"]);
    assert!(!mountpoint.join("none").exists());
    session.unmount().expect("unmounts");
    session.join(DEADLINE).expect("ends");
}

#[test]
fn without_lifetimes_the_kernel_asks_each_time() {
    if !fuse_is_here() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (source, mountpoint) = (dir.path().join("source"), dir.path().join("mnt"));
    fs::create_dir_all(source.join("a")).expect("mkdir");
    fs::create_dir(&mountpoint).expect("mkdir");
    fs::write(source.join("a/file"), b"x").expect("write");
    for (dirs, others, lookups) in
        [(Duration::ZERO, Duration::ZERO, 20), (DEADLINE, Duration::ZERO, 11), (DEADLINE, DEADLINE, 2)]
    {
        let snapshot = MemoryFs::snapshot(&source, 1 << 20, Duration::ZERO).expect("read").with_ttls(dirs, others);
        let session = Session::mount(Arc::new(snapshot), MountOptions::new(&mountpoint)).expect("mounts");
        let before = session.stats().count(Op::Lookup);
        for _ in 0..10 {
            assert_eq!(fs::metadata(mountpoint.join("a/file")).expect("stat").len(), 1);
        }
        assert_eq!(session.stats().count(Op::Lookup) - before, lookups);
        session.unmount().expect("unmounts");
        session.join(DEADLINE).expect("ends");
    }
}
