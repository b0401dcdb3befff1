//! Which nodes a job has, and what starts programs on them.
//!
//! Used by the launch and the discovery. The scheduler is known by the variables that it sets in a job: Slurm by `SLURM_JOB_ID`,
//! PBS by `PBS_JOBID`, Flux by `FLUX_JOB_ID`. Hosts that the user names beat the scheduler's.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::execute::{Limit, Ran, find_program, run_one};
use super::{Kind, Mpi};
use crate::job::book::{BookError, check_host, read_nodefile};

/// How long a scheduler may take to name its nodes.
const ASK_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there are no nodes. Each text names the next step.
#[derive(Debug, thiserror::Error)]
pub enum AllocationError {
    /// There is no scheduler and nobody named hosts.
    #[error(
        "this is no job: none of SLURM_JOB_ID, PBS_JOBID and FLUX_JOB_ID is set; run this inside of a job, name the hosts \
             with --nodefile FILE or --hosts LIST, or use --local"
    )]
    None,
    /// The allocation or the list is empty.
    #[error("{what} names no host; {next}")]
    Empty {
        /// The list.
        what: String,
        /// What to do.
        next: &'static str,
    },
    /// A host's name is none.
    #[error("{what}: {why}; a host is named by letters, digits, `-`, `.` and `_`")]
    BadHost {
        /// The list.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file of the hosts cannot be used.
    #[error(transparent)]
    NodeFile(#[from] BookError),
    /// PBS names no file.
    #[error("PBS_JOBID is set and PBS_NODEFILE is not: name the hosts with --nodefile FILE or --hosts LIST")]
    NoPbsFile,
    /// PBS has none of the launchers.
    #[error(
        "none of mpiexec, pbs_tmrsh and clush is in PATH; load the module of one of them, or name another --launcher"
    )]
    NoPbsLauncher,
    /// A program that is asked for the hosts fails.
    #[error("cannot learn the hosts of the job: {what}: {why}")]
    Ask {
        /// The command.
        what: String,
        /// What it said.
        why: String,
    },
    /// The launcher is not here.
    #[error("{program} is not in PATH, and --launcher {program} needs it; load its module, or name another --launcher")]
    NoLauncher {
        /// The program.
        program: &'static str,
    },
}

/// The option that lists hosts.
const HOSTS_OPTION: &str = "--hosts";

impl AllocationError {
    /// Whether the command line is wrong by itself, whatever machine it is given on.
    pub fn is_usage(&self) -> bool {
        match self {
            AllocationError::None => true,
            AllocationError::Empty { what, .. } | AllocationError::BadHost { what, .. } => what == HOSTS_OPTION,
            _ => false,
        }
    }
}

/// What the user has said about the nodes.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The launcher; by the scheduler if none.
    pub kind: Option<Kind>,
    /// Host names, separated by commas or blanks.
    pub hosts: Option<String>,
    /// A file of host names.
    pub node_file: Option<PathBuf>,
}

/// The nodes of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// What starts programs there.
    pub kind: Kind,
    /// For [`Kind::Mpiexec`].
    pub mpi: Mpi,
    /// The scheduler's number of the job, `PBS_JOBID` up to its first dot; none without a scheduler.
    pub job_id: Option<String>,
    /// The hosts, each once, in the scheduler's order.
    pub hosts: Vec<String>,
}

/// A job of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheduler {
    Slurm,
    Pbs,
    Flux,
}

type Environment<'a> = dyn Fn(&str) -> Option<OsString> + 'a;

/// The scheduler that this process runs under, with the job's number.
fn scheduler(environment: &Environment<'_>) -> Option<(Scheduler, String)> {
    let variables =
        [(Scheduler::Slurm, "SLURM_JOB_ID"), (Scheduler::Pbs, "PBS_JOBID"), (Scheduler::Flux, "FLUX_JOB_ID")];
    variables.into_iter().find_map(|(scheduler, variable)| {
        let value = environment(variable).filter(|value| !value.is_empty())?.to_string_lossy().into_owned();
        let id = match scheduler {
            Scheduler::Pbs => value.split('.').next().unwrap_or_default().to_owned(),
            Scheduler::Slurm | Scheduler::Flux => value,
        };
        Some((scheduler, id))
    })
}

