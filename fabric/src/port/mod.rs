//! The port: one endpoint with everything that belongs to it, and the calls that the engine thread makes.
//!
//! Owned and driven by one thread at a time (FI_THREAD_DOMAIN). The parts: `open` builds it, `post` starts operations,
//! `complete` hands out what came, `wait` sleeps, `objects` holds libfabric's objects and closes them in order.

mod close;
mod complete;
mod names;
mod objects;
mod open;
mod post;
mod queue;
mod wait;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use libfabric_sys as sys;
use libfabric_sys::Library;

use crate::address::Address;
use crate::error::Error;
use crate::info::Facts;
use crate::net::Net;
use crate::provider::Provider;
use objects::Objects;
use queue::Sleeper;
pub use wait::{Sleep, Slept};

/// What a port is to be.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// The network.
    pub net: Net,
    /// The address to bind: this node's own book entry. Nothing: any port or PID, on `host`.
    pub bind: Option<Address>,
    /// Where addresses have hosts: the local host, numeric or by name, or the interface (`hsn0`) to bind when `bind` is
    /// absent. Nothing: 127.0.0.1. The wildcard is refused.
    pub host: Option<String>,
    /// The longest frame, in bytes, of this port and of all its peers (a longer one is lost at the receiver).
    pub frame_bytes_max: usize,
    /// Receives kept posted: at least the sum of the credits given to peers. Some providers take fewer at a time.
    pub receives: usize,
    /// Sends under way at a time; beyond that [`crate::Post::Again`].
    pub sends: usize,
    /// Reads under way at a time; beyond that [`crate::Post::Again`].
    pub reads: usize,
    /// Peers expected; more are possible.
    pub peers: usize,
    /// How long [`Port::wait`] reads the queue before it sleeps. Ignored with one CPU.
    pub spin: Duration,
    /// The rules of cxi and faults, on any provider; for tests.
    pub strict: Option<Strict>,
}

impl PortConfig {
    /// A port on `net` with everything else at its default: 16,384-byte frames, 256 receives and sends, 64 reads.
    #[must_use]
    pub fn new(net: Net) -> PortConfig {
        PortConfig {
            net,
            bind: None,
            host: None,
            frame_bytes_max: 16_384,
            receives: 256,
            sends: 256,
            reads: 64,
            peers: 1024,
            spin: Duration::from_micros(30),
            strict: None,
        }
    }
}

/// cxi's rules on any provider: keys use all 64 bits (bit 63 set), messages are injected up to 192 bytes only. Posts
/// fail now and then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strict {
    /// Every so many posts answer [`crate::Post::Again`]; 0: none.
    pub again_every: u32,
    /// Every so many operations are not started and end in an error event; 0: none.
    pub fail_every: u32,
}

/// A peer that was inserted; valid for the port that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer(sys::fi_addr_t);

/// A registered region, valid for the port that made it. Cloning does not register again; the memory stays registered
/// until
/// [`Port::deregister`] or the close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    key: u64,
    len: usize,
    index: usize,
    port: u64,
}

impl Region {
    /// The key as it must go on the wire: 64 bits, all of them significant.
    #[must_use]
    pub fn key(&self) -> u64 {
        self.key
    }

    /// Bytes registered. Offsets of reads count from the region's first byte, on both sides.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has no bytes; registering none is refused, so never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What [`Port::poll`] hands out.
#[derive(Debug)]
pub enum Event<'a> {
    /// A frame from some peer; it must say itself from whom. Gone when the sink returns. Frames of one peer come in its
    /// order.
    Frame(&'a [u8]),
    /// A send ended. `Ok` says that the provider has taken the frame, not that the peer has it.
    Sent {
        /// The caller's token.
        token: u64,
        /// How it ended.
        result: Result<(), Error>,
    },
    /// A read ended; with `Ok` all bytes are in place. With an error any of them may have changed.
    Read {
        /// The caller's token.
        token: u64,
        /// How it ended.
        result: Result<(), Error>,
    },
}

/// Why [`Port::wait`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// There is something to poll; the extra descriptor was not looked at.
    Fabric,
    /// The extra descriptor is readable.
    Extra,
    /// Neither, until the timeout.
    Timeout,
}

/// Counts since the port was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Frames handed out.
    pub frames_received: u64,
    /// Sends started.
    pub sends: u64,
    /// Reads started.
    pub reads: u64,
    /// Posts that answered [`crate::Post::Again`].
    pub again: u64,
    /// Receives that ended in an error (a truncated frame, a broken connection).
    pub receive_errors: u64,
    /// Completions that belong to no operation of this port.
    pub unknown_completions: u64,
    /// Times that [`Port::wait`] slept.
    pub sleeps: u64,
    /// Times that the queue's descriptor was readable and the queue was empty: a part of something larger, or a peer
    /// that reads.
    pub fruitless_wakes: u64,
}

