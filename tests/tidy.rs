//! The layers point one way, unsafe code stays where it is allowed, and files stay rooms one can look over.
//!
//! Reads the sources as tokens: comments and texts do not count, re-exports and grouped imports do. What is allowed is
//! in the tables below; a new edge is a decision about the architecture, to be made in DESIGN's terms and written there.

use std::fs;
use std::path::Path;

/// What each layer of `src` may name: other layers, and our other crates.
const LAYERS: [(&str, &[&str]); 8] = [
    ("main", &["cli"]),
    ("cli", &["job", "runtime", "observe", "sim"]),
    ("runtime", &["core", "cache", "observe", "bornite_fabric", "bornite_fuse"]),
    ("job", &["observe"]),
    ("core", &["cache"]),
    ("sim", &["core", "cache"]),
    ("observe", &[]),
    ("cache", &[]),
];

/// Our crates: folder, name in code, and which of the others its code and its Cargo.toml may name.
const CRATES: [(&str, &str, &[&str]); 5] = [
    ("", "bornite", &["bornite_fabric", "bornite_fuse"]),
    ("fabric/sys", "libfabric_sys", &[]),
    ("fabric", "bornite_fabric", &["libfabric_sys"]),
    ("fuse", "bornite_fuse", &[]),
    ("bench", "bornite_bench", &["bornite", "bornite_fabric", "bornite_fuse", "libfabric_sys"]),
];

/// Where unsafe code may be: path prefixes with the reason.
const UNSAFE_IN: [(&str, &str); 13] = [
    ("fabric/", "calls of libfabric"),
    ("src/cache/arena.rs", "slices of mapped memory"),
    ("src/runtime/heap.rs", "mallopt(3)"),
    ("src/runtime/transport.rs", "remote reads land in slots of the arena"),
    ("src/job/", "process glue: descriptors inherited, setns, what runs between fork and exec"),
    ("bench/benches/rpc/", "the reference on libfabric's own interface; memory that is read into"),
    ("fuse/src/backing.rs", "fcntl(F_SETLEASE)"),
    ("fuse/tests/", "mapping files of a mount"),
    ("tests/common/counting.rs", "an allocator that counts"),
    ("tests/calls.rs", "mapping files of a mount"),
    ("tests/passthrough.rs", "mapping files of a mount"),
    ("tests/regressions.rs", "mapping files of a mount"),
    ("tests/traps.rs", "mapping files of a mount"),
];

/// The calls that drop what the kernel caches.
const INVALIDATIONS: [&str; 3] = ["invalidate_entry", "invalidate_inode", "invalidate_attributes"];

/// The functions of `src` that may make them: the kernel may hold their thread until a request is answered, so it must be
/// one that answers none, the notify thread.
const NOTIFY_FUNCTIONS: [&str; 1] = ["tell_kernel"];

/// Lines of a file beyond which it must be in [`LONG_FILES`].
const LINES_MAX: usize = 700;

/// Longer files, each with its reason.
const LONG_FILES: [(&str, &str); 2] = [
    (
        "src/cache/names.rs",
        "under 500 lines of code; the rest are its tests against a model, which need its private parts",
    ),
    ("src/cli/args.rs", "the options of every command, which one reads together, and their tests"),
];

/// A word or a sign of Rust code.
type Token = String;

/// The tokens of `text`, without comments and without the contents of strings and characters. `::` is one token.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= chars.len() {
                        break;
                    }
                }
            }
            '"' => i = string_end(&chars, i),
            // A lifetime is no character.
            '\'' if at(i + 1) == '\\' || at(i + 2) == '\'' => {
                i += if at(i + 1) == '\\' { 3 } else { 2 };
                while i < chars.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            c if is_word(c) => {
                let begin = i;
                while is_word(at(i)) {
                    i += 1;
                }
                let word: String = chars[begin..i].iter().collect();
                let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
                match word.as_str() {
                    "r" | "br" | "cr" if at(i + hashes) == '"' => i = raw_string_end(&chars, i + hashes, hashes),
                    _ => out.push(word),
                }
            }
            ':' if at(i + 1) == ':' => {
                out.push("::".to_owned());
                i += 2;
            }
            c => {
                if !c.is_whitespace() {
                    out.push(c.to_string());
                }
                i += 1;
            }
        }
    }
    out
}

