//! Asking upstream: another node, or the backend; and what becomes of the answers.

use std::sync::Arc;

use super::flight::{Flight, FlightId, Object, Outcome, Purpose, Stage, Waiter};
use super::limits::{
    ARRANGE_INLINE_BYTES, CHECKSUM_RETRIES_MAX, COMPLETE_BYTES_MAX, COMPLETE_NAMES_MAX, HEARTBEATS_PER_DETECT,
    LISTING_BYTES_MAX, MEMORY_RETRY_US, RETRY_US, VERIFY_INLINE_BYTES,
};
use super::node::{E2BIG, EIO, ENOMEM, ESTALE, FlightKey, Node, chunk_len, describe};
use super::output::{BackendOp, BackendReply, ChunkFailure, Listed, Output};
use super::topology::NodeId;
use super::upstream::Target;
use super::wire::{Grant, Header, Message};
use crate::cache::arena::Slot;
use crate::cache::chunks::CHUNK_BYTES;
use crate::cache::names::{Proof, TimedListing};
use crate::cache::types::{Attr, Listing, ListingBuilder, Micros};

/// Pause before a chunk is asked for again whose bytes could not be pulled.
const PULL_RETRY_US: u64 = 50_000;

impl Node {
    /// Takes a request one step further: what it needs first, then the backend or whoever is asked in its tree.
    pub(super) fn lead(&mut self, now: Micros, id: FlightId) {
        self.lead_on(now, id, false);
    }

    /// As `lead`; `known`: upstream has just said what is at the path, whatever is known of the directories above it.
    fn lead_on(&mut self, now: Micros, id: FlightId, known: bool) {
        let Some(flight) = self.flights.get(id) else { return };
        let object = flight.object.clone();
        if let Object::List(path) | Object::Chunk { path, .. } = &object {
            match if known { self.names.get(path) } else { self.names.current(path) } {
                Some(inode) => match fits(&object, &inode.attr) {
                    Ok(()) => {}
                    Err(ESTALE) if !known => return self.doubt(now, id),
                    Err(errno) => return self.fail(now, id, errno),
                },
                None => return self.look_first(now, id, path),
            }
        }
        let Some(flight) = self.flights.get(id) else { return };
        let tree = flight.tree;
        if self.trees[tree].is_answerer() {
            if known || !self.looks_first(now, id) {
                self.ask_backend(now, id);
            }
            return;
        }
        flight.stage = Stage::InLine;
        self.trees[tree].line.insert(flight.deadline, id);
        self.pump(now, tree);
    }

    /// Finds out what is at the path of request `id`, before the request itself goes on.
    fn look_first(&mut self, now: Micros, id: FlightId, path: &Arc<[u8]>) {
        let attr = Object::Attr(path.clone());
        let known = self.recall(now, &attr, Waiter::Flight(id));
        let is_joining = self.flights.find(&attr).is_some();
        let Some(flight) = self.flights.get(id) else { return };
        let anew = known.is_none() && !is_joining && self.trees[flight.tree].target == Target::Backend;
        flight.stage = Stage::Behind { anew };
        match known {
            Some(outcome) => self.resume(now, id, &outcome),
            None if anew => self.begin_anew(now, path.clone(), Waiter::Flight(id)),
            None => self.begin(now, attr, Waiter::Flight(id)),
        }
    }

    /// The attributes that request `id` waited for are here.
    pub(super) fn resume(&mut self, now: Micros, id: FlightId, outcome: &Outcome) {
        let is_behind = |flight: &&mut Flight| matches!(flight.stage, Stage::Behind { .. });
        let Some(flight) = self.flights.get(id).filter(is_behind) else { return };
        if let Object::Attr(path) = &flight.object {
            let path = path.clone();
            return self.resume_with(now, id, &path, outcome);
        }
        let answer = match outcome {
            Outcome::Entry(inode) => fits(&flight.object, &inode.attr),
            Outcome::Absent { .. } => Err(ESTALE),
            Outcome::Failed { errno } => Err(if is_gone(*errno) { ESTALE } else { *errno }),
            Outcome::Listing { .. } | Outcome::Chunk(_) | Outcome::Statfs(_) => Err(EIO),
        };
        match answer {
            Ok(()) => match self.renewed_meanwhile(now, id) {
                Some(outcome) => self.finish(now, id, &outcome),
                None => self.lead_on(now, id, true),
            },
            Err(ESTALE) => self.doubt(now, id),
            Err(errno) => self.fail(now, id, errno),
        }
    }

