//! A backend that changes under the cache: every byte a reader gets is of one version, and who opens the file again soon
//! reads the new one.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use bornite::observe::Counter;
use common::{Cluster, DEADLINE, DEPTHS, Plan, errno};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

const MIB: usize = 1 << 20;

/// Long enough that reading its beginning brings nothing of its end, readahead included.
const LONG: usize = 12 * MIB;

/// Who opens a changed file again reads the new bytes within this time.
const REOPEN: Duration = Duration::from_secs(1);

/// Sets only the modification time, as tools do that keep it.
fn set_mtime(path: &Path, secs: i64, nanos: i64) {
    let keep = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access: keep, last_modification: Timespec { tv_sec: secs, tv_nsec: nanos } };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()).expect("the file's time");
}

/// Overwrites the file where it is with bytes of the same number, and sets its modification time back.
fn rewrite_secretly(path: &Path, byte: u8, len: usize) {
    let before = fs::metadata(path).expect("the file");
    let file = File::options().write(true).open(path).expect("the file");
    file.write_all_at(&vec![byte; len], 0).expect("all bytes");
    set_mtime(path, before.mtime(), before.mtime_nsec());
}

fn byte_at(file: &File, at: u64) -> Result<u8, Errno> {
    let mut byte = [0];
    match file.read_at(&mut byte, at) {
        Ok(1) => Ok(byte[0]),
        Ok(_) => panic!("the file ends before byte {at}"),
        Err(error) => Err(Errno::from_io_error(&error).expect("an errno")),
    }
}

