//! Opens libfabric at run time and resolves the few symbols that it exports.
//!
//! Called once per process, by the first endpoint that is opened. Loading runs the constructors of every library that
//! libfabric depends on (200 ms on Debian), which is why commands that need no fabric must never come here. The library
//! is never unloaded: its providers start threads and register exit handlers.
#![allow(unsafe_code, reason = "dlopen and dlvsym hand out untyped pointers")]

use std::env;
use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int, c_void};
use std::fmt;
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use crate::bindings::{exports, fi_fabric_attr, fi_info, fi_type, fid_fabric};

/// The file that is looked for along the dynamic linker's search path (ld.so(8)).
pub const SONAME: &str = "libfabric.so.1";

/// The environment variable that names another file instead of [`SONAME`].
pub const PATH_VARIABLE: &str = "LIBFABRIC_PATH";

/// Why libfabric could not be loaded. The text is one line and says what to do next.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LoadError {
    /// The dynamic linker did not find or accept the file.
    #[error(
        "cannot load libfabric as {file:?}: {reason}; install libfabric (1.15 or newer), load its module, or set LIBFABRIC_PATH to its file"
    )]
    Open {
        /// The file name that was asked for.
        file: OsString,
        /// The dynamic linker's text (dlerror(3)).
        reason: String,
    },
    /// The file is not a libfabric that this program can use.
    #[error(
        "{file:?} has no symbol {symbol} at version {version}: it is no libfabric 1.15 or newer; set LIBFABRIC_PATH to one"
    )]
    Symbol {
        /// The file name that was asked for.
        file: OsString,
        /// The symbol that is missing.
        symbol: &'static str,
        /// The symbol version that was asked for.
        version: &'static str,
    },
}

type GetInfo = unsafe extern "C" fn(u32, *const c_char, *const c_char, u64, *const fi_info, *mut *mut fi_info) -> c_int;
type FreeInfo = unsafe extern "C" fn(*mut fi_info);
type DupInfo = unsafe extern "C" fn(*const fi_info) -> *mut fi_info;
type Fabric = unsafe extern "C" fn(*mut fi_fabric_attr, *mut *mut fid_fabric, *mut c_void) -> c_int;
type Version = unsafe extern "C" fn() -> u32;
type StrError = unsafe extern "C" fn(c_int) -> *const c_char;
type ToStr = unsafe extern "C" fn(*const c_void, fi_type) -> *mut c_char;

// The header's own declarations have these types; an interface that changes does not compile.
const _: GetInfo = exports::fi_getinfo;
const _: FreeInfo = exports::fi_freeinfo;
const _: DupInfo = exports::fi_dupinfo;
const _: Fabric = exports::fi_fabric;
const _: Version = exports::fi_version;
const _: StrError = exports::fi_strerror;
const _: ToStr = exports::fi_tostr;

/// The exported calls of the loaded library, each as its manual page describes it.
pub struct Library {
    /// fi_getinfo(3).
    pub fi_getinfo: GetInfo,
    /// fi_freeinfo, fi_getinfo(3).
    pub fi_freeinfo: FreeInfo,
    /// fi_dupinfo, fi_getinfo(3); with a null pointer it allocates, as `fi_allocinfo` does.
    pub fi_dupinfo: DupInfo,
    /// fi_fabric(3).
    pub fi_fabric: Fabric,
    /// fi_version(3).
    pub fi_version: Version,
    /// fi_strerror(3).
    pub fi_strerror: StrError,
    /// fi_tostr, fabric(7). The answer lives in a static buffer of the library until the next call.
    pub fi_tostr: ToStr,
}

impl Library {
    /// The library's version, as `1.17`.
    #[must_use]
    pub fn version(&self) -> String {
        // SAFETY: the call takes nothing and answers a number.
        let version = unsafe { (self.fi_version)() };
        format!("{}.{}", version >> 16, version & 0xffff)
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library").finish_non_exhaustive()
    }
}

/// The library, loaded by the first call; later calls answer from memory, a failure included.
///
/// # Errors
/// The file is missing or is not a libfabric of 1.15 or newer.
pub fn load() -> Result<&'static Library, LoadError> {
    static LOADED: OnceLock<Result<Library, LoadError>> = OnceLock::new();
    let file = || env::var_os(PATH_VARIABLE).filter(|path| !path.is_empty()).unwrap_or_else(|| SONAME.into());
    LOADED.get_or_init(|| open(&file())).as_ref().map_err(Clone::clone)
}

/// A symbol and the version at which it has carried its present meaning since before 1.15 (`objdump -T
/// libfabric.so.1`). Asking by version keeps the layout of `fi_info` that 1.15 had, on libraries that have newer ones
/// besides.
struct Symbol {
    name: &'static CStr,
    version: &'static CStr,
}

