//! Nodes without mounts, threads or a fabric: the runtime's handler and backend around the core's node, in virtual time.
//!
//! Frames, remote reads and the backend's answers are events, each after a delay that the case's seed decides.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bornite::cache::arena::{ArenaConfig, Slot};
use bornite::cache::chunks::CHUNK_BYTES;
use bornite::cache::enoent::{EnoentConfig, EnoentMap};
use bornite::cache::names::{NamesConfig, NamesWriter};
use bornite::cache::store::ChunkStore;
use bornite::cache::types::{Ino, Micros};
use bornite::core::{BackendOp, BackendReply, FlightId, Node, NodeConfig, NodeId, Object, Output, Topology, Waiter};
use bornite::observe::Counters;
use bornite::runtime::replies::{Attributes, Data, Directory, Entry, Refuse, Replies, Sizes};
use bornite::runtime::{Backend, Handler, Job, Next, Parked, ReadAhead};
use bornite_fuse::{Attr, Errno, Statfs};

use super::client::{Dirent, Told, World};
use super::ops::{Change, Setting};
use super::truth::{NEVER, Shown, Truth};

/// Events after which a request that has no answer hangs.
const EVENTS_MAX: u32 = 200_000;

/// What a token was answered.
#[derive(Debug)]
enum Answer {
    Entry(Attr, Duration),
    Absent(Duration),
    Attributes(Attr, Duration),
    Data(Vec<u8>),
    Directory(Vec<Dirent>, bool),
    Sizes(Statfs),
    Error(i32),
}

/// A token of a test: its answer goes into a channel. Dropped unanswered it says nothing, and the request hangs.
struct Token {
    answers: mpsc::Sender<Answer>,
    entries: Vec<Dirent>,
    room: usize,
    is_full: bool,
}

impl Token {
    fn send(self, answer: Answer) {
        self.answers.send(answer).expect("the world is there");
    }
}

struct Tokens;

impl Replies for Tokens {
    type Entry = Token;
    type Attributes = Token;
    type Data = Token;
    type Directory = Token;
    type Sizes = Token;
}

impl Refuse for Token {
    fn error(self, errno: Errno) {
        self.send(Answer::Error(errno.raw()));
    }
}

impl Entry for Token {
    fn entry(self, attr: &Attr, ttl: Duration) {
        self.send(Answer::Entry(*attr, ttl));
    }

    fn absent(self, ttl: Duration) {
        self.send(Answer::Absent(ttl));
    }
}

impl Attributes for Token {
    fn attr(self, attr: &Attr, ttl: Duration) {
        self.send(Answer::Attributes(*attr, ttl));
    }
}

impl Data for Token {
    fn data(self, bytes: &[u8]) {
        self.send(Answer::Data(bytes.to_vec()));
    }

    fn data_of_two(self, head: &[u8], tail: &[u8]) {
        self.data(&[head, tail].concat());
    }
}

impl Directory for Token {
    fn add(&mut self, ino: u64, next_cookie: u64, d_type: u8, name: &[u8]) -> bool {
        // The size of a `struct fuse_dirent` (linux/fuse.h).
        let size = (24 + name.len()).next_multiple_of(8);
        if size > self.room {
            self.is_full = true;
            return true;
        }
        self.room -= size;
        self.entries.push(Dirent { name: name.to_vec(), kind: d_type, ino, cookie: next_cookie });
        false
    }

    fn finish(mut self) {
        let (entries, is_full) = (std::mem::take(&mut self.entries), self.is_full);
        self.send(Answer::Directory(entries, is_full));
    }
}

impl Sizes for Token {
    fn statfs(self, sizes: &Statfs) {
        self.send(Answer::Sizes(*sizes));
    }
}

enum Event {
    Frame {
        to: usize,
        frame: Vec<u8>,
    },
    Pulled {
        at: usize,
        id: FlightId,
        slot: Slot,
        ok: bool,
    },
    /// The backend does what it was asked.
    Ask {
        at: usize,
        id: FlightId,
        op: BackendOp,
    },
    /// Its answer arrives.
    Backend {
        at: usize,
        id: FlightId,
        reply: BackendReply,
    },
}

struct Timed {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Timed) -> bool {
        self.number == other.number
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Timed) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    fn cmp(&self, other: &Timed) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

struct Member {
    node: Node,
    handler: Handler<Tokens>,
    jobs: HashMap<u64, Job<Tokens>>,
}

