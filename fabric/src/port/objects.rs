//! libfabric's objects of one port and the memory that they may touch, closed in one order whatever happened before.
//!
//! Filled step by step by `open`: dropping it half-filled closes what is there. Memory goes back only after the endpoint is closed;
//! when that fails it is kept for ever, since the provider may still write to it.
#![allow(unsafe_code, reason = "closes C objects")]

use std::any::Any;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use libfabric_sys as sys;
use libfabric_sys::Library;

use crate::error::Error;
use crate::info::Info;
use crate::memory::Pages;

/// A registered region and what keeps its memory alive.
pub(super) struct Registered {
    pub(super) region: Option<NonNull<sys::fid_mr>>,
    pub(super) base: NonNull<u8>,
    pub(super) len: usize,
    /// Reads under way into it.
    pub(super) reads: usize,
    /// Never read: its drop may unmap the region's memory, so it goes after the endpoint.
    pub(super) keep: Option<Arc<dyn Any + Send + Sync>>,
}

/// The slabs of one port.
pub(super) struct Slabs {
    /// One `fi_context2` per operation.
    pub(super) contexts: Pages,
    /// Frames to receive into.
    pub(super) receive: Pages,
    /// Frames to send from.
    pub(super) send: Pages,
}

/// See the module's text. `None`: not made yet, or closed.
pub(super) struct Objects {
    library: &'static Library,
    pub(super) info: Info,
    pub(super) fabric: Option<NonNull<sys::fid_fabric>>,
    pub(super) domain: Option<NonNull<sys::fid_domain>>,
    pub(super) book: Option<NonNull<sys::fid_av>>,
    pub(super) queue: Option<NonNull<sys::fid_cq>>,
    pub(super) endpoint: Option<NonNull<sys::fid_ep>>,
    /// Where local buffers must be registered: the receive slab's and the send slab's regions.
    pub(super) slab_regions: Vec<NonNull<sys::fid_mr>>,
    pub(super) receive_descriptor: *mut std::ffi::c_void,
    pub(super) send_descriptor: *mut std::ffi::c_void,
    pub(super) regions: Vec<Registered>,
    pub(super) slabs: Option<Slabs>,
}

impl Objects {
    pub(super) fn new(library: &'static Library, info: Info) -> Objects {
        Objects {
            library,
            info,
            fabric: None,
            domain: None,
            book: None,
            queue: None,
            endpoint: None,
            slab_regions: Vec::new(),
            receive_descriptor: ptr::null_mut(),
            send_descriptor: ptr::null_mut(),
            regions: Vec::new(),
            slabs: None,
        }
    }

    /// The endpoint, which an open port has.
    pub(super) fn endpoint(&self) -> *mut sys::fid_ep {
        self.endpoint.expect("an open port has its endpoint").as_ptr()
    }

    /// The completion queue, which an open port has.
    pub(super) fn queue(&self) -> *mut sys::fid_cq {
        self.queue.expect("an open port has its queue").as_ptr()
    }

    /// The slabs, which an open port has.
    pub(super) fn slabs(&self) -> &Slabs {
        self.slabs.as_ref().expect("an open port has its slabs")
    }

    /// Closes the memory region of `registered`; it stays open on an error.
    pub(super) fn close_region(&mut self, index: usize) -> Result<(), Error> {
        let library = self.library;
        let registered = &mut self.regions[index];
        if let Some(region) = registered.region {
            // SAFETY: the region came from fi_mr_reg and is closed once: it is forgotten when that succeeds.
            checked(library, "fi_close(mr)", unsafe { sys::fi_close(region.cast().as_ptr()) })?;
            registered.region = None;
        }
        Ok(())
    }

    /// Closes everything that is open: memory regions, endpoint, queue, address vector, domain, fabric. Goes on after an error and
    /// answers the first one.
    pub(super) fn close(&mut self) -> Result<(), Error> {
        let library = self.library;
        let mut first: Option<Error> = None;
        let mut note = |result: Result<(), Error>| {
            if let Err(error) = result {
                log::warn!("closing the port: {error}");
                first.get_or_insert(error);
            }
        };
        // A region that is busy under a posted operation closes after the endpoint.
        for index in 0..self.regions.len() {
            if let Err(error) = self.close_region(index) {
                log::debug!("{error}; tried again after the endpoint");
            }
        }
        let mut later = Vec::new();
        for region in self.slab_regions.drain(..) {
            // SAFETY: the region came from fi_mr_reg; one that does not close is kept for one more try.
            if unsafe { sys::fi_close(region.cast().as_ptr()) } != 0 {
                later.push(region);
            }
        }
        let endpoint_closed = match self.endpoint.take() {
            Some(endpoint) => {
                // SAFETY: the endpoint came from fi_endpoint and is closed once: it was taken.
                let result = checked(library, "fi_close(ep)", unsafe { sys::fi_close(endpoint.cast().as_ptr()) });
                let closed = result.is_ok();
                note(result);
                closed
            }
            None => true,
        };
        for index in 0..self.regions.len() {
            note(self.close_region(index));
        }
        for region in later {
            // SAFETY: as above; this is the last try.
            note(checked(library, "fi_close(mr)", unsafe { sys::fi_close(region.cast().as_ptr()) }));
        }
        let rest: [(&'static str, Option<NonNull<sys::fid>>); 4] = [
            ("fi_close(cq)", self.queue.take().map(NonNull::cast)),
            ("fi_close(av)", self.book.take().map(NonNull::cast)),
            ("fi_close(domain)", self.domain.take().map(NonNull::cast)),
            ("fi_close(fabric)", self.fabric.take().map(NonNull::cast)),
        ];
        for (call, object) in rest {
            if let Some(object) = object {
                // SAFETY: every object begins with its `fid`, came from the call that opens it, and is closed once: it was taken.
                note(checked(library, call, unsafe { sys::fi_close(object.as_ptr()) }));
            }
        }
        for registered in self.regions.drain(..) {
            if !endpoint_closed || registered.region.is_some() {
                let _kept = ManuallyDrop::new(registered.keep);
            }
        }
        if let Some(slabs) = self.slabs.take()
            && !endpoint_closed
        {
            slabs.contexts.leak();
            slabs.receive.leak();
            slabs.send.leak();
        }
        first.map_or(Ok(()), Err)
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        // Every failure was logged; there is nobody to tell.
        let _ = self.close();
    }
}

/// The error of a call that returned a negative code.
pub(super) fn checked(library: &Library, call: &'static str, code: i32) -> Result<(), Error> {
    if code < 0 { Err(Error::of_call(library, call, code.into())) } else { Ok(()) }
}
