//! Our rule: the daemons' own core on every node, and kernels that remember names as its answers allow.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

use super::super::report::SimError;
use super::super::rng::mix;
use super::world::{Memory, World};
use super::{Ask, EnoentConfig, Row, Script, Step, There, node_id};
use crate::cache::arena::ArenaConfig;
use crate::cache::chunks::CHUNK_BYTES;
use crate::cache::enoent::{EnoentConfig as MapConfig, EnoentMap};
use crate::cache::names::{NamesConfig, NamesWriter};
use crate::cache::store::ChunkStore;
use crate::cache::types::{Attr, Kind, ListEntry, Listing, ListingBuilder, Micros, Timestamp};
use crate::core::limits::REQUESTS_AT_PARENT_MAX;
use crate::core::{
    BackendOp, BackendReply, FlightId, Found, Listed, Node, NodeConfig, Object, Outcome, Output, Topology, Waiter,
};

const ENOENT: i32 = rustix::io::Errno::NOENT.raw_os_error();
const E2BIG: i32 = rustix::io::Errno::TOOBIG.raw_os_error();
const ENOTDIR: i32 = rustix::io::Errno::NOTDIR.raw_os_error();

/// By so much less than the node does the kernel remember an absent name, as the daemon tells it.
const NEGATIVE_MARGIN_US: u64 = 20_000;
/// Absent names that a node remembers at most.
const ENOENT_ENTRIES: usize = 16_384;
/// Everything in the tree was last changed so long ago that nothing is in doubt.
const CHANGED: Timestamp = Timestamp { secs: 1_700_000_000, nanos: 0 };

pub(super) enum Event {
    Frame { to: usize, frame: Vec<u8> },
    Backend { node: usize, id: FlightId, op: BackendOp },
    Timer { node: usize },
}

struct Place {
    node: Node,
    enoent: Arc<EnoentMap>,
    /// The time of the timer event that counts.
    timer: u64,
    /// By path: until when the kernel remembers its name, there or not.
    kernel: Vec<u64>,
}

pub(super) struct Ours {
    places: Vec<Place>,
    /// By path: its place in the script.
    paths: HashMap<Box<[u8]>, u32>,
    /// By path, of directories: the names that the script knows in them.
    listings: Vec<Vec<u32>>,
    stamp: u64,
    backend_enoent: u64,
    backend_lookups: u64,
    backend_listings: u64,
}

