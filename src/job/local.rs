//! A job on this machine: N daemons, N mounts.
//!
//! Used by `bornite launch --local` and by the demo. Everything that is made or started is recorded first, and
//! whatever fails, what was made and started is taken back before the error returns. The daemons run in sessions of their
//! own, so a Ctrl-C at the terminal reaches the launcher alone and they are stopped in order.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crossbeam::channel::unbounded;

use super::book::{BookEntry, BookError, write_book};
use super::command::{self, CommandEnd};
use super::daemon::{DaemonProcess, DaemonSpawn, Hooks, NotReady, Readiness, wait_ready};
use super::ports::free_ports;
use super::record::{JobLock, JobNode, JobRecord, RecordError, state_dir};
use super::stop::{Patience, StopError, StopReport, end_daemons, stop, stop_locked};

/// The largest number of daemons on one machine: each has threads, a mount and memory of its own.
pub const LOCAL_NODES_MAX: u32 = 256;
const LOG_TAIL_BYTES: u64 = 4096;

/// Arguments of a daemon: its name in the book, its mount point, the book.
pub type DaemonArgs<'a> = dyn Fn(&str, &Path, &Path) -> Vec<OsString> + 'a;

/// What to launch.
pub struct LocalPlan<'a> {
    /// Number of daemons, 1 to [`LOCAL_NODES_MAX`].
    pub nodes: u32,
    /// Directory of the mount points `node0`…, made if it is missing.
    pub mount_dir: PathBuf,
    /// Where book and logs go; `mount_dir/.bornite` if none.
    pub job_dir: Option<PathBuf>,
    /// Scheme of the addresses, such as `ofi+tcp`: `SCHEME://127.0.0.1:PORT`.
    pub scheme: String,
    /// The program of a daemon.
    pub program: PathBuf,
    /// The arguments of a daemon.
    pub daemon_args: Box<DaemonArgs<'a>>,
    /// How long all mounts together have to answer.
    pub ready_timeout: Duration,
}

impl std::fmt::Debug for LocalPlan<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("LocalPlan").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

