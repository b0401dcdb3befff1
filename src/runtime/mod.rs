//! Stands in for the runtime until it is merged: the interface that the command line is written against.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::observe::Counters;

/// What a daemon is started with.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// The served directory.
    pub target: PathBuf,
    /// Where to mount it.
    pub mountpoint: PathBuf,
    /// Names and addresses in the order of the book.
    pub nodes: Vec<(String, String)>,
    /// This node's position in `nodes`.
    pub me: usize,
    /// The network asked for.
    pub net: Option<String>,
    /// Number of trees.
    pub trees: u32,
    /// Children per parent.
    pub fanout: Option<u32>,
    /// How long an absent name is remembered.
    pub enoent_ttl: Duration,
    /// How long attributes are remembered.
    pub attr_ttl: Option<Duration>,
    /// How long listings are remembered.
    pub dir_ttl: Duration,
    /// Bound of the chunk memory.
    pub cache_bytes: u64,
    /// FUSE threads.
    pub fuse_threads: usize,
    /// Whether other users may use the mount.
    pub allow_other: bool,
}

/// A daemon cannot start.
#[derive(Debug, thiserror::Error)]
#[error("this build has no runtime")]
pub struct StartError;

/// A daemon cannot stop.
#[derive(Debug, thiserror::Error)]
#[error("this build has no runtime")]
pub struct StopError;

/// What a daemon says about itself.
#[derive(Clone, Debug, Default)]
pub struct DaemonStatus {
    /// The libfabric provider.
    pub provider: Option<String>,
    /// The fabric address.
    pub address: Option<String>,
    /// The parent's name.
    pub parent: Option<String>,
    /// The children's names.
    pub children: Vec<String>,
    /// One or two words.
    pub state: String,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon;

impl Daemon {
    /// Starts and mounts.
    ///
    /// # Errors
    /// Always, in this build.
    pub fn start(_config: DaemonConfig, _counters: Arc<Counters>) -> Result<Daemon, StartError> {
        Err(StartError)
    }

    /// What it says about itself.
    pub fn status(&self) -> DaemonStatus {
        DaemonStatus::default()
    }

    /// Whether the mount has been taken away from outside.
    pub fn wait_ended(&self, timeout: Duration) -> bool {
        std::thread::sleep(timeout);
        false
    }

    /// Unmounts and ends.
    ///
    /// # Errors
    /// Always, in this build.
    pub fn stop(self, _deadline: Duration) -> Result<(), StopError> {
        Err(StopError)
    }
}

/// Detaches a dead mount of ours at `mountpoint`; false if there is none.
///
/// # Errors
/// Never, in this build.
pub fn clear_stale(_mountpoint: &std::path::Path) -> Result<bool, StartError> {
    Ok(false)
}
