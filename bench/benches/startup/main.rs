//! The start of jobs: the table of Copper's scaling study, as far as one machine can show it.
//!
//! - `ports`: 2 to 512 nodes on endpoints of their own in this process, with a secret: registration, and the time until the
//!   root knows that all are ready.
//! - `daemons`: 64 real daemons with mounts, by `bornite launch --local`, in one network namespace.
//! - `rank`: one rank's system calls, instructions and peers with books of 2, 512 and 10,624 lines.
//! - `simulated`: 256 to 100,000 nodes in virtual time, together and with 1 % of them 40 s late, beside Copper's two rules.
//!
//! `STARTUP_PARTS=ports,simulated` runs some of them; what was recorded of the others stays.

mod ports;
mod rank;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bornite::observe::Counter;
use bornite::sim::startup::Rule;
use bornite::sim::study::Row;
use bornite_bench::{Job, program, record, results};
use serde::Serialize;
use serde_json::Value;

const SIZES: [u32; 6] = [2, 16, 64, 128, 256, 512];
const DAEMONS: u32 = 64;
const READY_WITHIN: Duration = Duration::from_secs(120);
const BOOKS: [u32; 3] = [2, 512, 10_624];
const SIMULATED: [u32; 4] = [256, 512, 10_624, 100_000];
/// The study's worst skew.
const SKEW_US: u64 = 40_000_000;

#[derive(Serialize)]
struct Daemons {
    nodes: u32,
    /// Until `bornite launch` returned: every mount answers.
    launch_ms: f64,
    /// Until its root knew that all are ready.
    ready_ms: f64,
    registration_us: (u64, f64, u64),
    mounted_us: (u64, f64, u64),
    /// From a node's registration until its parent was found ready.
    parent_us_max: u64,
    probes: u64,
    failures: u64,
    peers_max: u64,
    ready: u32,
}

#[derive(Serialize)]
struct Simulated {
    #[serde(flatten)]
    row: Row,
    wall_s: f64,
}

fn main() -> anyhow::Result<()> {
    let parts = std::env::var("STARTUP_PARTS").unwrap_or_else(|_| "ports,daemons,rank,simulated".to_owned());
    let mut figures = before();
    for part in parts.split(',') {
        let value = match part {
            "ports" => serde_json::to_value(on_ports()?)?,
            "daemons" => serde_json::to_value(daemons()?)?,
            "rank" => serde_json::to_value(ranks()?)?,
            "simulated" => serde_json::to_value(simulated()?)?,
            other => anyhow::bail!("STARTUP_PARTS: no part {other:?}; known are ports, daemons, rank, simulated"),
        };
        figures.insert(part.to_owned(), value);
    }
    println!("{}", record("startup", &figures)?.display());
    Ok(())
}

/// What was recorded before.
fn before() -> serde_json::Map<String, Value> {
    let text = std::fs::read_to_string(results().join("startup.json")).unwrap_or_default();
    let value = serde_json::from_str::<Value>(&text).unwrap_or_default();
    value.get("figures").and_then(Value::as_object).cloned().unwrap_or_default()
}

fn on_ports() -> anyhow::Result<Vec<ports::Row>> {
    // The first one pays for the library.
    ports::run(2)?;
    println!("nodes  registration us min/avg/max     registered ms  ready after ms   probes  failures  frames  peers");
    let mut rows = Vec::new();
    for nodes in SIZES {
        let row = ports::run(nodes)?;
        println!(
            "{:5}  {:8} {:10.1} {:8}  {:14.1} {:15.1} {:8} {:9} {:7} {:3} of {}",
            row.nodes,
            row.registration_us_min,
            row.registration_us_avg,
            row.registration_us_max,
            row.registered_ms,
            row.ready_ms,
            row.probes,
            row.failures,
            row.frames,
            row.peers_max,
            row.fanout_and_depth
        );
        rows.push(row);
    }
    Ok(rows)
}

fn daemons() -> anyhow::Result<Daemons> {
    let (program, temp) = (program()?, tempfile::tempdir()?);
    let (target, mount) = (temp.path().join("target"), temp.path().join("mnt"));
    std::fs::create_dir(&target)?;
    let begin = Instant::now();
    let options = ["--ready-timeout-s", "120", "--cache-size", "32M"];
    let job = Job::launch_with(&program, DAEMONS, &target, &mount, &options)?;
    let launch_ms = begin.elapsed().as_secs_f64() * 1e3;
    // The launch looks at the mounts; the root hears of them a moment later.
    let ready = || Ok::<_, anyhow::Error>(job.status(0)?.tree.is_some_and(|tree| tree.ready == DAEMONS));
    while !ready()? && begin.elapsed() < READY_WITHIN {
        bornite_bench::leave_alone(Duration::from_millis(1));
    }
    let ready_ms = begin.elapsed().as_secs_f64() * 1e3;
    let mut all = Vec::new();
    for node in 0..DAEMONS {
        all.push(job.status(node).with_context(|| format!("node {node}"))?);
    }
    let values = |counter: Counter| all.iter().map(move |status| status.counters.get(counter));
    let spread = |counter| {
        let (least, most) = (values(counter).min().unwrap_or(0), values(counter).max().unwrap_or(0));
        (least, values(counter).sum::<u64>() as f64 / f64::from(DAEMONS), most)
    };
    let tree = all[0].tree.clone().context("the root says nothing of its tree")?;
    ensure!(tree.ready == DAEMONS, "{tree:?}");
    let row = Daemons {
        nodes: DAEMONS,
        launch_ms,
        ready_ms,
        registration_us: spread(Counter::StartupUsRegistration),
        mounted_us: spread(Counter::StartupUsTotal),
        parent_us_max: values(Counter::StartupUsParent).max().unwrap_or(0),
        probes: values(Counter::ProbesToParent).sum(),
        failures: values(Counter::ProbesUnanswered).sum::<u64>() + values(Counter::ProbesNotServing).sum::<u64>(),
        peers_max: values(Counter::FabricPeers).max().unwrap_or(0),
        ready: tree.ready,
    };
    println!(
        "{} daemons with mounts: launched in {:.0} ms, all ready after {:.0} ms; registration {:?} us; mounted {:?} us; parent after {} us at most; \
         {} probes, {} failures; {} peers at most",
        row.nodes,
        row.launch_ms,
        row.ready_ms,
        row.registration_us,
        row.mounted_us,
        row.parent_us_max,
        row.probes,
        row.failures,
        row.peers_max
    );
    Ok(row)
}

fn ranks() -> anyhow::Result<Vec<rank::Rank>> {
    let program = program()?;
    let mut rows = Vec::new();
    for lines in BOOKS {
        let row = rank::run(&program, lines)?;
        println!("{row:?}");
        ensure!(row.peers <= u64::from(row.fanout_and_depth), "more peers than children and depth: {row:?}");
        rows.push(row);
    }
    Ok(rows)
}

fn simulated() -> anyhow::Result<Vec<Simulated>> {
    let mut rows = Vec::new();
    println!("simulated:\n{}", Row::HEADER);
    for nodes in SIMULATED {
        for late_us in [0, SKEW_US] {
            let begin = Instant::now();
            let row = Row::of(1, nodes, late_us, &[Rule::Fixed, Rule::Doubling])?;
            let wall_s = begin.elapsed().as_secs_f64();
            println!("{row} ({wall_s:.1} s)");
            rows.push(Simulated { row, wall_s });
        }
    }
    Ok(rows)
}
