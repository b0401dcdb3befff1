//! What a node knows of one that it may ask: whether it is there, whether it serves, and how much it takes.
//!
//! Used by the node only. Evidence is all there is: any frame of a peer is a sign of its life, and silence counts from the
//! first probe that nothing followed. A slow backend is not silence: who waits for one says "pending".

use std::collections::BTreeSet;

use super::flight::FlightId;
use super::limits::{
    HEARTBEAT_IDLE_US, HEARTBEATS_PER_DETECT, PROBE_BUDGET_US, PROBE_PAUSE_MAX_US, PROBE_PAUSE_MIN_US,
    REQUESTS_AT_PARENT_MAX,
};
use super::topology::NodeId;
use crate::cache::types::Micros;

/// How far this node has come with those whom it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentState {
    /// A root asks nobody.
    None,
    /// No answer.
    Unreachable,
    /// It answers, but does not serve yet.
    NotServing,
    /// It serves, or this node asks the backend in its place.
    Ready,
}

impl ParentState {
    /// A word for reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ParentState::None => "root",
            ParentState::Unreachable => "parent unreachable",
            ParentState::NotServing => "parent not ready yet",
            ParentState::Ready => "ready",
        }
    }
}

/// Why a peer is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It is not.
    None,
    /// It is the one that is asked, or something is under way there.
    Asked,
    /// It would be asked if it answered.
    Sought,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) role: Role,
    /// What was asked of it and is not over, each with a credit but for those that are `pending`.
    pub(super) under_way: BTreeSet<FlightId>,
    /// Of these, those that it said it works on: they have left the receives that its credits stand for, so that what waits
    /// for a slow backend keeps nothing else from being asked.
    pending: BTreeSet<FlightId>,
    /// Since when something is under way.
    busy_since: Micros,
    /// How many requests it takes at once.
    credits: usize,
    /// Its present life, as far as is known, and the one before.
    incarnation: Option<u64>,
    previous: Option<u64>,
    /// The last probe that went out before the present life was first heard.
    probe_before: u64,
    /// What it said last about whether it serves; nothing in this life of it.
    serving: Option<bool>,
    /// It served once, in whichever life.
    was_ready: bool,
    heard: Micros,
    /// The first probe that nothing followed.
    silent_since: Option<Micros>,
    /// The last probe; none in this role.
    probed: Option<Micros>,
    probe: u64,
    /// The pause after the last probe, and the one after the next.
    pause_us: u64,
    next_pause_us: u64,
    /// As it is called in the log.
    name: String,
    /// The search for it that is going on.
    search: Option<Search>,
    pub(super) tally: Tally,
}

/// A search for a node.
#[derive(Debug)]
struct Search {
    since: Micros,
    probes: u32,
    /// How many of them are known to have failed, and what was said of that last.
    failures: u32,
    said: Option<ParentState>,
    complained: bool,
    /// What somebody waits for, for the log.
    path: String,
}

/// What came of the probes of nodes that were looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// They were not answered: the node is unreachable.
    pub(super) unanswered: u64,
    /// They were answered, but the node does not serve yet.
    pub(super) not_serving: u64,
    /// They ended a search: the node serves.
    pub(super) confirmed: u64,
}

impl Peer {
    pub(super) fn new(node: NodeId) -> Peer {
        Peer {
            node,
            role: Role::None,
            under_way: BTreeSet::new(),
            pending: BTreeSet::new(),
            busy_since: Micros(0),
            credits: 0,
            incarnation: None,
            previous: None,
            probe_before: 0,
            serving: None,
            was_ready: false,
            heard: Micros(0),
            silent_since: None,
            probed: None,
            probe: 0,
            pause_us: PROBE_PAUSE_MIN_US,
            next_pause_us: PROBE_PAUSE_MIN_US,
            name: format!("node {node}"),
            search: None,
            tally: Tally::default(),
        }
    }

    /// From now on it is called so in the log.
    pub(super) fn set_name(&mut self, name: String) {
        self.name = name;
    }

    /// Whether it said that it serves. It may be silent since.
    pub(super) fn is_ready(&self) -> bool {
        self.serving == Some(true)
    }

