//! How old an answer may be: absence for the TTL wherever it was learnt, bytes of one version only.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bornite::observe::Counter;
use common::tree::CHUNK;
use common::{Cluster, DEADLINE, DEPTHS, Plan, assert_same_bytes, errno, eventually, noise, wait_until};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// How much later than promised an answer may come on a busy machine.
const SLACK: Duration = Duration::from_millis(500);

fn is_absent(path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => true,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

#[test]
fn repeated_misses_ask_once() {
    needs_fuse!("repeated_misses_ask_once");
    let target = tempfile::tempdir().unwrap();
    fs::write(target.path().join("present"), b"x").unwrap();
    let cluster = Plan { enoent_ttl: Duration::from_secs(30), ..Plan::new(4, target.path()) }.start();
    for node in 0..4 {
        fs::metadata(cluster.mount(node).join("present")).unwrap();
    }
    cluster.quiet();
    let before: Vec<u64> = (0..4).map(|node| cluster.count(node, Counter::RequestsToParent)).collect();
    let backend = cluster.count(0, Counter::BackendLookup);
    let misses = |node: usize| {
        for _ in 0..50 {
            assert!(is_absent(&cluster.mount(node).join("absent")));
        }
    };
    let asked = |node: usize| cluster.count(node, Counter::RequestsToParent) - before[node];
    misses(3);
    cluster.quiet();
    assert_eq!((asked(3), asked(1), asked(2)), (1, 1, 0));
    for node in [1, 0, 2] {
        misses(node);
    }
    cluster.quiet();
    // The child knew it from the grandchild's question; its sibling had to ask, and the root knew.
    assert_eq!((asked(3), asked(1), asked(2)), (1, 1, 1));
    assert_eq!(cluster.count(0, Counter::BackendLookup) - backend, 1);
    assert_eq!(cluster.count(0, Counter::BackendEnoent), 1);
    for node in 0..4 {
        assert_eq!(cluster.count(node, Counter::EnoentStores), 1, "stores of node {node}");
        // The kernel repeats it by itself.
        assert_eq!(cluster.count(node, Counter::FuseLookup), 2, "lookups that reached node {node}");
    }
    cluster.assert_only_root_asked();
}

#[test]
fn new_names_are_seen_within_the_ttl_and_stay() {
    needs_fuse!("new_names_are_seen_within_the_ttl_and_stay");
    const TTL: Duration = Duration::from_millis(700);
    let target = tempfile::tempdir().unwrap();
    fs::create_dir(target.path().join("dir")).unwrap();
    let names: Vec<String> = (0..6).map(|n| format!("dir/{n}")).collect();
    let cluster = Plan { enoent_ttl: TTL, ..Plan::new(4, target.path()) }.start();
    let begin = Instant::now();
    // Created one after the other, so that they meet the running TTLs at many moments.
    let created_at = |n: usize| begin + TTL / 2 + TTL.mul_f64(0.3) * u32::try_from(n).unwrap();
    let end = created_at(names.len()) + TTL + SLACK + Duration::from_millis(200);
    let (names, cluster) = (&names, &cluster);
    std::thread::scope(|scope| {
        let pollers: Vec<_> = (0..4)
            .map(|node| {
                scope.spawn(move || {
                    let mut seen: Vec<Option<Instant>> = vec![None; names.len()];
                    let mut misses = vec![0u64; names.len()];
                    while Instant::now() < end {
                        for (n, name) in names.iter().enumerate() {
                            let absent = is_absent(&cluster.mount(node).join(name));
                            assert!(!absent || seen[n].is_none(), "{name} was seen by node {node}, and then was not");
                            if absent {
                                misses[n] += 1;
                            } else if seen[n].is_none() {
                                seen[n] = Some(Instant::now());
                            }
                        }
                        std::thread::park_timeout(Duration::from_millis(2));
                    }
                    (seen, misses)
                })
            })
            .collect();
        let mut created = Vec::new();
        for (n, name) in names.iter().enumerate() {
            wait_until(created_at(n));
            fs::write(target.path().join(name), b"x").unwrap();
            created.push(Instant::now());
        }
        for (node, poller) in pollers.into_iter().enumerate() {
            let (seen, misses) = poller.join().unwrap();
            for (n, name) in names.iter().enumerate() {
                let seen = seen[n].unwrap_or_else(|| panic!("{name} was never seen by node {node}"));
                let age = seen.saturating_duration_since(created[n]);
                assert!(age <= TTL + SLACK, "{name} was seen by node {node} after {age:?}");
                assert!(misses[n] > 0, "{name} was not missed by node {node}: the test shows nothing");
            }
        }
    });
    // At most one question for each name in each TTL, though there were hundreds.
    let most = names.len() as u64 * (begin.elapsed().div_duration_f64(TTL).ceil() as u64 + 1);
    let asked = cluster.count(0, Counter::BackendEnoent);
    assert!(asked <= most, "{asked} misses at the backend, at most {most} expected");
    cluster.assert_only_root_asked();
}

#[test]
fn a_file_that_a_job_makes_removes_and_makes_again_is_seen_in_each_state() {
    needs_fuse!("a_file_that_a_job_makes_removes_and_makes_again_is_seen_in_each_state");
    let ttl = Duration::from_millis(200);
    let target = tempfile::tempdir().unwrap();
    let cluster = Plan { enoent_ttl: ttl, attr_ttl: Some(ttl), ..Plan::new(4, target.path()) }.start();
    let made = target.path().join("lock");
    for round in 0..4 {
        // Everybody sees that it is not there, then that it is, with these bytes, and never again the ones before.
        for node in 0..4 {
            let gone = || is_absent(&cluster.mount(node).join("lock"));
            assert!(eventually(DEADLINE, gone), "round {round}: node {node} sees a file that was removed");
        }
        let text = format!("round {round}");
        fs::write(target.path().join("new"), &text).unwrap();
        fs::rename(target.path().join("new"), &made).unwrap();
        for node in 0..4 {
            let path = cluster.mount(node).join("lock");
            let there = || !is_absent(&path);
            assert!(eventually(DEADLINE, there), "round {round}: node {node} does not see a file that was made");
            assert_eq!(fs::read_to_string(&path).unwrap(), text, "node {node}");
        }
        fs::remove_file(&made).unwrap();
    }
    cluster.assert_only_root_asked();
}

#[test]
fn without_a_ttl_every_miss_asks() {
    needs_fuse!("without_a_ttl_every_miss_asks");
    let target = tempfile::tempdir().unwrap();
    let cluster = Plan { enoent_ttl: Duration::ZERO, ..Plan::new(4, target.path()) }.start();
    for node in DEPTHS {
        let name = format!("name{node}");
        let path = cluster.mount(node).join(&name);
        let before = cluster.count(0, Counter::BackendEnoent);
        for round in 1..=5 {
            assert!(is_absent(&path));
            assert_eq!(cluster.count(0, Counter::BackendEnoent) - before, round, "node {node}");
        }
        fs::write(target.path().join(&name), b"x").unwrap();
        assert!(!is_absent(&path), "node {node} repeated an absence");
    }
    for node in 0..4 {
        assert_eq!(cluster.count(node, Counter::EnoentServes), 0);
    }
}

#[test]
fn the_age_of_an_absence_travels() {
    needs_fuse!("the_age_of_an_absence_travels");
    const TTL: Duration = Duration::from_millis(1_500);
    const ROUNDS: usize = 4;
    let target = tempfile::tempdir().unwrap();
    let cluster = Plan { enoent_ttl: TTL, ..Plan::new(4, target.path()) }.start();
    // A busy machine may wake this thread too late, when the root's answer is over; then once more, with a new name.
    for round in 0..ROUNDS {
        let name = format!("name{round}");
        let asked = cluster.count(0, Counter::BackendEnoent);
        assert!(is_absent(&cluster.mount(0).join(&name)));
        let begin = Instant::now();
        wait_until(begin + TTL.mul_f64(0.4));
        assert!(is_absent(&cluster.mount(1).join(&name)));
        wait_until(begin + TTL.mul_f64(0.8));
        assert!(is_absent(&cluster.mount(3).join(&name)));
        if cluster.count(0, Counter::BackendEnoent) - asked > 1 {
            continue;
        }
        fs::write(target.path().join(&name), b"x").unwrap();
        // Counted from where each learnt it, this would be 1.4 TTL for the child and 1.8 TTL for the grandchild.
        for node in DEPTHS {
            assert!(eventually(DEADLINE, || !is_absent(&cluster.mount(node).join(&name))));
            let age = begin.elapsed();
            assert!(age <= TTL + TTL.mul_f64(0.3), "node {node} said for {age:?} that it is absent");
        }
        return;
    }
    panic!("{ROUNDS} times this machine was too busy to ask three nodes within {TTL:?}");
}

/// Up to `len` bytes from `at` on: a read may give what it has before it fails.
fn read_until_error(file: &File, at: u64, len: usize) -> (Vec<u8>, Option<Errno>) {
    let mut bytes = vec![0; len];
    let mut have = 0;
    while have < len {
        match file.read_at(&mut bytes[have..], at + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(error) => {
                bytes.truncate(have);
                return (bytes, errno::<()>(Err(error)));
            }
        }
    }
    bytes.truncate(have);
    (bytes, None)
}

#[test]
fn a_changed_file_is_never_mixed() {
    needs_fuse!("a_changed_file_is_never_mixed");
    // Through the page cache, and past it: there the first answer to be refused is seen, not only what comes after it.
    for flags in [OFlags::empty(), OFlags::DIRECT] {
        never_mixed(flags);
    }
}

fn never_mixed(flags: OFlags) {
    let target = tempfile::tempdir().unwrap();
    let (old, new) = (noise(1, 6 * CHUNK), noise(2, 4 * CHUNK + 17));
    let file = target.path().join("file");
    fs::write(&file, &old).unwrap();
    let cluster = Cluster::start(4, target.path());
    // Each node has the beginning of the old bytes.
    let open: Vec<(usize, File)> = DEPTHS
        .map(|node| {
            let flags = i32::try_from(flags.bits()).unwrap();
            let path = cluster.mount(node).join("file");
            let open = File::options().read(true).custom_flags(flags).open(path).unwrap();
            let mut head = vec![0; 5000];
            open.read_exact_at(&mut head, 0).unwrap();
            assert_same_bytes(&head, &old[..5000], "the beginning");
            (node, open)
        })
        .into();
    let old_ino: Vec<u64> = open.iter().map(|(_, file)| file.metadata().unwrap().ino()).collect();
    // The same inode at the backend, with other bytes.
    fs::write(&file, &new).unwrap();
    let mut stale = 0;
    for (node, open) in &open {
        for at in (0..old.len()).step_by(64 << 10) {
            let expected = &old[at..old.len().min(at + (64 << 10))];
            let (got, error) = read_until_error(open, at as u64, expected.len());
            assert_same_bytes(&got, &expected[..got.len()], format_args!("old bytes at {at}, node {node}"));
            match error {
                // The end before the old length would be a lie about the old file.
                None => assert_eq!(got.len(), expected.len(), "the file ends early at {at}, node {node}"),
                Some(error) => {
                    assert_eq!(error, Errno::STALE, "at {at}, node {node}");
                    stale += 1;
                }
            }
        }
    }
    assert!(stale > 0, "everything was in memory: the test shows nothing");
    for ((node, _), old_ino) in open.iter().zip(old_ino) {
        let path = cluster.mount(*node).join("file");
        let mut last = None;
        let fresh = eventually(Duration::from_secs(1), || match fs::read(&path) {
            Ok(bytes) if bytes.len() == new.len() => {
                assert_same_bytes(&bytes, &new, format_args!("new bytes at node {node}"));
                true
            }
            Ok(bytes) => {
                assert_same_bytes(&bytes, &old, format_args!("old bytes at node {node}"));
                last = Some("the old bytes".to_owned());
                false
            }
            Err(error) => {
                last = Some(error.to_string());
                assert_eq!(errno::<()>(Err(error)), Some(Errno::STALE), "node {node}");
                false
            }
        });
        assert!(fresh, "node {node} does not come to the new bytes; last: {last:?}");
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), new.len() as u64);
        assert_ne!(meta.ino(), old_ino, "node {node} has other bytes under the same inode");
    }
}

