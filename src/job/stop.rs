//! Stopping a job on this machine: its daemons, its mounts, its files, and nothing else.
//!
//! Used by `bornite stop` and by the launcher itself. A daemon is signalled only if it is the very process that the
//! launch recorded (see [`super::process`]); a directory is removed only if the launch made it and it is empty; logs that
//! say something are kept. A second stop finds nothing and says so. After an error the record stays, so that stop can be
//! tried again.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Signal;

use super::daemon::ClearStale;
use super::mounts;
use super::process::ProcessHandle;
use super::record::{JobLock, JobRecord, RecordError, state_dir};

/// How long stop waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For another launch or stop of the same job.
    pub lock: Duration,
    /// After SIGTERM, for all daemons together.
    pub term: Duration,
    /// After SIGKILL, for all daemons together.
    pub kill: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { lock: Duration::from_secs(10), term: Duration::from_secs(10), kill: Duration::from_secs(5) }
    }
}

/// Why a job is not stopped, or not wholly.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The record cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No job can be there.
    #[error("{} is not a directory; name the --mount directory of the launch", mount_dir.display())]
    NoDirectory {
        /// What was named.
        mount_dir: PathBuf,
    },
    /// Daemons outlive SIGKILL: they wait in the kernel, for a dead filesystem most likely.
    #[error(
        "these daemons outlive SIGKILL: {daemons}; they wait in the kernel for the backend; run `bornite stop` again later"
    )]
    StillRuns {
        /// Names and pids.
        daemons: String,
    },
    /// A mount is left.
    #[error("{} is still mounted: {why}; leave the directory in every shell, then run `bornite stop` again", mountpoint.display())]
    Mounted {
        /// The mount point.
        mountpoint: PathBuf,
        /// What prevents its removal.
        why: String,
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

/// What became of one daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It ended on SIGTERM.
    Stopped,
    /// It needed SIGKILL.
    Killed,
    /// It had ended before, or was never started; its pid, if in use, is another process's and was left alone.
    HadEnded,
}

/// What a stop has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopReport {
    /// The directory of the job.
    pub mount_dir: PathBuf,
    /// Each daemon's name and ending; empty if there was no job.
    pub daemons: Vec<(String, Ending)>,
    /// Mounts that were left dead and have been detached.
    pub unmounted: Vec<PathBuf>,
    /// Logs that say something.
    pub kept: Vec<PathBuf>,
}

impl fmt::Display for StopReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.daemons.is_empty() {
            return write!(formatter, "nothing runs in {}", self.mount_dir.display());
        }
        let of = |ending| self.daemons.iter().filter(move |(_, e)| *e == ending).map(|(name, _)| name.as_str());
        write!(formatter, "stopped {} of {} daemons", of(Ending::Stopped).count(), self.daemons.len())?;
        for (ending, text) in [(Ending::Killed, "killed"), (Ending::HadEnded, "had ended before")] {
            let names: Vec<&str> = of(ending).collect();
            if !names.is_empty() {
                write!(formatter, "; {text}: {}", names.join(", "))?;
            }
        }
        for (paths, text) in [(&self.unmounted, "detached dead mounts"), (&self.kept, "logs kept")] {
            if !paths.is_empty() {
                let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
                write!(formatter, "\n{text}: {}", paths.join(", "))?;
            }
        }
        Ok(())
    }
}

/// Stops the job in `mount_dir` and removes what its launch has made. Nothing to stop is no error.
///
/// # Errors
/// As [`StopError`] says.
pub fn stop(mount_dir: &Path, clear_stale: &ClearStale, patience: Patience) -> Result<StopReport, StopError> {
    let nothing = |mount_dir: &Path| StopReport {
        mount_dir: mount_dir.to_path_buf(),
        daemons: Vec::new(),
        unmounted: Vec::new(),
        kept: Vec::new(),
    };
    let mount_dir = match mount_dir.canonicalize() {
        Ok(mount_dir) => mount_dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(nothing(mount_dir)),
        Err(source) => return Err(StopError::Io { what: format!("find {}", mount_dir.display()), source }),
    };
    if !mount_dir.is_dir() {
        return Err(StopError::NoDirectory { mount_dir });
    }
    let Some(_lock) = JobLock::take(&mount_dir, Instant::now() + patience.lock)? else {
        return Ok(nothing(&mount_dir));
    };
    let Some(record) = JobRecord::read(&mount_dir)? else { return Ok(nothing(&mount_dir)) };
    stop_locked(&record, clear_stale, patience)
}

