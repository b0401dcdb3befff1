//! TCP ports for daemons on this machine.
//!
//! Used by the local launch, which must write the ports into the address book before the daemons bind them. A port that
//! is free now may be taken a moment later, so those that the kernel hands out to connections by itself are avoided.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{SystemTime, UNIX_EPOCH};

/// Below it are the ports of well-known services.
const LOWEST: u16 = 15_000;
/// With fewer ports than this below the kernel's own range, the kernel chooses.
const SPAN_MIN: u16 = 1_000;

/// `count` different ports that nothing listens on at 127.0.0.1.
///
/// # Errors
/// The system's error, or `AddrNotAvailable` if that many are not to be found.
pub fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    // The listeners are held until all are found, so that no port comes twice.
    let mut held = Vec::with_capacity(count);
    if let Some(below) = below_ephemeral() {
        let span = below - LOWEST;
        let start = start_offset() % span;
        for step in 0..span {
            if held.len() == count {
                break;
            }
            let port = LOWEST + (start + step) % span;
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                held.push(listener);
            }
        }
    }
    while held.len() < count {
        held.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
    }
    held.iter().map(|listener| listener.local_addr().map(|address| address.port())).collect()
}

/// The first port of the range from which the kernel serves connections (ip(7)), if enough ports lie below it.
fn below_ephemeral() -> Option<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let first: u16 = text.split_whitespace().next()?.parse().ok()?;
    (first >= LOWEST + SPAN_MIN).then_some(first)
}

/// Launches that run at the same time should not try the same ports first.
fn start_offset() -> u16 {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    (nanos ^ std::process::id().wrapping_mul(0x9e37)) as u16
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ports_differ_and_can_be_bound() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let ports = free_ports(32).unwrap();
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 32);
        assert!(!ports.contains(&taken.local_addr().unwrap().port()));
    }
}
