//! Jobs: address books, starting the daemons of a job and stopping them.
//!
//! Used by the command line only. It knows neither the fabric nor FUSE nor the runtime: a daemon is a program that it
//! starts, a mount is a line of `/proc/self/mountinfo`, and what needs more is handed in (see [`Hooks`]). It must never
//! signal a process that it has not started, and never remove a file that it has not made.

pub mod book;
pub mod cluster;
pub mod command;
pub mod daemon;
pub mod hsn;
pub mod inherited;
pub mod launcher;
pub mod local;
pub mod mounts;
pub mod namespace;
pub mod node;
pub mod ports;
pub mod process;
pub mod record;
pub mod secret;
pub mod signals;
pub mod stop;

pub use book::{AddressBook, BookEntry, BookError, JobBook, facility, read_nodefile, write_book};
pub use command::CommandEnd;
pub use daemon::{DaemonProcess, DaemonSpawn, Hooks, Readiness};
pub use local::{LaunchError, LocalJob, LocalPlan, launch};
pub use process::ProcessIdentity;
pub use record::{JobNode, JobRecord};
pub use stop::{StopError, StopReport, stop};
