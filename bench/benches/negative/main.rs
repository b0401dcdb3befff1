//! Names through mounts, end to end: there and absent, asked for the first time, again within the time to live, after it, and
//! many different ones of one directory; at a root and a child of ours, a static FUSE server with the same options, one whose
//! answers the kernel may keep for no time at all, and the filesystems themselves.
//!
//! All places take turns in each round, and each has names of its own, so that none finds what another one has fetched. Who
//! answered is checked by counts: requests that reached the server, and operations of the daemons on the backend. A round
//! with other counts is thrown away, and some of them end the run. Times are of single calls of stat(2).

mod work;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bornite_bench::place::{Cpus, Lifetimes, Place, drop_names, serve_if_told, settle};
use bornite_bench::plot::{Bars, save};
use bornite_bench::{Job, Series, leave_alone, program, record, rounds};
use hdrhistogram::Histogram;
use serde::Serialize;
use work::{What, When, ask};

const ROUNDS: usize = 15;

/// Rounds that may be thrown away: on a busy machine a phase may take longer than the TTL.
const ODD_MAX: usize = 10;

/// The time to live of absent names, and of attributes of files.
const TTL_MS: u64 = 1_000;

/// Longer than any answer lives that was given within the TTL.
const AFTER: Duration = Duration::from_millis(TTL_MS + 200);

/// That of directories: none expires in a run.
const DIRS_MS: u64 = 3_600_000;

const STATIC: &str = "static";
const TIMELESS: &str = "static, no timeouts";
const ROOT: &str = "root";
const CHILD: &str = "child";
const EXT4: &str = "ext4";
const TMPFS: &str = "tmpfs";

/// How many they are.
const PLACES: usize = 6;

/// The longest time that is told apart, nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;

fn main() -> anyhow::Result<()> {
    if serve_if_told()? {
        return Ok(());
    }
    let (program, rounds) = (program()?, rounds(ROUNDS));
    let temp = tempfile::tempdir()?;
    let memory = tempfile::tempdir_in("/dev/shm").context("no tmpfs at /dev/shm")?;
    // Beneath places of the same depth.
    let (disk, tmpfs) = (temp.path().join("disk/tree0"), memory.path().join("disk/tree0"));
    // The first round warms the machine, and some may be thrown away.
    work::make(&[&disk, &tmpfs], PLACES, rounds + 1 + ODD_MAX)?;
    let places = places(&program, temp.path(), &disk, &tmpfs)?;
    Cpus::All.apply(&places)?;

    let mut figures = Vec::new();
    for what in [What::Stat, What::Absent] {
        figures.extend(measure(&places, what, rounds).context(what.words())?);
    }
    print(&figures);
    for what in [What::Stat, What::Absent] {
        println!("{}", plot(what, "p50", &figures, |at| at.p50_ns)?.display());
        println!("{}", plot(what, "p99", &figures, |at| at.p99_ns)?.display());
    }
    println!("{}", record("negative", &figures)?.display());
    Ok(())
}

/// All of them, with trees at equal depths.
fn places(program: &Path, dir: &Path, disk: &Path, tmpfs: &Path) -> anyhow::Result<Vec<Place>> {
    let same = Lifetimes { absent_ms: TTL_MS, dirs_ms: DIRS_MS, others_ms: TTL_MS };
    let none = Lifetimes { absent_ms: 0, dirs_ms: 0, others_ms: 0 };
    let (ttl, dirs) = (TTL_MS.to_string(), DIRS_MS.to_string());
    let options = ["--enoent-ttl-ms", &ttl, "--attr-ttl-ms", &ttl, "--dir-ttl-ms", &dirs];
    let job = Arc::new(Job::launch_with(program, 2, disk, &dir.join("ours"), &options)?);
    Ok(vec![
        Place::daemon(ROOT, &job, 0)?,
        Place::daemon(CHILD, &job, 1)?,
        Place::snapshot(STATIC, disk, &dir.join("same/stat0"), same)?,
        Place::snapshot(TIMELESS, disk, &dir.join("none/stat0"), none)?,
        Place::plain(EXT4, disk),
        Place::plain(TMPFS, tmpfs),
    ])
}

