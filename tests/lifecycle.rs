//! The beginning and the end of a daemon: what it refuses and how it says so, who may come late, and that it stops
//! whatever is going on.

mod common;

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bornite::observe::{Counter, Counters};
use bornite::runtime::{Daemon, DaemonConfig, StartError, StopError};
use common::backend::{Call, Scripted, Trouble};
use common::tree::CHUNK;
use common::{
    Cluster, DEADLINE, DEPTHS, Plan, STOP_DEADLINE, assert_same_bytes, errno, eventually, free_port, is_mounted, noise,
    wait_until,
};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// What stopping may take beyond its deadline on a busy machine.
const SLACK: Duration = Duration::from_secs(1);

/// What a reader may see of a daemon that goes away.
fn is_end_of_daemon(errno: Option<Errno>) -> bool {
    matches!(errno, Some(Errno::IO | Errno::NOTCONN | Errno::CONNABORTED))
}

/// The text of the error that the start must end with: one line.
#[track_caller]
fn refusal(config: DaemonConfig) -> String {
    let mountpoint = config.mountpoint.clone();
    let mounted = is_mounted(&mountpoint);
    let error = match Daemon::start(config, Arc::new(Counters::new())) {
        Err(error) => error.to_string(),
        Ok(daemon) => {
            daemon.stop(STOP_DEADLINE).expect("it stops");
            panic!("a daemon started that must not");
        }
    };
    assert_eq!(error.lines().count(), 1, "not one line: {error:?}");
    assert_eq!(is_mounted(&mountpoint), mounted, "the refused start changed the mount at {}", mountpoint.display());
    error
}

#[track_caller]
fn assert_names(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is missing in: {error}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of a temporary directory")
}

#[test]
fn stops_while_a_file_is_read() {
    needs_fuse!("stops_while_a_file_is_read");
    let target = tempfile::tempdir().unwrap();
    let bytes = noise(1, 8 * CHUNK);
    fs::write(target.path().join("file"), &bytes).unwrap();
    let mut cluster = Cluster::start(2, target.path());
    for node in [1, 0] {
        // Each read reaches the daemon, so that some are always on their way.
        let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap();
        let path = cluster.mount(node).join("file");
        let file = File::options().read(true).custom_flags(direct).open(&path).unwrap();
        let daemon = cluster.take(node);
        let (reads, over, end) = (AtomicU64::new(0), AtomicBool::new(false), Instant::now() + 2 * DEADLINE);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                const LEN: usize = 100_000;
                let mut got = vec![0; LEN];
                for at in (0..).map(|n| n * 777_777 % (bytes.len() - LEN)) {
                    match file.read_at(&mut got, at as u64) {
                        Ok(n) => assert_same_bytes(&got[..n], &bytes[at..at + LEN], format_args!("bytes at {at}")),
                        Err(error) => return errno::<()>(Err(error)),
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                    // The deadline is for a test that fails before it says so.
                    if over.load(Ordering::Relaxed) || Instant::now() >= end {
                        return None;
                    }
                }
                unreachable!("the offsets do not end")
            });
            assert!(eventually(DEADLINE, || reads.load(Ordering::Relaxed) > 20), "nothing is read");
            let deadline = Duration::from_secs(2);
            let begin = Instant::now();
            let stopped = daemon.stop(deadline);
            assert!(begin.elapsed() < deadline + SLACK, "stopping took {:?}", begin.elapsed());
            assert!(!is_mounted(cluster.mount(node)), "still mounted at node {node}");
            // The open file keeps the connection: in a daemon of its own the end of the process cuts it.
            assert!(matches!(stopped, Err(StopError::Late(_)) | Ok(())), "{stopped:?}");
            over.store(true, Ordering::Relaxed);
            let seen = reader.join().unwrap();
            assert!(seen.is_none() || is_end_of_daemon(seen), "the reader got {seen:?}");
        });
        assert_eq!(errno(fs::metadata(&path)), Some(Errno::NOENT), "the mount point is empty again");
    }
}

