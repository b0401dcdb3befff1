//! What happens to the nodes: the plan of a run, starts and ends.

use std::sync::Arc;
use std::time::Duration;

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
use crate::core::limits::{DETECT_DEFAULT_US, REQUESTS_AT_PARENT_MAX};
use crate::core::{Node, NodeConfig};

/// Longest pause before a node that ended starts again, microseconds.
const DOWN_US_MAX: u64 = 3_000_000;

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
            let at = Micros(1 + self.rng.up_to(span_us));
            self.planned(at, Event::Stop { node });
        }
        for _ in 0..faults.changes {
            let at = Micros(1 + self.rng.up_to(span_us));
            self.planned(at, Event::Change);
        }
        for _ in 0..faults.sweeps {
            let at = Micros(1 + self.rng.up_to(span_us));
            self.planned(at, Event::Sweep);
        }
        self.queue.push(Micros(WATCH_US), Event::Watch);
    }

    pub(super) fn planned(&mut self, at: Micros, event: Event) {
        self.planned += 1;
        self.queue.push(at, event);
    }

    /// A node begins a life.
    pub(super) fn start(&mut self, at: usize) -> Result<(), SimError> {
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
    pub(super) fn stop(&mut self, at: usize) {
        if self.places[at].node.take().is_none() {
            return;
        }
        self.report.counts.restarts += 1;
        self.kernels.forget(at);
        let life = self.life(at);
        self.asking.retain(|(by, _)| *by != life);
        self.questions.retain(|(by, _), _| *by != life);
        self.sweeping.retain(|(by, _), _| *by != life);
        for client in self.clients_of(at) {
            self.clients[client].lose();
            self.unfinished -= usize::from(self.clients[client].is_over());
        }
        let again = self.now.after_us(self.rng.up_to(DOWN_US_MAX));
        self.planned(again, Event::Start { node: at });
    }

    pub(super) fn clients_of(&self, node: usize) -> std::ops::Range<usize> {
        let each = self.config.clients_per_node as usize;
        node * each..(node + 1) * each
    }
}