    /// As far as this node and those above it know, what request `id` is about is gone. Who wants it may have been told of
    /// something newer, by a node that is dead by now: the last word has the backend, asked after the request.
    fn doubt(&mut self, now: Micros, id: FlightId) {
        let Some(flight) = self.flights.get(id) else { return };
        // Nobody was told of a listing that is to answer what it lacks.
        if flight.purpose == Purpose::Absence || flight.stage == (Stage::Behind { anew: true }) {
            return self.fail(now, id, ESTALE);
        }
        flight.stage = Stage::Behind { anew: true };
        let path = flight.object.path_shared();
        self.begin_anew(now, path, Waiter::Flight(id));
    }

    /// The listing that request `id` is for, if it was renewed by the look at the directory that was waited for.
    fn renewed_meanwhile(&mut self, now: Micros, id: FlightId) -> Option<Outcome> {
        let flight = self.flights.get(id).filter(|flight| flight.purpose == Purpose::Absence)?;
        let object = matches!(flight.object, Object::List(_)).then(|| flight.object.clone())?;
        self.recall(now, &object, Waiter::Nobody)
    }

    /// Asks a node, for the first time or again.
    pub(super) fn ask(&mut self, now: Micros, id: FlightId, node: NodeId) {
        self.is_asked(now, id, node);
        let Some(flight) = self.flights.get(id) else { return };
        let (object, purpose, anew) = (flight.object.clone(), flight.purpose, flight.anew);
        let parts = flight.parts.as_ref();
        let begun = parts.map(|(stamp, parts)| (*stamp, u32::try_from(parts.len_bytes()).unwrap_or(0)));
        // What is here may be renewed.
        let known = || match (&object, purpose) {
            (Object::List(path), Purpose::Absence) => self.names.get(path).and_then(|inode| inode.listing()),
            _ => None,
        };
        let whole = || known().filter(|timed| timed.absent_until > Micros(0)).map_or(0, |timed| timed.listing.stamp);
        let (stamp, from) = begun.unwrap_or_else(|| (whole(), 0));
        if let Object::Attr(path) = &object
            && let Some(flight) = self.flights.get(id)
        {
            flight.token.get_or_insert_with(|| self.enoent.begin(path));
        }
        self.counters.to_parent += 1;
        self.release_to(node);
        let bytes = self.number_for_bytes(id).map_or(0, |bytes| bytes.0);
        let message = match &object {
            Object::Attr(path) if anew => Message::Look { path },
            Object::Attr(path) => Message::Attr { path, bytes },
            Object::List(path) => Message::List { path, stamp, from, purpose },
            Object::Chunk { path, version, index } => Message::Chunk { path, version: *version, index: *index },
            Object::Statfs => Message::Statfs,
        };
        self.send(node, id.0, &message);
    }

    /// Notes that a request is under way at a node.
    pub(super) fn is_asked(&mut self, now: Micros, id: FlightId, node: NodeId) {
        let Some(flight) = self.flights.get(id) else { return };
        if flight.asked.replace(node).is_none()
            && let Some(peer) = self.peers.get_mut(&node)
        {
            peer.asked(now, id);
            // The heartbeat that it may need.
            self.watch_at = self.watch_at.min(now.after_us(self.detect_us / HEARTBEATS_PER_DETECT));
        }
        flight.stage = Stage::Asked;
        flight.sign_at = now;
        flight.asked_at.get_or_insert(now);
    }

