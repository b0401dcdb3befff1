//! The start of a large job, simulated: every node registers, looks for its parent, tells that it is ready, and asks for one
//! file, over a network that takes its time, while some nodes come late. The daemons' own core, and virtual time.
//!
//! Beside it the arithmetic of two rules by which the nodes of Copper looked for their parents: one probe each 10 ms for 5 s,
//! and pauses that double up to 1 s for 120 s. There a child has its parent or has failed; nobody asks another node.
//!
//! Used by tests and by the bench `startup`. It touches no file, socket or clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use serde::Serialize;

use super::SimError;
use super::rng::{Rng, mix};
use crate::cache::arena::ArenaConfig;
use crate::cache::chunks::CHUNK_BYTES;
use crate::cache::enoent::{EnoentConfig, EnoentMap};
use crate::cache::names::{NamesConfig, NamesWriter};
use crate::cache::store::ChunkStore;
use crate::cache::types::{Attr, Micros, Timestamp};
use crate::core::limits::{PROBE_BUDGET_US, PROBE_PAUSE_MAX_US, PROBE_PAUSE_MIN_US, REQUESTS_AT_PARENT_MAX};
use crate::core::{
    BackendOp, BackendReply, FlightId, Found, Node, NodeConfig, NodeId, Object, Outcome, Output, Secret, Topology,
    Waiter,
};

/// Names that are absent: none is asked for here.
const ENOENT_ENTRIES: usize = 16;
/// A run is given up after so much virtual time.
const END_US: u64 = 600_000_000;
/// The budget of Copper's first rule.
const FIXED_BUDGET_US: u64 = 5_000_000;

/// What is simulated. Times are virtual, in microseconds.
#[derive(Clone, Debug)]
pub struct StartupConfig {
    /// Everything follows from it.
    pub seed: u64,
    /// Nodes of the job, in one tree.
    pub nodes: u32,
    /// When a node has registered, after the beginning: the earliest and the latest.
    pub registration_us: (u64, u64),
    /// Of a thousand nodes so many register late. Never the root, for which all wait.
    pub late_per_mille: u64,
    /// So much later.
    pub late_us: u64,
    /// The shortest and the longest time that a message takes.
    pub delay_us: (u64, u64),
    /// Whether the job has a secret.
    pub has_secret: bool,
}

/// What a start came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Startup {
    /// Nodes that came late.
    pub late: u64,
    /// When the last node had registered.
    pub registered_us: u64,
    /// When the root knew that every node is ready.
    pub ready_us: u64,
    /// Probes that were sent until then.
    pub probes: u64,
    /// Those that had no answer, or the answer that the node does not serve yet.
    pub failures: u64,
    /// Frames that were sent until then.
    pub frames: u64,
    /// The longest time for which a node waited for its file, from its registration: of those without a late node above.
    pub waited_us_max: u64,
    /// Of those below a late node, but for nodes that are late themselves.
    pub waited_below_late_us_max: u64,
    /// Nodes that did not get their file.
    pub failed: u64,
}

/// What one of Copper's rules comes to with the same nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ByRule {
    /// Probes that failed ("readiness probe exceptions").
    pub failures: u64,
    /// Nodes that gave up.
    pub failed: u64,
    /// The longest wait of a node that did not.
    pub waited_us_max: u64,
}

/// How a node looks for its parent, in Copper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Each 10 ms, for 5 s.
    Fixed,
    /// After 10 ms, 20 ms and so on up to 1 s, for 120 s.
    Doubling,
}

enum What {
    Start,
    Frame(Vec<u8>),
    Timer,
    Backend(FlightId),
}

struct Event {
    at: u64,
    number: u64,
    node: u32,
    what: What,
}

impl PartialEq for Event {
    fn eq(&self, other: &Event) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Event) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Event) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

struct Place {
    node: Option<Node>,
    registers: u64,
    is_late: bool,
    timer: u64,
    answered: Option<(u64, bool)>,
}

struct World<'a> {
    config: &'a StartupConfig,
    rng: Rng,
    queue: BinaryHeap<Reverse<Event>>,
    number: u64,
    now: u64,
    places: Vec<Place>,
    frames: u64,
}

/// When each node registers, and whether that is late. The same for every rule.
fn registrations(config: &StartupConfig) -> Vec<(u64, bool)> {
    let mut rng = Rng::new(mix(config.seed));
    let (first, last) = config.registration_us;
    let times = (0..config.nodes).map(|node| {
        let at = first + rng.up_to(last - first);
        let is_late = rng.per_mille(config.late_per_mille) && node > 0;
        (if is_late { at + config.late_us } else { at }, is_late)
    });
    times.collect()
}

