//! `bornite book`: address books of jobs, out of a facility's book or out of what the hosts say, and whether a book is right.

mod check;
mod run_here;

use std::cell::Cell;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use crossbeam::channel::Receiver;

use super::args::LauncherName;
use super::args::books::{BookCommand, BookDiscoverArgs, BookFacilityArgs};
use super::launch::{code_of_signal, launcher_kind};
use super::{UsageError, output, signals};
use crate::job::book::{
    self, BookEntry, BookError, DiscoverError, Discovery, JobBook, RunEverywhere, facility_checked, read_nodefile,
};
use crate::job::hsn::Column;
use crate::job::launcher::allocation::{self, Allocation, AllocationError, Wanted};
use crate::job::launcher::execute::{Limit, run_everywhere};
use crate::job::write_book;
use crate::runtime::fabric::Address;

/// Where PBS names the hosts of a job.
const PBS_NODEFILE: &str = "PBS_NODEFILE";

/// How long all hosts together may take for an answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(180);

/// Runs one of the commands.
///
/// # Errors
/// As their texts say.
pub(super) fn book(command: &BookCommand) -> anyhow::Result<ExitCode> {
    match command {
        BookCommand::Facility(args) => facility(args),
        BookCommand::Discover(args) => discover(args),
        BookCommand::Check(args) => check::check(args),
    }
}

/// Whether the fabric knows an address.
pub(super) fn check_address(address: &str) -> Result<(), String> {
    address.parse::<Address>().map(drop).map_err(|error| error.to_string())
}