/// As [`stop`], for a caller that holds the job's lock and its record.
///
/// # Errors
/// As [`StopError`] says.
pub(super) fn stop_locked(
    record: &JobRecord,
    clear_stale: &ClearStale,
    patience: Patience,
) -> Result<StopReport, StopError> {
    let mut report = StopReport {
        mount_dir: record.mount_dir.clone(),
        daemons: end_daemons(record, patience)?,
        unmounted: Vec::new(),
        kept: Vec::new(),
    };
    for node in &record.nodes {
        let left = |why| StopError::Mounted { mountpoint: node.mountpoint.clone(), why };
        if clear_stale(&node.mountpoint).map_err(left)? {
            report.unmounted.push(node.mountpoint.clone());
        }
        let mounted = mounts::is_mounted(&node.mountpoint)
            .map_err(|source| StopError::Io { what: "read /proc/self/mountinfo".to_owned(), source })?;
        if mounted {
            return Err(left("its daemon is not one of this job".to_owned()));
        }
    }
    remove_files(record, &mut report)?;
    Ok(report)
}

/// Ends the daemons of a job: SIGTERM, then SIGKILL.
///
/// # Errors
/// As [`StopError`] says.
pub(super) fn end_daemons(record: &JobRecord, patience: Patience) -> Result<Vec<(String, Ending)>, StopError> {
    let mut endings: Vec<(String, Ending)> =
        record.nodes.iter().map(|node| (node.name.clone(), Ending::HadEnded)).collect();
    let mut running: Vec<(usize, ProcessHandle)> = Vec::new();
    for (index, node) in record.nodes.iter().enumerate() {
        let failed = |source| StopError::Io { what: format!("look for the daemon of {}", node.name), source };
        if let Some(process) = &node.process
            && let Some(handle) = process.open().map_err(failed)?
        {
            running.push((index, handle));
        }
    }
    let steps = [(Signal::TERM, patience.term, Ending::Stopped), (Signal::KILL, patience.kill, Ending::Killed)];
    for (signal, wait, ending) in steps {
        let named = |index: usize| format!("signal the daemon of {}", record.nodes[index].name);
        for (index, handle) in &running {
            handle.signal(signal).map_err(|source| StopError::Io { what: named(*index), source })?;
        }
        let until = Instant::now() + wait;
        let mut left = Vec::new();
        for (index, handle) in running {
            if handle.wait_ended(until).map_err(|source| StopError::Io { what: named(index), source })? {
                endings[index].1 = ending;
            } else {
                left.push((index, handle));
            }
        }
        running = left;
    }
    if running.is_empty() {
        return Ok(endings);
    }
    let name = |(index, _): &(usize, ProcessHandle)| {
        let node = &record.nodes[*index];
        format!("{} (pid {})", node.name, node.process.as_ref().map_or(0, |process| process.pid))
    };
    Err(StopError::StillRuns { daemons: running.iter().map(name).collect::<Vec<_>>().join(", ") })
}

/// Removes book, empty logs and the directories that the launch has made. The record goes after all that it tells of,
/// but for the directories that hold it.
fn remove_files(record: &JobRecord, report: &mut StopReport) -> Result<(), StopError> {
    let failed = |path: &Path, source: io::Error| StopError::Io { what: format!("remove {}", path.display()), source };
    let logs: BTreeSet<&Path> = record.nodes.iter().map(|node| node.log.as_path()).collect();
    for log in logs {
        match std::fs::symlink_metadata(log) {
            Ok(metadata) if metadata.len() > 0 => report.kept.push(log.to_path_buf()),
            Ok(_) => remove_file(log).map_err(|error| failed(log, error))?,
            Err(_) => {}
        }
    }
    remove_file(&record.book).map_err(|error| failed(&record.book, error))?;
    let state = state_dir(&record.mount_dir);
    let holds_record = |path: &&PathBuf| state.starts_with(path);
    for dir in record.made.iter().rev().filter(|path| !holds_record(path)) {
        remove_dir(dir).map_err(|error| failed(dir, error))?;
    }
    remove_file(&record.path()).map_err(|error| failed(&record.path(), error))?;
    for dir in record.made.iter().rev().filter(holds_record) {
        remove_dir(dir).map_err(|error| failed(dir, error))?;
    }
    Ok(())
}

pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a directory if it is empty; one that holds something by now is somebody's.
pub(super) fn remove_dir(path: &Path) -> io::Result<()> {
    match rustix::fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::job::{JobNode, ProcessIdentity};

    struct Guard(Child);

    impl Drop for Guard {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A job directory as launch makes it, with one node whose process is `process`.
    struct Job {
        temp: tempfile::TempDir,
        record: JobRecord,
    }

    impl Job {
        fn new(process: Option<ProcessIdentity>) -> Job {
            let temp = tempfile::tempdir().unwrap();
            let dir = temp.path().canonicalize().unwrap().join("job");
            let state = state_dir(&dir);
            let (node, logs) = (dir.join("node0"), state.join("logs"));
            let made = vec![dir.clone(), state.clone(), logs.clone(), node.clone()];
            for path in &made {
                std::fs::create_dir(path).unwrap();
            }
            let mut record = JobRecord::new(&dir, &state, &state.join("address_book.txt"), made);
            record.nodes.push(JobNode {
                name: "node0".to_owned(),
                mountpoint: node,
                address: "ofi+tcp://127.0.0.1:1".to_owned(),
                log: logs.join("node0.log"),
                process,
            });
            std::fs::write(&record.book, "node0 ofi+tcp://127.0.0.1:1\n").unwrap();
            std::fs::write(&record.nodes[0].log, "").unwrap();
            record.write().unwrap();
            Job { temp, record }
        }

        fn stop(&self) -> Result<StopReport, StopError> {
            stop(&self.record.mount_dir, &|_: &Path| Ok(false), Patience::default())
        }

        fn gone(&self) -> bool {
            std::fs::read_dir(self.temp.path()).unwrap().count() == 0
        }
    }

    fn shell(script: &str) -> (Guard, ProcessIdentity) {
        let child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
        let identity = ProcessIdentity::of(child.id()).unwrap().unwrap();
        (Guard(child), identity)
    }

    #[test]
    fn a_daemon_is_stopped_and_everything_removed_twice() {
        let (_child, process) = shell("exec sleep 60");
        let job = Job::new(Some(process.clone()));
        let report = job.stop().unwrap();
        assert_eq!(report.daemons, [("node0".to_owned(), Ending::Stopped)]);
        assert_eq!(report.to_string(), "stopped 1 of 1 daemons");
        assert!(!process.runs().unwrap());
        assert!(job.gone());
        let again = job.stop().unwrap();
        assert_eq!(again.to_string(), format!("nothing runs in {}", job.record.mount_dir.display()));
    }

    #[test]
    fn a_reused_pid_is_left_alone() {
        let (mut child, process) = shell("exec sleep 60");
        let earlier = ProcessIdentity { start_ticks: process.start_ticks - 1, ..process };
        let job = Job::new(Some(earlier));
        let report = job.stop().unwrap();
        assert_eq!(report.daemons, [("node0".to_owned(), Ending::HadEnded)]);
        assert_eq!(report.to_string(), "stopped 0 of 1 daemons; had ended before: node0");
        assert!(child.0.try_wait().unwrap().is_none(), "the process that has the pid now was hit");
        assert!(job.gone());
    }

    /// Waits until a process ignores SIGTERM (the mask of ignored signals, proc_pid_status(5)).
    fn wait_until_deaf(pid: u32) {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim().to_owned();
            if u64::from_str_radix(&mask, 16).unwrap() & (1 << (Signal::TERM.as_raw() - 1)) != 0 {
                return;
            }
            assert!(Instant::now() < until, "the shell does not ignore SIGTERM");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_deaf_daemon_is_killed() {
        let (mut child, process) = shell("trap '' TERM; while :; do sleep 0.1; done");
        wait_until_deaf(process.pid);
        let job = Job::new(Some(process));
        let patience = Patience { term: Duration::from_millis(300), ..Patience::default() };
        let report = stop(&job.record.mount_dir, &|_: &Path| Ok(false), patience).unwrap();
        assert_eq!(report.daemons, [("node0".to_owned(), Ending::Killed)]);
        assert!(child.0.wait().unwrap().code().is_none());
    }

    #[test]
    fn dead_mounts_are_cleared_and_a_failure_keeps_the_record() {
        let job = Job::new(None);
        let failing = |_: &Path| Err("device busy".to_owned());
        let text = stop(&job.record.mount_dir, &failing, Patience::default()).unwrap_err().to_string();
        assert!(text.contains("node0 is still mounted: device busy"), "{text}");
        assert!(job.record.path().exists());
        let report = stop(&job.record.mount_dir, &|_: &Path| Ok(true), Patience::default()).unwrap();
        assert_eq!(report.unmounted, [job.record.nodes[0].mountpoint.clone()]);
        assert!(job.gone());
    }

    #[test]
    fn what_launch_has_not_made_and_logs_that_speak_stay() {
        let job = Job::new(None);
        let theirs = job.record.mount_dir.join("node0/theirs");
        std::fs::write(&theirs, "x").unwrap();
        std::fs::write(&job.record.nodes[0].log, "a line\n").unwrap();
        let report = job.stop().unwrap();
        assert_eq!(report.kept, [job.record.nodes[0].log.clone()]);
        assert!(theirs.exists() && job.record.nodes[0].log.exists());
        assert!(!job.record.path().exists() && !job.record.book.exists());
    }

    #[test]
    fn a_record_of_another_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: a file of another user needs root to be made");
            return;
        }
        let (mut child, process) = shell("exec sleep 60");
        let job = Job::new(Some(process));
        std::os::unix::fs::chown(job.record.path(), Some(65_534), None).unwrap();
        let text = job.stop().unwrap_err().to_string();
        assert!(text.contains("belongs to another user"), "{text}");
        assert!(child.0.try_wait().unwrap().is_none());
    }
}
