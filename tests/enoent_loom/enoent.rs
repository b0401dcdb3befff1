//! The models. What must hold in all of them: a name is not absent for who has cleared it, whatever was stored for a
//! request that was begun before.

#[path = "../../src/cache/enoent/generation.rs"]
#[expect(dead_code, reason = "what the map uses")]
mod generation;
#[path = "../../src/cache/enoent/ring.rs"]
#[expect(dead_code, unreachable_pub, clippy::enum_variant_names, reason = "what the map uses, and how others see it")]
mod ring;

use loom::model::Builder;
use loom::thread;

use super::sync::{Arc, without_fences};
use generation::Room;
use ring::{Bounds, Generations, Looked, Stored};

const KEY: &[u8] = b"key";
const OTHER: &[u8] = b"other";
/// Both keys have one bucket, one slot to begin with, and one tag.
const HASH: u64 = 1;
const NOW: u64 = 1_000;
const EXPIRY: u64 = 2_000;

/// Generations that are full after so many entries.
fn generations(entries: u32) -> Generations {
    Generations::new(Bounds { generations: 2, room: Room { entries, words: entries * 3 }, buckets: 1 })
}

/// Every order with at most so many switches away from a thread that could go on.
fn model(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(run);
}

fn is_absent(map: &Generations) -> bool {
    matches!(map.lookup(HASH, KEY, NOW), Looked::Until(_))
}

fn clear(map: &Generations) {
    map.clear(HASH, KEY);
}

fn clear_all(map: &Generations) {
    map.clear_all();
}

/// Stores `KEY` under a token of before, while the main thread clears it by `clear`.
fn store_against(map: Generations, clear: impl FnOnce(&Generations)) {
    let map = Arc::new(map);
    let token = map.moment(HASH);
    let storer = {
        let map = map.clone();
        thread::spawn(move || map.store(HASH, KEY, EXPIRY, NOW, token))
    };
    clear(&map);
    assert!(!is_absent(&map), "absent after it was cleared");
    let stored = storer.join().expect("nobody panics");
    assert!(!is_absent(&map), "absent after it was cleared and {stored:?}");
}

#[test]
fn a_store_of_a_new_name_against_its_clear() {
    model(3, || store_against(generations(2), clear));
}

#[test]
fn a_store_of_a_known_name_against_its_clear() {
    model(3, || {
        let map = generations(2);
        assert_eq!(map.store(HASH, KEY, EXPIRY - 1, NOW, map.moment(HASH)), Stored::Stored);
        store_against(map, clear);
    });
}

#[test]
fn a_store_that_begins_a_generation_against_a_clear() {
    model(3, || {
        let map = generations(1);
        assert_eq!(map.store(HASH, OTHER, EXPIRY, NOW, map.moment(HASH)), Stored::Stored);
        store_against(map, clear);
    });
}

#[test]
fn a_store_against_a_clear_of_all() {
    model(3, || store_against(generations(2), clear_all));
}

#[test]
fn two_stores_of_a_name_of_which_one_begins_a_generation_against_its_clear() {
    model(2, || {
        let map = generations(1);
        assert_eq!(map.store(HASH, OTHER, EXPIRY, NOW, map.moment(HASH)), Stored::Stored);
        let map = Arc::new(map);
        let token = map.moment(HASH);
        let storers = [EXPIRY, EXPIRY + 1].map(|expiry| {
            let map = map.clone();
            thread::spawn(move || map.store(HASH, KEY, expiry, NOW, token))
        });
        map.clear(HASH, KEY);
        assert!(!is_absent(&map), "absent after it was cleared");
        let stored = storers.map(|storer| storer.join().expect("nobody panics"));
        assert!(!is_absent(&map), "absent after it was cleared and {stored:?}");
    });
}

#[test]
fn a_store_begun_after_a_clear_is_kept() {
    model(3, || {
        let map = Arc::new(generations(2));
        let storer = {
            let map = map.clone();
            thread::spawn(move || {
                map.clear(HASH, KEY);
                map.store(HASH, KEY, EXPIRY, NOW, map.moment(HASH))
            })
        };
        map.store(HASH, OTHER, EXPIRY, NOW, map.moment(HASH));
        let stored = storer.join().expect("nobody panics");
        assert_eq!(is_absent(&map), stored == Stored::Stored, "{stored:?}");
    });
}

#[test]
#[should_panic(expected = "absent after it was cleared")]
fn without_fences_an_answer_outlives_a_clear() {
    without_fences(|| model(3, || store_against(generations(2), clear)));
}

#[test]
#[should_panic(expected = "absent after it was cleared")]
fn without_fences_an_answer_outlives_a_clear_of_all() {
    without_fences(|| model(3, || store_against(generations(2), clear_all)));
}
