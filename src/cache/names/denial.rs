//! What complete listings said of names that are in memory.
//!
//! Who was told that a name is absent, because a listing lacks it, must not be told afterwards of what was there before. A
//! name that was learnt earlier than such a listing, and that the listing lacks, is *denied*: it is to be asked for anew.
//! That must outlive the listing, which goes when the directory changes or when another name is found that it lacks.
//! The engine alone asks; FUSE threads answer their own clients from what they told them before.

use super::{Body, Inode, Names, NamesWriter, is_missing};
use crate::cache::heap::arc_bytes;
use crate::cache::sync::{Arc, Ordering};
use crate::cache::types::Listing;

/// Searches for names by which two listings are compared: some 0.2 ms of them.
const FINDS_MAX: usize = 200;

/// What the complete listings of one directory denied, up to the last one.
#[derive(Debug)]
pub(super) struct Denial {
    /// The last one: it denies what it lacks, of all that was learnt before it. None where there was no room for it.
    listing: Option<Arc<Listing>>,
    /// When it was learnt, by [`Inode::learnt`].
    at: u64,
    /// All that was learnt before is denied: which names it were is not known any more.
    all_before: u64,
}

impl Denial {
    fn denies(&self, child: &Inode, name: &[u8]) -> bool {
        let is_missing = || self.listing.as_deref().is_some_and(|listing| is_missing(listing, name));
        child.learnt < self.all_before || (child.learnt < self.at && is_missing())
    }
}

impl Names {
    /// Whether a complete listing of the directory `dir` has denied `child`, which is called `name` in it, since that was
    /// learnt.
    #[must_use]
    pub fn denies(&self, dir: &Inode, child: &Inode, name: &[u8]) -> bool {
        dir.body.denial.load().as_ref().is_some_and(|denial| denial.denies(child, name))
    }
}

impl Body {
    /// Memory of the denial's listing, where it is not the directory's present one as well, bytes.
    pub(super) fn denial_listing_bytes(&self) -> usize {
        let (denial, timed) = (self.denial.load(), self.listing.load());
        let denied = denial.as_ref().and_then(|denial| denial.listing.as_ref());
        let is_present =
            |denied: &Arc<Listing>| timed.as_ref().is_some_and(|timed| Arc::ptr_eq(&timed.listing, denied));
        denied.filter(|denied| !is_present(denied)).map_or(0, |denied| denied.size_bytes())
    }

    /// Memory of the denial but for its listing, bytes.
    pub(super) fn denial_bytes(&self) -> usize {
        if self.denial.load().is_some() { arc_bytes::<Denial>() } else { 0 }
    }
}

impl NamesWriter {
    /// A complete listing of the directory `dir` is learnt: it denies what it lacks. What the one before denied and this
    /// one has is another one by now, and expires; where too much changed to say what that is, all that is older than the
    /// one before is denied.
    pub(super) fn deny(&mut self, dir: &Inode, listing: &Arc<Listing>) {
        let before = dir.body.denial.load_full();
        let mut all_before = before.as_ref().map_or(0, |before| before.all_before);
        if let Some(before) = &before
            && let Some(older) = before.listing.as_ref().filter(|older| !Arc::ptr_eq(older, listing))
        {
            match listing.added_since(older, FINDS_MAX) {
                Some(added) => self.expire_denied(dir, before, &added),
                None => all_before = before.at,
            }
        }
        let denial = Denial { listing: Some(Arc::clone(listing)), at: self.next_learnt(), all_before };
        self.change_told(&dir.body, |body| body.denial.store(Some(Arc::new(denial))));
    }

    /// Lets those of `names` expire that were denied.
    fn expire_denied(&self, dir: &Inode, denial: &Denial, names: &[&[u8]]) {
        let children = self.names.children(dir);
        for name in names {
            children.with(name, |child| {
                if denial.denies(child, name) {
                    child.expires_us.store(0, Ordering::Release);
                }
            });
        }
    }

    /// Makes room: the listings of a directory go. Of what was learnt before they did, all is denied.
    pub(super) fn shed_listings(&mut self, body: &Body) {
        let denial = body.denial.load_full().map(|denial| match &denial.listing {
            Some(_) => Arc::new(Denial { listing: None, at: denial.at, all_before: denial.at }),
            None => denial,
        });
        self.change_told(body, |body| {
            body.listing.store(None);
            body.denial.store(denial);
        });
    }

