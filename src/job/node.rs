//! One node of a job over many: what its daemon makes beside its mount point, and how that is taken away again.
//!
//! Used by a daemon that a launch has started (before it mounts and when it ends) and by the stop that the launcher runs on its
//! node. Everything is local to the node: the directories of the mount point, and the record `.NAME.bornite` beside it, which
//! tells whose daemon serves there. Nothing of another launch is ever stopped or removed.

use std::fs::DirBuilder;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::daemon::ClearStale;
use super::mounts;
use super::process::ProcessIdentity;
use super::record::{JobNode, JobRecord};
use super::stop::{Ending, Patience, StopError, end_daemons};
use crate::observe::{Request, SocketDirs, Status, StatusError, query};

/// Raised when a field changes its meaning.
const FORMAT: u32 = 1;
/// A record is some hundred bytes and the paths.
const RECORD_BYTES_MAX: u64 = 1 << 20;
/// How long a daemon of this node may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the mount point of a node cannot be made ready.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: {source}; choose another --mount", path.display())]
pub struct NodeError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Whose daemon serves a mount point of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    format: u32,
    /// The launch that started it.
    pub launch: String,
    /// Where the job keeps its files.
    pub job_dir: Option<PathBuf>,
    /// The daemon.
    pub process: ProcessIdentity,
    /// Directories that were made for the mount point, each after the one that holds it.
    pub made: Vec<PathBuf>,
}

impl NodeRecord {
    /// The file that tells of `mountpoint`.
    pub fn path(mountpoint: &Path) -> PathBuf {
        let mut name = std::ffi::OsString::from(".");
        name.push(mountpoint.file_name().unwrap_or_default());
        name.push(".bornite");
        mountpoint.with_file_name(name)
    }

    /// What is recorded of `mountpoint`; none if nothing is, or nothing that this user has written and this version knows.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(mountpoint: &Path) -> io::Result<Option<NodeRecord>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::open(NodeRecord::path(mountpoint), flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if rustix::fs::fstat(&file)?.st_uid != rustix::process::geteuid().as_raw() {
            return Ok(None);
        }
        let mut text = String::new();
        std::fs::File::from(file).take(RECORD_BYTES_MAX).read_to_string(&mut text)?;
        Ok(NodeRecord::parse(&text))
    }

    /// The record that a text is; none if it is none that this version knows.
    pub fn parse(text: &str) -> Option<NodeRecord> {
        serde_json::from_str(text).ok().filter(|record: &NodeRecord| record.format == FORMAT)
    }

    /// The text of this record, which [`NodeRecord::parse`] reads.
    ///
    /// # Errors
    /// A path is not UTF-8: JSON cannot hold it.
    pub fn to_json(&self) -> io::Result<String> {
        serde_json::to_string(self).map_err(io::Error::other)
    }

    fn write(&self, mountpoint: &Path) -> io::Result<()> {
        let path = NodeRecord::path(mountpoint);
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let temporary = path.with_file_name(name);
        let text = self.to_json()?;
        let written = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| writeln!(file, "{text}"))
            .and_then(|()| std::fs::rename(&temporary, &path));
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }
}

/// The place of a daemon that a launch has started. Dropping it removes what was made for it.
#[derive(Debug)]
pub struct NodePlace {
    mountpoint: PathBuf,
    launch: String,
    job_dir: Option<PathBuf>,
    made: Vec<PathBuf>,
    recorded: bool,
}

impl NodePlace {
    /// Makes the directories of an absolute mount point that are missing. Those that a daemon has left which died without
    /// taking leave are this one's from now on.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn prepare(mountpoint: &Path, launch: &str, job_dir: Option<&Path>) -> Result<NodePlace, NodeError> {
        let mut place = NodePlace {
            mountpoint: mountpoint.to_path_buf(),
            launch: launch.to_owned(),
            job_dir: job_dir.map(Path::to_path_buf),
            made: Vec::new(),
            recorded: false,
        };
        let failed = |what, source| NodeError { what, path: mountpoint.to_path_buf(), source };
        if let Some(earlier) = NodeRecord::read(mountpoint).map_err(|error| failed("read the record of", error))?
            && !earlier.process.runs().map_err(|error| failed("read /proc for", error))?
        {
            place.made = earlier.made;
        }
        // What is above a mount point is looked at; a dead mount at its own place is not.
        let mut missing = Vec::new();
        let mut at = mountpoint;
        while let Err(Errno::NOENT) = rustix::fs::statat(rustix::fs::CWD, at, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            missing.push(at.to_path_buf());
            match at.parent() {
                Some(parent) => at = parent,
                None => break,
            }
        }
        for dir in missing.into_iter().rev() {
            match DirBuilder::new().mode(0o755).create(&dir) {
                Ok(()) => place.own(dir),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(NodeError { what: "make the directory", path: dir, source }),
            }
        }
        Ok(place)
    }

    fn own(&mut self, dir: PathBuf) {
        if !self.made.contains(&dir) {
            self.made.push(dir);
        }
    }

    /// Records that this process serves the mount point. To be called once no other daemon can.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn record(&mut self) -> Result<(), NodeError> {
        let failed = |source| NodeError { what: "record the daemon of", path: self.mountpoint.clone(), source };
        let process = ProcessIdentity::of(std::process::id())
            .and_then(|identity| identity.ok_or_else(|| io::Error::other("this process is not in /proc")))
            .map_err(failed)?;
        let record = NodeRecord {
            format: FORMAT,
            launch: self.launch.clone(),
            job_dir: self.job_dir.clone(),
            process,
            made: self.made.clone(),
        };
        record.write(&self.mountpoint).map_err(failed)?;
        self.recorded = true;
        Ok(())
    }
}

