//! The record of a job over nodes: `JOBDIR/job.json`.
//!
//! Launch makes it before anything else, by a file that must not be there yet, so that two launches cannot share a directory (a
//! lock would not hold on every shared filesystem). It is written again after every step; stop removes it last.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::job::launcher::Launcher;
use crate::job::process::ProcessIdentity;
use crate::job::record::{RecordError, read_own};

const RECORD_FILE: &str = "job.json";
/// Raised when a field changes its meaning.
const FORMAT: u32 = 1;

/// A job over nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    format: u32,
    /// What tells this launch from every other one.
    pub launch: String,
    /// The host on which the launch ran, and the launchers run.
    pub host: String,
    /// Where the job is mounted on every node, absolute.
    pub mountpoint: PathBuf,
    /// Where book, secret and logs are, absolute.
    pub job_dir: PathBuf,
    /// How the nodes are reached; its hosts are the nodes in the order of the book.
    pub launcher: Launcher,
    /// The launchers in the background.
    pub background: Vec<ProcessIdentity>,
    /// Files that the launch has made.
    pub files: Vec<PathBuf>,
    /// Those of them that outlive the job.
    #[serde(default)]
    pub kept: Vec<PathBuf>,
    /// The Slurm cluster on which the job was launched.
    #[serde(default)]
    pub cluster: Option<String>,
    /// Directories that the launch has made, each after the one that holds it.
    pub made: Vec<PathBuf>,
    /// The program that the nodes run.
    pub program: PathBuf,
}

impl ClusterRecord {
    /// A record of a launch that has made nothing yet.
    pub fn new(
        launch: &str,
        host: &str,
        mountpoint: &Path,
        job_dir: &Path,
        launcher: Launcher,
        program: &Path,
    ) -> Self {
        ClusterRecord {
            format: FORMAT,
            launch: launch.to_owned(),
            host: host.to_owned(),
            mountpoint: mountpoint.to_path_buf(),
            job_dir: job_dir.to_path_buf(),
            launcher,
            background: Vec::new(),
            files: Vec::new(),
            kept: Vec::new(),
            cluster: None,
            made: Vec::new(),
            program: program.to_path_buf(),
        }
    }

    /// The file of the record in `job_dir`.
    pub fn path(job_dir: &Path) -> PathBuf {
        job_dir.join(RECORD_FILE)
    }

    /// The record in `job_dir`; none if there is none.
    ///
    /// # Errors
    /// As [`RecordError`] says.
    pub fn read(job_dir: &Path) -> Result<Option<ClusterRecord>, RecordError> {
        let path = ClusterRecord::path(job_dir);
        read_own(&path)?.map(|text| ClusterRecord::parse(&text, &path)).transpose()
    }

    /// Parses the text of a record. `path` is for messages.
    ///
    /// # Errors
    /// [`RecordError::Unreadable`].
    pub fn parse(text: &str, path: &Path) -> Result<ClusterRecord, RecordError> {
        let record: ClusterRecord =
            serde_json::from_str(text).map_err(|error| RecordError::unreadable(path, &error.to_string()))?;
        if record.format != FORMAT {
            let why = format!("its format is {}, known is {FORMAT}", record.format);
            return Err(RecordError::unreadable(path, &why));
        }
        Ok(record)
    }

    /// Makes the file of the record; false if there is one already.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn create(&self) -> Result<bool, RecordError> {
        let path = ClusterRecord::path(&self.job_dir);
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        match file.and_then(|mut file| writeln!(file, "{}", self.to_json())) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(RecordError::Io { what: "make", path, source }),
        }
    }

    /// Writes the record in one step.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn write(&self) -> Result<(), RecordError> {
        let path = ClusterRecord::path(&self.job_dir);
        let temporary = path.with_extension("json.new");
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| writeln!(file, "{}", self.to_json()))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|source| RecordError::Io { what: "write", path, source })
    }

    /// The text of this record, which [`ClusterRecord::parse`] reads.
    ///
    /// # Panics
    /// Where a path is not UTF-8: JSON cannot hold it, and a launch refuses it.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a record holds only strings, numbers and paths that are UTF-8")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::launcher::{Kind, Mpi};

    #[test]
    fn a_record_round_trips_and_is_made_once() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(ClusterRecord::read(temp.path()).unwrap(), None);
        let launcher = Launcher {
            kind: Kind::Srun,
            mpi: Mpi::default(),
            job_id: Some("7".to_owned()),
            allocated: 2,
            hosts: vec!["n1".to_owned(), "n2".to_owned()],
            node_file: temp.path().join("node_file.txt"),
            ranks: vec![0, 1],
        };
        let mut record = ClusterRecord::new("l", "n1", Path::new("/m"), temp.path(), launcher, Path::new("/b"));
        assert!(record.create().unwrap());
        assert!(!record.create().unwrap(), "made twice");
        record.files.push(temp.path().join("book"));
        record.write().unwrap();
        assert_eq!(ClusterRecord::read(temp.path()).unwrap(), Some(record));
        let record = ClusterRecord::read(temp.path()).unwrap().unwrap();
        let other = record.to_json().replace("\"srun\"", "\"s\\run\"");
        let text = ClusterRecord::parse(&other, Path::new("job.json")).unwrap_err().to_string();
        assert!(text.contains("unknown variant `s\\run`") && !text.contains('\r'), "{text}");
        std::fs::write(ClusterRecord::path(temp.path()), "{}").unwrap();
        let text = ClusterRecord::read(temp.path()).unwrap_err().to_string();
        assert!(text.contains("is not a job record of this version: missing field"), "{text}");
    }
}