/// Why a job was not launched. When it returns, everything that was started has been stopped.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A job runs there.
    #[error("a job runs in {} already ({running} of its daemons are alive); end it with `bornite stop --mount {}`",
        mount_dir.display(), mount_dir.display())]
    AlreadyRuns {
        /// The directory.
        mount_dir: PathBuf,
        /// Number of living daemons.
        running: usize,
    },
    /// The record of the job.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The address book.
    #[error(transparent)]
    Book(#[from] BookError),
    /// A directory is not there and cannot be made.
    #[error("cannot make the directory {}: {source}; choose another one with --mount or --output-dir", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A path that no record can hold.
    #[error("{} is not UTF-8, which the job's record must be; choose another directory", path.display())]
    NotUtf8 {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, with its object.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// A daemon has failed.
    #[error("{name} failed: {why}")]
    Failed {
        /// The node.
        name: String,
        /// Its error and, if there is one, the last line of its log.
        why: String,
    },
    /// Not every mount answered in time.
    #[error("{} of {nodes} mounts do not answer after {} s:{laggards}", laggards.matches('\n').count(), timeout.as_secs_f32())]
    NotReady {
        /// Number of daemons.
        nodes: usize,
        /// The time they had.
        timeout: Duration,
        /// One line for each, with how far it came and the last line of its log.
        laggards: String,
    },
    /// A signal came.
    #[error("interrupted by signal {signal}; everything that was started is stopped")]
    Interrupted {
        /// The signal's number.
        signal: i32,
    },
    /// The launch failed and so did taking it back.
    #[error("{first}; and after that: {then}")]
    NotTakenBack {
        /// Why the launch failed.
        first: Box<LaunchError>,
        /// Why it could not be taken back.
        then: StopError,
    },
    /// An earlier job's remains are in the way.
    #[error("an earlier job's remains in {}: {source}", mount_dir.display())]
    Remains {
        /// The directory.
        mount_dir: PathBuf,
        /// Why they could not be removed.
        source: StopError,
    },
}

/// A running job. Dropping it stops it; [`LocalJob::leave`] lets it run on.
#[derive(Debug)]
pub struct LocalJob {
    record: JobRecord,
    daemons: Vec<DaemonProcess>,
    hooks: Hooks,
    left: bool,
}

/// Starts a job and returns once every mount answers.
///
/// # Errors
/// As [`LaunchError`] says.
///
/// # Panics
/// If the number of nodes is out of range.
pub fn launch(plan: &LocalPlan<'_>, hooks: &Hooks) -> Result<LocalJob, LaunchError> {
    assert!((1..=LOCAL_NODES_MAX).contains(&plan.nodes), "{} nodes", plan.nodes);
    let mut made = Vec::new();
    let (record, _lock) = match prepare(plan, hooks, &mut made) {
        Ok(prepared) => prepared,
        Err(error) => {
            // Nothing is recorded yet; what is not empty by now stays.
            made.iter().rev().for_each(|dir| drop(std::fs::remove_dir(dir)));
            return Err(error);
        }
    };
    let mut job = LocalJob { record, daemons: Vec::new(), hooks: hooks.clone(), left: false };
    match job.start(plan) {
        Ok(()) => Ok(job),
        Err(first) => {
            // What the daemons have to say is said once they have ended.
            let ended = end_daemons(&job.record, Patience::default());
            job.drop_told_logs(&first);
            let stopped = stop_locked(&job.record, &*job.hooks.clear_stale, Patience::default());
            job.reap();
            job.left = true;
            match ended.and(stopped) {
                Ok(_) => Err(first),
                Err(then) => Err(LaunchError::NotTakenBack { first: Box::new(first), then }),
            }
        }
    }
}

impl LocalJob {
    /// The job as it is recorded.
    pub fn record(&self) -> &JobRecord {
        &self.record
    }

    /// Mount points in the order of the book.
    pub fn mountpoints(&self) -> impl Iterator<Item = &Path> {
        self.record.nodes.iter().map(|node| node.mountpoint.as_path())
    }

    /// Runs a command with `BORNITE_MOUNT` (the directory of the mount points) and `BORNITE_NODES` in its environment.
    ///
    /// # Errors
    /// The command cannot be started.
    pub fn run(&self, command: &[OsString]) -> io::Result<CommandEnd> {
        let environment = [
            ("BORNITE_MOUNT", self.record.mount_dir.clone().into_os_string()),
            ("BORNITE_NODES", self.record.nodes.len().to_string().into()),
        ];
        command::run(command, &environment, &self.hooks.interrupts)
    }

    /// Stops the daemons, unmounts, and removes what the launch has made.
    ///
    /// # Errors
    /// As [`StopError`] says; the record then stays for `bornite stop`.
    pub fn stop(mut self) -> Result<StopReport, StopError> {
        self.left = true;
        let report = stop(&self.record.mount_dir, &*self.hooks.clear_stale, Patience::default());
        self.reap();
        report
    }

    /// Lets the daemons run on after this process.
    pub fn leave(mut self) {
        self.left = true;
    }

    fn start(&mut self, plan: &LocalPlan<'_>) -> Result<(), LaunchError> {
        let logs = self.record.job_dir.join("logs");
        if self.record.job_dir == state_dir(&self.record.mount_dir) {
            own(logs.clone(), &mut self.record.made);
        }
        self.make_recorded(&logs, 0o755)?;
        let ports = free_ports(plan.nodes as usize)
            .map_err(|source| LaunchError::Io { what: format!("find {} free ports", plan.nodes), source })?;
        let mut entries = Vec::new();
        for (index, port) in ports.into_iter().enumerate() {
            let (name, address) = (format!("node{index}"), format!("{}://127.0.0.1:{port}", plan.scheme));
            let entry = BookEntry::new(&name, &address).map_err(|why| LaunchError::Io {
                what: "write the address book".to_owned(),
                source: io::Error::other(why),
            })?;
            entries.push(entry);
            self.record.nodes.push(JobNode {
                mountpoint: self.record.mount_dir.join(&name),
                log: logs.join(format!("{name}.log")),
                name,
                address,
                process: None,
            });
        }
        self.record.write()?;
        write_book(&self.record.book, &entries)?;
        for at in 0..self.record.nodes.len() {
            let mountpoint = self.record.nodes[at].mountpoint.clone();
            // A dead mount there could not even be looked at.
            (self.hooks.clear_stale)(&mountpoint).map_err(|why| LaunchError::Io {
                what: format!("clear {}", mountpoint.display()),
                source: io::Error::other(why),
            })?;
            self.make_recorded(&mountpoint, 0o755)?;
        }
        self.start_daemons(plan)
    }

    fn start_daemons(&mut self, plan: &LocalPlan<'_>) -> Result<(), LaunchError> {
        let until = Instant::now() + plan.ready_timeout;
        let (sender, news) = unbounded();
        for at in 0..self.record.nodes.len() {
            let node = &self.record.nodes[at];
            let failed = |source| LaunchError::Io { what: format!("start the daemon of {}", node.name), source };
            let log = File::create(&node.log).map_err(failed)?;
            let spawn = DaemonSpawn {
                name: node.name.clone(),
                program: plan.program.clone(),
                args: (plan.daemon_args)(&node.name, &node.mountpoint, &self.record.book),
                mountpoint: node.mountpoint.clone(),
                stderr: Stdio::from(log),
            };
            let daemon =
                DaemonProcess::spawn(spawn, at, self.hooks.answers.clone(), sender.clone(), until).map_err(failed)?;
            self.record.nodes[at].process = Some(daemon.identity.clone());
            self.daemons.push(daemon);
            self.record.write()?;
        }
        drop(sender);
        let mut states = vec![Readiness::Starting; self.record.nodes.len()];
        wait_ready(&mut states, &news, &self.hooks.interrupts, until)
            .map_err(|cause| self.not_ready(cause, &states, plan.ready_timeout))
    }

    fn not_ready(&self, cause: NotReady, states: &[Readiness], timeout: Duration) -> LaunchError {
        let with_log = |at: usize| {
            let node = &self.record.nodes[at];
            match last_line(&node.log).filter(|line| !line.contains(&states[at].to_string())) {
                Some(line) => format!("{}; its log ends: {line}", states[at]),
                None => states[at].to_string(),
            }
        };
        match cause {
            NotReady::Interrupted(signal) => LaunchError::Interrupted { signal },
            NotReady::Failed => {
                let at = states.iter().position(|state| matches!(state, Readiness::Failed(_))).unwrap_or_default();
                LaunchError::Failed { name: self.record.nodes[at].name.clone(), why: with_log(at) }
            }
            NotReady::TimedOut => {
                let late = (0..states.len()).filter(|&at| states[at] != Readiness::Ready);
                let lines = late.map(|at| format!("\n  {}: {}", self.record.nodes[at].name, with_log(at)));
                LaunchError::NotReady { nodes: states.len(), timeout, laggards: lines.collect() }
            }
        }
    }

    /// Empties the logs that say no more than the error does, so that stop removes them. Their daemons have failed.
    fn drop_told_logs(&self, error: &LaunchError) {
        let LaunchError::Failed { why, .. } = error else { return };
        for node in &self.record.nodes {
            let log = std::fs::read_to_string(&node.log).unwrap_or_default();
            let mut lines = log.lines().filter(|line| !line.trim().is_empty());
            if lines.next().is_some_and(|line| line.contains(why.as_str())) && lines.next().is_none() {
                // What stays is a log too many.
                let _ = File::create(&node.log);
            }
        }
    }

    fn make_recorded(&mut self, dir: &Path, mode: u32) -> Result<(), LaunchError> {
        make_dirs(dir, mode, &mut self.record.made)?;
        Ok(self.record.write()?)
    }

    /// Collects the exit statuses of daemons that have been stopped.
    fn reap(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.ended();
        }
    }
}

