//! What a request costs that nobody has asked before, at the root, at a child and at a grandchild: time, and for each
//! daemon on its way CPU time, sleeps and wake-ups of every kind of thread.
//!
//! Every piece of work gets a job of its own, so that every daemon is empty. The backend's and the kernel's caches are warm:
//! the difference between the depths is what the way costs.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use bornite::observe::Counter;
use bornite_bench::process::{self, Usage};
use bornite_bench::{Job, Series, environment, program, record, rounds};
use rustix::io::Errno;
use serde::Serialize;

const NODES: u32 = 4;
const ROUNDS: usize = 3;

/// Where the work is done, and on which node that is.
const PLACES: [(&str, u32); 3] = [("root", 0), ("child", 1), ("grandchild", 3)];

/// One file in each directory, as the answer for a name must not come from what its neighbours have brought.
const DIRS: usize = 1000;
const SMALL_BYTES: usize = 2500;

/// A piece of work on a tree, with the time of each operation where there are several.
type Work = fn(&Path) -> anyhow::Result<Vec<f64>>;

const WORK: [(&str, Work); 3] = [("stat", stat), ("ENOENT", absent), ("open and read 2500 B", read)];

#[derive(Serialize)]
struct Figures {
    work: &'static str,
    place: &'static str,
    /// Of each operation, the medians of the rounds.
    median_us: Series,
    /// Wall time of all of them.
    wall_ms: Series,
    operations: usize,
    /// What the nodes did in the last round, in the order of the book.
    nodes: Vec<NodeFigures>,
}

#[derive(Serialize)]
struct NodeFigures {
    /// Counters that moved.
    counters: BTreeMap<&'static str, u64>,
    /// By the names of the threads, numbers at their ends left out.
    threads: BTreeMap<String, Usage>,
}

fn main() -> anyhow::Result<()> {
    let program = program()?;
    let temp = tempfile::tempdir()?;
    let tree = temp.path().join("tree");
    make(&tree)?;
    let mut all = Vec::new();
    for (name, work) in WORK {
        for (place, node) in PLACES {
            all.push(measure(&program, &tree, temp.path(), (name, work), (place, node))?);
            show(all.last());
        }
    }
    match environment() {
        Some(dir) => {
            let dir = std::fs::canonicalize(dir)?;
            import(&dir)?;
            for (place, node) in PLACES {
                all.push(measure(&program, &dir, temp.path(), ("import", import), (place, node))?);
                show(all.last());
            }
        }
        None => {
            println!("import: left out; make an environment with `bornite demo --env DIR`, set BORNITE_DEMO_ENV=DIR")
        }
    }
    println!("{}", record("hops", &all)?.display());
    Ok(())
}

fn make(tree: &Path) -> anyhow::Result<()> {
    for i in 0..DIRS {
        let dir = tree.join(format!("site-packages/package{i:04}"));
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("module.py"), vec![b'x'; SMALL_BYTES])?;
    }
    Ok(())
}

