//! The provider table: one row per provider, with what is special about it, why, and who says so.
//!
//! `open` goes by it, and `bornite doctor --fabric` prints it. Everything else is the same for all: the hints in
//! `info.rs` fit cxi and the tcp providers alike.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use libfabric_sys as sys;

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

impl fmt::Display for WaitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitKind::PollSet { cap } => write!(f, "poll on the network's descriptors, at most {cap:?} at a time"),
            WaitKind::Descriptor { cap } => write!(f, "poll on the queue's descriptor, at most {cap:?} at a time"),
            WaitKind::Polling { nap } => write!(f, "no descriptor: the queue is read every {nap:?}"),
        }
    }
}

/// A value of the table with why it is so and who says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told<T> {
    pub(crate) value: T,
    reason: &'static str,
    source: &'static str,
}

/// [`Told`], in short.
const fn told<T: Copy>(value: T, reason: &'static str, source: &'static str) -> Told<T> {
    Told { value, reason, source }
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The provider's exact name: `net` is not `net;ofi_rxm`.
    pub(crate) name: &'static str,
    /// What `--net` chooses it by.
    pub(crate) net: &'static str,
    /// What addresses call it; nothing: its name.
    pub(crate) scheme: Option<&'static str>,
    /// How its addresses look.
    pub(crate) format: AddressFormat,
    /// Capabilities and the like in the hints that this row changes: progress by the provider's own thread instead of by
    /// polling.
    pub(crate) automatic_progress: Told<bool>,
    /// What it demands of registered memory (FI_MR_*).
    pub(crate) mr_mode: Told<u64>,
    /// The longest message that it injects, in bytes, as recorded; fi_getinfo has the last word.
    pub(crate) inject_bytes: Told<usize>,
    /// The longest frame that travels in one go, in bytes; 0: any.
    pub(crate) eager_bytes: Told<usize>,
    /// The most peers that may be announced when the address vector is opened.
    pub(crate) peers_max: Told<usize>,
    /// How to sleep.
    pub(crate) wait: Told<WaitKind>,
    /// What else is to be known.
    quirks: &'static [(&'static str, &'static str)],
}

/// One line of a row, for a reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aspect {
    /// Of what.
    pub name: &'static str,
    /// The value.
    pub value: String,
    /// Why it is so.
    pub reason: &'static str,
    /// Who says so: a manual page, a source file, or "measured" with the version.
    pub source: &'static str,
}

/// The cap where descriptors are trusted: only a guard against a lost wake-up.
const GUARD: Duration = Duration::from_secs(1);

const NO_DEMANDS: Told<u64> = told(0, "offsets, and keys of our own choice", "measured, 1.17 and 2.6");
const ANY_PEERS: Told<usize> = told(usize::MAX, "the vector grows", "measured with 10,000 addresses, 1.17");
const MANUAL: Told<bool> = told(false, "no thread beside ours: whoever drives the port polls", "fi_domain(3)");
const IN_PIECES: Told<usize> = told(0, "a stream: messages of any length take one way", "fi_tcp(7)");
const VIRTUAL: u64 = sys::FI_MR_VIRT_ADDR | sys::FI_MR_ALLOCATED | sys::FI_MR_PROV_KEY;

