//! The arguments of Copper's programs `cu_fuse` and `cu_fuse_shutdown` in our words.
//!
//! Called by [`super::called_as`]. It only reads arguments; what they mean is decided by `mount` and `stop`. docs/COPPER.md
//! has the same table for users. An option is never dropped in silence: what has no meaning here gets a line.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::args::{ENOENT_TTL_MS, LOG_LEVEL, TREES, number};
use super::called_as::Translated;

/// What `cu_fuse` takes where it is not told: other values than ours.
const LOG_LEVEL_DEFAULT: &str = "0";
const ENOENT_TTL_MS_DEFAULT: &str = "100";

/// Options of `cu_fuse` with a number that have no meaning here: why not, for the note.
const NUMBERS_WITHOUT_EFFECT: [(&str, &str); 5] = [
    ("-es", "requests of other nodes do not wait for threads"),
    ("-max_cacheable_byte_size", "files of any size are cached"),
    ("-addr_write_sync_time", "no node waits for the addresses of others"),
    ("-profile_top_n", NO_PROFILE),
    ("-profile_snapshot_interval_s", NO_PROFILE),
];

/// The same without a value.
const FLAGS_WITHOUT_EFFECT: [(&str, &str); 3] = [
    ("-profile_metrics", NO_PROFILE),
    ("-profile_paths_full", NO_PROFILE),
    ("-s", "--fuse-threads of `bornite mount` is the number of threads"),
];

const NO_PROFILE: &str = "profiles are not written; `bornite stats` has the counters";

/// What one command line of `cu_fuse` says.
#[derive(Default)]
struct CuFuse {
    target: Option<OsString>,
    view: Option<OsString>,
    positional: Option<OsString>,
    log_level: Option<String>,
    log_type: Option<String>,
    output_dir: Option<OsString>,
    enoent_ttl_ms: Option<String>,
    node_file: Option<OsString>,
    book: Option<OsString>,
    is_filtered: bool,
    trees: Option<String>,
    net: Option<String>,
    foreground: bool,
    allow_other: bool,
    help: bool,
    version: bool,
    notes: Vec<String>,
}

/// `cu_fuse` is `bornite mount`.
///
/// # Errors
/// What is wrong with the arguments, naming the option.
pub(super) fn cu_fuse(arguments: Vec<OsString>) -> Result<Translated, String> {
    CuFuse::parse(arguments)?.translated()
}

impl CuFuse {
    fn parse(arguments: Vec<OsString>) -> Result<CuFuse, String> {
        let mut said = CuFuse::default();
        let mut rest = arguments.into_iter();
        while let Some(argument) = rest.next() {
            if !argument.as_encoded_bytes().starts_with(b"-") {
                if let Some(other) = said.positional.replace(argument) {
                    let (first, then) = (other.display(), said.positional.unwrap_or_default());
                    return Err(format!("cu_fuse: {first} and {} are two mount points: give one", then.display()));
                }
                continue;
            }
            let option = argument.to_string_lossy().into_owned();
            said.option(&option, &mut || {
                let value = rest.next().filter(|value| !value.is_empty());
                value.ok_or_else(|| format!("cu_fuse: {option} needs a value"))
            })?;
        }
        Ok(said)
    }

