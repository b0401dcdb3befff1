//! Asks libfabric what it offers (fi_getinfo(3)) with hints that fit cxi and the tcp providers alike, and picks one
//! answer.
//!
//! Called by [`crate::Port::open`]. Structures are allocated by the library alone: they grow at their tails from one
//! version to the next.
#![allow(unsafe_code, reason = "reads and fills C structures that the library allocates")]

use std::ffi::{CStr, CString, c_char};
use std::ptr::{self, NonNull};

use libfabric_sys as sys;
use libfabric_sys::Library;

use crate::error::{Code, Error};

/// The interface version that is asked for: a version newer than the library gets ENOSYS, and 1.15 has all that is
/// used.
pub(crate) const API_VERSION: u32 = sys::fi_version_of(1, 15);

/// What a caller wants from one provider.
pub(crate) struct Query<'a> {
    /// The provider's exact name.
    pub(crate) name: &'a str,
    /// The local node (device, host or name), as fi_getinfo takes it.
    pub(crate) node: Option<&'a str>,
    /// The local service (port or PID).
    pub(crate) service: Option<&'a str>,
    /// The node is numeric: no name server is asked.
    pub(crate) numeric: bool,
    /// Operations to send at a time; a wish, dropped when the provider cannot.
    pub(crate) transmit: usize,
    /// Receives to post; a wish, dropped when the provider cannot.
    pub(crate) receive: usize,
    /// Progress by the provider's own thread.
    pub(crate) automatic_progress: bool,
    /// Several threads use the domain, so that the provider must lock.
    pub(crate) threads: bool,
}

impl<'a> Query<'a> {
    /// Any node of provider `name`, without wishes.
    pub(crate) fn plain(name: &'a str, automatic_progress: bool) -> Query<'a> {
        Query {
            name,
            node: None,
            service: None,
            numeric: false,
            transmit: 0,
            receive: 0,
            automatic_progress,
            threads: false,
        }
    }
}

/// One answer, with the list that it belongs to.
pub(crate) struct Info {
    library: &'static Library,
    head: NonNull<sys::fi_info>,
    chosen: NonNull<sys::fi_info>,
}

// SAFETY: the list is plain memory that this value owns alone; the library frees it from any thread.
unsafe impl Send for Info {}

/// The fields of an answer that this crate goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) provider: String,
    pub(crate) domain: String,
    pub(crate) mr_mode: u64,
    pub(crate) mr_key_bytes: usize,
    pub(crate) inject_bytes_max: usize,
    pub(crate) message_bytes_max: usize,
    pub(crate) address_format: u32,
    /// The local address as the provider writes it; empty when it gives none.
    pub(crate) source: Vec<u8>,
}

#[cfg(test)]
impl Facts {
    /// What cxi's answer says of a device with such an address word.
    pub(crate) fn offer(provider: &str, domain: &str, word: u32) -> Facts {
        Facts {
            provider: provider.into(),
            domain: domain.into(),
            mr_mode: sys::FI_MR_ENDPOINT | sys::FI_MR_PROV_KEY | sys::FI_MR_ALLOCATED,
            mr_key_bytes: 8,
            inject_bytes_max: 192,
            message_bytes_max: (1 << 32) - 1,
            address_format: 15,
            source: word.to_le_bytes().to_vec(),
        }
    }
}

impl Info {
    /// Asks for `query`; of the answers with that very name, `fits` chooses the first that it accepts.
    /// `None`: the library has nothing that fits.
    pub(crate) fn query(
        library: &'static Library,
        query: &Query<'_>,
        fits: &dyn Fn(&Facts) -> bool,
    ) -> Result<Option<Info>, Error> {
        for wishes in [true, false] {
            let hints = Hints::new(library, query, wishes)?;
            if let Some(mut info) = Info::ask(library, query, Some(&hints))?
                && info.choose(query.name, fits)
            {
                return Ok(Some(info));
            }
        }
        Ok(None)
    }

