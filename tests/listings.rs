//! What a listing shows after the directory changed: the kernel's own copy included.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{DEADLINE, DEPTHS, Plan};

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).expect("a directory");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect()
}

#[test]
fn a_listing_shows_what_was_made_and_removed_once_its_time_is_over() {
    needs_fuse!("a_listing_shows_what_was_made_and_removed_once_its_time_is_over");
    let target = tempfile::tempdir().expect("a temporary directory");
    // The target itself: no lookup of a name would tell the kernel that it changed.
    let dir = target.path();
    std::fs::write(dir.join("old"), b"old").expect("a file");
    let mut plan = Plan::new(4, target.path());
    plan.dir_ttl = Duration::from_secs(1);
    let cluster = plan.start();
    let began = Instant::now();
    for node in DEPTHS {
        assert_eq!(names(cluster.mount(node)), ["old".to_owned()].into());
    }
    std::fs::remove_file(dir.join("old")).expect("the file");
    std::fs::write(dir.join("new"), b"new").expect("a file");
    if began.elapsed() < Duration::from_millis(500) {
        // Within its time a listing may be repeated, and is: nothing was asked again.
        assert_eq!(names(cluster.mount(3)), ["old".to_owned()].into());
    }
    for node in DEPTHS {
        let mount = cluster.mount(node);
        while names(mount) != ["new".to_owned()].into() {
            assert!(began.elapsed() < DEADLINE, "node {node} still shows {:?}", names(mount));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(std::fs::read(mount.join("new")).expect("the new file"), b"new");
    }
}

#[test]
fn a_long_listing_is_complete_at_every_depth_even_when_none_may_be_repeated() {
    needs_fuse!("a_long_listing_is_complete_at_every_depth_even_when_none_may_be_repeated");
    let target = tempfile::tempdir().expect("a temporary directory");
    let all: BTreeSet<String> = (0..3_000).map(|i| format!("a-rather-long-name-of-a-file-{i}")).collect();
    for name in &all {
        std::fs::write(target.path().join(name), b"").expect("a file");
    }
    for dir_ttl in [Duration::ZERO, Duration::from_secs(60)] {
        let mut plan = Plan::new(4, target.path());
        plan.dir_ttl = dir_ttl;
        let cluster = plan.start();
        for node in DEPTHS {
            assert_eq!(names(cluster.mount(node)), all, "node {node}, {dir_ttl:?}");
        }
    }
}
