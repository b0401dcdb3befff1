//! Nodes on a wire in memory, with virtual time: the rules of fail-over, one by one.

mod auth;
mod complete;
mod doubt;
mod failover;
mod foresee;
mod listings;
mod ready;
mod share;
mod tail;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use super::limits::REQUESTS_AT_PARENT_MAX;
use super::wire::{self, Message, Statfs};
use super::*;
use crate::cache::arena::{ArenaConfig, Slot};
use crate::cache::chunks::CHUNK_BYTES;
use crate::cache::enoent::{EnoentConfig, EnoentMap};
use crate::cache::names::{NamesConfig, NamesWriter};
use crate::cache::store::ChunkStore;
use crate::cache::types::{Attr, Kind, ListEntry, ListingBuilder, Micros, Timestamp};

pub(super) const MS: u64 = 1_000;
pub(super) const S: u64 = 1_000_000;
pub(super) const DETECT_US: u64 = 2 * S;
pub(super) const ENOENT_US: u64 = 2 * S;

const FRAME_US: u64 = 50;
const BACKEND_US: u64 = 100;
/// The transport gives up a read of a node that does not answer.
const PULL_GIVEN_UP_US: u64 = 10 * S;

enum Event {
    Frame {
        from: u32,
        to: u32,
        frame: Vec<u8>,
    },
    Pulled {
        by: u32,
        life: u64,
        from: u32,
        id: FlightId,
        key: u64,
        offset: u64,
        len: usize,
        slot: Slot,
    },
    /// The transport gives up a read.
    NotPulled {
        by: u32,
        life: u64,
        id: FlightId,
        slot: Slot,
    },
    Backend {
        by: u32,
        life: u64,
        id: FlightId,
        op: BackendOp,
    },
}

struct Timed(u64, u64, Event);

impl PartialEq for Timed {
    fn eq(&self, other: &Timed) -> bool {
        (self.0, self.1) == (other.0, other.1)
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
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

struct Place {
    node: Option<Node>,
    life: u64,
    stopped: bool,
    /// What arrived while it was stopped.
    held: Vec<Event>,
}

/// How the nodes are made.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) nodes: u32,
    pub(super) fanout: Option<u32>,
    pub(super) trees: u32,
    pub(super) stripes: u32,
    pub(super) receives: usize,
    pub(super) detect_us: u64,
    pub(super) dir_ttl_us: u64,
    /// The job's secret.
    pub(super) secret: Option<&'static [u8]>,
}

pub(super) const PLAN: Plan = Plan {
    nodes: 16,
    fanout: None,
    trees: 1,
    stripes: 1,
    receives: 16 * REQUESTS_AT_PARENT_MAX,
    detect_us: DETECT_US,
    dir_ttl_us: 60 * S,
    secret: None,
};

/// A frame that was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) at: u64,
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) is_probe: bool,
    pub(super) is_request: bool,
    pub(super) is_ready: bool,
    pub(super) is_noted: bool,
    pub(super) header: wire::Header,
}

pub(super) struct Wire {
    plan: Plan,
    places: Vec<Place>,
    pub(super) now: u64,
    events: BinaryHeap<Reverse<Timed>>,
    number: u64,
    waiters: u64,
    pub(super) answers: BTreeMap<u64, (u64, Outcome)>,
    pub(super) swept: BTreeMap<u64, Swept>,
    pub(super) sent: Vec<Sent>,
    /// Who asked the backend for which path, and when.
    pub(super) asked: Vec<(u64, u32, String)>,
    /// The backend answers only then.
    pub(super) hangs_until: u64,
    /// Links over which nothing goes.
    pub(super) is_cut: Box<dyn Fn(u32, u32) -> bool>,
    /// The reads of this node never end, as those of dead nodes do not.
    pub(super) pulls_hang: Option<u32>,
    /// Releases are lost.
    pub(super) loses_releases: bool,
    /// Every hello, as it was sent to whom.
    pub(super) hellos: Vec<(u32, Vec<u8>)>,
    /// What says who is ready is lost.
    pub(super) loses_readiness: bool,
    /// What the kernels of nodes were told to ask for anew.
    pub(super) expired: Vec<(u32, String)>,
    /// Most questions to the backend that came of one call of a node.
    pub(super) questions_max: usize,
    /// How often file bytes were changed silently: they and the change time follow.
    pub(super) rewrites: u8,
    /// How often all files were changed as usual.
    pub(super) writes: u8,
    /// What begins with "late" is missing.
    pub(super) is_early: bool,
    /// What begins with "turn" is a directory.
    pub(super) is_turned: bool,
    /// The names in every directory; none where its listings tell nothing.
    pub(super) listed: Option<&'static [&'static str]>,
}

