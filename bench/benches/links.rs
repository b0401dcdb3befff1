//! A large file through links of a known rate, at every depth of a chain of nodes: depth is to cost latency, not bandwidth.
//!
//! Each node is a network namespace of its own, with one interface of that rate in both directions; so a node that passes on
//! what it receives can do both at once. Beside it a plain TCP stream between two of them. Takes root and iproute2.
//!
//! The daemons' memory has been used before, by other files: on a machine of its own each node would have the kernel clear
//! its memory at the same time as the others, here all of them share the processors for that.

use std::fs::File;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bornite_bench::{Series, Stream, drain, noise, program, record};
use serde::Serialize;

#[path = "../../tests/common/network.rs"]
mod network;

use network::Network;

const RATE: &str = "2gbit";
const DEPTHS: usize = 4;
const FILE_BYTES: usize = 64 << 20;
const ROUNDS: usize = 5;
/// Holds this many of the files; so many others are read before.
const CACHE_FILES: usize = 3;
const READY_WITHIN: Duration = Duration::from_secs(20);
const TCP_PORT: u16 = 7001;

/// The type of every FUSE mount, as statfs(2) tells it.
const FUSE_SUPER_MAGIC: rustix::fs::FsWord = 0x6573_5546;

#[derive(Serialize)]
struct Links {
    rate: &'static str,
    file_bytes: usize,
    /// Whole file and first byte, for each depth and for TCP.
    series: Vec<Series>,
    /// CPU time of all daemons together for one file.
    cpu: Vec<Series>,
    deepest_to_first: f64,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, address] = &arguments[..]
        && word == "--stream-from"
    {
        return stream_from(address);
    }
    if let Some(obstacle) = network::obstacle() {
        println!("skipped: {obstacle}");
        return Ok(());
    }
    let program = program()?;
    let temp = tempfile::tempdir()?;
    let target = temp.path().join("target");
    std::fs::create_dir(&target)?;
    let bytes = noise(FILE_BYTES);
    // One for each depth: what one node has read, those above it have too.
    for depth in 0..=DEPTHS {
        std::fs::write(target.join(format!("file{depth}")), &bytes)?;
    }
    for other in 0..=CACHE_FILES {
        std::fs::write(target.join(format!("other{other}")), &bytes)?;
    }
    let series = |name: String, unit| Series { name, unit, values: Vec::new() };
    let names = || (0..=DEPTHS).map(|depth| format!("depth {depth}")).chain(["TCP".to_owned()]);
    let mut whole: Vec<Series> = names().map(|name| series(name, "ms")).collect();
    let mut first: Vec<Series> = names().map(|name| series(format!("{name}, first byte"), "ms")).collect();
    let mut cpu: Vec<Series> = names().take(DEPTHS + 1).map(|name| series(format!("{name}, CPU"), "ms")).collect();
    for round in 0..ROUNDS {
        // New daemons each time, that know nothing.
        let chain = Chain::start(&program, &target, &temp.path().join(format!("round{round}")))?;
        for other in 0..=CACHE_FILES {
            drain(File::open(chain.view(DEPTHS).join(format!("other{other}")))?, Instant::now())?;
        }
        for depth in 0..=DEPTHS {
            let before = chain.cpu_ms()?;
            let begin = Instant::now();
            let got = drain(File::open(chain.view(depth).join(format!("file{depth}")))?, begin)?;
            ensure!(got.bytes == FILE_BYTES as u64, "{} bytes at depth {depth}", got.bytes);
            whole[depth].values.push(got.all_ms);
            first[depth].values.push(got.first_ms);
            cpu[depth].values.push(chain.cpu_ms()? - before);
        }
        let got = chain.tcp(&bytes)?;
        ensure!(got.bytes == FILE_BYTES as u64, "{} bytes by TCP", got.bytes);
        whole[DEPTHS + 1].values.push(got.all_ms);
        first[DEPTHS + 1].values.push(got.first_ms);
    }
    println!("{} MiB, each link {RATE}, {ROUNDS} rounds, medians", FILE_BYTES >> 20);
    whole.iter().chain(&first).chain(&cpu).for_each(|series| println!("{}", series.line()));
    let deepest_to_first = whole[DEPTHS].median() / whole[1].median();
    println!("depth {DEPTHS} to depth 1: {deepest_to_first:.2}");
    whole.append(&mut first);
    let links = Links { rate: RATE, file_bytes: FILE_BYTES, series: whole, cpu, deepest_to_first };
    println!("{}", record("links", &links)?.display());
    Ok(())
}

