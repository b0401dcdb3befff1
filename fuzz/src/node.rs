//! A node with little memory, driven by arbitrary bytes: frames of peers, requests of clients, time, and the late, wrong
//! or missing results of what it asked to be done.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bornite::cache::arena::ArenaConfig;
use bornite::cache::enoent::{EnoentConfig, EnoentMap};
use bornite::cache::names::{Names, NamesConfig, NamesWriter};
use bornite::cache::store::ChunkStore;
use bornite::cache::types::{Attr, Ino, Kind, ListEntry, ListingBuilder, Micros, Timestamp};
use bornite::core::limits::{FRAME_BYTES_MAX, REQUEST_DEADLINE_US};
use bornite::core::wire::{self, Grant, Header, Message, PART_BYTES_MAX};
use bornite::core::{
    BackendOp, BackendReply, ChunkFailure, ChunkRead, Found, Listed, Node, NodeConfig, NodeId, Object, Outcome, Output,
    Purpose, Topology, Waiter,
};

use super::bytes::Bytes;
use super::messages;

const NODES: u32 = 7;
const JOB: u64 = 1;
/// Steps of one input; longer ones say nothing new.
const STEPS_MAX: usize = 400;
/// Bounds of the node's memory.
const ARENA_BYTES: usize = 3 << 20;
const ENOENT_ENTRIES: u64 = 64;
const RETIRED: u64 = 4;

/// Few, so that inputs meet each other.
const PATHS: [&[u8]; 8] = [b"", b"d", b"d/f", b"d/g", b"f", b"g", b"d/e", b"d/e/h"];

/// Drives a node through `data`.
pub(super) fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mut world = World::new([0, 1, 2, 4][usize::from(bytes.u8() % 4)]);
    for _ in 0..STEPS_MAX {
        if bytes.is_empty() {
            break;
        }
        world.step(&mut bytes);
        world.drain();
    }
    world.end();
}

struct World {
    node: Node,
    names: Arc<Names>,
    enoent: Arc<EnoentMap>,
    now: Micros,
    /// What the node asked for and has not got yet.
    open: Vec<Output>,
    /// Requests that it sent to its parent and those above, the latest last.
    asked: Vec<(NodeId, u64)>,
    /// Clients that wait.
    waiting: HashSet<u64>,
    clients: u64,
    stamps: u64,
}

impl World {
    fn new(me: u32) -> World {
        let topology = Topology::new(NODES, NodeId(me), 1, Some(2)).expect("a tree of 7");
        let names = NamesWriter::new(NamesConfig {
            hash_key: [1, 2],
            index_shards: 1,
            retired_max: RETIRED as usize,
            bytes_max: u64::MAX,
        });
        let enoent = EnoentConfig { entries_max: ENOENT_ENTRIES as usize, key_bytes_max: 64, hash_key: [3, 4] };
        let enoent = Arc::new(EnoentMap::new(enoent));
        let (first, max) = (1 << 20, ARENA_BYTES);
        let (store, _) =
            ChunkStore::new(ArenaConfig { first_segment_bytes: first, segment_bytes: first, max_bytes: max });
        let config = NodeConfig {
            dir_ttl: Duration::from_secs(3),
            attr_ttl: Some(Duration::from_secs(5)),
            ..NodeConfig::new(topology, JOB, 1, 128)
        };
        let reader = names.1.clone();
        let mut node = Node::new(config, names, enoent.clone(), store);
        node.open_for_service();
        node.mounted(Micros(1));
        World {
            node,
            names: reader,
            enoent,
            now: Micros(1),
            open: Vec::new(),
            asked: Vec::new(),
            waiting: HashSet::new(),
            clients: 0,
            stamps: 0,
        }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.u8() % 8 {
            0 => {
                let frame = bytes.piece(FRAME_BYTES_MAX + 1);
                self.node.frame(self.now, frame);
            }
            1 => {
                let (from, id) = (NodeId(u32::from(bytes.u8()) % (NODES + 1)), u64::from(bytes.u8()));
                let message = messages::message(bytes);
                self.frame(from, id, &message);
            }
            2 => self.peer_asks(bytes),
            3 => {
                let object = self.object(bytes);
                self.clients += 1;
                assert!(self.waiting.insert(self.clients));
                self.node.request(self.now, object, Waiter::Local(self.clients));
            }
            4 => {
                // Up to 16 s, short times as likely as long ones.
                let shift = bytes.u8() % 8;
                self.now = self.now.after_us(u64::from(bytes.u16()) << shift);
                self.node.timer(self.now);
            }
            5 => self.carry_out(bytes),
            6 => self.parent_answers(bytes),
            _ => self.node.forget(Ino(u64::from(bytes.u8()))),
        }
    }

