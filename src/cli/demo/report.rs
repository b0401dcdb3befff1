//! What the demo found: a table for people, JSON for the record.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::observe::{Counter, Machine, Status};

/// Everything that was measured, with what is needed to read it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) python: String,
    pub(super) modules: String,
    /// Why the packages are not used, if they are not.
    pub(super) instead: Option<String>,
    pub(super) page_cache_dropped: bool,
    pub(super) tree: Tree,
    pub(super) modules_loaded: usize,
    pub(super) files_compared: usize,
    /// The cold run first.
    pub(super) native: Vec<Run>,
    pub(super) places: Vec<Place>,
}

/// The served tree.
#[derive(Debug, Serialize)]
pub(super) struct Tree {
    files: u64,
    bytes: u64,
}

/// One import.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    /// Wall time of the imports.
    pub(super) seconds: f64,
    /// What each node did meanwhile; empty natively.
    pub(super) nodes: Vec<NodeCounts>,
}

/// What one node did during an import.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct NodeCounts {
    kernel_requests: u64,
    requests_from_peers: u64,
    requests_to_parent: u64,
    backend_operations: u64,
    backend_bytes: u64,
    enoent_stores: u64,
    enoent_serves: u64,
    /// All counters that moved.
    counters: BTreeMap<&'static str, u64>,
}

/// The imports at one node.
#[derive(Debug, Serialize)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) node: usize,
    pub(super) provider: Option<String>,
    /// From the launch until every mount answered.
    pub(super) launched_ms: f64,
    /// Of each daemon, from its start until it was mounted.
    pub(super) startup_us: Vec<u64>,
    /// The cold run first.
    pub(super) runs: Vec<Run>,
    /// To the native import; none is right.
    pub(super) differences: Vec<String>,
}

impl NodeCounts {
    /// What was counted between two looks at a node.
    pub(super) fn between(before: &Status, after: &Status) -> NodeCounts {
        let moved = after.counters.since(&before.counters);
        let sum = |of: fn(Counter) -> bool| moved.iter().filter(|(c, _)| of(*c)).map(|(_, value)| value).sum();
        NodeCounts {
            kernel_requests: sum(Counter::is_kernel_request),
            requests_from_peers: sum(Counter::is_peer_request),
            requests_to_parent: moved.get(Counter::RequestsToParent),
            backend_operations: sum(Counter::is_backend_operation),
            backend_bytes: moved.get(Counter::BackendReadBytes),
            enoent_stores: moved.get(Counter::EnoentStores),
            enoent_serves: moved.get(Counter::EnoentServes),
            counters: moved.iter().filter(|(_, value)| *value > 0).map(|(c, value)| (c.name(), value)).collect(),
        }
    }
}

/// How long a daemon took to start.
pub(super) fn startup_us(status: &Status) -> u64 {
    status.counters.get(Counter::StartupUsTotal)
}

/// Counts a tree's files and their bytes.
pub(super) fn measure(tree: &Path) -> anyhow::Result<Tree> {
    let mut sum = Tree { files: 0, bytes: 0 };
    let mut dirs = vec![tree.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                dirs.push(entry.path());
            } else if metadata.is_file() {
                sum.files += 1;
                sum.bytes += metadata.size();
            }
        }
    }
    Ok(sum)
}

impl Report {
    /// Whether every import loaded the same as natively, byte by byte.
    pub(super) fn identical(&self) -> bool {
        self.places.iter().all(|place| place.differences.is_empty())
    }

