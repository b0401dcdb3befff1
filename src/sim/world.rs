//! The simulated world: nodes, their clients, the network between them, the roots' backend, and what goes wrong.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};

use super::backend::{self, Question};
use super::client::{Asked, Client, Kernels};
use super::config::SimConfig;
use super::event::{Event, Life, Queue, Read};
use super::network::{Network, is_answer, spoil};
use super::oracle::{Hearer, Operation, Oracle, Reads, Ttls};
use super::report::{Report, SimError};
use super::rng::{Rng, mix};
use super::tree::Tree;
use crate::cache::arena::ArenaConfig;
use crate::cache::chunks::CHUNK_BYTES;
use crate::cache::enoent::{EnoentConfig, EnoentMap};
use crate::cache::names::{NamesConfig, NamesWriter};
use crate::cache::store::ChunkStore;
use crate::cache::types::Micros;
use crate::core::limits::{
    DETECT_DEFAULT_US, FRAME_BYTES_MAX, GRANT_LEASE_US, GRANTS_PER_PEER_MAX, REQUEST_DEADLINE_US,
    REQUESTS_AT_PARENT_MAX,
};
use crate::core::wire::{self, Message};
use crate::core::{FlightId, Load, Node, NodeConfig, NodeId, Object, Outcome, Output, Topology, Waiter};

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// Everyone who waits is looked at this often.
const WATCH_US: u64 = 5_000_000;
/// How much later than its deadline a request may be answered: timers are exact here.
const DEADLINE_SLACK_US: u64 = 1_000;
/// A run is given up so long after the clients' span.
const END_US: u64 = 240_000_000;
/// After the last answer: every lease and every deadline has passed.
const REST_US: u64 = GRANT_LEASE_US + REQUEST_DEADLINE_US + 5_000_000;
/// Timers of one node at one moment: the second one must have found nothing more to do.
const TIMERS_PER_MOMENT_MAX: u32 = 4;
/// Events that an answer costs on average: messages, timers and operations on the way to the root and back.
const EVENTS_PER_ANSWER_MAX: u64 = 40;
/// Events that a node costs beside them: its start, the search for its parent, and heartbeats.
const EVENTS_PER_NODE_MAX: u64 = 600;
/// Other bytes than those granted, in a row for one request: one less than what fails it.
const STALE_READS_IN_A_ROW_MAX: u32 = 2;

struct Place {
    topology: Topology,
    /// None before its start, and between two lives.
    node: Option<Node>,
    life: u64,
    enoent: Option<Arc<EnoentMap>>,
    timer: Micros,
    timers_at: (Micros, u32),
}

pub(super) struct World {
    config: SimConfig,
    rng: Rng,
    tree: Tree,
    oracle: Oracle,
    kernels: Kernels,
    network: Network,
    now: Micros,
    queue: Queue,
    places: Vec<Place>,
    clients: Vec<Client>,
    unfinished: usize,
    /// Starts, stops and changes to come.
    planned: u64,
    waiters: u64,
    stamp: u64,
    /// What the lives of roots have under way at the backend.
    asking: HashSet<(Life, Question)>,
    questions: HashMap<(Life, FlightId), Question>,
    /// Requests that a node was sent by another one, less the answers it gave: by both and the request's number.
    owed: HashMap<(usize, usize, u64), u32>,
    stale_reads: HashMap<(Life, FlightId), u32>,
    report: Report,
}

impl World {
    pub(super) fn new(config: SimConfig) -> Result<World, SimError> {
        let mut rng = Rng::new(config.seed);
        let tree = Tree::new(&config.tree, &mut rng);
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let oracle = Oracle::new(Ttls {
            enoent_us: micros(config.enoent_ttl),
            dir_us: micros(config.dir_ttl),
            attr_us: config.attr_ttl.map_or(u64::MAX, micros),
        });
        let mut places = Vec::new();
        for me in 0..config.nodes {
            let topology = Topology::new(config.nodes, NodeId(me), config.trees, config.fanout)?;
            let timers_at = (Micros(0), 0);
            places.push(Place { topology, node: None, life: 0, enoent: None, timer: Micros::FOREVER, timers_at });
        }
        let clients: Vec<_> = (0..places.len())
            .flat_map(|node| (0..config.clients_per_node).map(move |_| node))
            .map(|node| Client::new(node, config.lookups_per_client))
            .collect();
        let mut world = World {
            unfinished: clients.len(),
            rng,
            tree,
            oracle,
            kernels: Kernels::new(config.nodes as usize),
            network: Network::default(),
            now: Micros(1),
            queue: Queue::default(),
            places,
            clients,
            planned: 0,
            waiters: 0,
            stamp: 0,
            asking: HashSet::new(),
            questions: HashMap::new(),
            owed: HashMap::new(),
            stale_reads: HashMap::new(),
            report: Report::default(),
            config,
        };
        world.plan();
        Ok(world)
    }