    fn frame(&mut self, from: NodeId, id: u64, message: &Message<'_>) {
        let frame = message.encode(&Header { from, job: JOB, incarnation: 1, id, session: 0 });
        self.node.frame(self.now, &frame);
    }

    /// An object of those that there are, its version the one that the node knows or another one.
    fn object(&self, bytes: &mut Bytes<'_>) -> Object {
        let path: std::sync::Arc<[u8]> = PATHS[usize::from(bytes.u8() % 8)].into();
        match bytes.u8() % 5 {
            0 | 1 => Object::Attr(path),
            2 => Object::List(path),
            3 => {
                let known = self.names.get(&path).map(|inode| inode.attr.version());
                let version = known.unwrap_or_else(|| messages::version(bytes));
                Object::Chunk { path, version, index: u32::from(bytes.u8() % 4) }
            }
            _ => Object::Statfs,
        }
    }

    fn peer_asks(&mut self, bytes: &mut Bytes<'_>) {
        let (from, id) = (NodeId(u32::from(bytes.u8()) % NODES), u64::from(bytes.u8()));
        let object = self.object(bytes);
        let (stamp, at) = (u64::from(bytes.u8() % 4), u32::from(bytes.u8()));
        let message = match &object {
            Object::Attr(path) if at % 2 == 1 => Message::Look { path },
            Object::Attr(path) => Message::Attr { path, bytes: stamp },
            Object::List(path) => {
                let purpose = if stamp & 1 == 1 { Purpose::Absence } else { Purpose::Reading };
                Message::List { path, stamp, from: at, purpose }
            }
            Object::Chunk { path, version, index } => Message::Chunk { path, version: *version, index: *index },
            Object::Statfs => Message::Statfs,
        };
        self.frame(from, id, &message);
    }

    fn attr(bytes: &mut Bytes<'_>) -> Attr {
        let kind = [0o100_644, 0o040_755, 0o120_777, 0o020_600][usize::from(bytes.u8() % 4)];
        let size = u64::from(bytes.u16()) << (bytes.u8() % 12);
        let mtime = Timestamp { secs: i64::from(bytes.u8() % 2), nanos: 0 };
        Attr {
            mode: kind,
            uid: 0,
            gid: 0,
            blksize: 4096,
            nlink: 1,
            rdev: 0,
            size,
            blocks: size / 512,
            mtime,
            ctime: mtime,
            backend_ino: u64::from(bytes.u8() % 4),
            backend_dev: 1,
            change: 0,
        }
    }

    fn listing(&mut self, bytes: &mut Bytes<'_>) -> ListingBuilder {
        let mut builder = ListingBuilder::default();
        for at in 0..u16::from(bytes.u8()) {
            // 255 names of 255 bytes are more than one frame holds.
            let width = 1 + usize::from(bytes.u8()) % 255;
            let name = format!("{at:0>width$}");
            assert!(builder.push(ListEntry { name: name.as_bytes(), kind: Kind::File, backend_ino: u64::from(at) }));
        }
        self.stamps += 1;
        builder
    }

