//! The status socket: one request line, one JSON document, for `bornite status`, `stats` and `invalidate`.
//!
//! The command line starts a [`StatusServer`] in every daemon and asks with [`query`]. The server has its own thread and
//! answers one connection after the other, each with a short deadline, so a client that says nothing delays the next one
//! and nothing else. It answers its own user only (SO_PEERCRED, unix(7)). Neither side ever touches the mount.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::socket::{Claim, SocketDirs, SocketPath, mountpoint_key};
use super::table::Snapshot;

/// How long the server gives one client to say what it wants and to take the answer.
const CLIENT_DEADLINE: Duration = Duration::from_millis(500);
/// How long the server's thread waits without looking around; a stop wakes it at once.
const IDLE_WAIT: Duration = Duration::from_secs(30);
/// A path in hexadecimal digits, and the word before it.
const REQUEST_BYTES_MAX: usize = 2 * 4096 + 64;
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Why the status socket cannot be served or asked. Each text names the object and the next step.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The path cannot be a mount point.
    #[error("{} is no mount point: {why}", mountpoint.display())]
    BadMountpoint {
        /// As it was given.
        mountpoint: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The directory of the sockets cannot be trusted.
    #[error("{} cannot hold status sockets: {why}; remove it or set XDG_RUNTIME_DIR to a private directory", path.display())]
    UnsafeDirectory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A living daemon has this mount point.
    #[error("a daemon{} already serves {}; end it with SIGTERM or `bornite stop` first",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), mountpoint.display())]
    Claimed {
        /// The mount point.
        mountpoint: PathBuf,
        /// The daemon's process, if it has written it.
        pid: Option<u32>,
    },
    /// Nobody serves this mount point.
    #[error("no daemon serves {}; start one with `bornite mount {}`", mountpoint.display(), mountpoint.display())]
    NoDaemon {
        /// The mount point.
        mountpoint: PathBuf,
    },
    /// A daemon served this mount point and died without taking leave.
    #[error("the daemon of {} is dead (its socket {} is left); `bornite mount {}` clears what it left and starts anew",
        mountpoint.display(), socket.display(), mountpoint.display())]
    DaemonDied {
        /// The mount point.
        mountpoint: PathBuf,
        /// The socket file that nobody listens to.
        socket: PathBuf,
    },
    /// The daemon did not answer in time.
    #[error("the daemon behind {} did not answer within {} ms; see its log, or end it with SIGTERM", socket.display(), deadline.as_millis())]
    Timeout {
        /// The socket.
        socket: PathBuf,
        /// The deadline that passed.
        deadline: Duration,
    },
    /// The daemon answered with a refusal.
    #[error("the daemon behind {} refuses: {text}", socket.display())]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// The daemon's words.
        text: String,
    },
    /// The answer is not what this version understands.
    #[error("the daemon behind {} gave an answer that this version cannot read: {source}", socket.display())]
    BadAnswer {
        /// The socket.
        socket: PathBuf,
        /// What the decoder says.
        source: serde_json::Error,
    },
    /// A system call failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb and its object.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The whole [`Status`].
    Status,
    /// The counters alone: a [`Snapshot`].
    Stats,
    /// That everything at and below this path (relative to the target) be asked for anew, everywhere: an
    /// [`Invalidated`].
    Invalidate(Vec<u8>),
}

const INVALIDATE: &[u8] = b"invalidate ";

impl Request {
    /// The request line, without its end. A path is in hexadecimal digits, since it may hold any byte.
    pub fn line(&self) -> String {
        match self {
            Request::Status => "status".to_owned(),
            Request::Stats => "stats".to_owned(),
            Request::Invalidate(path) => {
                path.iter().fold("invalidate ".to_owned(), |line, b| line + &format!("{b:02x}"))
            }
        }
    }

    /// The request of a line; blanks around it are no matter.
    pub fn parse(line: &[u8]) -> Option<Request> {
        match line.trim_ascii() {
            b"status" => Some(Request::Status),
            b"stats" => Some(Request::Stats),
            b"invalidate" => Some(Request::Invalidate(Vec::new())),
            line => {
                let digits = line.strip_prefix(INVALIDATE)?.trim_ascii();
                let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
                let byte = |pair: &[u8]| Some(digit(*pair.first()?)? * 16 + digit(*pair.get(1)?)?);
                Some(Request::Invalidate(digits.chunks(2).map(byte).collect::<Option<_>>()?))
            }
        }
    }
}