/// Runs a start until every node is ready as the root knows, and has its file.
///
/// # Errors
/// [`SimError::Liveness`] where that does not come, [`SimError::Topology`] without nodes.
pub fn run(config: &StartupConfig) -> Result<Startup, SimError> {
    let places = registrations(config).into_iter().map(|(registers, is_late)| Place {
        node: None,
        registers,
        is_late,
        timer: u64::MAX,
        answered: None,
    });
    let mut world = World {
        config,
        rng: Rng::new(config.seed),
        queue: BinaryHeap::new(),
        number: 0,
        now: 0,
        places: places.collect(),
        frames: 0,
    };
    for node in 0..config.nodes {
        world.push(world.places[node as usize].registers, node, What::Start);
    }
    let mut result = Startup {
        late: world.places.iter().map(|place| u64::from(place.is_late)).sum(),
        registered_us: world.places.iter().map(|place| place.registers).max().unwrap_or(0),
        ..Startup::default()
    };
    let mut left = config.nodes;
    let mut version = 0;
    while left > 0 || result.ready_us == 0 {
        let Some(Reverse(event)) = world.queue.pop().filter(|Reverse(event)| event.at < END_US) else {
            let root = world.places.first().and_then(|place| place.node.as_ref());
            let readiness = root.map(Node::readiness).unwrap_or_default();
            let what = format!("{left} nodes without an answer, {} of {} ready", readiness.ready, readiness.nodes);
            return Err(SimError::Liveness { seed: config.seed, at_us: world.now, what });
        };
        world.now = event.at;
        let was_answered = world.places[event.node as usize].answered.is_some();
        world.happen(event.node, event.what)?;
        let place = &world.places[event.node as usize];
        left -= u32::from(!was_answered && place.answered.is_some());
        if let (0, 0, Some(node)) = (event.node, result.ready_us, &place.node)
            && node.readiness_version() != version
        {
            version = node.readiness_version();
            if node.readiness().ready == config.nodes {
                result.ready_us = world.now;
                world.count(&mut result);
            }
        }
    }
    world.waits(&mut result)?;
    Ok(result)
}

impl World<'_> {
    fn push(&mut self, at: u64, node: u32, what: What) {
        self.number += 1;
        self.queue.push(Reverse(Event { at, number: self.number, node, what }));
    }

    fn happen(&mut self, at: u32, what: What) -> Result<(), SimError> {
        let now = Micros(self.now);
        let place = &mut self.places[at as usize];
        match (what, &mut place.node) {
            (What::Start, _) => {
                let mut node = make(self.config, at)?;
                node.begin_log(now, |node| format!("node {node}"));
                node.open_for_service();
                node.mounted(now);
                node.request(now, Object::Attr(b"file".as_slice().into()), Waiter::Local(0));
                place.node = Some(node);
            }
            (What::Frame(frame), Some(node)) => node.frame(now, &frame),
            (What::Timer, Some(node)) if place.timer <= self.now => {
                place.timer = u64::MAX;
                node.timer(now);
            }
            (What::Backend(id), Some(node)) => {
                node.backend(now, id, BackendReply::Attr(Ok(Found { attr: file(), target: None })));
            }
            // Nobody listens yet, or another timer was set meanwhile.
            (What::Frame(_) | What::Timer | What::Backend(_), _) => {}
        }
        self.after(at);
        Ok(())
    }

    fn after(&mut self, at: u32) {
        while let Some(output) = self.places[at as usize].node.as_mut().and_then(Node::poll_output) {
            match output {
                Output::Send { to, frame } => {
                    self.frames += 1;
                    let (least, most) = self.config.delay_us;
                    let arrives = self.now + least + self.rng.up_to(most - least);
                    self.push(arrives, to.0, What::Frame(frame));
                }
                Output::Backend { id, op: BackendOp::Attr { .. } } => {
                    self.push(self.now + self.config.delay_us.1, at, What::Backend(id));
                }
                Output::Complete { outcome, .. } => {
                    let is_there = matches!(outcome, Outcome::Entry(_));
                    self.places[at as usize].answered = Some((self.now, is_there));
                }
                _ => {}
            }
        }
        let place = &mut self.places[at as usize];
        let next = place.node.as_ref().and_then(Node::next_deadline).map_or(u64::MAX, |next| next.0.max(self.now));
        if next < place.timer {
            place.timer = next;
            self.push(next, at, What::Timer);
        }
    }

    fn count(&self, result: &mut Startup) {
        result.frames = self.frames;
        for node in self.places.iter().filter_map(|place| place.node.as_ref()) {
            let counters = node.counters();
            result.probes += counters.probes;
            result.failures += counters.probes_unanswered + counters.probes_not_serving;
        }
    }

    fn waits(&self, result: &mut Startup) -> Result<(), SimError> {
        for (at, place) in self.places.iter().enumerate() {
            let Some((answered, is_there)) = place.answered else { continue };
            result.failed += u64::from(!is_there);
            let waited = answered - place.registers;
            let me = NodeId(u32::try_from(at).unwrap_or(u32::MAX));
            let topology = Topology::new(self.config.nodes, me, 1, None)?;
            let is_above_late = |node: NodeId| self.places[node.0 as usize].is_late;
            let most =
                match std::iter::successors(topology.parent(), |node| topology.parent_of(*node)).any(is_above_late) {
                    true if place.is_late => continue,
                    true => &mut result.waited_below_late_us_max,
                    false => &mut result.waited_us_max,
                };
            *most = waited.max(*most);
        }
        Ok(())
    }
}