fn facility(args: &BookFacilityArgs) -> anyhow::Result<ExitCode> {
    let hosts = hosts_of_job(args.nodefile.as_deref())?;
    let picked = facility_checked(&args.book, &hosts, args.allow_missing, &check_address)?;
    tell_missing(&picked, &args.book.display().to_string());
    match &args.output {
        Some(file) => {
            write_book(file, &picked.entries).map_err(|error| match error {
                BookError::Io { file, source } => {
                    anyhow!("cannot write {}: {source}; choose another file with --output", file.display())
                }
                other => other.into(),
            })?;
        }
        None => print_book(&picked.entries)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The hosts of the file that is named, else of PBS's file, else of the job of another scheduler.
fn hosts_of_job(named: Option<&Path>) -> anyhow::Result<Vec<String>> {
    let pbs = std::env::var_os(PBS_NODEFILE).filter(|value| !value.is_empty());
    if let Some(file) = named.or(pbs.as_deref().map(Path::new)) {
        return Ok(read_nodefile(file)?);
    }
    match allocation::find(&Wanted::default(), &|name| std::env::var_os(name)) {
        Ok(allocation) => Ok(allocation.hosts),
        Err(AllocationError::None) => {
            let text = format!(
                "which hosts? This is no job, and {PBS_NODEFILE} is not set: name a file that lists them with --nodefile"
            );
            Err(UsageError(text).into())
        }
        Err(error) => Err(error.into()),
    }
}

/// The hosts that a launcher is to reach.
fn allocation(
    launcher: Option<LauncherName>,
    hosts: Option<&str>,
    nodefile: Option<&Path>,
) -> anyhow::Result<Allocation> {
    let wanted = Wanted {
        kind: launcher.and_then(launcher_kind),
        hosts: hosts.map(str::to_owned),
        node_file: nodefile.map(Path::to_path_buf),
    };
    allocation::find(&wanted, &|name| std::env::var_os(name)).map_err(|error| match error {
        AllocationError::None => {
            let text = "which hosts? This is no job: run it inside of one, or name them with --nodefile; --launcher local asks this host alone";
            UsageError(text.to_owned()).into()
        }
        error if error.is_usage() => UsageError(error.to_string()).into(),
        error => error.into(),
    })
}

/// Asking all hosts, which a signal ends.
struct Asking {
    interrupts: Receiver<i32>,
    came: Cell<Option<i32>>,
}

impl Asking {
    fn start() -> anyhow::Result<Asking> {
        Ok(Asking { interrupts: signals::catch(false)?, came: Cell::new(None) })
    }

    /// What `words` print on all hosts; or on those on which they do, where `allow_missing` lets the others be told and left out.
    fn everywhere(&self, allocation: &Allocation, words: &[OsString], allow_missing: bool) -> Result<Vec<u8>, String> {
        let interrupted = || {
            self.came.set(self.came.get().or_else(|| self.interrupts.try_recv().ok()));
            self.came.get().is_some()
        };
        let limit = Limit { until: Instant::now() + ASK_TIMEOUT, interrupted: &interrupted };
        let gathered = run_everywhere(allocation, words, limit)?;
        if !allow_missing {
            return gathered.of_all();
        }
        gathered.failed.iter().for_each(|(host, why)| eprintln!("bornite: {host} says nothing: {why}"));
        Ok(gathered.said)
    }

    /// The end of what failed: by the signal, if one came.
    fn ended(&self, error: anyhow::Error) -> anyhow::Result<ExitCode> {
        self.came.get().map_or(Err(error), |signal| Ok(ExitCode::from(code_of_signal(signal))))
    }
}

fn discover(args: &BookDiscoverArgs) -> anyhow::Result<ExitCode> {
    let column: Column = args.net.parse().map_err(|error| UsageError(format!("--net: {error}")))?;
    let (raw, whence, hosts) = match (&args.table, args.launcher) {
        (Some(file), _) => {
            let hosts = args.nodefile.as_deref().map(read_nodefile).transpose()?;
            let raw = std::fs::read(file).map_err(|source| DiscoverError::Read { file: file.clone(), source })?;
            (raw, format!("table {}", file.display()), hosts)
        }
        (None, Some(LauncherName::Local)) if args.hosts.is_some() => {
            let text = "--launcher local asks this host alone: leave out --hosts, or name another launcher";
            return Err(UsageError(text.to_owned()).into());
        }
        (None, Some(LauncherName::Local)) => {
            let hosts = args.nodefile.as_deref().map(read_nodefile).transpose()?;
            let (raw, whence) = gather(args.helper.as_deref(), &run_here::run_here)?;
            (raw, whence, hosts)
        }
        (None, launcher) => {
            let allocation = allocation(launcher, args.hosts.as_deref(), args.nodefile.as_deref())?;
            let asking = Asking::start()?;
            match gather(args.helper.as_deref(), &|words| asking.everywhere(&allocation, words, args.allow_missing)) {
                Ok((raw, whence)) => (raw, whence, Some(allocation.hosts)),
                Err(error) => return asking.ended(error),
            }
        }
    };
    let port = u16::try_from(args.port).context("a port")?;
    let discovery = Discovery { column, port, hosts: hosts.as_deref(), allow_missing: args.allow_missing };
    let found = book::entries_of(&raw, &whence, &discovery)?;
    tell_missing(&found, &whence);
    match &args.output_dir {
        Some(dir) => {
            let file = book::write_discovered(dir, &raw, &found.entries)?;
            output::print(&format!("{}\n", file.display()))?;
        }
        None => print_book(&found.entries)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What the helper prints, and its name for messages.
fn gather(helper: Option<&Path>, run: RunEverywhere<'_>) -> anyhow::Result<(Vec<u8>, String)> {
    let (command, name): (Vec<OsString>, String) = match helper {
        // Found in PATH on each host, or the same file there.
        Some(helper) if helper.components().count() == 1 => {
            (vec![helper.into()], format!("helper {}", helper.display()))
        }
        Some(helper) => (vec![std::path::absolute(helper)?.into()], format!("helper {}", helper.display())),
        None => (vec![this_program()?, "list-hsn".into()], "bornite list-hsn".to_owned()),
    };
    Ok((book::gather(&command, run)?, name))
}

fn this_program() -> anyhow::Result<OsString> {
    Ok(std::env::current_exe().context("cannot find this program's file")?.into())
}

/// Nodes that the job goes on without are not left out in silence.
fn tell_missing(book: &JobBook, whence: &str) {
    if !book.missing.is_empty() {
        let (count, names) = (book.missing.len(), book::Names(book.missing.clone()));
        eprintln!("bornite: {whence} misses {count} nodes, which are left out: {names}");
    }
}

fn print_book(entries: &[BookEntry]) -> anyhow::Result<()> {
    let lines: String = entries.iter().map(|entry| format!("{entry}\n")).collect();
    output::print(&lines)
}
