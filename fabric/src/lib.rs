//! The endpoint layer: messages and one-sided reads between nodes, over libfabric (fabric(7)).
//!
//! The engine thread of a daemon owns one [`Port`] and drives it: [`Port::send`] and [`Port::read`] post,
//! [`Port::poll`] hands out what came and what ended, [`Port::wait`] sleeps until there is something to do. Other
//! threads reach the port only through the engine's queue and the descriptor that they give to `wait`. This crate knows
//! neither the protocol that the frames carry nor the filesystem. It must never block without a deadline, spin without
//! a bound, lose an operation (each ends in one event), or free memory that the network card may still touch.
//!
//! libfabric itself is loaded by the first [`Port::open`] and not before (`libfabric-sys`); [`choose_provider_env`]
//! must run earlier, while the process has one thread.
//!
//! ```no_run
//! use bornite_fabric::{Event, Net, Port, PortConfig};
//! use std::time::Duration;
//!
//! let mut port = Port::open(PortConfig::new(Net::Tcp))?;
//! let peer = port.insert(&"ofi+tcp://127.0.0.1:7000".parse()?)?;
//! port.send(peer, b"hello", 1).ok();
//! port.poll(64, &mut |event| {
//!     if let Event::Sent { token, result, .. } = event {
//!         println!("{token}: {result:?}");
//!     }
//! });
//! port.close(Duration::from_secs(1))?;
//! # Ok::<(), bornite_fabric::Error>(())
//! ```

mod address;
mod device;
mod environment;
mod error;
mod holder;
mod info;
mod interface;
mod memory;
mod net;
mod port;
mod provider;
mod signals;
mod survey;

pub use address::{Address, AddressError};
pub use device::{CxiDevice, cxi_devices};
pub use environment::{Change, EnvironmentError, Plan, choose_provider_env, plan_environment};
pub use error::{Code, Error, Post};
pub use holder::Holder;
pub use interface::{Interface, interfaces, interfaces_with};
pub use libfabric_sys::LoadError;
pub use net::{Net, NetError, Vni};
pub use port::{Counters, Event, Peer, Port, PortConfig, Region, Shared, Sleep, Slept, Strict, Wake};
pub use provider::{Aspect, Row};
pub use survey::{Choice, Domain, Offer, Survey};
