//! The node: its memory, what it waits for, and the calls by which the world reaches it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::auth::Auth;
use super::bucket::Bucket;
use super::budget::Relief;
use super::complete::Misses;
use super::config::{Counters, Load, NodeConfig};
use super::flight::{Flight, FlightId, Flights, Object, Outcome, Purpose, Stage, Waiter};
use super::foresee::Foresight;
use super::limits::{DETECT_MAX_US, DETECT_MIN_US, PENDING_US, REQUEST_DEADLINE_US, RETRY_US, TIMER_STEPS_MAX};
use super::output::Output;
use super::peer::{Peer, Tally};
use super::ready::Ready;
use super::serve::Sharers;
use super::sweep::{Sweep, SweepRun};
use super::topology::{NodeId, Topology};
use super::upstream::Upstream;
use super::verify::Seen;
use super::wire::{self, Header, Message, Statfs};
use crate::cache::arena::Slot;
use crate::cache::chunks::{CHUNK_BYTES, Chunk};
use crate::cache::enoent::{EnoentMap, Stored};
use crate::cache::names::{Inode, Names, NamesWriter, TimedListing, is_unchanged_dir};
use crate::cache::store::ChunkStore;
use crate::cache::types::{Attr, Ino, Micros, Version};

pub(super) const E2BIG: i32 = rustix::io::Errno::TOOBIG.raw_os_error();
pub(super) const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
pub(super) const ENOMEM: i32 = rustix::io::Errno::NOMEM.raw_os_error();
pub(super) const ESTALE: i32 = rustix::io::Errno::STALE.raw_os_error();

/// How long figures of `statfs` are used.
const STATFS_TTL_US: u64 = 1_000_000;

/// Leave to read a chunk that a peer has.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) chunk: Arc<Chunk>,
    pub(super) to: NodeId,
    /// When it is taken back.
    pub(super) until: Micros,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    pub(super) config: NodeConfig,
    pub(super) names: Arc<Names>,
    pub(super) writer: NamesWriter,
    pub(super) enoent: Arc<EnoentMap>,
    pub(super) store: ChunkStore,
    pub(super) flights: Flights,
    /// Requests under way for chunks.
    pub(super) chunks: usize,
    /// Those of them that were begun for nobody.
    pub(super) ahead: usize,
    /// One for each tree that this node takes part in.
    pub(super) trees: Vec<Upstream>,
    /// Whom it may ask in any of them.
    pub(super) peers: BTreeMap<NodeId, Peer>,
    pub(super) detect_us: u64,
    /// When they are to be looked after.
    pub(super) watch_at: Micros,
    /// When a line is to be gone on with.
    pub(super) pump_at: Option<Micros>,
    /// The tree whose turn it was.
    pub(super) turn: usize,
    /// The trees, one bit each, whose root was ready once.
    pub(super) begun: u64,
    pub(super) bucket: Bucket,
    pub(super) switches: u64,
    pub(super) auth: Option<Auth>,
    pub(super) started: Micros,
    /// Another node answered a request.
    pub(super) has_answer: bool,
    pub(super) serving: bool,
    pub(super) ready: Ready,
    /// Who asks this node.
    pub(super) sharers: Sharers,
    /// Nodes that were complained about because they are of another job.
    foreign: HashSet<NodeId>,
    /// Keys of the arena's segments as they go on the wire.
    pub(super) keys: Vec<Option<u64>>,
    /// The segment of the arena that is not used yet.
    pub(super) spare: Option<u16>,
    pub(super) grants: BTreeMap<u64, Granted>,
    /// Grants of others that are to be released, and when at the latest.
    pub(super) owed: (Vec<(NodeId, u64)>, Micros),
    pub(super) statfs: Option<(Statfs, Micros)>,
    pub(super) sweeps: Vec<Sweep>,
    pub(super) sweep_runs: Vec<SweepRun>,
    pub(super) relief: Relief,
    pub(super) misses: Misses,
    pub(super) foresight: Foresight,
    /// Of a root: what it has read of each file version that is not gone.
    pub(super) seen: HashMap<Ino, Seen>,
    /// Files, by device and inode number, that had other bytes under the same version, and how often, as far as this node
    /// found out or has heard.
    pub(super) changes: HashMap<(u64, u64), u32>,
    pub(super) out: VecDeque<Output>,
    pub(super) counters: Counters,
}

