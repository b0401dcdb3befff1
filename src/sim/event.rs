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
        to: usize,
        frame: Vec<u8>,
    },
    /// A read comes to the memory that it reads.
    Read(Read),
    /// A read ends.
    Pulled {
        by: Life,
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
    Stop {
        node: usize,
    },
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
    /// A number for the run's digest.
    pub(super) fn kind(&self) -> u64 {
        match self {
            Event::Frame { to, frame } => (*to as u64) << 32 | (frame.len() as u64) << 8,
            Event::Read(read) => 1 | (read.by.node as u64) << 32,
            Event::Pulled { by, ok, .. } => 2 | (by.node as u64) << 32 | u64::from(*ok) << 8,
            Event::Operate { by, .. } => 3 | (by.node as u64) << 32,
            Event::Backend { by, .. } => 4 | (by.node as u64) << 32,
            Event::Verified { by, .. } => 5 | (by.node as u64) << 32,
            Event::Timer { by } => 6 | (by.node as u64) << 32,
            Event::Client { client } => 7 | (*client as u64) << 32,
            Event::Start { node } => 8 | (*node as u64) << 32,
            Event::Open { by } => 9 | (by.node as u64) << 32,
            Event::Stop { node } => 10 | (*node as u64) << 32,
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
