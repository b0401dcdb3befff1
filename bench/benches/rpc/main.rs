//! RPCs and pulls between two processes through the port, beside the same on libfabric's own interface and fi_pingpong.
//!
//! Peers and the measured thing take turns in one run, so that a slow moment of the machine meets them all. Two ways of
//! waiting: `busy` reads the queue without a pause, `sleep` sleeps as soon as there is nothing. `rpc start` measures the way
//! from nothing to an open endpoint instead, and `rpc --quick` takes fewer turns.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use bornite_bench::{Series, record};
use serde::Serialize;

mod port;
mod raw;

/// Receives that each side keeps posted.
const RECEIVES: usize = 64;
/// The longest frame.
const FRAME_BYTES_MAX: usize = 16_384;
/// What can be pulled.
const REGION_BYTES: usize = 64 << 20;
/// Pulls come in pieces of this size, so many at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// How long the other process gets to end.
const END_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);
const WINDOW: usize = 4;
/// A frame of this length ends a turn.
const END_BYTES: usize = 1;

const FRAMES: [usize; 3] = [64, 4096, 16_384];
const PULLS: [usize; 4] = [64 << 10, 1 << 20, 8 << 20, 64 << 20];

/// What is sent.
static FRAME: [u8; FRAME_BYTES_MAX] = [0; FRAME_BYTES_MAX];

/// Pages that were written, and are never given back.
fn pages(len: usize) -> *mut u8 {
    const PAGE_BYTES: usize = 4096;
    let spare = Box::leak(vec![0u8; len + PAGE_BYTES].into_boxed_slice());
    let begin = spare.as_ptr().align_offset(PAGE_BYTES);
    let memory = &mut spare[begin..begin + len];
    memory.fill(1);
    memory.as_mut_ptr()
}

/// One of the two processes, by one of the interfaces.
trait Side {
    /// Its address.
    fn name(&self) -> Vec<u8>;
    /// The key of its region.
    fn key(&self) -> u64;
    /// Learns of the other.
    fn meet(&mut self, name: &[u8], key: u64) -> anyhow::Result<()>;
    /// Sends a frame.
    fn send(&mut self, len: usize) -> anyhow::Result<()>;
    /// Waits for a frame and answers its length.
    fn receive(&mut self) -> anyhow::Result<usize>;
    /// Begins to read a part of the other's region.
    fn pull(&mut self, offset: usize, len: usize) -> anyhow::Result<()>;
    /// Waits until fewer than `count` reads are under way.
    fn pulls_below(&mut self, count: usize) -> anyhow::Result<()>;
    /// Lets the provider work.
    fn idle(&mut self) -> anyhow::Result<()>;
}

fn open(kind: &str, provider: &str, sleeps: bool) -> anyhow::Result<Box<dyn Side>> {
    Ok(match kind {
        "port" => Box::new(port::Ours::open(provider, sleeps)?),
        "raw" => Box::new(raw::Raw::open(provider, sleeps)?.with_region()?),
        other => bail!("{other} is neither port nor raw"),
    })
}

/// What one side tells the other: its address in hexadecimal, and its key.
fn card(side: &dyn Side) -> String {
    let name: String = side.name().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name} {}", side.key())
}

fn meet(side: &mut dyn Side, card: &str) -> anyhow::Result<()> {
    let (name, key) = card.trim().split_once(' ').with_context(|| format!("no card: {card:?}"))?;
    let byte = |at: usize| u8::from_str_radix(&name[at..at + 2], 16);
    let name = (0..name.len()).step_by(2).map(byte).collect::<Result<Vec<u8>, _>>()?;
    side.meet(&name, key.parse()?)
}

/// The other process: answers every frame with one of its length, from the word "go" until the end of the turn.
fn serve(kind: &str, provider: &str, sleeps: bool) -> anyhow::Result<()> {
    let mut side = open(kind, provider, sleeps)?;
    println!("{}", card(&*side));
    let mut lines = std::io::stdin().lock().lines();
    meet(&mut *side, &lines.next().context("no card")??)?;
    while lines.next().transpose()?.is_some() {
        loop {
            let len = side.receive()?;
            side.send(len)?;
            if len == END_BYTES {
                break;
            }
        }
        // What was sent must leave before this side sleeps in its pipe.
        let until = Instant::now() + std::time::Duration::from_millis(20);
        while Instant::now() < until {
            side.idle()?;
        }
    }
    Ok(())
}

/// A side with its other process.
struct Couple {
    side: Box<dyn Side>,
    child: Child,
    /// Closed, the other process ends by itself.
    orders: Option<ChildStdin>,
    _said: BufReader<ChildStdout>,
}

impl Couple {
    fn start(kind: &str, provider: &str, sleeps: bool) -> anyhow::Result<Couple> {
        let mut side = open(kind, provider, sleeps)?;
        let wait = if sleeps { "sleep" } else { "busy" };
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--serve", kind, provider, wait])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut orders = child.stdin.take().context("no stdin")?;
        let mut said = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        meet(&mut *side, &line)?;
        writeln!(orders, "{}", card(&*side))?;
        Ok(Couple { side, child, orders: Some(orders), _said: said })
    }

