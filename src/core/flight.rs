//! Single flight: one upstream request per object, whoever asks for it; the others wait for its outcome.
//!
//! Used by the node only. Whether a request is a hit, joins or leads is decided in one call; no answer to one request
//! ever wakes another one's waiters.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashMap};

use super::output::Found;
use super::topology::NodeId;
use super::wire::Statfs;
use crate::cache::arena::Slot;
use crate::cache::chunks::Chunk;
use crate::cache::enoent::Token;
use crate::cache::names::{Inode, is_at_or_below, is_missing, parent_path};
use crate::cache::types::{Listing, ListingBuilder, Micros, Version};

/// What can be asked for. Paths are relative to the target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    /// What is at a path.
    Attr(Arc<[u8]>),
    /// All names in a directory.
    List(Arc<[u8]>),
    /// One chunk of one version of a file.
    Chunk {
        /// The file.
        path: Arc<[u8]>,
        /// Whose bytes.
        version: Version,
        /// Which chunk, from 0.
        index: u32,
    },
    /// What `statfs`(2) tells of the backend.
    Statfs,
}

impl Object {
    /// The path that it is about.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        match self {
            Object::Attr(path) | Object::List(path) | Object::Chunk { path, .. } => path,
            Object::Statfs => b"",
        }
    }

    /// The path, sharing its bytes.
    pub(super) fn path_shared(&self) -> Arc<[u8]> {
        match self {
            Object::Attr(path) | Object::List(path) | Object::Chunk { path, .. } => path.clone(),
            Object::Statfs => Arc::default(),
        }
    }
}

/// What a listing is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be read: all of it, however long it is.
    Reading,
    /// To answer the names that it lacks: within bounds, and what is known may be renewed.
    Absence,
}

/// How a request ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// There is this; its `expires` bounds how long that may be said.
    Entry(Arc<Inode>),
    /// There is no such name, and that may be said until then.
    Absent {
        /// When it may no longer be said.
        expires: Micros,
    },
    /// The directory's names.
    Listing {
        /// The names.
        listing: Arc<Listing>,
        /// When they may no longer be used.
        expires: Micros,
        /// When a name that they lack may no longer be said to be absent; time 0 where they do not tell.
        absent_until: Micros,
    },
    /// The chunk's bytes, pinned by this handle.
    Chunk(Arc<Chunk>),
    /// The backend's figures.
    Statfs(Statfs),
    /// It could not be had: the backend's own errno, ESTALE for a version that is gone, EIO after the deadline.
    Failed {
        /// `errno`(3).
        errno: i32,
    },
}

/// Who waits for an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiter {
    /// A client of this node; the number is the runtime's.
    Local(u64),
    /// Another node.
    Peer {
        /// The node.
        node: NodeId,
        /// Its number for the request.
        id: u64,
        /// For a listing, the snapshot that its earlier parts came from.
        stamp: u64,
        /// For a listing, the first packed byte that it asks for.
        from: u32,
        /// For a listing, what for.
        purpose: Purpose,
        /// For attributes, its number for the first chunk of the file that may be there; 0 where it does not want that.
        bytes: u64,
    },
    /// A request of this node that needs this one's outcome first.
    Flight(FlightId),
    /// Nobody yet: it is fetched ahead, and given up where memory or the line is short.
    Nobody,
}

impl Waiter {
    /// What it would want a listing for.
    pub(super) fn purpose(&self) -> Purpose {
        match self {
            Waiter::Local(_) => Purpose::Reading,
            Waiter::Peer { purpose, .. } => *purpose,
            Waiter::Flight(_) | Waiter::Nobody => Purpose::Absence,
        }
    }
}

/// Names one upstream request in this life of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlightId(pub u64);

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// In line for the one that is asked: it is not ready yet, or has enough of ours under way.
    InLine,
    /// To be tried again at a time.
    Pausing(Micros),
    /// Waits for another request of ours.
    Behind {
        /// That one is answered by nobody's memory: the backend is asked after this one began.
        anew: bool,
    },
    /// The parent was asked.
    Asked,
    /// Bytes are being read from the parent's memory.
    Pulling {
        /// The leave to do so.
        grant: u64,
        /// The bytes' checksum.
        crc: u32,
    },
    /// A worker puts a listing in order.
    Arranging {
        /// When its time is over for who reads the directory, and for who asks for a name that it lacks.
        until: (Micros, Micros),
    },
    /// A worker computes a checksum.
    Verifying {
        /// What it must be.
        crc: u32,
    },
    /// The backend was asked.
    Backend,
    /// The backend is asked whether a file's bytes are as they were.
    Rechecking,
}

