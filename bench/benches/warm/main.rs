//! The warm path: a root's mount whose memory holds everything, a static FUSE server with the same options, lifetimes and
//! paths, and the filesystem itself, in turn within one run.
//!
//! Each piece of work is measured twice: answered by the kernel's caches, where both mounts must be equal, and answered by
//! the daemon, after the kernel was made to forget. Which of the two it was is checked by the servers' own counts.
//!
//! Client and servers share one CPU: where the scheduler puts a woken thread changes a request's time several times more than
//! what is measured here. What the daemon answers is measured once more with all CPUs, as it is in use.

mod places;
mod work;

use std::time::Instant;

use anyhow::{Context, bail};
use bornite_bench::place::{Cpus, Place, drop_names, serve_if_told, settle, thread_cpu};
use bornite_bench::{Series, environment, program, record, rounds};
use serde::Serialize;
use work::{CASES, Case, Done, Tree};

/// Rounds of everything but the import, and of the import.
const ROUNDS: usize = 15;
const IMPORT_ROUNDS: usize = 7;

/// Rounds that may be thrown away, as another one answered than was to: absent names are remembered for 10 s, and each
/// time that they are over, one round has to ask for them.
const ODD_MAX: usize = 20;

fn main() -> anyhow::Result<()> {
    if serve_if_told()? {
        return Ok(());
    }
    let program = program()?;
    let temp = tempfile::tempdir()?;
    let tree = Tree::make(&temp.path().join("tree"))?;
    let mut figures = Vec::new();
    {
        let places = places::all(&program, &tree.root, &temp.path().join("a"))?;
        for case in CASES {
            for cpus in case.placements() {
                cpus.apply(&places)?;
                figures.push(measure(case, *cpus, &tree, &places, rounds(ROUNDS)).with_context(|| case.title())?);
            }
        }
    }
    match environment() {
        Some(dir) => {
            let places = places::all(&program, &std::fs::canonicalize(dir)?, &temp.path().join("b"))?;
            Cpus::All.apply(&places)?;
            for case in work::IMPORTS {
                let rounds = rounds(IMPORT_ROUNDS);
                figures.push(measure(case, Cpus::All, &tree, &places, rounds).with_context(|| case.title())?);
            }
        }
        None => {
            println!("import: left out; make an environment with `bornite demo --env DIR`, set BORNITE_DEMO_ENV=DIR")
        }
    }
    print(&figures);
    println!("{}", record("warm", &figures)?.display());
    Ok(())
}

/// A case at all places.
#[derive(Serialize)]
struct Figures {
    name: &'static str,
    /// `kernel`, or `daemon`.
    answered_by: &'static str,
    cpus: Cpus,
    places: Vec<AtPlace>,
    /// Wall time through bornite by that through the static server: the median of the rounds' ratios.
    wall_ratio: f64,
    /// Likewise of the CPU times of client and server together.
    cpu_ratio: f64,
    /// Places whose wall times are too far apart to be trusted.
    noisy: Vec<&'static str>,
}

/// Figures for each operation, one for each round.
#[derive(Serialize)]
struct AtPlace {
    place: &'static str,
    wall: Series,
    client_cpu: Series,
    server_cpu: Series,
    /// Requests that the kernel sent to the server.
    requests: Series,
}

impl AtPlace {
    fn new(place: &'static str) -> AtPlace {
        let series = |name: &str, unit| Series { name: format!("{place} {name}"), unit, values: Vec::new() };
        AtPlace {
            place,
            wall: series("wall", "us"),
            client_cpu: series("client CPU", "us"),
            server_cpu: series("server CPU", "us"),
            requests: series("requests", "each"),
        }
    }

    fn push(&mut self, once: &Once) {
        self.wall.values.push(once.wall_us);
        self.client_cpu.values.push(once.client_us);
        self.server_cpu.values.push(once.server_us);
        self.requests.values.push(once.requests);
    }
}

