//! Whether a listing of a directory has every name that a lookup in it finds.
//!
//! Called by the backend with each directory that it lists. Where it has not, absence of a name from the listing says
//! nothing: a filesystem that makes names as they are looked up (autofs, AFS), or one that finds them under another
//! spelling (`casefold` of ext4, FAT, SMB). The types are those of statfs(2).

use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use hashbrown::HashMap;

/// `f_type` of filesystems whose listings lack names that lookups find, each from linux/magic.h or the filesystem's source.
const UNTOLD: [u64; 13] = [
    0x0187,      // autofs
    0x9fa0,      // proc: tasks
    0x5346_414f, // AFS, its dynamic root
    0x6b41_4653, // kAFS
    0x0102_1997, // 9p: what the other side makes of it
    0x4d44,      // FAT
    0x2011_bab0, // exFAT
    0x5346_544e, // NTFS
    0x7366_746e, // NTFS (ntfs3)
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x517b,      // SMB
    0x482b,      // HFS+
];

/// `f_type` of filesystems that may be told to ignore the case of single directories.
const MAY_FOLD: [u64; 3] = [
    0xef53,      // ext4
    0xf2f5_2010, // F2FS
    0x0102_1994, // tmpfs
];

/// `FS_CASEFOLD_FL` of linux/fs.h: names in this directory are compared without their case.
const CASEFOLD: u32 = 0x4000_0000;

/// Filesystems that are remembered: more than a target has below it.
const DEVICES_MAX: usize = 256;

/// What is known of the filesystems below the target.
#[derive(Debug, Default)]
pub(super) struct Completeness {
    /// Their types, by device number, so that statfs(2) goes over the network once for each.
    types: Mutex<HashMap<u64, u64>>,
}

impl Completeness {
    /// Whether the listing of `dir`, on the device `dev`, is all that lookups in it find. False where that cannot be told.
    pub(super) fn tells_all(&self, dir: impl AsFd, dev: u64) -> bool {
        let known = self.types.lock().unwrap_or_else(PoisonError::into_inner).get(&dev).copied();
        let Some(f_type) = known.or_else(|| self.look(&dir, dev)) else { return false };
        let folds = || rustix::fs::ioctl_getflags(&dir).is_ok_and(|flags| flags.bits() & CASEFOLD != 0);
        // A filesystem that has no such flags does not fold either.
        !(UNTOLD.contains(&f_type) || MAY_FOLD.contains(&f_type) && folds())
    }

    /// The target is another directory by now, perhaps on another filesystem.
    pub(super) fn forget(&self) {
        self.types.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn look(&self, dir: impl AsFd, dev: u64) -> Option<u64> {
        let found = rustix::fs::fstatfs(&dir).ok()?;
        let f_type = u64::from(found.f_type as u32);
        let mut types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        if types.len() >= DEVICES_MAX {
            types.clear();
        }
        types.insert(dev, f_type);
        Some(f_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_directories_tell_all_and_tasks_do_not() {
        let known = Completeness::default();
        let tells = |path, dev| known.tells_all(std::fs::File::open(path).unwrap(), dev);
        assert!(tells("/", 1) && tells("/tmp", 1));
        assert!(!tells("/proc", 2) && !tells("/proc", 2));
        assert!(!tells("/", 2), "what is known of a device is not asked again");
    }
}