/// The nodes; node 0 is the root, each other the child of the one before.
pub(crate) struct Nodes {
    members: Vec<Member>,
    backend: Backend,
    now: u64,
    events: BinaryHeap<Reverse<Timed>>,
    number: u64,
    random: u64,
    /// Frames of one pair of nodes keep their order.
    links: HashMap<(usize, usize), u64>,
    interrupt: Option<(u8, Change)>,
}

impl Nodes {
    pub(crate) fn new(setting: &Setting, truth: &Truth) -> Nodes {
        let count = u32::from(setting.nodes);
        let us = Duration::from_micros;
        let members = (0..count).map(|me| {
            let topology = Topology::new(count, NodeId(me), 1, Some(1)).expect("a chain");
            let key = [setting.seed, u64::from(me)];
            let names = NamesWriter::new(NamesConfig { index_shards: 2, ..NamesConfig::new(key) });
            let enoent = Arc::new(EnoentMap::new(EnoentConfig { entries_max: 1024, ..EnoentConfig::new(key) }));
            let (store, _) = ChunkStore::new(ArenaConfig {
                first_segment_bytes: 2 * CHUNK_BYTES,
                segment_bytes: 4 * CHUNK_BYTES,
                max_bytes: usize::from(setting.cache_chunks) * CHUNK_BYTES,
            });
            let handler = Handler::new(names.1.clone(), enoent.clone(), Arc::new(Counters::new()));
            let config = NodeConfig {
                enoent_ttl: us(setting.enoent_ttl_us),
                dir_ttl: us(setting.dir_ttl_us),
                attr_ttl: setting.attr_ttl_us.map(us),
                ..NodeConfig::new(topology, 7, 1, 128)
            };
            let mut node = Node::new(config, names, enoent, store);
            node.open_for_service();
            Member { node, handler, jobs: HashMap::new() }
        });
        let backend = Backend::new(truth.target(), 1, Arc::new(Counters::new())).expect("the target is a directory");
        Nodes {
            members: members.collect(),
            backend,
            now: 1_000,
            events: BinaryHeap::new(),
            number: 0,
            random: setting.seed,
            links: HashMap::new(),
            interrupt: None,
        }
    }

    fn micros(&self) -> Micros {
        Micros(self.now)
    }

    /// Between 1 and 64 microseconds, now and then some milliseconds.
    fn delay(&mut self) -> u64 {
        // splitmix64 (Steele, Lea, Flood).
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        if z.is_multiple_of(16) { 1 + z % 9_973 } else { 1 + z % 64 }
    }

    fn push(&mut self, at: u64, event: Event) {
        self.number += 1;
        self.events.push(Reverse(Timed { at, number: self.number, event }));
    }

    fn push_later(&mut self, event: Event) {
        let at = self.now + self.delay();
        self.push(at, event);
    }