    /// All answers to `query` without wishes, or without any hints.
    pub(crate) fn offers(library: &'static Library, query: Option<&Query<'_>>) -> Result<Vec<Facts>, Error> {
        let info = match query {
            Some(query) => Info::ask(library, query, Some(&Hints::new(library, query, false)?))?,
            None => Info::ask(library, &Query::plain("", false), None)?,
        };
        let mut found = Vec::new();
        let mut next = info.as_ref().map(|info| info.head);
        while let Some(entry) = next {
            // SAFETY: `entry` is an entry of the list that `info` owns; `next` is null at its end.
            let (facts, following) = unsafe { (facts_of(entry), NonNull::new((*entry.as_ptr()).next)) };
            found.push(facts);
            next = following;
        }
        Ok(found)
    }

    /// Calls fi_getinfo; nothing when nothing fits.
    fn ask(library: &'static Library, query: &Query<'_>, hints: Option<&Hints>) -> Result<Option<Info>, Error> {
        let text = |part: Option<&str>| part.map(|part| CString::new(part).expect("no zero byte in a node or service"));
        let (node, service) = (text(query.node), text(query.service));
        let pointer = |part: &Option<CString>| part.as_ref().map_or(ptr::null(), |part| part.as_ptr());
        let mut flags = 0;
        if query.node.is_some() || query.service.is_some() {
            flags |= sys::FI_SOURCE;
        }
        if query.numeric {
            flags |= sys::FI_NUMERICHOST;
        }
        let hints = hints.map_or(ptr::null_mut(), |hints| hints.0.as_ptr());
        let mut head = ptr::null_mut();
        // SAFETY: node and service are C strings or null and outlive the call, as do the hints, which the library
        // allocated or which are null.
        let code = unsafe {
            (library.fi_getinfo)(API_VERSION, pointer(&node), pointer(&service), flags, hints, &raw mut head)
        };
        match (NonNull::new(head), Code::from(-code)) {
            (Some(head), _) if code == 0 => Ok(Some(Info { library, head, chosen: head })),
            (_, Code::NoData) => Ok(None),
            _ if code == 0 => Ok(None),
            _ => Err(Error::of_call(library, "fi_getinfo", code.into())),
        }
    }

    /// A copy of the chosen answer with another local address, in the provider's bytes.
    pub(crate) fn with_source(&self, source: &[u8]) -> Result<Info, Error> {
        let none = || Error::of_call(self.library, "fi_dupinfo", (-libc::ENOMEM).into());
        // SAFETY: `chosen` is an answer of the library, which copies all of it but `next`.
        let copy = NonNull::new(unsafe { (self.library.fi_dupinfo)(self.chosen.as_ptr()) }).ok_or_else(none)?;
        let info = Info { library: self.library, head: copy, chosen: copy };
        // SAFETY: the copy is this value's alone; its address came from malloc, as the new one does, and fi_freeinfo gives
        // it back to free; the new one has room for `source`.
        unsafe {
            let address = NonNull::new(libc::malloc(source.len())).ok_or_else(none)?;
            ptr::copy_nonoverlapping(source.as_ptr(), address.as_ptr().cast(), source.len());
            let info = &mut *copy.as_ptr();
            libc::free(info.src_addr);
            (info.src_addr, info.src_addrlen) = (address.as_ptr(), source.len());
        }
        Ok(info)
    }

    /// The chosen answer, as calls that open objects take it.
    pub(crate) fn as_ptr(&self) -> *mut sys::fi_info {
        self.chosen.as_ptr()
    }

    /// The chosen answer's fields.
    pub(crate) fn facts(&self) -> Facts {
        // SAFETY: `chosen` is an entry of the list that this value owns; the library fills every attribute of an
        // answer.
        unsafe { facts_of(self.chosen) }
    }

    /// Moves `chosen` to the first answer of provider `name` that fits.
    fn choose(&mut self, name: &str, fits: &dyn Fn(&Facts) -> bool) -> bool {
        let mut next = Some(self.head);
        while let Some(entry) = next {
            // SAFETY: `entry` is an entry of the list that this value owns; `next` is null at its end.
            let (facts, following) = unsafe { (facts_of(entry), NonNull::new((*entry.as_ptr()).next)) };
            log::trace!("fi_getinfo offers {facts:?}");
            if facts.provider == name && fits(&facts) {
                self.chosen = entry;
                return true;
            }
            next = following;
        }
        false
    }
}