impl Node {
    /// A node that knows nothing yet. Its memory is made by the caller, who reads it from other threads.
    #[must_use]
    pub fn new(
        config: NodeConfig,
        names: (NamesWriter, Arc<Names>),
        enoent: Arc<EnoentMap>,
        store: ChunkStore,
    ) -> Node {
        let stripes = config.topology.stripes();
        let trees: Vec<_> = (0..stripes).map(|tree| Upstream::new(config.topology.tree(tree))).collect();
        let candidates = trees.iter().flat_map(Upstream::chain);
        let peers = candidates.map(|node| (*node, Peer::new(*node))).collect();
        let detect_us = u64::try_from(config.detect.as_micros()).unwrap_or(u64::MAX);
        let sharers = Sharers::new(config.receives);
        let flights = Flights::new(config.incarnation);
        Node {
            config,
            names: names.1,
            writer: names.0,
            enoent,
            store,
            flights,
            chunks: 0,
            ahead: 0,
            trees,
            peers,
            detect_us: detect_us.clamp(DETECT_MIN_US, DETECT_MAX_US),
            watch_at: Micros(0),
            pump_at: None,
            turn: 0,
            begun: 0,
            bucket: Bucket::default(),
            switches: 0,
            auth: None,
            started: Micros(0),
            has_answer: false,
            serving: false,
            ready: Ready::default(),
            sharers,
            foreign: HashSet::new(),
            keys: Vec::new(),
            spare: None,
            grants: BTreeMap::new(),
            owed: (Vec::new(), Micros::FOREVER),
            statfs: None,
            sweeps: Vec::new(),
            sweep_runs: Vec::new(),
            relief: Relief::default(),
            misses: Misses::default(),
            foresight: Foresight::default(),
            seen: HashMap::new(),
            changes: HashMap::new(),
            out: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// This node's place in the first of its trees.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.config.topology
    }

    /// What was counted since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let sum = |of: fn(&Tally) -> u64| self.peers.values().map(|peer| of(&peer.tally)).sum();
        Counters {
            listing_serves: self.names.stats().listing_serves,
            probes_unanswered: sum(|tally| tally.unanswered),
            probes_not_serving: sum(|tally| tally.not_serving),
            confirmed: sum(|tally| tally.confirmed),
            ..self.counters
        }
    }

    /// How the arena is filled.
    #[must_use]
    pub fn store(&self) -> &ChunkStore {
        &self.store
    }

    /// Trees in which this node asks the backend in place of others.
    #[must_use]
    pub fn substitutes(&self) -> usize {
        self.trees.iter().filter(|up| up.is_substitute()).count()
    }

