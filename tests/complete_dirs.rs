//! Listings that answer absent names: what they cost, how long they are believed, and when they are not used, counted
//! through real mounts.

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bornite::observe::Counter;
use bornite_fuse::Errno as Answer;
use common::backend::{Call, Scripted, Trouble};
use common::{Cluster, DEADLINE, Plan, eventually, wait_until};
use rustix::io::Errno;

/// Lookups that may be under way, or asked before the listing is there, on a busy machine.
const FEW: u64 = 200;

/// Times of files older than this can prove that a directory has not changed.
const SETTLED: Duration = Duration::from_millis(2_100);

fn assert_absent(path: &Path) {
    let errno = fs::symlink_metadata(path).err().and_then(|error| error.raw_os_error());
    assert_eq!(errno, Some(Errno::NOENT.raw_os_error()), "{}", path.display());
}

/// Misses `count` names in `dir` that begin with `prefix`, all of them other ones.
fn miss(dir: &Path, prefix: &str, count: usize) {
    for n in 0..count {
        assert_absent(&dir.join(format!("{prefix}{n}")));
    }
}

/// A target with a directory `dir` of so many files.
fn target(files: usize) -> tempfile::TempDir {
    let target = tempfile::tempdir().unwrap();
    fs::create_dir(target.path().join("dir")).unwrap();
    for n in 0..files {
        fs::write(target.path().join(format!("dir/file{n}")), b"x").unwrap();
    }
    target
}

/// Runs `work`, and gives how far these counters of nodes moved.
fn during<const N: usize>(cluster: &Cluster, counts: [(usize, Counter); N], work: impl FnOnce()) -> [u64; N] {
    cluster.quiet();
    let before = counts.map(|(node, counter)| cluster.count(node, counter));
    work();
    cluster.quiet();
    let mut moved = counts.map(|(node, counter)| cluster.count(node, counter));
    moved.iter_mut().zip(before).for_each(|(after, before)| *after -= before);
    moved
}

#[test]
fn a_thousand_misses_in_a_directory_cost_one_listing_for_all_nodes() {
    needs_fuse!("a_thousand_misses_in_a_directory_cost_one_listing_for_all_nodes");
    needs_a_reliable_network!("a_thousand_misses_in_a_directory_cost_one_listing_for_all_nodes");
    let target = target(50);
    let cluster = Plan { enoent_ttl: Duration::from_secs(60), ..Plan::new(4, target.path()) }.start();
    let dir = |node: usize| cluster.mount(node).join("dir");
    let counts = [
        (0, Counter::BackendList),
        (0, Counter::BackendEnoent),
        (1, Counter::RequestsToParent),
        (3, Counter::RequestsToParent),
        (3, Counter::ListingServes),
    ];
    let [lists, misses, child, grandchild, serves] = during(&cluster, counts, || miss(&dir(3), "a", 1_000));
    assert_eq!(lists, 1);
    assert!(misses <= FEW && child <= FEW && grandchild <= FEW, "{misses} {child} {grandchild}");
    assert!(serves >= 1_000 - FEW, "{serves}");
    // Other names, and other nodes: the root is asked for nothing, and every node for its listing once.
    for (node, asks) in [(1, 0), (2, FEW), (3, 0)] {
        let counts = [(0, Counter::BackendList), (0, Counter::BackendLookup), (node, Counter::RequestsToParent)];
        let [lists, lookups, asked] = during(&cluster, counts, || miss(&dir(node), "b", 1_000));
        assert_eq!(lists, 0, "node {node}");
        assert!(lookups <= 1 && asked <= asks, "node {node}: {lookups} lookups, {asked} requests");
    }
    // What is there is found all the same.
    for node in 0..4 {
        assert_eq!(fs::read(dir(node).join("file7")).unwrap(), b"x");
    }
    cluster.assert_only_root_asked();
}

#[test]
fn a_few_misses_list_nothing_and_neither_do_many_without_the_option_or_the_ttl() {
    needs_fuse!("a_few_misses_list_nothing_and_neither_do_many_without_the_option_or_the_ttl");
    needs_a_reliable_network!("a_few_misses_list_nothing_and_neither_do_many_without_the_option_or_the_ttl");
    let target = target(3);
    let plan = || Plan { enoent_ttl: Duration::from_secs(60), ..Plan::new(2, target.path()) };
    let no_ttl = Plan { enoent_ttl: Duration::ZERO, ..plan() };
    let off = Plan { complete_dirs: false, ..plan() };
    for (plan, misses) in [(plan(), 1), (off, 40), (no_ttl, 40)] {
        let cluster = plan.start();
        let counts = [(0, Counter::BackendList), (0, Counter::BackendEnoent), (1, Counter::ListingServes)];
        let moved = during(&cluster, counts, || miss(&cluster.mount(1).join("dir"), "a", misses));
        assert_eq!(moved, [0, misses as u64, 0]);
    }
}

