//! Every input in `fuzz/corpus` through its fuzz target, without a fuzzer.

#[allow(unreachable_pub, reason = "the fuzzer's programs use it as a library")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::path::{Path, PathBuf};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

#[test]
fn every_kept_input_holds() {
    for (name, run) in targets::TARGETS {
        let dir = corpus().join(name);
        let files = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let mut inputs = 0;
        for file in files {
            let file = file.unwrap().path();
            let input = std::fs::read(&file).unwrap();
            if let Err(panic) = std::panic::catch_unwind(|| run(&input)) {
                eprintln!("the input is {}", file.display());
                std::panic::resume_unwind(panic);
            }
            inputs += 1;
        }
        assert!(inputs > 0, "{} is empty", dir.display());
    }
}

#[test]
fn targets_folders_and_programs_belong_together() {
    let names = |dir: &str, suffix: &str| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(dir);
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap().trim_end_matches(suffix).to_owned())
            .collect();
        names.sort();
        names
    };
    let targets = targets::TARGETS.map(|(name, _)| name.to_owned());
    assert_eq!(names("corpus", ""), targets);
    assert_eq!(names("fuzz_targets", ".rs"), targets);
}
