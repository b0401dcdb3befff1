//! Which nodes are ready: mounted, and able to serve. So that a launch can wait for all of a tree, and name who is late.
//!
//! Every node keeps the set of those that it knows to be ready, in the first of its trees: itself, and whom the nodes below
//! told it of. It tells whom it asks, its parent or who stands in for it, whenever the set has grown, and everything anew
//! when that is another node or another life of it. A message is answered, and repeated until it is; the receiver takes the
//! union, so that it does not matter what comes twice, late or not at all. What is in a set stays there: this is about the
//! start. A node that died later is missed by those who ask it, not here.
//!
//! Places in the book below one node are few ranges, one for each level of the tree, and the sets are kept as ranges. One
//! message is under way at a time, and what has grown meanwhile goes with the next one.

use std::ops::Range;

use super::limits::{READY_MISSING_MAX, READY_PAUSE_US, RETRY_US};
use super::node::Node;
use super::topology::NodeId;
use super::wire::{Header, Message, SPANS_MAX, Span};
use crate::cache::types::Micros;

/// Nodes, by their places in the book.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeSet {
    /// In order, none of them empty, and none that meets another.
    ranges: Vec<Range<u32>>,
}

impl NodeSet {
    /// Adds the nodes of a range. True when some of them are new.
    fn insert(&mut self, range: Range<u32>) -> bool {
        if range.is_empty() {
            return false;
        }
        let first = self.ranges.partition_point(|other| other.end < range.start);
        let last = self.ranges.partition_point(|other| other.start <= range.end);
        let met = &self.ranges[first..last];
        let (Some(low), Some(high)) = (met.first(), met.last()) else {
            self.ranges.insert(first, range);
            return true;
        };
        if low.start <= range.start && range.end <= low.end {
            return false;
        }
        let whole = low.start.min(range.start)..high.end.max(range.end);
        self.ranges.splice(first..last, [whole]);
        true
    }

    /// The parts of `range` that are in the set, in order.
    fn within(&self, range: Range<u32>) -> impl Iterator<Item = Range<u32>> + '_ {
        let first = self.ranges.partition_point(|other| other.end <= range.start);
        let cut = move |other: &Range<u32>| other.start.max(range.start)..other.end.min(range.end);
        self.ranges[first..].iter().map(cut).take_while(|part| !part.is_empty())
    }

    /// The nodes of `range` that are not in the set, in order.
    fn missing(&self, range: Range<u32>) -> impl Iterator<Item = u32> + '_ {
        let mut from = range.start;
        let end = range.end;
        let parts = self.within(range).chain(std::iter::once(end..end));
        parts.flat_map(move |part| std::mem::replace(&mut from, part.end)..part.start)
    }
}

/// What was told last, and to whom.
#[derive(Debug)]
struct Told {
    to: NodeId,
    /// Which life of it.
    life: u64,
    id: u64,
    at: Micros,
    is_heard: bool,
    /// The set's [`Ready::version`] when its first range was told.
    version: u64,
    /// The ranges from this one on, by number, were in the message, as many as it takes.
    from: usize,
}

/// What a node knows of who is ready.
#[derive(Debug, Default)]
pub(super) struct Ready {
    set: NodeSet,
    /// Goes up by one whenever the set grows.
    version: u64,
    told: Option<Told>,
}

/// How many of the nodes at and below one are ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Nodes at and below it; where it stands in for the root, all of the tree.
    pub nodes: u32,
    /// Those of them that are, or were, ready.
    pub ready: u32,
    /// The others, in the order of the book: the first 100.
    pub missing: Vec<NodeId>,
}

impl Node {
    /// Clients can use this node: it is mounted.
    pub fn mounted(&mut self, now: Micros) {
        self.note_time(now);
        let me = self.topology().me().0;
        self.note_ready(now, std::iter::once(me..me + 1));
    }

