//! What needs a process of its own: resident memory, and instructions under callgrind.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;

use super::candidates::{CANDIDATES, Candidate};
use super::keys::{KEY_BYTES, Key};

const BYTES_MODE: &str = "--bytes";
const COUNT_MODE: &str = "--count";

const ENTRIES: u64 = 1_000_000;
/// Names in the map while instructions are counted, and operations of the shorter and the longer run.
const COUNTED_ENTRIES: u64 = 1_000;
const COUNTED: [u64; 2] = [1_000, 11_000];

#[derive(Serialize)]
pub(crate) struct Bytes {
    candidate: &'static str,
    entries: u64,
    key_bytes: usize,
    /// Of resident memory.
    bytes_per_entry: f64,
}

/// Of one operation, without making its name.
#[derive(Serialize)]
pub(crate) struct Instructions {
    candidate: &'static str,
    hit: f64,
    miss: f64,
}

fn find(name: &str) -> anyhow::Result<&'static Candidate> {
    CANDIDATES.iter().find(|candidate| candidate.name == name).with_context(|| format!("there is no {name:?}"))
}

/// Does what a child is to do, if this is one.
///
/// # Errors
/// What was asked is not known.
pub(crate) fn is_child(args: &[String]) -> anyhow::Result<bool> {
    match args {
        [mode, name] if mode == BYTES_MODE => {
            let candidate = find(name)?;
            let before = resident_bytes()?;
            let map = (candidate.make)(ENTRIES as usize, Duration::from_secs(3600));
            fill(&*map, ENTRIES)?;
            println!("{}", resident_bytes()? - before);
            Ok(true)
        }
        [mode, name, operation, count] if mode == COUNT_MODE => {
            let map = (find(name)?.make)(COUNTED_ENTRIES as usize, Duration::from_secs(3600));
            fill(&*map, COUNTED_ENTRIES)?;
            let mut key = Key::new();
            let from = if operation == "miss" { 1 << 31 } else { 0 };
            for number in 0..count.parse()? {
                let key = key.of(from + number % COUNTED_ENTRIES);
                if operation == "name" {
                    std::hint::black_box(key);
                } else if map.lookup(key, 1).is_some() == (operation == "miss") {
                    bail!("no {operation}: name {number}");
                }
            }
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn fill(map: &dyn super::candidates::Absent, entries: u64) -> anyhow::Result<()> {
    let mut key = Key::new();
    for number in 0..entries {
        if !map.store(key.of(number), 3_600_000_000, 1) {
            bail!("name {number} was dropped");
        }
    }
    Ok(())
}

fn resident_bytes() -> anyhow::Result<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: usize = statm.split(' ').nth(1).context("statm has too few fields")?.parse()?;
    Ok(pages * rustix::param::page_size())
}

pub(crate) fn bytes() -> anyhow::Result<Vec<Bytes>> {
    let mut all = Vec::new();
    for candidate in &CANDIDATES {
        let output = Command::new(std::env::current_exe()?).args([BYTES_MODE, candidate.name]).output()?;
        if !output.status.success() {
            bail!("{}: {}", candidate.name, String::from_utf8_lossy(&output.stderr));
        }
        let bytes: f64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
        let bytes_per_entry = bytes / ENTRIES as f64;
        println!("{:<22}{bytes_per_entry:>8.1} bytes for each of {ENTRIES} names of {KEY_BYTES} bytes", candidate.name);
        all.push(Bytes { candidate: candidate.name, entries: ENTRIES, key_bytes: KEY_BYTES, bytes_per_entry });
    }
    Ok(all)
}

/// None where there is no valgrind.
pub(crate) fn instructions() -> anyhow::Result<Option<Vec<Instructions>>> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("instructions: left out; there is no valgrind");
        return Ok(None);
    }
    let mut all = Vec::new();
    let name = each(CANDIDATES[0].name, "name")?;
    for candidate in &CANDIDATES {
        let [hit, miss] = ["hit", "miss"].map(|operation| each(candidate.name, operation).map(|each| each - name));
        let (hit, miss) = (hit?, miss?);
        println!("{:<22}{hit:>8.0} instructions for a hit, {miss:.0} for a miss", candidate.name);
        all.push(Instructions { candidate: candidate.name, hit, miss });
    }
    Ok(Some(all))
}

/// Instructions of an operation: the difference of a long and a short run.
fn each(name: &str, operation: &str) -> anyhow::Result<f64> {
    let mut counts = [0.0; 2];
    for (count, operations) in counts.iter_mut().zip(COUNTED) {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(std::env::current_exe()?)
            .args([COUNT_MODE, name, operation, &operations.to_string()])
            .output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("valgrind: {text}");
        }
        let collected = text.lines().find_map(|line| line.split_once("Collected : "));
        *count = collected.context("valgrind tells no count")?.1.trim().parse()?;
    }
    Ok((counts[1] - counts[0]) / (COUNTED[1] - COUNTED[0]) as f64)
}
