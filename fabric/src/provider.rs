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
    /// The completion queue has a descriptor; sleep at most `cap` on it before the queue is read again.
    Descriptor { cap: Duration },
    /// It has none: read the queue, sleeping up to `nap` in between.
    Polling { nap: Duration },
}

/// A row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Provider {
    /// The names that libfabric may know it by, in order of preference. Names match exactly: `net` is not `net;ofi_rxm`.
    pub(crate) names: Cow<'static, [Cow<'static, str>]>,
    /// What addresses call it; nothing: the name that libfabric used.
    pub(crate) scheme: Option<&'static str>,
    /// How its addresses look.
    pub(crate) format: AddressFormat,
    /// How to sleep.
    pub(crate) wait: WaitKind,
}

/// A wait descriptor that is trusted: the cap is only a guard against a lost wake-up.
const TRUSTED: WaitKind = WaitKind::Descriptor { cap: Duration::from_secs(1) };

impl Provider {
    /// The row for `net`.
    pub(crate) fn of(net: &Net) -> Provider {
        let row = |names: &'static [Cow<'static, str>], scheme, format, wait| Provider {
            names: Cow::Borrowed(names),
            scheme,
            format,
            wait,
        };
        match net {
            // The descriptor is right only since 2.1 and progress is manual: without a read of the queue every few milliseconds
            // a rendezvous may stand still.
            Net::Cxi { .. } => row(
                &[Cow::Borrowed("cxi")],
                Some("cxi"),
                AddressFormat::Cxi,
                WaitKind::Descriptor { cap: Duration::from_millis(10) },
            ),
            // `net` in 1.15 to 1.17 and `tcp` in 2.x are one code and one protocol, hence one name in addresses.
            Net::Tcp => row(&[Cow::Borrowed("net"), Cow::Borrowed("tcp")], Some("tcp"), AddressFormat::Inet, TRUSTED),
            // No descriptor at all (fi_cq_open answers ENOSYS).
            Net::Shm => row(
                &[Cow::Borrowed("shm")],
                Some("shm"),
                AddressFormat::Shm,
                WaitKind::Polling { nap: Duration::from_millis(1) },
            ),
            // Its own thread makes progress; slow (7 to 17 ms a message on few cores) and unmaintained.
            Net::Sockets => row(&[Cow::Borrowed("sockets")], Some("sockets"), AddressFormat::Inet, TRUSTED),
            // The name of the good provider before 2.x, asked for outright.
            Net::Provider(name) if name == "net" => {
                row(&[Cow::Borrowed("net")], Some("tcp"), AddressFormat::Inet, TRUSTED)
            }
            // tcp;ofi_rxm, verbs;ofi_rxm and what else takes socket addresses. tcp;ofi_rxm costs 70 MB an endpoint.
            Net::Provider(name) => Provider {
                names: Cow::Owned(vec![Cow::Owned(name.clone())]),
                scheme: None,
                format: AddressFormat::Inet,
                wait: TRUSTED,
            },
        }
    }
}
