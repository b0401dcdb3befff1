//! Opens a port: finds the provider, binds the address, posts the receives.
#![allow(unsafe_code, reason = "calls libfabric")]

use std::collections::{HashMap, VecDeque};
use std::env;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use libfabric_sys as sys;
use libfabric_sys::Library;
use rustix::time::{ClockId, clock_gettime};

use super::objects::{Objects, Slabs, checked};
use super::operations::Operations;
use super::queue::{Sleeper, open_queue};
use super::shared::{SHARED_WAIT, Shared, SharedDomain, open_domain};
use super::strict::Order;
use super::{BATCH, Batch, Counters, Peer, Port, PortConfig, names, operations, strict};
use crate::address::Address;
use crate::error::{Code, Error};
use crate::holder;
use crate::info::{Facts, Info, Query};
use crate::interface;
use crate::memory::Pages;
use crate::net::{Net, is_provider_name};
use crate::provider::{AddressFormat, Provider};
use crate::signals;

/// The most operations of a kind: keeps the slabs and the queue of a typing error from taking the node's memory.
const OPERATIONS_MAX: usize = 1 << 20;

/// Where to bind, in fi_getinfo's words.
struct Source {
    node: Option<String>,
    service: Option<String>,
    /// Addresses with a host: what will be bound.
    socket: Option<SocketAddr>,
}

/// What a port is to be opened on.
pub(super) struct Found {
    pub(super) library: &'static Library,
    row: Provider,
    source: Source,
    pub(super) info: Info,
}

impl Found {
    /// Loads the library and asks it. `threads`: several threads will use the domain.
    pub(super) fn for_config(config: &PortConfig, threads: bool) -> Result<Found, Error> {
        check(config)?;
        let row = Provider::of(&config.net);
        let source = match row.format {
            AddressFormat::Inet => Some(inet_source(config, &row)?),
            AddressFormat::Shm => Some(Source {
                node: config.bind.as_ref().and_then(Address::shm_name).map(names::shm_node),
                service: None,
                socket: None,
            }),
            AddressFormat::Cxi => None,
        };
        let library = sys::load()?;
        let source = match source {
            Some(source) => source,
            None => cxi_source(library, config, &row)?,
        };
        let info = find(library, config, &row, &source, threads)?;
        let facts = info.facts();
        if facts.mr_mode & sys::FI_MR_VIRT_ADDR != 0 {
            return Err(Error::Config(format!(
                "provider {} reads by virtual address, which is not supported",
                facts.provider
            )));
        }
        if facts.message_bytes_max < config.frame_bytes_max {
            return Err(Error::Config(format!(
                "frames of {} bytes: {} takes {}",
                config.frame_bytes_max, facts.provider, facts.message_bytes_max
            )));
        }
        Ok(Found { library, row, source, info })
    }
}

/// What a port on `net` would be opened on: the names in order of preference, and the answer.
pub(crate) fn preview(net: &Net) -> Result<(Vec<String>, Facts), Error> {
    let _handlers = signals::Handlers::remember();
    let found = Found::for_config(&PortConfig::new(net.clone()), false)?;
    Ok((found.row.names.iter().map(|name| name.clone().into_owned()).collect(), found.info.facts()))
}

/// The local address of an answer, as books write it.
pub(crate) fn address_text(facts: &Facts) -> Option<String> {
    // Some providers have names that addresses cannot have (UDP).
    if !is_provider_name(&facts.provider) {
        return None;
    }
    let row = Provider::of(&Net::Provider(facts.provider.clone()));
    let scheme = row.scheme.unwrap_or(&facts.provider);
    names::own_address(row.format, scheme, &facts.source, None).map(|address| address.to_string())
}

