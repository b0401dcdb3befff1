//! The simulated world: nodes, their clients, the network between them, and the root's backend.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

use super::rng::Rng;
use super::tree::{Tree, TreeConfig, fill};
use crate::cache::arena::{ArenaConfig, Slot};
use crate::cache::chunks::CHUNK_BYTES;
use crate::cache::enoent::{EnoentConfig, EnoentMap};
use crate::cache::names::{NamesConfig, NamesWriter};
use crate::cache::store::ChunkStore;
use crate::cache::types::{Kind, Micros};
use crate::core::topology::TopologyError;
use crate::core::{
    BackendOp, BackendReply, ChunkRead, Counters, FlightId, Found, Node, NodeConfig, NodeId, Object, Outcome, Output,
    Topology, Waiter,
};

const ENOENT: i32 = rustix::io::Errno::NOENT.raw_os_error();
const ESTALE: i32 = rustix::io::Errno::STALE.raw_os_error();

/// What is simulated.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Everything follows from it.
    pub seed: u64,
    /// Nodes in the tree.
    pub nodes: u32,
    /// Separate trees.
    pub trees: u32,
    /// Children per parent, if not by rule.
    pub fanout: Option<u32>,
    /// The served tree.
    pub tree: TreeConfig,
    /// Objects that the client of each node asks for, one after the other.
    pub requests_per_node: u64,
    /// Shortest and longest time a message takes, microseconds. Messages of one pair of nodes keep their order.
    pub delay_us: (u64, u64),
    /// Of a thousand messages, so many are lost.
    pub lost_per_mille: u64,
    /// Shortest and longest time an operation of the backend takes, microseconds.
    pub backend_us: (u64, u64),
    /// How long the root's ENOENT may be repeated.
    pub enoent_ttl: Duration,
    /// How long attributes of directories, and listings, may be used.
    pub dir_ttl: Duration,
    /// Bound of each node's memory for file data, bytes.
    pub cache_bytes: usize,
    /// The run fails when virtual time passes this, microseconds.
    pub end_us: u64,
}

impl SimConfig {
    /// A run of `nodes` nodes with moderate figures for the rest.
    #[must_use]
    pub fn new(seed: u64, nodes: u32) -> SimConfig {
        SimConfig {
            seed,
            nodes,
            trees: 1,
            fanout: None,
            tree: TreeConfig { dirs: 12, files: 80, small_bytes: 40_000, large_bytes: 2_300_000 },
            requests_per_node: 60,
            delay_us: (2, 60),
            lost_per_mille: 0,
            backend_us: (50, 3_000),
            enoent_ttl: Duration::from_secs(2),
            dir_ttl: Duration::from_secs(60),
            cache_bytes: 32 << 20,
            end_us: 600_000_000,
        }
    }
}

/// What a run did, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Requests of clients, each answered rightly.
    pub answered: u64,
    /// Bytes of files that were compared.
    pub bytes: u64,
    /// Messages between nodes.
    pub messages: u64,
    /// Events.
    pub events: u64,
    /// Virtual time at the end, microseconds.
    pub end_us: u64,
    /// What each node counted.
    pub nodes: Vec<Counters>,
    /// Most reads of one chunk by one root.
    pub reads_per_chunk_max: u64,
}

/// What went wrong in a run; the seed reproduces it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SimError {
    /// The configuration makes no tree.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A client was told something that is not so.
    #[error("safety: seed {seed}, node {node}, \"{path}\" at {at_us} us: {what}")]
    Safety {
        /// The run's seed.
        seed: u64,
        /// The client's node.
        node: NodeId,
        /// What it asked for.
        path: String,
        /// When, virtual microseconds.
        at_us: u64,
        /// What is wrong.
        what: String,
    },
    /// Not every request was answered.
    #[error("liveness: seed {seed}: {waiting} clients still wait at {at_us} us")]
    Liveness {
        /// The run's seed.
        seed: u64,
        /// How many wait.
        waiting: usize,
        /// When, virtual microseconds.
        at_us: u64,
    },
}

