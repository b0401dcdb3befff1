//! What daemons cost that do nothing: four of them, just started, then after a little work, left alone.

use std::time::Duration;

use bornite::observe::{Counter, Status};
use bornite_bench::process::{self, Usage};
use bornite_bench::{Job, leave_alone, program, record};
use serde::Serialize;

const NODES: u32 = 4;
const ALONE: Duration = Duration::from_secs(30);

#[derive(Serialize)]
struct Idle {
    node: u32,
    seconds: f64,
    /// CPU time of the whole process.
    cpu_ms: f64,
    /// Times that one of its threads was put to sleep.
    sleeps: u64,
    /// Turns in which the engine had something to do.
    engine_turns: u64,
    threads: usize,
    /// When its mount had just answered for the first time.
    rss_bytes_after_start: u64,
    /// After the work, a file of 3 MiB read, and the idleness.
    rss_bytes: u64,
}

fn main() -> anyhow::Result<()> {
    let program = program()?;
    let temp = tempfile::tempdir()?;
    let target = temp.path().join("target");
    std::fs::create_dir(&target)?;
    std::fs::write(target.join("file"), vec![1; 3 << 20])?;
    let job = Job::launch(&program, NODES, &target, &temp.path().join("mounts"))?;
    let start = (0..NODES)
        .map(|node| Ok(process::memory(job.status(node)?.pid)?.rss_bytes))
        .collect::<anyhow::Result<Vec<_>>>()?;
    for node in 0..NODES {
        std::fs::read(job.node(node).join("file"))?;
    }
    let look = || -> anyhow::Result<Vec<(Status, Usage)>> {
        (0..NODES)
            .map(|node| {
                let status = job.status(node)?;
                let usage = process::usage(status.pid)?;
                Ok((status, usage))
            })
            .collect()
    };
    // The first look wakes the daemons; what it costs is not counted.
    look()?;
    leave_alone(Duration::from_secs(2));
    let before = look()?;
    leave_alone(ALONE);
    let after = look()?;
    let mut idle = Vec::new();
    for (node, (((s0, u0), (s1, u1)), start)) in (0..).zip(before.iter().zip(&after).zip(start)) {
        let turns = |s: &Status| s.counters.get(Counter::EngineTurns);
        let used = u1.since(*u0);
        idle.push(Idle {
            node,
            seconds: ALONE.as_secs_f64(),
            cpu_ms: used.cpu_ns as f64 / 1e6,
            sleeps: used.sleeps,
            engine_turns: turns(s1) - turns(s0),
            threads: process::task_ids(s1.pid)?.len(),
            rss_bytes_after_start: start,
            rss_bytes: process::memory(s1.pid)?.rss_bytes,
        });
    }
    println!("{ALONE:?} of idleness; two looks at the status socket included");
    for i in &idle {
        println!(
            "node{}: {:.1} ms CPU, {} sleeps of {} threads, {} turns of the engine with work, RSS {:.1} MiB, {:.1} after start",
            i.node,
            i.cpu_ms,
            i.sleeps,
            i.threads,
            i.engine_turns,
            i.rss_bytes as f64 / 1048576.0,
            i.rss_bytes_after_start as f64 / 1048576.0,
        );
    }
    println!("{}", record("idle", &idle)?.display());
    Ok(())
}
