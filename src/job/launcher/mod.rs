//! What starts programs on the nodes of a job: the launchers, and how each of them wants to be told.
//!
//! Used by the launch and the stop of a job over nodes and by the discovery of addresses. Here are only command lines;
//! [`allocation`] finds the nodes, [`execute`] runs what is built here. Every setting of a daemon stands in its command line, or
//! is put there as a word of env(1) where a launcher carries no environment. A host's name never begins with `-`, and what a
//! remote shell would read is quoted.

pub mod allocation;
pub mod execute;
pub mod names;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use allocation::Allocation;

/// The variables that a daemon's environment needs on another node: ours, libfabric's, and where libraries are.
const CARRIED_PREFIXES: [&str; 3] = ["BORNITE_", "FI_", "SLINGSHOT_"];
const CARRIED: [&str; 2] = ["LIBFABRIC_PATH", "LD_LIBRARY_PATH"];

/// Which program starts the tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Slurm's srun(1).
    Srun,
    /// An MPI's mpiexec: PALS, MPICH, Intel MPI or Open MPI.
    Mpiexec,
    /// OpenPBS's `pbs_tmrsh`, one for each node.
    PbsTmrsh,
    /// ClusterShell's clush(1).
    Clush,
    /// ssh(1), one for each node.
    Ssh,
    /// Flux's `flux exec`.
    Flux,
}

impl Kind {
    /// The program, as it is looked for in PATH.
    pub fn program(self) -> &'static str {
        match self {
            Kind::Srun => "srun",
            Kind::Mpiexec => "mpiexec",
            Kind::PbsTmrsh => "pbs_tmrsh",
            Kind::Clush => "clush",
            Kind::Ssh => "ssh",
            Kind::Flux => "flux",
        }
    }

    /// Whether tasks get the environment of the launcher.
    fn carries_environment(self) -> bool {
        matches!(self, Kind::Srun | Kind::Mpiexec | Kind::Flux)
    }
}

/// Whose mpiexec it is: their options for hosts differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mpi {
    /// HPE's PALS, and whatever does not say what it is.
    #[default]
    Pals,
    /// MPICH's hydra and what is made from it.
    Hydra,
    /// Open MPI.
    OpenMpi,
}

impl Mpi {
    /// Reads what `mpiexec --version` prints.
    pub fn of_version(text: &str) -> Mpi {
        let has = |word: &str| text.to_ascii_lowercase().contains(word);
        if has("hydra") || has("intel(r) mpi") {
            Mpi::Hydra
        } else if has("open mpi") || has("openrte") || has("prrte") {
            Mpi::OpenMpi
        } else {
            Mpi::Pals
        }
    }
}

/// How to reach the nodes of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launcher {
    /// The program.
    pub kind: Kind,
    /// For [`Kind::Mpiexec`].
    #[serde(default)]
    pub mpi: Mpi,
    /// The allocation's number, so that it is found from outside of it too.
    pub job_id: Option<String>,
    /// All nodes of the allocation.
    pub allocated: usize,
    /// The hosts of the job, in the order of the book, and the file that lists them, one in a line.
    pub hosts: Vec<String>,
    /// See `hosts`.
    pub node_file: PathBuf,
    /// For each host its number in the allocation, which is what Flux calls it.
    pub ranks: Vec<usize>,
}

/// How a task is to be run.
#[derive(Clone, Debug, Default)]
pub struct TaskOptions<'a> {
    /// The processors of a node that it may use, as `1,2` or `48-51`; all of the allocation if none.
    pub cores: Option<&'a str>,
    /// The environment from which a launcher that carries none is given what matters.
    pub environment: Vec<(OsString, OsString)>,
}

impl Launcher {
    /// How to reach all nodes of an allocation; `node_file` lists them.
    pub fn new(allocation: &Allocation, node_file: PathBuf) -> Launcher {
        Launcher {
            kind: allocation.kind,
            mpi: allocation.mpi,
            job_id: allocation.job_id.clone(),
            allocated: allocation.hosts.len(),
            hosts: allocation.hosts.clone(),
            ranks: (0..allocation.hosts.len()).collect(),
            node_file,
        }
    }

    /// Leaves the hosts at `ranks` of `all`, those of the allocation, in that order.
    pub fn keep(&mut self, all: &[String], ranks: Vec<usize>) {
        self.hosts = ranks.iter().map(|&rank| all[rank].clone()).collect();
        self.ranks = ranks;
    }

