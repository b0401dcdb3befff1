//! Memory under pressure: eight readers of a tree ten times as large as --cache-size, at the root and at a child, and the
//! most that each daemon ever had resident.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use bornite::observe::Counter;
use bornite_bench::process::{self, Memory};
use bornite_bench::{Job, program, record};
use rustix::fs::{Advice, fadvise};
use serde::Serialize;

const CACHE_BYTES: u64 = 64 << 20;
const CACHE_SIZE: &str = "64M";
const READERS: usize = 8;

/// Files of a few sizes, as chunks of 1 MiB and less have to share the memory: bytes, and how many of each.
const SIZES: [(usize, usize); 4] = [(300 << 20, 1), (20 << 20, 8), (1 << 20, 100), (80 << 10, 1024)];

const NODES: u32 = 2;
const READ_BYTES: usize = 1 << 20;

#[derive(Serialize)]
struct Figures {
    place: &'static str,
    cache_bytes: u64,
    tree_bytes: u64,
    bytes_read: u64,
    seconds: f64,
    nodes: Vec<NodeFigures>,
}

#[derive(Serialize)]
struct NodeFigures {
    after_start: Memory,
    at_end: Memory,
    cache_bytes_mapped: u64,
    cache_bytes_used: u64,
    chunks_evicted: u64,
    /// What was resident at most beyond what was after the start, by the bound.
    growth_by_cache_size: f64,
}

fn main() -> anyhow::Result<()> {
    let program = program()?;
    let temp = tempfile::tempdir()?;
    let tree = temp.path().join("tree");
    let names = make(&tree)?;
    let mut all = Vec::new();
    for (place, node) in [("root", 0), ("child", 1)] {
        all.push(measure(&program, temp.path(), &names, (place, node))?);
    }
    for f in &all {
        println!(
            "{READERS} readers at the {}: {} MiB read in {:.1} s, --cache-size {CACHE_SIZE}",
            f.place,
            f.bytes_read >> 20,
            f.seconds
        );
        for (node, n) in f.nodes.iter().enumerate() {
            println!(
                "  node{node}: RSS {} MiB after start, {} MiB at most: {:.3} of the bound on top; {} chunks evicted",
                n.after_start.rss_bytes >> 20,
                n.at_end.rss_peak_bytes >> 20,
                n.growth_by_cache_size,
                n.chunks_evicted
            );
        }
    }
    println!("{}", record("memory", &all)?.display());
    Ok(())
}

/// Makes the files; their names and sizes.
fn make(tree: &Path) -> anyhow::Result<Vec<(String, usize)>> {
    std::fs::create_dir(tree)?;
    let mut names = Vec::new();
    for (bytes, count) in SIZES {
        for i in 0..count {
            let name = format!("{bytes}-{i}");
            // Each byte tells its page, so that a wrong page is found out.
            let content: Vec<u8> = (0..bytes).map(|at| byte_at(at, i)).collect();
            std::fs::write(tree.join(&name), content)?;
            names.push((name, bytes));
        }
    }
    Ok(names)
}

fn byte_at(at: usize, file: usize) -> u8 {
    ((at >> 12) + 31 * file) as u8
}

fn measure(
    program: &Path,
    temp: &Path,
    names: &[(String, usize)],
    (place, node): (&'static str, u32),
) -> anyhow::Result<Figures> {
    let options = ["--cache-size", CACHE_SIZE];
    let job = Job::launch_with(program, NODES, &temp.join("tree"), &temp.join("mounts"), &options)?;
    let start = (0..NODES).map(|node| process::memory(job.status(node)?.pid)).collect::<anyhow::Result<Vec<_>>>()?;
    let mount = job.node(node);
    let begin = Instant::now();
    let read = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                scope.spawn({
                    let mount = &mount;
                    move || read_all(mount, names, reader)
                })
            })
            .collect();
        readers.into_iter().try_fold(0, |sum, reader| match reader.join() {
            Ok(read) => Ok(sum + read?),
            Err(_) => bail!("a reader panicked"),
        })
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    let nodes = (0..NODES)
        .zip(start)
        .map(|(node, after_start)| {
            let status = job.status(node)?;
            let at_end = process::memory(status.pid)?;
            let growth = at_end.rss_peak_bytes.saturating_sub(after_start.rss_bytes);
            Ok(NodeFigures {
                after_start,
                at_end,
                cache_bytes_mapped: status.counters.get(Counter::CacheBytesMapped),
                cache_bytes_used: status.counters.get(Counter::CacheBytesUsed),
                chunks_evicted: status.counters.get(Counter::ChunksEvicted),
                growth_by_cache_size: growth as f64 / CACHE_BYTES as f64,
            })
        })
        .collect::<anyhow::Result<_>>()?;
    let tree_bytes = names.iter().map(|(_, bytes)| *bytes as u64).sum();
    Ok(Figures { place, cache_bytes: CACHE_BYTES, tree_bytes, bytes_read: read, seconds, nodes })
}

/// Reads all files, each reader begun at another one, and has the kernel forget each, so that the next reader asks the
/// daemon again. The bytes read.
fn read_all(mount: &Path, names: &[(String, usize)], reader: usize) -> anyhow::Result<u64> {
    let mut buffer = vec![0; READ_BYTES];
    let mut sum = 0;
    for turn in 0..names.len() {
        let (name, bytes) = &names[(turn + reader * names.len() / READERS) % names.len()];
        let number = name.split_once('-').and_then(|(_, number)| number.parse().ok()).context("a file's name")?;
        let file = File::open(mount.join(name))?;
        let mut at = 0;
        while at < *bytes {
            let read = file.read_at(&mut buffer, at as u64).with_context(|| name.clone())?;
            if read == 0 {
                bail!("{name} ends after {at} of {bytes} bytes");
            }
            for place in (0..read).step_by(4096) {
                if buffer[place] != byte_at(at + place, number) {
                    bail!("{name}: a wrong byte at {}", at + place);
                }
            }
            at += read;
        }
        fadvise(&file, 0, None, Advice::DontNeed)?;
        sum += *bytes as u64;
    }
    Ok(sum)
}