impl Ours {
    pub(super) fn new(config: &EnoentConfig, script: &Script, ttl: Duration) -> Result<Ours, SimError> {
        let places = (0..config.nodes as usize).map(|at| place(config, script, ttl, at)).collect::<Result<_, _>>()?;
        let number = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        let paths: HashMap<Box<[u8]>, u32> =
            script.paths.iter().enumerate().map(|(at, (path, _))| (path.clone(), number(at))).collect();
        let mut listings = vec![Vec::new(); script.paths.len()];
        for (at, (path, there)) in script.paths.iter().enumerate() {
            let dir = path.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |slash| &path[..slash]);
            if let Some(dir) = paths.get(dir).filter(|_| *there != There::Nothing && !path.is_empty()) {
                listings[*dir as usize].push(number(at));
            }
        }
        Ok(Ours { places, paths, listings, stamp: 0, backend_enoent: 0, backend_lookups: 0, backend_listings: 0 })
    }

    /// Carries out what `node` asks for after a call whose work is done at `done`, and sets its timer.
    fn after(&mut self, world: &mut World<'_, Event>, at: usize, done: u64) {
        let now = Micros(world.now);
        while let Some(output) = self.places[at].node.poll_output() {
            let node = &mut self.places[at].node;
            match output {
                Output::Send { to, frame } => {
                    let arrives = world.travel(done);
                    world.push(arrives, Event::Frame { to: to.0 as usize, frame });
                }
                Output::Backend { id, op } => {
                    let ready = self.note(&op, world.script).map_or(done, |()| world.backend(done));
                    world.push(ready, Event::Backend { node: at, id, op });
                }
                Output::Complete { waiter, outcome } => self.complete(world, at, waiter, &outcome, done),
                Output::Arrange { id, parts, stamp } => node.arranged(now, id, parts.build(stamp)),
                Output::Register { segment, .. } => node.registered(segment, u64::from(segment)),
                Output::Fence { id } => node.fenced(now, id),
                Output::Invalidate { path, .. } | Output::Expire { path, .. } | Output::Release { path } => {
                    if let Some(path) = self.paths.get(&path) {
                        self.places[at].kernel[*path as usize] = 0;
                    }
                }
                // No bytes are asked for, and nothing is invalidated.
                Output::Pull { .. } | Output::Verify { .. } | Output::Swept { .. } => {}
            }
        }
        let place = &mut self.places[at];
        if let Some(next) = place.node.next_deadline().filter(|next| next.0 < place.timer) {
            place.timer = next.0;
            world.push(next.0, Event::Timer { node: at });
        }
    }

    /// Counts a metadata operation of the backend; none for what is not one.
    fn note(&mut self, op: &BackendOp, script: &Script) -> Option<()> {
        match op {
            BackendOp::Attr { path } => {
                let there = self.paths.get(&path[..]).map(|path| script.paths[*path as usize].1);
                self.backend_lookups += match there {
                    // lstat, and readlink.
                    Some(There::Object { kind, .. }) if kind == Kind::Symlink as u8 => 2,
                    _ => 1,
                };
                self.backend_enoent += u64::from(there == Some(There::Nothing));
            }
            BackendOp::Chunk { .. } | BackendOp::Recheck { .. } | BackendOp::Statfs => return None,
            BackendOp::List { .. } => self.backend_listings += 1,
        }
        Some(())
    }

    fn complete(&mut self, world: &mut World<'_, Event>, at: usize, waiter: u64, outcome: &Outcome, done: u64) {
        // The step that the rank is at, as it was asked.
        let (rank, path) = (waiter as u32, (waiter >> 32) as usize);
        let kernel = &mut self.places[at].kernel[path];
        let answer = match outcome {
            Outcome::Entry(inode) => {
                *kernel = inode.expires().0;
                Some(There::Object { kind: inode.attr.kind() as u8, size: inode.attr.size })
            }
            Outcome::Absent { expires } => {
                *kernel = expires.0.saturating_sub(NEGATIVE_MARGIN_US);
                Some(There::Nothing)
            }
            Outcome::Listing { .. } => Some(world.script.paths[path].1),
            Outcome::Chunk(_) | Outcome::Statfs(_) | Outcome::Failed { .. } => None,
        };
        world.answer(rank, done, answer);
    }

    fn answer(&mut self, script: &Script, op: &BackendOp) -> BackendReply {
        let find = |path: &[u8]| self.paths.get(path).map(|at| (*at, script.paths[*at as usize].1));
        match op {
            BackendOp::List { path, names_max } => BackendReply::List(match find(path) {
                Some((at, There::Object { kind, size })) if kind == Kind::Dir as u8 => {
                    let names = &self.listings[at as usize];
                    self.stamp += 1;
                    let listing = listing(script, names, self.stamp);
                    let settled = Some(attr(at, kind, size));
                    if names.len() > *names_max {
                        Err(E2BIG)
                    } else {
                        Ok(Listed { listing, is_complete: true, settled })
                    }
                }
                Some((_, There::Object { .. })) => Err(ENOTDIR),
                _ => Err(ENOENT),
            }),
            BackendOp::Attr { path } => BackendReply::Attr(match find(path) {
                Some((at, There::Object { kind, size })) => {
                    let target = (kind == Kind::Symlink as u8).then(|| Box::from(&b"target"[..]));
                    Ok(Found { attr: attr(at, kind, size), target })
                }
                _ => Err(ENOENT),
            }),
            BackendOp::Chunk { .. } | BackendOp::Recheck { .. } | BackendOp::Statfs => {
                BackendReply::Attr(Err(rustix::io::Errno::IO.raw_os_error()))
            }
        }
    }
}