    /// One turn: the other process serves while `work` runs.
    fn turn<T>(&mut self, work: impl FnOnce(&mut dyn Side) -> anyhow::Result<T>) -> anyhow::Result<T> {
        writeln!(self.orders.as_mut().context("it was told to end")?, "go")?;
        let result = work(&mut *self.side)?;
        self.side.send(END_BYTES)?;
        self.side.receive()?;
        Ok(result)
    }

    /// Microseconds of one round trip, over `count` of them.
    fn round_trip_us(&mut self, len: usize, count: u32) -> anyhow::Result<f64> {
        self.turn(|side| {
            let trip = |side: &mut dyn Side| -> anyhow::Result<()> {
                side.send(len)?;
                side.receive().map(|_| ())
            };
            for _ in 0..count / 10 {
                trip(side)?;
            }
            let begin = Instant::now();
            for _ in 0..count {
                trip(side)?;
            }
            Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(count))
        })
    }

    /// Megabytes per second of pulls of `len` bytes, `count` of them.
    fn pull_mb_s(&mut self, len: usize, count: u32) -> anyhow::Result<f64> {
        self.turn(|side| {
            let pull = |side: &mut dyn Side| -> anyhow::Result<()> {
                let mut at = 0;
                while at < len {
                    side.pulls_below(WINDOW)?;
                    let chunk = CHUNK_BYTES.min(len - at);
                    side.pull(at, chunk)?;
                    at += chunk;
                }
                side.pulls_below(1)
            };
            pull(side)?;
            let begin = Instant::now();
            for _ in 0..count {
                pull(side)?;
            }
            Ok(len as f64 * f64::from(count) / 1e6 / begin.elapsed().as_secs_f64())
        })
    }
}