/// One endpoint (FI_EP_RDM) with its fabric, domain, address vector, completion queue, memory regions, posted receives
/// and operation contexts.
///
/// It may move to another thread but not be shared:
/// ```
/// fn movable<T: Send>() {}
/// movable::<bornite_fabric::Port>();
/// ```
/// ```compile_fail,E0277
/// fn shareable<T: Sync>() {}
/// shareable::<bornite_fabric::Port>();
/// ```
///
/// Dropping it closes it as [`Port::close`] does, with a deadline of 100 ms.
pub struct Port {
    library: &'static Library,
    /// Everything that libfabric made, and the memory that it may touch.
    objects: Objects,
    row: Provider,
    facts: Facts,
    /// The provider as addresses write it.
    scheme: String,
    address: Address,
    /// The bound address as libfabric writes it.
    name: Vec<u8>,
    sleeper: Sleeper,
    /// Tells this port's regions from another's.
    id: u64,

    frame_bytes_max: usize,
    /// Bytes from one frame to the next in the slabs.
    stride: usize,
    receives: usize,
    inject_bytes_max: usize,
    spin: Duration,
    strict: Option<Strict>,
    /// Calls to post, for strict mode's refusals.
    posts: u32,
    /// Operations accepted, for strict mode's faults.
    operations: u32,

    peers: HashMap<Address, Peer>,
    peers_by_name: HashMap<Vec<u8>, Peer>,

    /// One entry per context: the receives, then the sends, then the reads.
    slots: Vec<Slot>,
    free_sends: Vec<u32>,
    free_reads: Vec<u32>,
    /// Receives that the provider had no room for.
    unposted: VecDeque<u32>,
    /// Operations that ended at once (injected sends, faults of strict mode), waiting for the next poll. Each occupies
    /// a credit of its kind, which bounds it.
    finished: VecDeque<Finished>,
    sends_finished: usize,
    reads_finished: usize,
    sends_max: usize,
    batch: Batch,
    receive_errors_in_row: usize,
    /// The completion queue or all receives are broken; [`Port::wait`] says so.
    broken: Option<Error>,
    closing: bool,
    lately: wait::Lately,
    counters: Counters,
}

/// The state of one context.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    posted: bool,
    token: u64,
    /// Reads: the index of the destination's region.
    region: usize,
}

/// An operation that ended before it could have a completion.
#[derive(Debug)]
enum Finished {
    Sent { token: u64, result: Result<(), Error> },
    Read { token: u64, result: Result<(), Error> },
}

/// Completions that were read and not yet handed out.
struct Batch {
    entries: Box<[sys::fi_cq_msg_entry; BATCH]>,
    at: usize,
    len: usize,
    /// A completion in error, which the queue gives one at a time. It comes after the entries.
    failure: Option<Failure>,
}

/// Completions read at a time.
const BATCH: usize = 64;

/// A completion in error.
#[derive(Debug)]
struct Failure {
    /// The address of the operation's context.
    context: usize,
    error: Error,
}

// SAFETY: libfabric's objects belong to no thread; FI_THREAD_DOMAIN asks that one thread at a time uses a domain, which
// holds since every call takes the port by `&mut` and the port is not Sync. What `keep` holds is Send.
#[allow(unsafe_code, reason = "raw pointers are not Send by themselves")]
unsafe impl Send for Port {}

impl Port {
    /// The real bound address.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The provider's name, as libfabric has it (`net`, `tcp`, `tcp;ofi_rxm`, `cxi`, …).
    #[must_use]
    pub fn provider(&self) -> &str {
        &self.facts.provider
    }

    /// The longest frame, in bytes.
    #[must_use]
    pub fn frame_bytes_max(&self) -> usize {
        self.frame_bytes_max
    }

    /// Receives that are posted now; fewer than configured where the provider takes fewer at a time.
    #[must_use]
    pub fn receives_posted(&self) -> usize {
        self.slots[..self.receives].iter().filter(|slot| slot.posted).count()
    }

    /// Counts since the port was opened.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Sends and reads that have no event yet.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        let slots = self.slots.len() - self.receives;
        slots - self.free_sends.len() - self.free_reads.len() + self.finished.len()
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("address", &self.address)
            .field("provider", &self.facts.provider)
            .field("outstanding", &self.outstanding())
            .finish_non_exhaustive()
    }
}
