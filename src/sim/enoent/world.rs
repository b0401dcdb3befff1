//! What both rules share: ranks, time, processors, the backend, and the count.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashSet;

use super::super::report::SimError;
use super::super::rng::Rng;
use super::{Ask, EnoentConfig, Row, Rule, Script, Step, There};

/// Ranks begin when the nodes have found each other.
const BEGIN_US: u64 = 2_000_000;
/// A run that takes longer does not end.
const END_US: u64 = 4 * 3_600_000_000;

/// Who remembers what.
pub(super) trait Memory: Sized {
    /// What happens to nodes.
    type Event;

    /// The nodes start.
    fn start(&mut self, world: &mut World<'_, Self::Event>);

    /// Whether the kernel of `node` answers this by itself.
    fn kernel_knows(&mut self, node: usize, step: &Step, now: u64) -> bool;

    /// The kernel of `node` asks its daemon for `rank`; [`World::answer`] now or later.
    fn ask(&mut self, world: &mut World<'_, Self::Event>, node: usize, rank: u32, step: &Step);

    /// Something happens.
    fn happen(&mut self, world: &mut World<'_, Self::Event>, event: Self::Event);

    /// Adds what the nodes counted.
    fn count(&self, row: &mut Row);
}

enum Event<E> {
    /// A rank asks for the next thing.
    Rank(u32),
    Node(E),
}

/// An event in the queue: the first in time, then the first that was put there, is the greatest.
struct Timed<E>(Reverse<(u64, u64)>, Event<E>);

impl<E> PartialEq for Timed<E> {
    fn eq(&self, other: &Timed<E>) -> bool {
        self.0 == other.0
    }
}
impl<E> Eq for Timed<E> {}
impl<E> PartialOrd for Timed<E> {
    fn partial_cmp(&self, other: &Timed<E>) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Timed<E> {
    fn cmp(&self, other: &Timed<E>) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

/// Everything but the nodes' memory.
pub(super) struct World<'a, E> {
    pub(super) config: &'a EnoentConfig,
    pub(super) script: &'a Script,
    pub(super) now: u64,
    pub(super) rng: Rng,
    queue: BinaryHeap<Timed<E>>,
    number: u64,
    /// The step that each rank is at.
    at: Vec<u32>,
    /// When each node's processor is free.
    free: Vec<u64>,
    /// When each place at the backend is.
    slots: BinaryHeap<Reverse<u64>>,
    running: usize,
    ended: u64,
    /// The millisecond in which a node was last asked by another one, and how often that was so.
    asked: (u64, u64),
    row: Row,
}

impl<E> World<'_, E> {
    pub(super) fn push(&mut self, at: u64, event: E) {
        self.schedule(at, Event::Node(event));
    }

    fn schedule(&mut self, at: u64, event: Event<E>) {
        self.number += 1;
        self.queue.push(Timed(Reverse((at.max(self.now), self.number)), event));
    }

    /// Has the processor of `node` work for so long, after what it has to do already. When that is done.
    pub(super) fn work(&mut self, node: usize, for_us: u64) -> u64 {
        let done = self.free[node].max(self.now) + for_us;
        self.free[node] = done;
        done
    }

    /// When a message that is sent at `at` arrives.
    pub(super) fn travel(&mut self, at: u64) -> u64 {
        self.row.messages += 1;
        at + self.config.net_us
    }

    /// A node is asked by another one.
    pub(super) fn note_asked(&mut self) {
        let ms = self.now / 1_000;
        self.asked = (ms, if self.asked.0 == ms { self.asked.1 + 1 } else { 1 });
        self.row.asked_peak = self.row.asked_peak.max(self.asked.1);
    }

    /// When the backend has done an operation that is asked for at `at`.
    pub(super) fn backend(&mut self, at: u64) -> u64 {
        let free = self.slots.pop().map_or(at, |Reverse(free)| free.max(at));
        let quarter = self.config.backend_us / 4;
        let done = free + self.config.backend_us - quarter + self.rng.up_to(2 * quarter);
        self.slots.push(Reverse(done));
        done
    }

    /// A rank gets its answer at `at`, and goes on.
    pub(super) fn answer(&mut self, rank: u32, at: u64, answer: Option<There>) {
        let step = &self.script.steps[self.at[rank as usize] as usize];
        self.row.success &= answer == Some(self.script.paths[step.path as usize].1);
        self.next(rank, at);
    }

    /// A rank goes to its next step, which comes at the time that is given back; none: it has no more.
    fn advance(&mut self, rank: u32, at: u64) -> Option<u64> {
        self.at[rank as usize] += 1;
        match self.script.steps.get(self.at[rank as usize] as usize) {
            Some(step) => {
                let quarter = step.think_us / 4;
                Some(at + step.think_us - quarter + self.rng.up_to(2 * quarter))
            }
            None => {
                self.running -= 1;
                self.ended = self.ended.max(at);
                None
            }
        }
    }

    fn next(&mut self, rank: u32, at: u64) {
        if let Some(at) = self.advance(rank, at) {
            self.schedule(at, Event::Rank(rank));
        }
    }

    fn node_of(&self, rank: u32) -> usize {
        (rank / self.config.ranks_per_node) as usize
    }
}

/// Runs to the end.
pub(super) fn run<M: Memory>(
    config: &EnoentConfig,
    script: &Script,
    mut memory: M,
    rule: Rule,
    ttl_us: u64,
) -> Result<Row, SimError> {
    let (nodes, ranks) = (config.nodes as usize, config.nodes * config.ranks_per_node);
    let row = Row {
        rule,
        ttl_ms: ttl_us / 1_000,
        success: true,
        elapsed_us: 0,
        stale_completed: 0,
        ttl_stores: 0,
        ttl_serves: 0,
        listing_serves: 0,
        kernel_serves: 0,
        requests: 0,
        messages: 0,
        asked_peak: 0,
        backend_enoent: 0,
        backend_lookups: 0,
        backend_listings: 0,
        backend_ops: 0,
        backend_beyond: 0,
    };
    let mut world = World {
        config,
        script,
        now: 0,
        rng: Rng::new(config.seed),
        queue: BinaryHeap::new(),
        number: 0,
        at: vec![0; ranks as usize],
        free: vec![0; nodes],
        slots: (0..config.backend_slots).map(|_| Reverse(0)).collect(),
        running: ranks as usize,
        ended: BEGIN_US,
        asked: (0, 0),
        row,
    };
    memory.start(&mut world);
    let mut first = u64::MAX;
    for node in 0..config.nodes {
        let of_node = world.rng.up_to(config.skew_us / 2);
        for rank in 0..config.ranks_per_node {
            let at = BEGIN_US + of_node + world.rng.up_to(config.skew_us / 2);
            first = first.min(at);
            match script.steps.is_empty() {
                true => world.running -= 1,
                false => world.schedule(at, Event::Rank(node * config.ranks_per_node + rank)),
            }
        }
    }
    while world.running > 0 {
        let event = world.queue.pop().filter(|Timed(Reverse((at, _)), _)| *at < END_US);
        let Some(Timed(Reverse((at, _)), event)) = event else {
            let what = format!("{} of {ranks} ranks have no answer", world.running);
            return Err(SimError::Liveness { seed: config.seed, at_us: world.now, what });
        };
        world.now = at;
        match event {
            Event::Rank(rank) => go(&mut world, &mut memory, rank),
            Event::Node(event) => memory.happen(&mut world, event),
        }
    }
    let mut row = world.row;
    row.elapsed_us = world.ended - first.min(world.ended);
    memory.count(&mut row);
    row.backend_ops = row.backend_lookups + row.backend_listings;
    row.backend_beyond = row.backend_ops.saturating_sub(things_asked_for(script));
    Ok(row)
}

/// Names, listings and links that are there and that the script asks for: each costs whoever runs it one operation.
fn things_asked_for(script: &Script) -> u64 {
    let there = |step: &&Step| script.paths[step.path as usize].1 != There::Nothing;
    let objects: HashSet<u32> = script.steps.iter().filter(there).map(|step| object_of(step.path, step.ask)).collect();
    objects.len() as u64
}

/// A rank's turn: what its kernel knows it gets at once.
fn go<M: Memory>(world: &mut World<'_, M::Event>, memory: &mut M, rank: u32) {
    let node = world.node_of(rank);
    loop {
        let step = world.script.steps[world.at[rank as usize] as usize];
        if !memory.kernel_knows(node, &step, world.now) {
            world.row.requests += 1;
            return memory.ask(world, node, rank, &step);
        }
        world.row.kernel_serves += 1;
        let Some(at) = world.advance(rank, world.now + world.config.kernel_us) else { return };
        // Whoever comes first goes first.
        if world.queue.peek().is_some_and(|Timed(Reverse((next, _)), _)| *next <= at) {
            return world.schedule(at, Event::Rank(rank));
        }
        world.now = at;
    }
}

/// The number of what a step asks for among all that the script may ask for.
pub(super) const fn object_of(path: u32, ask: Ask) -> u32 {
    3 * path
        + match ask {
            Ask::Name => 0,
            Ask::List => 1,
            Ask::Link => 2,
        }
}
