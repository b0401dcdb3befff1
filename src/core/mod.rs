//! The node as a deterministic state machine.
//!
//! [`Node`] decides everything that a daemon does for its clients and its children: what is answered from memory, what
//! is asked of the parent or, on a root, of the backend, who waits for what, and for how long. It has no threads,
//! files, sockets, clock or randomness: the caller passes `now`, hands in what happened, and carries out the
//! [`Output`]s. The runtime does so around libfabric and a real backend, the simulation around a seeded network; both
//! run this same code.
//!
//! The caller must poll again ([`Node::timer`]) at [`Node::next_deadline`] at the latest, and must drain
//! [`Node::poll_output`] after every call.
//!
//! Parts: `wire` (messages, total decoding), `topology` (who is whose parent), `flight` (single flight: one upstream
//! request per object, waiters parked), `fetch` (asking upstream), `upstream` (whom it asks, and fail-over), `peer` (who
//! is there), `auth` (the job's secret and sessions), `ready` (which nodes are ready, for who waits for all), `bucket` (a
//! rate), `serve` (answering peers), `verify` (a root's watch over its files), `sweep` (invalidation), `complete` (listings
//! that answer absent names), `foresee` (what clients will ask for next), `budget` (room for names), `memory` (the arena),
//! `limits` (every bound, in one place).

mod auth;
mod bucket;
mod budget;
mod complete;
mod config;
mod fetch;
mod flight;
mod foresee;
pub mod limits;
mod line;
mod memory;
mod node;
mod output;
mod peer;
mod ready;
mod serve;
mod sweep;
mod tail;
pub mod topology;
mod upstream;
mod verify;
pub mod wire;

pub use auth::Secret;
pub use config::{Counters, Load, NodeConfig};
pub use flight::{FlightId, Object, Outcome, Purpose, Waiter};
pub use node::Node;
pub use output::{BackendOp, BackendReply, ChunkFailure, ChunkRead, Found, Listed, Output};
pub use peer::ParentState;
pub use ready::Readiness;
pub use sweep::Swept;
pub use topology::{NodeId, Topology};
pub use upstream::{Asked, Asks};

#[cfg(test)]
mod tests;
