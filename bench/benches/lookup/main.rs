//! The map of absent names against other maps, in one run: hit, miss, insert and clear with 10,000 to a million names, by
//! one thread and by as many as there are CPUs; a burst of new names under readers; bytes for each entry; instructions.
//!
//! Times of an operation are means of many, of CPU time, in turn with the other maps; percentiles are of single ones, of
//! wall time, less what reading the clock takes. What each operation spends on making its name is measured and told, not taken off.

mod apart;
mod burst;
mod candidates;
mod keys;
mod plots;
mod steady;

use bornite_bench::{record, rounds};
use serde::Serialize;

use candidates::{CANDIDATES, RING};

const ROUNDS: usize = 5;

#[derive(Serialize)]
struct Figures {
    /// What making a name takes, in every operation; ns.
    key_ns: f64,
    /// What reading the clock twice takes, taken off of single operations; ns.
    clock_ns: u64,
    steady: Vec<steady::Figures>,
    burst: Vec<burst::Figures>,
    bytes: Vec<apart::Bytes>,
    instructions: Option<Vec<apart::Instructions>>,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if apart::is_child(&args)? {
        return Ok(());
    }
    let (key_ns, clock_ns) = (steady::key_ns(), steady::clock_ns());
    println!(
        "making a name takes {key_ns:.1} ns of every operation; reading the clock twice {clock_ns} ns, taken off of single ones"
    );
    let steady = steady::all(rounds(ROUNDS), clock_ns);
    steady::print(&steady);
    let burst = CANDIDATES.iter().map(|candidate| burst::measure(candidate, clock_ns)).collect::<Vec<_>>();
    burst::print(&burst);
    let bytes = apart::bytes()?;
    let instructions = apart::instructions()?;
    for plot in plots::all(&steady, &burst)? {
        println!("{}", plot.display());
    }
    let figures = Figures { key_ns, clock_ns, steady, burst, bytes, instructions };
    println!("{}", record("lookup", &figures)?.display());
    Ok(())
}
