//! The provider table: one row per provider, with what is special about it and why.
//!
//! Everything else is the same for all: the hints in `info.rs` fit cxi and the tcp providers alike.

use std::borrow::Cow;
use std::time::Duration;

use crate::net::Net;

/// How a provider's addresses look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressFormat {
    /// The NIC's word, with a VNI where the provider asks for 8 bytes.
    Cxi,
    /// `sockaddr_in` or `sockaddr_in6`.
    Inet,
    /// `fi_shm://name`.
    Shm,
}

/// How a port sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitKind {
    /// The queue's single descriptor is not to be trusted, those that it is made of are; `cap` as below.
    PollSet { cap: Duration },
    /// The completion queue has a descriptor; sleep at most `cap` on it before the queue is read again.
    Descriptor { cap: Duration },
    /// It has none: read the queue, sleeping up to `nap` in between.
    Polling { nap: Duration },
}

/// A row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Provider {
    /// The names that libfabric may know it by, in order of preference. Names match exactly: `net` is not
    /// `net;ofi_rxm`.
    pub(crate) names: Cow<'static, [Cow<'static, str>]>,
    /// What addresses call it; nothing: the name that libfabric used.
    pub(crate) scheme: Option<&'static str>,
    /// How its addresses look.
    pub(crate) format: AddressFormat,
    /// How to sleep.
    pub(crate) wait: WaitKind,
    /// Progress by the provider's own thread instead of by polling.
    pub(crate) automatic_progress: bool,
    /// The most peers that may be announced when the address vector is opened.
    pub(crate) peers_max: usize,
}

/// The cap where descriptors are trusted: only a guard against a lost wake-up.
const GUARD: Duration = Duration::from_secs(1);

/// The plain row: what every provider is until something speaks against it.
const PLAIN: Provider = Provider {
    names: Cow::Borrowed(&[]),
    scheme: None,
    format: AddressFormat::Inet,
    wait: WaitKind::Descriptor { cap: GUARD },
    automatic_progress: false,
    peers_max: usize::MAX,
};

impl Provider {
    /// The row for `net`.
    pub(crate) fn of(net: &Net) -> Provider {
        const fn name(name: &'static str) -> Cow<'static, str> {
            Cow::Borrowed(name)
        }
        match net {
            // The descriptor is right only since 2.1 and progress is manual: without a read of the queue every few
            // milliseconds a rendezvous may stand still.
            Net::Cxi { .. } => Provider {
                names: Cow::Borrowed(const { &[name("cxi")] }),
                scheme: Some("cxi"),
                format: AddressFormat::Cxi,
                wait: WaitKind::Descriptor { cap: Duration::from_millis(10) },
                ..PLAIN
            },
            // `net` in 1.15 to 1.17 and `tcp` in 2.x are one code and one protocol, hence one name in addresses. The
            // queue's descriptor stays readable from the first completion on (1.17: fi_trywait does nothing), see
            // `poll_set`.
            Net::Tcp => Provider {
                names: Cow::Borrowed(const { &[name("net"), name("tcp")] }),
                scheme: Some("tcp"),
                wait: WaitKind::PollSet { cap: GUARD },
                ..PLAIN
            },
            // No descriptor at all (fi_cq_open answers ENOSYS), and 256 peers (fi_av_open answers ENOSYS beyond).
            Net::Shm => Provider {
                names: Cow::Borrowed(const { &[name("shm")] }),
                scheme: Some("shm"),
                format: AddressFormat::Shm,
                wait: WaitKind::Polling { nap: Duration::from_millis(1) },
                peers_max: 256,
                ..PLAIN
            },
            // It gives its descriptor only with its own progress thread (FI_GETWAIT answers ENOSYS otherwise). Slow, 7
            // to 17 ms a message on few cores, and unmaintained.
            Net::Sockets => Provider {
                names: Cow::Borrowed(const { &[name("sockets")] }),
                scheme: Some("sockets"),
                automatic_progress: true,
                ..PLAIN
            },
            // The name of the good tcp provider before 2.x, asked for outright.
            Net::Provider(other) if other == "net" => Provider {
                names: Cow::Borrowed(const { &[name("net")] }),
                scheme: Some("tcp"),
                wait: WaitKind::PollSet { cap: GUARD },
                ..PLAIN
            },
            // tcp;ofi_rxm (70 MB an endpoint), verbs;ofi_rxm and what else takes socket addresses.
            Net::Provider(other) => Provider { names: Cow::Owned(vec![Cow::Owned(other.clone())]), ..PLAIN },
        }
    }
}
