//! Opens the completion queue and finds out how a thread can sleep on it.
#![allow(unsafe_code, reason = "calls libfabric; looks at descriptors that the queue lends")]

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use libfabric_sys as sys;
use libfabric_sys::Library;
use rustix::fs::{FileType, fstat};
use rustix::io::fcntl_dupfd_cloexec;

use super::objects::{Objects, checked};
use crate::error::{Code, Error};
use crate::provider::WaitKind;

/// How often the queue is read, at least, where a provider turns out to have no descriptor.
const POLLING_NAP: Duration = Duration::from_millis(1);
/// The most descriptors that one queue may have (`net` has three, of which one counts).
pub(super) const DESCRIPTORS_MAX: usize = 8;

/// How a port sleeps.
#[derive(Clone, Debug)]
pub(super) enum Sleeper {
    /// On the queue's descriptors, at most `cap` before the queue is read again.
    Descriptors { descriptors: Descriptors, cap: Duration },
    /// Between two reads of the queue, at most `nap`.
    Polling { nap: Duration },
}

/// A few descriptors: duplicates, so that a thread may sleep on them whatever becomes of the port meanwhile.
#[derive(Clone, Debug, Default)]
pub(super) struct Descriptors(Arc<[OwnedFd]>);

impl Descriptors {
    fn duplicate(fds: &[BorrowedFd<'_>]) -> Result<Descriptors, Error> {
        let own = |fd: &BorrowedFd<'_>| {
            fcntl_dupfd_cloexec(fd, 0).map_err(|errno| Error::of_system("fcntl(F_DUPFD_CLOEXEC)", errno))
        };
        fds.iter().map(own).collect::<Result<_, _>>().map(Descriptors)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|fd| fd.as_fd())
    }
}

/// How long the first wait may take. The provider's clock counts milliseconds: a wait whose last one is over before it
/// begins ends without having waited at all, as one of none does, and the next is longer.
const FIRST_WAITS_MS: [i32; 5] = [0, 2, 5, 20, 100];

/// Opens the queue with the best kind of waiting that the provider has, from `wanted` downwards.
pub(super) fn open_queue(
    library: &'static Library,
    objects: &mut Objects,
    size: usize,
    wanted: WaitKind,
) -> Result<Sleeper, Error> {
    let (kinds, cap): (&[sys::fi_wait_obj], Duration) = match wanted {
        WaitKind::PollSet { cap } => (&[sys::FI_WAIT_POLLFD, sys::FI_WAIT_FD], cap),
        WaitKind::Descriptor { cap } => (&[sys::FI_WAIT_FD], cap),
        WaitKind::Polling { nap } => {
            open_with(library, objects, size, sys::FI_WAIT_NONE)?;
            return Ok(Sleeper::Polling { nap });
        }
    };
    for &kind in kinds {
        let opened = open_with(library, objects, size, kind).and_then(|()| match kind {
            sys::FI_WAIT_POLLFD => poll_set(library, objects),
            _ => descriptor(library, objects),
        });
        match opened {
            Ok(descriptors) => return Ok(Sleeper::Descriptors { descriptors, cap }),
            Err(error) if unsupported(&error) => {
                log::info!("no wait object of kind {kind}: {error}");
                objects.close_queue()?;
            }
            Err(error) => return Err(error),
        }
    }
    log::warn!("the provider has no wait descriptor: the queue is read every {POLLING_NAP:?} instead");
    open_with(library, objects, size, sys::FI_WAIT_NONE)?;
    Ok(Sleeper::Polling { nap: POLLING_NAP })
}

/// What providers answer to a kind of waiting that they do not have.
fn unsupported(error: &Error) -> bool {
    matches!(error.code(), Some(Code::NotImplemented | Code::NotSupported | Code::Invalid | Code::NoData))
}

fn open_with(
    library: &'static Library,
    objects: &mut Objects,
    size: usize,
    wait_obj: sys::fi_wait_obj,
) -> Result<(), Error> {
    let domain = objects.domain.expect("the domain is opened before the queue");
    let mut attributes = sys::fi_cq_attr { size, format: sys::FI_CQ_FORMAT_MSG, wait_obj, ..Default::default() };
    let mut queue = ptr::null_mut();
    // SAFETY: the domain is open; the attributes are read during the call only.
    let code = unsafe { sys::fi_cq_open(domain.as_ptr(), &raw mut attributes, &raw mut queue, ptr::null_mut()) };
    checked(library, "fi_cq_open", code)?;
    objects.queue = NonNull::new(queue);
    Ok(())
}

