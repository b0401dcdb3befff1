//! The end of an absence: told to nobody else, and another moment at each leaf.
//!
//! Called where absences are recalled for other nodes and learnt from them. An absence ends at every node of the tree at
//! the same time, but for what its answers took on their way, by which it ends earlier the deeper a node is: some
//! milliseconds. Two rules keep that from becoming a burst of requests, each of which would be told what is left of those
//! milliseconds and ask again:
//! - What is left of an absence, or of a complete listing, in its last [`ABSENT_TAIL_PARTS`]th part ([`ABSENT_TAIL_US_MAX`]
//!   at most) is told to no other node: it is asked for anew, by one request for all who wait. Clients of the node itself
//!   are told all of it. So names that are asked for all the time are asked for anew that much earlier, also at the root.
//! - A leaf, which nobody asks, has its absences end within that part, each name at another moment at each leaf. A node that
//!   is asked gives and keeps the true remainder.
//!
//! Nothing is ever told for longer than without them.
//!
//! # What was measured
//! Simulated: 128 nodes of 12 ranks that look at one absent name every 10 ms for 11 s, TTL 1 s, 2 ms for a look of the
//! backend; requests that nodes had for it, the most of them within 1 ms and within 10 ms, all messages,
//! lookups at the backend, which are a fiftieth more at most. `the_end_of_an_absence_is_no_burst` of `sim::enoent` counts the same.
//!
//! | | requests | 1 ms | 10 ms | messages | backend |
//! |---|---|---|---|---|---|
//! | neither rule | 4,907 | 112 | 502 | 11,338 | 11 |
//! | leaves end after 0.9 to 1 of what is left, alone | 6,333 | 121 | 520 | 14,190 | 12 |
//! | the first rule | 1,413 | 78 | 127 | 4,350 | 12 |
//! | the first rule, leaves after 0.9 to 1 | 2,307 | 21 | 107 | 6,138 | 12 |
//! | both | 1,892 | 28 | 89 | 5,308 | 12 |
//!
//! A leaf that ends much earlier than its parent is told what the parent has left, and ends with everybody else after all.

use super::flight::Waiter;
use super::limits::{ABSENT_TAIL_PARTS, ABSENT_TAIL_US_MAX};
use super::node::Node;
use crate::cache::types::Micros;

impl Node {
    /// The part of an absence at its end that is not told to other nodes, microseconds.
    fn tail_us(&self) -> u64 {
        (self.enoent_ttl_us() / ABSENT_TAIL_PARTS).min(ABSENT_TAIL_US_MAX)
    }

    /// The time at which an absence must still hold to be told to `waiter`.
    pub(super) fn told_from(&self, now: Micros, waiter: Waiter) -> Micros {
        match waiter {
            Waiter::Peer { .. } | Waiter::Flight(_) => now.after_us(self.tail_us()),
            Waiter::Local(_) | Waiter::Nobody => now,
        }
    }

    /// For how much of `remaining_us`, which another node has told, this one uses an absence at or below `path`.
    pub(super) fn used_us(&self, path: &[u8], remaining_us: u64) -> u64 {
        let tree = self.tree_of(path);
        let is_leaf = self.trees[tree].topology.children().next().is_none();
        let early_us = if is_leaf { self.enoent.part_of(path, self.tail_us()) } else { 0 };
        // 0 would say something else of a listing.
        if remaining_us == 0 { 0 } else { remaining_us.saturating_sub(early_us).max(1) }
    }
}