    /// Who is ready at and below this node, as far as it knows.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let up = &self.trees[0];
        // In the first tree places are those of the book.
        let ranges: Vec<_> = match up.is_answerer() {
            true => vec![up.topology.group()],
            false => up.topology.subtree().collect(),
        };
        let set = &self.ready.set;
        let count = |ranges: &mut dyn Iterator<Item = Range<u32>>| ranges.map(|range| range.end - range.start).sum();
        Readiness {
            nodes: count(&mut ranges.iter().cloned()),
            ready: count(&mut ranges.iter().cloned().flat_map(|range| set.within(range))),
            missing: ranges
                .into_iter()
                .flat_map(|range| set.missing(range))
                .map(NodeId)
                .take(READY_MISSING_MAX)
                .collect(),
        }
    }

    /// Goes up whenever [`Node::readiness`] may have changed.
    #[must_use]
    pub fn readiness_version(&self) -> u64 {
        self.ready.version + self.switches
    }

    fn note_ready(&mut self, now: Micros, ranges: impl Iterator<Item = Range<u32>>) {
        let mut has_grown = false;
        for range in ranges {
            has_grown |= self.ready.set.insert(range);
        }
        self.ready.version += u64::from(has_grown);
        self.tell_ready(now);
    }

    /// A node below says who is ready.
    pub(super) fn ready_told(&mut self, now: Micros, header: &Header, spans: &[Span]) {
        let group = self.trees[0].topology.group();
        self.send(header.from, header.id, &Message::Noted);
        let cut = |places: Range<u32>| places.start.max(group.start)..places.end.min(group.end);
        self.note_ready(now, spans.iter().map(Span::places).map(cut));
    }

    /// What was told has arrived.
    pub(super) fn ready_noted(&mut self, now: Micros, header: &Header) {
        match &mut self.ready.told {
            Some(told) if (told.to, told.id) == (header.from, header.id) => told.is_heard = true,
            _ => self.counters.dropped += 1,
        }
        self.tell_ready(now);
    }

    /// When whom is to be told next, beginning with which range. He has to have been heard in his present life.
    fn next_telling(&self) -> Option<(Micros, NodeId, u64, usize)> {
        let ready = &self.ready;
        let to = self.trees[0].asked().filter(|_| ready.version > 0)?;
        let life = self.peers.get(&to)?.life()?;
        let Some(told) = ready.told.as_ref().filter(|told| (told.to, told.life) == (to, life)) else {
            return Some((Micros(0), to, life, 0));
        };
        let next = told.from + SPANS_MAX;
        match (told.is_heard, told.version == ready.version) {
            (false, is_same) => Some((told.at.after_us(RETRY_US), to, life, if is_same { told.from } else { 0 })),
            (true, false) => Some((told.at.after_us(READY_PAUSE_US), to, life, 0)),
            (true, true) => (next < ready.set.ranges.len()).then_some((Micros(0), to, life, next)),
        }
    }

    /// When [`Node::tell_ready`] must be called at the latest.
    pub(super) fn next_ready(&self) -> Option<Micros> {
        self.next_telling().map(|(at, ..)| at)
    }

    /// Tells whom this node asks who is ready, if it is time to.
    pub(super) fn tell_ready(&mut self, now: Micros) {
        let Some((_, to, life, from)) = self.next_telling().filter(|(at, ..)| *at <= now) else { return };
        let id = self.flights.next_id();
        let ready = &mut self.ready;
        let span = |range: &Range<u32>| Span::new(range.start, range.end);
        let spans: Vec<_> = ready.set.ranges[from..].iter().take(SPANS_MAX).map(span).collect();
        ready.told = Some(Told { to, life, id, at: now, is_heard: false, version: ready.version, from });
        self.send(to, id, &Message::Ready { spans: &spans });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_of_ranges_is_a_set(ranges in prop::collection::vec((0u32..60, 0u32..9), 0..40), at in 0u32..50, len in 0u32..30) {
            let (mut set, mut model) = (NodeSet::default(), BTreeSet::new());
            for (start, len) in ranges {
                let before = model.len();
                model.extend(start..start + len);
                prop_assert_eq!(set.insert(start..start + len), model.len() > before);
                prop_assert!(set.ranges.iter().all(|range| !range.is_empty()));
                prop_assert!(set.ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", set);
            }
            let (inside, outside): (Vec<_>, Vec<_>) = (at..at + len).partition(|node| model.contains(node));
            prop_assert_eq!(set.within(at..at + len).flatten().collect::<Vec<_>>(), inside);
            prop_assert_eq!(set.missing(at..at + len).collect::<Vec<_>>(), outside);
        }
    }
}