    pub(super) fn was_ready(&self) -> bool {
        self.was_ready
    }

    /// Names its present life, if it was ever heard.
    pub(super) fn life(&self) -> Option<u64> {
        self.incarnation
    }

    /// Microseconds since the first probe that nothing followed.
    pub(super) fn silent_us(&self, now: Micros) -> u64 {
        self.silent_since.map_or(0, |since| now.0.saturating_sub(since.0))
    }

    /// Whether it may be asked, as far as is known: it serves, and answered what it was asked a while ago.
    pub(super) fn is_usable(&self, now: Micros, detect_us: u64) -> bool {
        self.is_ready() && self.silent_us(now) < detect_us / HEARTBEATS_PER_DETECT
    }

    pub(super) fn state(&self, now: Micros, detect_us: u64) -> ParentState {
        match self.serving {
            Some(_) if self.silent_us(now) >= detect_us => ParentState::Unreachable,
            Some(true) => ParentState::Ready,
            Some(false) => ParentState::NotServing,
            None => ParentState::Unreachable,
        }
    }

    /// Whether it takes one more request.
    pub(super) fn takes(&self) -> bool {
        let all = self.under_way.len();
        self.is_ready() && all < REQUESTS_AT_PARENT_MAX && all - self.pending.len() < self.credits
    }

    /// Takes note of a request to it.
    pub(super) fn asked(&mut self, now: Micros, id: FlightId) {
        if self.under_way.is_empty() {
            self.busy_since = now;
        }
        self.under_way.insert(id);
        self.pending.remove(&id);
    }

    /// It said that it works on a request.
    pub(super) fn is_at_work(&mut self, id: FlightId) {
        if self.under_way.contains(&id) {
            self.pending.insert(id);
        }
    }

    /// A request is no longer under way at it.
    pub(super) fn gave_back(&mut self, id: FlightId) {
        self.under_way.remove(&id);
        self.pending.remove(&id);
    }

    /// Takes note of a frame. True when it is the first one of another life: what was asked of it is lost.
    pub(super) fn heard(&mut self, now: Micros, incarnation: u64) -> bool {
        // Frames of an earlier life may come late, and are no sign of this one.
        if self.previous == Some(incarnation) {
            return false;
        }
        self.heard = now;
        self.silent_since = None;
        if self.incarnation == Some(incarnation) {
            return false;
        }
        self.turn_to(incarnation);
        if self.previous.is_some() {
            log::info!("node {} was started again", self.node);
        }
        self.previous.is_some()
    }

    /// Takes note of the answer to probe `id`. True when it shows that the life taken for the earlier one is the present
    /// one, as its answer to a later probe does: a frame that came late had been taken for a sign of another life.
    pub(super) fn is_back(&mut self, now: Micros, incarnation: u64, id: u64) -> bool {
        if self.previous != Some(incarnation) || id <= self.probe_before || id > self.probe {
            return false;
        }
        self.heard = now;
        self.silent_since = None;
        self.turn_to(incarnation);
        true
    }

    fn turn_to(&mut self, incarnation: u64) {
        self.previous = self.incarnation.replace(incarnation);
        self.probe_before = self.probe;
        self.serving = None;
        // While it is sought it is asked at once, however long it was silent before.
        (self.pause_us, self.next_pause_us) = (PROBE_PAUSE_MIN_US, PROBE_PAUSE_MIN_US);
    }

    /// It answered a probe.
    pub(super) fn answered(&mut self, now: Micros, incarnation: u64, id: u64, serving: bool, credits: usize) {
        if self.incarnation != Some(incarnation) || id > self.probe {
            return;
        }
        if !serving {
            self.tally.not_serving += u64::from(self.search.is_some());
            self.note_failure(now, ParentState::NotServing);
        } else if let Some(search) = self.search.take() {
            self.tally.confirmed += 1;
            log::info!(
                "parent readiness confirmed for path {} at parent {} after {} us across {} probe(s)",
                search.path,
                self.name,
                now.0.saturating_sub(search.since.0),
                search.probes
            );
        }
        self.serving = Some(serving);
        self.was_ready |= serving;
        self.credits = credits;
    }