    /// Requests that are under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// What it holds now.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            flights: self.flights.len(),
            line: self.trees.iter().map(|up| up.line.len()).sum(),
            at_parent: self.peers.values().map(|peer| peer.under_way.len()).max().unwrap_or(0),
            grants: self.grants.len(),
            grants_of_peer: self.sharers.grants_max(),
        }
    }

    /// Times in the log count from now on, and peers are called by these names in it.
    pub fn begin_log(&mut self, now: Micros, name: impl Fn(NodeId) -> String) {
        self.started = now;
        self.peers.values_mut().for_each(|peer| peer.set_name(name(peer.node)));
    }

    /// From now on probes are answered with "ready".
    pub fn open_for_service(&mut self) {
        self.serving = true;
        for up in self.trees.iter().filter(|up| up.topology.is_root()) {
            self.begun |= 1 << up.topology.number();
        }
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// The time at which [`Node::timer`] must be called at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Micros> {
        let lease = self.grants.first_key_value().map(|(_, granted)| granted.until);
        let owed = (!self.owed.0.is_empty()).then_some(self.owed.1);
        let watches = [self.next_watch(), self.next_sweep(), self.next_ready()];
        [self.flights.next_timer(), lease, owed].into_iter().chain(watches).flatten().min()
    }

    /// Does what is due.
    pub fn timer(&mut self, now: Micros) {
        self.note_time(now);
        self.watch(now);
        self.tell_ready(now);
        self.end_leases(now);
        self.release_late(now);
        self.end_sweeps(now);
        // What is left is due in the next turn.
        for _ in 0..TIMER_STEPS_MAX {
            let Some(id) = self.flights.due(now) else { break };
            self.look_at(now, id);
        }
    }

    /// A client of this node, or another request of it, wants `object`.
    pub fn request(&mut self, now: Micros, object: Object, waiter: Waiter) {
        self.note_time(now);
        if let Some(outcome) = self.recall(now, &object, waiter) {
            if let (Outcome::Chunk(chunk), true) = (&outcome, waiter != Waiter::Nobody) {
                chunk.touch(now);
            }
            self.answer(now, waiter, &outcome);
            return;
        }
        let path =
            if let (Object::Attr(path), Waiter::Local(_)) = (&object, waiter) { Some(path.clone()) } else { None };
        self.begin(now, object, waiter);
        if let Some(path) = path {
            self.client_missed(now, &path);
        }
    }

    /// As [`Node::request`], whatever is known.
    pub(super) fn begin(&mut self, now: Micros, object: Object, waiter: Waiter) {
        if let Some(flight) = self.flights.find(&object).and_then(|id| self.flights.get(id)) {
            // A peer that repeats its request is one waiter, not two.
            if waiter != Waiter::Nobody && !flight.waiters.contains(&waiter) {
                if waiter.purpose() == Purpose::Reading && matches!(flight.stage, Stage::InLine | Stage::Behind { .. })
                {
                    flight.purpose = Purpose::Reading;
                }
                flight.waiters.push(waiter);
                self.counters.joined += 1;
            }
            return;
        }
        let tree = if object == Object::Statfs { 0 } else { self.tree_of(object.path()) };
        if waiter == Waiter::Nobody && !matches!(object, Object::List(_)) {
            if !self.may_fetch_ahead(tree) {
                self.counters.ahead_dropped += 1;
                return;
            }
            self.ahead += 1;
        }
        if matches!(object, Object::Chunk { .. }) {
            self.note_chunk_begun(waiter == Waiter::Nobody);
        }
        let from = self.told_from(now, waiter);
        let listing = if let Object::Attr(path) = &object { self.waits_for(from, path) } else { None };
        let id = self.flights.start(now, object, tree, waiter, now.after_us(REQUEST_DEADLINE_US));
        self.flights.arm(id, now.after_us(PENDING_US));
        match listing {
            Some((dir, until)) => {
                if let Some(flight) = self.flights.get(id) {
                    flight.stage = Stage::Behind { anew: false };
                }
                self.flights.arm(id, until);
                self.request(now, Object::List(dir), Waiter::Flight(id));
            }
            None => self.lead(now, id),
        }
    }

    pub(super) fn note_chunk_begun(&mut self, ahead: bool) {
        self.counters.ahead += u64::from(ahead);
        self.chunks += 1;
        self.counters.chunks_in_flight_max = self.counters.chunks_in_flight_max.max(self.chunks as u64);
    }

    /// As `request` for what is at `path`, but nobody's memory may answer: the backend is asked, after this.
    pub(super) fn begin_anew(&mut self, now: Micros, path: Arc<[u8]>, waiter: Waiter) {
        let object = Object::Attr(path);
        if let Some(flight) = self.flights.find(&object).and_then(|id| self.flights.get(id)) {
            if !std::mem::replace(&mut flight.anew, true) {
                // What has been asked may be answered from memory, or was seen before.
                flight.outdated |= matches!(flight.stage, Stage::Asked | Stage::Backend | Stage::Rechecking);
            }
            return self.begin(now, object, waiter);
        }
        let tree = self.tree_of(object.path());
        let id = self.flights.start(now, object, tree, waiter, now.after_us(REQUEST_DEADLINE_US));
        if let Some(flight) = self.flights.get(id) {
            flight.anew = true;
        }
        self.flights.arm(id, now.after_us(PENDING_US));
        self.lead(now, id);
    }

    /// A frame arrived.
    pub fn frame(&mut self, now: Micros, frame: &[u8]) {
        self.counters.frames += 1;
        self.note_time(now);
        match wire::decode(frame) {
            Ok((header, message)) if self.accepts(&header) => {
                if self.is_member(now, &header, &message) {
                    self.note_life(now, &header);
                    self.message(now, &header, message);
                }
            }
            Ok((header, _)) => {
                self.counters.dropped += 1;
                self.note_foreign(&header);
            }
            Err(error) => {
                self.counters.dropped += 1;
                log::debug!("{error}");
            }
        }
    }

    fn accepts(&self, header: &Header) -> bool {
        let topology = self.topology();
        header.job == self.config.job && header.from.0 < topology.nodes() && header.from != topology.me()
    }

    /// Says once of a node that it is of another job.
    fn note_foreign(&mut self, header: &Header) {
        let (node, nodes) = (header.from, self.topology().nodes());
        if header.job == self.config.job || node.0 >= nodes {
            return;
        }
        self.counters.foreign += 1;
        if self.foreign.insert(node) {
            log::warn!(
                "node {node} was started with another address book, --trees, --stripes or --fanout than this node: nothing of \
                 it is taken; give all nodes of a job the same"
            );
        }
    }

    /// Says once of a node that it has a secret, and this one none.
    pub(super) fn note_foreign_secret(&mut self, node: NodeId) {
        if self.foreign.insert(node) {
            log::warn!(
                "node {node} was started with --secret-file, and this node without: nothing of it is taken; start all nodes of \
                 a job with the same"
            );
        }
    }

    pub(super) fn tree_of(&self, path: &[u8]) -> usize {
        self.topology().tree_of(path) as usize
    }

    fn message(&mut self, now: Micros, header: &Header, message: Message<'_>) {
        match message {
            Message::Probe { .. }
            | Message::Attr { .. }
            | Message::Look { .. }
            | Message::List { .. }
            | Message::Chunk { .. }
            | Message::Statfs
            | Message::Release { .. } => self.serve(now, header, message),
            Message::Sweep { tree, path, down } => self.sweep_asked(now, header, tree, path, down),
            Message::Pending if self.is_sweep(header.id) => {}
            Message::Swept(swept) => self.sweep_answered(now, header, swept),
            Message::Ready { spans } => self.ready_told(now, header, spans),
            Message::Noted => self.ready_noted(now, header),
            Message::Alive { serving, credits, begun } => self.peer_alive(now, header, serving, credits, begun),
            _ => self.reply(now, header, message),
        }
    }

    /// A request's timer ran out: it may be past its deadline, due for another try, or its peers for a sign of life.
    fn look_at(&mut self, now: Micros, id: FlightId) {
        let Some(flight) = self.flights.get(id) else { return };
        if now >= flight.deadline {
            self.counters.timeouts += 1;
            log::error!(
                "no answer for {} within {} s while {:?}; it fails with EIO",
                describe(&flight.object),
                REQUEST_DEADLINE_US / 1_000_000,
                flight.stage
            );
            self.finish(now, id, &Outcome::Failed { errno: EIO });
            return;
        }
        if let Stage::Pausing(until) = flight.stage {
            if until > now {
                self.flights.arm(id, until);
                return;
            }
            self.lead(now, id);
        } else if let (Stage::Behind { .. }, Object::Attr(_)) = (flight.stage, &flight.object) {
            // It has waited for a listing for long enough.
            self.lead(now, id);
        } else if let (Stage::Asked, Some(node)) = (flight.stage, flight.asked)
            && now.0.saturating_sub(flight.sign_at.0) >= RETRY_US
        {
            self.counters.retries += 1;
            self.ask(now, id, node);
        }
        let Some(flight) = self.flights.get(id) else { return };
        let peers: Vec<_> = flight
            .waiters
            .iter()
            .filter_map(|w| if let Waiter::Peer { node, id, .. } = *w { Some((node, id)) } else { None })
            .collect();
        let next = now.after_us(PENDING_US).min(flight.deadline);
        self.flights.arm(id, next);
        for (node, request) in peers {
            self.send(node, request, &Message::Pending);
        }
    }

    /// The answer to `object` that memory holds, if it does.
    pub(super) fn recall(&self, now: Micros, object: &Object, waiter: Waiter) -> Option<Outcome> {
        match object {
            Object::Attr(path) => match self.names.current(path).filter(|inode| inode.is_fresh(now)) {
                Some(inode) if self.is_denied(&inode) => None,
                Some(inode) => {
                    inode.note_use();
                    Some(Outcome::Entry(inode))
                }
                None => self.known_absent(self.told_from(now, waiter), path),
            },
            Object::List(path) => {
                let inode = self.names.current(path)?;
                let is_absence = waiter.purpose() == Purpose::Absence && self.completes();
                // That it tells nothing of what it lacks holds as long as it does.
                let until = |timed: &TimedListing| match timed.absent_until {
                    Micros(0) => timed.expires,
                    absent_until if is_absence => absent_until,
                    _ => timed.expires,
                };
                let from = if is_absence { self.told_from(now, waiter) } else { now };
                let timed = inode.listing().filter(|timed| until(timed) > from)?;
                inode.note_use();
                Some(Outcome::from(&*timed))
            }
            Object::Chunk { path, version, index } => {
                let inode = self.names.current(path)?;
                inode.note_use();
                if inode.attr.version() != *version {
                    // What this node told its clients last is the newest it knows of; a peer may have been told of a newer
                    // one by a node that is dead by now.
                    let is_older =
                        !matches!(waiter, Waiter::Peer { .. }) || is_rewritten(version, &inode.attr.version());
                    return is_older.then_some(Outcome::Failed { errno: ESTALE });
                }
                let chunk = inode.data()?.chunk(*index)?;
                Some(Outcome::Chunk(chunk))
            }
            Object::Statfs => {
                self.statfs.filter(|(_, expires)| *expires > now).map(|(statfs, _)| Outcome::Statfs(statfs))
            }
        }
    }

    /// Ends a request: everyone who waits for it is answered.
    pub(super) fn finish(&mut self, now: Micros, id: FlightId, outcome: &Outcome) {
        self.give_back(id);
        let Some(flight) = self.flights.end(id) else { return };
        self.chunks -= usize::from(matches!(flight.object, Object::Chunk { .. }));
        self.ahead -= usize::from(flight.ahead);
        if let Outcome::Chunk(chunk) = outcome
            && flight.waiters.is_empty()
        {
            self.store.fetched_ahead(chunk);
        }
        let is_absence = matches!(flight.object, Object::List(_)) && flight.purpose == Purpose::Absence;
        let tells_nothing = match outcome {
            // Not so one that only was too old: its time is over for all.
            Outcome::Listing { absent_until, expires, .. } => *absent_until == Micros(0) && *expires > Micros(0),
            _ => true,
        };
        if is_absence && tells_nothing {
            self.pause_listing(now, flight.object.path());
        }
        let is_own = flight.is_own();
        let by_client = flight.has_client();
        for waiter in flight.waiters {
            // Who reads the directory has other bounds, and is not content with what was renewed.
            if is_absence && waiter.purpose() == Purpose::Reading {
                self.request(now, flight.object.clone(), waiter);
            } else {
                self.answer(now, waiter, outcome);
            }
        }
        if let (true, Object::Attr(path), Outcome::Entry(inode)) = (is_own, &flight.object, outcome) {
            self.looked_up(now, path, inode, by_client);
        }
        self.pump_all(now);
    }

    pub(super) fn fail(&mut self, now: Micros, id: FlightId, errno: i32) {
        self.finish(now, id, &Outcome::Failed { errno });
    }

    fn answer(&mut self, now: Micros, waiter: Waiter, outcome: &Outcome) {
        match waiter {
            Waiter::Local(waiter) => self.out.push_back(Output::Complete { waiter, outcome: outcome.clone() }),
            Waiter::Peer { node, id, stamp, from, purpose, bytes } => {
                self.answer_peer(now, node, id, (stamp, from, purpose), outcome);
                if let (Outcome::Entry(inode), true) = (outcome, bytes > 0) {
                    self.follow_up(now, node, bytes, inode);
                }
            }
            Waiter::Flight(id) => self.resume(now, id, outcome),
            Waiter::Nobody => {}
        }
    }

    /// Upstream said what is at `path`. `asked_at` is when it was asked, `flight` holds the token taken before that.
    pub(super) fn learn_found(
        &mut self,
        now: Micros,
        flight: &FlightKey,
        attr: Attr,
        target: Option<&[u8]>,
        expires: Micros,
    ) -> Outcome {
        let path = &flight.path;
        self.enoent.clear(path);
        self.note_found(now, path);
        self.note_change(&attr);
        let before = self.names.get(path);
        let inode = self.writer.insert(path, attr, target, expires);
        let is_same = |before: &Arc<Inode>| before.ino == inode.ino;
        if attr.is_dir()
            && before.as_ref().is_some_and(|before| is_same(before) && !is_unchanged_dir(&before.attr, &attr))
        {
            self.expire_names_in(&inode);
        }
        if let Some(before) = before.filter(|before| before.ino != inode.ino) {
            // Written in place, it is changed under its other names too; replaced, it lives on there.
            let identity = |inode: &Inode| (inode.attr.backend_dev, inode.attr.backend_ino);
            if identity(&before) == identity(&inode) {
                self.drop_file(before.ino);
            }
            self.left(&before);
        }
        Outcome::Entry(inode)
    }

    /// Upstream said that nothing is at `path`, and that this may be repeated until `expires`.
    pub(super) fn learn_absent(&mut self, now: Micros, flight: &FlightKey, expires: Micros) -> Outcome {
        self.drop_name(&flight.path);
        if let Some(token) = flight.token.filter(|_| expires > now) {
            match self.enoent.store(&flight.path, expires, now, token) {
                Stored::Raced => log::debug!("an ENOENT came too late to be kept"),
                Stored::Stored | Stored::Full | Stored::Expired => {}
            }
        }
        self.note_miss(now, &flight.path);
        Outcome::Absent { expires }
    }

    /// Forgets the name, here and in the kernel.
    pub(super) fn drop_name(&mut self, path: &[u8]) {
        if let Some(inode) = self.writer.remove(path) {
            self.left(&inode);
        }
    }

    /// Forgets every name of a file, here and in the kernel.
    pub(super) fn drop_file(&mut self, ino: Ino) {
        for path in self.writer.paths_of(ino) {
            self.drop_name(&path);
        }
    }

    /// A name of this inode went.
    fn left(&mut self, inode: &Inode) {
        if inode.is_retired() {
            self.seen.remove(&inode.ino);
            if let Some(data) = inode.data() {
                self.store.forget(data);
            }
        }
        self.out.push_back(Output::Invalidate { ino: inode.ino, path: inode.path.clone() });
    }

    pub(super) fn learn_chunk(&mut self, object: &Object, slot: Slot, len: usize, crc: u32) -> Outcome {
        let Object::Chunk { path, version, index } = object else { return Outcome::Failed { errno: EIO } };
        let current = self.names.get(path).filter(|inode| inode.attr.version() == *version);
        let chunk = match current.as_ref().and_then(|inode| inode.data()) {
            Some(data) => self.store.publish(data, *index, slot, len, crc),
            // The name went meanwhile, or has become another file: those who wait get their bytes, and nobody else.
            None => {
                self.expire(path);
                Arc::new(Chunk::new(slot, len, crc))
            }
        };
        Outcome::Chunk(chunk)
    }

    /// What is at `path` is to be asked for anew: upstream knows of another version.
    pub(super) fn expire(&mut self, path: &[u8]) {
        // A directory too: what is there now is a file, as far as the peer knows.
        if let Some(inode) = self.names.get(path) {
            self.writer.insert(path, inode.attr, inode.target.as_deref(), Micros(0));
            let dir = inode.attr.is_dir();
            self.out.push_back(Output::Expire { ino: inode.ino, path: inode.path.clone(), dir });
        }
    }

    pub(super) fn learn_statfs(&mut self, now: Micros, statfs: Statfs) -> Outcome {
        self.statfs = Some((statfs, now.after_us(STATFS_TTL_US)));
        Outcome::Statfs(statfs)
    }
}

