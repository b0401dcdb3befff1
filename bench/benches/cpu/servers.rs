//! Who answers: a daemon that is a root, and an echo that knows nothing.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bornite::core::NodeId;
use bornite::core::limits::FRAME_BYTES_MAX;
use bornite::core::wire::{HEADER_BYTES, Message, decode};
use bornite::observe::{Request, SocketDirs, Status, query};
use bornite_fabric::{Address, Event, Net, Port, PortConfig, Post, Wake};
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Pid, Signal, kill_process};

use crate::children;

/// The first argument with which this program becomes the echo.
pub(crate) const ECHO_MODE: &str = "echo";

/// Ports below those that the kernel gives to outgoing connections.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// How long a server may take to start, to say something, or to end.
const DEADLINE: Duration = Duration::from_secs(20);

/// Answers of the echo, as files in its directory.
const FRAMES: [&str; 2] = ["attributes.frame", "chunk.frame"];

/// An address book of nodes on this host.
pub(crate) struct Book {
    pub(crate) file: PathBuf,
    pub(crate) addresses: Vec<String>,
}

impl Book {
    pub(crate) fn make(nodes: u32, file: &Path) -> anyhow::Result<Book> {
        // Held until all are found, so that they differ.
        let mut held = Vec::new();
        let start = std::process::id() % u32::from(PORTS.end - PORTS.start);
        let ports = PORTS.cycle().skip(start as usize).take(PORTS.len());
        for port in ports {
            if held.len() == nodes as usize {
                break;
            }
            held.extend(TcpListener::bind(("127.0.0.1", port)).ok().map(|listener| (listener, port)));
        }
        let addresses: Vec<_> = held.iter().map(|(_, port)| format!("ofi+tcp://127.0.0.1:{port}")).collect();
        let mut text = String::new();
        for (node, address) in addresses.iter().enumerate() {
            writeln!(text, "node{node} {address}")?;
        }
        std::fs::write(file, text)?;
        Ok(Book { file: file.to_owned(), addresses })
    }
}

/// A daemon, all other nodes of whose book are the root's children.
pub(crate) struct Root(Child);

impl Root {
    pub(crate) fn start(program: &Path, book: &Book, node: u32, tree: &Path, dir: &Path) -> anyhow::Result<Root> {
        let mount = dir.join(format!("mount{node}"));
        std::fs::create_dir(&mount)?;
        let mut command = bornite_bench::command(program);
        command.arg("mount").arg(&mount).arg("--target").arg(tree).arg("--address-book").arg(&book.file);
        command.args(["--hostname", &format!("node{node}"), "--net", "tcp", "--fanout", "64"]);
        let mut root = Root(command.stdin(Stdio::null()).spawn().context("cannot start a daemon")?);
        let end = Instant::now() + DEADLINE;
        while query::<Status>(&SocketDirs::of_user(), &mount, &Request::Status, Duration::from_secs(1)).is_err() {
            if let Some(status) = root.0.try_wait()? {
                bail!("the daemon ended with {status}");
            }
            if Instant::now() >= end {
                bail!("the daemon does not answer within {DEADLINE:?}");
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Ok(root)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        if let Err(error) = self.0.wait() {
            eprintln!("the daemon: {error}");
        }
    }
}

/// The number by which the nodes of this book know each other: what a daemon that is a child says to this process in the
/// place of its parent.
pub(crate) fn job_of(program: &Path, book: &Book, tree: &Path, dir: &Path) -> anyhow::Result<u64> {
    let mut port = children::open(&book.addresses[0])?;
    let _child = Root::start(program, book, 1, tree, dir)?;
    let end = Instant::now() + DEADLINE;
    let mut job = None;
    while job.is_none() {
        port.poll(1, &mut |event| {
            if let Event::Frame(frame) = event {
                job = decode(frame).ok().map(|(header, _)| header.job);
            }
        });
        if Instant::now() >= end {
            bail!("no child asks its parent within {DEADLINE:?}");
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    port.close(Duration::from_secs(1))?;
    job.context("no job")
}

/// A process that answers with recorded frames; it ends with its standard input.
pub(crate) struct Echo(Child);

impl Echo {
    pub(crate) fn start(book: &Book, frames: [&[u8]; 2], dir: &Path) -> anyhow::Result<Echo> {
        let own = dir.join("echo");
        std::fs::create_dir(&own)?;
        std::fs::copy(&book.file, own.join("book"))?;
        for (name, frame) in FRAMES.iter().zip(frames) {
            std::fs::write(own.join(name), frame)?;
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ECHO_MODE).arg(&own).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut echo = Echo(command.spawn().context("cannot start the echo")?);
        let mut line = String::new();
        BufReader::new(echo.0.stdout.take().context("standard output")?).read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("the echo did not start");
        }
        Ok(echo)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.stdin.take();
        if let Err(error) = self.0.wait() {
            eprintln!("the echo: {error}");
        }
    }
}

/// Answers frames until the end of standard input.
pub(crate) fn echo(dir: &Path) -> anyhow::Result<()> {
    let book = std::fs::read_to_string(dir.join("book"))?;
    let texts = book.lines().filter_map(|line| Some(line.split_once(' ')?.1));
    let addresses: Vec<Address> = texts.map(str::parse).collect::<Result<_, _>>()?;
    let mut frames = Vec::new();
    for name in FRAMES {
        frames.push(std::fs::read(dir.join(name))?);
    }
    let mut config = PortConfig::new(Net::Tcp);
    config.bind = addresses.first().cloned();
    config.frame_bytes_max = FRAME_BYTES_MAX;
    config.spin = Duration::ZERO;
    let mut port = Port::open(config)?;
    let peers = addresses[1..].iter().map(|address| port.insert(address)).collect::<Result<Vec<_>, _>>()?;
    let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let told = end.try_clone()?;
    std::thread::spawn(move || {
        // Nothing is ever written to it: this is its end.
        let _ = std::io::stdin().read(&mut [0]);
        let _ = rustix::io::write(&told, &1u64.to_ne_bytes());
    });
    println!("ready");
    std::io::stdout().flush()?;
    let mut due: Vec<(NodeId, u64, usize)> = Vec::new();
    loop {
        let events = port.poll(64, &mut |event| {
            if let Event::Frame(frame) = event
                && let Ok((header, message)) = decode(frame)
            {
                let which = usize::from(matches!(message, Message::Chunk { .. }));
                due.push((header.from, header.id, which));
            }
        });
        let mut later = Vec::new();
        for (from, id, which) in due.drain(..) {
            let Some(peer) = from.0.checked_sub(1).and_then(|place| peers.get(place as usize)) else { continue };
            // The number stands at the end of the header.
            frames[which][HEADER_BYTES - 8..HEADER_BYTES].copy_from_slice(&id.to_le_bytes());
            match port.send(*peer, &frames[which], 0) {
                Err(Post::Again) => later.push((from, id, which)),
                other => other?,
            }
        }
        due = later;
        if events == 0 && due.is_empty() {
            let woken = port.wait(end.as_fd(), Duration::from_secs(1))?;
            if woken == Wake::Extra {
                return Ok(port.close(Duration::from_secs(1))?);
            }
        }
    }
}