fn make(config: &StartupConfig, at: u32) -> Result<Node, SimError> {
    let topology = Topology::new(config.nodes, NodeId(at), 1, None)?;
    let key = [mix(config.seed ^ u64::from(at)), mix(!config.seed)];
    let names = NamesWriter::new(NamesConfig { index_shards: 1, retired_max: 4, ..NamesConfig::new(key) });
    let enoent = EnoentConfig { entries_max: ENOENT_ENTRIES, ..EnoentConfig::new(key) };
    let arena = ArenaConfig { first_segment_bytes: CHUNK_BYTES, segment_bytes: CHUNK_BYTES, max_bytes: CHUNK_BYTES };
    let receives = (topology.children().count() + 1) * REQUESTS_AT_PARENT_MAX;
    let incarnation = mix(config.seed ^ u64::from(at) << 32);
    let node_config = NodeConfig::new(topology, config.seed, incarnation, receives);
    let mut node = Node::new(node_config, names, Arc::new(EnoentMap::new(enoent)), ChunkStore::new(arena).0);
    if config.has_secret {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&mix(u64::from(at)).to_le_bytes());
        node.authenticate(Secret::new(b"the secret of a simulated job", seed));
    }
    Ok(node)
}

fn file() -> Attr {
    let time = Timestamp { secs: 1, nanos: 0 };
    Attr {
        mode: 0o100_444,
        uid: 0,
        gid: 0,
        blksize: 4096,
        nlink: 1,
        rdev: 0,
        size: 1,
        blocks: 1,
        mtime: time,
        ctime: time,
        backend_ino: 2,
        backend_dev: 1,
        change: 0,
    }
}

/// What the nodes of [`run`] come to by one of Copper's rules: each probes its parent from its own registration on, and finds
/// it once that has registered.
///
/// # Errors
/// [`SimError::Topology`] without nodes.
pub fn by_rule(config: &StartupConfig, rule: Rule) -> Result<ByRule, SimError> {
    let times = registrations(config);
    let mut result = ByRule::default();
    for at in 1..config.nodes {
        let topology = Topology::new(config.nodes, NodeId(at), 1, None)?;
        let parent = topology.parent().map_or(0, |parent| times[parent.0 as usize].0);
        let wait_us = parent.saturating_sub(times[at as usize].0);
        let (mut at_us, mut pause_us) = (0, PROBE_PAUSE_MIN_US);
        let budget_us = if rule == Rule::Fixed { FIXED_BUDGET_US } else { PROBE_BUDGET_US };
        while at_us < wait_us && at_us < budget_us {
            result.failures += 1;
            at_us += pause_us;
            if rule == Rule::Doubling {
                pause_us = (pause_us * 2).min(PROBE_PAUSE_MAX_US);
            }
        }
        if at_us < wait_us {
            result.failed += 1;
        } else {
            result.waited_us_max = result.waited_us_max.max(at_us);
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: StartupConfig = StartupConfig {
        seed: 1,
        nodes: 400,
        registration_us: (140_000, 171_000),
        late_per_mille: 0,
        late_us: 40_000_000,
        delay_us: (5, 50),
        has_secret: false,
    };

    #[test]
    fn nodes_that_start_together_are_ready_a_moment_after_the_last() {
        for has_secret in [false, true] {
            let start = run(&StartupConfig { has_secret, ..CONFIG }).unwrap();
            assert!(start.ready_us - start.registered_us < 200_000, "{start:?}");
            assert!(start.waited_us_max < 100_000 && start.failed == 0, "{start:?}");
            assert!(start.probes < 6 * 400 && start.frames < 30 * 400, "{start:?}");
        }
    }

    #[test]
    fn late_nodes_hold_up_nobody_but_those_below_them_and_those_for_two_seconds() {
        let config = StartupConfig { late_per_mille: 30, ..CONFIG };
        let start = run(&config).unwrap();
        assert!(start.late > 3 && start.failed == 0, "{start:?}");
        assert!(start.ready_us >= 40_000_000 && start.ready_us - start.registered_us < 2_000_000, "{start:?}");
        assert!(start.waited_us_max < 100_000, "{start:?}");
        assert!(start.waited_below_late_us_max.abs_diff(2_000_000) < 200_000, "{start:?}");
        // By the older rule they fail; by the newer one they wait for all of it.
        let (fixed, doubling) = (by_rule(&config, Rule::Fixed).unwrap(), by_rule(&config, Rule::Doubling).unwrap());
        assert!(fixed.failed > 0 && doubling.failed == 0, "{fixed:?} {doubling:?}");
        assert!(
            fixed.failures > 5 * doubling.failures && doubling.waited_us_max > 39_000_000,
            "{fixed:?} {doubling:?}"
        );
    }

    #[test]
    fn a_seed_gives_the_same_start() {
        let config = StartupConfig { late_per_mille: 10, late_us: 1_000_000, ..CONFIG };
        assert_eq!(run(&config).unwrap(), run(&config).unwrap());
    }
}
