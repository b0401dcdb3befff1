//! What the program refuses under Copper's names, and what `bornite run` refuses.

use std::fs;
use std::os::unix::process::CommandExt as _;

use super::{BORNITE, Place, Texts};

/// `cu_fuse`, `cu_fuse_shutdown` and `list_cxi_hsn_thallium`.
pub(super) fn of_copper(texts: &mut Texts) {
    let place = &Place::new();
    for (what, line) in [
        ("no mount point", "cu_fuse -tpath t"),
        ("an option without its value", "cu_fuse -vpath"),
        ("no such option", "cu_fuse -vpath m -no_such_option 1"),
        ("an option of ours", "cu_fuse -vpath m --target t"),
        ("two mount points", "cu_fuse -vpath m m2"),
        ("a level out of range", "cu_fuse -vpath m -log_level 9"),
        ("no such log", "cu_fuse -vpath m -log_type syslog"),
        ("a log to a file, and no directory", "cu_fuse -vpath m -log_type file"),
        ("no number", "cu_fuse -vpath m -trees many"),
        ("no number, where it has no effect", "cu_fuse -vpath m -profile_top_n many"),
        ("nodes without a book", "cu_fuse -vpath m -nf nodes"),
        ("neither filtered nor not", "cu_fuse -vpath m -prefiltered_address_book yes"),
        ("missing target", "cu_fuse -f -vpath m -tpath none"),
        ("missing book", "cu_fuse -f -vpath m -tpath t -facility_address_book none"),
        ("missing node file", "cu_fuse -f -vpath m -tpath t -facility_address_book book -nf none"),
        ("nothing to stop", "cu_fuse_shutdown"),
        ("no seconds", "cu_fuse_shutdown soon logs"),
        ("no such option", "cu_fuse_shutdown -all"),
        ("an option without its value", "cu_fuse_shutdown -vpath"),
        ("no such option", "list_cxi_hsn_thallium --everywhere"),
    ] {
        place.book("a ofi+tcp://127.0.0.1:{}\n");
        let mut words = line.split(' ');
        let name = words.next().unwrap();
        let mut command = place.command(BORNITE);
        command.arg0(name).args(words);
        texts.refuse_command(place, &format!("{name}: {what}"), line, command);
    }
}

/// `bornite run`, without and with a mount.
pub(super) fn run(texts: &mut Texts) {
    let place = &Place::new();
    texts.refuse(place, "run: no command", &["run"]);
    texts.refuse(place, "run: a command without --", &["run", "true"]);
    texts.refuse(place, "run: nothing is mounted there", &["run", "--mount", "m", "--", "true"]);
    texts.refuse(place, "run: missing mount point", &["run", "--mount", "none", "--", "true"]);
    fs::create_dir(place.path("elsewhere")).unwrap();
    let daemon = place.daemon("m", &[]);
    for (what, at) in [("outside of the target", "elsewhere"), ("missing", "t/none"), ("no path", "")] {
        texts.refuse(place, &format!("run: {what}"), &["run", "--mount", "m", "--at", at, "--", "true"]);
    }
    drop(daemon);
}