#[test]
fn readers_of_a_file_that_is_replaced_get_whole_versions() {
    needs_fuse!("readers_of_a_file_that_is_replaced_get_whole_versions");
    const VERSIONS: usize = 25;
    let target = tempfile::tempdir().unwrap();
    let version = |n: usize| noise(n as u64 + 1, CHUNK + 100_000 + n * 1000);
    let versions: Vec<Vec<u8>> = (0..VERSIONS).map(version).collect();
    let put = |n: usize| {
        let new = target.path().join("new");
        fs::write(&new, &versions[n]).unwrap();
        fs::rename(new, target.path().join("file")).unwrap();
    };
    put(0);
    let ttl = Duration::from_millis(50);
    let cluster = Plan { attr_ttl: Some(ttl), ..Plan::new(4, target.path()) }.start();
    let done = AtomicBool::new(false);
    // A version by its length; the bytes must be all of it and nothing else.
    let read = |node: usize| match fs::read(cluster.mount(node).join("file")) {
        Ok(bytes) => {
            let n = versions.iter().position(|version| version.len() == bytes.len());
            let n = n.unwrap_or_else(|| panic!("{} bytes are no version's, at node {node}", bytes.len()));
            assert_same_bytes(&bytes, &versions[n], format_args!("version {n} at node {node}"));
            Some(n)
        }
        Err(error) => {
            assert_eq!(errno::<()>(Err(error)), Some(Errno::STALE), "node {node}");
            None
        }
    };
    let end = Instant::now() + 4 * DEADLINE;
    // How many versions each reader has seen.
    let seen = DEPTHS.map(|_| AtomicUsize::new(0));
    let all_saw = |versions| eventually(DEADLINE, || seen.iter().all(|seen| seen.load(Ordering::Relaxed) >= versions));
    std::thread::scope(|scope| {
        for (node, seen) in DEPTHS.into_iter().zip(&seen) {
            let (read, done) = (&read, &done);
            scope.spawn(move || {
                let mut versions = BTreeSet::new();
                // The deadline is for a test that fails before it says so.
                while !done.load(Ordering::Relaxed) && Instant::now() < end {
                    versions.extend(read(node));
                    seen.store(versions.len(), Ordering::Relaxed);
                }
            });
        }
        let began = all_saw(1);
        for n in 1..VERSIONS {
            wait_until(Instant::now() + Duration::from_millis(60));
            put(n);
        }
        let last = DEPTHS.map(|node| eventually(DEADLINE, || read(node) == Some(VERSIONS - 1)));
        let ended = all_saw(2);
        done.store(true, Ordering::Relaxed);
        assert_eq!(last, [true; 3], "root, child and grandchild come to the last version");
        assert!(began && ended, "a reader is stuck; versions seen: {seen:?}");
    });
}
