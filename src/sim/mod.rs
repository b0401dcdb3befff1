//! Thousands of nodes in one process: the daemon's own core around a simulated network, clock and backend.
//!
//! Everything follows from a seed: the tree that is served and how it changes, what clients ask, how long messages and
//! the backend take, what is lost, doubled or late, which nodes start late, die or are stopped, which links are cut. The
//! same seed gives the same run, event by event. Used by tests and by `bornite sim`; it touches no file, socket or clock.
//!
//! Every answer that a client gets is judged (`oracle`), and so is what nodes do to each other and to the backend
//! (`carry`, `audit`):
//!
//! - Safety: right bytes of the version asked for; attributes, names and absence that the backend told and whose time
//!   was not over, never older than what the node told before; an errno only when the backend gave it just then; no
//!   answer twice; no operation of the backend twice at once; no chunk read again for no reason; no bound exceeded.
//! - Liveness: every request is answered, within its deadline and not by it; nothing is sent again that was not lost;
//!   no timer that comes again and again; at the end no node holds anything but its cache.
//! - With faults the same. Of a tree's root and standbys at most two are away at once, and one of those that are there
//!   knows of the root, so there is always a way to the backend, and nobody is told EIO that the backend did not say. Where nothing misleads the nodes about each other (a
//!   message lost by chance, a cut, a late copy): who asks a dead node asks another one within 3 s; only the first of
//!   root and standbys that is there asks the backend. When all is over, each node asks its own parent again, and while
//!   nobody asks for anything, heartbeats are few.

mod audit;
mod backend;
mod carry;
mod client;
mod config;
pub mod enoent;
mod event;
mod lives;
mod network;
mod oracle;
mod report;
mod rng;
mod search;
pub mod startup;
pub mod study;
#[cfg(test)]
mod tests;
mod tree;
mod world;

pub use config::{FaultLevel, Faults, Sabotage, SimConfig};
pub use report::{Counts, Report, SimError};
pub use rng::Rng;
pub use tree::TreeConfig;

/// Runs a simulation to its end: every client has had all of its answers, and every node has come to rest.
///
/// # Errors
/// [`SimError`] where a client was told something wrong or was not answered in time, where a node did what it must
/// not, or where the code panicked.
pub fn run(config: SimConfig) -> Result<Report, SimError> {
    let seed = config.seed;
    let run = std::panic::AssertUnwindSafe(|| world::World::new(config)?.run());
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let what = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text").to_owned();
        Err(SimError::Crash { seed, what })
    })
}