/// The listing of a directory of files.
fn files(names: &[&str]) -> ListingBuilder {
    let mut listing = ListingBuilder::default();
    for name in names {
        assert!(listing.push(ListEntry { name: name.as_bytes(), kind: Kind::File, backend_ino: 1 }));
    }
    listing
}

impl Wire {
    /// All nodes, none of them started.
    pub(super) fn empty(plan: Plan) -> Wire {
        let place = || Place { node: None, life: 0, stopped: false, held: Vec::new() };
        Wire {
            plan,
            places: (0..plan.nodes).map(|_| place()).collect(),
            now: S,
            events: BinaryHeap::new(),
            number: 0,
            waiters: 0,
            answers: BTreeMap::new(),
            swept: BTreeMap::new(),
            sent: Vec::new(),
            asked: Vec::new(),
            hangs_until: 0,
            is_cut: Box::new(|_, _| false),
            pulls_hang: None,
            loses_releases: false,
            loses_readiness: false,
            hellos: Vec::new(),
            expired: Vec::new(),
            questions_max: 0,
            rewrites: 0,
            writes: 0,
            is_early: false,
            is_turned: false,
            listed: None,
        }
    }

    /// All nodes, started and ready.
    pub(super) fn new(plan: Plan) -> Wire {
        let mut wire = Wire::empty(plan);
        (0..plan.nodes).for_each(|node| wire.start(node));
        wire.run(2 * S);
        for node in 0..plan.nodes {
            let now = Micros(wire.now);
            let state = wire.node(node).parent_state(now);
            assert!(matches!(state, ParentState::None | ParentState::Ready), "node {node}: {state:?}");
        }
        wire
    }

    pub(super) fn topology(&self, node: u32) -> Topology {
        let first = Topology::new(self.plan.nodes, NodeId(node), self.plan.trees, self.plan.fanout).unwrap();
        first.striped(self.plan.stripes).unwrap()
    }

    pub(super) fn start(&mut self, at: u32) {
        let topology = self.topology(at);
        self.start_as(at, topology, 7);
    }

    /// As `start`, with a secret of its own or none.
    pub(super) fn start_with(&mut self, at: u32, secret: Option<&'static [u8]>) {
        let own = std::mem::replace(&mut self.plan.secret, secret);
        self.start(at);
        self.plan.secret = own;
    }

    pub(super) fn start_as(&mut self, at: u32, topology: Topology, job: u64) {
        let place = &mut self.places[at as usize];
        place.life += 1;
        let key = [u64::from(at), 1];
        let names = NamesWriter::new(NamesConfig { index_shards: 1, retired_max: 64, ..NamesConfig::new(key) });
        let enoent = Arc::new(EnoentMap::new(EnoentConfig { entries_max: 4096, ..EnoentConfig::new(key) }));
        let (first, max) = (4 * CHUNK_BYTES, 64 * CHUNK_BYTES);
        let arena = ArenaConfig { first_segment_bytes: first, segment_bytes: first, max_bytes: max };
        let incarnation = place.life << 8 | u64::from(at);
        let config = NodeConfig {
            enoent_ttl: Duration::from_micros(ENOENT_US),
            dir_ttl: Duration::from_micros(self.plan.dir_ttl_us),
            detect: Duration::from_micros(self.plan.detect_us),
            ..NodeConfig::new(topology, job, incarnation, self.plan.receives)
        };
        let mut node = Node::new(config, names, enoent, ChunkStore::new(arena).0);
        if let Some(secret) = self.plan.secret {
            let mut seed = [at as u8; 32];
            seed[0] = place.life as u8;
            node.authenticate(Secret::new(secret, seed));
        }
        node.open_for_service();
        place.node = Some(node);
        self.carry_out(at);
    }

