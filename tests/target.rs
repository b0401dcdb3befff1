//! The served tree itself goes away and comes back, and so does the room for logs: what is known stays known, the rest fails
//! as it does for the root's own clients, and works again when they do.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use bornite::observe::Counter;
use common::program::Program;
use common::{Cluster, DEADLINE, DEPTHS, Plan, errno, eventually, noise};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;

/// How long an absent name is remembered.
const TTL: Duration = Duration::from_millis(300);

/// A tree with one file for each of `names`, its name being its contents.
fn fill(root: &Path, names: &[&str]) {
    fs::create_dir_all(root.join("d")).unwrap();
    for name in names {
        fs::write(root.join("d").join(name), name).unwrap();
    }
}

fn cluster(target: &Path) -> Cluster {
    Plan { enoent_ttl: TTL, ..Plan::new(4, target) }.start()
}

/// Waits until every depth reads `d/<name><node>` as its own name.
fn come_back(cluster: &Cluster, name: &str) {
    for node in DEPTHS {
        let name = format!("{name}{node}");
        let path = cluster.mount(node).join("d").join(&name);
        let mut last = None;
        let back = eventually(DEADLINE, || {
            let got = fs::read(&path);
            let right = got.as_ref().is_ok_and(|bytes| bytes == name.as_bytes());
            last = Some(got);
            right
        });
        assert!(back, "node {node} does not see {name}: {last:?}");
    }
}

#[test]
fn a_target_that_was_removed_is_served_again_when_it_is_made_again() {
    needs_fuse!("a_target_that_was_removed_is_served_again_when_it_is_made_again");
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    fill(&target, &["known", "first0", "first1", "first3"]);
    let cluster = cluster(&target);
    for node in DEPTHS {
        assert_eq!(fs::read(cluster.mount(node).join("d/known")).unwrap(), b"known");
    }
    fs::remove_dir_all(&target).unwrap();
    for node in DEPTHS {
        let path = cluster.mount(node).join(format!("d/first{node}"));
        assert_eq!(errno(fs::metadata(path)), Some(Errno::NOENT), "node {node}");
    }
    fill(&target, &["known", "second0", "second1", "second3", "first0", "first1", "first3"]);
    come_back(&cluster, "first");
    come_back(&cluster, "second");
    cluster.assert_only_root_asked();
}

#[test]
fn another_tree_in_the_place_of_the_target_is_served_after_an_invalidation() {
    needs_fuse!("another_tree_in_the_place_of_the_target_is_served_after_an_invalidation");
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    fill(&target, &["known"]);
    fill(&dir.path().join("next"), &["known", "new0", "new1", "new3"]);
    fs::write(dir.path().join("next/d/known"), b"rewritten").unwrap();
    let cluster = cluster(&target);
    for node in DEPTHS {
        assert_eq!(fs::read(cluster.mount(node).join("d/known")).unwrap(), b"known");
    }
    fs::rename(&target, dir.path().join("old")).unwrap();
    fs::rename(dir.path().join("next"), &target).unwrap();
    assert!(cluster.daemon(0).invalidate(b"", DEADLINE).is_some_and(|swept| swept.missing == 0));
    for node in DEPTHS {
        assert_eq!(fs::read(cluster.mount(node).join("d/known")).unwrap(), b"rewritten", "node {node}");
    }
    come_back(&cluster, "new");
}

