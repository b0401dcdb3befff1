//! Answering peers.
//!
//! What travels is what this node knows, with the time that is left of it: by induction no node is staler than the
//! root's TTL allows.

use std::collections::BTreeSet;

use hashbrown::HashMap;

use super::flight::{Object, Outcome, Purpose, Waiter};
use super::limits::{
    CREDITS_MIN, GRANT_LEASE_US, GRANTS_PER_PEER_MAX, OWED_MAX, OWED_US, REQUESTS_AT_PARENT_MAX, SHARER_FORGOTTEN_US,
    SHARES_EVERY_US,
};
use super::node::{ESTALE, Granted, Node};
use super::topology::NodeId;
use super::wire::{Grant, Header, INLINE_BYTES_MAX, Message, PART_BYTES_MAX};
use crate::cache::types::Micros;

impl Node {
    /// A peer asks.
    pub(super) fn serve(&mut self, now: Micros, header: &Header, message: Message<'_>) {
        self.sharers.note(now, header.from);
        let object = match message {
            Message::Probe { begun } => {
                self.counters.peers_probe += 1;
                self.note_begun(now, begun);
                let (serving, credits, begun) = (self.serving, self.sharers.credits(now), self.begun);
                return self.send(header.from, header.id, &Message::Alive { serving, credits, begun });
            }
            Message::Release { grant } => {
                if self.grants.get(&grant).is_some_and(|granted| granted.to == header.from) {
                    self.take_back(grant);
                }
                return;
            }
            Message::Attr { path, .. } => {
                self.counters.peers_attr += 1;
                Object::Attr(path.into())
            }
            Message::Look { path } => {
                self.counters.peers_attr += 1;
                let (node, id, purpose) = (header.from, header.id, Purpose::Reading);
                return self.begin_anew(
                    now,
                    path.into(),
                    Waiter::Peer { node, id, stamp: 0, from: 0, purpose, bytes: 0 },
                );
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
        let (stamp, from, purpose) = match message {
            Message::List { stamp, from, purpose, .. } => (stamp, from, purpose),
            _ => (0, 0, Purpose::Reading),
        };
        let bytes = if let Message::Attr { bytes, .. } = message { bytes } else { 0 };
        if let (Object::List(path), true) = (&object, from > 0)
            && let Some(timed) = self.names.get(path).and_then(|inode| inode.listing())
        {
            // A later part of what the peer has begun: its time began with the first part, and has it end for the peer. Where
            // it is another snapshot by now, it was asked for after the peer began, so that the peer may have it as well: were
            // a new one asked for instead, two peers that may not repeat listings could take each other's away for ever.
            let outcome = Outcome::from(&*timed);
            return self.answer_peer(now, header.from, header.id, (stamp, from, purpose), &outcome);
        }
        self.request(now, object, Waiter::Peer { node: header.from, id: header.id, stamp, from, purpose, bytes });
    }

    pub(super) fn answer_peer(
        &mut self,
        now: Micros,
        node: NodeId,
        id: u64,
        part: (u64, u32, Purpose),
        outcome: &Outcome,
    ) {
        match outcome {
            Outcome::Entry(inode) => {
                let remaining_us = inode.expires().remaining_us(now);
                let target = inode.target.as_deref().unwrap_or(b"");
                self.send(node, id, &Message::Found { attr: inode.attr, remaining_us, target });
            }
            Outcome::Absent { expires } => {
                self.send(node, id, &Message::Absent { remaining_us: expires.remaining_us(now) });
            }
            Outcome::Listing { listing, expires, absent_until } => {
                let (stamp, from, purpose) = part;
                let (remaining_us, absent_us) = (expires.remaining_us(now), absent_until.remaining_us(now));
                if (purpose, from) == (Purpose::Absence, 0) && stamp == listing.stamp {
                    return self.send(node, id, &Message::Unchanged { stamp, remaining_us, absent_us });
                }
                // Parts of another snapshot are of no use to the peer: it starts again with this one. So does a peer
                // that asks beyond the end, which would make a frame that nobody can decode.
                let goes_on = stamp == listing.stamp && from as usize <= listing.bytes().len();
                let from = if goes_on { from } else { 0 };
                let bytes = listing.part(from as usize, PART_BYTES_MAX);
                let total = u32::try_from(listing.bytes().len()).unwrap_or(u32::MAX);
                let stamp = listing.stamp;
                self.send(node, id, &Message::Part { stamp, remaining_us, absent_us, from, total, bytes });
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
                if let Some(oldest) = self.sharers.grant(node, grant) {
                    self.grants.remove(&oldest);
                    self.counters.grants_taken += 1;
                }
                let granted = Granted { chunk: chunk.clone(), to: node, until: now.after_us(GRANT_LEASE_US) };
                self.grants.insert(grant, granted);
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

    /// A grant of another node's is no longer needed here. It is told with the next request, or a little later.
    pub(super) fn release(&mut self, now: Micros, node: NodeId, grant: u64) {
        let (owed, at) = &mut self.owed;
        if owed.is_empty() {
            *at = now.after_us(OWED_US);
        }
        owed.push((node, grant));
        if owed.len() >= OWED_MAX {
            *at = now;
            self.release_late(now);
        }
    }

    /// Releases what `node` is owed, just before it is asked for something.
    pub(super) fn release_to(&mut self, node: NodeId) {
        while let Some(at) = self.owed.0.iter().position(|(to, _)| *to == node) {
            let (_, grant) = self.owed.0.swap_remove(at);
            self.send(node, 0, &Message::Release { grant });
        }
    }

    /// Releases everything once it has waited long enough.
    pub(super) fn release_late(&mut self, now: Micros) {
        if self.owed.1 <= now {
            for (node, grant) in std::mem::take(&mut self.owed.0) {
                self.send(node, 0, &Message::Release { grant });
            }
        }
    }

    /// Takes back the grants whose lease has run out.
    pub(super) fn end_leases(&mut self, now: Micros) {
        // Their numbers go up with their times.
        while let Some((grant, _)) = self.grants.first_key_value().filter(|(_, granted)| granted.until <= now) {
            self.take_back(*grant);
            self.counters.leases_ended += 1;
        }
    }

    fn take_back(&mut self, grant: u64) {
        if let Some(granted) = self.grants.remove(&grant) {
            self.sharers.released(granted.to, grant);
        }
    }
}

/// Those who ask a node: they share what it can receive.
#[derive(Debug)]
pub(super) struct Sharers {
    receives: usize,
    peers: HashMap<NodeId, Sharer>,
    /// What each may have under way, and since when that is so.
    credits: usize,
    divided: Option<Micros>,
}

#[derive(Debug)]
struct Sharer {
    heard: Micros,
    grants: BTreeSet<u64>,
}

impl Sharers {
    pub(super) fn new(receives: usize) -> Sharers {
        Sharers { receives, peers: HashMap::new(), credits: CREDITS_MIN, divided: None }
    }

    fn of(&mut self, node: NodeId) -> &mut Sharer {
        self.peers.entry(node).or_insert_with(|| Sharer { heard: Micros(0), grants: BTreeSet::new() })
    }

    fn note(&mut self, now: Micros, node: NodeId) {
        self.of(node).heard = now;
    }

    /// What each of those who were heard lately may have under way.
    fn credits(&mut self, now: Micros) -> u32 {
        if self.divided.is_none_or(|at| now.0.saturating_sub(at.0) >= SHARES_EVERY_US) {
            self.divided = Some(now);
            let is_here = |sharer: &Sharer| now.0.saturating_sub(sharer.heard.0) < SHARER_FORGOTTEN_US;
            self.peers.retain(|_, sharer| is_here(sharer) || !sharer.grants.is_empty());
            let here = self.peers.values().filter(|sharer| is_here(sharer)).count();
            self.credits = (self.receives / here.max(1)).clamp(CREDITS_MIN, REQUESTS_AT_PARENT_MAX);
        }
        u32::try_from(self.credits).unwrap_or(u32::MAX)
    }

    /// Takes note of a grant. Gives the one that it takes the place of, if the peer holds too many.
    fn grant(&mut self, node: NodeId, grant: u64) -> Option<u64> {
        let grants = &mut self.of(node).grants;
        grants.insert(grant);
        if grants.len() > GRANTS_PER_PEER_MAX { grants.pop_first() } else { None }
    }

    fn released(&mut self, node: NodeId, grant: u64) {
        if let Some(sharer) = self.peers.get_mut(&node) {
            sharer.grants.remove(&grant);
        }
    }

    /// Grants of the peer with the most.
    pub(super) fn grants_max(&self) -> usize {
        self.peers.values().map(|sharer| sharer.grants.len()).max().unwrap_or(0)
    }
}
