//! What a command asked of a mount: operations, paths, results and times, never contents.
//!
//! Made by the [`Recorder`], which the runtime tells of every request; read by `bornite trace` and, as a script of
//! lookups, by the simulation. The file's format and its total decoder are in [`codec`], its sums in [`summary`]. Nothing
//! here touches the traced tree.

pub mod codec;
mod recorder;
pub mod summary;

pub use codec::{MAGIC, TraceError, VERSION};
pub use recorder::{Recorder, Span};

/// Longest path, bytes: `PATH_MAX` less its NUL.
pub const PATH_BYTES_MAX: usize = 4_095;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// What is there under this path (`LOOKUP`).
    Lookup,
    /// The attributes of what is there (`GETATTR`).
    Getattr,
    /// The text of a symbolic link.
    Readlink,
    /// The names in a directory, from its beginning on or further ones.
    Readdir,
    /// Bytes of a file.
    Read {
        /// From where on, bytes.
        offset: u64,
        /// How many at most.
        len: u64,
    },
    /// The filesystem's sizes.
    Statfs,
}

impl Op {
    /// The word for it, as `trace show` prints it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Op::Lookup => "lookup",
            Op::Getattr => "getattr",
            Op::Readlink => "readlink",
            Op::Readdir => "readdir",
            Op::Read { .. } => "read",
            Op::Statfs => "statfs",
        }
    }
}

/// How it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// There is this.
    Found {
        /// `st_mode >> 12`: 4 a directory, 8 a file, 10 a symbolic link.
        kind: u8,
        /// `st_size`, bytes.
        size: u64,
    },
    /// So many bytes were given.
    Bytes(u64),
    /// It was answered, and there is nothing more to say.
    Done,
    /// With an error number.
    Failed(i32),
}

/// `ENOENT`.
pub const ENOENT: i32 = rustix::io::Errno::NOENT.raw_os_error();

/// `st_mode >> 12` of a directory.
pub const KIND_DIR: u8 = 4;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it was asked, microseconds since the recording began.
    pub start_us: u64,
    /// How long the answer took, microseconds.
    pub took_us: u64,
    /// Its path's place in [`Trace::paths`].
    pub path: u32,
    /// What was asked.
    pub op: Op,
    /// How it was answered.
    pub answer: Answer,
}

/// What a trace says of how it came about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The command and its arguments.
    pub command: Vec<Vec<u8>>,
    /// The tree that it was about: where it really is.
    pub target: Vec<u8>,
    /// Where the command saw it.
    pub root: Vec<u8>,
    /// Variables that the command had and that name search paths, with their values.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Requests that are missing because there were too many.
    pub dropped: u64,
}

/// A recorded run: requests in the order in which they were asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    header: Header,
    /// Strictly ascending.
    paths: Vec<Box<[u8]>>,
    /// By [`Event::start_us`].
    events: Vec<Event>,
}

impl Trace {
    /// A trace of requests whose paths are places in `paths`. Paths that no request names are left out.
    ///
    /// # Panics
    /// When a request names no path of `paths`.
    #[must_use]
    pub fn new(header: Header, paths: &[Box<[u8]>], mut events: Vec<Event>) -> Trace {
        events.sort_by_key(|event| event.start_us);
        let mut used: Vec<u32> = events.iter().map(|event| event.path).collect();
        used.sort_unstable();
        used.dedup();
        used.sort_by(|a, b| paths[*a as usize].cmp(&paths[*b as usize]));
        let mut place = vec![0; paths.len()];
        let mut sorted: Vec<Box<[u8]>> = Vec::with_capacity(used.len());
        for old in used {
            if sorted.last() != Some(&paths[old as usize]) {
                sorted.push(paths[old as usize].clone());
            }
            place[old as usize] = sorted.len() as u32 - 1;
        }
        for event in &mut events {
            event.path = place[event.path as usize];
        }
        Trace { header, paths: sorted, events }
    }

    /// How it came about.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// All paths, relative to the target and without a leading slash; the target itself is `""`. Ascending.
    #[must_use]
    pub fn paths(&self) -> &[Box<[u8]>] {
        &self.paths
    }

    /// All requests, in the order in which they were asked.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The path of a request of this trace.
    #[must_use]
    pub fn path(&self, event: &Event) -> &[u8] {
        &self.paths[event.path as usize]
    }
}

/// Whether `path` is one that a trace may name: relative, without empty, `.` and `..` components, without a NUL, and not
/// too long. A replay that joins it to a directory stays below that.
#[must_use]
pub fn path_is_valid(path: &[u8]) -> bool {
    path.is_empty()
        || (path.len() <= PATH_BYTES_MAX
            && !path.contains(&0)
            && path.split(|byte| *byte == b'/').all(|name| !name.is_empty() && name != b"." && name != b".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_put_in_order_and_named_once() {
        let paths: Vec<Box<[u8]>> = [&b"b"[..], b"unused", b"a", b"b"].into_iter().map(Into::into).collect();
        let event = |start_us, path| Event { start_us, took_us: 1, path, op: Op::Lookup, answer: Answer::Done };
        let trace = Trace::new(Header::default(), &paths, vec![event(9, 3), event(2, 2), event(5, 0)]);
        assert_eq!(trace.paths(), [Box::from(&b"a"[..]), Box::from(&b"b"[..])]);
        let told: Vec<_> = trace.events().iter().map(|event| (event.start_us, trace.path(event))).collect();
        assert_eq!(told, [(2, &b"a"[..]), (5, b"b"), (9, b"b")]);
    }

    #[test]
    fn paths_that_leave_the_tree_are_none() {
        for path in ["", "a", "a/b", "a b/..c", "a/.b"] {
            assert!(path_is_valid(path.as_bytes()), "{path}");
        }
        for path in ["/", "/a", "a/", "a//b", ".", "..", "a/..", "a/./b", "a\0"] {
            assert!(!path_is_valid(path.as_bytes()), "{path}");
        }
        assert!(!path_is_valid(&[b'a'; PATH_BYTES_MAX + 1]));
    }
}