#[test]
fn a_target_whose_filesystem_dies_and_returns() {
    needs_fuse!("a_target_whose_filesystem_dies_and_returns");
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    fill(&source, &["known", "first0", "first1", "first3", "second0", "second1", "second3"]);
    fs::create_dir(&target).unwrap();
    let bytes = noise(9, 3 << 20);
    fs::write(source.join("large"), &bytes).unwrap();
    let filesystem = Program::mount(&source, &target, |_| {});
    let cluster = cluster(&target);
    for node in DEPTHS {
        assert_eq!(fs::read(cluster.mount(node).join("d/known")).unwrap(), b"known");
    }
    fs::metadata(cluster.mount(3).join("large")).unwrap();
    filesystem.signal(Signal::KILL);
    let dead = eventually(DEADLINE, || errno(fs::metadata(target.join("d"))) == Some(Errno::NOTCONN));
    assert!(dead, "the filesystem lives");
    for node in DEPTHS {
        let mount = cluster.mount(node);
        assert_eq!(errno(fs::metadata(mount.join(format!("d/first{node}")))), Some(Errno::NOTCONN), "node {node}");
        assert_eq!(errno(fs::read(mount.join("large"))), Some(Errno::NOTCONN), "node {node}");
        assert_eq!(fs::read(mount.join("d/known")).unwrap(), b"known", "what is known stays known at node {node}");
    }
    drop(filesystem);
    let _filesystem = Program::mount(&source, &target, |_| {});
    come_back(&cluster, "first");
    come_back(&cluster, "second");
    for node in DEPTHS {
        // It is another file, as far as anybody can tell: the first to ask for its bytes hears so.
        let path = cluster.mount(node).join("large");
        let read = eventually(DEADLINE, || fs::read(&path).is_ok_and(|got| got == bytes));
        assert!(read, "node {node}: {:?}", errno(fs::read(&path)));
        assert_eq!(cluster.count(node, Counter::Timeouts), 0);
    }
    cluster.assert_only_root_asked();
}

/// A small filesystem for logs, unmounted when it is dropped.
struct LogRoom(tempfile::TempDir);

impl LogRoom {
    fn mount(bytes: usize) -> LogRoom {
        let dir = tempfile::tempdir().unwrap();
        let size = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        rustix::mount::mount("bornite-test", dir.path(), "tmpfs", MountFlags::empty(), Some(&*size)).unwrap();
        LogRoom(dir)
    }
}

impl Drop for LogRoom {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_log_filesystem_hurts_nobody() {
    needs_fuse!("a_full_log_filesystem_hurts_nobody");
    if !rustix::process::geteuid().is_root() {
        return common::skipped("a_full_log_filesystem_hurts_nobody", "mounting a tmpfs takes root");
    }
    let dir = tempfile::tempdir().unwrap();
    let (target, mountpoint) = (dir.path().join("target"), dir.path().join("mount"));
    fs::create_dir(&mountpoint).unwrap();
    let names: Vec<String> = (0..300).map(|n| format!("file{n}")).collect();
    fill(&target, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let room = LogRoom::mount(64 << 10);
    let log_bytes = || -> u64 {
        let logs = fs::read_dir(room.0.path().join("logs")).unwrap();
        logs.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    };
    let mut daemon = Program::mount(&target, &mountpoint, |command| {
        command.args(["--log-level", "5", "--log-type", "file", "--output-dir"]).arg(room.0.path());
    });
    assert_eq!(fs::read(mountpoint.join("d/file0")).unwrap(), b"file0");
    // All the room there is.
    let filler = room.0.path().join("filler");
    let mut written = 0;
    while fs::write(&filler, vec![0; written + 4096]).is_ok() {
        written += 4096;
    }
    assert_eq!(
        errno(fs::write(room.0.path().join("more"), b"x")),
        Some(Errno::NOSPC),
        "there is room: the test shows nothing"
    );
    let full = log_bytes();
    for name in &names {
        assert_eq!(fs::read(mountpoint.join("d").join(name)).unwrap(), name.as_bytes());
        assert_eq!(errno(fs::metadata(mountpoint.join("d").join(format!("no-{name}")))), Some(Errno::NOENT));
    }
    assert!(daemon.ended().is_none());
    assert!(log_bytes() <= full + 4096);
    fs::remove_file(&filler).unwrap();
    fs::remove_file(room.0.path().join("more")).unwrap();
    let full = log_bytes();
    daemon.signal(Signal::TERM);
    assert!(daemon.end_within(DEADLINE).expect("it ends").success());
    assert!(log_bytes() > full, "nothing is logged though there is room again");
}