    /// The command lines that together run `words` once on every host of the job. The first word of each is a program to be
    /// looked for in PATH.
    pub fn everywhere(&self, words: &[OsString], options: &TaskOptions<'_>) -> Vec<Vec<OsString>> {
        let all: Vec<usize> = (0..self.hosts.len()).collect();
        self.on(&all, words, options)
    }

    /// Whether [`Launcher::everywhere`] takes one command line for all hosts, which may fail for all because of one.
    pub fn is_collective(&self) -> bool {
        !matches!(self.kind, Kind::PbsTmrsh | Kind::Ssh) && self.hosts.len() > 1
    }

    /// The command line that runs `words` once, on host number `host`.
    ///
    /// # Panics
    /// If there is no such host.
    pub fn on_one(&self, host: usize, words: &[OsString], options: &TaskOptions<'_>) -> Vec<OsString> {
        self.on(&[host], words, options).swap_remove(0)
    }

    /// `hosts` are all, or a single one.
    fn on(&self, hosts: &[usize], words: &[OsString], options: &TaskOptions<'_>) -> Vec<Vec<OsString>> {
        let task = self.task(words, options);
        let count = hosts.len().to_string();
        let one = (hosts.len() == 1).then(|| self.hosts[hosts[0]].as_str());
        let mut line = Line::new(self.kind.program());
        match self.kind {
            Kind::Srun => {
                if let Some(job_id) = &self.job_id {
                    line.add(&format!("--jobid={job_id}"));
                }
                // What a batch script inherits (SLURM_NTASKS) beats --ntasks-per-node alone.
                line.all(&[
                    "--overlap",
                    "--mpi=none",
                    "--export=ALL",
                    "-N",
                    &count,
                    "-n",
                    &count,
                    "--ntasks-per-node=1",
                ]);
                // A node that dies or a daemon that ends must not take the others with it.
                line.all(&["--no-kill", "--kill-on-bad-exit=0", "--wait=0", "--input=none"]);
                line.add(&match options.cores.and_then(mask) {
                    Some(mask) => format!("--cpu-bind=mask_cpu:{mask}"),
                    None => "--cpu-bind=none".to_owned(),
                });
                match one {
                    Some(host) => line.all(&["-w", host]),
                    None if hosts.len() == self.allocated => {}
                    // Beyond some 10,000 hosts their names would be too long for one argument; a name with / is a file.
                    None => line.path("-w", &self.node_file),
                }
            }
            Kind::Mpiexec => {
                line.all(&["-n", &count]);
                match (self.mpi, one) {
                    (Mpi::Pals, Some(host)) => line.all(&["--ppn", "1", "--hosts", host]),
                    (Mpi::Pals, None) => {
                        line.all(&["--ppn", "1"]);
                        line.path("--hostfile", &self.node_file);
                    }
                    // A daemon that ends must not take the others with it.
                    (Mpi::Hydra, one) => {
                        line.all(&["-disable-auto-cleanup", "-ppn", "1"]);
                        match one {
                            Some(host) => line.all(&["-hosts", host]),
                            None => line.path("-f", &self.node_file),
                        }
                    }
                    (Mpi::OpenMpi, one) => {
                        line.all(&["--map-by", "ppr:1:node", "--bind-to", "none"]);
                        match one {
                            Some(host) => line.all(&["--host", host]),
                            None => line.path("--hostfile", &self.node_file),
                        }
                    }
                }
            }
            Kind::Clush => {
                // No labels, the worst exit code.
                line.all(&["-N", "-S"]);
                match one {
                    Some(host) => line.all(&["-w", host]),
                    None => line.path("--hostfile", &self.node_file),
                }
                line.0.push(shell_line(&task));
                return vec![line.0];
            }
            Kind::Flux => {
                let ranks: Vec<String> = hosts.iter().map(|&host| self.ranks[host].to_string()).collect();
                line.all(&["exec", "--noinput", "-r", &ranks.join(",")]);
            }
            Kind::PbsTmrsh | Kind::Ssh => {
                let of = |&host: &usize| {
                    let mut line = Line(line.0.clone());
                    if self.kind == Kind::Ssh {
                        line.all(&["-n", "-o", "BatchMode=yes", &self.hosts[host]]);
                        line.0.push(shell_line(&task));
                    } else {
                        // Its words are the arguments of the program that the node starts: there is no shell.
                        line.add(&self.hosts[host]);
                        line.0.extend(task.iter().cloned());
                    }
                    line.0
                };
                return hosts.iter().map(of).collect();
            }
        }
        line.0.extend(task);
        vec![line.0]
    }

