//! The table of counters: every number a daemon reports has its name, unit and meaning here and nowhere else.
//!
//! The runtime adds and sets, readers take a [`Snapshot`]. Every access is relaxed: counters tell how often something
//! happened, they never order anything, and two counters of one snapshot may be a few events apart.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a counter's value is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Events or things, counted one by one.
    Count,
    /// Bytes.
    Bytes,
    /// Microseconds.
    Microseconds,
}

impl Unit {
    /// The unit as reports print it.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Count => "count",
            Unit::Bytes => "bytes",
            Unit::Microseconds => "us",
        }
    }
}

/// How a counter moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; the difference of two snapshots is meaningful.
    Total,
    /// A present value, or the largest so far; only the later of two snapshots is meaningful.
    Gauge,
}

macro_rules! counters {
    ($($variant:ident $name:ident $unit:ident $kind:ident $help:literal;)*) => {
        /// One number of the table. The discriminant is its position.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Counter { $(#[doc = $help] $variant,)* }

        impl Counter {
            /// Every counter, in the order of the table.
            pub const ALL: &'static [Counter] = &[$(Counter::$variant,)*];

            /// The name that reports use (snake case, stable).
            pub fn name(self) -> &'static str {
                match self { $(Counter::$variant => stringify!($name),)* }
            }

            /// What the value is measured in.
            pub fn unit(self) -> Unit {
                match self { $(Counter::$variant => Unit::$unit,)* }
            }

            /// How the value moves.
            pub fn kind(self) -> Kind {
                match self { $(Counter::$variant => Kind::$kind,)* }
            }

            /// One sentence on what is counted.
            pub fn help(self) -> &'static str {
                match self { $(Counter::$variant => $help,)* }
            }
        }
    };
}