    /// Everything that comes from outside.
    fn plan(&mut self) {
        let (faults, span_us) = (self.config.faults, self.config.span_us);
        for node in 0..self.places.len() {
            let is_late = self.rng.per_mille(faults.late_nodes_per_mille);
            let most_us = if is_late { faults.late_start_us_max } else { 1_000 };
            self.report.counts.late_starts += u64::from(is_late);
            let at = Micros(1 + self.rng.up_to(most_us));
            self.planned(at, Event::Start { node });
        }
        for _ in 0..faults.restarts {
            let node = self.rng.below(self.places.len());
            let at = Micros(1 + self.rng.up_to(span_us));
            self.planned(at, Event::Stop { node });
        }
        for _ in 0..faults.changes {
            let at = Micros(1 + self.rng.up_to(span_us));
            self.planned(at, Event::Change);
        }
        self.queue.push(Micros(WATCH_US), Event::Watch);
    }

    fn planned(&mut self, at: Micros, event: Event) {
        self.planned += 1;
        self.queue.push(at, event);
    }

    pub(super) fn run(mut self) -> Result<Report, SimError> {
        let give_up = Micros(self.config.span_us + END_US);
        let mut rest_until = None;
        while let Some((at, event)) = self.queue.pop() {
            if at > rest_until.unwrap_or(give_up) {
                // Heartbeats go on for ever.
                if rest_until.is_some() {
                    break;
                }
                return Err(self.stuck(format!("{} clients have not had all their answers", self.unfinished)));
            }
            self.now = at;
            self.report.counts.events += 1;
            self.report.counts.digest = mix(self.report.counts.digest ^ at.0 ^ event.kind().rotate_left(40));
            self.step(event)?;
            if rest_until.is_none() && self.unfinished == 0 && self.planned == 0 {
                self.report.counts.virtual_us_max = self.now.0;
                rest_until = Some(self.now.after_us(REST_US));
            }
        }
        self.finish()
    }

    /// Everything is over: what the nodes still hold, and what they counted.
    fn finish(mut self) -> Result<Report, SimError> {
        if self.unfinished > 0 {
            return Err(self.stuck(format!("{} clients have not had all their answers", self.unfinished)));
        }
        for at in 0..self.places.len() {
            let Some(node) = &self.places[at].node else { continue };
            let load = node.load();
            if load != Load::default() {
                return Err(self.wrong(at, b"", format!("it holds {load:?} long after the last request")));
            }
            let counters = node.counters();
            if counters.timeouts > 0 {
                return Err(self.stuck(format!("{} requests of node {at} ran into their deadline", counters.timeouts)));
            }
            let asked = counters.backend_attr + counters.backend_list + counters.backend_chunk > 0;
            if asked && !node.topology().is_root() && counters.failovers == 0 {
                return Err(self.wrong(at, b"", "it asked the backend, and neither is nor was the root".to_owned()));
            }
            self.report.nodes.push(counters);
            let counts = &mut self.report.counts;
            counts.retries += counters.retries;
            counts.joined += counters.joined;
            counts.evicted += node.store().stats().evicted_chunks;
        }
        let counts = &self.report.counts;
        if counts.events > EVENTS_PER_ANSWER_MAX * counts.answered + EVENTS_PER_NODE_MAX * self.places.len() as u64 {
            return Err(self.stuck(format!("{} events for {} answers", counts.events, counts.answered)));
        }
        // Without faults nothing is ever sent twice, and nothing is read twice while there is memory.
        let faults = &self.config.faults;
        let is_quiet = !faults.loses() && faults.hangs_per_mille == 0 && faults.failed_reads_per_mille == 0;
        let is_whole = is_quiet && faults.stale_reads_per_mille == 0 && faults.late_per_mille == 0;
        if is_whole && self.config.has_ample_memory() && self.report.counts.retries > 0 {
            let retries = self.report.counts.retries;
            return Err(self.stuck(format!("{retries} requests were sent again though no message was lost")));
        }
        let keeps = |root: usize| {
            let place = &self.places[root];
            place.life == 1 && place.node.as_ref().is_some_and(|node| node.store().stats().evicted_chunks == 0)
        };
        let (most, wrong) = self.oracle.reads_max(&self.tree, keeps);
        if let Some(Reads { root, path, reads }) = wrong {
            return Err(self.wrong(root, path, format!("it read one chunk of one version {reads} times")));
        }
        let counts = &mut self.report.counts;
        counts.reads_per_chunk_max = most;
        counts.runs = 1;
        counts.nodes = self.places.len() as u64;
        Ok(self.report)
    }

