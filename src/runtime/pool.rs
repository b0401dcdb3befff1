//! Workers for what would hold the engine up: the backend's system calls, checksums and copies of many bytes.
//!
//! Fed by the engine, which bounds what is under way; results go back through a lock-free queue and the engine's waker.
//!
//! A backend may hang for minutes, and a worker with it. Therefore there are three lanes, each with workers of its own: what
//! this node computes, questions about names, and reads of bytes; and a lane that asks the backend gets another worker
//! whenever all of its workers are busy, up to a bound. So what hangs in one lane holds up no other lane, and nothing in
//! its own before [`BACKEND_LANE_WORKERS_MAX`] operations hang. Workers that came later leave again when there is nothing to
//! do.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::asking::{Asking, Keeps, Question};
use super::wheel::Wheel;
use crate::cache::arena::{SegmentInfo, Slot};
use crate::cache::types::{Listing, ListingBuilder};
use crate::core::{BackendOp, BackendReply, FlightId};

/// Workers for checksums and large replies, which never wait for anything.
const COMPUTING_WORKERS: usize = 2;

/// Workers of either lane to the backend at the start.
const BACKEND_LANE_WORKERS_MIN: usize = 4;

/// Workers of either lane to the backend at most: as many operations of its kind may hang before others wait.
pub(super) const BACKEND_LANE_WORKERS_MAX: usize = 32;

/// How often a worker looks for descriptors to close while there are some; one that came later leaves after as long with
/// nothing to do.
pub(super) const TIDY_EVERY: Duration = Duration::from_secs(5);

/// What a worker does.
pub(super) enum Task {
    /// Ask the backend.
    Ask(Question),
    /// Close what other threads opened at the backend.
    Tidy,
    /// Compute a checksum.
    Verify { id: FlightId, slot: Slot, len: usize },
    /// Put a listing in order.
    Arrange { id: FlightId, parts: ListingBuilder, stamp: u64 },
    /// Make the pages of new memory present.
    Prefault(SegmentInfo, Range<usize>),
    /// Answer a client with many bytes.
    Reply(Box<dyn FnOnce() + Send>),
}

/// What came of it.
pub(super) enum Done {
    /// The backend answered.
    Backend { id: FlightId, reply: BackendReply },
    /// The checksum.
    Verified { id: FlightId, slot: Slot, crc: u32 },
    /// The listing.
    Arranged { id: FlightId, listing: Listing },
    /// New memory is ready; how much of it was made present.
    Prefaulted { segment: u16, bytes: u64 },
}

/// The workers.
pub(super) struct Pool {
    /// Checksums and replies.
    computing: Lane,
    /// Of the backend: attributes, listings and the like.
    names: Lane,
    /// Of the backend: reads of bytes.
    data: Lane,
}

impl Pool {
    /// The workers of a node. Those of the backend come with the first questions to it, on a root at once.
    pub(super) fn start(asking: &Arc<Asking>, wheel: &Arc<Wheel>) -> std::io::Result<Pool> {
        let lane = |name, keeps, min, max| {
            Lane::start(name, min, max, |tasks| Worker {
                tasks,
                busy: Arc::default(),
                spare: false,
                keeps,
                asking: asking.clone(),
                wheel: wheel.clone(),
            })
        };
        let min = if asking.is_open() { BACKEND_LANE_WORKERS_MIN } else { 0 };
        let max = BACKEND_LANE_WORKERS_MAX;
        Ok(Pool {
            computing: lane("work", Keeps::Nothing, COMPUTING_WORKERS, COMPUTING_WORKERS)?,
            names: lane("names", Keeps::Names, min, max)?,
            data: lane("data", Keeps::Bytes, min, max)?,
        })
    }

    pub(super) fn submit(&mut self, task: Task) {
        let lane = match &task {
            Task::Verify { .. } | Task::Arrange { .. } | Task::Reply(_) | Task::Prefault(..) => &mut self.computing,
            Task::Tidy => &mut self.data,
            Task::Ask(question) => match question.op {
                BackendOp::Chunk { .. } | BackendOp::Recheck { .. } => &mut self.data,
                BackendOp::Attr { .. } | BackendOp::List { .. } | BackendOp::Statfs => &mut self.names,
            },
        };
        lane.submit(task);
    }

    /// Lets the workers end what they do; those that hang in the backend are left behind.
    pub(super) fn stop(&mut self, deadline: Instant) {
        let lanes = [&mut self.computing, &mut self.names, &mut self.data];
        // All are told before any is waited for.
        let threads = lanes.map(|lane| {
            lane.tasks.close();
            std::mem::take(&mut lane.threads)
        });
        for thread in threads.into_iter().flatten() {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            if thread.is_finished() {
                // A worker that panicked has already said so.
                let _ = thread.join();
            }
        }
    }
}

/// A queue with workers of its own.
struct Lane {
    name: &'static str,
    tasks: Arc<Tasks>,
    /// The workers' end; also kept for those that come later.
    worker: Worker,
    /// Some of them may have left.
    threads: Vec<JoinHandle<()>>,
    threads_min: usize,
    threads_max: usize,
}

