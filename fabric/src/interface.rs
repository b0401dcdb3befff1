//! The address of a network interface by its name, so that a node can say `hsn0` (getifaddrs(3)).
#![allow(unsafe_code, reason = "getifaddrs answers a list of C structures")]

use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr;

/// The first IPv4 address of interface `name`, else its first IPv6 address that is not link-local; nothing if there is
/// no such interface.
pub(crate) fn address_of(name: &str) -> Option<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    let mut head = ptr::null_mut();
    // SAFETY: the call fills `head` with a list that freeifaddrs below gives back.
    if unsafe { libc::getifaddrs(&raw mut head) } != 0 {
        return None;
    }
    let mut next = head;
    while !next.is_null() {
        // SAFETY: `next` is an entry of the list; its name is a C string, and its address, if any, has the size of its
        // family.
        unsafe {
            let entry = &*next;
            if CStr::from_ptr(entry.ifa_name).to_bytes() == name.as_bytes() && !entry.ifa_addr.is_null() {
                match i32::from((*entry.ifa_addr).sa_family) {
                    libc::AF_INET => {
                        let address = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                        found.push(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).into());
                    }
                    libc::AF_INET6 => {
                        let address = entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                        let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
                        if !ip.is_unicast_link_local() {
                            found.push(ip.into());
                        }
                    }
                    _ => {}
                }
            }
            next = entry.ifa_next;
        }
    }
    // SAFETY: the list came from getifaddrs and nothing of it is used any more.
    unsafe { libc::freeifaddrs(head) };
    found.sort_by_key(IpAddr::is_ipv6);
    found.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_its_address_and_an_unknown_name_none() {
        assert_eq!(address_of("lo"), Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(address_of("no-such-interface"), None);
    }
}
