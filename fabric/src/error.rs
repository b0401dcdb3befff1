//! The errors of this layer: every return code of libfabric becomes one of them where it appears.
//!
//! A text names the call or the object, says what the provider said, and what to do next where that is known.

use std::ffi::CStr;

use libfabric_sys::Library;

use crate::address::{Address, AddressError};
use crate::holder::Holder;

/// An operating error of the endpoint layer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libfabric is missing or too old.
    #[error(transparent)]
    Load(#[from] libfabric_sys::LoadError),
    /// A text is no address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A call of libfabric or of the system failed.
    #[error("{call}: {text} ({code})")]
    Call {
        /// The call's name, as its manual page has it.
        call: &'static str,
        /// What it returned.
        code: Code,
        /// The provider's text, else the library's.
        text: String,
    },
    /// The address that this port should bind belongs to someone else.
    #[error("{address} is taken by {}; stop it or give this node another address in its book", match holder { Some(holder) => holder.to_string(), None => "an unknown process".into() })]
    InUse {
        /// The address that was asked for.
        address: Address,
        /// Who holds it, where the system tells (tcp, processes that this user may look at).
        holder: Option<Holder>,
    },
    /// The address that this port should bind is none of this host's.
    #[error("{address} is no address of this host; correct this node's entry in the book, or its --hostname")]
    NotLocal {
        /// The address that was asked for.
        address: Address,
    },
    /// No provider of the loaded library fits.
    #[error("libfabric {version} offers no provider {wanted} for {what}{}; see `bornite doctor --fabric`, or choose another --net", match hidden_by { Some(value) => format!(" (FI_PROVIDER={value} may hide it)"), None => String::new() })]
    NoProvider {
        /// The providers that were asked for.
        wanted: String,
        /// The local address or device that was asked for.
        what: String,
        /// The library's version.
        version: String,
        /// The value of FI_PROVIDER, when it is set.
        hidden_by: Option<String>,
    },
    /// A host name has no usable address.
    #[error("host {host} of {address}: {reason}")]
    Resolve {
        /// The name.
        host: String,
        /// The address that has it.
        address: Address,
        /// What the resolver said.
        reason: String,
    },
    /// An address of one kind was given to a port of another.
    #[error(
        "{address} is no address of provider {provider}, which --net or FI_PROVIDER names; choose the network that the book was made for"
    )]
    WrongProvider {
        /// The address that was given.
        address: Address,
        /// The port's provider, as addresses write it.
        provider: String,
    },
    /// A configuration that cannot be honoured.
    #[error("port configuration: {0}")]
    Config(String),
}

impl Error {
    /// The code of the failed call, for those errors that come from one.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Error::Call { code, .. } => Some(*code),
            Error::InUse { .. } => Some(Code::AddressInUse),
            Error::NotLocal { .. } => Some(Code::AddressNotAvailable),
            _ => None,
        }
    }

    /// The error of `call`, whose negative return value is `code`, with the library's text for it.
    pub(crate) fn of_call(library: &Library, call: &'static str, code: i64) -> Error {
        let number = i32::try_from(code.unsigned_abs()).unwrap_or(i32::MAX);
        Error::Call { call, code: Code::from(number), text: library_text(library, number) }
    }

    /// An operation that ended because the port was closed under it.
    pub(crate) fn cancelled(call: &'static str) -> Error {
        Error::Call { call, code: Code::Cancelled, text: "the port was closed before the operation ended".into() }
    }

    /// An operation that took longer than it may.
    pub(crate) fn timed_out(call: &'static str) -> Error {
        Error::Call { call, code: Code::TimedOut, text: "the peer took too long".into() }
    }

    /// The error of a system call.
    pub(crate) fn of_system(call: &'static str, errno: rustix::io::Errno) -> Error {
        Error::Call { call, code: Code::from(errno.raw_os_error()), text: errno.to_string() }
    }
}

