//! Nodes on endpoints of their own, in this process: the daemons' core and the fabric layer, real messages, no mounts.
//!
//! One thread registers the nodes one after the other, in a shuffled order, as their starts on many machines are not in the
//! book's order; another one serves all that are registered. Endpoints share a domain: a domain each, as daemons have, costs
//! half a megabyte and some milliseconds for each (`fabric_start.json`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bornite::cache::arena::ArenaConfig;
use bornite::cache::chunks::CHUNK_BYTES;
use bornite::cache::enoent::{EnoentConfig, EnoentMap};
use bornite::cache::names::{NamesConfig, NamesWriter};
use bornite::cache::store::ChunkStore;
use bornite::cache::types::Micros;
use bornite::core::{Node, NodeConfig, NodeId, Output, Secret, Topology};
use bornite::sim::Rng;
use bornite_fabric::{Address, Event, Net, Peer, Port, PortConfig, Post, Shared};
use serde::Serialize;

const READY_WITHIN: Duration = Duration::from_secs(60);
const SECRET: &[u8] = b"the secret of this measurement";

/// One row of the study's table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) nodes: u32,
    pub(super) registration_us_min: u64,
    pub(super) registration_us_avg: f64,
    pub(super) registration_us_max: u64,
    /// From the first node's beginning until the last one has registered.
    pub(super) registered_ms: f64,
    /// From then until the root knew that all are ready.
    pub(super) ready_ms: f64,
    pub(super) probes: u64,
    pub(super) failures: u64,
    pub(super) frames: u64,
    pub(super) peers_max: usize,
    /// The most that the step allows: children and depth of the tree.
    pub(super) fanout_and_depth: u32,
}

/// A node with its endpoint.
struct Rank {
    node: Node,
    port: Port,
    peers: HashMap<NodeId, Peer>,
    backlog: Vec<(NodeId, Vec<u8>)>,
    frames: u64,
}

/// Starts `nodes` of them.
pub(super) fn run(nodes: u32) -> anyhow::Result<Row> {
    let mut config = PortConfig::new(Net::Tcp);
    (config.receives, config.sends, config.reads) = (16, 16, 8);
    let shared = Shared::open(&config)?;
    let mut order: Vec<u32> = (0..nodes).collect();
    let mut rng = Rng::new(u64::from(nodes));
    (1..order.len()).rev().for_each(|at| order.swap(at, rng.below(at + 1)));
    // The book is there before: each node binds its own entry.
    let mut held = Vec::new();
    let mut book = Vec::new();
    for _ in 0..nodes {
        let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
        book.push(format!("ofi+tcp://{}", socket.local_addr()?).parse::<Address>()?);
        held.push(Some(socket));
    }
    let book = Arc::new(book);
    let (sender, ranks) = channel();
    let begin = Instant::now();
    let server = std::thread::spawn({
        let book = Arc::clone(&book);
        move || serve(nodes, &book, &ranks, begin)
    });
    let mut times = Vec::new();
    for at in order {
        held[at as usize] = None;
        let started = Instant::now();
        let port = Port::open_in(&shared, PortConfig { bind: Some(book[at as usize].clone()), ..config.clone() });
        let port = port.with_context(|| format!("node {at}"))?;
        let node = make(nodes, at)?;
        times.push(micros(started));
        let rank = Rank { node, port, peers: HashMap::new(), backlog: Vec::new(), frames: 0 };
        // Why nobody takes it is told by the thread's end.
        if sender.send(rank).is_err() {
            break;
        }
    }
    let registered = begin.elapsed();
    drop(sender);
    let (ready, ranks) = server.join().map_err(|_| anyhow::anyhow!("the serving thread panicked"))??;
    let count = |of: fn(&Rank) -> u64| ranks.iter().map(of).sum::<u64>();
    let topology = Topology::new(nodes, NodeId(nodes - 1), 1, None)?;
    let row = Row {
        nodes,
        registration_us_min: times.iter().copied().min().unwrap_or(0),
        registration_us_avg: times.iter().sum::<u64>() as f64 / f64::from(nodes),
        registration_us_max: times.iter().copied().max().unwrap_or(0),
        registered_ms: registered.as_secs_f64() * 1e3,
        ready_ms: ready.saturating_sub(registered).as_secs_f64() * 1e3,
        probes: count(|rank| rank.node.counters().probes),
        failures: count(|rank| rank.node.counters().probes_unanswered + rank.node.counters().probes_not_serving),
        frames: count(|rank| rank.frames),
        peers_max: ranks.iter().map(|rank| rank.peers.len()).max().unwrap_or(0),
        fanout_and_depth: topology.fanout() + topology.depth(),
    };
    Ok(row)
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Serves nodes as they come, until the root knows of all; gives when that was, and the nodes.
fn serve(nodes: u32, book: &[Address], new: &Receiver<Rank>, begin: Instant) -> anyhow::Result<(Duration, Vec<Rank>)> {
    let mut ranks: Vec<Rank> = Vec::new();
    let now = || Micros(1 + micros(begin));
    loop {
        while let Ok(mut rank) = new.try_recv() {
            rank.node.begin_log(now(), |node| node.to_string());
            rank.node.open_for_service();
            rank.node.mounted(now());
            ranks.push(rank);
        }
        for rank in &mut ranks {
            let Rank { node, port, .. } = rank;
            port.poll(64, &mut |event| {
                if let Event::Frame(frame) = event {
                    node.frame(now(), frame);
                }
            });
            if node.next_deadline().is_some_and(|at| at <= now()) {
                node.timer(now());
            }
            rank.carry_out(book)?;
        }
        let root = ranks.iter().find(|rank| rank.node.topology().is_root());
        if root.is_some_and(|root| root.node.readiness().ready == nodes) {
            return Ok((begin.elapsed(), ranks));
        }
        ensure!(begin.elapsed() < READY_WITHIN, "{nodes} nodes are not ready after {READY_WITHIN:?}");
    }
}

impl Rank {
    fn carry_out(&mut self, book: &[Address]) -> anyhow::Result<()> {
        let mut frames = std::mem::take(&mut self.backlog);
        while let Some(output) = self.node.poll_output() {
            if let Output::Send { to, frame } = output {
                frames.push((to, frame));
            }
        }
        for (to, frame) in frames {
            let peer = match self.peers.get(&to) {
                Some(peer) => *peer,
                None => {
                    let peer = self.port.insert(&book[to.0 as usize])?;
                    *self.peers.entry(to).or_insert(peer)
                }
            };
            match self.port.send(peer, &frame, 0) {
                Ok(()) => self.frames += 1,
                Err(Post::Again) => self.backlog.push((to, frame)),
                // It is asked again by the node.
                Err(_) => {}
            }
        }
        Ok(())
    }
}

fn make(nodes: u32, at: u32) -> anyhow::Result<Node> {
    let key = [u64::from(at), 7];
    let names = NamesWriter::new(NamesConfig { index_shards: 1, retired_max: 64, ..NamesConfig::new(key) });
    let enoent = EnoentConfig { entries_max: 64, ..EnoentConfig::new(key) };
    let arena = ArenaConfig { first_segment_bytes: CHUNK_BYTES, segment_bytes: CHUNK_BYTES, max_bytes: CHUNK_BYTES };
    let config = NodeConfig::new(Topology::new(nodes, NodeId(at), 1, None)?, 1, u64::from(at) + 1, 16);
    let mut node = Node::new(config, names, Arc::new(EnoentMap::new(enoent)), ChunkStore::new(arena).0);
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&at.to_le_bytes());
    node.authenticate(Secret::new(SECRET, seed));
    Ok(node)
}
