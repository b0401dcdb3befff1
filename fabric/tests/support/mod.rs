//! What the conformance suite is told with: pairs of ports, logs of their events, memory that they may touch, waits
//! with an end.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bornite_fabric::{Error, Event, Net, Peer, Port, PortConfig, Post, Region};
use rustix::event::{EventfdFlags, eventfd};

/// No step of a test may take longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A small port: rxm's and shm's endpoints cost megabytes.
pub(crate) fn config(net: &Net) -> PortConfig {
    let mut config = PortConfig::new(net.clone());
    (config.receives, config.sends, config.reads) = (64, 32, 16);
    config
}

/// Two ports that know each other.
pub(crate) struct Pair {
    pub(crate) a: Port,
    pub(crate) b: Port,
    pub(crate) to_a: Peer,
    pub(crate) to_b: Peer,
}

impl Pair {
    pub(crate) fn open(net: &Net) -> Pair {
        Pair::with(config(net), config(net))
    }

    pub(crate) fn with(a: PortConfig, b: PortConfig) -> Pair {
        let mut a = Port::open(a).expect("open the first port");
        let mut b = Port::open(b).expect("open the second port");
        let to_b = a.insert(&b.address().clone()).expect("insert b");
        let to_a = b.insert(&a.address().clone()).expect("insert a");
        Pair { a, b, to_a, to_b }
    }

    pub(crate) fn close(self) {
        self.a.close(PATIENCE).expect("close a");
        self.b.close(PATIENCE).expect("close b");
    }
}

/// What a port has handed out.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) frames: Vec<Vec<u8>>,
    pub(crate) sent: Vec<(u64, Result<(), Error>)>,
    pub(crate) read: Vec<(u64, Result<(), Error>)>,
    pub(crate) released: Vec<u64>,
    /// What failed sends gave back.
    pub(crate) failed: Vec<(u64, Vec<u8>)>,
}

impl Log {
    pub(crate) fn poll(&mut self, port: &mut Port) -> usize {
        port.poll(64, &mut |event| self.note(event))
    }

    pub(crate) fn note(&mut self, event: Event<'_>) {
        match event {
            Event::Frame(frame) => self.frames.push(frame.to_vec()),
            Event::Sent { token, result, frame } => {
                if !frame.is_empty() {
                    self.failed.push((token, frame.to_vec()));
                }
                self.sent.push((token, result));
            }
            Event::Read { token, result } => self.read.push((token, result)),
            Event::Released { token } => self.released.push(token),
        }
    }
}

/// Calls `step` until it is true; it never is: the test fails.
pub(crate) fn until(what: &str, mut step: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !step() {
        assert!(Instant::now() < end, "{what} did not happen within {PATIENCE:?}");
        thread::yield_now();
    }
}

/// Sends as soon as there is room.
pub(crate) fn send(
    port: &mut Port,
    log: &mut Log,
    other: &mut Port,
    other_log: &mut Log,
    peer: Peer,
    frame: &[u8],
    token: u64,
) {
    until("room to send", || match port.send(peer, frame, token) {
        Ok(()) => true,
        Err(Post::Again) => {
            log.poll(port);
            other_log.poll(other);
            false
        }
        Err(error) => panic!("send {token}: {error}"),
    });
}

/// Bytes that tell where they come from.
pub(crate) fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31).wrapping_add(seed.wrapping_mul(7)).wrapping_add(i >> 8)) as u8).collect()
}

/// Memory that a port may register.
pub(crate) struct Memory {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory belongs to this value and no thread; accesses go through raw pointers between events.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn filled(bytes: &[u8]) -> Arc<Memory> {
        let layout = Layout::from_size_align(bytes.len(), 4096).expect("a layout");
        // SAFETY: the layout has a size; the copy stays within it.
        unsafe {
            let base = NonNull::new(alloc_zeroed(layout)).expect("memory");
            base.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            Arc::new(Memory { base, layout })
        }
    }

    pub(crate) fn register(self: &Arc<Memory>, port: &mut Port) -> Region {
        let keep: Arc<Memory> = Arc::clone(self);
        // SAFETY: the memory lives as long as `keep`; the tests look at it between events only.
        unsafe { port.register(self.base, self.layout.size(), keep) }.expect("register")
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        // SAFETY: no read is under way when a test looks.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.layout.size()) }.to_vec()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and no port has it registered.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// A read whose destination the tests leave alone until its event.
pub(crate) fn read(
    port: &mut Port,
    peer: Peer,
    key: u64,
    at: u64,
    into: &Region,
    len: usize,
    token: u64,
) -> Result<(), Post> {
    // SAFETY: destinations are Memory values that outlive the port, looked at only after the event or the close.
    unsafe { port.read(peer, key, at, into, 0, len, token) }
}

pub(crate) fn event_descriptor() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd")
}
