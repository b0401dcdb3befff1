use std::time::Duration;

use super::*;
use crate::cache::chunks::CHUNK_BYTES;

fn must(config: SimConfig) -> Report {
    let command = config.command();
    run(config).unwrap_or_else(|error| panic!("{error}\nrepeat it: {command}"))
}

/// The run of a seed, small enough for a hundred of them in each run of the tests; every third has three trees.
fn small(seed: u64, level: FaultLevel) -> SimConfig {
    let mut config = SimConfig::draw(seed, 5 + u32::try_from(seed * 7 % 26).unwrap(), level);
    config.lookups_per_client = 12;
    config.stripes = if seed % 3 == 2 { 3 } else { 1 };
    config
}

/// Runs small seeds; what happened in all of them.
fn seeds(level: FaultLevel, seeds: std::ops::Range<u64>) -> Counts {
    let mut counts = Counts::default();
    for seed in seeds {
        let config = small(seed, level);
        let (command, lookups) = (config.command(), config.lookups_per_client);
        match run(config) {
            Ok(report) => counts.add(&report.counts),
            Err(error) => panic!("{error}\nas {command}, but with {lookups} lookups"),
        }
    }
    counts
}

/// A run without faults whose figures are moderate, to be changed by a test.
fn plain(seed: u64, nodes: u32) -> SimConfig {
    let mut config = SimConfig::draw(seed, nodes, FaultLevel::None);
    config.cache_bytes = 8 * CHUNK_BYTES;
    config.enoent_ttl = Duration::from_secs(2);
    config.dir_ttl = Duration::from_secs(60);
    config.attr_ttl = None;
    config
}

#[test]
fn without_faults_nothing_fails_and_only_roots_ask_the_backend() {
    let counts = seeds(FaultLevel::None, 0..10);
    assert!(counts.answered > 3_000 && counts.bytes > 1_000_000 && counts.joined > 0, "{counts:?}");
    assert_eq!((counts.errors, counts.stale, counts.retries, counts.reads_failed), (0, 0, 0, 0));
    assert_eq!(counts.readers_max, 1);
    // Nobody waited for a timer.
    assert!(counts.wait_us_max < 1_000_000, "{counts:?}");
    assert!(counts.listing_serves > 100 && counts.listings_renewed > 10, "{counts:?}");
}

#[test]
fn what_clients_will_ask_for_is_foreseen_whatever_fails() {
    let mut all = Counts::default();
    for (seed, level) in [FaultLevel::None, FaultLevel::Net, FaultLevel::Nodes, FaultLevel::All].into_iter().enumerate()
    {
        let mut config = SimConfig::draw(seed as u64, 20, level);
        config.tree.files = 200;
        config.clients_per_node = 2;
        config.lookups_per_client = 100;
        all.add(&must(config).counts);
    }
    assert!(all.foreseen > 50 && all.foreseen_wasted < all.foreseen, "{all:?}");
}

#[test]
fn ample_memory_reads_every_chunk_once() {
    let report = must(plain(3, 60));
    assert_eq!(report.counts.reads_per_chunk_max, 1);
    assert!(report.counts.backend_attr < report.counts.answered / 10, "{:?}", report.counts);
}

#[test]
fn chosen_faults_cost_no_truth_and_no_answer() {
    seeds(FaultLevel::Some, 100..125);
}

#[test]
fn faults_of_the_network_cost_no_truth_and_no_answer() {
    let counts = seeds(FaultLevel::Net, 200..215);
    assert!(counts.cuts > 10 && counts.lost > 100 && counts.swept > 20, "{counts:?}");
}

#[test]
fn dead_and_stopped_nodes_cost_no_truth_no_answer_and_at_most_three_seconds() {
    let counts = seeds(FaultLevel::Nodes, 300..315);
    assert!(counts.kills > 50 && counts.freezes > 15 && counts.search_us_max > 2_000_000, "{counts:?}");
}