    /// The directory of this body is none any more.
    pub(super) fn clear_listings(&mut self, body: &Body) {
        self.change_told(body, |body| {
            body.listing.store(None);
            body.denial.store(None);
        });
    }

    /// The next place in the order in which things are learnt.
    pub(super) fn next_learnt(&mut self) -> u64 {
        self.learnt += 1;
        self.learnt
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{DIR, FILE, attr, listing};
    use super::super::{NamesConfig, TimedListing};
    use super::*;
    use crate::cache::types::{Attr, Ino, Micros, Timestamp};

    struct World {
        writer: NamesWriter,
        names: Arc<Names>,
    }

    impl World {
        fn new() -> World {
            let (mut writer, names) = NamesWriter::new(NamesConfig { index_shards: 1, ..NamesConfig::new([3, 4]) });
            writer.insert(b"", attr(DIR, 1), None, Micros::FOREVER);
            World { writer, names }
        }

        fn found(&mut self, name: &str) {
            self.writer.insert(name.as_bytes(), attr(FILE, 7), None, Micros::FOREVER);
        }

        fn listed(&mut self, names: &[&str]) {
            let names: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
            let timed = TimedListing::new(listing(&names), Micros(9)).complete(Micros(9), None);
            self.writer.set_listing(Ino::ROOT, timed);
        }

        /// Whether what is known of a name may not be told.
        fn is_denied(&self, name: &str) -> bool {
            let (dir, child) =
                (self.names.get(b"").expect("the root"), self.names.get(name.as_bytes()).expect("known"));
            self.names.denies(&dir, &child, name.as_bytes()) || !child.is_fresh(Micros(1))
        }
    }

    #[test]
    fn what_a_complete_listing_lacks_is_denied_until_it_is_found_again() {
        let mut world = World::new();
        for name in ["a", "b", ".hidden"] {
            world.found(name);
        }
        world.writer.set_listing(Ino::ROOT, TimedListing::new(listing(&[]), Micros(9)));
        assert!(!world.is_denied("a"), "that one tells nothing of what it lacks");
        world.listed(&["b"]);
        world.found("c");
        let denied = |world: &World| ["a", "b", "c", ".hidden"].map(|name| world.is_denied(name));
        assert_eq!(denied(&world), [true, false, false, false]);
        // The listing goes, what it said stays.
        world.writer.drop_listing(Ino::ROOT);
        assert_eq!(denied(&world), [true, false, false, false]);
        let later = Attr { mtime: Timestamp { secs: 5, nanos: 0 }, ..attr(DIR, 1) };
        world.writer.insert(b"", later, None, Micros::FOREVER);
        world.writer.set_listing(Ino::ROOT, TimedListing::new(listing(&[b"a"]), Micros(9)));
        assert_eq!(denied(&world), [true, false, false, false]);
        world.found("a");
        assert_eq!(denied(&world), [false; 4]);
    }

    #[test]
    fn what_was_denied_is_not_what_a_later_listing_has() {
        let mut world = World::new();
        for name in ["a", "b", "c"] {
            world.found(name);
        }
        world.listed(&["c"]);
        world.listed(&["c", "a"]);
        assert_eq!(["a", "b", "c"].map(|name| world.is_denied(name)), [true, true, false]);
        world.found("a");
        world.listed(&["b", "a"]);
        assert_eq!(["a", "b", "c"].map(|name| world.is_denied(name)), [false, true, true]);
    }

    #[test]
    fn where_there_is_no_room_for_a_listing_all_that_is_older_is_denied() {
        let mut world = World::new();
        world.found("a");
        world.found("b");
        let root = world.names.get(b"").expect("the root");
        world.writer.shed_listings(&root.body);
        assert!(!world.is_denied("a"), "there was no listing");
        let bytes = world.names.stats().bytes;
        world.listed(&["b"]);
        world.found("c");
        let with_listing = world.names.stats().bytes;
        world.writer.shed_listings(&root.body);
        assert!(world.names.stats().bytes < with_listing && world.writer.listing_bytes == 0);
        assert_eq!(["a", "b", "c"].map(|name| world.is_denied(name)), [true, true, false]);
        world.found("b");
        world.listed(&["a", "b", "c"]);
        assert_eq!(["a", "b", "c"].map(|name| world.is_denied(name)), [true, false, false]);
        let gone = world.writer.remove(b"c").expect("known");
        world.writer.forget(gone.ino);
        world.writer.clear_listings(&root.body);
        assert_eq!(world.names.stats().bytes, bytes);
    }
}
