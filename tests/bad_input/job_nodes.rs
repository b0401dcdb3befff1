//! What a launch over nodes refuses.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::{Place, Texts};

/// Launches over nodes that fail before anything is asked of a launcher.
pub(super) fn over_nodes(texts: &mut Texts, place: &Place) {
    let none = [("SLURM_JOB_ID", ""), ("PBS_JOBID", ""), ("FLUX_JOB_ID", "")];
    let mut refuse = |what, words: &[&str]| texts.refuse_with(place, what, &none, &[&["launch"], words].concat());
    refuse("launch: no job", &["--target", "t"]);
    refuse("launch: here and elsewhere", &["--local", "--hosts", "n1"]);
    refuse("launch: no such launcher", &["--launcher", "rsh", "--hosts", "n1"]);
    refuse("launch: hosts named twice", &["--hosts", "n1", "--nodefile", "file"]);
    refuse("launch: no hosts", &["--hosts", ","]);
    refuse("launch: a host that is an option", &["--hosts=-oProxyCommand=x"]);
    refuse("launch: empty node file", &["--nodefile", "file"]);
    refuse("launch: node file missing", &["--nodefile", "none"]);
    refuse("launch: no share of nodes", &["--hosts", "n1", "--min-ready", "101%"]);
    refuse("launch: no processors", &["--hosts", "n1", "--cores", "4-2"]);
    fs::create_dir(place.path("no-programs")).unwrap();
    let path = place.path("no-programs");
    let bare = [("PATH", path.to_str().unwrap()), ("PBS_JOBID", "1.x")];
    texts.refuse_with(place, "launch: no launcher", &bare, &["launch", "--hosts", "n1"]);
    texts.refuse_with(place, "launch: launcher missing", &bare, &["launch", "--hosts", "n1", "--launcher", "clush"]);
    texts.refuse_with(place, "launch: no nodes", &bare, &["launch", "--launcher", "clush"]);
    fs::remove_dir(&path).unwrap();
    // Launchers that are there and are not run.
    fs::create_dir(&path).unwrap();
    for name in ["mpiexec", "ssh", "clush"] {
        fs::write(path.join(name), "#!/bin/sh\nexit 1\n").unwrap();
        fs::set_permissions(path.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let fakes = [("PATH", path.to_str().unwrap()), ("PBS_JOBID", "1.x"), ("HOME", "home")];
    for launcher in ["mpiexec", "ssh", "clush"] {
        let words =
            ["launch", "--launcher", launcher, "--hosts", "localhost,n1.invalid,n2.invalid", "--min-ready", "2"];
        texts.refuse_with(place, &format!("launch: hosts that {launcher} cannot find"), &fakes, &words);
    }
    fs::remove_dir_all(path).unwrap();
}