    /// The root of a node's tree, in whose name the node may have to ask the backend.
    fn root_of(&self, node: usize) -> usize {
        self.places[node].topology.root().0 as usize
    }

    fn life(&self, node: usize) -> Life {
        Life { node, number: self.places[node].life }
    }

    /// The node of a life that is not over.
    fn living(&mut self, life: Life) -> Option<&mut Node> {
        let place = &mut self.places[life.node];
        place.node.as_mut().filter(|_| place.life == life.number)
    }

    fn step(&mut self, event: Event) -> Result<(), SimError> {
        let now = self.now;
        match event {
            Event::Frame { to, frame } => {
                self.note_request(to, &frame);
                match &mut self.places[to].node {
                    Some(node) => node.frame(now, &frame),
                    None => self.report.counts.unheard += 1,
                }
                self.after(to)
            }
            Event::Read(read) => {
                self.read(read);
                Ok(())
            }
            Event::Pulled { by, id, slot, ok } => self.tell(by, |node| node.pulled(now, id, slot, ok)),
            Event::Verified { by, id, slot, crc } => self.tell(by, |node| node.verified(now, id, slot, crc)),
            Event::Operate { by, id, op, asked, told } => {
                let path = Question::of(&op).path().to_vec();
                if matches!(op, crate::core::BackendOp::List { .. }) {
                    self.stamp += 1;
                }
                if matches!(op, crate::core::BackendOp::Recheck { .. }) {
                    self.oracle.note_comparison(self.root_of(by.node), &path, asked, told);
                }
                let (reply, said, injected) = backend::answer(&self.config, &self.tree, now, self.stamp, op);
                self.report.counts.backend_failed += u64::from(injected);
                self.oracle.note(&path, Operation { root: self.root_of(by.node), asked, looked: now, told, said });
                self.queue.push(told, Event::Backend { by, id, reply });
                Ok(())
            }
            Event::Backend { by, id, reply } => {
                if let Some(question) = self.questions.remove(&(by, id)) {
                    self.asking.remove(&(by, question));
                }
                self.tell(by, |node| node.backend(now, id, reply))
            }
            Event::Timer { by } => self.timer(by),
            Event::Client { client } => self.client(client),
            Event::Start { node } => {
                self.planned -= 1;
                self.start(node)
            }
            Event::Open { by } => self.tell(by, Node::open_for_service),
            Event::Stop { node } => {
                self.planned -= 1;
                self.stop(node);
                Ok(())
            }
            Event::Change => {
                self.planned -= 1;
                self.report.counts.changes += 1;
                self.tree.change(now, &mut self.rng, self.config.faults.silent);
                Ok(())
            }
            Event::Watch => self.watch(),
        }
    }

    fn tell(&mut self, life: Life, what: impl FnOnce(&mut Node)) -> Result<(), SimError> {
        match self.living(life) {
            Some(node) => what(node),
            None => return Ok(()),
        }
        self.after(life.node)
    }

