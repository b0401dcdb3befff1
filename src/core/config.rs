//! What a node is told at its start, and what it tells of itself: values only.

use std::time::Duration;

use super::limits::{DETECT_DEFAULT_US, DIR_TTL_DEFAULT_US, ENOENT_TTL_DEFAULT_US};
use super::topology::Topology;

/// What a node is told at its start.
#[derive(Debug)]
pub struct NodeConfig {
    /// Its place in the first of its trees; the others follow from that.
    pub topology: Topology,
    /// Names the job: frames of another job are dropped.
    pub job: u64,
    /// Names this life of the node.
    pub incarnation: u64,
    /// How long the root's ENOENT may be repeated; zero: not at all.
    pub enoent_ttl: Duration,
    /// Whether listings answer the names that they lack (`--complete-dirs`).
    pub complete_dirs: bool,
    /// Whether what clients will ask for next is asked for before they do (`--foresight`).
    pub foresight: bool,
    /// How long attributes of directories, and listings, may be used.
    pub dir_ttl: Duration,
    /// How long attributes of all else may be used; none: until they are invalidated.
    pub attr_ttl: Option<Duration>,
    /// How long the one that is asked may be silent until another one is asked: 0.2 s to 30 s.
    pub detect: Duration,
    /// Requests that the transport can receive at once; its peers share them.
    pub receives: usize,
}

impl NodeConfig {
    /// What the command's defaults make of a node at such a place, whose transport can receive so many requests at once.
    #[must_use]
    pub fn new(topology: Topology, job: u64, incarnation: u64, receives: usize) -> NodeConfig {
        NodeConfig {
            topology,
            job,
            incarnation,
            enoent_ttl: Duration::from_micros(ENOENT_TTL_DEFAULT_US),
            complete_dirs: true,
            foresight: true,
            dir_ttl: Duration::from_micros(DIR_TTL_DEFAULT_US),
            attr_ttl: None,
            detect: Duration::from_micros(DETECT_DEFAULT_US),
            receives,
        }
    }
}

/// What a node counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests of peers for attributes.
    pub peers_attr: u64,
    /// Requests of peers for parts of listings.
    pub peers_list: u64,
    /// Requests of peers for chunks.
    pub peers_chunk: u64,
    /// Requests of peers for `statfs`.
    pub peers_statfs: u64,
    /// Probes of peers.
    pub peers_probe: u64,
    /// Requests sent to other nodes, repeats included.
    pub to_parent: u64,
    /// Probes sent to other nodes.
    pub probes: u64,
    /// Those of them that were heartbeats.
    pub heartbeats: u64,
    /// Probes of a node that was looked for that had no answer: it was unreachable.
    pub probes_unanswered: u64,
    /// Probes of such a node that it answered, but did not serve yet.
    pub probes_not_serving: u64,
    /// Times that such a node said that it serves.
    pub confirmed: u64,
    /// Microseconds from the start until one of those that may be asked served; 0 before that.
    pub parent_us: u64,
    /// Nodes that were suspected because they were silent.
    pub suspicions: u64,
    /// Nodes that were given up, and another one or the backend asked instead.
    pub failovers: u64,
    /// Requests that were asked again elsewhere, or of another life of the same node.
    pub asked_again: u64,
    /// Times that requests had to wait because this node is cut off, and asks the backend at a small rate.
    pub rate_limited: u64,
    /// Frames of nodes that are of another job: with another book, or other options.
    pub foreign: u64,
    /// Frames of nodes that have not shown the job's secret in this life of both.
    pub auth_refused: u64,
    /// Hellos that had come before.
    pub auth_replayed: u64,
    /// Grants that were taken back because the peer held too many.
    pub grants_taken: u64,
    /// Frames that arrived.
    pub frames: u64,
    /// Frames that were dropped: malformed, of another job, from no node of the book, or answers to nothing.
    pub dropped: u64,
    /// Requests that joined one already under way.
    pub joined: u64,
    /// Requests to the parent that were repeats.
    pub retries: u64,
    /// Requests that ran into the hard deadline.
    pub timeouts: u64,
    /// Chunks whose bytes did not match their checksum.
    pub bad_checksums: u64,
    /// Chunks pulled from the parent's memory.
    pub pulls: u64,
    /// Bytes of chunks received from the parent.
    pub chunk_bytes: u64,
    /// Requests to the backend for attributes.
    pub backend_attr: u64,
    /// Those of them that were answered ENOENT.
    pub backend_enoent: u64,
    /// Requests to the backend for listings.
    pub backend_list: u64,
    /// Absent names that listings answered, clients' by FUSE threads included.
    pub listing_serves: u64,
    /// Listings asked for to answer absent names.
    pub listings_wanted: u64,
    /// Those of them that were found unchanged.
    pub listings_renewed: u64,
    /// Listings dropped because a name was found that they lack.
    pub listings_voided: u64,
    /// Requests to the backend for chunks.
    pub backend_chunk: u64,
    /// Bytes of chunks read from the backend.
    pub backend_bytes: u64,
    /// Comparisons of a file's bytes with what was read before.
    pub rechecks: u64,
    /// Grants that were taken back because the child did not release them.
    pub leases_ended: u64,
    /// Names that the kernel was asked to let go of, for want of room.
    pub names_released: u64,
    /// Most chunks that were under way at one moment.
    pub chunks_in_flight_max: u64,
    /// Chunks that were asked for ahead of a client.
    pub ahead: u64,
    /// Names that were asked for before a client did.
    pub foreseen: u64,
    /// Those of them that no client came for.
    pub foreseen_wasted: u64,
    /// Chunks that were not, or whose request was given up, because memory or the line was short.
    pub ahead_dropped: u64,
}

/// What a node holds now; each has its bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests that are under way.
    pub flights: usize,
    /// Places in the line for the parent.
    pub line: usize,
    /// Requests that one node was asked and that are not over: of the node with the most.
    pub at_parent: usize,
    /// Grants that were not released.
    pub grants: usize,
    /// Those of the peer with the most.
    pub grants_of_peer: usize,
}