/// How an invalidation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invalidated {
    /// Nodes that did it, their kernels included.
    pub reached: u32,
    /// Nodes that did not answer in time.
    pub missing: u32,
}

/// What a [`StatusServer`] asks.
pub trait Source: Send + Sync {
    /// Called once per request; must not block for long: clients wait 2 s.
    fn status(&self) -> Status;

    /// Called on a thread of its own, once at a time.
    ///
    /// # Errors
    /// One line for the client.
    fn invalidate(&self, path: &[u8]) -> Result<Invalidated, String>;
}

/// Chunk memory of a daemon, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// Upper bound (`--cache-size`).
    pub capacity_bytes: u64,
    /// Filled with file data.
    pub used_bytes: u64,
}

/// Who is ready at and below a node: mounted, and able to serve. What was ready once counts, whatever became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeStatus {
    /// Nodes at and below it; on a root, and on who stands in for it, those of its tree.
    pub nodes: u32,
    /// Those of them that are ready.
    pub ready: u32,
    /// Names of the others: the first 100, in the order of the book.
    pub missing: Vec<String>,
}

/// The place of a node in one of several trees (`--stripes`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stripe {
    /// Whom it asks there; none where it is the root.
    pub parent: Option<String>,
    /// Who asks it there.
    pub children: Vec<String>,
}

/// What a daemon says about itself. In JSON an object with these names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon's program.
    pub version: String,
    /// Commit of the daemon's program, or `unknown`.
    pub commit: String,
    /// The daemon's process id.
    pub pid: u32,
    /// The mount point, absolute. JSON is Unicode: other bytes of a path become U+FFFD there.
    #[serde(serialize_with = "lossy")]
    pub mountpoint: PathBuf,
    /// The served directory, absolute.
    #[serde(serialize_with = "lossy")]
    pub target: PathBuf,
    /// The node's name in the address book.
    pub hostname: String,
    /// The node's position in the address book, from 0.
    pub node: u32,
    /// Nodes in the address book.
    pub nodes: u32,
    /// The node asked for what this one lacks; none on a root. Of several trees the first one's.
    pub parent: Option<String>,
    /// The nodes that ask this one. Of several trees the first one's.
    pub children: Vec<String>,
    /// The node's place in each of several trees, in their order; empty where there is one.
    #[serde(default)]
    pub stripes: Vec<Stripe>,
    /// The libfabric provider; none for a node without peers.
    pub provider: Option<String>,
    /// The node's own fabric address; none for a node without peers.
    pub address: Option<String>,
    /// `starting`, `probing parent`, `ready`, `stopping` or another word of the daemon.
    pub state: String,
    /// Whom the node asks where that is not its parent: `node3 instead of node1`, one for each such tree.
    #[serde(default)]
    pub asks: Vec<String>,
    /// Who is ready at and below the node; none while it starts or stops.
    #[serde(default)]
    pub tree: Option<TreeStatus>,
    /// The launch that started the daemon on each node of a job.
    #[serde(default)]
    pub launch: Option<String>,
    /// Seconds since the daemon started.
    pub uptime_s: f64,
    /// Chunk memory.
    pub cache: CacheStatus,
    /// All counters.
    pub counters: Snapshot,
}

fn lossy<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

#[derive(Serialize, Deserialize)]
struct Refusal {
    error: String,
}

/// The server of one daemon's status socket. Dropping it ends the thread and removes the socket.
#[derive(Debug)]
pub struct StatusServer {
    claim: Claim,
    wake: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl StatusServer {
    /// Claims the mount point's name, then serves until dropped.
    ///
    /// # Errors
    /// As [`StatusError`] says; [`StatusError::Claimed`] if another daemon serves this mount point.
    pub fn start(dirs: &SocketDirs, mountpoint: &Path, source: Arc<dyn Source>) -> Result<StatusServer, StatusError> {
        let claim = dirs.claim(mountpoint)?;
        let path = claim.bind_path()?;
        let failed = |what, source: io::Error| StatusError::Io { what, path: mountpoint.to_path_buf(), source };
        let listener = UnixListener::bind(&path).map_err(|error| failed("bind the status socket of", error))?;
        listener.set_nonblocking(true).map_err(|error| failed("set up the status socket of", error))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| failed("make an eventfd for the status socket of", error.into()))?;
        let waiter = wake.try_clone().map_err(|error| failed("make an eventfd for the status socket of", error))?;
        let thread = std::thread::Builder::new()
            .name("status".to_owned())
            .spawn(move || serve(&listener, &waiter, source))
            .map_err(|error| failed("start the thread for the status socket of", error))?;
        Ok(StatusServer { claim, wake, thread: Some(thread) })
    }

