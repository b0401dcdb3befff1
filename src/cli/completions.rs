//! `bornite completions` and the man pages: texts that the build has made from the definitions in [`super::args`].

use std::process::ExitCode;

use anyhow::Context;

use super::args::{CompletionsArgs, ManPagesArgs, Shell};
use super::output::print;

/// File names and texts of the man pages.
const MAN_PAGES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/man_pages.rs"));

/// Prints the completion script of a shell.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    print(script(args.shell))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the man pages into a directory.
///
/// # Errors
/// The directory or a file cannot be written.
pub(super) fn man_pages(args: &ManPagesArgs) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&args.dir).with_context(|| format!("cannot make {}", args.dir.display()))?;
    for (name, text) in MAN_PAGES {
        let path = args.dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn script(shell: Shell) -> &'static str {
    match shell {
        Shell::Bash => include_str!(concat!(env!("OUT_DIR"), "/bornite.bash")),
        Shell::Fish => include_str!(concat!(env!("OUT_DIR"), "/bornite.fish")),
        Shell::Zsh => include_str!(concat!(env!("OUT_DIR"), "/_bornite")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_scripts_know_the_commands() {
        let names: Vec<&str> = MAN_PAGES.iter().map(|(name, _)| *name).collect();
        for page in ["bornite.1", "bornite-mount.1", "bornite-launch.1", "bornite-stop.1", "bornite-status.1"] {
            assert!(names.contains(&page), "{page} is not among {names:?}");
        }
        assert!(!names.contains(&"bornite-man-pages.1"));
        let (_, mount) = MAN_PAGES.iter().find(|(name, _)| *name == "bornite-mount.1").unwrap();
        assert!(mount.contains("enoent\\-ttl\\-ms") && !mount.contains("foreground\\-child"));
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            assert!(script(shell).contains("enoent-ttl-ms"), "{shell:?}");
        }
    }
}