impl Drop for LocalJob {
    fn drop(&mut self) {
        if !self.left {
            if let Err(error) = stop(&self.record.mount_dir, &*self.hooks.clear_stale, Patience::default()) {
                log::error!("the job in {} is not stopped: {error}", self.record.mount_dir.display());
            }
            self.reap();
        }
    }
}

/// Makes the directories, locks the job and clears what an earlier one has left. `made` grows on every path.
fn prepare(plan: &LocalPlan<'_>, hooks: &Hooks, made: &mut Vec<PathBuf>) -> Result<(JobRecord, JobLock), LaunchError> {
    let whole = |dir: &PathBuf| std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
    if let Some(path) = [Some(&plan.mount_dir), plan.job_dir.as_ref()]
        .into_iter()
        .flatten()
        .map(whole)
        .find(|dir| dir.to_str().is_none())
    {
        return Err(LaunchError::NotUtf8 { path });
    }
    make_dirs(&plan.mount_dir, 0o755, made)?;
    let mount_dir = resolve(&plan.mount_dir)?;
    // Stop must find what was made from any working directory.
    for dir in &mut *made {
        *dir = resolve(dir)?;
    }
    let owner = std::fs::metadata(&mount_dir)
        .map_err(|source| LaunchError::Io { what: format!("read {}", mount_dir.display()), source })?
        .uid();
    // Whoever owns the directory could put something else in the place of what is made there.
    if owner != rustix::process::geteuid().as_raw() && owner != 0 {
        return Err(RecordError::NotOurs { path: mount_dir, why: "it belongs to another user" }.into());
    }
    let lock = lock(&mount_dir, made)?;
    if let Some(earlier) = JobRecord::read(&mount_dir)? {
        clear_earlier(earlier, hooks, made)?;
    }
    // Nobody else makes this directory: one that is there already was left by a launch that had something to say.
    own(state_dir(&mount_dir), made);
    let job_dir = match &plan.job_dir {
        Some(dir) => {
            let known = made.len();
            make_dirs(dir, 0o755, made)?;
            for dir in &mut made[known..] {
                *dir = resolve(dir)?;
            }
            resolve(dir)?
        }
        None => state_dir(&mount_dir),
    };
    let book = job_dir.join("address_book.txt");
    Ok((JobRecord::new(&mount_dir, &job_dir, &book, std::mem::take(made)), lock))
}

