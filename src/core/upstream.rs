//! Whom a node asks in each of its trees, and what it does when that one is dead.
//!
//! In every tree a node has a chain of candidates: its parent, the parent's parent and so on to the root, then the
//! standbys. It asks one of them, sends it heartbeats while something is under way there, and looks for another one when it
//! is silent: suspected after half of the time that `--detect-ms` says, when the whole chain is probed at once; given up
//! after all of it, when the first of the chain that answered is asked instead. Better ones are probed all the while, and
//! the first of them that serves is asked again. When all are dead, a standby asks the backend in the root's place; any
//! other node is cut off from its tree, and asks the backend at a small rate.
//!
//! All loops here are over trees (at most 64), candidates (the depth of the tree and three), and requests at one peer (at
//! most 64); the line is worked off in steps.

use super::flight::{FlightId, Stage};
use super::limits::{BYPASS_US, HEARTBEATS_PER_DETECT, PUMP_STEPS_MAX};
use super::line::Line;
use super::node::Node;
use super::peer::{ParentState, Peer, Role};
use super::topology::{NodeId, Topology};
use super::wire::{Header, Message};
use crate::cache::types::Micros;

/// Whom a node asks in one tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The candidate at this place of the chain. It may have to become ready first.
    Candidate(usize),
    /// The backend: a root, or a node in its place.
    Backend,
    /// Nobody answers, and the root was never ready as far as is known.
    Nobody,
}

/// One tree that a node takes part in.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) topology: Topology,
    pub(super) target: Target,
    /// Requests for a target that does not take them yet.
    pub(super) line: Line,
    chain: Vec<NodeId>,
    /// Candidates at the front of the chain that are ancestors; standbys follow.
    ancestors: usize,
    /// Since when the target is one, or has to become ready.
    since: Option<Micros>,
    /// Since when the target is suspected, and the whole chain sought.
    suspected: Option<Micros>,
}

impl Upstream {
    pub(super) fn new(topology: Topology) -> Upstream {
        let chain = topology.candidates();
        let ancestors = chain.iter().position(|node| *node == topology.root()).map_or(0, |at| at + 1);
        let target = if chain.is_empty() { Target::Backend } else { Target::Candidate(0) };
        Upstream { topology, target, line: Line::default(), chain, ancestors, since: None, suspected: None }
    }

    pub(super) fn chain(&self) -> &[NodeId] {
        &self.chain
    }

    /// The node that is asked; none where it is the backend, or nobody.
    pub(super) fn asked(&self) -> Option<NodeId> {
        match self.target {
            Target::Candidate(at) => self.chain.get(at).copied(),
            Target::Backend | Target::Nobody => None,
        }
    }

    /// Whether this node asks the backend as fast as it likes: as root, or in the root's place.
    pub(super) fn is_answerer(&self) -> bool {
        self.target == Target::Backend && (self.chain.is_empty() || self.topology.is_standby())
    }

    /// Whether this node asks the backend because everybody else is dead.
    pub(super) fn is_substitute(&self) -> bool {
        self.target == Target::Backend && !self.chain.is_empty()
    }

    /// The candidates that may be asked: where the root never was ready, only it and what is before it.
    fn allowed(&self, begun: bool) -> &[NodeId] {
        if begun { &self.chain } else { &self.chain[..self.ancestors] }
    }

    fn name(&self) -> String {
        if self.topology.stripes() == 1 { String::new() } else { format!(" in tree {}", self.topology.number()) }
    }
}

/// Whom a node asks in one tree, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asks {
    /// The tree's number.
    pub tree: u32,
    /// Whom it asks when all is well; none on the root, which asks the backend.
    pub parent: Option<NodeId>,
    /// Whom it asks now.
    pub now: Asked,
}

/// See [`Asks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// That node.
    Node(NodeId),
    /// The backend.
    Backend,
    /// Nobody is there.
    Nobody,
}

/// When the others, probed at a suspicion, have had time to answer.
fn others_answered(suspected: Micros, patience_us: u64) -> Micros {
    suspected.after_us(patience_us / HEARTBEATS_PER_DETECT)
}

