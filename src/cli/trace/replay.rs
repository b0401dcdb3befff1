//! `bornite trace replay`: the requests of a trace again, as real ones or in a simulation.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::super::args::TraceReplayArgs;
use super::super::output;
use super::show::result;
use crate::observe::trace::{Answer, Event, Op, Trace};

/// Latencies up to this are told apart, nanoseconds.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// Differences that are shown.
const SHOWN_MAX: usize = 10;
/// A read of a trace is of at most so many bytes: the kernel asks for less.
const READ_BYTES_MAX: u64 = 64 << 20;

/// What a rank found.
struct Rank {
    latencies: BTreeMap<&'static str, Histogram<u64>>,
    /// The first ones, in words.
    differences: Vec<String>,
    differing: u64,
}

/// Latencies of one operation.
#[derive(Serialize)]
struct Latency {
    op: &'static str,
    count: u64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

#[derive(Serialize)]
struct Replayed {
    ranks: u64,
    requests: u64,
    seconds: f64,
    requests_per_s: f64,
    differing: u64,
    differences: Vec<String>,
    latencies: Vec<Latency>,
}

/// Repeats the trace.
///
/// # Errors
/// The trace cannot be read, or standard output cannot be written. Results that differ are told by the exit code.
pub(super) fn replay(args: &TraceReplayArgs) -> anyhow::Result<ExitCode> {
    let trace = super::read(&args.file)?;
    let Some(dir) = &args.mount else {
        return super::super::enoent::replay(&trace, args.nodes, args.ranks, args.json);
    };
    let dir = dir
        .canonicalize()
        .with_context(|| format!("cannot replay at {}; name a directory with --mount", dir.display()))?;
    let ranks = usize::try_from(args.ranks).context("--ranks")?;
    let (start, begin) = (Barrier::new(ranks), Instant::now());
    let found: Vec<Rank> = std::thread::scope(|scope| {
        let work = || {
            start.wait();
            run(&trace, &dir, args.speed)
        };
        let threads: Vec<_> = (0..ranks).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank does not panic")).collect()
    });
    let replayed = sum(found, begin.elapsed());
    if args.json {
        output::print(&(serde_json::to_string_pretty(&replayed)? + "\n"))?;
    } else {
        output::print(&table(&replayed))?;
    }
    Ok(if replayed.differing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(trace: &Trace, dir: &Path, speed: f64) -> Rank {
    let mut rank = Rank { latencies: BTreeMap::new(), differences: Vec::new(), differing: 0 };
    let mut buffer = Vec::new();
    let (begin, first_us) = (Instant::now(), trace.events().first().map_or(0, |event| event.start_us));
    for event in trace.events() {
        if speed > 0.0 {
            let due = Duration::from_micros(event.start_us - first_us).div_f64(speed);
            // Who is late goes on at once.
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
        }
        let path = path_in(dir, trace.path(event));
        let asked = Instant::now();
        let answer = ask(&path, event.op, &mut buffer);
        let took_ns = u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let latencies = rank.latencies.entry(event.op.as_str());
        let histogram =
            latencies.or_insert_with(|| Histogram::new_with_max(LATENCY_NS_MAX, 3).expect("bounds that fit"));
        histogram.saturating_record(took_ns.clamp(1, LATENCY_NS_MAX));
        if !agrees(event, answer) {
            rank.differing += 1;
            if rank.differences.len() < SHOWN_MAX {
                let (then, now) = (result(event.answer), result(answer));
                let path = String::from_utf8_lossy(trace.path(event)).escape_debug().to_string();
                rank.differences.push(format!("{} /{path}: {then} when recorded, {now} now", event.op.as_str()));
            }
        }
    }
    rank
}

fn path_in(dir: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() { dir.to_owned() } else { dir.join(OsStr::from_bytes(path)) }
}

fn ask(path: &Path, op: Op, buffer: &mut Vec<u8>) -> Answer {
    let answer = match op {
        Op::Lookup | Op::Getattr => fs::symlink_metadata(path)
            .map(|found| Answer::Found { kind: ((found.mode() >> 12) & 0xf) as u8, size: found.size() }),
        Op::Readlink => fs::read_link(path).map(|text| Answer::Bytes(text.as_os_str().len() as u64)),
        Op::Readdir => fs::read_dir(path).and_then(|names| {
            for name in names {
                name?;
            }
            Ok(Answer::Done)
        }),
        Op::Read { offset, len } => read(path, offset, len, buffer).map(Answer::Bytes),
        Op::Statfs => rustix::fs::statvfs(path).map(|_| Answer::Done).map_err(io::Error::from),
    };
    answer.unwrap_or_else(|error| Answer::Failed(error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error())))
}

fn read(path: &Path, offset: u64, len: u64, buffer: &mut Vec<u8>) -> io::Result<u64> {
    let len = usize::try_from(len.min(READ_BYTES_MAX)).unwrap_or(0);
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    let (file, mut filled) = (File::open(path)?, 0);
    while filled < len {
        match file.read_at(&mut buffer[filled..len], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled as u64)
}

/// Whether an answer says the same. The size of a directory is its filesystem's own business.
fn agrees(event: &Event, answer: Answer) -> bool {
    match (event.answer, answer) {
        (Answer::Found { kind: 4, .. }, Answer::Found { kind: 4, .. }) => true,
        (then, now) => then == now,
    }
}

fn sum(found: Vec<Rank>, wall: Duration) -> Replayed {
    let ranks = found.len() as u64;
    let mut all: BTreeMap<&'static str, Histogram<u64>> = BTreeMap::new();
    let (mut differing, mut differences) = (0, Vec::new());
    for rank in found {
        differing += rank.differing;
        differences.extend(rank.differences);
        for (op, histogram) in rank.latencies {
            match all.get_mut(op) {
                Some(sum) => sum.add(histogram).expect("equal bounds"),
                None => _ = all.insert(op, histogram),
            }
        }
    }
    differences.truncate(SHOWN_MAX);
    let latency = |(op, histogram): (&'static str, Histogram<u64>)| {
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Latency {
            op,
            count: histogram.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max() as f64 / 1e3,
        }
    };
    let latencies: Vec<Latency> = all.into_iter().map(latency).collect();
    let requests = latencies.iter().map(|latency| latency.count).sum();
    let seconds = wall.as_secs_f64();
    Replayed { ranks, requests, seconds, requests_per_s: requests as f64 / seconds, differing, differences, latencies }
}

fn table(replayed: &Replayed) -> String {
    let mut text = String::new();
    let mut line = |row: String| writeln!(text, "{row}").expect("a String takes every write");
    let header = ["operation", "count", "p50, us", "p90, us", "p99, us", "p99.9, us", "max, us"];
    line(format!(
        "{:<10} {:>9} {:>10} {:>10} {:>10} {:>10} {:>10}",
        header[0], header[1], header[2], header[3], header[4], header[5], header[6]
    ));
    for l in &replayed.latencies {
        line(format!(
            "{:<10} {:>9} {:>10.1} {:>10.1} {:>10.1} {:>10.1} {:>10.1}",
            l.op, l.count, l.p50_us, l.p90_us, l.p99_us, l.p999_us, l.max_us
        ));
    }
    let (ranks, requests, seconds) = (replayed.ranks, replayed.requests, replayed.seconds);
    line(format!("{requests} requests of {ranks} ranks in {seconds:.3} s: {:.0} in a second", replayed.requests_per_s));
    line(format!("{} results differ from the recorded ones", replayed.differing));
    replayed.differences.iter().for_each(|difference| line(format!("  {difference}")));
    text
}
