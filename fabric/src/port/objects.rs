//! libfabric's objects of one port and the memory that they may touch, closed in one order whatever happened before.
//!
//! Filled step by step by `open`: dropping it half-filled closes what is there. Memory goes back only after the
//! endpoint is closed; when that fails it is kept for ever, since the provider may still write to it.
#![allow(unsafe_code, reason = "closes C objects")]

use std::any::Any;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use libfabric_sys as sys;
use libfabric_sys::Library;

use super::shared::SharedDomain;
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
    /// Whether the endpoint is enabled: memory is registered only then.
    pub(super) enabled: bool,
    /// Where local buffers must be registered: the receive slab's and the send slab's regions.
    pub(super) slab_regions: Vec<NonNull<sys::fid_mr>>,
    pub(super) receive_descriptor: *mut std::ffi::c_void,
    pub(super) send_descriptor: *mut std::ffi::c_void,
    pub(super) regions: Vec<Registered>,
    pub(super) slabs: Option<Slabs>,
    /// Whose fabric and domain these are, where they are not this port's own.
    pub(super) shared: Option<Arc<SharedDomain>>,
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
            enabled: false,
            slab_regions: Vec::new(),
            receive_descriptor: ptr::null_mut(),
            send_descriptor: ptr::null_mut(),
            regions: Vec::new(),
            slabs: None,
            shared: None,
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

    /// Closes the queue, if it is open, so that it can be opened in another way.
    pub(super) fn close_queue(&mut self) -> Result<(), Error> {
        match self.queue.take() {
            // SAFETY: the queue came from fi_cq_open, nothing is bound to it yet, and it is closed once: it was taken.
            Some(queue) => checked(self.library, "fi_close(cq)", unsafe { sys::fi_close(queue.cast().as_ptr()) }),
            None => Ok(()),
        }
    }

    /// Closes everything that is open: memory regions, endpoint, queue, address vector, domain, fabric. Goes on after
    /// an error and answers the first one.
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
        if self.shared.is_some() {
            (self.domain, self.fabric) = (None, None);
        }
        let rest: [(&'static str, Option<NonNull<sys::fid>>); 4] = [
            ("fi_close(cq)", self.queue.take().map(NonNull::cast)),
            ("fi_close(av)", self.book.take().map(NonNull::cast)),
            ("fi_close(domain)", self.domain.take().map(NonNull::cast)),
            ("fi_close(fabric)", self.fabric.take().map(NonNull::cast)),
        ];
        for (call, object) in rest {
            if let Some(object) = object {
                // SAFETY: every object begins with its `fid`, came from the call that opens it, and is closed once: it
                // was taken.
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
        self.shared = None;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::info::Query;
    use std::cell::RefCell;
    use std::ffi::c_void;

    thread_local! {
        /// The objects closed, in order, and those that refuse.
        static CLOSED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
        static REFUSE: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    }

    unsafe extern "C" fn close(object: *mut sys::fid) -> i32 {
        // SAFETY: the test's objects carry their number where libfabric's carry the user's context.
        let number = unsafe { (*object).context } as usize;
        CLOSED.with_borrow_mut(|closed| closed.push(number));
        if REFUSE.with_borrow(|refuse| refuse.contains(&number)) { -libc::EBUSY } else { 0 }
    }

    /// A `fid` whose close is recorded; the test's objects have nothing after it that is used.
    fn object<T>(number: usize) -> Option<NonNull<T>> {
        let ops = Box::leak(Box::new(sys::fi_ops {
            size: size_of::<sys::fi_ops>(),
            close: Some(close),
            ..Default::default()
        }));
        let fid = sys::fid { fclass: 0, context: number as *mut c_void, ops };
        Some(NonNull::from(Box::leak(Box::new(fid))).cast())
    }

    const REGION: usize = 1;
    const ENDPOINT: usize = 2;

    /// Objects 1 to 6 in the order in which they must be closed, around real pages and a real `keep`.
    fn objects(keep: &Arc<u8>) -> Option<Objects> {
        let library = sys::load().inspect_err(|error| println!("skipped: {error}")).ok()?;
        let Some(info) = Info::query(library, &Query::plain("shm", false), &|_| true).expect("ask") else {
            println!("skipped: no provider shm");
            return None;
        };
        let mut objects = Objects::new(library, info);
        let keep: Arc<u8> = Arc::clone(keep);
        let base = NonNull::dangling();
        objects.regions.push(Registered { region: object(REGION), base, len: 1, reads: 0, keep: Some(keep) });
        objects.endpoint = object(ENDPOINT);
        objects.queue = object(3);
        objects.book = object(4);
        objects.domain = object(5);
        objects.fabric = object(6);
        let page = || Pages::map(1).expect("a page");
        objects.slabs = Some(Slabs { contexts: page(), receive: page(), send: page() });
        Some(objects)
    }

    /// Whether the page at `address` is mapped.
    fn is_mapped(address: usize) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("read maps");
        maps.lines().any(|line| {
            let (begin, rest) = line.split_once('-').expect("a range");
            let end = rest.split(' ').next().expect("its end");
            let number = |text| usize::from_str_radix(text, 16).expect("hexadecimal");
            (number(begin)..number(end)).contains(&address)
        })
    }

    #[test]
    fn objects_close_in_the_written_order_and_memory_comes_back() {
        let keep = Arc::new(0);
        let Some(mut objects) = objects(&keep) else { return };
        let page = objects.slabs().receive.base().addr().get();
        assert!(is_mapped(page));
        objects.close().expect("all close");
        assert_eq!(CLOSED.take(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(Arc::strong_count(&keep), 1);
        drop(objects);
        assert_eq!(CLOSED.take(), [0usize; 0], "nothing is closed twice");
    }

    #[test]
    fn a_region_that_is_busy_is_closed_after_the_endpoint() {
        let keep = Arc::new(0);
        let Some(mut objects) = objects(&keep) else { return };
        REFUSE.set(vec![REGION]);
        let error = objects.close().expect_err("the region never closes");
        assert_eq!(error.code(), Some(crate::Code::Busy));
        assert!(error.to_string().contains("mr"), "{error}");
        assert_eq!(CLOSED.take(), [1, 2, 1, 3, 4, 5, 6]);
        assert_eq!(Arc::strong_count(&keep), 2, "memory under an open region was given back");
        REFUSE.take();
    }

    #[test]
    fn what_an_endpoint_that_does_not_close_may_touch_is_kept() {
        let keep = Arc::new(0);
        let Some(mut objects) = objects(&keep) else { return };
        let pages = [&objects.slabs().contexts, &objects.slabs().receive, &objects.slabs().send]
            .map(|page| page.base().addr().get());
        REFUSE.set(vec![ENDPOINT, 5]);
        let error = objects.close().expect_err("the endpoint does not close");
        assert!(error.to_string().contains("fi_close(ep)"), "the first error is kept: {error}");
        assert_eq!(CLOSED.take(), [1, 2, 3, 4, 5, 6], "the rest is closed all the same");
        drop(objects);
        assert_eq!(Arc::strong_count(&keep), 2);
        assert!(pages.into_iter().all(is_mapped), "pages under an open endpoint were unmapped");
        REFUSE.take();
    }
}
