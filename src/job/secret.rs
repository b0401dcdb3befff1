//! The job's secret: a file that only its user may read, with whatever stands in it, blanks around that left out.
//!
//! Read by `bornite mount`; a launch makes one, beside the address book, and removes it with the job. What is in it never
//! appears in a text of ours.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A shorter one could be guessed.
const BYTES_MIN: usize = 16;
/// A longer file is something else.
const BYTES_MAX: usize = 1024;

/// Why a file is no secret. Each text names it and the next step.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("cannot read the secret file {}: {source}; give the file that the launch made", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is a directory, a pipe or another thing.
    #[error("secret file {} is no regular file; give the file that the launch made, or make one: {MAKE}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// It is no secret of this user.
    #[error("secret file {} can be read or written by others (mode {mode:04o}): make a new one: {MAKE}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Too little or too much in it.
    #[error("secret file {} has {len}, which is not {BYTES_MIN} to {BYTES_MAX} bytes: make a new one: {MAKE}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// What it has.
        len: String,
    },
}

/// How to make a secret.
const MAKE: &str = "(umask 077; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n' > FILE)";

/// The secret in a file.
///
/// # Errors
/// [`SecretError`] where it cannot be read, others than its owner may touch it (any bit of 077), or it is shorter than 16
/// bytes or longer than 1 KiB.
pub fn read(path: &Path) -> Result<Vec<u8>, SecretError> {
    let failed = |source| SecretError::Io { path: path.to_owned(), source };
    // A pipe must not hold this up.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(SecretError::Kind { path: path.to_owned() });
    }
    let mode = about.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SecretError::Open { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    let secret = bytes.trim_ascii();
    let wrong = |len: String| Err(SecretError::Length { path: path.to_owned(), len });
    match secret.len() {
        _ if bytes.len() > BYTES_MAX => wrong(format!("more than {BYTES_MAX} bytes")),
        0 => wrong("nothing in it".to_owned()),
        len if len < BYTES_MIN => wrong(format!("{len} bytes")),
        _ => Ok(secret.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_what_its_owner_alone_may_touch_is_a_secret() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secret");
        let with = |text: &[u8], mode| {
            write(&path, text).expect("a file");
            set_permissions(&path, Permissions::from_mode(mode)).expect("its owner's");
            read(&path)
        };
        let hex = [b'a'; 64];
        assert_eq!(with(&hex, 0o600).expect("good"), hex);
        assert_eq!(with(&[b" \n", &hex[..], b"\n"].concat(), 0o400).expect("good"), hex);
        for mode in [0o640, 0o604, 0o601, 0o620, 0o666] {
            let error = with(&hex, mode).expect_err("open to others").to_string();
            assert!(error.contains(&format!("(mode {mode:04o})")) && error.contains("umask 077"), "{error}");
        }
        for (text, said) in
            [(&b" \n"[..], "nothing in it"), (&hex[..15], "15 bytes"), (&[b'a'; 1025], "more than 1024")]
        {
            let error = with(text, 0o600).expect_err("of no use").to_string();
            assert!(error.contains(said), "{error}");
        }
        assert!(matches!(read(dir.path()), Err(SecretError::Kind { .. })));
        assert!(matches!(read(&dir.path().join("none")), Err(SecretError::Io { .. })));
    }
}
