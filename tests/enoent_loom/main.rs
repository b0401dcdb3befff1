//! The protocol of the ENOENT TTL map in every order of its steps, and with every value that the memory model lets a load
//! see (loom). What runs is the map's own source, `src/cache/enoent/ring.rs`, on loom's primitives.

mod enoent;
mod sync;