    fn timer(&mut self, by: Life) -> Result<(), SimError> {
        let now = self.now;
        let place = &mut self.places[by.node];
        if place.life != by.number || place.timer > now {
            return Ok(());
        }
        place.timer = Micros::FOREVER;
        let Some(node) = &mut place.node else { return Ok(()) };
        self.report.counts.timers += 1;
        place.timers_at = if place.timers_at.0 == now { (now, place.timers_at.1 + 1) } else { (now, 1) };
        if place.timers_at.1 > TIMERS_PER_MOMENT_MAX {
            return Err(self.stuck(format!("node {} wants its timer again and again at one moment", by.node)));
        }
        node.timer(now);
        self.after(by.node)
    }

    /// A node begins a life.
    fn start(&mut self, at: usize) -> Result<(), SimError> {
        let key = [self.rng.next_u64(), self.rng.next_u64()];
        let place = &mut self.places[at];
        place.life += 1;
        place.timer = Micros::FOREVER;
        let names = NamesWriter::new(NamesConfig { index_shards: 1, retired_max: 64, ..NamesConfig::new(key) });
        let enoent = EnoentConfig { entries_max: self.config.enoent_entries, ..EnoentConfig::new(key) };
        let (store, _) = ChunkStore::new(ArenaConfig {
            first_segment_bytes: CHUNK_BYTES,
            segment_bytes: CHUNK_BYTES,
            max_bytes: self.config.cache_bytes,
        });
        let config = NodeConfig {
            topology: place.topology.clone(),
            job: self.config.seed,
            incarnation: mix(self.config.seed ^ (at as u64) << 32 ^ place.life),
            enoent_ttl: self.config.enoent_ttl,
            dir_ttl: self.config.dir_ttl,
            attr_ttl: self.config.attr_ttl,
            detect: Duration::from_micros(DETECT_DEFAULT_US),
            receives: (place.topology.children().count() + 1) * REQUESTS_AT_PARENT_MAX,
        };
        let enoent = Arc::new(EnoentMap::new(enoent));
        place.enoent = Some(enoent.clone());
        place.node = Some(Node::new(config, names, enoent, store));
        let opens = self.now.after_us(self.rng.up_to(100_000));
        self.queue.push(opens, Event::Open { by: self.life(at) });
        for client in self.clients_of(at) {
            self.schedule(client, 1_000);
        }
        self.after(at)
    }

    /// A node ends; it starts again with nothing a little later.
    fn stop(&mut self, at: usize) {
        if self.places[at].node.take().is_none() {
            return;
        }
        self.report.counts.restarts += 1;
        self.kernels.forget(at);
        let life = self.life(at);
        self.asking.retain(|(by, _)| *by != life);
        self.questions.retain(|(by, _), _| *by != life);
        for client in self.clients_of(at) {
            self.clients[client].lose();
            self.unfinished -= usize::from(self.clients[client].is_over());
        }
        let again = self.now.after_us(self.rng.up_to(3_000_000));
        self.planned(again, Event::Start { node: at });
    }

    fn clients_of(&self, node: usize) -> std::ops::Range<usize> {
        let each = self.config.clients_per_node as usize;
        node * each..(node + 1) * each
    }

    /// Carries out what node `at` asks for after a call, looks at its bounds, and sets its timer.
    fn after(&mut self, at: usize) -> Result<(), SimError> {
        let by = self.life(at);
        while let Some(output) = self.places[at].node.as_mut().and_then(Node::poll_output) {
            self.carry_out(by, output)?;
        }
        let Some(node) = &self.places[at].node else { return Ok(()) };
        let load = node.load();
        self.report.counts.at_parent_max = self.report.counts.at_parent_max.max(load.at_parent as u64);
        if load.at_parent > REQUESTS_AT_PARENT_MAX
            || load.line > load.flights
            || load.grants_of_peer > GRANTS_PER_PEER_MAX
        {
            return Err(self.wrong(at, b"", format!("a bound is broken: {load:?}")));
        }
        let next = node.next_deadline();
        if let Some(next) = next.filter(|next| *next < self.places[at].timer) {
            self.places[at].timer = next;
            self.queue.push(next.max(self.now), Event::Timer { by });
        }
        Ok(())
    }

