//! Readiness of the parent: unreachable, reached but not serving yet, and ready are three states.
//!
//! A node probes its parent from its own start on, first after 10 ms, then at pauses that double up to 1 s. What it
//! asks meanwhile waits in line; its own children are answered from memory all the while. Success is remembered.

use super::limits::{PROBE_BUDGET_US, PROBE_PAUSE_MAX_US, PROBE_PAUSE_MIN_US};
use super::topology::NodeId;
use crate::cache::types::Micros;

/// How far this node has come with its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentState {
    /// A root has none.
    None,
    /// No answer yet.
    Unreachable,
    /// It answers, but does not serve yet.
    NotServing,
    /// It serves.
    Ready,
}

impl ParentState {
    /// A word for reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ParentState::None => "root",
            ParentState::Unreachable => "parent unreachable",
            ParentState::NotServing => "parent not ready yet",
            ParentState::Ready => "ready",
        }
    }
}

#[derive(Debug)]
pub(super) struct Parent {
    pub(super) node: NodeId,
    pub(super) state: ParentState,
    since: Option<Micros>,
    probes: u32,
    pause_us: u64,
    next: Micros,
    probe: u64,
    complained: bool,
}

impl Parent {
    pub(super) fn new(node: NodeId) -> Parent {
        Parent {
            node,
            state: ParentState::Unreachable,
            since: None,
            probes: 0,
            pause_us: PROBE_PAUSE_MIN_US,
            next: Micros(0),
            probe: 0,
            complained: false,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state == ParentState::Ready
    }

    /// When the next probe is to be sent; never once the parent is ready.
    pub(super) fn next_probe(&self) -> Option<Micros> {
        (!self.is_ready()).then_some(self.next)
    }

    /// Takes note of a probe that goes out now under `id`.
    pub(super) fn probed(&mut self, now: Micros, id: u64) {
        let since = *self.since.get_or_insert(now);
        self.probe = id;
        self.probes += 1;
        self.next = now.after_us(self.pause_us);
        if self.probes == 1 || self.probes.is_multiple_of(25) {
            log::info!(
                "{} for node {}, waited {} ms so far; attempts={}; next_retry_sleep_ms={}",
                self.state.as_str(),
                self.node,
                now.0.saturating_sub(since.0) / 1000,
                self.probes,
                self.pause_us / 1000
            );
        }
        self.pause_us = (self.pause_us * 2).min(PROBE_PAUSE_MAX_US);
        if !self.complained && now.0.saturating_sub(since.0) > PROBE_BUDGET_US {
            self.complained = true;
            log::error!(
                "{} after {} s and {} probes of node {}: is its daemon running, and is its address right? Probing goes on",
                self.state.as_str(),
                PROBE_BUDGET_US / 1_000_000,
                self.probes,
                self.node
            );
        }
    }

    /// The answer to probe `id`. True when the parent became ready by it.
    pub(super) fn answered(&mut self, now: Micros, id: u64, serving: bool) -> bool {
        if self.is_ready() || id > self.probe {
            return false;
        }
        if !serving {
            self.state = ParentState::NotServing;
            return false;
        }
        self.state = ParentState::Ready;
        log::info!(
            "parent readiness confirmed at node {} after {} us across {} probe(s)",
            self.node,
            now.0.saturating_sub(self.since.unwrap_or(now).0),
            self.probes
        );
        true
    }
}
