//! The port: one endpoint with everything that belongs to it, and the calls that the engine thread makes.
//!
//! Owned and driven by one thread at a time (FI_THREAD_DOMAIN). The parts: `open` builds it, `post` starts operations,
//! `complete` hands out what came, `wait` sleeps, `operations` knows what is under way and how long it may take, `objects`
//! holds libfabric's objects and closes them in order.

mod close;
mod complete;
mod names;
mod objects;
mod open;
mod operations;
mod post;
mod queue;
mod shared;
mod strict;
mod wait;

pub(crate) use open::{address_text, preview};

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use libfabric_sys as sys;
use libfabric_sys::Library;
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::address::Address;
use crate::error::Error;
use crate::info::Facts;
use crate::net::Net;
use crate::provider::Provider;
use objects::Objects;
use operations::{Millis, Operations};
use queue::Sleeper;
pub use shared::Shared;
pub use strict::Strict;
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
    /// Sends under way at a time; beyond that [`crate::Post::Again`]. One peer gets a quarter of them at most.
    pub sends: usize,
    /// Reads under way at a time; beyond that [`crate::Post::Again`]. One peer gets a quarter of them at most.
    pub reads: usize,
    /// How long a send may take before it ends with [`crate::Code::TimedOut`].
    pub send_timeout: Duration,
    /// How long a read may take before it ends with [`crate::Code::TimedOut`].
    pub read_timeout: Duration,
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
            send_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(10),
            peers: 1024,
            spin: Duration::from_micros(30),
            strict: None,
        }
    }
}

/// A peer that was inserted; valid for the port that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    address: sys::fi_addr_t,
    /// Counts this port's peers.
    index: u32,
}

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
        /// How it ended. [`crate::Code::TimedOut`]: the peer took too long and may still get the frame.
        result: Result<(), Error>,
        /// The frame, to send it again, when it ended in an error other than its timeout; else empty.
        frame: &'a [u8],
    },
    /// A read ended; with `Ok` all bytes are in place. With an error any of them may have changed.
    Read {
        /// The caller's token.
        token: u64,
        /// How it ended. [`crate::Code::TimedOut`]: the destination may still be written, until [`Event::Released`].
        result: Result<(), Error>,
    },
    /// The destination of a read that timed out is the caller's again.
    Released {
        /// The caller's token.
        token: u64,
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
    /// Operations that ended by their timeout.
    pub timeouts: u64,
    /// Operations that have timed out and that the provider has not given back yet.
    pub quarantined: u64,
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
    strict: Option<strict::Faults>,
    opened: Timespec,

    peers: HashMap<Address, Peer>,
    peers_by_name: HashMap<Vec<u8>, Peer>,

    /// Whether the provider has each receive. Their contexts come first, then those of sends and reads.
    receives_posted: Vec<bool>,
    /// Receives that the provider had no room for.
    unposted: VecDeque<u32>,
    /// The sends and reads.
    operations: Operations,
    /// Operations that ended at once, waiting for the next poll.
    finished: VecDeque<Finished>,
    /// How many of them are injected sends, which have no context: each has the place of one all the same, which bounds
    /// them.
    injected: usize,
    /// Strict mode: completions that are handed out later.
    held: Vec<(u32, Result<(), Error>)>,
    batch: Batch,
    /// The last look at the queue found it empty, and nothing was posted since.
    drained: bool,
    /// The last look found less than a batch.
    partial: bool,
    receive_errors_in_row: usize,
    /// The completion queue or all receives are broken; [`Port::wait`] says so.
    broken: Option<Error>,
    closing: bool,
    lately: wait::Lately,
    counters: Counters,
}

/// An operation that ended before it could have a completion.
#[derive(Debug)]
enum Finished {
    Injected { token: u64 },
    Refused { index: u32, error: Error },
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
        self.receives_posted.iter().filter(|posted| **posted).count()
    }

    /// Counts since the port was opened.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters { quarantined: self.operations.quarantined() as u64, ..self.counters }
    }

    /// The time, by a clock that is cheap to read and moves every few milliseconds (clock_gettime(2)).
    fn now(&self) -> Millis {
        let now = clock_gettime(ClockId::MonotonicCoarse);
        let seconds = now.tv_sec.saturating_sub(self.opened.tv_sec);
        let millis = seconds.saturating_mul(1000).saturating_add((now.tv_nsec - self.opened.tv_nsec) / 1_000_000);
        Millis::try_from(millis).unwrap_or(0)
    }

    /// Sends and reads that have no event yet.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.operations.outstanding() + self.injected
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
