//! What happens, and when: a queue in the order of virtual time, and of making within one moment.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::cache::arena::Slot;
use crate::cache::types::Micros;
use crate::core::{BackendOp, BackendReply, FlightId, NodeId};

/// One life of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Life {
    pub(super) node: usize,
    pub(super) number: u64,
}

/// A read of a parent's memory.
pub(super) struct Read {
    pub(super) by: Life,
    pub(super) from: NodeId,
    pub(super) id: FlightId,
    pub(super) key: u64,
    pub(super) offset: u64,
    pub(super) len: usize,
    pub(super) slot: Slot,
}

pub(super) enum Event {
    /// A frame arrives, whichever life of the node it was meant for.
    Frame {
        from: usize,
        to: usize,
        frame: Vec<u8>,
    },
    /// A read comes to the memory that it reads.
    Read(Read),
    /// A read ends.
    Pulled {
        by: Life,
        from: usize,
        id: FlightId,
        slot: Slot,
        ok: bool,
    },
    /// The backend looks.
    Operate {
        by: Life,
        id: FlightId,
        op: BackendOp,
        asked: Micros,
        told: Micros,
    },
    /// The backend answers.
    Backend {
        by: Life,
        id: FlightId,
        reply: BackendReply,
    },
    /// A worker has computed a checksum.
    Verified {
        by: Life,
        id: FlightId,
        slot: Slot,
        crc: u32,
    },
    Timer {
        by: Life,
    },
    /// A client asks for what is next on its list.
    Client {
        client: usize,
    },
    Start {
        node: usize,
    },
    /// The node begins to answer probes with "ready".
    Open {
        by: Life,
    },
    Kill {
        node: usize,
        /// Until it starts again, microseconds.
        down_us: Option<u64>,
    },
    Freeze {
        node: usize,
        for_us: u64,
    },
    Thaw {
        node: usize,
    },
    /// Links are cut.
    Cut,
    /// Those that were cut first are there again.
    Heal,
    /// If all faults are over for a while, everybody asks once more.
    Calm,
    /// The served tree changes.
    Change,
    /// What went is there again.
    Restore {
        path: Box<[u8]>,
    },
    /// Somebody invalidates a path, on any node.
    Sweep,
    /// Everyone who waits is looked at.
    Watch,
}

impl Event {
    /// Whether it was planned, rather than a consequence.
    pub(super) fn is_planned(&self) -> bool {
        matches!(
            self,
            Event::Start { .. }
                | Event::Kill { .. }
                | Event::Freeze { .. }
                | Event::Thaw { .. }
                | Event::Cut
                | Event::Heal
                | Event::Calm
                | Event::Change
                | Event::Restore { .. }
                | Event::Sweep
        )
    }

    /// The node that something happens to: when it is stopped, it happens later.
    pub(super) fn place(&self) -> Option<usize> {
        match self {
            Event::Frame { to, .. } => Some(*to),
            Event::Read(read) => Some(read.from.0 as usize),
            Event::Pulled { by, .. }
            | Event::Verified { by, .. }
            | Event::Backend { by, .. }
            | Event::Timer { by }
            | Event::Open { by } => Some(by.node),
            _ => None,
        }
    }

    /// A number for the run's digest.
    pub(super) fn kind(&self) -> u64 {
        match self {
            Event::Frame { to, frame, .. } => (*to as u64) << 32 | (frame.len() as u64) << 8,
            Event::Read(read) => 1 | (read.by.node as u64) << 32,
            Event::Pulled { by, ok, .. } => 2 | (by.node as u64) << 32 | u64::from(*ok) << 8,
            Event::Operate { by, .. } => 3 | (by.node as u64) << 32,
            Event::Backend { by, .. } => 4 | (by.node as u64) << 32,
            Event::Verified { by, .. } => 5 | (by.node as u64) << 32,
            Event::Timer { by } => 6 | (by.node as u64) << 32,
            Event::Client { client } => 7 | (*client as u64) << 32,
            Event::Start { node } => 8 | (*node as u64) << 32,
            Event::Open { by } => 9 | (by.node as u64) << 32,
            Event::Kill { node, .. } => 10 | (*node as u64) << 32,
            Event::Freeze { node, .. } => 15 | (*node as u64) << 32,
            Event::Thaw { node } => 16 | (*node as u64) << 32,
            Event::Cut => 17,
            Event::Heal => 18,
            Event::Calm => 19,
            Event::Change => 11,
            Event::Watch => 12,
            Event::Restore { path } => 13 | (path.len() as u64) << 8,
            Event::Sweep => 14,
        }
    }
}

struct Timed {
    at: Micros,
    number: u64,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Timed) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Timed) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    fn cmp(&self, other: &Timed) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// All that is to happen.
#[derive(Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<Timed>>,
    number: u64,
}

impl Queue {
    pub(super) fn push(&mut self, at: Micros, event: Event) {
        self.number += 1;
        self.heap.push(Reverse(Timed { at, number: self.number, event }));
    }

    pub(super) fn pop(&mut self) -> Option<(Micros, Event)> {
        self.heap.pop().map(|Reverse(timed)| (timed.at, timed.event))
    }
}