    pub(super) fn ask_backend(&mut self, now: Micros, id: FlightId) {
        let Some((object, purpose)) = self.flights.get(id).map(|flight| (flight.object.clone(), flight.purpose)) else {
            return;
        };
        let op = match object {
            Object::Attr(path) => {
                let token = self.enoent.begin(&path);
                if let Some(flight) = self.flights.get(id) {
                    flight.token = Some(token);
                }
                self.counters.backend_attr += 1;
                BackendOp::Attr { path }
            }
            Object::List(path) => {
                self.counters.backend_list += 1;
                let names_max = if purpose == Purpose::Absence { COMPLETE_NAMES_MAX } else { usize::MAX };
                BackendOp::List { path, names_max }
            }
            Object::Chunk { path, version, index } => {
                let Some(len) = chunk_len(version.size, index) else { return self.fail(now, id, EIO) };
                let Some(slot) = self.alloc(len) else { return self.no_memory(now, id) };
                self.counters.backend_chunk += 1;
                BackendOp::Chunk { path, version, offset: u64::from(index) * CHUNK_BYTES as u64, len, slot }
            }
            Object::Statfs => BackendOp::Statfs,
        };
        if let Some(flight) = self.flights.get(id) {
            flight.stage = Stage::Backend;
            // Before the backend is asked: what it answers is at least as young as this.
            flight.asked_at = Some(now);
        }
        self.out.push_back(Output::Backend { id, op });
    }

    /// All memory is pinned: who waits goes on waiting, and what nobody waits for is given up.
    fn no_memory(&mut self, now: Micros, id: FlightId) {
        if self.flights.get(id).is_some_and(|flight| flight.waiters.is_empty()) {
            self.counters.ahead_dropped += 1;
            return self.fail(now, id, ENOMEM);
        }
        self.pause(now, id, MEMORY_RETRY_US);
    }

    fn pause(&mut self, now: Micros, id: FlightId, pause_us: u64) {
        let until = now.after_us(pause_us);
        if let Some(flight) = self.flights.get(id) {
            flight.stage = Stage::Pausing(until);
            self.flights.arm(id, until);
            self.give_back(id);
        }
    }

    /// The backend answered request `id`.
    pub fn backend(&mut self, now: Micros, id: FlightId, reply: BackendReply) {
        let asked = |stage| matches!(stage, Stage::Backend | Stage::Rechecking);
        let Some(flight) = self.flights.get(id).filter(|flight| asked(flight.stage)) else { return };
        if std::mem::take(&mut flight.outdated) {
            flight.held = None;
            return self.lead(now, id);
        }
        let (key, object) = (FlightKey::from(&*flight), flight.object.clone());
        let asked_at = flight.asked_at.unwrap_or(now);
        let outcome = match reply {
            BackendReply::Attr(Ok(found)) => {
                let expires = match (found.attr.is_dir(), self.config.attr_ttl) {
                    (true, _) => asked_at.after(self.config.dir_ttl),
                    (false, Some(ttl)) => asked_at.after(ttl),
                    (false, None) => Micros::FOREVER,
                };
                let proven = self.proven(&key.path, &found.attr);
                let Some(outcome) = self.found_at_backend(now, id, &key, found, expires) else { return };
                if let Some(timed) = proven {
                    self.renew_listing(&key.path, &timed, asked_at);
                }
                outcome
            }
            BackendReply::Attr(Err(errno)) if errno == rustix::io::Errno::NOENT.raw_os_error() => {
                self.counters.backend_enoent += 1;
                self.learn_absent(now, &key, asked_at.after(self.config.enoent_ttl))
            }
            BackendReply::List(Ok(Listed { listing, is_complete, settled })) => {
                let absent_until = if is_complete { asked_at.after(self.config.enoent_ttl) } else { Micros(0) };
                let proof = settled.filter(|_| is_complete).map(|attr| Proof::new(&attr, asked_at));
                let until = (asked_at.after(self.config.dir_ttl), absent_until);
                self.learn_listing(id, &key.path, listing, until, proof)
            }
            BackendReply::Chunk(Ok(read)) => match self.read_at_backend(id, &object, read) {
                Some(outcome) => outcome,
                None => return,
            },
            BackendReply::Chunk(Err(ChunkFailure::TooYoung { wait_us })) => return self.pause(now, id, wait_us),
            BackendReply::Recheck(result) => return self.rechecked(now, id, result),
            BackendReply::Statfs(Ok(statfs)) => self.learn_statfs(now, statfs),
            BackendReply::Attr(Err(errno))
            | BackendReply::List(Err(errno))
            | BackendReply::Chunk(Err(ChunkFailure::Errno(errno)))
            | BackendReply::Statfs(Err(errno)) => self.failed(&object, errno),
        };
        self.finish(now, id, &outcome);
    }

