//! Counts of the requests that reached the daemon. Event threads add, anyone reads; adding must cost no shared cache line.

use std::array;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident = $label:literal),* $(,)?) => {
        /// A kind of request, as [`Stats`] counts them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Op {
            $($(#[$doc])* $name,)*
        }

        impl Op {
            /// All kinds, in the order of the table.
            pub const ALL: &[Op] = &[$(Op::$name),*];

            /// A short lower-case name for tables and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Op::$name => $label,)* }
            }
        }
    };
}

ops! {
    /// `FUSE_LOOKUP`, too long names included
    Lookup = "lookup",
    /// Inodes given back by `FUSE_FORGET` and `FUSE_BATCH_FORGET` (the transport shows a batch as its inodes)
    Forget = "forget",
    /// `FUSE_GETATTR`
    Getattr = "getattr",
    /// `FUSE_READLINK`
    Readlink = "readlink",
    /// `FUSE_READ`
    Read = "read",
    /// `FUSE_READDIR`
    Readdir = "readdir",
    /// `FUSE_STATFS`
    Statfs = "statfs",
    /// `FUSE_OPEN`: once in a mount's life where the kernel remembers its `ENOSYS`
    Open = "open",
    /// `FUSE_OPENDIR`: likewise
    Opendir = "opendir",
    /// `FUSE_RELEASE` and `FUSE_RELEASEDIR`: only on kernels that do not remember
    Release = "release",
    /// `FUSE_FLUSH`, `FUSE_FSYNC`, `FUSE_FSYNCDIR`
    Flush = "flush",
    /// `FUSE_GETXATTR` and `FUSE_LISTXATTR`
    Xattr = "xattr",
    /// `FUSE_IOCTL`, answered `ENOTTY`
    Ioctl = "ioctl",
    /// Requests that would change something, answered `EROFS`
    Change = "change",
    /// Everything else
    Other = "other",
}

/// Stripes of the table: at least as many as there are event threads.
const STRIPES: usize = 4;

/// One thread's share. 64-byte lines come in prefetched pairs on x86-64, hence 128.
#[repr(align(128))]
struct Stripe([AtomicU64; Op::ALL.len()]);

/// Requests that reached the daemon since the mount, by operation, and replies that went wrong. Sums are taken over
/// running counters: each is exact, several of them are not one moment's picture.
pub struct Stats {
    stripes: [Stripe; STRIPES],
    dropped_replies: AtomicU64,
    panics: AtomicU64,
}

static NEXT_STRIPE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MY_STRIPE: Cell<usize> = Cell::new(NEXT_STRIPE.fetch_add(1, Ordering::Relaxed) % STRIPES);
}

impl Stats {
    pub(crate) fn new() -> Stats {
        Stats {
            stripes: array::from_fn(|_| Stripe(array::from_fn(|_| AtomicU64::new(0)))),
            dropped_replies: AtomicU64::new(0),
            panics: AtomicU64::new(0),
        }
    }

    pub(crate) fn add(&self, op: Op) {
        self.stripes[MY_STRIPE.get()].0[op as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_dropped_reply(&self) {
        self.dropped_replies.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests of one kind.
    #[must_use]
    pub fn count(&self, op: Op) -> u64 {
        self.stripes.iter().map(|s| s.0[op as usize].load(Ordering::Relaxed)).sum()
    }

    /// Every kind with its count, in the order of [`Op::ALL`].
    pub fn counts(&self) -> impl Iterator<Item = (Op, u64)> + '_ {
        Op::ALL.iter().map(|&op| (op, self.count(op)))
    }

    /// Requests of all kinds.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts().map(|(_, n)| n).sum()
    }

    /// Reply tokens that were dropped unanswered; each was answered `EIO`.
    #[must_use]
    pub fn dropped_replies(&self) -> u64 {
        self.dropped_replies.load(Ordering::Relaxed)
    }

    /// Panics caught in handlers.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut map = f.debug_map();
        map.entries(self.counts().filter(|&(_, n)| n > 0).map(|(op, n)| (op.name(), n)));
        map.entry(&"dropped_replies", &self.dropped_replies()).entry(&"panics", &self.panics()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_many_threads_add_up() {
        let stats = Stats::new();
        std::thread::scope(|s| {
            for _ in 0..2 * STRIPES {
                s.spawn(|| (0..1000).for_each(|_| stats.add(Op::Read)));
            }
        });
        stats.add(Op::Lookup);
        assert_eq!(stats.count(Op::Read), 2000 * STRIPES as u64);
        assert_eq!(stats.total(), 2000 * STRIPES as u64 + 1);
    }
}
