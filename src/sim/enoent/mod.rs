//! The evaluation of the ENOENT TTL: a recorded run on every rank of many nodes, under two rules.
//!
//! Called by `bornite sim enoent`, and by tests. Each rank repeats a script of lookups at its own pace; the nodes answer
//! by the rule of Copper (`copper`) or with the daemons' own core (`ours`), in virtual time, over one simulated backend.
//! Everything follows from the seed. It touches no file, socket or clock.
//!
//! What is modelled, the same for both rules: a processor per node on which its daemon serves one request after the other;
//! the time of a message; a backend that serves some operations at once and lets the others wait. The served tree stays as
//! it is. What is not: the bytes of files, whose reading takes each rank as long as it took when it was recorded; names in
//! listings that the script never asks for.

mod copper;
mod ours;
mod world;

use std::time::Duration;

use serde::Serialize;

use super::report::SimError;
use crate::core::NodeId;

/// What a script asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// What is there under this path: one step of a walk.
    Name,
    /// The names in this directory.
    List,
    /// The text of this symbolic link.
    Link,
}

/// What is under a path of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    /// Nothing.
    Nothing,
    /// Something of this kind (`st_mode >> 12`) and size in bytes.
    Object {
        /// The kind.
        kind: u8,
        /// The size.
        size: u64,
    },
}

/// One request of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// How long the rank does something else before it, microseconds.
    pub think_us: u64,
    /// The path's place in [`Script::paths`].
    pub path: u32,
    /// What is asked.
    pub ask: Ask,
}

/// What every rank does.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Paths relative to the target, and what is there. A path's directory stands before it.
    pub paths: Vec<(Box<[u8]>, There)>,
    /// Its requests, in order.
    pub steps: Vec<Step>,
}

/// Who remembers what, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// Copper's: each node remembers the exact path for a whole TTL from when it hears of it; kernels remember nothing.
    Copper,
    /// Ours: the daemons' own core, the remaining TTL in every answer, kernels that remember names for it.
    Bornite,
}

impl Rule {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::Copper => "copper",
            Rule::Bornite => "bornite",
        }
    }
}

/// The model's parameters. Times are virtual microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct EnoentConfig {
    /// Everything follows from it.
    pub seed: u64,
    /// Nodes.
    pub nodes: u32,
    /// Ranks on each of them.
    pub ranks_per_node: u32,
    /// Children per parent, if not by the number of nodes.
    pub fanout: Option<u32>,
    /// Ranks begin within this time of each other: half of it between nodes, half within a node.
    pub skew_us: u64,
    /// A message takes this long.
    pub net_us: u64,
    /// A request of the kernel takes a node's processor for this long.
    pub request_us: u64,
    /// A message of another node takes it for this long.
    pub message_us: u64,
    /// An answer from the kernel's own memory takes a rank this long.
    pub kernel_us: u64,
    /// The backend works on one operation for this long, a quarter more or less.
    pub backend_us: u64,
    /// The backend works on so many operations at once; the others wait.
    pub backend_slots: u32,
    /// How long Bornite uses listings and attributes of directories.
    pub dir_ttl_us: u64,
    /// Whether whole listings answer absent names, under our rule.
    pub complete_dirs: bool,
}

impl Default for EnoentConfig {
    fn default() -> EnoentConfig {
        EnoentConfig {
            seed: 1,
            nodes: 128,
            ranks_per_node: 12,
            fanout: None,
            skew_us: 1_000_000,
            net_us: 30,
            request_us: 15,
            message_us: 10,
            kernel_us: 1,
            backend_us: 2_000,
            backend_slots: 1,
            dir_ttl_us: 60_000_000,
            complete_dirs: true,
        }
    }
}

