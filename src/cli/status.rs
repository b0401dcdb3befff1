//! `bornite status` and `bornite stats`: what daemons say, for people and for programs.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::args::StatusArgs;
use super::output;
use crate::observe::{
    AbsentNames, Counter, Request, Snapshot, SocketDirs, Status, Stripe, TreeStatus, Unit, query, query_all,
};

/// Clients wait this long for all daemons together.
const DEADLINE: Duration = Duration::from_secs(2);

/// Prints the status of one mount, or of all.
///
/// # Errors
/// No daemon serves the mount, or it does not answer.
pub(super) fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    show::<Status>(args, &Request::Status, describe)
}

/// Prints the counters of one mount, or of all.
///
/// # Errors
/// As [`status`].
pub(super) fn stats(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    match &args.mountpoint {
        Some(_) => show::<Snapshot>(args, &Request::Stats, table),
        // Counters without their mount point would not say whose they are.
        None => show::<Status>(args, &Request::Status, |status| {
            format!("{}\n{}", status.mountpoint.display(), table(&status.counters))
        }),
    }
}

fn show<T: Serialize + DeserializeOwned>(
    args: &StatusArgs,
    request: &Request,
    text: impl Fn(&T) -> String,
) -> anyhow::Result<ExitCode> {
    let dirs = SocketDirs::of_user();
    if let Some(mountpoint) = &args.mountpoint {
        let answer: T = query(&dirs, mountpoint, request, DEADLINE)?;
        let shown = if args.json { json(&answer)? } else { text(&answer) };
        output::print(&shown)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut answers = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for answer in query_all::<T>(&dirs, request, DEADLINE) {
        match answer {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                eprintln!("bornite: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    let shown = if args.json {
        json(&answers)?
    } else if answers.is_empty() {
        "no daemon of this user runs on this machine\n".to_owned()
    } else {
        answers.iter().map(text).collect::<Vec<_>>().join("\n")
    };
    output::print(&shown)?;
    Ok(code)
}

fn json<T: Serialize>(value: &T) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

const NONE: &str = "none";

/// Parent and children, in each tree where there are several.
fn place(stripes: &[Stripe], parent: Option<&str>, children: &[String]) -> (String, String) {
    let shown = |parent: Option<&str>, children: &[String]| {
        let children = if children.is_empty() { NONE.to_owned() } else { children.join(" ") };
        (parent.unwrap_or("none: a root").to_owned(), children)
    };
    if stripes.is_empty() {
        return shown(parent, children);
    }
    let each = stripes.iter().enumerate().map(|(tree, stripe)| {
        let (parent, children) = shown(stripe.parent.as_deref(), &stripe.children);
        (format!("{parent} (tree {tree})"), format!("{children} (tree {tree})"))
    });
    let (parents, children): (Vec<_>, Vec<_>) = each.unzip();
    (parents.join(", "), children.join(", "))
}

fn describe(status: &Status) -> String {
    let none = || NONE.to_owned();
    let (parent, children) = place(&status.stripes, status.parent.as_deref(), &status.children);
    let rows = [
        ("mount point", status.mountpoint.display().to_string()),
        ("target", status.target.display().to_string()),
        ("state", status.state.clone()),
        ("node", format!("{} ({} of {})", status.hostname, status.node + 1, status.nodes)),
        ("parent", parent),
        ("children", children),
        ("ready", status.tree.as_ref().map_or_else(none, ready)),
        ("provider", status.provider.clone().unwrap_or_else(none)),
        ("address", status.address.clone().unwrap_or_else(none)),
        ("process", format!("{}, up {}", status.pid, duration(status.uptime_s))),
        ("version", format!("{} (commit {})", status.version, status.commit)),
        ("cache", format!("{} of {}", bytes(status.cache.used_bytes), bytes(status.cache.capacity_bytes))),
        ("pinned", bytes(status.counters.get(Counter::CacheBytesPinned))),
        ("evicted", format!("{} chunks", status.counters.get(Counter::ChunksEvicted))),
        ("passed through", {
            let count = |counter| status.counters.get(counter);
            let (used, bound) = (count(Counter::PassthroughBytes), count(Counter::PassthroughBytesCapacity));
            match bound {
                0 => "off".to_owned(),
                _ => format!(
                    "{} of {} in {} files, {} evicted",
                    bytes(used),
                    bytes(bound),
                    count(Counter::PassthroughFiles),
                    count(Counter::PassthroughEvicted)
                ),
            }
        }),
        ("names", {
            let count = |counter| status.counters.get(counter);
            let (used, bound) = (bytes(count(Counter::NamesBytes)), bytes(count(Counter::NamesBytesCapacity)));
            format!("{used} of {bound}, {} dropped", count(Counter::NamesDropped))
        }),
        ("lookups", status.counters.get(Counter::FuseLookup).to_string()),
        ("backend reads", bytes(status.counters.get(Counter::BackendReadBytes))),
        ("from parent", bytes(status.counters.get(Counter::ReadBytesFromParent))),
        ("longest turn", format!("{} us", status.counters.get(Counter::EngineTurnUsMax))),
    ];
    let mut text = String::new();
    let asks = status.asks.iter().map(|asks| ("asks", asks.clone()));
    for (name, value) in rows.into_iter().chain(asks) {
        writeln!(text, "{name:<14} {value}").expect("a String takes every write");
    }
    text
}

/// How many nodes are ready, and some of those that are not.
fn ready(tree: &TreeStatus) -> String {
    const NAMED: usize = 10;
    let mut text = format!("{} of {} nodes", tree.ready, tree.nodes);
    if !tree.missing.is_empty() {
        let named = tree.missing.iter().take(NAMED).cloned().collect::<Vec<_>>().join(" ");
        let more = if tree.missing.len() > NAMED { " …" } else { "" };
        write!(text, "; not yet: {named}{more}").expect("a String takes every write");
    }
    text
}

fn table(counters: &Snapshot) -> String {
    let width = Counter::ALL.iter().map(|counter| counter.name().len()).max().unwrap_or_default();
    let mut text = String::new();
    for (counter, value) in counters.iter() {
        let unit = if counter.unit() == Unit::Count { "" } else { counter.unit().name() };
        writeln!(text, "{:<width$} {value:>16} {unit:<5}  {}", counter.name(), counter.help())
            .expect("a String takes every write");
    }
    writeln!(text, "\n{}", AbsentNames(counters)).expect("a String takes every write");
    text
}

fn bytes(value: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if value < 1024 {
        return format!("{value} B");
    }
    let mut scaled = value as f64 / 1024.0;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60) {
        (0, 0, 0, _) => format!("{seconds:.1} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, _, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_well() {
        let shown: Vec<String> = [0, 1023, 1024, 1536, 512 << 20, u64::MAX].into_iter().map(bytes).collect();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "512.0 MiB", "16384.0 PiB"]);
        let shown: Vec<String> = [0.25, 59.9, 60.0, 3661.0, 90_000.0].into_iter().map(duration).collect();
        assert_eq!(shown, ["0.2 s", "59.9 s", "1 min 0 s", "1 h 1 min", "1 d 1 h"]);
    }

    #[test]
    fn each_of_several_trees_is_told() {
        let name = |name: &str| name.to_owned();
        let stripe = |parent: Option<&str>, children: &[&str]| Stripe {
            parent: parent.map(name),
            children: children.iter().copied().map(name).collect(),
        };
        let two = [stripe(None, &["b", "c"]), stripe(Some("c"), &[])];
        assert_eq!(
            place(&two, None, &[]),
            (name("none: a root (tree 0), c (tree 1)"), name("b c (tree 0), none (tree 1)"))
        );
        assert_eq!(place(&[], Some("a"), &[name("b")]), (name("a"), name("b")));
    }

    #[test]
    fn who_is_not_ready_is_named() {
        let tree = |ready, missing: &[&str]| TreeStatus {
            nodes: 20,
            ready,
            missing: missing.iter().map(|name| (*name).to_owned()).collect(),
        };
        assert_eq!(ready(&tree(20, &[])), "20 of 20 nodes");
        assert_eq!(ready(&tree(18, &["b", "a"])), "18 of 20 nodes; not yet: b a");
        assert_eq!(ready(&tree(9, &["n"; 11])), format!("9 of 20 nodes; not yet:{} …", " n".repeat(10)));
    }

    #[test]
    fn every_counter_has_a_line() {
        let text = table(&Snapshot::zero());
        assert!(text.lines().next().unwrap().starts_with("fuse_lookup "));
        let rest: Vec<&str> = text.lines().skip(Counter::ALL.len()).collect();
        assert_eq!(rest.len(), 2, "an empty line and the summary: {rest:?}");
        assert!(rest[1].starts_with("absent names: 0 stale"), "{}", rest[1]);
    }
}
