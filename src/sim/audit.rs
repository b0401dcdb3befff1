//! What is looked at beside the answers: who waits for too long, who asks whom, who asks the backend, how many
//! heartbeats there are, and what is left when everything is over.

use std::collections::BTreeSet;

use super::client::{Client, describe};
use super::config::Sabotage;
use super::event::{Event, Life};
use super::lives::{answerers, index};
use super::oracle::Reads;
use super::report::{Report, SimError};
use super::search::Search;
use super::world::{DEADLINE_SLACK_US, REST_US, WATCH_US, World};
use crate::cache::types::Micros;
use crate::core::limits::{HEARTBEAT_IDLE_US, REQUEST_DEADLINE_US, SWEEP_DEADLINE_US};
use crate::core::{Load, Readiness, Topology};

/// An invalidation ends within this time, whoever is missing.
const SWEEP_US_MAX: u64 = 2 * SWEEP_DEADLINE_US;
/// Events that an answer costs on average: messages, timers and operations on the way to the root and back.
const EVENTS_PER_ANSWER_MAX: u64 = 40;
/// Events that a node costs beside them: its start, and the search for its parent.
const EVENTS_PER_NODE_MAX: u64 = 200;
/// Events of heartbeats, in a second of virtual time, at a node that looks for others in all its trees.
const EVENTS_PER_S_MAX: u64 = 24;
const EVENTS_PER_TREE_AND_S_MAX: u64 = 6;
/// Somebody else is asked so long after the death of who was asked at the latest.
const DETECTED_US_MAX: u64 = 3_000_000;
/// A root, or a standby, that is there again is asked again so long after at the latest.
const RETURNED_US_MAX: u64 = 3_000_000;