/// Daemons each of which is the child of the one before, in a network of their own.
struct Chain {
    daemons: Vec<Child>,
    mounts: Vec<PathBuf>,
    network: Network,
}

impl Chain {
    fn start(program: &Path, target: &Path, dir: &Path) -> anyhow::Result<Chain> {
        let network = Network::start(DEPTHS + 1, Some(RATE));
        std::fs::create_dir(dir)?;
        let book: String =
            (0..=DEPTHS).map(|node| format!("node{node} ofi+tcp://{}:7000\n", network.address(node))).collect();
        std::fs::write(dir.join("book"), book)?;
        let cache = format!("--cache-size={}", CACHE_FILES * FILE_BYTES);
        let mut chain = Chain { daemons: Vec::new(), mounts: Vec::new(), network };
        for node in 0..=DEPTHS {
            let mount = dir.join(format!("node{node}"));
            std::fs::create_dir(&mount)?;
            let mut daemon = chain.network.inside(node, program, &["mount", "--fanout=1", &cache]);
            daemon.arg(&mount).arg("--target").arg(target).arg(format!("--hostname=node{node}"));
            daemon.arg("--address-book").arg(dir.join("book"));
            daemon.env("XDG_RUNTIME_DIR", dir).stdin(Stdio::null());
            chain.daemons.push(daemon.spawn().context("cannot start a daemon")?);
            chain.mounts.push(mount);
        }
        let end = Instant::now() + READY_WITHIN;
        for node in (0..=DEPTHS).rev() {
            // Its parent answers too.
            let ready = || {
                let view = chain.view(node);
                let figures = rustix::fs::statfs(&view);
                figures.is_ok_and(|f| f.f_type == FUSE_SUPER_MAGIC) && std::fs::metadata(view.join("file0")).is_ok()
            };
            while !ready() {
                ensure!(Instant::now() < end, "the daemon of node {node} does not answer");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(chain)
    }

    fn view(&self, node: usize) -> PathBuf {
        self.network.see(&self.mounts[node])
    }

    /// CPU time of all daemons so far.
    fn cpu_ms(&self) -> anyhow::Result<f64> {
        let mut ticks = 0;
        for daemon in &self.daemons {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.id()))?;
            // utime and stime, in ticks of 10 ms; the name may hold anything.
            let fields = stat.rsplit(')').next().context("/proc/PID/stat")?.split_whitespace().skip(11).take(2);
            for field in fields {
                ticks += field.parse::<u64>()?;
            }
        }
        Ok((ticks * 10) as f64)
    }

    /// The same bytes from node 0 to node 1 by TCP.
    fn tcp(&self, bytes: &[u8]) -> anyhow::Result<Stream> {
        let this = std::env::current_exe()?;
        let listener = self.listen()?;
        let address = format!("{}:{TCP_PORT}", self.network.address(0));
        let mut client = self.network.inside(1, &this, &["--stream-from", &address]);
        let client = client.stdout(Stdio::piped()).spawn().context("cannot start the client")?;
        let (mut stream, _) = listener.accept()?;
        stream.write_all(bytes)?;
        drop(stream);
        let said = client.wait_with_output()?;
        let said = String::from_utf8(said.stdout)?;
        let figures: Vec<f64> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [first_ms, all_ms, received] = figures[..] else { bail!("the client said {said:?}") };
        Ok(Stream { first_ms, all_ms, bytes: received as u64 })
    }

    /// A listener in the network of node 0, made by a thread that goes there.
    fn listen(&self) -> anyhow::Result<TcpListener> {
        let names = self.network.see(Path::new(network::NAMES)).join("n0");
        let there = File::open(names)?;
        let listen = move || -> anyhow::Result<TcpListener> {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&there), kind)?;
            Ok(TcpListener::bind(("0.0.0.0", TCP_PORT))?)
        };
        std::thread::spawn(listen).join().ok().context("a thread")?
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// The other end of the TCP stream, in a process of its own: prints its figures.
fn stream_from(address: &str) -> anyhow::Result<()> {
    let begin = Instant::now();
    let got = drain(TcpStream::connect(address)?, begin)?;
    println!("{} {} {}", got.first_ms, got.all_ms, got.bytes);
    Ok(())
}
