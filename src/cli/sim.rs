//! `bornite sim`: thousands of nodes in this process, with faults, by seeds.
//!
//! Runs seeds on all CPUs until one fails, and prints what happened in numbers, or the command that repeats the failing
//! seed. The simulation itself is the layer `sim`; it knows no arguments and prints nothing.

use std::fmt::Write;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::args::{SimArgs, SimCommand, SimFaults, SimSabotage};
use super::{UsageError, output};
use crate::sim::{Counts, FaultLevel, Sabotage, SimConfig, SimError, run};

/// Exit codes of a seed that fails. 1 and 2 mean what they mean everywhere.
const CRASH: u8 = 3;
const SAFETY: u8 = 4;
const LIVENESS: u8 = 5;

/// What is printed with `--json`.
#[derive(Serialize)]
struct Printed<'a> {
    faults: FaultLevel,
    first_seed: u64,
    wall_ms: u128,
    failure: Option<Failed>,
    counts: &'a Counts,
}

#[derive(Serialize)]
struct Failed {
    seed: u64,
    kind: &'static str,
    what: String,
    command: String,
}

/// Runs the seeds.
///
/// # Errors
/// More trees than nodes, or standard output cannot be written. A seed that fails is told by the exit code.
pub(super) fn sim(args: &SimArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        Some(SimCommand::Enoent(args)) => return super::enoent::enoent(args),
        Some(SimCommand::Startup(args)) => return super::startup::startup(args),
        None => {}
    }
    let level = match args.faults {
        SimFaults::None => FaultLevel::None,
        SimFaults::Net => FaultLevel::Net,
        SimFaults::Nodes => FaultLevel::Nodes,
        SimFaults::Backend => FaultLevel::Backend,
        SimFaults::Some => FaultLevel::Some,
        SimFaults::All => FaultLevel::All,
    };
    let sabotage = args.sabotage.map(|how| match how {
        SimSabotage::Crash => Sabotage::Crash,
        SimSabotage::Safety => Sabotage::Safety,
        SimSabotage::Liveness => Sabotage::Liveness,
    });
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let config = |seed| SimConfig {
        trees: number(args.trees),
        stripes: number(args.stripes),
        fanout: args.fanout.map(number),
        sabotage,
        ..SimConfig::draw(seed, number(args.nodes), level)
    };
    let (first, seeds) = args.seed.map_or((0, args.seeds), |seed| (seed, 1));
    let begin = Instant::now();
    let (counts, failure) = run_seeds(first, seeds, &config);
    let wall = begin.elapsed();
    if let Some((_, SimError::Topology(error))) = failure {
        return Err(UsageError(error.to_string()).into());
    }
    let code = failure.as_ref().map_or(0, |(_, error)| exit_code(error));
    let failed = failure.map(|(seed, error)| Failed {
        seed,
        kind: match &error {
            SimError::Topology(_) => "usage",
            SimError::Crash { .. } => "crash",
            SimError::Safety { .. } => "safety",
            SimError::Liveness { .. } => "liveness",
        },
        what: error.to_string(),
        command: config(seed).command(),
    });
    if args.json {
        let printed =
            Printed { faults: level, first_seed: first, wall_ms: wall.as_millis(), failure: failed, counts: &counts };
        output::print(&(serde_json::to_string_pretty(&printed)? + "\n"))?;
    } else {
        output::print(&table(&counts))?;
        match failed {
            Some(failed) => eprintln!("bornite: {}\nrepeat it: {}", failed.what, failed.command),
            None => {
                eprintln!("{} seeds of {} nodes in {:.1} s: all is well", counts.runs, args.nodes, wall.as_secs_f64())
            }
        }
    }
    Ok(ExitCode::from(code))
}

/// Tells of another simulation that failed, by the same exit codes.
///
/// # Errors
/// What was asked for cannot be simulated.
pub(super) fn fails(error: SimError) -> anyhow::Result<ExitCode> {
    if let SimError::Topology(error) = error {
        return Err(UsageError(error.to_string()).into());
    }
    eprintln!("bornite: {error}");
    Ok(ExitCode::from(exit_code(&error)))
}

fn exit_code(error: &SimError) -> u8 {
    match error {
        SimError::Topology(_) => 2,
        SimError::Crash { .. } => CRASH,
        SimError::Safety { .. } => SAFETY,
        SimError::Liveness { .. } => LIVENESS,
    }
}

/// Runs seeds on all CPUs; ends with the smallest seed that failed, once those before it are through.
fn run_seeds(first: u64, seeds: u64, config: &(impl Fn(u64) -> SimConfig + Sync)) -> (Counts, Option<(u64, SimError)>) {
    let next = AtomicU64::new(0);
    let results = Mutex::new((Counts::default(), None::<(u64, SimError)>));
    let lock = || results.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let seed = first.saturating_add(at);
            if at >= seeds || lock().1.as_ref().is_some_and(|(failed, _)| *failed < seed) {
                return;
            }
            let result = run(config(seed));
            let mut results = lock();
            match result {
                Ok(report) => results.0.add(&report.counts),
                Err(error) => {
                    if results.1.as_ref().is_none_or(|(failed, _)| seed < *failed) {
                        results.1 = Some((seed, error));
                    }
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(usize::try_from(seeds).unwrap_or(1));
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn table(counts: &Counts) -> String {
    let width = counts.rows().map(|(name, ..)| name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for (name, value, help) in counts.rows() {
        writeln!(text, "{name:<width$} {value:>20}  {}", help.trim()).expect("a String takes every write");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::FaultLevel;

    #[test]
    fn every_failure_has_its_exit_code() {
        let what = String::new;
        assert_eq!(exit_code(&SimError::Crash { seed: 1, what: what() }), 3);
        let node = SimConfig::draw(1, 2, FaultLevel::None);
        let error = run(SimConfig { trees: 3, ..node }).unwrap_err();
        assert_eq!(exit_code(&error), 2, "{error}");
        assert_eq!(exit_code(&SimError::Liveness { seed: 1, at_us: 0, what: what() }), 5);
    }

    #[test]
    fn seeds_are_counted_and_the_first_failure_is_told() {
        let (counts, failure) = run_seeds(5, 3, &|seed| SimConfig::draw(seed, 3, FaultLevel::None));
        assert_eq!((counts.runs, counts.nodes, failure), (3, 9, None));
        let lossy = |seed| {
            let mut config = SimConfig::draw(seed, 3, FaultLevel::None);
            config.faults.lost_per_mille = if seed >= 6 { 1000 } else { 0 };
            config
        };
        let (counts, failure) = run_seeds(5, 9, &lossy);
        let (seed, error) = failure.expect("a network that loses everything");
        assert_eq!((counts.runs, seed, exit_code(&error)), (1, 6, 5), "{error}");
        assert!(table(&counts).contains("answered"));
    }
}
