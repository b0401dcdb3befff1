//! `static_server SRC MNT [ABSENT_TTL_MS]`: serves a snapshot of SRC, held in memory, at MNT until SIGTERM, SIGINT or an
//! unmount. Prints one line once the mount answers, and the counts of requests at the end.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bornite_fuse::memory_fs::MemoryFs;
use bornite_fuse::{MountOptions, Session};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Largest tree that is taken, bytes.
const BYTES_MAX: u64 = 8 << 30;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let (source, mountpoint, ttl_ms) = match &args[..] {
        [source, mountpoint] => (source, mountpoint, 2000),
        [source, mountpoint, ttl] => (source, mountpoint, ttl.to_string_lossy().parse()?),
        _ => return Err("usage: static_server SRC MNT [ABSENT_TTL_MS]".into()),
    };
    let fs = Arc::new(MemoryFs::snapshot(source, BYTES_MAX, Duration::from_millis(ttl_ms))?);
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let signal_handle = signals.handle();
    let options = MountOptions { fsname: "static".into(), ..MountOptions::new(mountpoint) };
    let session = Session::mount(Arc::clone(&fs), options)?;
    println!("serving {} inodes, {} bytes at {}", fs.inodes(), fs.bytes(), session.mountpoint().display());
    let unmounter = session.unmounter();
    let waiter = std::thread::spawn(move || signals.forever().next().map(|_| unmounter.unmount()));
    while !session.wait_ended(Duration::from_secs(1)) && !waiter.is_finished() {}
    println!("{:?}", session.stats());
    signal_handle.close();
    if let Ok(Some(unmounted)) = waiter.join() {
        unmounted?;
    }
    Ok(session.join(Duration::from_secs(10))?)
}
