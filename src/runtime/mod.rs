//! The impure thin layer: threads, files, the fabric and the kernel around the core's [`Node`](crate::core::Node).
//!
//! One engine thread at a time owns the node, its writer handles and the fabric port. FUSE threads answer from memory
//! and hand the engine what they miss; a pool of workers does what would hold the engine up: the backend's system calls
//! (but for the quick ones, which whoever has them makes itself), checksums, and large replies. A notify thread is the
//! only one that invalidates in the kernel.

mod age;
mod asking;
mod backend;
mod clock;
mod completeness;
#[cfg(test)]
#[path = "../../tests/common/counting.rs"]
mod counting;
mod daemon;
mod engine;
mod handler;
mod heap;
mod kernel;
mod lazy;
mod listen;
mod mounts;
mod nodes;
mod passthrough;
mod pool;
pub mod replies;
mod told;
mod transport;
mod wheel;

pub use crate::core::Swept;
pub use backend::{Backend, BackendError};
pub use bornite_fuse::Passthrough;
pub use daemon::{
    Daemon, DaemonConfig, DaemonStatus, Invalidator, StartError, StopError, choose_net, clear_stale, is_root,
};
pub use handler::{Handler, Job, Next, Parked, ReadAhead, ReadJob};
pub use heap::use_one_heap;
pub use nodes::Nodes;

/// What the command line needs to know of the fabric.
pub mod fabric {
    pub use bornite_fabric::{
        Address, Aspect, Choice, CxiDevice, Domain, Error, Interface, Net, NetError, Offer, Row, Survey,
        choose_provider_env, cxi_devices, interfaces, plan_environment,
    };
}