fn measure(
    program: &Path,
    tree: &Path,
    temp: &Path,
    (name, work): (&'static str, Work),
    (place, node): (&'static str, u32),
) -> anyhow::Result<Figures> {
    let series = |unit| Series { name: format!("{name} at the {place}"), unit, values: Vec::new() };
    let mut figures =
        Figures { work: name, place, median_us: series("us"), wall_ms: series("ms"), operations: 0, nodes: Vec::new() };
    for _ in 0..rounds(ROUNDS) {
        let job = Job::launch_with(program, NODES, tree, &temp.join("mounts"), &["--cache-size", "1G"])?;
        let look = || -> anyhow::Result<Vec<_>> {
            (0..NODES)
                .map(|node| {
                    let status = job.status(node)?;
                    Ok((threads(status.pid)?, status.counters))
                })
                .collect()
        };
        // The look itself is little work of a thread that does nothing else.
        let before = look()?;
        let begin = Instant::now();
        let mut times = work(&job.node(node))?;
        figures.wall_ms.values.push(begin.elapsed().as_secs_f64() * 1e3);
        let after = look()?;
        times.sort_by(f64::total_cmp);
        figures.operations = times.len();
        figures.median_us.values.push(times.get(times.len() / 2).copied().unwrap_or(f64::NAN));
        let nodes = before.into_iter().zip(after);
        figures.nodes = nodes
            .map(|((threads0, counters0), (threads1, counters1))| NodeFigures {
                counters: counters1
                    .since(&counters0)
                    .iter()
                    .filter(|(_, moved)| *moved > 0)
                    .map(|(counter, moved)| (counter.name(), moved))
                    .collect(),
                threads: threads1
                    .into_iter()
                    .map(|(name, usage)| {
                        let before = threads0.get(&name).copied().unwrap_or_default();
                        (name, usage.since(before))
                    })
                    .collect(),
            })
            .collect();
    }
    Ok(figures)
}

/// The usage of the threads of one kind: names but for the numbers at their ends.
fn threads(pid: u32) -> anyhow::Result<BTreeMap<String, Usage>> {
    let mut kinds = BTreeMap::new();
    for (name, usage) in process::threads(pid)? {
        let kind = name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-').to_owned();
        let sum: &mut Usage = kinds.entry(kind).or_default();
        *sum = sum.plus(usage);
    }
    Ok(kinds)
}

fn show(figures: Option<&Figures>) {
    let Some(f) = figures else { return };
    let ops = f.operations.max(1) as f64;
    println!(
        "{} at the {}: {:.0} us (median of an operation), {:.1} ms for {}{}",
        f.work,
        f.place,
        f.median_us.median(),
        f.wall_ms.median(),
        f.operations,
        if f.wall_ms.is_noisy() { "  noisy" } else { "" }
    );
    for (node, n) in f.nodes.iter().enumerate() {
        let moved = |counter: Counter| n.counters.get(counter.name()).copied().unwrap_or(0) as f64 / ops;
        let kernel: f64 = Counter::ALL.iter().filter(|c| c.is_kernel_request()).map(|c| moved(*c)).sum();
        let peers: f64 = Counter::ALL.iter().filter(|c| c.is_peer_request()).map(|c| moved(*c)).sum();
        let backend: f64 = Counter::ALL.iter().filter(|c| c.is_backend_operation()).map(|c| moved(*c)).sum();
        let turns = moved(Counter::EngineTurns);
        if kernel + peers + backend < 0.01 {
            continue;
        }
        print!("  node{node}, each: {kernel:.2} kernel, {peers:.2} peers, {backend:.2} backend, {turns:.2} turns;");
        for (name, usage) in &n.threads {
            let each = |value: u64| value as f64 / ops;
            if each(usage.cpu_ns) >= 100.0 {
                let (cpu, sleeps, taken) = (each(usage.cpu_ns) / 1e3, each(usage.sleeps), each(usage.preemptions));
                print!("  {name} {cpu:.1} us CPU {sleeps:.2} sleeps {taken:.2} preempted;");
            }
        }
        println!();
    }
}

/// Times one operation on a file of each directory.
fn each(mut operation: impl FnMut(&Path) -> anyhow::Result<()>, root: &Path, file: &str) -> anyhow::Result<Vec<f64>> {
    (0..DIRS)
        .map(|i| {
            let path = root.join(format!("site-packages/package{i:04}/{file}"));
            let begin = Instant::now();
            operation(&path)?;
            Ok(begin.elapsed().as_secs_f64() * 1e6)
        })
        .collect()
}

/// Two requests: of the directory, and of the file.
fn stat(root: &Path) -> anyhow::Result<Vec<f64>> {
    each(|path| Ok(rustix::fs::stat(path).map(drop)?), root, "module.py")
}

fn absent(root: &Path) -> anyhow::Result<Vec<f64>> {
    let operation = |path: &Path| match rustix::fs::stat(path) {
        Err(Errno::NOENT) => Ok(()),
        other => bail!("{}: {other:?}", path.display()),
    };
    each(operation, root, "absent.py")
}

fn read(root: &Path) -> anyhow::Result<Vec<f64>> {
    let mut buffer = vec![0; SMALL_BYTES + 1];
    let operation = |path: &Path| match File::open(path)?.read_at(&mut buffer, 0)? {
        SMALL_BYTES => Ok(()),
        bytes => bail!("{}: {bytes} bytes", path.display()),
    };
    each(operation, root, "module.py")
}

/// One operation: its time is the interpreter's own.
fn import(root: &Path) -> anyhow::Result<Vec<f64>> {
    const CODE: &str = "\
import sys, time
sys.path.insert(0, sys.argv[1])
begin = time.perf_counter()
import numpy, scipy.stats, pandas, sklearn.ensemble
print((time.perf_counter() - begin) * 1e6)
";
    let output = Command::new("python3").args(["-I", "-B", "-c", CODE]).arg(root).output()?;
    if !output.status.success() {
        bail!("python3: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(vec![String::from_utf8_lossy(&output.stdout).trim().parse().context("what the import printed")?])
}
