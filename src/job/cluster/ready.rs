//! When a job over nodes is ready: what the roots of its trees know, and who is late.
//!
//! Used by the launch. Readiness flows up the tree by itself: each node tells its parent which nodes below it serve. So the roots
//! alone are asked, and the hosts that they miss are named with the last thing that they said.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;

use crate::job::book::{is_same_host, short_name};
use crate::job::local::last_line;

/// Before which the name of a host stands in what a daemon says to its launcher.
const SAID: &str = "bornite: ";
/// Most laggards that are named.
const NAMED_MAX: usize = 20;

/// Of a host whose daemon has written down nothing.
const NO_LOG: &str = "it has no log, or an empty one (--log-level 4 says more)";

/// How many nodes must serve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MinReady {
    /// That many hundredths of them, rounded up.
    Percent(f64),
    /// That many.
    Count(usize),
}

impl MinReady {
    /// Reads `99%`, `99.5%` or a number of nodes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<MinReady, String> {
        let wrong = || format!("{text:?} is neither a share such as 99% nor a number of nodes from 1 on");
        match text.strip_suffix('%') {
            Some(share) => {
                let share: f64 = share.trim().parse().map_err(|_| wrong())?;
                if share > 0.0 && share <= 100.0 { Ok(MinReady::Percent(share)) } else { Err(wrong()) }
            }
            None => text.parse().ok().filter(|count| *count > 0).map(MinReady::Count).ok_or_else(wrong),
        }
    }

    /// How many of `nodes` that is: at least one, at most all.
    pub fn of(self, nodes: usize) -> usize {
        let wanted = match self {
            // A whole number of nodes must not be missed by the last bit of a fraction.
            MinReady::Percent(share) => (share * nodes as f64 / 100.0 - 1e-9).ceil() as usize,
            MinReady::Count(count) => count,
        };
        wanted.clamp(1, nodes.max(1))
    }
}

/// What a root says of the nodes of its tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct TreeReady {
    /// The nodes of its tree, itself included.
    pub nodes: usize,
    /// Those that are known to serve.
    pub ready: usize,
    /// Some of the others, by their names in the book.
    #[serde(default)]
    pub missing: Vec<String>,
}

/// Asks the root of a tree.
pub trait AskRoot {
    /// What the node at a position of the book says of its tree.
    ///
    /// # Errors
    /// Why it says nothing, in one line.
    fn ask(&mut self, position: usize) -> Result<TreeReady, String>;
}

/// How far the nodes of a job are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Nodes that serve.
    pub ready: usize,
    /// Hosts that do not, as far as they are known, with why.
    pub late: BTreeMap<String, String>,
}

impl Progress {
    /// Asks the root of each tree. The trees are groups of the book, one after the other, and a root is the first of its group;
    /// what a root that does not answer knows is not known, nor where the next group begins.
    pub fn ask(hosts: &[String], roots: &mut dyn AskRoot) -> Progress {
        let mut progress = Progress::default();
        let mut at = 0;
        while at < hosts.len() {
            match roots.ask(at) {
                Ok(tree) => {
                    let nodes = tree.nodes.clamp(1, hosts.len() - at);
                    progress.ready += tree.ready.min(nodes);
                    let late = tree.missing.into_iter().map(|host| (host, String::new()));
                    progress.late.extend(late);
                    at += nodes;
                }
                Err(why) => {
                    progress.late.insert(hosts[at].clone(), why);
                    break;
                }
            }
        }
        progress
    }
}

/// Daemons that say on their standard error that they fail, as `bornite: HOST: why` in what the launcher wrote down.
pub fn failures(said: &str, hosts: &[String]) -> BTreeMap<String, String> {
    // By their short names, since a host may call itself by either.
    let known: BTreeMap<String, &String> =
        hosts.iter().map(|host| (short_name(host).to_ascii_lowercase(), host)).collect();
    said.lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once(SAID)?;
            let (host, why) = rest.split_once(": ")?;
            let host = known.get(&short_name(host).to_ascii_lowercase()).filter(|known| is_same_host(known, host))?;
            Some(((*host).clone(), why.trim().to_owned()))
        })
        .collect()
}

/// The last line of the log of a host's daemon, in `logs`.
fn last_logged(logs: &Path, host: &str) -> Option<String> {
    let begins = format!("{}-", host.to_ascii_lowercase());
    let mut found = None;
    for entry in std::fs::read_dir(logs).ok()?.flatten() {
        let name = entry.file_name().to_string_lossy().to_ascii_lowercase();
        let is_log = name.strip_prefix(&begins).and_then(|rest| rest.strip_suffix(".log"));
        if is_log.is_some_and(|pid| pid.bytes().all(|byte| byte.is_ascii_digit())) {
            found = last_line(&entry.path()).or(found);
        }
    }
    found
}

/// The hosts that are late, one in a line, each with its last words.
#[derive(Debug)]
pub struct Laggards(Vec<(String, String)>, usize);