counters! {
    FuseLookup fuse_lookup Count Total "LOOKUP requests of the kernel that reached the daemon.";
    FuseGetattr fuse_getattr Count Total "GETATTR requests of the kernel that reached the daemon.";
    FuseRead fuse_read Count Total "READ requests of the kernel that reached the daemon.";
    FuseReaddir fuse_readdir Count Total "READDIR requests of the kernel that reached the daemon.";
    FuseReadlink fuse_readlink Count Total "READLINK requests of the kernel that reached the daemon.";
    FuseStatfs fuse_statfs Count Total "STATFS requests of the kernel that reached the daemon.";
    FuseForget fuse_forget Count Total "FORGET and BATCH_FORGET requests of the kernel.";
    FuseOpen fuse_open Count Total "OPEN requests; the kernel stops sending them after the first, unless files are passed through.";
    FuseOpendir fuse_opendir Count Total "OPENDIR requests; the kernel stops sending them after the first.";
    FuseIoctl fuse_ioctl Count Total "IOCTL requests of the kernel.";
    FuseOther fuse_other Count Total "Requests of the kernel of any other kind.";
    PassthroughOpens passthrough_opens Count Total "Opens whose bytes the kernel reads from memory by itself.";
    PassthroughPlainOpens passthrough_plain_opens Count Total "Opens on a mount that passes files through that were not passed through.";
    PassthroughFiles passthrough_files Count Gauge "Files kept in memory for passing through.";
    PassthroughEvicted passthrough_evicted Count Total "Such files that went to make room for others.";
    PassthroughBytes passthrough_bytes Bytes Gauge "Memory of such files.";
    PassthroughBytesCapacity passthrough_bytes_capacity Bytes Gauge "The bound of that memory; 0 where files are not passed through.";
    RequestsFromPeersAttr requests_from_peers_attr Count Total "Attribute and lookup requests that other nodes sent here.";
    RequestsFromPeersList requests_from_peers_list Count Total "Listing requests that other nodes sent here.";
    RequestsFromPeersChunk requests_from_peers_chunk Count Total "Chunk requests that other nodes sent here.";
    RequestsFromPeersStatfs requests_from_peers_statfs Count Total "Statfs requests that other nodes sent here.";
    RequestsFromPeersProbe requests_from_peers_probe Count Total "Readiness probes that other nodes sent here.";
    RequestsToParent requests_to_parent Count Total "Requests that this node sent to its parent, or to others in its place.";
    ProbesToParent probes_to_parent Count Total "Probes that this node sent to its parent, or to others in its place.";
    Heartbeats heartbeats Count Total "Probes that were heartbeats: of a node that is asked, to know that it lives.";
    ProbesUnanswered probes_unanswered Count Total "Probes of a node that was looked for that had no answer: it was unreachable.";
    ProbesNotServing probes_not_serving Count Total "Probes of a node that was looked for that it answered, but did not serve yet.";
    ParentsConfirmed parents_confirmed Count Total "Times that a node that was looked for said that it serves.";
    Suspicions suspicions Count Total "Nodes that were suspected because they were silent.";
    Failovers failovers Count Total "Nodes that were given up, and another one or the backend asked instead.";
    AskedAgain asked_again Count Total "Requests that were asked again elsewhere because a node was given up or started again.";
    Substitutes substitutes Count Gauge "Trees in which this node asks the backend in place of nodes that do not answer.";
    RateLimited rate_limited Count Total "Times that requests waited because this node is cut off and asks the backend slowly.";
    FramesSent frames_sent Count Total "Frames handed to the fabric.";
    FramesReceived frames_received Count Total "Frames that arrived from the fabric.";
    FramesDropped frames_dropped Count Total "Frames dropped as undecodable, foreign or out of session.";
    FabricTimeouts fabric_timeouts Count Total "Sends and reads that a peer did not take in time.";
    FabricQuarantined fabric_quarantined Count Gauge "Late sends and reads that libfabric has not given back yet.";
    FabricPeers fabric_peers Count Gauge "Nodes that were put into the address vector: those that this one has sent something.";
    FramesForeign frames_foreign Count Total "Frames dropped because their sender has another book or other trees.";
    ReadsFromParent reads_from_parent Count Total "Remote reads (fi_read) of the parent's memory.";
    ReadBytesFromParent read_bytes_from_parent Bytes Total "Bytes fetched by remote reads from the parent's memory.";
    BackendLookup backend_lookup Count Total "Lookups on the backend filesystem, found or not.";
    BackendEnoent backend_enoent Count Total "Lookups on the backend that found no such name.";
    BackendOpen backend_open Count Total "Files opened on the backend.";
    BackendRead backend_read Count Total "Read calls on the backend.";
    BackendReadBytes backend_read_bytes Bytes Total "Bytes read from the backend.";
    BackendFstat backend_fstat Count Total "Calls of fstat on files and directories open on the backend.";
    BackendList backend_list Count Total "Directories listed on the backend.";
    BackendReadlink backend_readlink Count Total "Symbolic links read on the backend.";
    BackendStatfs backend_statfs Count Total "Calls of statfs on the backend.";
    BackendErrors backend_errors Count Total "Backend operations that failed with anything but ENOENT.";
    EnoentStores enoent_stores Count Total "Absent names stored in the TTL map.";
    EnoentServes enoent_serves Count Total "Lookups answered as absent from the TTL map.";
    EnoentExpires enoent_expires Count Total "Entries of the TTL map found past their time to live.";
    EnoentClears enoent_clears Count Total "Entries of the TTL map cleared because the name was found.";
    EnoentRaced enoent_raced Count Total "Stores into the TTL map refused because the name changed meanwhile.";
    EnoentFull enoent_full Count Total "Stores into the TTL map refused for lack of room.";
    EnoentRotations enoent_rotations Count Total "Times that the TTL map began a new generation of entries.";
    EnoentStaleCompleted enoent_stale_completed Count Total "Requests for names known as absent before, asked again as their time to live was over.";
    NamesHits names_hits Count Total "Lookups and attribute requests answered from the names in memory.";
    ListingHits listing_hits Count Total "Listings answered from memory.";
    ListingServes listing_serves Count Total "Lookups answered as absent from a complete listing.";
    ListingsWanted listings_wanted Count Total "Listings asked for because several names were missed in a directory.";
    ListingsRenewed listings_renewed Count Total "Listings whose time began anew because the directory had not changed.";
    ListingsVoided listings_voided Count Total "Listings dropped because a name was found that they lack.";
    ChunkHits chunk_hits Count Total "Reads answered from chunks in memory.";
    FlightsJoined flights_joined Count Total "Requests that joined one already under way for the same object.";
    Retries retries Count Total "Requests sent again.";
    Timeouts timeouts Count Total "Requests that passed their deadline.";
    BadChecksums bad_checksums Count Total "Chunks whose bytes did not match their checksum.";
    Rechecks rechecks Count Total "Comparisons of a file's bytes with what was read of it before, because its change time moved.";
    LeasesEnded leases_ended Count Total "Grants taken back because the child did not release them in time.";
    AuthRefused auth_refused Count Total "Frames dropped because their sender has not shown the job's secret.";
    AuthReplayed auth_replayed Count Total "Hellos dropped because they had come before.";
    GrantsTaken grants_taken Count Total "Grants taken back because one child held too many.";
    RepliesEio replies_eio Count Total "Replies of EIO to the kernel.";
    CacheBytesCapacity cache_bytes_capacity Bytes Gauge "Upper bound of the chunk memory (--cache-size).";
    CacheBytesMapped cache_bytes_mapped Bytes Gauge "Chunk memory mapped so far.";
    CacheBytesPrefaulted cache_bytes_prefaulted Bytes Gauge "Chunk memory whose pages were made present before their use.";
    CacheBytesUsed cache_bytes_used Bytes Gauge "Chunk memory that holds file data.";
    CacheBytesPinned cache_bytes_pinned Bytes Gauge "Chunk memory in use that cannot be evicted now: being filled, or being sent.";
    Chunks chunks Count Gauge "Chunks in memory.";
    ChunksEvicted chunks_evicted Count Total "Chunks evicted to make room.";
    ChunksAhead chunks_ahead Count Total "Chunks requested ahead of clients that read in order.";
    ChunksAheadHit chunks_ahead_hit Count Total "Chunks that came before anybody asked for them, and were used then.";
    ChunksAheadWasted chunks_ahead_wasted Count Total "Chunks that came before anybody asked for them, and went unused.";
    ChunksAheadDropped chunks_ahead_dropped Count Total "Chunks not fetched ahead because memory or the line was short.";
    Foreseen foreseen Count Total "Names requested before a client asked for them, by what was learnt of clients.";
    ForeseenWasted foreseen_wasted Count Total "Those of them that no client had come for when they were judged.";
    ChunksInFlightMax chunks_in_flight_max Count Gauge "Most chunks that were requested upstream at one moment.";
    Inodes inodes Count Gauge "Inodes in memory.";
    NamesBytesCapacity names_bytes_capacity Bytes Gauge "Bound of the memory of names (--names-size).";
    NamesBytes names_bytes Bytes Gauge "Memory of inodes, listings and their tables.";
    NamesDropped names_dropped Count Total "Inodes dropped to make room among the names.";
    NamesReleased names_released Count Total "Names that the kernel was asked to let go of, to make room.";
    EngineTurns engine_turns Count Total "Turns of the engine thread.";
    EngineTurnUsMax engine_turn_us_max Microseconds Gauge "Longest turn of whoever looked after the engine.";
    StartupUsLibrary startup_us_library Microseconds Gauge "Start-up: loading libfabric.";
    StartupUsFabric startup_us_fabric Microseconds Gauge "Start-up: provider, endpoint and address vector.";
    StartupUsMount startup_us_mount Microseconds Gauge "Start-up: mount and the kernel's handshake.";
    StartupUsRegistration startup_us_registration Microseconds Gauge "Start-up: from the start of the daemon until peers can reach it.";
    StartupUsParent startup_us_parent Microseconds Gauge "Start-up: from then until a node that may be asked serves; 0 before.";
    StartupUsTotal startup_us_total Microseconds Gauge "Start-up: from the start of the daemon until it is mounted.";
}