/// The one descriptor of a queue that was opened with FI_WAIT_FD.
fn descriptor(library: &Library, objects: &Objects) -> Result<Descriptors, Error> {
    let mut descriptor: i32 = -1;
    // SAFETY: the queue was opened with FI_WAIT_FD, for which this command writes one descriptor.
    let code = unsafe {
        sys::fi_control(objects.queue().cast(), sys::FI_GETWAIT as i32, ptr::from_mut(&mut descriptor).cast())
    };
    checked(library, "fi_control(FI_GETWAIT)", code)?;
    // SAFETY: the queue has just lent it, and is open.
    Descriptors::duplicate(&[unsafe { BorrowedFd::borrow_raw(descriptor) }])
}

/// The descriptors of a queue that was opened with FI_WAIT_POLLFD, without those by which the provider wakes itself.
///
/// The provider `net` (and so the queue's descriptor with FI_WAIT_FD) writes a byte into a socket pair at the first
/// completion and takes it out only inside fi_cq_sread: from then on the descriptor would be readable for ever. That
/// byte says nothing here, where the one thread that makes completions reads the queue before it sleeps. What is left
/// are the descriptors of the network.
fn poll_set(library: &Library, objects: &Objects) -> Result<Descriptors, Error> {
    for timeout_ms in FIRST_WAITS_MS {
        // The set is put together by the first wait: before it has one entry only.
        let mut entry = sys::fi_cq_msg_entry::default();
        // SAFETY: the queue is open and gives entries of this format, of which one has room. Nothing can complete yet,
        // since no endpoint uses the queue: the call ends after its time.
        let waited =
            unsafe { sys::fi_cq_sread(objects.queue(), ptr::from_mut(&mut entry).cast(), 1, ptr::null(), timeout_ms) };
        if waited != -(libc::EAGAIN as isize) {
            return Err(Error::of_call(library, "fi_cq_sread", waited as i64));
        }
        let descriptors = network_descriptors(library, objects)?;
        if !descriptors.0.is_empty() {
            return Ok(descriptors);
        }
    }
    Err(Error::Call {
        call: "fi_control(FI_GETWAIT)",
        code: Code::NotSupported,
        text: "the poll set has sockets only".into(),
    })
}

/// What the poll set holds now, but for sockets.
fn network_descriptors(library: &Library, objects: &Objects) -> Result<Descriptors, Error> {
    let mut fds = [sys::pollfd::default(); DESCRIPTORS_MAX];
    let mut set = sys::fi_wait_pollfd { change_index: 0, nfds: fds.len(), fd: fds.as_mut_ptr() };
    // SAFETY: the queue was opened with FI_WAIT_POLLFD, for which this command fills as many entries as `nfds` allows.
    let code =
        unsafe { sys::fi_control(objects.queue().cast(), sys::FI_GETWAIT as i32, ptr::from_mut(&mut set).cast()) };
    checked(library, "fi_control(FI_GETWAIT)", code)?;
    let mut descriptors = Vec::new();
    for entry in fds.iter().take(set.nfds) {
        // SAFETY: the queue owns the descriptor and is open.
        let fd = unsafe { BorrowedFd::borrow_raw(entry.fd) };
        let status = fstat(fd).map_err(|errno| Error::of_system("fstat", errno))?;
        if FileType::from_raw_mode(status.st_mode) != FileType::Socket {
            descriptors.push(fd);
        }
    }
    Descriptors::duplicate(&descriptors)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::Sleeper;
    use crate::net::Net;
    use crate::port::{Port, PortConfig};

    /// The provider's first wait sometimes ended before it began, and the port then slept on what stays readable.
    #[test]
    fn every_port_finds_the_network_descriptors() {
        let mut config = PortConfig::new(Net::Tcp);
        (config.receives, config.sends, config.reads) = (8, 8, 8);
        for turn in 0..50 {
            let port = match Port::open(config.clone()) {
                Ok(port) => port,
                Err(error @ crate::Error::Load(_)) => {
                    println!("SKIPPED: every_port_finds_the_network_descriptors: {error}");
                    return;
                }
                Err(error) => panic!("{error}"),
            };
            let Sleeper::Descriptors { descriptors, .. } = &port.sleeper else { panic!("port {turn} has none") };
            for fd in descriptors.iter() {
                let fd = fd.as_raw_fd();
                let watched = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("an epoll set");
                let nested = watched.lines().filter_map(|line| line.strip_prefix("tfd:")?.split_whitespace().next());
                for fd in nested {
                    let what = std::fs::read_link(format!("/proc/self/fd/{fd}")).expect("an open descriptor");
                    assert!(what.to_string_lossy().starts_with("socket:"), "port {turn} sleeps on {what:?} as well");
                }
            }
        }
    }
}
