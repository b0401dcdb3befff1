//! Version data, man pages and shell completions of the `bornite` binary.
//!
//! The pages and scripts go to `OUT_DIR`, from where the binary takes them in.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use clap_complete::Shell;

#[allow(dead_code, missing_docs, unreachable_pub)]
#[path = "src/cli/args.rs"]
mod args;

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/cli/args.rs");
    println!("cargo::rerun-if-changed=src/cli/args");
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let commit = commit(&root).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=BUILT_COMMIT={commit}");
    println!("cargo::rustc-env=BUILT_VERSION={} (commit {commit})", env!("CARGO_PKG_VERSION"));

    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut args::Cli::command(), "bornite", &out)?;
    }
    man_pages(&out)
}

/// One page per command, and a table of them for the binary to include: `&[(file name, text)]`.
fn man_pages(out: &Path) -> io::Result<()> {
    let man = out.join("man");
    if man.exists() {
        std::fs::remove_dir_all(&man)?;
    }
    std::fs::create_dir_all(&man)?;
    clap_mangen::generate_to(args::Cli::command(), &man)?;
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(&man)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let rows = names.iter().map(|name| format!("    ({name:?}, include_str!({:?})),\n", man.join(name)));
    std::fs::write(out.join("man_pages.rs"), format!("&[\n{}]\n", rows.collect::<String>()))
}

/// The commit of the source tree, 12 digits; none outside a repository of its own.
fn commit(root: &Path) -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).current_dir(root).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    // A source archive unpacked inside another project's repository has no commit of its own.
    if PathBuf::from(git(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    // A commit moves one of these: the branch that is checked out, its loose or packed name, or a detached HEAD.
    let branch = git(&["symbolic-ref", "-q", "HEAD"]);
    for name in ["HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        let path = git(&["rev-parse", "--git-path", name]).map(|path| root.join(path));
        if let Some(path) = path.filter(|path| path.exists()) {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}
