//! The fabric port as the engine uses it: node numbers instead of peers, and a short memory for what the port does not
//! take at once or could not send.
//!
//! Called by the engine thread only. A daemon that is alone has no port and needs no libfabric. Nothing here allocates for
//! an operation that the port takes: a frame is copied into the port's slab at once, and freed.

#![allow(unsafe_code, reason = "a remote read writes into a slot of the arena behind the compiler's back")]

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bornite_fabric::{Code, Event, Peer, Port, Post, Region, Sleep, Slept, Strict};
use hashbrown::HashMap;

use super::nodes::{Nodes, address_of};
use super::wheel::Waker;
use crate::cache::arena::{Arena, Slot};
use crate::cache::types::Micros;
use crate::core::limits::RETRY_US;
use crate::core::{FlightId, Node, NodeId};

/// What a peer does not take is kept this long: later the node asks again anyway.
const KEEP_US: u64 = RETRY_US;

/// Posts kept for one peer; beyond it the oldest is given up.
const KEEP_PER_PEER_MAX: usize = 1024;

/// Pauses between two tries for a peer that takes nothing: the first, and the longest.
const RETRY_MIN_US: u64 = 100;
const RETRY_MAX_US: u64 = 10_000;

/// A frame whose sending failed is sent again so often. It may arrive twice, which the protocol allows for.
const TRIES_MAX: u32 = 3;

/// The variable that makes daemons strict, for tests: its value is the seed.
const STRICT_VARIABLE: &str = "BORNITE_STRICT";

/// Completions taken in one turn.
const EVENTS_MAX: usize = 64;

/// What was handed to the port, and what it made of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) sent: u64,
    pub(super) dropped: u64,
    pub(super) timeouts: u64,
    pub(super) quarantined: u64,
    /// Peers in the address vector.
    pub(super) peers: u64,
}

/// A read under way: the slot must outlive it.
struct Reading {
    id: FlightId,
    from: NodeId,
    slot: Slot,
}

/// How a read ended.
enum Ended {
    /// The slot is ours again, with the bytes or without.
    Read { reading: Reading, ok: bool },
    /// The port keeps the slot until the provider has done with it.
    Lost(FlightId),
}

enum Queued {
    Frame { bytes: Vec<u8>, tries: u32 },
    Pull { reading: Reading, key: u64, offset: u64, len: usize },
}

#[derive(Default)]
struct Backlog {
    queue: VecDeque<(Micros, Queued)>,
    pause_us: u64,
    next: Micros,
}

pub(super) struct Transport {
    port: Option<Port>,
    arena: Arc<Arena>,
    nodes: Arc<dyn Nodes>,
    peers: HashMap<NodeId, Peer>,
    regions: Vec<Option<Region>>,
    reading: HashMap<u64, Reading>,
    /// Slots of reads that took too long, until they can no longer be written.
    late: HashMap<u64, Slot>,
    last_token: u64,
    backlog: HashMap<NodeId, Backlog>,
    /// Room for those of the backlog that are tried now, used again.
    due: Vec<NodeId>,
    ended: Vec<Ended>,
    /// Frames that were not sent, for how many tries they have had.
    failed: Vec<(NodeId, u32, Vec<u8>)>,
    /// Whose operations have ended, while somebody waits for that.
    freed: Vec<NodeId>,
    counts: Counts,
}