/// The table.
const ROWS: [Row; 8] = [
    Row {
        name: "cxi",
        net: "cxi, cxi://cxiN",
        scheme: Some("cxi"),
        format: AddressFormat::Cxi,
        automatic_progress: MANUAL,
        mr_mode: told(
            sys::FI_MR_ENDPOINT | sys::FI_MR_ALLOCATED | sys::FI_MR_PROV_KEY,
            "memory belongs to an endpoint: enable, register, bind, enable, then the key; 64-bit keys of the provider's choice",
            "fi_cxi(7), Memory registration modes",
        ),
        inject_bytes: told(
            192,
            "the NIC's immediate data command holds no more",
            "prov/cxi, CXIP_INJECT_SIZE; recorded with 2.6",
        ),
        eager_bytes: told(
            16_384,
            "beyond it a message becomes a rendezvous, of which 256 may be under way",
            "fi_cxi(7), FI_CXI_RDZV_THRESHOLD",
        ),
        peers_max: told(usize::MAX, "the vector grows", "fi_cxi(7)"),
        wait: told(
            WaitKind::Descriptor { cap: Duration::from_millis(10) },
            "the descriptor is right only since 2.1, and with manual progress a rendezvous stands still while nobody reads the queue",
            "libfabric's release notes, 2.1",
        ),
        quirks: &[
            (
                "FI_CXI_RX_MATCH_MODE becomes hybrid unless it is set: hardware matching alone ends in an error when it runs out of entries",
                "fi_cxi(7), Runtime Parameters",
            ),
            (
                "the first VNI of SLINGSHOT_VNIS is used, ?vni=job puts another one first: endpoints of different VNIs do not reach each other",
                "fi_cxi(7), Authorization Keys",
            ),
            (
                "sends are ordered among themselves only, and nothing is ever written: a child reads, so that no late write lands in memory that is used again",
                "fi_cxi(7), Message Ordering",
            ),
            (
                "errors of a dead peer come after tens of seconds: every operation has a deadline of its own",
                "fi_cxi(7), Retry Handler",
            ),
        ],
    },
    Row {
        name: "net",
        net: "tcp",
        scheme: Some("tcp"),
        format: AddressFormat::Inet,
        automatic_progress: MANUAL,
        mr_mode: NO_DEMANDS,
        inject_bytes: told(128, "what fi_getinfo says", "measured, 1.17"),
        eager_bytes: IN_PIECES,
        peers_max: ANY_PEERS,
        wait: told(
            WaitKind::PollSet { cap: GUARD },
            "the queue's own descriptor stays readable from the first completion on, since fi_trywait does nothing",
            "measured, 1.17",
        ),
        quirks: &[
            (
                "the name of the good tcp provider from 1.15 to 1.17; FI_PROVIDER=tcp hides it and becomes net,tcp",
                "fi_net(7); measured, 1.17",
            ),
            ("a peer's read is served only while we poll", "measured, 1.17"),
            (
                "a dead peer answers EAGAIN for ever and a stopped one completes nothing: every operation has a deadline of its own",
                "ofiwg/libfabric #7441, #3007; measured, 1.17",
            ),
        ],
    },
    Row {
        name: "tcp",
        net: "tcp",
        scheme: Some("tcp"),
        format: AddressFormat::Inet,
        automatic_progress: MANUAL,
        mr_mode: NO_DEMANDS,
        inject_bytes: told(128, "what fi_getinfo says", "recorded with 2.6"),
        eager_bytes: IN_PIECES,
        peers_max: ANY_PEERS,
        wait: told(WaitKind::PollSet { cap: GUARD }, "as net: one code under two names", "recorded with 2.6"),
        quirks: &[
            (
                "up to 1.17 this name is a provider without RDM endpoints, which fits only below ofi_rxm",
                "fi_tcp(7), 1.17",
            ),
            ("a peer's read is served only while we poll", "recorded with 2.6"),
        ],
    },
    Row {
        name: "tcp;ofi_rxm",
        net: "tcp;ofi_rxm",
        scheme: None,
        format: AddressFormat::Inet,
        automatic_progress: MANUAL,
        mr_mode: NO_DEMANDS,
        inject_bytes: told(64, "what fi_getinfo says", "measured, 1.17"),
        eager_bytes: told(16_384, "beyond it a message becomes a rendezvous", "fi_rxm(7), FI_OFI_RXM_BUFFER_SIZE"),
        peers_max: ANY_PEERS,
        wait: told(WaitKind::Descriptor { cap: GUARD }, "the descriptor is right", "measured, 1.17"),
        quirks: &[
            ("70 to 134 MB and 7 descriptors an endpoint: choose --net tcp instead", "measured, 1.17"),
            ("what FI_PROVIDER=tcp means on 1.17 without our change", "measured, 1.17"),
        ],
    },
    Row {
        name: "shm",
        net: "shm",
        scheme: Some("shm"),
        format: AddressFormat::Shm,
        automatic_progress: MANUAL,
        mr_mode: told(0, "virtual addresses only where they are offered, which we do not", "measured, 1.17"),
        inject_bytes: told(4096, "a buffer in the shared region", "fi_shm(7)"),
        eager_bytes: told(4096, "beyond it the receiver copies out of the sender's memory", "fi_shm(7)"),
        peers_max: told(256, "fi_av_open answers ENOSYS beyond", "measured, 1.17"),
        wait: told(
            WaitKind::Polling { nap: Duration::from_millis(1) },
            "fi_cq_open answers ENOSYS to every wait object",
            "measured, 1.17",
        ),
        quirks: &[
            ("one host only, and files in /dev/shm are left when a process is killed", "measured, 1.17"),
            ("it uses the memory of an endpoint of the same process that was closed (SIGSEGV)", "measured, 1.17"),
        ],
    },
    Row {
        name: "sockets",
        net: "sockets",
        scheme: Some("sockets"),
        format: AddressFormat::Inet,
        automatic_progress: told(
            true,
            "it has a descriptor only with its own progress thread (FI_GETWAIT answers ENOSYS otherwise)",
            "measured, 1.17",
        ),
        mr_mode: NO_DEMANDS,
        inject_bytes: told(255, "what fi_getinfo says", "measured, 1.17"),
        eager_bytes: IN_PIECES,
        peers_max: ANY_PEERS,
        wait: told(WaitKind::Descriptor { cap: GUARD }, "the descriptor is right", "measured, 1.17"),
        quirks: &[("7 to 17 ms a message on few cores, and unmaintained: for checks of correctness", "measured, 1.17")],
    },
    Row {
        name: "verbs;ofi_rxm",
        net: "verbs;ofi_rxm",
        scheme: None,
        format: AddressFormat::Inet,
        automatic_progress: MANUAL,
        mr_mode: told(
            VIRTUAL | sys::FI_MR_LOCAL,
            "remote addresses are virtual there, and ours are offsets: not usable yet",
            "fi_verbs(7), Memory registration; fi_rxm(7)",
        ),
        inject_bytes: told(64, "the default of FI_VERBS_INLINE_SIZE", "fi_verbs(7)"),
        eager_bytes: told(16_384, "beyond it a message becomes a rendezvous", "fi_rxm(7), FI_OFI_RXM_BUFFER_SIZE"),
        peers_max: ANY_PEERS,
        wait: told(WaitKind::Descriptor { cap: GUARD }, "FI_WAIT_FD of the MSG endpoints below", "fi_verbs(7)"),
        quirks: &[("never tried by us on hardware", "no such hardware at hand")],
    },
    Row {
        name: "efa",
        net: "efa",
        scheme: None,
        format: AddressFormat::Inet,
        automatic_progress: MANUAL,
        mr_mode: told(
            VIRTUAL | sys::FI_MR_LOCAL,
            "remote addresses are virtual there, and ours are offsets: not usable yet",
            "prov/efa/src/efa_prov_info.c, 2.x",
        ),
        inject_bytes: told(0, "no inject", "fi_efa(7)"),
        eager_bytes: told(0, "not recorded: the provider cuts messages into packets itself", "fi_efa(7)"),
        peers_max: ANY_PEERS,
        wait: told(
            WaitKind::Polling { nap: Duration::from_millis(1) },
            "wait objects are not supported",
            "fi_efa(7), Completion events",
        ),
        quirks: &[
            ("its addresses are GIDs, for which the address book has no form yet", "fi_efa(7)"),
            ("never tried by us on hardware", "no such hardware at hand"),
        ],
    },
];

