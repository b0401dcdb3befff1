//! A large file and a Python import, cold, at every depth of a chain of nodes.
//!
//! The file: time for all of it and for its first byte, beside the backend itself and a plain TCP stream from there, and the
//! most memory that each daemon ever had. The import: what it costs the backend, beside what one native client asks of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bornite::observe::{Counter, Request, SocketDirs, Status, query};
use bornite_bench::{Job, Series, Stream, drain, environment, noise, program, record};
use serde::Serialize;

const DEPTHS: u32 = 3;
const FILE_BYTES: usize = 200 << 20;
const ROUNDS: usize = 5;
const CACHE: &str = "512M";
const STATUS_WITHIN: Duration = Duration::from_secs(5);
const MODULES: &str = "import numpy, scipy.stats, pandas, sklearn.ensemble";

#[derive(Serialize)]
struct Cold {
    file_bytes: usize,
    series: Vec<Series>,
    cache_size: &'static str,
    /// `VmHWM` of each daemon (`proc_pid_status`(5)) after its last round, bytes.
    peak_rss_bytes: Vec<u64>,
    import: Option<Import>,
}

/// What an import costs who serves it.
#[derive(Serialize)]
struct Import {
    modules: &'static str,
    /// System calls of the native import that name a path of the environment, or a descriptor of one, by kind.
    native_calls: BTreeMap<String, u64>,
    native_total: u64,
    /// Operations of the root on its backend for an import at the deepest node, by counter.
    backend: BTreeMap<String, u64>,
    backend_total: u64,
}

fn main() -> anyhow::Result<()> {
    let program = program()?;
    let temp = tempfile::tempdir()?;
    let target = temp.path().join("target");
    std::fs::create_dir(&target)?;
    let bytes = noise(FILE_BYTES);
    // One for each depth: what one node has read, those above it have too.
    let files: Vec<_> = (0..=DEPTHS).map(|depth| target.join(format!("file{depth}"))).collect();
    for file in &files {
        std::fs::write(file, &bytes)?;
        File::open(file)?.sync_all()?;
    }
    let names = || {
        let depths = (0..=DEPTHS).map(|depth| format!("depth {depth}"));
        depths.chain(["the backend itself".to_owned(), "TCP from the backend".to_owned()])
    };
    let series = |name: String, unit| Series { name, unit, values: Vec::new() };
    let mut whole: Vec<Series> = names().map(|name| series(name, "ms")).collect();
    let mut first: Vec<Series> = names().map(|name| series(format!("{name}, first byte"), "ms")).collect();
    let mut peak_rss_bytes = Vec::new();
    for round in 0..ROUNDS {
        let mounts = temp.path().join(format!("round{round}"));
        let arguments = ["--fanout=1", "--cache-size", CACHE];
        let job = Job::launch_with(&program, DEPTHS + 1, &target, &mounts, &arguments)?;
        let mut streams = Vec::new();
        for (depth, file) in (0..).zip(&files) {
            drop_pages(file)?;
            let begin = Instant::now();
            streams.push(drain(File::open(job.node(depth).join(file.file_name().context("a name")?))?, begin)?);
        }
        drop_pages(&files[0])?;
        let begin = Instant::now();
        streams.push(drain(File::open(&files[0])?, begin)?);
        drop_pages(&files[0])?;
        streams.push(tcp(&files[0])?);
        for (at, stream) in streams.into_iter().enumerate() {
            ensure!(stream.bytes == FILE_BYTES as u64, "{} bytes of {}", stream.bytes, whole[at].name);
            whole[at].values.push(stream.all_ms);
            first[at].values.push(stream.first_ms);
        }
        peak_rss_bytes = (0..=DEPTHS).map(|node| peak_rss(&job, node)).collect::<Result<_, _>>()?;
    }
    println!("{} MiB, cold, {ROUNDS} rounds, medians", FILE_BYTES >> 20);
    whole.iter().chain(&first).for_each(|series| println!("{}", series.line()));
    for (node, bytes) in peak_rss_bytes.iter().enumerate() {
        println!("node{node}: at most {} MiB resident, --cache-size {CACHE}", bytes >> 20);
    }
    let import = import(&program, temp.path())?;
    if let Some(import) = &import {
        println!("import: {} backend operations, {} native calls", import.backend_total, import.native_total);
    }
    whole.append(&mut first);
    let cold = Cold { file_bytes: FILE_BYTES, series: whole, cache_size: CACHE, peak_rss_bytes, import };
    println!("{}", record("cold", &cold)?.display());
    Ok(())
}

