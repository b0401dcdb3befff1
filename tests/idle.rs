//! What a job that computes pays for its daemons: nothing that can be measured. And nothing of a daemon outlives it.
//!
//! Alone in its process: it looks at all threads.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use bornite::observe::Counter;
use common::tree::CHUNK;
use common::{Cluster, DEADLINE, assert_same_bytes, eventually, noise, wait_until};

/// How long the daemons are left alone.
const ALONE: Duration = Duration::from_secs(3);

/// Busy turns that each engine may make meanwhile.
const TURNS_MAX: u64 = 5;

/// CPU time of all threads together meanwhile, in ticks of 10 ms (`_SC_CLK_TCK` is 100 on Linux).
const TICKS_MAX: u64 = 2;

/// The threads of this process with a name that a daemon gave them, and their CPU time in ticks.
fn threads() -> Vec<(String, u64)> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
    tasks
        .filter_map(|task| {
            // proc_pid_stat(5): the name in parentheses; utime and stime are fields 14 and 15. A thread may have ended.
            let stat = fs::read_to_string(task.join("stat")).ok()?;
            let (head, rest) = stat.rsplit_once(')')?;
            let name = head.split_once('(')?.1.to_owned();
            let ticks = rest.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
            (name.starts_with("bornite-") || name.starts_with("fuser")).then_some((name, ticks))
        })
        .collect()
}

fn ticks() -> u64 {
    threads().iter().map(|(_, ticks)| ticks).sum()
}

#[test]
fn idle_daemons_use_no_cpu_and_stopped_ones_leave_no_thread() {
    needs_fuse!("idle_daemons_use_no_cpu_and_stopped_ones_leave_no_thread");
    let target = tempfile::tempdir().unwrap();
    let bytes = noise(1, CHUNK + 3);
    fs::write(target.path().join("file"), &bytes).unwrap();
    let cluster = Cluster::start(4, target.path());
    for node in (0..4).rev() {
        assert_same_bytes(&fs::read(cluster.mount(node).join("file")).unwrap(), &bytes, "the file");
        assert!(fs::metadata(cluster.mount(node).join("absent")).is_err());
    }
    cluster.quiet();
    let engines = threads().iter().filter(|(name, _)| name == "bornite-engine").count();
    assert_eq!(engines, 4, "threads are found by their names: {:?}", threads());
    assert!(ticks() < 500, "the work before took {} ticks", ticks());

    let turns = |node| cluster.count(node, Counter::EngineTurns);
    let (turns_before, ticks_before): (Vec<u64>, u64) = ((0..4).map(turns).collect(), ticks());
    wait_until(Instant::now() + ALONE);
    let (turns_after, ticks_after): (Vec<u64>, u64) = ((0..4).map(turns).collect(), ticks());
    for (node, (before, after)) in turns_before.iter().zip(turns_after).enumerate() {
        assert!(after - before <= TURNS_MAX, "node {node} made {} turns in {ALONE:?}", after - before);
    }
    let used = ticks_after - ticks_before;
    assert!(used <= TICKS_MAX, "{used} ticks of CPU time in {ALONE:?}; all so far: {:?}", threads());
    for node in 0..4 {
        assert_eq!(cluster.daemon(node).status().state, if node == 0 { "root" } else { "ready" });
    }

    drop(cluster);
    // The kernel takes a moment to remove a thread that has been joined.
    assert!(eventually(DEADLINE, || threads().is_empty()), "left behind: {:?}", threads());
}