    /// Who was asked answers one of the requests, or something that was never asked, as a parent may or as none would.
    fn parent_answers(&mut self, bytes: &mut Bytes<'_>) {
        let Some(parent) = self.node.topology().parent() else { return };
        let back = usize::from(bytes.u8());
        let (parent, id) = self.asked.iter().rev().nth(back).copied().unwrap_or((parent, back as u64));
        let remaining_us = u64::from(bytes.u16()) << 8;
        match bytes.u8() % 9 {
            0 => self.frame(parent, id, &Message::Alive { serving: true, credits: 64, begun: 1 }),
            1 => self.frame(parent, id, &Message::Absent { remaining_us }),
            2 => self.frame(parent, id, &Message::Found { attr: World::attr(bytes), remaining_us, target: b"t" }),
            3 => self.frame(parent, id, &Message::Failed { errno: 3 + i32::from(bytes.u8()) }),
            4 => {
                let listing = self.listing(bytes).build(u64::from(bytes.u8() % 4));
                let from = usize::from(bytes.u16());
                let part = listing.part(from, PART_BYTES_MAX);
                let total = (from + part.len()).max(listing.bytes().len()) as u32;
                let (stamp, from) = (listing.stamp, from as u32);
                let absent_us = remaining_us / 2;
                self.frame(parent, id, &Message::Part { stamp, remaining_us, absent_us, from, total, bytes: part });
            }
            5 => {
                let data = bytes.piece(wire::INLINE_BYTES_MAX);
                let crc = crc32c::crc32c(data) ^ u32::from(bytes.u8() & 1);
                self.frame(parent, id, &Message::Inline { crc, bytes: data });
            }
            6 => {
                let len = u32::from(bytes.u16()) << (bytes.u8() % 12);
                let crc = if bytes.u8() & 1 == 0 { 7 } else { bytes.u32() };
                self.frame(parent, id, &Message::Granted(Grant { grant: id, key: 1, offset: 0, len, crc }));
            }
            7 => {
                let (stamp, absent_us) = (u64::from(bytes.u8() % 4), remaining_us / 2);
                self.frame(parent, id, &Message::Unchanged { stamp, remaining_us, absent_us });
            }
            _ => self.frame(parent, id, &Message::Filesystem(messages::statfs(bytes))),
        }
    }

    /// Does one thing that the node asked for, or has it fail.
    fn carry_out(&mut self, bytes: &mut Bytes<'_>) {
        if self.open.is_empty() {
            return;
        }
        let at = usize::from(bytes.u8()) % self.open.len();
        let (now, output, fails) = (self.now, self.open.swap_remove(at), bytes.u8().is_multiple_of(4));
        // ENOENT is among them.
        let errno = i32::from(bytes.u8() % 40) + 1;
        match output {
            Output::Pull { id, slot, .. } => self.node.pulled(now, id, slot, !fails),
            // 7 is the checksum of most grants here.
            Output::Arrange { id, parts, stamp } => self.node.arranged(now, id, parts.build(stamp)),
            Output::Verify { id, slot, .. } => self.node.verified(now, id, slot, if fails { 8 } else { 7 }),
            Output::Register { segment, .. } => self.node.registered(segment, u64::from(segment)),
            Output::Backend { id, op } => {
                let reply = match op {
                    BackendOp::Attr { .. } if fails => BackendReply::Attr(Err(errno)),
                    BackendOp::Attr { .. } => {
                        let attr = World::attr(bytes);
                        let target = (attr.kind() == Kind::Symlink).then(|| b"target".as_slice().into());
                        BackendReply::Attr(Ok(Found { attr, target }))
                    }
                    BackendOp::List { .. } if fails => BackendReply::List(Err(errno)),
                    BackendOp::List { .. } => {
                        let listing = self.listing(bytes);
                        let (listing, is_complete) = (listing.build(self.stamps), !bytes.u8().is_multiple_of(8));
                        let settled = (bytes.u8() & 1 == 1).then(|| World::attr(bytes));
                        BackendReply::List(Ok(Listed { listing, is_complete, settled }))
                    }
                    BackendOp::Chunk { .. } if fails => BackendReply::Chunk(Err(ChunkFailure::Errno(errno))),
                    BackendOp::Chunk { slot, len, .. } => {
                        assert!(len <= slot.capacity());
                        let ctime = Timestamp { secs: i64::from(bytes.u8() % 2), nanos: 0 };
                        BackendReply::Chunk(Ok(ChunkRead { slot, len, crc: 7, ctime }))
                    }
                    BackendOp::Recheck { .. } if fails => BackendReply::Recheck(Err(errno)),
                    BackendOp::Recheck { .. } => {
                        BackendReply::Recheck(Ok((bytes.u8() & 1 == 0).then(|| World::attr(bytes))))
                    }
                    BackendOp::Statfs if fails => BackendReply::Statfs(Err(errno)),
                    BackendOp::Statfs => BackendReply::Statfs(Ok(messages::statfs(bytes))),
                };
                self.node.backend(now, id, reply);
            }
            Output::Fence { id } => self.node.fenced(now, id),
            Output::Send { .. }
            | Output::Release { .. }
            | Output::Complete { .. }
            | Output::Invalidate { .. }
            | Output::Expire { .. }
            | Output::Swept { .. } => {}
        }
    }

