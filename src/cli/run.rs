//! `bornite run`: a command that sees the mount at the original paths.
//!
//! The process becomes the command, so exit code and signals are the command's own. It has one thread all the way: a process
//! with more cannot change its namespace.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};

use super::UsageError;
use super::args::RunArgs;
use crate::job::ProcessIdentity;
use crate::job::namespace::{self, View};
use crate::observe::{Request, SocketDirs, Status, mountpoint_key, query, query_all};

/// How long the daemons of this node may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Where a launch has mounted.
const MOUNT_VARIABLE: &str = "BORNITE_MOUNT";

/// Becomes the command; returns only where that fails, or to end a holder.
///
/// # Errors
/// There is no mount, or not the one that is meant; the original paths cannot be covered; the command cannot be run.
pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    if let (Some(daemon), Some(mount), Some(state)) = (&args.hold, &args.mount, &args.state) {
        namespace::hold(daemon, mount, state)?;
        return Ok(ExitCode::SUCCESS);
    }
    let view = view(args.mount.as_deref())?;
    let this = std::env::current_exe().context("cannot find this program's file")?;
    namespace::enter(&view, &args.at, |daemon, state| {
        let mut holder = Command::new(this);
        holder.args(["run", "--hold", daemon, "--mount"]).arg(&view.mountpoint).arg("--state").arg(state);
        holder
    })?;
    let (program, arguments) =
        args.command.split_first().ok_or_else(|| UsageError("name a COMMAND after --".to_owned()))?;
    let error = Command::new(program).args(arguments).exec();
    bail!("cannot run {}: {error}; name a program after --", program.display())
}

/// The mount that is meant: the named one, else the launch's, else the only one of this user on this node.
fn view(named: Option<&Path>) -> anyhow::Result<View> {
    let dirs = SocketDirs::of_user();
    let status = match named {
        Some(mount) => query::<Status>(&dirs, mount, &Request::Status, ASK_TIMEOUT)?,
        None => {
            let mut found: Vec<Status> =
                query_all::<Status>(&dirs, &Request::Status, ASK_TIMEOUT).into_iter().flatten().collect();
            let of_launch = std::env::var_os(MOUNT_VARIABLE).and_then(|mount| mountpoint_key(Path::new(&mount)).ok());
            if found.len() > 1
                && let Some(mount) = of_launch
            {
                found.retain(|status| status.mountpoint == mount);
            }
            match found.len() {
                1 => found.remove(0),
                0 => bail!(
                    "no daemon of this user serves a mount on this node; start one with `bornite launch` or `bornite mount`, or \
                     name the mount with --mount DIR"
                ),
                count => {
                    let mounts: Vec<String> =
                        found.iter().map(|status| status.mountpoint.display().to_string()).collect();
                    let text = format!("{count} mounts are here: {}; name one with --mount DIR", mounts.join(", "));
                    return Err(UsageError(text).into());
                }
            }
        }
    };
    let daemon = ProcessIdentity::of(status.pid)
        .context("cannot look for the daemon")?
        .with_context(|| format!("the daemon of {} has just ended", status.mountpoint.display()))?;
    Ok(View { mountpoint: status.mountpoint, target: status.target, daemon })
}