impl Drop for Info {
    fn drop(&mut self) {
        // SAFETY: the list came from fi_getinfo and is freed once, here.
        unsafe { (self.library.fi_freeinfo)(self.head.as_ptr()) };
    }
}

/// Hints, allocated and freed by the library.
struct Hints(NonNull<sys::fi_info>, &'static Library);

impl Hints {
    fn new(library: &'static Library, query: &Query<'_>, wishes: bool) -> Result<Hints, Error> {
        // SAFETY: a null pointer asks for an empty structure with its attributes allocated (fi_allocinfo is this call).
        let info = unsafe { (library.fi_dupinfo)(ptr::null()) };
        let info = NonNull::new(info).ok_or_else(|| Error::of_call(library, "fi_dupinfo", (-libc::ENOMEM).into()))?;
        let hints = Hints(info, library);
        let name = CString::new(query.name).expect("no zero byte in a provider's name");
        // SAFETY: the library allocated the structure and each attribute written here, zeroed, and nobody else has
        // them; the name is copied into memory of malloc, which fi_freeinfo gives back to free.
        unsafe {
            let info = &mut *hints.0.as_ptr();
            info.caps = sys::FI_MSG | sys::FI_RMA;
            info.mode = sys::FI_CONTEXT | sys::FI_CONTEXT2;
            (*info.ep_attr).type_ = sys::FI_EP_RDM;
            (*info.tx_attr).msg_order = sys::FI_ORDER_SAS;
            (*info.rx_attr).msg_order = sys::FI_ORDER_SAS;
            if wishes {
                (*info.tx_attr).size = query.transmit;
                (*info.rx_attr).size = query.receive;
            }
            let domain = &mut *info.domain_attr;
            // No FI_MR_VIRT_ADDR: remote addresses are offsets everywhere.
            domain.mr_mode =
                (sys::FI_MR_ENDPOINT | sys::FI_MR_ALLOCATED | sys::FI_MR_PROV_KEY | sys::FI_MR_LOCAL) as i32;
            domain.threading = if query.threads { sys::FI_THREAD_SAFE } else { sys::FI_THREAD_DOMAIN };
            let progress = if query.automatic_progress { sys::FI_PROGRESS_AUTO } else { sys::FI_PROGRESS_MANUAL };
            domain.control_progress = progress;
            sys::fi_hints_set_data_progress(info.domain_attr, progress);
            domain.av_type = sys::FI_AV_TABLE;
            (*info.fabric_attr).prov_name = libc::strdup(name.as_ptr());
        }
        Ok(hints)
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        // SAFETY: the structure came from fi_dupinfo and is freed once, here.
        unsafe { (self.1.fi_freeinfo)(self.0.as_ptr()) };
    }
}

/// Copies the fields out of an answer.
///
/// # Safety
/// `info` is an answer of fi_getinfo that is not freed yet.
unsafe fn facts_of(info: NonNull<sys::fi_info>) -> Facts {
    // SAFETY: an answer has all attributes, its names are C strings or null, and its source address has the length that
    // it says.
    unsafe {
        let info = info.as_ref();
        let source = match NonNull::new(info.src_addr.cast::<u8>()) {
            Some(address) => std::slice::from_raw_parts(address.as_ptr(), info.src_addrlen).to_vec(),
            None => Vec::new(),
        };
        Facts {
            provider: text_of((*info.fabric_attr).prov_name),
            domain: text_of((*info.domain_attr).name),
            mr_mode: u64::from((*info.domain_attr).mr_mode.cast_unsigned()),
            mr_key_bytes: (*info.domain_attr).mr_key_size,
            inject_bytes_max: (*info.tx_attr).inject_size,
            message_bytes_max: (*info.ep_attr).max_msg_size,
            address_format: info.addr_format,
            source,
        }
    }
}

/// A copy of a C string; empty for null.
///
/// # Safety
/// `text` is null or a C string.
unsafe fn text_of(text: *const c_char) -> String {
    // SAFETY: the caller's promise.
    unsafe { if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() } }
}

#[cfg(test)]
mod recorded;
