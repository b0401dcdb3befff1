//! Files whose bytes the kernel reads by itself: `FUSE_PASSTHROUGH` (Linux 6.9, fs/fuse/passthrough.c).
//!
//! The daemon's opener fills a [`BackingDraft`], seals it to a [`BackingFile`], makes it known to the kernel as a
//! [`Backing`], and answers opens with that. Reads, mappings and exec of such an open go to the file's pages: no request,
//! no second copy. What must stay true, or the kernel answers `EIO` or `ETXTBSY` (fs/fuse/iomode.c): as long as an inode
//! is open, all of its opens have the same backing, or none has.
#![allow(unsafe_code, reason = "fcntl(F_SETLEASE), which no safe wrapper has")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

use crate::reply::Shared;

/// A file in memory that is being filled.
#[derive(Debug)]
pub struct BackingDraft {
    memory: File,
    len_bytes: u64,
}

impl BackingDraft {
    /// A file of `len_bytes` zeros, of which no page is present yet.
    ///
    /// # Errors
    /// As memfd_create(2) and ftruncate(2) say.
    pub fn new(len_bytes: u64) -> io::Result<BackingDraft> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
        // Whether it may be executed is for the mode of the served file to say.
        let memory = File::from(rustix::fs::memfd_create("bornite-file", flags)?);
        memory.set_len(len_bytes)?;
        Ok(BackingDraft { memory, len_bytes })
    }

    /// Puts `bytes` at `offset`; several threads may, at places of their own.
    ///
    /// # Errors
    /// `InvalidInput` beyond the length given; else as pwrite(2) says, `ENOSPC` and `ENOMEM` where there is no memory.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.len_bytes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.memory.write_all_at(bytes, offset)
    }

    /// Nothing changes it any more, whoever has it.
    ///
    /// # Errors
    /// As fcntl(2) (`F_ADD_SEALS`) and open(2) say.
    pub fn seal(&self) -> io::Result<BackingFile> {
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&self.memory, seals)?;
        // A descriptor that can only read: the kernel then counts its readers, see `is_in_use`.
        let path = format!("/proc/self/fd/{}", self.memory.as_raw_fd());
        let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(BackingFile { file: File::from(file) })
    }
}

/// A file in memory that never changes.
#[derive(Debug)]
pub struct BackingFile {
    file: File,
}

impl BackingFile {
    /// Whether somebody reads it, through an open file or a mapping that outlived it: its memory then outlives this. (A
    /// write lease is given to the only opener, fcntl(2); it is given back at once, and nobody can open it by its name
    /// meanwhile.) Where that cannot be told, it is in use.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        let lease = |kind: libc::c_int| {
            // SAFETY: F_SETLEASE takes an integer and no pointer; the descriptor is open as long as `self` lives.
            unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETLEASE, kind) == 0 }
        };
        let alone = lease(libc::F_WRLCK);
        if alone {
            lease(libc::F_UNLCK);
        }
        !alone
    }
}

/// A [`BackingFile`] as one mount of the kernel knows it. Dropped, it is forgotten there; opens that have it keep it.
#[derive(Debug)]
pub struct Backing {
    pub(crate) id: fuser::BackingId,
}

/// Tries whether this process may pass files through at this mount. The kernel keeps the one page-less file of the try
/// until the mount ends.
///
/// # Errors
/// The reason in words.
pub(crate) fn probe(shared: &Shared) -> Result<(), String> {
    if !shared.offers_passthrough() {
        return Err("this kernel does not offer it (it takes Linux 6.9 with CONFIG_FUSE_PASSTHROUGH)".to_owned());
    }
    let file = BackingDraft::new(0).and_then(|draft| draft.seal()).map_err(|e| format!("no file in memory: {e}"))?;
    match fuser::BackingId::create_raw(shared.device.as_fd(), file.file.as_fd()) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            Err("it takes the capability CAP_SYS_ADMIN outside of any user namespace".to_owned())
        }
        Err(e) => Err(format!("the kernel refuses a backing file: {e}")),
    }
}

impl AsFd for BackingFile {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(bytes: &[u8]) -> BackingFile {
        let draft = BackingDraft::new(bytes.len() as u64).expect("a file in memory");
        draft.write_at(bytes, 0).expect("room");
        draft.seal().expect("nobody maps it")
    }

    #[test]
    fn a_sealed_file_has_its_bytes_and_takes_no_others() {
        let draft = BackingDraft::new(6).expect("a file in memory");
        draft.write_at(b"def", 3).expect("room");
        draft.write_at(b"abc", 0).expect("room");
        assert!(draft.write_at(b"xy", 5).is_err(), "beyond its end");
        let writable = draft.memory.try_clone().expect("a descriptor");
        let file = draft.seal().expect("nobody maps it");
        assert_eq!(std::io::read_to_string(&file.file).expect("readable"), "abcdef");
        assert!(writable.write_at(b"x", 0).is_err());
        assert!(writable.set_len(3).is_err());
    }

    #[test]
    fn readers_and_mappings_are_seen() {
        let file = filled(b"some");
        assert!(!file.is_in_use());
        let path = format!("/proc/self/fd/{}", file.file.as_raw_fd());
        let reader = File::open(path).expect("it can be opened again");
        assert!(file.is_in_use());
        // SAFETY: the file is sealed, so the mapped bytes never change, nor does its length.
        let mapped = unsafe { memmap2::Mmap::map(&reader) }.expect("it can be mapped");
        drop(reader);
        assert!(file.is_in_use(), "a mapping outlives the descriptor");
        assert_eq!(&mapped[..], b"some");
        drop(mapped);
        assert!(!file.is_in_use());
    }
}
