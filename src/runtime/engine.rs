//! The engine: the node, the writer sides of its memory, and the fabric port.
//!
//! It takes what FUSE threads park and what workers finish from lock-free queues, lets the node decide, and carries
//! out what the node asks for. Who has it in hand, and when it sleeps, is the business of [`wheel`](super::wheel).

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bornite_fuse::Errno;
use crossbeam::channel::Sender;
use crossbeam::utils::Backoff;
use hashbrown::HashMap;

use super::asking::{Asking, Keeps, Question};
use super::clock;
use super::handler::{self, Next, REPLY_INLINE_BYTES, ReadAhead};
use super::pool::{Done, Pool, TIDY_EVERY, Task};
use super::replies::Kernel;
use super::transport::{Nap, Transport};
use super::wheel::{Luck, Waker, Wheel};
use crate::cache::arena::{Arena, Slot};
use crate::cache::chunks::Chunk;
use crate::cache::enoent::EnoentMap;
use crate::cache::names::Names;
use crate::cache::types::{Ino, Micros};
use crate::core::{Asks, BackendOp, Node, Object, Outcome, Output, ParentState, Readiness, Swept, Waiter};
use crate::observe::{Counter, Counters};

/// Requests that FUSE threads may have handed over and the engine not yet taken. More than the kernel's
/// `max_background`, so it is full only for moments.
pub(super) const INBOX_MAX: usize = 4096;

/// A turn looks after the port again by then: peers' reads are served only while somebody does.
const TURN_US: u64 = 200;

/// Things done before it is looked at how long they took.
const LOOK_EVERY: usize = 8;

/// Things taken from one queue before the others get their turn.
const BATCH: usize = 64;

/// The engine looks again for so long before it waits, where there are two CPUs or more.
const SPIN: Duration = Duration::from_micros(30);

/// The longest wait: also the tick of maintenance.
const WAIT_MAX_US: u64 = 1_000_000;

/// A turn of a thread that only passes by takes no longer than this, but for the one step that it is in.
const HELP_US: u64 = 200;

/// Pages of the arena are made present so far ahead of what is filled, and of a spare segment before it is used. Fresh
/// pages cost up to 3 ms per MiB (measured in a virtual machine): too much for who fills them, and for memory that is
/// never used.
const PREFAULT_AHEAD_BYTES: usize = 16 << 20;
const SPARE_PREFAULT_BYTES: usize = 8 << 20;

/// No fewer at a time, but for the end of a segment.
const PREFAULT_BYTES_MIN: usize = 4 << 20;

/// How often expired entries are dropped while the engine is busy.
const MAINTAIN_US: u64 = 100_000;

/// How often the node's counters are published by itself; who looks at them has them published, see [`Wheel::publish`].
const PUBLISH_US: u64 = 100_000;

/// Names that the kernel is asked to let go of at once.
const RELEASING_MAX: usize = 256;

type Job = handler::Job<Kernel>;
type ReadJob = handler::ReadJob<Kernel>;

/// Whether a turn that began at `begin` has taken its time: looked at once in a while.
fn is_over(at: usize, begin: Micros) -> bool {
    at % LOOK_EVERY == LOOK_EVERY - 1 && clock::now().0.saturating_sub(begin.0) >= TURN_US
}

/// Fetches a chunk for something else than a read.
pub(super) struct Fetch {
    /// What is done with a chunk that came takes no longer than an answer, and hands nothing to the engine.
    pub(super) is_short: bool,
    /// Called once, on a worker or, where it is short, by the engine.
    pub(super) done: Box<dyn FnOnce(Result<Arc<Chunk>, Errno>) + Send>,
}

/// What FUSE threads and workers hand to the engine.
pub(super) enum Item {
    Park(Object, Job),
    Fetch(Object, Fetch),
    PassedOn(Ino),
    Ahead(ReadAhead),
    Forget(Ino),
    Sweep(Box<[u8]>, Sender<Swept>),
    Fenced(u64),
    Mounted,
}

/// The way from FUSE threads to the engine.
pub(super) struct Inbox {
    wheel: Arc<Wheel>,
    closed: AtomicBool,
}

