//! Thousands of nodes in one process: the daemon's own core around a simulated network, clock and backend.
//!
//! Everything follows from a seed: the tree that is served, what clients ask, how long messages and the backend take.
//! The same seed gives the same run, event by event. Used by tests and by `bornite sim`; it touches no file, socket or
//! clock.

mod rng;
mod tree;
mod world;

pub use rng::Rng;
pub use tree::{Entry, Tree, TreeConfig};
pub use world::{Report, SimConfig, SimError, run};
