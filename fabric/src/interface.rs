//! The addresses of network interfaces, so that a node can say `hsn0`, and be kept to such ones (getifaddrs(3)).
#![allow(unsafe_code, reason = "getifaddrs answers a list of C structures")]

use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr;

/// The first IPv4 address of interface `name`, else its first IPv6 address that is not link-local; nothing if there is
/// no such interface.
pub(crate) fn address_of(name: &str) -> Option<IpAddr> {
    let is_link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let own = all().into_iter().filter(|(other, ip)| other == name && !is_link_local(ip));
    let mut found: Vec<IpAddr> = own.map(|(_, ip)| ip).collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found.first().copied()
}

/// The names of this machine's interfaces that have the address `ip`.
#[must_use]
pub fn interfaces_with(ip: IpAddr) -> Vec<String> {
    all().into_iter().filter(|(_, other)| *other == ip).map(|(name, _)| name).collect()
}

/// Every address of every interface; empty where the system does not tell.
fn all() -> Vec<(String, IpAddr)> {
    let mut found = Vec::new();
    let mut head = ptr::null_mut();
    // SAFETY: the call fills `head` with a list that freeifaddrs below gives back.
    if unsafe { libc::getifaddrs(&raw mut head) } != 0 {
        return found;
    }
    let mut next = head;
    while !next.is_null() {
        // SAFETY: `next` is an entry of the list; its name is a C string, and its address, if any, has the size of its
        // family.
        unsafe {
            let entry = &*next;
            let name = || CStr::from_ptr(entry.ifa_name).to_string_lossy().into_owned();
            if !entry.ifa_addr.is_null() {
                match i32::from((*entry.ifa_addr).sa_family) {
                    libc::AF_INET => {
                        let address = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                        found.push((name(), Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).into()));
                    }
                    libc::AF_INET6 => {
                        let address = entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                        found.push((name(), Ipv6Addr::from(address.sin6_addr.s6_addr).into()));
                    }
                    _ => {}
                }
            }
            next = entry.ifa_next;
        }
    }
    // SAFETY: the list came from getifaddrs and nothing of it is used any more.
    unsafe { libc::freeifaddrs(head) };
    found
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
}
