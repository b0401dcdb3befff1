//! What is looked at beside the answers: who waits for too long, and what is left when everything is over.

use super::client::{Client, describe};
use super::event::Event;
use super::oracle::Reads;
use super::report::{Report, SimError};
use super::world::{DEADLINE_SLACK_US, WATCH_US, World};
use crate::cache::types::Micros;
use crate::core::Load;
use crate::core::limits::{REQUEST_DEADLINE_US, SWEEP_DEADLINE_US};

/// An invalidation ends within this time, whoever is missing.
const SWEEP_US_MAX: u64 = 2 * SWEEP_DEADLINE_US;
/// Events that an answer costs on average: messages, timers and operations on the way to the root and back.
const EVENTS_PER_ANSWER_MAX: u64 = 40;
/// Events that a node costs beside them: its start, the search for its parent, and heartbeats.
const EVENTS_PER_NODE_MAX: u64 = 600;

impl World {
    /// Nobody may wait for longer than the deadline.
    pub(super) fn watch(&mut self) -> Result<(), SimError> {
        let late = |client: &&Client| {
            let deadline_us = REQUEST_DEADLINE_US + DEADLINE_SLACK_US;
            client.asked.as_ref().is_some_and(|asked| asked.at.after_us(deadline_us) < self.now)
        };
        if let Some(client) = self.clients.iter().find(late) {
            let object = client.asked.as_ref().map(|asked| describe(&asked.object)).unwrap_or_default();
            return Err(self.stuck(format!("a client of node {} still waits for {object}", client.node)));
        }
        let over = |begun: &Micros| begun.after_us(SWEEP_US_MAX) < self.now;
        if let Some(((by, _), (path, begun))) = self.sweeping.iter().find(|(_, (_, begun))| over(begun)) {
            let path = String::from_utf8_lossy(path);
            return Err(self.stuck(format!("node {} was asked to invalidate \"{path}\" at {begun:?}", by.node)));
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

    /// Everything is over: what the nodes still hold, and what they counted.
    pub(super) fn finish(mut self) -> Result<Report, SimError> {
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
            if asked && !node.topology().is_root_of_any() && counters.failovers == 0 {
                return Err(self.wrong(at, b"", "it asked the backend, and neither is nor was the root".to_owned()));
            }
            self.report.nodes.push(counters);
            let counts = &mut self.report.counts;
            counts.retries += counters.retries;
            counts.joined += counters.joined;
            counts.evicted += node.store().stats().evicted_chunks;
        }
        let counts = &self.report.counts;
        // An invalidation goes to every node.
        let extra = (EVENTS_PER_NODE_MAX + counts.sweeps * EVENTS_PER_ANSWER_MAX) * self.places.len() as u64;
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
}
