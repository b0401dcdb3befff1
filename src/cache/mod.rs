//! Memory that FUSE threads read without a lock.
pub mod types;
