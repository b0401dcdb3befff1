//! Jobs that nobody has stopped: what they have left is removed where the scheduler says that they are over.
//!
//! A job that is cancelled or that comes to its time limit runs nothing that could remove its files. The next launch and the next
//! stop do. Whatever cannot be proved is left alone: a job is over for certain where Slurm, asked for all jobs of this user on the
//! cluster on which it was launched, does not name it; then all its processes are dead, on every node. Numbers of jobs say nothing
//! beyond their cluster, and homes are shared by several.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::record::ClusterRecord;
use super::stop::{self, ClusterStopped};
use crate::job::launcher::execute::{Limit, run_one};
use crate::job::launcher::{Kind, allocation};

/// How long the scheduler may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Directories that are looked at, beside one of a job.
const LOOKED_AT_MAX: usize = 10_000;

/// The jobs of this user that are not over.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    cluster: String,
    jobs: Vec<String>,
}

/// The cluster of the Slurm job that this process runs in.
pub(super) fn own_cluster() -> Option<String> {
    std::env::var("SLURM_CLUSTER_NAME").ok().filter(|name| !name.is_empty())
}

/// Whether the job of a record, which has been read before, is over, so that none of its processes lives.
pub(super) fn is_gone(record: &ClusterRecord) -> bool {
    may_be_gone(record) && ask().is_some_and(|known| known.lacks(record))
}

/// Whether the scheduler is to be asked.
fn may_be_gone(record: &ClusterRecord) -> bool {
    let own = allocation::job_id(&|name| std::env::var_os(name));
    let is_slurms = record.launcher.kind == Kind::Srun && record.cluster.is_some();
    is_slurms && record.launcher.job_id.as_ref().is_some_and(|job| own.as_ref() != Some(job))
}

impl Known {
    fn lacks(&self, record: &ClusterRecord) -> bool {
        let ClusterRecord { cluster: Some(cluster), .. } = record else { return false };
        let Some(job) = &record.launcher.job_id else { return false };
        *cluster == self.cluster && !self.jobs.contains(job)
    }

    /// Of what `squeue` has printed: the jobs' numbers, one in a line. None where there is anything else, so that it proves
    /// nothing.
    fn of(cluster: String, said: &str) -> Option<Known> {
        let jobs: Vec<String> =
            said.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
        let is_number = |job: &String| job.bytes().all(|byte| byte.is_ascii_digit());
        jobs.iter().all(is_number).then_some(Known { cluster, jobs })
    }
}

/// Asks Slurm; none where it does not answer.
fn ask() -> Option<Known> {
    let run = |words: &[&str]| {
        let ran = run_one(words.iter().map(OsString::from).collect(), Limit::of(ASK_TIMEOUT)).ok()?;
        ran.is_ok().then_some(ran.stdout)
    };
    let cluster = match own_cluster() {
        Some(name) => name,
        None => cluster_of(&run(&["scontrol", "show", "config"])?)?,
    };
    let user = rustix::process::getuid().as_raw().to_string();
    // %A is the number that SLURM_JOB_ID has, also in arrays; jobs that are ending still count.
    Known::of(cluster, &run(&["squeue", "--noheader", "--user", &user, "--format", "%A"])?)
}

