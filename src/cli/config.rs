//! The configuration of a daemon: file, environment, options, in this order of weight.
//!
//! Used by `mount`. The three speak the same language: `enoent_ttl_ms = 2000` in `/etc/bornite/config.toml` (or the file
//! that `BORNITE_CONFIG` names), `BORNITE_ENOENT_TTL_MS=2000`, `--enoent-ttl-ms 2000`, all read by the same parser with
//! the same range. A name that is not known is an error, never ignored.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::args::{
    self, CLOCK_MARGIN_MS, DETECT_MS, ENOENT_TTL_MS, FANOUT, FUSE_THREADS, LOG_LEVEL, LogType, MountArgs,
    PassthroughMode, STRIPES, Switch, TREES, TTL_MS, number, parse_size,
};

/// The file that every daemon of a machine reads, if it exists.
const FILE: &str = "/etc/bornite/config.toml";
/// Names another file, which must exist.
const FILE_VARIABLE: &str = "BORNITE_CONFIG";
const VARIABLE_PREFIX: &str = "BORNITE_";

/// Every key, in the order in which `--print-config` shows them.
const KEYS: [&str; 25] = [
    "target",
    "address_book",
    "nodefile",
    "hostname",
    "secret_file",
    "listen_anywhere",
    "net",
    "enoent_ttl_ms",
    "cache_size",
    "names_size",
    "trees",
    "stripes",
    "fanout",
    "detect_ms",
    "attr_ttl_ms",
    "dir_ttl_ms",
    "clock_margin_ms",
    "complete_dirs",
    "foresight",
    "fuse_threads",
    "allow_other",
    "passthrough",
    "log_level",
    "log_type",
    "output_dir",
];

/// Variables of ours that are no settings: [`FILE_VARIABLE`], what a launch tells its command, and what testers set.
const OTHER_VARIABLES: [&str; 4] = [FILE_VARIABLE, "BORNITE_MOUNT", "BORNITE_NODES", "BORNITE_STRICT"];

/// Those of the names that look like our variables and are none: misspelled, most likely.
pub(super) fn unknown_variables(names: impl Iterator<Item = OsString>) -> Vec<String> {
    let key_of = |name: &str| name.strip_prefix(VARIABLE_PREFIX).map(str::to_ascii_lowercase);
    let unknown = |name: &String| {
        key_of(name).is_some_and(|key| !KEYS.contains(&key.as_str())) && !OTHER_VARIABLES.contains(&name.as_str())
    };
    names.filter_map(|name| name.into_string().ok()).filter(unknown).collect()
}

/// What is wrong with the configuration. Each text names the place and the key.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    #[error("configuration file {}: {why}", file.display())]
    File { file: PathBuf, why: String },
    #[error("configuration file {}: {key}: {why}", file.display())]
    FileKey { file: PathBuf, key: String, why: String },
    #[error("environment variable {variable}: {why}")]
    Variable { variable: String, why: String },
}

/// The effective values. `None` means that the default depends on more than the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) target: PathBuf,
    pub(super) address_book: Option<PathBuf>,
    pub(super) nodefile: Option<PathBuf>,
    pub(super) hostname: Option<String>,
    pub(super) secret_file: Option<PathBuf>,
    pub(super) listen_anywhere: bool,
    pub(super) net: Option<String>,
    pub(super) enoent_ttl_ms: u64,
    pub(super) cache_size: Option<u64>,
    pub(super) names_size: Option<u64>,
    pub(super) trees: u64,
    pub(super) stripes: u64,
    pub(super) fanout: Option<u64>,
    pub(super) detect_ms: u64,
    pub(super) attr_ttl_ms: Option<u64>,
    pub(super) dir_ttl_ms: u64,
    pub(super) clock_margin_ms: u64,
    pub(super) complete_dirs: Switch,
    pub(super) foresight: Switch,
    pub(super) fuse_threads: u64,
    pub(super) allow_other: bool,
    pub(super) passthrough: PassthroughMode,
    pub(super) log_level: u64,
    pub(super) log_type: Option<LogType>,
    pub(super) output_dir: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            target: PathBuf::from("/"),
            address_book: None,
            nodefile: None,
            hostname: None,
            secret_file: None,
            listen_anywhere: false,
            net: None,
            enoent_ttl_ms: 2000,
            cache_size: None,
            names_size: None,
            trees: 1,
            stripes: 1,
            fanout: None,
            detect_ms: 2000,
            attr_ttl_ms: None,
            dir_ttl_ms: 60_000,
            clock_margin_ms: 2_000,
            complete_dirs: Switch::On,
            foresight: Switch::On,
            fuse_threads: 2,
            allow_other: false,
            passthrough: PassthroughMode::Off,
            log_level: 3,
            log_type: None,
            output_dir: None,
        }
    }
}