impl Transport {
    /// `nodes` tells addresses, which are parsed when they are first used; without a port the node is alone.
    pub(super) fn new(port: Option<Port>, nodes: Arc<dyn Nodes>, arena: Arc<Arena>) -> Transport {
        Transport {
            port,
            arena,
            nodes,
            peers: HashMap::new(),
            regions: Vec::new(),
            reading: HashMap::new(),
            late: HashMap::new(),
            last_token: 0,
            backlog: HashMap::new(),
            due: Vec::new(),
            ended: Vec::new(),
            failed: Vec::new(),
            freed: Vec::new(),
            counts: Counts::default(),
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let port = self.port.as_ref().map(Port::counters).unwrap_or_default();
        Counts { timeouts: port.timeouts, quarantined: port.quarantined, peers: self.peers.len() as u64, ..self.counts }
    }

    /// Registers a segment of the arena, so that peers may read it and reads may land in it.
    pub(super) fn register(&mut self, segment: u16, node: &mut Node) {
        let Some(port) = &mut self.port else { return };
        let Some(info) = self.arena.segment(segment) else { return };
        // SAFETY: the arena keeps the segment mapped as long as it lives, and is what keeps the memory here. Peers are told
        // the places of published chunks only, of which Rust has shared references at most; the place of a read is a slot
        // that nobody else has.
        match unsafe { port.register(info.base, info.len_bytes, self.arena.clone()) } {
            Ok(region) => {
                node.registered(segment, region.key());
                let at = usize::from(segment);
                if self.regions.len() <= at {
                    self.regions.resize_with(at + 1, || None);
                }
                self.regions[at] = Some(region);
            }
            // Chunks in it are not granted; those that fit a frame still flow.
            Err(error) => log::error!("cannot register {} bytes of cache memory: {error}", info.len_bytes),
        }
    }

    /// Sends a frame, now or as soon as the peer takes it.
    pub(super) fn send(&mut self, now: Micros, to: NodeId, frame: Vec<u8>) {
        self.post(now, to, Queued::Frame { bytes: frame, tries: 1 });
    }

    /// Reads a peer's memory into `slot`. What comes of it reaches the node in [`Transport::poll`].
    pub(super) fn pull(
        &mut self,
        now: Micros,
        id: FlightId,
        from: NodeId,
        (key, offset): (u64, u64),
        len: usize,
        slot: Slot,
    ) {
        self.post(now, from, Queued::Pull { reading: Reading { id, from, slot }, key, offset, len });
    }

    fn post(&mut self, now: Micros, to: NodeId, post: Queued) {
        if self.backlog.contains_key(&to) {
            return self.keep(now, to, post);
        }
        if let Some(post) = self.try_post(to, post) {
            self.keep(now, to, post);
        }
    }

    fn keep(&mut self, now: Micros, to: NodeId, post: Queued) {
        let backlog = self.backlog.entry(to).or_insert_with(|| Backlog {
            queue: VecDeque::new(),
            pause_us: RETRY_MIN_US,
            next: now.after_us(RETRY_MIN_US),
        });
        backlog.queue.push_back((now.after_us(KEEP_US), post));
        if backlog.queue.len() > KEEP_PER_PEER_MAX
            && let Some((_, oldest)) = backlog.queue.pop_front()
        {
            self.give_up(oldest);
        }
    }

    fn give_up(&mut self, post: Queued) {
        self.counts.dropped += 1;
        if let Queued::Pull { reading, .. } = post {
            self.ended.push(Ended::Read { reading, ok: false });
        }
    }

    /// Hands a post to the port; gives it back when it is to be tried again.
    fn try_post(&mut self, to: NodeId, post: Queued) -> Option<Queued> {
        let peer = match self.peer(to) {
            Ok(peer) => peer,
            Err(error) => {
                log::warn!("cannot reach node {to}: {error}");
                self.give_up(post);
                return None;
            }
        };
        let Some(port) = &mut self.port else {
            self.give_up(post);
            return None;
        };
        let (result, post) = match post {
            Queued::Frame { bytes, tries } => {
                (port.send(peer, &bytes, send_token(to, tries)), Queued::Frame { bytes, tries })
            }
            Queued::Pull { reading, key, offset, len } => {
                let token = self.last_token + 1;
                let at = usize::try_from(reading.slot.offset()).unwrap_or(usize::MAX);
                let region = self.regions.get(usize::from(reading.slot.segment())).and_then(Option::as_ref);
                let Some(region) = region.filter(|_| len <= reading.slot.capacity()) else {
                    self.give_up(Queued::Pull { reading, key, offset, len });
                    return None;
                };
                // SAFETY: `at..at + len` lies in the slot, which is this read's alone: it is moved into `self.reading`
                // below and leaves it only when the port reports the read's end, or with the closed port.
                let result = unsafe { port.read(peer, key, offset, region, at, len, token) };
                if result.is_ok() {
                    self.last_token = token;
                    self.reading.insert(token, reading);
                    return None;
                }
                (result, Queued::Pull { reading, key, offset, len })
            }
        };
        match result {
            Ok(()) => {
                self.counts.sent += 1;
                None
            }
            Err(Post::Again) => Some(post),
            Err(error) => {
                log::warn!("node {to}: {error}");
                self.give_up(post);
                None
            }
        }
    }

    fn peer(&mut self, node: NodeId) -> Result<Peer, String> {
        if let Some(peer) = self.peers.get(&node) {
            return Ok(*peer);
        }
        let at = node.0 as usize;
        if at >= self.nodes.count() {
            return Err("it is not in the address book".to_owned());
        }
        let address = address_of(&*self.nodes, at).map_err(|error| error.to_string())?;
        let port = self.port.as_mut().ok_or("this node is alone")?;
        let peer = port.insert(&address).map_err(|error| error.to_string())?;
        self.peers.insert(node, peer);
        Ok(peer)
    }

    /// Takes what arrived. True when there was something.
    pub(super) fn poll(&mut self, now: Micros, node: &mut Node) -> bool {
        let Some(port) = &mut self.port else { return false };
        let waiting = !self.backlog.is_empty();
        let Transport { reading, late, ended, failed, freed, counts, .. } = self;
        let events = port.poll(EVENTS_MAX, &mut |event| match event {
            Event::Frame(frame) => node.frame(now, frame),
            Event::Sent { token, result: Ok(()), .. } if waiting => freed.push(sent_by(token).0),
            Event::Sent { result: Ok(()), .. } => {}
            Event::Sent { token, result: Err(error), frame } => {
                let (to, tries) = sent_by(token);
                log::debug!("a frame to node {to} was not sent (try {tries}): {error}");
                if frame.is_empty() || tries >= TRIES_MAX {
                    counts.dropped += 1;
                } else {
                    failed.push((to, tries + 1, frame.to_vec()));
                }
            }
            Event::Read { token, result } => {
                if let Err(error) = &result {
                    log::debug!("a remote read failed: {error}");
                }
                let Some(reading) = reading.remove(&token) else { return };
                if waiting {
                    freed.push(reading.from);
                }
                if result.as_ref().is_err_and(|error| error.code() == Some(Code::TimedOut)) {
                    ended.push(Ended::Lost(reading.id));
                    late.insert(token, reading.slot);
                } else {
                    ended.push(Ended::Read { reading, ok: result.is_ok() });
                }
            }
            Event::Released { token } => {
                late.remove(&token);
            }
        });
        for peer in self.freed.drain(..) {
            // What it did not take it may take now.
            if let Some(backlog) = self.backlog.get_mut(&peer) {
                backlog.next = now;
            }
        }
        while let Some((to, tries, bytes)) = self.failed.pop() {
            self.keep(now, to, Queued::Frame { bytes, tries });
        }
        self.report(now, node) | (events > 0)
    }

    /// Tells the node of reads that ended.
    fn report(&mut self, now: Micros, node: &mut Node) -> bool {
        let any = !self.ended.is_empty();
        for ended in self.ended.drain(..) {
            match ended {
                Ended::Read { reading: Reading { id, slot, .. }, ok } => node.pulled(now, id, slot, ok),
                Ended::Lost(id) => node.pull_lost(now, id),
            }
        }
        any
    }

    /// Tries again what the port did not take. True when it took some of it.
    pub(super) fn retry(&mut self, now: Micros, node: &mut Node) -> bool {
        if self.backlog.is_empty() && self.ended.is_empty() {
            return false;
        }
        let mut due = std::mem::take(&mut self.due);
        due.extend(self.backlog.iter().filter(|(_, b)| b.next <= now).map(|(to, _)| *to));
        let mut some = false;
        for to in due.drain(..) {
            let Some(mut backlog) = self.backlog.remove(&to) else { continue };
            while let Some((until, post)) = backlog.queue.pop_front() {
                if until <= now {
                    self.give_up(post);
                } else if let Some(post) = self.try_post(to, post) {
                    backlog.queue.push_front((until, post));
                    break;
                } else {
                    some = true;
                    backlog.pause_us = RETRY_MIN_US;
                }
            }
            if !backlog.queue.is_empty() {
                backlog.next = now.after_us(backlog.pause_us);
                backlog.pause_us = (backlog.pause_us * 2).min(RETRY_MAX_US);
                self.backlog.insert(to, backlog);
            }
        }
        self.due = due;
        self.report(now, node) | some
    }

    /// Microseconds until something is to be tried again.
    pub(super) fn retry_in(&self, now: Micros) -> u64 {
        self.backlog.values().map(|b| b.next.remaining_us(now)).min().unwrap_or(u64::MAX)
    }

    /// How the engine may sleep now without holding the transport; nothing where something has arrived.
    pub(super) fn before_sleep(&mut self) -> Option<Nap> {
        let Some(port) = &mut self.port else { return Some(Nap::Alone) };
        match port.before_sleep() {
            Ok(sleep) => sleep.map(Nap::Port),
            Err(error) => {
                log::error!("waiting for the fabric failed: {error}");
                Some(Nap::Broken)
            }
        }
    }

    /// To be told how that sleep went.
    pub(super) fn after_sleep(&mut self, slept: Option<Slept>) {
        if let (Some(port), Some(slept)) = (&mut self.port, slept) {
            // What is wrong with the port is told by the next sleep.
            let _ = port.after_sleep(slept);
        }
    }

    /// Closes the port. Slots that a read may still touch are given up with the arena's memory, which the port keeps.
    pub(super) fn close(self, deadline: Instant) {
        let Some(port) = self.port else { return };
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(10));
        if let Err(error) = port.close(left) {
            log::warn!("closing the fabric port: {error}");
            std::mem::forget((self.reading, self.late));
        }
    }
}