impl Counter {
    /// Whether it counts requests of the kernel.
    pub fn is_kernel_request(self) -> bool {
        self.name().starts_with("fuse_")
    }

    /// Whether it counts requests of other nodes, probes left out.
    pub fn is_peer_request(self) -> bool {
        self.name().starts_with("requests_from_peers_") && self != Counter::RequestsFromPeersProbe
    }

    /// Whether it counts operations on the backend, each once.
    pub fn is_backend_operation(self) -> bool {
        use Counter::{BackendEnoent, BackendErrors, BackendReadBytes};
        self.name().starts_with("backend_") && ![BackendEnoent, BackendErrors, BackendReadBytes].contains(&self)
    }

    /// The counter of that name, if the table has one.
    pub fn from_name(name: &str) -> Option<Counter> {
        Counter::ALL.iter().copied().find(|counter| counter.name() == name)
    }
}

const COUNT: usize = Counter::ALL.len();

/// The live counters of one daemon. Shared by reference between threads; each counter has its own cache line.
#[derive(Debug)]
pub struct Counters {
    values: [CachePadded<AtomicU64>; COUNT],
}

impl Counters {
    /// All counters at zero.
    pub fn new() -> Counters {
        Counters { values: std::array::from_fn(|_| CachePadded::new(AtomicU64::new(0))) }
    }