impl World {
    /// Nobody may wait for longer than the deadline.
    pub(super) fn watch(&mut self) -> Result<(), SimError> {
        assert!(self.config.sabotage != Some(Sabotage::Crash), "broken on purpose");
        let late = |client: &&Client| {
            let frozen_us = self.places[client.node].frozen_us;
            client.asked.as_ref().is_some_and(|asked| {
                let deadline_us = REQUEST_DEADLINE_US + DEADLINE_SLACK_US + frozen_us - asked.frozen_us;
                asked.at.after_us(deadline_us) < self.now
            })
        };
        if let Some(client) = self.clients.iter().find(late) {
            let object = client.asked.as_ref().map(|asked| describe(&asked.object)).unwrap_or_default();
            return Err(self.stuck(format!("a client of node {} still waits for {object}", client.node)));
        }
        let is_over =
            |by: &Life, begun: &Micros| begun.after_us(SWEEP_US_MAX + self.places[by.node].frozen_us) < self.now;
        if let Some(((by, _), (path, begun))) = self.sweeping.iter().find(|((by, _), (_, begun))| is_over(by, begun)) {
            let path = String::from_utf8_lossy(path);
            return Err(self.stuck(format!("node {} was asked to invalidate \"{path}\" at {begun:?}", by.node)));
        }
        if !self.config.faults.misleads()
            && let Some(search) =
                self.searches.overdue(self.now, DETECTED_US_MAX, |search| self.has_begun(search.by, search.tree))
        {
            return Err(self.stuck(format!("no other node was found: {search:?}")));
        }
        for at in 0..self.places.len() {
            self.note_begun(at);
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

    /// Everything is over: what the nodes still hold, and what they counted.
    pub(super) fn finish(mut self) -> Result<Report, SimError> {
        if self.unfinished > 0 {
            return Err(self.stuck(format!("{} clients have not had all their answers", self.unfinished)));
        }
        self.check_probes()?;
        self.check_readiness()?;
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
            self.report.nodes.push(counters);
            let counts = &mut self.report.counts;
            counts.retries += counters.retries;
            counts.joined += counters.joined;
            counts.listings_wanted += counters.listings_wanted;
            counts.listings_renewed += counters.listings_renewed;
            counts.listings_voided += counters.listings_voided;
            counts.listing_serves += counters.listing_serves;
            counts.foreseen += counters.foreseen;
            counts.foreseen_wasted += counters.foreseen_wasted;
            counts.evicted += node.store().stats().evicted_chunks;
        }
        let counts = &self.report.counts;
        // An invalidation goes to every node, and so do heartbeats.
        let beats =
            (EVENTS_PER_S_MAX + EVENTS_PER_TREE_AND_S_MAX * u64::from(self.config.stripes)) * self.now.0 / 1_000_000;
        let per_node =
            EVENTS_PER_NODE_MAX + counts.sweeps * EVENTS_PER_ANSWER_MAX * u64::from(self.config.stripes) + beats;
        let extra = per_node * self.places.len() as u64;
        if counts.events > EVENTS_PER_ANSWER_MAX * counts.answered + extra {
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

    /// What each node has sent of probes.
    pub(super) fn probes(&self) -> Vec<u64> {
        self.places.iter().map(|place| place.node.as_ref().map_or(0, |node| node.counters().probes)).collect()
    }

    /// While nobody asks for anything, each node probes whom it asks now and then, and better ones that are dead more
    /// often.
    pub(super) fn check_probes(&self) -> Result<(), SimError> {
        let (Some(before), rest_s) = (&self.rest_probes, REST_US / 1_000_000) else { return Ok(()) };
        for (at, (before, after)) in before.iter().zip(self.probes()).enumerate() {
            let chains: BTreeSet<_> = self.trees_of(at).flat_map(|tree| tree.candidates()).map(index).collect();
            let dead = chains.iter().filter(|node| !self.was_there(**node, REST_US)).count() as u64;
            let asked = chains.len().min(self.config.stripes as usize) as u64;
            let most = match self.config.faults.misleads() {
                false => asked * (rest_s * 1_000_000 / HEARTBEAT_IDLE_US + 2) + dead * (rest_s + 20),
                // What is lost or late looks like silence for a while.
                true => chains.len() as u64 * rest_s * 2,
            };
            if after - before > most {
                let what = format!("{} probes in {rest_s} s in which nobody asked for anything", after - before);
                return Err(self.wrong(at, b"", what));
            }
        }
        Ok(())
    }

    /// Who answers for a tree knows of all nodes that live that they are ready.
    fn check_readiness(&self) -> Result<(), SimError> {
        for root in 0..self.places.len() {
            let topology = &self.places[root].topology;
            if answerers(topology).into_iter().find(|node| self.is_there(*node)) != Some(root) {
                continue;
            }
            let Some(node) = &self.places[root].node else { continue };
            let Readiness { nodes, ready, missing } = node.readiness();
            let group = topology.group();
            let all = group.clone().filter(|node| self.is_there(*node as usize)).count();
            if nodes as usize != group.len() || (ready as usize) < all {
                let what =
                    format!("{ready} of {nodes} nodes are ready as node {root} knows, {all} live; not {missing:?}");
                return Err(self.stuck(what));
            }
            if let Some(node) = missing.into_iter().find(|node| self.is_there(index(*node))) {
                return Err(self.stuck(format!("node {root} does not know that node {node} is ready")));
            }
        }
        Ok(())
    }

    /// A node asks another one, which is there or not.
    pub(super) fn note_asked(&mut self, by: usize, of: usize, tree: &Topology, id: u64) -> Result<(), SimError> {
        let there = self.is_there(of);
        let search = Search { by, dead: of, tree: tree.number() };
        let waited_us = self.searches.asked(self.now, search, id, there);
        self.note_found(by, tree, waited_us)?;
        if self.is_calm && self.config.faults.lost_per_mille == 0 {
            let right = self.trees_of(by).find(|other| other.number() == tree.number()).map(|tree| tree.candidates());
            let right = right.into_iter().flatten().map(index).find(|node| self.is_there(*node));
            if right != Some(of) {
                return Err(
                    self.stuck(format!("node {by} asks node {of} instead of {right:?}, though all is well again"))
                );
            }
        }
        Ok(())
    }

    /// Whether the root of a tree was ready once, as everybody knows: otherwise it is waited for.
    fn has_begun(&self, node: usize, tree: u32) -> bool {
        self.places[index(self.places[node].topology.tree(tree).root())].has_begun
    }

    fn note_found(&mut self, by: usize, tree: &Topology, waited_us: Option<u64>) -> Result<(), SimError> {
        let counts = !self.config.faults.misleads() && self.has_begun(by, tree.number());
        let Some(waited_us) = waited_us.filter(|_| counts) else { return Ok(()) };
        let most = &mut self.report.counts.search_us_max;
        *most = waited_us.max(*most);
        if waited_us > DETECTED_US_MAX {
            return Err(self.stuck(format!("node {by} had nobody to ask for {waited_us} us")));
        }
        Ok(())
    }

    /// A node asks the backend: as root, or because all before it are away.
    pub(super) fn note_reader(&mut self, by: usize, tree: &Topology) -> Result<(), SimError> {
        let answerers = answerers(tree);
        let readers = self.readers.entry((answerers[0], tree.number())).or_default();
        readers.insert(by);
        let readers = readers.len() as u64;
        self.report.counts.readers_max = self.report.counts.readers_max.max(readers);
        let waited_us = self.searches.found(self.now, by, tree.number());
        self.note_found(by, tree, waited_us)?;
        // A node that was stopped learns what has changed meanwhile.
        if self.config.faults.misleads() || !self.was_there(by, RETURNED_US_MAX) {
            return Ok(());
        }
        let before = answerers.iter().take_while(|node| **node != by);
        if let Some(other) = before.into_iter().find(|node| self.was_there(**node, RETURNED_US_MAX)) {
            return Err(self.wrong(by, b"", format!("it asks the backend though node {other} is there to do so")));
        }
        Ok(())
    }
}
