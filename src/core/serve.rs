//! Answering peers.
//!
//! What travels is what this node knows, with the time that is left of it: by induction no node is staler than the
//! root's TTL allows.

use super::flight::{Object, Outcome, Waiter};
use super::limits::GRANT_LEASE_US;
use super::node::{ESTALE, Node};
use super::topology::NodeId;
use super::wire::{Grant, Header, INLINE_BYTES_MAX, Message, PART_BYTES_MAX};
use crate::cache::types::Micros;

impl Node {
    /// A peer asks.
    pub(super) fn serve(&mut self, now: Micros, header: &Header, message: Message<'_>) {
        let object = match message {
            Message::Probe => {
                self.counters.peers_probe += 1;
                let serving = self.serving;
                return self.send(header.from, header.id, &Message::Alive { serving });
            }
            Message::Release { grant } => {
                self.grants.remove(&grant);
                return;
            }
            Message::Attr { path } => {
                self.counters.peers_attr += 1;
                Object::Attr(path.into())
            }
            Message::List { path, .. } => {
                self.counters.peers_list += 1;
                Object::List(path.into())
            }
            Message::Chunk { path, version, index } => {
                self.counters.peers_chunk += 1;
                Object::Chunk { path: path.into(), version, index }
            }
            Message::Statfs => {
                self.counters.peers_statfs += 1;
                Object::Statfs
            }
            _ => return,
        };
        let (stamp, from) = if let Message::List { stamp, from, .. } = message { (stamp, from) } else { (0, 0) };
        if let (Object::List(path), true) = (&object, from > 0)
            && let Some(timed) = self.names.get(path).and_then(|inode| inode.listing())
            && timed.listing.stamp == stamp
        {
            // A later part of what the peer has begun: its time began with the first part, and has it end for the peer.
            let outcome = Outcome::Listing { listing: timed.listing.clone(), expires: timed.expires };
            return self.answer_peer(now, header.from, header.id, (stamp, from), &outcome);
        }
        self.request(now, object, Waiter::Peer { node: header.from, id: header.id, stamp, from });
    }

    pub(super) fn answer_peer(&mut self, now: Micros, node: NodeId, id: u64, part: (u64, u32), outcome: &Outcome) {
        match outcome {
            Outcome::Entry(inode) => {
                let remaining_us = inode.expires().remaining_us(now);
                let target = inode.target.as_deref().unwrap_or(b"");
                self.send(node, id, &Message::Found { attr: inode.attr, remaining_us, target });
            }
            Outcome::Absent { expires } => {
                self.send(node, id, &Message::Absent { remaining_us: expires.remaining_us(now) });
            }
            Outcome::Listing { listing, expires } => {
                let (stamp, from) = part;
                // Parts of another snapshot are of no use to the peer: it starts again with this one. So does a peer
                // that asks beyond the end, which would make a frame that nobody can decode.
                let goes_on = stamp == listing.stamp && from as usize <= listing.bytes().len();
                let from = if goes_on { from } else { 0 };
                let bytes = listing.part(from as usize, PART_BYTES_MAX);
                let total = u32::try_from(listing.bytes().len()).unwrap_or(u32::MAX);
                let remaining_us = expires.remaining_us(now);
                self.send(node, id, &Message::Part { stamp: listing.stamp, remaining_us, from, total, bytes });
            }
            Outcome::Chunk(chunk) if chunk.len() <= INLINE_BYTES_MAX => {
                self.send(node, id, &Message::Inline { crc: chunk.crc(), bytes: chunk.bytes() });
            }
            Outcome::Chunk(chunk) => {
                let Some(key) = self.keys.get(usize::from(chunk.segment())).copied().flatten() else {
                    // The segment is about to be registered; the peer's retry finds it so.
                    return self.send(node, id, &Message::Pending);
                };
                let grant = self.flights.next_id();
                self.grants.insert(grant, chunk.clone());
                self.leases.push_back((now.after_us(GRANT_LEASE_US), grant));
                let len = u32::try_from(chunk.len()).unwrap_or(0);
                let grant = Grant { grant, key, offset: chunk.offset(), len, crc: chunk.crc() };
                self.send(node, id, &Message::Granted(grant));
            }
            Outcome::Statfs(statfs) => self.send(node, id, &Message::Filesystem(*statfs)),
            Outcome::Failed { errno } => {
                // ENOENT as a failure would be absence without its TTL: the object went while it was asked for.
                let gone = *errno == rustix::io::Errno::NOENT.raw_os_error();
                self.send(node, id, &Message::Failed { errno: if gone { ESTALE } else { *errno } });
            }
        }
    }

    /// Takes back the grants whose lease has run out.
    pub(super) fn end_leases(&mut self, now: Micros) {
        while let Some((_, grant)) = self.leases.front().copied().filter(|(at, _)| *at <= now) {
            self.leases.pop_front();
            if self.grants.remove(&grant).is_some() {
                self.counters.leases_ended += 1;
            }
        }
    }
}