impl Drop for NodePlace {
    fn drop(&mut self) {
        if self.recorded {
            let _ = std::fs::remove_file(NodeRecord::path(&self.mountpoint));
        } else if NodeRecord::path(&self.mountpoint).exists() {
            // Another daemon's, or a dead one's: what was made is told there.
            return;
        }
        remove_made(&self.made);
    }
}

/// Removes directories that are empty, the innermost first.
fn remove_made(made: &[PathBuf]) {
    for dir in made.iter().rev() {
        // One that holds something by now is somebody's.
        let _ = rustix::fs::rmdir(dir);
    }
}

/// Stops the daemon that `launch` has started for `mountpoint` on this node, and removes what was made for it. None if there is
/// nothing of that launch here.
///
/// # Errors
/// As [`StopError`] says; the record then stays.
pub fn stop_node(
    mountpoint: &Path,
    launch: &str,
    clear_stale: &ClearStale,
    patience: Patience,
) -> Result<Option<Ending>, StopError> {
    let failed = |source| StopError::Io { what: format!("read the record of {}", mountpoint.display()), source };
    let Some(record) = NodeRecord::read(mountpoint).map_err(failed)?.filter(|record| record.launch == launch) else {
        return Ok(None);
    };
    let parent = mountpoint.parent().unwrap_or(Path::new("/"));
    let ending = end_process(mountpoint, Some(record.process.clone()), patience)?;
    let left = |why| StopError::Mounted { mountpoint: mountpoint.to_path_buf(), why };
    // A daemon that ended in order has removed the directories that were made for it.
    if parent.exists() {
        clear_stale(mountpoint).map_err(left)?;
    }
    let mounted = mounts::is_mounted(mountpoint)
        .map_err(|source| StopError::Io { what: "read /proc/self/mountinfo".to_owned(), source })?;
    if mounted {
        return Err(left("its daemon is not one of this job".to_owned()));
    }
    // The daemon has done this itself if it could.
    let _ = std::fs::remove_file(NodeRecord::path(mountpoint));
    remove_made(&record.made);
    Ok(Some(ending))
}

/// Stops the daemon that serves `mountpoint` on this node, whoever has started it. None if nothing of this user's is there.
///
/// # Errors
/// As [`StopError`] says.
pub fn stop_mount(
    mountpoint: &Path,
    clear_stale: &ClearStale,
    patience: Patience,
) -> Result<Option<Ending>, StopError> {
    let failed = |what: &str, source| StopError::Io { what: format!("{what} {}", mountpoint.display()), source };
    let dirs = SocketDirs::of_user();
    let ask = || match query::<Status>(&dirs, mountpoint, &Request::Status, ASK_TIMEOUT) {
        Ok(status) => ProcessIdentity::of(status.pid).map_err(|source| failed("look for the daemon of", source)),
        Err(StatusError::NoDaemon { .. } | StatusError::DaemonDied { .. } | StatusError::BadMountpoint { .. }) => {
            Ok(None)
        }
        Err(error) => Err(failed("ask the daemon of", io::Error::other(error))),
    };
    let is_mounted = || mounts::is_mounted(mountpoint).map_err(|source| failed("look for the mount", source));
    let process = ask()?;
    // The pid was that daemon's when the identity was taken if it is still its.
    if process != ask()? {
        return Err(failed("stop the daemon of", io::Error::other("another one has just taken its place; try again")));
    }
    if process.is_none() && !is_mounted()? {
        return Ok(None);
    }
    let ending = end_process(mountpoint, process, patience)?;
    let left = |why| StopError::Mounted { mountpoint: mountpoint.to_path_buf(), why };
    clear_stale(mountpoint).map_err(left)?;
    if is_mounted()? { Err(left("its daemon does not answer".to_owned())) } else { Ok(Some(ending)) }
}

