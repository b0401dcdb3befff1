//! What a daemon says about itself: one table of counters, the log, the status socket of a mount, and traces of what was
//! asked of it.
//!
//! Used by the runtime (which counts), the command line (which serves and asks) and the launcher (which asks). A leaf:
//! it knows no other part of Bornite, never touches a mount, and never waits without a deadline.

pub mod log;
pub mod machine;
pub mod socket;
pub mod status;
pub mod summary;
pub mod table;
pub mod trace;

pub use log::{LogSink, LogSpec, Verbosity};
pub use machine::Machine;
pub use socket::{SocketDirs, mountpoint_key};
pub use status::{
    CacheStatus, Invalidated, Request, Source, Status, StatusError, StatusServer, Stripe, TreeStatus, query, query_all,
};
pub use summary::AbsentNames;
pub use table::{Counter, Counters, Kind, Snapshot, Unit};
