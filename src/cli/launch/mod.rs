//! `bornite launch` and `bornite stop`: jobs on this machine here, jobs over nodes in [`cluster`].

mod cluster;

pub(super) use cluster::launcher_kind;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;

use super::args::{DaemonArgs, LaunchArgs, LauncherName, StopArgs, Switch};
use super::{UsageError, daemon, output, signals};
use crate::job::stop::{Ending, Patience};
use crate::job::{Hooks, LaunchError, LocalPlan};
use crate::observe::{SocketDirs, mountpoint_key};
use crate::{job, runtime};

/// Number of nodes on this machine, and how long their mounts have to answer, where nothing else is said.
const LOCAL_NODES_DEFAULT: u64 = 4;
const LOCAL_READY_TIMEOUT_S: u64 = 30;

/// Starts a job; with a command, runs it and stops the job.
///
/// # Errors
/// The job does not come up or cannot be stopped.
pub(super) fn launch(args: &LaunchArgs) -> anyhow::Result<ExitCode> {
    if args.local || args.launcher == Some(LauncherName::Local) { local(args) } else { cluster::launch(args) }
}

/// What is wrong with the trees of a job of so many nodes; `counted` says how they are counted.
fn check_trees(options: &DaemonArgs, nodes: u64, counted: &str) -> Result<(), UsageError> {
    if let Some(trees) = options.trees.filter(|trees| *trees > nodes) {
        return Err(UsageError(format!("--trees {trees} is more than {counted} {nodes}; each tree needs a node")));
    }
    if let Some(stripes) = options.stripes {
        let of_tree = nodes / options.trees.unwrap_or(1).max(1);
        if stripes > of_tree {
            let text = format!("--stripes {stripes} is more than the {of_tree} nodes of a tree; each needs a root");
            return Err(UsageError(text));
        }
    }
    Ok(())
}