#[test]
fn stops_while_requests_hang_at_the_backend() {
    needs_fuse!("stops_while_requests_hang_at_the_backend");
    let names: Vec<String> = DEPTHS.map(|node| format!("held{node}")).into();
    let objects: Vec<(&str, Option<&[u8]>)> = names.iter().map(|name| (name.as_str(), Some(&b"x"[..]))).collect();
    let backend = Scripted::start(&objects);
    for name in &names {
        backend.trouble(name, Call::Lookup, Trouble::Hold);
    }
    let mut cluster = Cluster::start(4, backend.path());
    // The grandchild first, the root last: each has a request of its own that hangs.
    for (held, (node, name)) in DEPTHS.into_iter().zip(&names).rev().enumerate() {
        let path = cluster.mount(node).join(name);
        let daemon = cluster.take(node);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| errno(fs::metadata(&path)));
            assert!(eventually(DEADLINE, || backend.held() == held + 1), "the lookup of node {node} does not arrive");
            let deadline = Duration::from_secs(3);
            let begin = Instant::now();
            daemon.stop(deadline).unwrap_or_else(|error| panic!("node {node}: {error}"));
            assert!(begin.elapsed() < deadline + SLACK, "stopping took {:?}", begin.elapsed());
            assert!(eventually(DEADLINE, || client.is_finished()), "the client of node {node} hangs");
            let seen = client.join().unwrap();
            assert!(is_end_of_daemon(seen), "the client of node {node} got {seen:?}");
        });
        assert!(!is_mounted(cluster.mount(node)), "still mounted at node {node}");
    }
    backend.recover();
    backend.release();
}

#[test]
fn a_daemon_that_comes_back_serves_again() {
    needs_fuse!("a_daemon_that_comes_back_serves_again");
    let target = tempfile::tempdir().unwrap();
    let bytes = noise(5, CHUNK + 5);
    fs::write(target.path().join("file"), &bytes).unwrap();
    fs::write(target.path().join("other"), &bytes[5..]).unwrap();
    let mut cluster = Cluster::start(2, target.path());
    assert_same_bytes(&fs::read(cluster.mount(1).join("file")).unwrap(), &bytes, "the file");
    cluster.take(1).stop(STOP_DEADLINE).unwrap();
    cluster.launch(1).unwrap();
    for (name, expected) in [("file", &bytes[..]), ("other", &bytes[5..])] {
        assert_same_bytes(&fs::read(cluster.mount(1).join(name)).unwrap(), expected, name);
    }
    assert_eq!(cluster.count(0, Counter::BackendReadBytes), 2 * bytes.len() as u64 - 5, "the root remembers");
}

#[test]
fn a_second_daemon_at_a_mount_point_is_refused() {
    needs_fuse!("a_second_daemon_at_a_mount_point_is_refused");
    let target = tempfile::tempdir().unwrap();
    fs::write(target.path().join("file"), b"x").unwrap();
    let cluster = Cluster::start(1, target.path());
    let error = refusal(cluster.config(0));
    assert_names(&error, &[text(cluster.mount(0)), "already mounted", &format!("pid {}", std::process::id())]);
    assert_eq!(fs::read(cluster.mount(0).join("file")).unwrap(), b"x", "the first goes on");
}