/// An answer of the backend's that waits for a comparison with what was read before.
#[derive(Debug)]
pub(super) enum Held {
    /// What is at a path, and until when that may be said.
    Found { found: Found, expires: Micros },
    /// A chunk.
    Chunk { slot: Slot, len: usize, crc: u32 },
}

/// One upstream request.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) object: Object,
    pub(super) waiters: Vec<Waiter>,
    pub(super) stage: Stage,
    /// When upstream was first asked: what the answer says counts from here.
    pub(super) asked_at: Option<Micros>,
    /// When upstream last gave a sign of life on this request.
    pub(super) sign_at: Micros,
    pub(super) begun: Micros,
    pub(super) deadline: Micros,
    /// Taken before upstream is asked; a store under it loses against a clear since.
    pub(super) token: Option<Token>,
    /// Parts of a listing received so far, and the snapshot that they are from.
    pub(super) parts: Option<(u64, ListingBuilder)>,
    /// What a listing is asked for; anything else is to be read.
    pub(super) purpose: Purpose,
    /// Names that were found in the directory while its listing was under way. One that lacks any of them is older.
    pub(super) found: Vec<Box<[u8]>>,
    /// Answers whose bytes did not match their checksum.
    pub(super) bad_checksums: u32,
    /// It was begun for [`Waiter::Nobody`].
    pub(super) ahead: bool,
    /// The tree that it belongs to.
    pub(super) tree: usize,
    /// At whom it is under way, with one of that node's credits.
    pub(super) asked: Option<NodeId>,
    /// What waits for a comparison with what was read before.
    pub(super) held: Option<Held>,
    /// What is under way was asked before an invalidation: its answer is not to be believed.
    pub(super) outdated: bool,
    /// Of attributes: no node's memory may answer, here or upstream.
    pub(super) anew: bool,
    /// Of attributes: the number under which whoever is asked answers with the first chunk as well.
    pub(super) bytes: Option<FlightId>,
    /// When it is looked at next; timers for other times are void.
    timer: Micros,
}

/// Names that are noted of those found while a listing is under way. Beyond it the listing is taken for too old.
const FOUND_MAX: usize = 1_024;

impl Flight {
    /// Whether a client of this node waits for it, or it was begun for one that will.
    pub(super) fn is_own(&self) -> bool {
        self.ahead || self.has_client()
    }

    /// Whether a client of this node waits for it.
    pub(super) fn has_client(&self) -> bool {
        self.waiters.iter().any(|waiter| matches!(waiter, Waiter::Local(_)))
    }

    /// Whether this listing has all names that were found while it was under way.
    pub(super) fn has_found(&self, listing: &Listing) -> bool {
        self.found.len() <= FOUND_MAX && !self.found.iter().any(|name| is_missing(listing, name))
    }
}

/// All requests that are under way, with their timers.
#[derive(Debug, Default)]
pub(super) struct Flights {
    by_object: HashMap<Object, FlightId, DefaultHashBuilder>,
    table: HashMap<FlightId, Flight, DefaultHashBuilder>,
    timers: BinaryHeap<Reverse<(Micros, FlightId)>>,
    last: u64,
    /// Those of them that are for listings.
    lists: usize,
}

impl Flights {
    /// None yet. Its numbers are those of one life of the node: an answer to an earlier life's request must not be
    /// taken for one to this life's.
    pub(super) fn new(incarnation: u64) -> Flights {
        // The upper half scatters the incarnations (Knuth's multiplicative hashing); the lower half counts.
        let upper = incarnation.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        Flights { last: upper << 32, ..Flights::default() }
    }