    /// Takes what the node puts out, and looks at its bounds.
    fn drain(&mut self) {
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Send { to, frame } => self.sent(to, &frame),
                Output::Complete { waiter, outcome } => {
                    assert!(self.waiting.remove(&waiter), "client {waiter} is answered twice");
                    if let Outcome::Chunk(chunk) = &outcome {
                        assert!(chunk.bytes().len() <= ARENA_BYTES);
                    }
                }
                Output::Invalidate { ino, .. } => self.node.forget(ino),
                Output::Expire { .. } | Output::Release { .. } | Output::Swept { .. } => {}
                output => self.open.push(output),
            }
        }
        let arena = self.node.store().stats();
        assert!(arena.mapped_bytes <= ARENA_BYTES && arena.used_bytes <= arena.mapped_bytes, "{arena:?}");
        assert!(self.enoent.stats().entries <= ENOENT_ENTRIES);
        assert!(self.names.stats().retired <= RETIRED);
        assert!(self.names.stats().inodes <= self.node.counters().frames + self.node.counters().backend_attr + 1);
    }

    fn sent(&mut self, to: NodeId, frame: &[u8]) {
        assert!(frame.len() <= FRAME_BYTES_MAX, "a frame of {} bytes", frame.len());
        assert!(to.0 < NODES && to != self.node.topology().me(), "a frame for node {to}");
        let (header, message) = wire::decode(frame).expect("a node sends what peers can read");
        assert_eq!((header.from, header.job), (self.node.topology().me(), JOB));
        match message {
            Message::Attr { .. }
            | Message::Look { .. }
            | Message::List { .. }
            | Message::Chunk { .. }
            | Message::Statfs
            | Message::Probe { .. } => {
                assert!(self.node.topology().candidates().contains(&to), "only those above are asked, not {to}");
                self.asked.push((to, header.id));
            }
            Message::Ready { .. } => {
                assert!(self.node.topology().candidates().contains(&to), "only those above are told, not {to}");
            }
            _ => {}
        }
    }

    /// Whatever happened: once nobody does anything any more, every request ends by its deadline.
    fn end(&mut self) {
        // A request may wait for another one, which began later.
        for _ in 0..3 {
            self.now = self.now.after_us(REQUEST_DEADLINE_US + 1);
            self.node.timer(self.now);
            self.drain();
        }
        assert_eq!(self.node.in_flight(), 0, "requests without an end");
        assert!(self.waiting.is_empty(), "clients without an answer: {:?}", self.waiting);
    }
}
