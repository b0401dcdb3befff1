//! Questions to the backend that a thread answers itself, after its turn at the wheel, since waking a worker takes longer
//! than most of them.
//!
//! Only what is quick where the backend is: attributes, and reads of few bytes. And a backend may hang, and the thread with
//! it. Therefore no more threads of a kind may do so than leave one to go on: FUSE threads need a [`Permit`], the engine's
//! thread another one that takes its place (see [`super::wheel`]), and workers are replaced by their lane. The engine's
//! thread leaves all to the workers for a while where one took longer than [`QUICK_US`], as the port is waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crossbeam::queue::SegQueue;
use rustix::io::Errno;

use super::clock;
use super::lazy::LazyBackend;
use super::pool::Done;
use crate::core::{BackendOp, BackendReply, ChunkFailure, FlightId};

/// A read of more bytes is a worker's: while a thread reads them it does nothing else.
const READ_BYTES_MAX: usize = 128 << 10;

/// An answer that takes longer is slow.
const QUICK_US: u64 = 200;

/// A slow one counts for so long at first, and for twice as long after each further one in a row: a filesystem that is
/// slow now and then is told from one that is slow.
const SLOW_FOR_US: u64 = 1_000;
const SLOW_DOUBLINGS_MAX: u32 = 4;

/// Which questions a thread keeps for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Keeps {
    /// None: they go to the workers.
    #[default]
    Nothing,
    /// Attributes.
    Names,
    /// Reads of few bytes.
    Bytes,
    /// Either.
    Both,
}

impl Keeps {
    pub(super) fn takes(self, op: &BackendOp) -> bool {
        match op {
            BackendOp::Attr { .. } => matches!(self, Keeps::Names | Keeps::Both),
            BackendOp::Chunk { len, .. } => matches!(self, Keeps::Bytes | Keeps::Both) && *len <= READ_BYTES_MAX,
            BackendOp::List { .. } | BackendOp::Recheck { .. } | BackendOp::Statfs => false,
        }
    }
}

/// A question to the backend.
pub(super) struct Question {
    pub(super) id: FlightId,
    pub(super) op: BackendOp,
}

/// The backend, and where its answers go.
pub(super) struct Asking {
    backend: Arc<LazyBackend>,
    pub(super) done: SegQueue<Done>,
    permits: AtomicUsize,
    slow_until: AtomicU64,
    /// Slow ones in a row.
    slow_ones: AtomicU32,
    /// A thread other than the workers, who close what they open, has read bytes.
    has_read: AtomicBool,
}

impl Asking {
    /// `permits`: FUSE threads that may be at the backend at a time.
    pub(super) fn new(backend: Arc<LazyBackend>, permits: usize) -> Asking {
        Asking {
            backend,
            done: SegQueue::new(),
            permits: AtomicUsize::new(permits),
            slow_until: AtomicU64::new(0),
            slow_ones: AtomicU32::new(0),
            has_read: AtomicBool::new(false),
        }
    }

    /// Whether the backend is one that was asked before: the first question opens it, which is for workers.
    pub(super) fn is_open(&self) -> bool {
        self.backend.opened().is_some()
    }

    /// Whether the engine's thread may ask it.
    pub(super) fn is_quick(&self) -> bool {
        self.is_open() && clock::now().0 >= self.slow_until.load(Ordering::Relaxed)
    }

    /// For a FUSE thread; `None` where it is the last one that reads requests.
    pub(super) fn permit(&self) -> Option<Permit<'_>> {
        if !self.is_open() {
            return None;
        }
        let taken = self.permits.fetch_update(Ordering::Acquire, Ordering::Relaxed, |left| left.checked_sub(1));
        taken.ok().map(|_| Permit(&self.permits))
    }

    /// Asks the backend, for as long as that takes; the answer goes to the engine.
    pub(super) fn answer(&self, Question { id, op }: Question) {
        let reply = match self.backend.for_question() {
            Ok(backend) => backend.answer(op),
            Err(errno) => refused(&op, errno),
        };
        self.done.push(Done::Backend { id, reply });
    }

    /// As `answer`, for a thread that others wait for, and that does not come back to close what it opened.
    pub(super) fn answer_and_leave(&self, question: Question) {
        let begin = clock::now();
        let reads = matches!(question.op, BackendOp::Chunk { .. });
        self.answer(question);
        let end = clock::now();
        // Relaxed, and with races between two who answer: it is a guess.
        if end.0.saturating_sub(begin.0) > QUICK_US {
            let doublings = self.slow_ones.fetch_add(1, Ordering::Relaxed).min(SLOW_DOUBLINGS_MAX);
            self.slow_until.store(end.after_us(SLOW_FOR_US << doublings).0, Ordering::Relaxed);
        } else {
            self.slow_ones.store(0, Ordering::Relaxed);
        }
        if reads {
            self.has_read.store(true, Ordering::Release);
        }
    }

    /// Whether a worker is to look for what may be closed.
    pub(super) fn take_has_read(&self) -> bool {
        self.has_read.swap(false, Ordering::Acquire)
    }

    /// Closes descriptors that were not used for a while; true while there are others.
    pub(super) fn close_idle(&self) -> bool {
        self.backend.opened().is_some_and(super::backend::Backend::close_idle)
    }
}

/// What [`Asking::permit`] gave, given back when it is dropped.
pub(super) struct Permit<'a>(&'a AtomicUsize);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// The answer where the backend cannot be asked.
fn refused(op: &BackendOp, errno: Errno) -> BackendReply {
    let errno = errno.raw_os_error();
    match op {
        BackendOp::Attr { .. } => BackendReply::Attr(Err(errno)),
        BackendOp::List { .. } => BackendReply::List(Err(errno)),
        BackendOp::Chunk { .. } => BackendReply::Chunk(Err(ChunkFailure::Errno(errno))),
        BackendOp::Recheck { .. } => BackendReply::Recheck(Err(errno)),
        BackendOp::Statfs => BackendReply::Statfs(Err(errno)),
    }
}
