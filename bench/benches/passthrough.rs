//! What `--passthrough on` gains and costs: the same work on mounts with and without it, in turn, at a root and at its child.
//!
//! A file of 200 MiB, cold (nothing of it on any node) and warm, with the CPU time of daemon and reader and the memory
//! that it takes afterwards; opens and reads of small files, warm; a Python import, cold and warm (`BORNITE_DEMO_ENV`).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use bornite::observe::Counter;
use bornite_bench::process::{self, Usage};
use bornite_bench::{Job, Series, drain, environment, noise, program, record, rounds};
use serde::Serialize;

const MODES: [&str; 2] = ["off", "on"];
const PLACES: [(&str, u32); 2] = [("root", 0), ("child", 1)];
const FILE_BYTES: usize = 200 << 20;
const CACHE: &str = "1G";
const SMALL_FILES: usize = 500;
const SMALL_BYTES: usize = 10_000;

/// One thing at one place: with passthrough against without.
#[derive(Serialize)]
struct Case {
    what: String,
    off: Series,
    on: Series,
    /// The median of the rounds' ratios: on by off.
    ratio: f64,
}

#[derive(Serialize)]
struct Figures {
    file_bytes: usize,
    cache_size: &'static str,
    cases: Vec<Case>,
}

fn main() -> anyhow::Result<()> {
    let program = program()?;
    let temp = tempfile::tempdir()?;
    let target = temp.path().join("target");
    std::fs::create_dir_all(target.join("small"))?;
    let bytes = noise(FILE_BYTES);
    for (place, _) in PLACES {
        std::fs::write(target.join(place), &bytes)?;
        std::fs::create_dir(target.join("small").join(place))?;
        for file in 0..SMALL_FILES {
            std::fs::write(small(&target, place, file), &bytes[file..][..SMALL_BYTES])?;
        }
    }
    drop(bytes);
    let mut cases: Vec<Case> = Vec::new();
    let mut note = |what: String, unit: &'static str, mode: usize, value: f64| {
        let at = cases.iter().position(|case| case.what == what).unwrap_or_else(|| {
            let series = |mode: &str| Series { name: format!("{what}, {mode}"), unit, values: Vec::new() };
            let (off, on) = (series("off"), series("on"));
            cases.push(Case { what, off, on, ratio: f64::NAN });
            cases.len() - 1
        });
        if mode == 0 { cases[at].off.values.push(value) } else { cases[at].on.values.push(value) }
    };
    let environment = environment();
    if environment.is_none() {
        println!("import: left out; make an environment with `bornite demo --env DIR`, set BORNITE_DEMO_ENV=DIR");
    }
    for round in 0..rounds(7) {
        for turn in 0..MODES.len() {
            let mode = (round + turn) % MODES.len();
            let mounts = temp.path().join(format!("mounts{round}{mode}"));
            let options = ["--cache-size", CACHE, "--passthrough", MODES[mode]];
            let job = Job::launch_with(&program, 2, &target, &mounts, &options)?;
            for (place, node) in PLACES {
                large(&job, &target, (place, node), |what, unit, value| {
                    note(format!("{place}: {what}"), unit, mode, value);
                })?;
                let us = small_us(&job.node(node), place)?;
                note(format!("{place}: open and read of {SMALL_BYTES} bytes, warm"), "us", mode, us);
            }
            drop(job);
            if let Some(environment) = &environment {
                let job = Job::launch_with(&program, 2, environment, &mounts, &options)?;
                for (place, node) in PLACES {
                    for what in ["cold", "warm"] {
                        note(format!("{place}: import, {what}"), "s", mode, import(&job.node(node))?);
                    }
                    let count = job.status(node)?.counters.get(Counter::PassthroughOpens);
                    ensure!(
                        (count > 0) == (mode == 1),
                        "{count} opens were passed through, --passthrough {}",
                        MODES[mode]
                    );
                }
            }
        }
    }
    for case in &mut cases {
        let ratios = case.on.values.iter().zip(&case.off.values).map(|(on, off)| on / off).collect();
        case.ratio = Series { name: String::new(), unit: "", values: ratios }.median();
        for series in [&case.off, &case.on] {
            println!("{}{}", series.line(), if series.is_noisy() { "  noisy" } else { "" });
        }
        println!("{:>48} {:.2}", "on by off:", case.ratio);
    }
    let figures = Figures { file_bytes: FILE_BYTES, cache_size: CACHE, cases };
    println!("{}", record("passthrough", &figures)?.display());
    Ok(())
}

