//! Complete directories: a listing answers every name that it lacks.
//!
//! After some distinct misses in a directory within a TTL the node asks for its listing, which then says of every absent
//! name that it is absent, for what is left of the TTL: that time is counted from before the root listed the directory, and
//! travels with the listing as it does with an ENOENT. When it is over, the next absent name asks for it to be renewed, if
//! it has paid: nodes ask "is it still snapshot S?", and the root looks at the directory once. It lists again where the
//! directory has changed or is so young that a change might not show, and after ten TTLs in any case.
//!
//! What must stay true:
//! - A listing that is cut short, failed, or larger than the bounds is never used.
//! - A name that was found voids a listing that lacks it; so it does to one that is under way. Of a directory, only the
//!   names that belong to its own tree are told by its listing: others are found through other roots, which may see later
//!   what this one sees.
//! - Nobody waits for a listing that was asked for longer than [`LISTING_WAIT_US`] ago: the name itself is asked for.

use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashMap};

use super::flight::{FlightId, Object, Outcome, Purpose, Stage, Waiter};
use super::limits::{
    LISTING_PAUSE_US, LISTING_WAIT_US, MISS_DIRS_MAX, MISS_WINDOW_MIN_US, MISSES_MAX, MISSES_MIN, RELIST_TTLS,
};
use super::node::Node;
use super::output::Output;
use crate::cache::names::{Inode, Proof, TimedListing, is_hidden, is_missing, parent_path};
use crate::cache::types::{Attr, Listing, Micros};

/// A directory in which names were missed.
#[derive(Debug)]
struct Missed {
    /// Hashes of the distinct names.
    names: Vec<u64>,
    /// When the first of them was missed.
    since: Micros,
    /// How many of them make its listing wanted.
    needed: usize,
    /// It is not to be listed before.
    pause: Micros,
}

/// The directories in which names were missed lately, bounded.
#[derive(Debug, Default)]
pub(super) struct Misses {
    dirs: HashMap<Box<[u8]>, Missed, DefaultHashBuilder>,
}

impl Misses {
    /// The misses in `dir` that lie within the window that ends now.
    fn within(&mut self, now: Micros, window_us: u64, dir: &[u8]) -> &mut Missed {
        let is_over = |missed: &Missed| now.0.saturating_sub(missed.since.0) > window_us;
        if !self.dirs.contains_key(dir) && self.dirs.len() >= MISS_DIRS_MAX {
            self.dirs.retain(|_, missed| !is_over(missed) || missed.pause > now);
            if self.dirs.len() >= MISS_DIRS_MAX {
                self.dirs.clear();
            }
        }
        let missed = self.dirs.entry(dir.into()).or_insert_with(|| Missed {
            names: Vec::new(),
            since: now,
            needed: MISSES_MIN,
            pause: Micros(0),
        });
        if is_over(missed) {
            missed.names.clear();
        }
        if missed.names.is_empty() {
            missed.since = now;
        }
        missed
    }
}

impl Missed {
    /// Its listing answered so many names: whether that is more than it cost. If not, the next one takes more misses.
    fn judge(&mut self, served: u32) -> bool {
        let has_paid = served as usize >= self.needed;
        self.needed = if has_paid { MISSES_MIN } else { (2 * self.needed).min(MISSES_MAX) };
        has_paid
    }
}

impl From<&TimedListing> for Outcome {
    fn from(timed: &TimedListing) -> Outcome {
        let (expires, absent_until) = (timed.expires, timed.absent_until);
        Outcome::Listing { listing: timed.listing.clone(), expires, absent_until }
    }
}

/// The directory of a path, and its last name.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let dir = parent_path(path)?;
    Some((dir, &path[if dir.is_empty() { 0 } else { dir.len() + 1 }..]))
}