/// What a run came to. All numbers are sums over all nodes; all times are virtual.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The rule.
    pub rule: Rule,
    /// The TTL, milliseconds.
    pub ttl_ms: u64,
    /// Whether every rank got every answer, and each was right.
    pub success: bool,
    /// From the start of the first rank to the end of the last, microseconds.
    pub elapsed_us: u64,
    /// Completed lookups whose answer had to be asked for again after its TTL.
    pub stale_completed: u64,
    /// Answers "absent" that were stored for a TTL.
    pub ttl_stores: u64,
    /// Lookups that a daemon answered from them.
    pub ttl_serves: u64,
    /// Lookups that a daemon answered from a complete listing.
    pub listing_serves: u64,
    /// Lookups, absent or not, that the kernels answered.
    pub kernel_serves: u64,
    /// Requests of the kernels to the daemons.
    pub requests: u64,
    /// Messages between nodes.
    pub messages: u64,
    /// The most requests of nodes that came to other nodes within one millisecond: for what is under a path, and with
    /// Copper's rule for all else too.
    pub asked_peak: u64,
    /// Lookups at the backend that were answered ENOENT.
    pub backend_enoent: u64,
    /// All lookups at the backend, with the readlink of a symbolic link.
    pub backend_lookups: u64,
    /// Listings at the backend, and looks at whether one is still right.
    pub backend_listings: u64,
    /// All metadata operations of the backend.
    pub backend_ops: u64,
    /// Of them, those beyond the first for each thing that is there and is asked for: what the absent names cost.
    pub backend_beyond: u64,
}

/// Runs the script on all ranks.
///
/// # Errors
/// [`SimError::Topology`] for nodes that make no tree; [`SimError::Liveness`] where it does not end.
///
/// # Panics
/// When a step names no path of the script.
pub fn run(config: &EnoentConfig, script: &Script, rule: Rule, ttl: Duration) -> Result<Row, SimError> {
    let ttl_us = u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX);
    match rule {
        Rule::Copper => world::run(config, script, copper::Copper::new(config, script, ttl_us)?, rule, ttl_us),
        Rule::Bornite => world::run(config, script, ours::Ours::new(config, script, ttl)?, rule, ttl_us),
    }
}

