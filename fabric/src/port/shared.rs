//! A fabric and a domain that many ports share: for simulated jobs and tests, where a domain for each would cost half a
//! megabyte and five milliseconds.
//!
//! Ports of one domain may belong to several threads, so that the provider is asked to lock (FI_THREAD_SAFE); the one
//! port of a daemon has a domain of its own, which nobody locks.
#![allow(unsafe_code, reason = "calls libfabric")]

use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use libfabric_sys as sys;
use libfabric_sys::Library;

use super::objects::checked;
use super::open::Found;
use super::{PortConfig, names};
use crate::error::Error;
use crate::info::Info;
use crate::provider::{AddressFormat, Provider, WaitKind};
use crate::signals;

/// How a port sleeps in a shared domain: the descriptors of the network wake whoever looks first, and that one makes the
/// completions of the others.
pub(super) const SHARED_WAIT: WaitKind = WaitKind::Polling { nap: Duration::from_millis(1) };

/// What ports of [`crate::Port::open_in`] share. Closed with the last of them.
#[derive(Clone, Debug)]
pub struct Shared(pub(super) Arc<SharedDomain>);

/// See [`Shared`].
pub(super) struct SharedDomain {
    library: &'static Library,
    /// What the library answered; the domain was made from it.
    info: Info,
    config: PortConfig,
    pub(super) fabric: NonNull<sys::fid_fabric>,
    pub(super) domain: NonNull<sys::fid_domain>,
}

// SAFETY: the domain was asked to be used by several threads (FI_THREAD_SAFE, fi_domain(3)), and so was the fabric, which
// nothing is done with but closing it; `info` is only read.
unsafe impl Send for SharedDomain {}
// SAFETY: as above.
unsafe impl Sync for SharedDomain {}

impl fmt::Debug for SharedDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedDomain").field("net", &self.config.net).finish_non_exhaustive()
    }
}

impl Shared {
    /// Opens fabric and domain for ports on `config.net` and `config.host`; what else it says holds for each port alone.
    ///
    /// # Errors
    /// As [`crate::Port::open`]; a network whose addresses are not hosts and ports.
    pub fn open(config: &PortConfig) -> Result<Shared, Error> {
        let _handlers = signals::Handlers::remember();
        if Provider::of(&config.net).format != AddressFormat::Inet {
            return Err(Error::Config(format!("ports on {} do not share a domain", config.net)));
        }
        let config = PortConfig { bind: None, ..config.clone() };
        let Found { library, info, .. } = Found::for_config(&config, true)?;
        let (fabric, domain) = open_domain(library, &info)?;
        Ok(Shared(Arc::new(SharedDomain { library, info, config, fabric, domain })))
    }
}

impl SharedDomain {
    /// The answer for a port with `config`, which binds another address.
    pub(super) fn info_for(&self, config: &PortConfig, socket: std::net::SocketAddr) -> Result<Info, Error> {
        if config.net != self.config.net {
            let text = format!("a port on {} cannot share a domain of {}", config.net, self.config.net);
            return Err(Error::Config(text));
        }
        self.info.with_source(&names::socket_bytes(socket))
    }
}

impl Drop for SharedDomain {
    fn drop(&mut self) {
        for (call, object) in
            [("fi_close(domain)", self.domain.cast::<sys::fid>()), ("fi_close(fabric)", self.fabric.cast())]
        {
            // SAFETY: both begin with their `fid`, came from the calls that open them, and are closed once: every port
            // that uses them holds this value, and has closed its own objects.
            if let Err(error) = checked(self.library, call, unsafe { sys::fi_close(object.as_ptr()) }) {
                log::warn!("closing a shared domain: {error}");
            }
        }
    }
}

/// Opens a fabric and a domain in it.
pub(super) fn open_domain(
    library: &'static Library,
    info: &Info,
) -> Result<(NonNull<sys::fid_fabric>, NonNull<sys::fid_domain>), Error> {
    let null = |call| Error::of_call(library, call, (-libc::ENOMEM).into());
    let info = info.as_ptr();
    let mut fabric = ptr::null_mut();
    // SAFETY: `info` is a whole answer of fi_getinfo, which outlives the objects made from it, here and below.
    checked(library, "fi_fabric", unsafe {
        (library.fi_fabric)((*info).fabric_attr, &raw mut fabric, ptr::null_mut())
    })?;
    let fabric = NonNull::new(fabric).ok_or_else(|| null("fi_fabric"))?;
    let mut domain = ptr::null_mut();
    // SAFETY: the fabric was opened just now.
    let code = unsafe { sys::fi_domain(fabric.as_ptr(), info, &raw mut domain, ptr::null_mut()) };
    match checked(library, "fi_domain", code).and_then(|()| NonNull::new(domain).ok_or_else(|| null("fi_domain"))) {
        Ok(domain) => Ok((fabric, domain)),
        Err(error) => {
            // SAFETY: the fabric was opened above and nobody else knows it.
            unsafe { sys::fi_close(fabric.cast().as_ptr()) };
            Err(error)
        }
    }
}