#[test]
fn faults_of_the_backend_cost_no_truth_and_no_answer() {
    let counts = seeds(FaultLevel::Backend, 400..415);
    assert!(counts.backend_failed > 100 && counts.backend_hung > 100 && counts.kills == 0, "{counts:?}");
    assert!(counts.errors > 50, "{counts:?}");
}

#[test]
fn all_faults_cost_no_truth_and_no_answer() {
    let counts = seeds(FaultLevel::All, 500..520);
    // Each kind of fault happened, or the test shows nothing.
    let rare = [
        "foreseen",
        "foreseen_wasted",
        "evicted",
        "listings_renewed",
        "listings_voided",
        "reads_lost",
        "backend_young",
        "search_us_max",
    ];
    for (name, value, _) in counts.rows().filter(|(name, ..)| !rare.contains(name)) {
        assert!(value > 0, "{name} is 0");
    }
}

/// A thousand nodes without faults, to be changed by a test. Times in which everybody is busy.
fn thousand(seed: u64) -> SimConfig {
    let mut config = plain(seed, 1000);
    config.lookups_per_client = 6;
    config.span_us = 25_000_000;
    config
}

#[test]
fn a_thousand_nodes_with_a_dead_root_have_one_new_reader() {
    let mut config = thousand(1);
    config.faults.root_kills = 3;
    config.faults.forever_per_mille = 1000;
    let counts = must(config).counts;
    assert_eq!((counts.kills, counts.readers_max, counts.errors), (1, 2, 0), "{counts:?}");
    assert!(counts.search_us_max > 0 && counts.answered > 5_000, "{counts:?}");
}

#[test]
#[ignore = "takes long without optimization: `make soak`"]
fn a_thousand_nodes_with_twenty_deaths() {
    let mut config = thousand(2);
    config.faults.kills = 20;
    config.faults.down_us_max = 20_000_000;
    config.faults.forever_per_mille = 500;
    let counts = must(config).counts;
    assert!(counts.kills >= 18 && counts.readers_max <= 2 && counts.errors == 0, "{counts:?}");
}

#[test]
#[ignore = "takes long without optimization: `make soak`"]
fn a_thousand_nodes_with_two_levels_dead_at_once() {
    let mut config = thousand(3);
    config.faults.pair_kills = 10;
    config.faults.down_us_max = 20_000_000;
    let counts = must(config).counts;
    assert!(counts.kills >= 15 && counts.errors == 0, "{counts:?}");
}

#[test]
#[ignore = "takes long without optimization: `make soak`"]
fn a_thousand_nodes_with_partitions_of_half_a_minute() {
    let mut config = thousand(4);
    config.faults.cuts = 4;
    config.faults.cut_us_max = 30_000_000;
    let counts = must(config).counts;
    assert!(counts.cuts == 4 && counts.lost > 100 && counts.errors == 0, "{counts:?}");
}

#[test]
#[ignore = "takes long without optimization: `make soak`"]
fn a_thousand_nodes_with_all_faults() {
    let report = must(SimConfig::draw(1, 1000, FaultLevel::All));
    assert!(report.counts.answered > 10_000, "{:?}", report.counts);
}

#[test]
fn a_backend_that_hangs_for_twenty_seconds_moves_nobody() {
    let mut moved = Counts::default();
    for seed in 0..6 {
        let mut config = plain(seed, 12);
        config.faults.outages = 2;
        config.faults.outage_us_max = 20_000_000;
        moved.add(&must(config).counts);
    }
    assert!(moved.backend_hung > 0 && moved.wait_us_max > 5_000_000, "{moved:?}");
    assert_eq!(moved.readers_max, 1);
}

#[test]
fn a_seed_gives_the_same_run_event_by_event() {
    let twice = |seed| [(); 2].map(|()| must(SimConfig::draw(seed, 30, FaultLevel::All)));
    let [[a, b], [c, d]] = [7, 8].map(twice);
    assert_eq!((&a, &c), (&b, &d));
    assert_ne!(a.counts.digest, c.counts.digest);
}