impl Settings {
    /// The configuration of this process.
    ///
    /// # Errors
    /// As [`ConfigError`] says.
    pub(super) fn load(options: &MountArgs) -> Result<Settings, ConfigError> {
        Settings::layered(Path::new(FILE), &|name| std::env::var_os(name), options)
    }

    fn layered(
        file: &Path,
        environment: &dyn Fn(&str) -> Option<OsString>,
        options: &MountArgs,
    ) -> Result<Settings, ConfigError> {
        let mut settings = Settings::default();
        match environment(FILE_VARIABLE).filter(|file| !file.is_empty()) {
            Some(named) => settings.apply_file(Path::new(&named), true)?,
            None => settings.apply_file(file, false)?,
        }
        settings.apply_environment(environment)?;
        settings.apply_options(options);
        Ok(settings)
    }

    fn apply_file(&mut self, file: &Path, must_exist: bool) -> Result<(), ConfigError> {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => return Ok(()),
            Err(error) => {
                let next = if must_exist { format!("; correct {FILE_VARIABLE}") } else { String::new() };
                return Err(ConfigError::File { file: file.to_path_buf(), why: format!("{error}{next}") });
            }
        };
        self.apply_text(&text, file)
    }

    /// Applies the text of a configuration file; `file` is for messages.
    pub(super) fn apply_text(&mut self, text: &str, file: &Path) -> Result<(), ConfigError> {
        let table: toml::Table = toml::from_str(text).map_err(|error| {
            // Its own text is a picture of several lines.
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let why = format!("line {}: {}", before.matches('\n').count() + 1, error.message().escape_debug());
            ConfigError::File { file: file.to_path_buf(), why }
        })?;
        for (key, value) in table {
            let set = match value {
                toml::Value::String(text) => self.set(&key, &text),
                toml::Value::Integer(number) => self.set(&key, &number.to_string()),
                toml::Value::Boolean(flag) => self.set(&key, &flag.to_string()),
                other => Err(format!("{} where a text, a whole number or a truth value should be", other.type_str())),
            };
            set.map_err(|why| {
                let key = key.escape_debug().to_string();
                ConfigError::FileKey { file: file.to_path_buf(), key, why }
            })?;
        }
        Ok(())
    }

    fn apply_environment(&mut self, environment: &dyn Fn(&str) -> Option<OsString>) -> Result<(), ConfigError> {
        for key in KEYS {
            let variable = format!("{VARIABLE_PREFIX}{}", key.to_ascii_uppercase());
            let Some(value) = environment(&variable).filter(|value| !value.is_empty()) else { continue };
            let set = match value.to_str() {
                Some(text) => self.set(key, text),
                None => Err("it is not valid UTF-8; use the option instead".to_owned()),
            };
            set.map_err(|why| ConfigError::Variable { variable, why })?;
        }
        Ok(())
    }

    fn apply_options(&mut self, options: &MountArgs) {
        fn replace<T: Clone>(value: &mut T, option: &Option<T>) {
            if let Some(given) = option {
                *value = given.clone();
            }
        }
        fn replace_some<T: Clone>(value: &mut Option<T>, option: &Option<T>) {
            if option.is_some() {
                value.clone_from(option);
            }
        }
        let args::DaemonArgs {
            target,
            net,
            enoent_ttl_ms,
            cache_size,
            names_size,
            trees,
            stripes,
            fanout,
            detect_ms,
            attr_ttl_ms,
            dir_ttl_ms,
            clock_margin_ms,
            complete_dirs,
            foresight,
            fuse_threads,
            allow_other,
            passthrough,
            log_level,
        } = &options.daemon_options;
        replace(&mut self.target, target);
        replace_some(&mut self.address_book, &options.address_book);
        replace_some(&mut self.nodefile, &options.nodefile);
        replace_some(&mut self.hostname, &options.hostname);
        replace_some(&mut self.secret_file, &options.secret_file);
        self.listen_anywhere |= options.listen_anywhere;
        replace_some(&mut self.net, net);
        replace(&mut self.enoent_ttl_ms, enoent_ttl_ms);
        replace_some(&mut self.cache_size, cache_size);
        replace_some(&mut self.names_size, names_size);
        replace(&mut self.trees, trees);
        replace(&mut self.stripes, stripes);
        replace_some(&mut self.fanout, fanout);
        replace(&mut self.detect_ms, detect_ms);
        replace_some(&mut self.attr_ttl_ms, attr_ttl_ms);
        replace(&mut self.dir_ttl_ms, dir_ttl_ms);
        replace(&mut self.clock_margin_ms, clock_margin_ms);
        replace(&mut self.complete_dirs, complete_dirs);
        replace(&mut self.foresight, foresight);
        replace(&mut self.fuse_threads, fuse_threads);
        self.allow_other |= allow_other;
        replace(&mut self.passthrough, passthrough);
        replace(&mut self.log_level, log_level);
        replace_some(&mut self.log_type, &options.log_type);
        replace_some(&mut self.output_dir, &options.output_dir);
    }

    /// Sets one key from its text.
    fn set(&mut self, key: &str, text: &str) -> Result<(), String> {
        match key {
            "target" => self.target = PathBuf::from(text),
            "address_book" => self.address_book = Some(PathBuf::from(text)),
            "nodefile" => self.nodefile = Some(PathBuf::from(text)),
            "hostname" => self.hostname = Some(text.to_owned()),
            "secret_file" => self.secret_file = Some(PathBuf::from(text)),
            "listen_anywhere" => self.listen_anywhere = truth(text)?,
            "net" => self.net = Some(text.to_owned()),
            "enoent_ttl_ms" => self.enoent_ttl_ms = number(ENOENT_TTL_MS)(text)?,
            "cache_size" => self.cache_size = Some(parse_size(text)?),
            "names_size" => self.names_size = Some(parse_size(text)?),
            "trees" => self.trees = number(TREES)(text)?,
            "stripes" => self.stripes = number(STRIPES)(text)?,
            "detect_ms" => self.detect_ms = number(DETECT_MS)(text)?,
            "fanout" => self.fanout = Some(number(FANOUT)(text)?),
            "attr_ttl_ms" => self.attr_ttl_ms = Some(number(TTL_MS)(text)?),
            "dir_ttl_ms" => self.dir_ttl_ms = number(TTL_MS)(text)?,
            "clock_margin_ms" => self.clock_margin_ms = number(CLOCK_MARGIN_MS)(text)?,
            "complete_dirs" => self.complete_dirs = switch(text)?,
            "foresight" => self.foresight = switch(text)?,
            "fuse_threads" => self.fuse_threads = number(FUSE_THREADS)(text)?,
            "allow_other" => self.allow_other = truth(text)?,
            "passthrough" => {
                let parsed = PassthroughMode::from_str(text, true);
                self.passthrough = parsed.map_err(|_| "it must be auto, on or off".to_owned())?;
            }
            "log_level" => self.log_level = number(LOG_LEVEL)(text)?,
            "log_type" => {
                let parsed = LogType::from_str(text, true);
                self.log_type = Some(parsed.map_err(|_| "it must be stdout, file or both".to_owned())?);
            }
            "output_dir" => self.output_dir = Some(PathBuf::from(text)),
            _ => return Err(format!("no such key; known are {}", KEYS.join(", "))),
        }
        Ok(())
    }

    /// The settings as a configuration file: what reads it gets the same settings. Keys without a value stand in
    /// comments.
    pub(super) fn to_toml(&self) -> String {
        let path = |path: &Path| Some(quoted(path.as_os_str()));
        let on_or_off = |switch| Some(quoted(if switch == Switch::On { "on" } else { "off" }.as_ref()));
        let count = |number: &u64| Some(number.to_string());
        KEYS.iter()
            .map(|&key| {
                let value = match key {
                    "target" => path(&self.target),
                    "address_book" => self.address_book.as_deref().and_then(path),
                    "nodefile" => self.nodefile.as_deref().and_then(path),
                    "hostname" => self.hostname.as_ref().map(|name| quoted(name.as_ref())),
                    "secret_file" => self.secret_file.as_deref().and_then(path),
                    "listen_anywhere" => Some(self.listen_anywhere.to_string()),
                    "net" => self.net.as_ref().map(|net| quoted(net.as_ref())),
                    "enoent_ttl_ms" => count(&self.enoent_ttl_ms),
                    "cache_size" => self.cache_size.as_ref().and_then(count),
                    "names_size" => self.names_size.as_ref().and_then(count),
                    "trees" => count(&self.trees),
                    "stripes" => count(&self.stripes),
                    "detect_ms" => count(&self.detect_ms),
                    "fanout" => self.fanout.as_ref().and_then(count),
                    "attr_ttl_ms" => self.attr_ttl_ms.as_ref().and_then(count),
                    "dir_ttl_ms" => count(&self.dir_ttl_ms),
                    "clock_margin_ms" => count(&self.clock_margin_ms),
                    "complete_dirs" => on_or_off(self.complete_dirs),
                    "foresight" => on_or_off(self.foresight),
                    "fuse_threads" => count(&self.fuse_threads),
                    "allow_other" => Some(self.allow_other.to_string()),
                    "passthrough" => {
                        let value = self.passthrough.to_possible_value();
                        value.map(|value| quoted(value.get_name().as_ref()))
                    }
                    "log_level" => count(&self.log_level),
                    "log_type" => self
                        .log_type
                        .and_then(|log_type| Some(quoted(log_type.to_possible_value()?.get_name().as_ref()))),
                    "output_dir" => self.output_dir.as_deref().and_then(path),
                    _ => unreachable!("every key is listed"),
                };
                match value {
                    Some(value) => format!("{key} = {value}\n"),
                    None => format!("# {key} is not set\n"),
                }
            })
            .collect()
    }
}

