//! A mount and the threads that serve it, from the handshake to the last reply. Used by the daemon's main thread.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::Duration;

use crate::Filesystem;
use crate::backing;
use crate::dispatch::Dispatcher;
use crate::ended::Ended;
use crate::error::{JoinError, MountError};
use crate::mount::{self, Mounted};
use crate::notify::Notifier;
use crate::options::{MAX_BACKGROUND_MIN, MountOptions, Passthrough, THREADS_MAX};
use crate::reply::{Passing, Shared};
use crate::stats::Stats;

/// A live mount. Dropping it detaches the mount and leaves the event threads to their end.
///
/// The order at the end: [`Session::unmount`], answer what is parked, [`Session::join`].
#[must_use = "dropping a session unmounts it"]
pub struct Session {
    mounted: Arc<Mounted>,
    shared: Arc<Shared>,
    ended: Arc<Ended>,
    notifier: Notifier,
    /// The event threads, until they are joined.
    background: Option<fuser::BackgroundSession>,
}

impl Session {
    /// Mounts `fs`: clears a stale mount of ours at the mount point, checks it, mounts (directly, or through fusermount3
    /// without the privilege) and shakes hands with the kernel. Requests are served when this returns.
    ///
    /// # Errors
    /// As [`MountError`] tells; nothing is left mounted then.
    pub fn mount<F: Filesystem>(fs: Arc<F>, options: MountOptions) -> Result<Session, MountError> {
        let ended = Arc::new(Ended::default());
        let (device, mounted) = mount::mount(&options, Arc::clone(&ended))?;
        let mounted = Arc::new(mounted);
        let failed = |action: &str| {
            let action = format!("{action} of {}", mounted.mountpoint.display());
            move |e| MountError::io(action, e)
        };
        let reply_device = device.try_clone().map_err(failed("duplicating the FUSE device"))?;
        let shared = Arc::new(Shared {
            stats: Stats::new(),
            device: File::from(reply_device),
            passing: AtomicU8::new(Passing::No as u8),
        });
        let max_background = options.max_background.max(MAX_BACKGROUND_MIN);
        let passes = options.passthrough != Passthrough::Off;
        let dispatcher = Dispatcher::new(fs, Arc::clone(&shared), Arc::clone(&ended), max_background, passes);

        let mut config = fuser::Config::default();
        config.n_threads = Some(options.threads.clamp(1, THREADS_MAX));
        // Replies may be written to any duplicate of the device's descriptor only as long as it is not cloned.
        config.clone_fd = false;
        // Who may ask is the kernel's to check (allow_other, default_permissions); the transport need not do it again.
        let transport = fuser::Session::from_fd(dispatcher, device, fuser::SessionACL::All, config)
            .map_err(failed("the handshake with the kernel"))?;
        if passes {
            // Opens are answered by the event threads, which are not there yet.
            match (backing::probe(&shared), options.passthrough) {
                (Ok(()), _) => shared.set_passing(Passing::Yes),
                (Err(reason), Passthrough::On) => {
                    return Err(MountError::NoPassthrough { path: mounted.mountpoint.clone(), reason });
                }
                (Err(reason), _) => {
                    shared.set_passing(Passing::No);
                    log::info!("files are not passed through: {reason}");
                }
            }
        }
        mount::set_readahead(mounted.device_number, options.max_readahead_kib);
        let notifier = Notifier::new(transport.notifier());
        let background = transport.spawn().map_err(failed("starting the event threads"))?;
        Ok(Session { mounted, shared, ended, notifier, background: Some(background) })
    }

    /// The mount point: absolute, without links.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mounted.mountpoint
    }

    /// `st_dev` of everything in the mount, found without touching it.
    #[must_use]
    pub fn device(&self) -> u64 {
        self.mounted.device_number.st_dev()
    }

    /// Drops what the kernel caches; only to be used from a thread of its own.
    #[must_use]
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    /// Whether files are passed through: [`crate::Filesystem::open`] is asked.
    #[must_use]
    pub fn passes_through(&self) -> bool {
        self.shared.passes_through()
    }

    /// Requests that reached the daemon.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// A handle that can unmount from another thread, as one that waits for signals.
    #[must_use]
    pub fn unmounter(&self) -> Unmounter {
        Unmounter { mounted: Arc::clone(&self.mounted) }
    }

    /// Detaches the mount, see [`Unmounter::unmount`].
    ///
    /// # Errors
    /// As [`Unmounter::unmount`].
    pub fn unmount(&self) -> Result<(), MountError> {
        self.mounted.detach()
    }

    /// Waits at most `limit` for the event threads to end (the mount is gone and nobody holds it any more, whoever
    /// unmounted it); whether they have.
    #[must_use]
    pub fn wait_ended(&self, limit: Duration) -> bool {
        self.ended.wait(limit)
    }

    /// Waits for the event threads to end, at most `deadline`. They do once the mount is detached and nothing holds it any
    /// more: no open file, no working directory, no parked request.
    ///
    /// # Errors
    /// [`JoinError::Deadline`] when something still does. The process may then exit: that closes the connection, parked
    /// requests fail with `ECONNABORTED`, later ones with `ENOTCONN`, and no dead mount is left, since it is detached.
    pub fn join(mut self, deadline: Duration) -> Result<(), JoinError> {
        let mountpoint = self.mounted.mountpoint.clone();
        if !self.ended.wait(deadline) {
            return Err(JoinError::Deadline { mountpoint, deadline });
        }
        // The dispatcher is told of the end by the thread that is joined here, as its last act.
        let joined = self.background.take().map_or(Ok(()), fuser::BackgroundSession::join);
        joined.map_err(|source| JoinError::Transport { mountpoint, source })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(e) = self.unmount() {
            log::warn!("{e}");
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("mounted", &self.mounted).field("stats", self.stats()).finish_non_exhaustive()
    }
}

/// Unmounts a session from any thread; harmless once the session is gone.
#[derive(Clone, Debug)]
pub struct Unmounter {
    mounted: Arc<Mounted>,
}

impl Unmounter {
    /// Detaches the mount, lazily: works while it is busy, new path walks no longer find it, what is open goes on being
    /// served. Idempotent, and no error when somebody else has unmounted it; it never touches another mount.
    ///
    /// # Errors
    /// [`MountError::Covered`] when another mount lies over it; otherwise as the system answers.
    pub fn unmount(&self) -> Result<(), MountError> {
        self.mounted.detach()
    }
}