    /// Upstream failed with `errno`. A name or version that is gone is forgotten, so that the next to ask sees what is
    /// there now; nothing else is remembered.
    pub(super) fn failed(&mut self, object: &Object, errno: i32) -> Outcome {
        match object {
            Object::Chunk { path, version, .. } if is_gone(errno) => {
                // Another name of the file may still be it: who reads it tries that one.
                if self.names.get(path).is_some_and(|inode| inode.attr.version() == *version) {
                    self.drop_name(path);
                }
                return Outcome::Failed { errno: ESTALE };
            }
            Object::List(path) if is_gone(errno) => {
                self.drop_name(path);
                return Outcome::Failed { errno: ESTALE };
            }
            // Something above it is no directory, or a link, by now. Whoever looks it up is told so.
            Object::Attr(path) if is_gone(errno) => self.drop_name(path),
            _ => {}
        }
        Outcome::Failed { errno }
    }

    /// The first answer of another node has come: from here on the tree works for this one.
    fn say_first_answer(&self, now: Micros, object: &Object) {
        let kind = match object {
            Object::Attr(_) => "lstat",
            Object::Chunk { .. } => "readfile",
            Object::List(_) => "readdir",
            Object::Statfs => return,
        };
        log::info!(
            "first successful parent rpc_{kind} completed after {} us since provider startup; path=/{}",
            now.0.saturating_sub(self.started.0),
            String::from_utf8_lossy(object.path())
        );
    }

    /// A node that was asked answered.
    pub(super) fn reply(&mut self, now: Micros, header: &Header, message: Message<'_>) {
        let id = FlightId(header.id);
        let is_asked = |flight: &&mut Flight| flight.asked == Some(header.from) && flight.stage == Stage::Asked;
        let Some(flight) = self.flights.get(id).filter(is_asked) else {
            self.counters.dropped += 1;
            if let Message::Granted(grant) = message {
                // The answer to a request that was repeated, or asked elsewhere: nobody will read it.
                self.send(header.from, header.id, &Message::Release { grant: grant.grant });
            }
            return;
        };
        flight.sign_at = now;
        if !matches!(message, Message::Pending) && std::mem::take(&mut flight.outdated) {
            // It was answered before the invalidation reached the parent, or asked before it: once more from the start.
            return self.start_again(now, id);
        }
        let asked_at = flight.asked_at.unwrap_or(now);
        let (key, object, tree) = (FlightKey::from(&*flight), flight.object.clone(), flight.tree);
        let (purpose, bytes) = (flight.purpose, flight.bytes);
        if message == Message::Pending {
            let is_outdated = flight.outdated;
            if let Some(peer) = self.peers.get_mut(&header.from) {
                peer.is_at_work(id);
            }
            if is_outdated {
                // What it works on was asked before an invalidation. Asked now, it joins what is under way there, instead of
                // waiting for that, at each node on the way, only to ask anew.
                self.start_again(now, id);
            }
            return self.pump_all(now);
        }
        self.note_answer(tree);
        let is_first = !matches!((&object, message), (_, Message::Failed { .. }) | (Object::Statfs, _));
        if is_first && !std::mem::replace(&mut self.has_answer, true) {
            self.say_first_answer(now, &object);
        }
        let outcome = match (&object, message) {
            (_, Message::Failed { errno }) => self.failed(&object, errno),
            (Object::Attr(_), Message::Found { attr, remaining_us, target }) => {
                let target = (attr.kind() == crate::cache::types::Kind::Symlink).then_some(target);
                let found = self.learn_found(now, &key, attr, target, asked_at.after_us(remaining_us));
                if let (Outcome::Entry(inode), Some(bytes)) = (&found, bytes) {
                    self.expect_bytes(now, bytes, header.from, inode);
                }
                found
            }
            (Object::Attr(_), Message::Absent { remaining_us }) => {
                let used_us = self.used_us(&key.path, remaining_us);
                self.learn_absent(now, &key, asked_at.after_us(used_us))
            }
            (Object::List(_), Message::Part { total, .. })
                if purpose == Purpose::Absence && total as usize > COMPLETE_BYTES_MAX =>
            {
                Outcome::Failed { errno: E2BIG }
            }
            (Object::List(_), Message::Part { stamp, remaining_us, absent_us, from, total, bytes }) => {
                let absent_us = self.used_us(&key.path, absent_us);
                let until = (asked_at.after_us(remaining_us), until_absent(asked_at, absent_us));
                match self.add_part(id, stamp, from, total, bytes) {
                    Ok(None) => return self.ask(now, id, header.from),
                    Ok(Some(parts)) if parts.len_bytes() > ARRANGE_INLINE_BYTES => {
                        if let Some(flight) = self.flights.get(id) {
                            flight.stage = Stage::Arranging { until };
                        }
                        return self.out.push_back(Output::Arrange { id, parts, stamp });
                    }
                    Ok(Some(parts)) => self.learn_listing(id, &key.path, parts.build(stamp), until, None),
                    Err(Ignored) => return,
                }
            }
            (Object::List(path), Message::Unchanged { stamp, remaining_us, absent_us }) => {
                let timed = self.names.get(path).and_then(|inode| inode.listing());
                let is_it = |timed: &Arc<TimedListing>| timed.listing.stamp == stamp && timed.absent_until > Micros(0);
                let Some(timed) = timed.filter(is_it) else {
                    // It is void by now.
                    return self.start_again(now, id);
                };
                let absent_us = self.used_us(path, absent_us);
                let until = (asked_at.after_us(remaining_us), until_absent(asked_at, absent_us));
                self.renewed(path, &timed, until)
            }
            (Object::Chunk { version, index, .. }, Message::Inline { crc, bytes })
                if chunk_len(version.size, *index) == Some(bytes.len()) =>
            {
                let Some(mut slot) = self.alloc(bytes.len()) else { return self.no_memory(now, id) };
                slot.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
                return self.check(now, id, slot, bytes.len(), crc);
            }
            (Object::Chunk { version, index, .. }, Message::Granted(grant))
                if chunk_len(version.size, *index) == Some(grant.len as usize) =>
            {
                return self.pull(now, id, header, grant);
            }
            (Object::Statfs, Message::Filesystem(statfs)) => self.learn_statfs(now, statfs),
            (object, message) => {
                self.counters.dropped += 1;
                log::error!("node {} answered {} with {message:?}", header.from, describe(object));
                Outcome::Failed { errno: EIO }
            }
        };
        self.finish(now, id, &outcome);
    }

