//! What a run did, in numbers, and how it went wrong.

use serde::Serialize;

use crate::core::topology::TopologyError;
use crate::core::{Counters, NodeId};

macro_rules! counts {
    ($($(#[doc = $help:literal])+ $name:ident: $merge:ident,)+) => {
        /// What happened in one run or in several.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Counts {
            $($(#[doc = $help])+ pub $name: u64,)+
        }

        impl Counts {
            /// Adds what happened in another run.
            pub fn add(&mut self, other: &Counts) {
                $(self.$name = counts!(@$merge self.$name, other.$name);)+
            }

            /// Name, value and meaning of each count.
            pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64, &'static str)> {
                [$((stringify!($name), self.$name, concat!($($help),+)),)+].into_iter()
            }
        }
    };
    (@sum $a:expr, $b:expr) => { $a.wrapping_add($b) };
    (@max $a:expr, $b:expr) => { $a.max($b) };
}

counts! {
    /// Runs.
    runs: sum,
    /// Nodes, over all runs.
    nodes: sum,
    /// Requests of clients, each answered once and rightly.
    answered: sum,
    /// Answers: there is this.
    entries: sum,
    /// Answers: there is no such name.
    absent: sum,
    /// Answers: the names of a directory.
    listings: sum,
    /// Answers: bytes of a file.
    chunks: sum,
    /// Bytes of files that were compared.
    bytes: sum,
    /// Answers: that version is gone (ESTALE).
    stale: sum,
    /// Answers: another errno of the backend.
    errors: sum,
    /// Longest time that a client waited for an answer, virtual microseconds.
    wait_us_max: max,
    /// Messages sent between nodes.
    messages: sum,
    /// Messages lost by the network.
    lost: sum,
    /// Messages that arrived twice.
    doubled: sum,
    /// Messages that took much longer than usual.
    late: sum,
    /// Messages to a node that was down.
    unheard: sum,
    /// Reads of a parent's memory.
    reads: sum,
    /// Of them, those that failed.
    reads_failed: sum,
    /// Of them, those of a dead node's memory, which never end.
    reads_lost: sum,
    /// Of them, those that returned other bytes.
    reads_stale: sum,
    /// Requests that were sent again.
    retries: sum,
    /// Requests that joined one under way.
    joined: sum,
    /// Most requests that one node had under way at its parent.
    at_parent_max: max,
    /// Chunks evicted for want of memory.
    evicted: sum,
    /// Operations of the backend for attributes.
    backend_attr: sum,
    /// Operations of the backend for listings.
    backend_list: sum,
    /// Operations of the backend for bytes.
    backend_chunk: sum,
    /// Listings that nodes asked for to answer absent names.
    listings_wanted: sum,
    /// Listings that were renewed.
    listings_renewed: sum,
    /// Listings that a name was found to be missing from.
    listings_voided: sum,
    /// Absent names that listings answered.
    listing_serves: sum,
    /// Requests for what clients were expected to ask for.
    foreseen: sum,
    /// Of them, those that nobody came for.
    foreseen_wasted: sum,
    /// Operations of the backend that failed with an injected errno.
    backend_failed: sum,
    /// Operations of the backend that hung.
    backend_hung: sum,
    /// Most reads of one chunk of one version at one path by one root.
    reads_per_chunk_max: max,
    /// Nodes that started late.
    late_starts: sum,
    /// Nodes that died.
    kills: sum,
    /// Nodes that were stopped for a while.
    freezes: sum,
    /// Cuts of links between nodes.
    cuts: sum,
    /// Longest time in which a node that asked a dead or stopped one had found no other, where no message was lost by
    /// chance, virtual microseconds.
    search_us_max: max,
    /// Most nodes that asked the backend in one tree.
    readers_max: max,
    /// Changes of the served tree.
    changes: sum,
    /// Invalidations that were asked for.
    sweeps: sum,
    /// Of them, those that reached every node.
    swept: sum,
    /// Reads that found their file too young.
    backend_young: sum,
    /// Events.
    events: sum,
    /// Of them, timers of nodes.
    timers: sum,
    /// Longest virtual time of a run, microseconds.
    virtual_us_max: max,
    /// Names the runs, event by event: equal seeds give equal ones.
    digest: sum,
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In numbers.
    pub counts: Counts,
    /// What each node counted in its last life.
    pub nodes: Vec<Counters>,
}

/// What went wrong in a run; its seed reproduces it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SimError {
    /// The configuration makes no tree of nodes.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The code panicked.
    #[error("crash: seed {seed}: {what}")]
    Crash {
        /// The run's seed.
        seed: u64,
        /// The panic's text.
        what: String,
    },
    /// A client was told something that is not so, or a node did what it must never do.
    #[error("safety: seed {seed}, node {node}, \"{path}\" at {at_us} us: {what}")]
    Safety {
        /// The run's seed.
        seed: u64,
        /// The node.
        node: NodeId,
        /// What it was about.
        path: String,
        /// When, virtual microseconds.
        at_us: u64,
        /// What is wrong.
        what: String,
    },
    /// Something that must happen did not, or not in time.
    #[error("liveness: seed {seed} at {at_us} us: {what}")]
    Liveness {
        /// The run's seed.
        seed: u64,
        /// When, virtual microseconds.
        at_us: u64,
        /// What is wrong.
        what: String,
    },
}
