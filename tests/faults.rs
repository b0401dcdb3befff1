//! A backend that fails, stalls and recovers: its own errno reaches the client at every depth, nothing of a failure is
//! remembered, and what is slow holds up nothing else.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use bornite::observe::Counter;
use bornite_fuse::Errno as Answer;
use common::backend::{Call, Scripted, Trouble};
use common::tree::{CHUNK, list};
use common::{Cluster, DEADLINE, DEPTHS, Plan, assert_same_bytes, errno, eventually, noise};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// What a parallel filesystem answers on a bad day. None of them may turn into another, least of all into absence.
const ERRORS: [Answer; 8] = [
    Answer::EIO,
    Answer::EACCES,
    Answer::EPERM,
    Answer::ENXIO,
    Answer::ENODEV,
    Answer::ESHUTDOWN,
    Answer::ETIMEDOUT,
    Answer::EREMOTEIO,
];

/// A name of its own for each error and node: what once worked is rightly remembered.
fn name(prefix: &str, error: Answer, node: usize) -> String {
    format!("{prefix}/{error:?}-{node}")
}

fn raw(error: Answer) -> Errno {
    Errno::from_raw_os_error(error.raw())
}

/// All names that [`name`] makes.
fn all_names(prefix: &str) -> Vec<String> {
    ERRORS.iter().flat_map(|&error| DEPTHS.map(|node| name(prefix, error, node))).collect()
}

/// A node that is alone, without a runtime.
fn lone_root() -> bornite::core::Node {
    use bornite::cache::arena::ArenaConfig;
    use bornite::cache::enoent::{EnoentConfig, EnoentMap};
    use bornite::cache::names::{NamesConfig, NamesWriter};
    use bornite::cache::store::ChunkStore;
    use bornite::core::{Node, NodeConfig, NodeId, Topology};

    const BYTES: usize = 4 << 20;
    let config = NodeConfig::new(Topology::new(1, NodeId(0), 1, None).unwrap(), 1, 1, 64);
    let arena = ArenaConfig { first_segment_bytes: BYTES, segment_bytes: BYTES, max_bytes: BYTES };
    let enoent = std::sync::Arc::new(EnoentMap::new(EnoentConfig::new([1, 2])));
    let mut node = Node::new(config, NamesWriter::new(NamesConfig::new([1, 2])), enoent, ChunkStore::new(arena).0);
    node.open_for_service();
    node
}

#[test]
fn failed_lookups_keep_their_errno_and_are_forgotten() {
    needs_fuse!("failed_lookups_keep_their_errno_and_are_forgotten");
    let names = all_names("d");
    let objects: Vec<(&str, Option<&[u8]>)> =
        [("d", None)].into_iter().chain(names.iter().map(|name| (name.as_str(), Some(name.as_bytes())))).collect();
    let backend = Scripted::start(&objects);
    let cluster = Cluster::start(4, backend.path());
    for error in ERRORS {
        for node in DEPTHS {
            let name = name("d", error, node);
            let path = cluster.mount(node).join(&name);
            backend.trouble(&name, Call::Lookup, Trouble::Fail(error));
            for tries in 1..=3 {
                assert_eq!(errno(fs::metadata(&path)), Some(raw(error)), "{name}");
                assert_eq!(errno(fs::read(&path)), Some(raw(error)), "{name}");
                assert!(backend.calls(&name, Call::Lookup) >= 2 * tries, "a failure was repeated from memory: {name}");
            }
            backend.recover();
            assert_eq!(fs::read(&path).unwrap(), name.as_bytes());
        }
    }
    cluster.assert_only_root_asked();
    for node in 0..4 {
        assert_eq!(cluster.count(node, Counter::EnoentStores), 0, "node {node} took a failure for absence");
        assert_eq!(cluster.count(node, Counter::Timeouts), 0);
    }
}