    /// The mount point as clients know it: see [`mountpoint_key`].
    pub fn mountpoint(&self) -> &Path {
        &self.claim.mountpoint
    }
}

impl Drop for StatusServer {
    fn drop(&mut self) {
        // The only write to this eventfd, so it cannot be full.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &UnixListener, wake: &OwnedFd, source: Arc<dyn Source>) {
    let desk = Desk { source, invalidating: Arc::default() };
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
        match poll(&mut fds, Some(&timespec(IDLE_WAIT))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                log::error!("the status socket is given up: poll: {error}");
                return;
            }
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        if fds[0].revents().is_empty() {
            continue;
        }
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = desk.converse(stream) {
                    log::debug!("status client: {error}");
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                // Out of descriptors, most likely: the connection stays queued, so poll would return at once.
                log::warn!("status socket: accept: {error}");
                let mut only_wake = [PollFd::new(wake, PollFlags::IN)];
                let _ = poll(&mut only_wake, Some(&timespec(CLIENT_DEADLINE)));
            }
        }
    }
}

struct Desk {
    source: Arc<dyn Source>,
    invalidating: Arc<AtomicBool>,
}

impl Desk {
    fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let deadline = Instant::now() + CLIENT_DEADLINE;
        let peer = rustix::net::sockopt::socket_peercred(&stream)?;
        let answer = if peer.uid != rustix::process::geteuid() {
            refusal(format!("this daemon answers its own user only, not uid {}", peer.uid.as_raw()))
        } else {
            let line = read_until(&stream, deadline, REQUEST_BYTES_MAX as u64, |read| read.last() == Some(&b'\n'))?;
            match Request::parse(&line) {
                Some(Request::Status) => serde_json::to_vec(&self.source.status()),
                Some(Request::Stats) => serde_json::to_vec(&self.source.status().counters),
                Some(Request::Invalidate(path)) => return self.invalidate(stream, path),
                None => refusal("unknown request; this version knows `status`, `stats` and `invalidate`".to_owned()),
            }
        };
        tell(&stream, answer)
    }

    /// On a thread of its own: it takes seconds where a node does not answer.
    fn invalidate(&self, stream: UnixStream, path: Vec<u8>) -> io::Result<()> {
        if self.invalidating.swap(true, Ordering::AcqRel) {
            return tell(&stream, refusal("an invalidation is under way already; try again".to_owned()));
        }
        let (source, invalidating) = (Arc::clone(&self.source), Arc::clone(&self.invalidating));
        let spawned = std::thread::Builder::new().name("invalidate".to_owned()).spawn(move || {
            let answer = match source.invalidate(&path) {
                Ok(invalidated) => serde_json::to_vec(&invalidated),
                Err(error) => refusal(error),
            };
            invalidating.store(false, Ordering::Release);
            if let Err(error) = tell(&stream, answer) {
                log::debug!("status client: {error}");
            }
        });
        if spawned.is_err() {
            self.invalidating.store(false, Ordering::Release);
        }
        spawned.map(drop)
    }
}

fn tell(stream: &UnixStream, answer: serde_json::Result<Vec<u8>>) -> io::Result<()> {
    let mut answer = answer.map_err(io::Error::other)?;
    answer.push(b'\n');
    write_all_until(stream, &answer, Instant::now() + CLIENT_DEADLINE)
}

fn refusal(error: String) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Refusal { error })
}

/// Asks the daemon of `mountpoint` and decodes its answer, all within `deadline`.
///
/// # Errors
/// [`StatusError::NoDaemon`], [`StatusError::DaemonDied`], [`StatusError::Timeout`] and the others as they say.
pub fn query<T: DeserializeOwned>(
    dirs: &SocketDirs,
    mountpoint: &Path,
    request: &Request,
    deadline: Duration,
) -> Result<T, StatusError> {
    let mountpoint = mountpoint_key(mountpoint)?;
    let until = Instant::now() + deadline;
    let mut dead = None;
    for socket in dirs.sockets_of(&mountpoint)? {
        match ask(&socket, request, until, deadline)? {
            Reached::Answer(answer) => return Ok(answer),
            Reached::Nothing => {}
            Reached::Dead => dead = Some(socket.display_path()),
        }
    }
    match dead {
        Some(socket) => Err(StatusError::DaemonDied { mountpoint, socket }),
        None => Err(StatusError::NoDaemon { mountpoint }),
    }
}

