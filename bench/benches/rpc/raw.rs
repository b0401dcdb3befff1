//! The least that a program can do on libfabric's own interface: the reference that the port is measured against.
//!
//! One endpoint, one queue, one address vector, the hints of the port, preposted receives; no deadlines, no bookkeeping.
//! As the port it can sleep, where the provider can, also when it does not; its frames are copied to where they are sent
//! from, and its memory has been written before.
#![allow(unsafe_code, reason = "calls libfabric")]

use std::collections::VecDeque;
use std::ffi::{CString, c_void};
use std::ptr;

use anyhow::{Context, bail};
use libfabric_sys as sys;
use libfabric_sys::Library;

use super::{FRAME, FRAME_BYTES_MAX, RECEIVES, REGION_BYTES, Side, pages};

/// An endpoint and what it needs. But for the endpoint it ends with the process: nothing else is worth closing.
pub(super) struct Raw {
    domain: *mut sys::fid_domain,
    endpoint: *mut sys::fid_ep,
    queue: *mut sys::fid_cq,
    book: *mut sys::fid_av,
    peer: sys::fi_addr_t,
    inject_bytes: usize,
    name: Vec<u8>,
    key: u64,
    peer_key: u64,
    region: *mut u8,
    descriptor: *mut c_void,
    send: *mut u8,
    receive: *mut u8,
    contexts: Vec<sys::fi_context2>,
    sends: usize,
    reads: usize,
    /// Frames that have come: length and receive.
    frames: VecDeque<(usize, usize)>,
    /// The receive of the frame that was handed out last.
    held: Option<usize>,
    sleeps: bool,
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: the endpoint came from fi_endpoint, is closed once, and used no more; what is bound to it and posted at it is
        // never freed. With shm this takes the memory away that it shares, which would stay in /dev/shm.
        let _ = unsafe { sys::fi_close(self.endpoint.cast()) };
    }
}

fn check(library: &Library, call: &str, code: i64) -> anyhow::Result<()> {
    if code < 0 {
        // SAFETY: fi_strerror answers a C string for every number.
        let text = unsafe { std::ffi::CStr::from_ptr((library.fi_strerror)(-code as i32)) };
        bail!("{call}: {}", text.to_string_lossy());
    }
    Ok(())
}

/// Context numbers: receives first, then one for sends and one for reads.
const SEND: usize = RECEIVES;
const READ: usize = RECEIVES + 1;

