//! What happens to the nodes: the plan of a run, starts, deaths, stops, and links that are cut.
//!
//! Of the root of each tree and its standbys at most two are away at once, and one that is there knows that the root was
//! ready once, so that a way to the backend is left to all.

use std::sync::Arc;

use super::event::Event;
use super::report::SimError;
use super::rng::mix;
use super::world::{WATCH_US, World};
use crate::cache::arena::ArenaConfig;
use crate::cache::chunks::CHUNK_BYTES;
use crate::cache::enoent::{EnoentConfig, EnoentMap};
use crate::cache::names::{NamesConfig, NamesWriter};
use crate::cache::store::ChunkStore;
use crate::cache::types::Micros;
use crate::core::limits::{REQUESTS_AT_PARENT_MAX, STANDBYS};
use crate::core::{Node, NodeConfig, NodeId, Secret, Topology};

/// Longest pause before a node that was restarted starts again, microseconds.
const RESTART_US_MAX: u64 = 3_000_000;
/// So long after all faults everybody asks those whom they should.
const CALM_US: u64 = 15_000_000;
/// When a root has been there for so long its standbys know of it.
const BEGUN_US: u64 = 6_000_000;
/// Objects that a client looks up when all faults are over.
const CALM_LOOKUPS: u64 = 3;
/// Of the root and its standbys so many may be away at once.
const AWAY_MAX: usize = STANDBYS as usize - 1;

/// Links that are cut: between nodes of this side and all others.
pub(super) type Side = Vec<bool>;

