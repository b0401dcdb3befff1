//! /proc/self/mountinfo (proc_pid_mountinfo(5)): what is mounted where, without touching any mount, so that a hung or
//! dead one can be looked at. Used by this crate's mounting and by whoever must know mounts without touching them.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount of this mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Unique while the mount lives.
    pub id: u64,
    /// The mount that it is mounted on.
    pub parent: u64,
    /// `st_dev` of its files.
    pub device: Device,
    /// Where it is mounted, as an absolute path without links.
    pub mountpoint: PathBuf,
    /// Type, subtype included: `fuse.bornite`.
    pub fstype: String,
}

/// A device number in its two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// The driver's number; 0 for filesystems without a block device.
    pub major: u32,
    /// The device among those of the driver.
    pub minor: u32,
}

impl Device {
    /// As `st_dev` shows it.
    #[must_use]
    pub fn st_dev(self) -> u64 {
        rustix::fs::makedev(self.major, self.minor)
    }
}

/// All mounts of this process's mount namespace.
///
/// # Errors
/// `/proc/self/mountinfo` cannot be read.
pub fn read() -> io::Result<Vec<Entry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mounts of the text of a mountinfo; lines that are none are passed over.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<Entry> {
    text.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

/// The mount that a path walk to `path` ends on: of those at exactly this path the one that no other covers.
#[must_use]
pub fn top_at<'a>(entries: &'a [Entry], path: &Path) -> Option<&'a Entry> {
    let here = || entries.iter().filter(|e| e.mountpoint == path);
    here().find(|e| !here().any(|other| other.parent == e.id))
}

/// The nearest mount at or above `path`.
#[must_use]
pub fn nearest<'a>(entries: &'a [Entry], path: &Path) -> Option<&'a Entry> {
    path.ancestors().find_map(|p| top_at(entries, p))
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`; `None` for what does not look like it.
fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&b| b == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = Device { major: major.parse().ok()?, minor: minor.parse().ok()? };
    let mountpoint = unescape(fields.nth(1)?);
    // Optional fields end at a single hyphen.
    let _ = fields.find(|f| f == b"-")?;
    let fstype = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    Some(Entry { id, parent, device, mountpoint: std::ffi::OsString::from_vec(mountpoint).into(), fstype })
}

/// Undoes the kernel's octal escapes (`\040` for a blank).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if first == b'\\' => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_and_without_optional_fields() {
        let e =
            parse_line(b"36 35 0:52 / /mnt/a\\040b\\134c ro,nosuid shared:1 master:2 - fuse.bornite src ro,user_id=0");
        let e = e.expect("valid");
        assert_eq!((e.id, e.parent, e.device), (36, 35, Device { major: 0, minor: 52 }));
        assert_eq!(e.mountpoint, Path::new("/mnt/a b\\c"));
        assert_eq!(e.fstype, "fuse.bornite");
        let e = parse_line(b"27 1 254:0 / / rw - ext4 /dev/vda rw").expect("valid");
        assert_eq!((e.mountpoint.as_path(), e.fstype.as_str()), (Path::new("/"), "ext4"));
        for bad in [&b""[..], b"36 35 0:52 / /mnt ro", b"x 35 0:52 / /mnt ro - ext4 s o", b"36 35 52 / /m ro - a b c"] {
            assert_eq!(parse_line(bad), None);
        }
    }

    #[test]
    fn the_top_of_a_stack_is_the_one_that_nothing_covers() {
        let entry = |id, parent, at: &str| Entry {
            id,
            parent,
            device: Device { major: 0, minor: id as u32 },
            mountpoint: at.into(),
            fstype: "x".into(),
        };
        // 40 was mounted first and lies under 38, as after a mount --move.
        let all = [entry(1, 0, "/"), entry(38, 40, "/m"), entry(40, 1, "/m"), entry(50, 38, "/m/sub")];
        assert_eq!(top_at(&all, Path::new("/m")).map(|e| e.id), Some(38));
        assert_eq!(top_at(&all, Path::new("/n")), None);
        assert_eq!(nearest(&all, Path::new("/m/sub/deep")).map(|e| e.id), Some(50));
        assert_eq!(nearest(&all, Path::new("/n")).map(|e| e.id), Some(1));
    }

    #[test]
    fn this_process_has_a_root() {
        assert!(top_at(&read().expect("proc is mounted"), Path::new("/")).is_some());
    }
}