/// One state of the names at all places.
#[derive(Serialize)]
struct Figures {
    what: What,
    when: When,
    places: Vec<AtPlace>,
    /// At the root, by the static server: the median of the ratios of the rounds' medians.
    root_by_static: f64,
    /// Likewise at the child.
    child_by_static: f64,
    /// Places whose rounds' medians lie too far apart to be trusted.
    noisy: Vec<&'static str>,
}

#[derive(Serialize)]
struct AtPlace {
    place: &'static str,
    samples: u64,
    p50_ns: u64,
    p90_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
    /// The median of each round.
    medians: Series,
    /// Requests that the kernel sent to the server, for each name: of each round.
    requests: Vec<f64>,
    /// Operations of the daemons of the job on the backend, likewise.
    backend_ops: Vec<f64>,
}

/// What one phase was at one place.
struct Once {
    times: Vec<u64>,
    requests: f64,
    backend_ops: f64,
}

fn measure(places: &[Place], what: What, rounds: usize) -> anyhow::Result<Vec<Figures>> {
    let mut kept: Vec<Vec<Vec<Once>>> = Vec::new();
    let mut odd = Vec::new();
    for number in 0.. {
        match round(places, what, number)? {
            // The first round warms the machine.
            Ok(_) if number == 0 => {}
            Ok(round) => kept.push(round),
            Err(wrong) if odd.len() < ODD_MAX => {
                eprintln!("thrown away: {wrong}");
                odd.push(wrong);
            }
            Err(wrong) => bail!("{wrong}; {ODD_MAX} rounds before were not as they should be either"),
        }
        if kept.len() == rounds {
            break;
        }
    }
    let phase = |(phase, when): (usize, &When)| {
        let at_place = |(index, place): (usize, &Place)| -> anyhow::Result<AtPlace> {
            let all = || kept.iter().map(move |round| &round[phase][index]);
            let mut histogram = Histogram::<u64>::new_with_max(LONGEST_NS, 3)?;
            all().flat_map(|once| &once.times).for_each(|ns| histogram.saturating_record((*ns).max(1)));
            let name = format!("{}, {}", place.name, when.words());
            let at = |quantile: f64| histogram.value_at_quantile(quantile);
            Ok(AtPlace {
                place: place.name,
                samples: histogram.len(),
                p50_ns: at(0.5),
                p90_ns: at(0.9),
                p99_ns: at(0.99),
                p999_ns: at(0.999),
                medians: Series { name, unit: "ns", values: all().map(|once| median(&once.times)).collect() },
                requests: all().map(|once| once.requests).collect(),
                backend_ops: all().map(|once| once.backend_ops).collect(),
            })
        };
        let at: Vec<AtPlace> = places.iter().enumerate().map(at_place).collect::<anyhow::Result<_>>()?;
        let ratio = |ours: &str| {
            let medians = |name: &str| at.iter().find(|at| at.place == name).map(|at| &at.medians.values);
            let (Some(ours), Some(theirs)) = (medians(ours), medians(STATIC)) else { return f64::NAN };
            let values = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
            Series { name: String::new(), unit: "", values }.median()
        };
        Ok(Figures {
            what,
            when: *when,
            root_by_static: ratio(ROOT),
            child_by_static: ratio(CHILD),
            noisy: at.iter().filter(|at| at.medians.is_noisy()).map(|at| at.place).collect(),
            places: at,
        })
    };
    When::ALL.iter().enumerate().map(phase).collect()
}

fn median(times: &[u64]) -> f64 {
    let values = times.iter().map(|ns| *ns as f64).collect();
    Series { name: String::new(), unit: "ns", values }.median()
}

/// All phases at all places, each time begun at another one: by phase and place; in words what was not answered by whom it
/// was to be.
fn round(places: &[Place], what: What, number: usize) -> anyhow::Result<Result<Vec<Vec<Once>>, String>> {
    drop_names()?;
    for (index, place) in places.iter().enumerate() {
        work::know(&place.root, (index, number))?;
    }
    // Names of the round before are no misses of this one.
    leave_alone(AFTER);
    settle(places)?;
    let mut phases: Vec<Vec<Option<Once>>> = When::ALL.iter().map(|_| places.iter().map(|_| None).collect()).collect();
    for late in [false, true] {
        if late {
            leave_alone(AFTER);
        }
        for turn in 0..places.len() {
            let index = (turn + number) % places.len();
            for (phase, when) in When::ALL.into_iter().enumerate().filter(|(_, when)| (*when == When::After) == late) {
                let place = &places[index];
                let once = once(place, &work::paths(&place.root, what, when, (index, number)), what)?;
                if let Some(wrong) = odd(place, what, when, &once) {
                    return Ok(Err(wrong));
                }
                phases[phase][index] = Some(once);
            }
        }
    }
    Ok(Ok(phases.into_iter().map(|at| at.into_iter().flatten().collect()).collect()))
}

