//! The engine: the one thread that owns the node, the writer sides of its memory, and the fabric port.
//!
//! It takes what FUSE threads park and what workers finish from lock-free queues, lets the node decide, and carries
//! out what the node asks for. While there is nothing to do it waits on the port's descriptor beside an eventfd, so an
//! idle daemon uses no CPU; before that it looks again for some microseconds, if there is a second CPU.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bornite_fuse::Errno;
use crossbeam::channel::Sender;
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::Backoff;
use hashbrown::HashMap;
use rustix::event::{EventfdFlags, eventfd};

use super::clock;
use super::handler::{self, Next, REPLY_INLINE_BYTES};
use super::pool::{Done, Pool, Task};
use super::replies::Kernel;
use super::transport::Transport;
use crate::cache::enoent::EnoentMap;
use crate::cache::names::Names;
use crate::cache::types::{Ino, Micros};
use crate::core::{Asks, Node, Object, Output, ParentState, Swept, Waiter};
use crate::observe::{Counter, Counters};

/// Requests that FUSE threads may have handed over and the engine not yet taken. More than the kernel's
/// `max_background`, so it is full only for moments.
const INBOX_MAX: usize = 4096;

/// Things taken from one queue before the others get their turn.
const BATCH: usize = 64;

/// The engine looks again for so long before it waits, where there are two CPUs or more.
const SPIN: Duration = Duration::from_micros(30);

/// The longest wait: also the tick of maintenance.
const WAIT_MAX_US: u64 = 1_000_000;

/// How often expired entries are dropped while the engine is busy.
const MAINTAIN_US: u64 = 100_000;

/// How often the node's counters are published while the engine is busy.
const PUBLISH_US: u64 = 20_000;

type Job = handler::Job<Kernel>;
type ReadJob = handler::ReadJob<Kernel>;

/// Wakes the engine from other threads; costs a system call only when it sleeps.
#[derive(Debug)]
pub(super) struct Waker {
    event: OwnedFd,
    sleeping: AtomicBool,
}

impl Waker {
    pub(super) fn new() -> std::io::Result<Waker> {
        Ok(Waker {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            sleeping: AtomicBool::new(false),
        })
    }

