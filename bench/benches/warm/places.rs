//! Where the work is done: the filesystem itself, a mount of a static server, a mount of ours.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use bornite::observe::Counter;
use bornite_bench::{Job, process};
use bornite_fuse::memory_fs::MemoryFs;
use bornite_fuse::{MountOptions, Op, Session};
use rustix::thread::{CpuSet, Pid, sched_setaffinity};
use serde::Serialize;

pub(crate) const EXT4: &str = "ext4";
pub(crate) const STATIC: &str = "static";
pub(crate) const BORNITE: &str = "bornite";

/// The first argument with which this program becomes the static server.
pub(crate) const SNAPSHOT_MODE: &str = "serve-snapshot";

/// For how long absent names are remembered by both servers: as long as a daemon can be told to.
const ABSENT_LIFETIME: Duration = Duration::from_secs(10);
const ABSENT_LIFETIME_MS: &str = "10000";

/// For how long directories are: none expires in a run.
const DIR_LIFETIME_MS: &str = "3600000";

/// Memory for file data: everything fits.
const CACHE_BYTES: u64 = 2 << 30;
const CACHE_SIZE: &str = "2G";

/// How long the static server has to end.
const END: Duration = Duration::from_secs(10);

/// Where this thread, what it starts, and the servers may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Cpus {
    One,
    All,
}

impl Cpus {
    pub(crate) fn apply(self, places: &[Place]) -> anyhow::Result<()> {
        let mut set = CpuSet::new();
        match self {
            Cpus::One => set.set(0),
            Cpus::All => (0..CpuSet::MAX_CPU).for_each(|cpu| set.set(cpu)),
        }
        let servers = places.iter().filter_map(Place::server_pid);
        let tasks: Vec<u32> = servers.map(process::task_ids).collect::<anyhow::Result<Vec<_>>>()?.concat();
        sched_setaffinity(None, &set).context("sched_setaffinity")?;
        for task in tasks {
            let task = i32::try_from(task).ok().and_then(Pid::from_raw).context("a thread's number")?;
            sched_setaffinity(Some(task), &set).context("sched_setaffinity")?;
        }
        Ok(())
    }
}

/// A directory with the tree in it.
pub(crate) struct Place {
    pub(crate) name: &'static str,
    pub(crate) root: PathBuf,
    server: Server,
}

enum Server {
    None,
    Static(Snapshot),
    Daemon { job: Job, pid: u32 },
}

impl Place {
    /// All three of them for `source`, with mount points of equal length below `dir`, which is made.
    pub(crate) fn all(program: &Path, source: &Path, dir: &Path) -> anyhow::Result<Vec<Place>> {
        let (peers, ours) = (dir.join("peer"), dir.join("ours"));
        // The daemon's mount point is called node0 by the launch; the other's is as long.
        let peer = peers.join("stat0");
        std::fs::create_dir_all(&peer)?;
        let snapshot = Snapshot::start(source, &peer)?;
        let options =
            ["--cache-size", CACHE_SIZE, "--enoent-ttl-ms", ABSENT_LIFETIME_MS, "--dir-ttl-ms", DIR_LIFETIME_MS];
        let job = Job::launch_with(program, 1, source, &ours, &options)?;
        let pid = job.status(0)?.pid;
        Ok(vec![
            Place { name: EXT4, root: source.to_owned(), server: Server::None },
            Place { name: STATIC, root: peer, server: Server::Static(snapshot) },
            Place { name: BORNITE, root: job.node(0), server: Server::Daemon { job, pid } },
        ])
    }

    pub(crate) fn is_mount(&self) -> bool {
        !matches!(self.server, Server::None)
    }

    fn server_pid(&self) -> Option<u32> {
        match &self.server {
            Server::None => None,
            Server::Static(snapshot) => Some(snapshot.child.id()),
            Server::Daemon { pid, .. } => Some(*pid),
        }
    }

    /// CPU time that the server used so far.
    pub(crate) fn server_cpu_ns(&self) -> anyhow::Result<u64> {
        self.server_pid().map_or(Ok(0), |pid| Ok(process::usage(pid)?.cpu_ns))
    }

    /// Requests that reached the server so far, but for those that tell it what was forgotten, and for ioctl, which no
    /// kernel answers by itself: an interpreter that opens a file asks whether it is a terminal.
    pub(crate) fn requests(&self) -> anyhow::Result<u64> {
        match &self.server {
            Server::None => Ok(0),
            Server::Static(snapshot) => snapshot.requests(),
            Server::Daemon { job, .. } => {
                let counters = job.status(0)?.counters;
                let left_out = [Counter::FuseForget, Counter::FuseIoctl];
                let kernel = counters.iter().filter(|(c, _)| c.is_kernel_request() && !left_out.contains(c));
                Ok(kernel.map(|(_, count)| count).sum())
            }
        }
    }
}

/// The static server, a process of its own: it ends with its standard input.
struct Snapshot {
    child: Child,
    talk: Mutex<(Option<ChildStdin>, BufReader<ChildStdout>)>,
}

impl Snapshot {
    fn start(source: &Path, mountpoint: &Path) -> anyhow::Result<Snapshot> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(SNAPSHOT_MODE).arg(source).arg(mountpoint).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the static server")?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().context("standard output")?);
        let snapshot = Snapshot { child, talk: Mutex::new((stdin, BufReader::new(stdout))) };
        snapshot.requests().context("the static server did not start")?;
        Ok(snapshot)
    }

    fn requests(&self) -> anyhow::Result<u64> {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let (stdin, stdout) = &mut *talk;
        stdin.as_mut().context("the static server was ended")?.write_all(b"\n")?;
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        line.trim().parse().context("the static server's count")
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.talk.get_mut().unwrap_or_else(PoisonError::into_inner).0.take();
        // It ends by itself now, within its own deadline.
        if let Err(error) = self.child.wait() {
            eprintln!("the static server: {error}");
        }
    }
}

/// Serves a snapshot of `source` at `mountpoint`: each line on standard input is answered with the count of requests, the
/// end of the input ends it.
pub(crate) fn serve_snapshot(source: &Path, mountpoint: &Path) -> anyhow::Result<()> {
    // As a daemon does: the scheduler shares the CPUs out by session (sched(7), autogroups).
    rustix::process::setsid().context("setsid")?;
    let fs = Arc::new(MemoryFs::snapshot(source, CACHE_BYTES, ABSENT_LIFETIME)?);
    let options = MountOptions { fsname: STATIC.to_owned(), ..MountOptions::new(mountpoint) };
    let session = Session::mount(fs, options)?;
    let mut stdout = std::io::stdout();
    for _ in std::io::stdin().lines().map_while(Result::ok) {
        let stats = session.stats();
        let counted = stats.total() - stats.count(Op::Forget) - stats.count(Op::Ioctl);
        if writeln!(stdout, "{counted}").and_then(|()| stdout.flush()).is_err() {
            break;
        }
    }
    session.unmount()?;
    if let Err(error) = session.join(END) {
        bail!("{}: {error}", mountpoint.display());
    }
    Ok(())
}
