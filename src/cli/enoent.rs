//! `bornite sim enoent`, and `bornite trace replay --sim`: traces on simulated nodes.
//!
//! Turns a trace into the script that every rank follows, and prints what the layer `sim` says.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use serde::Serialize;

use super::args::{EnoentArgs, Switch};
use super::{UsageError, output, trace};
use crate::observe::trace::{Answer, ENOENT, KIND_DIR, Op, Trace};
use crate::sim::SimError;
use crate::sim::enoent::{Ask, EnoentConfig, Row, Rule, Script, Step, There, run};

/// TTL of a replay: the default of the daemons.
const REPLAY_TTL: Duration = Duration::from_secs(2);

/// What is printed with `--json`.
#[derive(Serialize)]
struct Printed<'a> {
    /// That these are not measurements.
    simulated: bool,
    model: &'a EnoentConfig,
    steps_per_rank: usize,
    paths: usize,
    wall_ms: u128,
    rows: &'a [Row],
}

/// Runs the evaluation.
///
/// # Errors
/// The trace cannot be read, the nodes make no tree, a run does not end, or standard output cannot be written.
pub(super) fn enoent(args: &EnoentArgs) -> anyhow::Result<ExitCode> {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let config = EnoentConfig {
        seed: args.seed,
        nodes: number(args.nodes),
        ranks_per_node: number(args.ranks_per_node),
        fanout: args.fanout.map(number),
        skew_us: args.skew_ms * 1_000,
        net_us: args.net_us,
        request_us: args.request_us,
        message_us: args.message_us,
        backend_us: args.backend_us,
        backend_slots: number(args.backend_slots),
        complete_dirs: args.complete_dirs == Switch::On,
        ..EnoentConfig::default()
    };
    let script = script_of(&trace::read(&args.trace)?);
    let ttls = args.ttl.iter().map(|ms| Duration::from_millis(*ms));
    let jobs: Vec<(Rule, Duration)> =
        [Rule::Copper, Rule::Bornite].into_iter().flat_map(|rule| ttls.clone().map(move |ttl| (rule, ttl))).collect();
    show(&config, &script, &jobs, args.json)
}

/// Replays a trace on simulated nodes with the daemons' own core.
///
/// # Errors
/// As [`enoent`].
pub(super) fn replay(trace: &Trace, nodes: u64, ranks: u64, json: bool) -> anyhow::Result<ExitCode> {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let config = EnoentConfig { nodes: number(nodes), ranks_per_node: number(ranks), ..EnoentConfig::default() };
    show(&config, &script_of(trace), &[(Rule::Bornite, REPLAY_TTL)], json)
}

