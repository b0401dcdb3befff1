//! What a request of a child costs the root: CPU time for answers from memory, with 1, 8
//! and 64 children.
//!
//! The root is a daemon. The children are endpoints of this process that speak the wire protocol, each with one request
//! under way. The reference is an echo on the same endpoint layer: a process that answers each frame with the same bytes
//! as the daemon did, knowing nothing. Both servers take turns.

mod children;
mod servers;

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use bornite::core::wire::Message;
use bornite_bench::{Series, process, program, record, rounds};
use bornite_fabric::{Net, choose_provider_env};
use children::Children;
use serde::Serialize;
use servers::{Book, Echo, Root};

const CHILDREN: [u32; 3] = [1, 8, 64];
const ROUNDS: usize = 5;

/// Requests in each round.
const REQUESTS: usize = 20_000;

/// An inline chunk: the whole frame fits 16 KiB.
const CHUNK_BYTES: usize = 4096;
const FILE: &str = "file";

#[derive(Serialize)]
struct Figures {
    what: &'static str,
    children: u32,
    /// Of the answers, header included.
    frame_bytes: usize,
    root: Server,
    echo: Server,
    /// The root's CPU time by the echo's: the median of the rounds' ratios.
    cpu_ratio: f64,
    requests_per_s_ratio: f64,
}

#[derive(Serialize)]
struct Server {
    cpu: Series,
    requests_per_s: Series,
    /// Times that the server went to sleep, for each request.
    sleeps: Series,
}

impl Server {
    fn new(name: &str) -> Server {
        let series = |what, unit| Series { name: format!("{name} {what}"), unit, values: Vec::new() };
        Server { cpu: series("CPU", "us"), requests_per_s: series("rate", "1/s"), sleeps: series("sleeps", "each") }
    }

    fn measure(&mut self, pid: u32, children: &mut Children, request: &Message<'_>) -> anyhow::Result<()> {
        let before = process::usage(pid)?;
        let begin = Instant::now();
        children.ask(request, REQUESTS)?;
        let took = begin.elapsed();
        let used = process::usage(pid)?.since(before);
        let requests = REQUESTS as f64;
        self.cpu.values.push(used.cpu_ns as f64 / 1e3 / requests);
        self.sleeps.values.push(used.sleeps as f64 / requests);
        self.requests_per_s.values.push(requests / took.as_secs_f64());
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    choose_provider_env(Some(&Net::Tcp))?;
    if let [mode, dir] = &args[..]
        && mode == servers::ECHO_MODE
    {
        return servers::echo(Path::new(dir));
    }
    let program = program()?;
    let mut all = Vec::new();
    for children in CHILDREN {
        let temp = tempfile::tempdir()?;
        all.extend(measure(&program, children, temp.path()).with_context(|| format!("{children} children"))?);
    }
    println!(
        "{:<24}{:>9}{:>14}{:>12}{:>8}{:>14}{:>12}{:>8}",
        "", "children", "root, us CPU", "echo, us", "ratio", "root, 1/s", "echo, 1/s", "ratio"
    );
    for f in &all {
        println!(
            "{:<24}{:>9}{:>14.1}{:>12.1}{:>8.2}{:>14.0}{:>12.0}{:>8.2}{}",
            format!("{}, {} B", f.what, f.frame_bytes),
            f.children,
            f.root.cpu.median(),
            f.echo.cpu.median(),
            f.cpu_ratio,
            f.root.requests_per_s.median(),
            f.echo.requests_per_s.median(),
            f.requests_per_s_ratio,
            if f.root.cpu.is_noisy() || f.echo.cpu.is_noisy() { "  noisy" } else { "" },
        );
    }
    println!("{}", record("cpu", &all)?.display());
    Ok(())
}

fn measure(program: &Path, number: u32, dir: &Path) -> anyhow::Result<Vec<Figures>> {
    let tree = dir.join("tree");
    std::fs::create_dir(&tree)?;
    std::fs::write(tree.join(FILE), vec![7; CHUNK_BYTES])?;
    let book = Book::make(number + 1, &dir.join("book"))?;
    let job = servers::job_of(program, &book, &tree, dir)?;
    let root = Root::start(program, &book, 0, &tree, dir)?;
    let mut children = Children::open(&book, job)?;
    let path = FILE.as_bytes();
    let attr = Message::Attr { path, bytes: 0 };
    let found = children.answer(&attr)?;
    let version = children::version(&found)?;
    let chunk = Message::Chunk { path, version, index: 0 };
    let inline = children.answer(&chunk)?;

    let other = Book::make(number + 1, &dir.join("echo.book"))?;
    let echo = Echo::start(&other, [&found, &inline], dir)?;
    let mut others = Children::open(&other, job)?;
    let mut all = Vec::new();
    for (what, request, frame) in [("attributes", &attr, &found), ("chunk of 4 KiB", &chunk, &inline)] {
        let (mut ours, mut theirs) = (Server::new("root"), Server::new("echo"));
        for round in 0..rounds(ROUNDS) {
            let mut us = || ours.measure(root.pid(), &mut children, request);
            let mut them = || theirs.measure(echo.pid(), &mut others, request);
            // Each begins every other round.
            if round % 2 == 0 { us().and_then(|()| them())? } else { them().and_then(|()| us())? }
        }
        let ratio = |ours: &Series, theirs: &Series| {
            let values = ours.values.iter().zip(&theirs.values).map(|(a, b)| a / b).collect();
            Series { name: String::new(), unit: "", values }.median()
        };
        all.push(Figures {
            what,
            children: number,
            frame_bytes: frame.len(),
            cpu_ratio: ratio(&ours.cpu, &theirs.cpu),
            requests_per_s_ratio: ratio(&ours.requests_per_s, &theirs.requests_per_s),
            root: ours,
            echo: theirs,
        });
    }
    Ok(all)
}
