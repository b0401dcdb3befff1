//! Stopping a job over nodes: its daemons, its mounts, its launchers, its files, and nothing else.
//!
//! The daemons are stopped by a command that the launcher runs on every node, which works as well where the launcher that started
//! them was killed and left dead mounts. Then the launchers in the background end by themselves; one that does not is told to, and
//! what that left on the nodes is cleared once more.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hashbrown::HashSet;
use rustix::process::Signal;

use super::gone;
use super::record::ClusterRecord;
use super::system_hostname;
use crate::job::book::{is_same_host, short_name};
use crate::job::launcher::TaskOptions;
use crate::job::launcher::execute::{Background, Limit, Ran, run_all};
use crate::job::launcher::names::unresolved;
use crate::job::record::RecordError;
use crate::job::stop::{remove_dir, remove_file};

/// How long the stop may take on all nodes: longer than a daemon that has to be killed.
const NODES_TIMEOUT: Duration = Duration::from_secs(60);
/// How long launchers may take to see that their tasks have ended.
const LAUNCHERS_GRACE: Duration = Duration::from_secs(10);
/// How long one may take to end after each signal.
const SIGNAL_GRACE: Duration = Duration::from_secs(5);

/// Why a job is not stopped, or not wholly. The record stays.
#[derive(Debug, thiserror::Error)]
pub enum ClusterStopError {
    /// The record cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Some nodes were not reached, or something is left there.
    #[error("not stopped everywhere: {why}; run `bornite stop --output-dir {}` again once that is mended", job_dir.display())]
    Nodes {
        /// What the launcher or the nodes say.
        why: String,
        /// The job's directory.
        job_dir: PathBuf,
    },
    /// A launcher outlives SIGKILL.
    #[error("{program} (process {pid}) outlives SIGKILL; run `bornite stop` again later")]
    StillRuns {
        /// The launcher.
        program: &'static str,
        /// Its process.
        pid: u32,
    },
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, with its object.
        what: String,
        /// The system's error.
        source: io::Error,
    },
}

/// What a stop has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStopped {
    /// Where the job was mounted.
    pub mountpoint: PathBuf,
    /// Its nodes; none where the job was over.
    pub nodes: usize,
    /// Logs that say something.
    pub kept: Vec<PathBuf>,
}

impl fmt::Display for ClusterStopped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nodes {
            0 => write!(formatter, "the job was over; what it has left is removed")?,
            nodes => write!(formatter, "stopped {nodes} nodes at {}", self.mountpoint.display())?,
        }
        match &self.kept[..] {
            [] => Ok(()),
            [only] => write!(formatter, "\nlogs kept: {}", only.display()),
            [first, ..] => {
                let dir = first.parent().unwrap_or(Path::new("/"));
                write!(formatter, "\nlogs kept: {} files in {}", self.kept.len(), dir.display())
            }
        }
    }
}

/// Stops the job whose record is in `job_dir`; none if there is none.
///
/// # Errors
/// As [`ClusterStopError`] says.
pub fn stop_in(job_dir: &Path) -> Result<Option<ClusterStopped>, ClusterStopError> {
    ClusterRecord::read(job_dir)?.map(|record| stop(&record)).transpose()
}

/// Stops a recorded job.
///
/// # Errors
/// As [`ClusterStopError`] says.
pub fn stop(record: &ClusterRecord) -> Result<ClusterStopped, ClusterStopError> {
    stop_recorded(record, &mut Vec::new(), None)
}

/// A launch that is taken back.
#[derive(Debug)]
pub(super) struct Failed<'a> {
    /// What the user is told anyway; logs that say no more than that are not kept.
    pub(super) told: &'a str,
    /// Hosts on which nothing runs: that they cannot be reached is no further failure.
    pub(super) gone: &'a [usize],
}

/// As [`stop`]; `children` are those of its launchers that this process has started.
pub(super) fn stop_recorded(
    record: &ClusterRecord,
    children: &mut Vec<Background>,
    failed: Option<Failed<'_>>,
) -> Result<ClusterStopped, ClusterStopError> {
    if failed.is_none() && children.is_empty() && gone::is_gone(record) {
        return clear_files(record);
    }
    let started = !record.background.is_empty();
    let mut nodes = if started { stop_nodes(record)? } else { Vec::new() };
    if is_same_host(&record.host, &system_hostname()) && end_launchers(record, children)? {
        nodes = stop_nodes(record)?;
    }
    let gone = failed.as_ref().map_or(&[][..], |failed| failed.gone);
    nodes.retain(|node| node.said || !gone.contains(&node.host));
    if !nodes.is_empty() {
        let why = nodes.into_iter().map(|node| node.why).collect::<Vec<_>>().join("; ");
        return Err(ClusterStopError::Nodes { why, job_dir: record.job_dir.clone() });
    }
    let mut stopped =
        ClusterStopped { mountpoint: record.mountpoint.clone(), nodes: record.launcher.hosts.len(), kept: Vec::new() };
    remove_files(record, failed.map(|failed| failed.told), &mut stopped)?;
    Ok(stopped)
}