    fn carry_out(&mut self, by: Life, output: Output) -> Result<(), SimError> {
        let now = self.now;
        match output {
            Output::Send { to, frame } => self.send(by.node, to.0 as usize, frame)?,
            Output::Pull { id, from, key, offset, len, slot } => {
                self.report.counts.reads += 1;
                let link = (by.node, from.0 as usize);
                let at = self.network.travel(&self.config, &mut self.rng, now, link, 0);
                self.queue.push(at, Event::Read(Read { by, from, id, key, offset, len, slot }));
            }
            Output::Verify { id, mut slot, len } => {
                let crc = crc32c::crc32c(&slot.as_mut_slice()[..len]);
                let done = now.after_us(self.rng.within(1..200));
                self.queue.push(done, Event::Verified { by, id, slot, crc });
            }
            Output::Backend { id, op } => {
                let counts = &mut self.report.counts;
                let question = Question::of(&op);
                match &question {
                    Question::Attr(_) => counts.backend_attr += 1,
                    Question::Names(_) => counts.backend_list += 1,
                    Question::Bytes(path, version, offset) => {
                        counts.backend_chunk += 1;
                        self.oracle.note_read(by.node, path, *version, *offset);
                    }
                    Question::Same(..) | Question::Statfs => {}
                }
                // Several requests may each have to compare the same file.
                let alone = !matches!(question, Question::Same(..));
                if !self.asking.insert((by, question.clone())) && alone {
                    let what = format!("it asks the backend twice at once: {question:?}");
                    return Err(self.wrong(by.node, question.path(), what));
                }
                self.questions.insert((by, id), question);
                let (looks, told, hangs) = backend::times(&self.config, &mut self.rng, now);
                self.report.counts.backend_hung += u64::from(hangs);
                self.queue.push(looks, Event::Operate { by, id, op, asked: now, told });
            }
            Output::Register { segment } => {
                // A key of its own for each life, with bit 63 set as some providers do.
                let key = (1 << 63) | by.number << 48 | (by.node as u64) << 16 | u64::from(segment);
                if let Some(node) = self.living(by) {
                    node.registered(segment, key);
                }
            }
            Output::Invalidate { ino, path } => self.kernels.drop_name(by.node, ino, &path),
            // Only its names go: the directory's own entry stays in the kernel.
            Output::Expire { dir: true, .. } | Output::Swept { .. } => {}
            Output::Expire { ino, path, dir: false } => self.kernels.drop_name(by.node, ino, &path),
            Output::Fence { id } => {
                if let Some(node) = self.living(by) {
                    node.fenced(now, id);
                }
            }
            Output::Complete { waiter, outcome } => self.answered(by.node, waiter, &outcome)?,
        }
        Ok(())
    }

    fn send(&mut self, from: usize, to: usize, frame: Vec<u8>) -> Result<(), SimError> {
        let (header, message) = match wire::decode(&frame) {
            Ok(decoded) if frame.len() <= FRAME_BYTES_MAX => decoded,
            other => return Err(self.wrong(from, b"", format!("it sends a frame that nobody takes: {other:?}"))),
        };
        if is_answer(&message) {
            let owed = self.owed.get_mut(&(from, to, header.id)).filter(|owed| **owed > 0);
            match owed {
                Some(owed) => *owed -= 1,
                None => {
                    let what = format!("it answers node {to} more often than it was asked: {message:?}");
                    return Err(self.wrong(from, b"", what));
                }
            }
        }
        self.report.counts.messages += 1;
        let fate = self.network.send(&self.config, &mut self.rng, self.now, (from, to));
        let counts = &mut self.report.counts;
        counts.late += u64::from(fate.is_late);
        match fate.arrivals {
            [Some(first), Some(second)] => {
                counts.doubled += 1;
                self.queue.push(first, Event::Frame { to, frame: frame.clone() });
                self.queue.push(second, Event::Frame { to, frame });
            }
            [Some(at), None] | [None, Some(at)] => self.queue.push(at, Event::Frame { to, frame }),
            [None, None] => counts.lost += 1,
        }
        Ok(())
    }