#[test]
fn several_trees_have_several_roots() {
    let mut config = SimConfig::draw(11, 30, FaultLevel::Backend);
    config.trees = 3;
    let command = config.command();
    assert_eq!(command, "bornite sim --seed 11 --nodes 30 --trees 3 --faults backend");
    let roots = must(config).nodes.iter().filter(|node| node.backend_attr > 0).count();
    // Others stand in for roots that start again.
    assert!((3..=6).contains(&roots), "{roots}");
}

#[test]
fn absence_is_no_older_at_the_end_of_a_long_chain() {
    for seed in 0..4 {
        let mut config = SimConfig::draw(seed, 12, FaultLevel::None);
        config.fanout = Some(1);
        config.enoent_ttl = Duration::from_millis(300);
        config.faults.changes = 600;
        let report = must(config);
        assert!(report.counts.absent > 100, "{:?}", report.counts);
    }
}

#[test]
fn lost_messages_cost_time_and_no_truth() {
    let mut config = plain(13, 20);
    config.faults.lost_per_mille = 50;
    let report = must(config);
    assert!(report.counts.retries > 0, "nothing was sent again: the test shows nothing");
    assert_eq!(report.counts.reads_per_chunk_max, 1);
}

#[test]
fn a_network_that_loses_everything_is_told() {
    let mut config = plain(13, 3);
    config.faults.lost_per_mille = 1000;
    let error = run(config).unwrap_err();
    // The node itself ends the request, at its deadline.
    assert!(matches!(error, SimError::Liveness { .. }) && error.to_string().contains("in time"), "{error}");
}

#[test]
fn long_listings_arrive_in_parts_even_while_they_change() {
    for (seed, dir_ttl_ms, lost) in [(20, 60_000, 0), (18, 0, 0), (19, 100, 30)] {
        let mut config = plain(seed, 6);
        config.tree.long_names = 400;
        config.lookups_per_client = 80;
        config.dir_ttl = Duration::from_millis(dir_ttl_ms);
        config.faults.changes = 2_000;
        config.faults.lost_per_mille = lost;
        let report = must(config);
        // Six parts, for each of the root's two children.
        assert!(report.nodes[0].peers_list >= 12, "{:?}: the test shows nothing", report.nodes[0]);
    }
}

#[test]
fn parts_of_two_snapshots_are_never_mixed() {
    // Names of one length, so that the parts of all snapshots begin at the same bytes, and copies that come much later.
    for seed in 0..6 {
        let mut config = plain(seed, 5);
        config.tree.dirs = 0;
        config.tree.files = 2;
        config.tree.long_names = 300;
        config.dir_ttl = Duration::ZERO;
        config.clients_per_node = 8;
        config.lookups_per_client = 40;
        config.delay_us = (100, 3_000);
        config.backend_us = (20, 400);
        config.span_us = 1_000_000;
        config.faults.changes = 3_000;
        config.faults.doubled_per_mille = 400;
        config.faults.echo_us_max = 30_000;
        config.faults.reorders_pairs = true;
        let counts = must(config).counts;
        assert!(counts.listings > 5 && counts.doubled > 100, "{counts:?}: the test shows nothing");
    }
}

#[test]
fn complete_directories_are_as_old_as_the_ttl_allows() {
    // Many look for the same names in one directory, in which names come and go within the same tick of its times.
    let mut all = Counts::default();
    for seed in 0..8 {
        let mut config = plain(seed, 7);
        config.tree.dirs = 1;
        config.tree.files = 4;
        config.tree.coarse_us = [0, 700_000][usize::try_from(seed % 2).unwrap()];
        config.complete_dirs = true;
        config.attr_ttl = [None, Some(Duration::from_millis(100))][usize::try_from(seed / 2 % 2).unwrap()];
        config.enoent_ttl = Duration::from_millis(300);
        config.backend_us = (20, 20_000);
        config.clients_per_node = 8;
        config.lookups_per_client = 100;
        config.span_us = 6_000_000;
        config.faults.changes = 400;
        config.faults.sweeps = 10;
        all.add(&must(config).counts);
    }
    let found = [all.listings_wanted, all.listings_renewed, all.listings_voided, all.listing_serves];
    assert!(found.iter().all(|count| *count > 50), "{found:?}: the test shows nothing");
}

