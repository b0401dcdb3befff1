//! One rank's start beside books of different lengths: what it costs must not grow with the job.
//!
//! The rank is the last of its book, so that it has a parent and a chain to the root, none of whom is there. It is left alone
//! for a while, in which it looks for all of them.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bornite::core::{NodeId, Topology};
use bornite::observe::{Counter, Request, SocketDirs, Status, query};
use serde::Serialize;

/// Under valgrind everything takes some fifty times as long.
const STARTS_WITHIN: Duration = Duration::from_secs(120);
const ENDS_WITHIN: Duration = Duration::from_secs(60);
const LOOKS_FOR: Duration = Duration::from_millis(2500);

/// What the start of one rank took.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Rank {
    pub(super) lines: u32,
    /// System calls until it was mounted and told to end, its threads included (strace -c).
    pub(super) calls: u64,
    /// Instructions of the same (callgrind); none where valgrind is missing or fails.
    pub(super) instructions: Option<u64>,
    /// Until it was mounted, microseconds, alone.
    pub(super) startup_us: u64,
    pub(super) registration_us: u64,
    /// Peers in its address vector after it has looked for all whom it may ask.
    pub(super) peers: u64,
    pub(super) fanout_and_depth: u32,
}

/// Measures it with a book of `lines` lines.
pub(super) fn run(program: &Path, lines: u32) -> anyhow::Result<Rank> {
    let temp = tempfile::tempdir()?;
    let dir = temp.path();
    std::fs::create_dir(dir.join("target"))?;
    std::fs::create_dir(dir.join("mnt"))?;
    // The last address is free now, and nobody takes the others.
    let own = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut book = String::new();
    for line in 1..lines {
        let place = line - 1;
        writeln!(book, "n{line:06} ofi+tcp://127.{}.{}.{}:9", 1 + (place >> 16), place >> 8 & 0xff, place & 0xff)?;
    }
    writeln!(book, "n{lines:06} ofi+tcp://127.0.0.1:{own}")?;
    std::fs::write(dir.join("book"), book)?;
    let topology = Topology::new(lines, NodeId(lines - 1), 1, None)?;
    let mut rank = Rank { lines, fanout_and_depth: topology.fanout() + topology.depth(), ..Rank::default() };
    let status = start(program, dir, lines, &[], LOOKS_FOR)?.0;
    rank.startup_us = status.counters.get(Counter::StartupUsTotal);
    rank.registration_us = status.counters.get(Counter::StartupUsRegistration);
    rank.peers = status.counters.get(Counter::FabricPeers);
    let calls = start(program, dir, lines, &["strace", "-f", "-c", "-q", "-o", "calls"], Duration::ZERO);
    calls.context("strace")?;
    rank.calls = total(&std::fs::read_to_string(dir.join("calls"))?).context("no total in strace's table")?;
    let grind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"];
    rank.instructions = match start(program, dir, lines, &grind, Duration::ZERO) {
        Ok((_, said)) => said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok()),
        Err(error) => {
            println!("no instructions: {error:#}");
            None
        }
    };
    Ok(rank)
}

/// The calls in the last line of `strace -c`.
fn total(table: &str) -> Option<u64> {
    let line = table.lines().rev().find(|line| line.trim_end().ends_with("total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// Runs a daemon, below another program if need be, until it has been mounted for `lives`; what it said of itself then, and
/// what it wrote.
fn start(program: &Path, dir: &Path, lines: u32, below: &[&str], lives: Duration) -> anyhow::Result<(Status, String)> {
    let mut words = below.iter().map(Path::new).chain([program]);
    let mut command = Command::new(words.next().context("a program")?);
    command.args(words).args(["mount", "mnt", "--target", "target", "--address-book", "book", "--hostname"]);
    command.arg(format!("n{lines:06}")).current_dir(dir).env("XDG_RUNTIME_DIR", dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = Started(command.spawn().with_context(|| format!("cannot run {command:?}"))?);
    let ask = || {
        query::<Status>(
            &SocketDirs::at(&dir.join("bornite")),
            &dir.join("mnt"),
            &Request::Status,
            Duration::from_secs(5),
        )
    };
    let end = Instant::now() + STARTS_WITHIN;
    let status = loop {
        match ask() {
            Ok(status) if status.tree.is_some() => break status,
            _ if Instant::now() > end => bail!("it does not start"),
            _ => bornite_bench::leave_alone(Duration::from_millis(20)),
        }
        ensure!(child.0.try_wait()?.is_none(), "it ended: {}", child.said());
    };
    bornite_bench::leave_alone(lives);
    let status = if lives.is_zero() { status } else { ask()? };
    let pid = rustix::process::Pid::from_raw(i32::try_from(status.pid)?).context("a process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let end = Instant::now() + ENDS_WITHIN;
    while child.0.try_wait()?.is_none() {
        ensure!(Instant::now() < end, "it does not end");
        bornite_bench::leave_alone(Duration::from_millis(10));
    }
    Ok((status, child.said()))
}

/// Killed when it is dropped.
struct Started(Child);

impl Started {
    fn said(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            let _ = std::io::Read::read_to_string(&mut stderr, &mut text);
        }
        text
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