    /// Node `at` is mounted.
    pub(super) fn mount(&mut self, at: u32) {
        let now = Micros(self.now);
        self.node(at).mounted(now);
        self.carry_out(at);
    }

    /// A frame arrives at node `at`.
    pub(super) fn hear(&mut self, at: u32, frame: &[u8]) {
        let now = Micros(self.now);
        self.node(at).frame(now, frame);
        self.carry_out(at);
    }

    pub(super) fn kill(&mut self, at: u32) {
        self.places[at as usize].node = None;
    }

    /// As SIGSTOP does: nothing runs, and what arrives waits.
    pub(super) fn stop(&mut self, at: u32) {
        self.places[at as usize].stopped = true;
    }

    pub(super) fn go_on(&mut self, at: u32) {
        self.places[at as usize].stopped = false;
        for event in std::mem::take(&mut self.places[at as usize].held) {
            self.push(1, event);
        }
    }

    pub(super) fn node(&mut self, at: u32) -> &mut Node {
        self.places[at as usize].node.as_mut().expect("it lives")
    }

    pub(super) fn counters(&mut self) -> Vec<Counters> {
        self.places.iter().filter_map(|place| place.node.as_ref()).map(Node::counters).collect()
    }

    fn push(&mut self, after: u64, event: Event) {
        self.number += 1;
        self.events.push(Reverse(Timed(self.now + after, self.number, event)));
    }

    /// A client of node `at` asks; gives the number of the answer.
    pub(super) fn ask(&mut self, at: u32, object: Object) -> u64 {
        self.waiters += 1;
        let (now, waiter) = (Micros(self.now), self.waiters);
        self.node(at).request(now, object, Waiter::Local(waiter));
        self.carry_out(at);
        waiter
    }

    pub(super) fn look_up(&mut self, at: u32, path: &str) -> u64 {
        self.ask(at, Object::Attr(path.as_bytes().into()))
    }

    /// Looks up a path, and runs until the answer is there; gives it with the time it took.
    pub(super) fn must(&mut self, at: u32, path: &str) -> (u64, Outcome) {
        let (begin, waiter) = (self.now, self.look_up(at, path));
        while !self.answers.contains_key(&waiter) {
            assert!(self.now < begin + 60 * S, "no answer for {path}");
            self.run(10 * MS);
        }
        let (at, outcome) = self.answers.remove(&waiter).unwrap();
        (at - begin, outcome)
    }

    pub(super) fn sweep(&mut self, at: u32, path: &str) -> u64 {
        self.waiters += 1;
        let (now, waiter) = (Micros(self.now), self.waiters);
        self.node(at).sweep(now, path.as_bytes(), waiter);
        self.carry_out(at);
        waiter
    }