    /// The words of a task with what the launcher does not do by itself before them.
    fn task(&self, words: &[OsString], options: &TaskOptions<'_>) -> Vec<OsString> {
        let mut task = Vec::new();
        if !self.kind.carries_environment() {
            let carried: Vec<OsString> = carried(&options.environment).collect();
            if !carried.is_empty() {
                task.push("env".into());
                task.extend(carried);
            }
        }
        if let Some(cores) = options.cores.filter(|_| self.kind != Kind::Srun) {
            task.extend(["taskset", "-c", cores].map(OsString::from));
        }
        task.extend(words.iter().cloned());
        task
    }
}

/// The words of env(1) for what is to be carried.
fn carried(environment: &[(OsString, OsString)]) -> impl Iterator<Item = OsString> {
    let ours = |name: &OsStr| {
        name.to_str().is_some_and(|name| {
            CARRIED.contains(&name) || CARRIED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        })
    };
    environment.iter().filter(move |(name, _)| ours(name)).map(|(name, value)| {
        let mut word = name.clone();
        word.push("=");
        word.push(value);
        word
    })
}

/// A command line that grows.
struct Line(Vec<OsString>);

impl Line {
    fn new(program: &str) -> Line {
        Line(vec![program.into()])
    }

    fn add(&mut self, word: &str) {
        self.0.push(word.into());
    }

    fn all(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(OsString::from));
    }

    fn path(&mut self, flag: &str, path: &Path) {
        self.0.extend([flag.into(), path.into()]);
    }
}

/// The processors of a list such as `1,2,48-51`; none if it is no list.
pub fn parse_cores(list: &str) -> Option<Vec<u32>> {
    const HIGHEST: u32 = 4095;
    let mut cores = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u32>().ok().filter(|number| digits && *number <= HIGHEST)
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        cores.extend(first..=last);
    }
    Some(cores)
}

/// A list of processors as the mask that srun wants: a single task gets all of them.
fn mask(list: &str) -> Option<String> {
    let cores = parse_cores(list)?;
    let mut digits = vec![0u32; *cores.iter().max()? as usize / 4 + 1];
    for core in cores {
        digits[core as usize / 4] |= 1 << (core % 4);
    }
    let text: String = digits.iter().rev().map(|digit| format!("{digit:x}")).collect();
    Some(format!("0x{text}"))
}

