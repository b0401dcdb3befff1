//! What a run's counts say, in a line for people: in the log when a daemon ends, and below the table of `bornite stats`.

use std::fmt;

use super::table::{Counter, Snapshot};

/// The counts of absent names that are only told together, as one of them alone says little: how often an answer had to be
/// asked for again after its time, how many were stored, how many lookups they and complete listings served, how many
/// lookups of absent names the backend had, and what became of the stored ones.
#[derive(Clone, Copy, Debug)]
pub struct AbsentNames<'a>(pub &'a Snapshot);

impl fmt::Display for AbsentNames<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |counter| self.0.get(counter);
        write!(
            f,
            "absent names: {} stale completed entries, {} TTL stores, {} TTL serves, {} backend ENOENT lookups; {} expires, {} clears, {} raced, \
             {} full; {} served by complete listings",
            count(Counter::EnoentStaleCompleted),
            count(Counter::EnoentStores),
            count(Counter::EnoentServes),
            count(Counter::BackendEnoent),
            count(Counter::EnoentExpires),
            count(Counter::EnoentClears),
            count(Counter::EnoentRaced),
            count(Counter::EnoentFull),
            count(Counter::ListingServes),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Counters;

    #[test]
    fn each_count_stands_at_its_word() {
        let counters = Counters::new();
        let told = [
            (Counter::EnoentStaleCompleted, "1 stale completed"),
            (Counter::EnoentStores, "2 TTL stores"),
            (Counter::EnoentServes, "3 TTL serves"),
            (Counter::BackendEnoent, "4 backend ENOENT"),
            (Counter::EnoentExpires, "5 expires"),
            (Counter::EnoentClears, "6 clears"),
            (Counter::EnoentRaced, "7 raced"),
            (Counter::EnoentFull, "8 full"),
            (Counter::ListingServes, "9 served"),
        ];
        for (value, (counter, _)) in (1..).zip(told) {
            counters.set(counter, value);
        }
        let text = AbsentNames(&counters.snapshot()).to_string();
        for (_, words) in told {
            assert!(text.contains(&format!(" {words}")), "{words} in {text}");
        }
    }
}