/// Says with a send's completion whose it was.
fn send_token(to: NodeId, tries: u32) -> u64 {
    u64::from(tries) << 32 | u64::from(to.0)
}

/// The inverse of [`send_token`].
fn sent_by(token: u64) -> (NodeId, u32) {
    (NodeId(token as u32), (token >> 32) as u32)
}

/// Strict mode, if the environment asks for it; every node of a job has faults of its own.
///
/// # Errors
/// The value is no number.
pub(super) fn strict(me: usize) -> Result<Option<Strict>, String> {
    match std::env::var(STRICT_VARIABLE).as_deref() {
        Err(_) | Ok("") => Ok(None),
        Ok(text) => match text.parse::<u64>() {
            Ok(seed) => Ok(Some(Strict::seeded(seed.wrapping_mul(1_000_003).wrapping_add(me as u64)))),
            Err(_) => Err(format!("{STRICT_VARIABLE}={text:?} is no number; it is the seed of the faults")),
        },
    }
}

/// A sleep of the engine's.
pub(super) enum Nap {
    /// On the port's descriptors and the waker's.
    Port(Sleep),
    /// On the waker's alone.
    Alone,
    /// Whatever is wrong with the port, the engine must not spin on it.
    Broken,
}

impl Nap {
    /// Sleeps until something arrives, the waker is called, or the time is over. Gives also whether it was called.
    pub(super) fn sleep(&self, waker: &Waker, timeout: Duration) -> (Option<Slept>, bool) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let (timeout, failed) = match self {
            Nap::Port(sleep) => match sleep.sleep(waker.as_fd(), timeout) {
                Ok(slept) => return (Some(slept), slept.extra),
                Err(error) => (Duration::from_millis(10), Some(error.to_string())),
            },
            Nap::Alone => (timeout, None),
            Nap::Broken => (timeout.min(Duration::from_millis(10)), None),
        };
        let time = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let waited = poll(&mut [PollFd::new(waker, PollFlags::IN)], Some(&time));
        let errno = waited.err().filter(|errno| *errno != rustix::io::Errno::INTR).map(|errno| errno.to_string());
        if let Some(error) = failed.or(errno) {
            log::error!("waiting for the fabric failed: {error}");
            std::thread::park_timeout(timeout.min(Duration::from_millis(10)));
        }
        (None, waited != Ok(0))
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use bornite_fabric::{Net, PortConfig};