/// Ends the daemon of a mount point.
fn end_process(mountpoint: &Path, process: Option<ProcessIdentity>, patience: Patience) -> Result<Ending, StopError> {
    let parent = mountpoint.parent().unwrap_or(Path::new("/"));
    let mut job = JobRecord::new(parent, parent, &NodeRecord::path(mountpoint), Vec::new());
    job.nodes.push(JobNode {
        name: mountpoint.display().to_string(),
        mountpoint: mountpoint.to_path_buf(),
        address: String::new(),
        log: PathBuf::new(),
        process,
    });
    Ok(end_daemons(&job, patience)?[0].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing_stale(_: &Path) -> Result<bool, String> {
        Ok(false)
    }

    #[test]
    fn what_is_made_is_taken_away() {
        let temp = tempfile::tempdir().unwrap();
        let mountpoint = temp.path().join("user/view");
        let mut place = NodePlace::prepare(&mountpoint, "a", Some(Path::new("/job"))).unwrap();
        assert!(mountpoint.is_dir());
        place.record().unwrap();
        let record = NodeRecord::read(&mountpoint).unwrap().unwrap();
        assert_eq!((record.launch.as_str(), record.job_dir.as_deref()), ("a", Some(Path::new("/job"))));
        assert_eq!(record.process.pid, std::process::id());
        drop(place);
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_there_stays() {
        let temp = tempfile::tempdir().unwrap();
        let mountpoint = temp.path().join("view");
        std::fs::create_dir(&mountpoint).unwrap();
        let mut place = NodePlace::prepare(&mountpoint, "a", None).unwrap();
        place.record().unwrap();
        drop(place);
        assert!(mountpoint.is_dir());
        assert!(!NodeRecord::path(&mountpoint).exists());
    }

    #[test]
    fn a_dead_daemons_directories_are_the_next_ones() {
        let temp = tempfile::tempdir().unwrap();
        let mountpoint = temp.path().join("user/view");
        let mut first = NodePlace::prepare(&mountpoint, "a", None).unwrap();
        first.record().unwrap();
        // As after SIGKILL: nobody has taken leave, and the process is gone.
        std::mem::forget(first);
        let mut record = NodeRecord::read(&mountpoint).unwrap().unwrap();
        record.process.start_ticks += 1;
        record.write(&mountpoint).unwrap();
        let mut second = NodePlace::prepare(&mountpoint, "b", None).unwrap();
        second.record().unwrap();
        assert_eq!(stop_node(&mountpoint, "a", &nothing_stale, Patience::default()).unwrap(), None, "not the first's");
        drop(second);
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_daemon_that_is_refused_leaves_the_others_record() {
        let temp = tempfile::tempdir().unwrap();
        let mountpoint = temp.path().join("view");
        let mut first = NodePlace::prepare(&mountpoint, "a", None).unwrap();
        first.record().unwrap();
        drop(NodePlace::prepare(&mountpoint, "b", None).unwrap());
        assert!(mountpoint.is_dir());
        assert_eq!(NodeRecord::read(&mountpoint).unwrap().unwrap().launch, "a");
        drop(first);
        assert!(!mountpoint.exists());
    }

    #[test]
    fn stop_ends_the_daemon_and_removes_what_it_left() {
        let temp = tempfile::tempdir().unwrap();
        let mountpoint = temp.path().join("user/view");
        let mut place = NodePlace::prepare(&mountpoint, "a", None).unwrap();
        place.record().unwrap();
        std::mem::forget(place);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut record = NodeRecord::read(&mountpoint).unwrap().unwrap();
        record.process = ProcessIdentity::of(child.id()).unwrap().unwrap();
        record.write(&mountpoint).unwrap();
        assert_eq!(stop_node(&mountpoint, "b", &nothing_stale, Patience::default()).unwrap(), None);
        assert!(child.try_wait().unwrap().is_none(), "another launch's daemon was hit");
        let ending = stop_node(&mountpoint, "a", &nothing_stale, Patience::default()).unwrap();
        assert_eq!(ending, Some(Ending::Stopped));
        child.wait().unwrap();
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
        assert_eq!(stop_node(&mountpoint, "a", &nothing_stale, Patience::default()).unwrap(), None);
    }
}