/// Behind the string that begins at `quote`.
fn string_end(chars: &[char], quote: usize) -> usize {
    let mut i = quote + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// Behind the raw string whose quote, after `hashes` hashes, is at `quote`.
fn raw_string_end(chars: &[char], quote: usize, hashes: usize) -> usize {
    let mut i = quote + 1;
    while i < chars.len() {
        if chars[i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return i + 1 + hashes;
        }
        i += 1;
    }
    i
}

/// The words that follow `tokens[at]`, which ends in `::`: one, or the first of each path in braces.
fn heads(tokens: &[Token], at: usize) -> Vec<&str> {
    match tokens.get(at).map(String::as_str) {
        Some("{") => {
            let (mut depth, mut begins, mut out) = (1, true, Vec::new());
            for token in &tokens[at + 1..] {
                match token.as_str() {
                    "{" => depth += 1,
                    "}" if depth == 1 => break,
                    "}" => depth -= 1,
                    "," if depth == 1 => begins = true,
                    word if depth == 1 && begins => {
                        out.push(word);
                        begins = false;
                    }
                    _ => {}
                }
            }
            out
        }
        Some(word) => vec![word],
        None => Vec::new(),
    }
}

/// What is wrong with the paths that a file of `src` names. `module` is the file's path below `src` without `.rs` and
/// `mod`.
fn wrong_edges(module: &[&str], text: &str) -> Vec<String> {
    let layer = module.first().copied().unwrap_or("lib");
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
        return vec![format!("{layer} is no layer")];
    };
    let tokens = tokens(text);
    let mut wrong = Vec::new();
    let mut check = |target: &str| {
        if target == layer || target == "self" || allowed.contains(&target) {
            return;
        }
        let known = LAYERS.iter().any(|(name, _)| *name == target) || CRATES.iter().any(|(_, name, _)| *name == target);
        wrong.push(if known {
            format!("{layer} -> {target}")
        } else {
            format!("{layer} -> {target}, which is no layer")
        });
    };
    // Inline modules that are open, by the depth of their braces.
    let (mut depth, mut inline) = (0, Vec::new());
    for (i, token) in tokens.iter().enumerate() {
        let next = |n: usize| tokens.get(i + n).map(String::as_str);
        let begins = i.checked_sub(1).is_none_or(|before| tokens[before] != "::");
        match token.as_str() {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inline.retain(|open| *open < depth);
            }
            "mod" if next(2) == Some("{") => inline.push(depth),
            "crate" | "bornite" if begins && next(1) == Some("::") => {
                heads(&tokens, i + 2).into_iter().for_each(&mut check)
            }
            "super" if begins => {
                let supers = tokens[i..].chunks(2).take_while(|pair| pair[0] == "super").count();
                if supers >= module.len() + inline.len() && next(2 * supers - 1) == Some("::") {
                    heads(&tokens, i + 2 * supers).into_iter().for_each(&mut check);
                }
            }
            name if name != "bornite" && CRATES.iter().any(|(_, other, _)| *other == name) => check(name),
            _ => {}
        }
    }
    wrong
}

/// Our other crates that a file names though its crate, `CRATES[at]`, must not.
fn wrong_crates(at: usize, text: &str) -> Vec<String> {
    let (_, own, allowed) = CRATES[at];
    let tokens = tokens(text);
    let names = CRATES.iter().map(|(_, name, _)| *name).filter(|name| *name != own && !allowed.contains(name));
    names.filter(|name| tokens.iter().any(|t| t == name)).map(|name| format!("{own} -> {name}")).collect()
}

/// Our other crates that a Cargo.toml depends on, in any of its tables, though it must not.
fn wrong_dependencies(at: usize, manifest: &str) -> Vec<String> {
    let (_, own, allowed) = CRATES[at];
    let manifest: toml::Table = manifest.parse().expect("a Cargo.toml");
    let tables = ["dependencies", "dev-dependencies", "build-dependencies"];
    let names = tables.iter().filter_map(|table| manifest.get(*table)?.as_table()).flat_map(toml::Table::keys);
    names
        .map(|name| name.replace('-', "_"))
        .filter(|name| name != own && !allowed.contains(&name.as_str()))
        .filter(|name| CRATES.iter().any(|(_, other, _)| other == name))
        .map(|name| format!("{own} -> {name}"))
        .collect()
}

/// What is wrong with a file wherever it is: `path` from the root of the repository.
fn wrong_file(path: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let allowed = UNSAFE_IN.iter().any(|(prefix, _)| path.starts_with(prefix));
    if !allowed && tokens(text).iter().any(|token| token == "unsafe") {
        wrong.push(format!("{path} has unsafe code; see UNSAFE_IN"));
    }
    let lines = text.lines().count();
    if lines > LINES_MAX && !LONG_FILES.iter().any(|(long, _)| *long == path) {
        wrong.push(format!("{path} has {lines} lines: look for the second thing that it does; see LONG_FILES"));
    }
    wrong
}