fn show(config: &EnoentConfig, script: &Script, jobs: &[(Rule, Duration)], json: bool) -> anyhow::Result<ExitCode> {
    let begin = Instant::now();
    let rows = match run_all(config, script, jobs) {
        Err(SimError::Topology(error)) => return Err(UsageError(error.to_string()).into()),
        other => other?,
    };
    let wall = begin.elapsed();
    let (steps_per_rank, paths) = (script.steps.len(), script.paths.len());
    if json {
        let wall_ms = wall.as_millis();
        let printed = Printed { simulated: true, model: config, steps_per_rank, paths, wall_ms, rows: &rows };
        output::print(&(serde_json::to_string_pretty(&printed)? + "\n"))?;
    } else {
        output::print(&table(config, script, &rows))?;
        eprintln!("{} runs in {:.1} s", rows.len(), wall.as_secs_f64());
    }
    Ok(if rows.iter().all(|row| row.success) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs all jobs on all CPUs; gives the rows in the order of the jobs.
fn run_all(config: &EnoentConfig, script: &Script, jobs: &[(Rule, Duration)]) -> Result<Vec<Row>, SimError> {
    let next = AtomicUsize::new(0);
    let rows: Vec<Mutex<Option<Result<Row, SimError>>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((rule, ttl)) = jobs.get(at) else { return };
            let row = run(config, script, *rule, *ttl);
            *rows[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(row);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let rows = rows.into_iter().map(|row| row.into_inner().unwrap_or_else(PoisonError::into_inner));
    rows.map(|row| row.expect("every job was done")).collect()
}

/// What every rank does: the trace's lookups, listings and links, with the time between them. The bytes of files are not
/// asked for; the time that they took goes by.
fn script_of(trace: &Trace) -> Script {
    let mut there: HashMap<&[u8], There> = HashMap::new();
    for event in trace.events() {
        let path = trace.path(event);
        let before = there.get(path).copied();
        let seen = match (event.op, event.answer) {
            (Op::Lookup | Op::Getattr, Answer::Found { kind, size }) => There::Object { kind, size },
            (Op::Lookup, Answer::Failed(ENOENT)) => before.unwrap_or(There::Nothing),
            _ => continue,
        };
        there.insert(path, seen);
        // What it is in is a directory, also where the recording began within it.
        let mut rest = path;
        while !rest.is_empty() && seen != There::Nothing {
            rest = rest.iter().rposition(|byte| *byte == b'/').map_or(&[], |at| &rest[..at]);
            let dir = There::Object { kind: KIND_DIR, size: 4096 };
            let known = there.entry(rest).or_insert(dir);
            if *known == There::Nothing {
                *known = dir;
            }
        }
    }
    let mut paths: Vec<(Box<[u8]>, There)> = there.into_iter().map(|(path, there)| (path.into(), there)).collect();
    paths.sort_by(|a, b| a.0.cmp(&b.0));
    let place = |path: &[u8]| {
        let at = paths.binary_search_by(|(other, _)| (**other).cmp(path)).ok()?;
        Some((u32::try_from(at).ok()?, paths[at].1))
    };
    let (mut steps, mut end_us) = (Vec::new(), None);
    for event in trace.events() {
        let Some((path, there)) = place(trace.path(event)) else { continue };
        let ask = match (event.op, there) {
            (Op::Lookup, _) if !trace.path(event).is_empty() => Ask::Name,
            (Op::Readdir, There::Object { kind: KIND_DIR, .. }) => Ask::List,
            (Op::Readlink, There::Object { kind: 10, .. }) => Ask::Link,
            _ => continue,
        };
        let think_us = event.start_us.saturating_sub(end_us.unwrap_or(event.start_us));
        steps.push(Step { think_us, path, ask });
        end_us = Some(event.start_us.saturating_add(event.took_us));
    }
    Script { paths, steps }
}

fn table(config: &EnoentConfig, script: &Script, rows: &[Row]) -> String {
    let mut text = String::new();
    let mut line = |row: String| writeln!(text, "{row}").expect("a String takes every write");
    let EnoentConfig { seed, nodes, ranks_per_node, skew_us, net_us, request_us, message_us, kernel_us, .. } = config;
    let EnoentConfig { backend_us, backend_slots, .. } = config;
    line(format!(
        "simulated: {nodes} nodes of {ranks_per_node} ranks, {} requests for {} paths by each; seed {seed}",
        script.steps.len(),
        script.paths.len()
    ));
    line(format!(
        "model: start within {} ms; message {net_us} us; of a node's processor: request {request_us} us, message \
         {message_us} us; kernel {kernel_us} us; backend {backend_us} us for each of {backend_slots} at once",
        skew_us / 1_000
    ));
    line(format!(
        "{:<8} {:>7} {:>8} {:>10} {:>9} {:>9} {:>11} {:>9} {:>11} {:>12} {:>11} {:>7}",
        "rule",
        "TTL, ms",
        "result",
        "elapsed, s",
        "stale",
        "stores",
        "TTL serves",
        "listing",
        "kernel",
        "bk. ENOENT",
        "backend ops",
        "beyond"
    ));
    for row in rows {
        line(format!(
            "{:<8} {:>7} {:>8} {:>10.2} {:>9} {:>9} {:>11} {:>9} {:>11} {:>12} {:>11} {:>7}",
            row.rule.as_str(),
            row.ttl_ms,
            if row.success { "success" } else { "wrong" },
            row.elapsed_us as f64 / 1e6,
            row.stale_completed,
            row.ttl_stores,
            row.ttl_serves,
            row.listing_serves,
            row.kernel_serves,
            row.backend_enoent,
            row.backend_ops,
            row.backend_beyond
        ));
    }
    line("stale: completed lookups asked for again after their TTL; TTL serves, listing, kernel: lookups answered from the".to_owned());
    line("TTL map, from complete listings, by the kernels; bk. ENOENT: lookups at the backend that found nothing; backend ops:".to_owned());
    line("all its metadata operations (lookups, readlinks, listings); beyond: those of them beyond the first for each thing that".to_owned());
    line("is there and is asked for, which is what absent names cost. All numbers are of the simulation.".to_owned());
    text
}