impl Raw {
    /// Loads, asks, opens, enables. `sleeps`: waits in fi_cq_sread.
    pub(super) fn open(provider: &str, sleeps: bool) -> anyhow::Result<Raw> {
        let library = sys::load()?;
        let name = CString::new(provider)?;
        // SAFETY: one thread; every structure is the library's own or lives as long as the call; every object comes from
        // the call before and is not closed before the end; memory that is registered or posted is never freed.
        unsafe {
            let hints = (library.fi_dupinfo)(ptr::null());
            (*hints).caps = sys::FI_MSG | sys::FI_RMA;
            (*hints).mode = sys::FI_CONTEXT | sys::FI_CONTEXT2;
            (*(*hints).ep_attr).type_ = sys::FI_EP_RDM;
            (*(*hints).tx_attr).msg_order = sys::FI_ORDER_SAS;
            (*(*hints).rx_attr).msg_order = sys::FI_ORDER_SAS;
            let domain = (*hints).domain_attr;
            (*domain).mr_mode =
                (sys::FI_MR_ENDPOINT | sys::FI_MR_ALLOCATED | sys::FI_MR_PROV_KEY | sys::FI_MR_LOCAL) as i32;
            (*domain).threading = sys::FI_THREAD_DOMAIN;
            let progress = if provider == "sockets" { sys::FI_PROGRESS_AUTO } else { sys::FI_PROGRESS_MANUAL };
            (*domain).control_progress = progress;
            sys::fi_hints_set_data_progress(domain, progress);
            (*domain).av_type = sys::FI_AV_TABLE;
            (*(*hints).fabric_attr).prov_name = libc_strdup(&name);
            let mut info = ptr::null_mut();
            let (node, service, flags) = match provider {
                "shm" => (ptr::null(), ptr::null(), 0),
                _ => (c"127.0.0.1".as_ptr(), c"0".as_ptr(), sys::FI_SOURCE | sys::FI_NUMERICHOST),
            };
            let version = sys::fi_version_of(1, 15);
            let code = (library.fi_getinfo)(version, node, service, flags, hints, &raw mut info);
            check(library, "fi_getinfo", code.into())?;
            while !info.is_null() && std::ffi::CStr::from_ptr((*(*info).fabric_attr).prov_name) != name.as_c_str() {
                info = (*info).next;
            }
            if info.is_null() {
                bail!("no provider {provider}");
            }
            let mut fabric = ptr::null_mut();
            check(
                library,
                "fi_fabric",
                (library.fi_fabric)((*info).fabric_attr, &raw mut fabric, ptr::null_mut()).into(),
            )?;
            let mut domain = ptr::null_mut();
            check(library, "fi_domain", sys::fi_domain(fabric, info, &raw mut domain, ptr::null_mut()).into())?;
            let mut book_attr = sys::fi_av_attr { type_: sys::FI_AV_TABLE, ..Default::default() };
            let mut book = ptr::null_mut();
            let code = sys::fi_av_open(domain, &raw mut book_attr, &raw mut book, ptr::null_mut());
            check(library, "fi_av_open", code.into())?;
            let mut queue_attr = sys::fi_cq_attr {
                size: 2 * RECEIVES + 64,
                format: sys::FI_CQ_FORMAT_MSG,
                wait_obj: if provider == "shm" { sys::FI_WAIT_NONE } else { sys::FI_WAIT_FD },
                ..Default::default()
            };
            let mut queue = ptr::null_mut();
            let code = sys::fi_cq_open(domain, &raw mut queue_attr, &raw mut queue, ptr::null_mut());
            check(library, "fi_cq_open", code.into())?;
            let mut endpoint = ptr::null_mut();
            let code = sys::fi_endpoint(domain, info, &raw mut endpoint, ptr::null_mut());
            check(library, "fi_endpoint", code.into())?;
            check(library, "fi_ep_bind", sys::fi_ep_bind(endpoint, book.cast(), 0).into())?;
            let flags = sys::FI_TRANSMIT | sys::FI_RECV;
            check(library, "fi_ep_bind", sys::fi_ep_bind(endpoint, queue.cast(), flags).into())?;
            check(library, "fi_enable", sys::fi_enable(endpoint).into())?;

            let mut own = vec![0u8; 512];
            let mut len = own.len();
            let code = sys::fi_getname(endpoint.cast(), own.as_mut_ptr().cast(), &raw mut len);
            check(library, "fi_getname", code.into())?;
            own.truncate(len);
            let mut raw = Raw {
                domain,
                endpoint,
                queue,
                book,
                peer: sys::FI_ADDR_UNSPEC,
                inject_bytes: (*(*info).tx_attr).inject_size,
                name: own,
                key: 0,
                peer_key: 0,
                region: ptr::null_mut(),
                descriptor: ptr::null_mut(),
                send: pages(FRAME_BYTES_MAX),
                receive: pages(RECEIVES * FRAME_BYTES_MAX),
                contexts: vec![sys::fi_context2::default(); RECEIVES + 2],
                sends: 0,
                reads: 0,
                frames: VecDeque::new(),
                held: None,
                sleeps,
            };
            for index in 0..RECEIVES {
                raw.post(index)?;
            }
            Ok(raw)
        }
    }

    /// Registers what the other side may pull, and where pulls land.
    pub(super) fn with_region(mut self) -> anyhow::Result<Raw> {
        self.region = pages(REGION_BYTES);
        let mut region = ptr::null_mut();
        let (access, key) = (sys::FI_READ | sys::FI_REMOTE_READ, std::process::id().into());
        // SAFETY: the domain is open; the memory is never given back.
        unsafe {
            let (domain, buffer) = (self.domain, self.region.cast());
            let code =
                sys::fi_mr_reg(domain, buffer, REGION_BYTES, access, 0, key, 0, &raw mut region, ptr::null_mut());
            check(sys::load()?, "fi_mr_reg", code.into())?;
            (self.key, self.descriptor) = (sys::fi_mr_key(region), sys::fi_mr_desc(region));
        }
        Ok(self)
    }

    fn context(&mut self, index: usize) -> *mut c_void {
        ptr::from_mut(&mut self.contexts[index]).cast()
    }

    fn post(&mut self, index: usize) -> anyhow::Result<()> {
        let context = self.context(index);
        // SAFETY: the endpoint is open; the buffer is this receive's own and lives for ever.
        let code = unsafe {
            let buffer = self.receive.add(index * FRAME_BYTES_MAX).cast();
            sys::fi_recv(self.endpoint, buffer, FRAME_BYTES_MAX, ptr::null_mut(), sys::FI_ADDR_UNSPEC, context)
        };
        if code != 0 {
            bail!("fi_recv: {code}");
        }
        Ok(())
    }

