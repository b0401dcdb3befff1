//! `bornite mount --daemon`: starts the daemon in the background and returns once its mount answers.
//!
//! The program runs itself again instead of forking, which a process with threads cannot do safely. The new process
//! leads its own session, keeps neither the terminal nor a pipe of the caller open, and reports through
//! [`crate::job::daemon`]. If it does not come up it is stopped: nothing is left in the background after an error.

use std::ffi::OsString;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use crossbeam::channel::unbounded;

use super::args::LogType;
use super::config::Settings;
use super::{UsageError, called_as, mount, signals};
use crate::job::daemon::{DaemonProcess, DaemonSpawn, NotReady, wait_ready};
use crate::job::{Hooks, Readiness};

/// The option that tells the new process its part. Hidden from the help.
pub(super) const CHILD_FLAG: &str = "--foreground-child";
/// A node looks for its parent for 120 s; past that the daemon itself says what is wrong.
const READY_TIMEOUT: Duration = Duration::from_secs(130);
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Starts this process's `mount` again in the background.
///
/// # Errors
/// The daemon does not come up: its own error.
pub(super) fn start(settings: &Settings, mountpoint: &Path) -> anyhow::Result<ExitCode> {
    if matches!(settings.log_type, Some(LogType::Stdout | LogType::Both)) {
        let text = "a --daemon has no standard error to log to: use --log-type file --output-dir DIR";
        return Err(UsageError(text.to_owned()).into());
    }
    // What is wrong with the log is wrong before anything is started.
    mount::log_spec(settings, true, "")?;
    let hooks = Hooks::new(|_: &Path| Ok(false), signals::catch(false)?);
    let mut daemon = DaemonSpawn {
        name: "the daemon".to_owned(),
        program: std::env::current_exe().context("cannot find this program's file")?,
        args: child_args(called_as::own_words().into_iter()),
        mountpoint: mountpoint.to_path_buf(),
        stderr: Stdio::null(),
    };
    daemon.name = format!("the daemon of {}", mountpoint.display());
    let until = Instant::now() + READY_TIMEOUT;
    let (sender, news) = unbounded();
    let mut daemon =
        DaemonProcess::spawn(daemon, 0, hooks.answers, sender, until).context("cannot start the daemon")?;
    let mut states = [Readiness::Starting];
    let Err(cause) = wait_ready(&mut states, &news, &hooks.interrupts, until) else { return Ok(ExitCode::SUCCESS) };
    let stopped = daemon.stop(STOP_GRACE);
    let [state] = states;
    match cause {
        NotReady::Failed => bail!("{state}"),
        NotReady::TimedOut => bail!("{} is not ready after {} s: {state}", daemon.name, READY_TIMEOUT.as_secs()),
        NotReady::Interrupted(signal) => {
            stopped.context("interrupted, and the daemon cannot be stopped")?;
            Ok(ExitCode::from(super::launch::code_of_signal(signal)))
        }
    }
}

/// The arguments of this process with the child's flag after the command's name.
fn child_args(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.skip(1).collect();
    args.insert(1.min(args.len()), CHILD_FLAG.into());
    args
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Cli, Command};
    use super::*;

    #[test]
    fn the_child_gets_the_same_arguments_and_its_part() {
        for words in [vec!["bornite", "mount", "--daemon", "/m"], vec!["bornite", "mount", "--daemon", "--", "/m"]] {
            let args = child_args(words.into_iter().map(OsString::from));
            let parsed = Cli::try_parse_from(std::iter::once(OsString::from("bornite")).chain(args)).unwrap();
            match parsed.command {
                Command::Mount(args) => assert!(args.foreground_child && args.daemon && args.mountpoint.is_some()),
                other => panic!("{other:?}"),
            }
        }
    }
}