    /// Writes everything as JSON.
    pub(super) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self).context("the figures as JSON")?;
        std::fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
    }

    /// Prints the table.
    pub(super) fn print(&self) {
        print!("{}", self.table());
    }

    fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let provider = self.places.iter().find_map(|place| place.provider.as_deref()).unwrap_or("none");
        let what = match &self.instead {
            None => format!("Import of {}", self.modules),
            Some(_) => format!("Import of {} modules of the interpreter's library", self.modules.split(',').count()),
        };
        let cold = if self.page_cache_dropped { "page cache dropped" } else { "page cache not dropped" };
        writeln!(out, "{what}")?;
        writeln!(
            out,
            "from {} files, {} MB; 4 nodes, libfabric provider {provider}; cold: all daemons empty, {cold}",
            self.tree.files,
            self.tree.bytes >> 20
        )?;
        writeln!(out)?;
        writeln!(
            out,
            "              wall time, s     requests that reached   backend operations      ENOENT (cold)     start, ms"
        )?;
        writeln!(
            out,
            "                               this daemon             of the root   others                      to all"
        )?;
        writeln!(
            out,
            "              cold    warm     cold       warm         cold   warm   (all)     stores   serves   mounts"
        )?;
        let (cold, warm) = (self.native.first().map_or(0.0, |r| r.seconds), median(&self.native));
        writeln!(out, "{:<12}{cold:>6.2}{warm:>8.2}", "native")?;
        for place in &self.places {
            let runs = &place.runs;
            let of = |run: Option<&Run>, pick: fn(&NodeCounts) -> u64, nodes: &dyn Fn(usize) -> bool| -> u64 {
                let nodes = run.into_iter().flat_map(|r| r.nodes.iter().enumerate().filter(|(n, _)| nodes(*n)));
                nodes.map(|(_, counts)| pick(counts)).sum()
            };
            let (here, root) = (|n: usize| n == place.node, |n: usize| n == 0);
            let others: u64 = runs.iter().map(|run| of(Some(run), |c| c.backend_operations, &|n| n != 0)).sum();
            writeln!(
                out,
                "{:<12}{:>6.2}{:>8.2}{:>9}{:>11}{:>13}{:>7}{:>8}{:>11}{:>9}{:>9.0}",
                place.name,
                runs.first().map_or(0.0, |run| run.seconds),
                median(runs),
                of(runs.first(), |c| c.kernel_requests, &here),
                of(runs.last(), |c| c.kernel_requests, &here),
                of(runs.first(), |c| c.backend_operations, &root),
                of(runs.last(), |c| c.backend_operations, &root),
                others,
                of(runs.first(), |c| c.enoent_stores, &here),
                of(runs.first(), |c| c.enoent_serves, &here),
                place.launched_ms,
            )?;
        }
        writeln!(out)?;
        if let Some(place) = self.places.last() {
            writeln!(out, "The cold import at the {}, node by node:", place.name)?;
            writeln!(
                out,
                "         requests of             requests to   backend      backend   ENOENT             start of the"
            )?;
            writeln!(
                out,
                "         the kernel    peers     the parent    operations   MB        stores   serves    daemon, ms"
            )?;
            for (n, counts) in place.runs.first().into_iter().flat_map(|run| run.nodes.iter().enumerate()) {
                let start = place.startup_us.get(n).map_or(0.0, |us| *us as f64 / 1e3);
                writeln!(
                    out,
                    "node{n:<5}{:>10}{:>9}{:>15}{:>14}{:>13}{:>9}{:>9}{start:>14.1}",
                    counts.kernel_requests,
                    counts.requests_from_peers,
                    counts.requests_to_parent,
                    counts.backend_operations,
                    counts.backend_bytes >> 20,
                    counts.enoent_stores,
                    counts.enoent_serves,
                )?;
            }
            writeln!(out)?;
        }
        for place in &self.places {
            for difference in &place.differences {
                writeln!(out, "DIFFERENT at the {}: {difference}", place.name)?;
            }
        }
        if self.identical() {
            let (modules, files) = (self.modules_loaded, self.files_compared);
            writeln!(out, "Same as natively at every node: {modules} modules, SHA-256 of {files} files.")?;
        }
        Ok(())
    }
}

/// The median of the runs after the first.
fn median(runs: &[Run]) -> f64 {
    let mut seconds: Vec<f64> = runs.iter().skip(1).map(|run| run.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(differences: Vec<String>) -> Report {
        let node = |n: u64| NodeCounts {
            kernel_requests: 100 + n,
            backend_operations: if n == 0 { 77 } else { 0 },
            ..NodeCounts::default()
        };
        let run = |seconds| Run { seconds, nodes: (0..4).map(node).collect() };
        Report {
            machine: Machine::this(),
            python: "3.11".to_owned(),
            modules: "numpy,pandas".to_owned(),
            instead: None,
            page_cache_dropped: true,
            tree: Tree { files: 9, bytes: 5 << 20 },
            modules_loaded: 12,
            files_compared: 8,
            native: vec![Run { seconds: 1.5, nodes: Vec::new() }, Run { seconds: 0.9, nodes: Vec::new() }],
            places: vec![Place {
                name: "grandchild".to_owned(),
                node: 3,
                provider: Some("net".to_owned()),
                launched_ms: 400.0,
                startup_us: vec![300_000; 4],
                runs: vec![run(2.5), run(1.0), run(3.0), run(2.0)],
                differences,
            }],
        }
    }

    #[test]
    fn the_table_shows_cold_and_the_median_of_warm() {
        let table = report(Vec::new()).table();
        let line = table.lines().find(|l| l.starts_with("grandchild")).unwrap();
        let fields: Vec<_> = line.split_whitespace().collect();
        assert_eq!(fields[1..8], ["2.50", "2.00", "103", "103", "77", "77", "0"], "{table}");
        assert!(table.contains("Same as natively"));
    }

    #[test]
    fn a_difference_is_shown_and_fails() {
        let report = report(vec!["file a: x".to_owned()]);
        assert!(!report.identical());
        assert!(report.table().contains("DIFFERENT at the grandchild: file a: x"));
        assert!(!report.table().contains("Same as natively"));
    }
}