enum Event {
    Frame { to: usize, frame: Vec<u8> },
    Pulled { at: usize, id: FlightId, slot: Slot, ok: bool },
    Backend { at: usize, id: FlightId, reply: BackendReply },
    Timer { at: usize },
    Client { at: usize },
}

/// Heap order: by time, then by the order in which events were made.
struct Timed {
    at: Micros,
    number: u64,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Timed) -> bool {
        (self.at, self.number) == (other.at, other.number)
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

/// A node's client: asks for one object after the other, and looks at every byte.
struct Client {
    left: u64,
    asked: Option<Object>,
}

struct World {
    config: SimConfig,
    rng: Rng,
    tree: Tree,
    now: Micros,
    queue: BinaryHeap<Reverse<Timed>>,
    number: u64,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    timers: Vec<Micros>,
    links: HashMap<(usize, usize), Micros>,
    stamp: u64,
    reads: HashMap<(usize, Box<[u8]>, u64), u64>,
    report: Report,
}

/// Runs a simulation to its end: every client has had all of its answers.
///
/// # Errors
/// [`SimError`] where a client was told something wrong, or was not answered in time.
pub fn run(config: SimConfig) -> Result<Report, SimError> {
    World::new(config)?.run()
}

impl World {
    fn new(config: SimConfig) -> Result<World, SimError> {
        let mut rng = Rng::new(config.seed);
        let tree = Tree::new(&config.tree, &mut rng);
        let mut nodes = Vec::new();
        for me in 0..config.nodes {
            let topology = Topology::new(config.nodes, NodeId(me), config.trees, config.fanout)?;
            let key = [rng.next_u64(), rng.next_u64()];
            let names = NamesWriter::new(NamesConfig { index_shards: 4, ..NamesConfig::new(key) });
            let enoent = Arc::new(EnoentMap::new(EnoentConfig { entries_max: 4096, ..EnoentConfig::new(key) }));
            let (store, _) = ChunkStore::new(ArenaConfig {
                first_segment_bytes: 4 * CHUNK_BYTES,
                segment_bytes: 4 * CHUNK_BYTES,
                max_bytes: config.cache_bytes,
            });
            let node_config = NodeConfig {
                topology,
                job: config.seed,
                incarnation: 1,
                enoent_ttl: config.enoent_ttl,
                dir_ttl: config.dir_ttl,
                attr_ttl: None,
            };
            let mut node = Node::new(node_config, names, enoent, store);
            node.open_for_service();
            nodes.push(node);
        }
        let count = nodes.len();
        let clients = (0..count).map(|_| Client { left: config.requests_per_node, asked: None }).collect();
        let mut world = World {
            config,
            rng,
            tree,
            now: Micros(1),
            queue: BinaryHeap::new(),
            number: 0,
            nodes,
            clients,
            timers: vec![Micros::FOREVER; count],
            links: HashMap::new(),
            stamp: 0,
            reads: HashMap::new(),
            report: Report::default(),
        };
        for at in 0..count {
            let start = Micros(world.rng.within(1..5_000));
            world.push(start, Event::Client { at });
            world.after(at)?;
        }
        Ok(world)
    }

    fn run(mut self) -> Result<Report, SimError> {
        while let Some(Reverse(Timed { at, event, .. })) = self.queue.pop() {
            let waiting = self.clients.iter().filter(|c| c.left > 0 || c.asked.is_some()).count();
            if waiting == 0 {
                break;
            }
            if at.0 > self.config.end_us {
                return Err(SimError::Liveness { seed: self.config.seed, waiting, at_us: self.now.0 });
            }
            self.now = at;
            self.report.events += 1;
            self.step(event)?;
        }
        let waiting = self.clients.iter().filter(|c| c.left > 0 || c.asked.is_some()).count();
        if waiting > 0 {
            return Err(SimError::Liveness { seed: self.config.seed, waiting, at_us: self.now.0 });
        }
        self.report.end_us = self.now.0;
        self.report.nodes = self.nodes.iter().map(Node::counters).collect();
        self.report.reads_per_chunk_max = self.reads.values().copied().max().unwrap_or(0);
        Ok(self.report)
    }

    fn push(&mut self, at: Micros, event: Event) {
        self.number += 1;
        self.queue.push(Reverse(Timed { at, number: self.number, event }));
    }

    fn step(&mut self, event: Event) -> Result<(), SimError> {
        let now = self.now;
        let at = match event {
            Event::Frame { to, frame } => {
                self.nodes[to].frame(now, &frame);
                to
            }
            Event::Pulled { at, id, slot, ok } => {
                self.nodes[at].pulled(now, id, slot, ok);
                at
            }
            Event::Backend { at, id, reply } => {
                self.nodes[at].backend(now, id, reply);
                at
            }
            Event::Timer { at } => {
                if self.timers[at] > now {
                    return Ok(());
                }
                self.timers[at] = Micros::FOREVER;
                self.nodes[at].timer(now);
                at
            }
            Event::Client { at } => {
                self.next_request(at);
                at
            }
        };
        self.after(at)
    }

    /// Carries out what node `at` asks for after a call, and sets its timer.
    fn after(&mut self, at: usize) -> Result<(), SimError> {
        while let Some(output) = self.nodes[at].poll_output() {
            match output {
                Output::Send { to, frame } => {
                    self.report.messages += 1;
                    if self.rng.within(0..1000) < self.config.lost_per_mille {
                        continue;
                    }
                    let to = to.0 as usize;
                    let arrives = self.travel(at, to, 0);
                    self.push(arrives, Event::Frame { to, frame });
                }
                Output::Pull { id, from, key, offset, len, mut slot } => {
                    let from = from.0 as usize;
                    let bytes = self.nodes[from].granted(key, offset).filter(|chunk| chunk.len() == len);
                    let ok = bytes.is_some();
                    if let Some(chunk) = bytes {
                        slot.as_mut_slice()[..len].copy_from_slice(chunk.bytes());
                    }
                    let arrives = self.travel(from, at, len);
                    self.push(arrives, Event::Pulled { at, id, slot, ok });
                }
                Output::Verify { id, mut slot, len } => {
                    let crc = crc32c::crc32c(&slot.as_mut_slice()[..len]);
                    self.nodes[at].verified(self.now, id, slot, crc);
                }
                Output::Backend { id, op } => {
                    let reply = self.ask_backend(at, op);
                    let (least, most) = self.config.backend_us;
                    let done = self.now.after_us(self.rng.within(least..most + 1));
                    self.push(done, Event::Backend { at, id, reply });
                }
                Output::Register { segment } => {
                    // A key of its own for each node, with bit 63 set as some providers do.
                    let key = (1 << 63) | (at as u64) << 16 | u64::from(segment);
                    self.nodes[at].registered(segment, key);
                }
                Output::Invalidate { .. } | Output::Expire { .. } | Output::Swept { .. } => {}
                Output::Fence { id } => self.nodes[at].fenced(self.now, id),
                Output::Complete { outcome, .. } => self.answered(at, &outcome)?,
            }
        }
        if let Some(next) = self.nodes[at].next_deadline()
            && next < self.timers[at]
        {
            self.timers[at] = next;
            self.push(next.max(self.now), Event::Timer { at });
        }
        Ok(())
    }

    /// When a message or a read of `len` bytes that starts now ends: messages of one pair keep their order.
    fn travel(&mut self, from: usize, to: usize, len: usize) -> Micros {
        let (least, most) = self.config.delay_us;
        // 10 GB/s
        let wire = len as u64 / 10_000;
        let at = self.now.after_us(self.rng.within(least..most + 1) + wire);
        let last = self.links.entry((from, to)).or_insert(Micros(0));
        *last = at.max(*last);
        *last
    }

    fn ask_backend(&mut self, at: usize, op: BackendOp) -> BackendReply {
        match op {
            BackendOp::Attr { path } => {
                let found = self.tree.get(&path).map(|entry| Found { attr: entry.attr, target: entry.target.clone() });
                BackendReply::Attr(found.ok_or(ENOENT))
            }
            BackendOp::List { path } => {
                self.stamp += 1;
                BackendReply::List(Ok(self.tree.list(&path, self.stamp)))
            }
            BackendOp::Chunk { path, version, offset, len, mut slot } => {
                *self.reads.entry((at, path.clone(), offset)).or_insert(0) += 1;
                fill(version.ino, offset, &mut slot.as_mut_slice()[..len]);
                let crc = crc32c::crc32c(&slot.as_mut_slice()[..len]);
                let ctime = self.tree.get(&path).map_or_else(Default::default, |entry| entry.attr.ctime);
                BackendReply::Chunk(Ok(ChunkRead { slot, len, crc, ctime }))
            }
            BackendOp::Recheck { path, .. } => {
                BackendReply::Recheck(self.tree.get(&path).map(|entry| entry.attr).ok_or(ESTALE))
            }
            BackendOp::Statfs => BackendReply::Statfs(Ok(crate::core::wire::Statfs::default())),
        }
    }

    /// The client of node `at` asks for something.
    fn next_request(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if client.left == 0 || client.asked.is_some() {
            return;
        }
        client.left -= 1;
        let paths = if self.rng.one_in(8) { self.tree.dirs() } else { self.tree.paths() };
        let mut path = paths[usize::try_from(self.rng.within(0..paths.len() as u64)).unwrap_or(0)].to_vec();
        if self.rng.one_in(4) {
            path.extend_from_slice(b"/lib.so"[usize::from(path.is_empty())..].as_ref());
        }
        self.ask(at, Object::Attr(path.into()));
    }

    fn ask(&mut self, at: usize, object: Object) {
        self.clients[at].asked = Some(object.clone());
        self.nodes[at].request(self.now, object, Waiter::Local(at as u64));
    }

    /// The client of node `at` got its answer: it must be the truth.
    fn answered(&mut self, at: usize, outcome: &Outcome) -> Result<(), SimError> {
        let Some(object) = self.clients[at].asked.take() else {
            return Err(self.wrong(at, b"", "an answer to no request"));
        };
        self.report.answered += 1;
        let truth = self.tree.get(object.path());
        let next = match (&object, outcome, truth) {
            (Object::Attr(_), Outcome::Absent { .. }, None) => None,
            (Object::Attr(path), Outcome::Entry(inode), Some(entry)) => {
                if inode.attr != entry.attr || inode.target != entry.target {
                    return Err(self.wrong(at, path, "other attributes than the backend's"));
                }
                match entry.attr.kind() {
                    Kind::Dir => Some(Object::List(path.clone())),
                    Kind::File if entry.attr.size > 0 => {
                        Some(Object::Chunk { path: path.clone(), version: entry.attr.version(), index: 0 })
                    }
                    _ => None,
                }
            }
            (Object::List(path), Outcome::Listing { listing, .. }, Some(_)) => {
                if *listing.bytes() != *self.tree.list(path, 0).bytes() {
                    return Err(self.wrong(at, path, "other names than the backend's"));
                }
                None
            }
            (Object::Chunk { path, version, index }, Outcome::Chunk(chunk), Some(entry)) => {
                let offset = u64::from(*index) * CHUNK_BYTES as u64;
                let len = usize::try_from(entry.attr.size - offset).unwrap_or(usize::MAX).min(CHUNK_BYTES);
                let mut bytes = vec![0; len];
                fill(version.ino, offset, &mut bytes);
                if chunk.bytes() != bytes {
                    return Err(self.wrong(at, path, "other bytes than the backend's"));
                }
                self.report.bytes += len as u64;
                (offset + (len as u64) < entry.attr.size).then(|| Object::Chunk {
                    path: path.clone(),
                    version: *version,
                    index: index + 1,
                })
            }
            (object, outcome, _) => {
                return Err(self.wrong(at, object.path(), &format!("{outcome:?} for {object:?}")));
            }
        };
        match next {
            Some(object) => self.ask(at, object),
            None => {
                let pause = self.rng.within(1..2_000);
                let at_us = self.now.after_us(pause);
                self.push(at_us, Event::Client { at });
            }
        }
        Ok(())
    }

    fn wrong(&self, at: usize, path: &[u8], what: &str) -> SimError {
        SimError::Safety {
            seed: self.config.seed,
            node: NodeId(u32::try_from(at).unwrap_or(u32::MAX)),
            path: String::from_utf8_lossy(path).into_owned(),
            at_us: self.now.0,
            what: what.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn must(config: SimConfig) -> Report {
        run(config).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_hundred_nodes_get_the_right_bytes_and_only_the_root_asks_the_backend() {
        for seed in [1, 2, 3] {
            let report = must(SimConfig::new(seed, 100));
            assert!(report.answered >= 100 * 60 && report.bytes > 10_000_000, "{report:?}");
            for (at, node) in report.nodes.iter().enumerate().skip(1) {
                let asked = node.backend_attr + node.backend_list + node.backend_chunk;
                assert_eq!(asked, 0, "node {at} asked the backend");
                assert_eq!(node.timeouts + node.bad_checksums, 0, "node {at}");
            }
            assert_eq!(report.reads_per_chunk_max, 1, "the root read a chunk twice");
        }
    }

    #[test]
    fn a_seed_gives_the_same_run() {
        let run = || must(SimConfig::new(7, 40));
        assert_eq!(run(), run());
    }

    #[test]
    fn several_trees_have_several_roots() {
        let mut config = SimConfig::new(11, 30);
        config.trees = 3;
        let report = must(config);
        let roots = report.nodes.iter().filter(|n| n.backend_attr > 0).count();
        assert_eq!(roots, 3);
    }

    #[test]
    fn lost_messages_cost_time_and_no_truth() {
        let mut config = SimConfig::new(13, 20);
        config.lost_per_mille = 50;
        let report = must(config);
        assert!(
            report.nodes.iter().map(|n| n.retries).sum::<u64>() > 0,
            "nothing was sent again: the test shows nothing"
        );
        assert_eq!(report.nodes.iter().map(|n| n.timeouts).sum::<u64>(), 0);
        assert_eq!(report.reads_per_chunk_max, 1);
    }

    #[test]
    fn a_network_that_loses_everything_is_told() {
        let mut config = SimConfig::new(13, 3);
        config.lost_per_mille = 1000;
        let error = run(config).unwrap_err();
        assert!(matches!(error, SimError::Safety { .. } | SimError::Liveness { .. }), "{error}");
    }

    #[test]
    fn long_listings_arrive_in_parts_even_when_none_is_kept() {
        let mut config = SimConfig::new(17, 6);
        config.tree = TreeConfig { dirs: 1, files: 12_000, small_bytes: 100, large_bytes: 100 };
        config.requests_per_node = 60;
        for dir_ttl in [Duration::from_secs(60), Duration::ZERO] {
            config.dir_ttl = dir_ttl;
            let report = must(config.clone());
            assert_eq!(report.nodes.iter().map(|n| n.timeouts).sum::<u64>(), 0);
            let (lists, parts) = (report.nodes[0].backend_list, report.nodes[0].peers_list);
            assert!(lists > 0 && parts >= 2 * lists, "{lists} listings in {parts} parts: the test shows nothing");
        }
    }

    #[test]
    fn memory_that_is_too_small_costs_reads_and_no_truth() {
        let mut config = SimConfig::new(5, 8);
        config.cache_bytes = 4 * CHUNK_BYTES;
        config.tree.large_bytes = 6_000_000;
        let report = must(config);
        assert!(report.reads_per_chunk_max > 1, "this cache holds everything: the test shows nothing");
    }
}
