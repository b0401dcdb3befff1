//! How long it takes to cut a facility's address book down to a job: 10,624 entries, 512 nodes, in this process (wall time, and
//! CPU time, which other load does not change) and as the command that a job script calls, beside awk(1), which such scripts use.
//!
//! The book is as real ones are: names of Aurora's form, the last line without a line feed; once with CRLF. The node file has
//! full names where the book has short ones, in another order, and a line for each of 12 ranks.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::ensure;
use bornite::job::{facility, read_nodefile};
use bornite_bench::{Series, program, record, rounds, time_ms};
use rustix::time::{ClockId, clock_gettime};

const ENTRIES: usize = 10_624;
const NODES: usize = 512;
const RANKS: usize = 12;

/// Milliseconds that one scan may take.
const LIMIT_MS: f64 = 5.0;

/// A node as Aurora names it: cabinet, chassis, slot, board.
fn host(at: usize) -> String {
    format!("x4{:03}c{}s{}b0n0", at / 64, at / 8 % 8, at % 8)
}

fn book(line_end: &str) -> String {
    let lines: Vec<String> =
        (0..ENTRIES).map(|at| format!("{} ofi+cxi://{:#010x}", host(at), 0x0091_6600 + at * 512)).collect();
    lines.join(line_end)
}

/// The job's hosts: any, in no order of the book.
fn wanted() -> impl Iterator<Item = usize> {
    (0..NODES).map(|at| (at * 7919 + 5) % ENTRIES)
}

fn node_file() -> String {
    let mut text = String::new();
    for at in wanted().flat_map(|at| std::iter::repeat_n(at, RANKS)) {
        // A String takes every write.
        let _ = writeln!(text, "{}.hsn.cm.aurora.example.gov", host(at));
    }
    text
}

/// CPU time of this thread.
fn cpu_ms() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn main() -> anyhow::Result<()> {
    let program = program()?;
    let temp = tempfile::tempdir()?;
    let write = |name: &str, text: String| -> anyhow::Result<PathBuf> {
        let file = temp.path().join(name);
        std::fs::write(&file, text)?;
        Ok(file)
    };
    let (plain, crlf) = (write("book", book("\n"))?, write("crlf", book("\r\n"))?);
    let nodes = write("nodes", node_file())?;
    let hosts = read_nodefile(&nodes)?;
    ensure!(hosts.len() == NODES, "{} hosts", hosts.len());

    let scan_ms = |file: &Path| -> anyhow::Result<[f64; 2]> {
        let (begin, cpu) = (Instant::now(), cpu_ms());
        let picked = facility(file, &hosts, false)?;
        let took = [begin.elapsed().as_secs_f64() * 1e3, cpu_ms() - cpu];
        let right = picked.entries.iter().map(|entry| entry.host().to_owned()).eq(wanted().map(host));
        ensure!(right && picked.missing.is_empty(), "{}: wrong entries", file.display());
        Ok(took)
    };
    let mut command = bornite_bench::command(&program);
    command.args(["book", "facility"]).arg(&plain).arg("--nodefile").arg(&nodes);
    let mut awk = Command::new("awk");
    let script = "NR == FNR { sub(/\\..*/, \"\"); wanted[$1]; next } $1 in wanted";
    awk.arg(script).args([&nodes, &plain]);
    let mut nothing = Command::new("true");

    let names = [
        "scan",
        "scan, CPU time",
        "scan of CRLF",
        "scan of CRLF, CPU time",
        "bornite book facility",
        "awk (in the book's order)",
        "true",
    ];
    let mut series = names.map(|name| Series { name: name.to_owned(), unit: "ms", values: Vec::new() });
    // In turn, so that a slow moment of the machine meets them all; the first round warms up.
    for round in 0..=rounds(50) {
        let ([scan, scan_cpu], [crlf, crlf_cpu]) = (scan_ms(&plain)?, scan_ms(&crlf)?);
        let commands = [time_ms(&mut command, 0)?, time_ms(&mut awk, 0)?, time_ms(&mut nothing, 0)?];
        let took = [scan, scan_cpu, crlf, crlf_cpu].into_iter().chain(commands);
        if round > 0 {
            series.iter_mut().zip(took).for_each(|(series, took)| series.values.push(took));
        }
    }
    for series in &series {
        let ours = series.name.starts_with("scan");
        let verdict = if ours && series.median() > LIMIT_MS { "  OVER 5 ms" } else { "" };
        let noise = if series.is_noisy() { "  noisy" } else { "" };
        println!("{}{verdict}{noise}", series.line());
    }
    println!("{}", record("book", &series)?.display());
    Ok(())
}