    /// Reads the queue once, or sleeps on it for at most 100 ms.
    fn progress(&mut self, may_sleep: bool) -> anyhow::Result<()> {
        let mut entries = [sys::fi_cq_msg_entry::default(); 16];
        // SAFETY: the queue is open and gives entries of this format, for which there is room.
        let got = unsafe {
            let buffer = entries.as_mut_ptr().cast();
            if may_sleep && self.sleeps {
                sys::fi_cq_sread(self.queue, buffer, entries.len(), ptr::null(), 100)
            } else {
                sys::fi_cq_read(self.queue, buffer, entries.len())
            }
        };
        if got < 0 {
            if got as i32 == -libc_eagain() {
                return Ok(());
            }
            bail!("fi_cq_read: {got}");
        }
        let base = self.contexts.as_ptr().addr();
        for entry in &entries[..got as usize] {
            match (entry.op_context.addr() - base) / size_of::<sys::fi_context2>() {
                SEND => self.sends -= 1,
                READ => self.reads -= 1,
                receive => self.frames.push_back((entry.len, receive)),
            }
        }
        Ok(())
    }
}

impl Side for Raw {
    fn name(&self) -> Vec<u8> {
        self.name.clone()
    }

    fn key(&self) -> u64 {
        self.key
    }

    fn meet(&mut self, name: &[u8], key: u64) -> anyhow::Result<()> {
        self.peer_key = key;
        // SAFETY: the vector is open; `name` is an address as fi_getname gave it.
        let inserted =
            unsafe { sys::fi_av_insert(self.book, name.as_ptr().cast(), 1, &raw mut self.peer, 0, ptr::null_mut()) };
        if inserted == 1 { Ok(()) } else { bail!("fi_av_insert: {inserted}") }
    }

    fn send(&mut self, len: usize) -> anyhow::Result<()> {
        loop {
            let context = self.context(SEND);
            // SAFETY: the endpoint is open; the buffer lives for ever, has room for a frame, and the frame in it, the
            // same each time, may be under way still.
            let code = unsafe {
                if len <= self.inject_bytes {
                    sys::fi_inject(self.endpoint, FRAME.as_ptr().cast(), len, self.peer)
                } else {
                    ptr::copy_nonoverlapping(FRAME.as_ptr(), self.send, len);
                    sys::fi_send(self.endpoint, self.send.cast(), len, ptr::null_mut(), self.peer, context)
                }
            };
            match code {
                0 => break,
                code if code as i32 == -libc_eagain() => self.progress(false)?,
                code => bail!("fi_send: {code}"),
            }
        }
        self.sends += usize::from(len > self.inject_bytes);
        Ok(())
    }

    fn receive(&mut self) -> anyhow::Result<usize> {
        if let Some(index) = self.held.take() {
            self.post(index)?;
        }
        loop {
            if let Some((len, receive)) = self.frames.pop_front() {
                self.held = Some(receive);
                return Ok(len);
            }
            self.progress(true)?;
        }
    }

    fn pull(&mut self, offset: usize, len: usize) -> anyhow::Result<()> {
        loop {
            let context = self.context(READ);
            // SAFETY: the endpoint is open, and the destination lies in the registered region, which nobody looks at.
            let code = unsafe {
                let buffer = self.region.add(offset).cast();
                let (peer, key) = (self.peer, self.peer_key);
                sys::fi_read(self.endpoint, buffer, len, self.descriptor, peer, offset as u64, key, context)
            };
            match code {
                0 => break,
                code if code as i32 == -libc_eagain() => self.progress(false)?,
                code => bail!("fi_read: {code}"),
            }
        }
        self.reads += 1;
        Ok(())
    }

    fn pulls_below(&mut self, count: usize) -> anyhow::Result<()> {
        while self.reads >= count {
            self.progress(true)?;
        }
        Ok(())
    }

    fn idle(&mut self) -> anyhow::Result<()> {
        self.progress(false)
    }
}

/// EAGAIN of every system that libfabric runs on.
const fn libc_eagain() -> i32 {
    11
}

/// A copy that free gives back.
fn libc_strdup(text: &CString) -> *mut std::ffi::c_char {
    unsafe extern "C" {
        fn strdup(text: *const std::ffi::c_char) -> *mut std::ffi::c_char;
    }
    // SAFETY: strdup(3) of a C string.
    unsafe { strdup(text.as_ptr()) }
}

/// Milliseconds from nothing to an enabled endpoint.
pub(super) fn start_ms(provider: &str) -> anyhow::Result<f64> {
    let begin = std::time::Instant::now();
    Raw::open(provider, true).context("open")?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}