impl Row {
    /// All rows.
    #[must_use]
    pub fn all() -> &'static [Row] {
        &ROWS
    }

    /// The provider's exact name in libfabric.
    #[must_use]
    pub fn provider(&self) -> &'static str {
        self.name
    }

    /// What `--net` chooses it by.
    #[must_use]
    pub fn net(&self) -> &'static str {
        self.net
    }

    /// Whether a port can work with what the provider demands.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.mr_mode.value & sys::FI_MR_VIRT_ADDR == 0
    }

    /// All that the row says, with reasons and sources.
    #[must_use]
    pub fn aspects(&self) -> Vec<Aspect> {
        fn aspect<T: Copy>(name: &'static str, told: Told<T>, value: String) -> Aspect {
            Aspect { name, value, reason: told.reason, source: told.source }
        }
        let progress = if self.automatic_progress.value { "automatic" } else { "manual" };
        let count = |value: usize, without: &str| match value {
            0 | usize::MAX => without.to_owned(),
            value => value.to_string(),
        };
        let mut aspects = vec![
            aspect("hints, progress", self.automatic_progress, progress.to_owned()),
            aspect("mr_mode", self.mr_mode, mr_mode_text(self.mr_mode.value)),
            aspect("inject, bytes", self.inject_bytes, count(self.inject_bytes.value, "none")),
            aspect("frame in one go, bytes", self.eager_bytes, count(self.eager_bytes.value, "any")),
            aspect("peers", self.peers_max, count(self.peers_max.value, "any")),
            aspect("wait", self.wait, self.wait.value.to_string()),
        ];
        aspects.extend(self.quirks.iter().map(|(reason, source)| Aspect {
            name: "quirk",
            value: String::new(),
            reason,
            source,
        }));
        aspects
    }
}