    /// To be called after something was put into a queue of the engine's.
    pub(super) fn wake(&self) {
        // Pairs with the fence in `prepare`: either this sees that the engine sleeps, or the engine sees what was put.
        fence(Ordering::SeqCst);
        if self.sleeping.swap(false, Ordering::Relaxed) {
            // A full counter (EAGAIN) wakes as well.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// The engine is about to sleep; it must look at its queues once more after this.
    fn prepare(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn woken(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
        // EAGAIN: nobody wrote.
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// What FUSE threads hand to the engine.
enum Item {
    Park(Object, Job),
    Forget(Ino),
    Sweep(Box<[u8]>, Sender<Swept>),
    Fenced(u64),
}

/// The way from FUSE threads to the engine.
pub(super) struct Inbox {
    queue: ArrayQueue<Item>,
    waker: Arc<Waker>,
    closed: AtomicBool,
}

impl Inbox {
    pub(super) fn new(waker: Arc<Waker>) -> Inbox {
        Inbox { queue: ArrayQueue::new(INBOX_MAX), waker, closed: AtomicBool::new(false) }
    }

    pub(super) fn park(&self, object: Object, job: Job) {
        self.put(Item::Park(object, job));
    }

    pub(super) fn forget(&self, ino: Ino) {
        self.put(Item::Forget(ino));
    }

    /// Has everything at and below `path` asked for anew by every node; how it ended goes to `answer`.
    pub(super) fn sweep(&self, path: Box<[u8]>, answer: Sender<Swept>) {
        self.put(Item::Sweep(path, answer));
    }

    /// The kernel knows of all notices before this fence.
    pub(super) fn fenced(&self, fence: u64) {
        self.put(Item::Fenced(fence));
    }

    /// Waits for room: the FUSE thread reads no further request meanwhile, and nothing is dropped. The engine takes
    /// from the queue in every turn; once it has ended, requests fail.
    fn put(&self, item: Item) {
        let mut item = item;
        let backoff = Backoff::new();
        while let Err(back) = self.queue.push(item) {
            item = back;
            if self.closed.load(Ordering::Acquire) {
                return refuse(item);
            }
            self.waker.wake();
            if backoff.is_completed() {
                std::thread::park_timeout(Duration::from_micros(100));
            } else {
                backoff.snooze();
            }
        }
        self.waker.wake();
        // The engine may have ended between the push and here: whoever sees `closed` empties the queue.
        if self.closed.load(Ordering::SeqCst) {
            self.refuse_all();
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.refuse_all();
    }

    fn refuse_all(&self) {
        while let Some(item) = self.queue.pop() {
            refuse(item);
        }
    }
}

fn refuse(item: Item) {
    if let Item::Park(_, job) = item {
        job.error(Errno::EIO);
    }
}

/// What the engine shows to other threads.
#[derive(Debug, Default)]
pub(super) struct Shown {
    pub(super) stop: AtomicBool,
    pub(super) parent: AtomicU64,
    asks: Mutex<Vec<Asks>>,
    /// [`Node::switches`] when they were put there.
    switches: AtomicU64,
}

impl Shown {
    pub(super) fn parent_state(&self) -> ParentState {
        match self.parent.load(Ordering::Relaxed) {
            0 => ParentState::None,
            1 => ParentState::Unreachable,
            2 => ParentState::NotServing,
            _ => ParentState::Ready,
        }
    }

    /// Whom the node asks, tree by tree.
    pub(super) fn asks(&self) -> Vec<Asks> {
        self.asks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn show(&self, state: ParentState) {
        let value = match state {
            ParentState::None => 0,
            ParentState::Unreachable => 1,
            ParentState::NotServing => 2,
            ParentState::Ready => 3,
        };
        self.parent.store(value, Ordering::Relaxed);
    }
}

/// What the notify thread tells the kernel.
pub(super) enum Notice {
    /// A name and its inode are void.
    Gone { ino: Ino, path: Box<[u8]> },
    /// They are to be asked for anew.
    Expire { ino: Ino, path: Box<[u8]>, dir: bool },
    /// The engine wants to know when everything before this was told.
    Fence(u64),
}

/// Hands a notice to the notify thread.
pub(super) type Notify = Box<dyn Fn(Notice) + Send>;

/// All that the engine thread owns.
pub(super) struct Engine {
    pub(super) node: Node,
    pub(super) transport: Transport,
    pub(super) pool: Pool,
    pub(super) inbox: Arc<Inbox>,
    pub(super) waker: Arc<Waker>,
    pub(super) shown: Arc<Shown>,
    pub(super) counters: Arc<Counters>,
    pub(super) enoent: Arc<EnoentMap>,
    pub(super) names: Arc<Names>,
    pub(super) notify: Notify,
    pub(super) spins: bool,
}

/// The parts of a running engine that change from turn to turn.
#[derive(Default)]
struct Turn {
    jobs: HashMap<u64, Job>,
    sweeps: HashMap<u64, Sender<Swept>>,
    last_job: u64,
    maintained: Micros,
    published: Micros,
}

impl Engine {
    /// Runs until told to stop; then every parked request fails, and the port is closed.
    pub(super) fn run(mut self, close_within: Duration) {
        let mut turn = Turn::default();
        while !self.shown.stop.load(Ordering::Acquire) {
            let begin = clock::now();
            let busy = self.turn(&mut turn, begin);
            self.tick(&mut turn, begin, busy);
            if busy {
                let took = clock::now().0.saturating_sub(begin.0);
                self.counters.add(Counter::EngineTurns, 1);
                self.counters.raise(Counter::EngineTurnUsMax, took);
            } else if !self.spin() {
                self.wait();
            }
        }
        self.inbox.close();
        for (_, job) in turn.jobs.drain() {
            self.counters.add(Counter::RepliesEio, 1);
            job.error(Errno::EIO);
        }
        self.publish();
        let deadline = Instant::now() + close_within;
        self.pool.stop(deadline);
        self.transport.close(deadline);
    }

    /// One turn. True when there was something to do.
    fn turn(&mut self, turn: &mut Turn, now: Micros) -> bool {
        let mut busy = self.transport.poll(now, &mut self.node);
        for _ in 0..BATCH {
            let Some(item) = self.inbox.queue.pop() else { break };
            busy = true;
            match item {
                Item::Park(object, job) => self.start(turn, now, object, job),
                Item::Forget(ino) => self.node.forget(ino),
                Item::Fenced(fence) => self.node.fenced(now, fence),
                Item::Sweep(path, answer) => {
                    turn.last_job += 1;
                    turn.sweeps.insert(turn.last_job, answer);
                    self.node.sweep(now, &path, turn.last_job);
                }
            }
        }
        for _ in 0..BATCH {
            let Some(done) = self.pool.done.pop() else { break };
            busy = true;
            match done {
                Done::Backend { id, reply } => self.node.backend(now, id, reply),
                Done::Verified { id, slot, crc } => self.node.verified(now, id, slot, crc),
            }
        }
        if self.node.next_deadline().is_some_and(|at| at <= now) {
            busy = true;
            self.node.timer(now);
        }
        while let Some(output) = self.node.poll_output() {
            busy = true;
            self.carry_out(turn, now, output);
        }
        busy | self.transport.retry(now, &mut self.node)
    }

    fn start(&mut self, turn: &mut Turn, now: Micros, object: Object, job: Job) {
        turn.last_job += 1;
        turn.jobs.insert(turn.last_job, job);
        self.node.request(now, object, Waiter::Local(turn.last_job));
    }

    fn carry_out(&mut self, turn: &mut Turn, now: Micros, output: Output) {
        match output {
            Output::Send { to, frame } => self.transport.send(now, to, frame),
            Output::Pull { id, from, key, offset, len, slot } => {
                self.transport.pull(now, id, from, (key, offset), len, slot);
            }
            Output::Verify { id, slot, len } => self.pool.submit(Task::Verify { id, slot, len }),
            Output::Backend { id, op } => self.pool.submit(Task::Backend { id, op }),
            Output::Register { segment } => self.transport.register(segment, &mut self.node),
            Output::Invalidate { ino, path } => (self.notify)(Notice::Gone { ino, path }),
            Output::Expire { ino, path, dir } => (self.notify)(Notice::Expire { ino, path, dir }),
            Output::Fence { id } => (self.notify)(Notice::Fence(id)),
            Output::Swept { waiter, swept } => {
                if let Some(answer) = turn.sweeps.remove(&waiter) {
                    // Who asked may have given up.
                    let _ = answer.send(swept);
                }
            }
            Output::Complete { waiter, outcome } => {
                let Some(job) = turn.jobs.remove(&waiter) else { return };
                match job.finish(outcome, now) {
                    Next::Answered => {}
                    Next::More(object, job) => self.start(turn, now, object, job),
                    Next::Send(job) => self.reply(job),
                }
            }
        }
    }

    fn reply(&mut self, job: ReadJob) {
        if job.len() > REPLY_INLINE_BYTES {
            self.pool.submit(Task::Reply(Box::new(move || job.send(clock::now()))));
        } else {
            job.send(clock::now());
        }
    }

    /// Looks for something to do for a short while, so that an answer that is about to come needs no wake-up.
    fn spin(&mut self) -> bool {
        if !self.spins || self.node.in_flight() == 0 {
            return false;
        }
        let begin = Instant::now();
        while begin.elapsed() < SPIN {
            if self.has_work() || self.transport.poll(clock::now(), &mut self.node) {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    fn has_work(&self) -> bool {
        !self.inbox.queue.is_empty() || !self.pool.done.is_empty() || self.shown.stop.load(Ordering::Acquire)
    }

    fn wait(&mut self) {
        self.waker.prepare();
        if !self.has_work() {
            let now = clock::now();
            let next = self.node.next_deadline().map_or(WAIT_MAX_US, |at| at.remaining_us(now));
            let wait = next.min(WAIT_MAX_US).min(self.transport.retry_in(now));
            if wait > 0 {
                self.transport.wait(&self.waker, Duration::from_micros(wait));
            }
        }
        self.waker.woken();
    }

    fn tick(&mut self, turn: &mut Turn, now: Micros, busy: bool) {
        if now.0.saturating_sub(turn.maintained.0) >= MAINTAIN_US {
            turn.maintained = now;
            self.enoent.maintain(now);
        }
        if !busy || now.0.saturating_sub(turn.published.0) >= PUBLISH_US {
            turn.published = now;
            self.publish();
        }
    }

    /// Makes the node's own counts visible.
    fn publish(&self) {
        let n = self.node.counters();
        let n_switches = self.node.switches();
        let e = self.enoent.stats();
        let a = self.node.store().stats();
        let t = self.transport.counts();
        for (counter, value) in [
            (Counter::RequestsFromPeersAttr, n.peers_attr),
            (Counter::RequestsFromPeersList, n.peers_list),
            (Counter::RequestsFromPeersChunk, n.peers_chunk),
            (Counter::RequestsFromPeersStatfs, n.peers_statfs),
            (Counter::RequestsFromPeersProbe, n.peers_probe),
            (Counter::RequestsToParent, n.to_parent),
            (Counter::ProbesToParent, n.probes),
            (Counter::Heartbeats, n.heartbeats),
            (Counter::Suspicions, n.suspicions),
            (Counter::Failovers, n.failovers),
            (Counter::AskedAgain, n.asked_again),
            (Counter::Substitutes, self.node.substitutes() as u64),
            (Counter::RateLimited, n.rate_limited),
            (Counter::FramesForeign, n.foreign),
            (Counter::GrantsTaken, n.grants_taken),
            (Counter::FramesReceived, n.frames),
            (Counter::FramesSent, t.sent),
            (Counter::FramesDropped, n.dropped + t.dropped),
            (Counter::ReadsFromParent, n.pulls),
            (Counter::ReadBytesFromParent, n.chunk_bytes),
            (Counter::FlightsJoined, n.joined),
            (Counter::Retries, n.retries),
            (Counter::Timeouts, n.timeouts),
            (Counter::BadChecksums, n.bad_checksums),
            (Counter::LeasesEnded, n.leases_ended),
            (Counter::Rechecks, n.rechecks),
            (Counter::EnoentStores, e.stores),
            (Counter::EnoentServes, e.serves),
            (Counter::EnoentExpires, e.expires),
            (Counter::EnoentClears, e.clears),
            (Counter::EnoentRaced, e.raced),
            (Counter::EnoentFull, e.full),
            (Counter::CacheBytesCapacity, a.capacity_bytes as u64),
            (Counter::CacheBytesMapped, a.mapped_bytes as u64),
            (Counter::CacheBytesUsed, a.used_bytes as u64),
            (Counter::Chunks, a.chunks as u64),
            (Counter::ChunksEvicted, a.evicted_chunks),
            (Counter::Inodes, self.names.stats().inodes),
        ] {
            self.counters.set(counter, value);
        }
        self.shown.show(self.node.parent_state(clock::now()));
        if self.shown.switches.swap(n_switches, Ordering::Relaxed) != n_switches {
            *self.shown.asks.lock().unwrap_or_else(PoisonError::into_inner) = self.node.asks().collect();
        }
    }
}