impl Port {
    /// Opens a port and binds `config.bind`, or any address.
    ///
    /// The first call of the process loads libfabric (200 ms on Debian) and asks it for providers (90 ms).
    ///
    /// # Errors
    /// No libfabric, no provider that fits, an address that is taken (the error names it, and its holder where the
    /// system tells) or not local, a host name that does not resolve, a configuration that cannot be honoured.
    pub fn open(config: PortConfig) -> Result<Port, Error> {
        let _handlers = signals::Handlers::remember();
        Port::open_found(config, |config| Ok((Found::for_config(config, false)?, None)))
    }

    /// As [`Port::open`], in a domain that other ports have as well.
    ///
    /// # Errors
    /// As [`Port::open`]; another network than that of `shared`.
    pub fn open_in(shared: &Shared, config: PortConfig) -> Result<Port, Error> {
        Port::open_found(config, |config| {
            check(config)?;
            let row = Provider::of(&config.net);
            let source = inet_source(config, &row)?;
            let info = shared.0.info_for(config, source.socket.expect("an address with a host"))?;
            Ok((Found { library: sys::load()?, row, source, info }, Some(Arc::clone(&shared.0))))
        })
    }

    fn open_found(
        config: PortConfig,
        find: impl FnOnce(&PortConfig) -> Result<(Found, Option<Arc<SharedDomain>>), Error>,
    ) -> Result<Port, Error> {
        let (Found { library, row, source, info }, shared) = find(&config)?;
        let facts = info.facts();
        log::debug!("opening {facts:?}");
        let mut objects = Objects::new(library, info);
        objects.shared = shared;
        let sleeper = open_objects(library, &config, &row, &mut objects)
            .map_err(|error| explain(error, &config, &row, &source))?;
        let name = own_name(library, &objects)?;
        let scheme = row.scheme.unwrap_or(&facts.provider).to_owned();
        let address = names::own_address(row.format, &scheme, &name, config.bind.as_ref()).ok_or_else(|| {
            Error::Config(format!("provider {} reports an address that is not understood: {name:02x?}", facts.provider))
        })?;
        check_bound(&config, &address)?;
        log::info!("fabric port {address} open on provider {} ({})", facts.provider, facts.domain);
        Port::assemble(library, config, row, facts, scheme, address, name, objects, sleeper)
    }

    /// Inserts a peer; the same address gives the same peer. Resolves a host name, which may ask a name server.
    ///
    /// Nothing is sent: an unreachable peer shows itself when something is.
    ///
    /// # Errors
    /// An address of another provider, a name that does not resolve, or the provider refuses.
    pub fn insert(&mut self, address: &Address) -> Result<Peer, Error> {
        if let Some(peer) = self.peers.get(address) {
            return Ok(*peer);
        }
        if address.provider() != self.scheme {
            return Err(Error::WrongProvider { address: address.clone(), provider: self.scheme.clone() });
        }
        let bytes = names::peer_bytes(self.row.format, &self.name, address)?;
        let peer = match self.peers_by_name.get(&bytes) {
            Some(peer) => *peer,
            None => {
                let book = self.objects.book.expect("an open port has its address vector");
                let mut peer = sys::FI_ADDR_NOTAVAIL;
                // SAFETY: the vector is open, `bytes` holds one address of the length that the provider's own have (or
                // a string), and `peer` takes the one answer. The vector has no event queue, so the call ends before it
                // returns.
                let inserted = unsafe {
                    sys::fi_av_insert(book.as_ptr(), bytes.as_ptr().cast(), 1, &raw mut peer, 0, ptr::null_mut())
                };
                if inserted != 1 || peer == sys::FI_ADDR_NOTAVAIL {
                    let code = if inserted < 0 { inserted } else { -libc::EINVAL };
                    return Err(Error::of_call(self.library, "fi_av_insert", code.into()));
                }
                let index = u32::try_from(self.peers_by_name.len()).expect("an address book has fewer lines");
                let peer = Peer { address: peer, index };
                self.operations.add_peer();
                self.peers_by_name.insert(bytes, peer);
                peer
            }
        };
        self.peers.insert(address.clone(), peer);
        Ok(peer)
    }