const GETINFO: Symbol = Symbol { name: c"fi_getinfo", version: c"FABRIC_1.3" };
const FREEINFO: Symbol = Symbol { name: c"fi_freeinfo", version: c"FABRIC_1.3" };
const DUPINFO: Symbol = Symbol { name: c"fi_dupinfo", version: c"FABRIC_1.3" };
const FABRIC: Symbol = Symbol { name: c"fi_fabric", version: c"FABRIC_1.1" };
const VERSION: Symbol = Symbol { name: c"fi_version", version: c"FABRIC_1.0" };
const STRERROR: Symbol = Symbol { name: c"fi_strerror", version: c"FABRIC_1.0" };
const TOSTR: Symbol = Symbol { name: c"fi_tostr", version: c"FABRIC_1.0" };

/// Opens `file` and resolves everything, or says what is missing.
fn open(file: &OsStr) -> Result<Library, LoadError> {
    let name = CString::new(file.as_bytes())
        .map_err(|_| LoadError::Open { file: file.into(), reason: "the name holds a zero byte".into() })?;
    // SAFETY: `name` is a C string that outlives the call; the flags are dlopen's own.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return Err(LoadError::Open { file: file.into(), reason: last_error() });
    }
    let resolve = |symbol: &Symbol| -> Result<*mut c_void, LoadError> {
        // SAFETY: `handle` came from dlopen and is never closed; both strings are constants of this file.
        let address = unsafe { libc::dlvsym(handle, symbol.name.as_ptr(), symbol.version.as_ptr()) };
        if address.is_null() {
            let text = |c: &'static CStr| c.to_str().unwrap_or("?");
            return Err(LoadError::Symbol {
                file: file.into(),
                symbol: text(symbol.name),
                version: text(symbol.version),
            });
        }
        Ok(address)
    };
    // SAFETY: each address is the function of that name at that symbol version, whose type the header declares and the
    // constants above compare; a function pointer and a data pointer have one size on every system with dlsym.
    unsafe {
        Ok(Library {
            fi_getinfo: mem::transmute::<*mut c_void, GetInfo>(resolve(&GETINFO)?),
            fi_freeinfo: mem::transmute::<*mut c_void, FreeInfo>(resolve(&FREEINFO)?),
            fi_dupinfo: mem::transmute::<*mut c_void, DupInfo>(resolve(&DUPINFO)?),
            fi_fabric: mem::transmute::<*mut c_void, Fabric>(resolve(&FABRIC)?),
            fi_version: mem::transmute::<*mut c_void, Version>(resolve(&VERSION)?),
            fi_strerror: mem::transmute::<*mut c_void, StrError>(resolve(&STRERROR)?),
            fi_tostr: mem::transmute::<*mut c_void, ToStr>(resolve(&TOSTR)?),
        })
    }
}

/// The dynamic linker's text for this thread's last failure.
fn last_error() -> String {
    // SAFETY: dlerror answers null or a C string that stays valid until this thread's next dl call.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() { "no reason given".into() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_library_is_one_line_with_the_name_and_the_next_step() {
        let error = open(OsStr::new("libfabric-that-is-not-there.so.1")).expect_err("no such library");
        let text = error.to_string();
        assert!(text.contains("libfabric-that-is-not-there.so.1") && text.contains(PATH_VARIABLE), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[test]
    fn another_library_is_refused_by_its_missing_symbol() {
        let error = open(OsStr::new("libc.so.6")).expect_err("libc is no libfabric");
        assert!(matches!(error, LoadError::Symbol { symbol: "fi_getinfo", .. }), "{error}");
        assert!(error.to_string().contains("FABRIC_1.3"), "{error}");
    }

    #[test]
    fn the_library_comes_with_load_and_not_before() {
        let mapped =
            || std::fs::read_to_string("/proc/self/maps").expect("read /proc/self/maps").contains("libfabric.so");
        assert!(!mapped(), "libfabric is mapped before load: it is a NEEDED library of this program");
        let library = match load() {
            Ok(library) => library,
            Err(error) => {
                println!("skipped: {error}");
                return;
            }
        };
        assert!(mapped());
        // SAFETY: the call takes nothing and answers a number.
        let version = unsafe { (library.fi_version)() };
        assert!(version >= crate::fi_version_of(1, 15), "libfabric {}.{}", version >> 16, version & 0xffff);
        // SAFETY: a null pointer asks for a new, empty fi_info, which goes back to the library at once.
        unsafe {
            let info = (library.fi_dupinfo)(std::ptr::null());
            assert!(!info.is_null());
            assert!(!(*info).domain_attr.is_null() && !(*info).fabric_attr.is_null());
            (library.fi_freeinfo)(info);
        }
    }
}