    pub(super) fn set_role(&mut self, role: Role) {
        if self.role == role {
            return;
        }
        if role == Role::Sought {
            (self.pause_us, self.next_pause_us) = (PROBE_PAUSE_MIN_US, PROBE_PAUSE_MIN_US);
            // At once.
            self.probed = None;
        }
        self.role = role;
    }

    /// When the next probe is to be sent.
    pub(super) fn next_probe(&self, detect_us: u64) -> Option<Micros> {
        let beat_us = detect_us / HEARTBEATS_PER_DETECT;
        let busy = !self.under_way.is_empty();
        let pause_us = match self.role {
            Role::None => return None,
            Role::Sought => self.pause_us,
            // It was not answered: it may have been lost.
            Role::Asked if self.silent_since.is_some() => beat_us,
            Role::Asked => HEARTBEAT_IDLE_US,
        };
        let Some(probed) = self.probed else { return Some(Micros(0)) };
        let next = probed.after_us(pause_us);
        if !busy {
            return Some(next);
        }
        // A request is as good as a probe as long as it is young, and a frame is as good as an answer.
        let sign = probed.max(self.heard).max(self.busy_since);
        Some(next.min(sign.after_us(beat_us)))
    }

    /// Takes note of a probe that goes out now under `id`. `path` is what somebody waits for.
    pub(super) fn probed(&mut self, now: Micros, id: u64, path: &dyn Fn() -> String) {
        let is_silent = self.silent_since.is_some();
        self.probed = Some(now);
        self.probe = id;
        self.silent_since.get_or_insert(now);
        if self.role != Role::Sought {
            return;
        }
        self.pause_us = self.next_pause_us;
        self.next_pause_us = (self.pause_us * 2).min(PROBE_PAUSE_MAX_US);
        if self.is_ready() && self.silent_us(now) < PROBE_PAUSE_MAX_US {
            // It is asked whether it would do, before anything is wrong with it.
            return;
        }
        let is_begun = self.search.is_some();
        self.search.get_or_insert_with(|| Search {
            since: now,
            probes: 0,
            failures: 0,
            said: None,
            complained: false,
            path: path(),
        });
        if is_begun && is_silent {
            self.tally.unanswered += 1;
            self.note_failure(now, ParentState::Unreachable);
        }
        let Some(search) = &mut self.search else { return };
        search.probes += 1;
        log::debug!("probe {} of {}; the next one after {} ms", search.probes, self.name, self.pause_us / 1000);
    }

    /// A probe of one that is sought failed: it was not answered, or the answer is that it does not serve yet. Said at the
    /// first, at each 25th, and where it is another kind of failure than before.
    fn note_failure(&mut self, now: Micros, state: ParentState) {
        let Some(search) = &mut self.search else { return };
        search.failures += 1;
        let waited_ms = now.0.saturating_sub(search.since.0) / 1000;
        if search.said.replace(state) != Some(state) || search.failures.is_multiple_of(25) {
            log::info!(
                "{} for path {} via parent {}, waited {waited_ms} ms so far; attempts={}; next_retry_sleep_ms={}",
                state.as_str(),
                search.path,
                self.name,
                search.failures,
                self.pause_us / 1000
            );
        }
        if !search.complained && waited_ms > PROBE_BUDGET_US / 1000 {
            search.complained = true;
            log::error!(
                "timed out waiting for parent readiness for path {} via parent {} after {waited_ms} ms and {} probe(s); \
                 max_wait_ms={}; {}: is its daemon running, and is its address right? Probing goes on",
                search.path,
                self.name,
                search.probes,
                PROBE_BUDGET_US / 1000,
                state.as_str()
            );
        }
    }

