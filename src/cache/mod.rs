//! Memory that FUSE threads read without a lock.
//!
//! | Part | What it holds | Readers (any thread) | Writer |
//! |---|---|---|---|
//! | [`names`] | inodes, attributes, listings, symlinks | [`Names`], [`Inode`] | [`NamesWriter`], the engine |
//! | [`enoent`] | names that do not exist, until when | [`EnoentMap::lookup`] | any thread, without a lock |
//! | [`chunks`] | file data by chunk of 1 MiB | [`FileData::chunk`], [`Chunk`] | [`ChunkStore`], the engine |
//! | [`store`] | publication, eviction, bounds | | [`ChunkStore`], the engine |
//! | [`arena`] | the memory under the chunks | [`Arena`], [`Slot`] | the chunk store |
//! | [`types`] | values that every layer shares | | |
//!
//! FUSE threads and reply workers read; on a hit they take no lock, allocate nothing and wait for nobody. The engine
//! is the one writer: its handles are unique and take `&mut self`, so a second writer does not compile. A lookup asks
//! names, then the ENOENT map, then the parent's listing ([`Names::absent_in`]), and is a miss after that.
//!
//! Time is told (`now: Micros`), as are the keys of hashes: this folder reads no clock and no randomness, and does no
//! I/O but mapping anonymous memory. It knows neither FUSE, nor the network, nor the protocol.
//!
//! How readers and the writer meet is explained at the head of each module, always in the same terms: reader, writer,
//! collision, ABA, orderings. Common to all: what is published is immutable or one atomic; it is reached through
//! arc-swap or `OnceLock`; and memory that a reader may be in is kept until it is not. All primitives come through the
//! private module `sync`. Unsafe code is in [`arena`] alone.

mod ahead;
pub mod arena;
#[cfg(test)]
#[path = "../../tests/common/attr.rs"]
mod attr;
mod buddy;
pub mod chunks;
mod counters;
pub mod enoent;
mod hash;
mod heap;
mod index;
pub mod names;
mod numbers;
mod radix;
pub mod store;
mod sync;
pub mod types;

pub use arena::{Arena, ArenaConfig, SegmentInfo, Slot};
pub use chunks::{CHUNK_BYTES, Chunk, FileData};
pub use enoent::{EnoentConfig, EnoentMap, EnoentStats, Stored, Token};
pub use names::{
    Children, Inode, Names, NamesConfig, NamesStats, NamesWriter, PATH_BYTES_MAX, Proof, Shrunk, TimedListing,
};
pub use store::{ArenaStats, ChunkStore, NoMemory};
pub use types::{Attr, AttrWire, Ino, Kind, ListEntry, Listing, ListingBuilder, Micros, Timestamp, Version};
