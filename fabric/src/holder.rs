//! Who holds a tcp port: reads /proc (proc(5)) when binding failed, and only then.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The process that listens on an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id, as this process sees it.
    pub pid: u32,
    /// Its command line, its arguments separated by spaces.
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.command)
    }
}

/// The process whose listening socket keeps `address` from being bound. Nothing when it is gone already, or belongs to
/// another user.
pub(crate) fn of_listening_port(address: SocketAddr) -> Option<Holder> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .find_map(|table| listening_inode(&table, address))?;
    let link = format!("socket:[{inode}]");
    fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let holds = fs::read_dir(entry.path().join("fd"))
            .ok()?
            .filter_map(Result::ok)
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == link.as_str()));
        holds.then(|| Holder { pid, command: command_of(pid) })
    })
}

/// The command line of `pid`.
fn command_of(pid: u32) -> String {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&arguments).replace('\0', " ").trim_end().to_owned();
    if line.is_empty() { "no command line".to_owned() } else { line }
}

/// The inode of the listening socket in a table of /proc/net that conflicts with `address`.
fn listening_inode(table: &str, address: SocketAddr) -> Option<u64> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (local, state) = (fields.nth(1)?, fields.nth(1)?);
        let (host, port) = local.split_once(':')?;
        let bound = table_host(host)?;
        let conflicts = state == LISTEN
            && u16::from_str_radix(port, 16).ok()? == address.port()
            && (bound == address.ip() || bound.is_unspecified());
        // After local, remote and state: queues, timer, retransmits, user, timeout, inode.
        conflicts.then(|| fields.nth(5)?.parse().ok())?
    })
}

/// An address of the table: 32-bit words in hexadecimal, each in the host's byte order.
fn table_host(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let mut bytes = [0u8; 16];
            for (i, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(i * 8)?);
            }
            Some(IpAddr::V6(Ipv6Addr::from(bytes)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_listener_of_this_process_is_found_by_its_port() {
        for host in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(host) else {
                println!("skipped {host}: no such address here");
                continue;
            };
            let mut address = listener.local_addr().expect("bound");
            if address.ip().is_unspecified() {
                address.set_ip(Ipv4Addr::LOCALHOST.into());
            }
            let holder = of_listening_port(address).expect("this process holds it");
            assert_eq!(holder.pid, std::process::id());
            assert!(!holder.command.is_empty());
            drop(listener);
            assert_eq!(of_listening_port(address), None);
        }
    }
}