/// Words as one line of a POSIX shell.
fn shell_line(words: &[OsString]) -> OsString {
    let mut line = Vec::new();
    for word in words {
        if !line.is_empty() {
            line.push(b' ');
        }
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(byte);
        let bytes = word.as_bytes();
        if !bytes.is_empty() && bytes.iter().all(plain) {
            line.extend_from_slice(bytes);
            continue;
        }
        line.push(b'\'');
        for &byte in bytes {
            match byte {
                b'\'' => line.extend_from_slice(b"'\\''"),
                byte => line.push(byte),
            }
        }
        line.push(b'\'');
    }
    OsString::from_vec(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launcher(kind: Kind) -> Launcher {
        Launcher {
            kind,
            mpi: Mpi::Hydra,
            job_id: Some("77".to_owned()),
            allocated: 3,
            hosts: vec!["n1".to_owned(), "n3".to_owned()],
            node_file: PathBuf::from("/job/logs/node_file.txt"),
            ranks: vec![0, 2],
        }
    }

    fn shown(lines: &[Vec<OsString>]) -> Vec<String> {
        let text = |line: &Vec<OsString>| line.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        lines.iter().map(text).collect()
    }

    fn words() -> Vec<OsString> {
        ["/opt/bornite", "mount", "--target", "/a b", "/m"].map(OsString::from).to_vec()
    }

    fn options() -> TaskOptions<'static> {
        let pair = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        let environment = vec![pair("HOME", "/h"), pair("FI_LOG_LEVEL", "warn"), pair("BORNITE_NET", "it's")];
        TaskOptions { cores: Some("1,2"), environment }
    }

    #[test]
    fn srun_is_told_everything() {
        let all = shown(&launcher(Kind::Srun).everywhere(&words(), &options()));
        assert_eq!(
            all,
            [
                "srun --jobid=77 --overlap --mpi=none --export=ALL -N 2 -n 2 --ntasks-per-node=1 --no-kill --kill-on-bad-exit=0 --wait=0 --input=none \
              --cpu-bind=mask_cpu:0x6 -w /job/logs/node_file.txt /opt/bornite mount --target /a b /m"
            ]
        );
        let whole = Launcher { allocated: 2, ..launcher(Kind::Srun) };
        let all = shown(&whole.everywhere(&words(), &TaskOptions::default()));
        assert!(all[0].contains("--cpu-bind=none /opt/bornite"), "{all:?}");
        let one = shown(&[launcher(Kind::Srun).on_one(1, &words(), &options())]);
        assert!(one[0].contains("-N 1 -n 1 ") && one[0].contains(" -w n3 "), "{one:?}");
    }

    #[test]
    fn each_mpiexec_is_told_in_its_words() {
        let of = |mpi| {
            let launcher = Launcher { mpi, ..launcher(Kind::Mpiexec) };
            let all = launcher.everywhere(&words(), &options());
            let one = launcher.on_one(0, &words(), &TaskOptions::default());
            shown(&[all[0][..all[0].len() - 5].to_vec(), one[..one.len() - 5].to_vec()])
        };
        assert_eq!(
            of(Mpi::Hydra),
            [
                "mpiexec -n 2 -disable-auto-cleanup -ppn 1 -f /job/logs/node_file.txt taskset -c 1,2",
                "mpiexec -n 1 -disable-auto-cleanup -ppn 1 -hosts n1"
            ]
        );
        assert_eq!(
            of(Mpi::Pals),
            [
                "mpiexec -n 2 --ppn 1 --hostfile /job/logs/node_file.txt taskset -c 1,2",
                "mpiexec -n 1 --ppn 1 --hosts n1"
            ]
        );
        assert_eq!(of(Mpi::OpenMpi)[1], "mpiexec -n 1 --map-by ppr:1:node --bind-to none --host n1");
        assert_eq!(Mpi::of_version("HYDRA build details:\n Version: 4.0.2"), Mpi::Hydra);
        assert_eq!(Mpi::of_version("mpiexec (OpenRTE) 4.1.4"), Mpi::OpenMpi);
        assert_eq!(Mpi::of_version("mpiexec version 1.2.12"), Mpi::Pals);
    }

    #[test]
    fn no_environment_travels_by_itself_over_ssh_and_clush() {
        let ssh = shown(&launcher(Kind::Ssh).everywhere(&words(), &options()));
        assert_eq!(
            ssh,
            ["n1", "n3"].map(|host| format!(
                "ssh -n -o BatchMode=yes {host} env FI_LOG_LEVEL=warn 'BORNITE_NET=it'\\''s' taskset -c 1,2 /opt/bornite mount \
                 --target '/a b' /m"
            ))
        );
        let clush = shown(&launcher(Kind::Clush).everywhere(&words(), &TaskOptions::default()));
        assert_eq!(clush, ["clush -N -S --hostfile /job/logs/node_file.txt /opt/bornite mount --target '/a b' /m"]);
        let pbs = launcher(Kind::PbsTmrsh).on_one(1, &words(), &TaskOptions::default());
        assert_eq!(pbs, ["pbs_tmrsh", "n3", "/opt/bornite", "mount", "--target", "/a b", "/m"].map(OsString::from));
        let flux = shown(&launcher(Kind::Flux).everywhere(&words(), &TaskOptions::default()));
        assert_eq!(flux, ["flux exec --noinput -r 0,2 /opt/bornite mount --target /a b /m"]);
    }

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(parse_cores("1,4-6").unwrap(), [1, 4, 5, 6]);
        assert_eq!(mask("48,49,50,51").unwrap(), "0xf000000000000");
        assert_eq!(mask("0").unwrap(), "0x1");
        for bad in ["", "1,", "a", "2-1", "-1", "5000", "1-", "+1"] {
            assert_eq!(parse_cores(bad), None, "{bad:?}");
        }
    }
}