/// FNV-1a (Fowler, Noll, Vo).
fn hash_of(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

impl Node {
    /// Whether listings answer the names that they lack.
    pub(super) fn completes(&self) -> bool {
        self.config.complete_dirs && !self.config.enoent_ttl.is_zero()
    }

    pub(super) fn enoent_ttl_us(&self) -> u64 {
        u64::try_from(self.config.enoent_ttl.as_micros()).unwrap_or(u64::MAX)
    }

    /// Whether the listing of `dir` tells of `path`, which is in it.
    fn tells_of(&self, dir: &[u8], path: &[u8]) -> bool {
        self.topology().stripes() == 1 || self.tree_of(dir) == self.tree_of(path)
    }

    /// Whether it tells of all names that are in it, so that who knows nothing of trees may ask it.
    pub(super) fn tells_of_all(&self) -> bool {
        self.topology().stripes() == 1
    }

    /// The directory whose listing may tell that nothing is at `path`, and the name in it.
    fn told_in<'a>(&self, path: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        let (dir, name) = split(path)?;
        (self.completes() && !is_hidden(name) && self.tells_of(dir, path)).then_some((dir, name))
    }

    /// The misses in `dir` that count now.
    fn missed(&mut self, now: Micros, dir: &[u8]) -> &mut Missed {
        let window_us = self.enoent_ttl_us().max(MISS_WINDOW_MIN_US);
        self.misses.within(now, window_us, dir)
    }

    /// That nothing is at `path`, if that is known to hold at `at`.
    pub(super) fn known_absent(&self, at: Micros, path: &[u8]) -> Option<Outcome> {
        match self.enoent.lookup(path, at) {
            Some(remaining) => Some(Outcome::Absent { expires: at.after_us(remaining) }),
            None => self.listed_absent(at, path),
        }
    }

    /// That nothing is at `path`, if a complete listing says so, and nothing else was known of it.
    fn listed_absent(&self, now: Micros, path: &[u8]) -> Option<Outcome> {
        let (dir, name) = self.told_in(path)?;
        if self.names.with(path, |_| ()).is_some() {
            return None;
        }
        let expires = self.names.with(dir, |inode| self.names.absent_in(inode, name, now, true)).flatten()?;
        Some(Outcome::Absent { expires })
    }

    /// Whether a complete listing has said that nothing is at the path of `inode`, since that was learnt. Who has learnt
    /// from it that nothing is there is not to be told of what was there before.
    pub(super) fn is_denied(&self, inode: &Inode) -> bool {
        let Some((dir, name)) = self.told_in(&inode.path) else { return false };
        self.names.with(dir, |dir| self.names.denies(dir, inode, name)).unwrap_or(false)
    }

    /// The directory whose listing may answer `path` in a moment, and until when that is waited for: it is under way, or
    /// the time of the one that is here is over, it has paid, and `path` is not in it.
    pub(super) fn waits_for(&self, now: Micros, path: &[u8]) -> Option<(Arc<[u8]>, Micros)> {
        let (dir, name) = self.told_in(path)?;
        if self.names.with(path, |_| ()).is_some() {
            return None;
        }
        if let Some(begun) = self.flights.listing_since(dir) {
            let until = begun.after_us(LISTING_WAIT_US);
            return (until > now).then(|| (dir.into(), until));
        }
        let timed = self.names.current(dir)?.listing()?;
        let is_over = timed.absent_until > Micros(0) && timed.absent_until <= now;
        let has_paid = timed.served() as usize >= MISSES_MIN;
        let renews = is_over && has_paid && is_missing(&timed.listing, name);
        renews.then(|| (dir.into(), now.after_us(LISTING_WAIT_US)))
    }

    /// A request for attributes that waited for a listing goes on with it.
    pub(super) fn resume_with(&mut self, now: Micros, id: FlightId, path: &[u8], outcome: &Outcome) {
        let anew = self.flights.get(id).is_some_and(|flight| flight.anew);
        if let (Outcome::Listing { listing, absent_until, .. }, Some((_, name)), false) = (outcome, split(path), anew)
            && *absent_until > Micros(0)
            && is_missing(listing, name)
            && self.names.with(path, |_| ()).is_none()
        {
            self.names.note_listing_serve();
            return self.finish(now, id, &Outcome::Absent { expires: *absent_until });
        }
        self.lead(now, id);
    }

    /// Upstream said that nothing is at `path`: after some such answers its directory's listing is asked for.
    pub(super) fn note_miss(&mut self, now: Micros, path: &[u8]) {
        let Some((dir, name)) = self.told_in(path).filter(|_| !self.relief.is_active()) else { return };
        let Some(inode) = self.names.current(dir).filter(|inode| inode.attr.is_dir()) else { return };
        let before = inode.listing().filter(|timed| timed.absent_until > Micros(0));
        if before.as_ref().is_some_and(|timed| timed.absent_until > now) {
            return;
        }
        let missed = self.missed(now, dir);
        let hash = hash_of(name);
        if missed.pause > now || missed.names.contains(&hash) {
            return;
        }
        missed.names.push(hash);
        if missed.names.len() < missed.needed {
            return;
        }
        if before.is_some_and(|timed| !missed.judge(timed.served())) && missed.names.len() < missed.needed {
            return;
        }
        missed.names.clear();
        self.counters.listings_wanted += 1;
        self.request(now, Object::List(dir.into()), Waiter::Nobody);
    }

    /// The listing of a directory could not be had, or tells nothing of what it lacks: it is not asked for again soon.
    pub(super) fn pause_listing(&mut self, now: Micros, dir: &[u8]) {
        let missed = self.missed(now, dir);
        missed.names.clear();
        missed.pause = now.after_us(LISTING_PAUSE_US);
    }

    /// Upstream said that something is at `path`: a listing that lacks it is void, here and in the kernel.
    pub(super) fn note_found(&mut self, now: Micros, path: &[u8]) {
        self.flights.note_found(path);
        let Some((dir, name)) = split(path) else { return };
        let Some(inode) = self.names.get(dir) else { return };
        let Some(timed) = inode.listing().filter(|timed| is_missing(&timed.listing, name)) else { return };
        self.counters.listings_voided += 1;
        self.writer.drop_listing(inode.ino);
        self.expire_names_in(&inode);
        if timed.absent_until > Micros(0) {
            self.missed(now, dir).judge(timed.served());
        }
    }

    /// What is at `path` is to be asked for anew: the listings of all directories above tell nothing any more.
    pub(super) fn drop_listings_above(&mut self, path: &[u8]) {
        let mut path = path;
        while let Some(dir) = parent_path(path) {
            if let Some(inode) = self.names.get(dir) {
                self.writer.drop_listing(inode.ino);
            }
            path = dir;
        }
    }

    /// The listing is kept even when its time is over: who reads it in parts goes on with the one that was begun.
    ///
    /// `until`: when its time is over for who reads the directory, and for who asks for a name that it lacks.
    pub(super) fn learn_listing(
        &mut self,
        id: FlightId,
        path: &[u8],
        listing: Listing,
        until: (Micros, Micros),
        proof: Option<Proof>,
    ) -> Outcome {
        // One that is older than a name which was found meanwhile is for who waits for it, and for nobody else.
        let is_old = self.flights.get(id).is_some_and(|flight| !flight.has_found(&listing));
        let until = if is_old { (Micros(0), Micros(0)) } else { until };
        let timed = TimedListing::new(Arc::new(listing), until.0);
        let timed = match self.completes() {
            true => timed.complete(until.1, proof).told_to_all(self.tells_of_all()),
            false => timed,
        };
        let outcome = Outcome::from(&timed);
        if let Some(inode) = self.names.get(path).filter(|inode| inode.attr.is_dir()) {
            if inode.listing().is_some_and(|before| before.listing.bytes() != timed.listing.bytes()) {
                self.expire_names_in(&inode);
            }
            self.writer.set_listing(inode.ino, timed);
        }
        outcome
    }

    /// The kernel is to forget what it keeps of a directory's names: others are there now. It compares the directory's times
    /// only where a reader begins; who reads on would be given the rest of whatever it keeps, and what it keeps it puts
    /// together from the answers to all readers.
    pub(super) fn expire_names_in(&mut self, dir: &Inode) {
        self.out.push_back(Output::Expire { ino: dir.ino, path: dir.path.clone(), dir: true });
    }

    /// Has a root look at the directory of request `id` for a listing, where that may renew the one that is here. False
    /// where it has to be listed.
    pub(super) fn looks_first(&mut self, now: Micros, id: FlightId) -> bool {
        let Some(flight) = self.flights.get(id).filter(|flight| flight.purpose == Purpose::Absence) else {
            return false;
        };
        let dir = flight.object.path_shared();
        let listed = self.names.get(&dir).and_then(|inode| inode.listing()?.proof).map(|proof| proof.listed);
        let relist_us = self.enoent_ttl_us().saturating_mul(RELIST_TTLS);
        if !self.completes() || listed.is_none_or(|listed| now.0.saturating_sub(listed.0) >= relist_us) {
            return false;
        }
        if let Some(flight) = self.flights.get(id) {
            flight.stage = Stage::Behind { anew: false };
        }
        // What is known of the directory is not asked: it is to be looked at.
        self.begin(now, Object::Attr(dir), Waiter::Flight(id));
        true
    }

    /// The listing of `path` that a root may go on using, as the backend has just told these attributes of it.
    pub(super) fn proven(&self, path: &[u8], attr: &Attr) -> Option<Arc<TimedListing>> {
        let timed = self.names.get(path)?.listing()?;
        timed.proof.filter(|proof| self.completes() && proof.holds(attr))?;
        Some(timed)
    }

    /// The listing was found to be what the directory still is: when that was asked, its time began anew.
    pub(super) fn renew_listing(&mut self, path: &[u8], timed: &TimedListing, asked_at: Micros) {
        let until = asked_at.after(self.config.enoent_ttl).max(timed.absent_until);
        self.renewed(path, timed, (timed.expires, until));
    }

    /// Upstream said that the listing is what the directory still is, and for how long that may be said.
    pub(super) fn renewed(&mut self, path: &[u8], timed: &TimedListing, until: (Micros, Micros)) -> Outcome {
        let (expires, absent_until) = (until.0.max(timed.expires), until.1.max(timed.absent_until));
        self.counters.listings_renewed += 1;
        let renewed = TimedListing::new(timed.listing.clone(), expires);
        let renewed = renewed.complete(absent_until, timed.proof).told_to_all(self.tells_of_all());
        let mut outcome = Outcome::from(&renewed);
        // Its earlier time is no answer to who waits for a new one.
        if let (Outcome::Listing { absent_until, .. }, Micros(0)) = (&mut outcome, until.1) {
            *absent_until = Micros(0);
        }
        if let Some(inode) = self.names.get(path) {
            self.writer.set_listing(inode.ino, renewed);
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split_at_their_last_name() {
        assert_eq!(split(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(split(b"a"), Some((&b""[..], &b"a"[..])));
        assert_eq!(split(b""), None);
    }

    #[test]
    fn misses_are_bounded_and_forgotten() {
        let mut misses = Misses::default();
        for n in 0..3 * MISS_DIRS_MAX {
            misses.within(Micros(n as u64), 100, format!("d{n}").as_bytes()).names.push(1);
        }
        assert!(misses.dirs.len() <= MISS_DIRS_MAX);
        let last = format!("d{}", 3 * MISS_DIRS_MAX - 1);
        let now = 3 * MISS_DIRS_MAX as u64;
        assert_eq!(misses.within(Micros(now), 100, last.as_bytes()).names.len(), 1);
        assert_eq!(misses.within(Micros(now + 200), 100, last.as_bytes()).names.len(), 0);
    }

    #[test]
    fn a_listing_that_did_not_pay_takes_more_misses_the_next_time() {
        let mut missed = Missed { names: Vec::new(), since: Micros(0), needed: MISSES_MIN, pause: Micros(0) };
        for needed in [4, 8, 16, 32, 48, 48] {
            assert!(!missed.judge(1));
            assert_eq!(missed.needed, needed);
        }
        assert!(missed.judge(48));
        assert_eq!(missed.needed, MISSES_MIN);
    }
}