impl Inbox {
    pub(super) fn new(wheel: Arc<Wheel>) -> Inbox {
        Inbox { wheel, closed: AtomicBool::new(false) }
    }

    /// Hands a request over, and serves it as far as this thread can.
    pub(super) fn park(&self, object: Object, job: Job) {
        self.put(Item::Park(object, job));
        self.wheel.help_and_ask();
    }

    /// As `park`, for a chunk.
    pub(super) fn fetch(&self, object: Object, fetch: Fetch) {
        self.put(Item::Fetch(object, fetch));
        self.wheel.help_and_ask();
    }

    /// As `fetch`, by a worker, which must not wait for the backend.
    pub(super) fn fetch_more(&self, object: Object, fetch: Fetch) {
        self.put(Item::Fetch(object, fetch));
        self.wheel.help(Keeps::Nothing);
    }

    /// Bytes of this file are where the kernel will read them by itself. A hint: it is dropped where the queue is full.
    pub(super) fn passed_on(&self, ino: Ino) {
        if self.wheel.items.push(Item::PassedOn(ino)).is_ok() {
            self.wheel.waker.wake();
        }
    }

    /// A hint: it is dropped where the queue is full.
    pub(super) fn ahead(&self, ahead: ReadAhead) {
        if self.wheel.items.push(Item::Ahead(ahead)).is_ok() {
            self.wheel.help(Keeps::Nothing);
        }
    }

    pub(super) fn forget(&self, ino: Ino) {
        self.put(Item::Forget(ino));
        self.wheel.waker.wake();
    }

    /// Has everything at and below `path` asked for anew by every node; how it ended goes to `answer`.
    pub(super) fn sweep(&self, path: Box<[u8]>, answer: Sender<Swept>) {
        self.put(Item::Sweep(path, answer));
        self.wheel.waker.wake();
    }

    /// The kernel knows of all notices before this fence.
    pub(super) fn fenced(&self, fence: u64) {
        self.put(Item::Fenced(fence));
        self.wheel.waker.wake();
    }

    /// The mount answers.
    pub(super) fn mounted(&self) {
        self.put(Item::Mounted);
        self.wheel.waker.wake();
    }

    /// Waits for room: the FUSE thread reads no further request meanwhile, and nothing is dropped. The engine takes
    /// from the queue in every turn; once it has ended, requests fail.
    fn put(&self, item: Item) {
        let mut item = item;
        let backoff = Backoff::new();
        while let Err(back) = self.wheel.items.push(item) {
            item = back;
            if self.closed.load(Ordering::Acquire) {
                return refuse(item);
            }
            self.wheel.waker.wake();
            if backoff.is_completed() {
                std::thread::park_timeout(Duration::from_micros(100));
            } else {
                backoff.snooze();
            }
        }
        // The engine may have ended between the push and here: whoever sees `closed` empties the queue.
        if self.closed.load(Ordering::SeqCst) {
            self.refuse_all();
        }
    }

    /// Whoever waits for room, and all that is queued, is refused from now on.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.refuse_all();
    }

    fn refuse_all(&self) {
        while let Some(item) = self.wheel.items.pop() {
            refuse(item);
        }
    }
}

