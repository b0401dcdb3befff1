//! The node's arena as the network sees it: pieces for bytes that come, and the keys under which peers read.
//!
//! Used by the parts of the node that fetch and serve chunks. It never touches bytes.

use std::sync::Arc;

use super::node::Node;
use super::output::Output;
use crate::cache::arena::Slot;
use crate::cache::chunks::Chunk;

impl Node {
    /// A piece of the arena for `len` bytes; tells the runtime of segments made for it.
    pub(super) fn alloc(&mut self, len: usize) -> Option<Slot> {
        let slot = self.store.alloc(len).ok();
        while let Some(segment) = self.store.new_segments() {
            let spare = !self.store.is_in_use(segment.index);
            self.spare = spare.then_some(segment.index);
            self.out.push_back(Output::Register { segment: segment.index, spare });
        }
        if let Some(segment) = self.spare.take_if(|segment| self.store.is_in_use(*segment))
            && !self.is_registered(segment)
        {
            self.out.push_back(Output::Register { segment, spare: false });
        }
        slot
    }

    /// Whether a segment of the arena is registered.
    #[must_use]
    pub fn is_registered(&self, segment: u16) -> bool {
        self.keys.get(usize::from(segment)).is_some_and(Option::is_some)
    }

    /// A segment of the arena is registered under `key`.
    pub fn registered(&mut self, segment: u16, key: u64) {
        let at = usize::from(segment);
        if self.keys.len() <= at {
            self.keys.resize(at + 1, None);
        }
        self.keys[at] = Some(key);
    }

    /// The chunk that a peer may read under `key` at `offset` now: what an RDMA read would find there.
    #[must_use]
    pub fn granted(&self, key: u64, offset: u64) -> Option<&Arc<Chunk>> {
        self.grants.values().map(|granted| &granted.chunk).find(|chunk| {
            chunk.offset() == offset && self.keys.get(usize::from(chunk.segment())).copied().flatten() == Some(key)
        })
    }
}
