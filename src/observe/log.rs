//! The daemon's log: a [`log::Log`] with the line form `2026-03-27 23-33-57.994 [Info] (function) text`.
//!
//! Installed once by the command line before any thread starts. Lines go to standard error, to a file, or to both:
//! standard error and not standard output, because standard output carries results (`--print-config`, the line by which
//! a daemon tells its launcher that it is mounted). Each line is one write, so lines of several threads never mix.
//! Times are UTC. Nothing here ever fails a request: a line that cannot be written is lost.
//!
//! A file is made when its first line is written: thousands of quiet daemons must not make thousands of empty files. That it can be
//! made is looked at before.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::fs::{Access, AtFlags, CWD};

/// Target of records that end the daemon: `log::error!(target: FATAL, …)`. They alone pass at level 1.
pub const FATAL: &str = "fatal";

/// Targets whose records are for debugging, whatever level they claim.
const QUIET: &str = "fuser";

/// How much is logged: 0 none, 1 fatal, 2 errors, 3 warnings, 4 information, 5 debugging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Verbosity(u8);

impl Verbosity {
    /// The verbosity of a number from 0 to 5; `None` beyond.
    pub fn new(level: u8) -> Option<Verbosity> {
        (level <= 5).then_some(Verbosity(level))
    }

    fn filter(self) -> LevelFilter {
        match self.0 {
            0 => LevelFilter::Off,
            1 | 2 => LevelFilter::Error,
            3 => LevelFilter::Warn,
            4 => LevelFilter::Info,
            _ => LevelFilter::Debug,
        }
    }

    fn admits(self, metadata: &Metadata<'_>) -> bool {
        // The FUSE library says as an error that the kernel took back a request: that is no fault of anybody's.
        let level = if metadata.target().starts_with(QUIET) { Level::Debug } else { metadata.level() };
        level <= self.filter() && (self.0 != 1 || metadata.target() == FATAL)
    }
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogSink {
    /// Standard error.
    Stderr,
    /// A file, made if need be when the first line comes, and appended to.
    File(PathBuf),
    /// Standard error and a file.
    Both(PathBuf),
}

/// What to log and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSpec {
    /// How much.
    pub verbosity: Verbosity,
    /// Where to.
    pub sink: LogSink,
}

/// Installs the process's logger and a panic hook that logs the panic as fatal.
///
/// # Errors
/// The file cannot be opened, or no file can be made in its directory, which is made if need be (the error names it); a logger is
/// already installed.
pub fn install(spec: &LogSpec) -> io::Result<()> {
    let (stderr, path) = match &spec.sink {
        LogSink::Stderr => (true, None),
        LogSink::File(path) => (false, Some(path)),
        LogSink::Both(path) => (true, Some(path)),
    };
    let logger = Logger { verbosity: spec.verbosity, stderr, file: path.map(|path| LogFile::new(path)).transpose()? };
    log::set_boxed_logger(Box::new(logger)).map_err(|_| io::Error::other("a logger is already installed"))?;
    log::set_max_level(spec.verbosity.filter());
    // A panic must be seen whatever the log leaves out.
    let logged_to_stderr = stderr && spec.verbosity >= Verbosity(1);
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        log::error!(target: FATAL, "{panic}");
        if !logged_to_stderr {
            previous(panic);
        }
    }));
    Ok(())
}

/// A file that is there from its first line on.
struct LogFile {
    path: PathBuf,
    /// None inside: it could not be made.
    file: OnceLock<Option<File>>,
}

impl LogFile {
    fn new(path: &Path) -> io::Result<LogFile> {
        let failed = |error: io::Error| {
            io::Error::new(error.kind(), format!("log file {}: {error}; name another --output-dir", path.display()))
        };
        let dir = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(dir).map_err(failed)?;
        match std::fs::symlink_metadata(path) {
            // What is there already is appended to; nothing is lost by opening it now.
            Ok(_) => {
                let file = OpenOptions::new().append(true).open(path).map_err(failed)?;
                Ok(LogFile { path: path.to_path_buf(), file: OnceLock::from(Some(file)) })
            }
            Err(_) => {
                let may = Access::WRITE_OK | Access::EXEC_OK;
                rustix::fs::accessat(CWD, dir, may, AtFlags::EACCESS).map_err(|errno| failed(errno.into()))?;
                Ok(LogFile { path: path.to_path_buf(), file: OnceLock::new() })
            }
        }
    }

    fn write(&self, line: &[u8]) {
        let file = self.file.get_or_init(|| OpenOptions::new().create(true).append(true).open(&self.path).ok());
        if let Some(mut file) = file.as_ref() {
            let _ = file.write_all(line);
        }
    }
}