    /// Puts the parts together and posts the receives.
    #[allow(clippy::too_many_arguments, reason = "the parts of one value, each made by its own step")]
    fn assemble(
        library: &'static Library,
        config: PortConfig,
        row: Provider,
        facts: Facts,
        scheme: String,
        address: Address,
        name: Vec<u8>,
        objects: Objects,
        sleeper: Sleeper,
    ) -> Result<Port, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let index = |at: usize| u32::try_from(at).expect("operations are bounded");
        let (receives, sends, reads) = (config.receives, config.sends, config.reads);
        let inject_bytes_max = match config.strict {
            Some(_) => facts.inject_bytes_max.min(strict::INJECT_BYTES),
            None => facts.inject_bytes_max,
        };
        let alone = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1);
        let mut port = Port {
            library,
            objects,
            row,
            facts,
            scheme,
            address,
            name,
            sleeper,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            frame_bytes_max: config.frame_bytes_max,
            stride: stride(config.frame_bytes_max),
            receives,
            inject_bytes_max,
            spin: if alone { std::time::Duration::ZERO } else { config.spin },
            strict: config.strict.map(strict::Faults::new),
            opened: clock_gettime(ClockId::MonotonicCoarse),
            peers: HashMap::new(),
            peers_by_name: HashMap::new(),
            receives_posted: vec![false; receives],
            unposted: (0..receives).map(index).collect(),
            operations: Operations::new(receives, [sends, reads], [config.send_timeout, config.read_timeout]),
            finished: VecDeque::with_capacity(sends + reads),
            injected: 0,
            held: Vec::with_capacity(if config.strict.is_some() { sends + reads } else { 0 }),
            batch: Batch { entries: Box::new([sys::fi_cq_msg_entry::default(); BATCH]), at: 0, len: 0, failure: None },
            drained: false,
            partial: false,
            receive_errors_in_row: 0,
            broken: None,
            closing: false,
            lately: super::wait::Lately::default(),
            counters: Counters::default(),
        };
        port.post_receives();
        if let Some(error) = port.broken.take() {
            return Err(error);
        }
        if !port.unposted.is_empty() {
            log::info!(
                "provider {} takes {} of {} receives at a time",
                port.provider(),
                port.receives_posted(),
                receives
            );
        }
        Ok(port)
    }
}

/// Bytes from one frame to the next: no two share a cache line.
fn stride(frame_bytes_max: usize) -> usize {
    frame_bytes_max.next_multiple_of(64)
}

/// Refuses what cannot be honoured.
fn check(config: &PortConfig) -> Result<(), Error> {
    for (what, number) in [("receives", config.receives), ("sends", config.sends), ("reads", config.reads)] {
        if !(1..=OPERATIONS_MAX).contains(&number) {
            return Err(Error::Config(format!("{what} must lie between 1 and {OPERATIONS_MAX}, not at {number}")));
        }
    }
    if !(1..=1 << 24).contains(&config.frame_bytes_max) {
        return Err(Error::Config(format!(
            "frame_bytes_max must lie between 1 and 16 MiB, not at {}",
            config.frame_bytes_max
        )));
    }
    if let Some(bind) = &config.bind {
        let row = Provider::of(&config.net);
        let scheme = row.scheme.map_or_else(|| config.net.to_string(), str::to_owned);
        if bind.provider() != scheme {
            return Err(Error::WrongProvider { address: bind.clone(), provider: scheme });
        }
    }
    Ok(())
}

