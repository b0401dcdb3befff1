//! Starts operations: registrations, sends, reads, receives.
#![allow(unsafe_code, reason = "calls libfabric with memory by pointer")]

use std::any::Any;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use libfabric_sys as sys;
use libfabric_sys::Library;

use super::objects::{Objects, Registered, checked};
use super::operations::Kind;
use super::strict::{Order, Step};
use super::{Finished, Peer, Port, Region};
use crate::error::{Code, Error, Post};

impl Port {
    /// Registers `len` bytes at `base`: peers that know the key may read them, and [`Port::read`] may write them.
    ///
    /// `keep` is dropped after the region is closed, by [`Port::deregister`] or with the port; it is never dropped when
    /// closing fails.
    ///
    /// # Errors
    /// No bytes, or the provider refuses (the locked-memory limit, most often).
    ///
    /// # Safety
    /// The bytes stay mapped, readable and writable as long as `keep` lives, and wherever peers may read (by a key and
    /// an offset that they were told) or a read of this port writes, no reference of Rust's is alive that this breaks:
    /// the network card reads and writes them behind the compiler's back.
    pub unsafe fn register(
        &mut self,
        base: NonNull<u8>,
        len: usize,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Result<Region, Error> {
        if len == 0 {
            return Err(Error::Config("a region of no bytes cannot be registered".into()));
        }
        // FI_READ: it may receive what a read brings. FI_REMOTE_READ: peers may read it. Nobody may write it from afar.
        let access = sys::FI_READ | sys::FI_REMOTE_READ;
        let mut order = Order::new(self.strict.is_some());
        let region = register_memory(self.library, &self.objects, base, len, access, &mut order)?;
        let index = self.objects.regions.len();
        self.objects.regions.push(Registered { region: Some(region), base, len, reads: 0, keep: Some(keep) });
        order.step(Step::Key)?;
        // SAFETY: the region is open and enabled, so that its key is known.
        let key = unsafe { sys::fi_mr_key(region.as_ptr()) };
        if key == sys::FI_KEY_NOTAVAIL {
            self.close_region(index)?;
            return Err(Error::Config(format!("provider {} gave a region no key", self.facts.provider)));
        }
        Ok(Region { key, len, index, port: self.id })
    }

    /// Closes a region and drops what kept its memory. A peer that reads by its key later gets an error, and on the tcp
    /// providers loses its connection with everything under way on it: take a grant back before the region.
    ///
    /// # Errors
    /// Reads into it are under way (`Code::Busy`; nothing has changed), or the provider refuses.
    pub fn deregister(&mut self, region: &Region) -> Result<(), Error> {
        let registered = self.registered(region);
        if registered.reads > 0 {
            return Err(Error::Call {
                call: "deregister",
                code: Code::Busy,
                text: format!("{} reads into the region are under way", registered.reads),
            });
        }
        self.close_region(region.index)
    }

    /// Closes region `index` and drops what kept its memory.
    fn close_region(&mut self, index: usize) -> Result<(), Error> {
        self.objects.close_region(index)?;
        self.objects.regions[index].keep = None;
        Ok(())
    }

    /// Sends `frame`, which is copied before the call returns. One [`super::Event::Sent`] with `token` follows.
    ///
    /// The first frame to a peer connects; frames to one peer arrive in order.
    ///
    /// # Errors
    /// [`Post::Again`]: no room now. [`Post::TooLong`]: beyond `frame_bytes_max`. Nothing was sent and no event
    /// follows.
    pub fn send(&mut self, peer: Peer, frame: &[u8], token: u64) -> Result<(), Post> {
        if frame.len() > self.frame_bytes_max {
            return Err(Post::TooLong);
        }
        let Some(index) = self.operations.free(Kind::Send, peer.index, self.injected) else {
            self.counters.again += 1;
            return Err(Post::Again);
        };
        if let Some(error) = self.fault("fi_send")? {
            self.fill(index, frame);
            self.operations.refused(index, peer.index, token, frame.len());
            self.finished.push_back(Finished::Refused { index, error });
            return Ok(());
        }
        let endpoint = self.objects.endpoint();
        if frame.len() <= self.inject_bytes_max {
            // SAFETY: the endpoint is open; an injected frame is copied before the call returns.
            let code = unsafe { sys::fi_inject(endpoint, frame.as_ptr().cast(), frame.len(), peer.address) };
            self.posted("fi_inject", code)?;
            self.injected += 1;
            self.finished.push_back(Finished::Injected { token });
        } else {
            let buffer = self.fill(index, frame);
            let context = self.context(index);
            let descriptor = self.objects.send_descriptor;
            // SAFETY: the endpoint is open; buffer and context belong to this slot until its completion, which frees
            // it.
            let code =
                unsafe { sys::fi_send(endpoint, buffer.cast(), frame.len(), descriptor, peer.address, context.cast()) };
            self.posted("fi_send", code)?;
            let now = self.now();
            self.operations.posted(index, peer.index, token, frame.len(), now);
        }
        self.counters.sends += 1;
        Ok(())
    }

    /// Copies a frame into the buffer of context `index`, which is free.
    fn fill(&mut self, index: u32, frame: &[u8]) -> *mut u8 {
        let buffer = self.send_buffer(index);
        // SAFETY: the context is free, so nobody reads or writes its buffer, which has room for a frame; `frame` lies
        // elsewhere, since no reference into the slab is ever handed out but to a sink, which has no port.
        unsafe { ptr::copy_nonoverlapping(frame.as_ptr(), buffer, frame.len()) };
        buffer
    }

    /// Where the frame of context `index`, a send's, lies.
    pub(super) fn send_buffer(&self, index: u32) -> *mut u8 {
        self.objects.slabs().send.at((index as usize - self.receives) * self.stride).as_ptr()
    }

    /// Reads `len` bytes of a peer's region, from `remote_offset` on, into `region` from `local_offset` on. One
    /// [`super::Event::Read`] with `token` follows, after `read_timeout` at the latest. A key that is not known there, or bytes beyond its region, end in an error, and on the tcp providers
    /// break the connection: other operations with that peer are cancelled, and the next one connects again. On shm
    /// such a read never ends and stops all traffic with that peer.
    ///
    /// # Errors
    /// [`Post::Again`]: no room now. [`Post::TooLong`]: the destination ends before, or `len` is beyond what the
    /// provider reads at once. [`Post::Failed`]: no bytes, a closed region, or the provider refuses. Nothing was
    /// started and no event follows.
    ///
    /// # Panics
    /// When `region` belongs to another port.
    ///
    /// # Safety
    /// Until the event (where that says [`Code::TimedOut`]: until [`super::Event::Released`]), or until [`Port::close`] has
    /// returned, nobody else reads or writes the destination's bytes and no reference to them exists.
    #[allow(clippy::too_many_arguments, reason = "the arguments of fi_read")]
    pub unsafe fn read(
        &mut self,
        peer: Peer,
        key: u64,
        remote_offset: u64,
        region: &Region,
        local_offset: usize,
        len: usize,
        token: u64,
    ) -> Result<(), Post> {
        let registered = self.registered(region);
        if local_offset.checked_add(len).is_none_or(|end| end > registered.len) || len > self.facts.message_bytes_max {
            return Err(Post::TooLong);
        }
        let refused =
            |text: &str| Err(Post::Failed(Error::Call { call: "fi_read", code: Code::Invalid, text: text.to_owned() }));
        let Some(memory) = registered.region else { return refused("the destination's region is closed") };
        if len == 0 {
            return refused("a read of no bytes");
        }
        let base = registered.base;
        let Some(index) = self.operations.free(Kind::Read, peer.index, 0) else {
            self.counters.again += 1;
            return Err(Post::Again);
        };
        if let Some(error) = self.fault("fi_read")? {
            self.operations.refused(index, peer.index, token, region.index);
            self.objects.regions[region.index].reads += 1;
            self.finished.push_back(Finished::Refused { index, error });
            return Ok(());
        }
        let context = self.context(index);
        // SAFETY: the region is open, its bytes stay mapped while `keep` lives (which outlives the endpoint), the
        // caller leaves the destination alone until the event, and the context belongs to this slot until its
        // completion.
        let code = unsafe {
            let descriptor = if self.facts.mr_mode & sys::FI_MR_LOCAL != 0 {
                sys::fi_mr_desc(memory.as_ptr())
            } else {
                ptr::null_mut()
            };
            let destination = base.add(local_offset).as_ptr().cast();
            sys::fi_read(
                self.objects.endpoint(),
                destination,
                len,
                descriptor,
                peer.address,
                remote_offset,
                key,
                context.cast(),
            )
        };
        self.posted("fi_read", code)?;
        let now = self.now();
        self.operations.posted(index, peer.index, token, region.index, now);
        self.objects.regions[region.index].reads += 1;
        self.counters.reads += 1;
        Ok(())
    }

    /// Posts the receives that are not; those for which there is no room stay for the next time.
    pub(super) fn post_receives(&mut self) {
        while let Some(index) = self.unposted.front().copied() {
            if self.broken.is_some() || !self.post_receive(index) {
                return;
            }
            self.unposted.pop_front();
        }
    }

    /// Posts one receive; false when there is no room now.
    pub(super) fn post_receive(&mut self, index: u32) -> bool {
        let buffer = self.objects.slabs().receive.at(index as usize * self.stride).as_ptr();
        let context = self.context(index);
        // SAFETY: the endpoint is open; buffer and context belong to this slot, which is not posted, until its
        // completion.
        let code = unsafe {
            let len = self.frame_bytes_max;
            let descriptor = self.objects.receive_descriptor;
            sys::fi_recv(self.objects.endpoint(), buffer.cast(), len, descriptor, sys::FI_ADDR_UNSPEC, context.cast())
        };
        match Code::from(i32::try_from(-code).unwrap_or(i32::MAX)) {
            _ if code == 0 => {
                (self.receives_posted[index as usize], self.drained) = (true, false);
                true
            }
            // The shm provider says "no memory" of a full queue.
            Code::Again | Code::NoMemory => false,
            _ => {
                self.broken = Some(Error::of_call(self.library, "fi_recv", code as i64));
                false
            }
        }
    }

    /// The memory that the provider keeps for operation `index`.
    pub(super) fn context(&self, index: u32) -> *mut u8 {
        self.objects.slabs().contexts.at(index as usize * size_of::<sys::fi_context2>()).as_ptr()
    }

    /// A region of this port.
    fn registered(&self, region: &Region) -> &Registered {
        assert_eq!(region.port, self.id, "the region belongs to another port");
        &self.objects.regions[region.index]
    }

    /// The answer of a post.
    fn posted(&mut self, call: &'static str, code: isize) -> Result<(), Post> {
        // Posting makes progress, which may complete this operation or another.
        self.drained = false;
        match Code::from(i32::try_from(-code).unwrap_or(i32::MAX)) {
            _ if code == 0 => {
                if let Some(faults) = &mut self.strict {
                    faults.started();
                }
                Ok(())
            }
            Code::Again => {
                self.counters.again += 1;
                Err(Post::Again)
            }
            _ => Err(Post::Failed(Error::of_call(self.library, call, code as i64))),
        }
    }

    /// Strict mode's faults: a refusal, or an error to end the operation with.
    fn fault(&mut self, call: &'static str) -> Result<Option<Error>, Post> {
        let Some(faults) = &mut self.strict else { return Ok(None) };
        if faults.again() {
            self.counters.again += 1;
            return Err(Post::Again);
        }
        Ok(faults.failure(call))
    }
}

/// Registers memory in the order that cxi demands: the endpoint is enabled already, then register, bind, enable. `order`
/// is told of every step, also of those that this provider does not ask for.
pub(super) fn register_memory(
    library: &'static Library,
    objects: &Objects,
    base: NonNull<u8>,
    len: usize,
    access: u64,
    order: &mut Order,
) -> Result<NonNull<sys::fid_mr>, Error> {
    let facts = objects.info.facts();
    let key =
        if facts.mr_mode & sys::FI_MR_PROV_KEY == 0 { random_key(facts.mr_key_bytes, order.is_strict())? } else { 0 };
    let domain = objects.domain.expect("an open port has its domain");
    if objects.enabled {
        order.step(Step::EndpointEnabled)?;
    }
    order.step(Step::Registered)?;
    let mut region = ptr::null_mut();
    // SAFETY: the domain is open; the caller vouches for the memory as long as the region is.
    let code = unsafe {
        sys::fi_mr_reg(domain.as_ptr(), base.as_ptr().cast(), len, access, 0, key, 0, &raw mut region, ptr::null_mut())
    };
    checked(library, "fi_mr_reg", code)?;
    let region = NonNull::new(region).ok_or_else(|| Error::of_call(library, "fi_mr_reg", (-libc::ENOMEM).into()))?;
    let asked = facts.mr_mode & sys::FI_MR_ENDPOINT != 0;
    let bind = || {
        // SAFETY: region and endpoint are open and of one domain; the region is not enabled yet.
        let code = if asked { unsafe { sys::fi_mr_bind(region.as_ptr(), objects.endpoint().cast(), 0) } } else { 0 };
        checked(library, "fi_mr_bind", code)
    };
    let enable = || {
        // SAFETY: the region is open and bound.
        let code = if asked { unsafe { sys::fi_mr_enable(region.as_ptr()) } } else { 0 };
        checked(library, "fi_mr_enable", code)
    };
    let ready =
        order.step(Step::Bound).and_then(|()| bind()).and_then(|()| order.step(Step::Enabled)).and_then(|()| enable());
    if let Err(error) = ready {
        // SAFETY: the region was opened above and nobody else knows it.
        unsafe { sys::fi_close(region.cast().as_ptr()) };
        return Err(error);
    }
    Ok(region)
}

/// A key that no other region has, where the provider leaves keys to its user: random, in all the bits that it takes.
/// Peers keep keys beyond a restart, and one that meets another region would read wrong bytes.
fn random_key(key_bytes: usize, strict: bool) -> Result<u64, Error> {
    let mut bytes = [0u8; 8];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::of_system("getrandom", errno))?;
    if got != bytes.len() {
        return Err(Error::of_system("getrandom", rustix::io::Errno::AGAIN));
    }
    let mut key = u64::from_ne_bytes(bytes);
    if key_bytes < 8 {
        key &= (1 << (8 * key_bytes)) - 1;
    } else if strict {
        key |= 1 << 63;
    }
    // All ones means "no key".
    Ok(if key == sys::FI_KEY_NOTAVAIL { key - 1 } else { key })
}
