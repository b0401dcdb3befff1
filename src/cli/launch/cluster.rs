//! `bornite launch` and `bornite stop` for a job over nodes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};

use super::super::args::{BookSource, LaunchArgs, LauncherName};
use super::super::book::check_address;
use super::super::{UsageError, output, signals};
use super::{check_trees, clear_stale, code_of_signal, mount_args};
use crate::job;
use crate::job::Hooks;
use crate::job::book::{self, DISCOVER_PORT, Discovery, facility_checked};
use crate::job::cluster::ready::MinReady;
use crate::job::cluster::record::ClusterRecord;
use crate::job::cluster::{ClusterError, ClusterPlan, Shared};
use crate::job::hsn::Column;
use crate::job::launcher::allocation::{self, Wanted};
use crate::job::launcher::{Kind, parse_cores};
use crate::job::node::NodeRecord;
use crate::job::stop::Patience;

const READY_TIMEOUT_S: u64 = 180;
/// The network of the addresses that nodes are asked for, where nothing else is said: Copper's.
const NET_DEFAULT: &str = "cxi";
/// Directory of the jobs' directories, in the home directory.
const JOBS_DIR: &str = "bornite-logs";

/// Starts a job over nodes; with a command, runs it and stops the job.
pub(super) fn launch(args: &LaunchArgs) -> anyhow::Result<ExitCode> {
    if args.nodes.is_some() {
        return Err(UsageError("--nodes is for --local: a job has the nodes of its allocation".to_owned()).into());
    }
    let usage = |flag: &str, why: String| UsageError(format!("{flag}: {why}"));
    let min_ready = args.min_ready.as_deref().unwrap_or("100%");
    let min_ready = MinReady::parse(min_ready).map_err(|why| usage("--min-ready", why))?;
    if let Some(cores) = args.cores.as_deref().filter(|cores| parse_cores(cores).is_none()) {
        return Err(usage("--cores", format!("{cores:?} is no list of processors such as 1,2 or 48-51")).into());
    }
    let wanted = Wanted {
        kind: args.launcher.and_then(launcher_kind),
        hosts: args.hosts.clone(),
        node_file: args.nodefile.clone(),
    };
    let allocation = allocation::find(&wanted, &|name| std::env::var_os(name)).map_err(|error| match error {
        error if error.is_usage() => UsageError(error.to_string()).into(),
        error => anyhow::Error::from(error),
    })?;
    check_trees(&args.daemon_options, allocation.hosts.len() as u64, "the number of the job's nodes,")?;
    let facility_book = match (args.book, &args.address_book) {
        (None | Some(BookSource::Facility), Some(file)) => Some(file.clone()),
        (Some(BookSource::Facility), None) => {
            return Err(usage("--book facility", "it needs --address-book FILE".to_owned()).into());
        }
        (Some(BookSource::Discover), Some(_)) => {
            return Err(usage("--book discover", "it asks the nodes: leave out --address-book".to_owned()).into());
        }
        (None | Some(BookSource::Discover), None) => None,
    };
    let column: Column = args
        .daemon_options
        .net
        .as_deref()
        .filter(|_| facility_book.is_none())
        .unwrap_or(NET_DEFAULT)
        .parse()
        .map_err(|error| usage("--net", format!("{error}")))?;
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let helper = [program.clone().into_os_string(), "list-hsn".into()];
    let mountpoint = absolute(&args.mount.clone().unwrap_or_else(default_mountpoint))?;
    let job_dir = match &args.output_dir {
        Some(dir) => absolute(dir)?,
        None => default_job_dir(allocation.job_id.as_deref(), &mountpoint)?,
    };
    let interrupts = signals::catch(false)?;
    let plan = ClusterPlan {
        book: Box::new(|hosts, run| match &facility_book {
            // All of the book, so that daemons need to look at their own part of it only.
            Some(file) => {
                facility_checked(file, hosts, args.allow_missing, &check_address).map_err(|error| error.to_string())
            }
            None => {
                let discovery =
                    Discovery { column, port: DISCOVER_PORT, hosts: Some(hosts), allow_missing: args.allow_missing };
                let raw = book::gather(&helper, run).map_err(|error| error.to_string())?;
                book::entries_of(&raw, "bornite list-hsn", &discovery).map_err(|error| error.to_string())
            }
        }),
        mountpoint: mountpoint.clone(),
        job_dir: job_dir.clone(),
        program: program.clone(),
        daemon_args: Box::new(|shared| daemon_args(args, shared, &mountpoint)),
        cores: args.cores.clone(),
        keep_book: args.keep_book,
        allow_missing: args.allow_missing,
        min_ready,
        ready_timeout: Duration::from_secs(args.ready_timeout_s.unwrap_or(READY_TIMEOUT_S)),
        allocation,
    };
    let hooks = Hooks::new(clear_stale, interrupts);
    let job = match job::cluster::launch(&plan, &hooks) {
        Ok(job) => job,
        Err(ClusterError::Interrupted { signal }) => return Ok(ExitCode::from(code_of_signal(signal))),
        Err(error) => return Err(error.into()),
    };
    if !job.missing().is_empty() {
        eprintln!("bornite: not in the address book, and left out: {}", some_of(job.missing().iter().cloned()));
    }
    if !job.unresolved().is_empty() {
        eprintln!("bornite: not found by their names, and left out: {}", some_of(job.unresolved().iter().cloned()));
    }
    let (nodes, progress) = (job.record().launcher.hosts.len(), job.progress());
    if progress.ready < nodes {
        let late: Vec<String> = progress.late.keys().cloned().collect();
        eprintln!("bornite: {} of {nodes} nodes are ready; not: {}", progress.ready, some_of(late.into_iter()));
    }
    if args.command.is_empty() {
        let mount = mountpoint.display();
        output::print(&format!(
            "{} of {nodes} nodes are ready: {mount}\nstop them with `bornite stop {mount}`\n",
            progress.ready
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let ended = job.run(&args.command);
    // Whatever became of the command, the job ends; what it left goes to standard error, which is not the command's.
    let stopped = job.stop()?;
    if !stopped.kept.is_empty() {
        eprintln!("bornite: {stopped}");
    }
    Ok(ExitCode::from(ended?.exit_code()))
}

/// What a launcher is called by; none for this machine alone.
pub(crate) fn launcher_kind(name: LauncherName) -> Option<Kind> {
    Some(match name {
        LauncherName::Srun => Kind::Srun,
        LauncherName::Mpiexec => Kind::Mpiexec,
        LauncherName::PbsTmrsh => Kind::PbsTmrsh,
        LauncherName::Clush => Kind::Clush,
        LauncherName::Ssh => Kind::Ssh,
        LauncherName::Flux => Kind::Flux,
        LauncherName::Local => return None,
    })
}

/// The arguments of the daemons: the same on every node, each of which knows its name.
fn daemon_args(args: &LaunchArgs, shared: Shared<'_>, mountpoint: &Path) -> Vec<OsString> {
    let known = [
        ("--launch-id", shared.launch.into()),
        ("--address-book", shared.book.into()),
        ("--secret-file", shared.secret.into()),
        ("--output-dir", shared.job_dir.into()),
        ("--log-type", "file".into()),
    ];
    let mut options = args.daemon_options.clone();
    // A daemon's own directory is another one.
    options.target = options.target.map(|target| std::path::absolute(&target).unwrap_or(target));
    options.net = options.net.map(|net| daemons_net(&net));
    let flags: &[&str] = if args.listen_anywhere { &["--listen-anywhere"] } else { &[] };
    mount_args(&options, flags, &known, mountpoint)
}

/// The network of a daemon, by the column of a table that its address is of: `cxi3` is the device, `hsn0` is tcp.
fn daemons_net(net: &str) -> String {
    let is_numbered = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    match (net.strip_prefix("cxi"), net.strip_prefix("hsn")) {
        (Some(number), _) if is_numbered(number) => format!("cxi://cxi{number}"),
        (_, Some(number)) if is_numbered(number) => "tcp".to_owned(),
        _ => net.to_owned(),
    }
}

/// Some names, and how many more there are.
fn some_of(names: impl ExactSizeIterator<Item = String>) -> String {
    const NAMED: usize = 10;
    let more = names.len().saturating_sub(NAMED);
    let named = names.take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{named} and {more} more") } else { named }
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot find {}", path.display()))
}

fn default_mountpoint() -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    let user = std::env::var("USER").ok().filter(|user| !user.is_empty() && !user.contains('/') && user != "..");
    PathBuf::from("/tmp").join(user.unwrap_or_else(|| uid.to_string())).join("bornite")
}

/// Where a job keeps its files: by its number, else by its mount point.
fn default_job_dir(job_id: Option<&str>, mountpoint: &Path) -> anyhow::Result<PathBuf> {
    let Some(home) = std::env::var_os("HOME").filter(|home| !home.is_empty()) else {
        bail!("HOME is not set, so there is no place for the job's files; name one with --output-dir DIR");
    };
    let id = match job_id {
        Some(id) => id.to_owned(),
        None => format!("hosts{}", mountpoint.display()),
    };
    Ok(PathBuf::from(home).join(JOBS_DIR).join(id.replace('/', "_")))
}

/// Whether something of ours is mounted at a path, dead or alive; the mount is not touched.
pub(super) fn is_mounted(path: &Path) -> bool {
    std::path::absolute(path).is_ok_and(|path| job::mounts::is_mounted(&path).unwrap_or(false))
}

/// Stops a job over nodes, if there is one: the one in that directory, else the one of that mount point, else that of the job that
/// this process runs in.
pub(super) fn stop(mountpoint: Option<&Path>, output_dir: Option<&Path>) -> anyhow::Result<Option<ExitCode>> {
    let mountpoint = mountpoint.map(absolute).transpose()?;
    let at = mountpoint.clone().unwrap_or_else(default_mountpoint);
    let record_of_node = NodeRecord::read(&at).ok().flatten();
    let dirs: Vec<PathBuf> = match output_dir {
        Some(dir) => vec![absolute(dir)?],
        None => {
            let job_id = allocation::job_id(&|name| std::env::var_os(name));
            let of_node = record_of_node.as_ref().and_then(|record| record.job_dir.clone());
            of_node.into_iter().chain(default_job_dir(job_id.as_deref(), &at).ok()).collect()
        }
    };
    for dir in dirs {
        let Some(record) = ClusterRecord::read(&dir)? else { continue };
        // Another launch of this job, at another mount point, is not meant.
        if mountpoint.as_ref().is_some_and(|mountpoint| *mountpoint != record.mountpoint) {
            continue;
        }
        let stopped = job::cluster::stop(&record)?;
        output::print(&format!("{stopped}\n"))?;
        return Ok(Some(ExitCode::SUCCESS));
    }
    if output_dir.is_none() && mountpoint.is_none() && clear_gone(&at)? {
        return Ok(Some(ExitCode::SUCCESS));
    }
    if let Some(dir) = output_dir {
        output::print(&format!("nothing runs with its files in {}\n", dir.display()))?;
        return Ok(Some(ExitCode::SUCCESS));
    }
    // The job's directory is gone; what is here can still be stopped.
    if let Some(record) = record_of_node {
        job::node::stop_node(&at, &record.launch, &clear_stale, Patience::default())?;
        let text = format!(
            "stopped the daemon of this node at {}; the files of its job are gone, so other nodes may have one too\n",
            at.display()
        );
        output::print(&text)?;
        return Ok(Some(ExitCode::SUCCESS));
    }
    Ok(None)
}

/// Removes what jobs have left beside the directory of this one that are over and that nobody has stopped. Whether there was any.
fn clear_gone(mountpoint: &Path) -> anyhow::Result<bool> {
    let base = default_job_dir(None, mountpoint).ok().and_then(|dir| dir.parent().map(Path::to_path_buf));
    let cleared = base.map(|base| job::cluster::clear_gone(&base)).unwrap_or_default();
    for (dir, left) in &cleared {
        output::print(&format!("{}: {left}\n", dir.display()))?;
    }
    Ok(!cleared.is_empty())
}

/// Stops this node's daemon of a launch: what a stop runs on every node.
pub(super) fn stop_node(launch: &str, mountpoint: &Path) -> anyhow::Result<ExitCode> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    job::node::stop_node(mountpoint, launch, &clear_stale, Patience::default()).context(host)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::super::args::{Cli, Command};
    use super::*;

    #[test]
    fn daemons_of_a_job_are_told_where_everything_is() {
        let words = ["bornite", "launch", "--target", "/sw", "--mount", "/m", "--fanout", "3", "--listen-anywhere"];
        let Command::Launch(args) = Cli::try_parse_from(words).unwrap().command else { panic!("not a launch") };
        let shared = Shared {
            launch: "ab",
            job_dir: Path::new("/job"),
            book: Path::new("/job/book"),
            secret: Path::new("/job/secret"),
        };
        let words = daemon_args(&args, shared, Path::new("/m"));
        let parsed = Cli::try_parse_from(std::iter::once(OsString::from("bornite")).chain(words)).unwrap();
        let Command::Mount(mount) = parsed.command else { panic!("{parsed:?}") };
        assert_eq!(mount.mountpoint.as_deref(), Some(Path::new("/m")));
        assert_eq!(mount.launch_id.as_deref(), Some("ab"));
        assert_eq!(mount.address_book.as_deref(), Some(Path::new("/job/book")));
        assert_eq!(mount.output_dir.as_deref(), Some(Path::new("/job")));
        assert_eq!(mount.secret_file.as_deref(), Some(Path::new("/job/secret")));
        assert_eq!(mount.daemon_options.fanout, Some(3));
        assert!(mount.listen_anywhere);
        assert!(!mount.foreground_child && mount.hostname.is_none());
    }

    #[test]
    fn columns_are_networks_of_daemons() {
        for (column, net) in
            [("cxi", "cxi"), ("cxi3", "cxi://cxi3"), ("cxi://cxi1", "cxi://cxi1"), ("hsn2", "tcp"), ("tcp", "tcp")]
        {
            assert_eq!(daemons_net(column), net);
        }
    }

    #[test]
    fn a_jobs_files_have_a_place() {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let of = |id, mountpoint: &str| default_job_dir(id, Path::new(mountpoint)).unwrap();
        if !home.as_os_str().is_empty() {
            assert_eq!(of(Some("12"), "/m"), home.join("bornite-logs/12"));
            assert_eq!(of(None, "/tmp/u/view"), home.join("bornite-logs/hosts_tmp_u_view"));
        }
        assert_eq!(some_of((0..12).map(|i| i.to_string())), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more");
    }
}