    use super::super::counting::ALLOCATIONS;
    use super::*;
    use crate::cache::arena::ArenaConfig;
    use crate::cache::enoent::{EnoentConfig, EnoentMap};
    use crate::cache::names::{NamesConfig, NamesWriter};
    use crate::cache::store::ChunkStore;
    use crate::core::{NodeConfig, Topology};

    fn chunks() -> (ChunkStore, Arc<Arena>) {
        ChunkStore::new(ArenaConfig { first_segment_bytes: 4 << 20, segment_bytes: 4 << 20, max_bytes: 4 << 20 })
    }

    /// The transport of node 1, its node, and the port of node 0.
    fn pair() -> Option<(Transport, Node, ChunkStore, Port, Peer, u64)> {
        let open = || Port::open(PortConfig::new(Net::Tcp));
        let (mut other, own) = match (open(), open()) {
            (Ok(other), Ok(own)) => (other, own),
            (Err(error), _) | (_, Err(error)) => {
                println!("skipped: {error}");
                return None;
            }
        };
        let addresses = [other.address().clone(), own.address().clone()];
        let back = other.insert(&addresses[1]).expect("insert");
        let memory = Box::leak(vec![7u8; 1 << 20].into_boxed_slice());
        // SAFETY: the memory is leaked, and nobody else looks at it.
        let region = unsafe { other.register(NonNull::from(memory).cast(), 1 << 20, Arc::new(())) }.expect("register");
        let topology = Topology::new(2, NodeId(1), 1, None).expect("two nodes");
        let config = NodeConfig::new(topology, 1, 1, 64);
        let enoent = Arc::new(EnoentMap::new(EnoentConfig::new([1, 2])));
        let mut node = Node::new(config, NamesWriter::new(NamesConfig::new([1, 2])), enoent, chunks().0);
        let (mut store, arena) = chunks();
        drop(store.alloc(4096).expect("memory"));
        let nodes: Vec<(String, String)> =
            addresses.iter().map(|address| ("n".to_owned(), address.to_string())).collect();
        let mut transport = Transport::new(Some(own), Arc::new(nodes), arena);
        transport.register(0, &mut node);
        Some((transport, node, store, other, back, region.key()))
    }