/// What must be kept of a flight to learn from its answer.
pub(super) struct FlightKey {
    pub(super) path: Arc<[u8]>,
    pub(super) token: Option<crate::cache::enoent::Token>,
}

impl From<&Flight> for FlightKey {
    fn from(flight: &Flight) -> FlightKey {
        FlightKey { path: flight.object.path_shared(), token: flight.token }
    }
}

/// Whether `newer` is known to have other bytes than `version` although nothing else tells them apart.
fn is_rewritten(version: &Version, newer: &Version) -> bool {
    version.change < newer.change && Version { change: newer.change, ..*version } == *newer
}

/// Bytes of chunk `index` of a file of `size` bytes; none beyond its end.
pub(super) fn chunk_len(size: u64, index: u32) -> Option<usize> {
    let begin = u64::from(index) * CHUNK_BYTES as u64;
    let rest = size.checked_sub(begin).filter(|rest| *rest > 0)?;
    Some(usize::try_from(rest).unwrap_or(usize::MAX).min(CHUNK_BYTES))
}

pub(super) fn describe(object: &Object) -> String {
    let path = String::from_utf8_lossy(object.path());
    match object {
        Object::Attr(_) => format!("the attributes of \"{path}\""),
        Object::List(_) => format!("the listing of \"{path}\""),
        Object::Chunk { index, .. } => format!("chunk {index} of \"{path}\""),
        Object::Statfs => "statfs".to_owned(),
    }
}
