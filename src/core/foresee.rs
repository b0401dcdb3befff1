//! Foresight: what a client will ask for next, asked for before it does.
//!
//! Programs look things up by rules: who has found `a.py` looks at `__pycache__/a.cpython-311.pyc` next, and reads it. The
//! node learns such rules from what its own clients miss, one after the other: that a name follows from another one by the
//! ending of both, and that files of an ending are read once they are looked up. Where a rule has held, what follows is
//! asked for together with what it follows from, so that the client finds it there, or at least under way.
//!
//! What must stay true:
//! - No answer depends on it: it asks what a client may ask, and what is learnt so has its time to live like anything else.
//! - A rule that costs more than it saves is dropped: each use of it is judged by whether a client came for it, and one
//!   that was in vain weighs as much as four that were not.
//! - Nothing is asked for where memory or the line is short, and its own memory is bounded.

use std::collections::VecDeque;
use std::sync::Arc;

use super::complete::split;
use super::flight::{FlightId, Object, Purpose, Waiter};
use super::limits::{FORESEEN_MAX, PENDING_US, RECENT_MISSES_MAX, REQUEST_DEADLINE_US, RULES_MAX};
use super::node::Node;
use super::topology::NodeId;
use crate::cache::names::Inode;
use crate::cache::types::{Kind, Micros};

/// A name in its parts: the directory, what is before the last dot, and the ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts<'a> {
    dir: &'a [u8],
    stem: &'a [u8],
    ending: &'a [u8],
}

impl<'a> Parts<'a> {
    /// None for a name that has no ending.
    fn of(path: &'a [u8]) -> Option<Parts<'a>> {
        let (dir, name) = split(path)?;
        let dot = name.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0)?;
        Some(Parts { dir, stem: &name[..dot], ending: &name[dot..] })
    }
}

/// That a name with an ending is followed by another one with the same stem.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    from: Box<[u8]>,
    /// What is between the directory and the stem: nothing, or a name and a slash.
    below: Box<[u8]>,
    to: Box<[u8]>,
}

impl Rule {
    /// The rule by which `path` follows from what has these parts.
    fn between(from: Parts<'_>, path: &[u8]) -> Option<Rule> {
        let rest = if from.dir.is_empty() { path } else { path.strip_prefix(from.dir)?.strip_prefix(b"/")? };
        let name = rest.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (below, name) = rest.split_at(name);
        let is_near = below.iter().filter(|byte| **byte == b'/').count() <= 1;
        let to = name.strip_prefix(from.stem).filter(|to| to.starts_with(b".") && is_near)?;
        if below.is_empty() && to == from.ending {
            return None;
        }
        Some(Rule { from: from.ending.into(), below: below.into(), to: to.into() })
    }

    fn follows(&self, from: Parts<'_>) -> Vec<u8> {
        let slash: &[u8] = if from.dir.is_empty() { b"" } else { b"/" };
        [from.dir, slash, &self.below, from.stem, &self.to].concat()
    }
}

/// How far a rule is trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Trust(u8);

impl Trust {
    const MIN: u8 = 4;
    const MAX: u8 = 8;
    /// What one use in vain costs.
    const LOSS: u8 = 4;

    fn holds(self) -> bool {
        self.0 >= Trust::MIN
    }

    fn judge(&mut self, was_right: bool) {
        self.0 = if was_right { (self.0 + 1).min(Trust::MAX) } else { self.0.saturating_sub(Trust::LOSS) };
    }
}

/// A few rules with the trust in each; the least trusted one makes room.
#[derive(Debug)]
struct Rules<R>(Vec<(R, Trust)>);

impl<R> Default for Rules<R> {
    fn default() -> Rules<R> {
        Rules(Vec::new())
    }
}

impl<R: PartialEq> Rules<R> {
    fn judge(&mut self, rule: R, was_right: bool) {
        let at = self.0.iter().position(|(known, _)| *known == rule).unwrap_or_else(|| {
            if self.0.len() >= RULES_MAX {
                let least = self.0.iter().enumerate().min_by_key(|(_, (_, trust))| trust.0).map_or(0, |(at, _)| at);
                self.0.swap_remove(least);
            }
            self.0.push((rule, Trust::default()));
            self.0.len() - 1
        });
        self.0[at].1.judge(was_right);
    }

    fn trusted(&self) -> impl Iterator<Item = &R> {
        self.0.iter().filter(|(_, trust)| trust.holds()).map(|(rule, _)| rule)
    }
}

/// What was foreseen, or may be followed by a read; judged when enough came after it.
#[derive(Debug)]
struct Watched {
    path: Box<[u8]>,
    /// The rule that said so; none where a client asked.
    rule: Option<Rule>,
}

/// What a node has learnt of its clients' ways.
#[derive(Debug, Default)]
pub(super) struct Foresight {
    names: Rules<Rule>,
    /// Endings of files that are read once they are looked up.
    reads: Rules<Box<[u8]>>,
    /// What clients missed lately.
    recent: VecDeque<Box<[u8]>>,
    watched: VecDeque<Watched>,
}

impl Node {
    /// A client of this node asked for what is at `path`, which is not known here, and it is under way. What follows is
    /// asked for at once, together with it, where the way is long; see [`Node::looked_up`].
    pub(super) fn client_missed(&mut self, now: Micros, path: &[u8]) {
        if !self.config.foresight {
            return;
        }
        let sight = &mut self.foresight;
        for recent in &sight.recent {
            if let Some(rule) = Parts::of(recent).and_then(|from| Rule::between(from, path)) {
                sight.names.judge(rule, true);
                break;
            }
        }
        if sight.recent.len() >= RECENT_MISSES_MAX {
            sight.recent.pop_front();
        }
        sight.recent.push_back(path.into());
        if Parts::of(path).is_some() {
            self.watch_use(path.into(), None);
            if !self.trees[self.tree_of(path)].is_answerer() {
                self.foresee(now, path);
            }
        }
    }