    /// The next time at which its silence means more, if it goes on.
    pub(super) fn next_silence(&self, now: Micros, patience_us: u64) -> Option<Micros> {
        let since = self.silent_since?;
        [patience_us / 2, patience_us].map(|us| since.after_us(us)).into_iter().find(|at| *at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DETECT_US: u64 = 2_000_000;

    fn root() -> String {
        "/".to_owned()
    }

    fn ready() -> Peer {
        let mut peer = Peer::new(NodeId(1));
        peer.set_role(Role::Sought);
        peer.probed(Micros(0), 1, &root);
        assert!(!peer.heard(Micros(10), 7), "the first life is no other one");
        peer.answered(Micros(10), 7, 1, true, 64);
        peer.set_role(Role::Asked);
        peer
    }

    #[test]
    fn silence_counts_from_the_first_probe_that_nothing_followed() {
        let mut peer = ready();
        assert_eq!(peer.silent_us(Micros(900_000)), 0, "nothing was asked of it");
        peer.probed(Micros(1_000_000), 2, &root);
        peer.probed(Micros(1_500_000), 3, &root);
        assert_eq!(peer.silent_us(Micros(1_900_000)), 900_000);
        assert!(peer.is_usable(Micros(1_499_999), DETECT_US) && !peer.is_usable(Micros(1_500_000), DETECT_US));
        peer.heard(Micros(2_000_000), 7);
        assert_eq!(peer.silent_us(Micros(2_500_000)), 0);
    }

    #[test]
    fn heartbeats_come_often_only_while_something_is_under_way_and_nothing_is_heard() {
        let mut peer = ready();
        assert_eq!(peer.next_probe(DETECT_US), Some(Micros(HEARTBEAT_IDLE_US)));
        peer.asked(Micros(1_000_000), FlightId(1));
        assert_eq!(peer.next_probe(DETECT_US), Some(Micros(1_500_000)));
        // More requests are no signs of its life, answers are.
        peer.asked(Micros(1_400_000), FlightId(2));
        assert_eq!(peer.next_probe(DETECT_US), Some(Micros(1_500_000)));
        peer.heard(Micros(1_450_000), 7);
        assert_eq!(peer.next_probe(DETECT_US), Some(Micros(1_950_000)));
        // Even where all is heard all the time, it is asked for its credits now and then.
        peer.heard(Micros(60_000_000), 7);
        assert_eq!(peer.next_probe(DETECT_US), Some(Micros(HEARTBEAT_IDLE_US)));
    }

    #[test]
    fn unreachable_not_serving_and_ready_are_told_apart_and_counted() {
        let mut peer = Peer::new(NodeId(1));
        peer.set_role(Role::Sought);
        let mut at = Micros(0);
        let mut probe = |peer: &mut Peer, id| {
            at = peer.next_probe(DETECT_US).unwrap();
            peer.probed(at, id, &root);
            at.after_us(50)
        };
        // The pauses are 10, 20, 40 ms.
        (1..4).for_each(|id| _ = probe(&mut peer, id));
        assert_eq!(peer.state(Micros(30_001), DETECT_US), ParentState::Unreachable);
        assert_eq!(peer.tally, Tally { unanswered: 2, not_serving: 0, confirmed: 0 }, "the third is under way");
        let now = probe(&mut peer, 4);
        peer.heard(now, 7);
        peer.answered(now, 7, 4, false, 8);
        assert_eq!(peer.state(now, DETECT_US), ParentState::NotServing);
        assert_eq!(peer.tally, Tally { unanswered: 3, not_serving: 1, confirmed: 0 });
        let now = probe(&mut peer, 5);
        peer.heard(now, 7);
        peer.answered(now, 7, 5, true, 8);
        assert_eq!(peer.state(now, DETECT_US), ParentState::Ready);
        assert_eq!(peer.tally, Tally { unanswered: 3, not_serving: 1, confirmed: 1 });
        // It is remembered.
        peer.set_role(Role::Asked);
        peer.answered(now.after_us(1), 7, 5, true, 8);
        assert_eq!(peer.tally.confirmed, 1);
    }

    #[test]
    fn the_pauses_double_up_to_a_second_and_the_budget_is_complained_about_once() {
        let mut peer = Peer::new(NodeId(1));
        peer.set_role(Role::Sought);
        let mut pauses = Vec::new();
        let mut at = Micros(0);
        for id in 1..140 {
            peer.probed(at, id, &root);
            let next = peer.next_probe(DETECT_US).unwrap();
            pauses.push((next.0 - at.0) / 1000);
            assert_eq!(peer.search.as_ref().unwrap().complained, at.0 / 1000 > 120_000, "at {} us", at.0);
            at = next;
        }
        assert_eq!(pauses[..9], [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(pauses.last(), Some(&1000), "probing goes on");
    }

    #[test]
    fn another_life_has_to_say_that_it_serves() {
        let mut peer = ready();
        assert!(peer.heard(Micros(20), 8) && !peer.is_ready() && peer.was_ready());
        // A late frame of the life before is no sign of life, and does not turn back.
        peer.probed(Micros(30), 2, &root);
        assert!(!peer.heard(Micros(40), 7));
        peer.answered(Micros(40), 7, 2, true, 64);
        assert!(!peer.is_ready() && peer.silent_us(Micros(50)) == 20);
        assert!(!peer.heard(Micros(60), 8));
        peer.answered(Micros(60), 8, 2, true, 3);
        assert!(peer.takes());
        // Nor does the answer of that life to a probe that was sent before this one was heard.
        assert!(!peer.is_back(Micros(60), 7, 1) && peer.is_ready());
        (0..3).for_each(|id| peer.asked(Micros(70), FlightId(id)));
        assert!(!peer.takes(), "it gave three credits");
    }

    #[test]
    fn what_a_peer_works_on_holds_no_credit_up_to_a_bound() {
        let mut peer = ready();
        peer.probed(Micros(15), 2, &root);
        peer.answered(Micros(20), 7, 2, true, 2);
        let most = REQUESTS_AT_PARENT_MAX as u64;
        for id in 0..most {
            assert!(peer.takes(), "request {id}");
            peer.asked(Micros(30), FlightId(id));
            if id > 0 {
                assert!(!peer.takes(), "two that it has said nothing of");
                peer.is_at_work(FlightId(id));
            }
        }
        assert!(!peer.takes(), "so many at once");
        peer.gave_back(FlightId(5));
        assert!(peer.takes());
        // Another part of a listing is asked for under the same number.
        peer.asked(Micros(40), FlightId(6));
        assert!(!peer.takes());
        peer.is_at_work(FlightId(5));
        assert!(!peer.takes(), "that one is over");
    }

    #[test]
    fn another_life_of_one_that_was_sought_for_long_is_asked_at_once() {
        let mut peer = ready();
        peer.set_role(Role::Sought);
        let mut at = Micros(0);
        for id in 2..12 {
            at = peer.next_probe(DETECT_US).unwrap().max(Micros(1_000_000));
            peer.probed(at, id, &root);
        }
        assert_eq!(peer.next_probe(DETECT_US), Some(at.after_us(PROBE_PAUSE_MAX_US)));
        assert!(peer.heard(at.after_us(PROBE_PAUSE_MIN_US), 8));
        assert_eq!(peer.next_probe(DETECT_US), Some(at.after_us(PROBE_PAUSE_MIN_US)));
    }

    #[test]
    fn a_late_frame_that_is_taken_for_another_life_is_found_out_by_the_next_probe() {
        let mut peer = ready();
        // A copy of what an earlier life said, of which nothing was heard before.
        assert!(peer.heard(Micros(20), 6) && !peer.is_ready());
        assert!(!peer.heard(Micros(30), 7), "this may be late as well");
        peer.probed(Micros(40), 2, &root);
        assert!(!peer.is_back(Micros(50), 7, 1) && peer.silent_us(Micros(50)) == 10, "an answer from before");
        assert!(!peer.is_back(Micros(50), 7, 3) && !peer.is_back(Micros(50), 5, 2));
        assert!(peer.is_back(Micros(60), 7, 2) && peer.silent_us(Micros(60)) == 0);
        peer.answered(Micros(60), 7, 2, true, 64);
        assert!(peer.is_ready() && !peer.heard(Micros(70), 7));
        // The copies that come after it turn nothing back.
        assert!(!peer.heard(Micros(80), 6) && !peer.is_back(Micros(80), 6, 2) && peer.is_ready());
    }
}
