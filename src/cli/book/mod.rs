//! `bornite book`: address books of jobs, out of a facility's book or out of what the hosts say, and whether a book is right.

mod check;
mod run_here;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};

use super::args::books::{BookCommand, BookDiscoverArgs, BookFacilityArgs, BookLauncher};
use super::{UsageError, output};
use crate::job::book::{
    self, BookEntry, BookError, DiscoverError, Discovery, JobBook, RunEverywhere, facility_checked, read_nodefile,
};
use crate::job::hsn::Column;
use crate::job::write_book;
use crate::runtime::fabric::Address;

/// Where PBS names the hosts of a job.
const PBS_NODEFILE: &str = "PBS_NODEFILE";

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
fn check_address(address: &str) -> Result<(), String> {
    address.parse::<Address>().map(drop).map_err(|error| error.to_string())
}

fn facility(args: &BookFacilityArgs) -> anyhow::Result<ExitCode> {
    let hosts = read_nodefile(&nodefile(args.nodefile.as_deref())?)?;
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

/// The node file that is named, else PBS's.
fn nodefile(named: Option<&Path>) -> Result<PathBuf, UsageError> {
    let pbs = || std::env::var_os(PBS_NODEFILE).filter(|value| !value.is_empty()).map(PathBuf::from);
    named.map(Path::to_path_buf).or_else(pbs).ok_or_else(|| {
        UsageError(format!("which hosts? Name a file that lists them with --nodefile; {PBS_NODEFILE} is not set"))
    })
}

fn discover(args: &BookDiscoverArgs) -> anyhow::Result<ExitCode> {
    let column: Column = args.net.parse().map_err(|error| UsageError(format!("--net: {error}")))?;
    let hosts = args.nodefile.as_deref().map(read_nodefile).transpose()?;
    let (raw, whence) = match (&args.table, args.launcher) {
        (Some(file), _) => {
            let raw = std::fs::read(file).map_err(|source| DiscoverError::Read { file: file.clone(), source })?;
            (raw, format!("table {}", file.display()))
        }
        (None, Some(launcher)) => gather(launcher, args.helper.as_deref())?,
        (None, None) => return Err(UsageError("where to ask? Name --launcher or --table".to_owned()).into()),
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
fn gather(launcher: BookLauncher, helper: Option<&Path>) -> anyhow::Result<(Vec<u8>, String)> {
    let (command, name): (Vec<OsString>, String) = match helper {
        Some(helper) => (vec![helper.into()], format!("helper {}", helper.display())),
        None => {
            let this = std::env::current_exe().context("cannot find this program's file")?;
            (vec![this.into(), "list-hsn".into()], "bornite list-hsn".to_owned())
        }
    };
    let run: RunEverywhere<'_> = match launcher {
        BookLauncher::Local => &run_here::run_here,
    };
    Ok((book::gather(&command, run)?, name))
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
