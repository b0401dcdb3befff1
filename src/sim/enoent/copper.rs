//! Copper's rule: every node remembers the exact path that is absent, for a whole TTL from when it hears of it, whatever
//! time the answer took through the tree; what is there it remembers for ever. The kernels are told to remember nothing
//! (all timeouts 0), so every step of every path comes to the daemon, which has one thread for them: while it waits for its
//! parent, the requests of the other ranks of its node wait too. Other nodes are answered meanwhile. Requests for one path
//! that are under way are joined at every node, which is more than Copper does at its root.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::super::report::SimError;
use super::world::{Memory, World, object_of};
use super::{Ask, EnoentConfig, Row, Script, Step, There, node_id};
use crate::core::Topology;

/// Who waits for an answer.
#[derive(Clone, Copy)]
enum Waiter {
    Rank(u32),
    Child(u32),
}

pub(super) enum Event {
    /// A child asks its parent.
    Asked { node: u32, child: u32, object: u32 },
    /// The answer arrives, from the parent or the backend.
    Answered { node: u32, object: u32 },
}

/// It is there.
const FOUND: u64 = u64::MAX;
/// Nobody asked yet.
const UNKNOWN: u64 = 0;

pub(super) struct Copper {
    ttl_us: u64,
    objects: usize,
    parents: Vec<Option<u32>>,
    /// By node and object: until when it is known to be absent.
    known: Vec<u64>,
    under_way: HashMap<(u32, u32), Vec<Waiter>>,
    /// By node: what waits for the thread that takes requests of the kernel; none while that is free.
    threads: Vec<Option<VecDeque<(u32, u32)>>>,
    stale: u64,
    stores: u64,
    serves: u64,
    backend_enoent: u64,
    backend_lookups: u64,
    backend_listings: u64,
}

impl Copper {
    pub(super) fn new(config: &EnoentConfig, script: &Script, ttl_us: u64) -> Result<Copper, SimError> {
        let parents = (0..config.nodes as usize).map(|node| {
            let topology = Topology::new(config.nodes, node_id(node), 1, config.fanout)?;
            Ok(topology.parent().map(|parent| parent.0))
        });
        let objects = script.paths.len() * 3;
        Ok(Copper {
            ttl_us,
            objects,
            parents: parents.collect::<Result<_, SimError>>()?,
            known: vec![UNKNOWN; objects * config.nodes as usize],
            under_way: HashMap::new(),
            threads: vec![None; config.nodes as usize],
            stale: 0,
            stores: 0,
            serves: 0,
            backend_enoent: 0,
            backend_lookups: 0,
            backend_listings: 0,
        })
    }

    fn known(&mut self, node: u32, object: u32) -> &mut u64 {
        &mut self.known[node as usize * self.objects + object as usize]
    }

    /// Answers a request, or asks upstream; whether it is answered.
    fn request(&mut self, world: &mut World<'_, Event>, node: u32, object: u32, waiter: Waiter, done: u64) -> bool {
        let now = world.now;
        let known = *self.known(node, object);
        if known > now {
            self.serves += u64::from(known != FOUND);
            self.tell(world, object, waiter, done);
            return true;
        }
        if known != UNKNOWN {
            self.stale += 1;
            *self.known(node, object) = UNKNOWN;
        }
        let waiters = self.under_way.entry((node, object)).or_default();
        waiters.push(waiter);
        if waiters.len() > 1 {
            return false;
        }
        match self.parents[node as usize] {
            Some(parent) => {
                let at = world.travel(done);
                world.push(at, Event::Asked { node: parent, child: node, object });
            }
            None => {
                let absent = world.script.paths[(object / 3) as usize].1 == There::Nothing;
                match object % 3 {
                    1 => self.backend_listings += 1,
                    _ => self.backend_lookups += 1,
                }
                self.backend_enoent += u64::from(absent);
                let at = world.backend(done);
                world.push(at, Event::Answered { node, object });
            }
        }
        false
    }

    /// The thread of `node` takes what waits for it, until it has to wait for an answer itself.
    fn take(&mut self, world: &mut World<'_, Event>, node: u32) {
        while let Some(waiting) = &mut self.threads[node as usize] {
            let Some((rank, object)) = waiting.pop_front() else {
                self.threads[node as usize] = None;
                return;
            };
            let done = world.work(node as usize, world.config.request_us);
            if !self.request(world, node, object, Waiter::Rank(rank), done) {
                return;
            }
        }
    }

    fn tell(&self, world: &mut World<'_, Event>, object: u32, waiter: Waiter, at: u64) {
        match waiter {
            Waiter::Rank(rank) => {
                let there = world.script.paths[(object / 3) as usize].1;
                world.answer(rank, at, Some(there));
            }
            Waiter::Child(child) => {
                let at = world.travel(at);
                world.push(at, Event::Answered { node: child, object });
            }
        }
    }
}

impl Memory for Copper {
    type Event = Event;

    fn start(&mut self, _: &mut World<'_, Event>) {}

    fn kernel_knows(&mut self, _: usize, _: &Step, _: u64) -> bool {
        false
    }

    fn ask(&mut self, world: &mut World<'_, Event>, node: usize, rank: u32, step: &Step) {
        let is_free = self.threads[node].is_none();
        self.threads[node].get_or_insert_default().push_back((rank, object_of(step.path, step.ask)));
        if is_free {
            self.take(world, node_id(node).0);
        }
    }

    fn happen(&mut self, world: &mut World<'_, Event>, event: Event) {
        match event {
            Event::Asked { node, child, object } => {
                world.note_asked();
                let done = world.work(node as usize, world.config.message_us);
                self.request(world, node, object, Waiter::Child(child), done);
            }
            Event::Answered { node, object } => {
                let done = world.work(node as usize, world.config.message_us);
                let is_there = world.script.paths[(object / 3) as usize].1 != There::Nothing;
                let until = if is_there { FOUND } else { world.now.saturating_add(self.ttl_us).min(FOUND - 1) };
                self.stores += u64::from(!is_there);
                *self.known(node, object) = until;
                let waiters = self.under_way.remove(&(node, object)).unwrap_or_default();
                let is_own = waiters.iter().any(|waiter| matches!(waiter, Waiter::Rank(_)));
                waiters.into_iter().for_each(|waiter| self.tell(world, object, waiter, done));
                if is_own {
                    self.take(world, node);
                }
            }
        }
    }

    fn count(&self, row: &mut Row) {
        row.stale_completed = self.stale;
        row.ttl_stores = self.stores;
        row.ttl_serves = self.serves;
        row.backend_enoent = self.backend_enoent;
        row.backend_lookups = self.backend_lookups;
        row.backend_listings = self.backend_listings;
    }
}

const _: () = assert!(object_of(1, Ask::Link) / 3 == 1 && object_of(1, Ask::List) % 3 == 1);