    /// What the transport allocates in `count` rounds of frames of two lengths, a read, and a frame that comes.
    fn rounds(
        (transport, node, store, other, back, key): (&mut Transport, &mut Node, &mut ChunkStore, &mut Port, Peer, u64),
        count: u64,
    ) -> u64 {
        let start = Instant::now();
        let now = || Micros(1 + u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
        let (mut allocations, mut frames) = (0, 0);
        let end = Instant::now() + Duration::from_secs(20);
        for round in 0..count {
            let (short, long, slot) = (vec![1; 64], vec![2; 8192], store.alloc(65_536).expect("memory"));
            let before = ALLOCATIONS.get();
            transport.send(now(), NodeId(0), short);
            transport.send(now(), NodeId(0), long);
            transport.pull(now(), FlightId(round), NodeId(0), (key, 0), 65_536, slot);
            allocations += ALLOCATIONS.get() - before;
            let mut answered = false;
            // The connection is not there at first.
            while frames < 2 * (round + 1)
                || !answered
                || !transport.reading.is_empty()
                || !transport.backlog.is_empty()
            {
                assert!(Instant::now() < end, "round {round}: {frames} frames, {} reads", transport.reading.len());
                other.poll(64, &mut |event| frames += u64::from(matches!(event, Event::Frame(_))));
                answered = answered || other.send(back, b"no frame of ours", 1).is_ok();
                let before = ALLOCATIONS.get();
                transport.poll(now(), node);
                transport.retry(now(), node);
                allocations += ALLOCATIONS.get() - before;
            }
        }
        allocations
    }

    #[test]
    fn operations_that_the_port_takes_allocate_nothing() {
        let Some((mut transport, mut node, mut store, mut other, back, key)) = pair() else { return };
        let mut run = |count| rounds((&mut transport, &mut node, &mut store, &mut other, back, key), count);
        run(20);
        assert_eq!(run(200), 0);
        transport.close(Instant::now() + Duration::from_secs(1));
    }

    #[test]
    fn a_send_says_whose_it_was() {
        for (to, tries) in [(0, 1), (7, 3), (u32::MAX, 2)] {
            assert_eq!(sent_by(send_token(NodeId(to), tries)), (NodeId(to), tries));
        }
    }
}
