//! Workers for what would hold the engine up: the backend's system calls, checksums and copies of many bytes.
//!
//! Fed by the engine, which bounds what is under way; results go back through a lock-free queue and the engine's waker.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use crossbeam::queue::SegQueue;

use super::backend::Backend;
use super::engine::Waker;
use crate::cache::arena::Slot;
use crate::core::{BackendOp, BackendReply, ChunkRead, FlightId};

/// How often a worker looks for descriptors to close while there are some.
const TIDY_EVERY: Duration = Duration::from_secs(5);

/// What a worker does.
pub(super) enum Task {
    /// Ask the backend.
    Backend { id: FlightId, op: BackendOp },
    /// Compute a checksum.
    Verify { id: FlightId, slot: Slot, len: usize },
    /// Answer a client with many bytes.
    Reply(Box<dyn FnOnce() + Send>),
}

/// What came of it.
pub(super) enum Done {
    /// The backend answered.
    Backend { id: FlightId, reply: BackendReply },
    /// The checksum.
    Verified { id: FlightId, slot: Slot, crc: u32 },
}

/// The workers.
pub(super) struct Pool {
    tasks: Option<Sender<Task>>,
    pub(super) done: Arc<SegQueue<Done>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// `threads` workers; `backend` on a root only.
    pub(super) fn start(threads: usize, backend: Option<Arc<Backend>>, waker: &Arc<Waker>) -> std::io::Result<Pool> {
        let (sender, tasks) = unbounded();
        let done = Arc::new(SegQueue::new());
        let mut pool = Pool { tasks: Some(sender), done: done.clone(), threads: Vec::new() };
        for n in 0..threads {
            let worker =
                Worker { tasks: tasks.clone(), done: done.clone(), waker: waker.clone(), backend: backend.clone() };
            let name = format!("bornite-work-{n}");
            pool.threads.push(std::thread::Builder::new().name(name).spawn(move || worker.run())?);
        }
        Ok(pool)
    }

    pub(super) fn submit(&self, task: Task) {
        if let Some(tasks) = &self.tasks {
            // The receivers live as long as the workers, which end only after this sender.
            let _ = tasks.send(task);
        }
    }

    /// Lets the workers end what they do; those that hang in the backend are left behind.
    pub(super) fn stop(&mut self, deadline: std::time::Instant) {
        self.tasks = None;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && std::time::Instant::now() < deadline {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            if thread.is_finished() {
                // A worker that panicked has already said so.
                let _ = thread.join();
            }
        }
    }
}

struct Worker {
    tasks: Receiver<Task>,
    done: Arc<SegQueue<Done>>,
    waker: Arc<Waker>,
    backend: Option<Arc<Backend>>,
}

impl Worker {
    fn run(self) {
        let mut open = false;
        loop {
            let task = if open {
                match self.tasks.recv_timeout(TIDY_EVERY) {
                    Ok(task) => task,
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        open = self.backend.as_ref().is_some_and(|b| b.close_idle());
                        continue;
                    }
                }
            } else {
                match self.tasks.recv() {
                    Ok(task) => task,
                    Err(_) => return,
                }
            };
            match task {
                Task::Reply(reply) => reply(),
                Task::Verify { id, mut slot, len } => {
                    let crc = crc32c::crc32c(&slot.as_mut_slice()[..len]);
                    self.finish(Done::Verified { id, slot, crc });
                }
                Task::Backend { id, op } => {
                    let Some(backend) = &self.backend else { continue };
                    open |= matches!(op, BackendOp::Chunk { .. });
                    let reply = ask(backend, op);
                    self.finish(Done::Backend { id, reply });
                }
            }
        }
    }

    fn finish(&self, done: Done) {
        self.done.push(done);
        self.waker.wake();
    }
}

fn ask(backend: &Backend, op: BackendOp) -> BackendReply {
    let errno = |e: rustix::io::Errno| e.raw_os_error();
    match op {
        BackendOp::Attr { path } => BackendReply::Attr(backend.attr(&path).map_err(errno)),
        BackendOp::List { path } => BackendReply::List(backend.list(&path).map_err(errno)),
        BackendOp::Chunk { path, version, offset, len, mut slot } => {
            let read = backend.chunk(&path, &version, offset, &mut slot.as_mut_slice()[..len]);
            BackendReply::Chunk(read.map(|(crc, ctime)| ChunkRead { slot, len, crc, ctime }))
        }
        BackendOp::Recheck { path, version, chunks } => {
            let gone = |e| if e == rustix::io::Errno::NOENT { rustix::io::Errno::STALE } else { e };
            BackendReply::Recheck(backend.recheck(&path, &version, &chunks).map_err(|e| errno(gone(e))))
        }
        BackendOp::Statfs => BackendReply::Statfs(backend.statfs().map_err(errno)),
    }
}