    pub(super) fn run(&mut self, us: u64) {
        let end = self.now + us;
        let mut again = 0;
        loop {
            let timer = |(at, place): (usize, &Place)| {
                let node = place.node.as_ref().filter(|_| !place.stopped)?;
                Some((node.next_deadline()?.0.max(self.now), at))
            };
            let timer = self.places.iter().enumerate().filter_map(timer).min();
            let event = self.events.peek().map(|Reverse(timed)| timed.0);
            match (timer, event) {
                (Some((at, node)), event) if at <= end && event.is_none_or(|event| at < event) => {
                    self.now = at;
                    let node = u32::try_from(node).unwrap();
                    self.node(node).timer(Micros(at));
                    // Once more where there were more requests than fit into one turn.
                    let next = self.node(node).next_deadline();
                    again = if next.is_some_and(|next| next.0 <= at) { again + 1 } else { 0 };
                    assert!(again < 10, "node {node} wants its timer again and again");
                    self.carry_out(node);
                }
                (_, Some(at)) if at <= end => {
                    self.now = at.max(self.now);
                    let Some(Reverse(Timed(_, _, event))) = self.events.pop() else { break };
                    self.happen(event);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn happen(&mut self, event: Event) {
        let now = Micros(self.now);
        let to = match &event {
            Event::Frame { to, .. } => *to,
            Event::Pulled { by, .. } | Event::NotPulled { by, .. } | Event::Backend { by, .. } => *by,
        };
        if self.places[to as usize].stopped {
            self.places[to as usize].held.push(event);
            return;
        }
        match event {
            Event::Frame { from, to, frame } => {
                if !(self.is_cut)(from, to)
                    && let Some(node) = &mut self.places[to as usize].node
                {
                    node.frame(now, &frame);
                }
            }
            Event::Pulled { by, life, from, id, key, offset, len, mut slot } => {
                let source = self.places[from as usize].node.as_ref();
                let source = source.filter(|_| !(self.is_cut)(by, from) && self.pulls_hang != Some(by));
                let Some(chunk) = source.and_then(|node| node.granted(key, offset)) else {
                    return self.push(PULL_GIVEN_UP_US, Event::NotPulled { by, life, id, slot });
                };
                slot.as_mut_slice()[..len].copy_from_slice(chunk.bytes());
                if self.places[by as usize].life == life {
                    self.node(by).pulled(now, id, slot, true);
                }
            }
            Event::NotPulled { by, life, id, slot } => {
                if self.places[by as usize].life == life
                    && let Some(node) = &mut self.places[by as usize].node
                {
                    node.pulled(now, id, slot, false);
                }
            }
            Event::Backend { by, life, id, op } => {
                let reply = self.answer(op);
                if self.places[by as usize].life == life && self.places[by as usize].node.is_some() {
                    self.node(by).backend(now, id, reply);
                }
            }
        }
        self.carry_out(to);
    }

    pub(super) fn attr(&self, path: &[u8]) -> Attr {
        let is_dir = path.is_empty() || path.starts_with(b"dir") || (self.is_turned && path.starts_with(b"turn"));
        let time = Timestamp { secs: 1, nanos: u32::from(self.writes) };
        Attr {
            mode: if is_dir { 0o040_755 } else { 0o100_644 },
            uid: 0,
            gid: 0,
            blksize: 4096,
            nlink: 1,
            rdev: 0,
            size: match path {
                [b'b', b'i', b'g', ..] => 3 * CHUNK_BYTES as u64,
                [b'm', b'i', b'd', ..] => 20_000,
                _ => 100,
            },
            blocks: 8,
            mtime: time,
            ctime: Timestamp { secs: 1, nanos: u32::from(self.writes) + u32::from(self.rewrites) },
            backend_ino: path.iter().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte))),
            backend_dev: 1,
            change: 0,
        }
    }

    fn answer(&mut self, op: BackendOp) -> BackendReply {
        const ENOENT: i32 = 2;
        let fill = 1 + self.rewrites;
        let is_missing = |path: &[u8]| path.starts_with(b"no") || (self.is_early && path.starts_with(b"late"));
        match op {
            BackendOp::Attr { path } if is_missing(&path) => BackendReply::Attr(Err(ENOENT)),
            BackendOp::Attr { path } => BackendReply::Attr(Ok(Found { attr: self.attr(&path), target: None })),
            BackendOp::List { path, .. } => {
                let names = self.listed.map_or_else(|| listing(&path), files);
                let is_complete = self.listed.is_some();
                BackendReply::List(Ok(Listed { listing: names.build(self.now), is_complete, settled: None }))
            }
            BackendOp::Chunk { path, len, mut slot, .. } => {
                slot.as_mut_slice()[..len].fill(fill);
                let crc = crc32c::crc32c(&slot.as_mut_slice()[..len]);
                BackendReply::Chunk(Ok(ChunkRead { slot, len, crc, ctime: self.attr(&path).ctime }))
            }
            BackendOp::Recheck { path, version, chunks } => {
                let len = |index: u32| (version.size - u64::from(index) * CHUNK_BYTES as u64).min(CHUNK_BYTES as u64);
                let crc = |index| crc32c::crc32c(&vec![fill; len(index) as usize]);
                let same = chunks.iter().all(|(index, known)| crc(*index) == *known);
                BackendReply::Recheck(Ok(same.then(|| self.attr(&path))))
            }
            BackendOp::Statfs => BackendReply::Statfs(Ok(Statfs::default())),
        }
    }

    fn carry_out(&mut self, at: u32) {
        let life = self.places[at as usize].life;
        let asked = self.asked.len();
        while let Some(output) = self.places[at as usize].node.as_mut().and_then(Node::poll_output) {
            match output {
                Output::Send { to, frame } => self.send(at, to.0, frame),
                Output::Pull { id, from, key, offset, len, slot } => {
                    let from = from.0;
                    self.push(FRAME_US, Event::Pulled { by: at, life, from, id, key, offset, len, slot });
                }
                Output::Verify { id, mut slot, len } => {
                    let crc = crc32c::crc32c(&slot.as_mut_slice()[..len]);
                    let now = Micros(self.now);
                    self.node(at).verified(now, id, slot, crc);
                }
                Output::Backend { id, op } => {
                    let path = match &op {
                        BackendOp::Attr { path }
                        | BackendOp::List { path, .. }
                        | BackendOp::Chunk { path, .. }
                        | BackendOp::Recheck { path, .. } => String::from_utf8_lossy(path).into_owned(),
                        BackendOp::Statfs => String::new(),
                    };
                    self.asked.push((self.now, at, path));
                    let after = BACKEND_US.max(self.hangs_until.saturating_sub(self.now));
                    self.push(after, Event::Backend { by: at, life, id, op });
                }
                Output::Complete { waiter, outcome } => {
                    assert!(self.answers.insert(waiter, (self.now, outcome)).is_none(), "answered twice");
                }
                Output::Register { segment, .. } => {
                    let key = life << 32 | u64::from(at) << 16 | u64::from(segment);
                    self.node(at).registered(segment, key);
                }
                Output::Fence { id } => {
                    let now = Micros(self.now);
                    self.node(at).fenced(now, id);
                }
                Output::Swept { waiter, swept } => _ = self.swept.insert(waiter, swept),
                Output::Arrange { id, parts, stamp } => {
                    let now = Micros(self.now);
                    self.node(at).arranged(now, id, parts.build(stamp));
                }
                Output::Expire { path, .. } => self.expired.push((at, String::from_utf8_lossy(&path).into_owned())),
                Output::Invalidate { .. } | Output::Release { .. } => {}
            }
        }
        self.questions_max = self.questions_max.max(self.asked.len() - asked);
        if let Some(node) = &self.places[at as usize].node {
            let load = node.load();
            assert!(load.at_parent <= REQUESTS_AT_PARENT_MAX, "node {at}: {load:?}");
        }
    }

    fn send(&mut self, from: u32, to: u32, frame: Vec<u8>) {
        let (header, message) = wire::decode(&frame).expect("what a node sends is a frame");
        let is_request = matches!(
            message,
            Message::Attr { .. }
                | Message::Look { .. }
                | Message::List { .. }
                | Message::Chunk { .. }
                | Message::Statfs
        );
        if is_request {
            // No two nodes can wait for each other.
            let topology = self.topology(from);
            let is_above = |tree: u32| {
                let tree = topology.tree(tree);
                tree.place_of(NodeId(to)) < tree.place_of(NodeId(from))
            };
            assert!((0..self.plan.stripes).any(is_above), "node {from} asks node {to}");
        }
        let is_probe = matches!(message, Message::Probe { .. });
        let (is_ready, is_noted) = (matches!(message, Message::Ready { .. }), message == Message::Noted);
        let is_lost =
            (self.loses_releases && matches!(message, Message::Release { .. })) || (self.loses_readiness && is_ready);
        if matches!(message, Message::Hello { .. }) {
            self.hellos.push((to, frame.clone()));
        }
        self.sent.push(Sent { at: self.now, from, to, is_probe, is_request, is_ready, is_noted, header });
        if !is_lost {
            self.push(FRAME_US, Event::Frame { from, to, frame });
        }
    }

    /// Who asked the backend since `begin`, each once.
    pub(super) fn readers(&self, begin: u64) -> Vec<u32> {
        let mut nodes: Vec<_> = self.asked.iter().filter(|(at, ..)| *at >= begin).map(|(_, node, _)| *node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }
}

/// The names in a directory: some 60 KiB of them where its own name ends in "long".
fn listing(path: &[u8]) -> ListingBuilder {
    let mut names = ListingBuilder::default();
    for n in 0..if path.ends_with(b"long") { 300 } else { 0 } {
        let name = format!("{n:0200}").into_bytes();
        assert!(names.push(ListEntry { name: &name, kind: Kind::File, backend_ino: n }));
    }
    names
}

pub(super) fn is_entry(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Entry(_))
}