    /// The listing of [`Output::Arrange`] is put together.
    pub fn arranged(&mut self, now: Micros, id: FlightId, listing: Listing) {
        let Some(flight) = self.flights.get(id) else { return };
        let Stage::Arranging { until } = flight.stage else { return };
        if std::mem::take(&mut flight.outdated) {
            return self.start_again(now, id);
        }
        let key = FlightKey::from(&*flight);
        let outcome = self.learn_listing(id, &key.path, listing, until, None);
        self.finish(now, id, &outcome);
    }

    /// What was answered is not to be used: it is asked for once more, under another number.
    fn start_again(&mut self, now: Micros, id: FlightId) {
        self.give_back(id);
        if let Some(id) = self.flights.renew(id) {
            self.lead(now, id);
        }
    }

    /// Adds a part to a listing: `Some` when it is whole, `None` when more is to be asked for.
    fn add_part(
        &mut self,
        id: FlightId,
        stamp: u64,
        from: u32,
        total: u32,
        bytes: &[u8],
    ) -> Result<Option<ListingBuilder>, Ignored> {
        let flight = self.flights.get(id).ok_or(Ignored)?;
        let (have, mut parts) = match flight.parts.take() {
            // Another snapshot than the one begun: from its start only.
            Some((have, parts)) if have == stamp || from != 0 => (have, parts),
            _ => (stamp, ListingBuilder::default()),
        };
        let fits = have == stamp
            && from as usize == parts.len_bytes()
            && total as usize <= LISTING_BYTES_MAX
            && (!bytes.is_empty() || total == 0);
        if !fits {
            flight.parts = Some((have, parts));
            return Err(Ignored);
        }
        if !parts.extend_packed(bytes) {
            // Nothing of it can be trusted; the retry timer asks again.
            return Err(Ignored);
        }
        if parts.len_bytes() == total as usize {
            return Ok(Some(parts));
        }
        flight.parts = Some((stamp, parts));
        Ok(None)
    }

