//! The definitions of `sim startup`.

use std::ops::RangeInclusive;

use clap::{Args, ValueEnum};

use super::number;

/// Range of `sim startup --nodes`.
const NODES: RangeInclusive<u64> = 2..=200_000;
/// Range of `sim startup --skew-ms`: within the two minutes for which a node looks for its parent.
const SKEW_MS: RangeInclusive<u64> = 0..=100_000;

/// Arguments of `sim startup`.
#[derive(Args, Clone, Debug)]
pub struct StartupArgs {
    /// Numbers of nodes, a row for each
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = number(NODES), default_value = "256,512,10624")]
    pub nodes: Vec<u64>,
    /// One node of a hundred, never the root, is so many milliseconds late; a row for each
    #[arg(long, value_name = "MS,…", value_delimiter = ',', value_parser = number(SKEW_MS), default_value = "0,40000")]
    pub skew_ms: Vec<u64>,
    /// Which of Copper's rules stands beside ours: fixed (a probe every 10 ms, for 5 s) or doubling (10 ms doubling to
    /// 1000 ms, for 120 s) [default: both]
    #[arg(long, value_name = "RULE", hide_possible_values = true)]
    pub policy: Option<StartupPolicy>,
    /// Everything follows from it
    #[arg(long, value_name = "S", default_value = "1")]
    pub seed: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// One of Copper's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StartupPolicy {
    /// The older one.
    Fixed,
    /// The newer one.
    Doubling,
}
