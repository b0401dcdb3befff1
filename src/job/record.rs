//! The record of a job on this machine: `DIR/.bornite/job.json`.
//!
//! Launch writes it before it makes or starts anything else and again after every step, so that whatever a launcher
//! leaves when it is killed can be stopped. Stop reads it, believes it only if this user owns it, and removes it last. One launch
//! or stop at a time works on a job: it holds a lock on the `.bornite` directory.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::process::ProcessIdentity;

/// Bytes of a record that are read.
const RECORD_BYTES_MAX: u64 = 64 << 20;

const STATE_DIR: &str = ".bornite";
const RECORD_FILE: &str = "job.json";
/// Raised when a field changes its meaning.
const FORMAT: u32 = 1;
const LOCK_RETRY: Duration = Duration::from_millis(25);

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A system call failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The record, or its directory, is not this user's alone.
    #[error("{} is not trusted: {why}; choose another directory with --mount", path.display())]
    NotOurs {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The record cannot be read by this version.
    #[error("{} is not a job record of this version: {why}; stop the job with the version that launched it, or remove the file",
        path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another launch or stop works on this job.
    #[error("another launch or stop is at work in {}; try again when it has ended", dir.display())]
    Busy {
        /// The job's mount directory.
        dir: PathBuf,
    },
}

impl RecordError {
    /// [`RecordError::Unreadable`]. What is wrong may repeat what stands in the file: control characters are escaped.
    pub(super) fn unreadable(path: &Path, why: &str) -> RecordError {
        let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
        RecordError::Unreadable { path: path.to_path_buf(), why: why.chars().map(escaped).collect() }
    }
}

/// One daemon of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobNode {
    /// The node's name in the address book.
    pub name: String,
    /// Where it is mounted, absolute.
    pub mountpoint: PathBuf,
    /// Its fabric address.
    pub address: String,
    /// Its log, absolute.
    pub log: PathBuf,
    /// Its process; none before it is started.
    pub process: Option<ProcessIdentity>,
}

/// A job on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    format: u32,
    /// The directory that holds the mount points, absolute.
    pub mount_dir: PathBuf,
    /// Where book and logs are, absolute.
    pub job_dir: PathBuf,
    /// The address book, absolute.
    pub book: PathBuf,
    /// Directories that the launch has made, each after the one that holds it.
    pub made: Vec<PathBuf>,
    /// The daemons in the order of the book.
    pub nodes: Vec<JobNode>,
}

impl JobRecord {
    /// A record without nodes.
    pub fn new(mount_dir: &Path, job_dir: &Path, book: &Path, made: Vec<PathBuf>) -> JobRecord {
        JobRecord {
            format: FORMAT,
            mount_dir: mount_dir.to_path_buf(),
            job_dir: job_dir.to_path_buf(),
            book: book.to_path_buf(),
            made,
            nodes: Vec::new(),
        }
    }

    /// The record of the job in `mount_dir`; `None` if there is none.
    ///
    /// # Errors
    /// As [`RecordError`] says.
    pub fn read(mount_dir: &Path) -> Result<Option<JobRecord>, RecordError> {
        let path = state_dir(mount_dir).join(RECORD_FILE);
        read_own(&path)?.map(|text| JobRecord::parse(&text, &path)).transpose()
    }

    /// Parses the text of a record. `path` is for messages.
    ///
    /// # Errors
    /// [`RecordError::Unreadable`].
    pub fn parse(text: &str, path: &Path) -> Result<JobRecord, RecordError> {
        let record: JobRecord =
            serde_json::from_str(text).map_err(|error| RecordError::unreadable(path, &error.to_string()))?;
        if record.format != FORMAT {
            let why = format!("its format is {}, known is {FORMAT}", record.format);
            return Err(RecordError::unreadable(path, &why));
        }
        Ok(record)
    }

    /// The text of this record, which [`JobRecord::parse`] reads.
    ///
    /// # Panics
    /// Where a path is not UTF-8: JSON cannot hold it, and a launch refuses it.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a record holds only strings and numbers")
    }

    /// Writes the record in one step.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn write(&self) -> Result<(), RecordError> {
        let path = state_dir(&self.mount_dir).join(RECORD_FILE);
        let temporary = path.with_extension("json.new");
        let text = self.to_json();
        std::fs::File::create(&temporary)
            .and_then(|mut file| writeln!(file, "{text}"))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|source| RecordError::Io { what: "write", path, source })
    }

    /// The file of this record.
    pub fn path(&self) -> PathBuf {
        state_dir(&self.mount_dir).join(RECORD_FILE)
    }
}

