//! Where work is done: a directory of a filesystem, a mount of a static FUSE server, a mount of a daemon of ours; and what
//! each of them was asked meanwhile.
//!
//! The static server is a process of its own, as the daemons are: the program of the benchmark, which begins with
//! [`serve_if_told`].

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bornite::observe::Counter;
use bornite_fuse::memory_fs::MemoryFs;
use bornite_fuse::{MountOptions, Op, Session};
use rustix::thread::{CpuSet, Pid, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::{Job, leave_alone, process};

/// The first argument with which a benchmark becomes the static server.
const SNAPSHOT_MODE: &str = "serve-snapshot";

/// What the static server shows as the source of its mount.
const STATIC: &str = "static";

/// Bytes of files that it holds at most.
const SNAPSHOT_BYTES_MAX: u64 = 2 << 30;

/// How long it has to end.
const END: Duration = Duration::from_secs(10);

/// What the kernel was told to forget must be handled before anything is measured; at most this long.
const SETTLE: Duration = Duration::from_secs(5);

/// For how long the kernel answers by itself what the static server has told it, milliseconds. 0: it always asks.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Absent names.
    pub absent_ms: u64,
    /// Directories.
    pub dirs_ms: u64,
    /// All else.
    pub others_ms: u64,
}

/// Where this thread, what it starts, and the servers may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cpus {
    /// On one CPU, all of them.
    One,
    /// Wherever there is room.
    All,
}