/// The name in the configuration that `scontrol` prints (slurm.conf(5), ClusterName).
fn cluster_of(config: &str) -> Option<String> {
    let value = config.lines().find_map(|line| line.trim().strip_prefix("ClusterName")?.trim().strip_prefix('='))?;
    Some(value.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Removes what jobs have left in the directories of `base` that are named by their numbers, where they are over for certain. The
/// directories, each with what it still holds. What cannot be read or removed is left to its own stop.
pub fn clear_gone(base: &Path) -> Vec<(PathBuf, ClusterStopped)> {
    clear_where(base, ask)
}

fn clear_where(base: &Path, ask: impl FnOnce() -> Option<Known>) -> Vec<(PathBuf, ClusterStopped)> {
    let entries = std::fs::read_dir(base).into_iter().flatten().take(LOOKED_AT_MAX).flatten();
    let records = entries.filter_map(|entry| {
        let record = ClusterRecord::read(&entry.path()).ok().flatten()?;
        let is_its_own = record.launcher.job_id.as_ref().is_some_and(|job| entry.file_name() == job.as_str());
        (is_its_own && record.job_dir == entry.path() && may_be_gone(&record)).then_some(record)
    });
    // All of them are read before Slurm is asked: a job that begins after that is not among them.
    let records: Vec<ClusterRecord> = records.collect();
    let Some(known) = Some(&records).filter(|records| !records.is_empty()).and_then(|_| ask()) else {
        return Vec::new();
    };
    let gone = records.into_iter().filter(|record| known.lacks(record));
    gone.filter_map(|record| stop::clear_files(&record).ok().map(|left| (record.job_dir, left))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::launcher::{Launcher, Mpi};

    fn record(dir: &Path, job: Option<&str>, cluster: Option<&str>, kind: Kind) -> ClusterRecord {
        let launcher = Launcher {
            kind,
            mpi: Mpi::default(),
            job_id: job.map(str::to_owned),
            allocated: 1,
            hosts: vec!["n1".to_owned()],
            node_file: dir.join("logs/node_file.txt"),
            ranks: vec![0],
        };
        let mut record = ClusterRecord::new("l", "n1", Path::new("/m"), dir, launcher, Path::new("/b"));
        record.cluster = cluster.map(str::to_owned);
        record
    }

    #[test]
    fn only_what_slurm_of_the_same_cluster_lacks_is_gone() {
        let known = Known::of("blue".to_owned(), "  12\n9\n").unwrap();
        let dir = Path::new("/j");
        let gone = |job, cluster, kind| {
            let record = record(dir, job, cluster, kind);
            may_be_gone(&record) && known.lacks(&record)
        };
        assert!(gone(Some("7"), Some("blue"), Kind::Srun));
        assert!(!gone(Some("12"), Some("blue"), Kind::Srun), "it runs");
        assert!(!gone(Some("7"), Some("green"), Kind::Srun), "of another cluster");
        assert!(!gone(Some("7"), None, Kind::Srun), "of an unknown one");
        assert!(!gone(None, Some("blue"), Kind::Srun));
        assert!(!gone(Some("7"), Some("blue"), Kind::Ssh), "its daemons are not Slurm's");
        assert_eq!(Known::of("blue".to_owned(), "12\nslurm_load_jobs error\n"), None);
        assert_eq!(cluster_of("CliFilterPlugins = n/a\nClusterName             = blue \n").as_deref(), Some("blue"));
        assert_eq!(cluster_of("ClusterName =\n"), None);
    }

    #[test]
    fn what_a_dead_job_left_goes_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let make = |name: &str, job: &str| {
            let dir = temp.path().join(name);
            std::fs::create_dir_all(dir.join("logs")).unwrap();
            let mut record = record(&dir, Some(job), Some("blue"), Kind::Srun);
            record.made = vec![dir.clone(), dir.join("logs")];
            for file in ["secret", "copper_address_book.txt", "launcher.log"] {
                std::fs::write(dir.join("logs").join(file), "").unwrap();
                record.files.push(dir.join("logs").join(file));
            }
            assert!(record.create().unwrap());
            dir
        };
        let (dead, spoke, alive, moved) = (make("7", "7"), make("8", "8"), make("12", "12"), make("mine", "9"));
        std::fs::write(spoke.join("logs/n1-5.log"), "a line\n").unwrap();
        std::fs::write(spoke.join("logs/theirs"), "").unwrap();
        std::fs::create_dir(temp.path().join("13")).unwrap();
        assert!(clear_where(temp.path(), || None).is_empty(), "nobody answers");
        assert!(ClusterRecord::path(&dead).exists());
        let mut cleared = clear_where(temp.path(), || Known::of("blue".to_owned(), "12\n"));
        cleared.sort_by(|one, other| one.0.cmp(&other.0));
        let dirs: Vec<&PathBuf> = cleared.iter().map(|(dir, _)| dir).collect();
        assert_eq!(dirs, [&dead, &spoke]);
        assert_eq!(cleared[1].1.kept, [spoke.join("logs/n1-5.log")]);
        assert!(!dead.exists(), "all of it was the launch's");
        let left = std::fs::read_dir(spoke.join("logs")).unwrap().count();
        assert!(left == 2 && !ClusterRecord::path(&spoke).exists(), "{left}");
        for dir in [alive, moved] {
            assert!(dir.join("logs/secret").exists() && ClusterRecord::path(&dir).exists(), "{}", dir.display());
        }
        assert!(temp.path().join("13").exists());
    }
}
