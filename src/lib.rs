//! Bornite: a read-only cooperative cache for starting large HPC jobs.
pub mod cache;
pub mod cli;
pub mod core;
pub mod job;
pub mod observe;
pub mod runtime;
pub mod sim;