    /// The next thing that happens, if anything does until `end`.
    fn step(&mut self, end: u64) -> bool {
        let timer = (0..self.members.len()).filter_map(|at| Some((self.members[at].node.next_deadline()?.0, at))).min();
        let event = self.events.peek().map(|Reverse(timed)| timed.at);
        match (timer, event) {
            (Some((at, member)), event) if at <= end && event.is_none_or(|event| at < event) => {
                self.now = at.max(self.now);
                let now = self.micros();
                self.members[member].node.timer(now);
                self.carry_out(member);
                true
            }
            (_, Some(at)) if at <= end => {
                self.now = at.max(self.now);
                let Some(Reverse(timed)) = self.events.pop() else { return false };
                self.happen(timed.event);
                true
            }
            _ => false,
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.micros();
        let at = match event {
            Event::Frame { to, frame } => {
                self.members[to].node.frame(now, &frame);
                to
            }
            Event::Pulled { at, id, slot, ok } => {
                self.members[at].node.pulled(now, id, slot, ok);
                at
            }
            Event::Ask { at, id, op } => {
                let reply = self.backend.answer(op);
                self.push_later(Event::Backend { at, id, reply });
                return;
            }
            Event::Backend { at, id, reply } => {
                self.members[at].node.backend(now, id, reply);
                at
            }
        };
        self.carry_out(at);
    }

    /// Does what node `at` wants after a call.
    fn carry_out(&mut self, at: usize) {
        while let Some(output) = self.members[at].node.poll_output() {
            match output {
                Output::Send { to, frame } => {
                    let to = to.0 as usize;
                    let arrives = self.now + self.delay();
                    let last = self.links.entry((at, to)).or_insert(0);
                    *last = arrives.max(*last);
                    let arrives = *last;
                    self.push(arrives, Event::Frame { to, frame });
                }
                Output::Pull { id, from, key, offset, len, mut slot } => {
                    let chunk = self.members[from.0 as usize].node.granted(key, offset).filter(|c| c.len() == len);
                    let ok = chunk.is_some();
                    if let Some(chunk) = chunk {
                        slot.as_mut_slice()[..len].copy_from_slice(chunk.bytes());
                    }
                    self.push_later(Event::Pulled { at, id, slot, ok });
                }
                Output::Arrange { id, parts, stamp } => {
                    let now = self.micros();
                    self.members[at].node.arranged(now, id, parts.build(stamp));
                }
                Output::Verify { id, mut slot, len } => {
                    let crc = crc32c::crc32c(&slot.as_mut_slice()[..len]);
                    let now = self.micros();
                    self.members[at].node.verified(now, id, slot, crc);
                }
                Output::Backend { id, op } => {
                    assert_eq!(at, 0, "only the root asks the backend");
                    self.push_later(Event::Ask { at, id, op });
                }
                Output::Register { segment, .. } => {
                    self.members[at].node.registered(segment, (at as u64) << 32 | u64::from(segment));
                }
                // This client remembers nothing.
                Output::Invalidate { .. } | Output::Expire { .. } | Output::Release { .. } | Output::Swept { .. } => {}
                Output::Fence { id } => {
                    let now = self.micros();
                    self.members[at].node.fenced(now, id);
                }
                Output::Complete { waiter, outcome } => {
                    let job = self.members[at].jobs.remove(&waiter).expect("a request of ours");
                    let now = self.micros();
                    match job.finish(outcome, now) {
                        Next::Answered => {}
                        Next::Send(read) => read.send(now),
                        Next::More(object, job) => self.request(at, object, job),
                    }
                }
            }
        }
    }

    fn request(&mut self, at: usize, object: Object, job: Job<Tokens>) {
        self.number += 1;
        let (now, waiter) = (self.micros(), self.number);
        self.members[at].jobs.insert(waiter, job);
        self.members[at].node.request(now, object, Waiter::Local(waiter));
    }

    /// Asks the handler of node `at`, and lets the world go on until the answer is there.
    fn call(
        &mut self,
        truth: &mut Truth,
        at: usize,
        room: u16,
        ask: impl FnOnce(&Handler<Tokens>, Micros, Token) -> Parked<Tokens>,
    ) -> Answer {
        let (sender, answers) = mpsc::channel();
        let token = Token { answers: sender, entries: Vec::new(), room: usize::from(room), is_full: false };
        let now = self.micros();
        if let Some((object, job)) = ask(&self.members[at].handler, now, token) {
            self.request(at, object, job);
            self.carry_out(at);
        }
        for _ in 0..EVENTS_MAX {
            match answers.try_recv() {
                Ok(answer) => return answer,
                Err(mpsc::TryRecvError::Disconnected) => panic!("a token was dropped unanswered"),
                Err(mpsc::TryRecvError::Empty) => {}
            }
            match &mut self.interrupt {
                Some((0, _)) => self.interrupted(truth),
                Some((events, _)) => *events -= 1,
                None => {}
            }
            assert!(self.step(NEVER), "nothing happens any more, and a request has no answer");
        }
        panic!("a request has no answer after {EVENTS_MAX} events");
    }

    fn until(&self, ttl: Duration) -> u64 {
        self.now.saturating_add(u64::try_from(ttl.as_micros()).unwrap_or(NEVER))
    }
}

fn shown(attr: &Attr) -> Shown {
    assert_eq!(attr.atime, attr.mtime, "the access time is the modification time");
    Shown {
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        nlink: u64::from(attr.nlink),
        size: attr.size,
        blocks: attr.blocks,
        blksize: u64::from(attr.blksize),
        mtime: (attr.mtime.secs, i64::from(attr.mtime.nanos)),
        ctime: (attr.ctime.secs, i64::from(attr.ctime.nanos)),
    }
}

impl World for Nodes {
    /// An inode number.
    type Handle = u64;

    fn now(&self) -> u64 {
        self.now
    }

    fn pass(&mut self, us: u64) {
        let end = self.now + us;
        while self.step(end) {}
        self.now = end;
    }

