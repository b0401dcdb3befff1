//! Every bound of the protocol, with the relations that must hold between them.

/// Largest frame, header included: libfabric's cxi provider sends up to 16 KiB eagerly.
pub const FRAME_BYTES_MAX: usize = 16_384;

/// Longest path on the wire, bytes: `PATH_MAX` less its NUL.
pub const PATH_BYTES_MAX: usize = 4_095;

/// Longest symlink text on the wire, bytes.
pub const TARGET_BYTES_MAX: usize = 4_095;

/// Requests that a node has under way at another one at once; the others wait in line at the node.
pub const REQUESTS_AT_PARENT_MAX: usize = 64;

/// Requests that every child may have under way, however many children there are.
pub const CREDITS_MIN: usize = 2;

/// A peer that was not heard for so long no longer has a share of the credits.
pub const SHARER_FORGOTTEN_US: u64 = 3 * HEARTBEAT_IDLE_US;

/// How often the credits of a node are divided anew.
pub const SHARES_EVERY_US: u64 = 1_000_000;

/// Grants that one peer holds at once; the oldest is taken back for another one: its release was lost.
pub const GRANTS_PER_PEER_MAX: usize = 2 * REQUESTS_AT_PARENT_MAX;

/// Grants whose release waits for the next request to their node, which then needs to wake up once only.
pub const OWED_MAX: usize = 8;

/// How long a release waits at most.
pub const OWED_US: u64 = 20_000;

/// Nodes after the root that ask the backend in its place, one after the other.
pub const STANDBYS: u32 = 3;

/// How long absence may be repeated, by default (`--enoent-ttl-ms`).
pub const ENOENT_TTL_DEFAULT_US: u64 = 2_000_000;

/// How long listings and attributes of directories may be used, by default (`--dir-ttl-ms`).
pub const DIR_TTL_DEFAULT_US: u64 = 60_000_000;

/// How long a node that is asked may be silent, by default, until another one is asked (`--detect-ms`).
pub const DETECT_DEFAULT_US: u64 = 2_000_000;

/// The least that `--detect-ms` may be.
pub const DETECT_MIN_US: u64 = 200_000;

/// The most that `--detect-ms` may be.
pub const DETECT_MAX_US: u64 = 30_000_000;

/// Heartbeats in the time after which a silent node is given up, while something is under way at it.
pub const HEARTBEATS_PER_DETECT: u64 = 4;

/// Heartbeats while nothing is under way come this far apart.
pub const HEARTBEAT_IDLE_US: u64 = 5_000_000;

/// A parent that was never ready is waited for so long before its own parent is asked.
pub const BYPASS_US: u64 = 2_000_000;

/// Requests that a node which reaches nobody, and is no standby, asks its own backend for at once at most.
pub const ALONE_BURST: u64 = 200;

/// Requests that such a node asks its own backend for in a second.
pub const ALONE_PER_S: u64 = 20;

/// Requests whose timers are looked at in one turn.
pub const TIMER_STEPS_MAX: usize = 512;

/// Requests that are taken from the line in one turn.
pub const PUMP_STEPS_MAX: usize = 256;

/// A request without an answer or a sign of life is sent again after this long.
pub const RETRY_US: u64 = 2_000_000;

/// A peer that waits is told "pending" this often.
pub const PENDING_US: u64 = 1_000_000;

/// A request that has no answer by then fails with EIO. Below Slurm's default `UnkillableStepTimeout` of 60 s.
pub const REQUEST_DEADLINE_US: u64 = 45_000_000;

/// The first pause between two readiness probes; it doubles up to [`PROBE_PAUSE_MAX_US`].
pub const PROBE_PAUSE_MIN_US: u64 = 10_000;

/// The longest pause between two readiness probes.
pub const PROBE_PAUSE_MAX_US: u64 = 1_000_000;

/// After this long without success the node says that its parent does not come; probing goes on.
pub const PROBE_BUDGET_US: u64 = 120_000_000;

/// How long a time on the backend must be over, by the root's clock, to tell a change that comes after it: its clock and
/// the file server's may differ by so much less the 2 s for which filesystems count at the most.
pub const CLOCK_MARGIN_MIN_US: u64 = 2_000_000;