/// The text of a record, which must be this user's own file; `None` if there is none.
///
/// # Errors
/// [`RecordError::Io`], [`RecordError::NotOurs`].
pub(super) fn read_own(path: &Path) -> Result<Option<String>, RecordError> {
    let failed = |what, source| RecordError::Io { what, path: path.to_path_buf(), source };
    // A pipe in its place must not hold anybody up.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(failed("open", error.into())),
    };
    let stat = rustix::fs::fstat(&file).map_err(|error| failed("read", error.into()))?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(RecordError::NotOurs { path: path.to_path_buf(), why: "it belongs to another user" });
    }
    let mut text = String::new();
    let read = std::fs::File::from(file).take(RECORD_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| failed("read", error))?;
    Ok(Some(text))
}

/// Where the record of the job in `mount_dir` is, and its book and logs unless another place is named.
pub fn state_dir(mount_dir: &Path) -> PathBuf {
    mount_dir.join(STATE_DIR)
}

/// The right to change a job. Freed when dropped.
#[derive(Debug)]
pub struct JobLock {
    _dir: OwnedFd,
}

impl JobLock {
    /// Locks the job in `mount_dir`, whose state directory must exist, be this user's and be closed to others.
    /// `None` if it does not exist.
    ///
    /// # Errors
    /// [`RecordError::Busy`] if another process has it until the deadline; the others as they say.
    pub fn take(mount_dir: &Path, until: Instant) -> Result<Option<JobLock>, RecordError> {
        let path = state_dir(mount_dir);
        let failed = |error: Errno| RecordError::Io { what: "lock", path: path.clone(), source: error.into() };
        loop {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = match rustix::fs::open(&path, flags, Mode::empty()) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    return Err(RecordError::NotOurs { path, why: "it is not a directory" });
                }
                Err(error) => return Err(failed(error)),
            };
            let stat = rustix::fs::fstat(&dir).map_err(failed)?;
            if stat.st_uid != rustix::process::geteuid().as_raw() {
                return Err(RecordError::NotOurs { path, why: "it belongs to another user" });
            }
            if stat.st_mode & 0o022 != 0 {
                return Err(RecordError::NotOurs { path, why: "others may write to it" });
            }
            match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
                // A stop may have removed the directory between the open and the lock.
                Ok(()) if rustix::fs::fstat(&dir).map_err(failed)?.st_nlink > 0 => {
                    return Ok(Some(JobLock { _dir: dir }));
                }
                Ok(()) | Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
            if Instant::now() >= until {
                return Err(RecordError::Busy { dir: mount_dir.to_path_buf() });
            }
            std::thread::sleep(LOCK_RETRY);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn job(dir: &Path) -> JobRecord {
        std::fs::create_dir(state_dir(dir)).unwrap();
        JobRecord::new(dir, &state_dir(dir), &state_dir(dir).join("book"), vec![state_dir(dir)])
    }

    #[test]
    fn a_record_round_trips() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(JobRecord::read(temp.path()).unwrap(), None);
        let mut record = job(temp.path());
        record.nodes.push(JobNode {
            name: "node0".to_owned(),
            mountpoint: temp.path().join("node0"),
            address: "ofi+tcp://127.0.0.1:1".to_owned(),
            log: temp.path().join("log"),
            process: Some(ProcessIdentity { pid: 1, start_ticks: 2, boot_id: "b".to_owned() }),
        });
        record.write().unwrap();
        assert_eq!(JobRecord::read(temp.path()).unwrap(), Some(record));
    }

    #[test]
    fn records_that_cannot_be_understood_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let record = job(temp.path());
        std::fs::write(record.path(), "{}").unwrap();
        let text = JobRecord::read(temp.path()).unwrap_err().to_string();
        assert!(text.contains("is not a job record of this version: missing field"), "{text}");
        JobRecord { format: 9, ..record }.write().unwrap();
        let text = JobRecord::read(temp.path()).unwrap_err().to_string();
        assert!(text.contains("its format is 9, known is 1"), "{text}");
    }

    #[test]
    fn one_holder_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        assert!(JobLock::take(temp.path(), Instant::now()).unwrap().is_none());
        job(temp.path());
        let lock = JobLock::take(temp.path(), Instant::now()).unwrap().unwrap();
        let error = JobLock::take(temp.path(), Instant::now() + Duration::from_millis(40)).unwrap_err();
        assert!(matches!(error, RecordError::Busy { .. }), "{error}");
        drop(lock);
        JobLock::take(temp.path(), Instant::now()).unwrap().unwrap();
    }

    #[test]
    fn a_directory_that_others_may_change_is_not_trusted() {
        let temp = tempfile::tempdir().unwrap();
        job(temp.path());
        std::fs::set_permissions(state_dir(temp.path()), std::fs::Permissions::from_mode(0o777)).unwrap();
        let text = JobLock::take(temp.path(), Instant::now()).unwrap_err().to_string();
        assert!(text.contains("others may write to it"), "{text}");
    }
}