/// Has the kernel forget the pages of a file.
fn drop_pages(file: &Path) -> anyhow::Result<()> {
    Ok(rustix::fs::fadvise(File::open(file)?, 0, None, rustix::fs::Advice::DontNeed)?)
}

/// The file over a connection of the loopback interface.
fn tcp(file: &Path) -> anyhow::Result<Stream> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || -> anyhow::Result<()> {
            let (mut stream, _) = listener.accept()?;
            std::io::copy(&mut File::open(file)?, &mut stream)?;
            Ok(())
        });
        let begin = Instant::now();
        let got = drain(TcpStream::connect(address)?, begin)?;
        sender.join().ok().context("the sender")??;
        Ok(got)
    })
}

fn status(job: &Job, node: u32) -> anyhow::Result<Status> {
    Ok(query(&SocketDirs::of_user(), &job.node(node), &Request::Status, STATUS_WITHIN)?)
}

fn peak_rss(job: &Job, node: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", status(job, node)?.pid))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(peak.trim().trim_end_matches(" kB").trim().parse::<u64>()? << 10)
}

/// The import natively under strace, and at the deepest node. None where strace or the environment is missing.
fn import(program: &Path, temp: &Path) -> anyhow::Result<Option<Import>> {
    let Some(environment) = environment() else {
        println!(
            "skipped: the import, which takes BORNITE_DEMO_ENV=DIR with the environment of `bornite demo --env DIR`"
        );
        return Ok(None);
    };
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        println!("skipped: the import, which takes strace");
        return Ok(None);
    }
    let environment = std::fs::canonicalize(environment)?;
    let python = |root: &Path, mut command: Command| -> anyhow::Result<()> {
        command.args(["python3", "-S", "-B", "-c", MODULES]).env("PYTHONPATH", root);
        let status = command.stdin(Stdio::null()).status()?;
        ensure!(status.success(), "{command:?} ended with {status}");
        Ok(())
    };
    let trace = temp.join("trace");
    let mut strace = Command::new("strace");
    // Descriptors with their paths; all that can reach a filesystem.
    strace.args(["-f", "-qq", "-y", "-e", "trace=%file,%desc", "-o"]).arg(&trace);
    python(&environment, strace)?;
    let native_calls = calls_below(&std::fs::read_to_string(&trace)?, &environment.to_string_lossy());

    let job = Job::launch_with(program, DEPTHS + 1, &environment, &temp.join("import"), &["--fanout=1"])?;
    python(&job.node(DEPTHS), Command::new("env"))?;
    let counts = status(&job, 0)?.counters;
    let backend: BTreeMap<String, u64> = Counter::ALL
        .iter()
        .filter(|counter| counter.is_backend_operation())
        .map(|counter| (counter.name().to_owned(), counts.get(*counter)))
        .collect();
    let (native_total, backend_total) = (native_calls.values().sum(), backend.values().sum());
    Ok(Some(Import { modules: MODULES, native_calls, native_total, backend, backend_total }))
}

/// Calls in an strace that name something below `root` and that a filesystem has to answer.
fn calls_below(trace: &str, root: &str) -> BTreeMap<String, u64> {
    // What the kernel answers by itself: no filesystem hears of it.
    const OWN: [&str; 6] = ["lseek", "close", "fcntl", "ioctl", "mmap", "fadvise64"];
    let mut calls = BTreeMap::new();
    for line in trace.lines().filter(|line| line.contains(root)) {
        // `PID name(arguments…`, or the rest of an interrupted one.
        let call = line.split_once(' ').and_then(|(_, rest)| rest.trim_start().split_once('(')).map(|(name, _)| name);
        if let Some(name) = call.filter(|name| !name.starts_with('<') && !OWN.contains(name)) {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    calls
}