    /// Adds `amount` (wraps at 2^64).
    pub fn add(&self, counter: Counter, amount: u64) {
        self.values[counter as usize].fetch_add(amount, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn increment(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Replaces the value: for gauges, and for totals that another part counts itself.
    pub fn set(&self, counter: Counter, value: u64) {
        self.values[counter as usize].store(value, Ordering::Relaxed);
    }

    /// Raises the value to `value` if that is larger: for gauges of the largest so far.
    pub fn raise(&self, counter: Counter, value: u64) {
        self.values[counter as usize].fetch_max(value, Ordering::Relaxed);
    }

    /// The present value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize].load(Ordering::Relaxed)
    }

    /// A copy of all values. Not atomic over the table.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { values: std::array::from_fn(|at| self.values[at].load(Ordering::Relaxed)) }
    }
}

impl Default for Counters {
    fn default() -> Self {
        Counters::new()
    }
}

/// The values of one moment. In JSON it is an object of name to number, in the order of the table; unknown names are
/// ignored and missing ones are zero when read, so that programs of different versions understand each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    values: [u64; COUNT],
}

impl Snapshot {
    /// A snapshot with every value zero.
    pub fn zero() -> Snapshot {
        Snapshot { values: [0; COUNT] }
    }

    /// The value of one counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize]
    }

    /// All counters with their values, in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> + '_ {
        Counter::ALL.iter().map(|&counter| (counter, self.get(counter)))
    }

    /// What happened since `earlier`: totals as differences (zero if the daemon was restarted in between and counts
    /// less now), gauges as they are in `self`.
    pub fn since(&self, earlier: &Snapshot) -> Snapshot {
        let mut values = self.values;
        for &counter in Counter::ALL {
            if counter.kind() == Kind::Total {
                values[counter as usize] = self.get(counter).saturating_sub(earlier.get(counter));
            }
        }
        Snapshot { values }
    }
}

impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(COUNT))?;
        for (counter, value) in self.iter() {
            map.serialize_entry(counter.name(), &value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Snapshot {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values;
        impl<'de> Visitor<'de> for Values {
            type Value = Snapshot;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of counter names to numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Snapshot, A::Error> {
                let mut snapshot = Snapshot::zero();
                while let Some((name, value)) = map.next_entry::<String, u64>()? {
                    if let Some(counter) = Counter::from_name(&name) {
                        snapshot.values[counter as usize] = value;
                    }
                }
                Ok(snapshot)
            }
        }
        deserializer.deserialize_map(Values)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn positions_and_names_are_unique_and_snake_case() {
        let mut names = HashSet::new();
        for (position, &counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(counter as usize, position);
            assert!(names.insert(counter.name()), "{} stands twice", counter.name());
            assert!(counter.name().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{}", counter.name());
            assert!(counter.help().ends_with('.'), "{}", counter.name());
            assert_eq!(Counter::from_name(counter.name()), Some(counter));
        }
    }

    #[test]
    fn names_with_units_say_so() {
        for &counter in Counter::ALL {
            let bytes = counter.name().contains("bytes");
            assert_eq!(bytes, counter.unit() == Unit::Bytes, "{}", counter.name());
            let micros = counter.name().contains("_us");
            assert_eq!(micros && !bytes, counter.unit() == Unit::Microseconds, "{}", counter.name());
        }
    }

    #[test]
    fn threads_add_without_loss() {
        let counters = Arc::new(Counters::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..1000 {
                        counters.increment(Counter::FuseLookup);
                        counters.raise(Counter::EngineTurnUsMax, round);
                    }
                });
            }
        });
        assert_eq!(counters.get(Counter::FuseLookup), 4000);
        assert_eq!(counters.get(Counter::EngineTurnUsMax), 999);
    }

    #[test]
    fn since_subtracts_totals_and_keeps_gauges() {
        let counters = Counters::new();
        counters.add(Counter::BackendRead, 5);
        counters.set(Counter::Chunks, 7);
        let earlier = counters.snapshot();
        counters.add(Counter::BackendRead, 3);
        counters.set(Counter::Chunks, 4);
        let difference = counters.snapshot().since(&earlier);
        assert_eq!(difference.get(Counter::BackendRead), 3);
        assert_eq!(difference.get(Counter::Chunks), 4);
        assert_eq!(earlier.since(&counters.snapshot()).get(Counter::BackendRead), 0);
    }

    #[test]
    fn json_round_trips_and_tolerates_other_versions() {
        let counters = Counters::new();
        counters.add(Counter::Inodes, u64::MAX);
        let snapshot = counters.snapshot();
        let text = serde_json::to_string(&snapshot).unwrap();
        assert!(text.starts_with("{\"fuse_lookup\":0,"), "{text}");
        assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), snapshot);
        let other: Snapshot = serde_json::from_str("{\"inodes\": 3, \"from_the_future\": 1}").unwrap();
        assert_eq!(other.get(Counter::Inodes), 3);
        assert_eq!(other.get(Counter::Chunks), 0);
    }
}
