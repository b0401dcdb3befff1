//! Listings: the names of a directory, for readers of the directory and for lookups of names that are not in it.
//!
//! A listing is immutable; the engine swaps a newer one in, or none. FUSE threads load it where it lies: no lock, no
//! allocation, no reference count. One that is replaced meanwhile is kept until they are done with it.

use super::{Body, Inode, Names, NamesWriter};
use crate::cache::heap::arc_bytes;
use crate::cache::sync::{Arc, AtomicU32, Ordering};
use crate::cache::types::{Attr, Ino, Listing, Micros, Timestamp};

/// Absent names are counted up to this many: enough to know that a listing has paid for itself.
const SERVED_MAX: u32 = 1_000;

/// What a root needs to renew a listing: the directory as it was when it was listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    mtime: Timestamp,
    ctime: Timestamp,
    backend_ino: u64,
    backend_dev: u64,
    /// When the backend was asked for the listing.
    pub listed: Micros,
}

impl Proof {
    /// Of a directory that had these attributes before it was listed. A further change must show in them: its times were
    /// old enough.
    #[must_use]
    pub const fn new(attr: &Attr, listed: Micros) -> Proof {
        let Attr { mtime, ctime, backend_ino, backend_dev, .. } = *attr;
        Proof { mtime, ctime, backend_ino, backend_dev, listed }
    }

    /// Whether a directory with these attributes still has the names that were listed.
    #[must_use]
    pub fn holds(&self, attr: &Attr) -> bool {
        *self == Proof::new(attr, self.listed) && attr.is_dir()
    }
}

/// Whether a lookup may find `name` though no listing has it: filesystems hide names with a dot in front (`.snapshot`, `.zfs`,
/// `.lustre`).
#[must_use]
pub fn is_hidden(name: &[u8]) -> bool {
    name.starts_with(b".")
}

/// Whether a complete `listing` says that there is no `name`.
#[must_use]
pub fn is_missing(listing: &Listing, name: &[u8]) -> bool {
    !is_hidden(name) && listing.find(name).is_none()
}

/// The names of a directory and how long they may be believed.
#[derive(Debug)]
pub struct TimedListing {
    /// All its names.
    pub listing: Arc<Listing>,
    /// Until when who reads the directory may be given them.
    pub expires: Micros,
    /// Until when a name that it lacks may be said to be absent; time 0 where it does not tell.
    pub absent_until: Micros,
    /// Where it can be renewed by a look at the directory.
    pub proof: Option<Proof>,
    /// Whether [`Names::absent_in`] may be answered by it, or only the engine knows which names it tells of.
    is_for_all: bool,
    /// Absent names that it answered, up to [`SERVED_MAX`].
    served: AtomicU32,
}

impl TimedListing {
    /// Names for readers of the directory alone.
    #[must_use]
    pub const fn new(listing: Arc<Listing>, expires: Micros) -> TimedListing {
        let (absent_until, served) = (Micros(0), AtomicU32::new(0));
        TimedListing { listing, expires, absent_until, proof: None, is_for_all: true, served }
    }

    /// The same, and what it lacks is absent until then.
    #[must_use]
    pub fn complete(self, absent_until: Micros, proof: Option<Proof>) -> TimedListing {
        TimedListing { absent_until, proof, ..self }
    }

    /// Whether FUSE threads may ask it for what it lacks.
    #[must_use]
    pub fn told_to_all(self, is_for_all: bool) -> TimedListing {
        TimedListing { is_for_all, ..self }
    }

    /// Absent names that it answered so far; beyond 1,000 it is not counted.
    #[must_use]
    pub fn served(&self) -> u32 {
        self.served.load(Ordering::Relaxed)
    }

    /// Until when `name` is absent, if that may be said at `now`.
    #[must_use]
    pub fn lacks(&self, name: &[u8], now: Micros) -> Option<Micros> {
        (self.absent_until > now && is_missing(&self.listing, name)).then_some(self.absent_until)
    }

    fn note_serve(&self) {
        // Two threads may count as one: it need not be exact.
        let served = self.served();
        if served < SERVED_MAX {
            self.served.store(served + 1, Ordering::Relaxed);
        }
    }

    /// Memory that it takes, bytes.
    pub(super) fn size_bytes(&self) -> usize {
        arc_bytes::<TimedListing>() + self.listing.size_bytes()
    }
}

impl Inode {
    /// The names of a directory, where they were listed; whether they may still be believed is the caller's to see.
    #[must_use]
    pub fn listing(&self) -> Option<Arc<TimedListing>> {
        self.body.listing.load_full()
    }
}

