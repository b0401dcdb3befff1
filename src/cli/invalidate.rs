//! `bornite invalidate`: paths that every node asks for anew.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};

use super::args::InvalidateArgs;
use super::output;
use crate::observe::{Invalidated, Request, SocketDirs, Status, query, query_all};

/// Clients wait this long for the daemons of this machine to say what they serve.
const STATUS_DEADLINE: Duration = Duration::from_secs(2);
/// A node that is gone delays the answer by 8 s.
const DEADLINE: Duration = Duration::from_secs(20);

/// Invalidates each path in the tree of the daemon that serves it.
///
/// # Errors
/// No daemon of this machine serves a path, or one does not answer.
pub(super) fn invalidate(args: &InvalidateArgs) -> anyhow::Result<ExitCode> {
    let dirs = SocketDirs::of_user();
    let served: Vec<Status> =
        query_all(&dirs, &Request::Status, STATUS_DEADLINE).into_iter().filter_map(Result::ok).collect();
    let mut code = ExitCode::SUCCESS;
    for path in &args.paths {
        let absolute = std::path::absolute(path).with_context(|| format!("{}", path.display()))?;
        let Some((mountpoint, below)) = place(&absolute, &served) else {
            bail!(
                "{} is in no mount of this machine, and below no target of one; `bornite status` lists them",
                absolute.display()
            );
        };
        let request = Request::Invalidate(below.as_os_str().as_bytes().to_vec());
        let done: Invalidated = query(&dirs, mountpoint, &request, DEADLINE)?;
        output::print(&format!("{}: {} of {} nodes\n", path.display(), done.reached, done.reached + done.missing))?;
        if done.missing > 0 {
            let nodes = if done.missing == 1 { "node" } else { "nodes" };
            eprintln!("bornite: {} {nodes} did not answer; see `bornite status` and the log there", done.missing);
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// The mount that a path is in, or whose target it is below, and the path relative to it. The mount itself is not
/// touched.
fn place<'a>(path: &Path, served: &'a [Status]) -> Option<(&'a Path, PathBuf)> {
    let inside = |of: fn(&Status) -> &Path| {
        let found = served.iter().filter_map(|status| Some((status, path.strip_prefix(of(status)).ok()?)));
        // The innermost, where one lies in another.
        found.min_by_key(|(_, below)| below.components().count())
    };
    let (status, below) = inside(|status| &status.mountpoint).or_else(|| inside(|status| &status.target))?;
    Some((&status.mountpoint, below.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{CacheStatus, Snapshot};

    fn status(mountpoint: &str, target: &str) -> Status {
        Status {
            version: String::new(),
            commit: String::new(),
            pid: 1,
            mountpoint: mountpoint.into(),
            target: target.into(),
            hostname: String::new(),
            node: 0,
            nodes: 1,
            parent: None,
            children: Vec::new(),
            stripes: Vec::new(),
            provider: None,
            address: None,
            state: String::new(),
            asks: Vec::new(),
            launch: None,
            tree: None,
            uptime_s: 0.0,
            cache: CacheStatus::default(),
            counters: Snapshot::zero(),
        }
    }

    #[test]
    fn a_path_is_found_in_its_mount_or_below_its_target() {
        let served = [status("/tmp/m", "/"), status("/tmp/m2", "/lus/env")];
        let at = |path: &str| {
            let (mount, below) = place(Path::new(path), &served)?;
            Some((mount.to_str()?.to_owned(), below.to_str()?.to_owned()))
        };
        let found = |mount: &str, below: &str| Some((mount.to_owned(), below.to_owned()));
        assert_eq!(at("/tmp/m/a/b"), found("/tmp/m", "a/b"));
        assert_eq!(at("/tmp/m2"), found("/tmp/m2", ""));
        assert_eq!(at("/lus/env/lib"), found("/tmp/m2", "lib"));
        assert_eq!(at("/lus/env2"), found("/tmp/m", "lus/env2"));
        assert!(place(Path::new("/x"), &served[1..]).is_none());
    }
}
