//! Telling the kernel that it must forget something.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::INodeNo;

use crate::error::NotifyError;

/// Drops what the kernel caches. Cheap to clone.
///
/// To be used from a thread of its own that answers no request and holds no lock that answering takes: the kernel waits
/// inside these calls for the directory's or the page's lock, and whoever holds that may be waiting for a reply. A daemon
/// caught in this deadlock cannot even be killed. What the kernel does not hold (any more) is not an error.
#[derive(Clone, Debug)]
pub struct Notifier(fuser::Notifier);

impl Notifier {
    pub(crate) fn new(inner: fuser::Notifier) -> Notifier {
        Notifier(inner)
    }

    /// Drops the inode's attributes, link target and pages (a directory's: its cached listing). Pages that are being read
    /// are waited for.
    pub fn invalidate_inode(&self, ino: u64) -> Result<(), NotifyError> {
        let done = self.0.inval_inode(INodeNo(ino), 0, 0);
        done.map_err(|source| NotifyError { object: format!("inode {ino}"), source })
    }

    /// Drops the inode's attributes and keeps its pages.
    pub fn invalidate_attributes(&self, ino: u64) -> Result<(), NotifyError> {
        let done = self.0.inval_inode(INodeNo(ino), -1, 0);
        done.map_err(|source| NotifyError { object: format!("attributes of inode {ino}"), source })
    }

    /// Drops the entry `name` of the directory `parent`, negative or not, so that the next lookup asks again. Open files
    /// keep their inode.
    pub fn invalidate_entry(&self, parent: u64, name: &[u8]) -> Result<(), NotifyError> {
        let done = self.0.inval_entry(INodeNo(parent), OsStr::from_bytes(name));
        done.map_err(|source| NotifyError {
            object: format!("entry {:?} of inode {parent}", OsStr::from_bytes(name)),
            source,
        })
    }
}
