//! Where the work is done: the filesystem itself, a mount of a static server, a mount of ours.

use std::path::Path;
use std::sync::Arc;

use bornite_bench::Job;
use bornite_bench::place::{Lifetimes, Place};

pub(crate) const EXT4: &str = "ext4";
pub(crate) const STATIC: &str = "static";
pub(crate) const BORNITE: &str = "bornite";

/// For how long absent names are remembered by both servers: as long as a daemon can be told to.
const ABSENT_MS: u64 = 10_000;

/// For how long directories are, and all else: nothing of it expires in a run.
const OTHERS_MS: u64 = 3_600_000;

/// Memory for file data: everything fits.
const CACHE_SIZE: &str = "2G";

/// All three of them for `source`, with mount points of equal length below `dir`, which is made.
pub(crate) fn all(program: &Path, source: &Path, dir: &Path) -> anyhow::Result<Vec<Place>> {
    let lifetimes = Lifetimes { absent_ms: ABSENT_MS, dirs_ms: OTHERS_MS, others_ms: OTHERS_MS };
    // The daemon's mount point is called node0 by the launch; the other's is as long.
    let snapshot = Place::snapshot(STATIC, source, &dir.join("peer/stat0"), lifetimes)?;
    let (absent, dirs) = (ABSENT_MS.to_string(), OTHERS_MS.to_string());
    let options = ["--cache-size", CACHE_SIZE, "--enoent-ttl-ms", &absent, "--dir-ttl-ms", &dirs];
    let job = Arc::new(Job::launch_with(program, 1, source, &dir.join("ours"), &options)?);
    Ok(vec![Place::plain(EXT4, source), snapshot, Place::daemon(BORNITE, &job, 0)?])
}
