//! What is mounted where, as the kernel tells it.
//!
//! Used by launch and stop. [`is_mounted`] reads `/proc/self/mountinfo` (proc_pid_mountinfo(5)) and never touches a
//! mount; [`answers`] does, and blocks as long as its daemon is silent: callers run it in a thread of its own.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The type that our mounts have.
pub const MOUNT_TYPE: &str = "fuse.bornite";

/// Whether the topmost mount at `mountpoint` (absolute, resolved but for its last name) is one of ours.
///
/// # Errors
/// `/proc/self/mountinfo` cannot be read.
pub fn is_mounted(mountpoint: &Path) -> io::Result<bool> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(topmost_type(&table, mountpoint).as_deref() == Some(MOUNT_TYPE))
}

/// Asks the daemon for its root directory through the mount. Blocks until it answers or dies.
///
/// # Errors
/// Nothing of ours is mounted there, or the daemon's own error.
pub fn answers(mountpoint: &Path) -> io::Result<()> {
    if !is_mounted(mountpoint)? {
        return Err(io::Error::other(format!("{} is not mounted", mountpoint.display())));
    }
    let inside = std::fs::metadata(mountpoint)?;
    let outside = mountpoint.parent().map(std::fs::metadata).transpose()?;
    if outside.is_some_and(|outside| outside.dev() == inside.dev()) {
        return Err(io::Error::other(format!("{} shows the directory below the mount", mountpoint.display())));
    }
    Ok(())
}

fn topmost_type(table: &[u8], mountpoint: &Path) -> Option<String> {
    // Later lines lie above earlier ones.
    table.split(|&byte| byte == b'\n').rev().find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let at = unescape(fields.nth(4)?);
        if at != mountpoint {
            return None;
        }
        // Optional fields follow, then a single hyphen, then the type.
        let fstype = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some(String::from_utf8_lossy(fstype).into_owned())
    })
}

/// Undoes the escapes of mountinfo: space, tab, line feed and backslash as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| first == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        if let Some(digits) = digits {
            bytes.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
            rest = &tail[3..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        30 22 0:50 / /tmp/a\\040b ro,nosuid - fuse.bornite bornite ro,user_id=0\n\
        31 22 0:51 / /tmp/x rw shared:2 master:1 - tmpfs tmpfs rw\n\
        32 31 0:52 / /tmp/x ro - fuse.bornite bornite ro\n\
        33 22 0:53 / /tmp/y ro - fuse.bornite bornite ro\n\
        34 33 0:54 / /tmp/y rw - tmpfs tmpfs rw\n";

    #[test]
    fn the_topmost_mount_counts() {
        let of = |path: &str| topmost_type(TABLE, Path::new(path));
        assert_eq!(of("/tmp/a b").as_deref(), Some(MOUNT_TYPE));
        assert_eq!(of("/tmp/x").as_deref(), Some(MOUNT_TYPE));
        assert_eq!(of("/tmp/y").as_deref(), Some("tmpfs"));
        assert_eq!(of("/tmp/x2"), None);
        assert_eq!(of("/tmp"), None);
    }

    #[test]
    fn a_plain_directory_does_not_answer() {
        let temp = tempfile::tempdir().unwrap();
        assert!(!is_mounted(temp.path()).unwrap());
        assert!(answers(temp.path()).unwrap_err().to_string().contains("is not mounted"));
        assert!(!is_mounted(Path::new("/proc")).unwrap());
        assert_eq!(
            topmost_type(&std::fs::read("/proc/self/mountinfo").unwrap(), Path::new("/proc")).as_deref(),
            Some("proc")
        );
    }
}