impl World {
    /// Everything that comes from outside.
    pub(super) fn plan(&mut self) {
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
            let down_us = Some(self.rng.up_to(RESTART_US_MAX));
            self.sometime(Event::Kill { node, down_us });
        }
        for _ in 0..faults.kills {
            let (node, down_us) = (self.rng.below(self.places.len()), self.down_us());
            self.sometime(Event::Kill { node, down_us });
        }
        for _ in 0..faults.root_kills {
            let (node, down_us) = (self.some_root(), self.down_us());
            self.sometime(Event::Kill { node, down_us });
        }
        for _ in 0..faults.pair_kills {
            let (node, at) = (self.rng.below(self.places.len()), Micros(1 + self.rng.up_to(span_us)));
            for node in std::iter::once(node).chain(self.trees_of(node).next().and_then(|tree| parent_of(&tree))) {
                let down_us = self.down_us();
                self.planned(at, Event::Kill { node, down_us });
            }
        }
        for _ in 0..faults.freezes {
            let node = if self.rng.one_in(4) { self.some_root() } else { self.rng.below(self.places.len()) };
            let for_us = 1 + self.rng.up_to(faults.freeze_us_max);
            self.sometime(Event::Freeze { node, for_us });
        }
        for _ in 0..faults.cuts {
            self.sometime(Event::Cut);
        }
        for _ in 0..faults.changes {
            self.sometime(Event::Change);
        }
        for _ in 0..faults.sweeps {
            self.sometime(Event::Sweep);
        }
        self.plan_outages();
        if faults.moves() || faults.cuts > 0 {
            self.planned(Micros(span_us), Event::Calm);
        }
        self.queue.push(Micros(WATCH_US), Event::Watch);
    }

    /// One after the other, so that no request meets two.
    fn plan_outages(&mut self) {
        let faults = self.config.faults;
        let mut at = Micros(0);
        for number in 0..faults.outages {
            let from = at.after_us(1 + self.rng.up_to(self.config.span_us / faults.outages));
            let until = from.after_us(1 + self.rng.up_to(faults.outage_us_max));
            // It hangs once at most: a request may need two operations before its deadline.
            let errno = (number > 0 || self.rng.one_in(2)).then(|| super::backend::outage_errno(&mut self.rng));
            self.outages.push(super::backend::Outage { from, until, errno });
            at = until;
        }
        self.faults_end = self.faults_end.max(at);
    }

    pub(super) fn planned(&mut self, at: Micros, event: Event) {
        self.planned += 1;
        self.queue.push(at, event);
    }

    fn sometime(&mut self, event: Event) {
        let at = Micros(1 + self.rng.up_to(self.config.span_us));
        self.planned(at, event);
    }

    fn down_us(&mut self) -> Option<u64> {
        let faults = self.config.faults;
        (!self.rng.per_mille(faults.forever_per_mille)).then(|| self.rng.up_to(faults.down_us_max))
    }

    fn some_root(&mut self) -> usize {
        let node = self.rng.below(self.places.len());
        let tree = u32::try_from(self.rng.below(self.config.stripes as usize)).unwrap_or(0);
        self.places[node].topology.tree(tree).root().0 as usize
    }

    /// The trees that a node takes part in.
    pub(super) fn trees_of(&self, node: usize) -> impl Iterator<Item = Topology> + use<> {
        let topology = self.places[node].topology.clone();
        (0..topology.stripes()).map(move |tree| topology.tree(tree))
    }

    /// Whether a node can be asked: it lives, serves and is not stopped.
    pub(super) fn is_there(&self, node: usize) -> bool {
        let place = &self.places[node];
        place.node.is_some() && place.is_open && place.frozen.is_none()
    }

    /// Whether a node can be asked now, and could for the last `for_us`.
    pub(super) fn was_there(&self, node: usize, for_us: u64) -> bool {
        self.is_there(node) && self.places[node].away_at.after_us(for_us) < self.now
    }

    /// If a node has been there for long enough, the others know of it, and it knows what they know.
    pub(super) fn note_begun(&mut self, node: usize) {
        if self.cuts.is_empty() && self.was_there(node, BEGUN_US) {
            self.places[node].has_begun = true;
        }
        if !self.cuts.is_empty() || self.whole_since.after_us(BEGUN_US) >= self.now || !self.was_there(node, BEGUN_US) {
            return;
        }
        for tree in self.trees_of(node) {
            let teaches = |other: &usize| self.was_there(*other, BEGUN_US) && self.knows_root(*other, &tree);
            if answerers(&tree).iter().any(teaches) {
                self.knowing.insert((self.life(node), tree.number()));
            }
        }
    }

    /// Whether a node knows that the root of a tree was ready once: otherwise it would wait for a root that is dead.
    fn knows_root(&self, node: usize, tree: &Topology) -> bool {
        let place = &self.places[node];
        let is_root = index(tree.root()) == node;
        (is_root && place.has_begun) || self.knowing.contains(&(self.life(node), tree.number()))
    }

    /// Whether a node may go away: a way to the backend is left to all.
    fn may_go(&mut self, node: usize) -> bool {
        for tree in self.trees_of(node) {
            answerers(&tree).into_iter().for_each(|other| self.note_begun(other));
        }
        self.is_there(node)
            && (self.places[node].has_begun || self.trees_of(node).all(|tree| !tree.is_root()))
            && self.trees_of(node).all(|tree| {
                let mut others = answerers(&tree);
                let before = others.len();
                others.retain(|other| *other != node);
                let away = others.iter().filter(|other| !self.is_there(**other)).count();
                let is_known = others.iter().any(|other| self.is_there(*other) && self.knows_root(*other, &tree));
                others.len() == before || others.is_empty() || (away < AWAY_MAX && is_known)
            })
    }

    /// A node begins a life.
    pub(super) fn start(&mut self, at: usize) -> Result<(), SimError> {
        let key = [self.rng.next_u64(), self.rng.next_u64()];
        self.searches.returned(at, true);
        let place = &mut self.places[at];
        place.life += 1;
        place.timer = Micros::FOREVER;
        place.is_open = false;
        let names = NamesWriter::new(NamesConfig { index_shards: 1, retired_max: 64, ..NamesConfig::new(key) });
        let enoent = EnoentConfig { entries_max: self.config.enoent_entries, ..EnoentConfig::new(key) };
        let (store, _) = ChunkStore::new(ArenaConfig {
            first_segment_bytes: CHUNK_BYTES,
            segment_bytes: CHUNK_BYTES,
            max_bytes: self.config.cache_bytes,
        });
        let incarnation = mix(self.config.seed ^ (at as u64) << 32 ^ place.life);
        let receives = (place.topology.children().count() + 1) * REQUESTS_AT_PARENT_MAX;
        let config = NodeConfig {
            enoent_ttl: self.config.enoent_ttl,
            complete_dirs: self.config.complete_dirs,
            dir_ttl: self.config.dir_ttl,
            attr_ttl: self.config.attr_ttl,
            ..NodeConfig::new(place.topology.clone(), self.config.seed, incarnation, receives)
        };
        let enoent = Arc::new(EnoentMap::new(enoent));
        place.enoent = Some(enoent.clone());
        let mut node = Node::new(config, names, enoent, store);
        if self.config.has_secret {
            let words =
                [place.life, at as u64, self.config.seed, 0].map(|word| mix(word ^ self.config.seed).to_le_bytes());
            let mut seed = [0; 32];
            seed.copy_from_slice(words.as_flattened());
            node.authenticate(Secret::new(b"the secret of a simulated job", seed));
        }
        place.node = Some(node);
        let opens = self.now.after_us(self.rng.up_to(100_000));
        self.faults_end = self.faults_end.max(opens);
        self.queue.push(opens, Event::Open { by: self.life(at) });
        for client in self.clients_of(at) {
            self.schedule(client, 1_000);
        }
        self.after(at)
    }

    /// A node dies, and with it its memory and what its clients asked for. It starts again after `down_us`, if at all.
    pub(super) fn kill(&mut self, at: usize, down_us: Option<u64>) {
        if !self.may_go(at) {
            return;
        }
        self.report.counts.kills += 1;
        self.places[at].node = None;
        self.places[at].away_at = self.now;
        self.left(at);
        self.searches.ended(at);
        self.kernels.forget(at);
        let life = self.life(at);
        self.asking.retain(|(by, _)| *by != life);
        self.questions.retain(|(by, _), _| *by != life);
        self.sweeping.retain(|(by, _), _| *by != life);
        self.knowing.retain(|(by, _)| *by != life);
        for client in self.clients_of(at) {
            self.clients[client].lose(down_us.is_none());
            self.unfinished -= usize::from(self.clients[client].is_over());
        }
        match down_us {
            Some(down_us) => {
                let again = self.now.after_us(down_us);
                self.faults_end = self.faults_end.max(again);
                self.planned(again, Event::Start { node: at });
            }
            None => self.faults_end = self.faults_end.max(self.now),
        }
    }

    /// A node is stopped for a while. What happens to it waits.
    pub(super) fn freeze(&mut self, at: usize, for_us: u64) {
        if !self.may_go(at) {
            return;
        }
        self.report.counts.freezes += 1;
        let until = self.now.after_us(for_us);
        self.places[at].frozen = Some(Vec::new());
        self.places[at].frozen_us += for_us;
        self.left(at);
        self.oracle.note_freeze(self.now, until);
        self.faults_end = self.faults_end.max(until);
        self.planned(until, Event::Thaw { node: at });
    }

    fn left(&mut self, node: usize) {
        let there: Vec<_> = (0..self.places.len()).map(|node| self.is_there(node)).collect();
        let places = &self.places;
        let may_ask = |by: usize, tree| {
            let candidates = places[by].topology.tree(tree).candidates();
            candidates.into_iter().any(|candidate| index(candidate) == node)
        };
        self.searches.left(self.now, node, |node| there[node], may_ask);
    }

    pub(super) fn thaw(&mut self, at: usize) {
        self.places[at].away_at = self.now;
        self.searches.returned(at, false);
        for event in self.places[at].frozen.take().into_iter().flatten() {
            self.queue.push(self.now, event);
        }
        let there: Vec<_> = (0..self.places.len()).map(|node| self.is_there(node)).collect();
        self.searches.resumed(self.now, at, |node| there[node]);
    }

    /// All links between a choice of nodes and the others are cut for a while.
    pub(super) fn cut(&mut self) {
        let nodes = self.places.len();
        let mut side: Side = vec![false; nodes];
        match self.rng.below(4) {
            0 => side[self.rng.below(nodes)] = true,
            1 => {
                let root = self.some_root();
                side[root] = true;
            }
            2 => {
                let from = self.rng.below(nodes);
                side[from..].fill(true);
            }
            _ => side.iter_mut().for_each(|is_in| *is_in = self.rng.one_in(2)),
        }
        self.report.counts.cuts += 1;
        let until = self.now.after_us(1 + self.rng.up_to(self.config.faults.cut_us_max));
        self.faults_end = self.faults_end.max(until);
        self.cuts.push((until, side));
        self.planned(until, Event::Heal);
    }

    /// A cut is over.
    pub(super) fn heal(&mut self) {
        self.cuts.retain(|(until, _)| *until > self.now);
        self.whole_since = self.now;
    }

    /// Whether frames and reads between two nodes get through.
    pub(super) fn is_linked(&self, a: usize, b: usize) -> bool {
        self.cuts.iter().all(|(_, side)| side[a] == side[b])
    }

    /// When all faults are over for a while, clients ask once more: by then each node must ask whom it asked at first.
    pub(super) fn calm(&mut self) {
        let calm_at = self.faults_end.after_us(CALM_US);
        if self.now < calm_at {
            return self.planned(calm_at, Event::Calm);
        }
        self.is_calm = true;
        for at in 0..self.clients.len() {
            if self.places[self.clients[at].node].node.is_some() {
                self.unfinished += usize::from(self.clients[at].resume(CALM_LOOKUPS));
                self.schedule(at, 1_000_000);
            }
        }
    }

    pub(super) fn clients_of(&self, node: usize) -> std::ops::Range<usize> {
        let each = self.config.clients_per_node as usize;
        node * each..(node + 1) * each
    }
}

/// The root of a tree and its standbys, in the order in which they answer for the backend.
pub(super) fn answerers(tree: &Topology) -> Vec<usize> {
    tree.answerers().map(index).collect()
}

pub(super) fn index(node: NodeId) -> usize {
    node.0 as usize
}

fn parent_of(tree: &Topology) -> Option<usize> {
    tree.parent().map(index)
}