/// The local host and port.
fn inet_source(config: &PortConfig, row: &Provider) -> Result<Source, Error> {
    let scheme = row.scheme.unwrap_or("tcp");
    let socket = match (&config.bind, &config.host) {
        (Some(bind), _) => names::resolve(bind, None)?,
        (None, None) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
        (None, Some(host)) => match interface::address_of(host) {
            Some(ip) => SocketAddr::new(ip, 0),
            None => {
                let ip: Result<IpAddr, _> = host.parse();
                match ip {
                    Ok(ip) => SocketAddr::new(ip, 0),
                    Err(_) => names::resolve(&format!("ofi+{scheme}://{host}:0").parse()?, None)?,
                }
            }
        },
    };
    if !names::is_bindable(socket.ip()) {
        return Err(Error::Config(format!(
            "{} is no single local address; bind the loopback or the fast network's address",
            socket.ip()
        )));
    }
    Ok(Source { node: Some(socket.ip().to_string()), service: Some(socket.port().to_string()), socket: Some(socket) })
}

/// The device and PID. The device is the one that --net names, else the one whose NIC address the book entry has, else
/// the first.
fn cxi_source(library: &'static Library, config: &PortConfig, row: &Provider) -> Result<Source, Error> {
    let query = Query::plain(&row.names[0], row.automatic_progress);
    let wanted_device = match config.net {
        Net::Cxi { nic: Some(nic), .. } => Some(format!("cxi{nic}")),
        _ => None,
    };
    let wanted_nic = config.bind.as_ref().and_then(Address::nic);
    let fits = |facts: &Facts| cxi_device_fits(facts, wanted_device.as_deref(), wanted_nic);
    let what = || match (&wanted_device, &config.bind) {
        (Some(device), _) => format!("device {device}"),
        (None, Some(bind)) => format!("the NIC of {bind}"),
        (None, None) => "any device".to_owned(),
    };
    let Some(info) = Info::query(library, &query, &fits)? else {
        return Err(no_provider(library, row, &what()));
    };
    // 511 is cxi's "any".
    let pid = config.bind.as_ref().and_then(Address::pid).filter(|pid| *pid != 511);
    Ok(Source { node: Some(info.facts().domain), service: pid.map(|pid| pid.to_string()), socket: None })
}

/// Whether a device that cxi offers is the one that is wanted.
fn cxi_device_fits(facts: &Facts, device: Option<&str>, nic: Option<u32>) -> bool {
    match (device, nic, facts.source.get(..4)) {
        (Some(device), _, _) => facts.domain == device,
        (None, None, _) => true,
        (None, Some(nic), Some(word)) => {
            let word: [u8; 4] = word.try_into().expect("four bytes");
            Address::cxi(u32::from_le_bytes(word)).nic() == Some(nic)
        }
        // Without an address to compare, the bound one is compared at the end.
        (None, Some(_), None) => true,
    }
}

/// The first answer by the row's names, in order.
fn find(
    library: &'static Library,
    config: &PortConfig,
    row: &Provider,
    source: &Source,
    threads: bool,
) -> Result<Info, Error> {
    for name in row.names.iter() {
        let query = Query {
            name,
            node: source.node.as_deref(),
            service: source.service.as_deref(),
            numeric: source.socket.is_some(),
            transmit: config.sends + config.reads,
            receive: config.receives,
            automatic_progress: row.automatic_progress,
            threads,
        };
        if let Some(info) = Info::query(library, &query, &|_| true)? {
            return Ok(info);
        }
    }
    let what = match (&source.socket, &source.node) {
        (Some(socket), _) => format!("local address {}", socket.ip()),
        (None, Some(node)) => node.clone(),
        (None, None) => "this host".to_owned(),
    };
    Err(no_provider(library, row, &what))
}

fn no_provider(library: &Library, row: &Provider, what: &str) -> Error {
    Error::NoProvider {
        wanted: row.names.join(" or "),
        what: what.to_owned(),
        version: library.version(),
        hidden_by: env::var("FI_PROVIDER").ok(),
    }
}