    /// A frame arrives: if it is a request, its sender may be answered once more.
    fn note_request(&mut self, to: usize, frame: &[u8]) {
        if let Ok((header, message)) = wire::decode(frame)
            && matches!(
                message,
                Message::Probe { .. }
                    | Message::Attr { .. }
                    | Message::List { .. }
                    | Message::Chunk { .. }
                    | Message::Statfs
            )
        {
            *self.owed.entry((to, header.from.0 as usize, header.id)).or_insert(0) += 1;
        }
    }

    /// A remote read reaches the memory that it reads.
    fn read(&mut self, read: Read) {
        let Read { by, from, id, key, offset, len, mut slot } = read;
        let parent = from.0 as usize;
        let place = &self.places[parent];
        let faults = self.config.faults;
        let mut ok = place.node.is_some() && key >> 48 & 0x7fff == place.life;
        let granted = place.node.as_ref().and_then(|node| node.granted(key, offset));
        let mut is_stale = false;
        match granted.filter(|chunk| chunk.len() == len) {
            Some(chunk) => {
                slot.as_mut_slice()[..len].copy_from_slice(chunk.bytes());
                is_stale = self.rng.per_mille(faults.stale_reads_per_mille);
            }
            // Its lease is over: whatever is there now.
            None => is_stale |= ok,
        }
        ok &= !self.rng.per_mille(faults.failed_reads_per_mille);
        if ok && is_stale {
            let before = self.stale_reads.entry((by, id)).or_insert(0);
            *before += 1;
            ok = *before <= STALE_READS_IN_A_ROW_MAX;
            self.report.counts.reads_stale += u64::from(ok);
            spoil(&mut slot, len, &mut self.rng);
        }
        self.report.counts.reads_failed += u64::from(!ok);
        let at = self.network.travel(&self.config, &mut self.rng, self.now, (parent, by.node), len);
        self.queue.push(at, Event::Pulled { by, id, slot, ok });
    }

    fn schedule(&mut self, client: usize, most_us: u64) {
        if !self.clients[client].is_scheduled {
            self.clients[client].is_scheduled = true;
            let at = self.now.after_us(1 + self.rng.up_to(most_us));
            self.queue.push(at, Event::Client { client });
        }
    }

    /// A client's turn.
    fn client(&mut self, at: usize) -> Result<(), SimError> {
        let client = &mut self.clients[at];
        client.is_scheduled = false;
        // While its node is down it does nothing: the start wakes it.
        if client.left == 0 || client.asked.is_some() || self.places[client.node].node.is_none() {
            return Ok(());
        }
        client.left -= 1;
        let object = client.next(&self.tree, &mut self.rng, &self.kernels, self.now);
        self.ask(at, object);
        self.after(self.clients[at].node)
    }

    fn ask(&mut self, at: usize, object: Object) {
        self.waiters += 1;
        let waiter = self.waiters << 16 | at as u64;
        let client = &mut self.clients[at];
        client.asked = Some(Asked { waiter, object: object.clone(), at: self.now, event: self.report.counts.events });
        if let Some(node) = &mut self.places[client.node].node {
            node.request(self.now, object, Waiter::Local(waiter));
        }
    }