    /// Takes one option, and its value where it has one.
    fn option(&mut self, option: &str, value: &mut dyn FnMut() -> Result<OsString, String>) -> Result<(), String> {
        let wrong = |why: String| format!("cu_fuse: {option}: {why}");
        let text = |value: OsString| value.into_string().map_err(|_| wrong("it is not valid UTF-8".to_owned()));
        let within = |value: OsString, range| {
            let value = text(value)?;
            number(range)(&value).map_err(wrong)?;
            Ok::<String, String>(value)
        };
        match option {
            "-tpath" => self.target = Some(value()?),
            "-vpath" => self.view = Some(value()?),
            "-log_output_dir" => self.output_dir = Some(value()?),
            "-nf" => self.node_file = Some(value()?),
            "-facility_address_book" => self.book = Some(value()?),
            "-log_level" => self.log_level = Some(within(value()?, LOG_LEVEL)?),
            "-md_enoent_ttl_ms" => self.enoent_ttl_ms = Some(within(value()?, ENOENT_TTL_MS)?),
            "-trees" => self.trees = Some(within(value()?, TREES)?),
            "-log_type" => match text(value()?)?.as_str() {
                known @ ("file" | "stdout" | "file_and_stdout") => self.log_type = Some(known.to_owned()),
                _ => return Err(wrong("it must be file, stdout or file_and_stdout".to_owned())),
            },
            "-prefiltered_address_book" => match text(value()?)?.as_str() {
                "0" => self.is_filtered = false,
                "1" => self.is_filtered = true,
                _ => return Err(wrong("it must be 0 or 1".to_owned())),
            },
            "-net_type" => match text(value()?)?.as_str() {
                "na+sm" => {
                    self.note(option, "is taken for shm, the shared memory of libfabric");
                    self.net = Some("shm".to_owned());
                }
                net => self.net = Some(net.to_owned()),
            },
            "-f" => self.foreground = true,
            "-o" => self.fuse_options(&text(value()?)?),
            "-h" | "-help" | "--help" => self.help = true,
            "-V" | "--version" => self.version = true,
            other => {
                let known = |(name, _): &&(&str, &str)| *name == other;
                if let Some((_, why)) = FLAGS_WITHOUT_EFFECT.iter().find(known) {
                    self.note(option, &format!("has no effect: {why}"));
                } else if let Some((_, why)) = NUMBERS_WITHOUT_EFFECT.iter().find(known) {
                    let value = within(value()?, 0..=u64::MAX)?;
                    self.note(&format!("{option} {value}"), &format!("has no effect: {why}"));
                } else if let Some(options) = other.strip_prefix("-o").filter(|rest| !rest.starts_with('-')) {
                    self.fuse_options(options);
                } else {
                    let next = "docs/COPPER.md has the options, `cu_fuse --help` those of `bornite mount`";
                    return Err(format!("cu_fuse: there is no option {option}; {next}"));
                }
            }
        }
        Ok(())
    }

    /// The options of libfuse's `-o`.
    fn fuse_options(&mut self, options: &str) {
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "allow_other" => self.allow_other = true,
                // As every mount here is.
                "ro" | "default_permissions" => {}
                other => self.note(&format!("-o {other}"), "has no effect: this mount has its own options"),
            }
        }
    }

    fn note(&mut self, what: &str, note: &str) {
        self.notes.push(format!("cu_fuse: {what} {note}"));
    }

    fn translated(mut self) -> Result<Translated, String> {
        if self.help || self.version {
            let words: &[&str] = if self.help { &["mount", "--help"] } else { &["--version"] };
            return Ok(Translated { words: words.iter().map(OsString::from).collect(), notes: self.notes });
        }
        let view = match (self.view.take(), self.positional.take()) {
            (Some(view), Some(other)) if Path::new(&view) != Path::new(&other) => {
                let (view, other) = (view.display(), other.display());
                return Err(format!("cu_fuse: -vpath {view} and {other} are two mount points: give one"));
            }
            (Some(view), _) => view,
            (None, _) => return Err("cu_fuse: -vpath is missing; name the mount point with -vpath DIR".to_owned()),
        };
        let mut words: Vec<OsString> = vec!["mount".into()];
        if !self.foreground {
            words.push("--daemon".into());
        }
        let mut add = |flag: &str, value: Option<OsString>| {
            if let Some(value) = value {
                words.extend([flag.into(), value]);
            }
        };
        let log_type = log_type(&mut self)?;
        // Of a book that is the job's own, the node file says nothing more.
        let node_file = self.node_file.filter(|_| !self.is_filtered);
        if let (Some(file), None) = (&node_file, &self.book) {
            return Err(format!(
                "cu_fuse: -nf {} picks nodes of an address book, and there is none: add -facility_address_book FILE (`bornite book \
                 discover` makes one)",
                file.display()
            ));
        }
        add("--target", Some(self.target.unwrap_or_else(|| "/".into())));
        add("--address-book", self.book);
        add("--nodefile", node_file);
        add("--net", self.net.map(OsString::from));
        add("--enoent-ttl-ms", Some(self.enoent_ttl_ms.unwrap_or_else(|| ENOENT_TTL_MS_DEFAULT.to_owned()).into()));
        add("--trees", self.trees.map(OsString::from));
        add("--log-level", Some(self.log_level.unwrap_or_else(|| LOG_LEVEL_DEFAULT.to_owned()).into()));
        add("--log-type", log_type.map(OsString::from));
        add("--output-dir", self.output_dir);
        if self.allow_other {
            words.push("--allow-other".into());
        }
        words.extend(["--".into(), view]);
        Ok(Translated { words, notes: self.notes })
    }
}