/// The bits of an `mr_mode` by their names, without `FI_MR_`.
pub(crate) fn mr_mode_text(mr_mode: u64) -> String {
    let names = [
        (sys::FI_MR_LOCAL, "LOCAL"),
        (sys::FI_MR_VIRT_ADDR, "VIRT_ADDR"),
        (sys::FI_MR_ALLOCATED, "ALLOCATED"),
        (sys::FI_MR_PROV_KEY, "PROV_KEY"),
        (sys::FI_MR_RAW, "RAW"),
        (sys::FI_MR_ENDPOINT, "ENDPOINT"),
    ];
    let mut words: Vec<String> =
        names.iter().filter(|(bit, _)| mr_mode & bit != 0).map(|(_, name)| (*name).to_owned()).collect();
    let rest = names.iter().fold(mr_mode, |rest, (bit, _)| rest & !bit);
    if rest != 0 {
        words.push(format!("{rest:#x}"));
    }
    if words.is_empty() { "none".to_owned() } else { words.join(" ") }
}

/// What a port goes by: a row, or several that are one code under several names.
#[derive(Clone, Debug)]
pub(crate) struct Provider {
    /// The names that libfabric may know it by, in order of preference.
    pub(crate) names: Cow<'static, [Cow<'static, str>]>,
    pub(crate) scheme: Option<&'static str>,
    pub(crate) format: AddressFormat,
    pub(crate) wait: WaitKind,
    pub(crate) automatic_progress: bool,
    pub(crate) peers_max: usize,
}

impl Provider {
    /// What holds for `net`.
    pub(crate) fn of(net: &Net) -> Provider {
        let names: Vec<&str> = match net {
            Net::Cxi { .. } => vec!["cxi"],
            Net::Tcp => vec!["net", "tcp"],
            Net::Shm => vec!["shm"],
            Net::Sockets => vec!["sockets"],
            Net::Provider(name) => vec![name],
        };
        let row = ROWS.iter().find(|row| row.name == names[0]);
        // What is not in the table is taken for a plain one: socket addresses, and a descriptor that is right.
        let plain = ROWS.iter().find(|row| row.name == "tcp;ofi_rxm").expect("the plain row is in the table");
        let row = row.unwrap_or(plain);
        Provider {
            names: names.into_iter().map(|name| Cow::Owned(name.to_owned())).collect(),
            scheme: row.scheme,
            format: row.format,
            wait: row.wait.value,
            automatic_progress: row.automatic_progress.value,
            peers_max: row.peers_max.value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_network_has_its_row_and_every_value_its_reason_and_source() {
        for (net, provider) in [
            ("cxi", "cxi"),
            ("tcp", "net"),
            ("shm", "shm"),
            ("sockets", "sockets"),
            ("tcp;ofi_rxm", "tcp;ofi_rxm"),
            ("verbs;ofi_rxm", "verbs;ofi_rxm"),
            ("efa", "efa"),
        ] {
            let found = Provider::of(&net.parse().expect(net));
            let row = ROWS.iter().find(|row| row.name == provider).expect(provider);
            assert_eq!((found.wait, found.scheme), (row.wait.value, row.scheme), "{net}");
        }
        for row in Row::all() {
            let aspects = row.aspects();
            assert!(aspects.len() > 6, "{} has no quirk", row.name);
            for aspect in aspects {
                assert!(aspect.reason.len() > 3 && aspect.source.len() > 3, "{} {aspect:?}", row.name);
            }
        }
    }

    #[test]
    fn two_names_of_one_code_have_one_behaviour() {
        let rows = ["net", "tcp"].map(|name| ROWS.iter().find(|row| row.name == name).expect(name));
        assert_eq!(rows[0].wait.value, rows[1].wait.value);
        assert_eq!((rows[0].scheme, rows[0].format), (rows[1].scheme, rows[1].format));
        assert_eq!(rows[0].mr_mode.value, rows[1].mr_mode.value);
    }

    #[test]
    fn bits_have_their_names() {
        assert_eq!(mr_mode_text(0), "none");
        assert_eq!(mr_mode_text(sys::FI_MR_ENDPOINT | sys::FI_MR_PROV_KEY), "PROV_KEY ENDPOINT");
        assert_eq!(mr_mode_text(sys::FI_MR_LOCAL | 1 << 40), "LOCAL 0x10000000000");
    }
}