fn refuse(item: Item) {
    match item {
        Item::Park(_, job) => job.error(Errno::EIO),
        Item::Fetch(_, fetch) => (fetch.done)(Err(Errno::EIO)),
        Item::PassedOn(_) | Item::Ahead(_) | Item::Forget(_) | Item::Sweep(..) | Item::Fenced(_) | Item::Mounted => {}
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
    readiness: Mutex<Readiness>,
    /// [`Node::readiness_version`] when it was put there; one more, so that the first is put there.
    readiness_version: AtomicU64,
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

    /// Who is ready at and below the node.
    pub(super) fn readiness(&self) -> Readiness {
        self.readiness.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn show_readiness(&self, node: &Node) {
        let version = node.readiness_version() + 1;
        if self.readiness_version.swap(version, Ordering::Relaxed) != version {
            *self.readiness.lock().unwrap_or_else(PoisonError::into_inner) = node.readiness();
        }
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
    /// A name is to be let go, if nobody uses it.
    Release { path: Box<[u8]> },
    /// The engine wants to know when everything before this was told.
    Fence(u64),
}

/// Hands a notice to the notify thread.
pub(super) type Notify = Box<dyn Fn(Notice) + Send>;

/// All that belongs to who is at the wheel.
pub(super) struct Engine {
    pub(super) node: Node,
    pub(super) transport: Transport,
    pub(super) pool: Pool,
    pub(super) asking: Arc<Asking>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) shown: Arc<Shown>,
    pub(super) counters: Arc<Counters>,
    pub(super) enoent: Arc<EnoentMap>,
    pub(super) names: Arc<Names>,
    pub(super) arena: Arc<Arena>,
    pub(super) notify: Notify,
    /// Names that the notify thread has not yet asked the kernel to let go of.
    pub(super) releasing: Arc<AtomicUsize>,
    pub(super) spins: bool,
    pub(super) work: Work,
}

/// What is under way at an engine.
#[derive(Default)]
pub(super) struct Work {
    luck: Luck,
    /// Of the questions to the backend, those that who is at the wheel answers itself: the first one.
    keeps: Keeps,
    kept: Option<Question>,
    jobs: HashMap<u64, Job>,
    fetches: HashMap<u64, Fetch>,
    sweeps: HashMap<u64, Sender<Swept>>,
    last_job: u64,
    /// By segment: bytes whose pages were made present, or are being, and those that it has.
    prefaulted: HashMap<u16, (usize, usize)>,
    maintained: Micros,
    published: Micros,
    tidied: Micros,
}

/// What comes after a turn of the engine's own thread.
pub(super) enum Turn {
    /// Another one.
    Again,
    /// This is for the thread to answer.
    Asks(Question),
    /// There is nothing to do: how and how long it may sleep.
    Sleeps(Nap, Duration),
}

impl Engine {
    /// A turn of the engine's own thread, which answers itself what it `keeps`.
    pub(super) fn long_turn(&mut self, waker: &Waker, keeps: Keeps) -> Turn {
        let begin = clock::now();
        self.work.keeps = keeps;
        let busy = self.transport.poll(begin, &mut self.node) | self.turn(begin);
        self.tick(begin);
        if busy {
            self.count_turn(begin);
            return self.work.kept.take().map_or(Turn::Again, Turn::Asks);
        }
        if self.spin() {
            return Turn::Again;
        }
        waker.prepare();
        let nap = if self.has_work() { None } else { self.transport.before_sleep() };
        let timeout = self.next(clock::now()).map_or(WAIT_MAX_US, |next| next.min(WAIT_MAX_US));
        match nap {
            Some(nap) if timeout > 0 => Turn::Sleeps(nap, Duration::from_micros(timeout)),
            _ => {
                waker.woken(false);
                Turn::Again
            }
        }
    }

    /// A turn of a thread that has brought something: gives when the engine is to be looked after next, and what the
    /// thread is to answer itself, of what it `keeps`.
    pub(super) fn short_turn(&mut self, keeps: Keeps) -> (Option<Micros>, Option<Question>) {
        let begin = clock::now();
        self.work.keeps = keeps;
        let next = self.short_turns(begin);
        self.count_turn(begin);
        (next, self.work.kept.take())
    }

    fn short_turns(&mut self, begin: Micros) -> Option<Micros> {
        let mut now = begin;
        while self.turn(now) {
            now = clock::now();
            if now.0.saturating_sub(begin.0) > HELP_US {
                // What is left is for the engine's thread.
                return Some(Micros(0));
            }
        }
        self.next(now).map(|left| now.after_us(left))
    }

    fn count_turn(&self, begin: Micros) {
        self.counters.add(Counter::EngineTurns, 1);
        self.counters.raise(Counter::EngineTurnUsMax, clock::now().0.saturating_sub(begin.0));
    }

    /// Microseconds until something is due.
    fn next(&self, now: Micros) -> Option<u64> {
        let timer = self.node.next_deadline().map(|at| at.remaining_us(now));
        timer.into_iter().chain(Some(self.transport.retry_in(now))).min()
    }

    /// Every parked request fails; the port is closed.
    pub(super) fn end(mut self, close_within: Duration) {
        self.inbox.close();
        for (_, job) in self.work.jobs.drain() {
            self.counters.add(Counter::RepliesEio, 1);
            job.error(Errno::EIO);
        }
        for (_, fetch) in self.work.fetches.drain() {
            (fetch.done)(Err(Errno::EIO));
        }
        self.publish();
        let deadline = Instant::now() + close_within;
        self.pool.stop(deadline);
        self.transport.close(deadline);
    }

    /// One turn, but for what arrives at the port. True when there was something to do.
    fn turn(&mut self, now: Micros) -> bool {
        let mut busy = false;
        for at in 0..BATCH {
            if is_over(at, now) {
                break;
            }
            let Some(item) = self.inbox.wheel.items.pop() else { break };
            busy = true;
            match item {
                Item::Park(object, job) => self.start(now, object, job),
                Item::Ahead(ahead) => {
                    for object in ahead.missing() {
                        self.node.request(now, object, Waiter::Nobody);
                    }
                }
                Item::Fetch(object, fetch) => {
                    self.work.last_job += 1;
                    self.work.fetches.insert(self.work.last_job, fetch);
                    self.node.request(now, object, Waiter::Local(self.work.last_job));
                }
                Item::PassedOn(ino) => self.node.passed_on(ino),
                Item::Forget(ino) => self.node.forget(ino),
                Item::Fenced(fence) => self.node.fenced(now, fence),
                Item::Mounted => self.node.mounted(now),
                Item::Sweep(path, answer) => {
                    self.work.last_job += 1;
                    self.work.sweeps.insert(self.work.last_job, answer);
                    self.node.sweep(now, &path, self.work.last_job);
                }
            }
        }
        for at in 0..BATCH {
            if is_over(at, now) {
                break;
            }
            let Some(done) = self.asking.done.pop() else { break };
            busy = true;
            match done {
                Done::Backend { id, reply } => self.node.backend(now, id, reply),
                Done::Verified { id, slot, crc } => self.node.verified(now, id, slot, crc),
                Done::Arranged { id, listing } => self.node.arranged(now, id, listing),
                Done::Prefaulted { segment, bytes } => {
                    self.counters.add(Counter::CacheBytesPrefaulted, bytes);
                    if !self.node.is_registered(segment) {
                        self.transport.register(segment, &mut self.node);
                    }
                }
            }
        }
        if self.node.next_deadline().is_some_and(|at| at <= now) {
            busy = true;
            self.node.timer(now);
        }
        let ask_max = RELEASING_MAX.saturating_sub(self.releasing.load(Ordering::Relaxed));
        busy |= self.node.make_room(now, ask_max);
        for at in 0.. {
            let Some(output) = self.node.poll_output() else { break };
            busy = true;
            self.carry_out(now, output);
            if is_over(at + 1, now) {
                // What is left comes first in the next turn.
                break;
            }
        }
        busy | self.transport.retry(now, &mut self.node)
    }

    fn start(&mut self, now: Micros, object: Object, job: Job) {
        self.work.last_job += 1;
        self.work.jobs.insert(self.work.last_job, job);
        self.node.request(now, object, Waiter::Local(self.work.last_job));
    }

    fn carry_out(&mut self, now: Micros, output: Output) {
        match output {
            Output::Send { to, frame } => self.transport.send(now, to, frame),
            Output::Pull { id, from, key, offset, len, slot } => {
                self.is_filled(&slot);
                self.transport.pull(now, id, from, (key, offset), len, slot);
            }
            Output::Arrange { id, parts, stamp } => self.pool.submit(Task::Arrange { id, parts, stamp }),
            Output::Verify { id, slot, len } => self.pool.submit(Task::Verify { id, slot, len }),
            Output::Backend { id, op } => {
                if let BackendOp::Chunk { slot, .. } = &op {
                    self.is_filled(slot);
                }
                let question = Question { id, op };
                if self.work.kept.is_none() && self.work.keeps.takes(&question.op) {
                    self.work.kept = Some(question);
                } else {
                    self.pool.submit(Task::Ask(question));
                }
            }
            Output::Register { segment, spare } => {
                if !spare && !self.node.is_registered(segment) {
                    self.transport.register(segment, &mut self.node);
                }
                self.prefault(segment, if spare { SPARE_PREFAULT_BYTES } else { PREFAULT_AHEAD_BYTES });
            }
            Output::Invalidate { ino, path } => (self.notify)(Notice::Gone { ino, path }),
            Output::Expire { ino, path, dir } => (self.notify)(Notice::Expire { ino, path, dir }),
            Output::Release { path } => {
                self.releasing.fetch_add(1, Ordering::Relaxed);
                (self.notify)(Notice::Release { path });
            }
            Output::Fence { id } => (self.notify)(Notice::Fence(id)),
            Output::Swept { waiter, swept } => {
                if let Some(answer) = self.work.sweeps.remove(&waiter) {
                    // Who asked may have given up.
                    let _ = answer.send(swept);
                }
            }
            Output::Complete { waiter, outcome } => {
                let Some(job) = self.work.jobs.remove(&waiter) else { return self.fetched(waiter, outcome) };
                match job.finish(outcome, now) {
                    Next::Answered => {}
                    Next::More(object, job) => self.start(now, object, job),
                    Next::Send(job) => self.reply(job),
                }
            }
        }
    }

    /// A place in the arena is going to be filled: what lies behind it will be, soon.
    fn is_filled(&mut self, slot: &Slot) {
        let Ok(offset) = usize::try_from(slot.offset()) else { return };
        let ahead = offset + slot.capacity() + PREFAULT_AHEAD_BYTES;
        let begun = self.work.prefaulted.get(&slot.segment());
        if begun.is_none_or(|&(begun, len)| begun < len && ahead.min(len) >= len.min(begun + PREFAULT_BYTES_MIN)) {
            self.prefault(slot.segment(), ahead);
        }
    }

    /// Has the pages of a segment made present up to `end`, if they are not.
    fn prefault(&mut self, segment: u16, end: usize) {
        let Some(info) = self.arena.segment(segment) else { return };
        let (begun, _) = self.work.prefaulted.entry(segment).or_insert((0, info.len_bytes));
        let end = end.min(info.len_bytes);
        let range = std::mem::replace(begun, end.max(*begun))..end;
        if !range.is_empty() {
            self.pool.submit(Task::Prefault(info, range));
        }
    }

    fn fetched(&mut self, waiter: u64, outcome: Outcome) {
        let Some(Fetch { is_short, done }) = self.work.fetches.remove(&waiter) else { return };
        match outcome {
            Outcome::Chunk(chunk) if is_short => done(Ok(chunk)),
            Outcome::Chunk(chunk) => self.pool.submit(Task::Reply(Box::new(move || done(Ok(chunk))))),
            // It may ask for something else, which the engine must not wait for.
            Outcome::Failed { errno } => {
                self.pool.submit(Task::Reply(Box::new(move || done(Err(Errno::from_raw(errno))))));
            }
            _ => done(Err(Errno::EIO)),
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
        if !self.spins || self.node.in_flight() == 0 || !self.work.luck.is_worth_a_try() {
            return false;
        }
        let begin = Instant::now();
        let mut found = false;
        while !found && begin.elapsed() < SPIN {
            found = self.has_work() || self.transport.poll(clock::now(), &mut self.node);
            std::hint::spin_loop();
        }
        self.work.luck.note(found);
        found
    }

    fn has_work(&self) -> bool {
        !self.inbox.wheel.items.is_empty() || !self.asking.done.is_empty() || self.shown.stop.load(Ordering::Acquire)
    }

    fn tick(&mut self, now: Micros) {
        if now.0.saturating_sub(self.work.maintained.0) >= MAINTAIN_US {
            self.work.maintained = now;
            self.enoent.maintain(now);
            self.node.look_for_pins();
        }
        if now.0.saturating_sub(self.work.tidied.0) >= TIDY_EVERY.as_micros() as u64 {
            self.work.tidied = now;
            if self.asking.take_has_read() {
                self.pool.submit(Task::Tidy);
            }
        }
        if now.0.saturating_sub(self.work.published.0) >= PUBLISH_US {
            self.work.published = now;
            self.publish();
        }
    }

    /// Makes the node's own counts visible.
    pub(super) fn publish(&self) {
        let n = self.node.counters();
        let n_switches = self.node.switches();
        let e = self.enoent.stats();
        let a = self.node.store().stats();
        let t = self.transport.counts();
        let names = self.names.stats();
        for (counter, value) in [
            (Counter::RequestsFromPeersAttr, n.peers_attr),
            (Counter::RequestsFromPeersList, n.peers_list),
            (Counter::RequestsFromPeersChunk, n.peers_chunk),
            (Counter::RequestsFromPeersStatfs, n.peers_statfs),
            (Counter::RequestsFromPeersProbe, n.peers_probe),
            (Counter::RequestsToParent, n.to_parent),
            (Counter::ProbesToParent, n.probes),
            (Counter::Heartbeats, n.heartbeats),
            (Counter::ProbesUnanswered, n.probes_unanswered),
            (Counter::ProbesNotServing, n.probes_not_serving),
            (Counter::ParentsConfirmed, n.confirmed),
            (Counter::StartupUsParent, n.parent_us),
            (Counter::Suspicions, n.suspicions),
            (Counter::Failovers, n.failovers),
            (Counter::AskedAgain, n.asked_again),
            (Counter::Substitutes, self.node.substitutes() as u64),
            (Counter::RateLimited, n.rate_limited),
            (Counter::FramesForeign, n.foreign),
            (Counter::AuthRefused, n.auth_refused),
            (Counter::AuthReplayed, n.auth_replayed),
            (Counter::GrantsTaken, n.grants_taken),
            (Counter::FramesReceived, n.frames),
            (Counter::FramesSent, t.sent),
            (Counter::FramesDropped, n.dropped + t.dropped),
            (Counter::FabricTimeouts, t.timeouts),
            (Counter::FabricQuarantined, t.quarantined),
            (Counter::FabricPeers, t.peers),
            (Counter::ReadsFromParent, n.pulls),
            (Counter::ReadBytesFromParent, n.chunk_bytes),
            (Counter::FlightsJoined, n.joined),
            (Counter::Retries, n.retries),
            (Counter::Timeouts, n.timeouts),
            (Counter::BadChecksums, n.bad_checksums),
            (Counter::LeasesEnded, n.leases_ended),
            (Counter::Rechecks, n.rechecks),
            (Counter::ChunksAhead, n.ahead),
            (Counter::ChunksAheadDropped, n.ahead_dropped),
            (Counter::Foreseen, n.foreseen),
            (Counter::ForeseenWasted, n.foreseen_wasted),
            (Counter::ChunksInFlightMax, n.chunks_in_flight_max),
            (Counter::ChunksAheadHit, a.ahead_used),
            (Counter::ChunksAheadWasted, a.ahead_wasted),
            (Counter::EnoentStores, e.stores),
            (Counter::EnoentServes, e.serves),
            (Counter::EnoentExpires, e.expires),
            (Counter::EnoentClears, e.clears),
            (Counter::EnoentRaced, e.raced),
            (Counter::EnoentFull, e.full),
            (Counter::EnoentRotations, e.rotations),
            (Counter::EnoentStaleCompleted, e.stale_completed),
            (Counter::CacheBytesCapacity, a.capacity_bytes as u64),
            (Counter::CacheBytesMapped, a.mapped_bytes as u64),
            (Counter::CacheBytesUsed, a.used_bytes as u64),
            (Counter::CacheBytesPinned, a.pinned_bytes as u64),
            (Counter::Chunks, a.chunks as u64),
            (Counter::ChunksEvicted, a.evicted_chunks),
            (Counter::Inodes, names.inodes),
            (Counter::NamesBytes, names.bytes),
            (Counter::NamesDropped, names.dropped),
            (Counter::NamesReleased, n.names_released),
            (Counter::ListingServes, n.listing_serves),
            (Counter::ListingsWanted, n.listings_wanted),
            (Counter::ListingsRenewed, n.listings_renewed),
            (Counter::ListingsVoided, n.listings_voided),
        ] {
            self.counters.set(counter, value);
        }
        self.shown.show(self.node.parent_state(clock::now()));
        if self.shown.switches.swap(n_switches, Ordering::Relaxed) != n_switches {
            *self.shown.asks.lock().unwrap_or_else(PoisonError::into_inner) = self.node.asks().collect();
        }
        self.shown.show_readiness(&self.node);
    }
}