fn switch(text: &str) -> Result<Switch, String> {
    match text {
        "on" | "true" | "1" => Ok(Switch::On),
        "off" | "false" | "0" => Ok(Switch::Off),
        _ => Err("it must be on or off".to_owned()),
    }
}

fn truth(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("it must be true or false".to_owned()),
    }
}

fn quoted(text: &OsStr) -> String {
    toml::Value::String(text.to_string_lossy().into_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use clap::Parser;

    use super::super::args::{Cli, Command};
    use super::*;

    fn options(words: &[&str]) -> MountArgs {
        let words = ["bornite", "mount", "/m"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Mount(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn load(file: &str, environment: &[(&str, &str)], words: &[&str]) -> Result<Settings, String> {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("config.toml");
        std::fs::write(&path, file).unwrap();
        let environment: HashMap<String, OsString> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
        Settings::layered(&path, &|name| environment.get(name).cloned(), &options(words))
            .map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))
    }

    #[test]
    fn options_beat_the_environment_and_that_the_file() {
        let file = "trees = 2\nfanout = 3\ndir_ttl_ms = 5\ncache_size = \"1G\"\nallow_other = true\nnet = \"cxi\"\n";
        let environment = [("BORNITE_FANOUT", "4"), ("BORNITE_DIR_TTL_MS", "6"), ("BORNITE_NET", "")];
        let settings = load(file, &environment, &["--dir-ttl-ms", "7", "--log-type", "both"]).unwrap();
        let expected = Settings {
            trees: 2,
            fanout: Some(4),
            dir_ttl_ms: 7,
            cache_size: Some(1 << 30),
            allow_other: true,
            net: Some("cxi".to_owned()),
            log_type: Some(LogType::Both),
            ..Settings::default()
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn without_anything_the_defaults_hold() {
        let settings = load("", &[], &[]).unwrap();
        assert_eq!(settings, Settings::default());
        assert_eq!((settings.enoent_ttl_ms, settings.dir_ttl_ms, settings.target.to_str()), (2000, 60_000, Some("/")));
        let absent = Settings::layered(Path::new("/no/such/config.toml"), &|_| None, &options(&[])).unwrap();
        assert_eq!(absent, Settings::default());
    }

    #[test]
    fn every_key_can_be_set_in_every_way() {
        let values: [(&str, &str); KEYS.len()] = [
            ("target", "/opt"),
            ("address_book", "/book"),
            ("nodefile", "/nodes"),
            ("hostname", "n1"),
            ("secret_file", "/secret"),
            ("listen_anywhere", "true"),
            ("net", "tcp"),
            ("enoent_ttl_ms", "1"),
            ("cache_size", "33554432"),
            ("names_size", "67108864"),
            ("trees", "3"),
            ("stripes", "2"),
            ("fanout", "4"),
            ("detect_ms", "500"),
            ("attr_ttl_ms", "5"),
            ("dir_ttl_ms", "6"),
            ("clock_margin_ms", "7000"),
            ("complete_dirs", "off"),
            ("foresight", "off"),
            ("fuse_threads", "3"),
            ("allow_other", "true"),
            ("passthrough", "auto"),
            ("log_level", "5"),
            ("log_type", "file"),
            ("output_dir", "/out"),
        ];
        let file: String = values.iter().map(|(key, value)| format!("{key} = \"{value}\"\n")).collect();
        let variables: Vec<(String, &str)> =
            values.iter().map(|(key, value)| (format!("BORNITE_{}", key.to_ascii_uppercase()), *value)).collect();
        let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let flags: Vec<String> = values
            .iter()
            .flat_map(|(key, value)| {
                let flag = format!("--{}", key.replace('_', "-"));
                if ["allow_other", "listen_anywhere"].contains(key) {
                    vec![flag]
                } else {
                    vec![flag, (*value).to_owned()]
                }
            })
            .collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let by_file = load(&file, &[], &[]).unwrap();
        assert_eq!(by_file, load("", &variables, &[]).unwrap());
        assert_eq!(by_file, load("", &[], &flags).unwrap());
        assert_eq!((by_file.trees, by_file.attr_ttl_ms, by_file.log_type), (3, Some(5), Some(LogType::File)));
        // What --print-config shows is a configuration file for the same settings.
        assert_eq!(load(&by_file.to_toml(), &[], &[]).unwrap(), by_file);
        assert_eq!(load(&Settings::default().to_toml(), &[], &[]).unwrap(), Settings::default());
    }

    #[test]
    fn misspelled_variables_are_found() {
        let names = ["PATH", "BORNITE_TREES", "BORNITE_TRES", "BORNITE_CONFIG", "BORNITE_MOUNT"].map(OsString::from);
        assert_eq!(unknown_variables(names.into_iter()), ["BORNITE_TRES"]);
    }

    #[test]
    fn faults_name_the_place_and_the_key() {
        assert!(
            load("tree = 1", &[], &[]).unwrap_err().starts_with("configuration file FILE: tree: no such key; known")
        );
        assert_eq!(load("trees = 0", &[], &[]).unwrap_err(), "configuration file FILE: trees: 0 is not in 1 to 1024");
        assert_eq!(
            load("trees = [1]", &[], &[]).unwrap_err(),
            "configuration file FILE: trees: array where a text, a whole number or a truth value should be"
        );
        let error = load("\ntrees = \n", &[], &[]).unwrap_err();
        assert!(error.starts_with("configuration file FILE: line 2: ") && !error.contains('\n'), "{error:?}");
        assert_eq!(
            load("", &[("BORNITE_LOG_LEVEL", "6")], &[]).unwrap_err(),
            "environment variable BORNITE_LOG_LEVEL: 6 is not in 0 to 5"
        );
        assert_eq!(
            load("", &[("BORNITE_LOG_TYPE", "syslog")], &[]).unwrap_err(),
            "environment variable BORNITE_LOG_TYPE: it must be stdout, file or both"
        );
        let error = load("", &[("BORNITE_CONFIG", "/no/such/config.toml")], &[]).unwrap_err();
        assert!(error.starts_with("configuration file /no/such/config.toml: "), "{error}");
    }
}
