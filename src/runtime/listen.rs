//! Where a daemon may be reached, and what its sessions begin with.
//!
//! Used by [`daemon`](super::daemon) at the start. It opens nothing.

use std::net::ToSocketAddrs;

use bornite_fabric::Address;

use super::daemon::StartError;

/// Random bytes of the system's (getrandom(2)).
pub(super) fn random() -> Result<[u8; 32], StartError> {
    let mut bytes = [0; 32];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    let source = match filled {
        // Up to 256 bytes come whole.
        Ok(len) if len == bytes.len() => return Ok(bytes),
        Ok(_) => std::io::ErrorKind::UnexpectedEof.into(),
        Err(errno) => errno.into(),
    };
    Err(StartError::System { what: "with a secret: no random bytes from the system", source })
}

/// Whether only this machine's users reach the address.
pub(super) fn is_loopback(address: &Address) -> bool {
    let Some((name, port)) = address.host().zip(address.port()) else { return false };
    (name.as_str(), port).to_socket_addrs().is_ok_and(|mut all| all.all(|socket| socket.ip().is_loopback()))
}

/// Refuses an address that is neither the loopback's nor that of a high-speed interface, `hsn` and a number: whoever reaches
/// the port of any other network could ask for files. An address that no interface has is refused when it is bound.
pub(super) fn check_interface(host: &str, address: &Address) -> Result<(), StartError> {
    let Some((name, port)) = address.host().zip(address.port()) else { return Ok(()) };
    // Names that nobody knows are refused by the port.
    for ip in (name.as_str(), port).to_socket_addrs().into_iter().flatten().map(|socket| socket.ip()) {
        let interfaces = bornite_fabric::interfaces_with(ip);
        let is_private = ip.is_loopback() || interfaces.iter().any(|name| name.starts_with("hsn"));
        let whose = match interfaces.first() {
            _ if is_private => continue,
            Some(interface) => format!("of interface {interface}"),
            None if ip.is_unspecified() => "of every interface".to_owned(),
            None => continue,
        };
        let reason = format!(
            "{address} is the address {whose}, not of the loopback or an hsn interface; give one of those in the address book, or \
             add --listen-anywhere where that network can be trusted"
        );
        return Err(StartError::Address { node: host.to_owned(), reason });
    }
    Ok(())
}