#[test]
fn directories_that_go_and_come_back_are_neither_kept_nor_missed_too_long() {
    // The backend may be told of a name below a directory after it was told that there is none.
    for seed in 0..6 {
        let mut config = plain(seed, 6);
        config.tree.dirs = 3;
        config.tree.files = 12;
        config.attr_ttl = Some(Duration::ZERO);
        config.dir_ttl = Duration::from_millis(300);
        config.backend_us = (20, 20_000);
        config.clients_per_node = 6;
        config.lookups_per_client = 60;
        config.span_us = 4_000_000;
        config.faults.changes = 4_000;
        config.faults.hangs_per_mille = 200;
        config.faults.hang_us_max = 100_000;
        let counts = must(config).counts;
        assert!(counts.absent > 100 && counts.entries > 100, "{counts:?}: the test shows nothing");
    }
}

#[test]
fn memory_that_is_too_small_costs_reads_and_no_truth() {
    let mut config = plain(5, 8);
    config.cache_bytes = CHUNK_BYTES;
    config.tree.large_bytes = 3_000_000;
    config.tree.medium_bytes = 200_000;
    let report = must(config);
    assert!(
        report.counts.evicted > 0 && report.counts.reads_per_chunk_max > 1,
        "this memory holds everything: the test shows nothing"
    );
}

#[test]
fn many_clients_of_one_node_stay_within_its_share_of_the_parent() {
    let mut config = plain(21, 3);
    config.clients_per_node = 200;
    config.tree.files = 400;
    config.backend_us = (20_000, 40_000);
    assert_eq!(must(config).counts.at_parent_max, 64);
}

#[test]
fn files_rewritten_with_their_time_set_back_are_never_mixed() {
    let mut counts = Counts::default();
    for seed in 0..3 {
        let mut config = plain(seed, 4);
        config.tree.files = 5;
        config.tree.small_bytes = 2_500_000;
        config.cache_bytes = 64 * CHUNK_BYTES;
        config.faults.changes = 400;
        config.faults.silent = true;
        counts.add(&must(config).counts);
    }
    assert!(counts.stale > 0 && counts.chunks > 100, "{counts:?}");
}

#[test]
fn nodes_that_start_again_take_no_answer_to_an_earlier_life() {
    let mut counts = Counts::default();
    for seed in 0..6 {
        let mut config = plain(seed, 12);
        config.attr_ttl = Some(Duration::ZERO);
        config.faults.restarts = 60;
        config.faults.late_per_mille = 300;
        config.faults.late_us_max = 1_000_000;
        config.lookups_per_client = 20;
        counts.add(&must(config).counts);
    }
    assert!(counts.kills > 50 && counts.late > 500, "{counts:?}");
}

#[test]
#[ignore = "thousands of seeds take minutes: `make soak`"]
fn thousands_of_seeds() {
    let failed = std::sync::Mutex::new(Vec::new());
    let next = std::sync::atomic::AtomicU64::new(1000);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let (nodes, level) = match seed {
                        1000..1010 => (1000, FaultLevel::All),
                        1010..4000 => {
                            use FaultLevel::{All, Backend, Net, Nodes, None, Some};
                            let levels = [Some, All, Nodes, Net, Backend, All, Nodes, None];
                            (2 + u32::try_from(seed * 7 % 98).unwrap(), levels[usize::try_from(seed % 8).unwrap()])
                        }
                        _ => return,
                    };
                    let mut config = SimConfig::draw(seed, nodes, level);
                    // Some with several trees.
                    config.stripes = if seed.is_multiple_of(3) { nodes.min(4) } else { 1 };
                    let command = config.command();
                    if let Err(error) = run(config) {
                        println!("{error}\nrepeat it: {command}");
                        failed.lock().unwrap().push(command);
                    }
                }
            });
        }
    });
    assert_eq!(failed.into_inner().unwrap(), [""; 0]);
}
