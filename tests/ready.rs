//! Readiness end to end: the root knows of every mount, and says who is missing.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bornite::observe::{Counter, Counters, TreeStatus};
use bornite::runtime::{Daemon, DaemonConfig};
use common::program::Program;
use common::{Cluster, DEADLINE, Plan, STOP_DEADLINE, eventually, free_port};

/// What the daemon of `node` says of the nodes at and below it.
fn tree(cluster: &Cluster, node: usize) -> TreeStatus {
    cluster.daemon(node).status().tree.expect("it has started")
}

fn ready(cluster: &Cluster, node: usize) -> (u32, Vec<String>) {
    let TreeStatus { nodes, ready, missing } = tree(cluster, node);
    assert_eq!(nodes - ready, missing.len() as u32);
    (nodes, missing)
}

#[test]
fn the_root_names_who_is_not_mounted_until_all_are() {
    needs_fuse!("the_root_names_who_is_not_mounted_until_all_are");
    let target = tempfile::tempdir().expect("a temporary directory");
    let mut cluster = Plan::new(6, target.path()).prepare();
    for node in [0, 1, 2, 3, 5] {
        cluster.launch(node).expect("it starts");
    }
    let is_known = |node, all, missing: &[&str]| {
        eventually(DEADLINE, || ready(&cluster, node) == (all, missing.iter().map(|name| (*name).to_owned()).collect()))
    };
    assert!(is_known(0, 6, &["node4"]), "{:?}", tree(&cluster, 0));
    assert!(is_known(1, 3, &["node4"]), "{:?}", tree(&cluster, 1));
    assert!(is_known(5, 1, &[]), "{:?}", tree(&cluster, 5));
    cluster.launch(4).expect("it starts");
    let is_all = eventually(DEADLINE, || ready(&cluster, 0) == (6, vec![]));
    assert!(is_all, "{:?}", tree(&cluster, 0));
}

/// In the chain of nodes 0, 1, 3 and 7 node 1 comes 3 s late. Its child and its child's child have been served by then.
#[test]
fn a_parent_that_is_late_holds_up_nobody_below_its_child() {
    needs_fuse!("a_parent_that_is_late_holds_up_nobody_below_its_child");
    let target = tempfile::tempdir().expect("a temporary directory");
    fs::write(target.path().join("file"), b"contents").expect("a file");
    let mut cluster = Plan::new(8, target.path()).prepare();
    let begin = Instant::now();
    for node in [0, 3, 7] {
        cluster.launch(node).expect("it starts");
    }
    let state = |cluster: &Cluster, node: usize| cluster.daemon(node).status().state;
    assert!(eventually(DEADLINE, || state(&cluster, 7) == "ready"), "{}", state(&cluster, 7));
    // Through the root, which is asked in the parent's place once that was waited for.
    let paths = [3, 7].map(|node| cluster.mount(node).join("file"));
    let read = |path: &Path| {
        let path = path.to_owned();
        let reader = std::thread::spawn(move || fs::read(path));
        assert!(eventually(DEADLINE, || reader.is_finished()), "nobody answers");
        reader.join().expect("it only reads")
    };
    assert_eq!(read(&paths[0]).expect("the child's file"), b"contents");
    let asked = cluster.count(3, Counter::RequestsToParent);
    assert_eq!(read(&paths[1]).expect("the grandchild's file"), b"contents");
    assert_eq!(cluster.count(3, Counter::RequestsToParent), asked, "what it has it does not ask for");
    assert!(cluster.count(3, Counter::ProbesUnanswered) > 3);
    assert_eq!(cluster.count(7, Counter::ParentsConfirmed), 1);
    assert_eq!(cluster.count(7, Counter::Failovers), 0);
    assert!(eventually(DEADLINE, || begin.elapsed() >= Duration::from_secs(3)));
    cluster.launch(1).expect("it starts");
    assert!(eventually(DEADLINE, || cluster.daemon(3).status().asks.is_empty() && state(&cluster, 3) == "ready"));
    assert!(eventually(DEADLINE, || ready(&cluster, 1).1 == ["node4"]), "{:?}", tree(&cluster, 1));
}