/// Why an operation was not posted. Nothing was started: no event will follow.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Post {
    /// No room now, here or at the provider: poll, then try again under the caller's own deadline. A dead peer answers
    /// this for ever.
    #[error("no room to post now")]
    Again,
    /// The frame is longer than the port's frames, or the destination ends before the read does.
    #[error("longer than its frame or region")]
    TooLong,
    /// The provider refused.
    #[error(transparent)]
    Failed(#[from] Error),
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:expr;)*) => {
        /// What a call or a completion says, from libfabric's fi_errno.h (which has the system's numbers below 256).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* $name,)*
            /// A number that this list does not have.
            Other(i32),
        }

        impl From<i32> for Code {
            /// From the positive number.
            fn from(number: i32) -> Code {
                match number {
                    $(n if n == $number => Code::$name,)*
                    other => Code::Other(other),
                }
            }
        }

        impl Code {
            /// The positive number.
            #[must_use]
            pub fn number(self) -> i32 {
                match self {
                    $(Code::$name => $number,)*
                    Code::Other(number) => number,
                }
            }
        }
    };
}

codes! {
    /// Try again (EAGAIN).
    Again = libc::EAGAIN;
    /// Interface version, function or wait object not supported (ENOSYS).
    NotImplemented = libc::ENOSYS;
    /// Operation not supported (EOPNOTSUPP).
    NotSupported = libc::EOPNOTSUPP;
    /// Nothing fits the hints (ENODATA).
    NoData = libc::ENODATA;
    /// Out of memory or of queue entries (ENOMEM).
    NoMemory = libc::ENOMEM;
    /// An argument or an order of calls that the provider refuses (EINVAL).
    Invalid = libc::EINVAL;
    /// Object still in use (EBUSY).
    Busy = libc::EBUSY;
    /// Access refused (EACCES).
    Access = libc::EACCES;
    /// Input or output error (EIO).
    Io = libc::EIO;
    /// Another socket has the address (EADDRINUSE).
    AddressInUse = libc::EADDRINUSE;
    /// The address is none of this host's (EADDRNOTAVAIL).
    AddressNotAvailable = libc::EADDRNOTAVAIL;
    /// Cancelled, as by a broken connection or a close (ECANCELED).
    Cancelled = libc::ECANCELED;
    /// Nobody listens there (ECONNREFUSED).
    ConnectionRefused = libc::ECONNREFUSED;
    /// The peer broke the connection (ECONNRESET).
    ConnectionReset = libc::ECONNRESET;
    /// The connection was given up (ECONNABORTED).
    ConnectionAborted = libc::ECONNABORTED;
    /// No connection (ENOTCONN).
    NotConnected = libc::ENOTCONN;
    /// No route (EHOSTUNREACH).
    HostUnreachable = libc::EHOSTUNREACH;
    /// Timed out (ETIMEDOUT).
    TimedOut = libc::ETIMEDOUT;
    /// The message is longer than the transport takes (EMSGSIZE).
    MessageSize = libc::EMSGSIZE;
    /// The key was refused (EKEYREJECTED).
    KeyRejected = libc::EKEYREJECTED;
    /// Error on the far side (EREMOTEIO).
    RemoteIo = libc::EREMOTEIO;
    /// Unspecified (FI_EOTHER).
    Unspecified = 256;
    /// A message was longer than the receive that took it (FI_ETRUNC).
    Truncated = 265;
    /// The key is not known (FI_ENOKEY).
    NoKey = 266;
    /// The completion queue overran (FI_EOVERRUN).
    Overrun = 268;
    /// The receiver had no buffer (FI_ENORX).
    ReceiverNotReady = 269;
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Code::Other(number) => write!(f, "error {number}"),
            known => write!(f, "{known:?}, error {}", known.number()),
        }
    }
}

/// The library's own text for a positive error number.
#[allow(unsafe_code, reason = "calls a C function that answers a string")]
pub(crate) fn library_text(library: &Library, number: i32) -> String {
    // SAFETY: fi_strerror answers a C string for every number; it is copied before any other call could replace it.
    unsafe {
        let text = (library.fi_strerror)(number);
        if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_keep_their_numbers_and_unknown_ones_stay_what_they_are() {
        for number in 0..600 {
            assert_eq!(Code::from(number).number(), number);
        }
        assert_eq!(Code::from(265), Code::Truncated);
        assert_eq!(Code::from(599), Code::Other(599));
        // fi_errno.h is the source of the numbers at and above 256.
        assert_eq!(libfabric_sys::FI_ETRUNC, 265);
        assert_eq!(libfabric_sys::FI_ENOKEY, 266);
        assert_eq!(libfabric_sys::FI_EOVERRUN, 268);
        assert_eq!(libfabric_sys::FI_ENORX, 269);
    }
}