#[test]
fn failed_reads_keep_their_errno_and_are_forgotten() {
    needs_fuse!("failed_reads_keep_their_errno_and_are_forgotten");
    let names = all_names("d");
    // Small ones travel in a frame, large ones by a remote read.
    let bytes: Vec<Vec<u8>> =
        names.iter().zip(0..).map(|(_, n)| noise(n, if n % 2 == 0 { 500 } else { CHUNK + 500 })).collect();
    let objects: Vec<(&str, Option<&[u8]>)> = [("d", None)]
        .into_iter()
        .chain(names.iter().zip(&bytes).map(|(name, bytes)| (name.as_str(), Some(bytes.as_slice()))))
        .collect();
    let backend = Scripted::start(&objects);
    let cluster = Cluster::start(4, backend.path());
    for error in ERRORS {
        for node in DEPTHS {
            let name = name("d", error, node);
            let path = cluster.mount(node).join(&name);
            let expected = &bytes[names.iter().position(|other| *other == name).unwrap()];
            backend.trouble(&name, Call::Read, Trouble::Fail(error));
            for _ in 0..2 {
                assert_eq!(fs::metadata(&path).unwrap().len(), expected.len() as u64);
                assert_eq!(errno(fs::read(&path)), Some(raw(error)), "{name}");
            }
            backend.recover();
            assert_same_bytes(&fs::read(&path).unwrap(), expected, &name);
        }
    }
    cluster.assert_only_root_asked();
}

#[test]
fn failed_listings_keep_their_errno_and_are_forgotten() {
    needs_fuse!("failed_listings_keep_their_errno_and_are_forgotten");
    let names = all_names("d");
    let inside: Vec<String> = names.iter().map(|name| format!("{name}/inside")).collect();
    let objects: Vec<(&str, Option<&[u8]>)> = [("d", None)]
        .into_iter()
        .chain(names.iter().map(|name| (name.as_str(), None)))
        .chain(inside.iter().map(|name| (name.as_str(), Some(&b"x"[..]))))
        .collect();
    let backend = Scripted::start(&objects);
    let cluster = Cluster::start(4, backend.path());
    for error in ERRORS {
        for node in DEPTHS {
            let name = name("d", error, node);
            let path = cluster.mount(node).join(&name);
            backend.trouble(&name, Call::List, Trouble::Fail(error));
            for _ in 0..2 {
                assert_eq!(list(&path), Err(raw(error)), "{name}");
            }
            backend.recover();
            assert_eq!(list(&path).unwrap().into_keys().collect::<Vec<_>>(), ["inside"], "{name}");
        }
    }
}

#[test]
fn slow_lookups_and_reads_fly_once() {
    needs_fuse!("slow_lookups_and_reads_fly_once");
    let bytes = noise(4, CHUNK);
    let backend = Scripted::start(&[("d", None), ("d/slow", Some(&bytes))]);
    let cluster = Cluster::start(4, backend.path());
    for call in [Call::Lookup, Call::Read] {
        backend.trouble("d/slow", call, Trouble::Slow(Duration::from_millis(300)));
    }
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for node in 0..4 {
            for _ in 0..4 {
                let (cluster, bytes) = (&cluster, &bytes);
                scope.spawn(move || {
                    let got = fs::read(cluster.mount(node).join("d/slow")).unwrap();
                    assert_same_bytes(&got, bytes, format_args!("d/slow at node {node}"));
                });
            }
        }
    });
    assert!(begin.elapsed() >= Duration::from_millis(600), "the backend was not slow: the test shows nothing");
    cluster.quiet();
    // The root, the directory and the file.
    assert_eq!(cluster.count(0, Counter::BackendLookup), 3);
    assert_eq!(cluster.count(0, Counter::BackendOpen), 1);
    assert_eq!(cluster.count(0, Counter::BackendReadBytes), bytes.len() as u64);
    for node in 1..4 {
        // The same three, and one chunk.
        let to_parent = cluster.count(node, Counter::RequestsToParent);
        assert_eq!(to_parent - cluster.count(node, Counter::Retries), 4, "requests of node {node} to its parent");
    }
    cluster.assert_only_root_asked();
}