    /// Asks for what follows from `path`.
    fn foresee(&mut self, now: Micros, path: &[u8]) {
        let Some(from) = Parts::of(path).filter(|_| self.config.foresight) else { return };
        let next: Vec<_> = self.foresight.names.trusted().filter(|rule| *rule.from == *from.ending).cloned().collect();
        for rule in next {
            let path = rule.follows(from);
            if self.names.with(&path, |_| ()).is_none() {
                self.counters.foreseen += 1;
                self.watch_use(path.as_slice().into(), Some(rule));
                self.request(now, Object::Attr(path.into()), Waiter::Nobody);
            }
        }
    }

    fn watch_use(&mut self, path: Box<[u8]>, rule: Option<Rule>) {
        if self.foresight.watched.len() >= FORESEEN_MAX
            && let Some(watched) = self.foresight.watched.pop_front()
        {
            self.judge(watched);
        }
        self.foresight.watched.push_back(Watched { path, rule });
    }

    /// Whether a client came for what was foreseen, and whether what was looked up was read.
    fn judge(&mut self, Watched { path, rule }: Watched) {
        let inode = self.names.get(&path);
        let is_wanted = inode.as_ref().is_some_and(|inode| inode.is_held());
        if let Some(rule) = rule {
            self.counters.foreseen_wasted += u64::from(!is_wanted);
            self.foresight.names.judge(rule, is_wanted);
        }
        let (Some(inode), Some(Parts { ending, .. })) = (inode, Parts::of(&path)) else { return };
        if is_wanted && may_be_read(&inode) {
            let was_read = inode.data().and_then(|data| data.chunk(0)).is_some_and(|chunk| !chunk.is_unused());
            self.foresight.reads.judge(ending.into(), was_read);
        }
    }

    /// Whether a file at `path` will be read by a client of this node once it is looked up.
    fn is_read(&self, path: &[u8]) -> bool {
        let is_known = |ending: &[u8]| self.foresight.reads.trusted().any(|known| **known == *ending);
        self.config.foresight && Parts::of(path).is_some_and(|Parts { ending, .. }| is_known(ending))
    }

    /// What is at a path was asked for by a client of this node, or foreseen, and is known: if it will be read, its first
    /// chunk is asked for. Where the backend is asked by this node itself, what follows is asked for only now: it would
    /// hold up the answer to the client (`by_client`: that waits for it), and is not needed where there is none.
    pub(super) fn looked_up(&mut self, now: Micros, path: &Arc<[u8]>, inode: &Inode, by_client: bool) {
        if may_be_read(inode) && self.is_read(path) {
            self.request(now, first_chunk(path.clone(), inode), Waiter::Nobody);
        }
        if by_client && self.trees[self.tree_of(path)].is_answerer() {
            self.foresee(now, path);
        }
    }

    /// The number under which whoever is asked for attributes is to answer with the first chunk too, where somebody wants
    /// that: a client that will read it, or a peer that has asked for it.
    pub(super) fn number_for_bytes(&mut self, id: FlightId) -> Option<FlightId> {
        let flight = self.flights.get(id)?;
        let path = if let Object::Attr(path) = &flight.object { path.clone() } else { return None };
        if flight.bytes.is_some() || flight.anew {
            return flight.bytes;
        }
        let wants = |waiter: &Waiter| matches!(waiter, Waiter::Peer { bytes: 1.., .. });
        let is_wanted = flight.waiters.iter().any(wants);
        let is_own = flight.is_own();
        let tree = flight.tree;
        if !(is_wanted || is_own && self.is_read(&path)) || !self.may_fetch_ahead(tree) {
            return None;
        }
        let bytes = FlightId(self.flights.next_id());
        self.flights.get(id)?.bytes = Some(bytes);
        Some(bytes)
    }

    /// A peer will answer with the first chunk of what it found under number `id`, which it was asked for with that.
    pub(super) fn expect_bytes(&mut self, now: Micros, id: FlightId, node: NodeId, inode: &Inode) {
        let path: Arc<[u8]> = Arc::from(&*inode.path);
        let tree = self.tree_of(&path);
        let object = first_chunk(path, inode);
        let is_here = inode.data().is_none_or(|data| data.chunk(0).is_some());
        if !may_be_read(inode) || is_here || self.flights.find(&object).is_some() {
            return;
        }
        self.ahead += 1;
        self.note_chunk_begun(true);
        self.flights.start_as(id, now, object, tree, Waiter::Nobody, now.after_us(REQUEST_DEADLINE_US));
        self.flights.arm(id, now.after_us(PENDING_US));
        self.is_asked(now, id, node);
    }

    /// A peer was told what is at a path, and asked for its first chunk with that, to be answered under number `id`.
    pub(super) fn follow_up(&mut self, now: Micros, node: NodeId, id: u64, inode: &Inode) {
        if may_be_read(inode) {
            let object = first_chunk(Arc::from(&*inode.path), inode);
            let purpose = Purpose::Reading;
            self.request(now, object, Waiter::Peer { node, id, stamp: 0, from: 0, purpose, bytes: 0 });
        }
    }
}

fn first_chunk(path: Arc<[u8]>, inode: &Inode) -> Object {
    Object::Chunk { path, version: inode.attr.version(), index: 0 }
}

fn may_be_read(inode: &Inode) -> bool {
    inode.attr.kind() == Kind::File && inode.attr.size > 0
}