/// The number of the job that this process runs in; none outside of one.
pub fn job_id(environment: &Environment<'_>) -> Option<String> {
    scheduler(environment).map(|(_, id)| id)
}

/// Finds the nodes of the job that this process runs in, or those that the user names.
///
/// # Errors
/// As [`AllocationError`] says.
pub fn find(wanted: &Wanted, environment: &Environment<'_>) -> Result<Allocation, AllocationError> {
    let scheduler = scheduler(environment);
    let named = wanted.hosts.is_some() || wanted.node_file.is_some();
    let kind = match (wanted.kind, &scheduler) {
        (Some(kind), _) => kind,
        (None, Some((Scheduler::Slurm, _))) => Kind::Srun,
        (None, Some((Scheduler::Flux, _))) => Kind::Flux,
        (None, Some((Scheduler::Pbs, _))) => [Kind::Mpiexec, Kind::PbsTmrsh, Kind::Clush]
            .into_iter()
            .find(|kind| find_program(kind.program()).is_some())
            .ok_or(AllocationError::NoPbsLauncher)?,
        (None, None) if named => Kind::Ssh,
        (None, None) => return Err(AllocationError::None),
    };
    let hosts = match (&wanted.hosts, &wanted.node_file, &scheduler) {
        (Some(list), _, _) => {
            let words = list.split([',', ' ', '\t', '\n']).map(str::trim).filter(|word| !word.is_empty());
            checked(HOSTS_OPTION, words, "name one host at least")?
        }
        (None, Some(file), _) => of_file(file)?,
        (None, None, Some((Scheduler::Slurm, _))) => {
            let list = environment("SLURM_JOB_NODELIST").unwrap_or_default();
            if list.is_empty() {
                let next = "name the hosts with --nodefile FILE or --hosts LIST";
                return Err(AllocationError::Empty { what: "SLURM_JOB_NODELIST".to_owned(), next });
            }
            let words = ["scontrol".into(), "show".into(), "hostnames".into(), list];
            let said = ask(&words)?.stdout;
            checked(
                "scontrol show hostnames",
                said.lines().map(str::trim).filter(|l| !l.is_empty()),
                "is the job over?",
            )?
        }
        (None, None, Some((Scheduler::Pbs, _))) => {
            let file = environment("PBS_NODEFILE").filter(|file| !file.is_empty()).ok_or(AllocationError::NoPbsFile)?;
            of_file(Path::new(&file))?
        }
        (None, None, Some((Scheduler::Flux, _))) => {
            let said = ask(&["flux", "hostlist", "--expand", "local"].map(OsString::from))?.stdout;
            checked("flux hostlist", said.split([',', ' ', '\n']).filter(|word| !word.is_empty()), "is the job over?")?
        }
        (None, None, None) => return Err(AllocationError::None),
    };
    if find_program(kind.program()).is_none() {
        return Err(AllocationError::NoLauncher { program: kind.program() });
    }
    let mpi = match kind {
        Kind::Mpiexec => ask(&["mpiexec", "--version"].map(OsString::from))
            .map_or(Mpi::default(), |ran| Mpi::of_version(&format!("{}{}", ran.stdout, ran.stderr))),
        _ => Mpi::default(),
    };
    Ok(Allocation { kind, mpi, job_id: scheduler.map(|(_, id)| id), hosts })
}

/// The hosts of a node file, each once: PBS has a line for each rank.
fn of_file(file: &Path) -> Result<Vec<String>, AllocationError> {
    let hosts = read_nodefile(file)?;
    checked(&format!("node file {}", file.display()), hosts.iter().map(String::as_str), "list one host at least")
}

fn checked<'a>(
    what: &str,
    words: impl Iterator<Item = &'a str>,
    next: &'static str,
) -> Result<Vec<String>, AllocationError> {
    let (mut hosts, mut seen) = (Vec::new(), hashbrown::HashSet::new());
    for word in words {
        // A launcher would take it for an option.
        let checked = if word.starts_with('-') { Err(format!("{word:?} begins with `-`")) } else { check_host(word) };
        checked.map_err(|why| AllocationError::BadHost { what: what.to_owned(), why })?;
        if seen.insert(word.to_ascii_lowercase()) {
            hosts.push(word.to_owned());
        }
    }
    if hosts.is_empty() {
        return Err(AllocationError::Empty { what: what.to_owned(), next });
    }
    Ok(hosts)
}