#[test]
fn what_hangs_at_the_backend_holds_up_nothing_else() {
    needs_fuse!("what_hangs_at_the_backend_holds_up_nothing_else");
    let others: Vec<String> = (0..20).map(|n| format!("d/other{n}")).collect();
    let objects: Vec<(&str, Option<&[u8]>)> = [("d", None), ("d/held", Some(&b"held"[..]))]
        .into_iter()
        .chain(others.iter().map(|name| (name.as_str(), Some(name.as_bytes()))))
        .collect();
    let backend = Scripted::start(&objects);
    let cluster = Cluster::start(4, backend.path());
    backend.trouble("d/held", Call::Lookup, Trouble::Hold);
    let held = std::thread::scope(|scope| {
        let waiting = [3, 2].map(|node| {
            let path = cluster.mount(node).join("d/held");
            scope.spawn(move || fs::read(path))
        });
        let held = eventually(DEADLINE, || backend.held() == 1);
        // Longer than the tree's signs of life and repeats.
        let mut last = Ok(());
        let end = Instant::now() + Duration::from_millis(2_500);
        for round in 0.. {
            for node in 0..4 {
                let name = &others[(round + node) % others.len()];
                let got = fs::read(cluster.mount(node).join(name));
                if got.as_ref().ok().map(Vec::as_slice) != Some(name.as_bytes()) {
                    last = Err(format!("{name} at node {node}: {got:?}"));
                }
            }
            if Instant::now() >= end || last.is_err() {
                break;
            }
        }
        let still = waiting.iter().all(|thread| !thread.is_finished()) && backend.held() == 1;
        backend.recover();
        backend.release();
        for thread in waiting {
            assert_eq!(thread.join().unwrap().unwrap(), b"held");
        }
        last.unwrap();
        held && still
    });
    assert!(held, "the lookup did not hang all the while: the test shows nothing");
    assert_eq!(backend.calls("d/held", Call::Lookup), 2, "one for the attributes, one to open it");
    cluster.assert_only_root_asked();
}

#[test]
fn sixteen_reads_that_hang_hold_up_no_lookup() {
    needs_fuse!("sixteen_reads_that_hang_hold_up_no_lookup");
    const HANGING: usize = 16;
    let held: Vec<String> = (0..HANGING).map(|n| format!("held{n}")).collect();
    let objects: Vec<(&str, Option<&[u8]>)> = [("d", None), ("d/other", Some(&b"other"[..]))]
        .into_iter()
        .chain(held.iter().map(|name| (name.as_str(), Some(name.as_bytes()))))
        .collect();
    for call in [Call::Read, Call::Lookup] {
        let backend = Scripted::start(&objects);
        let cluster = Cluster::start(4, backend.path());
        for name in &held {
            backend.trouble(name, call, Trouble::Hold);
        }
        let others = std::thread::scope(|scope| {
            // From every depth, so that the root gets some of its own and some of its children.
            let waiting: Vec<_> = (0..HANGING)
                .map(|n| {
                    let path = cluster.mount(DEPTHS[n % DEPTHS.len()]).join(&held[n]);
                    scope.spawn(move || fs::read(path))
                })
                .collect();
            let held_all = eventually(DEADLINE, || backend.held() == HANGING);
            let begin = Instant::now();
            let others = DEPTHS.map(|node| {
                let mount = cluster.mount(node);
                // A lookup of a directory and of a file, a listing, a read, and figures.
                let read = fs::read(mount.join("d/other")).ok();
                let names = list(&mount.join("d")).map(|names| names.len());
                let absent = errno(fs::metadata(mount.join("d/absent")));
                let figures = rustix::fs::statvfs(mount).is_ok();
                (read, names, absent, figures)
            });
            let took = begin.elapsed();
            let still = waiting.iter().filter(|thread| !thread.is_finished()).count();
            backend.recover();
            backend.release();
            for (thread, name) in waiting.into_iter().zip(&held) {
                assert_eq!(thread.join().unwrap().unwrap(), name.as_bytes());
            }
            assert!(held_all && still == HANGING, "{call:?}: only {still} hung: the test shows nothing");
            assert!(took < DEADLINE / 2, "{call:?}: what does not hang took {took:?}");
            others
        });
        for (node, other) in DEPTHS.into_iter().zip(others) {
            assert_eq!(other, (Some(b"other".to_vec()), Ok(1), Some(Errno::NOENT), true), "{call:?}, node {node}");
        }
        cluster.assert_only_root_asked();
    }
}