/// The functions of `text` that name one of `calls`, once for each time.
fn functions_that_call(text: &str, calls: &[&str]) -> Vec<String> {
    let (mut function, mut found) = (String::new(), Vec::new());
    let tokens = tokens(text);
    for (i, token) in tokens.iter().enumerate() {
        // The type of a function pointer has no name.
        if token == "fn" && tokens.get(i + 1).is_some_and(|name| name != "(") {
            function.clone_from(&tokens[i + 1]);
        } else if calls.contains(&token.as_str()) {
            found.push(function.clone());
        }
    }
    found
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust files below `dir`, with their paths from the root of the repository.
fn rust_files(dir: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![repository().join(dir)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            open.extend(entries.map(|entry| entry.unwrap().path()).filter(|path| !path.ends_with("target")));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(repository()).unwrap().to_str().unwrap().to_owned();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// The module that a file of `src` is.
fn module_of(path: &str) -> Vec<&str> {
    let path = path.strip_prefix("src/").and_then(|path| path.strip_suffix(".rs")).expect("a file of src");
    path.split('/').filter(|part| *part != "mod").collect()
}

#[test]
fn layers_point_one_way() {
    let files = rust_files("src");
    for (layer, _) in LAYERS {
        assert!(files.iter().any(|(path, _)| module_of(path)[0] == layer), "layer {layer} has no files");
    }
    // lib.rs declares the layers and names nothing of them.
    let wrong: Vec<String> = files
        .iter()
        .filter(|(path, _)| path != "src/lib.rs")
        .flat_map(|(path, text)| {
            wrong_edges(&module_of(path), text).into_iter().map(move |edge| format!("{path}: {edge}"))
        })
        .collect();
    assert!(wrong.is_empty(), "edges that must not be:\n{}", wrong.join("\n"));
}

#[test]
fn crates_know_what_they_may() {
    for (at, (folder, name, _)) in CRATES.iter().enumerate() {
        let manifest = fs::read_to_string(repository().join(folder).join("Cargo.toml")).unwrap();
        assert_eq!(wrong_dependencies(at, &manifest), [""; 0], "Cargo.toml of {name}");
        if folder.is_empty() {
            continue;
        }
        for (path, text) in rust_files(folder) {
            // The folder of a crate may hold another crate.
            let inner = CRATES.iter().any(|(other, _, _)| other.len() > folder.len() && path.starts_with(other));
            if !inner {
                assert_eq!(wrong_crates(at, &text), [""; 0], "{path}");
            }
        }
    }
}

#[test]
fn unsafe_code_and_long_files_are_where_they_may_be() {
    let files: Vec<(String, String)> =
        ["src", "fabric", "fuse", "bench", "tests", "build.rs"].into_iter().flat_map(rust_files).collect();
    assert!(files.len() > 50, "only {} files found", files.len());
    let wrong: Vec<String> = files.iter().flat_map(|(path, text)| wrong_file(path, text)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (path, _) in LONG_FILES {
        assert!(files.iter().any(|(file, _)| file == path), "LONG_FILES lists {path}, which does not exist");
    }
}

#[test]
fn the_tests_that_pages_name_exist() {
    // As `file::name`, a test of tests/file.rs.
    for page in ["docs/SEMANTICS.md"] {
        let text = fs::read_to_string(repository().join(page)).unwrap();
        let named: Vec<(&str, &str)> =
            text.split('`').skip(1).step_by(2).filter_map(|code| code.split_once("::")).collect();
        assert!(named.len() > 10, "{page} names {} tests", named.len());
        for (file, name) in named {
            let tests = fs::read_to_string(repository().join(format!("tests/{file}.rs"))).unwrap_or_default();
            assert!(tests.contains(&format!("#[test]\nfn {name}() {{")), "{page}: there is no test {file}::{name}");
        }
    }
}

#[test]
fn only_the_notify_thread_invalidates() {
    let callers: Vec<(String, String)> = rust_files("src")
        .into_iter()
        .flat_map(|(path, text)| {
            functions_that_call(&text, &INVALIDATIONS).into_iter().map(move |function| (path.clone(), function))
        })
        .collect();
    assert!(!callers.is_empty(), "nobody invalidates: INVALIDATIONS has old names");
    for (path, function) in callers {
        assert!(NOTIFY_FUNCTIONS.contains(&function.as_str()), "{path}: {function} invalidates; see NOTIFY_FUNCTIONS");
    }
    let text =
        "fn a() { b.invalidate_inode(1) } fn c(d: fn()) { /* e.invalidate_inode(2) */ f.invalidate_entry(3, g) }";
    assert_eq!(functions_that_call(text, &INVALIDATIONS), ["a", "c"]);
}

#[test]
fn wrong_edges_are_found() {
    let edges = |module: &[&str], text: &str| wrong_edges(module, text);
    let core: &[&str] = &["core", "node"];
    assert_eq!(edges(core, "use crate::runtime::Daemon;"), ["core -> runtime"]);
    assert_eq!(
        edges(core, "use crate::{cache::types::{Attr, Ino}, core::wire, observe::Counter};"),
        ["core -> observe"]
    );
    assert_eq!(edges(core, "fn f() -> crate::job::Book { todo!() }"), ["core -> job"]);
    assert_eq!(edges(core, "use super::super::sim;"), ["core -> sim"]);
    assert_eq!(edges(core, "use super::{flight, peer::Parent};"), [""; 0]);
    assert_eq!(edges(core, "pub(crate) use bornite::cli::main;"), ["core -> cli"]);
    assert_eq!(edges(core, "use bornite_fuse::Session;"), ["core -> bornite_fuse"]);
    assert_eq!(edges(core, "use crate::Nothing;"), ["core -> Nothing, which is no layer"]);
    assert_eq!(edges(core, "mod t { use super::super::super::job; }"), ["core -> job"]);
    assert_eq!(edges(core, "mod t { use super::super::serve; }"), [""; 0], "an inline module is one deeper");
    assert_eq!(edges(core, "mod t {} use super::super::job;"), ["core -> job"], "and ends");
    assert_eq!(edges(&["observe"], "use super::job;"), ["observe -> job"]);
    assert_eq!(edges(&["cache", "arena"], "use crate::core::Node;"), ["cache -> core"]);
    assert_eq!(edges(&["runtime", "x"], "use libfabric_sys::fi_getinfo;"), ["runtime -> libfabric_sys"]);
    assert_eq!(edges(&["elsewhere"], ""), ["elsewhere is no layer"]);
    // What is said in comments and texts is no edge.
    let said = r##"
        // crate::job
        /* crate::job /* nested */ crate::job */
        //! [`crate::job`]
        const A: &str = "crate::job \" crate::job";
        const B: &str = r#"crate::job " crate::job"#;
        const C: [char; 3] = ['"', '\'', '\\'];
        fn f<'a>(x: &'a str) -> crate::cache::types::Ino { crate::core::f::<'a>(x) }
    "##;
    assert_eq!(edges(core, said), [""; 0]);
    assert_eq!(edges(core, &format!("{said} use crate::job;")), ["core -> job"], "code after all that is read");
}

#[test]
fn wrong_crates_unsafe_code_and_long_files_are_found() {
    let fuse = CRATES.iter().position(|(folder, _, _)| *folder == "fuse").unwrap();
    assert_eq!(wrong_crates(fuse, "use bornite_fabric::Port; // bornite"), ["bornite_fuse -> bornite_fabric"]);
    assert_eq!(wrong_crates(fuse, "use bornite::cache;"), ["bornite_fuse -> bornite"]);
    let manifest = "[dependencies]\nlog = \"1\"\n[dev-dependencies]\nlibfabric-sys.workspace = true\n";
    assert_eq!(wrong_dependencies(fuse, manifest), ["bornite_fuse -> libfabric_sys"]);
    let root = CRATES.iter().position(|(folder, _, _)| folder.is_empty()).unwrap();
    assert_eq!(wrong_dependencies(root, manifest), ["bornite -> libfabric_sys"]);

    assert_eq!(wrong_file("src/core/node.rs", "fn f() { unsafe { g() } }").len(), 1);
    assert_eq!(
        wrong_file("src/core/node.rs", "#![deny(unsafe_code)] // unsafe\nlet unsafe_because = \"unsafe\";").len(),
        0
    );
    assert_eq!(wrong_file("fabric/src/port/mod.rs", "fn f() { unsafe { g() } }").len(), 0);
    assert_eq!(wrong_file("src/core/node.rs", &"\n".repeat(LINES_MAX)).len(), 0);
    assert_eq!(wrong_file("src/core/node.rs", &"\n".repeat(LINES_MAX + 1)).len(), 1);
    assert_eq!(module_of("src/core/node.rs"), ["core", "node"]);
    assert_eq!(module_of("src/core/mod.rs"), ["core"]);
}
