//! Millions of distinct absent names: the TTL map's memory stays within its stated bound, and what lives is answered.
//!
//! In a process of its own, as it is the process's resident memory that is measured.

use bornite::cache::enoent::{EnoentConfig, EnoentMap, Stored};
use bornite::cache::types::Micros;

/// 50,000 new names in a second.
const STEP_US: u64 = 20;
const TTL_US: u64 = 2_000_000;
const MAINTAIN_US: u64 = 50_000;

/// Bytes of memory that are resident now (proc(5), statm).
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("a process has it");
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number of pages");
    pages * rustix::param::page_size()
}

/// As many names as said, each asked for before it is stored and once more after; `pad` bytes longer than they must be.
fn flood(map: &EnoentMap, now: &mut Micros, first: u64, names: u64, pad: usize) -> u64 {
    use std::io::Write;
    let mut key = Vec::new();
    let mut full = 0;
    for number in first..first + names {
        key.clear();
        write!(key, "opt/env/lib/python3.11/site-packages/package{number:09}/module").expect("memory takes it");
        key.resize(key.len() + pad, b'x');
        assert_eq!(map.lookup(&key, *now), None, "name {number} is new");
        let token = map.begin(&key);
        match map.store(&key, now.after_us(TTL_US), *now, token) {
            Stored::Stored => assert_eq!(map.lookup(&key, *now), Some(TTL_US), "name {number}"),
            Stored::Full => full += 1,
            other => panic!("name {number}: {other:?}"),
        }
        *now = now.after_us(STEP_US);
        if now.0 % MAINTAIN_US < STEP_US {
            map.maintain(*now);
        }
    }
    full
}

fn floods(names: u64) {
    let config = EnoentConfig::new([1, 2]);
    let before = resident_bytes();
    let map = EnoentMap::new(config);
    let mut now = Micros(1);
    let mut first = 0;
    let mut run = |pad| {
        let full = flood(&map, &mut now, first, names, pad);
        first += names;
        full
    };
    assert_eq!(run(40), 0, "names of 100 bytes have room at 50,000 a second");
    let long = run(900);
    assert!(long > 0, "names of 960 bytes have not");
    run(0);
    let stats = map.stats();
    let taken = resident_bytes().saturating_sub(before);
    let most = config.memory_bytes_max();
    println!("{taken} bytes resident after {} names, {most} at most; {stats:?}", 3 * names);
    assert!(taken <= most + most / 20, "{taken} bytes resident, {most} at most");
    assert_eq!(stats.stores + stats.full, 3 * names);
    assert!(stats.rotations > 3, "generations were used again");
}

#[test]
fn a_flood_of_names_takes_no_more_memory_than_stated() {
    floods(250_000);
}

#[test]
#[ignore = "for `make soak`: 60 million names"]
fn a_long_flood_of_names_takes_no_more_memory_than_stated() {
    floods(20_000_000);
}
