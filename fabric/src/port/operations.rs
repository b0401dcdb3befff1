//! The bookkeeping of sends and reads: which contexts are free, whose operations are under way, and when they are late.
//!
//! Pure: `now` is passed in, nothing here calls libfabric or allocates after the peers are known. Three rules make sure
//! that a peer which takes nothing harms nobody else:
//! - An operation that is late is told as timed out. Its context stays taken ("quarantined") until the provider gives it
//!   back, but there are twice as many contexts as operations, so that another takes its place.
//! - A peer may begin an operation only while it holds less than a third of what is left: alone it gets a quarter. Any
//!   number of peers that die at once so leave something (a dynamic threshold: Choudhury and Hahne, IEEE/ACM Transactions
//!   on Networking 6(2), 1998), and all of them together hold fewer contexts than there are spare ones.
//! - A peer with operations in quarantine gets one more at a time, which finds out whether it is back.

use std::time::Duration;

/// No slot.
const NONE: u32 = u32::MAX;

/// See the module's second rule.
const SHARE: usize = 3;

/// Contexts for so many operations at a time: as many again may be in quarantine.
pub(super) const fn contexts(operations: usize) -> usize {
    2 * operations
}

/// What a context is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Send,
    Read,
}

/// Milliseconds since the port was opened.
pub(super) type Millis = u64;

/// The state of one context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    /// The provider has it, and the caller waits.
    Posted,
    /// The provider has it; the caller was told that it timed out.
    Quarantined,
    /// It never went to the provider; the caller is to be told of an error.
    Refused,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    state: State,
    token: u64,
    peer: u32,
    /// Sends: bytes of the frame. Reads: the index of the destination's region.
    detail: usize,
    due: Millis,
    earlier: u32,
    later: u32,
}

/// What is known of an operation that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) kind: Kind,
    pub(super) token: u64,
    /// As given to [`Operations::posted`].
    pub(super) detail: usize,
    /// The caller was told before that it timed out.
    pub(super) quarantined: bool,
}

/// The contexts of one kind.
#[derive(Debug)]
struct Pool {
    begin: u32,
    free: Vec<u32>,
    /// Operations that the caller waits for, and how many there may be.
    active: usize,
    active_max: usize,
    /// Those posted, in the order in which they are due: one time holds for all of a kind.
    first: u32,
    last: u32,
    timeout: Millis,
    quarantined: usize,
    peers: Vec<Held>,
}

/// The contexts that a peer holds: those of operations that the caller waits for, and those in quarantine.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    active: usize,
    quarantined: usize,
}

/// See the module's text. Contexts are numbered from `base` on: sends, then reads.
#[derive(Debug)]
pub(super) struct Operations {
    base: u32,
    slots: Vec<Slot>,
    pools: [Pool; 2],
}

