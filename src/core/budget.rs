//! Room: for names, for what is fetched ahead, and what is pinned.
//!
//! Names have a budget: room is made when it is used up, in small steps, by the runtime's leave.
//!
//! Dropped is what no client's kernel holds; for the rest the kernel is asked to let it go ([`Output::Release`]), and it
//! is dropped when the kernel has ([`Node::forget`]). A number that is gone is never given out again.

use super::limits::{AHEAD_LINE_MAX, AHEAD_MAX};
use super::node::Node;
use super::output::Output;
use crate::cache::types::{Ino, Micros};

/// Inodes looked at in one step: some 100 us.
const LOOKS: u32 = 512;

/// Pause after everything was looked at and there still is no room: all that is left is in use.
const PAUSE_US: u64 = 100_000;

/// What a root remembers of a file that it has read, bytes with its place in the table: a map of few chunks.
const SEEN_BYTES: usize = 320;

/// How far the node has come with making room.
#[derive(Debug, Default)]
pub(super) struct Relief {
    is_active: bool,
    pause: Micros,
}

impl Relief {
    /// Whether room is being made.
    pub(super) fn is_active(&self) -> bool {
        self.is_active
    }
}

impl Node {
    /// Makes room among the names where their budget is used up; `ask_max`: how many more the kernel may be asked for.
    /// True when there is more to do at once. To be called in every turn: costs nothing while there is room.
    pub fn make_room(&mut self, now: Micros, ask_max: usize) -> bool {
        self.writer.set_beside_bytes(self.seen.len() * SEEN_BYTES);
        if !self.relief.is_active {
            if !self.writer.is_full() {
                return false;
            }
            self.relief = Relief { is_active: true, pause: Micros(0) };
            self.writer.want_forgets(true);
        }
        if self.writer.has_room() {
            self.relief.is_active = false;
            self.writer.want_forgets(false);
            return false;
        }
        if self.relief.pause > now {
            return false;
        }
        let shrunk = self.writer.shrink(LOOKS, ask_max);
        for inode in shrunk.dropped {
            self.dropped(&inode);
        }
        for inode in shrunk.held {
            self.counters.names_released += 1;
            self.out.push_back(Output::Release { path: inode.path.clone() });
        }
        if shrunk.is_over {
            self.relief.pause = now.after_us(PAUSE_US);
        }
        !shrunk.is_over && !shrunk.is_waiting
    }

    /// Whether one more chunk may be fetched for nobody.
    pub(super) fn may_fetch_ahead(&self, tree: usize) -> bool {
        self.ahead < AHEAD_MAX && self.trees[tree].line.len() < AHEAD_LINE_MAX && self.store.has_room_ahead(self.ahead)
    }

    /// Goes on with the search for pinned chunks; see
    /// [`ChunkStore::look_for_pins`](crate::cache::store::ChunkStore::look_for_pins).
    pub fn look_for_pins(&mut self) {
        self.store.look_for_pins();
    }

    /// The kernel forgot an inode.
    pub fn forget(&mut self, ino: Ino) {
        self.writer.forget(ino);
        if self.relief.is_active
            && let Some(inode) = self.writer.drop_unheld(ino)
        {
            self.dropped(&inode);
        }
    }

    /// This node's client has what is here of a file elsewhere as well: unless other nodes may ask for it, it goes.
    pub fn passed_on(&mut self, ino: Ino) {
        let asked_by_others = self.trees.iter().any(|up| up.topology.children().next().is_some());
        if !asked_by_others
            && let Some(inode) = self.names.by_ino(ino)
            && let Some(data) = inode.data()
        {
            self.store.forget(data);
        }
    }

    fn dropped(&mut self, inode: &crate::cache::names::Inode) {
        self.seen.remove(&inode.ino);
        if let Some(data) = inode.data() {
            self.store.forget(data);
        }
    }
}
