//! `bornite trace record`: a mount for one command, by a daemon of its own that writes down what it is asked.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::super::args::TraceRecordArgs;
use super::super::config::Settings;
use super::super::mount::{Node, daemon_config};
use super::super::{UsageError, signals};
use crate::job::command;
use crate::observe::trace::summary::SEARCH_VARIABLES;
use crate::observe::trace::{Header, Recorder};
use crate::observe::{Counters, mountpoint_key};
use crate::runtime::Daemon;

/// How long the daemon has to end.
const STOP_DEADLINE: Duration = Duration::from_secs(8);

/// Runs the command and writes its trace.
///
/// # Errors
/// The file cannot be written, the tree cannot be mounted, or the command cannot be started. Nothing is left behind.
pub(super) fn record(args: &TraceRecordArgs) -> anyhow::Result<ExitCode> {
    let target = args.target.canonicalize();
    let target = target.with_context(|| format!("cannot serve the target {}", args.target.display()))?;
    if !target.is_dir() {
        return Err(UsageError(format!("the target {} is not a directory", target.display())).into());
    }
    // The command would see nothing in it, and the trace nothing but that.
    let searched = rustix::fs::access(&target, rustix::fs::Access::EXEC_OK);
    searched.with_context(|| format!("cannot serve the target {}, which this user may not enter", target.display()))?;
    let interrupts = signals::catch(false)?;
    // Before the command runs: its work is not to be lost for a wrong name.
    let output = Output::create(&args.output)?;
    let place = Place::make(args.mount.as_deref())?;
    let settings = Settings { target: target.clone(), ..Settings::default() };
    let config = daemon_config(&settings, &Node::resolve(&settings)?, place.path.clone());
    let recorder = Arc::new(Recorder::default());
    let daemon = Daemon::start_recorded(config, Arc::new(Counters::new()), Some(Arc::clone(&recorder)))?;
    let variables = search_variables(&target, &place.path, |name| std::env::var_os(name));
    let mut environment = vec![("BORNITE_MOUNT", place.path.clone().into_os_string())];
    environment.extend(variables.iter().cloned());
    let ended = command::run(&args.command, &environment, &interrupts);
    // Whatever became of the command, the mount goes.
    let stopped = daemon.stop(STOP_DEADLINE);
    let trace = recorder.finish(Header {
        command: args.command.iter().map(|word| word.as_bytes().to_vec()).collect(),
        target: target.into_os_string().into_vec(),
        root: place.path.as_os_str().as_bytes().to_vec(),
        environment: variables.into_iter().map(|(name, value)| (name.into(), value.into_vec())).collect(),
        dropped: 0,
    });
    let ended = ended?;
    stopped.with_context(|| format!("cannot stop cleanly at {}", place.path.display()))?;
    let bytes = trace.encode();
    output.finish(&bytes)?;
    let (requests, paths) = (trace.events().len(), trace.paths().len());
    eprintln!(
        "bornite: {}: {requests} requests for {paths} paths in {} bytes; see `bornite trace stats`",
        args.output.display(),
        bytes.len()
    );
    if trace.header().dropped > 0 {
        eprintln!("bornite: {} requests were too many and are missing", trace.header().dropped);
    }
    Ok(ExitCode::from(ended.exit_code()))
}

/// The search variables that are set, with those entries that lie in the target pointed to where the command sees it.
fn search_variables(
    target: &Path,
    mountpoint: &Path,
    value_of: impl Fn(&str) -> Option<OsString>,
) -> Vec<(&'static str, OsString)> {
    let moved = |entry: &[u8]| {
        let entry = Path::new(OsStr::from_bytes(entry));
        match entry.strip_prefix(target) {
            Ok(below) if entry.is_absolute() => mountpoint.join(below).into_os_string().into_vec(),
            _ => entry.as_os_str().as_bytes().to_vec(),
        }
    };
    let variables = SEARCH_VARIABLES.into_iter().filter_map(|name| Some((name, value_of(name)?)));
    variables
        .map(|(name, value)| {
            let entries: Vec<Vec<u8>> = value.as_bytes().split(|byte| *byte == b':').map(moved).collect();
            (name, OsString::from_vec(entries.join(&b':')))
        })
        .collect()
}

/// Where the tree is mounted for the run; what was made for that goes with it.
struct Place {
    path: PathBuf,
    made: bool,
}

impl Place {
    fn make(given: Option<&Path>) -> anyhow::Result<Place> {
        if let Some(dir) = given {
            return Ok(Place { path: mountpoint_key(dir)?, made: false });
        }
        let path = std::env::temp_dir().join(format!("bornite-trace-{}", std::process::id()));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make the mount point {}; give one with --mount", path.display()))?;
        Ok(Place { path: mountpoint_key(&path)?, made: true })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.made {
            // It is empty; while something is still mounted there, it stays, and the daemon's error said so.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// The file to be: under another name until it is whole.
struct Output {
    path: PathBuf,
    part: PathBuf,
    file: File,
}

impl Output {
    fn create(path: &Path) -> anyhow::Result<Output> {
        let what = || format!("cannot write the trace {}", path.display());
        let name = path.file_name().filter(|_| !path.is_dir());
        let name = name.ok_or_else(|| UsageError(format!("{}: it is a directory; name a file with -o", what())))?;
        let mut part = name.to_os_string();
        part.push(format!(".{}.part", std::process::id()));
        let part = path.with_file_name(part);
        let file = File::create_new(&part).with_context(|| format!("{}; name another file with -o", what()))?;
        Ok(Output { path: path.to_owned(), part, file })
    }

    fn finish(mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let written = self.file.write_all(bytes).and_then(|()| fs::rename(&self.part, &self.path));
        written.with_context(|| format!("cannot write the trace {}", self.path.display()))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // Gone already where it was finished.
        let _ = fs::remove_file(&self.part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_paths_lead_into_the_mount() {
        let set = |name: &str| (name == "PYTHONPATH").then(|| OsString::from("/t/site:/t2:rel:/t::/t/a"));
        let moved = search_variables(Path::new("/t"), Path::new("/m"), set);
        assert_eq!(moved, [("PYTHONPATH", OsString::from("/m/site:/t2:rel:/m/::/m/a"))]);
    }

    #[test]
    fn a_file_that_is_not_finished_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("x.trace");
        drop(Output::create(&path).unwrap());
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
        Output::create(&path).unwrap().finish(b"bytes").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"bytes");
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
        assert!(Output::create(temp.path()).is_err());
    }
}