impl Names {
    /// Until when `name` is absent from the directory `dir`, because a complete listing that may be believed at `now`
    /// lacks it; counts that as served. `is_engine`: the caller knows that this listing tells of this name
    /// ([`TimedListing::told_to_all`]). Takes no lock and allocates nothing.
    #[must_use]
    pub fn absent_in(&self, dir: &Inode, name: &[u8], now: Micros, is_engine: bool) -> Option<Micros> {
        let timed = dir.body.listing.load();
        let timed = timed.as_ref().filter(|timed| timed.is_for_all || is_engine)?;
        let until = timed.lacks(name, now)?;
        timed.note_serve();
        self.note_listing_serve();
        dir.note_use();
        Some(until)
    }

    /// Counts an absent name that a listing answered.
    pub fn note_listing_serve(&self) {
        self.listing_serves.add(0, 1);
    }
}

impl NamesWriter {
    /// Gives a directory its names, which deny what they lack where they tell of it ([`TimedListing::complete`]); ignored for a number that is no directory, or is retired or unknown.
    pub fn set_listing(&mut self, ino: Ino, timed: TimedListing) {
        if let Some(inode) = self.names.by_ino(ino)
            && inode.attr.is_dir()
            && !inode.is_retired()
        {
            if timed.absent_until > Micros(0) {
                self.deny(&inode, &timed.listing);
            }
            self.set_listing_of(&inode.body, Some(Arc::new(timed)));
        }
    }

    /// Takes a directory's names away; what they denied stays so.
    pub fn drop_listing(&mut self, ino: Ino) {
        if let Some(inode) = self.names.by_ino(ino) {
            self.set_listing_of(&inode.body, None);
        }
    }

    pub(super) fn set_listing_of(&mut self, body: &Body, timed: Option<Arc<TimedListing>>) {
        self.change_told(body, |body| body.listing.store(timed));
    }

    /// Changes what the listings of a directory say, and counts the memory of it.
    pub(super) fn change_told(&mut self, body: &Body, change: impl FnOnce(&Body)) {
        let listing_bytes = |body: &Body| {
            body.listing.load().as_deref().map_or(0, TimedListing::size_bytes) + body.denial_listing_bytes()
        };
        let (removed, removed_beside) = (listing_bytes(body), body.denial_bytes());
        change(body);
        let (added, added_beside) = (listing_bytes(body), body.denial_bytes());
        self.listing_bytes = self.listing_bytes + added - removed;
        self.add_bytes(added + added_beside);
        self.sub_bytes(removed + removed_beside);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{DIR, attr, listing};
    use super::super::{Names, NamesConfig};
    use super::*;

    fn dir() -> (NamesWriter, Arc<Names>, Arc<Inode>) {
        let (mut writer, names) = NamesWriter::new(NamesConfig { index_shards: 1, ..NamesConfig::new([3, 4]) });
        let dir = writer.insert(b"", attr(DIR, 1), None, Micros::FOREVER);
        (writer, names, dir)
    }

    #[test]
    fn a_complete_listing_answers_what_it_lacks_until_its_time() {
        let (mut writer, names, dir) = dir();
        assert_eq!(names.absent_in(&dir, b"x", Micros(1), false), None);
        writer.set_listing(dir.ino, TimedListing::new(listing(&[b"a"]), Micros(1_000)));
        assert_eq!(names.absent_in(&dir, b"x", Micros(1), false), None, "it is for readers alone");
        let timed = TimedListing::new(listing(&[b"a"]), Micros(1_000)).complete(Micros(100), None);
        writer.set_listing(dir.ino, timed);
        for (name, now, until) in [
            (&b"x"[..], 99, Some(Micros(100))),
            (b"x", 100, None),
            (b"a", 99, None),
            (b"aa", 0, Some(Micros(100))),
            (b".snapshot", 0, None),
        ] {
            assert_eq!(names.absent_in(&dir, name, Micros(now), false), until);
        }
        assert_eq!((dir.listing().expect("set").served(), names.stats().listing_serves), (2, 2));
    }

    #[test]
    fn a_proof_holds_while_nothing_of_the_directory_moved() {
        let then = attr(DIR, 7);
        let proof = Proof::new(&then, Micros(5));
        assert!(proof.holds(&then) && proof.holds(&Attr { nlink: 9, size: 3, ..then }));
        let later = Timestamp { secs: 1, nanos: 0 };
        for other in [
            Attr { mtime: later, ..then },
            Attr { ctime: later, ..then },
            Attr { backend_ino: 8, ..then },
            Attr { backend_dev: 8, ..then },
            Attr { mode: 0o100_644, ..then },
        ] {
            assert!(!proof.holds(&other), "{other:?}");
        }
    }
}
