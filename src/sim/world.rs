//! The simulated world: nodes, their clients, the network between them, the roots' backend, and what goes wrong.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};

use super::backend::{self, Outage, Question};
use super::client::{Asked, Client, Kernels, describe};
use super::config::SimConfig;
use super::event::{Event, Life, Queue};
use super::lives::Side;
use super::network::Network;
use super::oracle::{Hearer, Operation, Oracle, STATFS, Said, Ttls, tree_of};
use super::report::{Report, SimError};
use super::rng::{Rng, mix};
use super::search::Searches;
use super::tree::Tree;
use crate::cache::enoent::EnoentMap;
use crate::cache::types::Micros;
use crate::core::limits::{GRANT_LEASE_US, REQUEST_DEADLINE_US, STANDBYS};
use crate::core::{FlightId, Node, NodeId, Object, Outcome, Swept, Topology, Waiter};

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// Everyone who waits is looked at this often.
pub(super) const WATCH_US: u64 = 5_000_000;
/// How much later than its deadline a request may be answered: timers are exact here.
pub(super) const DEADLINE_SLACK_US: u64 = 1_000;
/// A run is given up so long after the clients' span.
const END_US: u64 = 240_000_000;
/// After the last answer: every lease and every deadline has passed.
pub(super) const REST_US: u64 = GRANT_LEASE_US + REQUEST_DEADLINE_US + 5_000_000;
/// Timers of one node at one moment: the second one must have found nothing more to do.
const TIMERS_PER_MOMENT_MAX: u32 = 4;

pub(super) struct Place {
    pub(super) topology: Topology,
    /// None before its start, and between two lives.
    pub(super) node: Option<Node>,
    pub(super) life: u64,
    pub(super) enoent: Option<Arc<EnoentMap>>,
    pub(super) timer: Micros,
    pub(super) timers_at: (Micros, u32),
    /// It answered probes with "ready" for a while, once.
    pub(super) has_begun: bool,
    /// It answers probes with "ready".
    pub(super) is_open: bool,
    /// While it is stopped: what happens to it when it goes on.
    pub(super) frozen: Option<Vec<Event>>,
    /// How long it was, or will have been, stopped in all, microseconds.
    pub(super) frozen_us: u64,
    /// When it was last not there.
    pub(super) away_at: Micros,
}

/// An invalidation under way: the path, and when it began.
type Sweeping = (Box<[u8]>, Micros);