/// The longest such time: a file with such a time may have to wait for it twice, where the server's clock is ahead.
pub const CLOCK_MARGIN_MAX_US: u64 = 20_000_000;

/// A node with which there is no session is greeted this often at most.
pub const GREET_US: u64 = 5_000;

/// One that was not heard for so long, since it was sent something, is greeted anew, and again after as long.
pub const GREET_AGAIN_US: u64 = 100_000;

/// Frames that wait for a session with one node; the oldest is given up, and sent again by who sent it.
pub const AUTH_KEPT_MAX: usize = 16;

/// Sessions with one node that count at once: frames of an older one may still be on their way.
pub const AUTH_SESSIONS_MAX: usize = 4;

/// Lives of one node of which it is known which hello was the last.
pub const AUTH_LIVES_MAX: usize = 8;

/// A node that is refused is told of in the log this often at most.
pub const AUTH_COMPLAINT_US: u64 = 60_000_000;

/// What has grown of the set of ready nodes waits so long for more, after the last message about it.
pub const READY_PAUSE_US: u64 = 20_000;

/// Nodes that are not ready are named up to this many.
pub const READY_MISSING_MAX: usize = 100;

/// A grant that its child does not release is taken back after this long. A child that reads later than this sees a
/// checksum that does not match, and asks again.
pub const GRANT_LEASE_US: u64 = 60_000_000;

/// Pause before memory is tried again when everything in the arena is pinned.
pub const MEMORY_RETRY_US: u64 = 2_000;

/// Bytes up to which a pulled chunk is verified in the turn that received it (some 20 us, less than another thread takes to
/// wake up); larger ones go to a worker.
pub const VERIFY_INLINE_BYTES: usize = 262_144;

/// How often a chunk whose checksum does not match is asked for again before it fails with EIO.
pub const CHECKSUM_RETRIES_MAX: u32 = 3;

/// Chunks that are asked for ahead of a client that reads a file in order.
pub const READ_AHEAD_CHUNKS: u64 = 4;

/// Chunks that a node fetches ahead at once for all its clients together.
pub const AHEAD_MAX: usize = 32;

/// Where so many requests stand in line for the parent, nothing is fetched ahead.
pub const AHEAD_LINE_MAX: usize = 16;

/// What was foreseen is judged when so much was looked up or foreseen after it.
pub const FORESEEN_MAX: usize = 16;

/// Names that clients missed lately, from one of which the next one may follow.
pub const RECENT_MISSES_MAX: usize = 4;

/// Rules of each kind by which names follow from others, and files are read.
pub const RULES_MAX: usize = 16;

/// Inodes that an invalidation visits in one step: 100 to 300 us.
pub const SWEEP_STEP_INODES: usize = 1_000;

/// Parts in which it goes over all names; see [`NamesConfig`](crate::cache::names::NamesConfig).
pub const SWEEP_PARTS: usize = 256;

/// Packed listings up to this length are put in order in the turn that received them, larger ones by a worker.
pub const ARRANGE_INLINE_BYTES: usize = 16_384;

/// An invalidation that a node did not answer is asked for again after this long.
pub const SWEEP_RETRY_US: u64 = 1_000_000;

/// Invalidations that a node has under way at once, one for each tree; what comes beyond is asked again by who wants it.
pub const SWEEPS_MAX: usize = 256;

/// Nodes that have not answered an invalidation by then are reported as missing by the root.
pub const SWEEP_DEADLINE_US: u64 = 8_000_000;

/// So much earlier for each hop away from the root, and so much later for who asked the root: whoever waits for a node hears
/// from it before giving up.
pub const SWEEP_HOP_US: u64 = 500_000;

/// The wait of the deepest nodes for theirs.
pub const SWEEP_DEADLINE_MIN_US: u64 = 3_000_000;

/// Distinct names that are missed in a directory before its listing is asked for. A Python package costs three misses
/// (`__init__` under the names that extensions have) and is listed afterwards: the third miss is answered by the listing.
pub const MISSES_MIN: usize = 2;

/// As many at most, where its listings did not pay.
pub const MISSES_MAX: usize = 48;

