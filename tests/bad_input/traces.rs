//! Traces: files that are none, and recordings that cannot be.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};

use super::{BORNITE, NOBODY, Place, Texts};

/// Every way to read a file that is no trace, and to ask for a recording that is none.
pub(super) fn all(texts: &mut Texts) {
    let place = &Place::new();
    files(texts, place);
    commands(texts, place);
    users(texts);
}

/// A trace with one request, as the program writes it.
fn trace(place: &Place) -> Vec<u8> {
    let mut command = place.command(BORNITE);
    command.args(["trace", "record", "--target", "t", "-o", "whole", "--", "sh", "-c", "ls $BORNITE_MOUNT/sub"]);
    let said = place.run(command);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    fs::read(place.path("whole")).unwrap()
}

fn files(texts: &mut Texts, place: &Place) {
    let whole = trace(place);
    let newer = {
        let mut newer = whole.clone();
        // The version follows the magic, which is the same in all of them.
        newer[bornite::observe::trace::MAGIC.len()] += 1;
        newer
    };
    let half = &whole[..whole.len() / 2];
    let beginning = &whole[..bornite::observe::trace::MAGIC.len()];
    for (what, bytes) in [
        ("not a trace", &b"#!/bin/sh\n"[..]),
        ("empty", b""),
        ("cut short", half),
        ("nothing but its beginning", beginning),
        ("of a newer version", &newer),
        ("with more behind it", &[&whole[..], b"x"].concat()),
    ] {
        fs::write(place.path("x.trace"), bytes).unwrap();
        texts.refuse(place, &format!("trace: {what}"), &["trace", "show", "x.trace"]);
    }
    texts.refuse(place, "trace: missing", &["trace", "stats", "none.trace"]);
    texts.refuse(place, "trace: a directory", &["trace", "stats", "t"]);
    texts.refuse(place, "trace: below a file", &["trace", "show", "file/x"]);
    texts.refuse(place, "trace: without an end", &["trace", "show", "/dev/zero"]);
    texts.refuse(place, "trace: a replay of none", &["trace", "replay", "file", "--sim"]);
    texts.refuse(place, "trace: a replay at no place", &["trace", "replay", "whole", "--mount", "none"]);
    texts.refuse(place, "trace: a replay without a place", &["trace", "replay", "whole"]);
    texts.refuse(
        place,
        "simulation: TTL above its range",
        &["sim", "enoent", "--trace", "whole", "--ttl", "100,10001"],
    );
    texts.refuse(place, "simulation: no TTL", &["sim", "enoent", "--trace", "whole", "--ttl", "x"]);
    texts.refuse(place, "simulation: a file that is no trace", &["sim", "enoent", "--trace", "file"]);
}

fn commands(texts: &mut Texts, place: &Place) {
    let record = ["trace", "record", "--target", "t"];
    let with = |more: &[&'static str]| [&record[..], more].concat();
    fs::write(place.path("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(place.path("script"), fs::Permissions::from_mode(0o644)).unwrap();
    texts.refuse(place, "record: no command", &record);
    texts.refuse(place, "record: no command behind the dashes", &with(&["--"]));
    let there = with(&["--mount", "m", "--"]);
    for (what, command) in [
        ("a command that is missing", "./none"),
        ("a command that nobody has", "no-such-command"),
        ("a command that is not executable", "./script"),
        ("a command that is a directory", "./t"),
    ] {
        texts.refuse(place, &format!("record: {what}"), &[&there[..], &[command]].concat());
    }
    texts.refuse(place, "record: target missing", &["trace", "record", "--target", "none", "--", "true"]);
    texts.refuse(place, "record: target a file", &["trace", "record", "--target", "file", "--", "true"]);
    texts.refuse(place, "record: trace below a file", &with(&["-o", "file/x", "--", "true"]));
    texts.refuse(place, "record: trace a directory", &with(&["-o", "t", "--", "true"]));
    texts.refuse(place, "record: mount point missing", &with(&["--mount", "none", "--", "true"]));
    texts.refuse(place, "record: mount point not empty", &with(&["--mount", "full", "--", "true"]));
}

/// As a user that may do nothing.
fn users(texts: &mut Texts) {
    let place = &Place::new();
    // Other users may not be able to go where this one was built.
    let program = place.path("bornite");
    fs::copy(BORNITE, &program).unwrap();
    fs::write(place.path("secret"), "").unwrap();
    fs::create_dir(place.path("closed")).unwrap();
    for name in ["secret", "closed"] {
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o700)).unwrap();
    }
    chown(place.path("m2"), Some(NOBODY), Some(NOBODY)).unwrap();
    let id = NOBODY.to_string();
    for (what, words) in [
        ("trace: of somebody else", &["trace", "show", "secret"][..]),
        ("record: a target of somebody else", &["trace", "record", "--target", "closed", "--", "true"]),
        ("record: a trace where this user may write nothing", &["trace", "record", "--target", "t", "--", "true"]),
    ] {
        let mut command = place.command("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(&program).args(words);
        command.env("XDG_RUNTIME_DIR", place.path("run2"));
        texts.refuse_command(place, what, &format!("bornite {}", words.join(" ")), command);
    }
}