struct Logger {
    verbosity: Verbosity,
    stderr: bool,
    file: Option<LogFile>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.verbosity.admits(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = format_line(record, SystemTime::now());
        if self.stderr {
            let _ = io::stderr().lock().write_all(line.as_bytes());
        }
        if let Some(file) = &self.file {
            file.write(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

fn format_line(record: &Record<'_>, now: SystemTime) -> String {
    let label = match record.level() {
        log::Level::Error if record.target() == FATAL => "Fatal",
        log::Level::Error => "Error",
        log::Level::Warn => "Warning",
        log::Level::Info => "Info",
        log::Level::Debug | log::Level::Trace => "Debug",
    };
    let place = record.module_path().unwrap_or_else(|| record.target());
    let place = place.strip_prefix("bornite::").unwrap_or(place);
    let text = record.args().to_string();
    // One record is one line whatever its text holds, or a path with a line feed could forge a line.
    let text: String = text.trim_end().chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect();
    format!("{} [{label}] ({place}) {text}\n", timestamp(now))
}

/// `2026-03-27 23-33-57.994` in UTC. Times before 1970 print as 1970.
fn timestamp(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (year, month, day) = civil_from_days((seconds / 86_400) as i64);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}-{minute:02}-{second:02}.{:03}", since.subsec_millis())
}

/// Year, month and day of a count of days since 1970-01-01 in the proleptic Gregorian calendar.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    // Years are counted from 0000-03-01, so that the leap day is a year's last; 719,468 days lie before 1970.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64, millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis)
    }

    #[test]
    fn timestamps_of_known_moments() {
        // Values of date -u -d @SECONDS.
        assert_eq!(timestamp(at(0, 0)), "1970-01-01 00-00-00.000");
        assert_eq!(timestamp(at(951_782_399, 999)), "2000-02-28 23-59-59.999");
        assert_eq!(timestamp(at(951_782_400, 0)), "2000-02-29 00-00-00.000");
        assert_eq!(timestamp(at(1_774_654_437, 994)), "2026-03-27 23-33-57.994");
        assert_eq!(timestamp(at(4_107_542_400, 1)), "2100-03-01 00-00-00.001");
        assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01 00-00-00.000");
    }

    #[test]
    fn lines_have_the_documented_form() {
        let line = |level: Level, target: &str, module: Option<&'static str>, text: &str| {
            let record = Record::builder()
                .level(level)
                .target(target)
                .module_path_static(module)
                .args(format_args!("{text}"))
                .build()
                .metadata()
                .level();
            assert_eq!(record, level);
            format_line(
                &Record::builder()
                    .level(level)
                    .target(target)
                    .module_path_static(module)
                    .args(format_args!("{text}"))
                    .build(),
                at(1_774_654_437, 994),
            )
        };
        assert_eq!(
            line(Level::Info, "x", Some("bornite::runtime::engine"), "provider registration completed after 5 us"),
            "2026-03-27 23-33-57.994 [Info] (runtime::engine) provider registration completed after 5 us\n"
        );
        assert_eq!(
            line(Level::Error, FATAL, Some("bornite"), "gone"),
            "2026-03-27 23-33-57.994 [Fatal] (bornite) gone\n"
        );
        assert_eq!(line(Level::Warn, "fuse", None, "a\nb"), "2026-03-27 23-33-57.994 [Warning] (fuse) a b\n");
    }

    #[test]
    fn levels_admit_what_copper_users_expect() {
        let admits = |verbosity: u8, level: Level, target: &str| {
            Verbosity::new(verbosity).unwrap().admits(&Metadata::builder().level(level).target(target).build())
        };
        assert!(!admits(0, Level::Error, FATAL));
        assert!(admits(1, Level::Error, FATAL));
        assert!(!admits(1, Level::Error, "x"));
        assert!(admits(2, Level::Error, "x") && !admits(2, Level::Warn, "x"));
        assert!(admits(3, Level::Warn, "x") && !admits(3, Level::Info, "x"));
        assert!(!admits(4, Level::Error, "fuser::reply") && admits(5, Level::Error, "fuser::reply"));
        assert!(admits(4, Level::Info, "x") && !admits(4, Level::Debug, "x"));
        assert!(admits(5, Level::Debug, "x"));
        assert!(Verbosity::new(6).is_none());
    }

    #[test]
    fn a_file_that_cannot_be_made_is_named_at_the_start() {
        let refused = |path: &str| LogFile::new(Path::new(path)).err().expect("refused").to_string();
        for path in ["/proc/no-such-directory/x.log", "/dev/null/x.log"] {
            let error = refused(path);
            assert!(error.contains(&format!("log file {path}: ")) && error.contains("--output-dir"), "{error}");
        }
    }

    #[test]
    fn a_file_is_made_by_its_first_line() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("logs/n1-7.log");
        let file = LogFile::new(&path).unwrap();
        assert!(path.parent().unwrap().is_dir() && !path.exists());
        file.write(b"one\n");
        file.write(b"two\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        // One that is there is appended to.
        LogFile::new(&path).unwrap().write(b"three\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\nthree\n");
    }
}