/// The large file of a place: times, CPU times, and memory.
fn large(
    job: &Job,
    target: &Path,
    (place, node): (&str, u32),
    mut note: impl FnMut(&str, &'static str, f64),
) -> anyhow::Result<()> {
    // The backend's own pages are there in both modes.
    drain(File::open(target.join(place))?, Instant::now())?;
    let path = job.node(node).join(place);
    let pid = job.status(node)?.pid;
    let before = process::memory(pid)?.rss_bytes;
    for what in ["cold", "warm"] {
        let cpu = |()| Ok::<_, anyhow::Error>(process::usage(pid)?.plus(process::usage(std::process::id())?));
        let used: Usage = cpu(())?;
        let begin = Instant::now();
        let stream = drain(File::open(&path)?, begin)?;
        ensure!(stream.bytes == FILE_BYTES as u64, "{} bytes of {}", stream.bytes, path.display());
        note(&format!("200 MiB, {what}"), "ms", stream.all_ms);
        note(&format!("200 MiB, {what}, first byte"), "ms", stream.first_ms);
        note(&format!("200 MiB, {what}, CPU of daemon and reader"), "ms", cpu(())?.since(used).cpu_ns as f64 / 1e6);
    }
    let counters = job.status(node)?.counters;
    let resident = process::memory(pid)?.rss_bytes.saturating_sub(before);
    // What is passed through is what fincore sees.
    let memory = resident + counters.get(Counter::PassthroughBytes).max(cached_bytes(&path)?);
    note("200 MiB, memory of daemon and kernel for it", "MiB", memory as f64 / f64::from(1 << 20));
    Ok(())
}

/// What the kernel has of a file in its page cache, as fincore(1) tells it.
fn cached_bytes(path: &Path) -> anyhow::Result<u64> {
    let output = Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(path).output();
    let output = output.context("fincore of util-linux")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("fincore said {text:?}"))
}

fn small(root: &Path, place: &str, file: usize) -> std::path::PathBuf {
    root.join("small").join(place).join(format!("file{file}"))
}

/// Microseconds for each of the small files, the second time.
fn small_us(mount: &Path, place: &str) -> anyhow::Result<f64> {
    let mut buffer = vec![0; SMALL_BYTES + 1];
    let mut us = 0.0;
    for _ in 0..2 {
        let begin = Instant::now();
        for file in 0..SMALL_FILES {
            let read = File::open(small(mount, place, file))?.read_at(&mut buffer, 0)?;
            ensure!(read == SMALL_BYTES, "{read} bytes");
        }
        us = begin.elapsed().as_secs_f64() * 1e6 / SMALL_FILES as f64;
    }
    Ok(us)
}

/// Seconds of an import, as the interpreter tells them.
fn import(root: &Path) -> anyhow::Result<f64> {
    const CODE: &str = "\
import sys, time
sys.path.insert(0, sys.argv[1])
begin = time.perf_counter()
import numpy, scipy.stats, pandas, sklearn.ensemble
print(time.perf_counter() - begin)
";
    let output = Command::new("python3").args(["-I", "-B", "-c", CODE]).arg(root).output()?;
    if !output.status.success() {
        bail!("python3: {}", String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8_lossy(&output.stdout).trim().parse().context("what the import printed")
}