fn node_id(node: usize) -> NodeId {
    NodeId(u32::try_from(node).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(pauses_us: &[u64]) -> Script {
        let dir = There::Object { kind: 4, size: 4096 };
        let paths =
            [("", dir), ("d", dir), ("d/absent", There::Nothing), ("d/file", There::Object { kind: 8, size: 9 })];
        let step = |think_us, path, ask| Step { think_us, path, ask };
        let mut steps = vec![step(0, 1, Ask::Name), step(0, 3, Ask::Name), step(0, 1, Ask::List)];
        steps.extend(pauses_us.iter().map(|pause| step(*pause, 2, Ask::Name)));
        Script { paths: paths.map(|(path, there)| (path.as_bytes().into(), there)).into(), steps }
    }

    /// Without complete directories: the script reads the directory first, and its listing would answer all of it.
    fn config(nodes: u32, ranks_per_node: u32) -> EnoentConfig {
        EnoentConfig { nodes, ranks_per_node, skew_us: 0, complete_dirs: false, ..EnoentConfig::default() }
    }

    fn told(config: &EnoentConfig, script: &Script, rule: Rule, ttl_ms: u64) -> Row {
        let row = run(config, script, rule, Duration::from_millis(ttl_ms)).unwrap();
        assert!(row.success, "{row:?}");
        assert_eq!(row.backend_ops, row.backend_lookups + row.backend_listings);
        row
    }

    #[test]
    fn copper_remembers_for_the_ttl_and_asks_again_after_it() {
        // A pause varies by a quarter.
        let script = script(&[0, 40_000, 40_000, 400_000]);
        let row = told(&config(1, 1), &script, Rule::Copper, 150);
        assert_eq!((row.ttl_stores, row.ttl_serves, row.stale_completed), (2, 2, 1));
        assert_eq!((row.backend_lookups, row.backend_enoent, row.backend_listings), (4, 2, 1));
        assert_eq!((row.kernel_serves, row.requests, row.messages), (0, 7, 0));
        let row = told(&config(1, 1), &script, Rule::Copper, 10_000);
        assert_eq!((row.ttl_stores, row.ttl_serves, row.stale_completed, row.backend_enoent), (1, 3, 0, 1));
        // Each node stores it; whoever asks while it is under way joins.
        let row = told(&config(7, 4), &script, Rule::Copper, 10_000);
        assert_eq!((row.ttl_stores, row.backend_enoent, row.backend_listings), (7, 1, 1));
    }

    #[test]
    fn our_kernels_remember_less_long_than_our_daemons() {
        let script = script(&[0, 40_000, 40_000, 400_000]);
        let row = told(&config(1, 1), &script, Rule::Bornite, 150);
        assert_eq!((row.ttl_stores, row.kernel_serves), (2, 2), "{row:?}");
        let row = told(&config(1, 1), &self::script(&[0, 90_000]), Rule::Bornite, 118);
        // Asked 67.5 to 112.5 ms later; the kernel keeps it for 98 ms.
        assert_eq!((row.backend_enoent, row.kernel_serves + row.ttl_serves), (1, 1), "{row:?}");
    }

    #[test]
    fn whoever_asks_one_backend_asks_it_once() {
        let script = script(&[0, 0]);
        for rule in [Rule::Copper, Rule::Bornite] {
            let row = told(&config(20, 3), &script, rule, 10_000);
            assert_eq!((row.backend_lookups, row.backend_enoent, row.backend_listings), (3, 1, 1), "{rule:?}");
        }
    }

    #[test]
    fn many_absent_names_cost_copper_many_lookups_and_us_a_listing() {
        let dir = There::Object { kind: 4, size: 4096 };
        let names = (0..40).map(|n| (format!("lib/x{n}.so").into_bytes().into(), There::Nothing));
        let paths = [("", dir), ("lib", dir)].map(|(path, there)| (path.as_bytes().into(), there));
        let step = |path| Step { think_us: 1_000, path, ask: Ask::Name };
        let steps = (2..42).flat_map(|name| [step(1), step(name)]).collect();
        let script = Script { paths: paths.into_iter().chain(names).collect(), steps };
        let on = EnoentConfig { complete_dirs: true, ..config(7, 2) };
        let beyond = |config, rule| told(config, &script, rule, 10_000).backend_beyond;
        assert_eq!((beyond(&on, Rule::Copper), beyond(&config(7, 2), Rule::Bornite)), (40, 40));
        let ours = told(&on, &script, Rule::Bornite, 10_000);
        assert!(ours.backend_beyond < 10 && ours.listing_serves > 30, "{ours:?}");
    }

    #[test]
    fn a_directory_that_was_read_answers_what_it_lacks() {
        let config = EnoentConfig { complete_dirs: true, ..config(20, 3) };
        let row = told(&config, &script(&[0, 0]), Rule::Bornite, 10_000);
        assert_eq!((row.backend_lookups, row.backend_enoent, row.backend_listings), (2, 0, 1), "{row:?}");
        assert!(row.listing_serves > 0 && row.ttl_stores == 0, "{row:?}");
    }

    #[test]
    fn the_end_of_an_absence_is_no_burst() {
        let every_10_ms: Vec<u64> = vec![10_000; 1_000];
        let config = EnoentConfig { skew_us: 1_000_000, ..config(128, 12) };
        let row = told(&config, &script(&every_10_ms), Rule::Bornite, 1_000);
        // Eleven TTLs: one request and one answer of each of 127 nodes in each of them would be 2,794; some are asked for
        // by a leaf that is early. Without the rules of `core::tail` it is 11,338 messages, and 112 requests at once.
        assert!((2_794..2 * 2_794).contains(&row.messages), "{row:?}");
        assert!(row.asked_peak < 50, "{row:?}");
        assert!((11..=12).contains(&row.backend_enoent), "{row:?}");
    }

    #[test]
    fn a_seed_gives_the_same_run_again() {
        let script = script(&[5_000, 100_000, 30_000]);
        let config = EnoentConfig { skew_us: 200_000, ..config(9, 3) };
        for rule in [Rule::Copper, Rule::Bornite] {
            assert_eq!(told(&config, &script, rule, 60), told(&config, &script, rule, 60));
            let other = EnoentConfig { seed: 2, ..config };
            assert_ne!(told(&config, &script, rule, 60), told(&other, &script, rule, 60));
        }
    }
}