#[test]
fn what_cannot_be_served_or_mounted_is_named() {
    needs_fuse!("what_cannot_be_served_or_mounted_is_named");
    let target = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("file"), b"x").unwrap();
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/inside"), b"x").unwrap();
    let mut cluster = Plan::new(2, target.path()).prepare();
    let config = cluster.config(0);
    let missing = at("missing");

    let error = refusal(DaemonConfig { target: missing.clone(), ..config.clone() });
    assert_names(&error, &[text(&missing), "target", "No such file"]);
    let error = refusal(DaemonConfig { target: at("file"), ..config.clone() });
    assert_names(&error, &[text(&at("file")), "target", "not a directory"]);
    let error = refusal(DaemonConfig { mountpoint: missing.clone(), ..config.clone() });
    assert_names(&error, &[text(&missing), "mount point", "does not exist"]);
    let error = refusal(DaemonConfig { mountpoint: at("file"), ..config.clone() });
    assert_names(&error, &[text(&at("file")), "mount point", "not a directory"]);
    let error = refusal(DaemonConfig { mountpoint: at("full"), ..config.clone() });
    assert_names(&error, &[text(&at("full")), "mount point", "not empty"]);

    let mut book = cluster.book.clone();
    book[1].1 = "ofi+carrier-pigeon:coop 7".to_owned();
    let error = refusal(DaemonConfig { nodes: Arc::new(book), ..config.clone() });
    assert_names(&error, &["node1", "ofi+carrier-pigeon:coop 7"]);
    let error = refusal(DaemonConfig { net: Some("string".to_owned()), ..config.clone() });
    assert_names(&error, &["string"]);
    let error = refusal(DaemonConfig { me: 2, ..config.clone() });
    assert_names(&error, &["2"]);
    let error = refusal(DaemonConfig { fanout: Some(0), ..config });
    assert_names(&error, &["fan"]);

    // Nothing of the refused starts is left: the port is free, and so is the mount point.
    cluster.launch(0).unwrap();
    assert_eq!(fs::read_dir(cluster.mount(0)).unwrap().count(), 0);
}

#[test]
fn a_taken_port_is_told_with_its_holder() {
    needs_fuse!("a_taken_port_is_told_with_its_holder");
    let target = tempfile::tempdir().unwrap();
    let mut cluster = Plan::new(2, target.path()).prepare();
    let port = free_port();
    let holder = TcpListener::bind(("127.0.0.1", port)).unwrap();
    cluster.book[0].1 = format!("ofi+tcp://127.0.0.1:{port}");
    let error = refusal(cluster.config(0));
    assert_names(&error, &[&format!("127.0.0.1:{port}"), "taken", &format!("process {} ", std::process::id())]);
    drop(holder);
    cluster.launch(0).unwrap();
}

#[test]
fn a_parent_may_come_late() {
    needs_fuse!("a_parent_may_come_late");
    const LATE: Duration = Duration::from_secs(3);
    let target = tempfile::tempdir().unwrap();
    let bytes = noise(8, CHUNK + 1);
    fs::write(target.path().join("file"), &bytes).unwrap();
    let mut cluster = Plan::new(2, target.path()).prepare();
    let begin = Instant::now();
    cluster.launch(1).unwrap();
    assert_eq!(cluster.daemon(1).status().state, "parent unreachable");
    assert_eq!(cluster.daemon(1).status().parent.as_deref(), Some("node0"));
    let path = cluster.mount(1).join("file");
    std::thread::scope(|scope| {
        let client = scope.spawn(|| fs::read(&path));
        wait_until(begin + LATE);
        assert!(!client.is_finished(), "answered without a parent: {:?}", client.join());
        cluster.launch(0).unwrap();
        assert!(eventually(DEADLINE, || client.is_finished()), "the request did not survive the wait");
        assert_same_bytes(&client.join().unwrap().unwrap(), &bytes, "the file");
    });
    assert!(eventually(DEADLINE, || cluster.daemon(1).status().state == "ready"));
    assert_eq!(cluster.count(1, Counter::Timeouts), 0);
}

#[test]
fn errors_say_which_node_of_the_book_is_wrong() {
    needs_fuse!("errors_say_which_node_of_the_book_is_wrong");
    let target = tempfile::tempdir().unwrap();
    let mut cluster = Plan::new(3, target.path()).prepare();
    for (node, address) in [(0, ""), (1, "127.0.0.1:1"), (2, "ofi+tcp://127.0.0.1:99999")] {
        let right = std::mem::replace(&mut cluster.book[node].1, address.to_owned());
        let config = cluster.config(0);
        cluster.book[node].1 = right;
        match Daemon::start(config, Arc::new(Counters::new())) {
            Err(StartError::Address { node: named, reason }) => {
                assert_eq!(named, format!("node{node}"));
                assert!(reason.contains(address), "{reason}");
            }
            other => panic!("{address:?} as address of node {node}: {:?}", other.err()),
        }
    }
}