/// What the scaling study of Copper looks for in a log, in its words, from level 4 on.
#[test]
fn the_log_has_the_lines_of_the_start() {
    needs_fuse!("the_log_has_the_lines_of_the_start");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (target, book) = (dir.path().join("target"), dir.path().join("book"));
    fs::create_dir(&target).expect("a directory");
    fs::write(target.join("file"), b"contents").expect("a file");
    let address = format!("ofi+tcp://127.0.0.1:{}", free_port());
    fs::write(&book, format!("a {address}\nb ofi+tcp://127.0.0.1:{}\n", free_port())).expect("a book");
    let own = |host: &str| dir.path().join(host);
    let mount = |host: &str, level: &str| {
        Program::mount(&target, &own(host).join("mnt"), |command| {
            command.arg("--address-book").arg(&book).args(["--hostname", host, "--log-level", level]);
            command.args(["--log-type", "file", "--output-dir"]).arg(own(host));
        })
    };
    for host in ["a", "b"] {
        fs::create_dir_all(own(host).join("mnt")).expect("a mount point");
    }
    let log_of = |own: &Path| -> String {
        let files = fs::read_dir(own.join("logs")).expect("logs");
        files.map(|file| fs::read_to_string(file.expect("a file").path()).expect("text")).collect()
    };
    let log = std::thread::scope(|scope| {
        // Who asks for its statfs waits for the root.
        let child = scope.spawn(|| mount("b", "4"));
        let has_failed = || own("b").join("logs").exists() && log_of(&own("b")).contains("parent unreachable");
        assert!(eventually(DEADLINE, has_failed), "{:?}", fs::read_dir(own("b")));
        let _root = mount("a", "3");
        let _child = child.join().expect("it mounts");
        assert_eq!(fs::read(own("b").join("mnt/file")).expect("it is served"), b"contents");
        assert!(!log_of(&own("a")).contains("registration"), "level 3 has none of them");
        log_of(&own("b"))
    });
    let lines = [
        "provider registration completed after ",
        &format!("parent is a at {address}"),
        &format!("parent unreachable for path / via parent {address}, waited "),
        " ms so far; attempts=1; next_retry_sleep_ms=20",
        &format!("parent readiness confirmed for path / at parent {address} after "),
        "first successful parent rpc_lstat completed after ",
        " us since provider startup; path=/",
    ];
    for line in lines {
        assert!(log.contains(line), "no line {line:?} in\n{log}");
    }
    // `2026-03-27 23-33-57.994 [Info] (function) text`
    let line = log.lines().find(|line| line.contains("registration")).expect("found above");
    let parts: Vec<_> = line.splitn(5, ' ').collect();
    assert!(
        parts[0].len() == 10 && parts[1].len() == 12 && parts[2] == "[Info]" && parts[3].starts_with('('),
        "{line}"
    );
}

/// Nodes of two jobs by their secrets, under one address book: neither gets a byte of the other.
#[test]
fn a_daemon_with_another_secret_gets_no_answer() {
    needs_fuse!("a_daemon_with_another_secret_gets_no_answer");
    let target = tempfile::tempdir().expect("a temporary directory");
    fs::write(target.path().join("file"), b"contents").expect("a file");
    let secret = |word: &str| Some(format!("the secret of {word}").into_bytes());
    let mut cluster = Plan { secret: secret("this job"), ..Plan::new(3, target.path()) }.prepare();
    cluster.launch(0).expect("it starts");
    cluster.launch(1).expect("it starts");
    for other in [secret("another job"), None] {
        let stranger = DaemonConfig { secret: other, ..cluster.config(2) };
        let counters = Arc::new(Counters::new());
        let daemon = Daemon::start(stranger, Arc::clone(&counters)).expect("it starts");
        let before = cluster.count(0, Counter::AuthRefused);
        assert!(eventually(DEADLINE, || cluster.count(0, Counter::AuthRefused) > before + 3), "it does not try");
        assert_eq!(daemon.status().state, "parent unreachable");
        assert_eq!(counters.get(Counter::FramesReceived), 0, "the root has answered");
        daemon.stop(STOP_DEADLINE).expect("it stops");
    }
    // The node whose place that is, and the one that was there all the time.
    cluster.launch(2).expect("it starts");
    for node in [1, 2] {
        assert_eq!(fs::read(cluster.mount(node).join("file")).expect("it is served"), b"contents");
        assert_eq!(cluster.count(node, Counter::AuthRefused), 0);
    }
    assert!(eventually(DEADLINE, || ready(&cluster, 0) == (3, vec![])), "{:?}", tree(&cluster, 0));
}