impl Lane {
    fn start(
        name: &'static str,
        threads_min: usize,
        threads_max: usize,
        worker: impl FnOnce(Arc<Tasks>) -> Worker,
    ) -> std::io::Result<Lane> {
        let tasks = Arc::<Tasks>::default();
        let worker = worker(tasks.clone());
        let mut lane = Lane { name, tasks, worker, threads: Vec::new(), threads_min, threads_max };
        for _ in 0..threads_min {
            lane.grow()?;
        }
        Ok(lane)
    }

    fn grow(&mut self) -> std::io::Result<()> {
        self.threads.retain(|thread| !thread.is_finished());
        let number = self.threads.len();
        let worker = Worker { spare: number >= self.threads_min, ..self.worker.clone() };
        let name = format!("bornite-{}-{number}", self.name);
        self.threads.push(std::thread::Builder::new().name(name).spawn(move || worker.run())?);
        self.tasks.lock().workers += 1;
        Ok(())
    }

    fn submit(&mut self, task: Task) {
        // Only this thread adds; a worker that is just done makes this one worker too many at worst.
        let busy = self.worker.busy.fetch_add(1, Ordering::Relaxed) + 1;
        let workers = self.tasks.put(task);
        if busy > workers
            && workers < self.threads_max
            && let Err(error) = self.grow()
        {
            log::warn!("cannot start another worker: {error}; {workers} must do");
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.tasks.close();
    }
}

/// Tasks that wait for a worker. A worker that waits sleeps at once: looking again and again, as the queues of the
/// libraries do first, costs more than the wake-up on a machine whose processors have other work.
#[derive(Default)]
struct Tasks {
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    /// Workers that have not left.
    workers: usize,
    closed: bool,
}

/// What a worker got.
enum Taken {
    Task(Task),
    /// Nothing in its time.
    Late,
    /// Nothing any more.
    Closed,
}

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing that is done under the lock panics halfway.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a task; gives the number of workers that there are for it.
    fn put(&self, task: Task) -> usize {
        let mut queue = self.lock();
        queue.tasks.push_back(task);
        let workers = queue.workers;
        drop(queue);
        self.filled.notify_one();
        workers
    }

    /// Counts a worker out, unless there is a task by now.
    fn leave(&self) -> bool {
        let mut queue = self.lock();
        let leaves = queue.tasks.is_empty();
        queue.workers -= usize::from(leaves);
        leaves
    }

    /// What is queued is still done; then workers get [`Taken::Closed`].
    fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    fn take(&self, timeout: Option<Duration>) -> Taken {
        let mut queue = self.lock();
        loop {
            match queue.tasks.pop_front() {
                Some(task) => return Taken::Task(task),
                None if queue.closed => return Taken::Closed,
                None => {}
            }
            match timeout {
                None => queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(timeout) => {
                    let waited = self.filled.wait_timeout(queue, timeout).unwrap_or_else(PoisonError::into_inner);
                    queue = waited.0;
                    if waited.1.timed_out() && queue.tasks.is_empty() && !queue.closed {
                        return Taken::Late;
                    }
                }
            }
        }
    }
}

#[derive(Clone)]
struct Worker {
    tasks: Arc<Tasks>,
    /// Tasks of the lane that are queued or being done.
    busy: Arc<AtomicUsize>,
    /// It came later than the lane began, and may leave.
    spare: bool,
    /// What else it does at once, where its own answer leads to it.
    keeps: Keeps,
    asking: Arc<Asking>,
    wheel: Arc<Wheel>,
}

impl Worker {
    fn run(self) {
        let mut open = false;
        loop {
            let task = match self.tasks.take((open || self.spare).then_some(TIDY_EVERY)) {
                Taken::Task(task) => task,
                Taken::Closed => return,
                Taken::Late => {
                    open = self.asking.close_idle();
                    if self.spare && !open && self.tasks.leave() {
                        return;
                    }
                    continue;
                }
            };
            let _busy = Busy(&self.busy);
            match task {
                Task::Reply(reply) => reply(),
                Task::Verify { id, mut slot, len } => {
                    let crc = crc32c::crc32c(&slot.as_mut_slice()[..len]);
                    self.finish(Done::Verified { id, slot, crc });
                }
                Task::Arrange { id, parts, stamp } => {
                    let listing = parts.build(stamp);
                    self.finish(Done::Arranged { id, listing });
                }
                Task::Prefault(segment, range) => {
                    // A kernel that cannot do so makes them present when they are used.
                    let bytes = segment.prefault(range).unwrap_or(0) as u64;
                    self.finish(Done::Prefaulted { segment: segment.index, bytes });
                }
                Task::Tidy => open |= self.asking.close_idle(),
                Task::Ask(question) => {
                    let mut next = Some(question);
                    while let Some(question) = next {
                        open |= matches!(question.op, BackendOp::Chunk { .. });
                        self.asking.answer(question);
                        next = self.wheel.help(self.keeps);
                    }
                }
            }
        }
    }

    fn finish(&self, done: Done) {
        self.asking.done.push(done);
        self.wheel.help(Keeps::Nothing);
    }
}

/// One task less when it is dropped, a panic included.
struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