    /// A request of a client of node `node` ended.
    fn answered(&mut self, node: usize, waiter: u64, outcome: &Outcome) -> Result<(), SimError> {
        let at = usize::try_from(waiter & 0xffff).unwrap_or(0);
        let Some(asked) = self.clients[at].asked.take_if(|asked| asked.waiter == waiter) else {
            return Err(self.wrong(node, b"", format!("an answer to no request, or a second one: {outcome:?}")));
        };
        let path = asked.object.path();
        let waited_us = self.now.0 - asked.at.0;
        if waited_us > REQUEST_DEADLINE_US + DEADLINE_SLACK_US {
            return Err(self.stuck(format!("node {node} answered {} after {waited_us} us", describe(&asked.object))));
        }
        let topology = &self.places[node].topology;
        let hop_us = Network::hop_us_max(&self.config);
        let hearer = Hearer {
            node,
            root: topology.root().0 as usize,
            now: self.now,
            // What came from the node's own memory did not travel.
            travel_us: if asked.event < self.report.counts.events { u64::from(topology.depth()) * hop_us } else { 0 },
        };
        if let Some(ino) = self.kernels.told(node, path, self.now, outcome) {
            let what =
                format!("told something else while the kernel still has inode {ino}, and was not told to drop it");
            return Err(self.wrong(node, path, what));
        }
        if let Err(what) = self.oracle.judge(&hearer, &self.tree, &asked.object, outcome) {
            let timeouts =
                self.places.iter().filter_map(|place| place.node.as_ref()).any(|n| n.counters().timeouts > 0);
            if timeouts && matches!(outcome, Outcome::Failed { errno } if *errno == EIO) {
                return Err(self.stuck(format!("node {node} had no answer for {} in time", describe(&asked.object))));
            }
            let what = format!("{what}, for {} asked at {} us", describe(&asked.object), asked.at.0);
            return Err(self.wrong(node, path, what));
        }
        let counts = &mut self.report.counts;
        counts.answered += 1;
        counts.wait_us_max = counts.wait_us_max.max(waited_us);
        match outcome {
            Outcome::Entry(_) => counts.entries += 1,
            Outcome::Absent { .. } => counts.absent += 1,
            Outcome::Listing { .. } => counts.listings += 1,
            Outcome::Chunk(chunk) => {
                counts.chunks += 1;
                counts.bytes += chunk.len() as u64;
            }
            Outcome::Statfs(_) => {}
            Outcome::Failed { errno } if *errno == rustix::io::Errno::STALE.raw_os_error() => counts.stale += 1,
            Outcome::Failed { .. } => counts.errors += 1,
        }
        match self.clients[at].more(&asked.object, outcome, &mut self.rng) {
            Some(object) => self.ask(at, object),
            None if self.clients[at].is_over() => self.unfinished -= 1,
            None => {
                // A third of the lookups come at once, the others over the whole span.
                let all = self.config.lookups_per_client;
                let is_storm = self.clients[at].left * 3 > all * 2;
                let mean_us = self.config.span_us * 3 / (all * 2).max(1);
                self.schedule(at, if is_storm { 500 } else { 2 * mean_us });
            }
        }
        Ok(())
    }

    /// Nobody may wait for longer than the deadline.
    fn watch(&mut self) -> Result<(), SimError> {
        let late = |client: &&Client| {
            let deadline_us = REQUEST_DEADLINE_US + DEADLINE_SLACK_US;
            client.asked.as_ref().is_some_and(|asked| asked.at.after_us(deadline_us) < self.now)
        };
        if let Some(client) = self.clients.iter().find(late) {
            let object = client.asked.as_ref().map(|asked| describe(&asked.object)).unwrap_or_default();
            return Err(self.stuck(format!("a client of node {} still waits for {object}", client.node)));
        }
        for at in 0..self.places.len() {
            let Some(enoent) = &self.places[at].enoent else { continue };
            enoent.maintain(self.now);
            let entries = enoent.stats().entries;
            if entries > self.config.enoent_entries as u64 {
                return Err(self.wrong(at, b"", format!("it remembers {entries} absent names")));
            }
        }
        if self.unfinished > 0 {
            self.queue.push(self.now.after_us(WATCH_US), Event::Watch);
        }
        Ok(())
    }

    fn wrong(&self, at: usize, path: &[u8], what: String) -> SimError {
        SimError::Safety {
            seed: self.config.seed,
            node: NodeId(u32::try_from(at).unwrap_or(u32::MAX)),
            path: String::from_utf8_lossy(path).into_owned(),
            at_us: self.now.0,
            what,
        }
    }

    fn stuck(&self, what: String) -> SimError {
        SimError::Liveness { seed: self.config.seed, at_us: self.now.0, what }
    }
}

fn describe(object: &Object) -> String {
    let path = String::from_utf8_lossy(object.path());
    match object {
        Object::Attr(_) => format!("the attributes of \"{path}\""),
        Object::List(_) => format!("the names in \"{path}\""),
        Object::Chunk { version, index, .. } => format!("chunk {index} of \"{path}\" as {version:?}"),
        Object::Statfs => "statfs".to_owned(),
    }
}