impl Laggards {
    /// Of what is known of the late hosts, their logs in `logs`, and what failed.
    pub fn new(progress: &Progress, failed: &BTreeMap<String, String>, logs: &Path, late: usize) -> Laggards {
        let mut all = progress.late.clone();
        all.extend(failed.iter().map(|(host, why)| (host.clone(), why.clone())));
        let named = all.into_iter().take(NAMED_MAX).map(|(host, why)| {
            let why = match (failed.contains_key(&host), last_logged(logs, &host)) {
                (true, _) => why,
                (false, Some(line)) => format!("{why}{}its log ends: {line}", if why.is_empty() { "" } else { "; " }),
                (false, None) if why.is_empty() => NO_LOG.to_owned(),
                (false, None) => format!("{why}; {NO_LOG}"),
            };
            (host, why)
        });
        let named: Vec<(String, String)> = named.collect();
        let more = late.saturating_sub(named.len());
        Laggards(named, more)
    }
}

impl fmt::Display for Laggards {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (host, why) in &self.0 {
            write!(formatter, "\n  {host}: {why}")?;
        }
        if self.1 > 0 { write!(formatter, "\n  and {} more", self.1) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_counts_of_nodes() {
        assert_eq!(MinReady::parse("100%").unwrap().of(7), 7);
        assert_eq!(MinReady::parse("99%").unwrap().of(10_000), 9_900);
        assert_eq!(MinReady::parse("99%").unwrap().of(4), 4);
        assert_eq!(MinReady::parse("70%").unwrap().of(10), 7);
        assert_eq!(MinReady::parse("3").unwrap().of(4), 3);
        assert_eq!(MinReady::parse("9").unwrap().of(4), 4);
        assert_eq!(MinReady::parse("0.1%").unwrap().of(4), 1);
        for bad in ["", "%", "0", "0%", "101%", "-1", "x", "NaN%", "inf%"] {
            assert!(MinReady::parse(bad).unwrap_err().contains("is neither a share"), "{bad:?}");
        }
    }

    struct Roots(Vec<(usize, Result<TreeReady, String>)>);

    impl AskRoot for Roots {
        fn ask(&mut self, position: usize) -> Result<TreeReady, String> {
            self.0.iter().find(|(at, _)| *at == position).map(|(_, tree)| tree.clone()).expect("a root is there")
        }
    }

    #[test]
    fn every_tree_has_a_root_that_is_asked() {
        let hosts: Vec<String> = (0..5).map(|i| format!("n{i}")).collect();
        let tree = |nodes, ready, missing: &[&str]| {
            Ok(TreeReady { nodes, ready, missing: missing.iter().map(|host| (*host).to_owned()).collect() })
        };
        let mut roots = Roots(vec![(0, tree(3, 2, &["n2"])), (3, tree(2, 2, &[]))]);
        let progress = Progress::ask(&hosts, &mut roots);
        assert_eq!((progress.ready, progress.late.len()), (4, 1));
        assert!(progress.late.contains_key("n2"));
        let mut roots = Roots(vec![(0, tree(3, 3, &[])), (3, Err("no daemon".to_owned()))]);
        let progress = Progress::ask(&hosts, &mut roots);
        assert_eq!((progress.ready, progress.late["n3"].as_str()), (3, "no daemon"));
        // A root that says nonsense does not make this run for ever, or beyond the book.
        let mut roots = Roots((0..5).map(|at| (at, tree(0, 9, &[]))).collect());
        assert_eq!(Progress::ask(&hosts, &mut roots).ready, 5);
    }

    #[test]
    fn failures_are_found_in_what_launchers_say() {
        let hosts = ["n1.site".to_owned(), "n2".to_owned()];
        let said = "srun: warning: x\nbornite: n1: port 7 is taken\nn2: bornite: N2.site: no /dev/fuse\nbornite: n9: x\nbornite: y";
        let found = failures(said, &hosts);
        assert_eq!(found.len(), 2);
        assert_eq!((found["n1.site"].as_str(), found["n2"].as_str()), ("port 7 is taken", "no /dev/fuse"));
    }

    #[test]
    fn laggards_are_named_with_their_last_words() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("n1-17.log"), "one\ntwo\n\n").unwrap();
        std::fs::write(temp.path().join("n1-b-17.log"), "another host's\n").unwrap();
        let late = |host: &str, why: &str| (host.to_owned(), why.to_owned());
        let progress = Progress { ready: 0, late: [late("n1", ""), late("n2", ""), late("n3", "")].into() };
        let failed = [late("n3", "no /dev/fuse")].into();
        let text = Laggards::new(&progress, &failed, temp.path(), 5).to_string();
        assert_eq!(
            text,
            "\n  n1: its log ends: two\n  n2: it has no log, or an empty one (--log-level 4 says more)\n  n3: no /dev/fuse\n  and 2 more"
        );
    }
}