/// Removes the files of a job none of whose processes lives.
pub(super) fn clear_files(record: &ClusterRecord) -> Result<ClusterStopped, ClusterStopError> {
    let mut stopped = ClusterStopped { mountpoint: record.mountpoint.clone(), nodes: 0, kept: Vec::new() };
    remove_files(record, None, &mut stopped)?;
    Ok(stopped)
}

/// A node that is not stopped.
struct NotStopped {
    host: usize,
    /// Whether it says so itself; else it was not reached.
    said: bool,
    why: String,
}

/// Runs the stop on every node; those on which it fails.
fn stop_nodes(record: &ClusterRecord) -> Result<Vec<NotStopped>, ClusterStopError> {
    let mut words: Vec<OsString> = vec![record.program.clone().into_os_string(), "stop".into()];
    words.extend(["--launch-id".into(), record.launch.clone().into(), "--mount".into()]);
    words.push(record.mountpoint.clone().into_os_string());
    let options = TaskOptions { cores: None, environment: std::env::vars_os().collect() };
    let run = |lines: &[Vec<OsString>]| {
        let ran = run_all(lines, Limit::of(NODES_TIMEOUT));
        ran.map_err(|source| ClusterStopError::Io { what: "stop the nodes".to_owned(), source })
    };
    let launcher = &record.launcher;
    let lost = unresolved(launcher.kind, &launcher.hosts);
    if !lost.is_empty() {
        // A launcher of all would wait for them.
        let hosts: Vec<usize> = (0..launcher.hosts.len()).filter(|host| !lost.contains(host)).collect();
        let lines: Vec<_> = hosts.iter().map(|host| launcher.on_one(*host, &words, &options)).collect();
        let ran = run(&lines)?;
        let failed = hosts.into_iter().zip(&ran).filter(|(_, ran)| !ran.is_ok());
        let failed = failed.map(|(host, ran)| what_failed(host, &launcher.hosts[host], ran));
        let unknown = |host: usize| format!("{}: its name does not resolve", launcher.hosts[host]);
        return Ok(failed
            .chain(lost.iter().map(|&host| NotStopped { host, said: false, why: unknown(host) }))
            .collect());
    }
    let mut ran = run(&launcher.everywhere(&words, &options))?;
    if launcher.is_collective() {
        if ran.iter().all(Ran::is_ok) {
            return Ok(Vec::new());
        }
        // A dead node is enough to fail all at once; each of the others is reached by itself.
        let lines: Vec<_> = (0..launcher.hosts.len()).map(|host| launcher.on_one(host, &words, &options)).collect();
        ran = run(&lines)?;
    }
    let failed = ran.iter().enumerate().filter(|(_, ran)| !ran.is_ok());
    Ok(failed.map(|(host, ran)| what_failed(host, &launcher.hosts[host], ran)).collect())
}

/// What a node says of itself, else what the launcher says.
fn what_failed(host: usize, name: &str, ran: &Ran) -> NotStopped {
    let mut said = ran.stderr.lines().filter_map(|line| line.split_once("bornite: ").map(|(_, why)| why.to_owned()));
    match said.next_back() {
        Some(why) => NotStopped { host, said: true, why },
        None => NotStopped { host, said: false, why: format!("{name}: {}", ran.failure()) },
    }
}