fn once(place: &Place, paths: &[PathBuf], what: What) -> anyhow::Result<Once> {
    let (requests, ops) = (place.requests()?, place.backend_ops()?);
    let times = ask(paths, what)?;
    let each = |before: u64, after: u64| (after - before) as f64 / paths.len() as f64;
    let (requests, backend_ops) = (each(requests, place.requests()?), each(ops, place.backend_ops()?));
    Ok(Once { times, requests, backend_ops })
}

/// What is wrong with the counts of a phase.
fn odd(place: &Place, what: What, when: When, once: &Once) -> Option<String> {
    let requests = match (place.name, when) {
        (EXT4 | TMPFS, _) => 0.0..=0.0,
        // A request for each step of the path.
        (TIMELESS, _) => 1.0..=20.0,
        (_, When::Repeated) => 0.0..=0.05,
        (_, When::First | When::After | When::Distinct) => 0.95..=1.1,
    };
    let backend = match (what, when) {
        _ if !place.is_daemon() => 0.0..=0.0,
        (_, When::Repeated) => 0.0..=0.05,
        // A few lookups, and the listing that answers the others.
        (What::Absent, When::Distinct) => 0.0..=0.5,
        (_, When::First | When::After) | (What::Stat, When::Distinct) => 0.95..=1.1,
    };
    let wrong = |of: &str, count: f64| {
        Some(format!("{}, {}, {}: {count} {of} for each name", place.name, what.words(), when.words()))
    };
    if !requests.contains(&once.requests) {
        return wrong("requests", once.requests);
    }
    if !backend.contains(&once.backend_ops) { wrong("operations of the backend", once.backend_ops) } else { None }
}

fn print(figures: &[Figures]) {
    println!(
        "{:<24}{:<21}{:>9}{:>9}{:>9}{:>9}{:>10}{:>9}",
        "ns", "", "p50", "p90", "p99", "p99.9", "requests", "backend"
    );
    for f in figures {
        for (number, at) in f.places.iter().enumerate() {
            let title = || format!("{}, {}", f.what.words(), f.when.words());
            let title = if number == 0 { title() } else { String::new() };
            let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
            println!(
                "{title:<24}{:<21}{:>9}{:>9}{:>9}{:>9}{:>10.2}{:>9.2}{}",
                at.place,
                at.p50_ns,
                at.p90_ns,
                at.p99_ns,
                at.p999_ns,
                mean(&at.requests),
                mean(&at.backend_ops),
                if f.noisy.contains(&at.place) { "  noisy" } else { "" },
            );
        }
        println!("{:<24}by static: root {:.3}, child {:.3}", "", f.root_by_static, f.child_by_static);
    }
    if figures.iter().any(|f| !f.noisy.is_empty()) {
        println!(
            "noisy: the middle half of the rounds' medians lies more than 15 % apart; the ratios are taken round by round"
        );
    }
}

/// One picture for names that are there, and one for absent ones.
fn plot(what: What, percentile: &str, figures: &[Figures], pick: fn(&AtPlace) -> u64) -> anyhow::Result<PathBuf> {
    let figures: Vec<&Figures> = figures.iter().filter(|f| f.what == what).collect();
    let groups: Vec<String> = figures.iter().map(|f| f.when.words().to_owned()).collect();
    let names = figures.first().map(|f| f.places.iter().map(|at| at.place).collect::<Vec<_>>()).unwrap_or_default();
    let us = |f: &&Figures, index: usize| pick(&f.places[index]) as f64 / 1e3;
    let series: Vec<(String, Vec<f64>)> = names
        .iter()
        .enumerate()
        .map(|(index, name)| ((*name).to_owned(), figures.iter().map(|f| us(f, index)).collect()))
        .collect();
    let title = format!("{}, {percentile}", what.words());
    let name = format!("negative-{}-{percentile}", what.words().to_ascii_lowercase());
    save(&name, &Bars { title: &title, unit: "us", groups: &groups, series: &series }.svg())
}