#[test]
fn a_listing_that_was_read_answers_what_it_lacks() {
    needs_fuse!("a_listing_that_was_read_answers_what_it_lacks");
    needs_a_reliable_network!("a_listing_that_was_read_answers_what_it_lacks");
    let target = target(3);
    let cluster = Plan { enoent_ttl: Duration::from_secs(60), ..Plan::new(2, target.path()) }.start();
    let dir = cluster.mount(1).join("dir");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 3);
    let counts = [(0, Counter::BackendEnoent), (1, Counter::RequestsToParent), (1, Counter::ListingServes)];
    assert_eq!(during(&cluster, counts, || miss(&dir, "a", 100)), [0, 0, 100]);
    // And the other way: what was listed for its misses is there for who reads the directory.
    let dir = cluster.mount(0).join("dir");
    let counts = [(0, Counter::BackendList)];
    assert_eq!(during(&cluster, counts, || assert_eq!(fs::read_dir(&dir).unwrap().count(), 3)), [0]);
}

#[test]
fn a_directory_that_does_not_change_is_looked_at_and_not_listed_again() {
    needs_fuse!("a_directory_that_does_not_change_is_looked_at_and_not_listed_again");
    needs_a_reliable_network!("a_directory_that_does_not_change_is_looked_at_and_not_listed_again");
    const TTL: Duration = Duration::from_millis(1_000);
    let target = target(20);
    wait_until(Instant::now() + SETTLED);
    let cluster = Plan { enoent_ttl: TTL, ..Plan::new(4, target.path()) }.start();
    let dir = cluster.mount(3).join("dir");
    let counts = [
        (0, Counter::BackendList),
        (0, Counter::ListingsRenewed),
        (1, Counter::ListingsRenewed),
        (3, Counter::ListingsRenewed),
        (0, Counter::BackendLookup),
    ];
    let (rounds, whole) = (4u64, Instant::now());
    let [lists, root, child, grandchild, lookups] = during(&cluster, counts, || {
        let begin = Instant::now();
        for round in 0..u32::try_from(rounds).unwrap() {
            wait_until(begin + round * (TTL + TTL / 5));
            miss(&dir, &format!("a{round}-"), 100);
        }
    });
    // On a machine that takes its time, the TTLs that went by count.
    let ttls = whole.elapsed().div_duration_f64(TTL) as u64;
    assert!((1..=1 + ttls / 10).contains(&lists), "{lists} listings in {ttls} TTLs");
    for renewed in [root, child, grandchild] {
        assert!((rounds - 1..=ttls + 2).contains(&renewed), "{root} {child} {grandchild} in {ttls} TTLs");
    }
    assert!(lookups <= FEW, "{lookups}");
}

/// Times that may still hide a change prove nothing: one that lies ahead of the root's clock, and one within the margin by
/// which that clock may be wrong.
#[test]
fn a_directory_whose_times_may_hide_a_change_is_listed_again() {
    needs_fuse!("a_directory_whose_times_may_hide_a_change_is_listed_again");
    const TTL: Duration = Duration::from_millis(500);
    const ROUNDS: u32 = 3;
    let target = target(3);
    fs::create_dir(target.path().join("ahead")).unwrap();
    let hour = std::time::SystemTime::now() + Duration::from_secs(3600);
    fs::File::open(target.path().join("ahead")).unwrap().set_modified(hour).unwrap();
    wait_until(Instant::now() + SETTLED);
    let made = Instant::now() - SETTLED;
    for (name, clock_margin, is_trusted) in [("dir", 2, true), ("ahead", 2, false), ("dir", 20, false)]
        .map(|(name, s, t)| (name, Duration::from_secs(s), t))
    {
        let cluster = Plan { enoent_ttl: TTL, clock_margin, ..Plan::new(1, target.path()) }.start();
        let dir = cluster.mount(0).join(name);
        let counts = [(0, Counter::ListingsRenewed), (0, Counter::BackendList)];
        let [renewed, lists] = during(&cluster, counts, || {
            for round in 0..ROUNDS {
                let begin = Instant::now();
                miss(&dir, &format!("a{round}-"), 20);
                wait_until(begin + TTL + TTL / 5);
            }
        });
        if is_trusted {
            assert!(renewed >= 1, "{name}: it was listed {lists} times");
        } else if made.elapsed() < clock_margin || name == "ahead" {
            assert!(renewed == 0 && lists >= u64::from(ROUNDS), "{name}: renewed {renewed} times, {lists} listings");
        }
    }
}