/// Notes a directory as one that the launch has made.
fn own(dir: PathBuf, made: &mut Vec<PathBuf>) {
    if !made.contains(&dir) {
        made.push(dir);
    }
}

fn resolve(path: &Path) -> Result<PathBuf, LaunchError> {
    path.canonicalize().map_err(|source| LaunchError::Io { what: format!("resolve {}", path.display()), source })
}

/// Makes the state directory if it is missing, then locks the job.
fn lock(mount_dir: &Path, made: &mut Vec<PathBuf>) -> Result<JobLock, LaunchError> {
    let until = Instant::now() + Patience::default().lock;
    loop {
        let state = state_dir(mount_dir);
        make_dirs(&state, 0o700, made)?;
        // None if a stop has removed it in between.
        if let Some(lock) = JobLock::take(mount_dir, until)? {
            return Ok(lock);
        }
        made.retain(|dir| *dir != state);
        if Instant::now() >= until {
            return Err(RecordError::Busy { dir: mount_dir.to_path_buf() }.into());
        }
    }
}

/// Removes what an earlier job has left if all of its daemons are dead. What it made is ours to remove from now on.
fn clear_earlier(mut earlier: JobRecord, hooks: &Hooks, made: &mut Vec<PathBuf>) -> Result<(), LaunchError> {
    let mount_dir = earlier.mount_dir.clone();
    let mut running = 0;
    for process in earlier.nodes.iter().filter_map(|node| node.process.as_ref()) {
        let runs = process.runs().map_err(|source| LaunchError::Io { what: "read /proc".to_owned(), source })?;
        running += usize::from(runs);
    }
    if running > 0 {
        return Err(LaunchError::AlreadyRuns { mount_dir, running });
    }
    // The directories that hold the record and the lock must outlive this launch's own start.
    let state = state_dir(&mount_dir);
    let all = std::mem::take(&mut earlier.made);
    let (mut keep, remove): (Vec<_>, Vec<_>) = all.into_iter().partition(|dir| state.starts_with(dir));
    earlier.made = remove;
    stop_locked(&earlier, &*hooks.clear_stale, Patience::default())
        .map_err(|source| LaunchError::Remains { mount_dir, source })?;
    keep.append(made);
    *made = keep;
    Ok(())
}

/// Makes a directory and those above it that are missing, and notes which were made, outermost first.
pub(super) fn make_dirs(dir: &Path, mode: u32, made: &mut Vec<PathBuf>) -> Result<(), LaunchError> {
    let failed = |source| LaunchError::Directory { dir: dir.to_path_buf(), source };
    match DirBuilder::new().mode(mode).create(dir) {
        Ok(()) => {
            own(dir.to_path_buf(), made);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if dir.is_dir() {
                Ok(())
            } else {
                Err(failed(error))
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => match dir.parent() {
            Some(parent) if parent != Path::new("") => {
                make_dirs(parent, 0o755, made)?;
                DirBuilder::new().mode(mode).create(dir).map_err(failed)?;
                made.push(dir.to_path_buf());
                Ok(())
            }
            _ => Err(failed(error)),
        },
        Err(error) => Err(failed(error)),
    }
}

pub(super) fn last_line(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES))).ok()?;
    let mut tail = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut tail).ok()?;
    String::from_utf8_lossy(&tail).lines().rev().find(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests;