/// They lie within the TTL of ENOENT, or within this where that is shorter.
pub const MISS_WINDOW_MIN_US: u64 = 1_000_000;

/// Directories of which misses are counted.
pub const MISS_DIRS_MAX: usize = 4_096;

/// A listing that answers absent names has at most so many of them; larger directories are not listed for that.
pub const COMPLETE_NAMES_MAX: usize = 65_536;

/// And at most so many packed bytes.
pub const COMPLETE_BYTES_MAX: usize = 4 << 20;

/// A directory whose listing could not be had is asked for it again after this long.
pub const LISTING_PAUSE_US: u64 = 30_000_000;

/// The last of so many parts of an absence's TTL is told to no other node.
pub const ABSENT_TAIL_PARTS: u64 = 50;

/// That part is not longer than this: more than answers take through the tree.
pub const ABSENT_TAIL_US_MAX: u64 = 20_000;

/// A root lists a directory again after so many TTLs of ENOENT, though it seems not to have changed.
pub const RELIST_TTLS: u64 = 10;

/// Lookups wait for a listing that was asked for less than so long ago, and until then; then they are asked for themselves.
pub const LISTING_WAIT_US: u64 = 50_000;

/// Largest packed listing that a node accepts from a peer, bytes.
pub const LISTING_BYTES_MAX: usize = 1 << 30;

const _: () = {
    use super::wire::HEADER_BYTES;
    use crate::cache::types::AttrWire;
    assert!(HEADER_BYTES + PATH_BYTES_MAX + 64 <= FRAME_BYTES_MAX);
    assert!(HEADER_BYTES + size_of::<AttrWire>() + TARGET_BYTES_MAX + 64 <= FRAME_BYTES_MAX);
    assert!(READ_AHEAD_CHUNKS as usize <= AHEAD_MAX && AHEAD_MAX <= REQUESTS_AT_PARENT_MAX / 2);
    assert!(PENDING_US < RETRY_US);
    assert!(LISTING_WAIT_US < PENDING_US && LISTING_WAIT_US < MISS_WINDOW_MIN_US);
    assert!(MISSES_MIN <= MISSES_MAX);
    assert!(OWED_MAX < GRANTS_PER_PEER_MAX && OWED_US < GRANT_LEASE_US);
    assert!(CREDITS_MIN <= REQUESTS_AT_PARENT_MAX && REQUESTS_AT_PARENT_MAX < GRANTS_PER_PEER_MAX);
    assert!(DETECT_MIN_US <= DETECT_DEFAULT_US && DETECT_DEFAULT_US <= DETECT_MAX_US);
    // Somebody who is silent is greeted before it is given up.
    assert!(GREET_US < PROBE_PAUSE_MIN_US && GREET_AGAIN_US <= DETECT_MIN_US / 2);
    // Some heartbeats fit into the shortest time, and a node is given up before its requests fail.
    assert!(DETECT_MIN_US / HEARTBEATS_PER_DETECT > PROBE_PAUSE_MIN_US);
    assert!(DETECT_MAX_US + DETECT_MAX_US / HEARTBEATS_PER_DETECT < REQUEST_DEADLINE_US);
    assert!(HEARTBEAT_IDLE_US < SHARER_FORGOTTEN_US && SWEEPS_MAX >= 4 * super::topology::STRIPES_MAX as usize);
    assert!(SWEEP_RETRY_US * 2 < SWEEP_DEADLINE_MIN_US && SWEEP_DEADLINE_MIN_US < SWEEP_DEADLINE_US);
    assert!(SWEEP_HOP_US < SWEEP_RETRY_US);
    assert!(RETRY_US * 4 < REQUEST_DEADLINE_US);
    assert!(CLOCK_MARGIN_MIN_US <= CLOCK_MARGIN_MAX_US && CLOCK_MARGIN_MAX_US * 2 < REQUEST_DEADLINE_US);
    assert!(REQUEST_DEADLINE_US < GRANT_LEASE_US);
    assert!(PROBE_PAUSE_MIN_US < PROBE_PAUSE_MAX_US && PROBE_PAUSE_MAX_US < PROBE_BUDGET_US);
};