/// Makes fabric, domain, address vector, queue and endpoint, binds and enables them, and registers the slabs where that
/// is asked for.
fn open_objects(
    library: &'static Library,
    config: &PortConfig,
    row: &Provider,
    objects: &mut Objects,
) -> Result<Sleeper, Error> {
    let contexts = config.receives + operations::contexts(config.sends) + operations::contexts(config.reads);
    let stride = stride(config.frame_bytes_max);
    let slabs = objects.slabs.insert(Slabs {
        contexts: Pages::map(contexts * size_of::<sys::fi_context2>())?,
        receive: Pages::map(config.receives * stride)?,
        send: Pages::map(operations::contexts(config.sends) * stride)?,
    });
    let slab_ranges = [(slabs.receive.base(), slabs.receive.len()), (slabs.send.base(), slabs.send.len())];
    let info = objects.info.as_ptr();
    let mr_mode = objects.info.facts().mr_mode;
    let (fabric, domain) = match &objects.shared {
        Some(shared) => (shared.fabric, shared.domain),
        None => open_domain(library, &objects.info)?,
    };
    (objects.fabric, objects.domain) = (Some(fabric), Some(domain));
    let domain = domain.as_ptr();
    let mut book_attributes =
        sys::fi_av_attr { type_: sys::FI_AV_TABLE, count: config.peers.min(row.peers_max), ..Default::default() };
    let mut book = ptr::null_mut();
    // SAFETY: the domain was opened just now; the attributes are read during the call only.
    checked(library, "fi_av_open", unsafe {
        sys::fi_av_open(domain, &raw mut book_attributes, &raw mut book, ptr::null_mut())
    })?;
    objects.book = NonNull::new(book);
    let wait = if objects.shared.is_some() { SHARED_WAIT } else { row.wait };
    let sleeper = open_queue(library, objects, contexts + BATCH, wait)?;
    let queue = objects.queue();
    let mut endpoint = ptr::null_mut();
    // SAFETY: the domain is open.
    checked(library, "fi_endpoint", unsafe { sys::fi_endpoint(domain, info, &raw mut endpoint, ptr::null_mut()) })?;
    objects.endpoint = NonNull::new(endpoint);
    // SAFETY: endpoint, queue and vector are open and of one domain; each begins with its `fid`.
    unsafe {
        checked(library, "fi_ep_bind(av)", sys::fi_ep_bind(endpoint, book.cast(), 0))?;
        checked(library, "fi_ep_bind(cq)", sys::fi_ep_bind(endpoint, queue.cast(), sys::FI_TRANSMIT | sys::FI_RECV))?;
        checked(library, "fi_enable", sys::fi_enable(endpoint))?;
    }
    objects.enabled = true;
    if mr_mode & sys::FI_MR_LOCAL != 0 {
        for (at, (base, len)) in slab_ranges.into_iter().enumerate() {
            let access = if at == 0 { sys::FI_RECV } else { sys::FI_SEND };
            let mut order = Order::new(config.strict.is_some());
            let region = super::post::register_memory(library, objects, base, len, access, &mut order)?;
            objects.slab_regions.push(region);
            // SAFETY: the region is open and enabled.
            let descriptor = unsafe { sys::fi_mr_desc(region.as_ptr()) };
            if at == 0 { objects.receive_descriptor = descriptor } else { objects.send_descriptor = descriptor }
        }
    }
    Ok(sleeper)
}

/// The endpoint's own address, in the provider's bytes.
fn own_name(library: &'static Library, objects: &Objects) -> Result<Vec<u8>, Error> {
    let mut name = vec![0u8; 512];
    let mut len = name.len();
    // SAFETY: the endpoint is enabled; the buffer has the length that is passed, and the call writes no more.
    let code = unsafe { sys::fi_getname(objects.endpoint().cast(), name.as_mut_ptr().cast(), &raw mut len) };
    checked(library, "fi_getname", code)?;
    name.truncate(len);
    Ok(name)
}