impl Operations {
    /// For so many sends and reads at a time, and how long each may take. The first of their contexts has number `base`.
    pub(super) fn new(base: usize, [sends, reads]: [usize; 2], timeouts: [Duration; 2]) -> Operations {
        let number = |at: usize| u32::try_from(at).expect("operations are bounded");
        let pool = |begin: usize, count: usize, timeout: Duration| Pool {
            begin: number(begin),
            free: (begin..begin + contexts(count)).rev().map(number).collect(),
            active: 0,
            active_max: count,
            first: NONE,
            last: NONE,
            timeout: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1),
            quarantined: 0,
            peers: Vec::new(),
        };
        Operations {
            base: number(base),
            slots: vec![Slot::default(); contexts(sends) + contexts(reads)],
            pools: [pool(base, sends, timeouts[0]), pool(base + contexts(sends), reads, timeouts[1])],
        }
    }

    /// Makes room for one more peer; peers are numbered from 0 on.
    pub(super) fn add_peer(&mut self) {
        for pool in &mut self.pools {
            pool.peers.push(Held::default());
        }
    }

    /// A context that `peer` may use now, while `spoken_for` operations more than are known here are under way. It is taken by [`Operations::posted`] or
    /// [`Operations::refused`].
    pub(super) fn free(&self, kind: Kind, peer: u32, spoken_for: usize) -> Option<u32> {
        let pool = &self.pools[kind as usize];
        let left = pool.active_max.saturating_sub(pool.active + spoken_for).min(pool.free.len());
        let held = pool.peers[peer as usize];
        let share = (held.active + held.quarantined) * SHARE < left;
        let probing = held.quarantined == 0 || held.active == 0;
        if share && probing { pool.free.last().copied() } else { None }
    }

    /// The provider has taken the operation of context `index`, which [`Operations::free`] gave.
    pub(super) fn posted(&mut self, index: u32, peer: u32, token: u64, detail: usize, now: Millis) {
        let at = self.take(index, Slot { state: State::Posted, token, peer, detail, ..Slot::default() });
        let pool = &mut self.pools[at];
        let (due, earlier) = (now.saturating_add(pool.timeout), pool.last);
        pool.last = index;
        match earlier {
            NONE => pool.first = index,
            earlier => self.slots[(earlier - self.base) as usize].later = index,
        }
        let slot = self.slot_mut(index);
        (slot.due, slot.earlier, slot.later) = (due, earlier, NONE);
    }

    /// The operation of context `index` ends in an error without having begun.
    pub(super) fn refused(&mut self, index: u32, peer: u32, token: u64, detail: usize) {
        self.take(index, Slot { state: State::Refused, token, peer, detail, ..Slot::default() });
    }

    fn take(&mut self, index: u32, slot: Slot) -> usize {
        let at = self.pool_of(index);
        let pool = &mut self.pools[at];
        let taken = pool.free.pop();
        debug_assert_eq!(taken, Some(index), "the context that was offered");
        pool.active += 1;
        pool.peers[slot.peer as usize].active += 1;
        *self.slot_mut(index) = slot;
        at
    }

    /// Whether the provider has the operation of context `index`.
    pub(super) fn is_posted(&self, index: u32) -> bool {
        let slot = index.checked_sub(self.base).and_then(|at| self.slots.get(at as usize));
        slot.is_some_and(|slot| matches!(slot.state, State::Posted | State::Quarantined))
    }

    /// The operation of context `index` has ended; the context is free.
    pub(super) fn ended(&mut self, index: u32) -> Ended {
        let at = self.pool_of(index);
        let slot = std::mem::take(self.slot_mut(index));
        let pool = &mut self.pools[at];
        pool.free.push(index);
        let held = &mut pool.peers[slot.peer as usize];
        match slot.state {
            State::Quarantined => {
                held.quarantined -= 1;
                pool.quarantined -= 1;
            }
            State::Posted | State::Refused => {
                held.active -= 1;
                pool.active -= 1;
            }
            State::Free => unreachable!("context {index} is free"),
        }
        if slot.state == State::Posted {
            self.unlink(at, slot);
        }
        Ended {
            kind: if at == 0 { Kind::Send } else { Kind::Read },
            token: slot.token,
            detail: slot.detail,
            quarantined: slot.state == State::Quarantined,
        }
    }

    fn unlink(&mut self, at: usize, slot: Slot) {
        match slot.earlier {
            NONE => self.pools[at].first = slot.later,
            earlier => self.slot_mut(earlier).later = slot.later,
        }
        match slot.later {
            NONE => self.pools[at].last = slot.earlier,
            later => self.slot_mut(later).earlier = slot.earlier,
        }
    }

    /// When the next operation is late.
    pub(super) fn next_due(&self) -> Option<Millis> {
        let due = |pool: &Pool| (pool.first != NONE).then(|| self.slots[(pool.first - self.base) as usize].due);
        self.pools.iter().filter_map(due).min()
    }

    /// Takes one operation that is late at `now` into quarantine, and tells which it was.
    pub(super) fn expire(&mut self, now: Millis) -> Option<Ended> {
        for at in 0..self.pools.len() {
            let index = self.pools[at].first;
            if index == NONE || self.slot_mut(index).due > now {
                continue;
            }
            let slot = *self.slot_mut(index);
            self.unlink(at, slot);
            self.slot_mut(index).state = State::Quarantined;
            let pool = &mut self.pools[at];
            let held = &mut pool.peers[slot.peer as usize];
            (held.active, held.quarantined) = (held.active - 1, held.quarantined + 1);
            (pool.active, pool.quarantined) = (pool.active - 1, pool.quarantined + 1);
            let kind = if at == 0 { Kind::Send } else { Kind::Read };
            return Some(Ended { kind, token: slot.token, detail: slot.detail, quarantined: true });
        }
        None
    }

    /// One operation that has not ended, in any order: for the end of the port.
    pub(super) fn any(&self) -> Option<u32> {
        let at = self.slots.iter().position(|slot| slot.state != State::Free)?;
        Some(self.base + u32::try_from(at).expect("operations are bounded"))
    }

    /// Operations that the caller waits for.
    pub(super) fn outstanding(&self) -> usize {
        self.pools.iter().map(|pool| pool.active).sum()
    }

    /// Contexts that the provider has not given back in time.
    pub(super) fn quarantined(&self) -> usize {
        self.pools.iter().map(|pool| pool.quarantined).sum()
    }

    fn pool_of(&self, index: u32) -> usize {
        usize::from(index >= self.pools[1].begin)
    }

    fn slot_mut(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[(index - self.base) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn operations(sends: usize, reads: usize, peers: usize) -> Operations {
        let mut operations =
            Operations::new(4, [sends, reads], [Duration::from_millis(50), Duration::from_millis(100)]);
        (0..peers).for_each(|_| operations.add_peer());
        operations
    }

    /// Posts for `peer` until there is no room for it.
    fn fill(operations: &mut Operations, kind: Kind, peer: u32) -> usize {
        let mut count = 0;
        while let Some(index) = operations.free(kind, peer, 0) {
            operations.posted(index, peer, 0, 0, 0);
            count += 1;
        }
        count
    }

    #[test]
    fn one_peer_takes_a_quarter_and_many_leave_something() {
        let mut operations = operations(256, 64, 40);
        assert_eq!(fill(&mut operations, Kind::Send, 0), 64);
        assert_eq!(fill(&mut operations, Kind::Read, 0), 16);
        for dead in 1..4 {
            assert!(fill(&mut operations, Kind::Send, dead) > 0);
        }
        assert!(fill(&mut operations, Kind::Send, 20) >= 16, "little is left while nobody knows that they are dead");
        for dead in 4..20 {
            fill(&mut operations, Kind::Send, dead);
        }
        // Late operations do not come back by themselves; others take their places.
        while operations.expire(1000).is_some() {}
        assert_eq!(fill(&mut operations, Kind::Send, 30), 64, "a living peer gets what it would get alone");
        assert!(fill(&mut operations, Kind::Send, 31) >= 32);
        // A dead one is tried with one operation at a time.
        assert_eq!(fill(&mut operations, Kind::Send, 3), 1);
        assert!(operations.free(Kind::Send, 3, 0).is_none());
    }

    #[test]
    fn late_operations_are_told_once_in_order_and_free_nothing() {
        let mut operations = operations(8, 8, 1);
        for (token, now) in [(1, 0), (2, 10)] {
            let index = operations.free(Kind::Send, 0, 0).expect("room");
            operations.posted(index, 0, token, 77, now);
        }
        let read = operations.free(Kind::Read, 0, 0).expect("room");
        operations.posted(read, 0, 3, 5, 0);
        assert_eq!((operations.next_due(), operations.expire(49)), (Some(50), None));
        let mut late = Vec::new();
        while let Some(ended) = operations.expire(105) {
            late.push((ended.kind, ended.token, ended.detail));
        }
        assert_eq!(late, [(Kind::Send, 1, 77), (Kind::Send, 2, 77), (Kind::Read, 3, 5)]);
        assert_eq!((operations.outstanding(), operations.quarantined(), operations.next_due()), (0, 3, None));
        assert!(operations.is_posted(read) && operations.ended(read).quarantined);
        assert_eq!(operations.quarantined(), 2);
    }

    proptest! {
        /// Whatever happens: contexts are neither lost nor given twice, and each operation is told once.
        #[test]
        fn contexts_are_neither_lost_nor_given_twice(steps in prop::collection::vec((0u8..4, 0u32..3, any::<prop::sample::Index>()), 0..200)) {
            let mut operations = operations(6, 5, 3);
            let (mut posted, mut waiting) = (Vec::new(), std::collections::HashSet::new());
            let (mut token, mut now) = (0, 0);
            for (what, peer, pick) in steps {
                match what {
                    0 | 1 => {
                        let kind = if what == 0 { Kind::Send } else { Kind::Read };
                        if let Some(index) = operations.free(kind, peer, 0) {
                            prop_assert!(!posted.contains(&index));
                            token += 1;
                            operations.posted(index, peer, token, 0, now);
                            posted.push(index);
                            waiting.insert(token);
                        }
                    }
                    2 if !posted.is_empty() => {
                        let ended = operations.ended(posted.swap_remove(pick.index(posted.len())));
                        prop_assert_eq!(waiting.remove(&ended.token), !ended.quarantined);
                    }
                    _ => {
                        now += 30;
                        while let Some(late) = operations.expire(now) {
                            prop_assert!(waiting.remove(&late.token));
                        }
                    }
                }
                prop_assert_eq!(operations.outstanding(), waiting.len());
                prop_assert_eq!(operations.quarantined(), posted.len() - waiting.len());
            }
            for index in posted {
                operations.ended(index);
            }
            prop_assert_eq!((operations.outstanding(), operations.quarantined(), operations.any()), (0, 0, None));
        }
    }
}