impl Node {
    /// Whom it asks, tree by tree.
    pub fn asks(&self) -> impl Iterator<Item = Asks> + '_ {
        self.trees.iter().map(|up| Asks {
            tree: up.topology.number(),
            parent: up.topology.parent(),
            now: match (up.target, up.asked()) {
                (_, Some(node)) => Asked::Node(node),
                (Target::Backend, None) => Asked::Backend,
                (_, None) => Asked::Nobody,
            },
        })
    }

    /// Goes up by one whenever [`Node::asks`] changes.
    #[must_use]
    pub fn switches(&self) -> u64 {
        self.switches
    }

    /// How far this node has come with those whom it asks: the worst of its trees.
    #[must_use]
    pub fn parent_state(&self, now: Micros) -> ParentState {
        let state = |up: &Upstream| match (up.target, up.asked().and_then(|node| self.peers.get(&node))) {
            (Target::Candidate(_), Some(peer)) => peer.state(now, self.detect_us),
            (Target::Backend, _) if up.chain.is_empty() => ParentState::None,
            (Target::Backend, _) => ParentState::Ready,
            _ => up.chain.first().and_then(|node| self.peers.get(node)).map_or(ParentState::Unreachable, |peer| {
                // Ready it would be asked.
                if peer.is_ready() { ParentState::Unreachable } else { peer.state(now, self.detect_us) }
            }),
        };
        let rank = |state: &ParentState| match state {
            ParentState::None => 0,
            ParentState::Ready => 1,
            ParentState::NotServing => 2,
            ParentState::Unreachable => 3,
        };
        self.trees.iter().map(state).max_by_key(rank).unwrap_or(ParentState::None)
    }

    fn has_begun(&self, tree: usize) -> bool {
        self.begun >> tree & 1 == 1
    }

    /// When [`Node::watch`] must be called at the latest.
    pub(super) fn next_watch(&self) -> Option<Micros> {
        let pump = self.pump_at;
        [(!self.peers.is_empty()).then_some(self.watch_at), pump].into_iter().flatten().min()
    }

    /// Looks after those whom this node asks or may have to ask.
    pub(super) fn watch(&mut self, now: Micros) {
        if self.pump_at.is_some_and(|at| at <= now) {
            self.pump_at = None;
            self.pump_all(now);
        }
        if self.peers.is_empty() || now < self.watch_at {
            return;
        }
        for tree in 0..self.trees.len() {
            self.oversee(now, tree);
        }
        let detect_us = self.detect_us;
        let is_lost = |peer: &&Peer| !peer.under_way.is_empty() && peer.silent_us(now) >= detect_us;
        let lost: Vec<_> = self.peers.values().filter(is_lost).map(|peer| peer.node).collect();
        for node in lost {
            self.ask_elsewhere(now, node, false);
        }
        self.assign_roles();
        let is_due = |peer: &&Peer| peer.next_probe(detect_us).is_some_and(|at| at <= now);
        let due: Vec<_> = self.peers.values().filter(is_due).map(|peer| peer.node).collect();
        for node in due {
            self.probe(now, node);
        }
        let waits = self.trees.iter().filter_map(|up| self.next_patience(now, up));
        let peers = self.peers.values().filter(|peer| peer.role != Role::None);
        let probes = peers.clone().filter_map(|peer| peer.next_probe(detect_us));
        let silences = peers.filter_map(|peer| peer.next_silence(now, detect_us));
        let next = waits.chain(probes).chain(silences).min().unwrap_or(Micros::FOREVER);
        self.watch_at = next.max(now.after_us(1));
    }

    fn probe(&mut self, now: Micros, node: NodeId) {
        let id = self.flights.next_id();
        let (trees, flights) = (&self.trees, &self.flights);
        let path = || {
            let waits = trees.iter().filter(|up| up.asked() == Some(node)).find_map(|up| up.line.front());
            let path = waits.and_then(|id| flights.peek(id)).map(|flight| flight.object.path()).unwrap_or_default();
            format!("/{}", String::from_utf8_lossy(path))
        };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let is_heartbeat = peer.role == Role::Asked;
        peer.probed(now, id, &path);
        self.counters.probes += 1;
        self.counters.heartbeats += u64::from(is_heartbeat);
        let begun = self.begun;
        self.send(node, id, &Message::Probe { begun });
    }

    /// Something is wanted of a node: should it be dead, that is to be found out now.
    pub(super) fn hurry(&mut self, now: Micros, node: NodeId) {
        if self.peers.get(&node).is_some_and(|peer| peer.role == Role::Asked && peer.silent_us(now) == 0) {
            self.probe(now, node);
            self.watch_at = now;
        }
    }

    /// How long the target of a tree may be silent, or not ready, and for how long it is.
    fn patience(&self, now: Micros, up: &Upstream) -> Option<(u64, u64)> {
        let peer = self.peers.get(&up.asked()?)?;
        let patience_us = if peer.was_ready() { self.detect_us } else { BYPASS_US };
        let waited_us = now.0.saturating_sub(up.since.unwrap_or(now).0);
        Some((patience_us, if peer.is_ready() { peer.silent_us(now) } else { waited_us }))
    }

    fn next_patience(&self, now: Micros, up: &Upstream) -> Option<Micros> {
        let (patience_us, silent_us) = self.patience(now, up)?;
        let peer = self.peers.get(&up.asked()?)?;
        if let Some(at) = up.suspected {
            // It is given up once the others have had time to answer, and is looked at until then.
            let patient = now.after_us(patience_us.saturating_sub(silent_us));
            return Some(patient.max(others_answered(at, patience_us)).max(now.after_us(patience_us / 8)));
        }
        // A ready one that was probed: see `Peer::next_silence`.
        (!peer.is_ready()).then(|| now.after_us((patience_us / 2).saturating_sub(silent_us)))
    }

    /// Looks whether the target of a tree is still there.
    fn oversee(&mut self, now: Micros, tree: usize) {
        let up = &mut self.trees[tree];
        if up.chain.is_empty() || up.target == Target::Backend {
            return;
        }
        up.since.get_or_insert(now);
        if up.target == Target::Nobody {
            // It may have become known that the root was ready once.
            let target = self.choose(now, tree);
            if target != Target::Nobody {
                self.switch(now, tree, target);
            }
            return;
        }
        let up = &self.trees[tree];
        let Some((patience_us, silent_us)) = self.patience(now, up) else { return };
        match up.suspected {
            _ if silent_us < patience_us / 2 => self.trees[tree].suspected = None,
            None => {
                self.trees[tree].suspected = Some(now);
                self.counters.suspicions += 1;
            }
            // Time may have jumped, as it does for a stopped process: nobody is given up before the others could answer.
            Some(at) if silent_us >= patience_us && others_answered(at, patience_us) <= now => {
                let target = self.choose(now, tree);
                if target != up.target {
                    self.switch(now, tree, target);
                }
            }
            Some(_) => {}
        }
    }

    /// The best that can be asked in a tree. All candidates were probed lately.
    fn choose(&self, now: Micros, tree: usize) -> Target {
        let up = &self.trees[tree];
        let begun = self.has_begun(tree);
        let is_usable = |node: &NodeId| self.peers.get(node).is_some_and(|peer| peer.is_usable(now, self.detect_us));
        match up.allowed(begun).iter().position(is_usable) {
            Some(at) => Target::Candidate(at),
            None if begun => Target::Backend,
            None => Target::Nobody,
        }
    }

    fn switch(&mut self, now: Micros, tree: usize, target: Target) {
        let up = &mut self.trees[tree];
        let before = std::mem::replace(&mut up.target, target);
        (up.since, up.suspected) = (Some(now), None);
        let (name, parent) = (up.name(), up.chain.first().copied().unwrap_or(up.topology.me()));
        let was_asked = if let Target::Candidate(at) = before { up.chain.get(at).copied() } else { None };
        let is_better = match (before, target) {
            (Target::Candidate(before), Target::Candidate(now)) => now < before,
            (_, Target::Candidate(_)) => true,
            _ => false,
        };
        self.switches += 1;
        self.counters.failovers += u64::from(!is_better && target != Target::Nobody);
        match (target, up.asked(), was_asked) {
            (_, Some(node), _) if before == Target::Nobody => log::info!("node {node} is ready and is asked{name}"),
            (_, Some(node), _) if node == parent => log::warn!("parent node {node} is there again and is asked{name}"),
            (_, Some(node), Some(dead)) if !is_better => {
                log::warn!("node {dead} does not answer: node {node} is asked{name} instead of parent node {parent}");
            }
            (_, Some(node), _) => log::warn!("node {node} is asked{name} instead of parent node {parent}"),
            (Target::Backend, ..) if up.topology.is_standby() => {
                log::warn!("no node before this one answers: it asks the backend{name} in place of the root");
            }
            (Target::Backend, ..) => log::error!(
                "no node before this one answers: it is cut off{name}, and asks the backend itself at a small rate"
            ),
            _ => log::info!("nobody can be asked{name}: the root was never ready; waiting for it"),
        }
        if let Some(node) = was_asked.filter(|_| !is_better) {
            self.ask_elsewhere(now, node, false);
        }
        self.watch_at = self.watch_at.min(now);
        self.pump(now, tree);
    }

    fn assign_roles(&mut self) {
        let mut roles: std::collections::BTreeMap<NodeId, Role> = std::collections::BTreeMap::new();
        for up in &self.trees {
            let better = match up.target {
                Target::Candidate(at) => {
                    let is_ready = self.peers.get(&up.chain[at]).is_some_and(Peer::is_ready);
                    if is_ready {
                        roles.entry(up.chain[at]).or_insert(Role::Asked);
                    }
                    if is_ready { &up.chain[..at] } else { &up.chain[..=at] }
                }
                // Standbys too: they may know that the root was ready once.
                Target::Backend | Target::Nobody => &up.chain[..],
            };
            for node in better {
                roles.insert(*node, Role::Sought);
            }
            if up.suspected.is_some() {
                for node in up.chain.iter().filter(|node| Some(**node) != up.asked()) {
                    roles.insert(*node, Role::Sought);
                }
            }
        }
        for peer in self.peers.values_mut() {
            let idle = if peer.under_way.is_empty() { Role::None } else { Role::Asked };
            peer.set_role(roles.get(&peer.node).copied().unwrap_or(idle));
        }
    }

    /// Takes note of a frame: its sender lives.
    pub(super) fn note_life(&mut self, now: Micros, header: &Header) {
        self.note_sweeper(header.from);
        let Some(peer) = self.peers.get_mut(&header.from) else { return };
        if peer.heard(now, header.incarnation) {
            self.note_another_life(now, header.from);
        }
    }

    /// Whether it serves yet is asked at once, and so is all that was asked of the life before.
    fn note_another_life(&mut self, now: Micros, node: NodeId) {
        for up in self.trees.iter_mut().filter(|up| up.asked() == Some(node)) {
            (up.since, up.suspected) = (Some(now), None);
        }
        self.watch_at = now;
        self.ask_elsewhere(now, node, true);
    }

    /// A root answered: it was ready.
    pub(super) fn note_answer(&mut self, tree: usize) {
        self.begun |= 1 << tree;
    }

    /// A peer says which trees have begun.
    pub(super) fn note_begun(&mut self, now: Micros, begun: u64) {
        let known = if self.trees.len() < 64 { (1 << self.trees.len()) - 1 } else { u64::MAX };
        let new = begun & known & !self.begun;
        self.begun |= new;
        if new != 0 && self.trees.iter().any(|up| up.target == Target::Nobody) {
            self.watch_at = now;
        }
    }

    /// The answer to a probe.
    pub(super) fn peer_alive(&mut self, now: Micros, header: &Header, serving: bool, credits: u32, begun: u64) {
        self.note_begun(now, begun);
        let Some(peer) = self.peers.get_mut(&header.from) else {
            self.counters.dropped += 1;
            return;
        };
        if peer.is_back(now, header.incarnation, header.id) {
            self.note_another_life(now, header.from);
        }
        let Some(peer) = self.peers.get_mut(&header.from) else { return };
        let was_ready = peer.is_ready();
        let credits = usize::try_from(credits).unwrap_or(usize::MAX);
        peer.answered(now, header.incarnation, header.id, serving, credits);
        let is_ready = peer.is_ready();
        if is_ready != was_ready {
            self.watch_at = now;
        }
        if is_ready && self.counters.parent_us == 0 {
            self.counters.parent_us = now.0.saturating_sub(self.started.0).max(1);
        }
        if was_ready && !is_ready {
            self.trees.iter_mut().filter(|up| up.asked() == Some(header.from)).for_each(|up| up.since = Some(now));
        }
        if is_ready {
            for tree in 0..self.trees.len() {
                self.prefer(now, tree, header.from);
            }
            self.pump_all(now);
        }
    }

    /// A candidate serves, or passes an invalidation down: it is asked if it is better than who is asked now.
    pub(super) fn prefer(&mut self, now: Micros, tree: usize, node: NodeId) {
        let up = &self.trees[tree];
        let Some(at) = up.allowed(self.has_begun(tree)).iter().position(|candidate| *candidate == node) else { return };
        let is_better = match up.target {
            Target::Candidate(now) => at < now,
            Target::Backend | Target::Nobody => true,
        };
        if is_better {
            self.switch(now, tree, Target::Candidate(at));
        }
    }

    /// What was asked of a peer that lives no more is asked of whom the tree asks by now; with `all` of the same peer too.
    fn ask_elsewhere(&mut self, now: Micros, node: NodeId, all: bool) {
        let Some(peer) = self.peers.get(&node) else { return };
        let under_way: Vec<_> = peer.under_way.iter().copied().collect();
        for id in under_way {
            let Some(flight) = self.flights.get(id) else { continue };
            let (tree, deadline) = (flight.tree, flight.deadline);
            let is_at_peer = matches!(flight.stage, Stage::Asked | Stage::Pulling { .. });
            if !is_at_peer || (!all && self.trees[tree].asked() == Some(node)) {
                continue;
            }
            self.give_back(id);
            if let Some(id) = self.flights.renew(id) {
                self.counters.asked_again += 1;
                self.trees[tree].line.insert(deadline, id);
            }
        }
        self.pump_all(now);
    }

    /// A request is no longer under way at the peer that it was sent to.
    pub(super) fn give_back(&mut self, id: FlightId) {
        let Some(node) = self.flights.get(id).and_then(|flight| flight.asked.take()) else { return };
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.gave_back(id);
        }
    }

    /// Asks for what stands in line, as far as those who are asked take more. The trees have their turn one after the
    /// other, since they may share a peer's credits.
    pub(super) fn pump_all(&mut self, now: Micros) {
        let trees = self.trees.len();
        self.turn = (self.turn + 1) % trees;
        let turn = self.turn;
        for tree in (0..trees).map(|tree| (tree + turn) % trees) {
            if !self.trees[tree].line.is_empty() {
                self.pump(now, tree);
            }
        }
    }

    /// Asks for what stands in line in one tree, in steps.
    pub(super) fn pump(&mut self, now: Micros, tree: usize) {
        // Another call of this turn has done its steps, or the bucket is empty.
        let is_over = self.pump_at.is_some_and(|at| at > now);
        if is_over && self.trees[tree].target == Target::Backend {
            return;
        }
        for _ in 0..PUMP_STEPS_MAX {
            let Some(id) = self.trees[tree].line.front() else { return };
            if self.flights.get(id).is_none_or(|flight| flight.stage != Stage::InLine) {
                // It ended meanwhile.
                self.trees[tree].line.pop_front();
                continue;
            }
            let up = &self.trees[tree];
            match (up.target, up.asked()) {
                (_, Some(node)) => {
                    if !self.peers.get(&node).is_some_and(Peer::takes) {
                        return;
                    }
                    self.trees[tree].line.pop_front();
                    self.ask(now, id, node);
                }
                (Target::Backend, None) => {
                    if !up.is_answerer()
                        && let Err(at) = self.bucket.take(now)
                    {
                        self.counters.rate_limited += u64::from(self.pump_at.is_none());
                        self.pump_at = Some(self.pump_at.map_or(at, |before| before.min(at)));
                        return;
                    }
                    self.trees[tree].line.pop_front();
                    self.ask_backend(now, id);
                }
                (_, None) => return,
            }
        }
        if !self.trees[tree].line.is_empty() {
            self.pump_at = Some(now.after_us(1));
        }
    }
}