fn place(config: &EnoentConfig, script: &Script, ttl: Duration, at: usize) -> Result<Place, SimError> {
    let topology = Topology::new(config.nodes, node_id(at), 1, config.fanout)?;
    let key = [mix(config.seed ^ at as u64), mix(!config.seed)];
    let names = NamesWriter::new(NamesConfig { index_shards: 1, retired_max: 64, ..NamesConfig::new(key) });
    let enoent = Arc::new(EnoentMap::new(MapConfig { entries_max: ENOENT_ENTRIES, ..MapConfig::new(key) }));
    let arena = ArenaConfig { first_segment_bytes: CHUNK_BYTES, segment_bytes: CHUNK_BYTES, max_bytes: CHUNK_BYTES };
    let receives = (topology.children().count() + 1) * REQUESTS_AT_PARENT_MAX;
    let incarnation = mix(config.seed ^ (at as u64) << 32);
    let node_config = NodeConfig {
        enoent_ttl: ttl,
        complete_dirs: config.complete_dirs,
        // Bytes are not simulated, nor what the kernels hold.
        foresight: false,
        dir_ttl: Duration::from_micros(config.dir_ttl_us),
        ..NodeConfig::new(topology, config.seed, incarnation, receives)
    };
    let mut node = Node::new(node_config, names, Arc::clone(&enoent), ChunkStore::new(arena).0);
    node.open_for_service();
    Ok(Place { node, enoent, timer: u64::MAX, kernel: vec![0; script.paths.len()] })
}

fn attr(path: u32, kind: u8, size: u64) -> Attr {
    Attr {
        mode: u32::from(kind) << 12 | 0o555,
        uid: 0,
        gid: 0,
        blksize: 4096,
        nlink: 1,
        rdev: 0,
        size,
        blocks: size.div_ceil(512),
        mtime: CHANGED,
        ctime: CHANGED,
        backend_ino: u64::from(path) + 2,
        backend_dev: 1,
        change: 0,
    }
}

fn listing(script: &Script, names: &[u32], stamp: u64) -> Listing {
    let mut builder = ListingBuilder::default();
    for at in names {
        let (path, there) = &script.paths[*at as usize];
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        let There::Object { kind, .. } = there else { continue };
        let kind = Kind::from_d_type(*kind);
        // A path's last part is a name of 1 to 255 bytes, or the tree could not have it.
        let _ = builder.push(ListEntry { name, kind, backend_ino: u64::from(*at) + 2 });
    }
    builder.build(stamp)
}

impl Memory for Ours {
    type Event = Event;

    fn start(&mut self, world: &mut World<'_, Event>) {
        (0..self.places.len()).for_each(|at| self.after(world, at, 0));
    }

    fn kernel_knows(&mut self, node: usize, step: &Step, now: u64) -> bool {
        // The text of a link is kept as long as its name is.
        step.ask != Ask::List && self.places[node].kernel[step.path as usize] > now
    }

    fn ask(&mut self, world: &mut World<'_, Event>, node: usize, rank: u32, step: &Step) {
        let done = world.work(node, world.config.request_us);
        let path: Arc<[u8]> = world.script.paths[step.path as usize].0[..].into();
        let waiter = Waiter::Local(u64::from(rank) | u64::from(step.path) << 32);
        let object = if step.ask == Ask::List { Object::List(path) } else { Object::Attr(path) };
        self.places[node].node.request(Micros(world.now), object, waiter);
        self.after(world, node, done);
    }

    fn happen(&mut self, world: &mut World<'_, Event>, event: Event) {
        let now = Micros(world.now);
        match event {
            Event::Frame { to, frame } => {
                let done = world.work(to, world.config.message_us);
                let asked = self.places[to].node.counters().peers_attr;
                self.places[to].node.frame(now, &frame);
                if self.places[to].node.counters().peers_attr > asked {
                    world.note_asked();
                }
                self.after(world, to, done);
            }
            Event::Backend { node, id, op } => {
                let reply = self.answer(world.script, &op);
                self.places[node].node.backend(now, id, reply);
                self.after(world, node, world.now);
            }
            Event::Timer { node } => {
                let place = &mut self.places[node];
                if place.timer == world.now {
                    place.timer = u64::MAX;
                    place.node.timer(now);
                    self.after(world, node, world.now);
                }
            }
        }
    }

    fn count(&self, row: &mut Row) {
        for place in &self.places {
            let stats = place.enoent.stats();
            row.ttl_stores += stats.stores;
            row.ttl_serves += stats.serves;
            row.stale_completed += stats.expires;
            row.listing_serves += place.node.counters().listing_serves;
        }
        row.backend_enoent = self.backend_enoent;
        row.backend_lookups = self.backend_lookups;
        row.backend_listings = self.backend_listings;
    }
}