/// Asks every daemon of this user on this machine, all within `deadline`. Dead sockets are passed over; a daemon that
/// does not answer is an error in its place.
pub fn query_all<T: DeserializeOwned>(
    dirs: &SocketDirs,
    request: &Request,
    deadline: Duration,
) -> Vec<Result<T, StatusError>> {
    let until = Instant::now() + deadline;
    let answers = dirs.all_sockets().into_iter().filter_map(|socket| match ask(&socket, request, until, deadline) {
        Ok(Reached::Answer(answer)) => Some(Ok(answer)),
        Ok(Reached::Nothing | Reached::Dead) => None,
        Err(error) => Some(Err(error)),
    });
    answers.collect()
}

enum Reached<T> {
    Answer(T),
    /// No such socket.
    Nothing,
    /// A socket file that nobody listens to.
    Dead,
}

fn ask<T: DeserializeOwned>(
    socket: &SocketPath,
    request: &Request,
    until: Instant,
    deadline: Duration,
) -> Result<Reached<T>, StatusError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            StatusError::Timeout { socket: socket.display_path(), deadline }
        }
        _ => StatusError::Io { what: "talk to the daemon behind", path: socket.display_path(), source: error },
    };
    let stream = match connect(&socket.connect_path(), until) {
        Ok(stream) => stream,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound => Ok(Reached::Nothing),
                io::ErrorKind::ConnectionRefused => Ok(Reached::Dead),
                _ => Err(failed(error)),
            };
        }
    };
    // A refusal may come before the request is read; it is in the socket even if the write then fails.
    let sent = write_all_until(&stream, format!("{}\n", request.line()).as_bytes(), until);
    let answer = match read_until(&stream, until, ANSWER_BYTES_MAX, |_| false) {
        Ok(answer) if !answer.is_empty() => answer,
        Ok(_) => return Err(failed(sent.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()))),
        Err(error) => return Err(failed(error)),
    };
    if let Ok(refusal) = serde_json::from_slice::<Refusal>(&answer) {
        return Err(StatusError::Refused { socket: socket.display_path(), text: refusal.error });
    }
    let decoded = serde_json::from_slice(&answer);
    decoded.map(Reached::Answer).map_err(|source| StatusError::BadAnswer { socket: socket.display_path(), source })
}

fn connect(path: &Path, until: Instant) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let address = SocketAddrUnix::new(path)?;
    loop {
        match rustix::net::connect(&fd, &address) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            // The server's queue is full (unix(7)): there is no event to wait for, so look again shortly.
            Err(Errno::AGAIN) => {
                remaining(until)?;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Reads to the end of the stream or until `enough`, at most `bytes_max`.
fn read_until(
    stream: &UnixStream,
    until: Instant,
    bytes_max: u64,
    enough: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    stream.set_nonblocking(true)?;
    let mut read = Vec::new();
    let mut buffer = [0u8; 16 << 10];
    loop {
        match (&*stream).read(&mut buffer) {
            Ok(0) => return Ok(read),
            Ok(count) => {
                read.extend_from_slice(&buffer[..count]);
                if enough(&read) {
                    return Ok(read);
                }
                if read.len() as u64 > bytes_max {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the line or answer is too long"));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(stream, PollFlags::IN, until)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn write_all_until(stream: &UnixStream, mut bytes: &[u8], until: Instant) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    while !bytes.is_empty() {
        match (&*stream).write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(stream, PollFlags::OUT, until)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait(stream: &UnixStream, flags: PollFlags, until: Instant) -> io::Result<()> {
    let mut fds = [PollFd::from_borrowed_fd(stream.as_fd(), flags)];
    match poll(&mut fds, Some(&timespec(remaining(until)?))) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Time left until the deadline.
///
/// # Errors
/// `TimedOut` if it has passed.
fn remaining(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}

#[cfg(test)]
mod tests;