pub(super) struct World {
    pub(super) config: SimConfig,
    pub(super) rng: Rng,
    pub(super) tree: Tree,
    pub(super) oracle: Oracle,
    pub(super) kernels: Kernels,
    pub(super) network: Network,
    pub(super) now: Micros,
    pub(super) queue: Queue,
    pub(super) places: Vec<Place>,
    pub(super) clients: Vec<Client>,
    pub(super) unfinished: usize,
    /// Starts, deaths, changes and more that is to come.
    pub(super) planned: u64,
    pub(super) waiters: u64,
    pub(super) stamp: u64,
    /// What the lives of roots have under way at the backend.
    pub(super) asking: HashSet<(Life, Question)>,
    pub(super) questions: HashMap<(Life, FlightId), Question>,
    /// Requests that a node was sent by another one, less the answers it gave: by both and the request's number.
    pub(super) owed: HashMap<(usize, usize, u64), u32>,
    /// Invalidations that somebody waits for, by the waiter's number: of what, and since when.
    pub(super) sweeping: HashMap<(Life, u64), Sweeping>,
    pub(super) searches: Searches,
    /// Links that are cut, and until when.
    pub(super) cuts: Vec<(Micros, Side)>,
    /// When the last cut was over.
    pub(super) whole_since: Micros,
    /// Lives that know of the root of the tree of that number that it was ready once.
    pub(super) knowing: HashSet<(Life, u32)>,
    pub(super) outages: Vec<Outage>,
    /// When all faults so far are over.
    pub(super) faults_end: Micros,
    /// All faults are over for a while.
    pub(super) is_calm: bool,
    /// Who asked the backend, by root and number of the tree.
    pub(super) readers: HashMap<(usize, u32), HashSet<usize>>,
    /// What each node had sent of probes when nobody asked for anything any more.
    pub(super) rest_probes: Option<Vec<u64>>,
    pub(super) stale_reads: HashMap<(Life, FlightId), u32>,
    pub(super) report: Report,
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
            places.push(Place {
                topology: topology.striped(config.stripes)?,
                node: None,
                life: 0,
                enoent: None,
                timer: Micros::FOREVER,
                timers_at: (Micros(0), 0),
                has_begun: false,
                is_open: false,
                frozen: None,
                frozen_us: 0,
                away_at: Micros(0),
            });
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
            sweeping: HashMap::new(),
            stale_reads: HashMap::new(),
            searches: Searches::default(),
            cuts: Vec::new(),
            whole_since: Micros(0),
            knowing: HashSet::new(),
            outages: Vec::new(),
            faults_end: Micros(0),
            is_calm: false,
            readers: HashMap::new(),
            rest_probes: None,
            report: Report::default(),
            config,
        };
        world.plan();
        Ok(world)
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
            if rest_until.is_none() && self.unfinished == 0 && self.planned == 0 && self.is_at_rest() {
                self.report.counts.virtual_us_max = self.now.0;
                rest_until = Some(self.now.after_us(REST_US));
                self.rest_probes = Some(self.probes());
            }
        }
        self.finish()
    }

    /// Whether no node asks for anything any more, for itself either.
    fn is_at_rest(&self) -> bool {
        self.places.iter().filter_map(|place| place.node.as_ref()).all(|node| node.in_flight() == 0)
    }

    pub(super) fn life(&self, node: usize) -> Life {
        Life { node, number: self.places[node].life }
    }

    /// The node of a life that is not over.
    pub(super) fn living(&mut self, life: Life) -> Option<&mut Node> {
        let place = &mut self.places[life.node];
        place.node.as_mut().filter(|_| place.life == life.number)
    }

    fn step(&mut self, event: Event) -> Result<(), SimError> {
        let now = self.now;
        self.planned -= u64::from(event.is_planned());
        let place = if let Event::Client { client } = event { Some(self.clients[client].node) } else { event.place() };
        if let Some(waiting) = place.and_then(|at| self.places[at].frozen.as_mut()) {
            waiting.push(event);
            return Ok(());
        }
        match event {
            Event::Frame { from, to, .. } if !self.is_linked(from, to) => {
                self.report.counts.lost += 1;
                Ok(())
            }
            Event::Frame { from, to, frame } => {
                self.note_arrival(from, to, &frame);
                match &mut self.places[to].node {
                    Some(node) => {
                        let refused = node.counters().auth_refused;
                        node.frame(now, &frame);
                        if node.counters().auth_refused > refused {
                            self.note_refusal(from, to, &frame);
                        }
                    }
                    None => self.report.counts.unheard += 1,
                }
                self.after(to)
            }
            Event::Read(read) => {
                self.read(read);
                Ok(())
            }
            Event::Pulled { by, from, id, slot, ok } => {
                self.searches.answered(by.node, from, id.0);
                self.tell(by, |node| node.pulled(now, id, slot, ok))
            }
            Event::Verified { by, id, slot, crc } => self.tell(by, |node| node.verified(now, id, slot, crc)),
            Event::Operate { by, id, op, asked, told } => {
                let question = Question::of(&op);
                let path = if question == Question::Statfs { STATFS } else { question.path() }.to_vec();
                if matches!(op, crate::core::BackendOp::List { .. }) {
                    self.stamp += 1;
                }
                if matches!(op, crate::core::BackendOp::Recheck { .. }) {
                    self.oracle.note_comparison(by.node, &path, asked, told);
                }
                let (reply, said, injected) =
                    backend::answer(&self.config, (&self.tree, &self.outages), now, self.stamp, op);
                self.report.counts.backend_failed += u64::from(injected);
                self.report.counts.backend_young += u64::from(matches!(said, Said::Young));
                self.oracle.note(&path, Operation { root: by.node, asked, looked: now, told, said });
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
            Event::Start { node } => self.start(node),
            Event::Open { by } => {
                let place = &mut self.places[by.node];
                if place.life == by.number {
                    (place.is_open, place.away_at) = (true, now);
                }
                self.tell(by, |node| {
                    node.open_for_service();
                    node.mounted(now);
                })
            }
            Event::Kill { node, down_us } => {
                self.kill(node, down_us);
                Ok(())
            }
            Event::Freeze { node, for_us } => {
                self.freeze(node, for_us);
                Ok(())
            }
            Event::Thaw { node } => {
                self.thaw(node);
                Ok(())
            }
            Event::Cut => {
                self.cut();
                Ok(())
            }
            Event::Heal => {
                self.heal();
                Ok(())
            }
            Event::Calm => {
                self.calm();
                Ok(())
            }
            Event::Change => {
                self.report.counts.changes += 1;
                if let Some(path) = self.tree.change(now, &mut self.rng, self.config.faults.silent) {
                    // Soon enough for those who ask the backend before, and are told after.
                    let back = now.after_us(1 + self.rng.up_to(2 * self.config.backend_us.1));
                    self.planned(back, Event::Restore { path });
                }
                Ok(())
            }
            Event::Restore { path } => {
                self.tree.restore(now, &path);
                Ok(())
            }
            Event::Sweep => self.sweep(),
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

    /// Somebody invalidates a path on some node.
    fn sweep(&mut self) -> Result<(), SimError> {
        let at = self.rng.below(self.places.len());
        let path = match self.rng.below(4) {
            0 => Box::default(),
            1 => self.tree.wanted()[self.rng.below(self.tree.wanted().len())].clone(),
            _ => self.tree.dirs()[self.rng.below(self.tree.dirs().len())].clone(),
        };
        let place = &mut self.places[at];
        let Some(node) = place.node.as_mut().filter(|_| place.frozen.is_none()) else { return Ok(()) };
        self.report.counts.sweeps += 1;
        self.waiters += 1;
        node.sweep(self.now, &path, self.waiters);
        self.sweeping.insert((self.life(at), self.waiters), (path, self.now));
        self.after(at)
    }

    /// An invalidation ended.
    pub(super) fn swept(&mut self, by: Life, waiter: u64, swept: Swept) -> Result<(), SimError> {
        let Some((path, begun)) = self.sweeping.remove(&(by, waiter)) else {
            return Err(self.wrong(by.node, b"", "an end of no invalidation, or a second one".to_owned()));
        };
        let (all, living) = (self.places.len(), self.places.iter().filter(|place| place.node.is_some()).count());
        let (reached, missing) = (swept.reached as usize, swept.missing as usize);
        if reached > all || (missing == 0 && reached < all) {
            let what = format!("{swept:?} after an invalidation, of {all} nodes of which {living} live");
            return Err(self.wrong(by.node, &path, what));
        }
        if missing == 0 {
            self.report.counts.swept += 1;
            self.oracle.note_sweep(path, begun, self.now);
        }
        Ok(())
    }

    pub(super) fn schedule(&mut self, client: usize, most_us: u64) {
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
        client.asked = Some(Asked {
            waiter,
            object: object.clone(),
            at: self.now,
            frozen_us: self.places[client.node].frozen_us,
            event: self.report.counts.events,
        });
        if let Some(node) = &mut self.places[client.node].node {
            node.request(self.now, object, Waiter::Local(waiter));
        }
    }

    /// A request of a client of node `node` ended.
    pub(super) fn answered(&mut self, node: usize, waiter: u64, outcome: &Outcome) -> Result<(), SimError> {
        let at = usize::try_from(waiter & 0xffff).unwrap_or(0);
        let Some(asked) = self.clients[at].asked.take_if(|asked| asked.waiter == waiter) else {
            return Err(self.wrong(node, b"", format!("an answer to no request, or a second one: {outcome:?}")));
        };
        let path = asked.object.path();
        let waited_us = self.now.0 - asked.at.0;
        let frozen_us = self.places[node].frozen_us - asked.frozen_us;
        if waited_us > REQUEST_DEADLINE_US + DEADLINE_SLACK_US + frozen_us {
            return Err(self.stuck(format!("node {node} answered {} after {waited_us} us", describe(&asked.object))));
        }
        let topology = &self.places[node].topology;
        let hop_us = Network::hop_us_max(&self.config);
        let tree = tree_of(topology, if matches!(asked.object, Object::Statfs) { STATFS } else { path });
        // Around dead nodes it may take the way over the standbys.
        let hops = tree.depth() + if self.config.faults.loses() { STANDBYS } else { 0 };
        let hearer = Hearer {
            node,
            topology: topology.clone(),
            is_strict: !self.config.faults.loses(),
            may_turn_back: self.config.faults.loses(),
            asked: asked.at,
            now: self.now,
            // What came from the node's own memory did not travel.
            travel_us: if asked.event < self.report.counts.events { u64::from(hops) * hop_us } else { 0 },
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

    pub(super) fn wrong(&self, at: usize, path: &[u8], what: String) -> SimError {
        SimError::Safety {
            seed: self.config.seed,
            node: NodeId(u32::try_from(at).unwrap_or(u32::MAX)),
            path: String::from_utf8_lossy(path).into_owned(),
            at_us: self.now.0,
            what,
        }
    }

    pub(super) fn stuck(&self, what: String) -> SimError {
        SimError::Liveness { seed: self.config.seed, at_us: self.now.0, what }
    }
}
