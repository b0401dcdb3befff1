//! Reads libfabric's headers (1.15 or newer) with bindgen and compiles C wrappers for the calls that the headers define
//! inline.
//!
//! Only headers are needed: nothing is linked, the library is opened at run time (src/loader.rs). The headers are
//! looked for in `LIBFABRIC_INCLUDE_DIR`, then where pkg-config says, then in the compiler's own directories.

use std::env;
use std::path::{Path, PathBuf};
use std::process::exit;

/// The inline calls of the headers that get a C wrapper. They are named one by one: an inline call of a newer header
/// might call an exported symbol, which nothing defines at link time (`fi_allocinfo` does: it is `fi_dupinfo(NULL)`).
const INLINE_CALLS: &[&str] = &[
    "fi_close",
    "fi_control",
    "fi_domain",
    "fi_endpoint",
    "fi_ep_bind",
    "fi_enable",
    "fi_cancel",
    "fi_getname",
    "fi_av_open",
    "fi_av_insert",
    "fi_av_remove",
    "fi_av_straddr",
    "fi_cq_open",
    "fi_cq_read",
    "fi_cq_readerr",
    "fi_cq_sread",
    "fi_cq_strerror",
    "fi_trywait",
    "fi_mr_reg",
    "fi_mr_bind",
    "fi_mr_enable",
    "fi_mr_key",
    "fi_mr_desc",
    "fi_recv",
    "fi_send",
    "fi_inject",
    "fi_read",
    "fi_hints_set_data_progress",
];

/// The calls that the library exports; src/loader.rs resolves them.
const EXPORTED_CALLS: &[&str] =
    &["fi_getinfo", "fi_freeinfo", "fi_dupinfo", "fi_fabric", "fi_version", "fi_strerror", "fi_tostr"];

fn main() {
    println!("cargo::rerun-if-changed=wrapper.h");
    println!("cargo::rerun-if-env-changed=LIBFABRIC_INCLUDE_DIR");
    let include_dirs = include_dirs();
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let wrappers = out_dir.join("wrappers.c");

    let base = || {
        bindgen::Builder::default()
            .header("wrapper.h")
            .clang_args(include_dirs.iter().map(|dir| format!("-I{}", dir.display())))
            .default_enum_style(bindgen::EnumVariation::Consts)
            .prepend_enum_name(false)
            .derive_default(true)
            .layout_tests(true)
            .generate_comments(false)
            .parse_callbacks(Box::new(FabricMacros))
    };
    let mut types = base()
        .allowlist_type("fi_.*|fid.*")
        .allowlist_var("FI_.*")
        .wrap_static_fns(true)
        .wrap_static_fns_path(&wrappers);
    for name in INLINE_CALLS {
        types = types.allowlist_function(name);
    }
    generate(types, &out_dir.join("bindings.rs"));

    // The exported calls are declared in a file of their own, for their types alone: calling one would leave an
    // undefined symbol.
    let mut exports = base().allowlist_recursively(false).blocklist_type(".*").raw_line("use super::*;");
    for name in EXPORTED_CALLS {
        exports = exports.allowlist_function(name);
    }
    generate(exports, &out_dir.join("exports.rs"));

    cc::Build::new()
        .file(&wrappers)
        .include(env!("CARGO_MANIFEST_DIR"))
        .includes(&include_dirs)
        .compile("bornite_fabric_wrappers");
}

/// Directories to search before the compiler's own, after checking that the headers can be found at all.
fn include_dirs() -> Vec<PathBuf> {
    let holds = |dir: &Path| dir.join("rdma/fabric.h").is_file();
    if let Some(dir) = env::var_os("LIBFABRIC_INCLUDE_DIR").map(PathBuf::from) {
        if !holds(&dir) {
            fail(&format!(
                "LIBFABRIC_INCLUDE_DIR={} holds no rdma/fabric.h; name the directory above rdma/",
                dir.display()
            ));
        }
        return vec![dir];
    }
    let found = pkg_config::Config::new().atleast_version("1.15").cargo_metadata(false).probe("libfabric");
    match found {
        // The compiler's own directories are left out of pkg-config's answer: an empty list means them.
        Ok(library) => library.include_paths,
        Err(pkg_config::Error::ProbeFailure { .. }) if probe_says_too_old() => fail(
            "libfabric's headers are older than 1.15; install a newer libfabric-dev (Debian, Ubuntu) or libfabric-devel (RHEL, SLES)",
        ),
        Err(_) if holds(Path::new("/usr/include")) => Vec::new(),
        Err(_) => fail(
            "libfabric's headers (rdma/fabric.h, 1.15 or newer) were not found; install libfabric-dev (Debian, Ubuntu) or \
             libfabric-devel (RHEL, SLES), or set LIBFABRIC_INCLUDE_DIR to the directory above rdma/",
        ),
    }
}

/// Whether pkg-config knows libfabric at all, and so refused it for its version.
fn probe_says_too_old() -> bool {
    pkg_config::Config::new().cargo_metadata(false).probe("libfabric").is_ok()
}

/// Runs bindgen and writes its output; an error ends the build with one line.
fn generate(builder: bindgen::Builder, path: &Path) {
    let bindings = match builder.generate() {
        Ok(bindings) => bindings,
        Err(error) => fail(&format!("bindgen could not read libfabric's headers: {error}")),
    };
    if let Err(error) = bindings.write_to_file(path) {
        fail(&format!("cannot write {}: {error}", path.display()));
    }
}

/// Ends the build with one error line.
fn fail(text: &str) -> ! {
    println!("cargo::error={text}");
    exit(1)
}

/// Capability and mode bits are 64-bit in every structure, whatever a macro's value would fit in.
#[derive(Debug)]
struct FabricMacros;

impl bindgen::callbacks::ParseCallbacks for FabricMacros {
    fn int_macro(&self, name: &str, _value: i64) -> Option<bindgen::callbacks::IntKind> {
        name.starts_with("FI_").then_some(bindgen::callbacks::IntKind::U64)
    }
}
