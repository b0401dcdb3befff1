//! The backend of a node that may never need it: opened at the first question.
//!
//! Asked by the pool's workers. A root opens it at its start, so that a wrong target is an error there; every other node
//! asks the backend only where it stands in for a root that is dead.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::io::Errno;

use super::backend::{Backend, BackendError};
use crate::cache::names::Names;
use crate::observe::Counters;

/// See the module.
pub(super) struct LazyBackend {
    target: PathBuf,
    stamp: u64,
    clock_margin: Duration,
    counters: Arc<Counters>,
    names: Arc<Names>,
    opened: OnceLock<Backend>,
    /// It is the target of a root, which knows best what that is.
    own: AtomicBool,
    complained: AtomicBool,
}

impl LazyBackend {
    /// The tree below `target`, see [`Backend::new`]. `names`: what the node has heard of it from others.
    pub(super) fn new(target: &Path, stamp: u64, counters: Arc<Counters>, names: Arc<Names>) -> LazyBackend {
        let (opened, own, complained) = (OnceLock::new(), AtomicBool::new(false), AtomicBool::new(false));
        let (target, clock_margin) = (target.to_owned(), Duration::ZERO);
        LazyBackend { target, stamp, clock_margin, counters, names, opened, own, complained }
    }

    /// See [`Backend::with_clock_margin`].
    pub(super) fn with_clock_margin(self, clock_margin: Duration) -> LazyBackend {
        LazyBackend { clock_margin, ..self }
    }

    /// Opens it for a root.
    ///
    /// # Errors
    /// The target cannot be served.
    pub(super) fn open_own(&self) -> Result<(), BackendError> {
        self.own.store(true, Ordering::Relaxed);
        self.open().map(drop)
    }

    /// Opens it, unless it is open already.
    ///
    /// # Errors
    /// The target cannot be served.
    pub(super) fn open(&self) -> Result<&Backend, BackendError> {
        if let Some(backend) = self.opened.get() {
            return Ok(backend);
        }
        let backend = Backend::new(&self.target, self.stamp, self.counters.clone())?;
        Ok(self.opened.get_or_init(|| backend.with_clock_margin(self.clock_margin)))
    }

    /// If it is open.
    pub(super) fn opened(&self) -> Option<&Backend> {
        self.opened.get()
    }

    /// The backend, for a question.
    ///
    /// # Errors
    /// EIO where the target cannot be opened, or is another directory than the one that the others serve: what is missing
    /// on this node only must not look like absence.
    pub(super) fn for_question(&self) -> Result<&Backend, Errno> {
        let why = match self.open() {
            Ok(backend) => match self.names.get(b"") {
                Some(known) if known.attr.backend_ino != backend.root_ino() && !self.own.load(Ordering::Relaxed) => {
                    format!("target {} is another directory here than on the root's node", self.target.display())
                }
                _ => return Ok(backend),
            },
            Err(error) => error.to_string(),
        };
        if !self.complained.swap(true, Ordering::Relaxed) {
            log::error!("cannot ask the backend in place of the root: {why}");
        }
        Err(Errno::IO)
    }
}