/// Waits for the launchers to end, and ends those that do not. True if one had to be ended, which may have left something.
fn end_launchers(record: &ClusterRecord, children: &mut Vec<Background>) -> Result<bool, ClusterStopError> {
    let failed = |source| ClusterStopError::Io { what: "end the launchers".to_owned(), source };
    let program = record.launcher.kind.program();
    let (mut forced, until) = (false, Instant::now() + LAUNCHERS_GRACE);
    for process in &record.background {
        let Some(handle) = process.open().map_err(failed)? else { continue };
        if handle.wait_ended(until).map_err(failed)? {
            continue;
        }
        forced = true;
        let mut ended = false;
        for signal in [Signal::TERM, Signal::KILL] {
            handle.signal(signal).map_err(failed)?;
            ended = handle.wait_ended(Instant::now() + SIGNAL_GRACE).map_err(failed)?;
            if ended {
                break;
            }
        }
        if !ended {
            return Err(ClusterStopError::StillRuns { program, pid: process.pid });
        }
    }
    // Those that this process has started are waited for.
    for mut child in children.drain(..) {
        let _ = child.ended();
    }
    Ok(forced)
}

/// Removes the files of the job, empty logs, and the directories that the launch has made; the record last.
fn remove_files(
    record: &ClusterRecord,
    told: Option<&str>,
    stopped: &mut ClusterStopped,
) -> Result<(), ClusterStopError> {
    let failed =
        |path: &Path, source: io::Error| ClusterStopError::Io { what: format!("remove {}", path.display()), source };
    let logs = record.job_dir.join("logs");
    let says_more = |path: &Path| {
        let Ok(length) = std::fs::metadata(path).map(|metadata| metadata.len()) else { return false };
        // A failing daemon's words are in the error already.
        let known = |text: String| told.is_some_and(|told| text.lines().all(|line| is_told(line, told)));
        length > 0 && !(length < 64 << 10 && std::fs::read_to_string(path).is_ok_and(known))
    };
    // A launch that fails leaves nothing.
    let is_kept = |file: &PathBuf| told.is_none() && record.kept.contains(file);
    for file in record.files.iter().filter(|file| !is_kept(file)) {
        if file.extension().is_some_and(|extension| extension == "log") && says_more(file) {
            stopped.kept.push(file.clone());
            continue;
        }
        remove_file(file).map_err(|error| failed(file, error))?;
    }
    let hosts: HashSet<String> =
        record.launcher.hosts.iter().map(|host| short_name(host).to_ascii_lowercase()).collect();
    for entry in std::fs::read_dir(&logs).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !logged_host(&name).is_some_and(|host| hosts.contains(&short_name(host).to_ascii_lowercase())) {
            continue;
        }
        if says_more(&entry.path()) {
            stopped.kept.push(entry.path());
        } else {
            remove_file(&entry.path()).map_err(|error| failed(&entry.path(), error))?;
        }
    }
    stopped.kept.sort();
    for dir in record.made.iter().rev().filter(|dir| **dir != record.job_dir && dir.starts_with(&record.job_dir)) {
        remove_dir(dir).map_err(|error| failed(dir, error))?;
    }
    let path = ClusterRecord::path(&record.job_dir);
    remove_file(&path).map_err(|error| failed(&path, error))?;
    for dir in record.made.iter().rev().filter(|dir| record.job_dir.starts_with(dir)) {
        remove_dir(dir).map_err(|error| failed(dir, error))?;
    }
    Ok(())
}

/// Whether a line of a launcher's log says nothing that the user is not told.
fn is_told(line: &str, told: &str) -> bool {
    let line = line.trim();
    let words = line.split_once("bornite: ").and_then(|(_, rest)| rest.split_once(": ")).map_or(line, |(_, why)| why);
    // What srun adds for each task that failed.
    words.is_empty()
        || told.contains(words)
        || line.starts_with("srun: error: ") && line.contains("Exited with exit code 1")
}

/// The host whose daemon's log a file is, by its name `HOST-PID.log`.
fn logged_host(name: &str) -> Option<&str> {
    let (host, pid) = name.strip_suffix(".log")?.rsplit_once('-')?;
    (!pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit())).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_belong_to_their_hosts() {
        assert_eq!(logged_host("n1-17.log"), Some("n1"));
        assert_eq!(logged_host("a-b.site-1.log"), Some("a-b.site"));
        for other in ["n1-.log", "n1-17.txt", "n1.log", "n1-b.log"] {
            assert_eq!(logged_host(other), None, "{other}");
        }
    }

    #[test]
    fn what_was_told_is_not_kept() {
        let told = "2 of 2 nodes failed:\n  n1: port 7 is taken by process 9";
        assert!(is_told("bornite: n1: port 7 is taken by process 9", told));
        assert!(is_told("srun: error: n1: task 0: Exited with exit code 1", told));
        assert!(is_told("", told));
        assert!(!is_told("bornite: n2: no /dev/fuse", told));
    }
}