    /// A number that no request of this node has yet.
    pub(super) fn next_id(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn find(&self, object: &Object) -> Option<FlightId> {
        self.by_object.get(object).copied()
    }

    pub(super) fn peek(&self, id: FlightId) -> Option<&Flight> {
        self.table.get(&id)
    }

    pub(super) fn get(&mut self, id: FlightId) -> Option<&mut Flight> {
        self.table.get_mut(&id)
    }

    pub(super) fn start(
        &mut self,
        now: Micros,
        object: Object,
        tree: usize,
        waiter: Waiter,
        deadline: Micros,
    ) -> FlightId {
        let id = FlightId(self.next_id());
        self.start_as(id, now, object, tree, waiter, deadline);
        id
    }

    /// As `start`, under a number that was given out before.
    pub(super) fn start_as(
        &mut self,
        id: FlightId,
        now: Micros,
        object: Object,
        tree: usize,
        waiter: Waiter,
        deadline: Micros,
    ) {
        self.by_object.insert(object.clone(), id);
        let is_list = matches!(object, Object::List(_));
        self.lists += usize::from(is_list);
        let flight = Flight {
            object,
            ahead: waiter == Waiter::Nobody && !is_list,
            purpose: if is_list { waiter.purpose() } else { Purpose::Reading },
            found: Vec::new(),
            waiters: if waiter == Waiter::Nobody { Vec::new() } else { vec![waiter] },
            stage: Stage::InLine,
            asked_at: None,
            sign_at: now,
            begun: now,
            deadline,
            token: None,
            parts: None,
            bad_checksums: 0,
            tree,
            asked: None,
            held: None,
            outdated: false,
            anew: false,
            bytes: None,
            timer: Micros::FOREVER,
        };
        self.table.insert(id, flight);
    }

    /// Has a request begin anew under another number, so that no answer to what was asked so far is taken for one to what
    /// will be asked, whose time counts from then. Gives the number.
    pub(super) fn renew(&mut self, id: FlightId) -> Option<FlightId> {
        let mut flight = self.table.remove(&id)?;
        let new = FlightId(self.next_id());
        self.by_object.insert(flight.object.clone(), new);
        flight.stage = Stage::InLine;
        (flight.asked_at, flight.token, flight.parts, flight.outdated) = (None, None, None, false);
        flight.bytes = None;
        let timer = std::mem::replace(&mut flight.timer, Micros::FOREVER);
        self.table.insert(new, flight);
        self.arm(new, timer);
        Some(new)
    }

    pub(super) fn end(&mut self, id: FlightId) -> Option<Flight> {
        let flight = self.table.remove(&id)?;
        self.by_object.remove(&flight.object);
        self.lists -= usize::from(matches!(flight.object, Object::List(_)));
        Some(flight)
    }

    /// Since when the listing of a directory is under way for names that it may lack.
    pub(super) fn listing_since(&self, dir: &[u8]) -> Option<Micros> {
        if self.lists == 0 {
            return None;
        }
        let flight = self.table.get(&self.find(&Object::List(dir.into()))?)?;
        (flight.purpose == Purpose::Absence).then_some(flight.begun)
    }

    /// Takes note of a name that was found while the listing of its directory may be under way.
    pub(super) fn note_found(&mut self, path: &[u8]) {
        if self.lists == 0 {
            return;
        }
        let Some(dir) = parent_path(path) else { return };
        let id = self.find(&Object::List(dir.into()));
        if let Some(flight) = id.and_then(|id| self.get(id))
            && flight.found.len() <= FOUND_MAX
        {
            let name =
                path.strip_prefix(dir).and_then(|rest| rest.strip_prefix(b"/").or(dir.is_empty().then_some(rest)));
            flight.found.extend(name.map(Box::from));
        }
    }

    /// What was asked in `tree` of `path` and what is below it is not to be believed when it is answered. Bytes are:
    /// they are asked for by their version. Visits every request that is under way.
    pub(super) fn outdate(&mut self, tree: usize, path: &[u8]) {
        for flight in self.table.values_mut().filter(|flight| flight.tree == tree) {
            flight.outdated |= match &flight.object {
                Object::Attr(object) => is_at_or_below(object, path),
                // Those of the directories above too: they tell whether the path is there.
                Object::List(object) => is_at_or_below(object, path) || is_at_or_below(path, object),
                Object::Chunk { .. } | Object::Statfs => false,
            };
        }
    }

    /// Has the request looked at again at `at`, unless it is looked at earlier anyway.
    pub(super) fn arm(&mut self, id: FlightId, at: Micros) {
        if let Some(flight) = self.table.get_mut(&id).filter(|flight| at < flight.timer) {
            flight.timer = at;
            self.timers.push(Reverse((at, id)));
        }
    }

    pub(super) fn next_timer(&self) -> Option<Micros> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// The next request whose timer has run out; the caller arms it again or ends it.
    pub(super) fn due(&mut self, now: Micros) -> Option<FlightId> {
        while let Some(&Reverse((at, id))) = self.timers.peek() {
            let flight = self.table.get_mut(&id).filter(|flight| flight.timer == at);
            if flight.is_some() && at > now {
                return None;
            }
            self.timers.pop();
            if let Some(flight) = flight {
                flight.timer = Micros::FOREVER;
                return Some(id);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_lives_of_a_node_share_no_number() {
        // Incarnations are starts in microseconds with a process number below: near each other, and never equal.
        let mut first: Vec<u64> = (0..100u64).map(|start| Flights::new((1 << 60) + (start << 12)).next_id()).collect();
        first.sort_unstable();
        assert!(first.windows(2).all(|pair| pair[1] - pair[0] >= 1 << 32), "{first:x?}");
    }
}