impl Drop for Couple {
    fn drop(&mut self) {
        self.orders = None;
        // Killed, it would leave the memory that it shares (shm).
        let end = Instant::now() + END_WITHIN;
        while Instant::now() < end && self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // It may wait for the last frame to be taken.
            let _ = self.side.idle();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Microseconds of a round trip by fi_pingpong(1), which tells the time of one way.
fn pingpong_us(provider: &str, len: usize, count: u32) -> anyhow::Result<f64> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let common = ["-p", provider, "-e", "rdm", "-I", &count.to_string(), "-S", &len.to_string()].map(str::to_owned);
    let mut server = Command::new("fi_pingpong");
    server.args(&common).args(["-B", &port]).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Server(server.spawn().context("fi_pingpong")?);
    for _ in 0..50 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let client = Command::new("fi_pingpong").args(&common).args(["-P", &port, "127.0.0.1"]).output()?;
        // bytes, #sent, #ack, total, time, MB/sec, usec/xfer, Mxfers/sec
        let text = String::from_utf8_lossy(&client.stdout);
        let row = text.lines().rev().find(|line| line.split_whitespace().count() >= 8);
        if let Some(us) = row.and_then(|row| row.split_whitespace().nth(6)?.parse::<f64>().ok()) {
            return Ok(2.0 * us);
        }
    }
    bail!("fi_pingpong said nothing")
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One line of the result: the port against the raw interface.
#[derive(Serialize)]
struct Row {
    provider: String,
    wait: &'static str,
    what: &'static str,
    bytes: usize,
    unit: &'static str,
    port: f64,
    raw: f64,
    /// The median of the ratios of each turn: port over raw.
    ratio: f64,
    /// At most 1.15 for times, at least 0.9 for rates.
    within: bool,
    port_runs: Vec<f64>,
    raw_runs: Vec<f64>,
    /// fi_pingpong, which always sleeps or spins as its provider likes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pingpong: Option<f64>,
}

fn median(values: &[f64]) -> f64 {
    Series { name: String::new(), unit: "", values: values.to_vec() }.median()
}

fn row(
    (provider, wait): (&str, &'static str),
    (what, bytes, unit): (&'static str, usize, &'static str),
    turns: usize,
    mut measure: impl FnMut(usize) -> anyhow::Result<f64>,
) -> anyhow::Result<Row> {
    let (mut port_runs, mut raw_runs) = (Vec::new(), Vec::new());
    for turn in 0..turns {
        // Who is first changes.
        for which in [turn % 2, 1 - turn % 2] {
            let value = measure(which).with_context(|| format!("{what} of {bytes} bytes on {provider}"))?;
            if which == 0 { port_runs.push(value) } else { raw_runs.push(value) }
        }
    }
    let ratios: Vec<f64> = port_runs.iter().zip(&raw_runs).map(|(port, raw)| port / raw).collect();
    let ratio = median(&ratios);
    let within = if unit == "us" { ratio <= 1.15 } else { ratio >= 0.9 };
    let row = Row {
        provider: provider.to_owned(),
        wait,
        what,
        bytes,
        unit,
        port: median(&port_runs),
        raw: median(&raw_runs),
        ratio,
        within,
        port_runs,
        raw_runs,
        pingpong: None,
    };
    println!(
        "{provider:<12}{wait:<7}{what:<5}{bytes:>9} B  port {:>9.2}  raw {:>9.2} {unit:<5} ratio {ratio:.3}{}",
        row.port,
        row.raw,
        if within { "" } else { "  OUTSIDE" }
    );
    Ok(row)
}

fn rpc(quick: bool) -> anyhow::Result<()> {
    let has_pingpong = Command::new("fi_pingpong").arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if has_pingpong.is_err() {
        println!("skipped: fi_pingpong is not installed (package libfabric-bin)");
    }
    let turns = if quick { 3 } else { 11 };
    let mut rows = Vec::new();
    for (provider, wait) in [
        ("net", "busy"),
        ("net", "sleep"),
        ("tcp;ofi_rxm", "busy"),
        ("tcp;ofi_rxm", "sleep"),
        ("shm", "busy"),
        ("sockets", "sleep"),
    ] {
        let sleeps = wait == "sleep";
        let slow = provider == "sockets";
        let couples = Couple::start("port", provider, sleeps).and_then(|ours| {
            let raw = Couple::start("raw", provider, sleeps)?;
            Ok([ours, raw])
        });
        let mut couples = match couples {
            Ok(couples) => couples,
            Err(error) => {
                println!("skipped: {provider}: {error:#}");
                continue;
            }
        };
        for len in if slow { &FRAMES[..1] } else { &FRAMES } {
            let count = if slow { 20 } else { 2000 };
            let turns = if slow { 3 } else { turns };
            let mut row =
                row((provider, wait), ("rpc", *len, "us"), turns, |which| couples[which].round_trip_us(*len, count))?;
            if has_pingpong.is_ok() && !slow {
                row.pingpong = pingpong_us(provider, *len, count)
                    .inspect_err(|error| println!("skipped: fi_pingpong on {provider}: {error:#}"))
                    .ok();
            }
            rows.push(row);
        }
        for len in if slow { &PULLS[..1] } else { &PULLS } {
            // About 64 MiB a turn.
            let count = if slow { 5 } else { ((64 << 20) / len).clamp(1, 400) as u32 };
            let turns = if slow { 3 } else { turns };
            rows.push(row((provider, wait), ("pull", *len, "MB/s"), turns, |which| {
                couples[which].pull_mb_s(*len, count)
            })?);
        }
    }
    if !quick {
        println!("{}", record("rpc", &rows)?.display());
    }
    Ok(())
}

/// The start of an endpoint, in processes of their own.
fn start() -> anyhow::Result<()> {
    const RUNS: usize = 15;
    let mut series =
        ["port", "raw"].map(|kind| Series { name: format!("{kind}, net"), unit: "ms", values: Vec::new() });
    for run in 0..=RUNS {
        for (kind, series) in ["port", "raw"].into_iter().zip(&mut series) {
            let output = Command::new(std::env::current_exe()?).args(["--start", kind, "net"]).output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            let ms: f64 = text.trim().parse().with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
            if run > 0 {
                series.values.push(ms);
            }
        }
    }
    for series in &series {
        println!("{}", series.line());
    }
    println!("above the minimal program: {:.2} ms (limit 20)", series[0].median() - series[1].median());
    println!("{}", record("fabric_start", &series)?.display());
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--serve", kind, provider, wait] => serve(kind, provider, wait == "sleep"),
        ["--start", kind, provider] => {
            let ms = if kind == "port" { port::start_ms(provider)? } else { raw::start_ms(provider)? };
            println!("{ms}");
            Ok(())
        }
        // What a look at an empty queue costs: the least of many short series, which other load hardly disturbs.
        ["poll", provider] => {
            for kind in ["port", "raw"] {
                let mut side = open(kind, provider, false)?;
                let mut least = f64::INFINITY;
                for _ in 0..2000 {
                    let begin = Instant::now();
                    for _ in 0..100 {
                        side.idle()?;
                    }
                    least = least.min(begin.elapsed().as_secs_f64() * 1e7);
                }
                println!("{kind:<5}{least:.1} ns");
            }
            Ok(())
        }
        // One measurement alone, for perf(1) and strace(1).
        ["one", kind, provider, wait, bytes, count] => {
            let mut couple = Couple::start(kind, provider, wait == "sleep")?;
            println!("{:.2} us", couple.round_trip_us(bytes.parse()?, count.parse()?)?);
            Ok(())
        }
        ["start"] => start(),
        ["--quick"] => rpc(true),
        [] => {
            start()?;
            rpc(false)
        }
        _ => bail!("usage: rpc [start | --quick | poll PROVIDER | one port|raw PROVIDER busy|sleep BYTES COUNT]"),
    }
}