/// Where to log: files need a directory, and in the background there is nothing but files.
fn log_type(said: &mut CuFuse) -> Result<Option<&'static str>, String> {
    let has_dir = said.output_dir.is_some();
    let file = || if has_dir { Some("file") } else { None };
    match (said.log_type.as_deref(), said.foreground) {
        (Some("file"), _) if !has_dir => {
            Err("cu_fuse: -log_type file needs a directory: add -log_output_dir DIR".to_owned())
        }
        (Some("file"), _) => Ok(Some("file")),
        (Some("stdout"), true) => Ok(Some("stdout")),
        (_, true) => Ok(Some(if has_dir { "both" } else { "stdout" })),
        (None, false) => Ok(file()),
        (Some(asked), false) => {
            let what = format!("-log_type {asked}");
            let logs = if has_dir { "logs go to files" } else { "-log_output_dir DIR gives logs" };
            said.note(&what, &format!("has no standard output in the background, without -f: {logs}"));
            Ok(file())
        }
    }
}

/// `cu_fuse_shutdown` is `bornite stop`. Copper's takes `SECONDS LOGS`; here `-vpath DIR` names the mount as well.
///
/// # Errors
/// What is wrong with the arguments, naming the option.
pub(super) fn cu_fuse_shutdown(arguments: Vec<OsString>) -> Result<Translated, String> {
    const USAGE: &str = "cu_fuse_shutdown SECONDS LOG_DIRECTORY, or cu_fuse_shutdown -vpath MOUNT_POINT";
    let mut notes = Vec::new();
    let mut words: Vec<OsString> = vec!["stop".into()];
    let named: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
    match named[..] {
        [option] if option == "-h" || option == "--help" => words.push("--help".into()),
        [option, view] if option == "-vpath" && !view.is_empty() => words.extend(["--".into(), view.into()]),
        [option] if option == "-vpath" => return Err("cu_fuse_shutdown: -vpath needs a value".to_owned()),
        [seconds, dir] if !seconds.as_encoded_bytes().starts_with(b"-") && !dir.is_empty() => {
            let seconds = seconds.to_string_lossy();
            let seconds = number(0..=u64::from(u32::MAX))(&seconds)
                .map_err(|why| format!("cu_fuse_shutdown: SECONDS {}: {why}", seconds.escape_debug()))?;
            if seconds > 0 {
                notes.push(format!(
                    "cu_fuse_shutdown: the {seconds} s are not waited for: the daemons answer what they were asked, and end"
                ));
            }
            // The directory of the book, which is the job's `logs`.
            let dir = Path::new(dir);
            let job = if dir.ends_with("logs") { dir.parent().unwrap_or(dir) } else { dir };
            words.extend(["--output-dir".into(), job.into()]);
        }
        [option, ..] if option.as_encoded_bytes().starts_with(b"-") && option != "-vpath" => {
            return Err(format!("cu_fuse_shutdown: there is no option {}; {USAGE}", option.display()));
        }
        _ => return Err(format!("cu_fuse_shutdown: what is to be stopped? {USAGE}")),
    }
    Ok(Translated { words, notes })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Cli, Command, LogType, MountArgs};
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    fn mount(line: &str) -> (MountArgs, Vec<String>) {
        let translated = cu_fuse(words(line)).unwrap();
        let words = std::iter::once("cu_fuse".into()).chain(translated.words);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Mount(args) => (args, translated.notes),
            other => panic!("{other:?}"),
        }
    }

    fn refused(line: &str) -> String {
        cu_fuse(words(line)).unwrap_err()
    }

    #[test]
    fn the_line_of_their_launch_script_is_understood() {
        let (args, notes) = mount(
            "-tpath /sw -vpath /tmp/u/copper -log_level 4 -log_type file -log_output_dir /logs/12 -net_type cxi://cxi1 -trees 2 \
             -nf /logs/12/logs/node_file.txt -max_cacheable_byte_size 10485760 -md_enoent_ttl_ms 2000 -profile_metrics \
             -profile_top_n 20 -profile_paths_full -profile_snapshot_interval_s 30 -facility_address_book /book \
             -prefiltered_address_book 1 -es 2 -addr_write_sync_time 5 -s /tmp/u/copper",
        );
        assert_eq!(args.mountpoint.as_deref(), Some(Path::new("/tmp/u/copper")));
        assert_eq!(args.address_book.as_deref(), Some(Path::new("/book")));
        assert_eq!(args.output_dir.as_deref(), Some(Path::new("/logs/12")));
        assert_eq!((args.log_type, args.daemon, args.nodefile), (Some(LogType::File), true, None));
        let options = args.daemon_options;
        assert_eq!((options.target.as_deref(), options.net.as_deref()), (Some(Path::new("/sw")), Some("cxi://cxi1")));
        assert_eq!((options.log_level, options.trees, options.enoent_ttl_ms), (Some(4), Some(2), Some(2000)));
        let noted: Vec<&str> = notes.iter().filter_map(|note| note.split(' ').nth(1)).collect();
        assert_eq!(
            noted,
            [
                "-max_cacheable_byte_size",
                "-profile_metrics",
                "-profile_top_n",
                "-profile_paths_full",
                "-profile_snapshot_interval_s",
                "-es",
                "-addr_write_sync_time",
                "-s"
            ]
        );
        assert!(notes.iter().all(|note| note.contains(" has no effect: ") && !note.contains('\n')), "{notes:?}");
    }

    #[test]
    fn what_is_not_said_is_as_there() {
        let (args, notes) = mount("-vpath /m");
        let options = args.daemon_options;
        assert_eq!(options.target.as_deref(), Some(Path::new("/")));
        assert_eq!((options.log_level, options.enoent_ttl_ms), (Some(0), Some(100)));
        assert_eq!((args.daemon, args.log_type, options.net, options.trees), (true, None, None, None));
        assert_eq!(notes, [""; 0]);
    }

    #[test]
    fn books_that_are_not_the_jobs_own_are_filtered() {
        let (args, _) = mount("-f -vpath /m -nf /nodes -facility_address_book /book");
        assert_eq!(args.nodefile.as_deref(), Some(Path::new("/nodes")));
        let (args, _) = mount("-f -vpath /m -nf /nodes -facility_address_book /book -prefiltered_address_book 0");
        assert_eq!((args.nodefile.as_deref(), args.daemon), (Some(Path::new("/nodes")), false));
    }

    #[test]
    fn logs_go_where_they_can() {
        let of = |line: &str| {
            let (args, notes) = mount(line);
            (args.log_type, notes.len())
        };
        assert_eq!(of("-f -vpath /m"), (Some(LogType::Stdout), 0));
        assert_eq!(of("-f -vpath /m -log_output_dir /l"), (Some(LogType::Both), 0));
        assert_eq!(of("-f -vpath /m -log_output_dir /l -log_type stdout"), (Some(LogType::Stdout), 0));
        assert_eq!(of("-vpath /m -log_output_dir /l"), (Some(LogType::File), 0));
        assert_eq!(of("-vpath /m -log_output_dir /l -log_type file_and_stdout"), (Some(LogType::File), 1));
        assert_eq!(of("-vpath /m -log_type stdout"), (None, 1));
        assert_eq!(
            refused("-vpath /m -log_type file"),
            "cu_fuse: -log_type file needs a directory: add -log_output_dir DIR"
        );
    }

    #[test]
    fn options_of_libfuse() {
        let (args, notes) = mount("-f -vpath /m -o allow_other,ro,fsname=x -oauto_unmount");
        assert!(args.daemon_options.allow_other && !args.daemon);
        assert_eq!(
            notes,
            [
                "cu_fuse: -o fsname=x has no effect: this mount has its own options",
                "cu_fuse: -o auto_unmount has no effect: this mount has its own options"
            ]
        );
        let (args, notes) = mount("-vpath /m -net_type na+sm");
        assert_eq!((args.daemon_options.net.as_deref(), notes.len()), (Some("shm"), 1));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, expected) in [
            ("", "cu_fuse: -vpath is missing; name the mount point with -vpath DIR"),
            ("/m", "cu_fuse: -vpath is missing; name the mount point with -vpath DIR"),
            ("-vpath", "cu_fuse: -vpath needs a value"),
            ("-vpath /m /n", "cu_fuse: -vpath /m and /n are two mount points: give one"),
            ("-vpath /m /m /n", "cu_fuse: /m and /n are two mount points: give one"),
            (
                "-vpath /m -nf /n",
                "cu_fuse: -nf /n picks nodes of an address book, and there is none: add -facility_address_book FILE (`bornite book \
                 discover` makes one)",
            ),
            ("-vpath /m -log_level 6", "cu_fuse: -log_level: 6 is not in 0 to 5"),
            ("-vpath /m -trees x", "cu_fuse: -trees: it must be a whole number from 1 to 1024"),
            ("-vpath /m -es many", "cu_fuse: -es: it must be a whole number from 0 to 18446744073709551615"),
            ("-vpath /m -log_type syslog", "cu_fuse: -log_type: it must be file, stdout or file_and_stdout"),
            ("-vpath /m -prefiltered_address_book yes", "cu_fuse: -prefiltered_address_book: it must be 0 or 1"),
        ] {
            assert_eq!(refused(line), expected, "{line}");
        }
        assert!(refused("-vpath /m -tree 2").starts_with("cu_fuse: there is no option -tree; "));
        assert!(refused("--vpath /m").starts_with("cu_fuse: there is no option --vpath; "));
    }

    #[test]
    fn a_shutdown_is_a_stop() {
        let stop = |line: &str| cu_fuse_shutdown(words(line));
        assert_eq!(stop("-vpath /m").unwrap().words, words("stop -- /m"));
        assert_eq!(stop("0 /logs/12/logs").unwrap().words, words("stop --output-dir /logs/12"));
        let waited = stop("5 /logs/12").unwrap();
        assert_eq!(waited.words, words("stop --output-dir /logs/12"));
        assert!(waited.notes[0].contains("the 5 s are not waited for"), "{:?}", waited.notes);
        assert!(stop("x /logs").unwrap_err().starts_with("cu_fuse_shutdown: SECONDS x: it must be a whole number"));
        assert!(stop("-all").unwrap_err().starts_with("cu_fuse_shutdown: there is no option -all; "));
        assert!(stop("-vpath").unwrap_err().contains("-vpath needs a value"));
        assert!(stop("").unwrap_err().starts_with("cu_fuse_shutdown: what is to be stopped? "));
    }
}
