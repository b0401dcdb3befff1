//! Descriptors that a daemon must not inherit.
//!
//! Used where a daemon is started. A shell or a launcher may have handed this process pipes and lock files beyond the
//! standard three; a daemon that got them would hold the locks, and whoever reads the pipes would wait for its end. A
//! command that a launch runs does get them: process managers pass their connections that way.
// A descriptor that no Rust value owns can only be named by `borrow_raw`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::io::{Errno, FdFlags};

/// Descriptors from 3 on that would be inherited are not while this lives.
#[derive(Debug)]
pub struct Withheld {
    descriptors: Vec<RawFd>,
}

impl Withheld {
    /// Withholds every descriptor that is open now.
    ///
    /// # Errors
    /// `/proc/self/fd` cannot be read, or a flag cannot be changed.
    pub fn all() -> io::Result<Withheld> {
        let mut withheld = Withheld { descriptors: Vec::new() };
        for entry in std::fs::read_dir("/proc/self/fd")? {
            let name = entry?.file_name();
            let Some(descriptor) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
            if descriptor > 2 && change(descriptor, |flags| flags | FdFlags::CLOEXEC)? {
                withheld.descriptors.push(descriptor);
            }
        }
        Ok(withheld)
    }
}

impl Drop for Withheld {
    fn drop(&mut self) {
        for &descriptor in &self.descriptors {
            let _ = change(descriptor, |flags| flags - FdFlags::CLOEXEC);
        }
    }
}

/// Changes a descriptor's flags; true if that made a difference. One that has been closed meanwhile is no error.
fn change(descriptor: RawFd, to: impl Fn(FdFlags) -> FdFlags) -> io::Result<bool> {
    // SAFETY: the number is not -1, and nothing is done with it but reading and writing its flags, which neither closes it
    // nor touches what it refers to; if it is closed already, the kernel says EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let changed = rustix::io::fcntl_getfd(borrowed).and_then(|flags| {
        if to(flags) == flags {
            return Ok(false);
        }
        rustix::io::fcntl_setfd(borrowed, to(flags)).map(|()| true)
    });
    match changed {
        Err(Errno::BADF) => Ok(false),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn an_inheritable_descriptor_is_withheld_and_given_back() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let inheritable = |descriptor: RawFd| {
            let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).unwrap();
            let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            // O_CLOEXEC of open(2), as fdinfo shows it.
            i64::from_str_radix(flags.trim(), 8).unwrap() & 0o2_000_000 == 0
        };
        rustix::io::fcntl_setfd(&file, FdFlags::empty()).unwrap();
        assert!(inheritable(file.as_raw_fd()));
        let withheld = Withheld::all().unwrap();
        assert!(!inheritable(file.as_raw_fd()));
        drop(withheld);
        assert!(inheritable(file.as_raw_fd()));
    }
}
