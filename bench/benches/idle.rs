//! What idle daemons cost: four of them, after a little work, left alone.

use std::time::Duration;

use anyhow::Context;
use bornite::observe::{Counter, Request, SocketDirs, Status, query};
use bornite_bench::{Job, leave_alone, program, record};
use serde::Serialize;

const NODES: u32 = 4;
const ALONE: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Serialize)]
struct Idle {
    node: u32,
    seconds: f64,
    /// CPU time of the whole process, in ticks of 10 ms (`proc_pid_stat`(5), utime + stime).
    cpu_ticks: u64,
    /// Times that one of its threads was put to sleep (`proc_pid_status`(5), voluntary_ctxt_switches).
    sleeps: u64,
    /// Turns in which the engine had something to do.
    engine_turns: u64,
    rss_bytes: u64,
}

fn main() -> anyhow::Result<()> {
    let program = program()?;
    let temp = tempfile::tempdir()?;
    let target = temp.path().join("target");
    std::fs::create_dir(&target)?;
    std::fs::write(target.join("file"), vec![1; 3 << 20])?;
    let job = Job::launch(&program, NODES, &target, &temp.path().join("mounts"))?;
    let dirs = SocketDirs::of_user();
    for node in 0..NODES {
        std::fs::read(job.node(node).join("file"))?;
    }
    let look = || -> anyhow::Result<Vec<(Status, [u64; 3])>> {
        (0..NODES)
            .map(|node| {
                let status: Status = query(&dirs, &job.node(node), &Request::Status, DEADLINE)?;
                let figures = figures(status.pid)?;
                Ok((status, figures))
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
    for (node, ((s0, f0), (s1, f1))) in (0..).zip(before.iter().zip(&after)) {
        let turns = |s: &Status| s.counters.get(Counter::EngineTurns);
        idle.push(Idle {
            node,
            seconds: ALONE.as_secs_f64(),
            cpu_ticks: f1[0] - f0[0],
            sleeps: f1[1] - f0[1],
            engine_turns: turns(s1) - turns(s0),
            rss_bytes: f1[2],
        });
    }
    println!("{ALONE:?} of idleness; two looks at the status socket included");
    for i in &idle {
        println!(
            "node{}: {} ms CPU, {} sleeps of all threads, {} turns of the engine with work, RSS {} MiB",
            i.node,
            i.cpu_ticks * 10,
            i.sleeps,
            i.engine_turns,
            i.rss_bytes >> 20
        );
    }
    println!("{}", record("idle", &idle)?.display());
    Ok(())
}

/// CPU ticks, sleeps and resident bytes of a process with all its threads.
fn figures(pid: u32) -> anyhow::Result<[u64; 3]> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields count from the last parenthesis on: the name may hold anything.
    let fields: Vec<&str> = stat.rsplit(')').next().context("/proc/PID/stat")?.split_whitespace().collect();
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    let mut sleeps = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
        sleeps += line.context("voluntary_ctxt_switches")?.trim().parse::<u64>()?;
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: u64 = rss.trim().trim_end_matches(" kB").trim().parse()?;
    Ok([ticks, sleeps, kib << 10])
}