    fn interrupt(&mut self, events: u8, change: Change) {
        self.interrupt = Some((events, change));
    }

    fn interrupted(&mut self, truth: &mut Truth) {
        if let Some((_, change)) = self.interrupt.take() {
            self.change(truth, &change);
        }
    }

    fn change(&mut self, truth: &mut Truth, change: &Change) {
        truth.apply(change, || self.now);
        // What happens after it is later.
        self.now += 1;
    }

    fn listed(&self) -> Option<u64> {
        Some(self.members.iter().map(|member| member.node.counters().listing_serves).sum())
    }

    fn root(&mut self, _: usize) -> u64 {
        Ino::ROOT.0
    }

    fn lookup(&mut self, truth: &mut Truth, node: usize, dir: &u64, name: &[u8]) -> Told<u64> {
        let answer = self.call(truth, node, 0, |handler, now, token| handler.lookup(now, *dir, name, token));
        match answer {
            Answer::Entry(attr, ttl) => {
                Told::There { handle: attr.ino, ino: attr.ino, shown: shown(&attr), until: self.until(ttl) }
            }
            Answer::Absent(ttl) => Told::Absent { until: self.until(ttl) },
            Answer::Error(errno) => Told::Failed(errno),
            other => panic!("{other:?} to a lookup"),
        }
    }

    fn getattr(&mut self, truth: &mut Truth, node: usize, of: &u64) -> Result<(Shown, u64), i32> {
        match self.call(truth, node, 0, |handler, now, token| handler.getattr(now, *of, token)) {
            Answer::Attributes(attr, ttl) => {
                assert_eq!(attr.ino, *of, "attributes of another inode");
                Ok((shown(&attr), self.until(ttl)))
            }
            Answer::Error(errno) => Err(errno),
            other => panic!("{other:?} to a getattr"),
        }
    }

    fn readlink(&mut self, truth: &mut Truth, node: usize, of: &u64) -> Result<Vec<u8>, i32> {
        let answer = self.call(truth, node, 0, |handler, _, token| {
            handler.readlink(*of, token);
            None
        });
        match answer {
            Answer::Data(text) => Ok(text),
            Answer::Error(errno) => Err(errno),
            other => panic!("{other:?} to a readlink"),
        }
    }

    fn read(&mut self, truth: &mut Truth, node: usize, of: &u64, offset: u64, len: u32) -> (Vec<u8>, Option<i32>) {
        let mut ahead = None;
        let answer = self.call(truth, node, 0, |handler, now, token| {
            let (parked, next) = handler.read(now, *of, offset, len, token);
            ahead = next;
            parked
        });
        let now = self.micros();
        for object in ahead.iter().flat_map(ReadAhead::missing) {
            self.members[node].node.request(now, object, Waiter::Nobody);
        }
        self.carry_out(node);
        match answer {
            Answer::Data(bytes) => (bytes, None),
            Answer::Error(errno) => (Vec::new(), Some(errno)),
            other => panic!("{other:?} to a read"),
        }
    }

    fn list(&mut self, truth: &mut Truth, node: usize, of: &u64, cookie: u64, room: u16) -> Result<Vec<Dirent>, i32> {
        match self.call(truth, node, room, |handler, now, token| handler.readdir(now, *of, cookie, token)) {
            // As the kernel does: never less than one entry.
            Answer::Directory(entries, true) if entries.is_empty() => self.list(truth, node, of, cookie, 4096),
            Answer::Directory(entries, _) => Ok(entries),
            Answer::Error(errno) => Err(errno),
            other => panic!("{other:?} to a readdir"),
        }
    }

    fn statfs(&mut self, truth: &mut Truth, node: usize) -> Result<(u64, u64, u64), i32> {
        match self.call(truth, node, 0, |handler, _, token| handler.statfs(token)) {
            Answer::Sizes(s) => Ok((u64::from(s.frsize), s.blocks, u64::from(s.namelen))),
            Answer::Error(errno) => Err(errno),
            other => panic!("{other:?} to a statfs"),
        }
    }

    fn forget(&mut self, node: usize, handle: u64) {
        if self.members[node].handler.forgets(handle, u64::MAX) {
            self.members[node].node.forget(Ino(handle));
            self.carry_out(node);
        }
    }

    fn slack(&self) -> u64 {
        0
    }

    fn reopen_within(&self) -> u64 {
        0
    }
}
