//! The network interfaces of this process's namespace (getifaddrs(3)), so that a node can say `hsn0`, and say what it has.
#![allow(unsafe_code, reason = "getifaddrs answers a list of C structures")]

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr;

/// Bytes of an Ethernet address, which HSN interfaces have as well.
const MAC_BYTES: u8 = 6;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it is switched on (IFF_UP); whether its cable carries anything is another question.
    pub up: bool,
    /// Its link-layer address, where that has six bytes.
    pub mac: Option<[u8; 6]>,
    /// Its addresses, IPv4 first, without link-local ones of IPv6.
    pub addresses: Vec<IpAddr>,
}

/// All interfaces, in the kernel's order. Asks the kernel by netlink, so it sees those of this process's network namespace,
/// whatever `/sys` shows.
///
/// # Errors
/// The system's error (getifaddrs(3)).
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let mut found: Vec<Interface> = Vec::new();
    let mut head = ptr::null_mut();
    // SAFETY: the call fills `head` with a list that freeifaddrs below gives back.
    if unsafe { libc::getifaddrs(&raw mut head) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut next = head;
    while !next.is_null() {
        // SAFETY: `next` is an entry of the list; its name is a C string.
        let (entry, name) = unsafe { (&*next, CStr::from_ptr((*next).ifa_name)) };
        next = entry.ifa_next;
        let name = name.to_string_lossy();
        // An interface has an entry for each of its addresses, and an alias of old, `hsn0:1`, is the same interface.
        let name = name.split_once(':').map_or(&*name, |(name, _)| name);
        let at = found.iter().position(|known| known.name == name).unwrap_or_else(|| {
            found.push(Interface { name: name.to_owned(), up: false, mac: None, addresses: Vec::new() });
            found.len() - 1
        });
        let interface = &mut found[at];
        interface.up |= entry.ifa_flags & libc::IFF_UP as u32 != 0;
        // SAFETY: the address, if any, has the size of its family.
        match unsafe { address_of_entry(entry) } {
            Some(Found::Ip(ip)) => interface.addresses.push(ip),
            Some(Found::Mac(mac)) => interface.mac = Some(mac),
            None => {}
        }
    }
    // SAFETY: the list came from getifaddrs and nothing of it is used any more.
    unsafe { libc::freeifaddrs(head) };
    found.iter_mut().for_each(|interface| interface.addresses.sort_by_key(IpAddr::is_ipv6));
    Ok(found)
}

/// The first IPv4 address of interface `name`, else its first IPv6 address that is not link-local; nothing if there is
/// no such interface.
pub(crate) fn address_of(name: &str) -> Option<IpAddr> {
    interfaces().ok()?.into_iter().find(|interface| interface.name == name)?.addresses.first().copied()
}

/// The names of this machine's interfaces that have the address `ip`.
#[must_use]
pub fn interfaces_with(ip: IpAddr) -> Vec<String> {
    let with = interfaces().into_iter().flatten().filter(|interface| interface.addresses.contains(&ip));
    with.map(|interface| interface.name).collect()
}

enum Found {
    Ip(IpAddr),
    Mac([u8; 6]),
}

/// The address of an entry, where it is one that we know.
///
/// # Safety
/// `ifa_addr` is null or has the size of its family, as getifaddrs makes it.
unsafe fn address_of_entry(entry: &libc::ifaddrs) -> Option<Found> {
    if entry.ifa_addr.is_null() {
        return None;
    }
    // SAFETY: by this function's contract the address is one of the family that it says, and has its size.
    unsafe {
        match i32::from((*entry.ifa_addr).sa_family) {
            libc::AF_INET => {
                let address = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                Some(Found::Ip(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).into()))
            }
            libc::AF_INET6 => {
                let address = entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
                (!ip.is_unicast_link_local()).then_some(Found::Ip(ip.into()))
            }
            libc::AF_PACKET => {
                let address = entry.ifa_addr.cast::<libc::sockaddr_ll>().read_unaligned();
                let mac = address.sll_addr.first_chunk().copied();
                mac.filter(|_| address.sll_halen == MAC_BYTES).map(Found::Mac)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_its_address_and_an_unknown_name_none() {
        assert_eq!(address_of("lo"), Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(address_of("no-such-interface"), None);
        assert_eq!(interfaces_with(Ipv4Addr::LOCALHOST.into()), ["lo"]);
        assert!(interfaces_with(Ipv4Addr::new(192, 0, 2, 1).into()).is_empty());
    }

    #[test]
    fn every_interface_is_listed_once() {
        let found = interfaces().expect("the kernel answers");
        let loopback: Vec<_> = found.iter().filter(|interface| interface.name == "lo").collect();
        assert!(matches!(loopback[..], [Interface { up: true, mac: Some([0, 0, 0, 0, 0, 0]), .. }]), "{found:?}");
        assert!(found.iter().all(|one| found.iter().filter(|other| other.name == one.name).count() == 1), "{found:?}");
    }
}