/// Makes an address that cannot be bound say which it is, and whose where that is known.
fn explain(error: Error, config: &PortConfig, row: &Provider, source: &Source) -> Error {
    let scheme = row.scheme.unwrap_or("tcp");
    let of_socket = || source.socket.map(|socket| Address::inet(scheme, socket.ip(), socket.port()));
    let Some(address) = config.bind.clone().or_else(of_socket) else { return error };
    match (error.code(), row.format) {
        // The shm provider says "busy" of a name that a living process has.
        (Some(Code::AddressInUse), _) | (Some(Code::Busy), AddressFormat::Shm) => {
            Error::InUse { address, holder: source.socket.and_then(holder::of_listening_port) }
        }
        (Some(Code::AddressNotAvailable), _) => Error::NotLocal { address },
        _ => error,
    }
}

/// A provider that bound something else than what the book says would make this node unreachable.
fn check_bound(config: &PortConfig, bound: &Address) -> Result<(), Error> {
    let Some(asked) = &config.bind else { return Ok(()) };
    let right = match (asked.word(), asked.port()) {
        (Some(_), _) => (asked.nic() == bound.nic()) && (asked.pid() == Some(511) || asked.pid() == bound.pid()),
        (None, Some(port)) => port == 0 || Some(port) == bound.port(),
        (None, None) => true,
    };
    if right {
        Ok(())
    } else {
        Err(Error::Config(format!(
            "asked for {asked}, the provider bound {bound}; the book is of another node, or --net names another device"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_comes_from_the_network_or_from_the_book_entry() {
        let devices = [Facts::offer("cxi", "cxi0", 0x48b2 << 9 | 511), Facts::offer("cxi", "cxi1", 0x48b3 << 9 | 511)];
        let pick = |device: Option<&str>, nic| {
            devices.iter().find(|facts| cxi_device_fits(facts, device, nic)).map(|facts| facts.domain.as_str())
        };
        assert_eq!(pick(None, None), Some("cxi0"));
        assert_eq!(pick(Some("cxi1"), None), Some("cxi1"));
        assert_eq!(pick(None, Address::cxi(0x0091_6600).nic()), Some("cxi1"));
        assert_eq!(pick(None, Some(7)), None);
        assert_eq!(pick(Some("cxi2"), None), None);
    }

    #[test]
    fn a_bound_address_that_is_not_the_books_is_refused() {
        let config =
            |bind: &str| PortConfig { bind: Some(bind.parse().expect("an address")), ..PortConfig::new(Net::Tcp) };
        let bound = |text: &str| text.parse::<Address>().expect("an address");
        assert!(check_bound(&config("ofi+tcp://127.0.0.1:0"), &bound("ofi+tcp://127.0.0.1:7")).is_ok());
        assert!(check_bound(&config("ofi+tcp://127.0.0.1:8"), &bound("ofi+tcp://127.0.0.1:7")).is_err());
        assert!(check_bound(&config("ofi+cxi://0x00916600"), &bound("ofi+cxi://0x00916600")).is_ok());
        assert!(check_bound(&config("ofi+cxi://0x00916600"), &bound("ofi+cxi://0x00916601")).is_err());
        assert!(check_bound(&config("ofi+cxi://0x009167ff"), &bound("ofi+cxi://0x00916601")).is_ok());
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_before_libfabric_is_loaded() {
        let tcp = || PortConfig::new(Net::Tcp);
        for config in [
            PortConfig { receives: 0, ..tcp() },
            PortConfig { sends: usize::MAX, ..tcp() },
            PortConfig { frame_bytes_max: 0, ..tcp() },
            PortConfig { host: Some("0.0.0.0".into()), ..tcp() },
            PortConfig { bind: Some("ofi+tcp://[::]:80".parse().expect("an address")), ..tcp() },
            PortConfig { bind: Some("ofi+sockets://127.0.0.1:80".parse().expect("an address")), ..tcp() },
        ] {
            let shown = format!("{config:?}");
            assert!(Port::open(config).is_err(), "{shown}");
        }
    }
}
