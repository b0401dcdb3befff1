//! The ENOENT TTL map under many interleavings of several threads (shuttle), with the real arc-swap and generations that
//! are reused. What runs is the map's own source, `src/cache/enoent/ring.rs`; steps are those of atomics and locks, in one
//! order for all threads (tests/enoent_loom has the weaker orders).

mod enoent;
mod sync;