fn measure(case: &Case, cpus: Cpus, tree: &Tree, places: &[Place], rounds: usize) -> anyhow::Result<Figures> {
    let mut at: Vec<AtPlace> = places.iter().map(|place| AtPlace::new(place.name)).collect();
    let mut odd = 0;
    let mut begun = 0;
    while at[0].wall.values.len() < rounds {
        match round(case, tree, places, begun)? {
            // The first round warms the machine.
            Ok(_) if begun == 0 => {}
            Ok(round) => at.iter_mut().zip(round).for_each(|(at, once)| at.push(&once)),
            // Somebody else on this machine may have had the kernel forget, or remember.
            Err(wrong) => {
                odd += 1;
                if odd > ODD_MAX {
                    bail!("{wrong}, not {:?}", case.requests_each);
                }
            }
        }
        begun += 1;
    }
    let ratio = |pick: fn(&AtPlace, usize) -> f64| {
        let find = |name| at.iter().find(|at| at.place == name);
        let (Some(ours), Some(theirs)) = (find(places::BORNITE), find(places::STATIC)) else { return f64::NAN };
        let values = (0..rounds).map(|round| pick(ours, round) / pick(theirs, round)).collect();
        Series { name: String::new(), unit: "", values }.median()
    };
    Ok(Figures {
        name: case.name,
        answered_by: case.answered_by(),
        cpus,
        wall_ratio: ratio(|at, round| at.wall.values[round]),
        cpu_ratio: ratio(|at, round| at.client_cpu.values[round] + at.server_cpu.values[round]),
        noisy: at.iter().filter(|at| at.wall.is_noisy()).map(|at| at.place).collect(),
        places: at,
    })
}

/// A round at all places, each time begun at another one; in words what was not answered by whom it was to be.
fn round(case: &Case, tree: &Tree, places: &[Place], number: usize) -> anyhow::Result<Result<Vec<Once>, String>> {
    for place in places {
        (case.prepare)(tree, place)?;
    }
    if case.forget_names {
        drop_names()?;
    }
    settle(places)?;
    let mut round: Vec<Option<Once>> = places.iter().map(|_| None).collect();
    for turn in 0..places.len() {
        let index = (turn + number) % places.len();
        let place = &places[index];
        let once = once(case, tree, place)?;
        if place.is_mount() && !case.requests_each.contains(&once.requests) {
            return Ok(Err(format!("{}: {} requests for each operation", place.name, once.requests)));
        }
        round[index] = Some(once);
    }
    Ok(Ok(round.into_iter().flatten().collect()))
}

/// One round at one place, for each operation.
struct Once {
    wall_us: f64,
    client_us: f64,
    server_us: f64,
    requests: f64,
}

fn once(case: &Case, tree: &Tree, place: &Place) -> anyhow::Result<Once> {
    let requests = place.requests()?;
    let server = place.server_cpu_ns()?;
    let cpu = thread_cpu();
    let begin = Instant::now();
    let done: Done = (case.run)(tree, place)?;
    let (wall, cpu) = (begin.elapsed(), thread_cpu() - cpu);
    let server = place.server_cpu_ns()? - server;
    let requests = place.requests()? - requests;
    let ops = done.ops as f64;
    let (wall, cpu) = done.times.unwrap_or((wall, cpu));
    let each = requests as f64 / ops;
    Ok(Once {
        wall_us: wall.as_secs_f64() * 1e6 / ops,
        client_us: cpu.as_secs_f64() * 1e6 / ops,
        server_us: server as f64 / 1e3 / ops,
        requests: each,
    })
}

fn print(figures: &[Figures]) {
    println!(
        "{:<42}{:>9}{:>9}{:>9}{:>8}{:>10}{:>9}{:>8}",
        "us per operation (medians)", "ext4", "static", "bornite", "ratio", "static", "bornite", "ratio"
    );
    println!("{:<42}{:>27}{:>8}{:>19}{:>8}", "", "wall", "", "CPU, both sides", "");
    for f in figures {
        let find = |name| f.places.iter().find(|at| at.place == name);
        let wall = |name| find(name).map_or(f64::NAN, |at| at.wall.median());
        let cpu = |name| find(name).map_or(f64::NAN, |at| at.client_cpu.median() + at.server_cpu.median());
        println!(
            "{:<42}{:>9.2}{:>9.2}{:>9.2}{:>8.3}{:>10.2}{:>9.2}{:>8.3}{}",
            format!("{}, {}{}", f.name, f.answered_by, if f.cpus == Cpus::All { ", all CPUs" } else { "" }),
            wall(places::EXT4),
            wall(places::STATIC),
            wall(places::BORNITE),
            f.wall_ratio,
            cpu(places::STATIC),
            cpu(places::BORNITE),
            f.cpu_ratio,
            if f.noisy.is_empty() { String::new() } else { format!("  noisy: {}", f.noisy.join(", ")) },
        );
    }
    if figures.iter().any(|f| !f.noisy.is_empty()) {
        println!("noisy: the middle half of the rounds lies more than 15 % apart; the ratios are taken round by round");
    }
}