    fn pull(&mut self, now: Micros, id: FlightId, header: &Header, grant: Grant) {
        let Some(slot) = self.alloc(grant.len as usize) else {
            self.send(header.from, header.id, &Message::Release { grant: grant.grant });
            return self.no_memory(now, id);
        };
        let Some(flight) = self.flights.get(id) else { return };
        flight.stage = Stage::Pulling { grant: grant.grant, crc: grant.crc };
        self.counters.pulls += 1;
        let Grant { key, offset, len, .. } = grant;
        self.out.push_back(Output::Pull { id, from: header.from, key, offset, len: len as usize, slot });
    }

    /// The bytes of [`Output::Pull`] are in `slot`, or could not be had.
    pub fn pulled(&mut self, now: Micros, id: FlightId, slot: Slot, ok: bool) {
        self.pull_ended(now, id, ok.then_some(slot));
    }

    /// The bytes of [`Output::Pull`] could not be had in time, and the slot is kept by whoever may still write to it.
    pub fn pull_lost(&mut self, now: Micros, id: FlightId) {
        self.pull_ended(now, id, None);
    }

    fn pull_ended(&mut self, now: Micros, id: FlightId, slot: Option<Slot>) {
        // What was asked elsewhere meanwhile has another number: the slot is given back.
        let Some(flight) = self.flights.get(id) else { return };
        let (Stage::Pulling { grant, crc }, Some(node)) = (flight.stage, flight.asked) else { return };
        let Object::Chunk { version, index, .. } = &flight.object else { return };
        let len = chunk_len(version.size, *index).unwrap_or(0);
        self.release(now, node, grant);
        match slot {
            Some(slot) => self.check(now, id, slot, len, crc),
            None => {
                self.counters.retries += 1;
                self.pause(now, id, PULL_RETRY_US);
            }
        }
    }

    /// Compares the bytes with their checksum, here or, when they are many, on a worker.
    fn check(&mut self, now: Micros, id: FlightId, mut slot: Slot, len: usize, crc: u32) {
        let Some(flight) = self.flights.get(id) else { return };
        flight.stage = Stage::Verifying { crc };
        if len > VERIFY_INLINE_BYTES {
            self.out.push_back(Output::Verify { id, slot, len });
            return;
        }
        let found = crc32c::crc32c(&slot.as_mut_slice()[..len]);
        self.verified(now, id, slot, found);
    }

    /// The checksum asked for by [`Output::Verify`] is `found`.
    pub fn verified(&mut self, now: Micros, id: FlightId, slot: Slot, found: u32) {
        let Some(flight) = self.flights.get(id) else { return };
        let Stage::Verifying { crc } = flight.stage else { return };
        let object = flight.object.clone();
        let Object::Chunk { version, index, .. } = &object else { return };
        let len = chunk_len(version.size, *index).unwrap_or(0);
        if found == crc {
            self.counters.chunk_bytes += len as u64;
            let outcome = self.learn_chunk(&object, slot, len, crc);
            return self.finish(now, id, &outcome);
        }
        flight.bad_checksums += 1;
        let tries = flight.bad_checksums;
        self.counters.bad_checksums += 1;
        log::warn!("{} does not match its checksum (try {tries})", describe(&object));
        if tries > CHECKSUM_RETRIES_MAX { self.fail(now, id, EIO) } else { self.pause(now, id, PULL_RETRY_US) }
    }
}

/// Until when a listing answers the names that it lacks: time 0 where it does not.
fn until_absent(asked_at: Micros, absent_us: u64) -> Micros {
    if absent_us == 0 { Micros(0) } else { asked_at.after_us(absent_us) }
}

/// An answer that says nothing new; the request goes on as if it had not come.
struct Ignored;

/// Whether what is at the path now is what the request is about: who asks for a listing or bytes once held the object.
fn fits(object: &Object, attr: &Attr) -> Result<(), i32> {
    match object {
        Object::List(_) if !attr.is_dir() => Err(ESTALE),
        Object::Chunk { version, .. } if attr.version() != *version => Err(ESTALE),
        _ => Ok(()),
    }
}

/// Whether an errno says that something else is at the path than the file or directory that was there: another version,
/// nothing, or something that is no directory, here or above.
fn is_gone(errno: i32) -> bool {
    use rustix::io::Errno as E;
    [E::STALE, E::NOENT, E::NOTDIR].iter().any(|gone| gone.raw_os_error() == errno)
}

const _: () = assert!(PULL_RETRY_US < RETRY_US);
