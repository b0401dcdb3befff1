//! `bornite sim startup`: the table of Copper's scaling study, simulated.

use std::process::ExitCode;

use serde::Serialize;

use super::args::startup::{StartupArgs, StartupPolicy};
use super::output;
use super::sim::fails;
use crate::sim::startup::Rule;
use crate::sim::study::Row;

/// What is printed with `--json`.
#[derive(Serialize)]
struct Printed {
    simulated: bool,
    seed: u64,
    rows: Vec<Row>,
}

/// Simulates a start for each number of nodes and each skew.
///
/// # Errors
/// Standard output cannot be written. A start that fails is told by the exit code.
pub(super) fn startup(args: &StartupArgs) -> anyhow::Result<ExitCode> {
    let rules = match args.policy {
        None => vec![Rule::Fixed, Rule::Doubling],
        Some(StartupPolicy::Fixed) => vec![Rule::Fixed],
        Some(StartupPolicy::Doubling) => vec![Rule::Doubling],
    };
    let mut rows = Vec::new();
    if !args.json {
        output::print(&format!(
            "simulated, in virtual time (seed {}); \"waited\" is for a node's first file\n{}\n",
            args.seed,
            Row::HEADER
        ))?;
    }
    for nodes in &args.nodes {
        for skew_ms in &args.skew_ms {
            let nodes = u32::try_from(*nodes).unwrap_or(u32::MAX);
            let row = match Row::of(args.seed, nodes, skew_ms * 1000, &rules) {
                Ok(row) => row,
                Err(error) => return fails(error),
            };
            if args.json {
                rows.push(row);
            } else {
                output::print(&format!("{row}\n"))?;
            }
        }
    }
    if args.json {
        output::print(&(serde_json::to_string_pretty(&Printed { simulated: true, seed: args.seed, rows })? + "\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