/// Opens and reads the file until it is `want` throughout; stale errors are allowed, other bytes are not.
fn reads_soon(path: &Path, want: &[u8]) {
    let begin = Instant::now();
    loop {
        match fs::read(path) {
            Ok(bytes) if bytes == want => return,
            Ok(bytes) => assert!(
                bytes.first() != want.first() && bytes.iter().all(|b| *b == bytes[0]),
                "{}: a mix, or something cut short ({} bytes)",
                path.display(),
                bytes.len()
            ),
            Err(error) => {
                assert_eq!(errno::<()>(Err(error)), Some(Errno::STALE), "{}", path.display());
            }
        }
        assert!(begin.elapsed() < REOPEN, "{} is still old", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A file of which each node has read the beginning and no more; `change` is made to it; whoever reads on is told that it
/// is gone, and whoever opens it again reads `want`.
fn changed_between_two_reads(change: impl Fn(&Path), want: impl Fn() -> Vec<u8>) {
    for node in DEPTHS {
        let target = tempfile::tempdir().expect("a temporary directory");
        let path = target.path().join("file");
        fs::write(&path, vec![1; LONG]).expect("the file");
        let cluster = Cluster::start(4, target.path());
        let file = File::open(cluster.mount(node).join("file")).expect("the file");
        assert_eq!(byte_at(&file, 0), Ok(1));
        change(&path);
        assert_eq!(byte_at(&file, (LONG - MIB) as u64), Err(Errno::STALE), "node {node}");
        // What it had read is not taken back.
        assert!(matches!(byte_at(&file, 0), Ok(1) | Err(Errno::STALE)));
        let want = want();
        if want.is_empty() {
            assert_eq!(errno(fs::read(cluster.mount(node).join("file"))), Some(Errno::NOENT));
        } else {
            reads_soon(&cluster.mount(node).join("file"), &want);
        }
        assert_eq!(byte_at(&file, (LONG - MIB) as u64), Err(Errno::STALE), "node {node}, the old one, again");
    }
}

#[test]
fn a_file_that_is_rewritten_is_stale_and_then_new() {
    needs_fuse!("a_file_that_is_rewritten_is_stale_and_then_new");
    changed_between_two_reads(|path| fs::write(path, vec![2; LONG]).expect("the file"), || vec![2; LONG]);
}

#[test]
fn a_file_that_shrinks_is_stale_and_then_new() {
    needs_fuse!("a_file_that_shrinks_is_stale_and_then_new");
    changed_between_two_reads(|path| fs::write(path, [2; 10]).expect("the file"), || vec![2; 10]);
}

#[test]
fn a_file_that_grows_is_stale_and_then_new() {
    needs_fuse!("a_file_that_grows_is_stale_and_then_new");
    changed_between_two_reads(|path| fs::write(path, vec![2; LONG + 5]).expect("the file"), || vec![2; LONG + 5]);
}

#[test]
fn a_file_that_is_replaced_by_rename_is_stale_and_then_new() {
    needs_fuse!("a_file_that_is_replaced_by_rename_is_stale_and_then_new");
    let replace = |path: &Path| {
        let new = path.with_extension("new");
        fs::write(&new, vec![2; LONG]).expect("the new file");
        fs::rename(new, path).expect("the rename");
    };
    changed_between_two_reads(replace, || vec![2; LONG]);
}

#[test]
fn a_file_that_is_removed_is_stale_and_then_absent() {
    needs_fuse!("a_file_that_is_removed_is_stale_and_then_absent");
    changed_between_two_reads(|path| fs::remove_file(path).expect("the file"), Vec::new);
}

#[test]
fn bytes_that_change_under_a_kept_modification_time_are_never_mixed() {
    needs_fuse!("bytes_that_change_under_a_kept_modification_time_are_never_mixed");
    changed_between_two_reads(|path| rewrite_secretly(path, 2, LONG), || vec![2; LONG]);
}

#[test]
fn a_hard_link_elsewhere_disturbs_nobody() {
    needs_fuse!("a_hard_link_elsewhere_disturbs_nobody");
    let target = tempfile::tempdir().expect("a temporary directory");
    let path = target.path().join("file");
    fs::write(&path, vec![1; LONG]).expect("the file");
    let cluster = Cluster::start(4, target.path());
    let files = DEPTHS.map(|node| File::open(cluster.mount(node).join("file")).expect("the file"));
    for file in &files {
        assert_eq!(byte_at(file, 0), Ok(1));
    }
    fs::hard_link(&path, target.path().join("another")).expect("a link");
    for file in &files {
        assert_eq!(byte_at(file, (LONG - MIB) as u64), Ok(1));
        assert_eq!(byte_at(file, (LONG / 2) as u64), Ok(1));
    }
    cluster.quiet();
    assert_eq!(cluster.count(0, Counter::Rechecks), 1, "the root compares what it had read, once");
    // Each chunk is read for its readers once; that comparison read what had been read by then once more.
    let read = cluster.count(0, Counter::BackendReadBytes);
    assert!(read <= 2 * LONG as u64, "{read} bytes");
}

#[test]
fn other_names_of_a_file_that_is_rewritten_are_new_as_well() {
    needs_fuse!("other_names_of_a_file_that_is_rewritten_are_new_as_well");
    let target = tempfile::tempdir().expect("a temporary directory");
    let (a, b) = (target.path().join("a"), target.path().join("b"));
    fs::write(&a, vec![1; LONG]).expect("the file");
    fs::hard_link(&a, &b).expect("a link");
    let cluster = Cluster::start(4, target.path());
    for node in DEPTHS {
        for name in ["a", "b"] {
            let file = File::open(cluster.mount(node).join(name)).expect("the file");
            assert_eq!(byte_at(&file, 0), Ok(1));
        }
    }
    fs::write(&a, vec![2; LONG]).expect("the file");
    for node in DEPTHS {
        let file = File::open(cluster.mount(node).join("b")).expect("the file");
        assert_eq!(byte_at(&file, (LONG - MIB) as u64), Err(Errno::STALE), "node {node}");
        for name in ["b", "a"] {
            reads_soon(&cluster.mount(node).join(name), &vec![2; LONG]);
        }
    }
}

#[test]
fn times_of_whole_seconds_hide_no_change() {
    needs_fuse!("times_of_whole_seconds_hide_no_change");
    let target = tempfile::tempdir().expect("a temporary directory");
    let path = target.path().join("file");
    fs::write(&path, vec![1; 3 * MIB]).expect("the file");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let second = i64::try_from(now.as_secs()).expect("not that late");
    set_mtime(&path, second, 0);
    let cluster = Cluster::start(1, target.path());
    let served = cluster.mount(0).join("file");
    fs::metadata(&served).expect("the file");
    let reader = std::thread::spawn(move || fs::read(served));
    // Within the same second as far as the file's time tells, and after the reader has asked.
    std::thread::sleep(Duration::from_millis(100));
    File::options().write(true).open(&path).expect("the file").write_all_at(&vec![2; 3 * MIB], 0).expect("all bytes");
    set_mtime(&path, second, 0);
    let bytes = reader.join().expect("the reader").expect("the file's bytes");
    assert!(bytes.iter().all(|byte| *byte == 2), "bytes of a second that was not over were believed");
    let later = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    assert!(later.as_secs() >= now.as_secs() + 2, "they were read before they could be believed");
}

#[test]
fn a_directory_that_is_replaced_shows_its_new_files_everywhere() {
    needs_fuse!("a_directory_that_is_replaced_shows_its_new_files_everywhere");
    let target = tempfile::tempdir().expect("a temporary directory");
    let dir = |name: &str| target.path().join(name);
    for (name, byte) in [("env", 1), ("next", 2)] {
        fs::create_dir_all(dir(name).join("lib")).expect("a directory");
        fs::write(dir(name).join("lib/file"), [byte; 100]).expect("a file");
    }
    fs::write(dir("env").join("lib/old"), b"old").expect("a file");
    let mut plan = Plan::new(4, target.path());
    plan.dir_ttl = Duration::from_millis(500);
    let cluster = plan.start();
    for node in DEPTHS {
        assert_eq!(fs::read(cluster.mount(node).join("env/lib/file")).expect("the file"), [1; 100]);
        fs::metadata(cluster.mount(node).join("env/lib/old")).expect("the file");
    }
    fs::rename(dir("env"), dir("before")).expect("the rename");
    fs::rename(dir("next"), dir("env")).expect("the rename");
    let begin = Instant::now();
    for node in DEPTHS {
        while fs::read(cluster.mount(node).join("env/lib/file")).expect("the file") != [2; 100] {
            assert!(begin.elapsed() < DEADLINE, "node {node} still shows the old directory");
            std::thread::sleep(Duration::from_millis(20));
        }
        let gone = fs::metadata(cluster.mount(node).join("env/lib/old"));
        assert_eq!(errno(gone), Some(Errno::NOENT), "node {node}: it was in the old directory");
    }
}