/// A job on this machine.
fn local(args: &LaunchArgs) -> anyhow::Result<ExitCode> {
    let nodes = args.nodes.unwrap_or(LOCAL_NODES_DEFAULT);
    check_trees(&args.daemon_options, nodes, "--nodes")?;
    let interrupts = signals::catch(false)?;
    let mount_dir = args.mount.clone().unwrap_or_else(default_mount_dir);
    let plan = LocalPlan {
        nodes: u32::try_from(nodes).context("--nodes")?,
        mount_dir: mount_dir.clone(),
        job_dir: args.output_dir.clone(),
        scheme: scheme(args.daemon_options.net.as_deref())?,
        program: std::env::current_exe().context("cannot find this program's file")?,
        daemon_args: Box::new(|name, mountpoint, book| local_args(&args.daemon_options, name, mountpoint, book)),
        ready_timeout: Duration::from_secs(args.ready_timeout_s.unwrap_or(LOCAL_READY_TIMEOUT_S)),
    };
    let hooks = Hooks::new(clear_stale, interrupts);
    let job = match job::launch(&plan, &hooks) {
        Ok(job) => job,
        Err(LaunchError::Interrupted { signal }) => return Ok(ExitCode::from(code_of_signal(signal))),
        Err(error) => return Err(error.into()),
    };
    if args.command.is_empty() {
        let dir = job.record().mount_dir.display().to_string();
        let mountpoints: Vec<String> = job.mountpoints().map(|path| path.display().to_string()).collect();
        job.leave();
        output::print(&format!(
            "{} nodes are ready: {}\nstop them with `bornite stop --mount {dir}`\n",
            mountpoints.len(),
            mountpoints.join(" ")
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let ended = job.run(&args.command);
    // Whatever became of the command, the job ends; what it left goes to standard error, which is not the command's.
    let report = job.stop()?;
    if report.daemons.iter().any(|(_, ending)| *ending != Ending::Stopped) || !report.kept.is_empty() {
        eprintln!("bornite: {report}");
    }
    Ok(ExitCode::from(ended?.exit_code()))
}

/// Stops a job.
///
/// # Errors
/// It cannot be stopped wholly.
pub(super) fn stop(args: &StopArgs) -> anyhow::Result<ExitCode> {
    let named = args.mountpoint.as_ref().or(args.mount.as_ref());
    if let (Some(launch), Some(mountpoint)) = (&args.launch_id, named) {
        return cluster::stop_node(launch, mountpoint);
    }
    let mount_dir = named.cloned().unwrap_or_else(default_mount_dir);
    // A mount point has no record in it, so it is not even looked into.
    let is_local =
        args.output_dir.is_none() && !cluster::is_mounted(&mount_dir) && job::record::state_dir(&mount_dir).is_dir();
    if !is_local && let Some(code) = cluster::stop(named.map(PathBuf::as_path), args.output_dir.as_deref())? {
        return Ok(code);
    }
    // Of no job, such as `bornite mount` starts it.
    if let Some(mountpoint) = named.filter(|_| !is_local)
        && let Ok(mountpoint) = mountpoint_key(mountpoint)
        && let Some(ending) = job::node::stop_mount(&mountpoint, &clear_stale, Patience::default())?
    {
        let mountpoint = mountpoint.display();
        output::print(&match ending {
            Ending::Stopped => format!("stopped the daemon of {mountpoint}\n"),
            Ending::Killed => format!("killed the daemon of {mountpoint}\n"),
            Ending::HadEnded => format!("the daemon of {mountpoint} had ended; what it left is cleared\n"),
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = job::stop(&mount_dir, &clear_stale, Patience::default())?;
    output::print(&format!("{report}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// The exit code of a program that a signal ended, as shells have it.
pub(super) fn code_of_signal(signal: i32) -> u8 {
    128u8.wrapping_add(signal as u8)
}

/// Takes away what a killed daemon has left: its dead mount (true if there was one) and its status socket.
pub(super) fn clear_stale(mountpoint: &Path) -> Result<bool, String> {
    let detached = runtime::clear_stale(mountpoint).map_err(|error| error.to_string())?;
    SocketDirs::of_user().clear(mountpoint).map_err(|error| error.to_string())?;
    Ok(detached)
}

fn default_mount_dir() -> PathBuf {
    PathBuf::from(format!("/tmp/bornite-mounts-{}", rustix::process::geteuid().as_raw()))
}

/// The scheme of addresses on this machine.
fn scheme(net: Option<&str>) -> Result<String, UsageError> {
    match net {
        None | Some("tcp") => Ok("ofi+tcp".to_owned()),
        Some("sockets") => Ok("ofi+sockets".to_owned()),
        Some(other) => {
            Err(UsageError(format!("--net {other} cannot connect daemons on one machine: use --net tcp or sockets")))
        }
    }
}

/// The arguments of one daemon on this machine: the options passed through, and what only the launch knows. Logs go to
/// standard error, which is the node's log file.
fn local_args(options: &DaemonArgs, name: &str, mountpoint: &Path, book: &Path) -> Vec<OsString> {
    let known = [("--hostname", name.into()), ("--address-book", book.into()), ("--log-type", "stdout".into())];
    mount_args(options, &[daemon::CHILD_FLAG], &known, mountpoint)
}

/// The arguments of a daemon.
fn mount_args(options: &DaemonArgs, flags: &[&str], known: &[(&str, OsString)], mountpoint: &Path) -> Vec<OsString> {
    let DaemonArgs {
        target,
        net,
        enoent_ttl_ms,
        cache_size,
        names_size,
        trees,
        stripes,
        fanout,
        detect_ms,
        attr_ttl_ms,
        dir_ttl_ms,
        clock_margin_ms,
        complete_dirs,
        foresight,
        fuse_threads,
        allow_other,
        passthrough,
        log_level,
    } = options;
    let mut args: Vec<OsString> = vec!["mount".into()];
    args.extend(flags.iter().map(OsString::from));
    let mut add = |flag: &str, value: Option<OsString>| {
        if let Some(value) = value {
            args.extend([flag.into(), value]);
        }
    };
    known.iter().for_each(|(flag, value)| add(flag, Some(value.clone())));
    add("--target", target.clone().map(PathBuf::into_os_string));
    add("--net", net.clone().map(OsString::from));
    let switch = |switch: &Switch| if *switch == Switch::On { "on" } else { "off" };
    add("--complete-dirs", complete_dirs.as_ref().map(switch).map(OsString::from));
    add("--foresight", foresight.as_ref().map(switch).map(OsString::from));
    for (flag, value) in [
        ("--enoent-ttl-ms", enoent_ttl_ms),
        ("--cache-size", cache_size),
        ("--names-size", names_size),
        ("--trees", trees),
        ("--stripes", stripes),
        ("--fanout", fanout),
        ("--detect-ms", detect_ms),
        ("--attr-ttl-ms", attr_ttl_ms),
        ("--dir-ttl-ms", dir_ttl_ms),
        ("--clock-margin-ms", clock_margin_ms),
        ("--fuse-threads", fuse_threads),
        ("--log-level", log_level),
    ] {
        add(flag, value.map(|value| value.to_string().into()));
    }
    let mode = passthrough.and_then(|mode| mode.to_possible_value());
    add("--passthrough", mode.map(|mode| mode.get_name().into()));
    if *allow_other {
        args.push("--allow-other".into());
    }
    args.extend(["--".into(), mountpoint.into()]);
    args
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Cli, Command, PassthroughMode};
    use super::*;

    #[test]
    fn every_option_is_passed_through() {
        let options = DaemonArgs {
            target: Some("-odd target".into()),
            net: Some("tcp".to_owned()),
            enoent_ttl_ms: Some(1),
            cache_size: Some(1 << 25),
            names_size: Some(1 << 26),
            trees: Some(2),
            stripes: Some(4),
            fanout: Some(3),
            detect_ms: Some(500),
            attr_ttl_ms: Some(4),
            dir_ttl_ms: Some(5),
            clock_margin_ms: Some(3000),
            complete_dirs: Some(Switch::Off),
            foresight: Some(Switch::Off),
            fuse_threads: Some(1),
            allow_other: true,
            passthrough: Some(PassthroughMode::Auto),
            log_level: Some(5),
        };
        let options = DaemonArgs { target: Some("/odd target".into()), ..options };
        let args = local_args(&options, "node1", Path::new("/m/node1"), Path::new("/b"));
        let parsed = Cli::try_parse_from(std::iter::once(OsString::from("bornite")).chain(args)).unwrap();
        let Command::Mount(mount) = parsed.command else { panic!("{parsed:?}") };
        assert_eq!(format!("{:?}", mount.daemon_options), format!("{options:?}"));
        assert_eq!(mount.hostname.as_deref(), Some("node1"));
        assert_eq!(mount.mountpoint.as_deref(), Some(Path::new("/m/node1")));
        assert!(mount.foreground_child);
    }

    #[test]
    fn nets_that_need_hardware_are_refused() {
        assert_eq!(scheme(None).unwrap(), "ofi+tcp");
        let error = scheme(Some("cxi")).unwrap_err();
        assert_eq!(error.to_string(), "--net cxi cannot connect daemons on one machine: use --net tcp or sockets");
    }
}