/// FUSE threads ask the backend themselves, but for one.
#[test]
fn what_is_in_memory_is_answered_while_every_other_fuse_thread_hangs_at_the_backend() {
    needs_fuse!("what_is_in_memory_is_answered_while_every_other_fuse_thread_hangs_at_the_backend");
    const THREADS: usize = 3;
    const READS: u64 = 200;
    let held: Vec<String> = (0..2 * THREADS).map(|n| format!("held{n}")).collect();
    let bytes = noise(8, 9_000);
    let objects: Vec<(&str, Option<&[u8]>)> = [("d", None), ("d/other", Some(&bytes[..]))]
        .into_iter()
        .chain(held.iter().map(|name| (name.as_str(), Some(&b"held"[..]))))
        .collect();
    let backend = Scripted::start(&objects);
    let cluster = Plan { fuse_threads: THREADS, ..Plan::new(1, backend.path()) }.start();
    // Past the kernel's cache, so that each read is a request.
    let read = || {
        let mut open = fs::OpenOptions::new();
        let file =
            open.read(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(cluster.mount(0).join("d/other"));
        let mut got = Vec::new();
        file.and_then(|mut file| file.read_to_end(&mut got)).map(|_| got)
    };
    assert_same_bytes(&read().unwrap(), &bytes, "d/other");
    for name in &held {
        backend.trouble(name, Call::Lookup, Trouble::Hold);
    }
    let held_at = |name: &String| cluster.mount(0).join(name);
    let (asked, answered) = std::thread::scope(|scope| {
        let waiting: Vec<_> = held.iter().map(held_at).map(|path| scope.spawn(move || fs::metadata(path))).collect();
        let asked = eventually(DEADLINE, || backend.held() == held.len());
        let before = cluster.count(0, Counter::FuseRead);
        let same = (0..READS).all(|_| read().is_ok_and(|got| got == bytes));
        let answered = same && cluster.count(0, Counter::FuseRead) - before >= READS;
        let still = waiting.iter().all(|thread| !thread.is_finished());
        backend.recover();
        backend.release();
        for thread in waiting {
            assert_eq!(thread.join().unwrap().unwrap().len(), 4);
        }
        (asked && still, answered)
    });
    assert!(asked, "not all of them hung: the test shows nothing");
    assert!(answered);
}

/// Without a mount, since the core's clock need not run as fast as ours.
#[test]
fn what_has_no_answer_within_45_s_fails_and_is_forgotten() {
    use bornite::cache::types::Micros;
    use bornite::core::{BackendOp, Object, Outcome, Output};

    const DEADLINE_US: u64 = 45_000_000;
    let mut node = lone_root();
    let path = || Object::Attr(b"name"[..].into());
    for (round, begin) in [(1, 1_000_000), (2, 100_000_000)] {
        let at = |us: u64| Micros(begin + us);
        node.request(at(0), path(), bornite::core::Waiter::Local(round));
        // It is asked, and the backend says nothing.
        let outputs: Vec<Output> = std::iter::from_fn(|| node.poll_output()).collect();
        let asked = |output: &Output| matches!(output, Output::Backend { op: BackendOp::Attr { .. }, .. });
        assert!(outputs.iter().any(asked), "round {round} is answered from memory: {outputs:?}");
        let mut ended = None;
        while let Some(due) = node.next_deadline().filter(|due| ended.is_none() && *due <= at(2 * DEADLINE_US)) {
            node.timer(due);
            ended = std::iter::from_fn(|| node.poll_output()).find_map(|output| match output {
                Output::Complete { waiter, outcome } => Some((due, waiter, outcome)),
                _ => None,
            });
        }
        let Some((due, waiter, Outcome::Failed { errno })) = ended else { panic!("round {round}: {ended:?}") };
        assert_eq!((due, waiter, errno), (at(DEADLINE_US), round, Errno::IO.raw_os_error()));
        assert_eq!(node.in_flight(), 0);
    }
    assert_eq!(node.counters().timeouts, 2);
}
