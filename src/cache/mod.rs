//! Memory that FUSE threads read without a lock.
pub mod arena;
mod buddy;
pub mod chunks;
mod counters;
pub mod enoent;
mod hash;
mod radix;
pub mod store;
mod sync;
pub mod types;