/// Runs a program that must succeed.
fn ask(words: &[OsString]) -> Result<Ran, AllocationError> {
    let what = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    match run_one(words.to_vec(), Limit::of(ASK_TIMEOUT)) {
        Ok(ran) if ran.is_ok() => Ok(ran),
        Ok(ran) => Err(AllocationError::Ask { what, why: ran.failure() }),
        Err(error) => Err(AllocationError::Ask { what, why: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<'a>(variables: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        move |name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
    }

    fn wanted(kind: Kind) -> Wanted {
        Wanted { kind: Some(kind), ..Wanted::default() }
    }

    #[test]
    fn without_a_job_the_next_steps_are_told() {
        let text = find(&Wanted::default(), &with(&[])).unwrap_err().to_string();
        assert!(text.starts_with("this is no job: ") && text.ends_with("or use --local"), "{text}");
    }

    #[test]
    fn the_node_file_of_pbs_counts_hosts_once() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("nodes");
        std::fs::write(&file, "x1.site.gov\r\nx1.site.gov\n\n# comment\nx2.site.gov\nX1.site.gov").unwrap();
        let name = file.to_str().unwrap();
        let environment = [("PBS_JOBID", "123.aurora-pbs.site.gov"), ("PBS_NODEFILE", name)];
        // Any program that is here: it is not run.
        let found = find(&Wanted { node_file: None, ..wanted(Kind::Mpiexec) }, &with(&environment));
        match found {
            Ok(found) => {
                assert_eq!(found.hosts, ["x1.site.gov", "x2.site.gov"]);
                assert_eq!(found.job_id.as_deref(), Some("123"));
            }
            // Where there is no MPI.
            Err(error) => assert!(error.to_string().contains("mpiexec is not in PATH"), "{error}"),
        }
        assert_eq!(of_file(&file).unwrap(), ["x1.site.gov", "x2.site.gov"]);
        std::fs::write(&file, "\n\n").unwrap();
        let text = of_file(&file).unwrap_err().to_string();
        assert!(text.contains("names no host"), "{text}");
        let text = of_file(&temp.path().join("none")).unwrap_err().to_string();
        assert!(text.contains("No such file"), "{text}");
        let text = find(&wanted(Kind::Ssh), &with(&environment[..1])).unwrap_err().to_string();
        assert!(text.starts_with("PBS_JOBID is set and PBS_NODEFILE is not"), "{text}");
    }

    #[test]
    fn hosts_that_a_launcher_would_take_for_options_are_refused() {
        for (list, why) in
            [("-oProxyCommand=x", "begins with `-`"), ("a;b", "character ';'"), ("n[1-4]", "character '['")]
        {
            let wanted = Wanted { hosts: Some(list.to_owned()), ..Wanted::default() };
            let text = find(&wanted, &with(&[])).unwrap_err().to_string();
            assert!(text.contains(why), "{list}: {text}");
        }
        let wanted = Wanted { hosts: Some(" , ".to_owned()), ..Wanted::default() };
        assert!(matches!(find(&wanted, &with(&[])), Err(AllocationError::Empty { .. })));
    }

    #[test]
    fn schedulers_are_known_by_their_variables() {
        assert_eq!(job_id(&with(&[("SLURM_JOB_ID", "7")])).as_deref(), Some("7"));
        assert_eq!(job_id(&with(&[("PBS_JOBID", "7.x")])).as_deref(), Some("7"));
        assert_eq!(job_id(&with(&[("FLUX_JOB_ID", "f2")])).as_deref(), Some("f2"));
        assert_eq!(job_id(&with(&[("SLURM_JOB_ID", "")])), None);
        let text = find(&Wanted::default(), &with(&[("SLURM_JOB_ID", "7")])).unwrap_err().to_string();
        assert!(text.starts_with("SLURM_JOB_NODELIST names no host"), "{text}");
    }
}