impl Cpus {
    /// Puts them there.
    ///
    /// # Errors
    /// A server is gone, or the kernel refuses.
    pub fn apply(self, places: &[Place]) -> anyhow::Result<()> {
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
#[derive(Debug)]
pub struct Place {
    /// What it is called in tables.
    pub name: &'static str,
    /// The tree.
    pub root: PathBuf,
    server: Server,
}

#[derive(Debug)]
enum Server {
    None,
    Static(Snapshot),
    Daemon { job: Arc<Job>, node: u32, pid: u32 },
}

impl Place {
    /// The filesystem's own directory.
    pub fn plain(name: &'static str, root: &Path) -> Place {
        Place { name, root: root.to_owned(), server: Server::None }
    }

    /// A snapshot of `source` at `mountpoint`, which is made.
    ///
    /// # Errors
    /// The static server does not start: what it said is on standard error.
    pub fn snapshot(
        name: &'static str,
        source: &Path,
        mountpoint: &Path,
        lifetimes: Lifetimes,
    ) -> anyhow::Result<Place> {
        std::fs::create_dir_all(mountpoint)?;
        let server = Server::Static(Snapshot::start(source, mountpoint, lifetimes)?);
        Ok(Place { name, root: mountpoint.to_owned(), server })
    }

    /// The mount of a node of `job`.
    ///
    /// # Errors
    /// It does not say how it is.
    pub fn daemon(name: &'static str, job: &Arc<Job>, node: u32) -> anyhow::Result<Place> {
        let pid = job.status(node)?.pid;
        Ok(Place { name, root: job.node(node), server: Server::Daemon { job: Arc::clone(job), node, pid } })
    }

    /// Whether a FUSE server answers here.
    pub fn is_mount(&self) -> bool {
        !matches!(self.server, Server::None)
    }

    /// Whether that is a daemon of ours.
    pub fn is_daemon(&self) -> bool {
        matches!(self.server, Server::Daemon { .. })
    }

    fn server_pid(&self) -> Option<u32> {
        match &self.server {
            Server::None => None,
            Server::Static(snapshot) => Some(snapshot.child.id()),
            Server::Daemon { pid, .. } => Some(*pid),
        }
    }

    /// CPU time that the server used so far.
    ///
    /// # Errors
    /// It is gone.
    pub fn server_cpu_ns(&self) -> anyhow::Result<u64> {
        self.server_pid().map_or(Ok(0), |pid| Ok(process::usage(pid)?.cpu_ns))
    }

    /// Requests that reached the server so far, but for those that tell it what was forgotten, and for ioctl, which no
    /// kernel answers by itself: an interpreter that opens a file asks whether it is a terminal.
    ///
    /// # Errors
    /// It does not answer.
    pub fn requests(&self) -> anyhow::Result<u64> {
        match &self.server {
            Server::None => Ok(0),
            Server::Static(snapshot) => snapshot.requests(),
            Server::Daemon { job, node, .. } => {
                let counters = job.status(*node)?.counters;
                let left_out = [Counter::FuseForget, Counter::FuseIoctl];
                let kernel = counters.iter().filter(|(c, _)| c.is_kernel_request() && !left_out.contains(c));
                Ok(kernel.map(|(_, count)| count).sum())
            }
        }
    }

    /// Operations on the backend so far, by all nodes of its job.
    ///
    /// # Errors
    /// One of them does not answer.
    pub fn backend_ops(&self) -> anyhow::Result<u64> {
        let Server::Daemon { job, .. } = &self.server else { return Ok(0) };
        let mut ops = 0;
        for node in 0..job.nodes() {
            let counters = job.status(node)?.counters;
            ops += counters.iter().filter(|(c, _)| c.is_backend_operation()).map(|(_, count)| count).sum::<u64>();
        }
        Ok(ops)
    }
}

/// CPU time of this thread.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Has the kernel forget all names and attributes that nobody uses.
///
/// # Errors
/// This user may not do that.
pub fn drop_names() -> anyhow::Result<()> {
    std::fs::write("/proc/sys/vm/drop_caches", "2").context("the kernel's names cannot be dropped; be root")
}

/// Waits until no server does anything any more.
///
/// # Errors
/// One is gone, or goes on for seconds.
pub fn settle(places: &[Place]) -> anyhow::Result<()> {
    let end = Instant::now() + SETTLE;
    let look = || places.iter().map(Place::server_cpu_ns).sum::<anyhow::Result<u64>>();
    let mut last = look()?;
    loop {
        leave_alone(Duration::from_millis(10));
        let now = look()?;
        // A look at the clock now and then is no work.
        if now - last < 50_000 {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("a server has not come to rest within {SETTLE:?}");
        }
        last = now;
    }
}

/// The static server, a process of its own: it ends with its standard input.
#[derive(Debug)]
struct Snapshot {
    child: Child,
    talk: Mutex<(Option<ChildStdin>, BufReader<ChildStdout>)>,
}

impl Snapshot {
    fn start(source: &Path, mountpoint: &Path, lifetimes: Lifetimes) -> anyhow::Result<Snapshot> {
        let mut command = Command::new(std::env::current_exe()?);
        let Lifetimes { absent_ms, dirs_ms, others_ms } = lifetimes;
        command.arg(SNAPSHOT_MODE).args([absent_ms, dirs_ms, others_ms].map(|ms| ms.to_string()));
        command.arg(source).arg(mountpoint).stdin(Stdio::piped()).stdout(Stdio::piped());
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

/// Becomes the static server if this program was started as one; true when it has ended. To be called first in `main`.
///
/// # Errors
/// It cannot mount, or not end.
pub fn serve_if_told() -> anyhow::Result<bool> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [mode, absent, dirs, others, source, mountpoint] = &args[..] else { return Ok(false) };
    if mode != SNAPSHOT_MODE {
        return Ok(false);
    }
    let ms = |text: &std::ffi::OsString| Ok::<_, anyhow::Error>(Duration::from_millis(text.to_string_lossy().parse()?));
    // As a daemon does: the scheduler shares the CPUs out by session (sched(7), autogroups).
    rustix::process::setsid().context("setsid")?;
    let snapshot = MemoryFs::snapshot(Path::new(source), SNAPSHOT_BYTES_MAX, ms(absent)?)?;
    let fs = Arc::new(snapshot.with_ttls(ms(dirs)?, ms(others)?));
    let options = MountOptions { fsname: STATIC.to_owned(), ..MountOptions::new(Path::new(mountpoint)) };
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
    Ok(true)
}
