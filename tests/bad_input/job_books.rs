//! What the commands of `bornite book` refuse.

use std::fs;

use super::{BORNITE, Place, Texts};

/// A facility's book for a job.
pub(super) fn facility(texts: &mut Texts) {
    let place = &Place::new();
    let words = ["book", "facility", "book", "--nodefile", "nodes", "--output", "job"];
    let with = |more: &[&'static str]| [&words[..], more].concat();
    place.book("a ofi+cxi://0x00916600\nb ofi+cxi://0x00916800");
    texts.refuse(place, "book facility: no node file", &["book", "facility", "book"]);
    texts.refuse(place, "book facility: missing node file", &words);
    for (what, nodes) in [
        ("empty allocation", "\n# none\n"),
        ("a host with a port", "a:1\n"),
        ("two words in a line", "a slots=4\n"),
        ("unknown hosts", "a\nc\nb.site\nd\n"),
        ("a book for another job", "c\nd\n"),
        ("two domains of one entry", "a.x\na.y\n"),
    ] {
        fs::write(place.path("nodes"), nodes).unwrap();
        texts.refuse(place, &format!("book facility: {what}"), &words);
    }
    fs::write(place.path("nodes"), "c\nd\n").unwrap();
    texts.refuse(place, "book facility: all nodes missing, which may be", &with(&["--allow-missing"]));
    fs::write(place.path("nodes"), "a\n").unwrap();
    texts.refuse(place, "book facility: no book", &["book", "facility", "none", "--nodefile", "nodes"]);
    let elsewhere = ["book", "facility", "book", "--nodefile", "nodes", "--output", "none/job"];
    texts.refuse(place, "book facility: no such directory", &elsewhere);
    for (what, text) in [
        ("nothing in it", "\n"),
        ("a bad line of another node", "a ofi+cxi://0x00916600\r\nb\r\n"),
        ("a bad address of another node", "a ofi+cxi://0x00916600\nb ofi+cxi://916800\n"),
        ("another node twice", "a ofi+cxi://0x1\nb ofi+cxi://0x2\n\nb ofi+cxi://0x3\n"),
        ("two nodes with one address", "a ofi+cxi://0x1\nb ofi+cxi://0x1\n"),
    ] {
        place.book(text);
        texts.refuse(place, &format!("book facility: {what}"), &words);
    }
    fs::write(place.path("book"), b"a ofi+cxi://0x1\nb\xff ofi+cxi://0x2\n").unwrap();
    texts.refuse(place, "book facility: a book that is no text", &words);
    place.book("a ofi+cxi://0x1\n");
    texts.refuse(place, "book check: no book", &["book", "check", "none"]);
    texts.refuse(place, "book check: no job", &["book", "check", "book", "--launcher", "ssh"]);
    texts.refuse(place, "book check: a name that no host has", &["book", "check", "none", "--hostname", "a/b"]);
}

/// Books out of what hosts say.
pub(super) fn discover(texts: &mut Texts) {
    let place = &Place::new();
    let table = ["book", "discover", "--table", "table", "--output-dir", "job"];
    let with = |more: &[&'static str]| [&table[..], more].concat();
    texts.refuse(place, "book discover: nobody to ask", &["book", "discover"]);
    texts.refuse(place, "book discover: missing table", &table);
    let hosts = ["book", "discover", "--launcher", "local", "--hosts", "a,b"];
    texts.refuse(place, "book discover: hosts for this host alone", &hosts);
    texts.refuse(place, "book discover: no such launcher", &["book", "discover", "--launcher", "rsh"]);
    texts.refuse(place, "book discover: table and helper", &with(&["--helper", "file"]));
    for net in ["na+sm", "cxi://eth0", "cxi99", "shm"] {
        texts.refuse(place, "book discover: wrong network", &with(&["--net", net]));
    }
    texts.refuse(place, "book discover: no port", &with(&["--port", "0"]));
    let row = "x1 | 10.0.0.1 | 02:00:00:00:00:01 | NA\n";
    for (what, text) in [
        ("nothing in it", String::new()),
        ("garbage", format!("hostname | hsn0 | mac0 | cxi0\r\n{row}srun: error: x2: task 1: Killed\r\n")),
        ("a header of something else", "hostname | ip | mac\n".to_owned()),
        ("a row that is cut", "x1 | 10.0.0.1 | 02:0".to_owned()),
        ("a host with two rows", format!("{row}x1 | 10.0.0.2 | NA | NA\n")),
        ("no address", row.to_owned()),
    ] {
        fs::write(place.path("table"), text).unwrap();
        texts.refuse(place, &format!("book discover: {what}"), &table);
    }
    fs::write(place.path("table"), row.to_owned() + "x2 | 10.0.0.1 | NA | NA\n").unwrap();
    texts.refuse(place, "book discover: two hosts with one address", &with(&["--net", "tcp"]));
    fs::write(place.path("nodes"), "x1\nx3\n").unwrap();
    texts.refuse(place, "book discover: a host without a row", &with(&["--net", "hsn0", "--nodefile", "nodes"]));
    fs::write(place.path("nodes"), "x1\n").unwrap();
    let below_a_file =
        ["book", "discover", "--table", "table", "--net", "hsn0", "--nodefile", "nodes", "--output-dir", "file/job"];
    texts.refuse(place, "book discover: a directory below a file", &below_a_file);
    let local = ["book", "discover", "--launcher", "local", "--output-dir", "job", "--helper"];
    for (what, helper) in
        [("missing", "./none"), ("no program", "./file"), ("prints nothing", "true"), ("fails", "false")]
    {
        texts.refuse(place, &format!("book discover: helper {what}"), &[&local[..], &[helper]].concat());
    }
    let by_name = format!("{}/list_cxi_hsn_thallium", place.dir.display());
    std::os::unix::fs::symlink(BORNITE, &by_name).unwrap();
    let mut command = place.command(&by_name);
    command.arg("-x");
    texts.refuse_command(place, "list_cxi_hsn_thallium with an argument", "list_cxi_hsn_thallium -x", command);
}