#[test]
fn a_name_that_is_made_in_a_listed_directory_is_seen_in_time_and_voids_the_listing() {
    needs_fuse!("a_name_that_is_made_in_a_listed_directory_is_seen_in_time_and_voids_the_listing");
    const TTL: Duration = Duration::from_millis(1_500);
    let target = target(20);
    wait_until(Instant::now() + SETTLED);
    let cluster = Plan { enoent_ttl: TTL, ..Plan::new(4, target.path()) }.start();
    for node in 0..4 {
        miss(&cluster.mount(node).join("dir"), "a", 50);
    }
    let new = |node: usize| cluster.mount(node).join("dir/new");
    // All nodes know by their listings that it is not there.
    (0..4).for_each(|node| assert_absent(&new(node)));
    fs::write(target.path().join("dir/new"), b"now").unwrap();
    let made = Instant::now();
    let mut seen = [false; 4];
    while seen.contains(&false) {
        for (node, seen) in seen.iter_mut().enumerate() {
            // However long an answer takes: who asks after the TTL is told of it.
            let asked = made.elapsed();
            match fs::read(new(node)) {
                Ok(bytes) => {
                    assert_eq!(bytes, b"now");
                    *seen = true;
                }
                Err(_) => {
                    assert!(!*seen, "node {node} has seen it before");
                    assert!(asked <= TTL, "node {node} does not see it after {asked:?}");
                }
            }
        }
    }
    for node in 0..4 {
        // Who reads the directory is told of it too, at once.
        let names = fs::read_dir(cluster.mount(node).join("dir")).unwrap();
        assert!(names.map(|entry| entry.unwrap().file_name()).any(|name| name == "new"), "node {node}");
        miss(&cluster.mount(node).join("dir"), "b", 50);
        assert_eq!(fs::read(new(node)).unwrap(), b"now");
    }
}

#[test]
fn a_subtree_below_an_absent_directory_costs_one_lookup() {
    needs_fuse!("a_subtree_below_an_absent_directory_costs_one_lookup");
    needs_a_reliable_network!("a_subtree_below_an_absent_directory_costs_one_lookup");
    let target = target(3);
    let cluster = Plan { enoent_ttl: Duration::from_secs(60), ..Plan::new(4, target.path()) }.start();
    let counts = [(0, Counter::BackendEnoent), (0, Counter::BackendList), (1, Counter::RequestsToParent)];
    let [misses, lists, asked] = during(&cluster, counts, || {
        for node in [3, 1, 2, 0] {
            for n in 0..100 {
                assert_absent(&cluster.mount(node).join(format!("none/a{n}/b{n}/c")));
            }
        }
    });
    assert_eq!((misses, lists), (1, 0));
    // Attributes of the mount's root and the name.
    assert!(asked <= 2, "{asked}");
}

#[test]
fn a_directory_that_cannot_be_listed_answers_lookups() {
    needs_fuse!("a_directory_that_cannot_be_listed_answers_lookups");
    let backend = Scripted::start(&[("dir", None), ("dir/file", Some(b"x"))]);
    backend.trouble("dir", Call::List, Trouble::Fail(Answer::EACCES));
    let cluster = Plan { enoent_ttl: Duration::from_secs(60), ..Plan::new(2, backend.path()) }.start();
    let dir = cluster.mount(1).join("dir");
    miss(&dir, "a", 30);
    assert_eq!(fs::read(dir.join("file")).unwrap(), b"x");
    assert_eq!(cluster.count(1, Counter::ListingServes), 0);
    assert!(cluster.count(0, Counter::BackendEnoent) >= 30);
    // It was tried, and not for each name.
    let tried = backend.calls("dir", Call::List);
    assert!((1..=4).contains(&tried), "{tried}");
}

#[test]
fn a_listing_that_hangs_holds_up_no_lookup() {
    needs_fuse!("a_listing_that_hangs_holds_up_no_lookup");
    let backend = Scripted::start(&[("dir", None), ("dir/file", Some(b"x"))]);
    backend.trouble("dir", Call::List, Trouble::Hold);
    let cluster = Plan { enoent_ttl: Duration::from_secs(60), ..Plan::new(2, backend.path()) }.start();
    let dir = cluster.mount(1).join("dir");
    miss(&dir, "a", 20);
    assert!(eventually(DEADLINE, || backend.held() > 0), "the listing was not asked for");
    miss(&dir, "b", 20);
    assert_eq!(fs::read(dir.join("file")).unwrap(), b"x");
    backend.recover();
    backend.release();
    assert!(
        eventually(DEADLINE, || {
            miss(&dir, &format!("c{:?}", Instant::now()), 1);
            cluster.count(1, Counter::ListingServes) > 0
        }),
        "the listing is not used"
    );
}
